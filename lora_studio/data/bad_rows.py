"""Bad rows on the disk: however many there are, memory holds a few bytes of each."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from lora_studio.data.arrays import Arrays, ArrayWriter
from lora_studio.data.rows import BadRow

_PIECE = 1000


class BadRowWriter:
    """Appends bad rows to a folder of arrays, beside whatever else it holds; `finish` gives the facts to keep."""

    def __init__(self, writer: ArrayWriter) -> None:
        self._writer = writer
        self._reasons: dict[str, int] = {}
        self._numbers, self._kinds, self._texts, self._ends = list[int](), list[int](), list[bytes](), list[int]()
        self._size = 0
        self.count = 0
        self.first: BadRow | None = None

    def add(self, bad: BadRow) -> None:
        self.first = self.first or bad
        self.count += 1
        text = json.dumps([bad.found, bad.field], ensure_ascii=False).encode("utf-8", "surrogatepass")
        self._size += len(text)
        self._numbers.append(bad.row)
        self._kinds.append(self._reasons.setdefault(bad.reason, len(self._reasons)))
        self._texts.append(text)
        self._ends.append(self._size)
        if len(self._texts) == _PIECE:
            self._flush()

    def finish(self) -> list[str]:
        """Writes what is left; returns the reasons, which belong into the facts under "bad_reasons"."""
        self._flush()
        return list(self._reasons)

    def _flush(self) -> None:
        self._writer.add("bad_row", np.array(self._numbers, np.int64))
        self._writer.add("bad_kind", np.array(self._kinds, np.int32))
        self._writer.add("bad_end", np.array(self._ends, np.int64))
        self._writer.add("bad_text", np.frombuffer(b"".join(self._texts), np.uint8))
        for batch in (self._numbers, self._kinds, self._texts, self._ends):
            batch.clear()


class BadRows(Sequence[BadRow]):
    """The bad rows of several folders together, by their number in the file; each is made when asked for."""

    def __init__(self, *stores: Arrays) -> None:
        self._stores = stores
        numbers = [np.asarray(store["bad_row"]) for store in stores]
        self._starts = np.cumsum([0, *map(len, numbers)])
        self._order = np.argsort(np.concatenate(numbers), kind="stable") if numbers else np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> BadRow: ...

    @overload
    def __getitem__(self, index: slice) -> list[BadRow]: ...

    def __getitem__(self, index: int | slice) -> BadRow | list[BadRow]:
        if isinstance(index, slice):
            return [self._made(int(place)) for place in self._order[index]]
        return self._made(int(self._order[index]))

    def __iter__(self) -> Iterator[BadRow]:
        return (self._made(int(place)) for place in self._order)

    def reasons(self) -> dict[str, int]:
        """How many rows have each fault, the most frequent first."""
        counts: Counter[str] = Counter()
        for store in self._stores:
            times = np.bincount(store["bad_kind"], minlength=len(store.facts["bad_reasons"]))
            counts.update(dict(zip(store.facts["bad_reasons"], times.tolist(), strict=True)))
        return dict(counts.most_common())

    def found_with(self, reason: str, most: int) -> list[str]:
        """What was found in the first rows that have this fault."""
        found: list[str] = []
        for store in self._stores:
            kinds = store.facts["bad_reasons"]
            if reason in kinds:
                places = np.flatnonzero(np.asarray(store["bad_kind"]) == kinds.index(reason))[:most]
                found += [self._read(store, int(place)).found for place in places]
        return found[:most]

    def _made(self, place: int) -> BadRow:
        number = int(np.searchsorted(self._starts, place, "right")) - 1
        return self._read(self._stores[number], place - int(self._starts[number]))

    def _read(self, store: Arrays, place: int) -> BadRow:
        ends = store["bad_end"]
        begin = int(ends[place - 1]) if place else 0
        data = store["bad_text"][begin : int(ends[place])].tobytes()
        found, field = json.loads(data.decode("utf-8", "surrogatepass"))
        reason = store.facts["bad_reasons"][int(store["bad_kind"][place])]
        return BadRow(int(store["bad_row"][place]), reason, found, field)
