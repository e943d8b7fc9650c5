"""Records and bad rows on disk, so that a million rows cost megabytes of memory.

Records are JSON; a value that JSON lacks (a date) is stored as its text.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import overload

import numpy as np

from lora_studio.data.cache import Arrays, ArrayWriter, Facts
from lora_studio.data.messages import BadRow, Record
from lora_studio.data.readers.json import TOO_DEEP
from lora_studio.data.sources import Source, nothing_usable
from lora_studio.errors import StudioError

_PIECE = 1000
_ENCODER = json.JSONEncoder(ensure_ascii=False, default=str)  # `json.dumps` makes one anew for each row


class BadRowWriter:
    """Appends bad rows to a folder of arrays; `finish` returns the reasons for its facts."""

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
        """Flushes; returns the reasons, to be stored in the facts as "bad_reasons"."""
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
    """The bad rows of several folders, sorted by row number and loaded on access."""

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
            return [self._load(int(place)) for place in self._order[index]]
        return self._load(int(self._order[index]))

    def __iter__(self) -> Iterator[BadRow]:
        return (self._load(int(place)) for place in self._order)

    def reasons(self) -> dict[str, int]:
        """How many rows have each fault, the most frequent first."""
        counts: Counter[str] = Counter()
        for store in self._stores:
            times = np.bincount(store["bad_kind"], minlength=len(store.facts["bad_reasons"]))
            counts.update(dict(zip(store.facts["bad_reasons"], times.tolist(), strict=True)))
        return dict(counts.most_common())

    def values_with(self, reason: str, most: int) -> list[str]:
        """The faulty values of the first rows with this reason."""
        values: list[str] = []
        for store in self._stores:
            kinds = store.facts["bad_reasons"]
            if reason in kinds:
                places = np.flatnonzero(np.asarray(store["bad_kind"]) == kinds.index(reason))[:most]
                values += [self._read(store, int(place)).found for place in places]
        return values[:most]

    def _load(self, place: int) -> BadRow:
        number = int(np.searchsorted(self._starts, place, "right")) - 1
        return self._read(self._stores[number], place - int(self._starts[number]))

    def _read(self, store: Arrays, place: int) -> BadRow:
        ends = store["bad_end"]
        begin = int(ends[place - 1]) if place else 0
        data = store["bad_text"][begin : int(ends[place])].tobytes()
        value, field = json.loads(data.decode("utf-8", "surrogatepass"))
        reason = store.facts["bad_reasons"][int(store["bad_kind"][place])]
        return BadRow(int(store["bad_row"][place]), reason, value, field)


MAX_ROW_BYTES = 8_000_000
"""Of one row as JSON: about two million tokens, more than any model takes."""
TOO_LONG = f"the row has more than {MAX_ROW_BYTES // 10**6} MB of text, too much for any model"
MAX_GROWN_BYTES, MAX_GROWTH = 1 << 28, 1000
_PIECE_BYTES = 1 << 22
Progress = Callable[[str, int, int], None]


class RecordStore:
    """The records of one source by position (from 0, bad rows not counted); its bad rows lie in the same `arrays`."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self._ends = arrays["ends"]
        self._bytes = arrays.path("records").open("rb") if len(self._ends) else None
        self.row = arrays["row"]
        self.kind: str = arrays.facts["kind"]
        self.assumptions: list[str] = arrays.facts["assumptions"]
        self.starts: list[tuple[str, int]] = [(name, before) for name, before in arrays.facts["starts"]]

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, position: int) -> Record:
        (record,) = self.records(range(position, position + 1))
        return record

    def records(self, positions: Sequence[int]) -> Iterator[Record]:
        """The records at these rising positions, one after another."""
        for start in range(0, len(positions), _PIECE):
            piece = np.asarray(positions[start : start + _PIECE], np.int64)
            begins = np.where(piece > 0, self._ends[piece - 1], 0).tolist()
            for number, data in zip(
                self.row[piece].tolist(), self._texts(begins, self._ends[piece].tolist()), strict=True
            ):
                yield Record(number, json.loads(data.decode("utf-8", "surrogatepass")))

    def _texts(self, begins: list[int], ends: list[int]) -> Iterator[bytes]:
        """The bytes of each range, in one read if they are close together."""
        assert self._bytes
        first, size = begins[0], ends[-1] - begins[0]
        if size <= _PIECE_BYTES:
            self._bytes.seek(first)
            block = self._bytes.read(size)
            yield from (block[begin - first : end - first] for begin, end in zip(begins, ends, strict=True))
            return
        for begin, end in zip(begins, ends, strict=True):
            self._bytes.seek(begin)
            yield self._bytes.read(end - begin)

    def place(self, row: int) -> tuple[str, int]:
        """The file of a row, and the row's number in that file."""
        name, before = next(start for start in reversed(self.starts) if start[1] < row)
        return name, row - before

    def spread(self, count: int) -> list[Record]:
        """At most that many records, evenly from the whole."""
        places = sorted({at * (len(self) - 1) // max(count - 1, 1) for at in range(count)}) if len(self) else []
        return list(self.records(places))


def write_records(writer: ArrayWriter, source: Source, report: Progress, most: int | None = None) -> Facts:
    """Reads a source, at most its first `most` rows, into a store; returns the store's facts.

    Raises StudioError for a source without a usable row.
    """
    bad_rows = BadRowWriter(writer)
    numbers, ends, size, read, done = list[int](), list[int](), 0, 0, 0
    pieces: list[bytes] = []
    pending = 0
    expected = _expected_bytes(source) if most is None else 0

    def flush() -> None:
        nonlocal pending
        writer.add("records", np.frombuffer(b"".join(pieces), np.uint8))
        writer.add("ends", np.array(ends, np.int64))
        writer.add("row", np.array(numbers, np.int64))
        for batch in (pieces, ends, numbers):
            batch.clear()
        pending = 0
        if done:
            report("read", done, max(done + 1, expected * done // max(size, 1)) if expected else 0)

    report("read", 0, 0)
    for row in islice(source.rows(), most):
        done += 1
        if isinstance(row, BadRow):
            bad_rows.add(row)
            continue
        try:
            text = _ENCODER.encode(row.fields)
        except RecursionError:
            bad_rows.add(BadRow(row.row, TOO_DEEP))
            continue
        data = text.encode("utf-8", "surrogatepass")
        read += len(data)
        if len(data) > MAX_ROW_BYTES:
            _check_growth(source, read)
            bad_rows.add(BadRow(row.row, TOO_LONG, f"{len(data) / 1e6:,.0f} MB"))
            continue
        pieces.append(data)
        size, pending = size + len(data), pending + len(data)
        ends.append(size)
        numbers.append(row.row)
        if len(pieces) == _PIECE or pending > _PIECE_BYTES:
            _check_growth(source, read)
            flush()
    flush()
    if done == bad_rows.count:
        raise nothing_usable(source.name, source.kind, bad_rows.first, bad_rows.count)
    report("read", done, done)
    return {
        "kind": source.kind,
        "assumptions": source.assumptions,
        "bad_reasons": bad_rows.finish(),
        "starts": source.starts,
    }


def _check_growth(source: Source, size: int) -> None:
    """Raises StudioError if the rows are far larger than their file, as those of a decompression bomb."""
    file_bytes = sum(file.stat().st_size for file in source.files)
    if file_bytes and size > max(MAX_GROWN_BYTES, file_bytes * MAX_GROWTH):
        names = ", ".join(file.name for file in source.files[:3])
        raise StudioError(
            f"The rows of {names} decompress to more than {size / 1e6:,.0f} MB; the file has "
            f"{file_bytes / 1e6:,.3g} MB.",
            "Real data rarely compresses this well. To use it anyway, save it as JSONL.",
        )


def _expected_bytes(source: Source) -> int:
    """Estimated bytes of all records, for progress; 0 if unknown."""
    plain = source.kind in ("jsonl", "json", "csv", "text") and all(file.suffix != ".gz" for file in source.files)
    return sum(file.stat().st_size for file in source.files) if plain else 0
