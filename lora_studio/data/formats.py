"""Recognises the shape of a file by its content over many rows, and applies a person's mapping instead.

Shapes: lists of turns (messages, sharegpt), columns (alpaca, instruction, prompt_completion, problem), one-string
dialogues, plain text, preference pairs and good/bad marks (kto), and tokenised rows. Several may fit one file.
"""

from collections.abc import Sequence
from dataclasses import replace

from lora_studio.data import columns as names
from lora_studio.data.columns import Columns, is_turns, may_be_turns, quoted, spread
from lora_studio.data.conversion import convert
from lora_studio.data.dialogues import LEAST_SHARE, Marks, marks_of
from lora_studio.data.mapping import Format, Mapping, ReadingError
from lora_studio.data.preferences import is_mark
from lora_studio.data.problems import find_problem
from lora_studio.data.rows import Record
from lora_studio.data.turns import held_turns, role_of
from lora_studio.data.wording import in_words

__all__ = ["Format", "Mapping", "apply_mapping", "convert", "mapping_of", "recognise", "recognise_all"]

_SHAPES = (
    "Known shapes: `messages` or `conversations` with a list of turns; `instruction`, `input`, `output`; pairs such as "
    "`prompt` and `completion` or `question` and `answer`; `text`. Or say which column plays which part."
)
_OPTIONAL = {
    *("system", "tools", "history", "input", "reasoning", "title", "constraints", "examples", "note", "labels"),
}


def recognise(records: Sequence[Record], goal: str = "answers") -> Format:
    """The reading that fits the rows best for a goal: to learn from "answers", by "preference", or "any" of the two.

    Of rows marked good or bad the good answers can be learned from; compared are pairs alone.
    Raises StudioError for unknown shapes and for those that the goal can't use.
    """
    columns = Columns(spread(records))
    readings = _readings(columns)
    if goal == "any" and readings and readings[0].name == "preference":
        return readings[0]
    if goal == "preference":
        fitting = [one for one in readings if one.name in ("preference", "kto")]
        if not fitting:
            said = f" They were read so: {readings[0].words}" if readings else ""
            raise ReadingError(
                f"The rows hold no comparison.{said}",
                "Learning by comparison needs `chosen` and `rejected` beside a `prompt`, or a `label` true or false.",
            )
        return fitting[0]
    fitting = [one for one in readings if one.name != "preference"]
    if fitting:
        return fitting[0]
    if readings:
        raise _pairs_only(readings[0])
    raise ReadingError(
        f"The shape of the rows is not known. Their fields are: {quoted(columns.names, 12) or 'none'}.", _SHAPES
    )


def recognise_all(records: Sequence[Record]) -> list[Format]:
    """Every reading that fits, the likeliest first; where the rows leave it open, each is `ambiguous` with a question.

    Two columns of text whose names say nothing are offered both ways round.
    """
    columns = Columns(spread(records))
    readings = _readings(columns) or _by_order(columns)
    question = _question(readings)
    return [replace(one, ambiguous=bool(question), question=question) for one in readings]


def apply_mapping(mapping: Mapping, records: Sequence[Record], goal: str = "answers") -> Format:
    """The reading that a person gives. Raises StudioError with all that does not fit the rows or the goal."""
    columns = Columns(spread(records))
    mapping.check(columns.names)
    parts = mapping.columns()
    renamed = {"user": "prompt", "assistant": "completion"}
    shape = Format(_name_of(mapping), {renamed.get(part, part): name for part, name in parts.items()}, mapping=mapping)
    if goal == "answers" and shape.name == "preference":
        raise _pairs_only(shape)
    return in_words(replace(shape, marks=_marks(shape, columns, least=0.0)), columns)


