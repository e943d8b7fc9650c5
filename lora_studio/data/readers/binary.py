"""Reads tables in binary files: Parquet, Arrow (file and stream), and a sheet of an Excel workbook.

A cell that can't be read makes only its row bad. The cells of a workbook are the texts that saving it as CSV gives.
Cells become JSON values. Arrow fills fields that a row lacks with null: these are removed, as trl's
`remove_none_values` does. An Arrow file is mapped, and pages that were read are released.
"""

import json
import math
import mmap
import re
import shutil
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import date, datetime, time, timedelta
from itertools import islice
from pathlib import Path
from typing import IO, Any
from xml.etree.ElementTree import ParseError

from lora_studio.data.memory_limit import MemoryLimitError
from lora_studio.data.messages import FILLED, NAN, BadRow, Fields, Reading, Record, Tally, is_broken, shorten
from lora_studio.data.readers.json import BROKEN_BYTES
from lora_studio.data.readers.tables import FIRST_ROW, WRONG_WIDTH, name_columns, width_of
from lora_studio.data.readers.text_encoding import BOMB_RATIO, BOMB_SIZE, is_torn, open_bytes
from lora_studio.errors import StudioError
from lora_studio.files import SHEET, JsonObject

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


BROKEN_CELL = "a cell of the row cannot be read"
_BATCH_ROWS, _BATCH_BYTES, _FIRST_ROWS = 1024, 1 << 25, 8
_BUFFER = 1 << 20
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

    faults = (pa.ArrowException, OSError, ValueError, IndexError, EOFError)

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


MAX_UNPACKED = 1 << 30
MAX_ROWS, MAX_COLUMNS = 1_048_576, 16_384  # of a sheet, as Excel has them
FORMULA_ERRORS = "{cells} an error of Excel such as #N/A, read as this text."
_ERROR = re.compile(r"#(N/A|REF!|VALUE!|DIV/0!|NAME\?|NUM!|NULL!|SPILL!|CALC!)")
_SAVE_AS_CSV = "Save the sheet as CSV and use that."
_SAVE_AGAIN = "Open it in a spreadsheet program and save it again, or save the sheet as CSV."
_WORKBOOK_PART = "xl/workbook.xml"
_OLD_OFFICE = b"\xd0\xcf\x11\xe0"
_SAMPLE_ROWS = 50
_BLOCK = 1 << 20
_UNCOMPUTED = re.compile(rb"(?:</f>|<f(?:\s[^<>]*)?/>)\s*(?:<v\s*/>|<v>\s*</v>)?\s*</c>")
_NUMBER_FORMAT = re.compile(r"(#,##)?(0+)(?:\.(0+))?(%?)")
_FAULTS = (zipfile.BadZipFile, zlib.error, ParseError, KeyError, ValueError, TypeError, AttributeError, IndexError)
_FAULTS_OF_FILES = (OSError, EOFError, NotImplementedError, RuntimeError)
Cells = list[str]


def is_workbook(path: Path) -> bool:
    """Whether the content is an Excel workbook, whatever the file's ending."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _WORKBOOK_PART in archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def refuse_no_workbook(path: Path) -> None:
    """Raises `StudioError` for a file that has the ending of a workbook, or the content of an old one, and is none."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except (OSError, ValueError):
        return  # whoever reads it says why it can't be read
    if head.startswith(_OLD_OFFICE):
        raise StudioError(
            f"{path.name} is an Excel workbook of the old format (.xls) or protected by a password.",
            "Save it as .xlsx without a password, or save the sheet as CSV.",
        )
    if path.suffix.lower() in (".xlsx", ".xlsm") and head:
        damaged = head.startswith(b"PK")
        problem = "is a damaged Excel workbook" if damaged else "is not an Excel workbook, though its ending says so"
        raise StudioError(f"{path.name} {problem}.", _SAVE_AGAIN)


def read_workbook(path: Path, name: str = "") -> Reading:
    """The rows of the sheet `name`, else of the first visible one that holds any.

    Raises `StudioError` for a damaged or far too large file, and for a sheet that is not there or holds no rows.
    """
    _refuse_bomb(path)
    with _opened(path) as workbook:
        visible = [sheet for sheet in workbook.worksheets if sheet.sheet_state == "visible"] or workbook.worksheets
        titles = [str(sheet.title) for sheet in visible]
        sheets = [_sheet_called(name, workbook.worksheets, path, titles)] if name else visible
        samples = ((sheet, list(islice(_sheet_rows(sheet, path), _SAMPLE_ROWS))) for sheet in sheets)
        sheet, first = next(((sheet, rows) for sheet, rows in samples if rows), (None, []))
        if sheet is None:
            subject = f"The sheet `{shorten(name, 60)}` of {path.name}" if name else path.name
            raise StudioError(f"{subject} holds no rows.", "The first row of a sheet names its columns.")
        title = str(sheet.title)
        warnings = _warnings(path, sheet)
    notes = [f"The sheet `{title}` is read." if name or len(titles) == 1 else _of_several(title, titles)]
    skipped = 0
    if len(first) > 1 and _filled(first[0]) == 1 and _filled(first[1]) > 1:
        skipped = 1
        notes.append(f"The first row, “{shorten(' '.join(first[0]).strip(), 60)}”, is a title and skipped.")
    sample = first[skipped:]
    width = max(at + 1 for row in sample for at, cell in enumerate(row) if cell.strip())
    columns = [at for at in range(width) if any(at < len(row) and row[at].strip() for row in sample)]
    header = name_columns(_at(sample[0], columns), [_at(row, columns) for row in sample], FIRST_ROW)
    tally = Tally()

    def rows() -> Iterator[Record | BadRow]:
        tally.clear()
        with _opened(path) as workbook:
            data = islice(_sheet_rows(workbook[title], path), skipped + header.exists, None)
            for number, cells in enumerate(data, 1):
                yield _record(number, cells, columns, header.names, tally)

    return Reading(rows, [*notes, header.note, *warnings], tally, titles)


