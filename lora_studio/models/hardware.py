"""Which accelerator this machine has and how much memory, without torch.

The page shows it before anything is loaded; the engine decides for itself what it uses.

Load and temperature of the device that trains, where the machine tells them, without torch.

Asking takes up to a second with a GPU (the driver's own tool is a program), so a thread asks every few seconds and the
training only takes the last answer.
"""

import csv
import functools
import io
import shutil
import subprocess
import threading
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


SECONDS = 5.0


# What the chips of common processors call themselves, the whole package first.
CPU_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")


@dataclass(frozen=True, slots=True)
class Reading:
    """Percent of the device that is busy, and its temperature in degrees Celsius; None where it is not told."""

    load: float | None = None
    celsius: float | None = None


class Sensors:
    """Reads the CPU, or the GPU of a driver's id (GPU-…), again and again until `close`."""

    def __init__(self, gpu: str | None = None, seconds: float = SECONDS) -> None:
        self.last = Reading()
        self._gpu = gpu
        self._seconds = seconds
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sensors", daemon=True)

    def start(self) -> None:
        psutil.cpu_percent()  # the first call begins the count
        self._thread.start()

    def close(self) -> None:
        self._closing.set()

    def _watch(self) -> None:
        while not self._closing.wait(self._seconds):
            self.last = gpu_reading(self._gpu) if self._gpu else cpu_reading()


def cpu_reading() -> Reading:
    """Load of all cores since the last call, and the processor's temperature where the system has a sensor for it."""
    return Reading(psutil.cpu_percent(), _cpu_celsius())


def _cpu_celsius() -> float | None:
    if not (psutil.LINUX or psutil.FREEBSD):
        return None
    chips = psutil.sensors_temperatures()
    readings = [sensor.current for name in CPU_CHIPS for sensor in chips.get(name, [])]
    return float(readings[0]) if readings else None


def gpu_reading(gpu: str) -> Reading:
    """What nvidia-smi says of a GPU; nothing where the tool is missing or does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Reading()
    query = [tool, f"--id={gpu}", "--query-gpu=utilization.gpu,temperature.gpu", "--format=csv,noheader,nounits"]
    try:
        line = subprocess.run(query, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return Reading()
    return parse_reading(line)


def parse_reading(line: str) -> Reading:
    """`57, 61` as nvidia-smi prints it; what a card does not tell stands there in words."""
    numbers = [float(cell) if cell.strip().isdigit() else None for cell in line.strip().split(",")]
    return Reading(*numbers) if len(numbers) == 2 else Reading()
