"""A run's evaluations on its page."""

import dataclasses
import json

from lora_studio.evaluate.job import create
from lora_studio.ui.runs.results import listing, rendered, whole
from lora_studio.workspace import Workspace

from .evaluated import HOSTILE, SUMMARY, request


def test_a_run_without_any_says_what_one_is_for_and_offers_it_once_an_adapter_is_there() -> None:
    assert "No evaluation yet" in listing([], "run", has_adapter=False)
    assert "Evaluate this run" not in listing([], "run", has_adapter=False)
    assert 'data-act="new" data-value="run"' in listing([], "run", has_adapter=True)


def test_each_evaluation_is_listed_with_what_it_came_to(workspace: Workspace) -> None:
    folder = create(workspace, request())
    assert "not measured yet" in listing([folder], "run", has_adapter=True)
    folder.complete.write_text(json.dumps(SUMMARY), encoding="utf-8")
    shown = listing([folder], "run", has_adapter=True)
    assert "Accuracy 50 % → 95 %" in shown
    assert f'data-value="{folder.id}"' in shown
    assert HOSTILE not in shown


def test_the_report_goes_on_with_what_was_measured_since(workspace: Workspace) -> None:
    run = workspace.create_run("test", "", {})
    run.report.write_text("# Report\n", encoding="utf-8")
    assert whole(workspace, run) == "# Report\n"
    asked = request()
    adapter = dataclasses.replace(asked.columns[1], run=run.id)
    folder = create(workspace, dataclasses.replace(asked, columns=(asked.columns[0], adapter)))
    assert whole(workspace, run) == "# Report\n"  # not measured yet
    folder.complete.write_text(json.dumps(SUMMARY), encoding="utf-8")
    shown = rendered(whole(workspace, run))
    assert "30 of 30 rows" in shown
    assert "<td>Accuracy</td>" in shown
    assert "<td>+45 points: better, significant (p = 0.010)</td>" in shown
    assert "<img" not in shown
