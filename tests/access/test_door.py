"""The door of the server, asked over HTTP: who gets in, who is turned away, and when a session ends."""

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from lora_studio.access import accounts as logins
from lora_studio.access import middleware
from lora_studio.access.accounts import Accounts, Attempts, Sessions
from lora_studio.access.middleware import MAX_LOGIN_BYTES, USER, AuthMiddleware, OriginMiddleware, login_page
from lora_studio.access.serving import Serving

ANNA = {"username": "anna", "password": "one"}
BROWSER = {"accept": "text/html,*/*"}
TWO = Accounts({"anna": "one", "bert": "two"}, "anna")


def visitor(serving: Serving, sessions: Sessions | None = None, address: str = "10.0.0.1") -> TestClient:
    async def inside(request: Request) -> JSONResponse:
        return JSONResponse({"user": request.scope.get(USER), "bytes": len(await request.body())})

    routes = [Route("/{path:path}", inside, methods=["GET", "POST", "HEAD"])]
    made: Any = AuthMiddleware(Starlette(routes=routes), serving, sessions or Sessions(), Attempts())
    return TestClient(made, "http://studio:7860", client=(address, 1), follow_redirects=False)


def test_without_a_login_nothing_is_served_but_the_question() -> None:
    guest = visitor(Serving(accounts=TWO))
    page = guest.get("/", headers=BROWSER)
    assert (page.status_code, page.headers["cache-control"]) == (200, "no-store")
    assert "Password" in page.text
    for path in (
        "/config",
        "/gradio_api/info",
        "/gradio_api/file=/etc/passwd",
        "/assets/x.js",
        "//",
        "/x/login",
        "/v1",
    ):
        assert guest.get(path).status_code == 401 or guest.get(path).text == page.text
    assert guest.post("/gradio_api/queue/join", json={}).status_code == 401
    assert guest.post("/gradio_api/upload", files={"files": b"x"}).status_code == 401
    assert guest.post("/").status_code == 401


def test_a_browser_logs_in_and_out_again() -> None:
    guest = visitor(Serving(accounts=TWO))
    wrong = guest.post("/login", data=ANNA | {"password": "two"}, headers=BROWSER)
    assert wrong.status_code == 401
    assert "Wrong name or password" in wrong.text
    entered = guest.post("/login", data=ANNA, headers=BROWSER)
    assert (entered.status_code, entered.headers["location"]) == (303, "./")
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "secure" not in cookie
    assert guest.get("/anything").json()["user"] == "anna"
    kept = dict(guest.cookies)
    assert guest.get("/logout").status_code == 303  # a link, that of another site too, ends nothing
    assert guest.post("/logout", headers={"origin": "http://evil.org"}).status_code == 403
    assert guest.get("/anything").json()["user"] == "anna"
    assert guest.post("/logout").status_code == 303
    assert guest.get("/anything").status_code == 401
    guest.cookies.update(kept)
    assert guest.get("/anything").status_code == 401


def test_who_has_one_password_is_told_that_any_name_will_do() -> None:
    guest = visitor(Serving(accounts=Accounts({"owner": "one"}, "owner", one=True)))
    assert "Any user name works" in guest.get("/").text
    wrong = guest.post("/login", data={"username": "", "password": "two"}, headers=BROWSER)
    assert (wrong.status_code, "Wrong password." in wrong.text) == (401, True)
    assert "any name" not in visitor(Serving(accounts=TWO)).get("/").text


def test_a_program_logs_in_and_is_told_so() -> None:
    guest = visitor(Serving(accounts=TWO))
    assert guest.post("/login", data={"username": "bert", "password": "two"}).json() == {"success": True}
    assert guest.get("/anything").json()["user"] == "bert"


