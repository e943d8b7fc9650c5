"""Files of every kind to records, and what is said of files and rows that can't be read."""

import gzip
import json

import pytest

from lora_studio.data.readers import json as json_files
from lora_studio.data.readers import tables
from lora_studio.errors import StudioError
from tests.data.reading import read_records

PAIR = {"question": "one", "answer": "two"}


def _fields(path):
    return [record.fields for record in read_records(path).records]


def test_jsonl_rows_bear_the_number_of_their_line(write):
    file = read_records(write("a.jsonl", '{"a": 1}\n\n{"a": 2}\n'))
    assert [(record.row, record.fields) for record in file.records] == [(1, {"a": 1}), (3, {"a": 2})]


@pytest.mark.parametrize(
    ("text", "kind"), [("null", "nothing"), ("42", "a number"), ('"hi"', "a text"), ("false", "true or false")]
)
def test_a_single_value_is_called_by_a_word_and_not_by_a_type_of_python(write, text, kind):
    with pytest.raises(StudioError, match=f"The file contains {kind}, not rows"):
        read_records(write("a.json", text))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_table_that_is_named_as_json_is_told_to_be_none(write, name):
    with pytest.raises(StudioError) as refused:
        read_records(write(name, "question,answer\nq1,a1\nq2,a2\n"))
    assert refused.value.hint == json_files.NOT_JSON


def test_a_broken_line_is_reported_and_does_not_stop_the_rest(write):
    file = read_records(write("a.jsonl", '{"a": 1}\n{"a": \n[1, "2"]\n"word"\n{"a": 5}\n'))
    assert [record.row for record in file.records] == [1, 5]
    assert [(bad.row, bad.reason) for bad in file.bad_rows] == [
        (2, json_files.BROKEN_LINE),
        (3, json_files.NOT_AN_OBJECT),
        (4, json_files.NOT_AN_OBJECT),
    ]
    assert "column 7" in file.bad_rows[0].found


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1}, {"a": 2}]',
        '[\n  {"a": 1},\n  {"a": 2}\n]',
        '{"a": 1}\n{"a": 2}',
        '{\n"a": [1, 2]\n}',
        '{\n"rows": [{"a": 1},\n {"a": 2}]}',
    ],
)
def test_json_is_read_by_its_content_and_not_by_its_ending(write, name, text):
    assert _fields(write(name, text)) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_single_row_of_tokens_is_no_columns_of_numbers(write, name):
    row = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}
    assert _fields(write(name, json.dumps(row))) == [row]
    table = {"input_ids": [[1, 2], [3]], "labels": [[1, 2], [3]]}
    assert [fields["input_ids"] for fields in _fields(write(name, json.dumps(table)))] == [[1, 2], [3]]


GEMINI = [{"role": "user", "parts": [{"text": "a"}]}, {"role": "model", "parts": [{"text": "b"}]}]
BELLE = [{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}]


@pytest.mark.parametrize("turns", [[{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}], GEMINI, BELLE])
def test_a_line_that_is_a_bare_list_of_turns_becomes_messages(write, turns):
    for name, text in (("a.jsonl", f"{json.dumps(turns)}\n" * 2), ("a.json", json.dumps([turns, turns]))):
        assert _fields(write(name, text)) == [{"messages": turns}] * 2


def test_an_array_of_exchanges_is_a_table_as_the_same_rows_are_line_by_line(write):
    assert _fields(write("a.json", json.dumps(BELLE))) == _fields(write("a.jsonl", BELLE)) == BELLE


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.csv", "a.tsv", "a.txt.gz"])
def test_objects_line_by_line_are_read_as_such_under_any_ending(write, name):
    text = '{"a": "x, y"}\n\n{"a": \n{"a": "z"}\n'
    file = read_records(write(name, gzip.compress(text.encode()) if name.endswith("gz") else text))
    assert [(record.row, record.fields) for record in file.records] == [(1, {"a": "x, y"}), (4, {"a": "z"})]
    assert file.kind == "json"
    assert "The file contains one JSON object per line." in file.assumptions
    assert [bad.row for bad in file.bad_rows] == [3]


