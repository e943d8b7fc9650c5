"""What the trainer gets, as a sequence that makes each example when it is asked for, and as tables in batches."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

from lora_studio.data.encode import IGNORED, Example
from lora_studio.data.measures import Cuts, Measures
from lora_studio.data.row_store import RowStore

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 1000


class Examples(Sequence[Example]):
    """Rows of a store cut to length; those without a trained token are left out: `dropped` has row and length.

    `length`, `trained` and `full_length` hold the numbers of all examples, without making them.
    """

    def __init__(self, store: RowStore, chosen: np.ndarray, max_length: int, truncation: str) -> None:
        measures = store.measures(chosen)
        self._take(store, chosen, measures, measures.cuts(max_length, truncation))
        self.split_rows = int(measures.split(max_length, truncation).sum())

    def _take(self, store: RowStore, chosen: np.ndarray, measures: Measures, cuts: Cuts) -> None:
        keep = cuts.trained > 0
        self.measures = measures
        left = cuts.owner[~keep]
        self.dropped = list(zip(store.row[chosen[left]].tolist(), measures.length[left].tolist(), strict=True))
        self._store = store
        self._cuts = Cuts(*(values[keep] for values in vars(cuts).values()))
        self._index = chosen[self._cuts.owner]
        self.length = self._cuts.length
        self.trained = self._cuts.trained
        self.full_length = measures.length[self._cuts.owner]

    @classmethod
    def of_cuts(cls, store: RowStore, chosen: np.ndarray, cuts: Cuts) -> "Examples":
        """Rows as they are cut already."""
        made = cls.__new__(cls)
        made._take(store, chosen, store.measures(chosen), cuts)
        made.split_rows = 0
        return made

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        ids, labels, _ = self._gather(np.array([index]))
        return Example(
            int(self._store.row[self._index[index]]),
            ids.tolist(),
            labels.tolist(),
            int(self.full_length[index]),
            int(self._cuts.lost[index]),
            int(self.trained[index]),
        )

    @property
    def answers(self) -> "Examples":
        """The examples whose answers the model is to give: these."""
        return self

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return int(self.length.max())

    @property
    def row_numbers(self) -> np.ndarray:
        """The row of the file that each example came from."""
        return self._store.row[self._index]

    def tables(self) -> Iterator["pa.RecordBatch"]:
        """All examples in batches of `input_ids` and `labels`, without a Python list between."""
        import pyarrow as pa

        for start in range(0, len(self), _BATCH):
            ids, labels, ends = self._gather(np.arange(start, min(start + _BATCH, len(self))))
            offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
            columns = [pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (ids, labels)]
            yield pa.RecordBatch.from_arrays(columns, names=["input_ids", "labels"])

    def _gather(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, labels and the places where each example ends, of several examples one after another."""
        store, index = self._store, self._index[wanted]
        first, head, size = self._cuts.first[wanted], self._cuts.head[wanted], self.length[wanted]
        ends = np.cumsum(size)
        begins = ends - size
        places = np.arange(int(size.sum())) + np.repeat(store.starts[index] + first - head - begins, size)
        places[begins[head]] = store.starts[index[head]]
        ids = np.asarray(store.ids[places])
        counts = store.span_starts[index + 1] - store.span_starts[index]
        spans = np.arange(int(counts.sum())) + np.repeat(
            store.span_starts[index] - (np.cumsum(counts) - counts), counts
        )
        shift = np.repeat(begins + head - first, counts)
        low, high = np.repeat(begins + head, counts), np.repeat(ends, counts)
        edges = np.zeros(len(ids) + 1, np.int32)
        from_ = np.clip(store.begins[spans] + shift, low, high)
        np.add.at(edges, from_, 1)
        np.add.at(edges, np.maximum(from_, np.clip(store.stops[spans] + shift, low, high)), -1)
        return ids, np.where(np.cumsum(edges[:-1]) > 0, ids, np.int32(IGNORED)), ends
