"""Pairs come through the same rendering, masks and cuts as other rows, and both sides keep the same prompt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_studio.data.dataset import NOTHING_TO_COMPARE, prepare
from lora_studio.data.examples import COLUMNS, Pairs
from lora_studio.data.messages import IGNORED
from lora_studio.data.report import describe, preview
from lora_studio.errors import StudioError

Write = Callable[..., Path]
ROWS = [
    {
        "prompt": f"What is the capital of land {n}?",
        "chosen": f"It is city {n}.",
        "rejected": f"No idea about {n}, sorry.",
    }
    for n in range(12)
]


def pairs(path: Path, tokenizer: Any, **settings: Any) -> Pairs:
    found = prepare(str(path), tokenizer, **{"goal": "preference", "validation_fraction": 0, **settings}).train
    assert isinstance(found, Pairs)
    return found


def trained(tokenizer: Any, labels: list[int]) -> str:
    return str(tokenizer.decode([token for token in labels if token != IGNORED]))


@pytest.mark.parametrize("marked", [True, False])
def test_each_side_is_the_prompt_with_its_answer_of_which_only_the_answer_is_trained(
    marked: bool, write: Write, tokenizer: Any, unmarked_tokenizer: Any
) -> None:
    tokenizer = tokenizer if marked else unmarked_tokenizer
    found = pairs(write("pairs.jsonl", ROWS), tokenizer)
    assert len(found) == 12
    pair = found[3]
    asked = "<|im_start|>user\nWhat is the capital of land 3?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(pair.chosen.input_ids).rstrip() == asked + "It is city 3.<|im_end|>"
    assert tokenizer.decode(pair.rejected.input_ids).rstrip() == asked + "No idea about 3, sorry.<|im_end|>"
    assert trained(tokenizer, pair.chosen.labels) == "It is city 3.<|im_end|>"
    assert trained(tokenizer, pair.rejected.labels) == "No idea about 3, sorry.<|im_end|>"
    assert pair.chosen.row == pair.rejected.row == 4
    assert found.length[3] == len(pair.chosen.input_ids) + len(pair.rejected.input_ids)
    assert found.trained[3] == pair.chosen.trained_tokens + pair.rejected.trained_tokens


def test_answers_that_stand_in_the_prompt_are_not_trained(write: Write, tokenizer: Any) -> None:
    shared = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Which?"},
    ]
    row = {
        "chosen": [*shared, {"role": "assistant", "content": "this one"}],
        "rejected": [*shared, {"role": "assistant", "content": "none"}],
    }
    (pair,) = pairs(write("pairs.jsonl", [row]), tokenizer)[:1]
    assert trained(tokenizer, pair.chosen.labels) == "this one<|im_end|>"
    assert "Hi" in tokenizer.decode(pair.chosen.input_ids)


def test_a_cut_takes_the_same_part_of_the_prompt_from_both_sides(write: Write, tokenizer: Any) -> None:
    rows = [{"prompt": "word " * 60 + "end?", "chosen": "Yes.", "rejected": "Not at all, as far as I know."}]
    whole = pairs(write("pairs.jsonl", rows), tokenizer)[0]
    longest = len(whole.rejected.input_ids) - 20
    cut = pairs(write("pairs.jsonl", rows), tokenizer, max_length=longest)[0]
    assert len(cut.rejected.input_ids) == longest
    # The line feed after an answer goes first, then 19 tokens of both prompts.
    for side, before in ((cut.chosen, whole.chosen), (cut.rejected, whole.rejected)):
        assert side.input_ids == before.input_ids[19 : 19 + len(side.input_ids)]
        assert trained(tokenizer, side.labels) == trained(tokenizer, before.labels)


def test_pairs_that_no_longer_differ_or_lose_an_answer_are_dropped_and_counted(write: Write, tokenizer: Any) -> None:
    start = "The same words again and again, " * 3
    rows = [
        *ROWS[:2],
        {"prompt": "Tell", "chosen": start + "good", "rejected": start + "bad"},
        {"prompt": "word " * 80, "chosen": "a", "rejected": "b"},
    ]
    found = prepare(
        str(write("pairs.jsonl", rows)),
        tokenizer,
        goal="preference",
        validation_fraction=0,
        max_length=60,
        truncation="keep_start",
    )
    assert found.train.row_numbers.tolist() == [1, 2]
    assert [(bad.row, bad.reason) for bad in found.dropped] == [(3, NOTHING_TO_COMPARE), (4, NOTHING_TO_COMPARE)]


def test_the_trainers_table_holds_what_the_pairs_hold(write: Write, tokenizer: Any) -> None:
    found = pairs(write("pairs.jsonl", ROWS), tokenizer)
    (table,) = found.tables()
    assert tuple(table.schema.names) == COLUMNS
    for row, pair in zip(table.to_pylist(), found, strict=True):
        sides = (pair.chosen, pair.rejected)
        assert list(row.values()) == [values for side in sides for values in (side.input_ids, side.labels)]


def test_a_pair_is_split_with_its_like_and_a_bad_side_makes_the_row_bad_once(write: Write, tokenizer: Any) -> None:
    rows = [
        *ROWS,
        {"prompt": "Same?", "chosen": "a", "rejected": "a"},
        {"prompt": "Empty?", "chosen": "", "rejected": "b"},
    ]
    found = prepare(str(write("pairs.jsonl", rows)), tokenizer, goal="preference", validation_fraction=0.25)
    assert (len(found.train), len(found.validation)) == (9, 3)
    assert not set(found.train.row_numbers.tolist()) & set(found.validation.row_numbers.tolist())
    assert [bad.row for bad in found.bad_rows] == [13, 14]


def test_marks_and_plain_answers_are_no_pairs_and_pairs_no_answers(write: Write, tokenizer: Any) -> None:
    marks = [{"prompt": f"Ask {n}", "completion": f"Tell {n}", "label": n % 2 == 0} for n in range(6)]
    with pytest.raises(StudioError, match="DPO compares two answers"):
        prepare(str(write("marks.jsonl", marks)), tokenizer, goal="preference")
    with pytest.raises(StudioError, match="contain no preference data"):
        prepare(str(write("plain.jsonl", [{"prompt": "a", "completion": "b"}] * 5)), tokenizer, goal="preference")
    with pytest.raises(StudioError, match="preference pairs") as caught:
        prepare(str(write("pairs.jsonl", ROWS)), tokenizer)
    assert "training.method to dpo" in caught.value.hint
    with pytest.raises(StudioError, match="only answers can be trained"):
        prepare(str(write("pairs.jsonl", ROWS)), tokenizer, goal="preference", train_on="all")


def test_a_view_of_pairs_shows_both_sides_with_their_masks(write: Write, tokenizer: Any) -> None:
    found = prepare(str(write("pairs.jsonl", ROWS)), tokenizer, goal="any", validation_fraction=0)
    told = describe(found)
    assert (told["format"], told["rows"], told["usable_rows"], told["dropped_rows"]) == ("preference", 12, 12, 0)
    longer = np.maximum(*(np.array([len(side) for side in sides]) for sides in _sides(found.train)))
    assert told["tokens"]["max"] == longer.max()
    seen = preview(found, 2)
    assert [turn["role"] for turn in seen["messages"]] == ["user"]
    assert seen["chosen"][0]["content"] == "It is city 2."
    assert seen["worse"][0]["content"] == "No idea about 2, sorry."
    for side, words in ((seen, "It is city 2."), (seen["rejected"], "No idea about 2, sorry.")):
        text = "".join(token["text"] for token in side["tokens"] if token["trained"])
        assert text == words + "<|im_end|>"
        assert side["ends_with_eos"]


def _sides(found: Any) -> tuple[list[list[int]], list[list[int]]]:
    return [pair.chosen.input_ids for pair in found], [pair.rejected.input_ids for pair in found]
