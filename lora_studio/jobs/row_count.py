"""How many rows a file has, for the form: told by a short process, because this one opens nobody's files."""

import functools
import subprocess
import threading
from pathlib import Path

from lora_studio.jobs.launcher import child_environment, python_module

MAX_COUNTED_BYTES = 64_000_000  # larger files are counted by the run itself, the form stays quick
WALL_SECONDS = 30.0
WAIT_SECONDS = 2.0  # for a file that somebody else has counted now
_one_at_a_time = threading.Lock()


def count_rows(path: Path) -> int | None:
    """Usable rows of a file; None where there is no such file, it can't be read, or takes too long to count here."""
    try:
        stamp = path.stat()
    except (OSError, ValueError):  # also a name that no file can bear
        return None
    if not path.is_file() or stamp.st_size > MAX_COUNTED_BYTES:
        return None
    if not _one_at_a_time.acquire(timeout=WAIT_SECONDS):
        return None
    try:
        return _count(path.resolve(), stamp.st_mtime_ns, stamp.st_size)
    finally:
        _one_at_a_time.release()


@functools.lru_cache(maxsize=64)
def _count(path: Path, _changed: int, _size: int) -> int | None:
    command = [*python_module("lora_studio.data.counting"), str(path)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=WALL_SECONDS, env=child_environment())
    except subprocess.TimeoutExpired:
        return None
    said = ended.stdout.strip()
    return int(said) if ended.returncode == 0 and said.isdigit() else None
