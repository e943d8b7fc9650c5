"""How many processes the system killed for want of memory: a count that grew since a worker began says why it died.

Linux counts for the whole machine and for the control group that a container is; other systems tell nothing.
"""

from pathlib import Path

MACHINE = Path("/proc/vmstat")
GROUP = Path("/sys/fs/cgroup/memory.events")


def oom_kills(machine: Path = MACHINE, group: Path = GROUP) -> int | None:
    """The larger of both counts; None where neither can be read."""
    counts = [count for count in map(_count, (machine, group)) if count is not None]
    return max(counts, default=None)


def _count(path: Path) -> int | None:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
