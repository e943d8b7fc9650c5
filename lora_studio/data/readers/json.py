"""Reads JSON and JSONL: an array, an object of columns, one object a line, or rows under one key.

The content decides, whatever the ending is. Arrays are parsed as a stream, so that their length costs no memory.
"""

import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TextIO

from lora_studio.data.mapping import THREADS, is_known
from lora_studio.data.messages import NAN, BadRow, Reading, Record, Tally, is_broken, shorten
from lora_studio.data.readers.text_encoding import MAX_ROW_CHARACTERS, lines_of
from lora_studio.data.turns import is_turn
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.units import kind_of

_BLOCK = 1 << 20
_MARGIN = 16  # an error this close to the end of the buffer may need more input
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")


class Decoder(json.JSONDecoder):
    """A JSON decoder that reads NaN (a missing value of pandas) as null; `empty` counts them."""

    def __init__(self) -> None:
        super().__init__(parse_constant=self._constant)
        self.empty = 0

    def _constant(self, name: str) -> float | None:
        if name != "NaN":
            return float(name.replace("Infinity", "inf"))
        self.empty += 1
        return None


class BrokenJsonError(ValueError):
    """What is wrong and where: "line 3, column 7: Expecting value"."""


class TooDeepError(BrokenJsonError):
    """A value nested deeper than can be read."""


class Values:
    """The unread rest of a stream of JSON; `longest` is the number of characters that one value may have."""

    def __init__(self, stream: TextIO, longest: int = MAX_ROW_CHARACTERS, decoder: Decoder | None = None) -> None:
        self._decoder = decoder or Decoder()
        self._stream = stream
        self._longest = longest
        self._text = ""
        self._at = 0
        self._line, self._column = 1, 0
        self._ended = False
        self.lines_passed = 0

    def peek(self) -> str:
        """The next character that is not white space, or "" at the end."""
        while True:
            self._at = self._end_of_space()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Passes over the character that `peek` showed."""
        self._at += 1

    def value(self) -> Any:
        """The value that begins here. Raises BrokenJsonError, without having read on."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                unfinished = error.pos >= len(self._text) - _MARGIN or error.msg.startswith("Unterminated")
                if unfinished and len(self._text) - self._at < self._longest and self._more():
                    continue
                raise BrokenJsonError(self._located(error.pos, error.msg)) from None
            except RecursionError:
                raise TooDeepError(self._located(self._at, "nested too deeply")) from None
            except ValueError as error:  # a number of more digits than Python reads
                raise BrokenJsonError(self._located(self._at, str(error).split(";")[0])) from None
            if end > len(self._text) - _MARGIN and isinstance(value, (int, float)) and self._more():
                continue
            self.lines_passed = self._text.count("\n", self._at, end)
            self._at = end
            return value

    def array(self) -> Iterator[Any]:
        """The elements of the array that begins here. Raises BrokenJsonError where it breaks."""
        self.peek()
        self.skip()
        first = True
        while (following := self.peek()) != "]":
            if not first:
                if following != ",":
                    raise BrokenJsonError(self._located(self._at, "Expecting ',' delimiter"))
                self.skip()
            yield self.value()
            first = False
        self.skip()
        if self.peek():
            raise BrokenJsonError(self._located(self._at, "there is more text after the end of the array"))

    def rest(self) -> Iterator[Any]:
        """All values that follow, with or without commas between them."""
        while following := self.peek():
            if following == ",":
                self.skip()
            yield self.value()

    def _end_of_space(self) -> int:
        match = _SPACE.match(self._text, self._at)
        return match.end() if match else self._at

    def _more(self) -> bool:
        """Drops consumed text and reads more, doubling the buffer for long values."""
        if self._ended:
            return False
        block = self._stream.read(max(_BLOCK, len(self._text) - self._at))
        if not block:
            self._ended = True
            return False
        passed = self._text[: self._at]
        self._line += passed.count("\n")
        self._column = len(passed) - passed.rfind("\n") - 1 + (0 if "\n" in passed else self._column)
        self._text, self._at = self._text[self._at :] + block, 0
        return True

    def _located(self, position: int, message: str) -> str:
        passed = self._text[:position]
        line = self._line + passed.count("\n")
        column = len(passed) - passed.rfind("\n") + (0 if "\n" in passed else self._column)
        return f"line {line}, column {column}: {message}"


