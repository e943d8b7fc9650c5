"""What every reader yields: a record with its row number, or a bad row with the reason it can't be used.

Row numbers count as a person would: the line of a JSONL or text file, the element of a JSON array, the data row of a
table (the header is not counted).
"""

import math
from collections import Counter
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


class Tally:
    """Rows counted by what was assumed of them, a sentence with a place for the {rows} ("4 rows have")."""

    def __init__(self) -> None:
        self._rows: Counter[str] = Counter()

    def clear(self) -> None:
        """Forgets all, as a reading does that begins anew."""
        self._rows.clear()

    def count(self, sentence: str) -> None:
        """One more row of which this was assumed."""
        self._rows[sentence] += 1

    def sentences(self) -> list[str]:
        """What was assumed, with the number of rows."""
        return [
            sentence.replace("{rows}", f"{rows:,} rows have" if rows > 1 else "1 row has")
            for sentence, rows in self._rows.items()
        ]


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read a file: `rows()` begins anew at each call and is lazy; `assumptions` are known before.

    `tally` is what rows that have been read added to them.
    """

    rows: Callable[[], Iterator[Record | BadRow]]
    assumptions: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    def notes(self) -> list[str]:
        """All that was assumed so far."""
        return [*self.assumptions, *self.tally.sentences()]


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
