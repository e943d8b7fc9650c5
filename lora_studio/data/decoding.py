"""Bytes to text: finds the encoding of a file and says what it assumed."""

from lora_studio.errors import StudioError

_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_SAMPLE = 4096


def find_encoding(data: bytes) -> tuple[str, list[str]]:
    """The encoding of a text file's bytes, and sentences on what was assumed.

    A byte order mark decides. Without one it is UTF-8, also where single lines are broken; only a file in which no
    line with non-ASCII bytes is valid UTF-8 is read as Windows-1252.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            name = encoding.removesuffix("-sig").upper()
            return encoding, [f"The file begins with a byte order mark and is read as {name}."]
    sample = data[:_SAMPLE]
    if sample[1::2].count(0) > len(sample) // 4:
        return "utf-16-le", ["Every second byte is zero: the file is read as UTF-16 (little endian)."]
    if sample[::2].count(0) > len(sample) // 4:
        return "utf-16-be", ["Every second byte is zero: the file is read as UTF-16 (big endian)."]
    if _is_valid(data):
        return "utf-8", []
    if any(not line.isascii() and _is_valid(line) for line in data.split(b"\n")):
        return "utf-8", ["Some bytes are not valid UTF-8; the rows that hold them are reported."]
    return "cp1252", ["The file is not UTF-8 and is read as Windows-1252."]


def decode(data: bytes) -> tuple[str, list[str]]:
    """A whole text file as text; bytes that are not UTF-8 stay in it as marks that `is_broken` finds row by row."""
    encoding, assumptions = find_encoding(data)
    text = data.decode(encoding, errors="surrogateescape" if encoding.startswith("utf-8") else "replace")
    if _looks_binary(text):
        raise StudioError(
            "The file holds binary data, not text.",
            "Known are JSON, JSONL, CSV, TSV, Parquet, TXT and Markdown; unpack archives first.",
        )
    return text, assumptions


def is_broken(text: str) -> bool:
    """Whether the text holds bytes that could not be decoded, or half a character, and so can't be tokenised."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _is_valid(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _looks_binary(text: str) -> bool:
    """Whether more than a tenth of the first characters are control characters or undecodable."""
    sample = text[:_SAMPLE]
    odd = sum(1 for letter in sample if (letter < " " and letter not in "\t\n\r\f\x1b") or is_broken(letter))
    return odd * 10 > len(sample) + 10
