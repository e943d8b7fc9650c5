"""Requests of the page: which of them reach Gradio's server."""

import json
from typing import Any

import pytest
from starlette.datastructures import Headers

from lora_studio.errors import StudioError
from lora_studio.ui import page_requests
from lora_studio.ui.page_requests import Pages, Uploads

JOIN = "/gradio_api/queue/join"


def status(pages: Pages, user: str | None, path: str, query: bytes = b"", body: Any = None) -> int:
    found = pages.refused(user, path, query, b"" if body is None else json.dumps(body).encode())
    return found.status if found else 200


@pytest.mark.parametrize(
    "path",
    ["/", "/config", "/assets/x.js", "/gradio_api/info/", "/gradio_api/upload", "/gradio_api/file=/tmp/gradio/x/a.csv"],
)
def test_what_the_page_asks_passes(path: str) -> None:
    assert status(Pages(), "anna", path) == 200


@pytest.mark.parametrize(
    "path",
    [
        "run/list_runs",
        "api/list_runs",
        "component_server",
        "proxy=https://example.org/",
        "stream/1",
        "vibe-code",
        "process_recording",
        "dev/reload",
        "file=http://169.254.169.254/latest",
        "file=https://example.org/a.csv",
        "heartbeat/a/b",
    ],
)
def test_addresses_that_the_page_does_not_use_are_not_there(path: str) -> None:
    assert status(Pages(), "anna", f"/gradio_api/{path}") == 404


@pytest.mark.parametrize("place", ["http://127.0.0.1/x", "https://example.org/a.csv", "HTTP://169.254.169.254/"])
def test_no_file_is_fetched_from_an_address(place: str) -> None:
    file = {"path": place, "meta": {"_type": "gradio.FileData"}}
    for data in ([file], [[file]], [{"files": [file]}]):
        assert status(Pages(), "anna", JOIN, body={"data": data, "session_hash": "a"}) == 400
    assert status(Pages(), "anna", JOIN, body={"data": [place], "session_hash": "a"}) == 200


def test_the_events_of_a_page_are_for_whoever_opened_it() -> None:
    pages = Pages()
    asked: tuple[tuple[str, bytes, Any], ...] = (
        (JOIN, b"", {"session_hash": "a", "data": []}),
        ("/gradio_api/queue/data", b"session_hash=a", None),
        ("/gradio_api/queue/data", b"session_hash=b&session_hash=a", None),
        ("/gradio_api/heartbeat/a", b"", None),
        ("/gradio_api/cancel", b"", {"session_hash": "a", "fn_index": 1, "event_id": "x"}),
        ("/gradio_api/call/chat", b"", {"session_hash": "a", "data": []}),
    )
    for user, found in (("anna", 200), ("bert", 401), ("anna", 200)):
        assert {status(pages, user, *one) for one in asked} == {found}


def test_what_is_no_json_or_too_deep_breaks_nothing() -> None:
    assert Pages().refused("anna", JOIN, b"", b"\xff{") is None
    found = Pages().refused("anna", JOIN, b"", b"[" * 100_000)
    assert found is not None
    assert found.status == 400


def test_pages_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_requests, "MOST_PAGES", 2)
    pages = Pages()
    for name in ("a", "b", "c"):
        assert status(pages, "anna", f"/gradio_api/heartbeat/{name}") == 200
    assert status(pages, "bert", "/gradio_api/heartbeat/c") == 401
    assert status(pages, "bert", "/gradio_api/heartbeat/a") == 200


def test_an_upload_is_weighed_before_it_comes_with_those_of_the_last_hour() -> None:
    now = [0.0]

    def check_room(user: str, size: int) -> None:
        if user != "anna" and size > 100:
            raise StudioError("There is no room.", "Delete something.")

    uploads = Uploads(check_room, lambda: now[0])

    def sent(user: str, **headers: str) -> int:
        found = uploads.refused(user, Headers({name.replace("_", "-"): text for name, text in headers.items()}))
        return found.status if found else 200

    assert [sent("bert", content_length=size) for size in ("60", "60", "40")] == [200, 413, 200]
    assert (sent("carl", content_length="100"), sent("anna", content_length="999")) == (200, 200)
    now[0] = page_requests.CLEARED_SECONDS + 1
    assert sent("bert", content_length="60") == 200
    for headers in ({}, {"content_length": "-1"}, {"content_length": "5", "transfer_encoding": "chunked"}):
        assert sent("carl", **headers) == 411
