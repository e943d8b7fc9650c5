"""Reads delimited tables. The first line names the columns unless it looks like data; then columns are numbered.

Comma, semicolon and bar tables are quoted as RFC 4180 says. Text separated by tabs has no quoting (IANA
text/tab-separated-values) unless its quotation marks are used as a writer of quoted cells uses them.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple, TextIO

from lora_studio.data.mapping import ReadingError, is_known
from lora_studio.data.messages import BadRow, Reading, Record, Tally, is_broken, shorten
from lora_studio.data.readers.json import BROKEN_BYTES
from lora_studio.data.readers.text_encoding import MAX_ROW_CHARACTERS
from lora_studio.errors import StudioError

BROKEN_QUOTES = "a quotation mark is neither doubled nor at the end of the cell"
UNCLOSED = "a quoted cell is not closed"
SWALLOWED = "a quoted cell spans lines that look like rows of the table"
_ENDS = "\r\n"
_ESCAPED = re.compile(r'\\(["\\\n]|\r\n?)')
_ESCAPED_MARK = re.compile(r'\\(["\n]|\r\n?)')
_NULL = "\\N"  # how MySQL and Hive write a cell without a value, where a backslash escapes
_AFTER_BACKSLASH = re.compile(r"\\(.)", re.DOTALL)
_SPACED_MARK = r'(?:^|[D\r\n]) +"(?!"[^D\r\n])'
_LONG_CELL = 1000  # lines
_RHYTHM_SHARE = 0.8
_RHYTHM_LINES = 50
_SWALLOWED_LINES, _SWALLOWED_LINES_OF_CAREFUL = 3, 6
_WASTED = 20_000  # lines that may be looked at in vain beyond four times those read


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a table is written. `width` is the number of the first line's cells, 0 while it is not known.

    `backslash`: a backslash before a quotation mark in a quoted cell escapes it; `halved`: and one before another
    backslash, which are one then. `careful`: the writer is known to quote what must be quoted. `has_marks`: cells begin
    with quotation marks.
    """

    delimiter: str
    quoted: bool = True
    backslash: bool = False
    halved: bool = False
    careful: bool = False
    has_marks: bool = False
    width: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """Lines that are no row, and why."""

    reason: str
    text: str


@dataclass(slots=True)
class _Cell:
    """A quoted cell that ended at a place of a line; without a text it is broken there."""

    text: str | None
    line: int
    end: int
    reason: str = ""
    escaped: bool = False


@dataclass(slots=True)
class Signs:
    """What cells say about how their table is written, counted: see `_weigh`."""

    counts: Counter[str] = field(default_factory=Counter)
    lone_backslashes: int = 0
    bare_comma: bool = False


