"""What is shown of prepared data: consistent numbers, JSON all through, and one row token by token."""

import json
from datetime import datetime
from decimal import Decimal

import pytest

from lora_studio.data.dataset import prepare
from lora_studio.data.encode import IGNORED
from lora_studio.data.views import Look, describe, inspect, plain, preview
from lora_studio.errors import StudioError

ROWS = [
    {"instruction": f"Say {number} 🙂", "input": "", "output": "word " * number, "note": float("nan")}
    for number in range(1, 41)
]


@pytest.fixture
def file(write):
    return str(write("rows.jsonl", [*ROWS, {"instruction": "x", "output": ""}]))


def test_the_numbers_of_an_inspection_agree_with_the_examples(file, tokenizer):
    prepared = prepare(file, tokenizer, max_length=40)
    found = describe(prepared)
    examples = [*prepared.train, *prepared.validation]
    assert found["rows"] == found["usable_rows"] == len(ROWS)
    assert found["bad_rows"] == len(found["bad_row_list"]) == sum(found["bad_rows_by_reason"].values()) == 1
    assert found["trained_tokens"] == sum(example.trained_tokens for example in examples)
    assert found["total_tokens"] == sum(len(example.input_ids) for example in examples)
    assert found["lost_trained_tokens"] == sum(example.lost_trained_tokens for example in examples)
    assert found["truncated_rows"] == sum(example.full_length > 40 for example in examples) > 0
    point = next(point for point in found["cut_curve"] if point["max_length"] == 40)
    assert point["rows"] == found["truncated_rows"]
    assert point["lost_trained_tokens"] == found["lost_trained_tokens"]
    assert sum(found["histogram"]["counts"]) == found["rows"]


def test_an_inspection_is_json_and_names_what_was_read(file, tokenizer):
    found = inspect(file, tokenizer, look=Look(show_examples=3))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["format"], found["kind"], found["prompt_style"]) == ("alpaca", "jsonl", "chat")
    assert found["words"].startswith("`instruction` followed by `input` is the user's turn")
    assert len(found["examples"]) == 3
    assert found["table"]["columns"] == ["row", "instruction", "input", "output", "note"]
    assert found["table"]["rows"][0][:2] == [1, "Say 1 🙂"]


def test_a_preview_shows_exactly_the_tokens_that_are_trained_on(file, tokenizer):
    prepared = prepare(file, tokenizer, max_length=40)
    by_row = {example.row: example for example in [*prepared.train, *prepared.validation]}
    for index in (0, 39):
        seen = preview(prepared, index)
        example = by_row[seen["row"]]
        assert [token["id"] for token in seen["tokens"]] == example.input_ids
        assert [token["trained"] for token in seen["tokens"]] == [label != IGNORED for label in example.labels]
        assert seen["removed_tokens"] == example.full_length - len(example.input_ids)
        assert seen["lost_trained_tokens"] == example.lost_trained_tokens
        assert seen["split"] == ("train" if seen["row"] in {row.row for row in prepared.train} else "validation")


def test_the_pieces_of_an_uncut_row_joined_are_its_text(file, tokenizer):
    seen = preview(prepare(file, tokenizer), 4)
    assert "".join(token["text"] for token in seen["tokens"]) == seen["text"]
    assert seen["ends_with_eos"]
    assert [message["role"] for message in seen["messages"]] == ["user", "assistant"]
    assert seen["record"]["note"] == "nan"
    assert seen["tokens"][0] == {
        "id": seen["tokens"][0]["id"],
        "text": "<|im_start|>",
        "trained": False,
        "special": True,
    }


def test_a_cut_that_takes_the_end_token_is_seen_in_the_preview(file, tokenizer):
    assert not preview(prepare(file, tokenizer, max_length=40, truncation="keep_start"), 39)["ends_with_eos"]


def test_a_row_that_is_not_there_is_an_error(file, tokenizer):
    prepared = prepare(file, tokenizer)
    for index in (-1, 40):
        with pytest.raises(StudioError, match="no usable row"):
            preview(prepared, index)


def test_values_that_json_has_no_form_for_become_text():
    value = {1: [datetime(2026, 1, 2), Decimal("1.5"), float("inf"), b"x", None, True]}
    assert plain(value) == {"1": ["2026-01-02 00:00:00", "1.5", "inf", "b'x'", None, True]}
