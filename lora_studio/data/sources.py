"""Opens data by name as a stream of rows: a file, several files, a folder, or a dataset of the Hub or its local cache.

The content decides the format of a file; the ending only helps. Bad rows are reported and do not stop the others.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote, urlencode

from lora_studio.data.messages import BadRow, JsonObject, Reading, Record, Tally, shorten
from lora_studio.data.readers.binary import (
    CellReader,
    is_workbook,
    read_arrow,
    read_parquet,
    read_workbook,
    refuse_no_workbook,
)
from lora_studio.data.readers.json import BROKEN_LINE, BROKEN_REST, NO_JSON, NOT_JSON, holds_json, read_json
from lora_studio.data.readers.tables import holds_tabs, read_csv
from lora_studio.data.readers.text import read_text
from lora_studio.data.readers.text_encoding import (
    KNOWN,
    is_torn,
    kind_ending,
    open_bytes,
    open_text,
    refuse_stand_in,
    search_encoding,
)
from lora_studio.data.turns import is_turn, without_filled
from lora_studio.errors import StudioError
from lora_studio.files import SHEET, split_sheet
from lora_studio.models.hub import DATASET_PREFIX, is_dataset_name, parse_dataset_name

_WAY_OUT = (
    "Check the name, config, split and revision, and whether this machine can reach the Hub (private and gated "
    "datasets need HF_TOKEN in the environment). Without a network, download the files of the dataset and give "
    "their folder."
)
_PATIENCE = 10.0  # seconds
_BATCH_ROWS = 1000


def read_hub(name: str) -> tuple[Reading, str]:
    """How to read a data set of the Hub, and its name with the revision that is read."""
    plain, options = parse_dataset_name(name)
    offline = _is_offline()
    revision = options.get("revision")
    if not offline:
        revision = _resolve(plain, revision)
    split = options.get("split", "train")
    sentence = f"Split `{split}` of the Hub dataset {plain}" + (f" at revision {revision}." if revision else ".")
    query = {"config": options.get("config"), "split": split, "revision": revision}
    named = urlencode({key: value for key, value in query.items() if value}, quote_via=quote)
    resolved = f"{DATASET_PREFIX}{plain}?{named}"

    def load() -> Any:
        return _load(plain, options.get("config"), split, revision, streaming=not offline)

    tally = Tally()
    next(_rows(load(), plain, tally), None)
    notes = [sentence, *(["Read from the local cache."] if offline else [])]
    return Reading(lambda: _rows(load(), plain, tally), notes, tally), resolved


def _rows(rows: Any, name: str, tally: Tally) -> Iterator[Record | BadRow]:
    number = 0
    tally.clear()
    try:
        for table in rows.with_format("arrow").iter(batch_size=_BATCH_ROWS):
            cells = CellReader(table.schema, tally)
            for batch in table.to_batches():
                for fields in cells.rows(batch):
                    number += 1
                    yield Record(number, fields)
    except _faults() as error:
        reason = f"Reading {name} from the Hub failed after row {number}: {shorten(str(error))}."
        raise StudioError(reason, "Try again, or download the files of the dataset and give their folder.") from None


def _load(name: str, config: str | None, split: str, revision: str | None, *, streaming: bool) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split, revision=revision, streaming=streaming)
    except _faults() as error:
        raise StudioError(f"The Hub dataset {name} cannot be read: {shorten(str(error), 300)}", _WAY_OUT) from None


def _resolve(name: str, revision: str | None) -> str | None:
    """The current commit of a revision, so that training reads what the preview showed."""
    import huggingface_hub

    try:
        return huggingface_hub.dataset_info(name, revision=revision, timeout=_PATIENCE).sha
    except _faults() as error:
        raise StudioError(f"The Hub dataset {name} was not found: {shorten(str(error), 300)}", _WAY_OUT) from None


def _faults() -> tuple[type[Exception], ...]:
    """Exceptions of the Hub's libraries for wrong names, a missing network and damaged files."""
    from huggingface_hub.utils import httpx

    return (OSError, ValueError, RuntimeError, ImportError, httpx.HTTPError)


def _is_offline() -> bool:
    import huggingface_hub.constants

    return bool(huggingface_hub.constants.HF_HUB_OFFLINE)


