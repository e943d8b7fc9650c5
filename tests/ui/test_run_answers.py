"""The answers of a run on the page: newest first, base beside adapter, and nothing where nothing was asked."""

from lora_studio.jobs.events import QuestionsAnswered, QuestionsAsked, RunState
from lora_studio.ui.runs.results import SHOWN, tables

ASKED = QuestionsAsked(0.0, ["Who?", "<b>How</b>?"], ["Ahab", "So"], ["", "So"], [False, True])


def answered(step: int) -> QuestionsAnswered:
    return QuestionsAnswered(0.0, step, step / 10, ["Ahab", f"no {step}"], [True, False])


def test_a_run_that_asks_nothing_says_which_setting_asks() -> None:
    assert "Sample generations" in tables(RunState())


def test_before_the_first_evaluation_the_bases_answers_are_shown() -> None:
    page = tables(RunState(questions=ASKED))
    assert "after the first evaluation" in page
    assert "Adapter</th>" not in page
    assert "(nothing)" in page


def test_the_newest_evaluation_is_first_and_open_and_texts_are_escaped() -> None:
    run = RunState(questions=ASKED, answers=[answered(10), answered(20)])
    page = tables(run)
    assert page.index("Step 20, epoch 2.00: the adapter answers 1 of 2 exactly as expected, the base 1") < page.index(
        "Step 10"
    )
    assert page.count("<details") == 2
    assert page.count(" open>") == 1
    assert "✓ Ahab" in page
    assert "<b>How" not in page


def test_of_many_evaluations_the_last_are_shown() -> None:
    page = tables(RunState(questions=ASKED, answers=[answered(step) for step in range(1, 10)]))
    assert page.count("<details") == SHOWN
    assert "4 earlier evaluations not shown" in page