def mapping_of(shape: Format) -> Mapping:
    """A reading as a mapping, to be corrected; a turn that several columns make is written as a template."""
    if shape.mapping:
        return shape.mapping
    renamed = {"prompt": "user", "instruction": "user", "completion": "assistant", "output": "assistant"}
    parts = dict(shape.columns)
    template = None
    if "description" in parts:
        made = [parts.pop(part) for part in ("title", "description") if part in parts]
        headed = [f"{part.capitalize()}:\n{{{parts.pop(part)}}}" for part in _SECTIONS if part in parts]
        template = "\n\n".join([*(f"{{{name}}}" for name in made), *headed])
        parts.pop("messages", None)
    elif "input" in parts:
        asked = parts.pop("instruction", None) or parts.pop("prompt")
        template = f"{{{asked}}}\n\n{{{parts.pop('input')}}}"
    known = {renamed.get(part, part): name for part, name in parts.items() if part not in ("input_ids", "labels")}
    return replace(Mapping.from_dict(known), user_template=template)


_SECTIONS = ("input", "output", "constraints", "examples", "note")


def _name_of(mapping: Mapping) -> str:
    if mapping.chosen:
        return "preference"
    if mapping.label:
        return "kto"
    return "text" if mapping.text else "dialogue" if mapping.dialogue else "mapped"


def _readings(columns: Columns) -> list[Format]:
    """All shapes that a good part of the rows fits, in the order in which they are believed."""
    tokenised = _tokenised(columns)
    if tokenised:
        return [in_words(tokenised, columns)]
    pairs, marked = _preference(columns), _marked(columns)
    compared = [shape for shape in (pairs, marked) if shape]
    found = [shape for shape in (*_problem(columns), _turns(columns), _pair(columns)) if shape]
    if marked or (pairs and not _answers_beside(columns, pairs, found)):
        found = []  # without their mark bad answers would be read as good ones
    else:
        found += _texts(columns)
    fits = {shape.name: _fit(columns, shape) for shape in [*found, *compared]}
    best = max(fits.values(), default=0.0)
    likely = [shape for shape in found if fits[shape.name] >= 0.8 * best > 0]
    likely += [shape for shape in compared if fits[shape.name] >= 0.5 * best > 0]
    return [in_words(shape, columns) for shape in likely]


def _fit(columns: Columns, shape: Format) -> float:
    needed = [name for part, name in shape.columns.items() if part not in _OPTIONAL]
    if "description" in shape.columns and "messages" in shape.columns:
        needed.remove(shape.columns["messages"])
    rows = [all(record.fields.get(name) is not None for name in needed) for record in columns.sample]
    return sum(rows) / max(len(rows), 1)


def _turns(columns: Columns) -> Format | None:
    named = columns.find(names.TURNS)
    name = named if named and any(map(may_be_turns, columns.values(named))) else None
    if name is None:
        user = columns.find(names.USER)
        earlier = columns.find(names.HISTORY) if user else None
        pair = {user, columns.find(names.ASSISTANT), earlier, *columns.compared()}
        others = [other for other in columns.names if other not in pair]
        others += [user] if user and _ends_in_answers(columns, user) else []
        name = next((other for other in others if any(map(is_turns, columns.values(other)))), None)
    if name is None:
        return None
    first = held_turns(next(value for value in columns.values(name) if may_be_turns(value)))
    openai = '"role"' in first if isinstance(first, str) else bool(first[0].keys() & {"role", "parts"})
    parts = {"messages": name, "system": columns.find(names.SYSTEM), "tools": columns.find(names.TOOLS)}
    return Format("messages" if openai else "sharegpt", _present(parts))


def _problem(columns: Columns) -> list[Format]:
    """Problems in fields, with the turns that some rows have beside them. All rows with turns: those are enough."""
    found = find_problem(columns)
    turns = columns.find(names.TURNS)
    if found is None or (turns and columns.share(turns) == 1):
        return []
    with_turns = turns if turns and any(map(may_be_turns, columns.values(turns))) else None
    return [Format("problem", _present({**found, "messages": with_turns, "system": columns.find(names.SYSTEM)}))]


