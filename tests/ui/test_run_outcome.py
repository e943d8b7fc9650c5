"""How a run ended, at the top of the runs tab."""

import json
import time
from typing import Any

import pytest

from lora_studio.config.parsing import to_yaml
from lora_studio.config.sections import Config
from lora_studio.jobs.events import Event, Finished, RunStarted, to_line
from lora_studio.jobs.session import Session
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.ui.runs import details, header
from lora_studio.ui.studio import RunView, Studio
from lora_studio.workspace import Workspace

MEASURED = {"base_loss": 3.0, "adapter_loss": 1.0, "moves": True, "sentence": "Other answers.", "rows_sentence": "9"}


def line_of(workspace: Workspace, end: Finished, measured: dict[str, Any] | None = None) -> str:
    return str(details.view_verdict(look_of(workspace, end, measured))["line"])


def look_of(workspace: Workspace, end: Finished, measured: dict[str, Any] | None = None) -> RunView:
    log = workspace.logs_folder / "log"
    studio = Studio(workspace, Supervisor(workspace), Session(log), Session(log))
    run = workspace.create_run("ended", to_yaml(Config()), {"created": time.time() - 600})
    events: list[Event] = [RunStarted(1.0, 1, "cpu", "float32"), end]
    run.events.write_text("".join(map(to_line, events)))
    if measured:
        run.complete.write_text(json.dumps({"difference": measured}))
    return RunView(studio, studio.supervisor.state(run.id), run, time.time())


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, 'good" role="status"'),
        ({"moves": False}, 'warning" role="status"'),
        ({"adapter_loss": 5.2}, 'error" role="alert"'),
        ({"adapter_loss": None}, 'error" role="alert"'),
    ],
)
def test_an_adapter_worse_than_its_base_is_not_shown_as_good(
    workspace: Workspace, changed: dict[str, Any], line: str
) -> None:
    assert line in line_of(workspace, Finished(2.0, "done", 9), MEASURED | changed)


def test_a_run_that_ended_worse_than_its_base_has_no_green_bar(workspace: Workspace) -> None:
    head = header.headline(look_of(workspace, Finished(2.0, "done", 9), MEASURED | {"adapter_loss": 5.2}))
    assert 'class="bar worse"' in head
    assert "worse than the base" in head  # in the summary to copy
    assert 'class="bar done"' in header.headline(look_of(workspace, Finished(2.0, "done", 9), MEASURED))


def test_why_a_run_failed_stands_at_its_top_with_the_way_on(workspace: Workspace) -> None:
    line = line_of(workspace, Finished(2.0, "failed", 3, "Out of memory.", "Take fewer rows."))
    assert "<b>Crashed</b> Out of memory. Take fewer rows." in line
    assert 'role="alert"' in line
    assert 'data-act="resume"' in line
    assert "<button" not in line_of(workspace, Finished(2.0, "done", 9))
