"""Describes a format in words, and finds what columns leave open: the answer, options, single messages as rows."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lora_studio.data import mapping as names
from lora_studio.data.convert import lacks_solution
from lora_studio.data.mapping import ColumnSample, Format, Mapping, ReadingError, places, quoted
from lora_studio.data.turns import held_turns, role_of

_SHAPES = (
    "Known formats: `messages` or `conversations` with a list of turns; `instruction`, `input`, `output`; pairs "
    "such as `prompt` and `completion` or `question` and `answer`; `text`."
)
BY_MAPPING = "set the column mapping with data.mapping (--mapping in the terminal, Fix column mapping on the page)"
_OPTION = re.compile(r"(?:(?:option|choice|answer|opt|op|sol|solution|ending|candidate|alternative)_?)?([a-j]|\d)")
_LISTED = ("choices", "options", "endings", "candidates", "alternatives", "answers", "mc_choices")
_MIN_SHARE = 0.8
_LETTERS = "abcdefghij"


def second_texts(columns: ColumnSample, text: str) -> list[str]:
    """Other columns with content beside a text column, titles excepted."""
    helpers = [columns.find(aliases) for aliases in (names.SYSTEM, names.REASONING, names.HISTORY, names.TOOLS)]
    titles = columns.find_all(names.TITLES)
    filled = [name for name in columns.contents() if 2 * columns.share(name) >= columns.share(text)]
    return [name for name in filled if name not in (text, *helpers, *titles)]


def single_messages(columns: ColumnSample) -> list[str]:
    """The columns which show that each row is a single message; [] for rows that are whole conversations."""
    role = columns.find(("role", "from", "speaker", "sender"))
    spoken = columns.values_as_text(role) if role else []
    roles = [name for name in map(role_of, spoken) if name]
    parent = columns.find(names.THREADS)
    speaks = bool(spoken) and len(roles) >= _MIN_SHARE * len(spoken) and (parent or len(set(roles)) > 1)
    linked = columns.find(("parent_id",)) and columns.find(("message_id", "message_tree_id"))
    return [name for name in (role, parent) if name] if speaks or linked else []


def no_reading(columns: ColumnSample, by_order: Sequence[Format]) -> ReadingError:
    """Why the rows can't be read without a person's word; `by_order` are the readings that a person may choose from."""
    single = single_messages(columns)
    if single:
        return ReadingError(
            f"Each row is a single message ({quoted(single)}), not a whole conversation.",
            "Put all messages of a conversation into one row: `messages` with a list of turns with role and content.",
        )
    if lacks_solution(columns):
        return ReadingError(
            f"The rows contain problems but no answers. Columns: {quoted(columns.names, 12)}.",
            f"Add a column with answers, such as `solution`. Or {BY_MAPPING}.",
        )
    if by_order:
        texts = list(dict.fromkeys(name for reading in by_order for name in reading.columns.values()))
        first = by_order[0].columns
        example = f'{{"user": "{first.get("prompt")}", "assistant": "{first.get("completion")}"}}'
        texts_alone = [reading.columns["text"] for reading in by_order if reading.name == "text"]
        alone = "".join(f', or {{"text": "{name}"}} to train on that text alone' for name in texts_alone)
        return ReadingError(
            f"The format of the rows is not known: {quoted(texts)} contain text, but their names do not tell prompt "
            "from answer.",
            f"To resolve this, {BY_MAPPING}, for example {example}{alone}.",
        )
    return ReadingError(
        f"The format of the rows is not known. Columns: {quoted(columns.names, 12) or 'none'}.",
        f"{_SHAPES} Or {BY_MAPPING}.",
    )


def sparse_answers(columns: ColumnSample, shape: Format) -> str:
    """A note on columns named like answers that are filled in fewer rows than the answer column."""
    used = answer_of(shape)
    aside = [name for name in columns.find_all(names.ASSISTANT) if name not in shape.columns.values()]
    shares = {name: columns.share(name) for name in aside}
    fewer = [name for name in aside if used and 0 < shares[name] < columns.share(used)]
    return "".join(f" {quoted([name])}, filled in {shares[name]:.0%} of the rows, is not the answer." for name in fewer)


def answer_of(shape: Format) -> str | None:
    """The answer column, or None."""
    return shape.columns.get("completion") or shape.columns.get("output")


def with_options(columns: ColumnSample, shape: Format) -> Format | None:
    """The format that adds multiple-choice options to the question; None if the answers name no option."""
    answer, question = answer_of(shape), shape.columns.get("prompt") or shape.columns.get("instruction")
    options = _option_columns(columns, shape, columns.values(answer)) if answer else {}
    if not (answer and question and options) or any(
        mark in name for name in (question, *options.values()) for mark in "{}"
    ):
        return None
    lines = [f"{key}. {{{name}}}" for key, name in options.items()]
    extra = shape.columns.get("input")
    template = "\n\n".join([f"{{{question}}}", *([f"{{{extra}}}"] if extra else []), "\n".join(lines)])
    helpers = {
        part: name for part, name in shape.columns.items() if part in ("system", "history", "reasoning", "tools")
    }
    mapping = Mapping.from_dict({"user_template": template, "assistant": answer, **helpers})
    return Format("mapped", {"completion": answer, **helpers}, mapping=mapping)


def _option_columns(columns: ColumnSample, shape: Format, answers: Sequence[Any]) -> dict[str, str]:
    """Unused columns that the answers refer to, keyed by letter, number or name."""
    aside = [name for name in columns.names if name not in shape.columns.values() and columns.values(name)]
    answer_keys = [_key(value) for value in answers]
    lettered = {mark[1]: name for name in aside if (mark := _OPTION.fullmatch(columns.plain(name)))}
    by_name = {columns.plain(name): name for name in aside if columns.plain(name) in answer_keys}
    counted = dict(enumerate(lettered.values(), 0 if "0" in answer_keys else 1))
    numbered = {str(place): name for place, name in counted.items()}
    for keys in (numbered, lettered, by_name) if "0" in answer_keys else (lettered, numbered, by_name):
        if len(keys) > 1 and answer_keys and sum(key in keys for key in answer_keys) >= _MIN_SHARE * len(answer_keys):
            upper = any(str(value).strip("(). ").isupper() for value in answers)
            return {key.upper() if upper and keys is lettered else key: name for key, name in keys.items()}
    return {}


def _key(value: Any) -> str:
    return str(value).strip().rstrip(".)").lstrip("(").lower()


def pointed_list(columns: ColumnSample, shape: Format) -> str | None:
    """An unused column with a list of options that the answers index by number or letter."""
    answer, listed = answer_of(shape), columns.find(_LISTED, without=shape.columns.values())
    if not answer or not listed:
        return None
    rows = [record.fields for record in columns.sample]
    rows = [row for row in rows if row.get(answer) is not None and len(_options(row.get(listed))) > 1]
    points = [_points(_key(row[answer]), _options(row[listed])) for row in rows]
    return listed if points and sum(points) >= _MIN_SHARE * len(points) else None


def _options(value: Any) -> list[Any]:
    """The options that a cell lists, also as a struct of texts and labels."""
    value = value.get("text", []) if isinstance(value, dict) else held_turns(value)
    return value if isinstance(value, list) else []


def _points(key: str, options: Sequence[Any]) -> bool:
    if any(_key(option) == key for option in options):
        return False
    letter = len(key) == 1 and key in _LETTERS[: len(options)]
    return letter or (key.isdigit() and int(key) <= len(options))


_EXTRAS = {
    "system": "the system prompt",
    "history": "earlier turns",
    "tools": "the available tools",
    "reasoning": "the reasoning before the answer",
    "label": "the label (good or bad)",
}
_SECTIONS = ("title", "description", "input", "output", "constraints", "examples", "note")
_THOUGHT = "<think>"


def describe_format(shape: Format, columns: ColumnSample) -> Format:
    """The format with its description, which names unused columns too."""
    part = {key: quoted([name]) for key, name in shape.columns.items()}
    words = _main(shape, part)
    extras = _EXTRAS if "messages" in part or "dialogue" not in part else ("system", "label")
    words += "".join(f"; {part[key]} is {_EXTRAS[key]}" for key in extras if key in part)
    mapping = shape.mapping
    used = {*shape.columns.values(), *places(mapping.user_template or "" if mapping else "")}
    if mapping and mapping.system_prompt:
        words += "; a system prompt is added to rows without one"
    aside = quoted(name for name in columns.names if name not in used)
    words += "." + (f" Ignored columns: {aside}." if aside else "")
    answers = shape.columns.get("completion") or shape.columns.get("output")
    if answers and any(isinstance(value, str) and _THOUGHT in value for value in columns.values(answers)[:50]):
        words += f" Some answers contain reasoning in {_THOUGHT} tags, which is trained too."
    turns = shape.columns.get("messages")
    if turns and any(isinstance(value, str) and value.lstrip("[ ")[:2] == "{'" for value in columns.values(turns)[:50]):
        words += " The turns are written as Python lists."
    return replace(shape, words=words)


def _main(shape: Format, part: dict[str, str]) -> str:
    if "input_ids" in part:
        learned = part.get("labels") or part.get("loss_mask")
        labels_note = f", of which {learned} is trained" if learned else ", all of which are trained"
        padding = f"; {part['attention_mask']} marks padding, which is removed" if "attention_mask" in part else ""
        return f"{part['input_ids']} holds tokens{labels_note}{padding}"
    if "text" in part:
        return f"{part['text']} is plain text and is trained as it is"
    if "dialogue" in part:
        how = shape.marks.words() if shape.marks else "but no marks tell who speaks"
        return f"{part['dialogue']} is a conversation in one text: {how}"
    if "chosen" in part:
        prompt = _user(shape, part) or "The common beginning of both"
        words = f"{prompt} is the prompt, {part['chosen']} the chosen answer, {part['rejected']} the rejected answer"
        return f"{words}; both are written as one text: {shape.marks.words()}" if shape.marks else words
    question = _user(shape, part)
    if "description" in part:
        answer = f"{question} form the user turn, {part['completion']} the assistant turn"
        turns = f"; rows with {part['messages']} take their turns from there" if "messages" in part else ""
        return answer + turns
    if "messages" in part and "completion" not in part:
        how = "the speaker and the text" if shape.name == "sharegpt" else "a role and content"
        return f"{part['messages']} contains the conversation, a list of turns, each with {how}"
    answered = part.get("output") if "instruction" in part else part["completion"]
    if shape.marks:
        return f"{question} and {answered} together form a conversation written as text: {shape.marks.words()}"
    return f"{question} is the user turn, {answered} the assistant turn"


def _user(shape: Format, part: dict[str, str]) -> str:
    """The columns of the user's turn, described."""
    template = shape.mapping.user_template if shape.mapping else None
    if template:
        return "A template of " + quoted(places(template))
    if "description" in part:
        return ", ".join(part[name] for name in _SECTIONS if name in part)
    if "messages" in part:
        return part["messages"]
    question = part.get("instruction") or part.get("prompt") or ""
    return f"{question} followed by {part['input']}" if question and "input" in part else question
