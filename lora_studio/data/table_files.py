"""CSV, TSV and Parquet to rows. The first line of a CSV names its columns."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lora_studio.data.decoding import is_broken
from lora_studio.data.json_files import BROKEN_BYTES
from lora_studio.data.rows import BadRow, Reading, Record, shorten
from lora_studio.errors import StudioError

BROKEN_CELLS = "the row's quotes or separators are broken"
WRONG_WIDTH = "the row has another number of cells than the header"
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_SAMPLE_LENGTH = 1 << 16
_SAMPLE_ROWS = 50
_LONGEST_CELL = 1 << 30
_BATCH_ROWS = 1024


def read_csv(text: str, suffix: str) -> Reading:
    """The data rows of a CSV or TSV; delimiter found by which one gives the most even rows."""
    csv.field_size_limit(_LONGEST_CELL)
    text = text.replace("\x00", "")
    delimiter = _find_delimiter(text)
    assumptions = []
    if delimiter != {".tsv": "\t", ".tab": "\t"}.get(suffix, ","):
        assumptions.append(f"Cells are separated by a {_NAMES[delimiter]}.")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    header: list[str] = []
    for line in reader:
        if any(cell.strip() for cell in line):
            header = [cell.strip() for cell in line]
            break
    if not header:
        raise StudioError("The table holds no header line.", "The first line of a CSV names its columns.")
    blank = [name for name, times in Counter(header).items() if times > 1 and name]
    if blank:
        raise StudioError(f"Two columns are named {blank[0]!r}.", "Give every column a name of its own.")
    names = [name or f"column {position}" for position, name in enumerate(header, 1)]
    assumptions.append(
        "The first line names the columns: " + ", ".join(f"`{shorten(name, 60)}`" for name in names[:12]) + "."
    )
    return Reading(_cells(reader, names), assumptions)


def _cells(reader: Iterator[list[str]], names: list[str]) -> Iterator[Record | BadRow]:
    """Lines without any content are not rows; they are neither counted nor reported."""
    number = 0
    while True:
        try:
            line = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            yield BadRow(number, BROKEN_CELLS, str(error))
            continue
        if not any(cell.strip() for cell in line):
            continue
        number += 1
        if any(is_broken(cell) for cell in line):
            yield BadRow(number, BROKEN_BYTES, shorten(" | ".join(line)))
        elif len(line) != len(names):
            yield BadRow(
                number, WRONG_WIDTH, f"{len(line)} cells for {len(names)} columns: {shorten(' | '.join(line))}"
            )
        else:
            yield Record(number, dict(zip(names, line, strict=True)))


def _find_delimiter(text: str) -> str:
    sample = text[:_SAMPLE_LENGTH]

    def evenness(delimiter: str) -> tuple[float, int]:
        rows = [row for row in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter) if any(row)]
        widths = Counter(len(row) for row in rows[:_SAMPLE_ROWS])
        width, times = widths.most_common(1)[0] if widths else (1, 0)
        if width < 2 or not rows or len(rows[0]) != width:
            return 0.0, 0
        return times / widths.total(), width

    best = max(_NAMES, key=evenness)
    return best if evenness(best)[0] > 0 else ","


def read_parquet(path: Path) -> Reading:
    """The rows of a Parquet file, read in batches."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise StudioError(f"The Parquet file can't be read: {shorten(str(error))}.", "Write the file again.") from None

    def rows() -> Iterator[Record]:
        number = 0
        try:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    yield Record(number, fields)
        except (pa.ArrowException, OSError) as error:
            reason = f"The Parquet file is damaged after row {number}: {shorten(str(error))}."
            raise StudioError(reason, "Write the file again.") from None

    return Reading(rows(), [])
