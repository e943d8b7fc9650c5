"""A source's records on the disk: read once, then any row is at hand without holding the others in memory.

Records are kept as JSON. What JSON has no form for (a date of a Parquet file) is kept as its text, as a preview shows
it; a column that is learned from holds none of these, or its row is bad.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from lora_studio.data.arrays import Arrays, ArrayWriter
from lora_studio.data.bad_rows import BadRowWriter
from lora_studio.data.json_files import TOO_DEEP
from lora_studio.data.records import Source, nothing_usable
from lora_studio.data.rows import BadRow, Record
from lora_studio.errors import StudioError

MAX_ROW_BYTES = 8_000_000
"""Of one row as JSON, about two million tokens: more than any model takes, and all that a tokenizer can bear."""
TOO_LONG = f"the row has more than {MAX_ROW_BYTES // 10**6} MB of text, which no model takes at once"
MAX_GROWN_BYTES, MAX_GROWTH = 1 << 28, 1000
_PIECE = 1000
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
        """The bytes between, read at once where they lie close together."""
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
        """The file of a row, and the row's number in it, where several files were read."""
        name, before = next(start for start in reversed(self.starts) if start[1] < row)
        return name, row - before

    def spread(self, count: int) -> list[Record]:
        """At most that many records, evenly from the whole."""
        places = sorted({at * (len(self) - 1) // max(count - 1, 1) for at in range(count)}) if len(self) else []
        return list(self.records(places))


def write_records(writer: ArrayWriter, source: Source, report: Progress, most: int | None = None) -> dict[str, Any]:
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
            text = json.dumps(row.fields, ensure_ascii=False, default=str)
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
    """Refuses files whose rows are far larger than they are: some bytes can stand for more than a disk holds."""
    there = sum(file.stat().st_size for file in source.files)
    if there and size > max(MAX_GROWN_BYTES, there * MAX_GROWTH):
        names = ", ".join(file.name for file in source.files[:3])
        raise StudioError(
            f"The rows of {names} come to more than {size / 1e6:,.0f} MB, the file to {there / 1e6:,.3g} MB.",
            "No real data shrinks so. If it is what you want to train on, save it as JSONL.",
        )


def _expected_bytes(source: Source) -> int:
    """About how many bytes the records will have, to tell how far the reading is; 0 where it can't be known."""
    plain = source.kind in ("jsonl", "json", "csv", "text") and all(file.suffix != ".gz" for file in source.files)
    return sum(file.stat().st_size for file in source.files) if plain else 0
