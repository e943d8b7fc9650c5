"""Bytes to text: finds the encoding of a file, says what it assumed, and opens the file as a stream of characters."""

import codecs
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from lora_studio.data.legacy_encodings import NAMES, Guess, guess_encoding
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
_ISO_2022_JP = re.compile(rb"\x1b\$[@B]")
_SOME_BROKEN = "Some bytes are not valid UTF-8; the rows that hold them are reported."
_MIN_BROKEN_SHARE = 10  # broken lines for each valid one, where the whole file may be in another encoding
_MAX_LINES = 20_000
_MAX_GUESSED = 1 << 13
_SAMPLE = 4096
_SEARCHED = 1 << 26
_BLOCK = 1 << 20


def search_encoding(path: Path, named: str | None = None) -> tuple[str, list[str]]:
    """The encoding of a text file, and sentences on what was assumed.

    A byte order mark decides, and what is valid UTF-8 is that; else the one that is named counts. Without one it is
    UTF-8 also where single lines are broken; where hardly a line with more than ASCII is valid UTF-8, the text tells
    the encoding. Looks at the first 64 MiB. Raises StudioError where the file is not text, and where several encodings
    make sense, with what to do.
    """
    with open_bytes(path) as file:
        head = file.read(_SAMPLE)
        encoding, assumptions = _by_marks(head) or _by_validity(path.name, head, file, _codec(named) if named else None)
    if _looks_binary(head.decode(encoding, _errors(encoding))):
        raise StudioError("The file holds binary data, not text.", f"{KNOWN} Unpack archives first.")
    return encoding, assumptions


def _codec(name: str) -> str:
    """Python's name of an encoding that a person named. Raises StudioError for one that is not known."""
    try:
        encoding = codecs.lookup(name.strip()).name
        "a".encode(encoding)
    except (LookupError, ValueError):
        raise StudioError(f"There is no encoding {name!r}.", f"Known are utf-8 and {', '.join(NAMES)}.") from None
    return encoding


def _in_words(encoding: str) -> str:
    return NAMES.get(encoding.replace("-", "_"), encoding)


def _by_marks(head: bytes) -> tuple[str, list[str]] | None:
    if head.isascii() and _ISO_2022_JP.search(head):
        return "iso2022_jp_2", ["The file changes alphabets by escape codes and is read as ISO-2022-JP (Japanese)."]
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            name = encoding.removesuffix("-sig").upper()
            return encoding, [f"The file begins with a byte order mark and is read as {name}."]
    if head[1::2].count(0) > len(head) // 4:
        return "utf-16-le", ["Every second byte is zero: the file is read as UTF-16 (little endian)."]
    if head[::2].count(0) > len(head) // 4:
        return "utf-16-be", ["Every second byte is zero: the file is read as UTF-16 (big endian)."]
    return None


def _by_validity(name: str, head: bytes, rest: BinaryIO, named: str | None) -> tuple[str, list[str]]:
    """UTF-8 or an older encoding, by the lines that hold more than ASCII."""
    block, read, valid, broken, size = head, 0, 0, list[bytes](), 0
    while block and valid + len(broken) < _MAX_LINES and read < _SEARCHED:
        block += rest.readline(_SEARCHED) if not block.endswith(b"\n") else b""
        read += len(block)
        if not block.isascii():
            for line in block.split(b"\n"):
                if line.isascii():
                    continue
                if _is_valid(line):
                    valid += 1
                else:
                    broken.append(line if size < _MAX_GUESSED else b"")
                    size += len(line)
        block = rest.read(_BLOCK)
    if not broken:
        other = valid and named not in (None, "utf-8", "utf-8-sig")
        return "utf-8", [f"The file is valid UTF-8 and read so, though data.encoding names {named}."] if other else []
    if named:
        return named, [f"The file is read as {_in_words(named)}, as data.encoding says."]
    if len(broken) < _MIN_BROKEN_SHARE * valid:
        return "utf-8", [_SOME_BROKEN]
    guesses = guess_encoding(_cut(b"\n".join(filter(None, broken))))
    if len(guesses) == 1:
        sentence = f"The file is not UTF-8; by its letters it is read as {_in_words(guesses[0].encoding)}."
        return guesses[0].encoding, [f"{sentence} Name another with data.encoding if they look wrong."]
    if valid:
        return "utf-8", [_SOME_BROKEN]
    raise _unknown(name, guesses)


def _cut(sample: bytes) -> bytes:
    """The first part of a sample, ended where no character of several bytes can be cut."""
    if len(sample) <= _MAX_GUESSED:
        return sample
    cut = sample[:_MAX_GUESSED]
    end = max(cut.rfind(mark) for mark in (b"\n", b" ", b",", b'"'))
    return cut[: end + 1] if end > 0 else cut


def _unknown(name: str, guesses: list[Guess]) -> StudioError:
    """What to say where the encoding is not certain: the same line in each that makes sense."""
    lines = "".join(f"\n{guess.encoding}, {NAMES[guess.encoding]}: {guess.line}" for guess in guesses[:6])
    which = f"It may be one of these, in which it says:{lines}" if guesses else "None that is known fits its letters."
    return StudioError(
        f"{name} is not UTF-8, and its encoding is not certain. {which}",
        f"Name the encoding with data.encoding (in the terminal --data.encoding, for inspect --encoding), for instance "
        f"{guesses[0].encoding if guesses else 'cp1252'}. Or save the file as UTF-8.",
    )


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
