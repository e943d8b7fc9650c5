"""Excel workbooks: what a cell shows is what is read, and a damaged or hostile file is refused in a sentence."""

import datetime
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from openpyxl.styles import Alignment

from lora_studio.data.dataset import prepare
from lora_studio.data.messages import Record
from lora_studio.data.readers import binary
from lora_studio.data.sources import open_source
from lora_studio.errors import StudioError
from tests.data.conftest import MARKED, build_tokenizer
from tests.data.reading import read_records

Fill = Callable[[Any], None]


def workbook(path: Path, fill: Fill, **others: Fill) -> Path:
    """A workbook whose first sheet, and others by name, are filled by functions."""
    book = openpyxl.Workbook()
    fill(book.active)
    for name, fill_other in others.items():
        fill_other(book.create_sheet(name))
    book.save(path)
    return path


def rows(*values: tuple[Any, ...]) -> Fill:
    def fill(sheet: Any) -> None:
        for row in values:
            sheet.append(row)

    return fill


def changed(path: Path, part: str, change: Callable[[str], str]) -> Path:
    """The workbook with the text of one of its parts changed."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts[part] = change(parts[part].decode()).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def test_a_sheet_is_read_like_the_table_that_it_is(tmp_path: Path) -> None:
    file = read_records(
        workbook(tmp_path / "a.xlsx", rows(("question", "answer"), ("1+1?", 2), (None, None), ("Why?", "So.\nThere.")))
    )
    assert [(row.row, row.fields) for row in file.records] == [
        (1, {"question": "1+1?", "answer": "2"}),
        (2, {"question": "Why?", "answer": "So.\nThere."}),
    ]
    assert file.kind == "xlsx"
    assert file.assumptions == ["The sheet `Sheet` is read.", "The header row names the columns: `question`, `answer`."]


@pytest.mark.parametrize(
    ("value", "number_format", "text"),
    [
        (3.0, "General", "3"),
        (0.1 + 0.2, "General", "0.3"),
        (1234567, "General", "1234567"),
        (1e21, "General", "1e+21"),
        (0.5, "0%", "50%"),
        (0.125, "0.0%", "12.5%"),
        (1234.5, "#,##0.00", "1,234.50"),
        (42, "00000", "00042"),
        (-0.001, "0.00", "0.00"),
        (-7, "0.0", "-7.0"),
        (True, "General", "TRUE"),
        (datetime.datetime(2026, 5, 1), "yyyy-mm-dd", "2026-05-01"),
        (datetime.datetime(2026, 5, 1, 13, 30), "yyyy-mm-dd hh:mm", "2026-05-01 13:30:00"),
        (datetime.time(9, 5), "hh:mm", "09:05:00"),
        ("a_x000D_b", "General", "a\rb"),
        ("007", "@", "007"),
    ],
)
def test_a_value_is_the_text_that_csv_would_have(tmp_path: Path, value: Any, number_format: str, text: str) -> None:
    def fill(sheet: Any) -> None:
        rows(("question", "answer"), ("a", "x"))(sheet)
        sheet["B2"].value, sheet["B2"].number_format = value, number_format

    (record,) = read_records(workbook(tmp_path / "a.xlsx", fill)).records
    assert record.fields["answer"] == text


def test_the_first_visible_sheet_with_rows_is_read_and_the_others_are_named(tmp_path: Path) -> None:
    def hidden(sheet: Any) -> None:
        rows(("secret", "x"), ("a", "b"))(sheet)
        sheet.sheet_state = "hidden"

    table = rows(("question", "answer"), ("a", "b"))
    path = workbook(tmp_path / "a.xlsx", lambda sheet: None, Hidden=hidden, Chats=table, More=table)
    file = read_records(path)
    assert file.records[0].fields == {"question": "a", "answer": "b"}
    assert "The sheet `Chats` is read, not `Sheet`, `More`" in file.assumptions[0]


def test_a_sheet_is_named_behind_the_file_as_the_subset_of_a_hub_dataset_is(tmp_path: Path) -> None:
    tables = {name: rows(("question", "answer"), ("?", name)) for name in ("Train", "More rows", "Old")}
    path = workbook(tmp_path / "a.xlsx", rows(("a note",), ("on all this",)), **tables)
    source = open_source(f"{path}?sheet=more ROWS")
    assert [row.fields["answer"] for row in source.rows() if isinstance(row, Record)] == ["More rows"]
    assert source.assumptions[0] == "The sheet `More rows` is read."
    assert source.readings[0].sheets == ["Sheet", "Train", "More rows", "Old"]
    both = open_source([f"{path}?sheet=Train", f"{path}?sheet=Old"])
    assert [row.fields["answer"] for row in both.rows() if isinstance(row, Record)] == ["Train", "Old"]
    with pytest.raises(StudioError, match=r"a\.xlsx has no sheet `Test`\.\s.*`Train`, `More rows`"):
        open_source(f"{path}?sheet=Test")
    (tmp_path / "b.csv").write_text("question,answer\n?,x\n")
    with pytest.raises(StudioError, match=r"b\.csv is not an Excel workbook"):
        open_source(f"{tmp_path}/b.csv?sheet=Test")


def test_each_sheet_is_prepared_and_cached_by_itself(tmp_path: Path) -> None:
    tables = {name: rows(("question", "answer"), *((f"{at}?", name) for at in range(4))) for name in ("Two", "Three")}
    path = workbook(tmp_path / "a.xlsx", rows(("question", "answer"), ("?", "One")), **tables)
    tokenizer, prepared = build_tokenizer(MARKED), []
    for name in (str(path), f"{path}?sheet=Two", f"{path}?sheet=Three", f"{path}?sheet=Two"):
        at = prepare(name, tokenizer, validation_file=f"{path}?sheet=Two", cache_folder=tmp_path / "cache")
        prepared.append((len(at.train), len(at.validation), at.fingerprint))
    assert [counts for *counts, _ in prepared] == [[1, 4], [4, 4], [4, 4], [4, 4]]
    assert len({fingerprint for *_, fingerprint in prepared}) == 3


def test_a_title_and_empty_rows_and_columns_around_the_table_are_no_data(tmp_path: Path) -> None:
    def fill(sheet: Any) -> None:
        sheet["B2"] = "Questions of May"
        for at, row in enumerate([("question", "answer"), ("a", "b"), ("c", None)], 4):
            sheet.cell(at, 2, row[0])
            sheet.cell(at, 3, row[1])
        sheet["C9"].alignment = Alignment(wrap_text=True)

    file = read_records(workbook(tmp_path / "a.xlsx", fill))
    assert [row.fields for row in file.records] == [{"question": "a", "answer": "b"}, {"question": "c", "answer": ""}]
    assert "“Questions of May”, is a title and skipped" in " ".join(file.assumptions)


def test_columns_without_names_are_numbered_and_values_beside_the_table_are_faults(tmp_path: Path) -> None:
    table = [("How do I get home?", "Take the bus."), *[(f"q {at}", "a") for at in range(60)], ("q", "a", "stray")]
    file = read_records(workbook(tmp_path / "a.xlsx", rows(*table)))
    assert file.records[0].fields == {"column 1": "How do I get home?", "column 2": "Take the bus."}
    assert [(bad.row, bad.reason) for bad in file.bad_rows] == [(62, binary.WRONG_WIDTH)]
    with pytest.raises(StudioError, match="Two columns have the name"):
        read_records(workbook(tmp_path / "b.xlsx", rows(("a", "a"), ("x", "y"))))


def test_formulas_give_the_value_computed_last_and_those_without_are_told(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", rows(("question", "answer"), ("1+1?", "=1+1"), ("?", "x")))
    file = read_records(path)
    assert file.records[0].fields["answer"] == ""
    assert "Formulas without a computed value" in file.assumptions[-1]
    computed = read_records(
        changed(
            path,
            "xl/worksheets/sheet1.xml",
            lambda xml: (
                xml.replace("<f>1+1</f><v />", "<f>1+1</f><v>2</v>")
                .replace("<f>1+1</f><v></v>", "<f>1+1</f><v>2</v>")
                .replace("<f>1+1</f><v/>", "<f>1+1</f><v>2</v>")
            ),
        )
    )
    assert computed.records[0].fields["answer"] == "2"
    assert "Formulas" not in " ".join(computed.assumptions)


def test_merged_cells_and_errors_of_excel_are_told(tmp_path: Path) -> None:
    def fill(sheet: Any) -> None:
        rows(("topic", "question", "answer"), ("x", "a", "#N/A"), (None, "b", "c"))(sheet)
        sheet.merge_cells("A2:A3")

    source = open_source(workbook(tmp_path / "a.xlsx", fill))
    assert [row.fields["topic"] for row in source.rows()] == ["x", ""]  # type: ignore[union-attr]
    notes = " ".join(source.assumptions)
    assert "Of merged cells the first holds the value" in notes
    assert "1 cell holds an error of Excel" in notes


def test_a_workbook_is_known_by_its_content_whatever_its_ending(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", rows(("question", "answer"), ("a", "b"))).rename(tmp_path / "a.csv")
    assert read_records(path).kind == "xlsx"


def test_the_size_that_a_sheet_declares_is_not_believed(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", rows(("question", "answer"), ("a", "b")))
    wrong = changed(path, "xl/worksheets/sheet1.xml", lambda xml: xml.replace('ref="A1:B2"', 'ref="A1:XFD1048576"'))
    assert read_records(wrong).records[0].fields == {"question": "a", "answer": "b"}


@pytest.mark.slow
def test_a_workbook_that_is_a_bomb_or_damaged_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = rows(("question", "answer"), ("a", "b"))
    part = "xl/worksheets/sheet1.xml"
    far = changed(
        workbook(tmp_path / "far.xlsx", table), part, lambda xml: xml.replace('<row r="2"', '<row r="9999999999"')
    )
    with pytest.raises(StudioError, match="larger than Excel allows"):
        read_records(far)
    cut = changed(workbook(tmp_path / "cut.xlsx", table), part, lambda xml: xml[: len(xml) // 2])
    with pytest.raises(StudioError, match="is damaged and can't be read as a workbook"):
        read_records(cut)
    odd = changed(workbook(tmp_path / "odd.xlsx", table), part, lambda xml: xml.replace('r="A2"', 'r="1A"'))
    with pytest.raises(StudioError, match="is damaged"):
        read_records(odd)
    torn = workbook(tmp_path / "torn.xlsx", table)
    torn.write_bytes(torn.read_bytes()[:-400])
    with pytest.raises(StudioError, match="damaged Excel workbook"):
        read_records(torn)
    empty = workbook(tmp_path / "empty.xlsx", lambda sheet: None)
    with pytest.raises(StudioError, match="holds no rows"):
        read_records(empty)
    large = changed(workbook(tmp_path / "bomb.xlsx", table), part, lambda xml: xml + " " * 3_000_000)
    monkeypatch.setattr(binary, "BOMB_SIZE", 1_000_000)
    with pytest.raises(StudioError, match="unpacks to 3 MB"):
        read_records(large)


def test_entities_that_grow_are_no_text(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {name} "{("&" + before + ";") * 10}">' for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    path = workbook(tmp_path / "a.xlsx", rows(("question", "answer"), ("a", "b")))

    def grow(xml: str) -> str:
        head, _, rest = (
            xml.partition("<worksheet") if xml.startswith("<?xml") else ("", "", xml.partition("<worksheet")[2])
        )
        return (
            head
            + bomb
            + "]><worksheet"
            + rest.replace("</sheetData>", '<row r="3"><c r="A3" t="str"><v>&i;</v></c></row></sheetData>')
        )

    with pytest.raises(StudioError, match="damaged"):
        read_records(changed(path, "xl/worksheets/sheet1.xml", grow))
