"""What is said of a data set as a whole: faults with examples, a length that fits, packing, progress."""

from typing import Any

import pytest

from lora_studio.data.messages import Conversation, Message
from lora_studio.data.quality import data_quality
from lora_studio.jobs.protocol import Progress
from lora_studio.ui.data import report


def chat(row: int, question: str, answer: str) -> Conversation:
    return Conversation(row, (Message("user", question), Message("assistant", answer)))


def found(train: list[Conversation], validation: list[Conversation]) -> dict[str, Any]:
    whole = len(train) + len(validation)
    return {**data_quality(train, validation, specials=["<|im_end|>"]), "looked_at": whole, "of_rows": whole}


@pytest.fixture
def result() -> dict[str, Any]:
    """An inspector's answer for 250 short rows and three long texts."""
    return {
        "sampled": None,
        "format": "messages",
        "max_length": 1024,
        "suggested": {"max_length": 320, "reason": "95 of 100 rows at most <280> tokens."},
        "tokens": {"min": 6, "mean": 14.5, "p75": 20, "p99.9": 29, "max": 30},
        "packing": {"max_length": 1024, "rows": 250, "packs": 8, "padding_alone": 0.4, "padding_packed": 0.031},
        "steps": {
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "processes": 1,
            "per_epoch": 32,
            "per_epoch_packed": 1,
        },
        "split_rows": 3,
        "windows": 1262,
    }


def test_a_clean_data_set_is_one_calm_line() -> None:
    said = report.hygiene({"hygiene": found([chat(1, "a?", "b"), chat(2, "c?", "d")], [chat(3, "e?", "f")])})
    assert "No duplicates" in said
    assert "ls-good" in said
    assert "<li>" not in said


def test_every_fault_is_a_line_with_its_rows() -> None:
    long = "the quick brown fox jumps over the lazy dog and runs on through the wood until the evening comes"
    train = [chat(1, "Hi?", "Ho"), chat(2, "hi?", "ho"), chat(3, "Hi?", "No <|im_end|>")]
    train += [chat(4, long, "Yes."), chat(5, long + " again", "Yes.")]
    said = report.hygiene({"hygiene": found(train, [chat(90, "Hi?", "Ho"), chat(91, "Hi?", "Perhaps")])})
    assert "1 row repeats an earlier row, in 1 group." in said
    assert "rows 1, 2" in said
    assert "1 row is nearly the same as an earlier row." in said
    assert "1 validation row is also in training" in said
    assert "row 1 and validation row 90" in said
    assert "1 validation row has the prompt of a training row" in said
    assert "1 prompt has different answers, in 3 rows." in said
    assert "1 row contains &lt;|im_end|&gt; as text" in said
    assert said.count("<li>") == 6


def test_few_answers_are_counted_and_shown_as_text() -> None:
    rows = [chat(row, f"Is {row} even?", "<b>yes</b>" if row % 4 else "no") for row in range(1, 41)]
    said = report.hygiene({"hygiene": found(rows, [])})
    assert "2 distinct answers; most frequent: “&lt;b&gt;yes&lt;/b&gt;”, 30 times (75 %)." in said
    assert "No duplicates" in said


def test_a_part_that_was_looked_at_is_named() -> None:
    some = {**found([chat(1, "a?", "b")], []), "looked_at": 20_000, "of_rows": 1_000_000}
    assert "Checked 20,000 of 1,000,000 rows" in report.hygiene({"hygiene": some})
    assert "once the whole file is read" in report.hygiene({"hygiene": None})


def test_the_reason_for_the_suggested_length_is_given_as_text(result: dict[str, Any]) -> None:
    assert "Suggested max length: 95 of 100 rows at most &lt;280&gt; tokens." in report.percentiles(result)


def test_packing_steps_and_windows_are_told_in_words(result: dict[str, Any]) -> None:
    said = report.forecast(result)
    assert "Packing: 250 rows in 8 packs of 1,024 tokens, 3.1 % padding; without packing about 40 %." in said
    assert "Epoch: 32 steps of 8 rows (4 × 2); 1 packed." in said
    result["steps"] |= {"processes": 3, "per_epoch": 11}
    assert "Epoch: 11 steps of 24 rows (4 × 2 × 3); 1 packed." in report.forecast(result)
    assert "3 long texts are split into windows of at most 1,024 tokens" in said
    assert "1,262 examples in all" in said
    assert "Windows" not in report.forecast({**result, "split_rows": 0})


def test_the_percentiles_asked_for_are_shown(result: dict[str, Any]) -> None:
    said = report.percentiles(result)
    assert "<b>≤ 29</b><span>99.9 % of rows</span>" in said
    assert said.index("shortest") < said.index("75 % of rows") < said.index("longest")


def test_a_first_look_says_how_much_was_looked_at(result: dict[str, Any]) -> None:
    assert report.first_look(result) == ""
    assert "Preview: the first 2,000 rows" in report.first_look({"sampled": 2000})


def test_progress_has_rows_a_second_and_time_left_and_says_that_a_total_is_a_guess() -> None:
    answer = {"phase": "read", "done": 120_000, "total": 1_000_000, "rows_per_second": 45_000.0, "seconds_left": 19.6}
    said = report.step(Progress(**answer))
    assert "Reading rows: 120,000 of about 1,000,000 (45,000 rows/s, about 20 s left)" in said
    assert "about 4 s left" in report.step(Progress(**{**answer, "seconds_left": 4.2}))
    assert "about" not in report.step(Progress(phase="encode", done=1, total=3))
    assert "Reading rows: 5,000…" in report.step(Progress(**{"phase": "read", "done": 5000, "total": 0}))
