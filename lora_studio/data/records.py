"""A file to records with row numbers. Which form a file has is told by its content; the ending only helps.

Rows that can't be read are reported and do not stop the others. What columns mean is not decided here but in formats.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_studio.data.decoding import decode
from lora_studio.data.json_files import read_json, read_jsonl
from lora_studio.data.rows import BadRow, Reading, Record, shorten
from lora_studio.data.table_files import read_csv, read_parquet
from lora_studio.data.text_files import read_text
from lora_studio.errors import StudioError

__all__ = ["BadRow", "Record", "RecordFile", "read_records"]

_ENDINGS = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
}
_KNOWN = "Known are JSON, JSONL, CSV, TSV, Parquet, TXT and Markdown files."
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}


@dataclass
class RecordFile:
    """A file read whole: its usable rows, its bad rows, and what had to be assumed to read it."""

    path: Path
    kind: str
    records: list[Record]
    bad_rows: list[BadRow]
    assumptions: list[str]


def read_records(path: Path, max_rows: int | None = None) -> RecordFile:
    """Reads a file's rows, at most `max_rows` of them.

    Raises StudioError for a file that is missing, empty or unreadable, and for one without any usable row.
    """
    kind, data = _open(path)
    if kind == "parquet":
        reading = read_parquet(path)
    else:
        text, assumed = decode(data)
        text = text.replace("\r\n", "\n") if kind != "csv" else text
        reading = _read(kind, text.lstrip("\ufeff"), path.suffix.lower())
        reading = Reading(reading.rows, [*assumed, *reading.assumptions])
    records: list[Record] = []
    bad_rows: list[BadRow] = []
    for row in _first(reading, max_rows):
        if isinstance(row, Record):
            records.append(row)
        else:
            bad_rows.append(row)
    if not records:
        raise _nothing_usable(path, bad_rows)
    return RecordFile(path, kind, records, bad_rows, reading.assumptions)


def _open(path: Path) -> tuple[str, bytes]:
    """The kind of a file and, unless it is Parquet, its bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            for mark, name in _PACKED.items():
                if head.startswith(mark):
                    raise StudioError(f"{path.name} is packed with {name}.", "Unpack it and use the file inside.")
            if head.startswith(b"PAR1"):
                return "parquet", b""
            data = head + file.read()
    except FileNotFoundError:
        raise StudioError(f"There is no file {path}.", "Give the path of a data file.") from None
    except IsADirectoryError:
        raise StudioError(f"{path} is a folder, not a file.", "Give the path of one data file.") from None
    except (OSError, ValueError) as error:
        raise StudioError(f"{path} can't be read: {error}.", "Check its name and permissions.") from None
    if not data.strip():
        raise StudioError(f"{path.name} is empty.", _KNOWN)
    kind = _ENDINGS.get(path.suffix.lower()) or _guess(data)
    if kind is None:
        raise StudioError(f"{path.name} is not of a known kind (ending {path.suffix or 'missing'}).", _KNOWN)
    if kind == "parquet":
        raise StudioError(f"{path.name} is not a Parquet file, though its ending says so.", _KNOWN)
    return kind, data


def _guess(data: bytes) -> str | None:
    """The kind of a file whose ending says nothing: only JSON shows itself."""
    start = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    return "json" if start in (b"{", b"[") else None


def _read(kind: str, text: str, suffix: str) -> Reading:
    if kind == "json":
        return read_json(text)
    if kind == "jsonl":
        return read_jsonl(text)
    if kind == "csv":
        return read_csv(text, suffix)
    return read_text(text)


def _first(reading: Reading, max_rows: int | None) -> Iterator[Record | BadRow]:
    for position, row in enumerate(reading.rows):
        if max_rows is not None and position >= max_rows:
            return
        yield row


def _nothing_usable(path: Path, bad_rows: list[BadRow]) -> StudioError:
    if not bad_rows:
        return StudioError(f"{path.name} holds no rows.", _KNOWN)
    first = bad_rows[0]
    found = f" ({shorten(first.found, 120)})" if first.found else ""
    count = f"None of the {len(bad_rows)} rows" if len(bad_rows) > 1 else "The only row"
    return StudioError(
        f"{count} of {path.name} can be read. Row {first.row}: {first.reason}{found}.",
        "A row is an object with named fields: messages, instruction and output, prompt and completion, or text.",
    )