_MAX_FILES = 1000
_MAX_WALKED = 20_000
_NOT_DATA = {
    *("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "config.json", "package.json"),
    *("readme.md", "license.md", "license.txt", "changelog.md", "requirements.txt", "contributing.md"),
}
_SPLIT = re.compile(r"(?:^|[^a-z])(train|test|validation|valid|val|dev|eval|heldout)(?:$|[^a-z])")


def data_files(paths: list[Path], endings: Mapping[str, str]) -> tuple[list[Path], list[str]]:
    """The data files of paths and folders, and notes on files that are not read."""
    files: list[Path] = []
    notes: list[str] = []
    for path in paths:
        if os.path.isdir(path):  # path.is_dir() raises for names that are invalid
            folder_files, sentences = _in_folder(path, endings)
            files += folder_files
            notes += sentences
        elif set("*?[") & set(path.name) and not os.path.exists(path):
            files += _by_pattern(path)
        else:
            files.append(path)
    return list(dict.fromkeys(files)), notes


def _by_pattern(pattern: Path) -> list[Path]:
    """The files that match a pattern such as part-*.jsonl."""
    matches = [path for path in sorted(pattern.parent.glob(pattern.name)) if path.is_file()][: _MAX_FILES + 1]
    if not matches:
        raise StudioError(f"No file matches {pattern}.", "Check the folder and the pattern.")
    if len(matches) > _MAX_FILES:
        raise StudioError(
            f"More than {_MAX_FILES} files match {pattern}.", "Use a narrower pattern, or merge the files."
        )
    return matches


def _in_folder(folder: Path, endings: Mapping[str, str]) -> tuple[list[Path], list[str]]:
    by_kind: dict[str, list[Path]] = {}
    for path in _walk(folder):
        kind = endings.get(kind_ending(path))
        if kind and path.name.lower() not in _NOT_DATA:
            by_kind.setdefault(kind, []).append(path)
    if not by_kind:
        raise StudioError(f"The folder {folder.name} contains no data files.", KNOWN)
    tables = [path for kind, paths in by_kind.items() if kind != "text" for path in paths]
    files = sorted(tables or by_kind["text"])
    notes = []
    if tables and "text" in by_kind:
        notes.append(f"{len(by_kind['text'])} text files in the folder are ignored.")
    splits: dict[str | None, list[Path]] = {}
    for path in files:
        splits.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    if "train" in splits and len(splits) > 1:
        unread = ", ".join(path.name for name, paths in splits.items() if name != "train" for path in paths[:6])
        notes.append(f"The files named train are read; ignored: {unread}.")
        files = splits["train"]
    if len(files) > _MAX_FILES:
        raise StudioError(
            f"The folder {folder.name} contains {len(files)} data files; the limit is {_MAX_FILES}.",
            "Choose a subfolder, or merge the files.",
        )
    names = ", ".join(path.name for path in files[:6]) + (f" and {len(files) - 6} more" if len(files) > 6 else "")
    return files, [f"Data files read from the folder: {names}.", *notes]


def _split_of(path: Path) -> str | None:
    """The split that a file's name, or its folder's, speaks of."""
    for part in (path.name, *reversed(path.parts[:-1])):
        match = _SPLIT.search(part.lower())
        if match:
            return match.group(1)
    return None


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, hidden ones and links left out."""
    count = 0
    try:
        for place, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                count += 1
                if count > _MAX_WALKED:
                    raise StudioError(
                        f"The folder {folder.name} contains more than {_MAX_WALKED} files.",
                        "Choose a subfolder.",
                    )
                path = Path(place) / name
                if not name.startswith((".", "_")) and path.is_file() and not path.is_symlink():
                    yield path
    except OSError as error:
        raise StudioError(
            f"{folder.name} cannot be read: {error.strerror}.", "Check its name and permissions."
        ) from None


SIDE_BY_SIDE = "{rows} roles and contents in lists side by side: these are read as turns."
TORN = "the compressed file is damaged or truncated; everything before that is read"
ENDINGS = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".parquet": "parquet",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
}
_HEAD_LENGTH = 1 << 16
_SAMPLE_ROWS = 500
_ARROW_STREAM = b"\xff\xff\xff\xff"


@dataclass
class Source:
    """A stream of rows. `choices` are notes on the choice of files, `encoding` is the configured one;
    `starts` has the number of rows before each file, in reading order, `sheets` the sheet that is named for each."""

    name: str
    files: list[Path]
    kind: str
    readings: list[Reading] = field(repr=False)
    choices: list[str] = field(default_factory=list)
    encoding: str | None = None
    starts: list[tuple[str, int]] = field(default_factory=list)
    sheets: list[str] = field(default_factory=list)

    def rows(self) -> Iterator[Record | BadRow]:
        """Every row, lazily and each time anew; over several files the row numbers go on counting."""
        before = 0
        self.starts = []
        for position, reading in enumerate(self.readings):
            self.starts.append((self.files[position].name if self.files else self.name, before))
            last = before
            for row in reading.rows():
                last = before + row.row
                turned = _with_turns(row, reading.tally)
                yield turned if not before else _moved(turned, before)
            before = last

    @property
    def assumptions(self) -> list[str]:
        """Assumptions about the files and about the rows read so far."""
        if len(self.readings) == 1:
            return [*self.choices, *self.readings[0].notes()]
        notes = zip(self.files, self.readings, strict=True)
        return [*self.choices, *(f"{path.name}: {sentence}" for path, reading in notes for sentence in reading.notes())]

    def place(self, row: int) -> tuple[str, int]:
        """The file of a row that has been read, and the row's number in that file."""
        name, before = next((start for start in reversed(self.starts) if start[1] < row), (self.name, 0))
        return name, row - before


def open_source(name: str | Path | Sequence[str | Path], encoding: str | None = None) -> Source:
    """The rows of a file, of several files, of a folder, or of a Hub data set.

    `encoding` is that of text files, None finds it. A Hub data set is named "owner/name" or
    "hub:owner/name?config=C&split=S&revision=R", the sheet of a workbook "book.xlsx?sheet=NAME". Raises StudioError
    where nothing can be read.
    """
    names = [name] if isinstance(name, str | Path) else list(name)
    if not names:
        raise StudioError("No data file was given.", "Give the path of a data file.")
    if len(names) == 1 and is_dataset_name(str(names[0])):
        reading, resolved = read_hub(str(names[0]))
        return Source(resolved, [], "hub", [reading])
    parts: dict[tuple[Path, str], None] = {}
    assumptions: list[str] = []
    for item in names:
        path, sheet = split_sheet(item)
        of_name, sentences = data_files([Path(path).expanduser()], ENDINGS)
        parts |= dict.fromkeys((file, sheet) for file in of_name)
        assumptions += sentences
    files, sheets = [file for file, _ in parts], [sheet for _, sheet in parts]
    opened = [open_file(file, encoding, sheet) for file, sheet in parts]
    kinds, readings = {kind for kind, _ in opened}, [reading for _, reading in opened]
    if len(files) > 1:
        assumptions += _unlike_columns(files, readings)
    kind = kinds.pop() if len(kinds) == 1 else "mixed"
    return Source(", ".join(map(str, names)), files, kind, readings, assumptions, encoding, sheets=sheets)


def open_file(path: Path, configured: str | None = None, sheet: str = "") -> tuple[str, Reading]:
    """The kind of a file, and its reading; `configured` is the encoding set for text files, `sheet` a workbook's."""
    if is_workbook(path):
        return "xlsx", read_workbook(path, sheet)
    if sheet and path.is_file():
        raise StudioError(f"{path.name} is not an Excel workbook and has no sheets.", f"Leave out {SHEET}{sheet}.")
    refuse_no_workbook(path)
    head = _head(path)
    refuse_stand_in(path, head)
    if head.startswith(b"PAR1"):
        return "parquet", read_parquet(path)
    if head.startswith((b"ARROW1", _ARROW_STREAM)):
        return "arrow", read_arrow(path)
    ending = kind_ending(path)
    kind = ENDINGS.get(ending) or _guess(head)
    if kind is None:
        raise StudioError(f"{path.name} has an unsupported file type (extension: {ending or 'missing'}).", KNOWN)
    if kind in ("parquet", "arrow"):
        raise StudioError(
            f"{path.name} is not {'a Parquet' if kind == 'parquet' else 'an Arrow'} file, though its ending says so.",
            KNOWN,
        )
    encoding, assumptions = search_encoding(path, configured)
    kind, reading = _read_text_kind(path, kind, ending, encoding)
    if kind in ("json", "jsonl") and b'"arguments"' in head and b"null" in head:
        reading = without_filled(reading, islice(reading.rows(), _SAMPLE_ROWS))
    return kind, Reading(_until_torn(path, reading.rows), [*assumptions, *reading.assumptions], reading.tally)


def _head(path: Path) -> bytes:
    """The first bytes of a file after leading white space. Raises StudioError for an empty file."""
    with open_bytes(path) as file:
        head = file.read(_HEAD_LENGTH)
        while head and not head.strip() and (more := file.read(_HEAD_LENGTH)):
            head = more
        torn = is_torn(file)
    if torn and not head.strip():
        raise StudioError(f"{path.name} is a damaged gzip file: nothing can be decompressed.", "Compress it again.")
    if not head.strip():
        raise StudioError(f"{path.name} is empty.", KNOWN)
    return head


def _read_text_kind(path: Path, kind: str, ending: str, encoding: str) -> tuple[str, Reading]:
    """The kind that a text file proves to be of, whatever its ending, and how to read it."""

    def opened() -> TextIO:
        return open_text(path, encoding)

    if kind in ("text", "csv") and holds_json(opened):
        reading = read_json(opened, "json")
        return "json", replace(reading, assumptions=[f"The {ending} file contains JSON.", *reading.assumptions])
    if kind == "csv" or (kind == "text" and holds_tabs(opened)):
        reading = read_csv(lambda: open_text(path, encoding, newline=""), ending if kind == "csv" else ".tsv")
        if kind == "text":
            reading = replace(reading, assumptions=[f"The {ending} file contains a table.", *reading.assumptions])
        return "csv", reading
    return kind, read_text(opened) if kind == "text" else read_json(opened, kind)


def _until_torn(path: Path, rows: Callable[[], Iterator[Record | BadRow]]) -> Callable[[], Iterator[Record | BadRow]]:
    """The rows, and after the last the report of a packed file that is not whole."""
    with open_bytes(path) as file:
        if file.seekable():
            return rows

    def reported() -> Iterator[Record | BadRow]:
        last = 0
        for row in rows():
            last = row.row
            yield row
        with open_bytes(path) as file:
            while file.read(1 << 20):
                pass
            if is_torn(file):
                yield BadRow(last + 1, TORN)

    return reported


def _guess(data: bytes) -> str | None:
    """The kind of a file with an unknown ending: only JSON is recognisable."""
    start = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    return "json" if start in (b"{", b"[") else None


def _with_turns(row: Record | BadRow, tally: Tally) -> Record | BadRow:
    """The row with parallel lists of roles and contents converted to a list of turns."""
    if isinstance(row, BadRow) or not any(_lies_side_by_side(value) for value in row.fields.values()):
        return row
    tally.count(SIDE_BY_SIDE)
    fields = {name: _turned(value) if _lies_side_by_side(value) else value for name, value in row.fields.items()}
    return Record(row.row, fields)


def _lies_side_by_side(value: Any) -> bool:
    if not isinstance(value, dict) or not value or not all(isinstance(item, list) for item in value.values()):
        return False
    return is_turn(value) and len({len(item) for item in value.values()}) == 1


def _turned(value: dict[str, list[Any]]) -> list[JsonObject]:
    turns = (dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True))
    return [{name: cell for name, cell in turn.items() if cell is not None} for turn in turns]


