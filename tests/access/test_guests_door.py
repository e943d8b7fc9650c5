"""The door of a public demonstration: everybody gets in and is told apart; the owner comes by way of the Hub."""

import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from lora_studio.access.accounts import Attempts, JobsTokens, Sessions
from lora_studio.access.guests import origin
from lora_studio.access.middleware import USER, AuthMiddleware, HubLogin
from lora_studio.access.serving import Serving
from lora_studio.models.hub import HubApp

KEY = "a key of some length"


async def inside(request: Request) -> JSONResponse:
    return JSONResponse({"user": request.scope.get(USER)})


APP = Starlette(routes=[Route("/{path:path}", inside, methods=["GET", "POST"])])


def guest(address: str = "10.0.0.1", serving: Serving | None = None) -> TestClient:
    door: Any = AuthMiddleware(APP, serving or Serving(guests=True), Sessions(), Attempts())
    return TestClient(door, "http://studio:7860", client=(address, 1), follow_redirects=False)


def test_a_guest_is_known_by_a_cookie_from_the_first_page_on() -> None:
    browser = guest()
    first = browser.get("/")
    assert "httponly" in first.headers["set-cookie"].lower()
    name = first.json()["user"]
    assert name.startswith("guest-")
    assert browser.get("/config").json() == {"user": name}
    assert "set-cookie" not in browser.get("/").headers
    browser.cookies.clear()
    assert browser.get("/").json()["user"] != name


def test_a_program_without_cookies_is_known_by_its_address() -> None:
    serving = Serving(guests=True)
    door: Any = AuthMiddleware(APP, serving, Sessions(), Attempts())

    def user(address: str, **headers: str) -> str:
        program = TestClient(door, "http://studio:7860", client=(address, 1))
        return str(program.get("/config", headers=headers).json()["user"])

    assert user("10.0.0.1") == user("10.0.0.1") != user("10.0.0.2")
    assert user("2001:db8::1") == user("2001:db8::ffff") != user("2001:db8:0:1::1")
    assert user("10.0.0.1", **{"x-forwarded-for": "10.0.0.2"}) == user("10.0.0.1")


def test_what_a_request_says_of_its_origin_counts_from_a_proxy_that_is_named() -> None:
    door: Any = AuthMiddleware(APP, Serving(guests=True), Sessions(), Attempts())
    proxied: Any = ProxyHeadersMiddleware(door, ["10.9.9.0/24"])

    def user(address: str, said: str) -> str:
        program = TestClient(proxied, "http://studio:7860", client=(address, 1))
        return str(program.get("/config", headers={"x-forwarded-for": said}).json()["user"])

    victim = user("10.9.9.9", "1.2.3.4")
    assert user("10.9.9.8", "6.6.6.6, 1.2.3.4") == victim  # what the client itself claimed stands before it
    assert user("10.9.9.9", "1.2.3.4, 6.6.6.6") != victim
    assert user("7.7.7.7", "1.2.3.4") != victim


def test_guests_of_one_address_are_known_to_be_so() -> None:
    names = [guest("10.0.0.1").get("/").json()["user"] for _ in range(2)]
    assert names[0] != names[1]
    browser = guest("10.0.0.1")
    first = browser.get("/").json()["user"]
    browser.cookies.clear()
    second, third = browser.get("/").json()["user"], browser.get("/config").json()["user"]
    assert first != second
    assert origin(first) == origin(second)
    browser.cookies.clear()
    assert origin(browser.get("/config").json()["user"]) == origin(third)
    assert origin("hub-anna-b") == "hub-anna-b"


def test_the_key_opens_the_endpoint_as_the_owner_and_guests_may_ask_too() -> None:
    program = guest(serving=Serving(guests=True, api_key=KEY))
    assert program.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).json() == {"user": "owner"}
    assert program.get("/v1/models").json()["user"].startswith("guest-")
    assert program.get("/config", headers={"Authorization": f"Bearer {KEY}"}).json()["user"].startswith("guest-")


def test_a_space_knows_its_own_page_whatever_the_proxy_calls_it() -> None:
    browser = guest(serving=Serving(guests=True, names=("anna-studio.hf.space",)))
    assert browser.post("/x", headers={"Origin": "https://anna-studio.hf.space"}).status_code == 200
    assert browser.post("/x", headers={"Origin": "https://bert-studio.hf.space"}).status_code == 403
    cookie = browser.get("/").headers["set-cookie"].lower()  # the page stands in a frame of the Hub's
    assert "samesite=none" in cookie
    assert "secure" in cookie


