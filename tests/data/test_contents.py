"""A file is read by what it holds: rows under other endings, in the forms of pandas, and what is no data at all."""

import json

import pytest

from lora_studio.data.records import open_source, read_records
from lora_studio.errors import StudioError

ROWS = [{"instruction": f"Where is {place}?", "output": f"At {place}, gate 3."} for place in "abc"]
CELLS = [list(row.values()) for row in ROWS]
TALKS = [[{"role": "user", "content": place}, {"role": "assistant", "content": "yes"}] for place in "abc"]


@pytest.mark.parametrize("ending", ["txt", "md", "csv", "tsv"])
@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_of_rows_is_read_whatever_the_ending(write, ending, indent):
    file = read_records(write(f"a.{ending}", json.dumps(ROWS, indent=indent)))
    assert [record.fields for record in file.records] == ROWS
    assert f"The .{ending} file holds JSON." in file.assumptions


def test_a_broken_array_in_a_text_file_keeps_what_stands_before_the_break(write):
    file = read_records(write("a.txt", json.dumps(ROWS, indent=1)[:-12]))
    assert (len(file.records), len(file.bad_rows)) == (2, 1)


@pytest.mark.parametrize("text", ["[A link](to) it.\n", "[1] A note.\n", "{name} asks {other}.\n", "[1, 2]\n", "{}\n"])
def test_text_that_begins_with_a_bracket_stays_text(write, text):
    assert [record.fields for record in read_records(write("a.md", text)).records] == [{"text": text.strip()}]


def test_a_text_file_of_cells_between_tabs_is_a_table(write):
    file = read_records(write("a.txt", 'question\tanswer\nWhere?\t"There"\nWho?\tShe\n'))
    assert file.records[0].fields == {"question": "Where?", "answer": '"There"'}
    assert "The .txt file holds a table." in file.assumptions
    assert read_records(write("b.txt", "\tindented\n\tby tabs\n")).kind == "text"
    assert read_records(write("c.txt", "a\tb\nc\n")).kind == "text"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"columns": ["instruction", "output"], "index": [0, 1, 2], "data": CELLS}, "split"),
        ({"columns": ["instruction", "output"], "data": CELLS[:2]}, "split"),
        ({str(number): row for number, row in enumerate(ROWS)}, "under a key"),
        ({f"row {number}": row for number, row in enumerate(ROWS)}, "under a key"),
        ({"schema": {"fields": []}, "data": ROWS}, "under `data`"),
        ({name: {str(at): row[name] for at, row in enumerate(ROWS)} for name in ROWS[0]}, "by number"),
    ],
)
def test_the_forms_in_which_pandas_writes_rows_are_read(write, value, words):
    source = open_source(write("a.json", value))
    rows = [row.fields for row in source.rows()]
    assert rows == ROWS[: len(rows)]
    assert len(rows) >= 2
    assert any(words in sentence for sentence in source.assumptions)


def test_conversations_under_keys_are_rows(write):
    file = read_records(write("a.json", dict(zip("abc", TALKS, strict=True))))
    assert [record.fields for record in file.records] == [{"messages": talk} for talk in TALKS]


@pytest.mark.parametrize(
    "row", [{"prompt": {"text": "a"}, "completion": {"text": "b"}}, {"chosen": TALKS[0], "rejected": TALKS[1]}]
)
def test_a_single_row_of_objects_is_not_taken_for_rows_by_key(write, row):
    assert [record.fields for record in read_records(write("a.json", row)).records] == [row]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "pointer"),
        ("a.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "pointer"),
        ("a.csv", "/annex/objects/MD5E-s1--00.csv\n", "pointer"),
        ("a.json", "<!DOCTYPE html>\n<html></html>", "web page"),
        ("a.csv", "\n  <html>", "web page"),
        ("a.parquet", '<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
    ],
)
def test_what_stands_in_place_of_the_data_is_named(write, name, text, words):
    with pytest.raises(StudioError, match=words) as error:
        open_source(write(name, text))
    assert error.value.hint
