"""The verdict and the list of what is wrong with a run, and what their buttons hand to the train tab."""

import time
from dataclasses import replace

from lora_studio.config.parsing import parse, to_yaml
from lora_studio.config.sections import Config
from lora_studio.jobs.events import Event, RunStarted, StepLogged, to_line
from lora_studio.jobs.session import Session
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.ui.runs import details
from lora_studio.ui.studio import RunView, Studio
from lora_studio.workspace import RunFolder, Workspace


def run_with(workspace: Workspace, grad_norm: float, config: Config) -> tuple[Studio, RunFolder]:
    log = workspace.logs_folder / "log"
    studio = Studio(workspace, Supervisor(workspace), Session(log), Session(log))
    run = workspace.create_run("ill", to_yaml(config), {"created": time.time() - 600})
    events: list[Event] = [RunStarted(1.0, 1, "cpu", "float32")]
    events += [StepLogged(float(step), step, 9, step / 9, 1.0, 1e-4, grad_norm) for step in range(1, 5)]
    run.events.write_text("".join(map(to_line, events)))
    return studio, run


def look(studio: Studio, run: RunFolder) -> RunView:
    return RunView(studio, studio.supervisor.state(run.id), run, time.time())


def going(studio: Studio, run: RunFolder) -> RunView:
    """The run as its worker, which is not there, would have it."""
    return RunView(studio, replace(studio.supervisor.state(run.id), state="running"), run, 5.0)


def test_a_run_that_is_well_shows_no_list(workspace: Workspace) -> None:
    studio, run = run_with(workspace, 0.5, Config())
    assert details.view_health(look(studio, run))["listing"] is None


def test_a_trouble_has_a_button_that_fills_the_form_with_the_run_and_the_change(workspace: Workspace) -> None:
    config = parse({"model": {"quantization": "4bit"}, "lora": {"r": 3}})
    studio, run = run_with(workspace, 0.0, config)
    markup = details.view_health(look(studio, run))["listing"]
    assert 'data-act="apply" data-value="no-gradient"' in markup
    assert "Quantization: none" in markup
    handover = details.changed(studio, run.id, "no-gradient")
    assert handover is not None
    values = handover.settings
    assert (values["model.quantization"], values["lora.r"]) == ("none", 3)


def test_a_trouble_that_no_setting_mends_has_no_button(workspace: Workspace) -> None:
    studio, run = run_with(workspace, 0.0, Config())
    assert "data-act" not in details.view_health(look(studio, run))["listing"]


def test_a_click_that_comes_too_late_changes_nothing(workspace: Workspace) -> None:
    studio, run = run_with(workspace, 0.5, Config())
    assert details.changed(studio, run.id, "no-gradient") is None
    assert details.changed(studio, "gone", "no-gradient") is None


def test_settings_of_an_older_version_say_nothing(workspace: Workspace) -> None:
    studio, run = run_with(workspace, 0.0, Config())
    run.config.write_text("training: {no_such_setting: 1}")
    assert details.view_health(look(studio, run))["listing"] is None


def test_the_verdict_names_the_trouble_with_its_one_fix(workspace: Workspace) -> None:
    studio, run = run_with(workspace, 0.0, parse({"model": {"quantization": "4bit"}}))
    line = details.view_verdict(going(studio, run))["line"]
    assert "<b>Flat</b>" in line
    assert line.count("<button") == 1
    assert 'data-act="apply" data-value="no-gradient" title="Quantization: none"' in line
    studio, run = run_with(workspace, 0.5, Config())
    assert "<button" not in details.view_verdict(going(studio, run))["line"]
