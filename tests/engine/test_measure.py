"""From answered rows to metrics, against numbers worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest

from lora_studio.engine.evaluate.metrics import (
    confusion,
    disagreements,
    label_f1,
    macro_f1,
    perplexity,
    summary,
    token_share,
)
from lora_studio.engine.evaluate.tasks import Task, judge, label_scores

LABELS = Task("labels", "", ("Yes", "No"))


def row(number: int, reference: str, base: str, adapter: str, task: Task) -> dict[str, Any]:
    def said(answer: str, loss: float) -> dict[str, Any]:
        verdict = judge(task, answer, reference)
        scores = {"loss": loss, "right_tokens": 1, "expected_tokens": 2}
        return {"answer": answer, "right": verdict.right, "score": verdict.score, "given": verdict.given, **scores}

    return {"row": number, "prompt": [], "reference": reference, "base": said(base, 4.0), "adapter": said(adapter, 1.0)}


def labelled() -> list[dict[str, Any]]:
    """Of ten rows the base gets five right, the adapter nine; one of the base's answers gives no label."""
    wanted = ["Yes."] * 6 + ["No."] * 4
    base = ["Yes.", "Yes.", "No.", "No.", "No.", "Maybe", "No.", "No.", "No.", "Yes."]
    adapter = ["Yes."] * 6 + ["No."] * 3 + ["Yes."]
    triples = zip(wanted, base, adapter, strict=True)
    return [row(number, *three, LABELS) for number, three in enumerate(triples, 1)]


def test_accuracy_and_f1_are_those_of_the_confusion_matrix() -> None:
    found = summary(LABELS, labelled(), ["base", "adapter"])
    metrics = found["metrics"]
    assert metrics["accuracy"]["base"]["value"] == pytest.approx(0.5)
    assert metrics["accuracy"]["adapter"]["value"] == pytest.approx(0.9)
    assert metrics["accuracy"]["difference"]["value"] == pytest.approx(0.4)
    # base: Yes has 2 right of 3 said and 6 wanted, No 3 right of 6 said and 4 wanted
    yes, no = 2 * 2 / (3 + 6), 2 * 3 / (6 + 4)
    assert metrics["f1_binary"]["base"]["value"] == pytest.approx(yes)
    assert metrics["f1"]["base"]["value"] == pytest.approx((yes + no) / 2)
    assert found["confusion"]["base"] == {
        "given": ["Yes", "No", "none"],
        "expected": ["Yes", "No"],
        "counts": [[2, 3, 1], [1, 3, 0]],
    }
    # only the adapter is right in four rows, only the base in none: 2 / 2^4
    assert metrics["accuracy"]["difference"]["p"] == pytest.approx(0.125)
    assert metrics["accuracy"]["difference"]["more_than_chance"] is False
    assert metrics["accuracy"]["difference"]["words"] == "better, but not significant (p = 0.125)"
    assert found["disagreements"]["adapter"] == {
        "both_right": 5,
        "only_first_right": 0,
        "only_second_right": 4,
        "both_wrong": 1,
    }


def test_macro_f1_is_the_one_of_training() -> None:
    rows = labelled()
    expected = ["Yes" if one["reference"] == "Yes." else "No" for one in rows]
    given = [one["base"]["given"] for one in rows]
    place = {"Yes": 0, "No": 1, None: -1}
    numbers = np.array([place[label] for label in expected]), np.array([place[label] for label in given])
    assert macro_f1(*numbers, labels=2) == pytest.approx(label_scores(expected, given)["f1"])


def test_a_label_that_nobody_expects_or_gives_does_not_count() -> None:
    wanted = np.array([[0, 0, 1]])
    assert macro_f1(wanted, wanted, labels=3) == pytest.approx([1.0])
    assert label_f1(wanted, wanted, label=2) == pytest.approx([0.0])


def test_perplexity_and_token_accuracy_weigh_every_token_alike() -> None:
    losses, tokens = np.array([1.0, 6.0]), np.array([1, 3])
    assert perplexity(losses, tokens) == pytest.approx(math.exp(7 / 4))
    assert token_share(np.array([1, 1]), tokens) == pytest.approx(0.5)
    metrics = summary(LABELS, labelled(), ["base", "adapter"])["metrics"]
    assert metrics["perplexity"]["base"]["value"] == pytest.approx(math.exp(2))
    assert metrics["perplexity"]["difference"]["words"] == "better, significant"
    assert metrics["token_accuracy"]["difference"]["words"] == "the same"


def test_rows_that_can_not_be_scored_are_left_out_of_perplexity_alone() -> None:
    rows = labelled()
    rows[0]["base"]["loss"] = None
    metrics = summary(LABELS, rows, ["base", "adapter"])["metrics"]
    assert (metrics["perplexity"]["rows"], metrics["accuracy"]["rows"]) == (9, 10)


def test_free_text_is_measured_by_words_and_letters() -> None:
    task = Task("text", "")
    rows = [row(number, "the cat sat", "a dog ran", "the cat sat", task) for number in range(12)]
    found = summary(task, rows, ["base", "adapter"])
    assert list(found["metrics"]) == ["exact_match", "rouge_l", "bleu", "chrf", "perplexity", "token_accuracy"]
    assert found["metrics"]["rouge_l"]["difference"]["value"] == pytest.approx(1.0)
    assert found["metrics"]["exact_match"]["difference"]["p"] == pytest.approx(2 / 2**12)
    assert found["metrics"]["exact_match"]["difference"]["words"] == "better, significant (p < 0.001)"
    assert found["confusion"] is None


def test_worked_answers_are_measured_by_their_number_and_json_by_its_value() -> None:
    numbers = Task("numbers", "")
    found = summary(numbers, [row(1, "so #### 7", "8", "It is 7.", numbers)], ["base", "adapter"])
    assert found["metrics"]["number_match"]["adapter"]["value"] == 1.0
    assert found["metrics"]["perplexity"]["adapter"]["low"] is None
    values = Task("json", "")
    found = summary(values, [row(1, '{"a": 1}', "{", '{"a":1}', values)] * 2, ["base", "adapter"])
    valid, same = found["metrics"]["json_valid"], found["metrics"]["json_match"]
    assert (valid["base"]["value"], valid["adapter"]["value"], same["adapter"]["value"]) == (0.0, 1.0, 1.0)


def test_several_columns_are_each_held_against_the_first() -> None:
    rows = [{**one, "adapter2": one["base"]} for one in labelled()]
    accuracy = summary(LABELS, rows, ["base", "adapter", "adapter2"])["metrics"]["accuracy"]
    assert accuracy["difference"]["value"] == pytest.approx(0.4)
    assert accuracy["difference2"]["words"] == "the same"


def test_a_single_column_has_no_difference() -> None:
    found = summary(LABELS, labelled(), ["adapter"])
    assert "difference" not in found["metrics"]["accuracy"]
    assert found["disagreements"] == {}


def test_answers_without_a_label_have_a_column_of_their_own() -> None:
    found = confusion(LABELS, labelled(), "adapter")
    assert found is not None
    assert found["counts"] == [[6, 0, 0], [1, 3, 0]]
    assert disagreements([], "base", "adapter")["both_right"] == 0
