"""Detects the format of a file by its content over many rows, or applies a mapping by hand.

Formats: lists of turns (messages, sharegpt), columns (alpaca, instruction, prompt_completion, problem), dialogues in
one text, plain text, preference pairs, good/bad labels (kto) and tokenised rows. Several may fit one file.
"""

from collections.abc import Sequence
from dataclasses import replace

from lora_studio.data import mapping as names
from lora_studio.data.convert import STATEMENT, find_problem, is_mark
from lora_studio.data.dialogues import MIN_SHARE, Marks, marks_of
from lora_studio.data.format_questions import (
    answer_of,
    describe_format,
    no_reading,
    pointed_list,
    second_texts,
    single_messages,
    sparse_answers,
    with_options,
)
from lora_studio.data.mapping import (
    ColumnSample,
    Format,
    Mapping,
    MappingValues,
    ReadingError,
    is_turns,
    may_be_turns,
    places,
    quoted,
    spread,
)
from lora_studio.data.messages import Record
from lora_studio.data.turns import held_turns, role_of

_SPARSE = 0.5
_OFFERED = 4
_OPTIONAL = {
    *("system", "tools", "history", "input", "reasoning", "title", "constraints", "examples", "note"),
    *("labels", "attention_mask", "loss_mask"),
}
_OF_TOKENS = ("input_ids", "labels", "attention_mask", "loss_mask")
COMPARING = {"preference": "preference", "unpaired": "kto"}
"""The goals that compare good with bad answers, and the format that is made for each."""


def read_as(records: Sequence[Record], mapping: MappingValues | None, goal: str = "answers") -> Format:
    """The format set by a mapping, or the detected one without a mapping. Raises StudioError."""
    return apply_mapping(Mapping.from_dict(mapping), records, goal) if mapping else detect_format(records, goal)


def detect_format(records: Sequence[Record], goal: str = "answers") -> Format:
    """The reading that fits the rows best for a goal.

    Goals: to learn from "answers", of which labelled ones have to be good; to compare pairs ("preference"); to learn
    from good and bad answers ("unpaired"), which are labelled or the two of a pair; or "any" of them, as the rows are.
    Raises StudioError for unknown shapes and for those that the goal can't use.
    """
    columns = ColumnSample(spread(records))
    readings = _readings(columns)
    if goal == "any" and readings and readings[0].name == "preference":
        return readings[0]
    if goal in COMPARING:
        fitting = [reading for reading in readings if reading.name in ("preference", "kto")]
        fitting = [*(reading for reading in fitting if reading.name == COMPARING[goal]), *fitting]
        if not fitting:
            best_reading = f" They were interpreted as follows: {readings[0].words}" if readings else ""
            raise ReadingError(
                f"The rows contain no preference data.{best_reading}",
                "Preference training needs `chosen` and `rejected` with a `prompt`, or a `label` that is true or "
                "false.",
            )
        return fitting[0]
    fitting = _with_question([reading for reading in readings if reading.name != "preference"])
    if fitting:
        return fitting[0]
    if readings:
        raise _pairs_only(readings[0])
    raise no_reading(columns, _by_order(columns))


def detect_formats(records: Sequence[Record]) -> list[Format]:
    """All formats that fit, the likeliest first; `ambiguous` with a question if several are plausible.

    Columns of text whose names say nothing are offered in each way.
    """
    columns = ColumnSample(spread(records))
    return _with_question(_readings(columns) or _by_order(columns))


def _with_question(readings: Sequence[Format]) -> list[Format]:
    question = _question(readings)
    return [replace(reading, ambiguous=bool(question), question=question) for reading in readings]


def apply_mapping(mapping: Mapping, records: Sequence[Record], goal: str = "answers") -> Format:
    """The reading that a person gives. Raises StudioError with all that does not fit the rows or the goal."""
    columns = ColumnSample(spread(records))
    mapping.check(columns.names)
    parts = mapping.columns()
    renamed = {"user": "prompt", "assistant": "completion"}
    shape = Format(_name_of(mapping), {renamed.get(part, part): name for part, name in parts.items()}, mapping=mapping)
    if goal == "answers" and shape.name == "preference":
        raise _pairs_only(shape)
    return describe_format(replace(shape, marks=_marks(shape, columns, least=0.0)), columns)


