"""Rows for learning by comparison: pairs of a better and a worse answer, and answers marked good or bad."""

from collections.abc import Mapping
from typing import Any

from lora_studio.data.columns import is_turns, may_be_turns
from lora_studio.data.dialogues import Marks, parse_dialogue
from lora_studio.data.mapping import Format
from lora_studio.data.messages import Message, RowError
from lora_studio.data.turns import as_text, parse_item, parse_turns
from lora_studio.units import count

SAME_ANSWERS = "the better and the worse answer are the same"
NO_SHARED_PROMPT = "the better and the worse answer share no prompt"
NOT_A_MARK = "the mark for good or bad is neither true nor false"
_MARKS = {"true": True, "false": False, "1": True, "0": False, "good": True, "bad": False}


def answers_of(
    fields: dict[str, Any], fmt: Format, prompt: list[Message] | None, roles: Mapping[str, str]
) -> tuple[list[Message], list[Message], list[Message]]:
    """The prompt, and the better and the worse answer to it; without a prompt column it is what both begin with."""
    columns = fmt.columns
    marks = fmt.marks if prompt is None else None
    chosen = _side(fields.get(columns["chosen"]), columns["chosen"], marks, roles)
    rejected = _side(fields.get(columns["rejected"]), columns["rejected"], marks, roles)
    if prompt and len(prompt) > 1 and prompt[-1].role == "assistant":
        prompt = prompt[:-1]  # the conversation stands there with its answer, which is one of the two
    if prompt is None:
        shared = _shared(chosen, rejected)
        if not shared and len(rejected) == 1 < len(chosen) and chosen[-1].role == "assistant":
            shared, rejected = len(chosen) - 1, [*chosen[:-1], *rejected]  # a bare answer beside a whole conversation
        if not shared:
            raise RowError(NO_SHARED_PROMPT, columns["chosen"], " → ".join(message.role for message in chosen))
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    else:
        chosen, rejected = (_without_prompt(side, prompt) for side in (chosen, rejected))
    if [message.to_dict() for message in chosen] == [message.to_dict() for message in rejected]:
        raise RowError(SAME_ANSWERS, columns["rejected"], chosen[-1].content if chosen else "")
    return prompt, chosen, rejected


def _side(value: Any, field: str, marks: Marks | None, roles: Mapping[str, str]) -> list[Message]:
    if isinstance(value, dict) and not is_turns(value):
        return parse_item(value, field, roles)
    if is_turns(value) or (isinstance(value, str) and may_be_turns(value)):
        return parse_turns(value, field, roles)
    text = as_text(value, field)
    return parse_dialogue(text, field, marks) if marks else [Message("assistant", text)]


def _shared(chosen: list[Message], rejected: list[Message]) -> int:
    """How many turns both sides begin with; the last turn is always an answer."""
    shared = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if (one.role, one.content) != (other.role, other.content):
            break
        shared += 1
    return shared


def _without_prompt(side: list[Message], prompt: list[Message]) -> list[Message]:
    """A side that repeats the prompt, without it."""
    spoken = [(message.role, message.content) for message in prompt if message.role != "system"]
    own = [(message.role, message.content) for message in side if message.role != "system"]
    if len(own) > len(spoken) and own[: len(spoken)] == spoken:
        return [message for message in side if message.role != "system"][len(spoken) :]
    return side


def is_mark(value: Any) -> bool:
    """Whether a value is a mark for good or bad, whatever its column means; tables write it as text."""
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false"))


def mark_of(value: Any, field: str) -> bool:
    """Whether a row's mark says good."""
    if isinstance(value, bool):
        return value
    mark = _MARKS.get(str(value).strip().lower())
    if mark is None:
        raise RowError(NOT_A_MARK, field, value)
    return mark


def marks_in_words(good: int, bad: int) -> str:
    """What became of rows marked good or bad."""
    learned, left = ("is" if number == 1 else "are" for number in (good, bad))
    return f"{count(good, 'answer')} marked good {learned} learned from; {bad:,} marked bad {left} left out."
