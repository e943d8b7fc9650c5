"""Cells of Arrow tables as JSON would hold them: without what Arrow fills in, bytes as text, NaN as an empty cell.

Arrow has one set of fields for all structs of a column and fills those that a row lacks with null; trl's
`remove_none_values` takes them out for the same reason.
"""

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

from lora_studio.data.rows import NAN, Tally

FILLED = "{rows} structs with empty fields, as Arrow fills what a row lacks: these fields are left out."
AS_TEXT = "{cells} bytes, which are read as UTF-8 text."

Mend = Callable[[Any], Any]


class CellReader:
    """Makes rows of batches that have one schema, and counts in the tally what it had to assume."""

    def __init__(self, schema: Any, tally: Tally) -> None:
        self._tally = tally
        self._filled = False
        self._mends = {field.name: mend for field in schema if (mend := self._mend(field.type))}

    def rows(self, batch: Any) -> Iterator[dict[str, Any]]:
        """The batch's rows. Raises what pyarrow raises for a cell that can't be read."""
        for fields in batch.to_pylist():
            self._filled = False
            for name, mend in self._mends.items():
                fields[name] = mend(fields[name])
            if self._filled:
                self._tally.count(FILLED)
            yield fields

    def _mend(self, kind: Any) -> Mend | None:
        """What values of a type need; None where they are as JSON holds them."""
        import pyarrow as pa
        import pyarrow.types as types

        if isinstance(kind, pa.BaseExtensionType):
            return _parsed if kind.extension_name == "arrow.json" else self._mend(kind.storage_type)
        if types.is_dictionary(kind):
            return self._mend(kind.value_type)
        if types.is_floating(kind):
            return self._number
        if _is_bytes(kind):
            return self._text
        if types.is_struct(kind):
            inner = [kind.field(at) for at in range(kind.num_fields)]
            if {"bytes", "path"} <= {field.name for field in inner}:
                return None  # an image or a sound, which is refused as such
            mends = {field.name: mend for field in inner if (mend := self._mend(field.type))}
            return lambda value: None if value is None else self._struct(value, mends)
        if types.is_map(kind):
            value_mend = self._mend(kind.item_type)
            return lambda value: None if value is None else _from_pairs(value, value_mend)
        if types.is_nested(kind) and hasattr(kind, "value_type"):
            item = self._mend(kind.value_type)
            return (lambda value: None if value is None else [item(one) for one in value]) if item else None
        return None

    def _struct(self, value: dict[str, Any], mends: dict[str, Mend]) -> dict[str, Any]:
        for name, mend in mends.items():
            value[name] = mend(value[name])
        kept = {name: item for name, item in value.items() if item is not None}
        self._filled = self._filled or len(kept) < len(value)
        return kept

    def _text(self, value: bytes | None) -> str | None:
        """Bytes as text; those that are no UTF-8 stay in it as marks that spoil a row that is learned from."""
        if value is None:
            return None
        self._tally.count(AS_TEXT)
        return value.decode("utf-8", "surrogateescape")

    def _number(self, value: float | None) -> float | None:
        if value is None or not math.isnan(value):
            return value
        self._tally.count(NAN)
        return None


def _is_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def _parsed(value: str | None) -> Any:
    """The value of a cell of JSON, as `datasets` stores what differs from row to row."""
    try:
        return None if value is None else json.loads(value)
    except (ValueError, RecursionError):
        return value


def _from_pairs(value: list[tuple[Any, Any]], mend: Mend | None) -> dict[str, Any]:
    return {str(name): mend(item) if mend else item for name, item in value}