def _record(number: int, cells: Cells, columns: list[int], names: list[str], tally: Tally) -> Record | BadRow:
    if any(map(is_broken, cells)):
        return BadRow(number, BROKEN_BYTES, shorten(" | ".join(cells)))
    if any(cell.strip() for at, cell in enumerate(cells) if at not in columns):
        return BadRow(number, WRONG_WIDTH, width_of(cells, len(names)))
    values = _at(cells, columns)
    if errors := sum(bool(_ERROR.fullmatch(cell)) for cell in values):
        tally.count(FORMULA_ERRORS, errors)
    return Record(number, dict(zip(names, values, strict=False)))


def _at(cells: Cells, columns: list[int]) -> Cells:
    return [cells[at] if at < len(cells) else "" for at in columns]


def _filled(cells: Cells) -> int:
    return sum(bool(cell.strip()) for cell in cells)


def _sheet_called(name: str, sheets: list[Any], path: Path, titles: list[str]) -> Any:
    """The sheet of that name, capital letters aside as in Excel. Raises `StudioError` where there is none."""
    for sheet in sheets:
        if str(sheet.title).strip().casefold() == name.casefold():
            return sheet
    raise StudioError(f"{path.name} has no sheet `{shorten(name, 60)}`.", f"Its sheets: {_listed(titles)}.")


def _listed(titles: list[str]) -> str:
    more = f" and {len(titles) - 9} more" if len(titles) > 9 else ""
    return ", ".join(f"`{shorten(title, 40)}`" for title in titles[:9]) + more


def _of_several(title: str, titles: list[str]) -> str:
    rest = _listed([other for other in titles if other != title])
    return f"The sheet `{title}` is read, not {rest}. To read another, choose it or add {SHEET}NAME to the path."


def _refuse_bomb(path: Path) -> None:
    """Raises `StudioError` if the parts unpack to far more than their file; none unpacks to more than it declares."""
    with _checked(path), zipfile.ZipFile(path) as archive:
        unpacked = sum(part.file_size for part in archive.infolist())
    size = path.stat().st_size
    if unpacked > MAX_UNPACKED or (unpacked > BOMB_SIZE and unpacked > BOMB_RATIO * size):
        raise StudioError(
            f"{path.name} unpacks to {unpacked / 1e6:,.0f} MB, the file has {size / 1e6:,.3g} MB.", _SAVE_AS_CSV
        )


@contextmanager
def _checked(path: Path) -> Iterator[None]:
    """Turns what a damaged workbook raises into a `StudioError`."""
    try:
        yield
    except (*_FAULTS, *_FAULTS_OF_FILES) as error:
        reason = shorten(str(error), 120) or type(error).__name__
        raise StudioError(f"{path.name} is damaged and can't be read as a workbook: {reason}.", _SAVE_AGAIN) from None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import openpyxl

    def load(file: Any) -> Any:  # from an opened file: by name openpyxl takes known endings only
        return openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)

    with _checked(path), path.open("rb") as file, closing(load(file)) as workbook:
        yield workbook


def _sheet_rows(sheet: Any, path: Path) -> Iterator[Cells]:
    """The rows of a sheet that hold anything, as texts."""
    sheet.reset_dimensions()  # what the file says of its own size may be wrong
    for number, row in enumerate(sheet.iter_rows(), 1):
        if number > MAX_ROWS or len(row) > MAX_COLUMNS:
            raise StudioError(f"A sheet of {path.name} is larger than Excel allows.", _SAVE_AS_CSV)
        cells = [_text(cell) for cell in row]
        if any(cell.strip() for cell in cells):
            yield cells


def _text(cell: Any) -> str:
    """The value of a cell as CSV would hold it; of a formula the value computed last."""
    from openpyxl.utils.escape import unescape

    value = cell.value
    if value is None:
        return ""
    if isinstance(value, str):
        return str(unescape(value)) if "_x" in value else value
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d") if value.time() == time() else value.isoformat(" ", "seconds")
    if isinstance(value, (date, time, timedelta)):
        return str(value)
    return _number(value, str(cell.number_format or ""))


def _number(value: float, number_format: str) -> str:
    """A number as it is shown: with the places, zeros, thousands and percent of its format, else all its digits."""
    pattern = _NUMBER_FORMAT.fullmatch(number_format)
    if not pattern:
        return str(value) if isinstance(value, int) else f"{value:.15g}"
    thousands, zeros, places, percent = pattern.groups()
    digits = len(places or "")
    text = f"{abs(value) * (100 if percent else 1):{',' if thousands else ''}.{digits}f}"
    sign = "-" if value < 0 and any(letter in "123456789" for letter in text) else ""
    return sign + text.zfill(0 if thousands else len(zeros) + (digits + 1 if digits else 0)) + percent


def _warnings(path: Path, sheet: Any) -> list[str]:
    """Sentences on merged cells and on formulas that were never computed, whose cells are empty."""
    merged = uncomputed = False
    with zipfile.ZipFile(path) as archive, archive.open(sheet._worksheet_path.lstrip("/")) as file:
        tail = b""
        while block := file.read(_BLOCK):
            text = tail + block
            merged = merged or b"<mergeCell " in text
            uncomputed = uncomputed or _UNCOMPUTED.search(text) is not None
            tail = text[-200:]
    notes = ["Of merged cells the first holds the value; the others are empty."] if merged else []
    if uncomputed:
        notes.append("Formulas without a computed value are read as empty: open the file in Excel and save it.")
    return notes