def _pair(columns: Columns) -> Format | None:
    """A column that asks and one that answers; the second may bear any name when it is the only other text."""
    reasoning = columns.find(names.REASONING)
    helpers = {columns.find(names.SYSTEM), columns.find(names.HISTORY), columns.find(names.TOOLS), reasoning}
    instruction = columns.find(("instruction",))
    user = instruction or columns.find(names.USER)
    answer = columns.find(names.ASSISTANT, without=[user] if user else [])
    if user is None and answer is None:
        return None
    if user is None or answer is None:
        known = user or answer
        rest = [name for name in columns.texts() if name not in helpers and name != known]
        if len(rest) != 1 or rest[0] in columns.compared():
            return None
        user, answer = user or rest[0], answer or rest[0]
    extra = columns.find(names.EXTRA, without=[user, answer])
    parts = {"system": columns.find(names.SYSTEM), "history": columns.find(names.HISTORY), "reasoning": reasoning}
    if instruction:
        shape = {"instruction": user, "input": extra, "output": answer, **parts}
        return Format("alpaca" if extra else "instruction", _present(shape))
    shape = {"prompt": user, "input": extra, "completion": answer, **parts, "tools": columns.find(names.TOOLS)}
    return Format("prompt_completion", _present(shape))


def _texts(columns: Columns) -> list[Format]:
    """Plain text, and before it the dialogue that most texts are written as."""
    name = columns.find(names.TEXT)
    if name is None and len(columns.texts()) == len(columns.names) == 1:
        name = columns.names[0]
    if name is None:
        return []
    marks = marks_of(columns.values_as_text(name))
    dialogue = Format("dialogue", _present({"dialogue": name, "system": columns.find(names.SYSTEM)}), marks=marks)
    return [*([dialogue] if marks else []), Format("text", {"text": name})]


def _tokenised(columns: Columns) -> Format | None:
    ids = columns.find(("input_ids",))
    if ids and any(isinstance(value, list) and value and isinstance(value[0], int) for value in columns.values(ids)):
        return Format("tokenised", _present({"input_ids": ids, "labels": columns.find(("labels",), without=[ids])}))
    return None


def _preference(columns: Columns) -> Format | None:
    pair = columns.compared()
    if not pair:
        return None
    turns = _turns(columns)
    parts: dict[str, str | None] = {"chosen": pair[0], "rejected": pair[1], "system": columns.find(names.SYSTEM)}
    parts["tools"] = columns.find(names.TOOLS)
    user = columns.find(names.USER, without=pair)
    if turns and turns.columns["messages"] not in pair and not (user and _is_prompt_of(columns, user)):
        parts["messages"] = turns.columns["messages"]
    elif user:
        instruction = columns.find(("instruction",))
        extra = columns.find(names.EXTRA, without=[user, *pair])
        parts |= {"instruction" if instruction else "prompt": instruction or user, "input": extra}
        parts["history"] = columns.find(names.HISTORY)
    shape = Format("preference", _present(parts))
    return replace(shape, marks=_marks(shape, columns))


def _marks(shape: Format, columns: Columns, least: float = LEAST_SHARE) -> Marks | None:
    """How dialogues in one text are marked: those of a column, or those that both sides of a comparison hold."""
    held = [shape.columns[part] for part in ("dialogue", "chosen", "rejected") if part in shape.columns]
    if "chosen" in shape.columns and shape.columns.keys() & {"prompt", "instruction", "messages"}:
        return None
    return marks_of([text for name in held for text in columns.values_as_text(name)], least)


def _is_prompt_of(columns: Columns, user: str) -> bool:
    """Whether a column holds a prompt, by itself or as turns, in most rows."""
    return columns.share(user) >= 0.8


