"""Which files a test's code opens in this process, without a hook that stays and slows all later tests.

A hook of `sys.addaudithook` can't be taken back, and is called for millions of events of the libraries.
"""

import builtins
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def opened_files() -> Iterator[list[tuple[str, str]]]:
    """Path and mode of each file that is opened by `open`, `io.open`, pathlib or `os.open` within the block."""
    opened: list[tuple[str, str]] = []
    plain, low = io.open, os.open

    def watched(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        opened.append((str(file), mode))
        return plain(file, mode, *rest, **named)

    def watched_low(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        opened.append((str(path), "w" if flags & (os.O_WRONLY | os.O_RDWR) else "r"))
        return low(path, flags, *rest, **named)

    with (
        mock.patch.object(builtins, "open", watched),
        mock.patch.object(io, "open", watched),
        mock.patch.object(os, "open", watched_low),
    ):
        yield opened
