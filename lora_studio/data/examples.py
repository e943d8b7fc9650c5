"""Encoded rows on disk, and the training examples that they are cut to, those of DPO and KTO too.

Examples are built on access, or come as Arrow batches.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, overload

import numpy as np

from lora_studio.data.cache import Arrays, ArrayWriter, Facts
from lora_studio.data.encode import Encoded, Example
from lora_studio.data.messages import IGNORED, BadRow
from lora_studio.data.render import MASKS
from lora_studio.data.truncate import Cuts, Measures

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 1000
_COPY_BYTES = 1 << 22


def write_rows(writer: ArrayWriter, rows: Sequence[Encoded], positions: Sequence[int] | np.ndarray) -> None:
    """Appends rows; `positions` are their places among the records."""
    count = len(rows)
    sizes = np.fromiter((len(row.ids) for row in rows), np.int64, count)
    _write_spans(writer, [row.spans for row in rows])
    for name in MASKS:
        _write_spans(writer, [row.masks.get(name, ()) for row in rows], f"{name}_")
    writer.add("ids", np.fromiter(chain.from_iterable(row.ids for row in rows), np.int32, int(sizes.sum())))
    writer.add("sizes", sizes)
    writer.add("row", np.fromiter((row.row for row in rows), np.int64, count))
    writer.add("position", np.fromiter(positions, np.int64, count))
    writer.add("keep_first", np.fromiter((row.keep_first for row in rows), bool, count))
    writer.add("is_text", np.fromiter((row.is_text for row in rows), bool, count))
    writer.add("desirable", np.fromiter((row.desirable is not False for row in rows), bool, count))


def _write_spans(writer: ArrayWriter, rows: Sequence[Sequence[tuple[int, int]]], prefix: str = "") -> None:
    """Appends the token ranges of rows."""
    spans = np.array([span for row in rows for span in row], np.int32).reshape(-1, 2)
    writer.add(f"{prefix}begins", spans[:, 0])
    writer.add(f"{prefix}stops", spans[:, 1])
    writer.add(f"{prefix}spans", np.fromiter(map(len, rows), np.int32, len(rows)))


def write_masked(writer: ArrayWriter, arrays: Arrays, train_on: str) -> Facts:
    """Writes the rows of another entry, all of whose masks are known, with the mask of `train_on`."""
    for name in arrays.names:
        source = f"{train_on}_{name}" if name in ("begins", "stops", "spans") else name
        writer.add(name, arrays[source][:0])
        for start in range(0, len(arrays[source]), _COPY_BYTES):
            writer.add(name, arrays[source][start : start + _COPY_BYTES])
    return arrays.facts


class RowStore(Sequence[Encoded]):
    """Rows as tokens before any cut, in the file's order; `row` and `position` say where each came from.

    `desirable` is False for an answer that is labelled bad.
    """

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays  # keeps a temporary place alive
        self.ids = arrays["ids"]
        self.row = arrays["row"]
        self.position = arrays["position"]
        self.desirable = arrays["desirable"]
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

    def measures(self, selected: np.ndarray) -> Measures:
        """The measures of the rows at these indices."""
        counts = np.diff(self.span_starts)[selected]
        owner = np.repeat(np.arange(len(selected)), counts)
        spans = np.arange(len(owner)) + np.repeat(self.span_starts[selected] - (np.cumsum(counts) - counts), counts)
        return Measures(
            length=np.diff(self.starts)[selected],
            begin=self.begins[spans].astype(np.int64),
            end=self.stops[spans].astype(np.int64),
            owner=owner,
            keep_first=np.asarray(self._arrays["keep_first"])[selected],
            is_text=np.asarray(self._arrays["is_text"])[selected],
        )


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


class Examples(Sequence[Example]):
    """Rows of a store cut to length; those without a trained token are left out: `dropped` has row and length.

    `length`, `trained` and `full_length` hold the numbers of all examples, without making them.
    """

    def __init__(self, store: RowStore, selected: np.ndarray, max_length: int, truncation: str) -> None:
        measures = store.measures(selected)
        self._take(store, selected, measures, measures.cuts(max_length, truncation))
        self.split_rows = int(measures.split(max_length, truncation).sum())

    def _take(self, store: RowStore, selected: np.ndarray, measures: Measures, cuts: Cuts) -> None:
        keep = cuts.trained > 0
        self.measures = measures
        untrained = cuts.owner[~keep]
        self.dropped = list(
            zip(store.row[selected[untrained]].tolist(), measures.length[untrained].tolist(), strict=True)
        )
        self._store = store
        self._cuts = Cuts(*(values[keep] for values in vars(cuts).values()))
        self._index = selected[self._cuts.owner]
        self.length = self._cuts.length
        self.trained = self._cuts.trained
        self.full_length = measures.length[self._cuts.owner]

    @classmethod
    def of_cuts(cls, store: RowStore, selected: np.ndarray, cuts: Cuts) -> "Examples":
        """Rows as they are cut already."""
        examples = cls.__new__(cls)
        examples._take(store, selected, store.measures(selected), cuts)
        examples.split_rows = 0
        return examples

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
        """The examples to generate answers for: all of them."""
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

    def _gather(self, selection: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, labels and the places where each example ends, of several examples one after another."""
        store, index = self._store, self._index[selection]
        first, head, size = self._cuts.first[selection], self._cuts.head[selection], self.length[selection]
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


