"""CSV and TSV to rows. The first line names the columns, unless it looks like data: then they are numbered."""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TextIO

from lora_studio.data.decoding import LONGEST, is_broken
from lora_studio.data.json_files import BROKEN_BYTES
from lora_studio.data.rows import BadRow, Reading, Record, shorten
from lora_studio.errors import StudioError

BROKEN_CELLS = "the row's quotes or separators are broken"
WRONG_WIDTH = "the row has another number of cells than the header"
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_SAMPLE_LENGTH = 1 << 16
_SAMPLE_ROWS = 50
_LONGEST_NAME = 60
_NUMBER = re.compile(r"[-+]?[\d.,]+%?")
_SENTENCE = re.compile(r"[.!?。？！]\s*$|\n|[?!。？！]\s")


def read_csv(open_text: Callable[[], TextIO], ending: str) -> Reading:
    """The data rows of a CSV or TSV; delimiter found by which one gives the most even rows.

    `open_text` must leave line ends as they are (newline="").
    """
    csv.field_size_limit(LONGEST)
    with open_text() as stream:
        sample = stream.read(_SAMPLE_LENGTH).lstrip("\ufeff")
    delimiter = _find_delimiter(sample)
    assumptions = []
    if delimiter != {".tsv": "\t", ".tab": "\t"}.get(ending, ","):
        assumptions.append(f"Cells are separated by a {_NAMES[delimiter]}.")
    with open_text() as stream:
        first = next((line for _, line in _cells_of(stream, delimiter) if isinstance(line, list)), None)
    if first is None:
        raise StudioError("The table holds no header line.", "The first line of a CSV names its columns.")
    cells = [cell.strip() for cell in first]
    if _is_data(cells):
        names = [f"column {position}" for position in range(1, len(cells) + 1)]
        said = "The first line looks like data and not like names: the columns are called "
        assumptions.append(said + ", ".join(f"`{name}`" for name in names[:12]) + ".")
        return Reading(lambda: _rows(open_text, delimiter, names, header=False), assumptions)
    twice = [name for name, times in Counter(cells).items() if times > 1 and name]
    if twice:
        raise StudioError(f"Two columns are named {twice[0]!r}.", "Give every column a name of its own.")
    names = [name or f"column {position}" for position, name in enumerate(cells, 1)]
    said = "The first line names the columns: "
    assumptions.append(said + ", ".join(f"`{shorten(name, _LONGEST_NAME)}`" for name in names[:12]) + ".")
    return Reading(lambda: _rows(open_text, delimiter, names, header=True), assumptions)


def _is_data(cells: list[str]) -> bool:
    """Whether a first line holds values: a number, a sentence, or a text too long for a name."""
    values = [
        bool(_NUMBER.fullmatch(cell)) or len(cell) > _LONGEST_NAME or bool(_SENTENCE.search(cell)) for cell in cells
    ]
    return any(values) and sum(values) * 2 >= len([cell for cell in cells if cell])


def _cells_of(stream: TextIO, delimiter: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Numbered lines of cells; lines without any content are not rows, they are neither counted nor reported."""
    reader = csv.reader(stream, delimiter=delimiter, skipinitialspace=True)
    number = 0
    while True:
        try:
            line = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            yield number, error
            continue
        if any(cell.strip() for cell in line):
            number += 1
            if number == 1:
                line[0] = (
                    line[0].lstrip("\ufeff").removeprefix('"').removesuffix('"') if "\ufeff" in line[0] else line[0]
                )
            yield number, line


def _rows(open_text: Callable[[], TextIO], delimiter: str, names: list[str], header: bool) -> Iterator[Record | BadRow]:
    named = not header
    with open_text() as stream:
        for counted, line in _cells_of(stream, delimiter):
            if isinstance(line, csv.Error):
                yield BadRow(counted - header, BROKEN_CELLS, str(line))
            elif not named:
                named = True
            elif any(is_broken(cell) for cell in line):
                yield BadRow(counted - header, BROKEN_BYTES, shorten(" | ".join(line)))
            elif len(line) != len(names):
                found = f"{len(line)} cells for {len(names)} columns: {shorten(' | '.join(line))}"
                yield BadRow(counted - header, WRONG_WIDTH, found)
            else:
                yield Record(counted - header, dict(zip(names, line, strict=True)))


def _find_delimiter(sample: str) -> str:
    def evenness(delimiter: str) -> tuple[float, int]:
        try:
            rows = [row for row in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter) if any(row)]
        except csv.Error:
            return 0.0, 0
        widths = Counter(len(row) for row in rows[:_SAMPLE_ROWS])
        width, times = widths.most_common(1)[0] if widths else (1, 0)
        if width < 2 or not rows or len(rows[0]) != width:
            return 0.0, 0
        return times / widths.total(), width

    best = max(_NAMES, key=evenness)
    return best if evenness(best)[0] > 0 else ","
