"""Rows of Arrow files are those of the same rows as JSON: no filled-in nulls, NaN is empty, bytes are text."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_studio.data import sources as hub
from lora_studio.data.messages import BROKEN_TEXT, Tally
from lora_studio.data.readers.binary import AS_TEXT
from lora_studio.data.report import Look, inspect
from lora_studio.data.sources import open_source
from lora_studio.data.turns import NOT_TEXT, parse_tools
from tests.data.reading import read_records


def tool(name: str, parameter: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {parameter: {"type": "integer"}}, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
    turns = [{"role": "user", "content": "Go"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    return {"tools": [tool("move", "metres"), tool("turn", "degrees")], "messages": turns}


CALLS = [call("move", metres=2), call("turn", degrees=90)]


@pytest.mark.parametrize("form", ["parquet", "arrow", "save_to_disk", "json_feature", "to_json"])
def test_calls_and_tools_are_the_same_from_every_form_of_a_data_set(tmp_path, form):
    import datasets

    filled = datasets.Dataset.from_list(CALLS)
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(CALLS), path := tmp_path / "a.parquet")
    elif form == "arrow":
        table = pa.Table.from_pylist(CALLS)
        with pa.ipc.new_file(path := tmp_path / "a.arrow", table.schema) as writer:
            writer.write_table(table)
    elif form == "save_to_disk":
        filled.save_to_disk(path := tmp_path / "saved")
    elif form == "json_feature":
        datasets.Dataset.from_list(CALLS, on_mixed_types="use_json").to_parquet(path := tmp_path / "b.parquet")
    else:
        filled.to_json(path := tmp_path / "a.jsonl")
    source = open_source(path)
    assert [row.fields for row in source.rows()] == CALLS
    assert (form == "json_feature") != any("as Arrow fills" in sentence for sentence in source.assumptions)


def test_a_null_that_one_call_has_by_itself_stays(write):
    rows = [call("move", metres=2, degrees=None), call("turn", degrees=90)]
    assert [row.fields for row in open_source(write("a.jsonl", rows)).rows()] == rows


def test_a_schema_with_a_null_for_a_parameter_was_filled():
    schema = {"name": "f", "parameters": {"properties": {"a": {"type": "integer", "default": None}, "b": None}}}
    (found,) = parse_tools([schema], "tools")
    assert found["function"]["parameters"] == {"properties": {"a": {"type": "integer"}}}
    schema["parameters"]["properties"].pop("b")  # a default may be null
    assert parse_tools([schema], "tools")[0]["function"] == schema


def test_a_number_that_is_missing_is_an_empty_cell(write, tmp_path, tokenizer):
    nan, inf = float("nan"), float("inf")
    rows = [{"prompt": "a", "input": nan, "completion": 5.0}, {"prompt": "b", "input": nan, "completion": nan}]
    lines = write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for path in (lines, write("b.json", json.dumps(rows)), tmp_path / "a.parquet"):
        file = read_records(path)
        assert [list(record.fields.values()) for record in file.records] == [["a", None, 5.0], ["b", None, None]]
        assert "3 cells hold NaN, which stands for a missing value: it is read as empty." in file.assumptions
        assert inspect(str(path), tokenizer)["bad_rows_by_reason"] == {"an answer is empty": 1}
    endless = write("c.jsonl", json.dumps({"prompt": "a", "completion": inf}) + '\n{"prompt": "a", "completion": "b"}')
    assert inspect(str(endless), tokenizer)["bad_rows_by_reason"] == {NOT_TEXT: 1}


def test_bytes_are_text_or_spoil_a_row_that_is_learned_from(tmp_path, tokenizer):
    texts = [b"Gr\xc3\xbc\xc3\x9fe", b"\xff\xfe\x00", b"end"]
    columns = {"prompt": ["a", "b", "c"], "completion": texts, "hash": [b"\xff", b"\xfe", b"\xfd"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = inspect(str(tmp_path / "a.parquet"), tokenizer, look=Look(show_examples=3))
    assert found["bad_rows_by_reason"] == {BROKEN_TEXT: 1}
    assert [one["messages"][1]["content"] for one in found["examples"]] == ["Grüße", "end"]
    assert AS_TEXT.replace("{cells}", "6 cells hold") in found["assumptions"]


def test_bytes_within_lists_and_dictionaries_are_text_as_well(tmp_path):
    turns = [{"role": b"user", "content": b"a"}, {"role": b"assistant", "content": b"b"}]
    columns = {"messages": [turns], "tag": pa.array([b"c"]).dictionary_encode()}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    file = read_records(tmp_path / "a.parquet")
    assert file.records[0].fields["messages"][1] == {"role": "assistant", "content": "b"}
    assert AS_TEXT.replace("{cells}", "5 cells hold") in file.assumptions


def test_rows_of_the_hub_are_those_of_its_files(tmp_path):
    rows = [{**CALLS[0], "score": 1.0}, {**CALLS[1], "score": float("nan")}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    source, tally = open_source(tmp_path / "train.parquet"), Tally()
    read = list(hub._rows(hub._load(str(tmp_path), None, "train", None, streaming=True), "own/set", tally))
    assert read == list(source.rows())
    assert [row.fields for row in read] == [rows[0], {**rows[1], "score": None}]
    assert tally.sentences() == source.assumptions
    assert len(tally.sentences()) == 2


def test_maps_are_objects(tmp_path):
    kind = pa.map_(pa.string(), pa.string())
    turns = [[("role", "user"), ("content", "a")], [("role", "assistant"), ("content", "b")]]
    pq.write_table(pa.table({"messages": pa.array([turns], pa.list_(kind))}), tmp_path / "a.parquet")
    (row,) = open_source(tmp_path / "a.parquet").rows()
    assert row.fields == {"messages": [dict(turn) for turn in turns]}