def mapping_of(shape: Format) -> Mapping:
    """A reading as a mapping, to be corrected; a turn that several columns make is written as a template."""
    if shape.mapping:
        return shape.mapping
    renamed = {"prompt": "user", "instruction": "user", "completion": "assistant", "output": "assistant"}
    parts = dict(shape.columns)
    template = None
    if "description" in parts:
        leading = [parts.pop(part) for part in ("title", "description") if part in parts]
        headed = [f"{part.capitalize()}:\n{{{parts.pop(part)}}}" for part in _SECTIONS if part in parts]
        template = "\n\n".join([*(f"{{{name}}}" for name in leading), *headed])
        parts.pop("messages", None)
    elif "input" in parts:
        question = parts.pop("instruction", None) or parts.pop("prompt")
        template = f"{{{question}}}\n\n{{{parts.pop('input')}}}"
    columns = {renamed.get(part, part): name for part, name in parts.items() if part not in _OF_TOKENS}
    return replace(Mapping.from_dict(columns), user_template=template)


_SECTIONS = ("input", "output", "constraints", "examples", "note")


def _name_of(mapping: Mapping) -> str:
    if mapping.chosen:
        return "preference"
    if mapping.label:
        return "kto"
    return "text" if mapping.text else "dialogue" if mapping.dialogue else "mapped"


def _readings(columns: ColumnSample) -> list[Format]:
    """The formats that fit most rows, by likelihood."""
    tokenised = _tokenised(columns)
    if tokenised:
        return [describe_format(tokenised, columns)]
    pairs, marked = _preference(columns), _marked(columns)
    compared = [shape for shape in (pairs, marked) if shape]
    candidates = [shape for shape in (*_problem(columns), _turns(columns), *_pairs(columns)) if shape]
    if marked or (pairs and not _answers_beside(columns, pairs, candidates)):
        candidates = []  # without their mark bad answers would be read as good ones
    else:
        candidates += _texts(columns, alone=not candidates)
    best = max((_fit(columns, shape) for shape in [*candidates, *compared]), default=0.0)
    likely = [shape for shape in candidates if _fit(columns, shape) >= 0.8 * best > 0]
    likely += [shape for shape in compared if _fit(columns, shape) >= 0.5 * best > 0]
    likely = [reading for shape in likely for reading in (with_options(columns, shape), shape) if reading]
    likely = [replace(shape, marks=shape.marks or _marks(shape, columns)) for shape in likely]
    return [_with_notes(describe_format(shape, columns), columns) for shape in likely]


def _with_notes(shape: Format, columns: ColumnSample) -> Format:
    """The format with a note on unused columns that the answers may need."""
    words, listed = shape.words + sparse_answers(columns, shape), pointed_list(columns, shape)
    if listed:
        words += f" The answers refer to {quoted([listed])}, which is ignored, so their meaning is not learned."
    return replace(shape, words=words)


def _fit(columns: ColumnSample, shape: Format) -> float:
    needed = [name for part, name in shape.columns.items() if part not in _OPTIONAL]
    if "description" in shape.columns and "messages" in shape.columns:
        needed.remove(shape.columns["messages"])
    rows = [all(record.fields.get(name) is not None for name in needed) for record in columns.sample]
    return sum(rows) / max(len(rows), 1)


def _turns(columns: ColumnSample) -> Format | None:
    by_name = columns.find(names.TURNS)
    name = by_name if by_name and any(map(may_be_turns, columns.values(by_name))) else None
    if name is None:
        user = columns.find(names.USER)
        earlier = columns.find(names.HISTORY) if user else None
        pair = {user, columns.find(names.ASSISTANT), earlier, *columns.compared()}
        candidates = [other for other in columns.names if other not in pair]
        candidates += [user] if user and _ends_in_answers(columns, user) else []
        name = next((other for other in candidates if any(map(is_turns, columns.values(other)))), None)
    if name is None:
        return None
    first = held_turns(next(value for value in columns.values(name) if may_be_turns(value)))
    if isinstance(first, str):
        openai = any(mark in first for mark in ('"role"', "'role'"))
    else:
        openai = bool(first[0].keys() & {"role", "parts"})
    parts = {"messages": name, "system": columns.find(names.SYSTEM), "tools": columns.find(names.TOOLS)}
    return Format("messages" if openai else "sharegpt", _present(parts))


