"""What is shown of prepared data: consistent numbers, JSON all through, and one row token by token."""

import json
from datetime import datetime
from decimal import Decimal

import pytest

from lora_studio.data import dataset
from lora_studio.data.dataset import prepare
from lora_studio.data.messages import plain
from lora_studio.data.report import Look, describe, inspect, preview
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
    assert found["words"].startswith("`instruction` followed by `input` is the user turn")
    assert len(found["examples"]) == 3
    assert found["table"]["columns"] == ["row", "instruction", "input", "output", "note"]
    assert found["table"]["rows"][0][:2] == [1, "Say 1 🙂"]


def test_values_that_json_has_no_form_for_become_text():
    value = {1: [datetime(2026, 1, 2), Decimal("1.5"), float("inf"), b"x", None, True]}
    assert plain(value) == {"1": ["2026-01-02 00:00:00", "1.5", "inf", "b'x'", None, True]}


def test_what_packing_and_an_epoch_would_be_is_told(file, tokenizer):
    found = inspect(file, tokenizer, look=Look(per_device_train_batch_size=2, gradient_accumulation_steps=3))
    assert found["packing"]["rows"] == found["train_rows"] == 36
    assert 1 <= found["packing"]["packs"] < 36
    assert found["steps"]["per_epoch"] == 6
    assert found["steps"]["per_epoch_packed"] <= 6
    in_two = Look(per_device_train_batch_size=2, gradient_accumulation_steps=3, processes=2)
    assert inspect(file, tokenizer, look=in_two)["steps"]["per_epoch"] == 3
    assert found["suggested"]["max_length"] == found["tokens"]["max"]
    assert found["sampled"] is None


def test_a_reading_stands_beside_the_others_and_can_be_given_back_as_a_mapping(file, tokenizer):
    found = inspect(file, tokenizer)
    assert found["readings"][0]["name"] == "alpaca"
    again = inspect(file, tokenizer, mapping=found["mapping"])
    assert (again["format"], again["rows"], again["tokens"]) == ("mapped", found["rows"], found["tokens"])
    other = inspect(file, tokenizer, mapping={"user": "output", "assistant": "instruction"})
    assert other["examples"][0]["messages"][1]["content"] == "Say 1 🙂"
    with pytest.raises(StudioError, match="absent"):
        inspect(file, tokenizer, mapping={"user": "absent", "assistant": "output"})


def test_repeats_and_leaks_are_told_beside_the_numbers(write, tokenizer):
    rows = [{"prompt": f"q {n % 30}", "completion": f"a {n % 30}"} for n in range(60)]
    found = inspect(str(write("twice.jsonl", rows)), tokenizer)["hygiene"]
    assert found["exact_duplicates"]["rows"] > 0
    assert found["shared_with_validation"]["rows"] == 0
    assert found["looked_at"] == found["of_rows"] == 60


def test_a_large_file_is_described_by_its_first_rows_before_the_rest_is_read(write, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "_LARGE_BYTES", 0)
    path = str(write("many.jsonl", [{"prompt": f"q {n:04}", "completion": "a " * 9} for n in range(1000)]))
    samples, order = [], []

    def keep(found):
        order.append("sample")
        samples.append(found)

    def phase(name, *_):
        order.append(name)

    settings = {"cache_folder": tmp_path / "cache", "on_sample": keep, "on_progress": phase}
    whole = inspect(path, tokenizer, **settings)
    assert [found["sampled"] for found in samples] == [400]
    assert order.index("sample") < order.index("read")
    assert samples[0]["tokens"]["p50"] == whole["tokens"]["p50"]
    assert (samples[0]["hygiene"], whole["sampled"], whole["rows"]) == (None, None, 1000)
    inspect(path, tokenizer, **settings)
    assert len(samples) == 1


@pytest.mark.parametrize("phase", ["first", "read", "convert", "encode", "split", "measure", "check"])
def test_a_stop_is_heard_in_every_phase(file, tokenizer, monkeypatch, phase):
    monkeypatch.setattr(dataset, "_LARGE_BYTES", 0)

    def stop(now, *_):
        if now == phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inspect(file, tokenizer, max_samples=20, on_sample=lambda _: None, on_progress=stop)


def test_a_row_that_a_limit_leaves_out_is_shown_as_unused(file, tokenizer):
    prepared = prepare(file, tokenizer, max_samples=3, max_eval_samples=1)
    sides = [preview(prepared, index)["split"] for index in range(40)]
    assert (sides.count("train"), sides.count("validation"), sides.count("unused")) == (3, 1, 36)
    assert all(example["split"] != "unused" for example in describe(prepared)["examples"])
