"""Shows how rows are read: candidate formats, role names, a mapping applied to a sample, a look without a tokenizer.

As a program, `python -m lora_studio.data.preview FILE OPTIONS` prints `quick_look` as JSON within limits of time and
memory; OPTIONS is a JSON object of its arguments.
"""

import json
import random
import signal
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from lora_studio.data.cache import ArrayWriter, Cache, Facts
from lora_studio.data.convert import convert, describe_both_labels
from lora_studio.data.dataset import Prepared, open_data
from lora_studio.data.formats import apply_mapping, check_goal, detect_format, detect_formats, mapping_of, read_as
from lora_studio.data.mapping import Format, Mapping, MappingValues, ReadingError
from lora_studio.data.memory_limit import go_first, limited
from lora_studio.data.messages import ChatMessage, Conversation, Message, Record, RowError, plain, shorten
from lora_studio.data.readers.tables import with_header
from lora_studio.data.sources import open_source
from lora_studio.data.store import BadRows, BadRowWriter, RecordStore, write_records
from lora_studio.data.truncate import PERCENTILES, histogram, lengths
from lora_studio.data.turns import UNKNOWN_ROLE, role_names, role_of
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject

SAMPLE = 500
_TRIED_ROWS = 50
_SHOWN_ROWS = 2
TABLE_ROWS = 100
_CELL_LENGTH = 300


class FormatCandidate(TypedDict):
    """A format that fits the rows, with its description and the equivalent mapping."""

    name: str
    words: str
    columns: dict[str, str]
    mapping: MappingValues


class Readings(TypedDict):
    """The formats that fit the rows. `speakers` maps role names to roles, "" for unknown ones."""

    readings: list[FormatCandidate]
    ambiguous: bool
    question: str
    mapping: MappingValues
    speakers: dict[str, str]


class RowTable(TypedDict):
    """Rows as a table of short texts, with their numbers in the first column."""

    columns: list[str]
    rows: list[list[Any]]


class UnreadRows(Readings):
    """All that helps a person to say how rows are to be read."""

    table: RowTable


class TriedRow(TypedDict):
    """A row as a mapping reads it; `worse` is the worse answer of a comparison."""

    row: int
    messages: list[ChatMessage]
    worse: list[ChatMessage]
    text: str


class TriedMapping(TypedDict):
    """The result of a mapping on a sample: `failed` of `of` rows can't be used, `marked_bad` are labelled bad."""

    words: str
    rows: list[TriedRow]
    failed: int
    first_failure: list[JsonObject]
    marked_bad: int
    of: int


def first_records(name: str, encoding: str | None = None) -> list[Record]:
    """The first rows of a source that can be read."""
    records = (row for row in islice(open_data(name, encoding).rows(), SAMPLE) if isinstance(row, Record))
    return list(records)


def missing_columns(name: str, mapping: MappingValues, encoding: str | None = None) -> list[str]:
    """The columns of a mapping that the first rows of a source do not have."""
    columns = {column for record in first_records(name, encoding=encoding) for column in record.fields}
    return [column for column in dict.fromkeys(Mapping.from_dict(mapping).needs().values()) if column not in columns]


def candidates_of(prepared: Prepared) -> Readings:
    """The formats that fit prepared data, and the one in use."""
    unknown = prepared.bad_rows.values_with(UNKNOWN_ROLE, SAMPLE)
    return format_candidates(prepared.part.records.spread(SAMPLE), prepared.format, unknown)


def format_candidates(records: Sequence[Record], used: Format | None = None, unknown: Iterable[str] = ()) -> Readings:
    """The formats that fit the rows, the likeliest first, each with its mapping.

    `mapping` stands for the reading in use, else for the likeliest ({} where there is none). `speakers` says what each
    role name means, "" for one that means nothing yet. `unknown` are role names beyond those of the rows.
    """
    candidates = detect_formats(records)
    used = used or next(iter(candidates), None)
    mapping = mapping_of(used) if used else Mapping()
    return {
        "readings": [
            {
                "name": reading.name,
                "words": reading.words,
                "columns": reading.columns,
                "mapping": mapping_of(reading).to_dict(),
            }
            for reading in candidates
        ],
        "ambiguous": any(reading.ambiguous for reading in candidates),
        "question": next((reading.question for reading in candidates if reading.question), ""),
        "mapping": mapping.to_dict(),
        "speakers": _speakers(records, mapping.roles, unknown),
    }


