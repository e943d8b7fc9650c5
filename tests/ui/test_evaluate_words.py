"""Evaluations in words: list, progress, metrics, confusion."""

from dataclasses import replace

from lora_studio.jobs.events import RunState
from lora_studio.ui.evaluate.results import confusions, head, headline, listing, metrics_table, results, value

from .evaluated import HOSTILE, SUMMARY, request

GOING_ON = RunState(
    id="one",
    title=HOSTILE,
    state="running",
    created=0.0,
    started=90.0,
    phase="answer",
    phase_unit="rows",
    phase_started=100.0,
    phase_done=60,
    phase_total=100,
    step=20,
    last_event=110.0,
)


def test_one_that_goes_on_shows_rows_speed_and_time_left() -> None:
    shown = head(GOING_ON, request())
    assert "Answering, rows: 60 of 100 (4 rows/s, 10 s left)" in shown
    assert 'data-act="stop"' in shown
    assert "<img" not in shown


def test_one_that_ended_early_says_why_and_can_be_resumed() -> None:
    failed = replace(GOING_ON, state="failed", message="It broke.", hint="Mend it.", finished=120.0)
    shown = head(failed, request())
    assert "/films.json" not in shown
    assert f'title="{request().data}"' in head(failed, request(), owned=True)
    assert 'data-act="resume"' in shown
    assert "It broke." in shown
    assert 'data-act="stop"' not in shown


def test_the_list_names_each_with_its_state_and_outcome() -> None:
    shown = listing([GOING_ON, replace(GOING_ON, id="two", state="done")], "one", 200.0, {"two": "Accuracy 9 %"})
    assert "Running, 60 %" in shown
    assert "Accuracy 9 %" in shown
    assert shown.count('data-act="delete"') == 1
    assert shown.count('aria-current="true"') == 1
    assert "<img" not in shown
    assert "No evaluation yet" in listing([], "", 0.0, {})


def test_a_metric_stands_with_interval_difference_and_verdict() -> None:
    shown = metrics_table(SUMMARY)
    assert "<b>95 %</b><small>[85, 105]</small>" in shown
    assert '<td data-label="Difference"><b>+45 points</b>' in shown
    assert 'class="verdict good" title="a test">Better, significant (p = 0.010)' in shown
    assert 'class="verdict " title="a test">Worse, but not significant' in shown
    assert headline(SUMMARY) == "Accuracy 50 % → 95 %"
    assert "<img" not in shown


def test_values_have_units_and_signs() -> None:
    assert value(0.525, "share") == "52.5 %"
    assert value(-0.1, "share", signed=True) == "−10 points"
    assert value(4.5918, "plain") == "4.592"
    assert value(None, "share") == "–"


def test_a_confusion_matrix_has_a_line_for_each_expected_label() -> None:
    shown = confusions(SUMMARY)
    assert shown.count("<table") == 2
    assert shown.count('<th scope="row">') == 4
    assert confusions({**SUMMARY, "confusion": None}) == ""


def test_numbers_of_a_part_say_so() -> None:
    assert "numbers of 30 of 40 rows" in results({**SUMMARY, "of_rows": 40})
    assert "config.json" not in results(SUMMARY)