BROKEN_LINE = "the line is not valid JSON"
NO_JSON = "column 1: Expecting value"
"""What the first line of a file is told to be that holds something else, such as a table."""
NOT_JSON = "It does not look like JSON. If it is a table, name it .csv or .tsv; if it is a text, .txt."
BROKEN_REST = "the JSON is invalid from here on; nothing after this position is read"
BROKEN_BYTES = "the row contains bytes that are not valid text"
NOT_AN_OBJECT = "the row is not an object with named fields"
TOO_DEEP = "the row is nested too deeply"
TOO_LONG = "the row is longer than 32 million characters"
BARE_LIST = "Rows that are plain lists of messages are read as `messages`."
BELOW_HEADER = "The first list contains the column names, each further list is a row."
BARE_IDS = "Rows that are plain lists of integers are read as `input_ids`."
_SHAPES = "Supported are an array of objects, one object per line, and an object of arrays of equal length (columns)."
_ERROR_NAMES = {"error", "errors", "detail"}
_BESIDE_ERRORS = {"message", "status", "statusCode", "status_code", "code", "type", "cause", "path", "timestamp"}
_MAX_OBJECT_CHARACTERS = 1 << 28
_MAX_TURNS = 10_000
_FIRST = 20  # elements by which an array is recognized
_FIRST_LINES = 50
Open = Callable[[], TextIO]
Rows = Iterator[Record | BadRow]


def read_json(open_text: Open, kind: str) -> Reading:
    """The rows of a file, whose ending says that it is of that kind (json or jsonl)."""
    with open_text() as stream:
        sample = stream.read(1 << 20)
    if sample.lstrip("\ufeff \t\r\n")[:1] == "[":
        first = _first_of_lists(sample)
        if first is not None:
            return _counted(lambda decoder: _lines(open_text, decoder), [BARE_IDS if _is_ids(first) else BARE_LIST])
        return _array(open_text, kind)
    with open_text() as stream:
        values = Values(stream, _MAX_OBJECT_CHARACTERS)
        try:
            value = values.value()
            one_line = values.lines_passed == 0
            more = values.peek()
        except BrokenJsonError as error:
            if kind == "jsonl" or _is_line_by_line(sample):
                return _counted(lambda decoder: _lines(open_text, decoder), _by_line(kind))
            problem = "is nested too deeply" if isinstance(error, TooDeepError) else (f"is invalid: {error}")
            hint = NOT_JSON if NO_JSON in problem else "Fix that position, or save the rows as JSONL."
            raise StudioError(f"The JSON {problem}.", hint) from None
    if more and (one_line or more != "{"):
        return _counted(lambda decoder: _lines(open_text, decoder), _by_line(kind))
    if more:
        one_by_one = ["The file contains consecutive objects."]
        return _counted(lambda decoder: _one_after_another(open_text, decoder), one_by_one)
    return _single(open_text, value, kind)


def holds_json(open_text: Open) -> bool:
    """Whether a file whose ending says otherwise begins with an array of rows, or with an object.

    Where an object is a line by itself, most of the first lines must be such.
    """
    with open_text() as stream:
        lines = islice((line.strip() for _, line, _ in lines_of(stream) if line.strip()), _FIRST_LINES)
        if _is_object(next(lines, "")):
            following = [_is_object(line) for line in lines]
            return 2 * sum(following) >= len(following)
    with open_text() as stream:
        values = Values(stream)
        start = values.peek()
        if start not in ("{", "["):
            return False
        try:
            first = next(values.array(), None) if start == "[" else values.value()
        except BrokenJsonError:
            return False
        if start == "{" and values.peek() not in ("", "{", ","):
            return False
    return (isinstance(first, dict) and bool(first)) or _is_conversation(first)


