"""GPUs as NVIDIA's management library reports them, load and temperature, and nothing where it reports nothing."""

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from lora_studio.config.compute import Compute
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.jobs.devices import problems_here
from lora_studio.models import hardware
from lora_studio.models.hardware import (
    Device,
    SensorReading,
    all_devices,
    by_number,
    choose,
    device_for,
    devices,
    environment_of,
    gpu_reading,
)
from lora_studio.models.vendor_tools import Card
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


def _capability(card: str) -> tuple[int, int]:
    _card(card, "GPU-1", "GPU-2")
    return (9, 0) if card == "GPU-1" else (7, 5)


DRIVER: dict[str, Callable[..., Any]] = {
    "nvmlInit": lambda: None,
    "nvmlDeviceGetCount": lambda: len(CARDS),
    "nvmlDeviceGetHandleByIndex": lambda at: CARDS[at],
    "nvmlDeviceGetHandleByUUID": lambda uuid: _card(uuid, *CARDS),
    "nvmlDeviceGetName": lambda card: f"Card {card[-1]}",
    "nvmlDeviceGetUUID": lambda card: _card(card, *CARDS),
    "nvmlDeviceGetCudaComputeCapability": _capability,
    "nvmlDeviceGetMemoryInfo": _memory,
    "nvmlDeviceGetUtilizationRates": _load,
    "nvmlDeviceGetTemperature": _temperature,
}


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, function in DRIVER.items():
        monkeypatch.setattr(pynvml, name, function)
    monkeypatch.setattr(hardware, "torch_kinds", lambda: {"cuda"})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    hardware._load_driver.cache_clear()
    yield
    hardware._load_driver.cache_clear()