COLUMNS = ("chosen_ids", "chosen_labels", "rejected_ids", "rejected_labels")


def match_pairs(
    encoded: Iterable[tuple[list[Encoded], list[BadRow]]],
) -> Iterator[tuple[list[Encoded], list[BadRow]]]:
    """Batches of encoded sides as batches of whole pairs, side after side; a pair with a bad side is bad, once."""
    waiting: dict[int, Encoded] = {}
    refused: set[int] = set()
    for rows, bad_rows in encoded:
        new = [bad for bad in bad_rows if bad.row not in refused]
        new = list({bad.row: bad for bad in reversed(new)}.values())[::-1]
        refused |= {bad.row for bad in new}
        pairs: list[Encoded] = []
        for row in rows:
            if row.row in waiting:
                pairs += [waiting.pop(row.row), row]
            elif row.row not in refused:
                waiting[row.row] = row
        for bad in new:
            waiting.pop(bad.row, None)
        yield pairs, new


class PairStore:
    """Encoded pairs in the file's order: the rows 2 i and 2 i + 1 of `sides` are the two of pair i."""

    def __init__(self, arrays: Arrays) -> None:
        self.sides = RowStore(arrays)
        self.row = np.asarray(self.sides.row)[::2]
        self.position = np.asarray(self.sides.position)[::2]

    def __len__(self) -> int:
        return len(self.row)

    def measures(self, selected: np.ndarray) -> Measures:
        """The measures of the longer side of these pairs."""
        length = np.diff(self.sides.starts)
        return self.sides.measures(2 * selected + (length[2 * selected + 1] > length[2 * selected]))


def cut_pairs(better: Measures, worse: Measures, max_length: int, truncation: str) -> tuple[Cuts, Cuts]:
    """The cuts of both sides, which begin at the same token of the prompt."""
    cuts = [side.cuts(max_length, truncation) for side in (better, worse)]
    first = np.maximum(cuts[0].first, cuts[1].first)
    return _from(cuts[0], better, first), _from(cuts[1], worse, first)


def _from(cuts: Cuts, side: Measures, first: np.ndarray) -> Cuts:
    inside = np.minimum(side.end, cuts.stop[side.owner]) - np.maximum(side.begin, first[side.owner])
    trained = np.bincount(side.owner, np.maximum(inside, 0), minlength=len(side.length)).astype(np.int64)
    lost = cuts.trained + cuts.lost - trained
    return replace(cuts, first=first, head=side.keep_first & (first > 0), trained=trained, lost=lost)


@dataclass(frozen=True, slots=True)
class Pair:
    """A training example of DPO: the better and the worse side."""

    chosen: Example
    rejected: Example


class Pairs(Sequence[Pair]):
    """Pairs of a store cut to length, like `Examples` of rows; dropped where a side keeps no answer or both the same.

    `measures` are those of the longer sides; `length` and `trained` count the tokens of both; `sides` are the chosen
    answers and the rejected ones as examples.
    """

    def __init__(self, store: PairStore, selected: np.ndarray, max_length: int, truncation: str) -> None:
        index = (2 * selected, 2 * selected + 1)
        cuts = cut_pairs(store.sides.measures(index[0]), store.sides.measures(index[1]), max_length, truncation)
        keep = (cuts[0].trained > 0) & (cuts[1].trained > 0) & ~_alike(store.sides, index, cuts)
        self.measures = store.measures(selected)
        self.dropped = list(zip(store.row[selected[~keep]].tolist(), self.measures.length[~keep].tolist(), strict=True))
        self.split_rows = 0
        self.sides = [
            Examples.of_cuts(store.sides, side[keep], replace(cut, owner=np.arange(int(keep.sum())), **_of(cut, keep)))
            for side, cut in zip(index, cuts, strict=True)
        ]
        self.length = self.sides[0].length + self.sides[1].length
        self.trained = self.sides[0].trained + self.sides[1].trained
        self.row_numbers = store.row[selected[keep]]

    @property
    def answers(self) -> Examples:
        """The examples to generate answers for: the better sides."""
        return self.sides[0]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(side.longest for side in self.sides)

    def __len__(self) -> int:
        return len(self.row_numbers)

    @overload
    def __getitem__(self, index: int) -> Pair: ...

    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...

    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return Pair(self.sides[0][index], self.sides[1][index])

    def tables(self) -> Iterator["pa.RecordBatch"]:
        """All pairs in batches of `COLUMNS`, without a Python list between."""
        import pyarrow as pa

        for better, worse in zip(*(side.tables() for side in self.sides), strict=True):
            yield pa.RecordBatch.from_arrays([*better.columns, *worse.columns], names=list(COLUMNS))


