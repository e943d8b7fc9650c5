"""Bytes to text: finds the encoding of a file, says what it assumed, and opens the file as a stream of characters."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from lora_studio.data.opening import KNOWN, open_bytes
from lora_studio.errors import StudioError

LONGEST = 1 << 25  # characters of one line or row; what is longer is not a row but a fault
_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_SAMPLE = 4096
_SEARCHED = 1 << 26
_BLOCK = 1 << 20


def search_encoding(path: Path) -> tuple[str, list[str]]:
    """The encoding of a text file, and sentences on what was assumed. Raises StudioError where it is not text.

    A byte order mark decides. Without one it is UTF-8, also where single lines are broken; only a file in which no
    line with non-ASCII bytes is valid UTF-8 is read as Windows-1252. Looks at the first 64 MiB.
    """
    with open_bytes(path) as file:
        head = file.read(_SAMPLE)
        encoding, assumptions = _by_marks(head) or _by_validity(head, file)
    if _looks_binary(head.decode(encoding, _errors(encoding))):
        raise StudioError("The file holds binary data, not text.", f"{KNOWN} Unpack archives first.")
    return encoding, assumptions


def _by_marks(head: bytes) -> tuple[str, list[str]] | None:
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            name = encoding.removesuffix("-sig").upper()
            return encoding, [f"The file begins with a byte order mark and is read as {name}."]
    if head[1::2].count(0) > len(head) // 4:
        return "utf-16-le", ["Every second byte is zero: the file is read as UTF-16 (little endian)."]
    if head[::2].count(0) > len(head) // 4:
        return "utf-16-be", ["Every second byte is zero: the file is read as UTF-16 (big endian)."]
    return None


def _by_validity(head: bytes, rest: BinaryIO) -> tuple[str, list[str]]:
    """UTF-8 or Windows-1252, by the lines that hold more than ASCII."""
    block, read, valid, broken = head, 0, False, False
    while block and not (valid and broken) and read < _SEARCHED:
        block += rest.readline(_SEARCHED) if not block.endswith(b"\n") else b""
        read += len(block)
        if not block.isascii():
            lines = [line for line in block.split(b"\n") if not line.isascii()]
            good = [_is_valid(line) for line in lines]
            valid, broken = valid or any(good), broken or not all(good)
        block = rest.read(_BLOCK)
    if broken and not valid:
        return "cp1252", ["The file is not UTF-8 and is read as Windows-1252."]
    return "utf-8", ["Some bytes are not valid UTF-8; the rows that hold them are reported."] if broken else []


def open_text(path: Path, encoding: str, newline: str | None = None) -> TextIO:
    """A file as characters; bytes that have no meaning stay in it as marks that `is_broken` finds row by row."""
    return io.TextIOWrapper(open_bytes(path), encoding, _errors(encoding), newline)


def lines_of(stream: TextIO) -> Iterator[tuple[int, str, bool]]:
    """Line number, line, and whether it is whole: what is longer than `LONGEST` is cut."""
    number = 0
    while line := stream.readline(LONGEST):
        number += 1
        whole = len(line) < LONGEST or line.endswith("\n")
        rest = line
        while not whole and rest and not rest.endswith("\n"):
            rest = stream.readline(LONGEST)
        yield number, line.lstrip("\ufeff") if number == 1 else line, whole


def is_broken(text: str) -> bool:
    """Whether the text holds bytes that could not be decoded, or half a character, and so can't be tokenised."""
    if text.isascii():
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _errors(encoding: str) -> str:
    return "replace" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"


def _is_valid(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _looks_binary(text: str) -> bool:
    """Whether more than a tenth of the first characters are control characters or undecodable."""
    odd = sum(1 for letter in text if (letter < " " and letter not in "\t\n\r\f\x1b") or is_broken(letter))
    return odd * 10 > len(text) + 10