def _is_object(line: str) -> bool:
    if line[:1] != "{" or line[-1:] != "}":
        return False
    try:
        return bool(json.loads(line))
    except (ValueError, RecursionError):
        return False


def _by_line(kind: str) -> list[str]:
    return ["The file contains one JSON object per line."] if kind == "json" else []


def _counted(rows: Callable[[Decoder], Rows], assumptions: list[str]) -> Reading:
    """A reading that counts NaN cells."""
    tally = Tally()

    def counted() -> Rows:
        tally.clear()
        decoder = Decoder()
        for row in rows(decoder):
            if decoder.empty:
                tally.count(NAN, decoder.empty)
                decoder.empty = 0
            yield row

    return Reading(counted, assumptions, tally)


def _lines(open_text: Open, decoder: Decoder) -> Rows:
    with open_text() as stream:
        for number, line, whole in lines_of(stream):
            if not line.strip():
                continue
            if not whole:
                yield BadRow(number, TOO_LONG, shorten(line))
                continue
            if is_broken(line):
                yield BadRow(number, BROKEN_BYTES, shorten(line.strip()))
                continue
            try:
                value = decoder.decode(line.rstrip("\n"))
            except RecursionError:
                yield BadRow(number, TOO_DEEP, shorten(line.strip()))
            except ValueError as error:
                yield BadRow(number, BROKEN_LINE, f"{_in_line(error)}: {shorten(line.strip())}")
            else:
                yield _row(number, value)


def _one_after_another(open_text: Open, decoder: Decoder) -> Rows:
    with open_text() as stream:
        yield from _numbered(Values(stream, decoder=decoder).rest())


def _array(open_text: Open, kind: str) -> Reading:
    assumptions = ["The file is a single JSON value, not one object per line."] if kind == "jsonl" else []
    with open_text() as stream:
        elements = Values(stream).array()
        start = _first_elements(elements)
    if start and all(is_turn(element) and not element.keys() & {*THREADS} for element in start):
        with open_text() as stream:
            rows_of_turns = islice(_numbered(Values(stream).array()), _MAX_TURNS)
            turns = [row.fields for row in rows_of_turns if isinstance(row, Record) and is_turn(row.fields)]
        single = Record(1, {"messages": turns})
        return Reading(
            lambda: iter([single]), [*assumptions, "The file contains a single conversation, read as one row."]
        )
    if start and _is_ids(start):
        assumptions.append(f"The file is a single row. {BARE_IDS}")
        return _counted(lambda decoder: _single_list(open_text, decoder), assumptions)
    if len(start) > 1 and _is_header(start[0], start[1:]):
        return _counted(lambda decoder: _below_header(open_text, decoder), [*assumptions, BELOW_HEADER])
    if start and isinstance(start[0], list):
        assumptions.append(BARE_IDS if _is_ids(start[0]) else BARE_LIST)

    def rows(decoder: Decoder) -> Rows:
        with open_text() as stream:
            yield from _numbered(Values(stream, decoder=decoder).array())

    return _counted(rows, assumptions)


def _single_list(open_text: Open, decoder: Decoder) -> Rows:
    """The row of a file that holds a single list of token ids."""
    with open_text() as stream:
        try:
            yield _row(1, Values(stream, _MAX_OBJECT_CHARACTERS, decoder).value())
        except BrokenJsonError as error:
            yield BadRow(1, BROKEN_REST, str(error))


def _is_header(first: Any, below: list[Any]) -> bool:
    """Whether a list holds the names of the lists below it."""
    is_header = isinstance(first, list) and all(isinstance(name, str) for name in first) and is_known(first)
    return is_header and all(isinstance(cells, list) and len(cells) == len(first) for cells in below)


