"""JSON and JSONL to rows: an array, columns of equal length, one object a line, or a list of rows under one name."""

import json
from collections.abc import Iterator
from typing import Any

from lora_studio.data.decoding import is_broken
from lora_studio.data.rows import BadRow, Reading, Record, shorten
from lora_studio.errors import StudioError

BROKEN_LINE = "the line is not valid JSON"
BROKEN_BYTES = "the row holds bytes that are not valid text"
NOT_AN_OBJECT = "the row is not an object with named fields"
TOO_DEEP = "the row is nested too deeply"
BARE_LIST = "Rows that are bare lists of messages are read as `messages`."
_SHAPES = "Known are an array of objects, one object a line, and an object of equally long arrays (columns)."


def read_json(text: str) -> Reading:
    """The rows of a .json file, whichever of the known forms it has."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise StudioError("The JSON is nested too deeply to be read.", _SHAPES) from None
    except ValueError as error:
        if _is_line_by_line(text):
            reading = read_jsonl(text)
            return Reading(reading.rows, ["The .json file holds one object a line.", *reading.assumptions])
        raise StudioError(
            f"The JSON is broken: {_where(error)}.", "Mend that place, or save the rows as JSONL."
        ) from None
    if isinstance(value, list):
        return _from_list(value)
    if isinstance(value, dict):
        return _from_object(value)
    raise StudioError(f"The file holds one {type(value).__name__}, not rows.", _SHAPES)


def read_jsonl(text: str) -> Reading:
    """One JSON value a line; broken lines are bad rows."""
    if not _is_line_by_line(text) and _is_json(text):
        reading = read_json(text)
        return Reading(reading.rows, ["The file is one JSON value, not one object a line.", *reading.assumptions])
    first = next((line for line in text.split("\n") if line.strip()), "")
    bare = [BARE_LIST] if first.lstrip()[:1] == "[" else []
    return Reading(_lines(text), bare)


def _lines(text: str) -> Iterator[Record | BadRow]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if is_broken(line):
            yield BadRow(number, BROKEN_BYTES, shorten(line.strip()))
            continue
        try:
            value = json.loads(line)
        except RecursionError:
            yield BadRow(number, TOO_DEEP, shorten(line.strip()))
        except ValueError as error:
            yield BadRow(number, BROKEN_LINE, f"{_where(error, in_line=True)}: {shorten(line.strip())}")
        else:
            yield _row(number, value)


def _row(number: int, value: Any) -> Record | BadRow:
    if isinstance(value, dict):
        return Record(number, value)
    if _is_conversation(value):
        return Record(number, {"messages": value})
    return BadRow(number, NOT_AN_OBJECT, shorten(value))


def _from_list(values: list[Any]) -> Reading:
    if _is_conversation(values):
        return Reading([Record(1, {"messages": values})], ["The file holds a single conversation: it is one row."])
    bare = [BARE_LIST] if any(isinstance(value, list) for value in values[:1]) else []
    return Reading((_row(number, value) for number, value in enumerate(values, 1)), bare)


def _from_object(value: dict[str, Any]) -> Reading:
    """Columns, rows under one name, or a single row."""
    lists = {name: column for name, column in value.items() if isinstance(column, list)}
    for name, column in lists.items():
        rows = [item for item in column if isinstance(item, dict)]
        if len(rows) == len(column) > 0 and len(lists) == 1 and not _is_message(rows[0]):
            reading = _from_list(column)
            return Reading(reading.rows, [f"The rows are those under `{name}`.", *reading.assumptions])
    lengths = {len(column) for column in lists.values()}
    columns = len(lists) == len(value) > 0 and len(lengths) == 1
    if columns and not any(
        column and isinstance(column[0], dict) and _is_message(column[0]) for column in lists.values()
    ):
        rows_of_columns = (
            Record(number, dict(zip(lists, cells, strict=True)))
            for number, cells in enumerate(zip(*lists.values(), strict=True), 1)
        )
        return Reading(rows_of_columns, ["The file is an object of arrays: each array is a column."])
    return Reading([Record(1, value)] if value else [], ["The file holds a single object: it is one row."])


def _is_message(item: dict[str, Any]) -> bool:
    return bool(item.keys() & {"role", "from"}) or item.keys() == {"human", "assistant"}


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and all(isinstance(item, dict) and _is_message(item) for item in value)
    )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_line_by_line(text: str) -> bool:
    """Whether one of the first lines is a whole row by itself, and the text is not an array of such."""
    lines = [line.strip() for line in text.lstrip().split("\n", 50)[:50]]
    for line in lines:
        if line[:1] in ("{", "[") and line[-1:] in ("}", "]"):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if (isinstance(value, dict) and value) or _is_conversation(value):
                return True
        if lines[0][:1] == "[":
            return False
    return False


def _where(error: ValueError, in_line: bool = False) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return str(error).split(";")[0]
    return (
        f"column {error.colno}: {error.msg}" if in_line else f"line {error.lineno}, column {error.colno}: {error.msg}"
    )
