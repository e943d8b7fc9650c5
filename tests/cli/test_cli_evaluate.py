"""`evaluate` in the terminal: what it prints, and what it refuses before anything starts."""

import json

import pytest

from lora_studio.cli.evaluate import answered_line, print_metrics
from lora_studio.evaluate.job import create, evaluation, make_request, request_of
from lora_studio.jobs.events import Finished, RunState, to_line
from lora_studio.workspace import Workspace
from tests.adapters import files, write
from tests.conftest import Say


@pytest.fixture
def adapter(workspace: Workspace) -> str:
    return str(write(workspace.root / "adapter", files()))


def test_an_adapter_that_is_not_there_is_wrong_input(say: Say) -> None:
    code, _, told = say("evaluate", "nowhere", "recommender")
    assert code == 2
    assert "There is no run" in told


def test_settings_out_of_bounds_are_wrong_input(say: Say, adapter: str) -> None:
    code, _, told = say("evaluate", adapter, "recommender", "--batch-size", "0")
    assert code == 2
    assert "Eval batch size per device cannot be 0" in told


def test_resume_wants_an_evaluation_asked_for_in_the_same_words(say: Say, adapter: str, workspace: Workspace) -> None:
    folder = create(workspace, make_request(workspace, [adapter], "recommender", compare=False))
    folder.events.write_text(to_line(Finished(1.0, "done")), encoding="utf-8")
    for words in ([], ["--max-samples", "3"], ["--compare"]):
        code, _, told = say("evaluate", adapter, "recommender", "--resume", *words)
        assert code == 2
        assert "no such evaluation to resume" in told
    assert request_of(evaluation(workspace, folder.id)).columns[0].name == "adapter"


def test_progress_is_told_with_speed_and_time_left() -> None:
    state = RunState(
        phase="answer", phase_unit="rows", phase_started=10.0, last_event=20.0, phase_done=40, phase_total=100
    )
    assert answered_line(state) == "40 of 100 rows, 4 rows/s, 15 s left"
    assert answered_line(RunState(phase_total=0)) == ""


def test_metrics_are_a_table_with_intervals_and_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    def value(number: float) -> dict[str, float | None]:
        return {"value": number, "low": number / 2, "high": None if number > 1 else 1.0}

    apart = {**value(0.25), "p": 0.01, "more_than_chance": True, "words": "better, significant (p = 0.010)"}
    metric = {
        "title": "Accuracy",
        "unit": "share",
        "rows": 8,
        "base": value(0.5),
        "adapter": value(0.75),
        "difference": apart,
    }
    plain = {"title": "Perplexity", "unit": "plain", "base": {"value": 2.0, "low": None, "high": None}}
    plain |= {
        "adapter": plain["base"],
        "difference": {**value(-0.5), "p": None, "more_than_chance": False, "words": "the same"},
    }
    summary = {
        "rows": 8,
        "of_rows": 9,
        "task": {"why": "They are labels."},
        "columns": [{"name": "base", "title": "Base"}, {"name": "adapter", "title": "pirate"}],
        "metrics": {"accuracy": metric, "perplexity": plain},
    }
    print_metrics(json.loads(json.dumps(summary)))
    shown = capsys.readouterr().out
    assert shown.startswith("Better than the base: accuracy 50 % → 75 %, n = 8, p = 0.010\n")
    assert "8 of 9 rows. They are labels." in shown
    assert "50.0 % [25.0, 100.0]" in shown
    assert "+25.0 points [+12.5, +100.0]" not in shown
    assert "+25.0 points" in shown
    assert "better, significant (p = 0.010)" in shown
