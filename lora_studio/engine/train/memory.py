"""Memory of this process on its device: measured, estimated before the start, and explained when it runs out."""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import psutil
import torch

from lora_studio.config.sections import Config
from lora_studio.files import JsonObject
from lora_studio.jobs.events import MemoryEstimated, RunState
from lora_studio.models.advice import correction
from lora_studio.models.memory import Estimate, estimate, settled
from lora_studio.models.shape import architecture
from lora_studio.units import GIB

STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. On a GPU: reserved by PyTorch, allocated to tensors, peak reserved; on the CPU: resident memory.

    `available` is what this process could hold: its own memory plus what is free.
    """

    now: int
    allocated: int
    peak: int
    available: int


def read_memory() -> Memory:
    """The current memory; takes well under a millisecond."""
    if torch.cuda.is_available():
        now = torch.cuda.memory_reserved()
        available = torch.cuda.mem_get_info()[0] + now
        return Memory(now, torch.cuda.memory_allocated(), torch.cuda.max_memory_reserved(), available)
    now = psutil.Process().memory_info().rss
    return Memory(now, 0, max(now, _high_water()), psutil.virtual_memory().available + now)


def _high_water() -> int:
    """The peak resident memory of this process on Linux; 0 elsewhere."""
    if not STATUS.is_file():
        return 0
    for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def gpu_id() -> str | None:
    """The driver's id of the GPU in use; None on the CPU."""
    return f"GPU-{torch.cuda.get_device_properties(0).uuid}" if torch.cuda.is_available() else None


ASKED = re.compile(r"(?:Tried to allocate|you tried to allocate) ([\d.]+) ?(bytes|KiB|MiB|GiB)?", re.IGNORECASE)
UNITS = {"": 1, "bytes": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3}


def device_kind() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def available_bytes() -> int:
    """The memory that this process could hold: what is free on the device plus its own."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    return psutil.virtual_memory().available + psutil.Process().memory_info().rss


def foresee(config: Config, numbers: JsonObject, longest: int) -> tuple[bool, MemoryEstimated | None]:
    """Whether to use gradient checkpointing, and the memory estimate; None if the model's shape is unknown.

    `numbers` is the model's config, `longest` the length in tokens of the longest training row.
    """
    model = architecture(numbers)
    setting = config.training.gradient_checkpointing
    if model is None:
        return setting is True or (setting == "auto" and torch.cuda.is_available()), None
    device, available = device_kind(), available_bytes()
    effective = settled(config, model, device, available, longest)
    expected = estimate(effective, model, device, longest)
    return expected.gradient_checkpointing, MemoryEstimated(
        time=time.time(),
        total_bytes=expected.total,
        measurable_bytes=expected.measurable,
        available_bytes=available,
        parts=expected.parts,
        gradient_checkpointing=expected.gradient_checkpointing,
        reason=_reason(config, expected, available),
    )


def _reason(config: Config, expected: Estimate, available: int) -> str:
    """Why checkpointing is on or off; "" if the settings decide it."""
    if config.training.gradient_checkpointing != "auto":
        return ""
    room = f"of {available / GIB:.1f} GiB"
    if expected.gradient_checkpointing:
        return f"Gradient checkpointing is on: without it, the run would need more than 90 % {room}."
    if device_kind() == "cpu":
        return "Gradient checkpointing is off: on the CPU, memory suffices and it costs time."
    return f"Gradient checkpointing is off: the run fits without it, using about {expected.total / GIB:.1f} {room}."


class Retry(TypedDict):
    """The change of settings that would fit."""

    title: str
    cost: str
    settings: JsonObject


class OutOfMemory(TypedDict):
    """The entries of complete.json for a run that ran out of memory; `memory` in bytes."""

    state: str
    message: str
    hint: str
    memory: dict[str, int]
    retry: Retry | None


def explain(error: BaseException, config: Config, state: RunState) -> OutOfMemory:
    """The entries of complete.json for a run that ran out of memory: the numbers, and settings that fit (`retry`)."""
    requested = asked_bytes(str(error))
    total, free, allocated = device_numbers()
    foreseen = state.memory
    words = [
        f"{'The GPU' if torch.cuda.is_available() else 'The machine'} ran out of memory",
        f"{requested / GIB:.2f} GiB more requested" if requested else "",
        f"{allocated / GIB:.2f} GiB held, {free / GIB:.2f} GiB free of {total / GIB:.2f} GiB",
        f"{foreseen.total_bytes / GIB:.2f} GiB estimated" if foreseen else "",
    ]
    checkpointing = foreseen.gradient_checkpointing if foreseen else None
    change = correction(config, checkpointing, device_kind(), needed=allocated + requested, available=free + allocated)
    return {
        "state": "failed",
        "message": "; ".join(word for word in words if word) + ".",
        "hint": f"This change would help: {change.title} ({change.cost})."
        if change
        else "No single change helps: use a smaller model or shorter rows.",
        "memory": {"asked": requested, "free": free, "total": total, "held": allocated},
        "retry": {"title": change.title, "cost": change.cost, "settings": dict(change.settings)} if change else None,
    }


def asked_bytes(text: str) -> int:
    """The size of a failed allocation, from PyTorch's message; 0 if it does not say."""
    match = ASKED.search(text)
    return round(float(match[1]) * UNITS[(match[2] or "").lower()]) if match else 0


def device_numbers() -> tuple[int, int, int]:
    """Bytes of the device: total, free, and held by this process."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return total, free, torch.cuda.max_memory_reserved()
    memory = psutil.virtual_memory()
    return memory.total, memory.available, psutil.Process().memory_info().rss
