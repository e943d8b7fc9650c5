"""The documentation beside the page: every tab has its page, links lead on, and nothing in a page runs."""

import re
from html.parser import HTMLParser
from urllib.parse import urljoin

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lora_studio.access.accounts import Attempts, Sessions, read_accounts
from lora_studio.access.middleware import AuthMiddleware, OriginMiddleware
from lora_studio.access.serving import Serving
from lora_studio.ui import docs
from lora_studio.ui.app import TABS


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Starlette(routes=docs.routes()), base_url="http://127.0.0.1")


class Links(HTMLParser):
    """Addresses and ids of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {str(found["id"])} if "id" in found else set()
        self.links += [str(found[name]) for name in ("href", "src") if name in found]


def links_of(html: str) -> Links:
    reader = Links()
    reader.feed(html)
    return reader


def test_the_address_of_a_tab_leads_to_a_page_that_is_there(client: TestClient) -> None:
    for name, _, _ in TABS:
        answer = client.get(f"/docs/tab/{name}")
        assert answer.status_code == 200
        assert answer.url.path == f"/{docs.docs_url(name)}" != "/docs/index"
    assert client.get("/docs/tab/nothing").url.path == "/docs/index"


def test_every_link_of_every_page_is_answered(client: TestClient) -> None:
    pages = [
        f"/docs/{path.relative_to(docs.docs_folder()).with_suffix('')}" for path in docs.docs_folder().rglob("*.md")
    ]
    parsed = {page: links_of(client.get(page).text) for page in pages}
    assert len(pages) > 15
    known = {*pages, *(f"/docs/images/{path.name}" for path in (docs.docs_folder() / "images").iterdir())}
    for page, found in parsed.items():
        for link in found.links:
            place, _, heading = urljoin(f"http://here{page}", link).removeprefix("http://here").partition("#")
            if "://" in place or place == "/":
                continue
            assert place in known, f"{page}: {link}"
            assert not heading or heading in parsed[place].ids, f"{page}: {link}"


def test_a_picture_comes_as_one_and_nothing_else_of_the_machine_comes_at_all(client: TestClient) -> None:
    picture = next((docs.docs_folder() / "images").iterdir())
    assert client.get(f"/docs/images/{picture.name}").headers["content-type"].startswith("image/")
    for path in (
        "/docs/../README",
        "/docs/%2e%2e/README",
        "/docs//etc/passwd",
        "/docs/images/../../README",
        "/docs/nothing",
    ):
        answer = client.get(path)
        assert answer.status_code == 404, path
        assert "Apache" not in answer.text


def test_the_first_page_is_found_without_its_name(client: TestClient) -> None:
    for path in ("/docs", "/docs/", "/docs/index", "/docs/index.md"):
        assert "<h1" in client.get(path).text


def test_raw_html_is_text_and_generated_parts_lose_their_marks() -> None:
    html = docs.rendered("<!-- settings -->\n\n# A `b`\n\n<script>alert(1)</script> [x](a.md#b) [y](https://e.test)\n")
    assert "<script" not in html
    assert "<!--" not in html
    assert "settings" not in html
    assert '<h1 id="a-b">' in html
    assert 'href="a#b"' in html
    assert 'href="https://e.test"' in html
    assert "javascript:" not in re.findall(r'href="([^"]*)"', docs.rendered("[x](javascript:alert(1))"))


def test_a_page_may_load_nothing_but_its_own_pictures(client: TestClient) -> None:
    policy = client.get("/docs/index").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script" not in policy


def test_a_page_is_light_or_dark_as_the_switch_of_the_studio_was_left(client: TestClient) -> None:
    for value, attribute in (("dark", ' data-theme="dark"'), ("light", ' data-theme="light"'), ('"><b>', ""), ("", "")):
        for page in ("/docs/index", "/docs/nothing"):
            answer = client.get(page, headers={"cookie": f"lora-studio-theme={value}"} if value else {})
            assert f'<html lang="en"{attribute}>' in answer.text
            assert answer.headers["vary"] == "cookie"


def test_the_documentation_stands_behind_the_login() -> None:
    serving = Serving(accounts=read_accounts(None, {"LORA_STUDIO_PASSWORD": "of the test"}))
    app = OriginMiddleware(AuthMiddleware(Starlette(routes=docs.routes()), serving, Sessions(), Attempts()), serving)
    outside = TestClient(app, base_url="http://127.0.0.1")
    assert outside.get("/docs/index").status_code == 401
    outside.post("/login", data={"username": "a", "password": "of the test"})
    assert outside.get("/docs/index").status_code == 200