class FakeHub:
    """The Hub's part of a login: it asks nobody, and says that it was `name`."""

    def __init__(self) -> None:
        self.name = "Anna"
        self.asked: dict[str, str] = {}
        self.granted = ""  # "" for all that was asked for
        self.key = RSAKey.generate_key(2048, {"kid": "one"})
        routes = [
            Route("/.well-known/openid-configuration", self.about),
            Route("/authorize", self.authorize),
            Route("/token", self.token, methods=["POST"]),
            Route("/keys", self.keys),
        ]
        self.server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        end = time.monotonic() + 200
        while not self.server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    async def about(self, request: Request) -> JSONResponse:
        places = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
        found = {name: f"{self.url}/{place}" for name, place in places.items()}
        return JSONResponse({"issuer": self.url, "id_token_signing_alg_values_supported": ["RS256"], **found})

    async def keys(self, request: Request) -> JSONResponse:
        return JSONResponse({"keys": [self.key.as_dict(private=False)]})

    async def authorize(self, request: Request) -> RedirectResponse:
        self.asked = dict(request.query_params)
        back = urllib.parse.urlencode({"code": "c", "state": self.asked["state"]})
        return RedirectResponse(f"{self.asked['redirect_uri']}?{back}")

    async def token(self, request: Request) -> JSONResponse:
        claims = {"iss": self.url, "aud": "app", "sub": "1", "exp": int(time.time()) + 60, "iat": int(time.time())}
        claims |= {"nonce": self.asked["nonce"], "preferred_username": self.name}
        signed = jwt.encode({"alg": "RS256", "kid": "one"}, claims, self.key)
        answer = {"access_token": "hf_secret", "token_type": "bearer", "id_token": signed, "expires_in": 600}
        return JSONResponse({**answer, "scope": self.granted or self.asked["scope"]})


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    found = FakeHub()
    yield found
    found.server.should_exit = True
    found.thread.join(20)


def visitor(hub: FakeHub, tokens: JobsTokens | None = None) -> TestClient:
    login = HubLogin(HubApp("app", "s" * 32, hub.url, "http://studio:7860", "anna"))
    app = Starlette(middleware=[login.middleware()])
    app.mount("/", AuthMiddleware(APP, Serving(guests=True), Sessions(), Attempts(), login, jobs_tokens=tokens))
    return TestClient(app, "http://studio:7860", follow_redirects=False)


def log_in(browser: TestClient, hub: FakeHub, address: str = "/login/hub") -> Any:
    away = browser.get(address)
    assert away.status_code == 302
    back = httpx.get(away.headers["location"]).headers["location"]
    return browser.get(back.removeprefix("http://studio:7860"))


def test_the_owner_logs_in_at_the_hub_and_out_again(hub: FakeHub) -> None:
    browser, hub.name = visitor(hub), "Anna"
    entered = log_in(browser, hub)
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    assert hub.asked["redirect_uri"] == "http://studio:7860/login/callback"
    assert hub.asked["scope"] == "openid profile"
    assert browser.get("/").json() == {"user": "owner"}
    assert "hf_secret" not in str(dict(browser.cookies))
    assert browser.post("/logout").status_code == 303
    assert browser.get("/config").json()["user"].startswith("guest-")


def test_somebody_else_stays_a_guest_though_with_a_name(hub: FakeHub) -> None:
    browser, hub.name = visitor(hub), "owner"
    log_in(browser, hub)
    assert browser.get("/").json() == {"user": "hub-owner"}


def test_a_visitor_may_let_the_studio_run_jobs_on_their_account_until_they_log_out(hub: FakeHub) -> None:
    tokens = JobsTokens()
    browser, hub.name = visitor(hub, tokens), "bert"
    log_in(browser, hub)
    assert tokens.token("hub-bert") == ""  # nobody asked for it
    log_in(browser, hub, "/login/hub/jobs")
    assert hub.asked["scope"] == "openid profile jobs contribute-repos"
    assert tokens.token("hub-bert") == "hf_secret"
    assert "hf_secret" not in str(dict(browser.cookies))
    browser.post("/logout")
    assert tokens.token("hub-bert") == ""


def test_rights_that_were_not_granted_and_the_owners_login_give_no_token(hub: FakeHub) -> None:
    tokens = JobsTokens()
    browser, hub.name, hub.granted = visitor(hub, tokens), "bert", "openid profile jobs"
    log_in(browser, hub, "/login/hub/jobs")
    assert tokens.token("hub-bert") == ""
    browser, hub.name, hub.granted = visitor(hub, tokens), "anna", ""
    log_in(browser, hub, "/login/hub/jobs")
    assert not tokens.token("owner")
    assert not tokens.token("hub-anna")


def test_a_token_is_forgotten_when_it_expires() -> None:
    now = [100.0]
    tokens = JobsTokens(lambda: now[0])
    tokens.remember("hub-bert", "hf_secret", 110.0)
    assert tokens.token("hub-bert") == "hf_secret"
    now[0] = 110.0
    assert tokens.token("hub-bert") == ""


def test_a_login_that_nobody_began_is_refused(hub: FakeHub) -> None:
    browser = visitor(hub)
    refused = browser.get("/login/callback?code=c&state=made-up")
    assert refused.status_code == 403
    assert "login failed" in refused.text
    assert browser.get("/config").json()["user"].startswith("guest-")
