"""One row step by step: shown is what the trainer gets, and what is removed stands in its place."""

from itertools import groupby

import pytest
from conftest import MARKED, build_tokenizer

from lora_studio.data import report
from lora_studio.data.dataset import prepare
from lora_studio.data.messages import IGNORED
from lora_studio.data.report import describe, preview
from lora_studio.errors import StudioError

ROWS = [
    {"instruction": f"Say {number} 🙂", "input": "", "output": "word " * number, "note": float("nan")}
    for number in range(1, 41)
]
LONG = [{"prompt": "please " * asked, "completion": "word " * told} for asked in (1, 60) for told in (1, 30, 90)]


@pytest.fixture
def file(write):
    return str(write("rows.jsonl", [*ROWS, {"instruction": "x", "output": ""}]))


def _shows(seen, example):
    """The kept tokens are the example's, in its order, and all tokens are the row's."""
    kept = [token for token in seen["tokens"] if token["kept"]]
    assert [token["id"] for token in kept] == example.input_ids
    assert [token["trained"] for token in kept] == [label != IGNORED for label in example.labels]
    assert (seen["kept_tokens"], seen["full_length"]) == (len(kept), len(seen["tokens"]))


def test_a_preview_shows_exactly_the_tokens_that_are_trained_on(file, tokenizer):
    prepared = prepare(file, tokenizer, max_length=40)
    by_row = {example.row: example for example in [*prepared.train, *prepared.validation]}
    for index in (0, 39):
        seen = preview(prepared, index)
        example = by_row[seen["row"]]
        _shows(seen, example)
        assert seen["removed_tokens"] == example.full_length - len(example.input_ids)
        assert seen["lost_trained_tokens"] == example.lost_trained_tokens
        assert seen["split"] == ("train" if seen["row"] in {row.row for row in prepared.train} else "validation")


def test_the_pieces_of_an_uncut_row_joined_are_its_text(file, tokenizer):
    seen = preview(prepare(file, tokenizer), 4)
    assert "".join(token["text"] for token in seen["tokens"]) == seen["text"]
    assert seen["ends_with_eos"]
    assert [message["role"] for message in seen["messages"]] == ["user", "assistant"]
    assert seen["record"]["note"] is None  # a number that is none is an empty cell
    assert seen["tokens"][0] == {
        "id": seen["tokens"][0]["id"],
        "text": "<|im_start|>",
        "trained": False,
        "special": True,
        "kept": True,
    }


def test_a_cut_that_takes_the_end_token_is_seen_in_the_preview(file, tokenizer):
    assert not preview(prepare(file, tokenizer, max_length=40, truncation="keep_start"), 39)["ends_with_eos"]


def test_a_row_that_is_not_there_is_an_error(file, tokenizer):
    prepared = prepare(file, tokenizer)
    for index in (-1, 40):
        with pytest.raises(StudioError, match="no valid row"):
            preview(prepared, index)


def test_a_long_text_is_shown_window_by_window(write, tokenizer):
    prepared = prepare(str(write("a.txt", "one two three " * 60 + "\nshort line\n")), tokenizer, max_length=64)
    seen = [preview(prepared, 0, part) for part in range(99)][: preview(prepared, 0)["windows"]]
    assert len(seen) > 2
    assert [one["window"] for one in seen] == list(range(len(seen)))
    assert "".join(one["text"] for one in seen) == prepared.encoder.render(prepared.conversations[0])
    assert {(one["removed_tokens"], one["lost_trained_tokens"]) for one in seen} == {(0, 0)}
    found = describe(prepared)
    assert (found["split_rows"], found["truncated_rows"], found["windows"]) == (1, 0, len(seen) + 1)


