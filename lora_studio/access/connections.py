"""Connections of the server: how many may be open, and how long one may take to say what it wants.

The server itself waits for ever for the end of a request, so that somebody who opens a thousand connections and says
nothing would leave none to others.
"""

import asyncio
import sys
from functools import partial
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lora_studio.access.accounts import is_among, of_one_person

HEADER_SECONDS = 15.0
BODY_SECONDS, MIN_BODY_BYTES = 30.0, 30_000  # so many bytes of a body come in each such time
MAX_CONNECTIONS = 4096
RESERVED_FILES = 256  # of the process' open files, for everything but connections
SHARE_OF_ADDRESS = 4  # one address has a fourth of all connections
REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nretry-after: 10\r\nconnection: close\r\n\r\n"
    b"Too many connections are open. Try again in a moment."
)


class Connections:
    """The open ones, by the address at their other end. Used in the server's event loop alone.

    Addresses in `shared` are those of proxies, which stand for many people.
    """

    def __init__(self, total: int, shared: tuple[str, ...] = ()) -> None:
        self._total, self._of_address = total, max(1, total // SHARE_OF_ADDRESS)
        self._shared = shared
        self._open: dict[PatientProtocol, None] = {}  # in the order in which they came

    def take(self, new: "PatientProtocol") -> bool:
        """Whether there is room for one more. For it the oldest goes whose request is not whole: of the same address
        where that has its share, else of any."""
        if not is_among(new.address, self._shared):
            alike = [one for one in self._open if one.place == new.place]
            if len(alike) >= self._of_address and not self._end_one(alike):
                return False
        if len(self._open) >= self._total and not self._end_one(list(self._open)):
            return False
        self._open[new] = None
        return True

    def release(self, one: "PatientProtocol") -> None:
        self._open.pop(one, None)

    def __len__(self) -> int:
        return len(self._open)

    def _end_one(self, among: "list[PatientProtocol]") -> bool:
        oldest = next((one for one in among if one.unfinished), None)
        if oldest is None:
            return False
        self.release(oldest)
        oldest.transport.abort()
        return True


class PatientProtocol(H11Protocol):
    """The server's side of a connection, whose patience ends."""

    def __init__(self, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._all = connections
        self._timer: asyncio.TimerHandle | None = None
        self._came = 0  # bytes since the body was last looked at
        self.address = self.place = ""

    @property
    def unfinished(self) -> bool:
        """Whether the request is still to come, or the rest of it."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self.place = of_one_person(self.address)
        if self._all.take(self):
            self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)
        else:
            transport.write(REFUSAL)
            transport.close()

    def data_received(self, data: bytes) -> None:
        before = self.conn.their_state
        super().data_received(data)
        self._came += len(data)
        state = self.conn.their_state
        if self.transport.is_closing() or not self.unfinished:
            self._stop_timer()
        elif self._timer is None or state is not before:
            self._stop_timer()
            if state is h11.IDLE:
                self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)
            else:
                self._came = 0
                self._timer = self.loop.call_later(BODY_SECONDS, self._look_at_body)

    def _look_at_body(self) -> None:
        # Where reading is paused, it is we who are slow.
        if self._came < MIN_BODY_BYTES and not self.flow.read_paused:
            self.transport.abort()
            return
        self._came = 0
        self._timer = self.loop.call_later(BODY_SECONDS, self._look_at_body)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._all.release(self)
        super().connection_lost(exc)

    def _should_upgrade(self) -> bool:
        return False  # the page uses no web sockets


def bound(server: uvicorn.Server, proxies: tuple[str, ...] = ()) -> None:
    """Sets the bounds of a server for all connections to come."""
    made: Any = partial(PatientProtocol, Connections(most_connections(), proxies))
    server.config.http_protocol_class = made


def most_connections() -> int:
    """How many connections the process may hold; where its own limit of open files is low, that is raised first."""
    if sys.platform == "win32":
        return MAX_CONNECTIONS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(16, min(MAX_CONNECTIONS, soft - RESERVED_FILES))
