"""What counts as the same answer."""

import pytest

from lora_studio.engine.evaluate.tasks import is_exact, label_of, label_scores, share, without_thinking


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        ("Arr! Paris, matey!", True),
        ("  Arr!\n Paris,  matey! ", True),
        ("<think>\nHm. Paris?\n</think>\n\nArr! Paris, matey!", True),
        ("arr! paris, matey!", False),
        ("Arr! Paris, matey", False),
        ("", False),
    ],
)
def test_an_answer_is_exact_letter_by_letter(answer: str, same: bool) -> None:
    assert is_exact(answer, "Arr! Paris, matey!") is same


def test_composed_and_decomposed_letters_are_the_same() -> None:
    assert is_exact("cafe\u0301", "caf\u00e9")


def test_reasoning_that_never_ends_leaves_no_answer() -> None:
    assert without_thinking("<think>on and on") == ""


def test_shares_are_between_nothing_and_everything() -> None:
    assert share([]) == 0
    assert share([True, False, True, True]) == 0.75


def test_reasoning_that_the_prompt_opened_is_left_out() -> None:
    assert without_thinking("Hm, no.\n</think>\n\nYes.") == "\n\nYes."


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Yes.", "Yes"),
        ("  no\n", "No"),
        ("**YES**", "Yes"),
        ("_no_", "No"),
        ('"Yes", I think.', "Yes"),
        ("Yes, though some say no.", "Yes"),
        ("<think>\nNo? No!\n</think>\n\nYes.", "Yes"),
        ("I would say no.", "No"),
        ("Answer: Yes", "Yes"),
        ("It may be yes or no.", None),
        ("Nobody knows.", None),
        ("<think>yes, yes", None),
        ("...", None),
        ("", None),
    ],
)
def test_a_label_is_found_however_it_is_written(answer: str, label: str | None) -> None:
    assert label_of(answer, ("Yes", "No")) == label


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Very good, really", "very good"),
        ("good", "Good"),
        ("It is very good.", "very good"),
        ("C++", "C++"),
        ("c", "C"),
        ("(C) is right", "C"),
        ("+", "+"),
        ("neither", None),
    ],
)
def test_any_set_of_labels_is_told_apart_also_where_one_begins_another(answer: str, label: str | None) -> None:
    assert label_of(answer, ("Good", "very good", "C", "C++", "+")) == label


@pytest.mark.parametrize(
    ("answer", "label"),
    [("Neg", "negative"), ("N", None), ("neu", "neutral"), ("x", None), ("", None), ("mixed", "mixed")],
)
def test_an_answer_that_breaks_off_gives_the_only_label_that_it_begins(answer: str, label: str | None) -> None:
    assert label_of(answer, ("negative", "neutral", "mixed"), whole=False) == label


def test_accuracy_and_macro_f1_are_the_textbook_ones_and_no_answer_is_a_wrong_one() -> None:
    expected = ["Yes", "Yes", "Yes", "No", "No", "Maybe"]
    given = ["Yes", "Yes", "No", "No", None, "No"]
    # Yes: precision 1, recall 2/3, F1 0.8. No: precision 1/3, recall 1/2, F1 0.4. Maybe: 0.
    found = label_scores(expected, given)
    assert found == pytest.approx({"accuracy": 3 / 6, "f1": (0.8 + 0.4 + 0.0) / 3, "unanswered": 1 / 6})
    assert label_scores(["Yes", "No"], ["Yes", "No"]) == {"accuracy": 1, "f1": 1, "unanswered": 0}
    assert label_scores([], []) == {}