def _problem(columns: ColumnSample) -> list[Format]:
    """Problems in columns, with turns that only some rows have; if all rows have turns, []."""
    parts = find_problem(columns)
    turns = columns.find(names.TURNS)
    if parts is None or (turns and columns.share(turns) == 1):
        return []
    with_turns = turns if turns and any(map(may_be_turns, columns.values(turns))) else None
    return [Format("problem", _present({**parts, "messages": with_turns, "system": columns.find(names.SYSTEM)}))]


def _pairs(columns: ColumnSample) -> list[Format]:
    """Formats of a question and an answer column; one for each plausible answer column.

    The second may bear any name where it is the only other text that says something of its own.
    """
    instruction = columns.find(("instruction",))
    user = instruction or columns.find(names.USER)
    answers = _answers(columns, user)
    if user and not answers and columns.plain(user) == "source":
        user = None  # a question only beside a `target`; otherwise the row's origin
    if user is None and not answers:
        return []
    if user is None or not answers:
        remaining = [] if single_messages(columns) else _others(columns, user, *answers)
        remaining = [name for name in remaining if user or not columns.is_class(name)]
        if len(remaining) != 1 or remaining[0] in columns.compared():
            return []
        user, answers = user or remaining[0], answers or remaining
    return [_pair(columns, user, answer, user == instruction) for answer in answers]


def _answers(columns: ColumnSample, user: str | None) -> list[str]:
    """The columns that may be the answer, the likeliest first.

    They are named so; where those are sparse and one other text is filled, it is that.
    """
    by_name = columns.find_all(names.ASSISTANT, without=[user] if user else [])
    able = [name for name in by_name if columns.answers(name)]
    by_name = able if able or columns.compared() else by_name
    shares = {name: columns.share(name) for name in by_name}
    if by_name and user and shares[by_name[0]] < _SPARSE:
        filled = [name for name in _others(columns, user, *by_name) if columns.share(name) >= 2 * shares[by_name[0]]]
        if len(filled) == 1:
            return filled
    like = [name for name in by_name[1:] if shares[name] >= _SPARSE * shares[by_name[0]] and name in columns.contents()]
    return [*by_name[:1], *(name for name in like if name not in (columns.find(names.EXTRA), *columns.compared()))]


def _others(columns: ColumnSample, *excluded: str | None) -> list[str]:
    """Other text columns that may be a question or an answer."""
    helpers = [columns.find(aliases) for aliases in (names.SYSTEM, names.HISTORY, names.TOOLS, names.REASONING)]
    free = [name for name in columns.contents() if name not in (*excluded, *helpers)]
    return [name for name in free if not columns.is_description(name)]


def _pair(columns: ColumnSample, user: str, answer: str, instruction: bool) -> Format:
    reasoning = columns.find(names.REASONING, without=[answer])
    extra = columns.find(names.EXTRA, without=[user, answer])
    if extra is None:
        passages = columns.find_all(names.PASSAGES, without=[user, answer])
        extra = next((name for name in passages if name in columns.contents()), None)
    if extra is None and columns.is_constant(user):
        extra = _subject_column(columns, user, answer)
    parts = {"system": columns.find(names.SYSTEM), "history": columns.find(names.HISTORY), "reasoning": reasoning}
    if instruction:
        shape = {"instruction": user, "input": extra, "output": answer, **parts}
        return Format("alpaca" if extra else "instruction", _present(shape))
    shape = {"prompt": user, "input": extra, "completion": answer, **parts, "tools": columns.find(names.TOOLS)}
    return Format("prompt_completion", _present(shape))


def _subject_column(columns: ColumnSample, user: str, answer: str) -> str | None:
    """The column that a constant question refers to: one named like a question, or the only other text."""
    answers = {*columns.find_all(names.ASSISTANT), *columns.compared()}
    free = [name for name in _others(columns, user, answer) if name not in answers and not columns.is_class(name)]
    by_name = [name for name in columns.find_all(names.USER) if name in free]
    return next(iter(by_name), free[0] if len(free) == 1 else None)


