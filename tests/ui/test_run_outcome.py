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
from lora_studio.ui.runs import header
from lora_studio.ui.studio import RunView, Studio
from lora_studio.workspace import Workspace

MEASURED = {"base_loss": 3.0, "adapter_loss": 1.0, "moves": True, "sentence": "Other answers.", "rows_sentence": "9"}


def seen(workspace: Workspace, end: Finished, measured: dict[str, Any] | None = None) -> dict[str, Any]:
    return header.view_outcome(look_of(workspace, end, measured))


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
    ("changed", "kind"),
    [
        ({}, "ls-good"),
        ({"moves": False}, "ls-warning"),
        ({"adapter_loss": 5.2}, "ls-error"),
        ({"adapter_loss": None}, "ls-error"),
    ],
)
def test_an_adapter_worse_than_its_base_is_not_shown_as_good(
    workspace: Workspace, changed: dict[str, Any], kind: str
) -> None:
    assert kind in seen(workspace, Finished(2.0, "done", 9), MEASURED | changed)["outcome"]


def test_a_run_that_ended_worse_than_its_base_has_no_green_bar(workspace: Workspace) -> None:
    head = header.view_head(look_of(workspace, Finished(2.0, "done", 9), MEASURED | {"adapter_loss": 5.2}))["headline"]
    assert 'class="bar worse"' in head
    assert "worse than the base" in head
    assert 'class="bar done"' in header.view_head(look_of(workspace, Finished(2.0, "done", 9), MEASURED))["headline"]


def test_why_a_run_failed_stands_at_its_top(workspace: Workspace) -> None:
    ending = seen(workspace, Finished(2.0, "failed", 3, "Out of memory.", "Take fewer rows."))["ending"]
    assert "Out of memory." in ending
    assert 'role="alert"' in ending
    assert seen(workspace, Finished(2.0, "done", 9)) == {"ending": None, "outcome": None}
