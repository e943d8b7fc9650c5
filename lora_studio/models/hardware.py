"""The devices of this machine, without torch: names, memory, load, temperature, and what is not available on them.

The page shows them before anything is loaded; `engine.accelerator` turns the same devices into calls of torch.
"""

import functools
import importlib.util
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pynvml

from lora_studio.errors import StudioError
from lora_studio.models.accelerators import (
    AMPERE,
    AUTO,
    CPU,
    CUDA,
    DEVICE_KINDS,
    EIGHT_BIT,
    MPS,
    ROCM,
    SWITCHES,
    XPU,
    Capability,
    Kind,
    generation_lacks,
)
from lora_studio.models.vendor_tools import RECENT_SECONDS, Card, amd_cards, apple_card, intel_cards
from lora_studio.units import GIB

VISIBLE: Mapping[str, tuple[tuple[str, ...], ...]] = {
    CUDA: (("CUDA_VISIBLE_DEVICES",),),
    ROCM: (("ROCR_VISIBLE_DEVICES",), ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")),
    XPU: (("ZE_AFFINITY_MASK",),),
}
"""The variables that choose among the GPUs of a kind, one choice after the other; of several names the first set."""
CPU_ONLY = {"LORA_STUDIO_DEVICE": CPU, "CUDA_VISIBLE_DEVICES": ""}
"""The variables with which a process uses no GPU of any kind: the first is ours, for those that nothing else hides."""
ENTRIES_OF_TORCH = {CUDA: "cuda", ROCM: "hip", XPU: "xpu"}


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or the CPU with the machine's memory. Memory in bytes, load in percent; None for what is not reported.

    `index` is the device's number among those of its kind that this process may use, as PyTorch counts them. `uuid` is
    the driver's name for it, "" where there is none. `bf16` says that it computes in bfloat16 without emulation;
    `capability` is an NVIDIA GPU's compute capability.
    `key` tells it from all others of the machine, whatever part of them a process may use.
    """

    name: str
    kind: str
    memory_total: int
    memory_free: int
    index: int = 0
    uuid: str = ""
    bf16: bool = True
    load: float | None = None
    celsius: float | None = None
    key: str = field(default="", compare=False)
    capability: Capability | None = None

    def __str__(self) -> str:
        shared = ", shared with the system" if self.facts.unified else ""
        return f"{self.name}, {self.memory_free / GIB:.1f} of {self.memory_total / GIB:.1f} GiB free{shared}"

    @property
    def facts(self) -> Kind:
        """What holds for every device of the kind."""
        return DEVICE_KINDS[self.kind]

    @property
    def is_gpu(self) -> bool:
        return self.facts.is_gpu

    @property
    def is_slice(self) -> bool:
        """Whether it is a MIG slice of a GPU. A process of CUDA sees one slice only, however many are named to it (MIG
        User Guide, "CUDA Device Enumeration")."""
        return self.uuid.startswith(MIG)

    @property
    def id(self) -> str:
        """The device's name in files, the same in every process of the machine."""
        return self.key or self.uuid or (f"{self.kind}:{self.index}" if self.is_gpu else CPU)

    @property
    def label(self) -> str:
        """As a person names it: GPU 0, CPU."""
        return f"GPU {self.index}" if self.is_gpu else "CPU"

    @property
    def title(self) -> str:
        """The same with the name of the card: GPU 0 (NVIDIA H100)."""
        return f"{self.label} ({self.name})" if self.is_gpu else self.label

    @property
    def choice(self) -> str:
        """The value of `compute.device` that names it: 0, cpu."""
        return str(self.index) if self.is_gpu else CPU

    @property
    def lacks(self) -> Mapping[str, str]:
        """What is not available on the device, with the reason."""
        emulated, why = self.is_gpu and not self.bf16, generation_lacks(EIGHT_BIT, self.capability)
        own = {**({"bfloat16": "this GPU only emulates it"} if emulated else {}), **({EIGHT_BIT: why} if why else {})}
        return {**self.facts.lacks, **own}

    def describe(self) -> str:
        """The device in sentences: its kind, load and temperature, and what is not available on it."""
        readings = [f"{self.load:.0f} % busy"] if self.load is not None else []
        readings += [f"{self.celsius:.0f} °C"] if self.celsius is not None else []
        sentences = [", ".join([self.facts.title, *readings])]
        sentences += [f"No {feature}: {why}" for feature, why in self.lacks.items() if feature not in SWITCHES]
        return " ".join(f"{sentence}." for sentence in sentences)


def devices() -> list[Device]:
    """The GPUs that the installed PyTorch can use and this process may see; the CPU if there are none."""
    usable = frozenset() if cpu_only(os.environ) else torch_kinds()
    for kind, cards in CARDS.items():
        if kind in usable and (listed := gpus(kind, cards())):
            return listed
    return [cpu()]


def all_devices() -> list[Device]:
    """The GPUs as `devices` has them, and the CPU last."""
    return with_cpu(devices())


def with_cpu(found: Sequence[Device]) -> list[Device]:
    return [*(device for device in found if device.is_gpu), cpu()]


def default_devices(offered: Sequence[Device]) -> list[Device]:
    """What `auto` may take: the GPUs, or the CPU of a machine without any."""
    return [device for device in offered if device.is_gpu] or list(offered)


def choose(choice: str, offered: Sequence[Device]) -> list[Device]:
    """The devices that `compute.device` names; for `auto` those that it may take.

    Raises `StudioError` for one that is not there.
    """
    if choice == AUTO:
        return default_devices(offered)
    gpus = {str(device.index): device for device in offered if device.is_gpu}
    known = {**gpus, CPU: next((device for device in offered if not device.is_gpu), None) or cpu()}
    missing = [name for name in choice.split(",") if name not in known]
    if missing:
        there = ", ".join(gpu.label for gpu in gpus.values())
        raise StudioError(
            f"There is no {', '.join(f'GPU {name}' for name in missing)} here: "
            + (f"the studio may use {there}." if gpus else "the studio can use no GPU."),
            "Set compute.device to auto, to one of them, or to cpu." if gpus else "Set compute.device to auto or cpu.",
        )
    return [known[name] for name in choice.split(",")]


def device_for(choice: str, offered: Sequence[Device]) -> Device:
    """The device that a run of that `compute.device` is weighed against: the first it names, of several that it may
    take the one with the most free memory. For one that is not there, what `auto` takes.
    """
    try:
        named = choose(choice, offered)
    except StudioError:
        choice, named = AUTO, default_devices(offered)
    return max(named, key=lambda device: device.memory_free) if choice == AUTO else named[0]


def gpus(kind: str, cards: Sequence[Card]) -> list[Device]:
    """Cards as devices, in PyTorch's order; without those that are hidden or whose memory is unknown."""
    keys = _keys(kind, cards)
    return [
        Device(
            name=card.name,
            kind=kind,
            memory_total=card.memory_total,
            memory_free=card.memory_free,
            index=index,
            uuid=card.uuid,
            bf16=card.bf16,
            load=card.load,
            celsius=card.celsius,
            key=keys[id(card)],
            capability=card.capability,
        )
        for index, card in enumerate(visible(kind, cards, os.environ))
        if card.memory_total
    ]


def _keys(kind: str, cards: Sequence[Card]) -> dict[int, str]:
    """What tells each card from the others: its UUID or serial number, else its place; by the object's id."""
    names = [card.uuid or card.serial for card in cards]
    unique = [name if name and names.count(name) == 1 else f"{kind}:{at}" for at, name in enumerate(names)]
    return dict(zip(map(id, cards), unique, strict=True))


def recent_devices() -> tuple[Device, ...]:
    """The same as `all_devices`, asked of the driver at most every few seconds, however many pages want to know."""
    return _devices_at(int(time.monotonic() / RECENT_SECONDS))


@functools.lru_cache(maxsize=1)
def _devices_at(_moment: int) -> tuple[Device, ...]:
    return tuple(all_devices())


def cpu() -> Device:
    """The processor and the machine's memory."""
    memory, cores = psutil.virtual_memory(), psutil.cpu_count() or 1
    load = min(100.0, 100 * os.getloadavg()[0] / cores)  # of the last minute: the page asks at any moment
    return Device(f"CPU, {cores} cores", CPU, memory.total, memory.available, load=load)


@functools.cache
def torch_kinds() -> frozenset[str]:
    """The kinds of GPUs that the installed PyTorch is built for. Its version.py is read, so torch is not imported."""
    if sys.platform == "darwin":
        return frozenset({MPS} if platform.machine() == "arm64" else ())
    spec = importlib.util.find_spec("torch")
    version = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    return kinds_of_build(version.read_text(encoding="utf-8")) if version and version.is_file() else frozenset()


def kinds_of_build(version: str) -> frozenset[str]:
    """The kinds named in a version.py of torch: `cuda: Optional[str] = '12.8'`, `hip = '6.4'`, `xpu = '2025'`."""
    built = re.findall(r"^(\w+)\b[^=\n]*=\s*['\"]", version, re.MULTILINE)
    return frozenset(kind for kind, entry in ENTRIES_OF_TORCH.items() if entry in built)


def visible(kind: str, cards: Sequence[Card], environ: Mapping[str, str]) -> list[Card]:
    """The cards that the environment leaves to a process, in the order in which PyTorch numbers them."""
    left = list(cards)
    for names in VISIBLE.get(kind, ()):
        choice = next((environ[name] for name in names if name in environ), None)
        if choice is not None:
            left = _chosen(kind, left, choice)
    return left


def _chosen(kind: str, cards: list[Card], choice: str) -> list[Card]:
    """As the drivers read such a list: it ends at the first name that is none, and a repeated one leaves nothing."""
    positions: list[int] = []
    for name in choice.split(","):
        position = _position(cards, name.strip().partition(".")[0] if kind == XPU else name.strip())
        if position is None:
            break
        if position in positions and kind != XPU:  # there a card may be named for each of its tiles
            return []
        positions.append(position)
    return [cards[position] for position in dict.fromkeys(positions)]


def _position(cards: Sequence[Card], name: str) -> int | None:
    """The place of the card with this number, UUID or serial number; the beginning of a UUID suffices."""
    if name.isdecimal():
        return int(name) if int(name) < len(cards) else None
    digits = "" if name.startswith("-") else _digits(name)
    called = (
        at for at, card in enumerate(cards) if any(_digits(own).startswith(digits) for own in (card.uuid, card.serial))
    )
    return next(called, None) if digits else None


def _digits(name: str) -> str:
    """ "GPU-1F9D-E0…" and "0x1f9de0…" as the same lower-case digits."""
    return name.lower().removeprefix("gpu-").removeprefix("0x").replace("-", "")


def cpu_only(environ: Mapping[str, str]) -> bool:
    """Whether LORA_STUDIO_DEVICE leaves only the CPU."""
    return environ.get("LORA_STUDIO_DEVICE", "").strip().lower() == CPU


def one_gpu(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables with which a process sees the first of its GPUs alone. A trainer would take all that it sees."""
    chosen = {
        name: environ[name].partition(",")[0]
        for name in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
        if name in environ
    }
    return chosen or {"CUDA_VISIBLE_DEVICES": "0"}


def environment_of(held: Sequence[Device], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables with which a child of a process with this environment sees these devices alone.

    NVIDIA's are named by UUID: the driver's library and CUDA number them differently.
    """
    kind = held[0].kind
    if kind == CPU:
        return dict(CPU_ONLY)
    if kind not in VISIBLE:
        return {}
    names = VISIBLE[kind][-1]
    set_names = [name for name in names if name in environ]
    entries = _entries(environ[set_names[0]], kind) if set_names else []
    values = [
        device.uuid
        if kind == CUDA and device.uuid
        else entries[device.index]
        if device.index < len(entries)
        else str(device.index)
        for device in held
    ]
    return dict.fromkeys(set_names or names[:1], ",".join(values))


def by_number(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables by which CUDA sees the same GPUs under their numbers in the driver's order; {} where none is named
    by its UUID, and for a MIG slice, which has no number.

    For programs that take each name for a number: vLLM did until the middle of 2026 (vllm-project/vllm#45026).
    """
    names = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if all(name.isdecimal() or not name for name in names) or not _load_driver():
        return {}
    handles = [_ask(pynvml.nvmlDeviceGetHandleByIndex, at) for at in range(_ask(pynvml.nvmlDeviceGetCount) or 0)]
    cards = [Card("", 0, 0, uuid=_ask(pynvml.nvmlDeviceGetUUID, handle) or "") for handle in handles]
    places = [_position(cards, name) for name in names]
    if None in places:
        return {}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, places))}


def _entries(choice: str, kind: str) -> list[str]:
    """The parts of such a list, one for each card: of an Intel GPU all that name its tiles."""
    parts = [part.strip() for part in choice.split(",")]
    if kind != XPU:
        return parts
    by_card: dict[str, list[str]] = {}
    for part in parts:
        by_card.setdefault(part.partition(".")[0], []).append(part)
    return [",".join(tiles) for tiles in by_card.values()]


def _nvidia() -> list[Card]:
    """The GPUs of the driver, one that is divided into MIG slices by its first, for its number means that one to CUDA;
    then the other slices, and those that the environment names by another name than the driver."""
    if not _load_driver():
        return []
    handles = [_ask(pynvml.nvmlDeviceGetHandleByIndex, at) for at in range(_ask(pynvml.nvmlDeviceGetCount) or 0)]
    parts = [_slices(handle) for handle in handles]
    cards = [_nvidia_card(part[0] if part else None) for part in parts]
    cards += [_nvidia_card(handle) for part in parts for handle in part[1:]]
    listed = {card.uuid for card in cards}
    words = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    named = [name for word in words if (name := word.strip()).startswith(MIG) and name not in listed]
    return cards + [_nvidia_card(_ask(pynvml.nvmlDeviceGetHandleByUUID, name), name) for name in named]


MIG = "MIG-"


def _slices(handle: Any) -> list[Any]:
    """The MIG slices of a GPU; the GPU itself where it is not divided. One that is to be divided and has no slice yet
    computes nothing."""
    mode = _ask(pynvml.nvmlDeviceGetMigMode, handle)
    if not mode or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return [handle]
    most = _ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
    places = [_ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, at) for at in range(most)]
    return [place for place in places if place is not None]


def _whole(handle: Any) -> Any:
    """The GPU of a MIG slice, which alone reports some values; else the handle itself."""
    return _ask(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle) or handle


def _nvidia_card(handle: Any, uuid: str = "") -> Card:
    """A card as the driver describes it; with 0 bytes where it does not answer."""
    name, memory = _ask(pynvml.nvmlDeviceGetName, handle), _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    if not name or not memory:
        return Card("NVIDIA GPU", 0, 0)
    uuid = uuid or _ask(pynvml.nvmlDeviceGetUUID, handle) or ""
    capability = _ask(pynvml.nvmlDeviceGetCudaComputeCapability, _whole(handle))
    capability = None if capability is None else (int(capability[0]), int(capability[1]))
    reading = _nvidia_reading(handle)
    return Card(
        name,
        memory.total,
        memory.free,
        uuid=uuid,
        bf16=capability is None or capability >= AMPERE,  # earlier ones only emulate it
        load=reading.load,
        celsius=reading.celsius,
        capability=capability,
    )


def _apple() -> list[Card]:
    memory = psutil.virtual_memory()
    return [apple_card(memory.total, memory.available)]


CARDS: Mapping[str, Callable[[], list[Card]]] = {
    CUDA: _nvidia,
    ROCM: amd_cards,
    XPU: intel_cards,
    MPS: _apple,
}
"""Who knows the GPUs of each kind."""


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
    if None in arguments:
        return None
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None


# What the chips of common processors call themselves, the whole package first.
CPU_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")


@dataclass(frozen=True, slots=True)
class SensorReading:
    """Percent of the device that is busy, and its temperature in degrees Celsius; None if unknown."""

    load: float | None = None
    celsius: float | None = None


def device_reading(kind: str, uuid: str = "") -> SensorReading:
    """Load and temperature of a device; nothing where nobody reports them."""
    if kind == CPU:
        return cpu_reading()
    if kind == CUDA:
        return gpu_reading(uuid)
    first = next(iter(gpus(kind, CARDS[kind]())), None)
    return SensorReading(first.load, first.celsius) if first else SensorReading()


def cpu_reading() -> SensorReading:
    """Load of all cores since the last call, and the processor's temperature where the system has a sensor for it."""
    return SensorReading(psutil.cpu_percent(), _cpu_celsius())


def _cpu_celsius() -> float | None:
    if not (psutil.LINUX or psutil.FREEBSD):
        return None
    chips = psutil.sensors_temperatures()
    readings = [sensor.current for name in CPU_CHIPS for sensor in chips.get(name, [])]
    return float(readings[0]) if readings else None


def gpu_reading(uuid: str) -> SensorReading:
    """Load and temperature of the NVIDIA GPU with that UUID; nothing without a driver or such a card."""
    return _nvidia_reading(_ask(pynvml.nvmlDeviceGetHandleByUUID, uuid) if _load_driver() else None)


def _nvidia_reading(handle: Any) -> SensorReading:
    load = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    celsius = _ask(pynvml.nvmlDeviceGetTemperature, _whole(handle), pynvml.NVML_TEMPERATURE_GPU)
    return SensorReading(None if load is None else float(load.gpu), None if celsius is None else float(celsius))