def _texts(columns: ColumnSample, alone: bool) -> list[Format]:
    """Plain text, and before it the dialogue that most texts are written as; a text with a title may answer to that.

    `alone`: a column of any name is plain text where no other says anything of its own.
    """
    name = columns.find(names.TEXT) or (_only_text(columns) if alone else None)
    if name is None or single_messages(columns) or second_texts(columns, name):
        return []
    marks = marks_of(columns.values_as_text(name))
    dialogue = Format("dialogue", _present({"dialogue": name, "system": columns.find(names.SYSTEM)}), marks=marks)
    title = columns.find(names.TITLES, without=[name]) if alone and not marks else None
    pair = Format("prompt_completion", {"prompt": title or "", "completion": name})
    return [*([dialogue] if marks else []), Format("text", {"text": name}), *([pair] if title else [])]


def _only_text(columns: ColumnSample) -> str | None:
    """The only column with content, unless it is a question without an answer."""
    texts = columns.contents()
    remaining = [name for name in columns.names if name not in texts]
    idle = all(columns.is_constant(name) or columns.is_about_rows(name) for name in remaining)
    asks = bool(remaining) and bool(texts) and texts[0] in columns.find_all((*names.USER, *STATEMENT))
    return texts[0] if len(texts) == 1 and idle and not asks else None


def _tokenised(columns: ColumnSample) -> Format | None:
    ids = columns.find(("input_ids",))
    if ids and any(isinstance(value, list) and value and isinstance(value[0], int) for value in columns.values(ids)):
        labels = columns.find(("labels",), without=[ids])
        parts = {"input_ids": ids, "labels": labels, "attention_mask": columns.find(("attention_mask",))}
        return Format("tokenised", _present({**parts, "loss_mask": None if labels else columns.find(names.LOSS_MASK)}))
    return None


def _preference(columns: ColumnSample) -> Format | None:
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
    return Format("preference", _present(parts))


def _marks(shape: Format, columns: ColumnSample, least: float = MIN_SHARE) -> Marks | None:
    """The turn marks of a dialogue column, or of both sides of a comparison; None without marks.

    A prompt and its answers in columns of their own may be such a text as well, rendered by a chat template.
    """
    parts = shape.columns
    prompt_column = parts.get("instruction") or parts.get("prompt")
    answers = [parts[part] for part in ("chosen", "rejected", "output", "completion") if part in parts]
    if prompt_column and answers and "input" not in parts:
        rows = [
            (record.fields.get(prompt_column), record.fields.get(name)) for record in columns.sample for name in answers
        ]
        pairs = [f"{prompt}{answer}" for prompt, answer in rows if isinstance(prompt, str) and isinstance(answer, str)]
        return marks_of(pairs, rendered=True) if pairs else None
    text_columns = [parts[part] for part in ("dialogue", "chosen", "rejected") if part in parts]
    if "chosen" in parts and parts.keys() & {"prompt", "instruction", "messages"}:
        return None
    return (
        marks_of([text for name in text_columns for text in columns.values_as_text(name)], least)
        if text_columns
        else None
    )


def _is_prompt_of(columns: ColumnSample, user: str) -> bool:
    """Whether a column holds a prompt, by itself or as turns, in most rows."""
    return columns.share(user) >= 0.8


def _marked(columns: ColumnSample) -> Format | None:
    """KTO data: answers with a good/bad label in most rows; a row without a valid label is bad."""
    label = columns.find(names.LABEL)
    marks = columns.values(label) if label else []
    if not label or not marks or sum(map(is_mark, marks)) < 0.8 * len(marks):
        return None
    answers = _turns(columns) or next(iter(_pairs(columns)), None)
    if answers is None or label in answers.columns.values():
        return None
    return Format("kto", {**answers.columns, "label": label})


def _answers_beside(columns: ColumnSample, compared: Format, candidates: list[Format]) -> bool:
    """Whether the rows have an answer column besides the compared ones."""
    if not candidates:
        return False
    shape = candidates[0]
    if "messages" not in shape.columns:
        answer_column = shape.columns.get("output") or shape.columns.get("completion")
        return answer_column not in (compared.columns["chosen"], compared.columns["rejected"])
    turns = shape.columns["messages"]
    return turns != compared.columns["chosen"] and _ends_in_answers(columns, turns)


def _ends_in_answers(columns: ColumnSample, name: str) -> bool:
    """Whether most lists of turns in a column end with the assistant's."""
    turns = [held_turns(value) for value in columns.values(name) if is_turns(value)]
    ends = [role_of(turn[-1].get("role", turn[-1].get("from"))) for turn in turns if isinstance(turn[-1], dict)]
    return 2 * ends.count("assistant") > len(turns)