@pytest.mark.parametrize("truncation", ["keep_answer", "keep_start", "drop"])
@pytest.mark.parametrize("bos", [None, "<|begin|>"])
def test_what_a_cut_removes_stands_in_its_place(write, truncation, bos):
    tokenizer = build_tokenizer("{{- bos_token or '' }}" + MARKED, bos=bos)
    path = str(write("long.jsonl", LONG))
    prepared = prepare(path, tokenizer, max_length=80, truncation=truncation, validation_fraction=0)
    whole = prepare(path, tokenizer, max_length=9999, validation_fraction=0)
    by_row = {example.row: example for example in prepared.train}
    assert len(prepared.dropped) + len(by_row) == len(LONG)
    shapes = set()
    for index, uncut in enumerate(whole.train):
        seen = preview(prepared, index)
        assert [token["id"] for token in seen["tokens"]] == uncut.input_ids
        assert seen["removed_tokens"] == sum(not token["kept"] for token in seen["tokens"])
        if uncut.row in by_row:
            _shows(seen, by_row[uncut.row])
            assert seen["lost_trained_tokens"] == by_row[uncut.row].lost_trained_tokens
            assert not seen["left_out"]
        else:
            assert seen["left_out"]
            assert not any(token["kept"] for token in seen["tokens"])
        shapes.add("".join(shape for shape, _ in groupby("k" if token["kept"] else "x" for token in seen["tokens"])))
    first = "k" if bos else ""
    assert {"keep_answer": first + "xkx", "keep_start": "kx", "drop": "x"}[truncation] in shapes


def test_a_long_row_is_shown_in_parts_and_opens_where_training_begins(write, tokenizer, monkeypatch):
    monkeypatch.setattr(report, "_PAGE", 50)
    path = str(write("long.jsonl", [{"prompt": "please " * 200, "completion": "word " * 20}]))
    prepared = prepare(path, tokenizer, max_length=64, validation_fraction=0)
    opened = preview(prepared, 0)
    parts = [preview(prepared, 0, part) for part in range(opened["windows"])]
    assert opened["window"] > 2
    assert opened == parts[opened["window"]]
    assert any(token["trained"] and token["kept"] for token in opened["tokens"])
    assert not any(token["kept"] for token in parts[0]["tokens"])
    kept = [token["id"] for part in parts for token in part["tokens"] if token["kept"]]
    assert kept == prepared.train[0].input_ids
    assert sum(len(part["tokens"]) for part in parts) == opened["full_length"]
    assert {part["removed_tokens"] for part in parts} == {opened["full_length"] - 64}
    assert max(len(part["tokens"]) for part in parts) == 50


def test_a_pair_whose_cut_leaves_nothing_to_compare_is_shown_as_left_out(write, tokenizer):
    rows = [{"prompt": "p " * asked, "chosen": "good", "rejected": "bad"} for asked in (1, 1, 60)]
    settings = {"goal": "any", "validation_fraction": 0, "max_length": 60, "truncation": "keep_start"}
    prepared = prepare(str(write("pairs.jsonl", rows)), tokenizer, **settings)
    assert [row.row for row in prepared.dropped] == [3]
    for side in (preview(prepared, 2), preview(prepared, 2)["rejected"]):
        assert side["left_out"]
        assert not any(token["kept"] for token in side["tokens"])
    assert not preview(prepared, 0)["left_out"]


def test_the_reading_says_how_what_was_assumed_and_what_the_first_row_trains(write, tokenizer):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "One\ntwo"}] * 2
    prepared = prepare(str(write("a.jsonl", [{"messages": turns}] * 3)), tokenizer)
    said = report.reading(prepared)
    assert said.startswith(f"Format: {prepared.format.words}")
    assert said.endswith("Trained tokens of the first row: “One⏎two<|im_end|> … One⏎two<|im_end|>”.")
    prepared.assumptions.append("The file is read as x.")
    assert " The file is read as x. Trained tokens of the first row:" in report.reading(prepared)
    assert describe(prepared)["reading"] == report.reading(prepared)


def test_a_long_trained_text_is_shortened_in_the_reading(write, tokenizer):
    prepared = prepare(str(write("a.jsonl", [{"prompt": "a", "completion": "long " * 100}] * 3)), tokenizer)
    told = report.reading(prepared).rpartition("“")[2]
    assert len(told) < 170
    assert told.endswith("…”.")
