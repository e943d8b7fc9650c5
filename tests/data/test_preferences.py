"""Answers marked good or bad: the good ones are learned from, the bad ones are left out, and both are said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_studio.data import convert
from lora_studio.data.dataset import prepare
from lora_studio.data.formats import detect_formats
from lora_studio.data.messages import Record
from lora_studio.data.preview import first_records, inspect_characters, tried
from lora_studio.data.report import describe, preview
from lora_studio.errors import StudioError

Write = Callable[..., Path]

ROWS = [{"prompt": f"Ask {n}", "completion": f"Tell {n}", "label": n % 3 == 0} for n in range(9)]
SAID = "3 answers labelled good are trained; 6 labelled bad are ignored."
LABELLED = {"user": "prompt", "assistant": "completion", "label": "label"}


def _turns(row: dict[str, Any]) -> dict[str, Any]:
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
    return {"messages": turns, "label": row["label"]}


@pytest.mark.parametrize("goal", ["answers", "any"])
@pytest.mark.parametrize("rows", [ROWS, [_turns(row) for row in ROWS]])
def test_only_answers_marked_good_are_learned_from_and_the_others_are_counted(
    rows: list[dict[str, Any]], goal: str, write: Write, tokenizer: Any
) -> None:
    found = prepare(str(write("marks.jsonl", rows)), tokenizer, goal=goal, validation_fraction=0)
    assert [chat.row for chat in found.conversations] == [1, 4, 7]
    assert found.train.row_numbers.tolist() == [1, 4, 7]
    assert found.marks == [SAID]
    told = describe(found)
    assert SAID in told["assumptions"]
    assert "`label` is the label; only rows labelled good are used" in told["words"]
    counts = [told[name] for name in ("format", "usable_rows", "train_rows", "bad_rows", "marked_bad_rows")]
    assert counts == ["kto", 3, 3, 0, 6]
    assert preview(found, 1)["record"]["label"] is True
    assert told["examples"][1]["row"] == 4


def test_fewer_rows_are_taken_of_the_good_ones(write: Write, tokenizer: Any) -> None:
    found = prepare(str(write("marks.jsonl", ROWS)), tokenizer, validation_fraction=0, max_samples=2)
    assert len(found.train) == 2
    assert set(found.train.row_numbers.tolist()) < {1, 4, 7}


def test_a_mark_that_is_none_makes_a_bad_row_and_changes_no_reading(write: Write, tokenizer: Any) -> None:
    rows = [*ROWS, {**ROWS[0], "label": "maybe"}, {**ROWS[0], "label": None}]
    found = prepare(str(write("marks.jsonl", rows)), tokenizer, validation_fraction=0)
    assert [(bad.row, bad.field) for bad in found.bad_rows] == [(10, "label"), (11, "label")]
    assert found.bad_rows[0].reason == convert.NOT_A_MARK
    assert found.marks == [SAID]


def test_a_table_writes_its_marks_as_text(write: Write, tokenizer: Any) -> None:
    text = "prompt,completion,label\n" + "".join(
        f"{row['prompt']},{row['completion']},{row['label']}\n" for row in ROWS
    )
    assert prepare(str(write("marks.csv", text)), tokenizer, validation_fraction=0).marks == [SAID]


def test_other_labels_are_no_marks() -> None:
    for label in (0, 2, "spam", "good"):
        (shape,) = detect_formats([Record(1, {"prompt": "a", "completion": "b", "label": label})])
        assert shape.name == "prompt_completion"
        assert "Ignored columns: `label`" in shape.words
    (shape,) = detect_formats([Record(1, {"prompt": "a", "label": "true"})])
    assert shape.columns == {"prompt": "prompt", "completion": "label"}


def test_where_rows_are_pairs_with_a_mark_as_well_their_plain_answers_are_not_offered() -> None:
    row = {"prompt": "a", "completion": "b", "chosen": "c", "rejected": "d", "label": False}
    assert [shape.name for shape in detect_formats([Record(1, row)])] == ["preference", "kto"]


def test_a_person_says_which_column_is_the_mark_and_numbers_will_do(write: Write, tokenizer: Any) -> None:
    rows = [{"prompt": row["prompt"], "completion": row["completion"], "label": int(row["label"])} for row in ROWS]
    path = str(write("marks.jsonl", rows))
    assert prepare(path, tokenizer, mapping=LABELLED, validation_fraction=0).marks == [SAID]
    assert prepare(path, tokenizer, mapping={**LABELLED, "label": None}, validation_fraction=0).marks == []
    talk = [{"talk": f"Human: {row['prompt']}\nAssistant: {row['completion']}", "fine": row["label"]} for row in ROWS]
    named = {"dialogue": "talk", "label": "fine"}
    found = prepare(str(write("talk.jsonl", talk)), tokenizer, mapping=named, validation_fraction=0)
    assert found.marks == [SAID]
    assert "`fine` is the label" in found.format.words
    with pytest.raises(StudioError, match="plain text and preference pairs"):
        prepare(path, tokenizer, mapping={"text": "prompt", "label": "label"})
    seen = tried(first_records(path), LABELLED)
    assert ([row["row"] for row in seen["rows"]], seen["marked_bad"], seen["of"]) == ([1, 4], 6, 9)


def test_a_file_without_a_good_answer_is_refused_with_a_way_out(write: Write, tokenizer: Any) -> None:
    rows = [{**row, "label": False} for row in ROWS] + [{**ROWS[0], "label": "maybe"}]
    for goal in ("answers", "any"):
        with pytest.raises(StudioError, match=r"No answer in marks\.jsonl is labelled good") as caught:
            prepare(str(write("marks.jsonl", rows)), tokenizer, goal=goal)
        assert "9 are labelled bad, 1 invalid" in caught.value.message
        assert "ignore that column" in caught.value.hint


def test_a_validation_file_may_be_marked_as_well_and_says_so(write: Write, tokenizer: Any) -> None:
    plain = write("plain.jsonl", [{"prompt": "a", "completion": "b"}] * 3)
    found = prepare(str(plain), tokenizer, validation_file=str(write("marks.jsonl", ROWS)))
    assert (len(found.train), len(found.validation)) == (3, 3)
    assert found.marks == [f"Validation file: {SAID}"]


def test_characters_are_those_of_the_good_answers(write: Write) -> None:
    found = inspect_characters(str(write("marks.jsonl", ROWS)))
    assert (found["rows"], found["marked_bad_rows"], found["total_characters"]) == (3, 6, 3 * len("Ask 0Tell 0"))
    assert found["assumptions"] == [SAID]


def test_one_of_a_kind_is_told_as_one() -> None:
    assert convert.describe_labels(1, 1) == "1 answer labelled good is trained; 1 labelled bad is ignored."
