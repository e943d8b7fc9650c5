"""Who holds the device, and whether a chat still fits beside it: one place that decides, by estimate against what is
free. Plain functions; no gradio.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_studio.architecture import architecture, read_config
from lora_studio.estimate import CPU_LIBRARIES, CUDA_CONTEXT, weight_bytes
from lora_studio.hardware import Device, devices
from lora_studio.ui import text
from lora_studio.ui.chat_choices import Choice

TOKENS = 2048
"""Tokens of a conversation whose keys and values are reckoned with."""
SPARE = 1.1  # of weights and cache: what computing needs beside them


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a chat needs and what is free, in bytes; `need` is None for a base whose numbers are not on this machine."""

    need: int | None
    free: int
    device: Device

    @property
    def fits(self) -> bool:
        return self.need is None or self.need <= self.free


def chat_bytes(chosen: Sequence[Choice], device: str) -> int | None:
    """Memory of a base with these adapters and a conversation in each column."""
    card = chosen[0].card()
    numbers = read_config(card.base, card.revision)
    model = architecture(numbers) if numbers else None
    if model is None:
        return None
    width = 2 if device == "cuda" else 4
    weights = weight_bytes(model, card.quantization, width)
    adapters = sum((choice.folder / "adapter_model.safetensors").stat().st_size for choice in chosen)
    cache = 2 * model.layers * model.kv_heads * model.head_size * width * TOKENS * (1 + len(chosen))
    fixed = CUDA_CONTEXT if device == "cuda" else CPU_LIBRARIES
    return round(SPARE * (weights + cache)) + adapters + fixed


def verdict(chosen: Sequence[Choice], held: int = 0) -> Verdict:
    """`held` is what a chat holds now that goes when this one is loaded."""
    device = devices()[0]
    return Verdict(chat_bytes(chosen, device.kind), device.memory_free + held, device)


def question(found: Verdict, run: str | None) -> str:
    """What a person is asked before a chat is loaded that the memory will hardly do for."""
    beside = f" while {run} trains on the same device" if run else ""
    return (
        text.notice(
            f"Loading this needs about {text.size(found.need or 0)}, and {text.size(found.free)} are free{beside}.",
            "It may end the chat or slow everything down. Wait, choose a smaller base, or load it anyway.",
            "warning",
        )
        + '<div class="chat-bar"><button type="button" data-act="insist">Load it anyway</button></div>'
    )


def holders(run: str | None, chat: str | None, evaluating: bool = False) -> str:
    """Who holds the device, in a sentence."""
    who = [f"the run {run}" if run else "", chat or "", "an evaluation" if evaluating else ""]
    held = [name for name in who if name]
    if not held:
        return "Nothing holds the device."
    return f"The device is held by {' and '.join(held)}" + (": they share memory and speed." if len(held) > 1 else ".")
