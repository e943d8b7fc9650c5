"""How much memory the batches of an Arrow file take once unpacked, told by their headers: nothing is unpacked for it.

A message is a flatbuffer (Arrow's Message.fbs) and a body; each compressed buffer of the body begins with its length
unpacked, which is what Arrow allocates.
"""

import contextlib
import struct
from collections.abc import Iterator
from typing import Any

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
    """The messages that the footer (File.fbs) points at: these are what a reader takes, wherever they stand."""
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
