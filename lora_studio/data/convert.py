"""Converts a row of any known format to a `Conversation`, the one form that all later steps take."""

import json
import re
from collections.abc import Mapping
from collections.abc import Mapping as Names
from dataclasses import replace
from itertools import compress
from typing import Any

from lora_studio.data.dialogues import NO_MARKS, Marks, parse_dialogue
from lora_studio.data.mapping import ASSISTANT, TOOLS, ColumnSample, Format, fill, is_turns, may_be_turns, places
from lora_studio.data.mapping import MEDIA as MEDIA_COLUMNS
from lora_studio.data.messages import (
    BROKEN_TEXT,
    CONTROL,
    EMPTY_ANSWER,
    EMPTY_TURN,
    IGNORED,
    Conversation,
    Fields,
    Message,
    Record,
    RowError,
    Tool,
    check,
    check_text,
    check_values,
    is_blank,
    is_odd,
)
from lora_studio.data.turns import (
    MEDIA,
    MISSING,
    ROLES,
    as_text,
    held_beside,
    parse_history,
    parse_item,
    parse_tools,
    parse_turns,
)
from lora_studio.units import count

STATEMENT = ("description", "problem_description", "statement", "problem_statement", "problem")
SECTIONS = {
    "input": ("input_format", "input_specification", "input_description", "input_spec"),
    "output": ("output_format", "output_specification", "output_description", "output_spec"),
    "constraints": ("constraints", "constraint"),
    "examples": ("examples", "sample_tests", "public_tests", "sample_io", "test_cases"),
    "note": ("note", "notes"),
}
ANSWERS = ("generation", "solution", "solutions", "code", "python_solution", "editorial", *ASSISTANT)
_HEADINGS = {"input": "Input", "output": "Output", "constraints": "Constraints", "examples": "Examples", "note": "Note"}


def lacks_solution(columns: ColumnSample) -> bool:
    """Whether the rows describe problems, but none of their columns can be the solution."""
    described = columns.find(STATEMENT) and any(columns.find(aliases) for aliases in SECTIONS.values())
    return bool(described) and find_problem(columns) is None


def find_problem(columns: ColumnSample) -> dict[str, str] | None:
    """Columns of a problem and its solution by part; None if the rows are not problems.

    What the output is to look like is never the answer; a column named `output` alone may be.
    """
    statement = columns.find(STATEMENT)
    if statement is None or columns.find(("instruction",)):
        return None
    parts = {"title": columns.find(("title", "name")), "description": statement}
    parts |= {part: columns.find(names) for part, names in SECTIONS.items()}
    plain = {part: columns.find((part,)) for part in ("input", "output")}
    used = {name for name in (*parts.values(), *plain.values()) if name}
    answer = columns.find(ANSWERS, without=used)
    if answer is None and parts["output"] and plain["output"]:
        answer = plain["output"]
    for part, name in plain.items():
        parts[part] = parts[part] or (name if name != answer else None)
    if answer is None and plain["output"]:  # `output` is then the answer, not a description of the output
        answer, parts["output"] = plain["output"], None
    described = [part for part in ("input", "output", "constraints", "examples", "note") if parts[part]]
    if answer is None or not described:
        return None
    present = {part: name for part, name in parts.items() if name}
    return {**present, "completion": answer}


def problem_text(fields: Fields, columns: dict[str, str]) -> str:
    """The problem as one text: title, description, and each further part under its heading."""
    blocks = [as_text(fields.get(columns[part]), columns[part]) for part in ("title", "description") if part in columns]
    for part, heading in _HEADINGS.items():
        if part in columns:
            section = _section(fields.get(columns[part]), columns[part])
            blocks.append(f"{heading}:\n{section}" if section.strip() else "")
    return "\n\n".join(block.strip() for block in blocks if block.strip())


def _section(value: Any, field: str) -> str:
    """A part of a problem as text: examples may be a list of inputs with their outputs."""
    if isinstance(value, list):
        return "\n\n".join(_section(item, field) for item in value)
    if isinstance(value, dict):
        return "\n".join(f"{str(key).capitalize()}: {_section(item, field)}" for key, item in value.items())
    if isinstance(value, bool):
        return json.dumps(value)
    return as_text(value, field)


SAME_ANSWERS = "the chosen and the rejected answer are identical"
NO_SHARED_PROMPT = "the chosen and the rejected answer share no prompt"
NOT_A_MARK = "the label is neither true nor false"
_MARKS = {"true": True, "false": False, "1": True, "0": False, "good": True, "bad": False}


