"""Which task a file sets, and whether an answer solves it."""

import pytest

from lora_studio.engine.evaluate.tasks import Task, choose_task, few_labels, json_of, judge, number_of, same_number


def test_a_few_short_answers_again_and_again_are_labels() -> None:
    task = choose_task(["Yes.", "No.", "Yes.", "yes", "No.", "Yes."])
    assert (task.kind, task.labels, task.positive) == ("labels", ("Yes", "No"), "Yes")
    assert "Yes, No" in task.why


def test_many_different_answers_are_no_labels() -> None:
    assert few_labels(["a", "b", "c", "d"]) == ()
    assert few_labels(["always the same"] * 9) == ()
    assert few_labels(["x" * 41, "y"] * 9) == ()


def test_labels_that_were_named_settle_the_task() -> None:
    task = choose_task(["It is good.", "It is bad."], ["good", "bad"], "they were given")
    assert (task.kind, task.labels, task.positive) == ("labels", ("good", "bad"), "good")
    assert task.why.endswith("they were given.")


def test_labels_that_no_answer_gives_are_left_aside() -> None:
    assert choose_task(["A long tale.", "Another one."], ["Yes", "No"], "they were given").kind == "text"


def test_worked_answers_and_bare_numbers_are_numbers() -> None:
    assert choose_task(["3 + 4 = 7\n#### 7", "so\n#### 1,200"]).kind == "numbers"
    assert choose_task(["12", "$3.50", "1 000"]).kind == "numbers"
    assert choose_task(["In 1984 it rained.", "It has 3 wheels."]).kind == "text"


def test_objects_and_lists_are_json() -> None:
    assert choose_task(['{"a": 1}', "[1, 2]"]).kind == "json"
    assert choose_task(['{"a": 1}', "or not"]).kind == "text"


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("3 * 4 = 12, so #### 12", 12),
        ("first 5, then 1,234.50 dollars.", 1234.5),
        ("#### $1,200", 1200),
        ("it is −3", -3),
        ("from 10-4", 4),
        ("one of 1,2,3", 3),
        ("<think>it may be 9</think>It is 8.", 8),
    ],
)
def test_the_number_of_an_answer_is_the_marked_one_or_the_last(answer: str, number: float) -> None:
    assert number_of(answer) == number


def test_numbers_are_the_same_however_they_are_written() -> None:
    assert same_number("about 1,000.00", "#### 1000")
    assert not same_number("none", "#### 1")
    assert not same_number("none", "none")


def test_json_is_read_also_inside_a_fence_but_bare_words_are_none() -> None:
    assert json_of('```json\n{"a": [1]}\n```') == (True, {"a": [1]})
    assert json_of("12") == (False, 12)
    assert json_of("{a: 1}")[0] is False


def test_an_answer_is_judged_by_its_task() -> None:
    labels = Task("labels", "", ("Yes", "No"))
    assert judge(labels, "yes, of course", "Yes.").right
    assert judge(labels, "yes, of course", "Yes.").given == "Yes"
    assert judge(labels, "who knows", "No.").given is None
    numbers = judge(Task("numbers", ""), "it makes 7.0", "#### 7")
    assert (numbers.right, numbers.given) == (True, "7.0")
    assert judge(Task("json", ""), '{"b": 2, "a": 1}', '{"a": 1, "b": 2}').right
    assert judge(Task("json", ""), '{"a": 2}', '{"a": 1}').score == pytest.approx(0.25)
    half = judge(Task("text", ""), "the cat", "the cat sat down")
    assert (half.right, half.score) == (False, pytest.approx(2 / 3))