def test_a_restart_ends_sessions_and_so_does_idleness(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions()
    guest = visitor(Serving(accounts=TWO), sessions)
    guest.post("/login", data=ANNA)
    restarted = visitor(Serving(accounts=TWO))
    restarted.cookies.update(guest.cookies)
    assert restarted.get("/anything").status_code == 401
    monkeypatch.setattr(logins, "IDLE_SECONDS", 0)
    assert guest.get("/anything").status_code == 401


def test_guessing_is_slowed_down_also_for_the_right_password() -> None:
    guest = visitor(Serving(accounts=TWO))
    for _ in range(logins.FREE_FAILURES):
        assert guest.post("/login", data=ANNA | {"password": "x"}).status_code == 401
    refused = guest.post("/login", data=ANNA, headers=BROWSER)
    assert refused.status_code == 429
    assert "Try again in" in refused.text
    assert guest.post("/login", data={"username": "bert", "password": "two"}).status_code == 200


def test_a_session_that_is_open_stays_so_while_its_name_is_guessed_at() -> None:
    owner = visitor(Serving(accounts=TWO))
    assert owner.post("/login", data=ANNA).status_code == 200
    for _ in range(20):
        owner.post("/login", data=ANNA | {"password": "x"})
    assert owner.post("/login", data=ANNA).status_code == 429
    assert owner.get("/anything").json()["user"] == "anna"


def test_the_address_with_the_token_lets_the_owner_in() -> None:
    token = "t" * 20
    guest = visitor(Serving(accounts=Accounts({"owner": token}, "owner", one=True, token=token)))
    here = {"host": "127.0.0.1:7860"}
    for wrong in ("/", "/?token=", "/?token=x", "/config?token=" + token):
        assert "set-cookie" not in guest.get(wrong, headers=here).headers
    assert "requires its access token" in guest.get("/", headers=here).text
    assert guest.get("/v1/models", headers=here).status_code == 401
    assert guest.get("/v1/models", headers=here | {"authorization": f"Bearer {token}"}).json()["user"] == "owner"
    entered = guest.get(f"/?token={token}", headers=here)
    assert (entered.status_code, entered.headers["location"]) == (303, "./")
    kept = here | {"cookie": entered.headers["set-cookie"].partition(";")[0]}
    assert guest.get("/anything", headers=kept).json()["user"] == "owner"
    assert guest.get("/", headers=kept | {"host": "evil.org"}).status_code == 403


def test_what_a_login_holds_is_no_markup_and_no_flood() -> None:
    assert "<script" not in login_page("<script>alert(1)</script>")
    guest = visitor(Serving(accounts=TWO))
    assert guest.post("/login", content=b"x" * (MAX_LOGIN_BYTES + 1)).status_code == 401


def test_over_https_the_cookie_is_sent_over_nothing_else() -> None:
    guest = visitor(Serving(accounts=TWO))
    cookie = guest.post("/login", data=ANNA, headers={"x-forwarded-proto": "https"}).headers["set-cookie"].lower()
    assert "secure" in cookie
    assert "samesite=lax" in cookie


def test_the_page_of_another_site_can_not_act_through_a_visitors_browser() -> None:
    for serving in (Serving(accounts=TWO), Serving("0.0.0.0", insecure=True)):
        guest = visitor(serving)
        guest.post("/login", data=ANNA)
        for origin in ("http://evil.org", "null", "http://studio", "http://studio:7860.evil.org"):
            assert guest.post("/gradio_api/queue/join", headers={"origin": origin}).status_code == 403
        assert guest.post("/gradio_api/queue/join", headers={"origin": "http://studio:7860"}).status_code == 200
        proxied = {"origin": "https://me.org", "x-forwarded-host": "me.org"}
        assert guest.post("/gradio_api/queue/join", headers=proxied).status_code == 200


def test_the_page_of_another_site_is_handed_nothing_and_not_told_that_it_may_ask() -> None:
    async def any_site(_: Request) -> JSONResponse:
        return JSONResponse("anything", headers={"access-control-allow-origin": "*"})

    routes = [Route("/{path:path}", any_site, methods=["GET", "POST", "OPTIONS"])]
    gate: Any = OriginMiddleware(Starlette(routes=routes), Serving(accounts=TWO))
    site = TestClient(gate, "http://studio:7860")
    asked = {"origin": "http://evil.org", "access-control-request-headers": "x-forwarded-host"}
    for answer in (site.options("/gradio_api/queue/join", headers=asked), site.get("/v1/models", headers=asked)):
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    assert site.get("/v1/models", headers={"origin": "http://studio:7860"}).status_code == 200
    assert visitor(Serving(insecure=True)).get("/v1/models", headers=asked).status_code == 403


@pytest.mark.parametrize(("names", "policy"), [((), "frame-ancestors 'self'"), (("anna-studio.hf.space",), None)])
def test_only_a_space_is_shown_in_a_frame_of_another_site(names: tuple[str, ...], policy: str | None) -> None:
    async def page(_: Request) -> JSONResponse:
        return JSONResponse("page")

    gate: Any = OriginMiddleware(Starlette(routes=[Route("/", page)]), Serving(accounts=TWO, names=names))
    answer = TestClient(gate, "http://studio:7860").get("/")
    assert answer.headers.get("content-security-policy") == policy


def test_a_request_is_not_held_in_memory_however_large_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "MAX_BYTES", 100)
    guest = visitor(Serving("0.0.0.0", insecure=True))
    assert guest.post("/gradio_api/queue/join", content=b"x" * 101).status_code == 413
    assert guest.post("/gradio_api/queue/join", content=b"x" * 100).json()["bytes"] == 100
    assert guest.post("/gradio_api/upload", content=b"x" * 101).json()["bytes"] == 101


