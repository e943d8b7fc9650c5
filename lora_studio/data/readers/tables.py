"""Reads CSV and TSV. The first line names the columns unless it looks like data; then columns are numbered."""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple, TextIO

from lora_studio.data.columns import is_known
from lora_studio.data.mapping import ReadingError
from lora_studio.data.messages import BadRow, Reading, Record, Tally, is_broken, shorten
from lora_studio.data.readers.cells import Cells, Dialect, Fault, find_dialect
from lora_studio.data.readers.json import BROKEN_BYTES
from lora_studio.data.readers.text_encoding import MAX_ROW_CHARACTERS
from lora_studio.errors import StudioError

WRONG_WIDTH = "the row and the header differ in number of cells"
BROKEN_ROW = "this row and the next have too few cells: a cell may contain an unquoted line break"
FILLED = "{rows} fewer cells than the table has columns: the missing cells at the end are read as empty."
TRIMMED = "{rows} empty cells after the last column, which are ignored."
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_OF_ENDING = {".tsv": "\t", ".tab": "\t"}
_SAMPLE_LENGTH = 1 << 16
_SAMPLE_ROWS = 50
_SEARCHED_QUOTES = 1 << 26
_BLOCK = 1 << 20
_MAX_NAME_LENGTH = 60
_OFTEN_SHORT = 0.5
_NUMBER = re.compile(r"[-+]?[\d.,]+%?")
_SENTENCE = re.compile(r"[.!?。？！]\s*$|\n|[?!。？！]\s")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_FIRST_LINE, FIRST_ROW, _LOOKS_LIKE_DATA = "The first line", "The header row", "looks like data"
_BACKSLASHES = "A backslash before a quotation mark in a quoted cell is read as an escape."
Open = Callable[[], TextIO]


@dataclass(frozen=True, slots=True)
class Table:
    """How a table is read: how it is written, its columns, and how many rows are passed over or reported as short."""

    dialect: Dialect
    names: list[str]
    header: bool
    separator_line: bool
    often_short: bool


def read_csv(open_text: Open, ending: str) -> Reading:
    """The data rows of a CSV or TSV; delimiter found by which one gives the most even rows.

    `open_text` must leave line ends as they are (newline="").
    """
    with open_text() as stream:
        sample = stream.read(_SAMPLE_LENGTH).lstrip("\ufeff")
        sample += stream.readline(MAX_ROW_CHARACTERS)
    separator = _SEPARATOR_LINE.fullmatch(sample.split("\n", 1)[0])
    sample = sample.split("\n", 1)[1] if separator and "\n" in sample else sample
    usual = _OF_ENDING.get(ending, ",")
    delimiter = separator.group(1) if separator else _find_delimiter(sample, usual)
    dialect = find_dialect(
        io.StringIO(sample, newline=""), delimiter, None if '"' in sample else _lines_with_quotes(open_text)
    )
    assumptions = _notes(dialect, usual, separator is not None)
    first = list(islice(Cells(io.StringIO(sample, newline=""), dialect), _SAMPLE_ROWS))
    if not first:
        raise StudioError("The table has no header line.", "The first line of a CSV file must name its columns.")
    if isinstance(first[0], Fault):
        raise StudioError(
            f"The first line of the table cannot be read: {first[0].reason} ({shorten(first[0].text, 120)}).",
            "Double every quotation mark inside a quoted cell, or remove the quotation marks around the cell.",
        )
    lines = [row for row in first if isinstance(row, list)]
    short = sum(len(row) < len(lines[0]) for row in lines[1:]) > _OFTEN_SHORT * len(lines[1:])
    header = name_columns(lines[0], lines, _FIRST_LINE)
    table = Table(dialect, header.names, header.exists, separator is not None, short)
    return _reading(open_text, table, [*assumptions, header.note])


class Header(NamedTuple):
    """The columns of a table, whether its first row names them, and a sentence that says so."""

    names: list[str]
    exists: bool
    note: str


