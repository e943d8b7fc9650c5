"""Evaluations in words: list, progress, metrics, confusion."""

from dataclasses import replace
from typing import Any

import pytest

from lora_studio.evaluate.job import Sentence, elsewhere, value, verdict
from lora_studio.jobs.events import RunState
from lora_studio.ui.evaluate.results import confusions, head, headline, listing, metrics_table, results

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
    assert listing([], "", 0.0, {}) == ""


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
    assert "Results of 30 of 40 rows" in results({**SUMMARY, "of_rows": 40})
    assert "Results of" not in results(SUMMARY)


def metric(base: float, adapter: float, words: str, p: float | None, **more: Any) -> dict[str, Any]:
    bounds = {"low": adapter - base - 0.1, "high": adapter - base + 0.1}
    difference = {"value": adapter - base, **bounds, "p": p, "test": "a test"}
    difference |= {"more_than_chance": "not" not in words and words != "the same", "words": words}
    values = {"base": {"value": base}, "adapter": {"value": adapter}, "difference": difference}
    return {"title": "Exact match", "about": "", "unit": "share", "rows": 24, **values, **more}


def summary(*metrics: dict[str, Any], titles: tuple[str, ...] = ("Base", "pirate")) -> dict[str, Any]:
    names = ("base", "adapter", "adapter2")
    columns = [{"name": name, "title": title} for name, title in zip(names, titles, strict=False)]
    return {"columns": columns, "metrics": {str(number): item for number, item in enumerate(metrics)}}


@pytest.mark.parametrize(
    ("measured", "kind", "words"),
    [
        (
            metric(0.0, 1.0, "better, significant (p < 0.001)", 1e-7),
            "good",
            "Better than the base: exact match 0 % → 100 %, n = 24, p < 0.001",
        ),
        (metric(0.567, 0.567, "the same", 1.0), "", "No better than the base: exact match 56.7 % both, n = 24"),
        (
            metric(0.5, 0.625, "better, but not significant (p = 0.250)", 0.25),
            "",
            "Not significantly better than the base: exact match 50 % → 62.5 %, n = 24, p = 0.250",
        ),
        (
            metric(0.5, 0.25, "worse, significant", None),
            "bad",
            "Worse than the base: exact match 50 % → 25 %, n = 24, 95 % CI of the difference −35 to −15 points",
        ),
        (
            metric(0.5, 0.4, "worse, but not significant (p = 0.5)", 0.5),
            "",
            "No better than the base: exact match 50 % → 40 %, n = 24, p = 0.500",
        ),
    ],
)
def test_one_sentence_says_whether_the_adapter_is_better(measured: dict[str, Any], kind: str, words: str) -> None:
    assert verdict(summary(measured)) == [Sentence(kind, words)]
    shown = head(replace(GOING_ON, state="done", finished=120.0), request(), {**SUMMARY, **summary(measured)})
    claim, odds = words.replace("<", "&lt;").split(", n = ")
    assert f'<p class="job-verdict {kind}">{claim} <span class="odds">n = {odds}</span></p>' in shown


def test_where_nothing_is_answered_letter_by_letter_the_next_metric_decides() -> None:
    same = metric(0.0, 0.0, "the same", 1.0)
    closer = metric(0.06, 0.6, "better, significant (p < 0.001)", 1e-4, title="Token accuracy")
    [sentence] = verdict(summary(same, closer))
    assert sentence.kind == "good"
    assert sentence.words == "Better than the base: token accuracy 6 % → 60 %, n = 24, p < 0.001"
    assert elsewhere(summary(same, closer)) == ""
    third = {"adapter2": {"value": 0.5}, "difference2": metric(0.0, 0.5, "better, significant", 0.01)["difference"]}
    both = summary({**same, **third}, {**closer, **third}, titles=("Base", "pirate", "polite"))
    assert [item.words.partition(":")[2].split(",")[0] for item in verdict(both)] == [
        " token accuracy 6 % → 60 %",
        " exact match 0 % → 50 %",
    ]
    half = metric(0.5, 0.5, "the same", 1.0)
    assert verdict(summary(half, closer))[0].words.startswith("No better than the base: exact match 50 % both")


def test_each_adapter_has_a_sentence_of_its_own_and_the_first_column_need_not_be_the_base() -> None:
    measured = metric(0.1, 0.9, "better, significant (p < 0.001)", 1e-4)
    worse = metric(0.1, 0.0, "worse, but not significant (p = 0.500)", 0.5)
    both = {**measured, "adapter2": {"value": 0.0}, "difference2": worse["difference"]}
    one, two = verdict(summary(both, titles=("Base", "pirate", "polite")))
    assert one.words.startswith("pirate is better than the base: exact match 10 % → 90 %")
    assert two.words.startswith("polite is no better than the base: exact match 10 % → 0 %")
    without = summary({**measured, "adapter2": measured["adapter"]})
    without["columns"] = [{"name": "adapter", "title": "pirate"}]
    assert verdict(without)[0].words == "pirate: exact match 90 %, n = 24. No base to compare with."
    without["columns"] += [{"name": "adapter2", "title": "polite"}]
    assert verdict(without)[0].words.startswith("Polite is better than pirate: exact match 90 % both")


def test_a_difference_in_another_metric_is_named_where_the_first_one_shows_none() -> None:
    same = metric(0.5, 0.5, "the same", 1.0)
    perplexity = metric(20.0, 5.0, "better, significant", None, title="Perplexity", unit="plain")
    assert elsewhere(summary(same, perplexity)) == "Other metrics: perplexity is better (20 → 5)."
    assert elsewhere(summary(metric(0.0, 1.0, "better, significant", 0.0), perplexity)) == ""
