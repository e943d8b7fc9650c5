"""Limits the memory of work on untrusted files, so that it fails with a message before the machine runs out.

Linux counts private writable memory (`RLIMIT_DATA`), not mapped files. A control group with less memory left than the
machine (a container, a cluster job) sets the limit. On macOS the limit has no effect.
"""

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from lora_studio.errors import StudioError
from lora_studio.units import GIB

SHARE = 0.5
"""Share of the memory free at the start; the rest is for the server and other processes."""
MIN_BYTES = 1 << 28  # below it not even the readers of files can be imported
_GROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60


def available() -> int:
    """Bytes that can be taken without the system ending something: the least of the machine's and the groups'."""
    return min([psutil.virtual_memory().available, *_left_in_groups()])


def _left_in_groups() -> Iterator[int]:
    """Bytes left in each control group of this process and its parents, for cgroups v1 and v2."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        root = _GROUPS / "memory" if kinds else _GROUPS
        limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        own = root / path.strip("/")
        for group in (own, *own.parents):
            if root not in (group, *group.parents):
                break
            with contextlib.suppress(OSError, ValueError):  # "max", or a group that is not to be seen from inside
                most = int((group / limit).read_text(encoding="ascii"))
                if most < _UNLIMITED:
                    yield max(0, most - int((group / used).read_text(encoding="ascii")) + _reclaimable(group))


def _reclaimable(group: Path) -> int:
    """Bytes of the group's page cache that can be reclaimed."""
    with contextlib.suppress(OSError, ValueError):
        words = [line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines()]
        counts = {name: int(count) for name, count in words}
        return counts.get("total_inactive_file", counts.get("inactive_file", 0))
    return 0


def _written() -> int:
    """Bytes that count towards the limit already."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:")), 0)


class MemoryLimitError(StudioError):
    """Work on a file needed more memory than it may take."""


@contextlib.contextmanager
def limited(most: int | None = None) -> Iterator[int]:
    """Limits new memory of this process to a share of the free memory, at most `most`; yields the bytes.

    Raises `MemoryLimitError` where it is not enough, for whichever library found it so.
    """
    may = max(MIN_BYTES, min(int(available() * SHARE), most or sys.maxsize))
    before, highest = resource.getrlimit(resource.RLIMIT_DATA)
    target = _written() + may
    ends = [limit for limit in (before, highest, target) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(ends), highest))
    try:
        yield may
    except MemoryError:
        raise too_much(may) from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, highest))


def too_much(may: int) -> MemoryLimitError:
    """The error for work that exceeds the limit."""
    return MemoryLimitError(
        f"The file was not read: it needs more than {may / GIB:,.1f} GiB of memory, the limit on this machine.",
        "It is highly compressed, or single cells are huge. Split it, or save it as JSONL.",
    )


def go_first() -> None:
    """Makes the kernel's OOM killer choose this process before its parent."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