def name_columns(first: list[str], rows: list[list[str]], where: str) -> Header:
    """Names from the `first` of `rows`, or numbers if it holds values. Raises `StudioError` for a name used twice."""
    cells = [cell.strip() for cell in first]
    if _is_data(cells):
        names = [f"column {position}" for position in range(1, len(cells) + 1)]
        note = f"{where} {_LOOKS_LIKE_DATA} rather than names. The columns are named {_quoted(names)}."
        return Header(names, False, note)
    twice = [name for name, times in Counter(cells).items() if times > 1 and name]
    if twice:
        raise StudioError(f"Two columns have the name {twice[0]!r}.", "Give every column a unique name.")
    while not cells[-1] and all(not row[len(cells) - 1 :] or not row[len(cells) - 1].strip() for row in rows):
        cells.pop()
    names = [name or f"column {position}" for position, name in enumerate(cells, 1)]
    return Header(names, True, f"{where} names the columns: {_quoted(names)}.")


def holds_tabs(open_text: Open) -> bool:
    """Whether a text is a table: at least two lines, all with tabs between, as many in each or in a header of names."""
    with open_text() as stream:
        sample = stream.read(_SAMPLE_LENGTH)
        lines = [
            line.strip(" \r\n") for line in (sample + stream.readline(MAX_ROW_CHARACTERS)).splitlines() if line.strip()
        ]
    tabs = [line.count("\t") for line in lines]
    if len(lines) < 2 or not all(tabs) or any(line.startswith("\t") for line in lines):
        return False
    return len(set(tabs)) == 1 or (tabs[0] == max(tabs) and is_known(lines[0].split("\t")))


def _quoted(names: list[str]) -> str:
    return ", ".join(f"`{shorten(name, _MAX_NAME_LENGTH)}`" for name in names[:12])


def _notes(dialect: Dialect, usual: str, has_separator_line: bool) -> list[str]:
    """Sentences on how the table is written, where that is not what its ending promises."""
    name = _NAMES.get(dialect.delimiter, dialect.delimiter)
    notes = []
    if has_separator_line:
        notes.append(f"The line `sep={dialect.delimiter}` sets the separator to {name}; it is not a row.")
    elif dialect.delimiter != usual:
        notes.append(f"Cells are separated by {name}.")
    if dialect.delimiter == "\t" and dialect.has_marks:
        notes.append(
            "Quoted cells may contain tabs and line breaks."
            if dialect.quoted
            else "Quotation marks are ordinary characters, as in tab-separated text."
        )
    return [*notes, *([_BACKSLASHES] if dialect.backslash else [])]


def _lines_with_quotes(open_text: Open) -> TextIO | None:
    """Lines from the first quotation mark on; None without one in the first 64 MiB."""
    read = 0
    with open_text() as stream:
        while read < _SEARCHED_QUOTES and (block := stream.read(_BLOCK)):
            block += stream.readline(MAX_ROW_CHARACTERS)
            read += len(block)
            if '"' in block:
                start = max(block.rfind("\n", 0, block.find('"')), block.rfind("\r", 0, block.find('"'))) + 1
                return io.StringIO(block[start : start + _SAMPLE_LENGTH], newline="")
    return None


def with_header(error: ReadingError, assumptions: list[str]) -> ReadingError:
    """The error of a table, with the assumed header and how to correct it."""
    header = next((sentence for sentence in assumptions if sentence.startswith((_FIRST_LINE, FIRST_ROW))), None)
    if header is None:
        return error
    return ReadingError(
        f"{error.message} {header}",
        (
            "If the first line is data, add a line of column names above it, such as prompt and completion. Or set "
            'data.mapping, for example {"user": "column 1", "assistant": "column 2"}.'
        )
        if _LOOKS_LIKE_DATA in header
        else f"{error.hint} If the first line is data, add a line of column names above it.",
    )