def answers_of(
    fields: Fields, fmt: Format, prompt: list[Message] | None, roles: Mapping[str, str]
) -> tuple[list[Message], list[Message], list[Message]]:
    """The prompt, the better and the worse answer; without a prompt column, their common beginning is the prompt."""
    columns = fmt.columns
    marks = fmt.marks if prompt is None else None
    chosen = _side(fields.get(columns["chosen"]), columns["chosen"], marks, roles)
    rejected = _side(fields.get(columns["rejected"]), columns["rejected"], marks, roles)
    if prompt and len(prompt) > 1 and prompt[-1].role == "assistant":
        prompt = prompt[:-1]  # the prompt column ends with one of the two answers
    if prompt is None:
        shared = _shared(chosen, rejected)
        if not shared and len(rejected) == 1 < len(chosen) and chosen[-1].role == "assistant":
            shared, rejected = len(chosen) - 1, [*chosen[:-1], *rejected]  # one answer, one whole conversation
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
    for turn, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if (turn.role, turn.content) != (other.role, other.content):
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
    """Whether a row's label is good. Raises RowError for an unknown label."""
    if isinstance(value, bool):
        return value
    mark = _MARKS.get(str(value).strip().lower())
    if mark is None:
        raise RowError(NOT_A_MARK, field, value)
    return mark


def describe_labels(good: int, bad: int) -> str:
    """A sentence on how rows labelled good or bad are used."""
    good_verb, bad_verb = ("is" if number == 1 else "are" for number in (good, bad))
    return f"{count(good, 'answer')} labelled good {good_verb} trained; {bad:,} labelled bad {bad_verb} ignored."


def describe_both_labels(good: int, bad: int) -> str:
    """A sentence on rows labelled good or bad that are both learned from."""
    verb = "is" if good == 1 else "are"
    return f"{count(good, 'answer')} {verb} labelled good, {bad:,} bad. KTO trains on both, SFT on the good ones only."


NOT_IDS = "the tokens are not a list of integers"
UNLIKE_LENGTHS = "`input_ids` and its companion lists differ in length"
ONLY_PADDING = "the row contains only padding"
_MEDIA_TAG = re.compile(r"<(img|audio|video)>[^<]+</\1>")


