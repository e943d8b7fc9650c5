"""The columns of the chat as one piece of markup, and the clicks in it. Plain functions; no gradio."""

import difflib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from lora_studio.ui.chat_choices import Example
from lora_studio.ui.text import Html, render, shorten, thoughts

Message = Mapping[str, Any]
NOTHING_SAID = "The answers will stand here."


def board(
    columns: Sequence[tuple[str, str, Sequence[Message], str]], *, marks: bool, examples: Sequence[Example] = ()
) -> str:
    """All columns: (name, title, messages, note) each, the base first; `marks` marks words that differ from it."""
    first = columns[0][2] if columns else ()
    drawn = [
        (
            name,
            title,
            bool(messages) and bool(messages[-1]["content"]),
            talk(name, messages, first if marks and at else None),
            note,
        )
        for at, (name, title, messages, note) in enumerate(columns)
    ]
    buttons = [
        {"act": "example", "value": at, "words": shorten(example.question, 70)} for at, example in enumerate(examples)
    ]
    if any(messages for _, _, messages, _ in columns):
        buttons = [
            {"act": "again", "words": "Ask all again"},
            {"act": "undo", "words": "Undo the last turn"},
            {"act": "marks", "words": "Mark words that differ", "pressed": marks},
            {"act": "tokens", "words": "Compare token by token"},
            {"act": "export", "words": "Download as training data"},
            {"act": "clear", "words": "Clear"},
        ]
    return render("chat.board", drawn, buttons)


def talk(
    name: str, messages: Sequence[Message], base: Sequence[Message] | None = None, *, editable: bool = True
) -> Html:
    """A column's messages, exactly as they are: markup in an answer is shown, not obeyed."""
    turns: list[tuple[int | None, str]] = []
    for at, message in enumerate(messages):
        other = base[at] if base is not None and at < len(base) else None
        if message["role"] == "user":
            turns.append((at // 2, str(message["content"])))
        else:
            turns.append((None, answer(str(message["content"]), str(other["content"]) if other else None)))
    return render("chat.talk", name, turns, editable, NOTHING_SAID)


@lru_cache(maxsize=256)  # of a growing chat only the last answers change, thirteen times a second
def answer(content: str, other: str | None = None) -> Html:
    """An answer, its reasoning folded, words that `other` has not marked; awaited while it is empty."""
    if not content:
        return render("chat.awaited")
    thought, rest = thoughts(content)
    return render("chat.answer", thought, marked_words(rest, thoughts(other)[1]) if other else rest)


def marked_words(content: str, other: str) -> Html:
    """The text with the words marked that are not in the same place of the other text."""
    here, there = re.findall(r"\s+|\w+|[^\w\s]", content), re.findall(r"\s+|\w+|[^\w\s]", other)
    changes = difflib.SequenceMatcher(None, here, there, autojunk=False).get_opcodes()
    parts = [("".join(here[begin:end]), kind != "equal") for kind, begin, end, _, _ in changes]
    return render("chat.words", [(words, apart and bool(words.strip())) for words, apart in parts])
