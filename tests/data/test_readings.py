"""How rows are read, shown on the rows: role names and what they mean, a mapping tried out, rows that nobody read."""

import json

import pytest

from lora_studio.data.dataset import prepare
from lora_studio.data.mapping import ReadingError
from lora_studio.data.preview import candidates_of, first_records, format_candidates, tried, unread

TALK = [
    {"role": "customer", "content": "Where is it?"},
    {"role": "agent", "content": "On its way."},
    {"role": "tool_call", "content": "{}"},
]


def test_role_names_of_the_rows_are_listed_with_what_they_mean(write):
    rows = [{"talk": TALK}, {"talk": json.dumps([{"from": "Human", "value": "a"}]), "note": "[not json"}]
    found = format_candidates(first_records(str(write("a.jsonl", rows))))
    assert found["speakers"] == {"customer": "", "agent": "", "tool_call": "call", "Human": "user"}
    assert found["mapping"] == {"messages": "talk"}
    assert json.dumps(found)


def test_a_role_name_that_only_a_bad_row_bears_is_listed_too(write, tokenizer):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": turns}] * 700
    rows[333] = {"messages": [{"role": "narrator", "content": "Once."}, *turns]}
    prepared = prepare(str(write("a.jsonl", rows)), tokenizer)
    assert candidates_of(prepared)["speakers"] == {"user": "user", "assistant": "assistant", "narrator": ""}
    again = prepare(
        str(write("a.jsonl", rows)), tokenizer, mapping={"messages": "messages", "roles": {"narrator": "system"}}
    )
    assert candidates_of(again)["speakers"]["narrator"] == "system"
    assert not again.bad_rows


def test_rows_of_which_none_can_be_used_are_still_shown_to_say_how_they_are_read(write, tokenizer):
    path = str(write("a.jsonl", [{"talk": TALK[:2], "id": 7}] * 3))
    with pytest.raises(ReadingError, match="unknown role"):
        prepare(path, tokenizer)
    found = unread(path)
    assert found["table"]["columns"] == ["row", "talk", "id"]
    assert found["readings"][0]["mapping"] == {"messages": "talk"}
    assert found["speakers"] == {"customer": "", "agent": ""}
    nameless = str(write("b.csv", "x,y,z\na,b,c\n"))
    with pytest.raises(ReadingError, match="format of the rows is not known"):
        prepare(nameless, tokenizer)
    assert unread(nameless)["table"] == {"columns": ["row", "x", "y", "z"], "rows": [[1, "a", "b", "c"]]}


def test_a_mapping_is_tried_on_the_first_rows_and_says_what_fails(write):
    rows = [{"x": f"ask {i}", "y": f"tell {i}" if i != 1 else ""} for i in range(80)]
    records = first_records(str(write("a.jsonl", rows)))
    found = tried(records, {"user": "x", "assistant": "y"})
    assert found["words"] == "`x` is the user turn, `y` the assistant turn."
    assert [row["messages"][1]["content"] for row in found["rows"]] == ["tell 0", "tell 2"]
    assert (found["failed"], found["of"]) == (1, 50)
    assert found["first_failure"][0]["row"] == 2
    with pytest.raises(ReadingError, match="no column `z`"):
        tried(records, {"user": "x", "assistant": "z"})
    pairs = first_records(str(write("c.jsonl", [{"q": "a", "good": "b", "bad": "c"}])))
    compared = tried(pairs, {"user": "q", "chosen": "good", "rejected": "bad"})["rows"][0]
    assert [message["content"] for message in compared["messages"]] == ["a", "b"]
    assert [message["content"] for message in compared["worse"]] == ["c"]
    talk = first_records(str(write("b.jsonl", [{"talk": TALK[:2]}])))
    heard = tried(talk, {"messages": "talk", "roles": {"customer": "user", "agent": "assistant"}})
    assert [message["role"] for message in heard["rows"][0]["messages"]] == ["user", "assistant"]
