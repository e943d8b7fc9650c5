"""The report of a run: the summary to copy, and the page of HTML that needs nothing else."""

import dataclasses
import json
import math
import re
import time

import pytest

from lora_studio.config.parsing import to_yaml
from lora_studio.config.sections import Config
from lora_studio.evaluate.job import create
from lora_studio.jobs.events import (
    Evaluated,
    Event,
    Finished,
    QuestionsAnswered,
    QuestionsAsked,
    RunStarted,
    StepLogged,
    to_line,
)
from lora_studio.jobs.session import Session
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.runs.checkpoints import Checkpoint
from lora_studio.ui import plots
from lora_studio.ui.runs import results
from lora_studio.ui.studio import RunView, Studio
from lora_studio.workspace import Workspace

from .evaluated import request

EVIL = "<img src=x onerror=hit()> ${1+1}"
STEPS: list[Event] = [
    RunStarted(1.0, 1, "cpu", "float32"),
    *(StepLogged(float(step), step, 40, step / 20, loss=4.0 / step, learning_rate=1e-3) for step in range(1, 41)),
    Evaluated(20.0, 20, 1.0, 0.5),
    Evaluated(40.0, 40, 2.0, 0.25),
]
ASKED = QuestionsAsked(2.0, [f"q{at} {EVIL}" for at in range(7)], ["r"] * 7, ["b"] * 7, [False] * 7)


def view_of(workspace: Workspace, *events: Event, title: str = "pirate") -> RunView:
    log = workspace.logs_folder / "log"
    studio = Studio(workspace, Supervisor(workspace), Session(log), Session(log))
    run = workspace.create_run(title, to_yaml(Config()), {"created": 1.0, "model": "demo", "data": "pirate"})
    run.events.write_text("".join(map(to_line, events)))
    return RunView(studio, studio.supervisor.state(run.id), run, time.time())


def test_the_summary_is_a_few_lines_of_plain_text(workspace: Workspace) -> None:
    text = results.summary_text(view_of(workspace, *STEPS, Finished(41.0, "done", 40)))
    lines = text.splitlines()
    assert lines[0].startswith("pirate (")
    assert lines[1] == "Finished, step 40 of 40, 40 s"
    assert lines[2] == "Learned. Validation loss 0.5 → 0.25."
    assert "Base model: demo" in lines
    assert lines[-1] == "Training loss 0.1, validation loss 0.25, best 0.25 at step 40"


def test_shares_that_were_measured_at_a_checkpoint_are_told_in_percent() -> None:
    at = Checkpoint("checkpoint-20", 20, 1000, 1.0, 0.5, {"token_accuracy": 1.0, "reward_margin": 0.25}, True)
    shown = results.table("run", [at, dataclasses.replace(at, step=10, metrics={})], final=True)
    assert "100.0 %" in shown
    assert "0.25" in shown
    assert shown.count("–") == 2


def test_the_page_holds_curve_and_five_answers_and_fetches_nothing(workspace: Workspace) -> None:
    answered = QuestionsAnswered(40.0, 40, 2.0, ["a"] * 7, [False] * 7)
    view = view_of(workspace, *STEPS, ASKED, answered, Finished(41.0, "done", 40), title=EVIL)
    view.folder.report.write_text("# Whole\n\n" + EVIL)
    page = results.page_of(view)
    assert page.startswith("<!doctype html>\n<html")
    assert page.count("<polyline") == 2
    assert page.count("<tr><td>q") == 5
    assert "Samples at step 40" in page
    assert "<h1>Whole</h1>" in page
    assert "<b>Learned</b>" in page
    for bad in ("<img", "<script", "<link", "src=", "url(", "@import"):
        assert bad not in page.replace("img src=x onerror", ""), bad


def test_a_run_without_samples_shows_the_answers_of_its_evaluation(workspace: Workspace) -> None:
    view = view_of(workspace, *STEPS)
    assert results.answers(view) == ("No answers were sampled.", [])
    asked = request()
    adapter = dataclasses.replace(asked.columns[1], run=view.run.id)
    folder = create(workspace, dataclasses.replace(asked, columns=(asked.columns[0], adapter)))
    row = {"prompt": [{"role": "user", "content": "2 + 2?"}], "reference": "4", "base": {"answer": "5"}}
    lines = [json.dumps(row), json.dumps(row | {"adapter": {"answer": "4"}})]
    folder.predictions.write_text("\n".join(lines) + "\n")
    title, rows = results.answers(view)
    assert title.startswith("Evaluation: ")
    assert rows == [("2 + 2?", "4", "5", "4")]


@pytest.mark.parametrize(("low", "high"), [(0, 40), (0.0, 0.37), (1.0, 1.0), (0, 1)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    marks = plots.ticks(low, high)
    assert marks
    assert all(low <= mark <= high + 1e-9 for mark in marks)
    assert len(marks) <= 7


def test_a_curve_stays_within_its_picture_whatever_the_losses_are(workspace: Workspace) -> None:
    for losses in ([5.0, 0.01], [math.nan, 1.0], [1.0, 1.0], [-0.5, 2.0], [0.0, 0.0]):
        steps = [StepLogged(float(at), at, 2, 0.5, loss, 1e-3) for at, loss in enumerate(losses, 1)]
        view = view_of(workspace, *steps)
        line, *_ = re.findall(r'class="line"[^>]* points="([^"]*)"', plots.loss_picture(view.run))
        for x, y in (map(float, point.split(",")) for point in line.split()):
            assert 0 <= x <= plots.WIDTH
            assert 0 <= y <= plots.HEIGHT
    assert "No step was logged" in plots.loss_picture(view_of(workspace).run)
