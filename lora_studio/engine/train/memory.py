"""Memory of this process on its device: measured, estimated before the start, and explained when it runs out."""

import re
import time
from typing import TypedDict

from lora_studio.config.sections import Config
from lora_studio.engine.accelerator import available_bytes, device_kind, read_memory
from lora_studio.files import JsonObject
from lora_studio.jobs.events import MemoryEstimated, RunState
from lora_studio.models.accelerators import DEVICE_KINDS
from lora_studio.models.advice import correction, notes
from lora_studio.models.memory import Estimate, estimate, settled
from lora_studio.models.shape import architecture
from lora_studio.units import GIB

ASKED = re.compile(r"(?:Tried to allocate|Invalid buffer size:) ([\d.]+) ?(bytes|[KMG]i?B)?", re.IGNORECASE)
UNITS = {"": 1, "bytes": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


def foresee(config: Config, numbers: JsonObject, longest: int) -> tuple[bool, MemoryEstimated | None]:
    """Whether to use gradient checkpointing, and the memory estimate; None if the model's shape is unknown.

    `numbers` is the model's config, `longest` the length in tokens of the longest training row.
    """
    model = architecture(numbers)
    setting = config.training.gradient_checkpointing
    if model is None:
        return setting is True or (setting == "auto" and DEVICE_KINDS[device_kind()].is_gpu), None
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


def base_notes(config: Config) -> list[str]:
    """What to know of the base model on this device, in sentences: experts without an adapter, a slow path."""
    return [note.words for note in notes(config, device_kind())]


def _reason(config: Config, expected: Estimate, available: int) -> str:
    """Why checkpointing is on or off; "" if the settings decide it."""
    if config.training.gradient_checkpointing != "auto":
        return ""
    room = f"of {available / GIB:.1f} GiB"
    if expected.gradient_checkpointing:
        return f"Gradient checkpointing is on: without it, the run would need more than 90 % {room}."
    if not DEVICE_KINDS[device_kind()].is_gpu:
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
    now, on_gpu = read_memory(), DEVICE_KINDS[device_kind()].is_gpu
    # Before PyTorch gives up it hands unused blocks back: what was held most is counted among the free bytes as well.
    total, free, held, most = now.total, now.free, now.now, now.peak if on_gpu else now.now
    foreseen = state.memory
    words = [
        f"{'The GPU' if on_gpu else 'The machine'} ran out of memory",
        f"{requested / GIB:.2f} GiB more requested" if requested else "",
        f"{held / GIB:.2f} GiB held, {free / GIB:.2f} GiB free of {total / GIB:.2f} GiB",
        f"{foreseen.total_bytes / GIB:.2f} GiB estimated" if foreseen else "",
    ]
    checkpointing = foreseen.gradient_checkpointing if foreseen else None
    change = correction(config, checkpointing, device_kind(), needed=most + requested, available=now.available)
    return {
        "state": "failed",
        "message": "; ".join(word for word in words if word) + ".",
        "hint": f"This change would help: {change.title} ({change.cost})."
        if change
        else "No single change helps: use a smaller model or shorter rows.",
        "memory": {"asked": requested, "free": free, "total": total, "held": held},
        "retry": {"title": change.title, "cost": change.cost, "settings": dict(change.settings)} if change else None,
    }


def asked_bytes(text: str) -> int:
    """The size of a failed allocation, from PyTorch's message; 0 if it does not say."""
    match = ASKED.search(text)
    unit = (match[2] or "").lower() if match else ""
    return round(float(match[1]) * UNITS[unit if unit == "bytes" else unit[:1]]) if match else 0
