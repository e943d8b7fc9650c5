"""Parquet and Arrow (file and stream) to rows, read in batches. A cell that can't be read spoils its row only.

An Arrow file may be one batch of any size: it is mapped, and what has been read of the map is given back.
"""

import mmap
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lora_studio.data.arrow_cells import CellReader
from lora_studio.data.arrow_sizes import most_unpacked
from lora_studio.data.json_files import BROKEN_BYTES
from lora_studio.data.opening import is_torn, open_bytes
from lora_studio.data.rows import BadRow, Reading, Record, Tally, shorten
from lora_studio.errors import StudioError
from lora_studio.memory_limit import MemoryLimitError

BROKEN_CELL = "a cell of the row can't be read"
_BATCH_ROWS, _BATCH_BYTES, _FIRST_ROWS = 1024, 1 << 25, 8
_BUFFER = 1 << 20
_MOST_UNPACKED = 1 << 30  # bytes of a compressed batch, which memory has to hold whole

Batches = Iterator[Any]


def read_parquet(path: Path) -> Reading:
    """The rows of a Parquet file."""

    def batches(file: IO[bytes]) -> tuple[Any, Batches]:
        import pyarrow.parquet as pq

        table = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER)  # else a row group is held whole
        return table.schema_arrow, _of_table(table)

    return _reading(path, "Parquet", batches)


def _of_table(table: Any) -> Batches:
    """Fewer rows at once where the first are large: what the file holds once is unpacked for every row that has it."""
    first = next(table.iter_batches(batch_size=_FIRST_ROWS), None)
    a_row = first.nbytes // max(1, first.num_rows) if first is not None else 0
    yield from table.iter_batches(batch_size=max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, a_row))))


def read_arrow(path: Path) -> Reading:
    """The rows of an Arrow file, whether it was written as a file or as a stream."""

    def batches(file: IO[bytes]) -> tuple[Any, Batches]:
        import pyarrow as pa

        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        buffer = pa.py_buffer(mapped)
        source = pa.BufferReader(buffer)
        as_file = mapped[:6] == b"ARROW1"
        opened = pa.ipc.open_file(source) if as_file else pa.ipc.open_stream(source)
        size = most_unpacked(buffer, stream=not as_file)
        if size > _MOST_UNPACKED:
            raise StudioError(
                f"{path.name} holds {size / 2**30:.1f} GiB of rows compressed in one piece.",
                "Write it again with smaller record batches (max_chunksize), without compression, or as Parquet.",
            )
        found = (opened.get_batch(index) for index in range(opened.num_record_batches)) if as_file else iter(opened)
        return opened.schema, _slices(found, mapped)

    return _reading(path, "Arrow", batches)


def _slices(batches: Batches, mapped: mmap.mmap) -> Batches:
    """Batches in small slices; the memory that a slice took of the map is given back after it."""
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            yield batch.slice(start, _BATCH_ROWS)
            mapped.madvise(mmap.MADV_DONTNEED)


def _reading(path: Path, kind: str, batches: Callable[[IO[bytes]], tuple[Any, Batches]]) -> Reading:
    import pyarrow as pa

    faults = (pa.ArrowException, OSError, ValueError, IndexError, EOFError, struct.error)

    def too_large(number: int) -> MemoryLimitError:
        return MemoryLimitError(
            f"The {kind} file asks for more memory than it may take, after row {number:,}.",
            "Its cells are huge once unpacked, or a damaged length asks for any amount: write the file again.",
        )

    with _seekable(path) as file:
        try:
            schema, _ = batches(file)
        except MemoryError:
            raise too_large(0) from None
        except faults as error:
            said = f"The {kind} file can't be read: {shorten(str(error))}."
            raise StudioError(said, "Write the file again.") from None
    twice = [name for name, times in Counter(schema.names).items() if times > 1]
    if twice:
        raise StudioError(f"Two columns are named {twice[0]!r}.", "Give every column a name of its own.")
    tally = Tally()

    def rows() -> Iterator[Record | BadRow]:
        number = 0
        tally.clear()
        cells = CellReader(schema, tally)
        with _seekable(path) as file:
            try:
                for batch in batches(file)[1]:
                    for row in _rows(batch, number, cells):
                        number += 1
                        yield row
            except MemoryError:
                raise too_large(number) from None
            except faults as error:
                reason = f"The {kind} file is damaged after row {number}: {shorten(str(error))}."
                raise StudioError(reason, "Write the file again.") from None

    return Reading(rows, tally=tally)


def _rows(batch: Any, before: int, cells: CellReader) -> list[Record | BadRow]:
    import pyarrow as pa

    faults = (pa.ArrowException, ValueError, OverflowError)
    batch.validate()  # a damaged file may point anywhere in memory: what does not prove sound is not touched
    try:
        batch.validate(full=True)
        return [Record(number, fields) for number, fields in enumerate(cells.rows(batch), before + 1)]
    except MemoryError:
        raise
    except faults:  # not what memory has no room for, though Arrow's own error of it is among them
        pass
    rows: list[Record | BadRow] = []
    for position in range(batch.num_rows):
        number = before + position + 1
        try:
            single = batch.slice(position, 1)
            single.validate(full=True)
            (fields,) = cells.rows(single)
        except MemoryError:
            raise
        except faults as error:
            reason = BROKEN_BYTES if "UTF8" in str(error) or isinstance(error, UnicodeDecodeError) else BROKEN_CELL
            rows.append(BadRow(number, reason, shorten(str(error))))
        else:
            rows.append(Record(number, fields))
    return rows


@contextmanager
def _seekable(path: Path) -> Iterator[IO[bytes]]:
    """The file itself, or, where it is packed, a copy of what is inside that vanishes when closed."""
    with open_bytes(path) as file:
        if file.seekable():
            yield file
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
            if is_torn(file):
                raise StudioError(f"The packed file {path.name} is damaged or ends too early.", "Pack it again.")
            copy.seek(0)
            yield copy