@pytest.mark.parametrize("text", ["{a}\n{b}\n", '{"a": 1}\nand\nso\non\n', "{}\n{}\n", '# {"a": 1}\n{"a": 2}\n'])
def test_a_text_that_only_resembles_objects_stays_text(write, text):
    assert read_records(write("a.txt", text)).kind == "text"


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("[1, 2, 3]", [[1, 2, 3]]),
        ("[1, 2, 3]\n[4, 5]\n", [[1, 2, 3], [4, 5]]),
        ("[[1, 2],\n [3]]", [[1, 2], [3]]),
    ],
)
def test_bare_lists_of_whole_numbers_are_token_ids(write, name, text, rows):
    file = read_records(write(name, text))
    assert [record.fields for record in file.records] == [{"input_ids": row} for row in rows]
    assert json_files.BARE_IDS in file.assumptions[-1]


@pytest.mark.parametrize("text", ["[true, false]\n", "[1.5]\n", '["a", "b"]\n["c"]\n', "[1, null]\n"])
def test_bare_lists_of_anything_else_are_no_rows(write, text):
    with pytest.raises(StudioError, match="can be read"):
        read_records(write("a.jsonl", text))


@pytest.mark.parametrize("turns", [[{"role": "user", "content": "a"}], GEMINI])
def test_a_single_conversation_in_a_json_file_is_one_row(write, turns):
    assert _fields(write("a.json", {"messages": turns})) == [{"messages": turns}]
    assert _fields(write("b.json", json.dumps(turns))) == [{"messages": turns}]


def test_messages_that_are_linked_by_columns_are_no_single_conversation(write):
    rows = [{"role": "user", "text": "a", "parent_id": None}, {"role": "assistant", "text": "b", "parent_id": "1"}]
    assert _fields(write("a.json", json.dumps(rows))) == rows


@pytest.mark.parametrize(
    ("text", "place"),
    [('[{"a": 1},\n]', "line 2, column 1"), ('[{"a": 1},\n {"a": ', "line 2, column 8"), ('[{"a": 1} {', "column 11")],
)
def test_a_broken_json_array_keeps_what_stands_before_the_break(write, text, place):
    file = read_records(write("a.json", text))
    assert [record.fields for record in file.records] == [{"a": 1}]
    assert [(bad.row, bad.reason) for bad in file.bad_rows] == [(2, json_files.BROKEN_REST)]
    assert place in file.bad_rows[0].found


