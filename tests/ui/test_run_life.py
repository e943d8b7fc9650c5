"""What the runs tab offers of a run's life, and the queue, without a page."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lora_studio.config.parsing import load_config, parse, to_yaml
from lora_studio.config.sections import Config, Generation
from lora_studio.errors import StudioError
from lora_studio.evaluate import job as request
from lora_studio.evaluate.job import EvaluatedColumn, EvaluationRequest, Measuring
from lora_studio.jobs.events import Event, Finished, PhaseStarted, RunStarted, RunState, StepLogged, to_line
from lora_studio.jobs.launchers.local import LocalLauncher, kill
from lora_studio.jobs.queue import QueueEntry
from lora_studio.jobs.session import Session
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.models.hardware import Device, cpu
from lora_studio.ui import theme
from lora_studio.ui.runs import header
from lora_studio.ui.runs import queue as queue_view
from lora_studio.ui.studio import RunView, Studio
from lora_studio.units import GIB
from lora_studio.workspace import Workspace
from tests.jobs.conftest import fake_command, wait_until

REQUEST = EvaluationRequest("Test", "data", (EvaluatedColumn("adapter", "A", "/a"),), (), "", Measuring(), Generation())


@pytest.fixture
def studio(workspace: Workspace) -> Iterator[Studio]:
    supervisor = Supervisor(workspace, LocalLauncher(fake_command("steps=30000")), tick_seconds=0.05)
    sessions = [Session(workspace.logs_folder / f"{name}.log", command=[sys.executable]) for name in ("a", "b")]
    yield Studio(workspace, supervisor, *sessions)
    supervisor.close()
    for run in workspace.runs():
        kill(run)


def look(studio: Studio, run_id: str) -> RunView:
    return RunView(studio, studio.supervisor.state(run_id), studio.workspace.run(run_id), 0.0)


def test_each_state_offers_what_it_can_and_says_what_is_kept(studio: Studio) -> None:
    run_id = studio.supervisor.launch(Config())
    wait_until(lambda: studio.supervisor.state(run_id).step >= 1)
    going = header.view_head(look(studio, run_id))
    assert (going["stop"], going["cancel"], going["further"], going["delete"]) == (True, True, False, False)
    assert header.ways_on(studio, run_id) == (False, False)
    studio.supervisor.stop(run_id)
    wait_until(lambda: studio.supervisor.state(run_id).final)
    ended = header.view_head(look(studio, run_id))
    assert (ended["stop"], ended["cancel"], ended["further"], ended["resume"]) == (False, False, True, True)
    assert header.ways_on(studio, run_id) == (True, True)


def test_a_run_of_several_processes_resumes_in_another_number_and_says_what_becomes_of_its_batches(
    studio: Studio,
) -> None:
    settings = {"compute": {"processes": 2}, "training": {"gradient_accumulation_steps": 3}}
    run = studio.workspace.create_run("shared", to_yaml(parse(settings)), {"model": "demo", "data": "pirate"})
    ended: list[Event] = [RunStarted(1.0, 1, "cpu", "", processes=2), Finished(2.0, "stopped")]
    run.events.write_text("".join(map(to_line, ended)), encoding="utf-8")
    assert header.view_head(look(studio, run.id))["processes"]
    assert "Effective batch 24, as before." in header.batch_after(studio, run.id, 2)
    assert "6 gradient accumulation steps instead of 3 keep its batches" in header.batch_after(studio, run.id, 1)
    note = header.batch_after(studio, run.id, 4)
    assert "so a step now takes 8: steps and epochs are counted anew" in note
    for typed, message in ((None, "How many processes"), (1000, "a number from 1 to 64"), (64, "each process takes")):
        with pytest.raises(StudioError, match=message):
            header.resume_in(studio, run.id, typed)
    header.resume_in(studio, run.id, 1.0)
    assert studio.supervisor.state(run.id).state == "running"
    assert load_config(run.config).compute.processes == "1"
    assert not header.may_share(look(studio, run.id)), "it trains"
    with pytest.raises(StudioError, match="already running"):
        header.resume_in(studio, run.id, 2)
    assert load_config(run.config).compute.processes == "1", "what trains keeps its settings"


def test_one_process_without_a_choice_of_devices_offers_no_other_number(studio: Studio) -> None:
    run = studio.workspace.create_run("alone", to_yaml(Config()), {"model": "demo", "data": "pirate"})
    run.events.write_text("".join(map(to_line, [RunStarted(1.0, 1, "cpu", ""), Finished(2.0, "stopped")])))
    assert not header.view_head(look(studio, run.id))["processes"]
    cards = [Device("Card", "cuda", 8 * GIB, 8 * GIB, index=n, uuid=f"GPU-{n}") for n in range(2)]
    studio.supervisor._ask_devices = lambda: cards
    studio.supervisor.devices(0.0)
    assert header.view_head(look(studio, run.id))["processes"]


def test_continuing_fills_the_form_with_the_runs_settings_and_its_adapter(studio: Studio) -> None:
    run_id = studio.supervisor.launch(Config(title="first"))
    values = header.continuation(studio, run_id).settings
    assert (values["title"], values["model.adapter_name_or_path"]) == ("first, continued", run_id)
    assert values["lora.r"] == Config().lora.r


@pytest.mark.parametrize("typed", [None, 0, -1.0])
def test_no_epochs_are_asked_for_again(typed: float | None) -> None:
    with pytest.raises(StudioError, match="How many epochs"):
        header.checked(typed)


def test_the_queue_is_out_of_sight_while_nothing_waits(studio: Studio) -> None:
    studio.supervisor.launch(Config())
    assert queue_view.view_queue(studio)["queue"] is None


def test_waiting_runs_stand_in_order_with_their_buttons() -> None:
    waiting = [QueueEntry("a"), QueueEntry("b", True), QueueEntry("c", True, 2.0)]
    first = {"a": RunState("a", "<b>first</b>", waiting="GPU 1 is in use by the run x.")}
    html = queue_view.rows(waiting, first)
    assert html.index("&lt;b&gt;first") < html.index(">b<") < html.index("2 more epochs")
    assert html.count('data-act="edit"') == 1
    assert html.count("disabled") == 2
    assert "new run. GPU 1 is in use by the run x." in html
    assert "Start anyway" not in html
    assert 'data-act="now"' in queue_view.rows(waiting, first, short={"a"})
    others = queue_view.rows(waiting, first, hidden={"b", "c"})
    assert others.count("A run of another visitor") == 2
    assert ">b<" not in others
    assert others.count("<button") == html.count("<button") // 3 + 1


def test_a_waiting_job_says_when_it_is_expected_to_start() -> None:
    running = RunState(state="running", phase="train", step=20, total_steps=100)
    running.steps = [StepLogged(float(step), step, 100, 0.0, 1.0, 1e-3) for step in range(1, 21)]
    waiting = [QueueEntry("a"), QueueEntry("b"), QueueEntry("c")]
    durations = {"a": 60.0, "b": None}
    starts = queue_view.expected_starts(waiting, [running], lambda entry: durations[entry.job])
    assert starts == [80.0, 140.0, None]
    assert "new run, starts in about 1 min 20 s" in queue_view.rows(waiting, {}, starts=starts)
    assert queue_view.expected_starts(waiting[:1], [RunState(state="running")], lambda entry: 1.0) == [None]
    durations |= {"b": 30.0, "c": 5.0}
    assert queue_view.expected_starts(waiting, [running], lambda entry: durations[entry.job], slots=2) == [
        0.0,
        60.0,
        80.0,
    ]


def test_several_devices_stand_above_the_queue_with_memory_load_and_who_uses_them() -> None:
    card = Device("Card & co", "cuda", 8 * GIB, 2 * GIB, index=1, load=57.0, celsius=61.0)
    html = queue_view.view_devices([(card, ["the run <x>"]), (cpu(), [])])
    assert html is not None
    for words in ("GPU 1", "Card &amp; co", "2.0 of 8.0 GiB free, 57 % busy · the run &lt;x&gt;", "61 °C"):
        assert words in html
    assert "width:75.0%" in html
    assert queue_view.view_devices([(cpu(), [])]) is None, "the header tells of the only one"


def test_the_header_has_a_line_for_each_device() -> None:
    card = Device("Card", "cuda", 8 * GIB, 2 * GIB)
    html = theme.tools([(card, ["the chat"]), (replace(card, index=1), [])])
    assert "GPU 0: 2.0 of 8.0 GiB free · the chat" in html
    assert "GPU 1: 2.0 of 8.0 GiB free · no job" in html
    assert "Card, 2.0 of 8.0 GiB free" in theme.tools([(card, [])])
    assert not theme.differs([(card, [])], [(replace(card, memory_free=2 * GIB + 1), [])])
    assert theme.differs([(card, [])], [(card, ["the chat"])])


def test_a_waiting_run_takes_as_long_as_the_last_with_its_model_and_data(studio: Studio) -> None:
    facts = {"model": "demo", "data": "pirate", "created": 1.0}
    done = studio.workspace.create_run("done", to_yaml(Config()), facts)
    steps: list[Event] = [RunStarted(10.0, 1, "cpu", "float32"), PhaseStarted(10.0, "start")]
    steps += [PhaseStarted(20.0, "train"), StepLogged(40.0, 9, 9, 3.0, 1.0, 1e-3)]
    done.events.write_text("".join(map(to_line, [*steps, Finished(40.0, "done", 9)])))
    longer = to_yaml(parse({"training": {"num_train_epochs": 6}}))
    waiting = studio.workspace.create_run("next", longer, facts)
    other = studio.workspace.create_run("other", longer, facts | {"data": "else"})
    assert queue_view.duration_of(studio, QueueEntry(waiting.id)) == 10.0 + 2 * 20.0  # the start only once
    assert queue_view.duration_of(studio, QueueEntry(other.id)) is None


def test_jobs_of_other_kinds_stand_in_the_queue_and_those_that_work_above_it() -> None:
    waiting = [QueueEntry("a"), QueueEntry("e", True, kind="evaluate"), QueueEntry("x", kind="export")]
    working = [
        RunState("b", "Bench & co", "running", kind="benchmark"),
        RunState("r", "Run", "stopping"),
        RunState("h", "Hidden", "running", kind="export"),
    ]
    html = queue_view.rows(waiting, {"a": RunState("a", "A")}, hidden={"h", "x"}, working=working)
    assert (
        html.index("Bench &amp; co") < html.index("benchmark, running") < html.index("run, stopping") < html.index("A")
    )
    assert "evaluation, resumes" in html
    assert html.count("An export of another visitor") == 2
    assert "Hidden" not in html
    assert html.count('data-act="edit"') == 1
    assert html.count('data-act="stop"') == 2
    assert "Active jobs" in queue_view.rows([], {}, working=working)


@pytest.mark.slow
def test_an_evaluation_that_works_alone_is_in_sight_with_the_runs(studio: Studio) -> None:
    studio.supervisor.launch(Config())
    evaluation = request.start(studio.supervisor, REQUEST)
    shown = queue_view.view_queue(studio)["queue"]
    assert shown.index("run, running") < shown.index("evaluation, new")
    studio.supervisor.cancel(evaluation)
    assert queue_view.view_queue(studio)["queue"] is None


def test_editing_takes_a_waiting_run_away_and_gives_its_settings(studio: Studio, tmp_path: Path) -> None:
    going, waiting = studio.supervisor.launch(Config()), studio.supervisor.launch(Config(title="second"))
    _, values, *_ = queue_view.edit(studio, waiting)
    assert values["title"] == "second"
    assert (studio.supervisor.queue(), [run.id for run in studio.workspace.runs()]) == ([], [going])
    with pytest.raises(StudioError, match="never started"):
        queue_view.edit(studio, going)
