"""GPUs as NVIDIA's management library reports them, load and temperature, and nothing where it reports nothing."""

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from lora_studio.models import hardware
from lora_studio.models.hardware import Device, SensorReading, Sensors, devices, gpu_reading
from lora_studio.units import GIB

CARDS = ("GPU-1", "GPU-2", "GPU-3")
"""One that reports everything, one that has no load, as with MIG, and one that fell off the bus."""


def _card(uuid: str, *reporting: str) -> str:
    if uuid not in reporting:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return uuid


def _memory(card: str) -> Any:
    _card(card, "GPU-1", "GPU-2")
    return SimpleNamespace(total=8 * GIB, free=3 * GIB, used=5 * GIB)


def _load(card: str) -> Any:
    _card(card, "GPU-1")
    return SimpleNamespace(gpu=57, memory=12)


def _temperature(card: str, sensor: int) -> int:
    assert sensor == pynvml.NVML_TEMPERATURE_GPU
    _card(card, "GPU-1", "GPU-2")
    return 61


DRIVER: dict[str, Callable[..., Any]] = {
    "nvmlInit": lambda: None,
    "nvmlDeviceGetCount": lambda: len(CARDS),
    "nvmlDeviceGetHandleByIndex": lambda at: CARDS[at],
    "nvmlDeviceGetHandleByUUID": lambda uuid: _card(uuid, *CARDS),
    "nvmlDeviceGetName": lambda card: f"Card {card[-1]}",
    "nvmlDeviceGetMemoryInfo": _memory,
    "nvmlDeviceGetUtilizationRates": _load,
    "nvmlDeviceGetTemperature": _temperature,
}


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, function in DRIVER.items():
        monkeypatch.setattr(pynvml, name, function)
    hardware._load_driver.cache_clear()
    yield
    hardware._load_driver.cache_clear()


def test_cards_whose_memory_is_known_are_the_devices(driver: None) -> None:
    memory = 8 * GIB, 3 * GIB
    assert devices() == [Device("Card 1", "cuda", *memory), Device("Card 2", "cuda", *memory)]


def test_load_and_temperature_are_those_of_the_card_with_that_uuid(driver: None) -> None:
    assert gpu_reading("GPU-1") == SensorReading(57.0, 61.0)
    assert gpu_reading("GPU-2") == SensorReading(None, 61.0)
    assert gpu_reading("GPU-3") == gpu_reading("GPU-9") == SensorReading()


def test_a_machine_without_a_driver_has_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    hardware._load_driver.cache_clear()
    assert gpu_reading("GPU-1") == SensorReading()
    assert [device.kind for device in devices()] == ["cpu"]
    hardware._load_driver.cache_clear()


def test_the_thread_keeps_the_last_reading_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_reading", lambda: SensorReading(12.5))
    watching = Sensors(seconds=0.01)
    assert watching.last == SensorReading()
    watching.start()
    end = time.monotonic() + 10
    while watching.last == SensorReading() and time.monotonic() < end:
        time.sleep(0.01)
    watching.close()
    assert watching.last == SensorReading(12.5)
