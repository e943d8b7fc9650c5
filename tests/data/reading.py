"""Reads a file as preparing does, whole into memory, for tests of readers."""

from dataclasses import dataclass
from pathlib import Path

from lora_studio.data.cache import Cache
from lora_studio.data.messages import BadRow, Record
from lora_studio.data.sources import open_source
from lora_studio.data.store import BadRows, RecordStore, write_records


@dataclass
class RecordFile:
    """What came of a file."""

    kind: str
    records: list[Record]
    bad_rows: list[BadRow]
    assumptions: list[str]


def read_records(path: Path, max_rows: int | None = None) -> RecordFile:
    """The rows of a file, at most `max_rows` of them. Raises `StudioError` for a file without a usable row."""
    source = open_source(path)
    arrays = Cache(None).get("records", lambda writer: write_records(writer, source, lambda *_: None, max_rows))
    store = RecordStore(arrays)
    return RecordFile(source.kind, list(store.records(range(len(store)))), list(BadRows(arrays)), store.assumptions)
