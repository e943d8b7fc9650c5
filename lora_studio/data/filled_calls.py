"""JSON that was written out of Arrow: tool calls and schemas in which the fields of all others stand as null.

A null that one call has by itself is a value and stays. Where all calls have the same arguments, and those of one
function are always null in another's calls, they came from Arrow, which has one struct for all of them.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from lora_studio.data.arrow_cells import FILLED
from lora_studio.data.rows import BadRow, Reading, Record

_NEVER_NULL = ("properties", "items", "enum", "required", "type", "anyOf", "additionalProperties")
_MIN_CALLS = 2


def without_filled(reading: Reading, sample: Iterable[Record | BadRow]) -> Reading:
    """The reading, with what Arrow filled into its calls and tools left out, if a sample of its rows shows that."""
    calls = [call for row in sample if isinstance(row, Record) for call in _calls(row.fields)]
    if not is_filled(calls):
        return reading

    def rows() -> Iterator[Record | BadRow]:
        for row in reading.rows():
            if isinstance(row, BadRow):
                yield row
                continue
            fields = {name: without_nulls(value) for name, value in row.fields.items()}
            if fields != row.fields:
                reading.tally.count(FILLED)
            yield Record(row.row, fields)

    return Reading(rows, reading.assumptions, reading.tally)


def without_nulls(value: Any) -> Any:
    """A JSON value without the empty fields of its objects."""
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return value


def is_filled(calls: list[tuple[str, dict[str, Any]]]) -> bool:
    """Whether calls, each a function's name and arguments, have the fields that Arrow gives them."""
    if len(calls) < _MIN_CALLS or any(arguments.keys() != calls[0][1].keys() for _, arguments in calls):
        return False
    used: dict[str, set[str]] = {}
    for name, arguments in calls:
        used.setdefault(name, set()).update(key for key, value in arguments.items() if value is not None)
    return len(used) > 1 and any(keys < set().union(*used.values()) for keys in used.values())


def has_filled_schema(tool: Any) -> bool:
    """Whether a tool's schema has a null where a schema can have none."""
    if isinstance(tool, list):
        return any(map(has_filled_schema, tool))
    if not isinstance(tool, dict):
        return False
    properties = tool.get("properties")
    if isinstance(properties, dict) and any(value is None for value in properties.values()):
        return True
    return any(key in tool and tool[key] is None for key in _NEVER_NULL) or any(map(has_filled_schema, tool.values()))


def _calls(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The calls anywhere in a value, each as the function's name and its arguments."""
    if isinstance(value, list):
        for item in value:
            yield from _calls(item)
    elif isinstance(value, dict):
        name, arguments = value.get("name"), value.get("arguments")
        if isinstance(name, str) and isinstance(arguments, dict):
            yield name, arguments
        for item in value.values():
            if isinstance(item, list | dict):
                yield from _calls(item)