def _below_header(open_text: Open, decoder: Decoder) -> Rows:
    with open_text() as stream:
        elements = Values(stream, decoder=decoder).array()
        names = next(elements)
        rows = (dict(zip(names, cells, strict=False)) if isinstance(cells, list) else cells for cells in elements)
        yield from _numbered(rows)


def _first_elements(elements: Iterator[Any]) -> list[Any]:
    head = []
    try:
        for element in islice(elements, _FIRST):
            head.append(element)
    except BrokenJsonError:
        return head
    return head


def _numbered(values: Iterator[Any]) -> Rows:
    """Rows of values; broken JSON ends them with a bad row."""
    number = 0
    try:
        for value in values:
            number += 1
            yield _row(number, value)
    except TooDeepError as error:
        yield BadRow(number + 1, TOO_DEEP, f"{error}; nothing after this position is read")
    except BrokenJsonError as error:
        yield BadRow(number + 1, BROKEN_REST, str(error))


def _row(number: int, value: Any) -> Record | BadRow:
    if isinstance(value, dict):
        return Record(number, value)
    if _is_conversation(value):
        return Record(number, {"messages": value})
    if _is_ids(value):
        return Record(number, {"input_ids": value})
    return BadRow(number, NOT_AN_OBJECT, shorten(value))


def _single(open_text: Open, value: Any, kind: str) -> Reading:
    """The reading of a file with a single JSON object."""
    if not isinstance(value, dict):
        raise StudioError(f"The file contains {kind_of(value)}, not rows.", _SHAPES)
    if value.keys() & _ERROR_NAMES and value.keys() <= _ERROR_NAMES | _BESIDE_ERRORS:
        message = shorten(json.dumps(value, ensure_ascii=False))
        raise StudioError(f"The file contains an error message of a server, not rows: {message}", "Download it again.")
    _, assumptions = _from_object(value)

    def rows(decoder: Decoder) -> Rows:
        with open_text() as stream:
            inner_rows, _ = _from_object(Values(stream, _MAX_OBJECT_CHARACTERS, decoder).value())
        yield from inner_rows

    whole = ["The file is a single JSON value, not one object per line."] if kind == "jsonl" else []
    return _counted(rows, [*whole, *assumptions])


def _from_object(value: JsonObject) -> tuple[Rows, list[str]]:
    """Columns, rows under one name, or a single row."""
    if isinstance(value.get("train"), dict) and all(isinstance(part, dict) for part in value.values()):
        inner_rows, notes = _from_object(value["train"])
        unread = ", ".join(f"`{name}`" for name in value if name != "train")
        return inner_rows, [f"The rows are under `train`{f'; ignored: {unread}' if unread else ''}.", *notes]
    lists = {name: column for name, column in value.items() if isinstance(column, list)}
    tables = [name for name, column in lists.items() if _is_table(column)]
    if "rows" in tables and all(isinstance(item.get("row"), dict) for item in lists["rows"]):
        return _numbered(item["row"] for item in lists["rows"]), ["The rows are under `rows`, each in `row`."]
    if len(tables) == len(lists) == 1 or "train" in tables:
        name = "train" if "train" in tables else tables[0]
        aside = [f"`{other}`" for other in tables if other != name]
        sentence = f"The rows are under `{name}`" + (f"; ignored: {', '.join(aside)}." if aside else ".")
        return _numbered(iter(lists[name])), [sentence]
    if value.keys() <= {"columns", "index", "data"} and _is_split(value):
        rows = [dict(zip(map(str, value["columns"]), cells, strict=False)) for cells in value["data"]]
        return _numbered(iter(rows)), ['The file contains `columns` and `data`, as written by pandas (orient="split").']
    if len(lists) == len(value) > 0 and not any(map(_is_conversation, lists.values())) and not _is_tokens(value):
        if len({len(column) for column in lists.values()}) == 1:
            return _from_columns(lists), ["The file is an object of arrays, one per column."]
        if len(lists) > 1 and not any(column and isinstance(column[0], dict) for column in lists.values()):
            sizes = ", ".join(f"`{shorten(name, 40)}` {len(column)}" for name, column in list(lists.items())[:6])
            raise StudioError(f"The columns differ in length: {sizes}.", _SHAPES)
    inner = [column.keys() if isinstance(column, dict) else None for column in value.values()]
    if len(value) > 1 and inner[0] and "0" in inner[0] and all(keys == inner[0] for keys in inner):
        columns = {name: list(column.values()) for name, column in value.items()}
        return _from_columns(columns), ["The file is an object of columns, each with rows by index."]
    if _is_by_key(value):
        return _numbered(iter(value.values())), ["The file is an object of rows, each under its own key."]
    return iter([Record(1, value)] if value else []), ["The file contains a single object, read as one row."]