class Cells:
    """The rows of an opened table (newline=""), one after another; lines without any content are no rows."""

    def __init__(self, stream: TextIO, dialect: Dialect, signs: Signs | None = None) -> None:
        self._stream = stream
        self._dialect = dialect
        self._by_hand = signs is not None  # the csv module tells no signs
        self._spaced_mark = re.compile(_SPACED_MARK.replace("D", re.escape(dialect.delimiter)))
        self._lines: list[str] = []
        self._at = 0  # the row's first line among those in hand
        self._read = self._wasted = 0
        self._signs = signs if signs is not None else Signs()

    def __iter__(self) -> Iterator[list[str] | Fault]:
        dialect = self._dialect
        while (line := self._line(self._at)) is not None:
            if dialect.quoted and '"' in line:
                row = self._plainly_quoted_row() or self._quoted_row()
            else:
                row = line.rstrip(_ENDS).split(dialect.delimiter)
                if dialect.backslash and _NULL in row:
                    row = ["" if cell == _NULL else cell for cell in row]
                self._at += 1
            if self._at > 1000:
                del self._lines[: self._at]
                self._at = 0
            if isinstance(row, Fault) or any(cell.strip() for cell in row):
                yield row

    def _line(self, index: int) -> str | None:
        while index >= len(self._lines):
            line = self._stream.readline(MAX_ROW_CHARACTERS)
            if not line:
                return None
            self._read += 1
            self._lines.append(line.lstrip("\ufeff") if self._read == 1 else line)
        return self._lines[index]

    def _plainly_quoted_row(self) -> list[str] | None:
        """The row that begins at the next line, by the csv module, which is fast; None for one that needs a look."""
        index, lines = self._at, self._lines
        line = lines[index]
        marks = line.count('"')
        while marks % 2 and index - self._at < _LONG_CELL:
            index += 1
            if index == len(lines) and self._line(index) is None:
                return None
            marks += lines[index].count('"')
        text = line if index == self._at else "".join(lines[self._at : index + 1])
        unlike = (self._dialect.backslash and "\\" in text) or (' "' in text and self._spaced_mark.search(text))
        if self._by_hand or unlike or self._is_swallow(index):
            return None
        try:
            row = next(csv.reader([text], delimiter=self._dialect.delimiter, strict=True))
        except csv.Error:
            self._wasted += index - self._at
            return None
        self._at = index + 1
        return row

    def _quoted_row(self) -> list[str] | Fault:
        """The row that begins at the next line, which holds quotation marks."""
        cells: list[str] = []
        index, at = self._at, 0
        line = self._lines[index]
        while True:
            start = _past_spaces(line, at)
            if line[start : start + 1] == '"':
                cell = self._quoted_cell(index, start)
                if cell.text is None:
                    return self._fault(cell)
                index, end = cell.line, cell.end
                line = self._lines[index]
                cells.append(cell.text)
            else:
                end = line.find(self._dialect.delimiter, at)
                end = end if end >= 0 else len(line.rstrip(_ENDS))
                cells.append("" if self._dialect.backslash and line[at:end] == _NULL else line[at:end])
                self._signs.counts["stray"] += '"' in cells[-1]
            if line[end : end + 1] != self._dialect.delimiter:
                break
            at = end + 1
        if self._is_swallow(index):
            self._signs.counts["swallow"] += 1
            fault = Fault(SWALLOWED, "".join(self._lines[self._at : index + 1]))
            self._at = index + 1
            return fault
        self._at = index + 1
        return cells

    def _quoted_cell(self, index: int, start: int) -> _Cell:
        """The cell whose opening mark stands there, read in the dialect's way, else in the other."""
        first = self._scan(index, start, self._dialect.backslash)
        if first.text is not None:
            self._note(first, index, start)
            return first
        second = self._scan(index, start, not self._dialect.backslash)
        if second.text is None:
            self._wasted += max(first.line, second.line) - index
            self._signs.counts["broken"] += 1
            return first
        self._note(second, index, start)
        return second

    def _note(self, cell: _Cell, index: int, start: int) -> None:
        """Counts what the cell says about its table's writer."""
        text = cell.text or ""
        counts = self._signs.counts
        if cell.escaped:
            counts["escape"] += 1
        elif '"' in text or (self._dialect.delimiter in text and cell.line == index):
            counts["careful"] += 1
        elif "\n" in text or "\r" in text:
            counts["spanning"] += 1
        elif text:
            counts["comma" if "," in text else "needless"] += 1

    def _scan(self, index: int, start: int, backslash: bool) -> _Cell:
        """A quoted cell over as many lines as it takes; it ends at a mark before a delimiter or the line's end."""
        pieces: list[str] = []
        line, at, size, escaped = self._lines[index], start + 1, 0, False
        begin = at
        while True:
            mark = line.find('"', at)
            if mark < 0:
                pieces.append(line[begin:])
                size += len(line) - begin
                following = self._line(index + 1) if self._may_span() and size < MAX_ROW_CHARACTERS else None
                if following is None:
                    return _Cell(None, index, 0, UNCLOSED)
                index, line, at, begin = index + 1, following, 0, 0
                continue
            if backslash and _backslashes(line, begin, mark) % 2:
                escaped, at = True, mark + 1
            elif line[mark + 1 : mark + 2] == '"':
                at = mark + 2
            else:
                break
        end = _past_spaces(line, mark + 1)
        if end < len(line) and line[end] != self._dialect.delimiter and line[end] not in _ENDS:
            return _Cell(None, index, mark, BROKEN_QUOTES)
        pieces.append(line[begin:mark])
        text = "".join(pieces)
        if self._by_hand and "\\" in text and text != _NULL:
            after = _AFTER_BACKSLASH.findall(text)
            self._signs.lone_backslashes += sum(letter not in '"\\\r\n' for letter in after)
        if escaped or (backslash and self._dialect.backslash):
            return _Cell(self._unescaped(text), index, end, escaped=escaped)
        return _Cell(text.replace('""', '"'), index, end)

    def _unescaped(self, text: str) -> str:
        if text == _NULL:
            return ""
        if self._dialect.halved or not self._dialect.backslash:
            return _ESCAPED.sub(r"\1", text)
        return _ESCAPED_MARK.sub(r"\1", text)

    def _may_span(self) -> bool:
        return self._wasted < 4 * self._read + _WASTED

    def _fault(self, cell: _Cell) -> Fault:
        """What the row that begins here is, whose cell is broken: one line where the lines below are rows, else all
        lines up to the end of what was meant as a cell."""
        first, last = self._at, cell.line
        self._at += 1
        if last > first and not self._in_rhythm(first, last):
            last = self._end_of_broken(cell)
            self._at = last + 1
            return Fault(cell.reason, "".join(self._lines[first : last + 1]))
        return Fault(cell.reason, self._lines[first].rstrip(_ENDS))

    def _in_rhythm(self, first: int, last: int) -> bool:
        """Whether most of these lines have as many cells as the table, each taken by itself."""
        below = self._lines[first + 1 : last + 1][:_RHYTHM_LINES]
        whole = sum(self._width(line) == self._dialect.width for line in below)
        return whole >= _RHYTHM_SHARE * len(below)

    def _end_of_broken(self, cell: _Cell) -> int:
        """The line on which a row ends whose cell is broken: that of the next mark that could end the cell."""
        index, at = cell.line, cell.end + 1
        if cell.reason == UNCLOSED:
            return index
        for _ in range(_RHYTHM_LINES):
            line = self._line(index) if self._may_span() else None
            if line is None:
                break
            self._wasted += 1
            while (mark := line.find('"', at)) >= 0:
                end = _past_spaces(line, mark + 1)
                if end >= len(line) or line[end] == self._dialect.delimiter or line[end] in _ENDS:
                    return index
                at = mark + 1
            index, at = index + 1, 0
        return cell.line

    def _is_swallow(self, last: int) -> bool:
        """Whether a row over several lines is really rows: each line by itself has as many cells as the table."""
        count, width = last - self._at + 1, self._dialect.width
        least = _SWALLOWED_LINES_OF_CAREFUL if self._dialect.careful and width < 3 else _SWALLOWED_LINES
        if count < least or width < 2:
            return False
        return all(self._width(line) == width for line in self._lines[self._at : last + 1])

    def _width(self, line: str) -> int:
        return line.count(self._dialect.delimiter) + 1


