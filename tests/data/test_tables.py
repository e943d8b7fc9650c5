"""Tables as people's programs write them: what stands in a cell is what is read, or the row is reported."""

import csv
import io
import tempfile
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lora_studio.data.readers import tables
from lora_studio.data.readers import tables as cells
from lora_studio.errors import StudioError
from tests.cpu_time import CpuTime
from tests.data.reading import RecordFile, read_records

NAMES = ["prompt", "completion"]
PIECES = st.sampled_from(
    [*"abé,;|\t\"\\' ", "\n", "\r\n", '""', '","', '"\n"', "\\n", '\\"', "  x", "'tis", "=1", "NaN", "ö?", "文"]
)
CELLS = st.lists(PIECES, max_size=8).map("".join)
ROWS = st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=8)


def table(text: str, ending: str = "csv") -> RecordFile:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{ending}"
        path.write_text(text, encoding="utf-8", newline="")
        return read_records(path)


def rows_of(text: str, ending: str = "csv") -> list[list[str]]:
    return [list(record.fields.values()) for record in table(text, ending).records]


def looks_like_rows(text: str, delimiter: str, width: int) -> bool:
    """Whether three lines that one record takes have each as many cells as the table: such a record is a fault."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    lines, before = io.StringIO(text, newline="").readlines(), 0
    for _ in reader:
        own = lines[before : reader.line_num]
        if len(own) >= 3 and all(line.count(delimiter) == width - 1 for line in own):
            return True
        before = reader.line_num
    return False


@pytest.mark.slow
@settings(max_examples=80, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(rows=ROWS, delimiter=st.sampled_from(",\t;"), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_what_csv_writes_comes_back(rows: list[tuple[str, ...]], delimiter: str, quoting: int) -> None:
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    assume(rows)
    sink = io.StringIO(newline="")
    csv.writer(sink, delimiter=delimiter, quoting=quoting).writerows([["id", *NAMES], *rows])  # type: ignore[arg-type]
    assume(not looks_like_rows(sink.getvalue(), delimiter, 3))
    assert rows_of(sink.getvalue(), "tsv" if delimiter == "\t" else "csv") == [list(row) for row in rows]


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(rows=ROWS, delimiter=st.sampled_from(",\t"), index=st.booleans())
def test_what_pandas_writes_comes_back(rows: list[tuple[str, ...]], delimiter: str, index: bool) -> None:
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    assume(rows and not any("\r" in cell.replace("\r\n", "") for row in rows for cell in row))
    text = pd.DataFrame(rows, columns=["id", *NAMES]).to_csv(sep=delimiter, index=index)
    assume(not looks_like_rows(text, delimiter, 3 + index))
    assert [row[-3:] for row in rows_of(text, "tsv" if delimiter == "\t" else "csv")] == [list(row) for row in rows]


def test_in_text_separated_by_tabs_a_quotation_mark_is_a_letter() -> None:
    text = 'question\tanswer\nWhere?\tThere.\n"Stop" says who?\tShe.\n"Closed\tToday.\nWhen?\tAt six.\n"Left\tNo 5".\n'
    file = table(text, "tsv")
    assert [list(record.fields.values()) for record in file.records] == [
        line.split("\t") for line in text.splitlines()[1:]
    ]
    assert not file.bad_rows
    assert "ordinary characters" in " ".join(file.assumptions)


def test_tabs_and_line_ends_in_quoted_cells_are_read_where_the_writer_quotes() -> None:
    file = table('question\tanswer\nWhat is "it"?\tA tab\n"He said ""no""."\t"one\ttwo\nthree"\n', "tsv")
    assert [list(record.fields.values()) for record in file.records][1] == ['He said "no".', "one\ttwo\nthree"]
    assert "Quoted cells" in " ".join(file.assumptions)


def test_excel_quotes_cells_with_commas_in_text_separated_by_tabs() -> None:
    text = 'question\tanswer\nWhere?\t"There, you see"\nWhen?\tNow\nWho?\t"She, of course"\n'
    assert rows_of(text, "tsv")[0] == ["Where?", "There, you see"]
    assert rows_of(text + "How?\tWell, so\n", "tsv")[0] == ["Where?", '"There, you see"']


def test_an_open_quotation_mark_spoils_its_own_row_only() -> None:
    text = 'question,answer\nWhere?,There.\n"Closed on Mondays,Says the sign.\nWhen?,Now.\n"Keep left,Too.\nWho?,She.\n'
    file = table(text)
    assert [record.row for record in file.records] == [1, 3, 5]
    assert [(bad.row, bad.reason) for bad in file.bad_rows] == [(2, cells.BROKEN_QUOTES), (4, cells.UNCLOSED)]


def test_a_cell_that_takes_in_rows_of_the_table_is_a_fault() -> None:
    text = 'question,answer\nWhere?,There.\n"Mind the gap,Says she.\nWhen?,Now.\nSize 12",Large.\nWho?,She.\n'
    file = table(text)
    assert [record.fields["question"] for record in file.records] == ["Where?", "Who?"]
    assert [(bad.row, bad.reason) for bad in file.bad_rows] == [(2, cells.SWALLOWED)]


def test_a_table_inside_a_cell_is_a_cell() -> None:
    rows = [["Make a table of two columns", "name,age\nAnn,3\nBob,4\nEve,5"], ["a,b\nc,d\ne,f", "Yes"]]
    sink = io.StringIO(newline="")
    csv.writer(sink).writerows([NAMES, *rows])
    assert rows_of(sink.getvalue()) == rows


def test_a_broken_cell_over_several_lines_is_one_bad_row() -> None:
    text = 'question,answer\n"Dear Tom,\nhe said "hi" to me\nbye",answer\nWho?,She.\n'
    file = table(text)
    assert [(record.row, record.fields["question"]) for record in file.records] == [(2, "Who?")]
    assert [bad.reason for bad in file.bad_rows] == [cells.BROKEN_QUOTES]


def test_a_file_cut_off_in_a_cell_keeps_the_rows_before() -> None:
    file = table('question,answer\nWhere?,There.\n"Tell me\nmore of, it\nand on')
    assert (len(file.records), [bad.reason for bad in file.bad_rows]) == (1, [cells.UNCLOSED])


@pytest.mark.parametrize(
    ("cell", "meant"),
    [
        (r'"He says \"stop\", and left"', 'He says "stop", and left'),
        (r'"\"A\""', '"A"'),
        (r'"C:\\new\\x \"y\""', r"C:\new\x " + '"y"'),
        (r'"C:\dir\"', "C:\\dir\\"),
        ('"a\\\nb \\"c\\""', 'a\nb "c"'),
    ],
)
def test_a_backslash_before_a_mark_in_a_quoted_cell_escapes_it(cell: str, meant: str) -> None:
    file = table(f'question,answer\n{cell},"x"\n"say \\"y\\" now","z"\n')
    assert [record.fields["question"] for record in file.records] == [meant, 'say "y" now']
    assert tables._BACKSLASHES in file.assumptions


def test_escaped_marks_show_that_text_separated_by_tabs_is_quoted() -> None:
    text = 'question\tanswer\n"He said \\"no\\" and\tleft"\tx\n"b \\"c\\""\ty\n'
    assert rows_of(text, "tsv") == [['He said "no" and\tleft', "x"], ['b "c"', "y"]]


def test_where_backslashes_escape_all_cells_are_unescaped_and_a_null_is_empty() -> None:
    text = 'question,answer\n"say \\"y\\" now","C:\\\\new"\n"a\\\nb",\\N\n'
    assert rows_of(text) == [['say "y" now', "C:\\new"], ["a\nb", ""]]


def test_where_backslashes_are_not_doubled_they_stay() -> None:
    text = 'question,answer\n"say \\"y\\" now","\\frac{a}{b} \\\\ c"\n'
    assert rows_of(text) == [['say "y" now', "\\frac{a}{b} \\\\ c"]]


def test_spaces_before_a_cell_belong_to_it_and_those_before_its_quotation_mark_do_not() -> None:
    assert rows_of('question,answer\nhow,    return x  \na, "b, c" \n') == [["how", "    return x  "], ["a", "b, c"]]


def test_empty_cells_may_be_too_many_or_missing_at_the_end() -> None:
    more = table('a,b\n"x","y",\nz,w,,\n')
    assert [list(record.fields.values()) for record in more.records] == [["x", "y"], ["z", "w"]]
    assert more.assumptions[-1].startswith("2 rows have empty cells after the last column")
    named = table("a,b,\nx,y,\nz,w,\n")
    assert [list(record.fields.values()) for record in named.records] == [["x", "y"], ["z", "w"]]
    fewer = table("a,b,c\nx,y\nz,w\nu,v,w\nt\n")
    assert [list(record.fields.values()) for record in fewer.records][-1] == ["t", "", ""]
    assert fewer.assumptions[-1].startswith("3 rows have fewer cells")


def test_a_row_broken_by_a_line_end_is_reported_and_not_filled() -> None:
    full = "".join(f"{number},how,so\n" for number in range(9))
    file = table("id,question,answer\n" + full + "9,How are\nyou?,fine\n10,and,so\n")
    assert [(bad.row, bad.reason) for bad in file.bad_rows] == [
        (10, tables.BROKEN_ROW),
        (11, tables.BROKEN_ROW),
    ]
    assert [record.row for record in file.records][-1] == 12


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "\ufeffSEP=;"])
def test_the_line_with_which_excel_names_the_delimiter_is_no_row(line: str) -> None:
    file = table(f"{line}\r\nquestion;answer\r\nWhere, please?;There, then.\r\n")
    assert [(record.row, record.fields) for record in file.records] == [
        (1, {"question": "Where, please?", "answer": "There, then."})
    ]
    assert any("sep=;" in sentence for sentence in file.assumptions)


def test_a_tsv_with_a_comma_in_each_line_is_still_separated_by_tabs() -> None:
    assert rows_of("q, and\ta\nx, y, z\tw\nu, v, w\tt\n", "tsv") == [["x, y, z", "w"], ["u, v, w", "t"]]


@pytest.mark.slow
@pytest.mark.parametrize("letters", [" ", '"', "\\", '\\"', '""', ',"', '"\n', '"" "\n', ", ", 'a"b\n', '"a\n'])
def test_no_table_takes_more_than_its_length(letters: str) -> None:
    with CpuTime() as spent, suppress(StudioError):
        table("question,answer\n" + letters * 10_000)
    assert spent.seconds < 10
