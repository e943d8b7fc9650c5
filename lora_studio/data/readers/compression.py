"""Opens the bytes of a data file, unpacks gzip, and refuses other archives and files that only stand for the data."""

import io
import zlib
from pathlib import Path
from typing import Any

from lora_studio.errors import StudioError

KNOWN = "Known are JSON, JSONL, CSV, TSV, Parquet, Arrow, TXT and Markdown files, each also packed with gzip."
BOMB_SIZE, BOMB_RATIO = 1 << 28, 200
_GZIP = b"\x1f\x8b"
_PACKED = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd", b"7z\xbc\xaf": "7-Zip"}
_OFFICE = {".xlsx": "an Excel workbook", ".docx": "a Word document", ".ods": "a spreadsheet", ".odt": "a text document"}
_POINTERS = (b"version https://git-lfs.github.com/spec/", b"/annex/objects/")
_TEXTS = (".txt", ".text", ".md", ".markdown")
_PIECE = 1 << 14


class Gunzip(io.RawIOBase):
    """The unpacked bytes of a gzip file, whole or in several members; `torn` once it proves to end too early."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._name = path.name
        self._most = max(BOMB_SIZE, path.stat().st_size * BOMB_RATIO)
        self._inflate = zlib.decompressobj(wbits=31)
        self._pending = memoryview(b"")  # a slice of bytes would be a copy, of megabytes for each piece that is read
        self._given = 0
        self._ended = False
        self.torn = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending and not self._ended:
            self._fill()
        size = min(len(buffer), len(self._pending))
        buffer[:size] = self._pending[:size]
        self._pending = self._pending[size:]
        self._given += size
        if self._given > self._most:
            raise StudioError(
                f"{self._name} unpacks to more than {BOMB_RATIO} times its size and {BOMB_SIZE >> 20} MiB.",
                "Unpack it yourself if you trust it, and use the file inside.",
            )
        return size

    def close(self) -> None:
        self._file.close()
        super().close()

    def _fill(self) -> None:
        packed = self._inflate.unused_data or self._file.read(_PIECE)
        if self._inflate.eof and packed.startswith(_GZIP):
            self._inflate = zlib.decompressobj(wbits=31)
        elif self._inflate.eof:
            self._ended = True
            return
        try:
            self._pending = memoryview(self._inflate.decompress(packed))
        except zlib.error:
            packed = b""
        if not packed:
            self._ended = self.torn = True


def open_bytes(path: Path) -> io.BufferedReader:
    """A file's bytes, unpacked where it is gzip. Raises StudioError for a file that is absent, packed or unreadable."""
    try:
        file = path.open("rb")
        head = file.read(8)
        if head.startswith(_GZIP):
            file.close()
            return io.BufferedReader(Gunzip(path), 1 << 16)
        file.seek(0)
    except FileNotFoundError:
        raise StudioError(f"There is no file {path}.", "Give the path of a data file.") from None
    except IsADirectoryError:
        raise StudioError(f"{path} is a folder, not a file.", "Give the path of one data file.") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise StudioError(f"{path.name} can't be read: {why}.", "Check its name and permissions.") from None
    for mark, name in _PACKED.items():
        if head.startswith(mark):
            file.close()
            raise _packed(path, name)
    return file


def _packed(path: Path, name: str) -> StudioError:
    if name == "zip" and path.suffix.lower() in _OFFICE:
        return StudioError(f"{path.name} is {_OFFICE[path.suffix.lower()]}.", "Save the table as CSV and use that.")
    return StudioError(f"{path.name} is packed with {name}.", "Unpack it and use the file inside.")


def refuse_stand_in(path: Path, head: bytes) -> None:
    """Raises StudioError for a file that is not the data: a Git LFS pointer or a web page."""
    if head.startswith(_POINTERS):
        raise StudioError(
            f"{path.name} is not the data but a pointer to them, as Git keeps for large files.",
            "Get the file itself: run `git lfs pull` (or `git annex get`) in its folder, or download it by its page.",
        )
    start = head[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    is_page = start.startswith((b"<!doctype html", b"<html")) or (start.startswith(b"<?xml") and b"<html" in start)
    if (is_page or start.startswith(b"<?xml")) and kind_ending(path) not in _TEXTS:
        raise StudioError(
            f"{path.name} is {'a web page' if is_page else 'an XML document'}, not a data file.",
            "A download that fails is often saved as such a page. Open it in a browser to read what it says, and "
            "download the data file itself.",
        )


def is_torn(file: io.IOBase) -> bool:
    """Whether the packed data ended too early."""
    raw = file.raw if isinstance(file, io.BufferedReader) else None
    return isinstance(raw, Gunzip) and raw.torn


def kind_ending(path: Path) -> str:
    """The file ending that decides the kind, without .gz."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in (".gz", ".gzip") else path.suffix.lower()
