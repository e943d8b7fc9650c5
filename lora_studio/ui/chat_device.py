"""Who holds the device, and whether a chat or an evaluation still fits beside it: one place that decides, by estimate
against what is free. Plain functions; no gradio.
"""

from dataclasses import dataclass
from pathlib import Path

from lora_studio.adapter_card import read_card
from lora_studio.architecture import architecture, read_config
from lora_studio.estimate import CPU_LIBRARIES, CUDA_CONTEXT, weight_bytes
from lora_studio.evaluations import Request
from lora_studio.hardware import Device, devices
from lora_studio.ui import text
from lora_studio.ui.chat_choices import Wanted

TOKENS = 2048
"""Tokens of a conversation whose keys and values are reckoned with."""
PROMPT_TOKENS = 512
"""Tokens of a test file's row that are reckoned with before its answer."""
SPARE = 1.1  # of weights and cache: what computing needs beside them


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a chat or an evaluation needs and what is free, in bytes.

    `need` is None for a base whose numbers are not on this machine.
    """

    need: int | None
    free: int
    device: Device

    @property
    def fits(self) -> bool:
        return self.need is None or self.need <= self.free


def chat_bytes(wanted: Wanted, device: str, tokens: int | None = None) -> int | None:
    """Memory of a base with these adapters and so many tokens read or written; else a conversation in each column."""
    numbers = read_config(wanted.base, wanted.revision)
    model = architecture(numbers) if numbers else None
    if model is None:
        return None
    width = 2 if device == "cuda" else 4
    weights = weight_bytes(model, wanted.quantization if model.stored == "none" else model.stored, width)
    adapters = sum((folder / "adapter_model.safetensors").stat().st_size for _, folder in wanted.adapters)
    held = TOKENS * (1 + len(wanted.adapters)) if tokens is None else tokens
    cache = 2 * model.layers * model.kv_heads * model.head_size * width * held
    fixed = CUDA_CONTEXT if device == "cuda" else CPU_LIBRARIES
    return round(SPARE * (weights + cache)) + adapters + fixed


def verdict(wanted: Wanted, held: int = 0) -> Verdict:
    """`held` is what a chat holds now that goes when this one is loaded."""
    device = devices()[0]
    return Verdict(chat_bytes(wanted, device.kind), device.memory_free + held, device)


def evaluating(request: Request) -> Verdict:
    """Whether an evaluation fits beside what is in memory now."""
    card = read_card(Path(request.adapters[0].folder))
    adapters = tuple((column.name, Path(column.folder)) for column in request.adapters)
    each = PROMPT_TOKENS + request.generation.max_new_tokens
    tokens = request.measuring.batch_size * len(request.columns) * each
    device = devices()[0]
    need = chat_bytes(Wanted(card.base, card.revision, card.quantization, adapters), device.kind, tokens)
    return Verdict(need, device.memory_free, device)


def evaluation_question(found: Verdict, run: str | None, button: str) -> str:
    """What a person is asked before an evaluation is started or gone on with by that button."""
    fewer = "take fewer rows at once, " if button == "Evaluate" else ""
    return text.notice(
        shortage(found, run),
        f"It may fail or slow everything down. Wait, {fewer}or press {button} again to start anyway.",
        "warning",
    )


def shortage(found: Verdict, run: str | None) -> str:
    """What is needed that the memory will hardly do for, and what there is."""
    beside = f" while {run} trains on the same device" if run else ""
    return f"Loading this needs about {text.size(found.need or 0)}, and {text.size(found.free)} are free{beside}."


def question(found: Verdict, run: str | None) -> str:
    """What a person is asked before such a chat is loaded."""
    return (
        text.notice(
            shortage(found, run),
            "It may end the chat or slow everything down. Wait, choose a smaller base, or load it anyway.",
            "warning",
        )
        + '<div class="chat-bar"><button type="button" data-act="insist">Load it anyway</button></div>'
    )


def holders(run: str | None, chat: str | None, evaluating: bool = False, exporting: bool = False) -> str:
    """Who holds the device, in a sentence."""
    others = ["an evaluation"] * evaluating + ["an export"] * exporting
    who = [f"the run {run}" if run else "", chat or "", *others]
    held = [name for name in who if name]
    if not held:
        return "Nothing holds the device."
    return f"The device is held by {' and '.join(held)}" + (": they share memory and speed." if len(held) > 1 else ".")
