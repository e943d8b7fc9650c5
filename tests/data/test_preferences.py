"""Answers labelled good or bad: SFT learns from the good ones and says so, KTO from both and from pairs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_studio.data import convert
from lora_studio.data.dataset import prepare
from lora_studio.data.examples import Pairs, Unpaired
from lora_studio.data.formats import detect_formats
from lora_studio.data.messages import Record
from lora_studio.data.pipeline import SPLIT_PAIRS
from lora_studio.data.preview import first_records, inspect_characters, tried
from lora_studio.data.report import describe, preview
from lora_studio.errors import StudioError

Write = Callable[..., Path]

ROWS = [{"prompt": f"Ask {n}", "completion": f"Tell {n}", "label": n % 3 == 0} for n in range(9)]
SAID = "3 answers labelled good are trained; 6 labelled bad are ignored."
BOTH = "3 answers are labelled good, 6 bad. KTO trains on both, SFT on the good ones only."
LABELLED = {"user": "prompt", "assistant": "completion", "label": "label"}


def _turns(row: dict[str, Any]) -> dict[str, Any]:
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
    return {"messages": turns, "label": row["label"]}


@pytest.mark.parametrize("rows", [ROWS, [_turns(row) for row in ROWS]])
def test_only_answers_marked_good_are_learned_from_and_the_others_are_counted(
    rows: list[dict[str, Any]], write: Write, tokenizer: Any
) -> None:
    found = prepare(str(write("marks.jsonl", rows)), tokenizer, validation_fraction=0)
    assert [chat.row for chat in found.conversations] == [1, 4, 7]
    assert found.train.row_numbers.tolist() == [1, 4, 7]
    assert found.ignored == [SAID]
    told = describe(found)
    assert SAID in told["assumptions"]
    assert "`label` is the label (good or bad)" in told["words"]
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
    assert found.ignored == [SAID]


def test_a_table_writes_its_marks_as_text(write: Write, tokenizer: Any) -> None:
    text = "prompt,completion,label\n" + "".join(
        f"{row['prompt']},{row['completion']},{row['label']}\n" for row in ROWS
    )
    assert prepare(str(write("marks.csv", text)), tokenizer, validation_fraction=0).ignored == [SAID]


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
    assert prepare(path, tokenizer, mapping=LABELLED, validation_fraction=0).ignored == [SAID]
    assert prepare(path, tokenizer, mapping={**LABELLED, "label": None}, validation_fraction=0).ignored == []
    talk = [{"talk": f"Human: {row['prompt']}\nAssistant: {row['completion']}", "fine": row["label"]} for row in ROWS]
    named = {"dialogue": "talk", "label": "fine"}
    found = prepare(str(write("talk.jsonl", talk)), tokenizer, mapping=named, validation_fraction=0)
    assert found.ignored == [SAID]
    assert "`fine` is the label" in found.format.words
    with pytest.raises(StudioError, match="plain text and preference pairs"):
        prepare(path, tokenizer, mapping={"text": "prompt", "label": "label"})
    seen = tried(first_records(path), LABELLED)
    assert ([row["row"] for row in seen["rows"]], seen["marked_bad"], seen["of"]) == ([1, 2], 6, 9)


def test_a_file_without_a_good_answer_is_refused_with_a_way_out(write: Write, tokenizer: Any) -> None:
    rows = [{**row, "label": False} for row in ROWS] + [{**ROWS[0], "label": "maybe"}]
    with pytest.raises(StudioError, match=r"No answer in marks\.jsonl is labelled good") as caught:
        prepare(str(write("marks.jsonl", rows)), tokenizer)
    assert "9 are labelled bad, 1 invalid" in caught.value.message
    assert "ignore that column" in caught.value.hint


def test_a_validation_file_may_be_marked_as_well_and_says_so(write: Write, tokenizer: Any) -> None:
    plain = write("plain.jsonl", [{"prompt": "a", "completion": "b"}] * 3)
    found = prepare(str(plain), tokenizer, validation_file=str(write("marks.jsonl", ROWS)))
    assert (len(found.train), len(found.validation)) == (3, 3)
    assert found.ignored == [f"Validation file: {SAID}"]


def test_characters_are_those_of_good_and_bad_answers(write: Write) -> None:
    found = inspect_characters(str(write("marks.jsonl", ROWS)))
    assert (found["rows"], found["marked_bad_rows"], found["total_characters"]) == (9, 0, 9 * len("Ask 0Tell 0"))
    assert found["assumptions"] == [BOTH]


def test_one_of_a_kind_is_told_as_one() -> None:
    assert convert.describe_labels(1, 1) == "1 answer labelled good is trained; 1 labelled bad is ignored."


def unpaired(path: Path, tokenizer: Any, **settings: Any) -> Unpaired:
    found = prepare(str(path), tokenizer, **{"goal": "unpaired", "validation_fraction": 0, **settings}).train
    assert isinstance(found, Unpaired)
    return found


@pytest.mark.parametrize("goal", ["unpaired", "any"])
def test_good_and_bad_answers_are_learned_from_with_their_labels(goal: str, write: Write, tokenizer: Any) -> None:
    found = prepare(str(write("marks.jsonl", ROWS)), tokenizer, goal=goal, validation_fraction=0)
    assert isinstance(found.train, Unpaired)
    assert found.train.row_numbers.tolist() == list(range(1, 10))
    assert found.train.desirable.tolist() == [row["label"] for row in ROWS]
    assert (found.train.counts, found.ignored) == ((3, 6), [])
    assert [example.row for example in found.train.answers] == [1, 4, 7]
    told = describe(found)
    assert BOTH in told["assumptions"]
    counts = [told[name] for name in ("usable_rows", "train_rows", "marked_bad_rows", "desirable_rows")]
    assert (counts, told["undesirable_rows"]) == ([9, 9, 0, 3], 6)
    (table,) = found.train.tables()
    assert [set(row) for row in table.to_pylist()] == [{"input_ids", "labels", "desirable"}] * 9
    for row, example, label in zip(table.to_pylist(), found.train, found.train.desirable, strict=True):
        assert (row["input_ids"], row["labels"], row["desirable"]) == (example.input_ids, example.labels, label)


def test_a_label_speaks_of_the_last_answer_which_alone_is_trained_and_shown_so(write: Write, tokenizer: Any) -> None:
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "See you")]
    talk = [{"role": role, "content": text} for role, text in turns]
    path = write("talk.jsonl", [{"messages": talk, "label": number % 2 == 0} for number in range(4)])
    found = prepare(str(path), tokenizer, goal="unpaired", validation_fraction=0)
    (example,) = found.train[1:2]
    assert tokenizer.decode([token for token in example.labels if token != -100]) == "See you<|im_end|>"
    shown = [token["text"] for token in preview(found, 1)["tokens"] if token["trained"]]
    assert "".join(shown) == "See you<|im_end|>"


def test_pairs_become_good_and_bad_answers_that_stay_on_one_side_of_the_split(write: Write, tokenizer: Any) -> None:
    rows = [{"prompt": f"Ask {n}", "chosen": f"Yes {n}", "rejected": f"No, {n} times no"} for n in range(12)]
    path = write("pairs.jsonl", rows)
    pairs = prepare(str(path), tokenizer, goal="preference", validation_fraction=0.25)
    found = prepare(str(path), tokenizer, goal="unpaired", validation_fraction=0.25)
    assert isinstance(pairs.train, Pairs)
    assert isinstance(found.train, Unpaired)
    assert isinstance(found.validation, Unpaired)
    assert (len(found.train), len(found.validation), found.train.counts) == (18, 6, (9, 9))
    for number, pair in enumerate(pairs.train):
        assert found.train[number].input_ids == pair.chosen.input_ids
        assert found.train[9 + number].labels == pair.rejected.labels
    assert found.train.desirable.tolist() == [True] * 9 + [False] * 9
    assert not set(found.train.row_numbers.tolist()) & set(found.validation.row_numbers.tolist())
    assert SPLIT_PAIRS in found.assumptions
    both = prepare(
        str(path), tokenizer, goal="unpaired", validation_file=str(write("marks.jsonl", ROWS)), validation_fraction=0
    )
    assert (len(both.train), len(both.validation)) == (24, 9)


def test_rows_of_one_label_plain_answers_and_whole_texts_are_refused_for_kto(write: Write, tokenizer: Any) -> None:
    good = [{**row, "label": True} for row in ROWS]
    with pytest.raises(StudioError, match=r"all 9 training rows of marks\.jsonl are labelled good") as caught:
        unpaired(write("marks.jsonl", good), tokenizer)
    assert "training.method to sft" in caught.value.hint
    with pytest.raises(StudioError, match="contain no preference data"):
        unpaired(write("plain.jsonl", [{"prompt": "a", "completion": "b"}] * 5), tokenizer)
    with pytest.raises(StudioError, match="KTO needs answers labelled good or bad"):
        unpaired(write("marks.jsonl", ROWS), tokenizer, mapping={"user": "prompt", "assistant": "completion"})
    with pytest.raises(StudioError, match="only answers can be trained"):
        unpaired(write("marks.jsonl", ROWS), tokenizer, train_on="all")
    plain, labelled = write("plain.jsonl", [{"prompt": "a", "completion": "b"}] * 5), write("marks.jsonl", ROWS)
    with pytest.raises(StudioError, match="only one contains answers labelled good or bad"):
        prepare(str(plain), tokenizer, goal="any", validation_file=str(labelled))


def test_rows_with_both_a_label_and_a_pair_are_read_for_the_method_that_trains_them(
    write: Write, tokenizer: Any
) -> None:
    rows = [{**row, "chosen": "Yes", "rejected": "No"} for row in ROWS]
    path = str(write("both.jsonl", rows))
    formats = [prepare(path, tokenizer, goal=goal).format.name for goal in ("preference", "unpaired")]
    assert formats == ["preference", "kto"]