def _is_data(cells: list[str]) -> bool:
    """Whether a first line holds values: a number, a sentence, or a text too long for a name."""
    values = [
        bool(_NUMBER.fullmatch(cell)) or len(cell) > _MAX_NAME_LENGTH or bool(_SENTENCE.search(cell)) for cell in cells
    ]
    return any(values) and sum(values) * 2 >= len([cell for cell in cells if cell])


def _reading(open_text: Open, table: Table, assumptions: list[str]) -> Reading:
    tally = Tally()
    return Reading(lambda: _rows(open_text, table, tally), assumptions, tally)


def _rows(open_text: Open, table: Table, tally: Tally) -> Iterator[Record | BadRow]:
    """The data rows, numbered from 1. Short rows wait for the next, as two short rows may be one broken row."""
    tally.clear()
    width = len(table.names)
    before: tuple[int, list[str]] | None = None  # a short row

    def filled(number: int, cells: list[str]) -> Record:
        tally.count(FILLED)
        return Record(number, dict(zip(table.names, [*cells, *[""] * (width - len(cells))], strict=True)))

    with open_text() as stream:
        if table.separator_line:
            stream.readline()
        for number, row in enumerate(Cells(stream, replace(table.dialect, width=width)), 0 if table.header else 1):
            if number == 0:
                continue
            if isinstance(row, list) and len(row) < width and not any(map(is_broken, row)):
                if before is None:
                    before = number, row
                    continue
                pieces = len(before[1]) + len(row) - 1 == width and not table.often_short
                if pieces:
                    for at, cells in (before, (number, row)):
                        yield BadRow(at, BROKEN_ROW, width_of(cells, width))
                    before = None
                    continue
                yield filled(*before)
                before = number, row
                continue
            if before is not None:
                yield filled(*before)
                before = None
            yield _row(number, row, table.names, tally)
    if before is not None:
        yield filled(*before)


def _row(number: int, row: list[str] | Fault, names: list[str], tally: Tally) -> Record | BadRow:
    """A row that is not too short."""
    if isinstance(row, Fault):
        return BadRow(number, row.reason, shorten(row.text))
    if any(map(is_broken, row)):
        return BadRow(number, BROKEN_BYTES, shorten(" | ".join(row)))
    if any(cell.strip() for cell in row[len(names) :]):
        return BadRow(number, WRONG_WIDTH, width_of(row, len(names)))
    if len(row) > len(names):
        tally.count(TRIMMED)
    return Record(number, dict(zip(names, row, strict=False)))


def width_of(cells: list[str], width: int) -> str:
    """A row of another width, as text."""
    return f"{len(cells)} cells for {width} columns: {shorten(' | '.join(cells))}"


def _find_delimiter(sample: str, usual: str) -> str:
    """The delimiter that splits the first lines most evenly; ties go to the usual one, then to more cells."""

    def evenness(delimiter: str) -> tuple[float, bool, int]:
        best = (0.0, False, 0)
        for quoted in (True, False):
            dialect = Dialect(delimiter, quoted=quoted)
            rows = list(islice(Cells(io.StringIO(sample, newline=""), dialect), _SAMPLE_ROWS))
            width = len(rows[0]) if rows and isinstance(rows[0], list) else 0
            if width < 2:
                continue
            fits = [_fits(row, width) for row in rows]
            best = max(best, (round(sum(fits) / len(fits), 1), delimiter == usual, width))
        return best

    best = max(_NAMES, key=evenness)
    return best if evenness(best)[0] > 0 else usual


def _fits(row: list[str] | Fault, width: int) -> float:
    """How well a row fits a table: one that lacks its last cells fits half."""
    if isinstance(row, Fault):
        return 0.0
    if len(row) < width:
        return 0.5 if len(row) > 1 else 0.0
    return float(not any(cell.strip() for cell in row[width:]))
