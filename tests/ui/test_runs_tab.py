"""What the runs tab shows of run folders, without a page."""

import time
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from lora_studio.config import Config
from lora_studio.events import CheckpointSaved, Event, Finished, PhaseStarted, RunStarted, StepLogged, Warned, to_line
from lora_studio.jobs.client import Session
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.parsing import parse, to_yaml
from lora_studio.ui import run_head, runs_list, runs_tab
from lora_studio.ui.run_board import Board
from lora_studio.ui.run_table import Choice
from lora_studio.ui.runs_tab import Shown
from lora_studio.ui.studio import Studio
from lora_studio.workspace import RunFolder, Workspace


@pytest.fixture
def studio(workspace: Workspace) -> Studio:
    """A studio whose supervisor looks at folders and starts nothing, as its thread does not run."""
    log = workspace.logs_folder / "log"
    return Studio(workspace, Supervisor(workspace), Session(log), Session(log))


def finished(workspace: Workspace, title: str, *more: Event, config: Config | None = None) -> RunFolder:
    """A run that trained two steps and ended."""
    run = workspace.create_run(title, to_yaml(config or Config()), {"created": time.time() - 600})
    now = time.time()
    events = [
        RunStarted(now, 1, "cpu", "float32"),
        PhaseStarted(now, "train", 2, "steps"),
        StepLogged(now, 1, 2, 0.5, loss=2.0, learning_rate=1e-3),
        StepLogged(now + 1, 2, 2, 1.0, loss=1.0, learning_rate=1e-3),
        *more,
        *([] if any(isinstance(event, Finished) for event in more) else [Finished(now + 2, "done", 2, seconds=2)]),
    ]
    run.events.write_text("".join(map(to_line, events)))
    run.log.write_text("one\ntwo\n")
    return run


def with_checkpoints(workspace: Workspace, losses: dict[int, float], on_disk: tuple[int, ...]) -> RunFolder:
    """A finished run that saved checkpoints, of which some are still there."""
    run = finished(
        workspace, "saved", *[CheckpointSaved(1.0, step, f"checkpoint-{step}", loss) for step, loss in losses.items()]
    )
    for step in on_disk:
        folder = run.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(b"x" * 1998)
    return run


def look(studio: Studio, run_id: str, before: Shown | None = None, choice: Choice | None = None) -> Shown:
    return runs_tab.look(studio, Board(studio.workspace), run_id, choice or Choice(), before or Shown())


def shown_of(studio: Studio, run_id: str, before: Shown | None = None) -> dict[str, Any]:
    """What the parts of all sections show, by name."""
    now = look(studio, run_id, before)
    return now.listed | {name: value for _, parts in now.detail.values() for name, value in parts.items()}


def test_an_empty_workspace_says_how_the_list_is_filled(studio: Studio) -> None:
    shown = look(studio, "")
    assert "No run yet" in shown.listed["list"]
    assert "Train tab" in shown.listed["list"]
    assert not shown.detail


def test_of_a_run_that_is_gone_nothing_stays_in_sight(studio: Studio) -> None:
    finished(studio.workspace, "here")
    shown = look(studio, "gone", Shown("gone"))
    assert not shown.run
    assert not shown.detail
    assert "here" in shown.listed["list"]


def test_the_settings_shown_are_those_of_the_run_and_not_of_the_form(studio: Studio) -> None:
    run = finished(studio.workspace, "small", config=parse({"lora": {"r": 3}}))
    studio.workspace.write_draft("form", {"preset": None, "values": {"lora.r": 64}})
    assert "r: 3" in shown_of(studio, run.id)["settings"]


def test_a_finished_run_can_be_chatted_with_and_deleted_but_not_stopped(studio: Studio) -> None:
    run = finished(studio.workspace, "done")
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(b"")
    shown = shown_of(studio, run.id)
    assert (shown["stop"], shown["resume"], shown["chat"], shown["delete"]) == (False, False, True, True)
    assert shown["log"].endswith("two")
    assert shown["chart"]["panels"][0]["lines"][0]["y"] == [2.0, 1.0]


def test_a_failed_run_says_why_and_offers_to_resume(studio: Studio) -> None:
    run = finished(studio.workspace, "bad", Finished(time.time(), "failed", 2, "Out of memory.", "Use 4bit."))
    shown = shown_of(studio, run.id)
    assert shown["resume"]
    assert "Out of memory." in shown["notices"]
    assert "Use 4bit." in shown["notices"]


def test_a_warning_is_told_once(studio: Studio) -> None:
    run = finished(
        studio.workspace, "warned", Warned(1.0, "The <eos> is missing."), Warned(2.0, "The <eos> is missing.")
    )
    assert shown_of(studio, run.id)["notices"].count("The &lt;eos&gt; is missing.") == 1


def test_nothing_new_means_nothing_to_send(studio: Studio) -> None:
    run = finished(studio.workspace, "still")
    first = look(studio, run.id)
    assert look(studio, run.id, first) == first


def test_checkpoints_that_are_on_disk_are_listed_newest_first_with_the_best_named(studio: Studio) -> None:
    run = with_checkpoints(studio.workspace, {1: 0.5, 2: 0.75, 3: 0.1}, on_disk=(1, 2))
    table = shown_of(studio, run.id)["table"]
    assert table.index("Chat checkpoint-2") < table.index("Chat checkpoint-1")
    assert "checkpoint-3" not in table  # cleared away, as the limit of kept checkpoints does
    assert table.index(">0.75<") < table.index('<span class="tag">best</span>') < table.index(">0.5<")
    assert "2.0 kB" in table


def test_the_page_opens_on_the_run_last_looked_at_else_the_newest(studio: Studio) -> None:
    assert runs_list.opening_run(studio) == ""
    older = finished(studio.workspace, "older")
    newer = finished(studio.workspace, "newer")
    assert runs_list.opening_run(studio) == newer.id
    studio.workspace.write_draft(runs_list.SELECTION, older.id)
    assert runs_list.opening_run(studio) == older.id


def test_what_can_not_be_done_is_said_in_words(studio: Studio) -> None:
    run = finished(studio.workspace, "complete")
    update = run_head.acting(studio.supervisor.resume)(run.id)
    assert isinstance(update, (dict, gr.HTML))
    assert "nothing left to train" in str(update["value"] if isinstance(update, dict) else update.value)


def test_a_log_that_grows_is_shown_again(studio: Studio, tmp_path: Path) -> None:
    run = finished(studio.workspace, "loud")
    first = look(studio, run.id)
    with run.log.open("a") as log:
        log.write("three\n")
    assert shown_of(studio, run.id, first)["log"].endswith("three")
