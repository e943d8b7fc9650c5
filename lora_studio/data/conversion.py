"""One row to a Conversation, by the parts that a Format says its columns play. Recognises nothing."""

import re
from collections.abc import Mapping as Names
from dataclasses import replace
from itertools import compress
from typing import Any

from lora_studio.data.columns import MEDIA as MEDIA_COLUMNS
from lora_studio.data.columns import TOOLS, is_turns
from lora_studio.data.dialogues import NO_MARKS, parse_dialogue
from lora_studio.data.mapping import Format, fill, places
from lora_studio.data.messages import (
    BROKEN_TEXT,
    CONTROL,
    EMPTY_ANSWER,
    EMPTY_TURN,
    IGNORED,
    Conversation,
    Message,
    RowError,
    check,
    check_text,
    check_values,
    is_blank,
    is_odd,
)
from lora_studio.data.preferences import answers_of, mark_of
from lora_studio.data.problems import problem_text
from lora_studio.data.rows import Record
from lora_studio.data.turns import MEDIA, MISSING, ROLES, as_text, held_beside, parse_history, parse_tools, parse_turns

NOT_IDS = "the tokens are not a list of whole numbers"
UNLIKE_LENGTHS = "`input_ids` and what stands beside them are not equally long"
ONLY_PADDING = "the row holds nothing but padding"
_MEDIA_TAG = re.compile(r"<(img|audio|video)>[^<]+</\1>")


def convert(record: Record, fmt: Format, system_prompt: str | None = None) -> Conversation:
    """A row as a conversation. `system_prompt` is put in front only where the row brings none. Raises RowError.

    A mapping's own system prompt comes before the one given. Preference rows have the prompt as `messages`.
    """
    fields, columns = record.fields, fmt.columns
    _refuse_media(fields)
    if "input_ids" in columns:
        return _tokenised(record, columns)
    if "text" in columns:
        text = as_text(_needed(fields, columns["text"]), columns["text"])
        check_text(text, columns["text"])
        return Conversation(record.row, text=text)
    roles = {**ROLES, **fmt.mapping.roles} if fmt.mapping and fmt.mapping.roles else ROLES
    given = (fmt.mapping.system_prompt if fmt.mapping else None) or system_prompt
    if "chosen" in columns:
        return _compared(record, fmt, roles, given)
    messages, place = _turns(fields, fmt, roles)
    messages = _with_system(messages, fields, columns, given)
    if "reasoning" in columns:
        messages = _with_reasoning(messages, as_text(fields.get(columns["reasoning"]), columns["reasoning"]))
    _check(messages, place, fields, columns)
    _refuse_tags(messages, place)
    label = mark_of(_needed(fields, columns["label"]), columns["label"]) if "label" in columns else None
    return Conversation(record.row, tuple(messages), tools=_tools(fields, columns), label=label)


def _turns(fields: dict[str, Any], fmt: Format, roles: Names[str, str]) -> tuple[list[Message], str]:
    """The turns of a row and the column that a fault in them is reported for."""
    columns = fmt.columns
    if "dialogue" in columns:
        place = columns["dialogue"]
        text = as_text(_needed(fields, place), place)
        if fmt.marks is None:
            raise RowError(NO_MARKS, place, text)
        return parse_dialogue(text, place, fmt.marks), place
    whole = columns.get("messages")
    beside = "completion" in columns or "output" in columns
    if whole is not None and (fields.get(whole) or not beside):
        messages = parse_turns(_needed(fields, whole), whole, roles)
        if not (beside and fmt.mapping):
            return messages, whole
        place = columns["completion"]
        return messages + _answer_turns(_needed(fields, place), place, roles), place
    return _from_columns(fields, fmt, roles)