def convert(record: Record, fmt: Format, system_prompt: str | None = None) -> Conversation:
    """Converts a row. `system_prompt` is used if neither the row nor the mapping has one. Raises RowError.

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
    system = (fmt.mapping.system_prompt if fmt.mapping else None) or system_prompt
    if "chosen" in columns:
        return _compared(record, fmt, roles, system)
    messages, place = _turns(fields, fmt, roles)
    messages = _with_system(messages, fields, columns, system)
    if "reasoning" in columns:
        messages = _with_reasoning(messages, as_text(fields.get(columns["reasoning"]), columns["reasoning"]))
    _check(messages, place, fields, columns)
    _refuse_tags(messages, place)
    label = mark_of(_needed(fields, columns["label"]), columns["label"]) if "label" in columns else None
    return Conversation(record.row, tuple(messages), tools=_tools(fields, columns), label=label)


def _turns(fields: Fields, fmt: Format, roles: Names[str, str]) -> tuple[list[Message], str]:
    """The turns of a row and the column that a fault in them is reported for."""
    columns = fmt.columns
    if "dialogue" in columns:
        place = columns["dialogue"]
        text = as_text(_needed(fields, place), place)
        if fmt.marks is None:
            raise RowError(NO_MARKS, place, text)
        return parse_dialogue(text, place, fmt.marks), place
    whole = columns.get("messages")
    has_answer_column = "completion" in columns or "output" in columns
    if whole is not None and (fields.get(whole) or not has_answer_column):
        messages = parse_turns(_needed(fields, whole), whole, roles)
        if not (has_answer_column and fmt.mapping):
            return messages, whole
        place = columns["completion"]
        return messages + _answer_turns(_needed(fields, place), place, roles), place
    return _from_columns(fields, fmt, roles)


def _from_columns(fields: Fields, fmt: Format, roles: Names[str, str]) -> tuple[list[Message], str]:
    """Turns out of a row's columns, and the name of the answer's column."""
    columns = fmt.columns
    answer_column = columns.get("output") if "instruction" in columns else columns["completion"]
    answer_column = answer_column or columns["completion"]
    question = _user_turns(fields, fmt, roles)
    if answer_column in fields and fields[answer_column] is None:
        raise RowError(EMPTY_ANSWER, answer_column, "the cell is empty")
    answer = _needed(fields, answer_column)
    if fmt.marks:
        prompt = columns.get("instruction") or columns["prompt"]
        whole = as_text(_needed(fields, prompt), prompt) + as_text(answer, answer_column)
        return parse_dialogue(whole, prompt, fmt.marks), answer_column
    history = parse_history(fields.get(columns["history"]), columns["history"]) if "history" in columns else []
    return [*history, *question, *_answer_turns(answer, answer_column, roles)], answer_column


def _user_turns(fields: Fields, fmt: Format, roles: Names[str, str]) -> list[Message]:
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
    column = columns.get("instruction") or columns["prompt"]
    prompt = _needed(fields, column)
    if is_turns(prompt):
        return parse_turns(prompt, column, roles)
    instruction = as_text(prompt, column)
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
        prompt = _user_turns(fields, fmt, roles)
        if "history" in columns:
            prompt = [*parse_history(fields.get(columns["history"]), columns["history"]), *prompt]
    for side in ("chosen", "rejected"):
        _needed(fields, columns[side])
    if fmt.marks and prompt is not None:  # a rendered prompt that each answer continues
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
    """A tokenised row without the tokens that its attention mask marks as padding."""
    fields = record.fields
    ids = _numbers(_needed(fields, columns["input_ids"]), columns["input_ids"], least=0)
    labels = None
    if "labels" in columns:
        labels = _alike(fields, columns["labels"], ids, least=-100)
    elif fields.get(columns.get("loss_mask", "")) is not None:
        learned = _alike(fields, columns["loss_mask"], ids, least=0)
        labels = tuple(token if trained else IGNORED for token, trained in zip(ids, learned, strict=True))
    if fields.get(columns.get("attention_mask", "")) is not None:
        mask = _alike(fields, columns["attention_mask"], ids, least=0)
        if not any(mask):
            raise RowError(ONLY_PADDING, columns["attention_mask"], mask[:20])
        ids = tuple(compress(ids, mask))
        labels = None if labels is None else tuple(compress(labels, mask))
    return Conversation(record.row, input_ids=ids, labels=labels)


def _alike(fields: Fields, name: str, ids: tuple[int, ...], least: int) -> tuple[int, ...]:
    """A column with a number for each token. Raises RowError if the lengths differ."""
    value = _needed(fields, name)
    if least == 0 and isinstance(value, list):
        value = [int(item) if isinstance(item, bool) or item in (0.0, 1.0) else item for item in value]
    numbers = _numbers(value, name, least)
    if len(numbers) != len(ids):
        raise RowError(UNLIKE_LENGTHS, name, f"{len(ids)} and {len(numbers)}")
    return numbers


def _numbers(value: Any, field: str, least: int) -> tuple[int, ...]:
    whole = isinstance(value, list) and bool(value)
    if not whole or any(isinstance(item, bool) or not isinstance(item, int) or item < least for item in value):
        raise RowError(NOT_IDS, field, value)
    return tuple(value)


def _with_system(
    messages: list[Message], fields: Fields, columns: dict[str, str], default: str | None
) -> list[Message]:
    if messages and messages[0].role == "system":
        return messages
    own = as_text(fields.get(columns["system"]), columns["system"]) if "system" in columns else ""
    system = default if is_blank(own) else own
    return messages if system is None or is_blank(system) else [Message("system", system), *messages]


def _with_reasoning(messages: list[Message], thought: str) -> list[Message]:
    """Adds the reasoning column to the last answer if it has no reasoning."""
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant" or last.reasoning_content or not thought.strip():
        return messages
    return [*messages[:-1], replace(last, reasoning_content=thought)]


def _answer_turns(answer: Any, name: str, roles: Names[str, str]) -> list[Message]:
    return parse_turns(answer, name, roles) if is_turns(answer) else [Message("assistant", as_text(answer, name))]


def _tools(fields: Fields, columns: dict[str, str]) -> tuple[Tool, ...]:
    holder = columns.get("messages") or columns.get("prompt") or ""
    place = columns.get("tools", holder)
    value = fields.get(place) if "tools" in columns else held_beside(fields.get(holder), TOOLS)
    tools = parse_tools(value, place)
    check_values(tools, place)
    return tools


def _needed(fields: Fields, name: str) -> Any:
    if fields.get(name) is None:
        raise RowError(MISSING, name, "fields: " + ", ".join(map(str, fields)))
    return fields[name]


def _check(messages: list[Message], place: str, fields: Fields, columns: dict[str, str]) -> None:
    """Raises RowError for the first rule that the turns break, with the column that the fault lies in."""
    try:
        check(messages, place)
    except RowError as error:
        if error.reason in (CONTROL, BROKEN_TEXT):
            odd_columns = (
                name for name in columns.values() if isinstance(value := fields.get(name), str) and is_odd(value)
            )
            raise RowError(error.reason, next(odd_columns, place), error.found) from None
        prompt_column = columns.get("instruction") or columns.get("prompt", place)
        column = {EMPTY_TURN: prompt_column, EMPTY_ANSWER: place}.get(error.reason)
        if column is None or not isinstance(fields.get(column), str):
            raise
        raise RowError(error.reason, column, repr(fields[column])) from None


def _refuse_media(fields: Fields) -> None:
    for name, value in fields.items():
        if value and (name in MEDIA_COLUMNS or (isinstance(value, dict) and "bytes" in value and "path" in value)):
            raise RowError(MEDIA, name, value)


def _refuse_tags(messages: list[Message], place: str) -> None:
    for message in messages:
        if "<" in message.content and _MEDIA_TAG.search(message.content):
            raise RowError(MEDIA, place, message.content)
