"""What every reader yields: a record with its row number, or a bad row with the reason it can't be used.

Row numbers count as a person would: the line of a JSONL or text file, the element of a JSON array, the data row of a
table (the header is not counted).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

FOUND_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file as it stands there."""

    row: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can't be used. `reason` is the same sentence for the same kind of fault: rows are counted by it."""

    row: int
    reason: str
    found: str = ""
    field: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read a file: `rows()` begins anew at each call and is lazy; `assumptions` are known before."""

    rows: Callable[[], Iterator[Record | BadRow]]
    assumptions: list[str] = field(default_factory=list)


def shorten(value: Any, length: int = FOUND_LENGTH) -> str:
    """A value as text for a person, cut to `length` characters."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def plain(value: Any) -> Any:
    """A value as JSON can hold it: what JSON has no form for becomes its text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value)