def _from_columns(fields: dict[str, Any], fmt: Format, roles: Names[str, str]) -> tuple[list[Message], str]:
    """Turns out of a row's columns, and the name of the answer's column."""
    columns = fmt.columns
    answered = columns.get("output") if "instruction" in columns else columns["completion"]
    answered = answered or columns["completion"]
    asked = _asked(fields, fmt, roles)
    if answered in fields and fields[answered] is None:
        raise RowError(EMPTY_ANSWER, answered, "the cell is empty")
    answer = _needed(fields, answered)
    if fmt.marks:
        prompt = columns.get("instruction") or columns["prompt"]
        whole = as_text(_needed(fields, prompt), prompt) + as_text(answer, answered)
        return parse_dialogue(whole, prompt, fmt.marks), answered
    history = parse_history(fields.get(columns["history"]), columns["history"]) if "history" in columns else []
    return [*history, *asked, *_answer_turns(answer, answered, roles)], answered


def _asked(fields: dict[str, Any], fmt: Format, roles: Names[str, str]) -> list[Message]:
    """The user's turn (or, of a conversational prompt, turns) of a row in columns."""
    columns = fmt.columns
    template = fmt.mapping.user_template if fmt.mapping else None
    if template:
        cells = {name: as_text(fields.get(name), name) for name in places(template)}
        if not any(cell.strip() for cell in cells.values()):
            raise RowError(MISSING, ", ".join(cells), "fields: " + ", ".join(map(str, fields)))
        return [Message("user", fill(template, cells))]
    if "description" in columns:
        return [Message("user", problem_text(fields, columns))]
    asked = columns.get("instruction") or columns["prompt"]
    prompt = _needed(fields, asked)
    if is_turns(prompt):
        return parse_turns(prompt, asked, roles)
    instruction = as_text(prompt, asked)
    extra = as_text(fields.get(columns["input"]), columns["input"]) if "input" in columns else ""
    if not extra.strip():
        return [Message("user", instruction)]
    both = f"{instruction}\n\n{extra}" if instruction.strip() else extra
    return [Message("user", both, instruction=instruction, input=extra)]


def _compared(record: Record, fmt: Format, roles: Names[str, str], system: str | None) -> Conversation:
    """A prompt with a better and a worse answer."""
    fields, columns = record.fields, fmt.columns
    whole, place = columns.get("messages"), columns["chosen"]
    prompt: list[Message] | None = None
    if whole:
        prompt = parse_turns(_needed(fields, whole), whole, roles)
    elif columns.keys() & {"prompt", "instruction", "description"} or (fmt.mapping and fmt.mapping.user_template):
        prompt = _asked(fields, fmt, roles)
        if "history" in columns:
            prompt = [*parse_history(fields.get(columns["history"]), columns["history"]), *prompt]
    for side in ("chosen", "rejected"):
        _needed(fields, columns[side])
    if fmt.marks and prompt is not None:  # a rendered prompt, which each answer goes on from
        name = columns.get("instruction") or columns["prompt"]
        begin, prompt = as_text(fields[name], name), None
        sides = (columns["chosen"], columns["rejected"])
        fields = {**fields, **{side: begin + as_text(fields[side], side) for side in sides}}
    prompt, chosen, rejected = answers_of(fields, fmt, prompt, roles)
    prompt = _with_system(prompt, fields, columns, system)
    _check([*prompt, *chosen], place, fields, columns)
    _check([*prompt, *rejected], columns["rejected"], fields, columns)
    _refuse_tags([*prompt, *chosen, *rejected], place)
    return Conversation(
        record.row, tuple(prompt), tools=_tools(fields, columns), chosen=tuple(chosen), rejected=tuple(rejected)
    )


def _tokenised(record: Record, columns: dict[str, str]) -> Conversation:
    """A row of tokens, without those that its attention mask marks as padding, wherever they stand."""
    fields = record.fields
    ids = _numbers(_needed(fields, columns["input_ids"]), columns["input_ids"], least=0)
    labels = None
    if "labels" in columns:
        labels = _alike(fields, columns["labels"], ids, least=-100)
    elif fields.get(columns.get("loss_mask", "")) is not None:
        learned = _alike(fields, columns["loss_mask"], ids, least=0)
        labels = tuple(token if wanted else IGNORED for token, wanted in zip(ids, learned, strict=True))
    if fields.get(columns.get("attention_mask", "")) is not None:
        mask = _alike(fields, columns["attention_mask"], ids, least=0)
        if not any(mask):
            raise RowError(ONLY_PADDING, columns["attention_mask"], mask[:20])
        ids = tuple(compress(ids, mask))
        labels = None if labels is None else tuple(compress(labels, mask))
    return Conversation(record.row, input_ids=ids, labels=labels)


