"""A file is read by what it holds: rows under other endings, in the forms of pandas, and what is no data at all."""

import json

import numpy as np
import pandas as pd
import pytest

from lora_studio.data.preview import inspect_characters
from lora_studio.data.report import Look, inspect
from lora_studio.data.sources import open_source
from lora_studio.data.turns import read_value
from lora_studio.errors import StudioError
from tests.cpu_time import CpuTime
from tests.data.reading import read_records

ROWS = [{"instruction": f"Where is {place}?", "output": f"At {place}, gate 3."} for place in "abc"]
CELLS = [list(row.values()) for row in ROWS]
TALKS = [[{"role": "user", "content": place}, {"role": "assistant", "content": "yes"}] for place in "abc"]


@pytest.mark.parametrize("ending", ["txt", "md", "csv", "tsv"])
@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_of_rows_is_read_whatever_the_ending(write, ending, indent):
    file = read_records(write(f"a.{ending}", json.dumps(ROWS, indent=indent)))
    assert [record.fields for record in file.records] == ROWS
    assert f"The .{ending} file contains JSON." in file.assumptions


@pytest.mark.parametrize("value", [{"data": ROWS}, {str(number): row for number, row in enumerate(ROWS)}])
def test_an_object_of_rows_on_a_single_line_is_read_under_any_ending(write, value):
    assert [record.fields for record in read_records(write("a.txt", json.dumps(value))).records] == ROWS


def test_a_broken_array_in_a_text_file_keeps_what_stands_before_the_break(write):
    file = read_records(write("a.txt", json.dumps(ROWS, indent=1)[:-12]))
    assert (len(file.records), len(file.bad_rows)) == (2, 1)


@pytest.mark.parametrize("text", ["[A link](to) it.\n", "[1] A note.\n", "{name} asks {other}.\n", "[1, 2]\n", "{}\n"])
def test_text_that_begins_with_a_bracket_stays_text(write, text):
    assert [record.fields for record in read_records(write("a.md", text)).records] == [{"text": text.strip()}]


def test_a_text_file_of_cells_between_tabs_is_a_table(write):
    file = read_records(write("a.txt", 'question\tanswer\nWhere?\t"There"\nWho?\tShe\n'))
    assert file.records[0].fields == {"question": "Where?", "answer": '"There"'}
    assert "The .txt file contains a table." in file.assumptions
    short = read_records(write("d.txt", "instruction\toutput\tinput\nAdd\tSum\t1 2\nSay hi\tHi\n"))
    assert short.records[1].fields == {"instruction": "Say hi", "output": "Hi", "input": ""}
    assert read_records(write("b.txt", "\tindented\n\tby tabs\n")).kind == "text"
    assert read_records(write("c.txt", "a\tb\nc\n")).kind == "text"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"columns": ["instruction", "output"], "index": [0, 1, 2], "data": CELLS}, "split"),
        ({"columns": ["instruction", "output"], "data": CELLS[:2]}, "split"),
        ({str(number): row for number, row in enumerate(ROWS)}, "under its own key"),
        ({f"row {number}": row for number, row in enumerate(ROWS)}, "under its own key"),
        ({"schema": {"fields": []}, "data": ROWS}, "under `data`"),
        ({name: {str(at): row[name] for at, row in enumerate(ROWS)} for name in ROWS[0]}, "by index"),
        ({"train": {name: [row[name] for row in ROWS] for name in ROWS[0]}, "test": {"output": []}}, "under `train`"),
        ({"features": [{"name": "output"}], "rows": [{"row_idx": 0, "row": row} for row in ROWS]}, "in `row`"),
        ([list(ROWS[0]), *CELLS], "contains the column names"),
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
        ("a.jsonl", '{"error": "Repository not found"}', "error message"),
        ("a.parquet", '<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
    ],
)
def test_what_stands_in_place_of_the_data_is_named(write, name, text, words):
    with pytest.raises(StudioError, match=words) as error:
        open_source(write(name, text))
    assert error.value.hint


def test_turns_side_by_side_are_turns(write):
    rows = [{name: [turn[name] for turn in talk] for name in talk[0]} for talk in TALKS]
    file = read_records(write("a.jsonl", [{"messages": row} for row in rows]))
    assert [record.fields for record in file.records] == [{"messages": talk} for talk in TALKS]
    assert file.assumptions[-1].startswith("3 rows have roles and contents in lists side by side")
    answers = {"answers": {"text": ["a"], "answer_start": [3]}}
    assert read_records(write("b.jsonl", [answers])).records[0].fields == answers


@pytest.mark.parametrize("index", [True, False])
def test_turns_that_pandas_wrote_as_python_prints_them_are_turns(tmp_path, tokenizer, index):
    talks = [
        [{"role": "user", "content": f'It\'s {place}, "ok"?'}, {"role": "assistant", "content": "Yes\nof course"}]
        for place in "ab"
    ]
    pd.DataFrame({"messages": talks}).to_csv(tmp_path / "a.csv", index=index)
    seen = inspect(str(tmp_path / "a.csv"), tokenizer, look=Look(show_examples=2))
    assert [one["messages"] for one in seen["examples"]] == talks
    assert "as Python lists" in seen["words"]


def test_turns_without_commas_are_refused_in_words(tmp_path, tokenizer):
    pd.DataFrame({"messages": [np.array(talk, dtype=object) for talk in TALKS]}).to_csv(tmp_path / "a.csv")
    with pytest.raises(StudioError, match="without commas"):
        inspect(str(tmp_path / "a.csv"), tokenizer)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "['" * 50_000, "{'a': " * 50_000, "['a', " + "-" * 100_000 + "1]", "['" + "a" * (1 << 21) + "']"],
)
def test_text_that_only_begins_as_a_list_is_refused_at_once(text):
    with CpuTime() as spent, pytest.raises(ValueError, match=r"neither|nested|Expecting|Invalid|delimiter"):
        read_value(text)
    assert spent.seconds < 1


def test_a_table_without_a_header_says_so_and_how_to_name_the_columns(write, tokenizer):
    path = str(write("a.csv", "Where is it?,There it is.\nWho is it?,She it is.\n"))
    for look in (lambda: inspect(path, tokenizer), lambda: inspect_characters(path)):
        with pytest.raises(StudioError, match="looks like data") as error:
            look()
        assert "data.mapping" in error.value.hint
    with pytest.raises(StudioError, match="first line names the columns: `Hello`, `Hi there`"):
        inspect(str(write("b.csv", "Hello,Hi there\nBye,See you\n")), tokenizer)


def test_the_advice_fits_the_file(write):
    with pytest.raises(StudioError, match=r"^No row of a\.json can be read") as error:
        read_records(write("a.json", "[{'instruction': 'Where?'}]"))
    assert "double quotes" in error.value.hint
    with pytest.raises(StudioError, match=r"^No row of a\.csv") as error:
        read_records(write("a.csv", 'a,b\n"x" y,z\n'))
    assert "quotes its cells" in error.value.hint


def test_a_system_prompt_that_is_missing_is_none(write, tokenizer):
    rows = [{"messages": [{"role": "system", "content": None}, *talk]} for talk in TALKS]
    seen = inspect(str(write("a.jsonl", rows)), tokenizer)
    assert [turn["role"] for turn in seen["examples"][0]["messages"]] == ["user", "assistant"]
