"""Reads Parquet and Arrow files (file and stream) in batches; a cell that can't be read makes only its row bad.

Cells become JSON values. Arrow fills fields that a row lacks with null: these are removed, as trl's
`remove_none_values` does. An Arrow file is mapped, and pages that were read are released.
"""

import contextlib
import json
import math
import mmap
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lora_studio.data.memory_limit import MemoryLimitError
from lora_studio.data.messages import FILLED, NAN, BadRow, Fields, Reading, Record, Tally, shorten
from lora_studio.data.readers.json import BROKEN_BYTES
from lora_studio.data.readers.text_encoding import is_torn, open_bytes
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject

AS_TEXT = "{cells} bytes, which are read as UTF-8 text."
Mend = Callable[[Any], Any]


class CellReader:
    """Converts batches of one schema to rows, and counts assumptions in the tally."""

    def __init__(self, schema: Any, tally: Tally) -> None:
        self._tally = tally
        self._filled = False
        self._mends = {field.name: mend for field in schema if (mend := self._mend(field.type))}

    def rows(self, batch: Any) -> Iterator[Fields]:
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
                return None  # images and audio are refused later
            mends = {field.name: mend for field in inner if (mend := self._mend(field.type))}
            return lambda value: None if value is None else self._struct(value, mends)
        if types.is_map(kind):
            value_mend = self._mend(kind.item_type)
            return lambda value: None if value is None else _from_pairs(value, value_mend)
        if types.is_nested(kind) and hasattr(kind, "value_type"):
            item = self._mend(kind.value_type)
            return (lambda value: None if value is None else [item(element) for element in value]) if item else None
        return None

    def _struct(self, value: JsonObject, mends: dict[str, Mend]) -> JsonObject:
        for name, mend in mends.items():
            value[name] = mend(value[name])
        present = {name: item for name, item in value.items() if item is not None}
        self._filled = self._filled or len(present) < len(value)
        return present

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


def _from_pairs(value: list[tuple[Any, Any]], mend: Mend | None) -> JsonObject:
    return {str(name): mend(item) if mend else item for name, item in value}


_FOOTER_BLOCKS = (2, 3)  # fields of a footer: dictionaries and record batches
_HEADER_KIND, _HEADER = 1, 2  # fields of a message
_BUFFERS, _COMPRESSION = 2, 3  # fields of a record batch
_DICTIONARY_ROWS = 1  # field of a dictionary batch that holds its record batch
_DICTIONARY, _ROWS = 2, 3  # kinds of header


def most_unpacked(source: Any, *, stream: bool) -> int:
    """Bytes of the largest compressed batch and of all dictionaries, which stay; 0 without compression.

    `source` is the buffer of a whole file or stream. Raises `struct.error`, `IndexError`, `EOFError` or
    `pyarrow.ArrowException` where it is not sound.
    """
    dictionaries, largest = 0, 0
    for message in _of_stream(source) if stream else _of_file(source):
        kind, size = _unpacked(memoryview(message.metadata), message.body)
        dictionaries += size if kind == _DICTIONARY else 0
        largest = max(largest, size if kind == _ROWS else 0)
    return dictionaries + largest


def _of_stream(source: Any) -> Iterator[Any]:
    import pyarrow as pa

    reader = pa.ipc.MessageReader.open_stream(source)
    with contextlib.suppress(StopIteration):
        while True:
            yield reader.read_next_message()


def _of_file(source: Any) -> Iterator[Any]:
    """The messages that the footer (File.fbs) points to, which are the ones a reader loads."""
    import pyarrow as pa

    (length,) = struct.unpack_from("<i", source, source.size - 10)
    footer = memoryview(source.slice(source.size - 10 - length, length))
    (root,) = struct.unpack_from("<I", footer, 0)
    for field in _FOOTER_BLOCKS:
        place = _field(footer, root, field)
        if place:
            vector = _follow(footer, place)
            (count,) = struct.unpack_from("<I", footer, vector)
            for number in range(count):
                offset, head, body = struct.unpack_from("<qi4xq", footer, vector + 4 + 24 * number)
                yield pa.ipc.read_message(source.slice(offset, head + body))