def _by_order(columns: ColumnSample) -> list[Format]:
    """Candidate formats for text columns with unknown names, by column order."""
    text = columns.find(names.TEXT)
    candidates = second_texts(columns, text) if text else []
    texts = [name for name in columns.names if name == text or name in candidates] if text else _others(columns)
    if single_messages(columns) or len(texts) < 2 or (not text and (len(texts) > 2 or len(columns.names) > 3)):
        return []
    pairs = [texts, texts[::-1]] if len(texts) == 2 else [[text, other] for other in candidates[:_OFFERED] if text]
    shapes = [Format("prompt_completion", {"prompt": prompt, "completion": completion}) for prompt, completion in pairs]
    shapes += [Format("text", {"text": text})] if text else []
    return [describe_format(shape, columns) for shape in shapes]


def _question(readings: Sequence[Format]) -> str:
    """The question that decides between formats; "" if they mean the same."""
    kinds = {shape.name for shape in readings}
    if "dialogue" in kinds and "text" in kinds:
        return "The texts look like conversations. Train on the answers in them, or on the whole text?"
    if "preference" in kinds and len(kinds) > 1:
        chosen = next(shape.columns["chosen"] for shape in readings if shape.name == "preference")
        answer = readings[0].columns.get("output") or readings[0].columns.get("completion")
        answer_text = f"`{answer}`" if answer else "the answers"
        return (
            f"The rows contain answers and preference pairs. Train on {answer_text}, or compare `{chosen}` with the "
            "rejected answer?"
        )
    if "mapped" in kinds and len(kinds) > 1:
        template = next(shape.mapping.user_template or "" for shape in readings if shape.mapping)
        return (
            f"The answers refer to other columns ({quoted(places(template)[1:], 4)}). Add these to the prompt as "
            "options, or ignore them?"
        )
    if "prompt_completion" in kinds and "text" in kinds:
        return "There are two text columns. Is one the answer to the other, or is the text trained alone?"
    answers = list(dict.fromkeys(filter(None, map(answer_of, readings))))
    prompts = {shape.columns.get("prompt") or shape.columns.get("instruction") for shape in readings}
    if len(answers) > 1 and len(prompts) == 1:
        return f"Several columns can be the answer ({quoted(answers)}). Which one should be trained?"
    if len(answers) > 1 and kinds == {"prompt_completion"}:
        return "The column names do not tell the user turn from the assistant turn. Which is which?"
    pointing = [shape.words for shape in readings if " The answers refer to " in shape.words]
    return (
        "The answers are numbers or letters of options that are not part of the prompt. Is that intended?"
        if pointing
        else ""
    )


def _present(parts: dict[str, str | None]) -> dict[str, str]:
    return {part: name for part, name in parts.items() if name is not None}


def _pairs_only(shape: Format) -> ReadingError:
    chosen, rejected = shape.columns["chosen"], shape.columns["rejected"]
    has_prompt = shape.columns.keys() & {"messages", "prompt", "instruction", "user"}
    part = "the assistant turn" if has_prompt else "the conversation (`messages`)"
    return ReadingError(
        f"These rows are preference pairs (`{chosen}` and `{rejected}`) for preference training (DPO), not for SFT.",
        f"Set training.method to dpo or kto. Or train on the chosen answers only: omit `{rejected}` and map `{chosen}` "
        f"to {part}.",
    )


def check_goal(shape: Format, goal: str) -> None:
    """Raises StudioError for a reading that training can't use for the goal."""
    if shape.name == "kto" and goal == "preference":
        raise ReadingError(
            f"The rows are labelled good or bad (`{shape.columns['label']}`), which is KTO data. DPO compares two "
            "answers to the same prompt.",
            "Set training.method to kto, or to sft to train on the answers labelled good. Or provide `chosen` and "
            "`rejected` with a `prompt`.",
        )
    if goal == "unpaired" and shape.name not in COMPARING.values():
        raise ReadingError(
            f"KTO needs answers labelled good or bad, or preference pairs, but the rows have another format: "
            f"{shape.words}",
            "Map the `label` in data.mapping, or set training.method to sft.",
        )
    if goal == "preference" and shape.name != "preference":
        raise ReadingError(
            f"DPO compares two answers to the same prompt, but the rows have another format: {shape.words}",
            "Map `chosen` and `rejected` in data.mapping, or set training.method to sft.",
        )