def _alike(rows: RowStore, index: tuple[np.ndarray, np.ndarray], cuts: tuple[Cuts, Cuts]) -> np.ndarray:
    """Mask of the pairs that are identical after truncation."""
    identical = np.zeros(len(index[0]), bool)
    length = np.diff(rows.starts)
    ended = [cut.stop < length[side] for side, cut in zip(index, cuts, strict=True)]
    for at in np.flatnonzero((ended[0] | ended[1]) & _maybe_alike(rows, index, cuts)):
        ids = [
            np.asarray(rows.ids[rows.starts[side[at]] + cut.first[at] : rows.starts[side[at]] + cut.stop[at]])
            for side, cut in zip(index, cuts, strict=True)
        ]
        identical[at] = np.array_equal(ids[0], ids[1])
    return identical


def _maybe_alike(rows: RowStore, index: tuple[np.ndarray, np.ndarray], cuts: tuple[Cuts, Cuts]) -> np.ndarray:
    """Candidates for identical pairs: equal length, and two equal tokens near the end."""
    lengths = [cut.stop - cut.first for cut in cuts]
    maybe = (lengths[0] == lengths[1]) & (lengths[0] > 0)
    for before in (np.zeros_like(lengths[0]), lengths[0] // 4):
        better, worse = (
            rows.ids[rows.starts[side] + np.maximum(cut.stop - 1 - before, 0)]
            for side, cut in zip(index, cuts, strict=True)
        )
        maybe &= better == worse
    return maybe


def _of(cuts: Cuts, keep: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[keep] for name, values in vars(cuts).items() if name != "owner"}


class Unpaired(Examples):
    """Answers labelled good or bad, cut to length (unpaired preferences, for KTO); `desirable` is a bool for each.

    Of pairs, the chosen answers come first and are good, then the rejected ones, each cut as in its pair.
    """

    def __init__(self, store: RowStore | PairStore, selected: np.ndarray, max_length: int, truncation: str) -> None:
        if isinstance(store, RowStore):
            super().__init__(store, selected, max_length, truncation)
            self.desirable = np.asarray(store.desirable)[self._index]
            return
        pairs = Pairs(store, selected, max_length, truncation)
        self.measures, self.dropped, self.split_rows = pairs.measures, pairs.dropped, 0
        self._store = store.sides
        better, worse = pairs.sides
        self._cuts = Cuts(
            *(
                np.concatenate(both)
                for both in zip(vars(better._cuts).values(), vars(worse._cuts).values(), strict=True)
            )
        )
        self._index = np.concatenate([better._index, worse._index])
        self.length, self.trained = self._cuts.length, self._cuts.trained
        self.full_length = np.concatenate([better.full_length, worse.full_length])
        self.desirable = np.arange(2 * len(pairs)) < len(pairs)

    @property
    def answers(self) -> Examples:
        """The examples to generate answers for: those labelled good."""
        cuts = replace(self._cuts, owner=np.arange(int(self.desirable.sum())), **_of(self._cuts, self.desirable))
        return Examples.of_cuts(self._store, self._index[self.desirable], cuts)

    @property
    def counts(self) -> tuple[int, int]:
        """How many answers are good, and how many are bad."""
        good = int(self.desirable.sum())
        return good, len(self) - good

    def tables(self) -> Iterator["pa.RecordBatch"]:
        """All examples in batches of `input_ids`, `labels` and the bool `desirable`."""
        import pyarrow as pa

        for start, table in zip(range(0, len(self), _BATCH), super().tables(), strict=True):
            yield table.append_column("desirable", pa.array(self.desirable[start : start + _BATCH]))


def examples_of(
    store: RowStore | PairStore, selected: np.ndarray, max_length: int, truncation: str, *, unpaired: bool = False
) -> Examples | Pairs:
    """The training examples of the rows at these indices; `unpaired`: each answer by itself, with its label."""
    if unpaired:
        return Unpaired(store, selected, max_length, truncation)
    if isinstance(store, PairStore):
        return Pairs(store, selected, max_length, truncation)
    return Examples(store, selected, max_length, truncation)


def largest_id(rows: Examples | Pairs) -> int:
    """The largest token id of all rows; -1 without rows."""
    largest = -1
    for table in rows.tables() if len(rows) else ():
        for name, column in zip(table.schema.names, table.columns, strict=True):
            if name.endswith("ids") and len(column.values):
                largest = max(largest, int(column.values.to_numpy().max()))
    return largest