def _unpacked(head: memoryview, body: Any) -> tuple[int, int]:
    """The kind of a message, and what its compressed buffers take unpacked."""
    (root,) = struct.unpack_from("<I", head, 0)
    place = _field(head, root, _HEADER_KIND)
    (kind,) = struct.unpack_from("<B", head, place) if place else (0,)
    if kind not in (_DICTIONARY, _ROWS) or body is None:
        return kind, 0
    batch = _follow(head, _field(head, root, _HEADER))
    if kind == _DICTIONARY:
        batch = _follow(head, _field(head, batch, _DICTIONARY_ROWS))
    buffers = _field(head, batch, _BUFFERS)
    if not buffers or not _field(head, batch, _COMPRESSION):
        return kind, 0
    vector, content, size = _follow(head, buffers), memoryview(body), 0
    (count,) = struct.unpack_from("<I", head, vector)
    for number in range(count):
        offset, length = struct.unpack_from("<qq", head, vector + 4 + 16 * number)
        if length > 0:
            size += max(0, *struct.unpack_from("<q", content, offset))  # -1: it is not compressed
    return kind, size


def _field(head: memoryview, table: int, number: int) -> int:
    """Where a field of a table stands; 0 where it is left out."""
    (back,) = struct.unpack_from("<i", head, table)
    (size,) = struct.unpack_from("<H", head, table - back)
    if 4 + 2 * number >= size:
        return 0
    (offset,) = struct.unpack_from("<H", head, table - back + 4 + 2 * number)
    return table + offset if offset else 0


def _follow(head: memoryview, place: int) -> int:
    (offset,) = struct.unpack_from("<I", head, place)
    return place + int(offset)


BROKEN_CELL = "a cell of the row cannot be read"
_BATCH_ROWS, _BATCH_BYTES, _FIRST_ROWS = 1024, 1 << 25, 8
_BUFFER = 1 << 20
_MAX_UNPACKED = 1 << 30  # bytes of a compressed batch, which is unpacked whole
Batches = Iterator[Any]


def read_parquet(path: Path) -> Reading:
    """The rows of a Parquet file."""

    def batches(file: IO[bytes]) -> tuple[Any, Batches]:
        import pyarrow.parquet as pq

        table = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER)  # else a row group is held whole
        return table.schema_arrow, _of_table(table)

    return _reading(path, "Parquet", batches)


def _of_table(table: Any) -> Batches:
    """Batches with fewer rows if rows are large: a dictionary value is unpacked for every row that has it."""
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
        if size > _MAX_UNPACKED:
            raise StudioError(
                f"{path.name} contains {size / 2**30:.1f} GiB of rows compressed in one block.",
                "Save it again with smaller record batches (max_chunksize), without compression, or as Parquet.",
            )
        record_batches = (
            (opened.get_batch(index) for index in range(opened.num_record_batches)) if as_file else iter(opened)
        )
        return opened.schema, _slices(record_batches, mapped)

    return _reading(path, "Arrow", batches)


def _slices(batches: Batches, mapped: mmap.mmap) -> Batches:
    """Batches in small slices; the mapped pages of a slice are released after it."""
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            yield batch.slice(start, _BATCH_ROWS)
            mapped.madvise(mmap.MADV_DONTNEED)


def _reading(path: Path, kind: str, batches: Callable[[IO[bytes]], tuple[Any, Batches]]) -> Reading:
    import pyarrow as pa

    faults = (pa.ArrowException, OSError, ValueError, IndexError, EOFError, struct.error)

    def too_large(number: int) -> MemoryLimitError:
        return MemoryLimitError(
            f"The {kind} file needs more memory than allowed, after row {number:,}.",
            "Its decompressed cells are huge, or a damaged length field requests too much. Save the file again.",
        )

    with _seekable(path) as file:
        try:
            schema, _ = batches(file)
        except MemoryError:
            raise too_large(0) from None
        except faults as error:
            message = f"The {kind} file cannot be read: {shorten(str(error))}."
            raise StudioError(message, "Save the file again.") from None
    twice = [name for name, times in Counter(schema.names).items() if times > 1]
    if twice:
        raise StudioError(f"Two columns have the name {twice[0]!r}.", "Give every column a unique name.")
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
                raise StudioError(reason, "Save the file again.") from None

    return Reading(rows, tally=tally)


def _rows(batch: Any, before: int, cells: CellReader) -> list[Record | BadRow]:
    import pyarrow as pa

    faults = (pa.ArrowException, ValueError, OverflowError)
    batch.validate()  # a damaged file may point anywhere in memory
    try:
        batch.validate(full=True)
        return [Record(number, fields) for number, fields in enumerate(cells.rows(batch), before + 1)]
    except MemoryError:
        raise
    except faults:  # ArrowMemoryError is among them and was raised above
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
    """The file, or an unpacked temporary copy of a packed file."""
    with open_bytes(path) as file:
        if file.seekable():
            yield file
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
            if is_torn(file):
                raise StudioError(f"The compressed file {path.name} is damaged or truncated.", "Compress it again.")
            copy.seek(0)
            yield copy
