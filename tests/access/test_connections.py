"""Connections that say nothing, or say it slowly, leave the page to others. All on the loopback, a few dozen."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from lora_studio.access import requests as connections

SECONDS = 0.5


async def inside(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{len(await request.body())} bytes")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[uvicorn.Server]:
    monkeypatch.setattr(connections, "HEADER_SECONDS", SECONDS)
    monkeypatch.setattr(connections, "BODY_SECONDS", SECONDS)
    monkeypatch.setattr(connections, "MIN_BODY_BYTES", 1000)
    monkeypatch.setattr(connections, "most_connections", lambda: 80)
    app = Starlette(routes=[Route("/", inside, methods=["GET", "POST"])])
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_keep_alive=600))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    end = time.monotonic() + 200
    while not running.started:
        assert time.monotonic() < end
        time.sleep(0.01)
    connections.bound(running)
    yield running
    running.should_exit = True
    thread.join(20)


def port(server: uvicorn.Server) -> int:
    return int(server.servers[0].sockets[0].getsockname()[1])


def connect(server: uvicorn.Server, said: bytes) -> socket.socket:
    one = socket.create_connection(("127.0.0.1", port(server)), timeout=200)
    one.sendall(said)
    return one


def answer(one: socket.socket) -> bytes:
    """Head and body of an answer."""
    found = b""
    while not found.endswith(b" bytes"):
        found += one.recv(4096)
    return found


def closed_after(one: socket.socket) -> float:
    """Seconds until the other end is gone."""
    begun = time.monotonic()
    try:
        while one.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - begun


@pytest.mark.parametrize(
    "said", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nx"]
)
def test_a_request_that_does_not_end_is_given_up(server: uvicorn.Server, said: bytes) -> None:
    with connect(server, said) as one:
        assert closed_after(one) < 100
    assert httpx.get(f"http://127.0.0.1:{port(server)}/").text == "0 bytes"


def test_a_byte_now_and_then_is_no_request(server: uvicorn.Server) -> None:
    with connect(server, b"GET / HTTP/1.1\r\n") as one:
        end = time.monotonic() + 100
        try:
            while time.monotonic() < end:
                one.sendall(b"X-A: b\r\n")
                time.sleep(SECONDS / 5)
        except OSError:
            pass
        assert time.monotonic() < end


def test_a_second_request_of_a_connection_has_no_more_time_than_the_first(server: uvicorn.Server) -> None:
    with connect(server, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") as one:
        assert answer(one).startswith(b"HTTP/1.1 200")
        one.sendall(b"GET / HTTP/1.1\r\n")
        assert closed_after(one) < 100  # a connection at rest has ten minutes here


def test_a_body_that_comes_steadily_may_take_its_time(server: uvicorn.Server) -> None:
    with connect(server, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n") as one:
        for _ in range(20):
            one.sendall(b"x" * 1000)
            time.sleep(SECONDS / 10)
        assert answer(one).endswith(b"20000 bytes")


def test_many_silent_connections_leave_the_page_to_others(server: uvicorn.Server) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(server, b"GET / HTTP/1.1\r\n")) for _ in range(60)]
        assert httpx.get(f"http://127.0.0.1:{port(server)}/", timeout=10).text == "0 bytes"
        assert all(closed_after(one) < 100 for one in silent)


def test_the_limit_of_open_files_leaves_some_for_other_things() -> None:
    assert 16 <= connections.most_connections() <= connections.MAX_CONNECTIONS