def _alike(fields: dict[str, Any], name: str, ids: tuple[int, ...], least: int) -> tuple[int, ...]:
    """The numbers of a column that has one for each token."""
    value = _needed(fields, name)
    if least == 0 and isinstance(value, list):
        value = [int(one) if isinstance(one, bool) or one in (0.0, 1.0) else one for one in value]
    numbers = _numbers(value, name, least)
    if len(numbers) != len(ids):
        raise RowError(UNLIKE_LENGTHS, name, f"{len(ids)} and {len(numbers)}")
    return numbers


def _numbers(value: Any, field: str, least: int) -> tuple[int, ...]:
    whole = isinstance(value, list) and bool(value)
    if not whole or any(isinstance(one, bool) or not isinstance(one, int) or one < least for one in value):
        raise RowError(NOT_IDS, field, value)
    return tuple(value)


def _with_system(
    messages: list[Message], fields: dict[str, Any], columns: dict[str, str], given: str | None
) -> list[Message]:
    if messages and messages[0].role == "system":
        return messages
    own = as_text(fields.get(columns["system"]), columns["system"]) if "system" in columns else ""
    system = given if is_blank(own) else own
    return messages if system is None or is_blank(system) else [Message("system", system), *messages]


def _with_reasoning(messages: list[Message], thought: str) -> list[Message]:
    """The reasoning before the last answer, where that has none of its own."""
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant" or last.reasoning_content or not thought.strip():
        return messages
    return [*messages[:-1], replace(last, reasoning_content=thought)]


def _answer_turns(answer: Any, name: str, roles: Names[str, str]) -> list[Message]:
    return parse_turns(answer, name, roles) if is_turns(answer) else [Message("assistant", as_text(answer, name))]


def _tools(fields: dict[str, Any], columns: dict[str, str]) -> tuple[dict[str, Any], ...]:
    holder = columns.get("messages") or columns.get("prompt") or ""
    place = columns.get("tools", holder)
    given = fields.get(place) if "tools" in columns else held_beside(fields.get(holder), TOOLS)
    tools = parse_tools(given, place)
    check_values(tools, place)
    return tools


def _needed(fields: dict[str, Any], name: str) -> Any:
    if fields.get(name) is None:
        raise RowError(MISSING, name, "fields: " + ", ".join(map(str, fields)))
    return fields[name]


def _check(messages: list[Message], place: str, fields: dict[str, Any], columns: dict[str, str]) -> None:
    """Raises RowError for the first rule that the turns break, with the column that the fault lies in."""
    try:
        check(messages, place)
    except RowError as error:
        if error.reason in (CONTROL, BROKEN_TEXT):
            held = (name for name in columns.values() if isinstance(value := fields.get(name), str) and is_odd(value))
            raise RowError(error.reason, next(held, place), error.found) from None
        asked = columns.get("instruction") or columns.get("prompt", place)
        column = {EMPTY_TURN: asked, EMPTY_ANSWER: place}.get(error.reason)
        if column is None or not isinstance(fields.get(column), str):
            raise
        raise RowError(error.reason, column, repr(fields[column])) from None


def _refuse_media(fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if value and (name in MEDIA_COLUMNS or (isinstance(value, dict) and "bytes" in value and "path" in value)):
            raise RowError(MEDIA, name, value)


def _refuse_tags(messages: list[Message], place: str) -> None:
    for message in messages:
        if "<" in message.content and _MEDIA_TAG.search(message.content):
            raise RowError(MEDIA, place, message.content)
