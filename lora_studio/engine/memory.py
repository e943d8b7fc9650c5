"""The memory of this process on the device that it computes on."""

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

GIB = 1024**3
STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. On a GPU: reserved by PyTorch, used by tensors, the most reserved so far; on the CPU: resident memory.

    `available` is what this process could come to hold: what it has and what is free.
    """

    now: int
    allocated: int
    peak: int
    available: int


def read_memory() -> Memory:
    """Memory at this moment; costs well under a millisecond."""
    if torch.cuda.is_available():
        now = torch.cuda.memory_reserved()
        available = torch.cuda.mem_get_info()[0] + now
        return Memory(now, torch.cuda.memory_allocated(), torch.cuda.max_memory_reserved(), available)
    now = psutil.Process().memory_info().rss
    return Memory(now, 0, max(now, _high_water()), psutil.virtual_memory().available + now)


def _high_water() -> int:
    """The most resident memory that this program ever had, as Linux counts it; 0 elsewhere."""
    if not STATUS.is_file():
        return 0
    for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def gpu_id() -> str | None:
    """The driver's id of the GPU that is computed on, by which its tool knows it; None on the CPU."""
    return f"GPU-{torch.cuda.get_device_properties(0).uuid}" if torch.cuda.is_available() else None
