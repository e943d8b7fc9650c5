"""What may be asked of Gradio's own server: what the page asks, with files that were uploaded, for pages of one's own.

That server has more addresses than the page uses, fetches a file whose place is an address on the web, and gives the
events and the state of a page to whoever names the session that the page made up for itself.
"""

import json
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers

from lora_studio.errors import StudioError

CLEARED_SECONDS = 3600.0
GRADIO = "/gradio_api/"
USED = re.compile(
    r"/gradio_api/(app_id|call/.+|cancel|file=(?!https?:).+|heartbeat/[^/]+|info|login_check|queue/(data|join|status)"
    r"|reset|startup-events|theme\.css|upload|upload_progress|user)/?",
    re.DOTALL,
)
MOST_PAGES = 10_000
SESSION = "session_hash"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not handed on; 401 makes a page load itself anew."""

    status: int
    words: str


class Pages:
    """Whose each open page is: that of the first who named its session. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owners: OrderedDict[str, str | None] = OrderedDict()

    def refused(self, user: str | None, path: str, query: bytes, body: bytes) -> Refusal | None:
        """What speaks against a request of that user; None where nothing does."""
        if path.startswith(GRADIO.rstrip("/")) and not USED.fullmatch(path):
            return Refusal(404, "The page has no such address.")
        sessions = parse_qs(query.decode("latin-1")).get(SESSION, [])
        if path.startswith(f"{GRADIO}heartbeat/"):
            sessions.append(path.rstrip("/").rpartition("/")[2])
        if body:
            try:
                brought = json.loads(body)
            except ValueError:  # no JSON, which is Gradio's to refuse
                brought = None
            except RecursionError:
                return Refusal(400, "This is nested deeper than anything that the page sends.")
            if _names_an_address(brought):
                return Refusal(400, "Files are uploaded: none is fetched from an address.")
            if isinstance(brought, dict) and isinstance(brought.get(SESSION), str):
                sessions.append(brought[SESSION])
        if not all(self._is_of(user, session) for session in sessions):
            return Refusal(401, "This page belongs to somebody else: load it anew.")
        return None

    def _is_of(self, user: str | None, session: str) -> bool:
        with self._lock:
            owner = self._owners.setdefault(session, user)
            self._owners.move_to_end(session)
            if len(self._owners) > MOST_PAGES:
                self._owners.popitem(last=False)
        return owner == user


class Uploads:
    """Files on their way in, weighed before they come: they lie in a folder of Gradio's until it clears them away."""

    def __init__(self, check_room: Callable[[str, int], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._check_room, self._clock = check_room, clock
        self._lock = threading.Lock()
        self._lately: deque[tuple[float, str, int]] = deque()

    def refused(self, user: str | None, headers: Headers) -> Refusal | None:
        """What speaks against an upload of that user; None where it may come."""
        length = headers.get("content-length", "")
        if not length.isdecimal() or "transfer-encoding" in headers:
            return Refusal(411, "An upload says beforehand how large it is.")
        now, size = self._clock(), int(length)
        with self._lock:
            while self._lately and now - self._lately[0][0] > CLEARED_SECONDS:
                self._lately.popleft()
            lately = sum(bytes for _, name, bytes in self._lately if name == user)
        try:
            self._check_room(user or "", lately + size)
        except StudioError as error:
            return Refusal(413, str(error))
        with self._lock:
            self._lately.append((now, user or "", size))
        return None


def _names_an_address(brought: Any) -> bool:
    """Whether a file anywhere in what was sent lies on the web, as Gradio understands it."""
    waiting = [brought]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if str(one.get("path", "")).lower().startswith(("http://", "https://")):
                return True
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return False