def test_large_requests_are_few_at_once_of_each_address_and_in_all() -> None:
    large = middleware.LargeRequests()
    places = [f"10.0.0.{number}" for number in range(100)]
    assert [large.begin("a") for _ in range(middleware.MAX_LARGE_OF_ADDRESS + 1)][-2:] == [True, False]
    assert sum(large.begin(place) for place in places) == middleware.MAX_LARGE - middleware.MAX_LARGE_OF_ADDRESS
    large.end("a")
    assert [large.begin("a"), large.begin("b")] == [True, False]


def test_a_large_request_that_ends_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "MAX_LARGE_OF_ADDRESS", 1)
    monkeypatch.setattr(middleware, "LARGE_BODY", 10)
    guest = visitor(Serving("0.0.0.0", insecure=True))
    for _ in range(3):
        assert guest.post("/gradio_api/queue/join", content=b"x" * 100).status_code == 200
    monkeypatch.setattr(middleware, "MAX_LARGE_OF_ADDRESS", 0)
    assert guest.post("/gradio_api/queue/join", content=b"x" * 100).status_code == 503
    assert guest.post("/v1/chat/completions", content=b"x" * 100).status_code == 503
    assert guest.post("/gradio_api/queue/join", content=b"x" * 10).status_code == 200
    assert guest.post("/gradio_api/upload", content=b"x" * 100).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:7860", 200), ("127.0.0.1", 200), ("[::1]:7860", 200), ("evil.org:7860", 403), ("", 403), ("[", 403)],
)
def test_a_page_for_this_machine_answers_to_this_machines_names_alone(host: str, status: int) -> None:
    for serving in (Serving(), Serving(insecure=True)):
        assert visitor(serving).get("/", headers={"host": host}).status_code == status
    assert visitor(Serving("0.0.0.0", insecure=True)).get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("a.org", 200), ("A.org:80", 200), ("b.org:81", 200), ("b.org", 403), ("x.a.org", 403), ("localhost", 200)],
)
def test_with_names_that_are_allowed_the_page_answers_to_no_other(host: str, status: int) -> None:
    serving = Serving("0.0.0.0", accounts=TWO, allowed_hosts=("a.org", "b.org:81"))
    assert visitor(serving).get("/", headers={"host": host}).status_code == status
    own = visitor(serving).post("/login", data=ANNA, headers={"host": "localhost", "origin": "https://a.org"})
    assert own.status_code == 200


def test_browsers_are_told_to_guess_no_types_and_to_name_the_page_to_nobody() -> None:
    async def page(_: Request) -> JSONResponse:
        return JSONResponse("page", headers={"Referrer-Policy": "no-referrer"})

    gate: Any = OriginMiddleware(Starlette(routes=[Route("/", page)]), Serving("0.0.0.0", accounts=TWO))
    asked = TestClient(gate, "http://studio:7860")
    assert asked.get("/").headers["x-content-type-options"] == "nosniff"
    assert asked.get("/").headers["referrer-policy"] == "no-referrer"
    refused = asked.get("/", headers={"origin": "http://evil.org"})
    assert (refused.status_code, refused.headers["referrer-policy"]) == (403, "same-origin")


def test_who_owns_the_studio_hears_once_of_a_proxy_that_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    async def page(_: Request) -> JSONResponse:
        return JSONResponse("page")

    for proxies, heard in (((), 1), (("10.0.0.1",), 0)):
        gate: Any = OriginMiddleware(
            Starlette(routes=[Route("/", page)]), Serving("0.0.0.0", accounts=TWO, proxies=proxies)
        )
        asked = TestClient(gate, "http://studio:7860", client=("10.0.0.1", 1))
        caplog.clear()
        for _ in range(3):
            asked.get("/", headers={"x-forwarded-for": "1.2.3.4"})
        assert sum("10.0.0.1" in record.getMessage() for record in caplog.records) == heard
