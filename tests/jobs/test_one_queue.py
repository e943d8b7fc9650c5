"""Runs, evaluations, exports and benchmarks live one life: one queue, one device, found again after every end."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lora_studio.config.sections import Config, Generation
from lora_studio.errors import StudioError
from lora_studio.evaluate import job as evaluating
from lora_studio.evaluate.job import EvaluatedColumn, EvaluationRequest, Measuring
from lora_studio.export import job as exporting
from lora_studio.export.job import ExportRequest
from lora_studio.jobs.events import Reason
from lora_studio.jobs.kinds import BENCHMARK, EVALUATE, EXPORT, KINDS, TRAIN, BenchmarkFolder, JobFolders
from lora_studio.jobs.launchers.local import LocalLauncher, find, kill, read_worker
from lora_studio.jobs.queue import QueueEntry, read_queue, write_queue
from lora_studio.jobs.supervisor import MAX_OFF_DEVICE, Supervisor
from lora_studio.workspace import Workspace
from tests.adapters import files, write

from .conftest import wait_until

EVALUATION = EvaluationRequest(
    "Test", "data", (EvaluatedColumn("adapter", "A", "/a"),), (), "", Measuring(), Generation()
)
GOES_ON = "runs:steps=30000,evaluations:slow,exports:slow,benchmarks:steps=30000"
ENDS = "runs:steps=3,evaluations:rows=2,exports:quick,benchmarks:steps=3"
Make = Callable[..., Supervisor]


def command(modes: str) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("fake_job.py")), modes]


@pytest.fixture
def make(workspace: Workspace) -> Iterator[Make]:
    """make(GOES_ON) starts a supervisor whose jobs go on until they are stopped; none is left behind."""
    started: list[Supervisor] = []

    def supervisor(modes: str, *, watching: bool = True) -> Supervisor:
        one = Supervisor(workspace, LocalLauncher(command(modes)), tick_seconds=0.05)
        if watching:
            one.start()
        started.append(one)
        return one

    yield supervisor
    for one in started:
        one.close()
    for kind in KINDS.values():
        for job in started[0].jobs(kind):
            kill(kind.folder_of(workspace, job.id))


@pytest.fixture
def to_export(tmp_path: Path) -> ExportRequest:
    folder = write(tmp_path / "adapter", files())
    return ExportRequest("A: merged", "merged", "a", str(folder), "", {"dtype": "float16", "max_shard_size": "5GB"})


def start_benchmark(supervisor: Supervisor) -> str:
    workspace = supervisor.workspace
    folders = JobFolders(workspace, workspace.benchmarks_folder, BenchmarkFolder, "benchmark")
    return supervisor.submit(BENCHMARK, lambda: folders.create({"title": "Bench", "words": ["lm_eval"]}))


def begin_all(supervisor: Supervisor, to_export: ExportRequest) -> list[str]:
    """A run that works, and behind it one of every other kind."""
    return [
        supervisor.launch(Config()),
        evaluating.start(supervisor, EVALUATION),
        exporting.start(supervisor, to_export),
        start_benchmark(supervisor),
    ]


def states(supervisor: Supervisor, ids: list[str]) -> list[str]:
    return [supervisor.state(job).state for job in ids]


@pytest.mark.slow
def test_jobs_of_all_kinds_wait_for_the_run_and_begin_in_their_order(make: Make, to_export: ExportRequest) -> None:
    supervisor = make(ENDS.replace("runs:steps=3", "runs:endless"), watching=False)
    ids = begin_all(supervisor, to_export)
    assert states(supervisor, ids) == ["running", "queued", "queued", "queued"]
    assert (supervisor.busy(), supervisor.queue()) == (ids[0], ids[1:])
    supervisor.start()
    supervisor.stop(ids[0])
    wait_until(lambda: states(supervisor, ids) == ["stopped", "done", "done", "done"])
    begun = [read_worker(supervisor.find(job)[1]) for job in ids]
    launched = [worker.launched for worker in begun if worker]
    assert launched == sorted(launched)
    assert len(launched) == 4


def test_waiting_jobs_of_all_kinds_change_places_and_are_taken_out(make: Make, to_export: ExportRequest) -> None:
    supervisor = make(GOES_ON)
    _, evaluation, export, benchmark = begin_all(supervisor, to_export)
    supervisor.move(benchmark, -2)
    assert supervisor.queue() == [benchmark, evaluation, export]
    supervisor.stop(evaluation)
    supervisor.cancel(export)
    assert supervisor.queue() == [benchmark]
    for job in (evaluation, export):
        assert (supervisor.state(job).state, supervisor.state(job).reason) == ("stopped", Reason.DEQUEUED)
    supervisor.delete(benchmark)
    assert supervisor.queue() == []


def test_who_asks_for_it_has_a_job_begin_beside_the_one_that_holds_the_device(make: Make) -> None:
    supervisor = make(GOES_ON)
    run = supervisor.launch(Config())
    waits, beside = evaluating.start(supervisor, EVALUATION), evaluating.start(supervisor, EVALUATION, at_once=True)
    assert states(supervisor, [run, waits, beside]) == ["running", "queued", "running"]
    assert {job.id for job in supervisor.working()} == {run, beside}
    supervisor.cancel(run)
    wait_until(lambda: supervisor.state(run).final)
    assert supervisor.state(waits).state == "queued", "the one that began beside the run still holds the device"
    supervisor.cancel(beside)
    wait_until(lambda: supervisor.state(waits).state == "running")


def test_an_export_that_needs_no_device_need_not_wait_and_many_of_them_do(
    make: Make, to_export: ExportRequest, tmp_path: Path
) -> None:
    supervisor = make(GOES_ON)
    supervisor.launch(Config())
    light = replace(to_export, target="zip", settings={"base_name": "", "keep_local_base": True})
    ids = [exporting.start(supervisor, light) for _ in range(MAX_OFF_DEVICE + 1)]
    assert states(supervisor, ids) == ["running"] * MAX_OFF_DEVICE + ["queued"]
    with_token = exporting.start(supervisor, light, {"HF_TOKEN": "hf_secret"})
    assert supervisor.state(with_token).state == "running", "a token is written nowhere, so that its job never waits"
    for job in (with_token, ids[0]):
        supervisor.cancel(job)
    wait_until(lambda: supervisor.state(ids[-1]).state == "running")


@pytest.mark.slow
def test_the_queue_of_all_kinds_survives_the_server_killed_while_one_works(
    workspace: Workspace, make: Make, to_export: ExportRequest
) -> None:
    program = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.jobs.test_one_queue import *\n"
        "import time\n"
        f"supervisor = Supervisor(Workspace.find({str(workspace.root)!r}), LocalLauncher(command(GOES_ON)))\n"
        f"supervisor.start(); print(*begin_all(supervisor, {to_export!r}), flush=True); time.sleep(600)\n"
    )
    root = Path(__file__).parents[2]
    server = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=root)
    assert server.stdout is not None
    run, *others = server.stdout.readline().split()
    server.send_signal(signal.SIGKILL)
    server.wait()
    server.stdout.close()
    again = make(ENDS, watching=False)
    assert states(again, [run, *others]) == ["running", "queued", "queued", "queued"]
    assert again.queue() == others
    again.stop(run)
    again.start()
    wait_until(lambda: states(again, [run, *others]) == ["stopped", "done", "done", "done"])


@pytest.mark.parametrize("kind", ["evaluate", "export", "benchmark"])
def test_a_worker_of_any_kind_that_is_killed_is_a_failure_and_the_next_job_begins(
    make: Make, to_export: ExportRequest, kind: str
) -> None:
    starts: dict[str, Callable[[Supervisor], str]] = {
        "evaluate": lambda each: evaluating.start(each, EVALUATION),
        "export": lambda each: exporting.start(each, to_export),
        "benchmark": start_benchmark,
    }
    supervisor = make(GOES_ON)
    first, second = starts[kind](supervisor), supervisor.launch(Config())
    wait_until(lambda: supervisor.state(first).started is not None)
    process = find(supervisor.find(first)[1])
    assert process is not None
    process.kill()
    wait_until(lambda: supervisor.state(second).state == "running")
    state = supervisor.state(first)
    assert (state.state, state.reason, state.kind) == ("failed", Reason.KILLED, kind)
    if KINDS[kind].resumes:
        supervisor.resume(first)
        assert supervisor.queue() == [first]
    else:
        with pytest.raises(StudioError, match="cannot be resumed"):
            supervisor.resume(first)
        supervisor.delete(first)


def test_a_container_that_ends_goes_on_with_jobs_of_all_kinds(make: Make, workspace: Workspace) -> None:
    supervisor = make(GOES_ON)
    evaluation = evaluating.start(supervisor, EVALUATION)
    run = supervisor.launch(Config())
    wait_until(lambda: supervisor.state(evaluation).phase_done > 1)
    supervisor.go_to_sleep(60)
    assert read_queue(workspace) == [QueueEntry(evaluation, True, kind=EVALUATE.name), QueueEntry(run)]
    after = make(ENDS)
    wait_until(lambda: states(after, [evaluation, run]) == ["done", "done"])
    assert "--resume" in " ".join(after.log(run)) or after.state(evaluation).resumed


def test_a_queue_that_an_earlier_version_wrote_is_one_of_runs(make: Make, workspace: Workspace) -> None:
    run = workspace.create_run("old", "{}", {})
    old = [{"run": run.id, "resume": False, "extra_epochs": 0.0, "other_rows": False}]
    workspace.queue.write_text(json.dumps(old))
    assert read_queue(workspace) == [QueueEntry(run.id)]
    workspace.queue.write_text(json.dumps([{"job": run.id, "kind": "a kind of a newer version"}]))
    assert read_queue(workspace) == [QueueEntry(run.id)], "of what can't be read, those that were never started"
    write_queue(workspace, [QueueEntry(run.id, kind=TRAIN.name)])
    assert make(ENDS, watching=False).waiting() == [QueueEntry(run.id)]


def test_a_damaged_queue_is_made_of_the_jobs_of_all_kinds_that_never_began(
    make: Make, workspace: Workspace, to_export: ExportRequest
) -> None:
    supervisor = make(GOES_ON, watching=False)
    _, *waiting = begin_all(supervisor, to_export)
    workspace.queue.write_text("{")
    assert sorted(entry.job for entry in read_queue(workspace)) == sorted(waiting)
    assert {entry.kind for entry in read_queue(workspace)} == {"evaluate", "export", "benchmark"}


def test_an_export_of_before_that_says_nothing_of_the_device_needs_none(make: Make, workspace: Workspace) -> None:
    folder = EXPORT.folder_of(workspace, "20250101-000000-abcd")
    folder.path.mkdir(parents=True)
    folder.facts.write_text(json.dumps({"created": 1.0, "maker": "", "title": "A: zip", "target": "zip"}))
    supervisor = make(ENDS, watching=False)
    (state,) = supervisor.jobs(EXPORT)
    assert (state.state, state.reason, state.title) == ("failed", Reason.NEVER_STARTED, "A: zip")
    assert supervisor.busy() is None


def test_a_job_that_is_deleted_while_all_are_listed_is_not_there(
    make: Make, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = make(GOES_ON, watching=False)
    run, evaluation = supervisor.launch(Config()), evaluating.start(supervisor, EVALUATION)
    fresh = make(GOES_ON, watching=False)
    folder = EVALUATE.folder_of(workspace, evaluation)
    listed = type(fresh._index).of
    monkeypatch.setattr(
        type(fresh._index), "of", lambda self, kind: [folder] if kind is EVALUATE else listed(self, kind)
    )
    folder.facts.unlink()
    assert [state.id for state in fresh.runs()] == [run]
    assert fresh.jobs(EVALUATE) == []