def _is_split(value: JsonObject) -> bool:
    """Whether these are pandas' columns and data: lists of cells, each as long as the list of names."""
    names, data = value.get("columns"), value.get("data")
    if not isinstance(names, list) or not isinstance(data, list) or not names or not data:
        return False
    return all(isinstance(cells, list) and len(cells) == len(names) for cells in data)


def _is_by_key(value: JsonObject) -> bool:
    """Whether an object's values are rows: they share fields with known column names."""
    rows = list(value.values())
    if len(rows) > 1 and all(map(_is_conversation, rows)):
        return not is_known(value)
    if not rows or not all(isinstance(row, dict) and row for row in rows) or _is_conversation(rows[:1]):
        return False
    shared = set(rows[0]).intersection(*rows)
    by_number = all(key.isdigit() for key in value)
    shares_columns = is_known(shared) and not is_known(value)
    return bool(shared) and (by_number or (shares_columns and len(rows) > 1))


def _from_columns(columns: dict[str, list[Any]]) -> Rows:
    for number, cells in enumerate(zip(*columns.values(), strict=True), 1):
        yield Record(number, dict(zip(columns, cells, strict=True)))


def _is_tokens(value: JsonObject) -> bool:
    """Whether it is one row of tokens: as columns of such rows its lists would hold lists."""
    ids = value.get("input_ids")
    return isinstance(ids, list) and bool(ids) and isinstance(ids[0], int)


def _is_table(column: list[Any]) -> bool:
    return bool(column) and all(isinstance(item, dict) for item in column) and not _is_conversation(column[:1])


def _is_conversation(value: Any) -> bool:
    """Whether a value is a list of turns, or of exchanges as BELLE writes them."""
    return isinstance(value, list) and bool(value) and (all(map(is_turn, value)) or all(map(_is_exchange, value)))


def _is_exchange(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"human", "assistant"}


def _is_ids(value: Any) -> bool:
    """Whether a value is a list of token ids."""
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _first_of_lists(sample: str) -> list[Any] | None:
    """The first line's list where each line is a list by itself: it is whole, and the next begins a list too."""
    lines = [line.strip() for line in sample.lstrip("\ufeff \t\r\n").split("\n")]
    following = next((line for line in lines[1:] if line), "")
    if not following.startswith("["):
        return None
    try:
        first = json.loads(lines[0])
    except (ValueError, RecursionError):
        return None
    return first if isinstance(first, list) else None


def _is_line_by_line(sample: str) -> bool:
    """Whether one of the first lines is a whole row by itself."""
    for line in sample.lstrip("\ufeff \t\r\n").split("\n", 50)[:50]:
        if line.strip()[:1] in ("{", "[") and line.strip()[-1:] in ("}", "]"):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if (isinstance(value, dict) and value) or _is_conversation(value):
                return True
    return False


def _in_line(error: ValueError) -> str:
    return f"column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error).split(";")[0]