def _marked(columns: Columns) -> Format | None:
    """Answers, each with a mark in most rows; a row whose mark is none is a bad row."""
    label = columns.find(names.LABEL)
    marks = columns.values(label) if label else []
    if not label or not marks or sum(map(is_mark, marks)) < 0.8 * len(marks):
        return None
    beside = _turns(columns) or _pair(columns)
    if beside is None or label in beside.columns.values():
        return None
    return Format("kto", {**beside.columns, "label": label})


def _answers_beside(columns: Columns, compared: Format, found: list[Format]) -> bool:
    """Whether the rows hold an answer to learn from beside those that are compared."""
    if not found:
        return False
    shape = found[0]
    if "messages" not in shape.columns:
        beside = shape.columns.get("output") or shape.columns.get("completion")
        return beside not in (compared.columns["chosen"], compared.columns["rejected"])
    turns = shape.columns["messages"]
    return turns != compared.columns["chosen"] and _ends_in_answers(columns, turns)


def _ends_in_answers(columns: Columns, name: str) -> bool:
    """Whether most lists of turns in a column end with the assistant's."""
    turns = [held_turns(value) for value in columns.values(name) if is_turns(value)]
    ends = [role_of(turn[-1].get("role", turn[-1].get("from"))) for turn in turns if isinstance(turn[-1], dict)]
    return 2 * ends.count("assistant") > len(turns)


def _by_order(columns: Columns) -> list[Format]:
    """Two columns of text, of which nothing but their order tells which asks and which answers."""
    texts = columns.texts()
    if len(texts) != 2 or len(columns.names) > 3:
        return []
    pairs = (texts, texts[::-1])
    return [in_words(Format("prompt_completion", {"prompt": a, "completion": b}), columns) for a, b in pairs]


def _question(readings: list[Format]) -> str:
    """What to ask where readings mean different things; turns and a pair of columns of one row mean the same."""
    kinds = {shape.name for shape in readings}
    if "dialogue" in kinds and "text" in kinds:
        return "The texts look like conversations: learn the answers in them, or the text as it stands?"
    if "preference" in kinds and len(kinds) > 1:
        chosen = next(shape.columns["chosen"] for shape in readings if shape.name == "preference")
        answer = readings[0].columns.get("output") or readings[0].columns.get("completion")
        told = f"`{answer}`" if answer else "the answers"
        return f"The rows hold answers and comparisons: learn from {told}, or compare `{chosen}` with the worse answer?"
    if len(readings) == 2 and kinds == {"prompt_completion"}:
        return "The columns' names do not say which is the user's turn and which the assistant's: which is it?"
    return ""


def _present(parts: dict[str, str | None]) -> dict[str, str]:
    return {part: name for part, name in parts.items() if name is not None}


def _pairs_only(shape: Format) -> ReadingError:
    chosen, rejected = shape.columns["chosen"], shape.columns["rejected"]
    asked = shape.columns.keys() & {"messages", "prompt", "instruction", "user"}
    part = "the assistant's part" if asked else "the conversation (`messages`)"
    return ReadingError(
        f"These are preference pairs (`{chosen}` and `{rejected}`), for learning by comparison (DPO), not example.",
        "Set training.method to dpo. Or, to learn from the better answers alone, leave "
        f"`{rejected}` out and map `{chosen}` to {part}.",
    )


def check_goal(shape: Format, goal: str) -> None:
    """Raises StudioError for a reading that training can't use for the goal."""
    if shape.name == "kto" and goal == "preference":
        raise ReadingError(
            f"The rows are marked good or bad (`{shape.columns['label']}`), which is for KTO; DPO compares two answers "
            "to one prompt.",
            "Set training.method to sft, to learn from the answers marked good. Or give `chosen` and `rejected` beside "
            "a `prompt`.",
        )
    if goal == "preference" and shape.name != "preference":
        raise ReadingError(
            f"DPO compares two answers to one prompt, and the rows are read as something else: {shape.words}",
            "Say in data.mapping which columns are `chosen` and `rejected`, or set training.method to sft.",
        )
