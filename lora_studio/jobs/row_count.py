"""A file's rows and how they are read, for the form: told by a short process, as this one opens nobody's files."""

import functools
import json
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.jobs.launchers.local import child_environment, python_module

MAX_COUNTED_BYTES = 64_000_000  # larger files are counted by the run itself, the form stays quick
WALL_SECONDS = 30.0
WAIT_SECONDS = 2.0  # for a file that somebody else has counted now
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True)
class QuickLook:
    """Usable rows of a file, and how they are read; None and "" where that is not known."""

    rows: int | None = None
    reading: str = ""


def count_rows(
    path: Path, goal: str = "answers", mapping: Mapping[str, Any] | None = None, encoding: str | None = None
) -> QuickLook:
    """A file's rows for a goal; nothing where there is no such file, it can't be read, or takes too long here."""
    options = json.dumps({"goal": goal, "mapping": mapping, "encoding": encoding}, sort_keys=True)
    try:
        stamp = path.stat()
    except (OSError, ValueError):  # also a name that no file can bear
        return QuickLook()
    if not path.is_file() or stamp.st_size > MAX_COUNTED_BYTES:
        return QuickLook()
    if not _one_at_a_time.acquire(timeout=WAIT_SECONDS):
        return QuickLook()
    try:
        return _count(path.resolve(), stamp.st_mtime_ns, stamp.st_size, options)
    except subprocess.TimeoutExpired:  # a machine that is busy now; asked again, it may have the time
        return QuickLook()
    finally:
        _one_at_a_time.release()


@functools.lru_cache(maxsize=64)
def _count(path: Path, _changed: int, _size: int, options: str) -> QuickLook:
    command = [*python_module("lora_studio.data.counting"), str(path), options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=WALL_SECONDS, env=child_environment())
    if ended.returncode:
        return QuickLook()
    told = json.loads(ended.stdout)
    return QuickLook(told["rows"] or None, told["reading"])