@pytest.mark.parametrize(
    ("encoding", "stated"),
    [("utf-8", ""), ("utf-8-sig", "UTF-8"), ("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("cp1252", "Windows-1252")],
)
def test_the_encoding_of_a_table_is_found_and_stated(write, encoding, stated):
    file = read_records(write("a.csv", "question,answer\nWie heißt du?,Jörg\n".encode(encoding)))
    assert file.records[0].fields == {"question": "Wie heißt du?", "answer": "Jörg"}
    assert any(stated in sentence for sentence in file.assumptions)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_by_which_gives_even_rows(write, delimiter):
    rows = [["question", "answer"], ["a, b; c", "x"], ["d", "y"]]
    text = "\r\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in rows)
    assert _fields(write("a.csv", text)) == [{"question": "a, b; c", "answer": "x"}, {"question": "d", "answer": "y"}]


def test_line_feeds_in_cells_stay_and_blank_lines_are_no_rows(write):
    file = read_records(write("a.csv", 'question,answer\r\n"one\ntwo",x\r\n,\r\n\r\nthree,y\r\n'))
    assert [(record.row, record.fields["question"]) for record in file.records] == [(1, "one\ntwo"), (2, "three")]
    assert not file.bad_rows


def test_a_row_of_another_width_is_reported(write):
    file = read_records(write("a.csv", "question,answer\na,b\nd,e,f\n"))
    assert [(bad.row, bad.reason) for bad in file.bad_rows] == [(2, tables.WRONG_WIDTH)]


def test_two_columns_of_one_name_are_an_error(write):
    with pytest.raises(StudioError, match="'answer'"):
        read_records(write("a.csv", "answer,answer\na,b\n"))


def test_parquet_rows_come_back_with_lists_of_turns(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"messages": [{"role": "user", "content": str(number)}]} for number in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    file = read_records(tmp_path / "a.parquet")
    assert [record.fields for record in file.records] == rows
    assert file.records[-1].row == 3000


def test_a_damaged_parquet_file_is_an_error_and_no_traceback(write):
    with pytest.raises(StudioError, match="Parquet"):
        read_records(write("a.parquet", b"PAR1 and then nothing of use"))
    with pytest.raises(StudioError, match="not a Parquet file"):
        read_records(write("b.parquet", '{"a": 1}'))


def test_text_is_a_row_a_line_or_a_paragraph(write):
    assert _fields(write("a.txt", "one\n\ntwo\n")) == [{"text": "one"}, {"text": "two"}]
    paragraphs = read_records(write("b.md", "# Title\n\none\ntwo\n\nthree\n"))
    assert [(record.row, record.fields["text"]) for record in paragraphs.records] == [
        (1, "# Title"),
        (3, "one\ntwo"),
        (6, "three"),
    ]


def test_undecodable_bytes_spoil_their_row_only(write):
    data = '{"a": "schön"}\n'.encode() + b'{"a": "\xff\xfe"}\n' + b'{"a": "end"}\n'
    file = read_records(write("a.jsonl", data))
    assert [record.row for record in file.records] == [1, 3]
    assert [(bad.row, bad.reason) for bad in file.bad_rows] == [(2, json_files.BROKEN_BYTES)]


def test_a_replacement_character_that_stands_in_the_file_is_no_fault(write):
    assert _fields(write("a.jsonl", [{"a": "odd \ufffd but valid"}])) == [{"a": "odd \ufffd but valid"}]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b"", "empty"),
        ("a.jsonl", b" \n\t\n", "empty"),
        ("a.csv", b"question,answer\n", "no rows"),
        ("a.json", b"[]", "no rows"),
        ("a.json", b"3", "a number"),
        ("a.json", b"[" * 100_000, "deep"),
        ("a.jsonl", b'{"a": ' * 50_000, "nested too deeply"),
        ("a.jsonl", b"not json\nat all\n", "None of the 2 rows"),
        ("a.json", b"[" + b"9" * 5000 + b"]", "JSON is invalid"),
        ("a.txt", bytes(range(32)) * 100, "binary"),
        ("a.json", b"\x1f\x8b\x08 packed", "gzip"),
        ("a.zip", b"PK\x03\x04 packed", "zip"),
        ("a.xlsx", b"PK\x03\x04 packed", "damaged Excel workbook"),
        ("b.xlsx", b"question,answer", "not an Excel workbook"),
        ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old format"),
        ("a.exe", b"MZ something", "unsupported file type"),
        ("a.csv", b"\x00\x00\x00\x00", "binary"),
    ],
)
def test_a_file_without_usable_rows_is_one_clear_error(write, name, content, said):
    with pytest.raises(StudioError, match=said) as error:
        read_records(write(name, content))
    assert error.value.hint


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(StudioError, match="does not exist"):
        read_records(tmp_path / "absent.json")
    with pytest.raises(StudioError, match="contains no data files"):
        read_records(tmp_path)
    with pytest.raises(StudioError, match="cannot be read"):
        read_records(tmp_path / ("long" * 100))


def test_no_more_rows_are_read_than_asked_for(write):
    assert len(read_records(write("a.jsonl", [PAIR] * 10), max_rows=3).records) == 3
