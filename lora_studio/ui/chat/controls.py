"""What stands around the conversation as markup: column heads, toolbar, memory, details of the adapters. No gradio."""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_studio.chat.arbiter import ConsentError, Status
from lora_studio.chat.choices import MAX_ADAPTERS, Choice, options
from lora_studio.chat.conversation import ChatState
from lora_studio.errors import StudioError
from lora_studio.jobs.protocol import Loaded
from lora_studio.ui import html
from lora_studio.ui.html import Html, render

ONE_BY_ONE = "Adapters that are more than plain LoRA share no batch: those columns answer one after the other."
BLIND = "Blind: columns are shuffled and unnamed until you vote."


def heads(base: str, available: Sequence[Choice], adapters: Sequence[str]) -> Html:
    """The head of each column: the base's name, and for each adapter the list to choose another from."""
    pickers = [(value, options(available, adapters, value)) for value in adapters]
    return render("chat.heads", base, pickers)


def blind_head() -> Html:
    """In the place of the heads, while nobody is to know who answers."""
    return render("chat.blind_head", BLIND)


@dataclass(frozen=True, slots=True)
class Toolbar:
    """What the toolbar depends on."""

    answered: bool = False
    busy: bool = False
    can_add: bool = False
    marks: bool = False
    blinded: bool = False
    scored: bool = False


def tools(talk: ChatState, *, busy: bool = False) -> Html:
    """Toggles, what can be done with the conversation, and the button of the drawer."""
    answered = any(talk.column(name) for name in talk.names)
    bar = Toolbar(answered, busy, len(talk.adapters) < MAX_ADAPTERS, talk.marks, talk.blinded, talk.scored)
    return render("chat.tools", bar)


def status(progress: Status) -> Html:
    """How far the engine is with a request."""
    return html.progress(progress.label, progress.done, progress.total, remark=progress.remark)


def memory_question(error: ConsentError) -> Html:
    """The question before a chat is loaded for which the memory will hardly do."""
    hint = "It may end the chat or slow everything down. Wait, choose a smaller base, or load it anyway."
    return Html(html.notice(error.message, hint, "warning") + render("chat.force"))


def problem(error: StudioError) -> Html:
    """An error, or the question whether to go on."""
    return memory_question(error) if isinstance(error, ConsentError) else html.problem(error)


def memory(loaded: Loaded | None, selected: Sequence[Choice], holders: str, in_memory: str) -> Html:
    """What is in memory as a pill; `in_memory` is the base of other columns that are, "" for none."""
    if loaded is None:
        words = f"{in_memory} in memory for other columns" if in_memory else "Not loaded"
        return render("chat.memory", "", words, f"Loads with the next question. {holders}", bool(in_memory))
    bits = "" if loaded.quantization == "none" else f" ({loaded.quantization})"
    names = " + ".join([f"{loaded.base}{bits}", *(choice.name for choice in selected)])
    words = f"{names} · {html.size(loaded.memory_bytes)}"
    return render("chat.memory", "done", words, f"{words}. {loaded.device}, {loaded.dtype}. {holders}", True)


def memory_notes(loaded: Loaded | None, sharing: str) -> Html:
    """What to know of the models in memory, and who else holds the device."""
    if loaded is None:
        return Html("")
    sentences = [*loaded.notes, *([] if loaded.mixes else [ONE_BY_ONE]), *([sharing] if sharing else [])]
    return Html("".join(html.notice(sentence, kind="warning") for sentence in sentences))


def cards(selected: Sequence[Choice]) -> Html:
    """Base, system prompt, template and thinking of each adapter."""
    rows = []
    for choice in selected:
        card = choice.card()
        thinking = {None: "as in the template", True: "on", False: "off"}[card.enable_thinking]
        rows.append(
            (
                choice.name,
                card.base,
                card.prompt_style,
                card.system_prompt or None,
                thinking if card.thinks else "no switch in the template",
                card.template or "the base's own",
            )
        )
    columns = ("Adapter", "Base", "Prompt style", "System prompt", "Thinking", "Chat template")
    return html.table(columns, rows, "Adapter details")
