"""What a model takes of the device's memory, and whether that still fits beside what holds it: reckoned, not tried."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_studio.models.adapter_files import WEIGHTS_FILE
from lora_studio.models.hardware import Device, devices
from lora_studio.models.memory import CPU_LIBRARIES, CUDA_CONTEXT, weight_bytes
from lora_studio.models.shape import architecture, read_config

SPARE = 1.1  # of weights and cache: what computing needs beside them


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a job or a chat needs and what is free, in bytes.

    `need` is None for a base whose numbers are not on this machine.
    """

    need: int | None
    free: int
    device: Device

    @property
    def fits(self) -> bool:
        return self.need is None or self.need <= self.free


def model_bytes(
    base: str, revision: str | None, quantization: str, adapters: Sequence[Path], device: str, tokens: int
) -> int | None:
    """Memory of a base with these adapters' folders and the keys and values of so many tokens; None where the base's
    numbers are not on this machine."""
    numbers = read_config(base, revision)
    model = architecture(numbers) if numbers else None
    if model is None:
        return None
    width = 2 if device == "cuda" else 4
    weights = weight_bytes(model, quantization if model.stored == "none" else model.stored, width)
    learned = sum((folder / WEIGHTS_FILE).stat().st_size for folder in adapters)
    cache = 2 * model.layers * model.kv_heads * model.head_size * width * tokens
    fixed = CUDA_CONTEXT if device == "cuda" else CPU_LIBRARIES
    return round(SPARE * (weights + cache)) + learned + fixed


def verdict(
    base: str, revision: str | None, quantization: str, adapters: Sequence[Path], tokens: int, held: int = 0
) -> Verdict:
    """The same beside what is free now; `held` is what will be given back before it is taken."""
    device = devices()[0]
    need = model_bytes(base, revision, quantization, adapters, device.kind, tokens)
    return Verdict(need, device.memory_free + held, device)
