"""Reads a file without a tokenizer: format, bad rows, lengths in characters.

As a program, `python -m lora_studio.data.quick_look FILE OPTIONS` prints `quick_look` as JSON within limits of time and
memory; OPTIONS is a JSON object of its arguments.
"""

import json
import signal
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from lora_studio.data.cache import ArrayWriter, Cache, Facts
from lora_studio.data.convert import describe_labels
from lora_studio.data.dataset import open_data
from lora_studio.data.formats import apply_mapping, convert, detect_format, read_as
from lora_studio.data.mapping import Format, Mapping, MappingValues, ReadingError
from lora_studio.data.memory_limit import go_first, limited
from lora_studio.data.messages import Message, Record, RowError, shorten
from lora_studio.data.readers.tables import with_header
from lora_studio.data.sources import open_source
from lora_studio.data.store import BadRows, BadRowWriter, Progress, RecordStore, write_records
from lora_studio.data.truncate import PERCENTILES, histogram, lengths
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject

CPU_SECONDS = 10.0
MAX_BYTES = 1 << 30
SAMPLE = 500
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
    on_progress: Progress | None = None,
) -> CharacterReport:
    """Reading, faults and lengths in characters of a file, a shipped data set or a data set of the Hub."""
    report = on_progress or (lambda phase, done, total: None)
    source = open_data(name, encoding)
    records = RecordStore(Cache(None).get("records", lambda writer: write_records(writer, source, report)))
    try:
        shape = read_as(records.spread(SAMPLE), mapping, "any")
    except ReadingError as error:
        raise with_header(error, records.assumptions) from None
    counts, marked = array("q"), array("q")

    def convert_all(writer: ArrayWriter) -> Facts:
        faults = BadRowWriter(writer)
        for position, record in enumerate(records.records(range(len(records)))):
            try:
                row = convert(record, shape)
            except RowError as error:
                faults.add(error.at(record.row))
            else:
                if row.label is False:
                    marked.append(position)
                    continue
                size = len(row.text or "") + _characters(row.messages)
                counts.append(size + max(_characters(row.chosen), _characters(row.rejected)))
            if position % 2000 == 0:
                report("convert", position, len(records))
        return {"bad_reasons": faults.finish()}

    bad_rows = BadRows(records.arrays, Cache(None).get("faults", convert_all))
    values = np.array(counts, dtype=np.int64)
    notes = [describe_labels(len(counts), len(marked))] if shape.name == "kto" else []
    notes += [shape.question] if shape.question else []
    return {
        "file": str(source.files[0]) if len(source.files) == 1 else source.name,
        "file_kind": source.kind,
        "format": shape.name,
        "words": shape.words,
        "columns": shape.columns,
        "assumptions": [*source.assumptions, *notes],
        "rows": len(counts),
        "marked_bad_rows": len(marked),
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
