"""Encoded rows in flat arrays on the disk: a million rows cost megabytes of memory. Single rows are made on demand."""

from collections.abc import Sequence
from itertools import chain
from typing import overload

import numpy as np

from lora_studio.data.arrays import Arrays, ArrayWriter
from lora_studio.data.encode import Encoded
from lora_studio.data.measures import Measures


def write_rows(writer: ArrayWriter, rows: Sequence[Encoded], positions: Sequence[int] | np.ndarray) -> None:
    """Appends rows; `positions` are their places among the records."""
    count = len(rows)
    sizes = np.fromiter((len(row.ids) for row in rows), np.int64, count)
    spans = np.array([span for row in rows for span in row.spans], np.int32).reshape(-1, 2)
    writer.add("ids", np.fromiter(chain.from_iterable(row.ids for row in rows), np.int32, int(sizes.sum())))
    writer.add("sizes", sizes)
    writer.add("begins", spans[:, 0])
    writer.add("stops", spans[:, 1])
    writer.add("spans", np.fromiter((len(row.spans) for row in rows), np.int32, count))
    writer.add("row", np.fromiter((row.row for row in rows), np.int64, count))
    writer.add("position", np.fromiter(positions, np.int64, count))
    writer.add("keep_first", np.fromiter((row.keep_first for row in rows), bool, count))
    writer.add("is_text", np.fromiter((row.is_text for row in rows), bool, count))


class RowStore(Sequence[Encoded]):
    """Rows as tokens before any cut, in the file's order; `row` and `position` say where each came from."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays  # keeps a temporary place alive
        self.ids = arrays["ids"]
        self.row = arrays["row"]
        self.position = arrays["position"]
        self.starts = _starts(arrays["sizes"])
        self.span_starts = _starts(arrays["spans"])
        self.begins, self.stops = arrays["begins"], arrays["stops"]

    def __len__(self) -> int:
        return len(self.row)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...

    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...

    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        spans = slice(self.span_starts[index], self.span_starts[index + 1])
        return Encoded(
            int(self.row[index]),
            self.ids[self.starts[index] : self.starts[index + 1]].tolist(),
            tuple(zip(self.begins[spans].tolist(), self.stops[spans].tolist(), strict=True)),
            bool(self._arrays["keep_first"][index]),
            bool(self._arrays["is_text"][index]),
        )

    def measures(self, chosen: np.ndarray) -> Measures:
        """The measures of the rows at these indices."""
        counts = np.diff(self.span_starts)[chosen]
        owner = np.repeat(np.arange(len(chosen)), counts)
        spans = np.arange(len(owner)) + np.repeat(self.span_starts[chosen] - (np.cumsum(counts) - counts), counts)
        return Measures(
            length=np.diff(self.starts)[chosen],
            begin=self.begins[spans].astype(np.int64),
            end=self.stops[spans].astype(np.int64),
            owner=owner,
            keep_first=np.asarray(self._arrays["keep_first"])[chosen],
            is_text=np.asarray(self._arrays["is_text"])[chosen],
        )


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
