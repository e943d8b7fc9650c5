"""Which accelerator this machine has and how much memory, without torch.

The page shows it before anything is loaded; the engine decides for itself what it uses.
"""

import csv
import functools
import io
import shutil
import subprocess
import time
from dataclasses import dataclass

import psutil

GIB = 1024**3
RECENT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator, or the CPU with the machine's memory. Memory in bytes."""

    name: str
    kind: str
    memory_total: int
    memory_free: int

    def __str__(self) -> str:
        return f"{self.name}, {self.memory_free / GIB:.1f} of {self.memory_total / GIB:.1f} GiB free"


def devices() -> list[Device]:
    """NVIDIA GPUs as the driver's own tool lists them; the CPU where there is none."""
    return _nvidia() or [cpu()]


def recent_devices() -> tuple[Device, ...]:
    """The same, asked of the driver at most every few seconds, however many pages want to know."""
    return _devices_at(int(time.monotonic() / RECENT_SECONDS))


@functools.lru_cache(maxsize=1)
def _devices_at(_moment: int) -> tuple[Device, ...]:
    return tuple(devices())


def cpu() -> Device:
    """The processor and the machine's memory."""
    memory = psutil.virtual_memory()
    return Device(f"CPU, {psutil.cpu_count()} cores", "cpu", memory.total, memory.available)


def _nvidia() -> list[Device]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return []
    rows = [row for row in csv.reader(io.StringIO(listing), skipinitialspace=True) if len(row) == 3]
    return [
        Device(name, "cuda", int(total) * 1024**2, int(free) * 1024**2)
        for name, total, free in rows
        if total.isdigit() and free.isdigit()
    ]
