"""The columns of the chat as one piece of markup, and the clicks in it. Plain functions; no gradio.

The chat's state in words and markup: memory, what the adapters bring with them, and an answer token by token.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from lora_studio.chat.arbiter import ConsentError, Status
from lora_studio.chat.choices import Choice
from lora_studio.chat.prompts import StarterQuestion
from lora_studio.jobs.protocol import ColumnAnswer, Loaded, Scored
from lora_studio.ui import html
from lora_studio.ui.html import Html, render, shorten, thoughts

Message = Mapping[str, Any]
NOTHING_SAID = "The answers will stand here."
# Of a growing chat only the last answers change, thirteen times a second: what stays is not made anew.
_drawn_once = lru_cache(maxsize=256, typed=True)(render)


def status(status: Status) -> Html:
    """How far the engine is with a request."""
    return html.progress(status.label, status.done, status.total, remark=status.remark)


def memory_question(error: ConsentError) -> str:
    """The question before a chat is loaded for which the memory will hardly do."""
    return (
        html.notice(
            error.message,
            "It may end the chat or slow everything down. Wait, choose a smaller base, or load it anyway.",
            "warning",
        )
        + '<div class="chat-bar"><button type="button" data-act="force">Load it anyway</button></div>'
    )


FINISH = {"eos": "", "stop_string": "ended by a stop text", "length": "cut at the longest answer", "stopped": "stopped"}


def column_note(answer: ColumnAnswer) -> str:
    """How quick an answer was and how it ended."""
    if not answer.tokens:
        return "No token before the stop"
    ended = FINISH[answer.finish]
    words = (
        f"{html.count(answer.tokens, 'token')}, {answer.tokens_per_second:.0f} tokens/s, "
        f"first after {html.duration(answer.first_token_seconds)}"
    )
    return f"{words}, {ended}" if ended else words


def board(
    columns: Sequence[tuple[str, str, Sequence[Message], str]], *, marks: bool, examples: Sequence[StarterQuestion] = ()
) -> str:
    """All columns: (name, title, messages, note) each, the base first; `marks` marks words that differ from it."""
    first = columns[0][2] if columns else ()
    views = [
        (
            name,
            title,
            _drawn_once("chat.head", name, title, bool(messages) and bool(messages[-1]["content"])),
            talk(name, messages, first if marks and at else None),
            note,
        )
        for at, (name, title, messages, note) in enumerate(columns)
    ]
    if any(messages for _, _, messages, _ in columns):
        return render("chat.board", views, _drawn_once("chat.tools", marks))
    examples_bar = (
        {"act": "example", "value": at, "words": shorten(example.question, 70)} for at, example in enumerate(examples)
    )
    return render("chat.board", views, render("chat.bar", list(examples_bar)))


def talk(
    name: str, messages: Sequence[Message], base: Sequence[Message] | None = None, *, editable: bool = True
) -> Html:
    """A column's messages, exactly as they are: markup in an answer is shown, not obeyed."""
    turns = []
    for at, message in enumerate(messages):
        other = base[at] if base is not None and at < len(base) else None
        if message["role"] == "user":
            turns.append(_drawn_once("chat.question", name, at // 2, str(message["content"]), editable))
        else:
            turns.append(answer(str(message["content"]), str(other["content"]) if other else None))
    return render("chat.talk", turns, NOTHING_SAID)


@lru_cache(maxsize=256)
def answer(content: str, other: str | None = None) -> Html:
    """An answer, its reasoning folded, words that `other` has not marked; awaited while it is empty."""
    if not content:
        return render("chat.awaited")
    thought, text = thoughts(content)
    return render("chat.answer", thought, marked_words(text, thoughts(other)[1]) if other else text)


def marked_words(content: str, other: str) -> Html:
    """The text with the words marked that are not in the same place of the other text."""
    tokens, other_tokens = re.findall(r"\s+|\w+|[^\w\s]", content), re.findall(r"\s+|\w+|[^\w\s]", other)
    changes = difflib.SequenceMatcher(None, tokens, other_tokens, autojunk=False).get_opcodes()
    parts = [("".join(tokens[begin:end]), kind != "equal") for kind, begin, end, _, _ in changes]
    return render("chat.words", [(words, differs and bool(words.strip())) for words, differs in parts])


MOST_TOKENS = 400
SHARE_NO_BATCH = (
    " Adapters that are more than plain LoRA (DoRA, trained biases, whole modules, experts, other kinds) share no "
    "batch: those columns answer one after the other."
)
APART = 2.0
"""Nats between base and adapter at which a token's colour is full: 7 times as likely, or a seventh."""
LEGEND = (
    "The first adapter's last answer, as all columns score it. Green: training made the token likelier; red: less "
    "likely. Point at a token for its probabilities; a dotted line marks where the adapter's choices of the next token "
    "are far from the base's (1 nat and more). How far they are is the KL divergence, measured in nats: 0 is the same, "
    "below 0.01 hardly to be noticed, around 0.1 a slight shift, 1 and more another way of answering."
)


def memory(loaded: Loaded | None, selected: Sequence[Choice], holders: str, other: bool) -> str:
    """What is in memory, and who holds the device."""
    if loaded is None:
        words = "Other columns are in memory; these" if other else "No model is in memory. It"
        verb = "are" if other else "is"
        return html.notice(f"{words} {verb} loaded with the next question.", holders)
    names = " and ".join(choice.name for choice in selected)
    where = f"{loaded.device}, {loaded.dtype}, {html.size(loaded.memory_bytes)}"
    batching = "" if loaded.mixes else SHARE_NO_BATCH
    bits = "" if loaded.quantization == "none" else f" in {loaded.quantization}"
    words = html.notice(f"In memory: {loaded.base}{bits} with {names} ({where}).", holders + batching, "good")
    return words + "".join(html.notice(note, kind="warning") for note in loaded.notes)


def cards(selected: Sequence[Choice]) -> str:
    """System prompt, template and thinking of each adapter, folded."""
    rows = []
    for choice in selected:
        card = choice.card()
        thinking = {None: "as the template has it", True: "on", False: "off"}[card.enable_thinking]
        rows.append(
            (
                choice.name,
                card.base,
                card.prompt_style,
                card.system_prompt or None,
                thinking if card.thinks else "the template has no switch",
                card.template or "the base's own",
            )
        )
    columns = ("Adapter", "Base", "Prompt style", "System prompt", "Thinking", "Chat template")
    table = html.table(columns, rows, "What the adapters bring with them")
    return html.render("chat.cards", table)


def tokens(scored: Scored, titles: Mapping[str, str]) -> str:
    """A forced answer for each adapter: green where it finds a token likelier than the base does, red where less."""
    adapters = []
    for name, values in scored.adapters.items():
        tokens = zip(scored.texts[:MOST_TOKENS], scored.base, values, scored.divergence[name], strict=False)
        omitted = len(scored.texts) - MOST_TOKENS
        more = html.count(omitted, "more token") if omitted > 0 else ""
        adapters.append(
            (titles[name], f"{scored.mean_divergence[name]:.3g}", [_token(*token) for token in tokens], more)
        )
    return html.render("chat.tokens", LEGEND, adapters)


def _token(piece: str, base: float, adapter: float, divergence: float) -> tuple[str, str, str, str, str]:
    """A token's text, class, probabilities, colour and how full it is in percent."""
    gain = max(-1.0, min(1.0, (adapter - base) / APART))
    colour = "var(--good)" if gain > 0 else "var(--bad)"
    title = f"base {_percent(base)}, adapter {_percent(adapter)}, KL divergence {divergence:.2g} nats"
    return piece, " chat-turn" if divergence >= 1 else "", title, colour, f"{abs(gain) * 55:.0f}"


def _percent(log: float) -> str:
    """e to the power of it as a percentage that is never a false 0."""
    share = 100 * 2.718281828459045**log
    return f"{share:.1f} %" if share >= 0.1 else "< 0.1 %"
