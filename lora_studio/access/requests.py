"""Bounds requests to Gradio's server: addresses, files, sizes and connections.

Gradio has more routes than the page uses, keeps the files of all users in one folder, and waits without limit for the
end of a request.
"""

import asyncio
import json
import os
import re
import sys
import threading
import time
import unicodedata
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import h11
import uvicorn
from starlette.datastructures import Headers
from uvicorn.protocols.http.h11_impl import H11Protocol

from lora_studio.access.accounts import client_prefix, is_among
from lora_studio.errors import StudioError

CLEARED_SECONDS = 3600.0
CLEAR_EVERY = 600  # seconds
ABANDONED_SECONDS = 900.0  # without a byte more, an upload will not go on


class VisitorFiles:
    """Tracks which visitor owns each uploaded file. Thread-safe. `owner` may read all files; `theirs` returns the
    folder of a visitor's downloads, and `kept` lists folders from which nothing else is served."""

    def __init__(
        self,
        owner: str,
        check_room: Callable[[str, int], None],
        theirs: Callable[[str], Path],
        kept: tuple[Path, ...],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._owner, self._check_room, self._theirs, self._kept, self._clock = owner, check_room, theirs, kept, clock
        self._lock = threading.RLock()
        self._lately: deque[tuple[float, str, int]] = deque()
        self._uploaded: deque[tuple[float, str, str]] = deque()

    def check_upload(self, user: str, headers: Headers) -> str:
        """Why an upload is refused; "" if it is accepted. Raises `StudioError` if the visitor has no room for it."""
        length = headers.get("content-length", "")
        if not length.isdecimal() or "transfer-encoding" in headers:
            return "An upload must state its size in advance."
        size = int(length)
        with self._lock:  # held throughout: of two simultaneous uploads the second sees the first
            lately = self.waiting(user.__eq__)
            try:
                self._check_room(user, lately + size)
            except StudioError as error:
                more = " Uploads of the last hour count twice." if lately else ""
                raise StudioError(error.message + more, error.hint) from None
            self._lately.append((self._clock(), user, size))
        return ""

    def waiting(self, matches: Callable[[str], bool]) -> int:
        """Bytes that these visitors uploaded within the last hour, whether or not they were used."""
        now = self._clock()
        with self._lock:
            while self._lately and now - self._lately[0][0] > CLEARED_SECONDS:
                self._lately.popleft()
            return sum(size for _, name, size in self._lately if name != self._owner and matches(name))

    def record_upload(self, user: str, answer: bytes) -> None:
        """Records the owner of the files that Gradio reports as received."""
        now = self._clock()
        with self._lock:
            while self._uploaded and now - self._uploaded[0][0] > CLEARED_SECONDS:
                self._uploaded.popleft()
            self._uploaded += [(now, user, str(path)) for path in json.loads(answer)]

    def is_uploader(self, user: str, path: str) -> bool:
        """Whether that visitor uploaded the file under exactly this path."""
        with self._lock:
            return user == self._owner or any(name == user and uploaded == path for _, name, uploaded in self._uploaded)

    def for_download(self, user: str, path: str) -> bool:
        """Whether a file in a folder that visitors share may be served to that visitor."""
        place = Path(os.path.realpath(path))
        if user == self._owner or self.is_uploader(user, path) or self._theirs(user) in place.parents:
            return True
        return not any(folder == place or folder in place.parents for folder in self._kept)


def remove_abandoned(folder: Path) -> None:
    """Removes the remains of interrupted uploads: Gradio renames a file when it is complete, and forgets the others."""
    now = time.time()
    with suppress(FileNotFoundError):  # no folder yet, or a file that is whole by now
        for path in folder.glob("tmp*"):
            if path.is_file() and now - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


GRADIO = "/gradio_api/"
FILE = "/gradio_api/file="
USED = re.compile(
    r"/gradio_api/(app_id|call/.+|cancel|file=(?!https?:).+|heartbeat/[^/]+|info|login_check|queue/(data|join|status)"
    r"|reset|run/predict|startup-events|theme\.css|upload|upload_progress|user)/?",
    re.DOTALL,
)
JOINING = (f"{GRADIO}queue/join", f"{GRADIO}call/")  # what waits for its turn
MAX_WAITING_OF_VISITOR = 100  # a page that is open waits for a dozen
MAX_PAGES = 10_000
SESSION = "session_hash"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is refused; status 401 makes the page reload."""

    status: int
    words: str


class Pages:
    """Assigns each open page to the user who first named its session. Thread-safe.

    `files` tracks the owner of each file if visitors are told apart, `waiting` is how many events of a visitor may wait
    for an answer.
    """

    def __init__(self, files: VisitorFiles | None = None, waiting: Callable[[str], int] = lambda user: 0) -> None:
        self.files, self._waiting = files, waiting
        self._lock = threading.Lock()
        self._owners: OrderedDict[str, str | None] = OrderedDict()

    def refused(self, user: str | None, path: str, query: bytes, body: bytes) -> Refusal | None:
        """Why a user's request is refused; None if it is accepted."""
        if not is_sound(path) or not is_sound(unquote(query.decode("latin-1"))):
            return Refusal(400, "The address contains invalid characters.")
        if path.startswith(GRADIO.rstrip("/")) and not USED.fullmatch(path):
            return Refusal(404, "This address does not exist.")
        file = path.removeprefix(FILE) if path.startswith(FILE) else ""
        if file and self.files is not None and not self.files.for_download(user or "", file):
            return Refusal(403, "This file does not exist, or you have no access to it.")
        if path.startswith(JOINING) and self._waiting(user or "") >= MAX_WAITING_OF_VISITOR:
            return Refusal(
                503, f"{MAX_WAITING_OF_VISITOR} of your requests are already waiting. Try again in a moment."
            )
        sessions = parse_qs(query.decode("latin-1")).get(SESSION, [])
        if path.startswith(f"{GRADIO}heartbeat/"):
            sessions.append(path.rstrip("/").rpartition("/")[2])
        if body:
            try:
                brought = json.loads(body)
            except ValueError:  # no JSON, which is Gradio's to refuse
                brought = None
            except RecursionError:
                return Refusal(400, "The request is nested too deeply.")
            if has_lone_surrogates(body, brought):
                return Refusal(400, "The text contains half of a surrogate pair, which cannot be stored or shown.")
            for place in _places(brought):
                if place.lower().startswith(("http://", "https://")):
                    return Refusal(400, "Upload the file: files are not fetched from URLs.")
                if self.files is not None and not self.files.is_uploader(user or "", place):
                    return Refusal(400, "This is not a file that you uploaded within the last hour.")
            if isinstance(brought, dict) and isinstance(brought.get(SESSION), str):
                sessions.append(brought[SESSION])
        if not all(self._is_of(user, session) for session in sessions):
            return Refusal(401, "This page belongs to another user. Reload it.")
        return None

    def _is_of(self, user: str | None, session: str) -> bool:
        with self._lock:
            owner = self._owners.setdefault(session, user)
            self._owners.move_to_end(session)
            if len(self._owners) > MAX_PAGES:
                self._owners.popitem(last=False)
        return owner == user


def is_sound(text: str) -> bool:
    """Whether a text in an address is free of control characters and lone surrogates, which make libraries fail."""
    return text.isprintable() or not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in text)