def test_cards_whose_memory_is_known_are_the_devices(driver: None) -> None:
    memory = 8 * GIB, 3 * GIB
    assert devices() == [
        Device("Card 1", "cuda", *memory, index=0, uuid="GPU-1", load=57.0, celsius=61.0, capability=(9, 0)),
        Device("Card 2", "cuda", *memory, index=1, uuid="GPU-2", bf16=False, celsius=61.0, capability=(7, 5)),
    ]
    assert devices()[0].describe() == "NVIDIA GPU (CUDA), 57 % busy, 61 °C."
    assert devices()[1].describe() == "NVIDIA GPU (CUDA), 61 °C. No bfloat16: this GPU only emulates it."


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("1", ["Card 2"]),
        ("1,0", ["Card 2", "Card 1"]),
        ("GPU-2", ["Card 2"]),
        ("0,-1,1", ["Card 1"]),
        ("0,7,1", ["Card 1"]),
        ("2,1", ["Card 2"]),  # the third has fallen off the bus, and is the first of the two
        ("0,0", ["CPU"]),
        ("", ["CPU"]),
        ("NoDevFiles", ["CPU"]),
    ],
)
def test_only_visible_cards_are_devices(
    driver: None, monkeypatch: pytest.MonkeyPatch, choice: str, names: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", choice)
    found = devices()
    assert [device.name.partition(",")[0] for device in found] == names
    assert [device.index for device in found] == ([1] if choice == "2,1" else list(range(len(names))))


def test_a_device_is_chosen_by_its_number_among_those_that_the_studio_may_use(
    driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [device.label for device in all_devices()] == ["GPU 0", "GPU 1", "CPU"]
    assert [device.uuid for device in choose("1,0", all_devices())] == ["GPU-2", "GPU-1"]
    assert [device.label for device in choose("auto", all_devices())] == ["GPU 0", "GPU 1"]
    assert choose("cpu", all_devices())[0].kind == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    (only,) = choose("0", all_devices())
    assert (only.id, only.title) == ("GPU-2", "GPU 0 (Card 2)")
    assert environment_of([only], os.environ) == {"CUDA_VISIBLE_DEVICES": "GPU-2"}
    with pytest.raises(StudioError, match="There is no GPU 1 here: the studio may use GPU 0"):
        choose("1", all_devices())
    assert device_for("1", all_devices()) == only, "a form that names what is not there is still weighed"
    monkeypatch.setenv("LORA_STUDIO_DEVICE", "cpu")
    assert [device.label for device in all_devices()] == ["CPU"]
    with pytest.raises(StudioError, match="the studio can use no GPU"):
        choose("0", all_devices())


def test_a_card_without_a_uuid_is_known_by_its_serial_number_or_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    cards = [
        Card("A", 1, 1, serial="s1"),
        Card("B", 1, 1),
        Card("C", 1, 1, serial="N/A"),
        Card("D", 1, 1, serial="N/A"),
    ]
    assert [device.id for device in hardware.gpus("rocm", cards)] == ["s1", "rocm:1", "rocm:2", "rocm:3"]


def test_a_slice_of_a_card_is_known_by_its_own_name(driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: {"MIG-7-1": "GPU-2"}[uuid])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-7-1")
    assert [(device.uuid, device.memory_free) for device in devices()] == [("MIG-7-1", 3 * GIB)]


def test_a_program_that_knows_numbers_alone_gets_the_same_cards(driver: None) -> None:
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    for named, numbers in (("GPU-2", "1"), ("GPU-2,GPU-1", "1,0"), (" gpu-1", "0")):
        assert by_number({"CUDA_VISIBLE_DEVICES": named}) == {**order, "CUDA_VISIBLE_DEVICES": numbers}
    for kept in (
        {},
        {"CUDA_VISIBLE_DEVICES": ""},
        {"CUDA_VISIBLE_DEVICES": "1,0"},
        {"CUDA_VISIBLE_DEVICES": "MIG-7-1"},
    ):
        assert by_number(kept) == {}


def test_a_divided_card_is_listed_slice_by_slice(driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a driver of R470 and later describes it: a slice has a name, a UUID and memory of its own, its card alone has
    a temperature and a compute capability, and neither has a load."""
    slices = ["MIG-a", "MIG-b"]

    def place(card: str, at: int) -> str:
        return _card(*slices[at : at + 1], *slices) if at < len(slices) else _card("", "none is there")

    def memory(card: str) -> Any:
        return SimpleNamespace(total=5 * GIB, free=GIB, used=4 * GIB) if card in slices else _memory(card)

    answers: dict[str, Callable[..., Any]] = {
        "nvmlDeviceGetMigMode": lambda card: [int(_card(card, "GPU-1", "GPU-2") == "GPU-1"), 0],
        "nvmlDeviceGetMaxMigDeviceCount": lambda card: 7,
        "nvmlDeviceGetMigDeviceHandleByIndex": place,
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": lambda card: "GPU-1" if _card(card, *slices) else "",
        "nvmlDeviceGetUUID": lambda card: card,
        "nvmlDeviceGetMemoryInfo": memory,
    }
    for name, function in answers.items():
        monkeypatch.setattr(pynvml, name, function)
    whole = Device(
        "Card 2", "cuda", 8 * GIB, 3 * GIB, index=1, uuid="GPU-2", bf16=False, celsius=61.0, capability=(7, 5)
    )
    first, second = (
        Device(f"Card {name}", "cuda", 5 * GIB, GIB, index=at, uuid=f"MIG-{name}", celsius=61.0, capability=(9, 0))
        for name, at in (("a", 0), ("b", 3))
    )
    assert devices() == [first, whole, second]
    assert gpu_reading("GPU-1").celsius == 61.0
    assert environment_of([second], {}) == {"CUDA_VISIBLE_DEVICES": "MIG-b"}
    for choice, uuid in (("0", "MIG-a"), ("1", "GPU-2"), ("MIG-b", "MIG-b"), ("GPU-2,0", "GPU-2")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", choice)
        assert devices()[0].uuid == uuid, "a number is that of a card"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for compute in ({"device": "0,3"}, {"processes": "2"}):
        (problem,) = problems_here(Config(compute=Compute.model_validate(compute)), all_devices())
        assert "slices do not train together" in problem.message
    assert problems_here(Config(compute=Compute(device="3")), all_devices()) == []
    slices.clear()
    assert [device.uuid for device in devices()] == ["GPU-2"], "no slice was made yet"


def test_a_torch_without_cuda_and_a_variable_of_ours_leave_the_cpu(
    driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_STUDIO_DEVICE", "cpu")
    assert [device.kind for device in devices()] == ["cpu"]
    monkeypatch.delenv("LORA_STUDIO_DEVICE")
    monkeypatch.setattr(hardware, "torch_kinds", lambda: set())
    assert [device.kind for device in devices()] == ["cpu"]


def test_load_and_temperature_are_those_of_the_card_with_that_uuid(driver: None) -> None:
    assert gpu_reading("GPU-1") == SensorReading(57.0, 61.0)
    assert gpu_reading("GPU-2") == SensorReading(None, 61.0)
    assert gpu_reading("GPU-3") == gpu_reading("GPU-9") == SensorReading()


def test_a_machine_without_a_driver_has_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    monkeypatch.setattr(hardware, "torch_kinds", lambda: {"cuda"})
    hardware._load_driver.cache_clear()
    assert gpu_reading("GPU-1") == SensorReading()
    assert [device.kind for device in devices()] == ["cpu"]
    hardware._load_driver.cache_clear()
