"""What every reader yields: a record with its row number, or a bad row with the reason it can't be used.

Row numbers are the line of a JSONL or text file, the element of a JSON array, or the data row of a table.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

FOUND_LENGTH = 200
Fields = dict[str, Any]
"""The fields of a row by name, with values as JSON holds them."""
JsonObject = dict[str, Any]
"""An object of JSON that somebody else wrote: nothing is known of its keys."""
FILLED = "{rows} structs with empty fields, as Arrow fills what a row lacks: these fields are left out."
NAN = "{cells} NaN, which stands for a missing value: it is read as empty."


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file as read."""

    row: int
    fields: Fields


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can't be used. `reason` is the same sentence for the same kind of fault: rows are counted by it."""

    row: int
    reason: str
    found: str = ""
    field: str = ""

    def to_dict(self) -> JsonObject:
        return asdict(self)


class Tally:
    """Counts assumptions about rows or cells by sentence, with a placeholder for the number: {rows} becomes
    "4 rows have", {cells} "4 cells hold"."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def clear(self) -> None:
        """Forgets all, as a reading does that begins anew."""
        self._counts.clear()

    def count(self, sentence: str, times: int = 1) -> None:
        """Counts an assumption."""
        self._counts[sentence] += times

    def sentences(self) -> list[str]:
        """The assumptions with their counts."""
        return [
            sentence.replace("{rows}", f"{times:,} rows have" if times > 1 else "1 row has").replace(
                "{cells}", f"{times:,} cells hold" if times > 1 else "1 cell holds"
            )
            for sentence, times in self._counts.items()
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
    """A value as text, shortened to `length` characters."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def plain(value: Any) -> Any:
    """A value as JSON: what JSON can't represent becomes its text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value)
