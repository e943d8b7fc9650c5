"""The columns of the chat as one piece of markup, and the clicks in it. Plain functions; no gradio."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lora_studio.ui.chat_choices import Example
from lora_studio.ui.text import escape, shorten, thoughts

Message = Mapping[str, Any]
NOTHING_SAID = "The answers will stand here."


def board(
    columns: Sequence[tuple[str, str, Sequence[Message], str]], *, marks: bool, examples: Sequence[Example] = ()
) -> str:
    """All columns: (name, title, messages, note) each, the base first; `marks` marks words that differ from it."""
    said = any(messages for _, _, messages, _ in columns)
    first = columns[0][2] if columns else ()
    drawn = "".join(
        _column(name, title, messages, note, first if marks and at else None, at)
        for at, (name, title, messages, note) in enumerate(columns)
    )
    offered = "".join(
        f'<button type="button" data-act="example" data-value="{at}">{escape(shorten(example.question, 70))}</button>'
        for at, example in enumerate(examples)
    )
    bar = "".join(
        f'<button type="button" data-act="{act}"{pressed}>{words}</button>' for act, words, pressed in _tools(marks)
    )
    below = (
        f'<div class="chat-bar">{bar}</div>' if said else f'<div class="chat-bar">{offered}</div>' if offered else ""
    )
    return f'<div class="chat-columns" tabindex="0" role="group" aria-label="Columns">{drawn}</div>{below}'


def _tools(marks: bool) -> list[tuple[str, str, str]]:
    return [
        ("again", "Ask all again", ""),
        ("undo", "Undo the last turn", ""),
        ("marks", "Mark words that differ", f' aria-pressed="{"true" if marks else "false"}"'),
        ("tokens", "Compare token by token", ""),
        ("export", "Download as training data", ""),
        ("clear", "Clear", ""),
    ]


def _column(
    name: str, title: str, messages: Sequence[Message], note: str, base: Sequence[Message] | None, at: int
) -> str:
    whole = bool(messages) and bool(messages[-1]["content"])
    acts = "".join(
        f'<button type="button" data-act="{act}" data-column="{escape(name)}" aria-label="{label}: {escape(title)}">'
        f"{words}</button>"
        for act, words, label in (("again", "Regenerate", "Ask again"), ("undo", "Undo", "Undo the last turn"))
    )
    return (
        f'<section class="chat-column" data-column="{escape(name)}" data-at="{at}" aria-label="{escape(title)}">'
        f"<header><h3>{escape(title)}</h3>{f'<span>{acts}</span>' if whole else ''}</header>"
        f'<div class="chat-talk">{talk(name, messages, base)}</div>'
        f'<p class="ls-note">{escape(note)}</p></section>'
    )


def talk(
    name: str, messages: Sequence[Message], base: Sequence[Message] | None = None, *, editable: bool = True
) -> str:
    """A column's messages, exactly as they are: markup in an answer is shown, not obeyed."""
    if not messages:
        return f'<p class="ls-none">{NOTHING_SAID}</p>'
    drawn = []
    for at, message in enumerate(messages):
        other = base[at] if base is not None and at < len(base) else None
        if message["role"] == "user":
            drawn.append(_question(name, at // 2, str(message["content"]), editable))
        else:
            drawn.append(answer(str(message["content"]), str(other["content"]) if other else None))
    return f'<div class="ls-talk">{"".join(drawn)}</div>'


def _question(name: str, turn: int, content: str, editable: bool) -> str:
    button = (
        f'<button type="button" class="chat-small" data-act="edit" data-column="{escape(name)}" data-value="{turn}">'
        "Edit</button>"
        if editable
        else ""
    )
    return (
        f'<div class="ls-bubble ls-user"><small>you {button}</small><div class="ls-said">{escape(content)}</div></div>'
    )


def answer(content: str, other: str | None = None) -> str:
    """An answer, its reasoning folded, words that `other` has not marked; awaited while it is empty."""
    if not content:
        return '<p class="ls-none" role="status">…</p>'
    thought, rest = thoughts(content)
    folded = f"<details><summary>thoughts</summary><pre>{escape(thought)}</pre></details>" if thought else ""
    body = marked_words(rest, thoughts(other)[1]) if other else escape(rest)
    return f'<div class="ls-bubble ls-assistant">{folded}<div class="ls-said">{body}</div></div>'


def marked_words(content: str, other: str) -> str:
    """The text with the words marked that are not in the same place of the other text."""
    here, there = re.findall(r"\s+|\w+|[^\w\s]", content), re.findall(r"\s+|\w+|[^\w\s]", other)
    drawn = []
    for kind, begin, end, _, _ in difflib.SequenceMatcher(None, here, there, autojunk=False).get_opcodes():
        words = escape("".join(here[begin:end]))
        if words:
            drawn.append(words if kind == "equal" or not words.strip() else f"<mark>{words}</mark>")
    return "".join(drawn)
