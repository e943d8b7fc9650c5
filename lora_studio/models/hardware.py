"""Which accelerator this machine has, its memory, load and temperature, without torch.

The page shows it before anything is loaded; the engine decides for itself what it uses.
"""

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import pynvml

from lora_studio.units import GIB

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
    """The NVIDIA GPUs whose memory the driver reports; the CPU if there are none."""
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
    if not _load_driver():
        return []
    handles = [_ask(pynvml.nvmlDeviceGetHandleByIndex, at) for at in range(_ask(pynvml.nvmlDeviceGetCount) or 0)]
    answers = [(_ask(pynvml.nvmlDeviceGetName, it), _ask(pynvml.nvmlDeviceGetMemoryInfo, it)) for it in handles if it]
    return [Device(name, "cuda", memory.total, memory.free) for name, memory in answers if name and memory]


@functools.cache
def _load_driver() -> bool:
    """Loads NVIDIA's management library, once a process; whether there is one."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


def _ask(function: Callable[..., Any], *arguments: Any) -> Any:
    """The driver's answer; None for what this card does not report."""
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None


SECONDS = 5.0
# What the chips of common processors call themselves, the whole package first.
CPU_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")


@dataclass(frozen=True, slots=True)
class SensorReading:
    """Percent of the device that is busy, and its temperature in degrees Celsius; None if unknown."""

    load: float | None = None
    celsius: float | None = None


class Sensors:
    """Reads the CPU, or the GPU with a UUID of the driver (GPU-…), every few seconds until `close`."""

    def __init__(self, gpu: str | None = None, seconds: float = SECONDS) -> None:
        self.last = SensorReading()
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


def cpu_reading() -> SensorReading:
    """Load of all cores since the last call, and the processor's temperature where the system has a sensor for it."""
    return SensorReading(psutil.cpu_percent(), _cpu_celsius())


def _cpu_celsius() -> float | None:
    if not (psutil.LINUX or psutil.FREEBSD):
        return None
    chips = psutil.sensors_temperatures()
    readings = [sensor.current for name in CPU_CHIPS for sensor in chips.get(name, [])]
    return float(readings[0]) if readings else None


def gpu_reading(gpu: str) -> SensorReading:
    """Load and temperature of the GPU with that UUID; nothing without a driver or such a card."""
    handle = _ask(pynvml.nvmlDeviceGetHandleByUUID, gpu) if _load_driver() else None
    if handle is None:
        return SensorReading()
    load = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    celsius = _ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
    return SensorReading(None if load is None else float(load.gpu), None if celsius is None else float(celsius))