def _moved(row: Record | BadRow, before: int) -> Record | BadRow:
    if isinstance(row, Record):
        return Record(row.row + before, row.fields)
    return BadRow(row.row + before, row.reason, row.found, row.field)


def _unlike_columns(files: list[Path], readings: list[Reading]) -> list[str]:
    """A note if the first rows of files have different columns."""
    columns: dict[tuple[str, ...], str] = {}
    for path, reading in zip(files, readings, strict=True):
        first = next((row for row in reading.rows() if isinstance(row, Record)), None)
        if first is not None:
            columns.setdefault(tuple(sorted(map(str, first.fields))), path.name)
    if len(columns) < 2:
        return []
    listing = "; ".join(
        f"{name} has " + ", ".join(f"`{shorten(column, 40)}`" for column in names[:8])
        for names, name in list(columns.items())[:4]
    )
    return [f"The files have different columns: {listing}."]


def nothing_usable(name: str, kind: str, first: BadRow | None, bad: int) -> StudioError:
    """The error for a source without usable rows; `first` is the first of `bad` bad rows."""
    if first is None:
        return StudioError(f"{name} contains no rows.", KNOWN)
    detail = f" ({shorten(first.found, 120)})" if first.found else ""
    count = f"None of the {bad:,} rows" if bad > 1 else "No row"
    hint = "A row is an object with named fields: messages, instruction and output, prompt and completion, or text."
    if kind in ("csv", "xlsx"):
        hint = "Fix that position, or save the table with a program that quotes its cells."
    elif first.reason == BROKEN_LINE and first.found.startswith(NO_JSON):
        hint = NOT_JSON
    elif first.reason in (BROKEN_LINE, BROKEN_REST):
        hint = "Fix the JSON there: put names and texts in double quotes, and no comma before a closing bracket."
    return StudioError(f"{count} of {Path(name).name} can be read. Row {first.row}: {first.reason}{detail}.", hint)