def find_dialect(sample: TextIO, delimiter: str, quotes: TextIO | None = None) -> Dialect:
    """How a table is written, told by its first lines and by the first of `quotes`, lines that hold quotation marks."""
    first = next(iter(Cells(sample, Dialect(delimiter))), [])
    plain = Dialect(delimiter, width=len(first) if isinstance(first, list) else 0)
    sample.seek(0)
    header = sample.readline()
    if not plain.width:
        plain = replace(plain, width=header.count(delimiter) + 1)
    all_quoted = bool(header.strip()) and all(
        cell.strip().startswith('"') and cell.strip().endswith('"') and len(cell.strip()) > 1
        for cell in header.rstrip(_ENDS).split(delimiter)
    )
    sample.seek(0)
    signs = _signs(sample, plain)
    if quotes is not None:
        later = _signs(quotes, plain)
        signs = Signs(signs.counts + later.counts, signs.lone_backslashes + later.lone_backslashes)
    sample.seek(0)
    signs.bare_comma = any("," in line and _holds_bare_comma(line, delimiter) for line in sample)
    return _weigh(signs, plain, all_quoted)


def _holds_bare_comma(line: str, delimiter: str) -> bool:
    return any("," in cell and not cell.startswith('"') for cell in line.split(delimiter))


def _signs(sample: TextIO, dialect: Dialect) -> Signs:
    signs = Signs()
    for _ in Cells(sample, dialect, signs):
        pass
    return signs


def _weigh(signs: Signs, dialect: Dialect, all_quoted: bool) -> Dialect:
    """The dialect that the signs speak for.

    Writers of quoted cells quote a cell that holds a delimiter, a line end or a mark, and double each mark in it; some
    quote all cells, and Excel also those with a comma. Where marks are letters, cells end as they began by chance only,
    and marks stand anywhere.
    """
    counts = signs.counts
    dialect = replace(dialect, has_marks=sum(counts.values()) > counts["stray"])
    letters = counts["broken"] + counts["stray"] + counts["needless"] + counts["swallow"]
    needed = counts["careful"] + counts["escape"] + counts["spanning"] + (0 if signs.bare_comma else counts["comma"])
    if dialect.delimiter == "\t" and not all_quoted and letters >= needed:
        return replace(dialect, quoted=False)
    backslash = counts["escape"] > 0 and counts["escape"] >= counts["broken"]
    halved = backslash and not signs.lone_backslashes
    return replace(dialect, backslash=backslash, halved=halved, careful=counts["careful"] > 0)


def _past_spaces(line: str, at: int) -> int:
    while line[at : at + 1] == " ":
        at += 1
    return at


def _backslashes(line: str, begin: int, mark: int) -> int:
    at = mark
    while at > begin and line[at - 1] == "\\":
        at -= 1
    return mark - at


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
