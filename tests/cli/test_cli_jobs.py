"""`jobs` in the terminal: every kind of job is listed, shown, stopped, resumed and deleted by its id."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_studio.cli import groups
from lora_studio.config.sections import Config
from lora_studio.evaluate import job as evaluating
from lora_studio.evaluate import job as evaluations
from lora_studio.export import job as exports
from lora_studio.jobs.events import Finished, PhaseStarted, Reason, RunStarted, StepLogged, to_line
from lora_studio.jobs.groups import read_tries, start_group, variants
from lora_studio.jobs.launchers import local
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.workspace import JobFolder, Workspace
from tests.adapters import files, write
from tests.conftest import Say
from tests.jobs.conftest import wait_until

GOES_ON = "runs:steps=30000,evaluations:slow,exports:slow"


@pytest.fixture
def adapter(workspace: Workspace) -> str:
    return str(write(workspace.root / "adapter", files()))


@pytest.fixture(autouse=True)
def fake_children(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = str(Path(__file__).parent.parent / "jobs" / "fake_job.py")
    monkeypatch.setattr(local, "python_module", lambda name: [sys.executable, fake, GOES_ON])


def ended(folder: JobFolder, state: str, reason: Reason) -> None:
    folder.worker.write_text('{"pid": 4194305, "started": 1.0, "launched": 1.0}')
    events = [
        RunStarted(2.0, 1, "cpu", ""),
        PhaseStarted(2.0, "answer", 4, "rows"),
        Finished(3.0, state, reason=reason),
    ]
    folder.events.write_text("".join(map(to_line, events)))


def test_all_kinds_stand_in_one_list_with_why_each_ended(say: Say, workspace: Workspace, adapter: str) -> None:
    run = workspace.create_run("first", "{}", {})
    evaluation = evaluations.create(workspace, evaluations.make_request(workspace, [adapter], "pirate"))
    export = exports.create(workspace, exports.make_request(workspace, adapter, "zip"))
    ended(run, "done", Reason.COMPLETED)
    ended(evaluation, "stopped", Reason.STOPPED)
    ended(export, "failed", Reason.OUT_OF_MEMORY)
    out = say("jobs")[1]
    assert all(job.id in out for job in (run, evaluation, export))
    told = json.loads(say("jobs", "list", "--json")[1])
    rows = {row["job"]: (row["kind"], row["state"], row["reason"]) for row in told["jobs"]}
    assert rows == {
        run.id: ("train", "done", "completed"),
        evaluation.id: ("evaluate", "stopped", "stopped"),
        export.id: ("export", "failed", "out_of_memory"),
    }
    assert (told["working"], told["queue"]) == ([], [])
    assert json.loads(say("jobs", "show", run.id, "--json")[1])["run"] == run.id
    shown = json.loads(say("jobs", "show", evaluation.id, "--json")[1])
    assert (shown["evaluation"], shown["hint"]) == (evaluation.id, "Resume answers the remaining rows.")
    for job, noun in ((export, "export"), (evaluation, "evaluation"), (run, "run")):
        code, out, _ = say("jobs", "delete", job.id, "--yes", "--json")
        assert (code, json.loads(out)) == (0, {noun: job.id, "state": "deleted"})
    assert "There are no jobs yet" in say("jobs", "list")[2]


def test_an_unknown_job_and_a_missing_one_are_wrong_input(say: Say) -> None:
    assert say("jobs", "stop")[0] == 2
    code, _, told = say("jobs", "show", "nothing")
    assert (code, "There is no job" in told, "jobs list" in told) == (2, True, True)


@pytest.mark.slow
def test_one_that_waits_is_moved_and_stopped_and_one_that_works_resumed(
    say: Say, workspace: Workspace, adapter: str
) -> None:
    supervisor = Supervisor(workspace)
    request = evaluations.make_request(workspace, [adapter], "pirate")
    first = evaluating.start(supervisor, request)
    run, second = supervisor.launch(Config()), evaluating.start(supervisor, request)
    queue = json.loads(say("jobs", "queue", "--json")[1])
    assert (queue["running"], queue["queue"]) == (first, [run, second])
    assert "in use by the evaluation" in queue["waiting"][second]
    assert json.loads(say("jobs", "up", second, "--json")[1])["queue"] == [second, run]
    assert "evaluation" in say("jobs", "queue")[1]
    assert json.loads(say("jobs", "stop", second, "--json")[1])["reason"] == "dequeued"
    assert json.loads(say("jobs", "cancel", run, "--json")[1])["state"] == "stopped"
    wait_until(lambda: supervisor.state(first).phase_done > 0)
    stopped = json.loads(say("jobs", "stop", first, "--json")[1])
    assert (stopped["evaluation"], stopped["state"]) == (first, "stopped")
    wait_until(lambda: not supervisor.is_alive(first))
    assert json.loads(say("jobs", "resume", first, "--json")[1])["state"] == "running"
    say("jobs", "cancel", first)


@pytest.mark.slow
def test_an_evaluation_beside_a_run_waits_unless_it_is_told_to_begin_at_once(
    say: Say, workspace: Workspace, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = Supervisor(workspace)
    run = supervisor.launch(Config())
    monkeypatch.setattr("lora_studio.cli.evaluate.tell_to_end", lambda *_, **__: 0)
    assert say("evaluate", adapter, "pirate")[0] == 0
    assert say("evaluate", adapter, "pirate", "--at-once")[0] == 0
    states = {job.id: job.state for job in supervisor.jobs(evaluating.EVALUATE)}
    assert sorted(states.values()) == ["queued", "running"]
    monkeypatch.setattr("lora_studio.models.memory.model_bytes", lambda *_: 1 << 60)
    code, _, told = say("evaluate", adapter, "pirate", "--at-once", "--max-samples", "3")
    assert (code, "are free besides the running jobs" in told) == (2, True)
    for job in (*states, run):
        supervisor.cancel(job)


def test_devices_are_listed_with_who_uses_them_and_a_job_that_waits_says_why(say: Say, workspace: Workspace) -> None:
    supervisor = Supervisor(workspace)
    first, second = supervisor.launch(Config(title="First")), supervisor.launch(Config(title="Second"))
    code, out, _ = say("devices", "--json")
    (device,) = json.loads(out)["devices"]
    assert (code, device["kind"], device["users"]) == (0, "cpu", ["the run First"])
    assert "the run First" in say("devices")[1]
    why = "The device is in use by the run First."
    assert f"queued: {why}" in say("jobs", "list")[1]
    listed = {job["job"]: job for job in json.loads(say("jobs", "list", "--json")[1])["jobs"]}
    assert (listed[first]["devices"], listed[first]["waiting"]) == (["CPU"], "")
    assert (listed[second]["devices"], listed[second]["waiting"]) == ([], why)
    assert json.loads(say("jobs", "queue", "--json")[1]) == {
        "running": first,
        "queue": [second],
        "waiting": {second: why},
    }
    assert why in say("runs", "show", second)[1]
    say("jobs", "start", second)
    assert supervisor.state(second).state == "running"
    supervisor.cancel(first)
    supervisor.cancel(second)


def test_a_gpu_that_is_not_there_is_one_sentence_before_anything_starts(say: Say, workspace: Workspace) -> None:
    code, _, err = say("train", "demo", "--compute.device", "0,3")
    assert (code, err.splitlines()[0]) == (2, "There is no GPU 0, GPU 3 here: the studio can use no GPU.")
    assert say("train", "demo", "--compute.device", "gpu0")[0] == 2
    assert workspace.runs() == []


@pytest.mark.slow
def test_ctrl_c_leaves_a_group_that_is_followed_and_stops_one_that_was_started_here(
    say: Say, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = Supervisor(workspace)
    group, runs = start_group(supervisor, variants(Config(), read_tries(["lora.r=4,8"])), name="Ranks")
    wait_until(lambda: supervisor.state(runs[0]).step > 0)

    def interrupted(seconds: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(seconds / 5)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(groups, "time", SimpleNamespace(sleep=interrupted))
    try:
        assert say("groups", "follow", "Ranks")[0] == 130
        assert [supervisor.state(run).state for run in runs] == ["running", "queued"]
        assert groups.follow(supervisor, group, as_json=False) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert [supervisor.state(run).state for run in runs] == ["stopped", "stopped"]


def test_a_search_that_is_followed_by_its_id_tells_what_it_suggests(say: Say, workspace: Workspace) -> None:
    search = workspace.create_run("search", "{}", {}, workspace.searches_folder)
    losses = [2.0, 1.5, 1.0, 1.2, 4.0]
    steps = [
        StepLogged(2.0, at, 5, 0.0, loss, 10.0 ** (at - 6), None, None, 0, 0.0, 0) for at, loss in enumerate(losses)
    ]
    ended(search, "done", Reason.COMPLETED)
    search.events.write_text("".join(map(to_line, [*steps, Finished(3.0, "done", reason=Reason.COMPLETED)])))
    code, out, err = say("jobs", "follow", search.id)
    assert (code, "Use it: --training.learning_rate" in out, "chat" in err) == (0, True, False)