def _speakers(records: Sequence[Record], roles: dict[str, str], unknown: Iterable[str]) -> dict[str, str]:
    """Role names of the rows and their roles, by the mapping or by known names; "" for unknown ones."""
    written = (name for record in records for value in record.fields.values() for name in role_names(value))
    names = dict.fromkeys([*written, *unknown, *roles])
    return {name: roles.get(name) or role_of(name) or "" for name in names}


def table(records: Sequence[Record]) -> RowTable:
    """The first rows as a table of short texts, with their numbers before them."""
    sample = records[:TABLE_ROWS]
    columns = list(dict.fromkeys(name for record in sample for name in record.fields))
    rows = [[record.row, *(_cell(record.fields.get(name)) for name in columns)] for record in sample]
    return {"columns": ["row", *columns], "rows": rows}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return shorten(value if isinstance(value, str) else str(plain(value)), _CELL_LENGTH)


def unread(name: str, encoding: str | None = None) -> UnreadRows:
    """What a person needs to write a mapping: candidate formats and the first rows."""
    records = first_records(name, encoding=encoding)
    return {**format_candidates(records), "table": table(records)}


def tried(records: Sequence[Record], mapping: MappingValues | None) -> JsonObject:
    """A mapping (None: what is recognised) on some rows: its words, the first rows as it reads them, how many fail
    and how many are labelled bad.

    Raises StudioError for a mapping that does not fit the rows.
    """
    some = records[:: max(1, len(records) // _TRIED_ROWS)][:_TRIED_ROWS]
    shape = read_as(records, mapping, "any")
    check_goal(shape, "any")
    examples: list[TriedRow] = []
    failed: list[JsonObject] = []
    marked_bad = 0
    for record in some:
        try:
            chat = convert(record, shape)
        except RowError as error:
            failed.append(error.at(record.row).to_dict())
            continue
        marked_bad += chat.label is False
        if len(examples) < _SHOWN_ROWS:
            better, worse = ([message.to_dict() for message in side] for side in (chat.chosen, chat.rejected))
            turns = [*chat.to_dicts(), *better]
            examples.append({"row": chat.row, "messages": turns, "worse": worse, "text": chat.text or ""})
    result: TriedMapping = {
        "words": shape.words,
        "rows": examples,
        "failed": len(failed),
        "first_failure": failed[:1],
        "marked_bad": marked_bad,
        "of": len(some),
    }
    return {**result}


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt as a chat template takes it, and the reference answer."""

    messages: list[ChatMessage]
    reference: str


def questions(prepared: Prepared, count: int, *, seed: int, longest: int) -> list[Question]:
    """At most `count` validation rows of at most `longest` tokens. Raises `StudioError` if none has a question."""
    part = prepared.validation_part or prepared.part
    validation_rows = prepared.selected[1]
    order = validation_rows[part.rows.measures(validation_rows).length <= longest].tolist()
    random.Random(seed).shuffle(order)
    positions = np.asarray(part.rows.position)[order]
    collected: list[Question] = []
    for start in range(0, len(positions), count):
        conversations = part.conversations.at(np.sort(positions[start : start + count]))
        collected += [question for chat in conversations for question in question_of(chat)]
        if len(collected) >= count:
            break
    if not collected:
        raise StudioError(
            f"No validation row of at most {longest:,} tokens contains a prompt with an answer.",
            "Set evaluation.gen_eval_samples to 0, or use data with prompts and answers.",
        )
    return collected[:count]


def question_of(chat: Conversation) -> Iterator[Question]:
    """Yields the last answer of a conversation with the turns before it; nothing for an answer labelled bad."""
    messages: tuple[Message, ...] = (*chat.messages, *chat.chosen[:1])
    if chat.label is False:
        return  # nobody should answer so
    if len(messages) > 1 and messages[-1].role == "assistant":
        yield Question([message.to_dict() for message in messages[:-1]], messages[-1].content)


CPU_SECONDS = 10.0
MAX_BYTES = 1 << 30
SHOWN = 160  # characters of an answer


class QuickLook(TypedDict):
    """The number of usable rows, and how they are read."""

    rows: int
    reading: str


class CharacterReport(TypedDict):
    """A file without a tokenizer: its reading, faults, and lengths in characters."""

    file: str
    file_kind: str
    format: str
    words: str
    columns: dict[str, str]
    assumptions: list[str]
    rows: int
    marked_bad_rows: int
    bad_rows: int
    bad_row_list: list[JsonObject]
    bad_rows_by_reason: dict[str, int]
    characters: dict[str, float]
    histogram: dict[str, list[int]]
    total_characters: int


def quick_look(
    path: Path, *, goal: str = "answers", mapping: MappingValues | None = None, encoding: str | None = None
) -> QuickLook:
    """Rows of a file that can be read, and how they are read with their first answer, in sentences.

    Raises `StudioError` where the file can't be read, or takes too much memory.
    """
    with limited(most=MAX_BYTES):
        source = open_source(path, encoding)
        sample, rows = list[Record](), 0
        for row in source.rows():
            if isinstance(row, Record):
                rows += 1
                if len(sample) < SAMPLE:
                    sample.append(row)
        try:
            shape = apply_mapping(Mapping.from_dict(mapping), sample, goal) if mapping else detect_format(sample, goal)
        except StudioError as error:
            return {"rows": rows, "reading": f"{error.message} {error.hint}"}
        if goal == "unpaired" and shape.name == "preference":
            rows *= 2  # each answer of a pair is a row
        parts = [f"Format: {shape.words}", *source.assumptions]
        if answer := next((text for record in sample if (text := _answer(record, shape))), ""):
            parts.append(f"Answer of the first row: “{shorten(answer.strip(), SHOWN)}”.".replace("\n", "⏎"))
        return {"rows": rows, "reading": " ".join(parts)}


def _answer(record: Record, shape: Format) -> str:
    """The last answer of a row (the better one of a pair) or its text; "" for a bad row."""
    try:
        chat = convert(record, shape)
    except RowError:
        return ""
    answers = [message.content for message in (*chat.messages, *chat.chosen) if message.role == "assistant"]
    return chat.text or (answers[-1] if answers else "")


def main() -> int:
    """Looks at the file that the command names and returns the exit code."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    go_first()
    name, options = sys.argv[1:]
    try:
        print(json.dumps(quick_look(Path(name), **json.loads(options))))
    except StudioError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


_LISTED_BAD_ROWS = 200


@limited()
def inspect_characters(
    name: str,
    *,
    mapping: MappingValues | None = None,
    encoding: str | None = None,
    percentiles: Sequence[float] = PERCENTILES,
) -> CharacterReport:
    """Reading, faults and lengths in characters of a file, a shipped data set or a data set of the Hub."""
    source = open_data(name, encoding)
    records = RecordStore(Cache(None).get("records", lambda writer: write_records(writer, source, lambda *_: None)))
    try:
        shape = read_as(records.spread(SAMPLE), mapping, "any")
    except ReadingError as error:
        raise with_header(error, records.assumptions) from None
    counts, marked = array("q"), 0

    def convert_all(writer: ArrayWriter) -> Facts:
        nonlocal marked
        faults = BadRowWriter(writer)
        for record in records.records(range(len(records))):
            try:
                row = convert(record, shape)
            except RowError as error:
                faults.add(error.at(record.row))
            else:
                marked += row.label is False
                size = len(row.text or "") + _characters(row.messages)
                counts.append(size + max(_characters(row.chosen), _characters(row.rejected)))
        return {"bad_reasons": faults.finish()}

    bad_rows = BadRows(records.arrays, Cache(None).get("faults", convert_all))
    values = np.array(counts, dtype=np.int64)
    notes = [describe_both_labels(len(counts) - marked, marked)] if shape.name == "kto" else []
    notes += [shape.question] if shape.question else []
    return {
        "file": str(source.files[0]) if len(source.files) == 1 else source.name,
        "file_kind": source.kind,
        "format": shape.name,
        "words": shape.words,
        "columns": shape.columns,
        "assumptions": [*source.assumptions, *notes],
        "rows": len(counts),
        "marked_bad_rows": 0,
        "bad_rows": len(bad_rows),
        "bad_row_list": [bad.to_dict() for bad in bad_rows[:_LISTED_BAD_ROWS]],
        "bad_rows_by_reason": bad_rows.reasons(),
        "characters": lengths(values, percentiles),
        "histogram": histogram(values),
        "total_characters": int(values.sum()),
    }


def _characters(messages: Sequence[Message]) -> int:
    return sum(len(message.content) for message in messages)


if __name__ == "__main__":
    sys.exit(main())