def has_lone_surrogates(body: bytes, brought: Any) -> bool:
    """Whether a parsed JSON body holds lone surrogates, which cannot be encoded as UTF-8."""
    if not any(mark in body for mark in (b"\\ud", b"\\uD", b"\xed")):
        return False
    try:
        json.dumps(brought, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _places(brought: Any) -> list[str]:
    """The paths of all files that a request names, as Gradio interprets them."""
    places, waiting = [], [brought]
    while waiting:
        place = waiting.pop()
        if isinstance(place, dict):
            if isinstance(place.get("path"), str):
                places.append(place["path"])
            place = list(place.values())
        waiting += [part for part in place if isinstance(part, dict | list)] if isinstance(place, list) else []
    return places


HEADER_SECONDS = 15.0
BODY_SECONDS, MIN_BODY_BYTES = 30.0, 30_000  # so many bytes of a body come in each such time
MAX_CONNECTIONS = 4096
RESERVED_FILES = 256  # of the process' open files, for everything but connections
SHARE_OF_ADDRESS = 4  # an address may hold a fourth of all connections
REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nretry-after: 10\r\nconnection: close\r\n\r\n"
    b"Too many connections are open. Try again in a moment."
)


class Connections:
    """The open connections, by remote address. Used only in the server's event loop.

    Addresses in `shared` are those of proxies, which stand for many people.
    """

    def __init__(self, total: int, shared: tuple[str, ...] = ()) -> None:
        self._total, self._of_address = total, max(1, total // SHARE_OF_ADDRESS)
        self._shared = shared
        self._open: dict[PatientProtocol, None] = {}  # in the order in which they came

    def take(self, new: "PatientProtocol") -> bool:
        """Admits a connection if there is room. The oldest connection with an incomplete request is closed for it: from
        the same address if that has reached its share, else from any."""
        if not is_among(new.address, self._shared):
            alike = [connection for connection in self._open if connection.place == new.place]
            if len(alike) >= self._of_address and not self._end_one(alike):
                return False
        if len(self._open) >= self._total and not self._end_one(list(self._open)):
            return False
        self._open[new] = None
        return True

    def release(self, connection: "PatientProtocol") -> None:
        self._open.pop(connection, None)

    def __len__(self) -> int:
        return len(self._open)

    def _end_one(self, among: "list[PatientProtocol]") -> bool:
        oldest = next((connection for connection in among if connection.unfinished), None)
        if oldest is None:
            return False
        self.release(oldest)
        oldest.transport.abort()
        return True


class PatientProtocol(H11Protocol):
    """The server's side of a connection, with a timeout for incomplete requests."""

    def __init__(self, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._all = connections
        self._timer: asyncio.TimerHandle | None = None
        self._came = 0  # bytes since the body was last looked at
        self.address = self.place = ""

    @property
    def unfinished(self) -> bool:
        """Whether the request, or the rest of it, is still to come."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self.place = client_prefix(self.address)
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
        # If reading is paused, the server is slow, not the client.
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
    """Applies the bounds of a server to all future connections."""
    protocol: Any = partial(PatientProtocol, Connections(most_connections(), proxies))
    server.config.http_protocol_class = protocol


def most_connections() -> int:
    """The maximum number of connections of this process; raises its limit of open files first if that is low."""
    if sys.platform == "win32":
        return MAX_CONNECTIONS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_CONNECTIONS + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < limit:
        soft = limit if hard == resource.RLIM_INFINITY else min(hard, limit)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(16, min(MAX_CONNECTIONS, soft - RESERVED_FILES))
