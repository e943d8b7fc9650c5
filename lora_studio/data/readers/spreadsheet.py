"""Reads the first sheet with rows of an Excel workbook (.xlsx), with the texts that saving it as CSV gives."""

import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import date, datetime, time, timedelta
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from lora_studio.data.messages import BadRow, Reading, Record, Tally, is_broken, shorten
from lora_studio.data.readers.json import BROKEN_BYTES
from lora_studio.data.readers.tables import FIRST_ROW, WRONG_WIDTH, name_columns, width_of
from lora_studio.data.readers.text_encoding import BOMB_RATIO, BOMB_SIZE
from lora_studio.errors import StudioError

MAX_ROWS, MAX_COLUMNS = 1_048_576, 16_384  # of a sheet, as Excel has them
MAX_UNPACKED = 1 << 30
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


def read_workbook(path: Path) -> Reading:
    """The rows of the first visible sheet that holds any. Raises `StudioError` for a damaged or far too large file."""
    _refuse_bomb(path)
    with _opened(path) as workbook:
        sheets = [sheet for sheet in workbook.worksheets if sheet.sheet_state == "visible"] or workbook.worksheets
        samples = ((sheet, list(islice(_rows(sheet, path), _SAMPLE_ROWS))) for sheet in sheets)
        sheet, first = next(((sheet, rows) for sheet, rows in samples if rows), (None, []))
        if sheet is None:
            raise StudioError(f"{path.name} holds no rows.", "The first row of a sheet names its columns.")
        title, titles = str(sheet.title), [str(other.title) for other in sheets]
        warnings = _warnings(path, sheet)
    notes = [f"The sheet `{title}` is read."] if len(titles) == 1 else [_of_several(title, titles)]
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
            data = islice(_rows(workbook[title], path), skipped + header.exists, None)
            for number, cells in enumerate(data, 1):
                yield _record(number, cells, columns, header.names, tally)

    return Reading(rows, [*notes, header.note, *warnings], tally)


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


def _of_several(title: str, titles: list[str]) -> str:
    rest = ", ".join(f"`{shorten(name, 40)}`" for name in titles[:9] if name != title)
    return f"The sheet `{title}` is read, not {rest}: move another to the front, or save it as CSV."


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


def _rows(sheet: Any, path: Path) -> Iterator[Cells]:
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
