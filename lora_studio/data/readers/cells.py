"""Lines of a delimited table to rows of cells: quoting, escapes and spaces, and what breaks them. Knows no columns.

Comma, semicolon and bar tables are quoted as RFC 4180 says. Text separated by tabs has no quoting (IANA
text/tab-separated-values) unless its quotation marks are used as a writer of quoted cells uses them.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TextIO

from lora_studio.data.readers.text_encoding import MAX_ROW_CHARACTERS

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
