"""Requests of the page: which of them reach Gradio's server."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_studio.access import requests
from lora_studio.access.requests import Pages, VisitorFiles
from lora_studio.errors import StudioError

JOIN = "/gradio_api/queue/join"


def files(folder: Path, now: Callable[[], float] = time.monotonic) -> VisitorFiles:
    """Anna is the owner; others have room for a hundred bytes."""

    def check_room(user: str, size: int) -> None:
        if user != "anna" and size > 100:
            raise StudioError("There is no room.", "Delete something.")

    root = folder / "root"
    return VisitorFiles("anna", check_room, lambda name: root / f"downloads/of-{name}", (root, folder / "temp"), now)


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
        ("/gradio_api/run/predict", b"", {"session_hash": "a", "data": []}),  # an event that does not queue: a stop
        ("/gradio_api/cancel", b"", {"session_hash": "a", "fn_index": 1, "event_id": "x"}),
        ("/gradio_api/call/chat", b"", {"session_hash": "a", "data": []}),
    )
    for user, found in (("anna", 200), ("bert", 401), ("anna", 200)):
        assert {status(pages, user, *one) for one in asked} == {found}


def test_nobody_fills_the_queue_that_all_wait_in() -> None:
    pages = Pages(waiting=lambda user: {"anna": requests.MAX_WAITING_OF_VISITOR}.get(user, 0))
    for user, found in (("anna", 503), ("bert", 200)):
        for place in (JOIN, "/gradio_api/call/chat"):
            assert status(pages, user, place, body={"session_hash": user, "data": []}) == found
        assert status(pages, user, "/gradio_api/queue/data", f"session_hash={user}".encode()) == 200


def test_what_is_no_json_or_too_deep_breaks_nothing() -> None:
    assert Pages().refused("anna", JOIN, b"", b"\xff{") is None
    found = Pages().refused("anna", JOIN, b"", b"[" * 100_000)
    assert found is not None
    assert found.status == 400


def test_pages_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_PAGES", 2)
    pages = Pages()
    for name in ("a", "b", "c"):
        assert status(pages, "anna", f"/gradio_api/heartbeat/{name}") == 200
    assert status(pages, "bert", "/gradio_api/heartbeat/c") == 401
    assert status(pages, "bert", "/gradio_api/heartbeat/a") == 200


def test_files_that_are_named_were_uploaded_by_whoever_names_them(tmp_path: Path) -> None:
    pages = Pages(files(tmp_path))
    assert pages.files is not None
    mine = str(tmp_path / "temp" / "hash" / "a.csv")
    pages.files.record_upload("bert", json.dumps([mine]).encode())
    for user, place, found in (
        ("bert", mine, 200),
        ("carl", mine, 400),
        ("bert", f"{tmp_path}/temp/./hash/a.csv", 400),
        ("bert", "/etc/passwd", 400),
        ("anna", mine, 200),
    ):
        assert status(pages, user, JOIN, body={"data": [{"path": place}], "session_hash": user}) == found
        if place == mine:
            assert status(pages, user, f"/gradio_api/file={mine}") == (403 if found == 400 else 200)


def test_a_download_is_for_whom_it_was_made(tmp_path: Path) -> None:
    pages = Pages(files(tmp_path))
    for user, name, found in (
        ("bert", "of-bert/x/a.csv", 200),
        ("carl", "of-bert/x/a.csv", 403),
        ("carl", "of-carl/../of-bert/x/a.csv", 403),
        ("carl", "../queue.json", 403),
        ("anna", "of-bert/x/a.csv", 200),
    ):
        assert status(pages, user, f"/gradio_api/file={tmp_path}/root/downloads/{name}") == found
    assert status(pages, "carl", "/gradio_api/file=/lib/plotly.min.js") == 200  # Gradio's to refuse


@pytest.mark.parametrize("sign", ["\0", "\n", "\x1b", "\x85", "\ud800"])
def test_an_address_with_a_character_that_libraries_fail_at_is_refused(sign: str) -> None:
    assert status(Pages(), "anna", f"/gradio_api/file=/tmp/{sign}x") == 400
    assert status(Pages(), "anna", f"/gradio_api/heartbeat/{sign}") == 400
    assert status(Pages(), "anna", f"/{sign}") == 400
    assert status(Pages(), "anna", "/gradio_api/file=/tmp/für 日本語.csv") == 200
    assert status(Pages(), "anna", JOIN, b"session_hash=%00") == 400


def test_half_of_a_character_in_what_is_sent_is_refused_and_a_whole_one_is_not() -> None:
    def answer(body: bytes) -> int:
        found = Pages().refused("anna", JOIN, b"", body)
        return found.status if found else 200

    assert answer(b'{"data": ["\\ud800"]}') == answer(b'{"data": {"\\uDC00": 1}}') == 400
    assert answer(b'{"data": ["\xed\xa0\x80"]}') == 400
    assert answer(b'{"data": ["\\ud83d\\ude42"]}') == answer('{"data": ["🙂 한국어"]}'.encode()) == 200
