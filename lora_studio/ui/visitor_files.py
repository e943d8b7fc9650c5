"""Files on their way in and out where visitors are told apart: how much may come, and whose each one is.

What is uploaded lies in a folder of Gradio's that all share, until it is cleared away; downloads lie in one of ours.
"""

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from starlette.datastructures import Headers

from lora_studio.errors import StudioError

CLEARED_SECONDS = 3600.0
ABANDONED_SECONDS = 900.0  # without a byte more, an upload will not go on


class VisitorFiles:
    """Safe to use from many threads. `owner` may use all; `theirs` gives the folder of what was made for a visitor to
    download, and `kept` are folders out of which nothing else is handed to anybody."""

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
        """What speaks against an upload that is about to come; "" where nothing does. Raises `StudioError` where the
        visitor has no room for it."""
        length = headers.get("content-length", "")
        if not length.isdecimal() or "transfer-encoding" in headers:
            return "An upload says beforehand how large it is."
        size = int(length)
        with self._lock:  # all the while: of two that come at once the second one sees the first
            lately = self.waiting(user.__eq__)
            try:
                self._check_room(user, lately + size)
            except StudioError as error:
                more = " What was uploaded within the last hour counts twice." if lately else ""
                raise StudioError(error.message + more, error.hint) from None
            self._lately.append((self._clock(), user, size))
        return ""

    def waiting(self, whose: Callable[[str], bool]) -> int:
        """Bytes that those visitors uploaded within the last hour, whether they were taken over or not."""
        now = self._clock()
        with self._lock:
            while self._lately and now - self._lately[0][0] > CLEARED_SECONDS:
                self._lately.popleft()
            return sum(size for _, name, size in self._lately if name != self._owner and whose(name))

    def came(self, user: str, answer: bytes) -> None:
        """Remembers whose the files are that Gradio says it took."""
        now = self._clock()
        with self._lock:
            while self._uploaded and now - self._uploaded[0][0] > CLEARED_SECONDS:
                self._uploaded.popleft()
            self._uploaded += [(now, user, str(path)) for path in json.loads(answer)]

    def brought_by(self, user: str, path: str) -> bool:
        """Whether that visitor uploaded the file, in this very form of its path."""
        with self._lock:
            return user == self._owner or any(name == user and uploaded == path for _, name, uploaded in self._uploaded)

    def for_download(self, user: str, path: str) -> bool:
        """Whether that visitor may be handed a file, as far as it lies in a folder that visitors share."""
        place = Path(os.path.realpath(path))
        if user == self._owner or self.brought_by(user, path) or self._theirs(user) in place.parents:
            return True
        return not any(folder == place or folder in place.parents for folder in self._kept)


def remove_abandoned(folder: Path) -> None:
    """Removes what is left of uploads that broke off: Gradio gives a file its name when it is whole, and forgets those
    that never were."""
    now = time.time()
    with suppress(FileNotFoundError):  # no folder yet, or a file that is whole by now
        for path in folder.glob("tmp*"):
            if path.is_file() and now - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()
