"""Who holds the device, and whether a chat or an evaluation still fits beside it: one place that decides, by estimate
against what is free. Plain functions; no gradio.
"""

from lora_studio.chat.choices import Wanted
from lora_studio.jobs.device import Verdict, model_bytes
from lora_studio.models.hardware import devices
from lora_studio.ui import html

TOKENS = 2048
"""Tokens of a conversation whose keys and values are reckoned with."""


def chat_bytes(wanted: Wanted, device: str, tokens: int | None = None) -> int | None:
    """Memory of a base with these adapters and so many tokens read or written; else a conversation in each column."""
    held = TOKENS * (1 + len(wanted.adapters)) if tokens is None else tokens
    folders = [folder for _, folder in wanted.adapters]
    return model_bytes(wanted.base, wanted.revision, wanted.quantization, folders, device, held)


def verdict(wanted: Wanted, held: int = 0) -> Verdict:
    """`held` is what a chat holds now that goes when this one is loaded."""
    device = devices()[0]
    return Verdict(chat_bytes(wanted, device.kind), device.memory_free + held, device)


def evaluation_question(found: Verdict, run: str | None, button: str) -> str:
    """What a person is asked before an evaluation is started or gone on with by that button."""
    fewer = "take fewer rows at once, " if button == "Evaluate" else ""
    return html.notice(
        shortage(found, run),
        f"It may fail or slow everything down. Wait, {fewer}or press {button} again to start anyway.",
        "warning",
    )


def shortage(found: Verdict, run: str | None) -> str:
    """What is needed that the memory will hardly do for, and what there is."""
    beside = f" while {run} trains on the same device" if run else ""
    return f"Loading this needs about {html.size(found.need or 0)}, and {html.size(found.free)} are free{beside}."


def question(found: Verdict, run: str | None) -> str:
    """What a person is asked before such a chat is loaded."""
    return (
        html.notice(
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
