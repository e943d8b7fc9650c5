"""A look at a file without any tokenizer: how it is read, its faults, and its rows' lengths in characters.

Of a pair to compare the longer side counts.
"""

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from lora_studio.data.arrays import ArrayWriter
from lora_studio.data.bad_rows import BadRows, BadRowWriter
from lora_studio.data.cache import Cache
from lora_studio.data.conversion import convert
from lora_studio.data.dataset import open_data
from lora_studio.data.formats import read_as
from lora_studio.data.mapping import ReadingError
from lora_studio.data.messages import Message, RowError
from lora_studio.data.parts import Progress
from lora_studio.data.preferences import marks_in_words
from lora_studio.data.record_store import RecordStore, write_records
from lora_studio.data.statistics import PERCENTILES, histogram, lengths
from lora_studio.data.table_files import with_header
from lora_studio.memory_limit import limited

_SAMPLE = 500
_LISTED_BAD_ROWS = 200


@limited()
def inspect_characters(
    name: str,
    *,
    mapping: dict[str, Any] | None = None,
    encoding: str | None = None,
    percentiles: Sequence[float] = PERCENTILES,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Reading, faults and lengths in characters of a file, a shipped data set or a data set of the Hub."""
    report = on_progress or (lambda phase, done, total: None)
    source = open_data(name, encoding)
    records = RecordStore(Cache(None).get("records", lambda writer: write_records(writer, source, report)))
    try:
        shape = read_as(records.spread(_SAMPLE), mapping, "any")
    except ReadingError as error:
        raise with_header(error, records.assumptions) from None
    counts, marked = array("q"), array("q")

    def convert_all(writer: ArrayWriter) -> dict[str, Any]:
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
                said = len(row.text or "") + _characters(row.messages)
                counts.append(said + max(_characters(row.chosen), _characters(row.rejected)))
            if position % 2000 == 0:
                report("convert", position, len(records))
        return {"bad_reasons": faults.finish()}

    bad_rows = BadRows(records.arrays, Cache(None).get("faults", convert_all))
    values = np.array(counts, dtype=np.int64)
    told = [marks_in_words(len(counts), len(marked))] if shape.name == "kto" else []
    told += [shape.question] if shape.question else []
    return {
        "file": str(source.files[0]) if len(source.files) == 1 else source.name,
        "file_kind": source.kind,
        "format": shape.name,
        "words": shape.words,
        "columns": shape.columns,
        "assumptions": [*source.assumptions, *told],
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
