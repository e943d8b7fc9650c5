"""Runs are started one at a time, followed, stopped, queued and found again, with workers that train nothing."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from lora_studio.config.parsing import default_title, parse, read_yaml, with_absolute_paths
from lora_studio.config.sections import Config, Data
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Finished, Reason, StepLogged, to_line
from lora_studio.jobs.kinds import ending_words
from lora_studio.jobs.launchers.local import LocalLauncher, find, read_worker
from lora_studio.jobs.queue import lock
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.workspace import Workspace
from tests.jobs.conftest import Supervise, fake_command, server, wait_until


def test_a_run_goes_from_start_to_done_and_its_worker_is_collected(supervise: Supervise, workspace: Workspace) -> None:
    supervisor = supervise("steps=5")
    run_id = supervisor.launch(Config(title="First run"))
    assert supervisor.state(run_id).state in ("running", "done")
    wait_until(lambda: supervisor.state(run_id).final and supervisor.busy() is None)
    state = supervisor.state(run_id)
    assert (state.state, state.step, state.total_steps, state.title) == ("done", 5, 5, "First run")
    assert len(state.steps) == 5
    worker = read_worker(workspace.run(run_id))
    assert worker is not None
    wait_until(lambda: not psutil.pid_exists(worker.pid))
    assert supervisor.exit_code(run_id) == 0


def test_the_run_folder_holds_the_whole_config_and_the_versions(supervise: Supervise, workspace: Workspace) -> None:
    run = workspace.run(supervise("steps=1").launch(Config()))
    assert parse(read_yaml(run.config)) == Config()
    assert run.read_facts()["title"] == "demo-pirate-1"
    assert set(run.read_facts()["versions"]) >= {"torch", "trl", "peft", "lora_studio"}


def test_a_file_named_from_the_current_folder_is_found_by_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    config = with_absolute_paths(Config(data=Data(train_file="rows.jsonl", validation_file="rows.jsonl?sheet=B")))
    assert config.data.train_file == str(tmp_path / "rows.jsonl")
    assert config.data.validation_file == str(tmp_path / "rows.jsonl?sheet=B")


def test_the_name_of_a_shipped_set_and_the_demo_model_stay_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "pirate").mkdir()
    assert with_absolute_paths(Config()) == Config()


def test_a_second_run_waits_and_starts_when_the_first_ends(supervise: Supervise, tmp_path: Path) -> None:
    supervisor = supervise(f"until={tmp_path / 'enough'}")
    first, second = supervisor.launch(Config()), supervisor.launch(Config())
    assert supervisor.state(second).state == "queued"
    assert supervisor.queue() == [second]
    assert supervisor.busy() == first
    (tmp_path / "enough").touch()
    wait_until(lambda: supervisor.state(second).started is not None)
    assert supervisor.state(first).state == "done"
    assert supervisor.queue() == []


def test_many_starts_at_once_start_one_worker(supervise: Supervise, workspace: Workspace) -> None:
    supervisors = [supervise("steps=30000"), supervise("steps=30000")]
    threads = [threading.Thread(target=supervisors[n % 2].launch, args=(Config(),)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alive = [run for run in workspace.runs() if find(run)]
    assert len(workspace.runs()) == 6
    assert len(alive) == 1
    assert len(supervisors[0].queue()) == 5


@pytest.mark.slow
def test_starts_from_several_processes_at_once_start_one_worker(supervise: Supervise, workspace: Workspace) -> None:
    then = "print('ready', flush=True); sys.stdin.readline()\nfor _ in range(4): supervisor.launch(Config())"
    program = server(workspace, "steps=30000", then)
    command = [sys.executable, "-c", program]
    parents = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for parent in parents:
        assert parent.stdout is not None
        parent.stdout.readline()
    for parent in parents:
        parent.communicate("go\n", timeout=200)
    assert [parent.returncode for parent in parents] == [0, 0, 0]
    alive = [run.id for run in workspace.runs() if find(run)]
    assert (len(workspace.runs()), len(alive)) == (12, 1)
    assert sorted([*supervise("steps=30000").queue(), *alive]) == sorted(run.id for run in workspace.runs())


def test_the_queue_is_locked_on_a_network_file_system_too(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS makes of `flock` a lock of bytes, which only a file that is open for writing can have."""
    local = fcntl.flock

    def of_nfs(file: int, operation: int) -> None:
        if not fcntl.fcntl(file, fcntl.F_GETFL) & os.O_RDWR:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        local(file, operation)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    with lock(workspace), workspace.queue_lock.open("r+") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    with lock(workspace):
        assert workspace.queue_lock.read_bytes() == b""


def test_stop_ends_a_run_and_keeps_what_it_saved(supervise: Supervise, workspace: Workspace) -> None:
    supervisor = supervise("steps=30000")
    run_id = supervisor.launch(Config())
    wait_until(lambda: supervisor.state(run_id).step >= 2)
    supervisor.stop(run_id)
    wait_until(lambda: supervisor.state(run_id).final)
    assert supervisor.state(run_id).state == "stopped"
    assert len(workspace.run(run_id).checkpoint_folders()) == 1
    supervisor.stop(run_id)
    assert supervisor.state(run_id).state == "stopped"


def test_stopping_a_waiting_run_takes_it_out_of_the_queue(supervise: Supervise) -> None:
    supervisor = supervise("steps=30000")
    first, second = supervisor.launch(Config()), supervisor.launch(Config())
    supervisor.stop(second)
    assert supervisor.state(second).state == "stopped"
    assert supervisor.state(second).reason is Reason.DEQUEUED
    assert "queue" in ending_words(supervisor.state(second))[0]
    assert supervisor.queue() == []
    assert supervisor.state(first).state == "running"


def test_a_stopped_run_resumes_from_its_checkpoint_as_the_same_run(supervise: Supervise) -> None:
    supervisor = supervise("steps=30000")
    run_id = supervisor.launch(Config())
    wait_until(lambda: supervisor.state(run_id).step >= 2)
    supervisor.stop(run_id)
    wait_until(lambda: supervisor.state(run_id).final)
    with pytest.raises(StudioError, match="There is no run"):
        supervisor.resume("nothing")
    supervisor.resume(run_id)
    wait_until(lambda: supervisor.state(run_id).state == "running")
    wait_until(lambda: "--resume" in supervisor.log(run_id))
    with pytest.raises(StudioError, match="already running"):
        supervisor.resume(run_id)


def test_a_run_whose_only_checkpoint_is_damaged_is_resumed_by_a_worker_that_tells_so(
    supervise: Supervise, workspace: Workspace
) -> None:
    supervisor = supervise("steps=30000")
    run_id = supervisor.launch(Config())
    wait_until(lambda: supervisor.state(run_id).step >= 2)
    supervisor.stop(run_id)
    wait_until(lambda: supervisor.state(run_id).final and supervisor.busy() is None)
    folders = workspace.run(run_id).checkpoint_folders()
    for folder in folders:
        (folder / "trainer_state.json").unlink()
    assert folders
    assert not workspace.run(run_id).checkpoint_folders()
    supervisor.resume(run_id)
    wait_until(lambda: "--resume" in supervisor.log(run_id))


def test_a_complete_run_is_resumed_only_for_more_epochs(supervise: Supervise) -> None:
    supervisor = supervise("steps=2")
    run_id = supervisor.launch(Config())
    wait_until(lambda: supervisor.state(run_id).final and supervisor.busy() is None)
    with pytest.raises(StudioError, match="complete"):
        supervisor.resume(run_id)
    for wrong in (-1.0, float("nan")):
        with pytest.raises(StudioError, match="extra epochs"):
            supervisor.resume(run_id, wrong)
    supervisor.resume(run_id, extra_epochs=2, other_rows=True)
    wait_until(lambda: "--resume" in supervisor.log(run_id) and supervisor.state(run_id).final)
    assert supervisor.state(run_id).extra_epochs == 2
    assert supervisor.state(run_id).other_rows, "the worker reads this, and forgets it once the data are prepared"


def test_a_complete_run_without_a_checkpoint_can_not_go_on_and_says_what_can(
    supervise: Supervise, workspace: Workspace
) -> None:
    supervisor = supervise("steps=1")
    run_id = supervisor.launch(Config())
    wait_until(lambda: supervisor.state(run_id).final and supervisor.busy() is None)
    shutil.rmtree(workspace.run(run_id).checkpoints)
    with pytest.raises(StudioError, match="has no checkpoint") as raised:
        supervisor.resume(run_id, extra_epochs=1)
    assert "Start a new run from its adapter" in raised.value.hint


def test_extra_epochs_count_from_the_start_on_and_stay_with_the_run(supervise: Supervise) -> None:
    supervisor = supervise("steps=30000")
    going, run_id = supervisor.launch(Config()), supervisor.launch(Config())
    supervisor.stop(run_id)
    supervisor.resume(run_id, extra_epochs=2)
    assert supervisor.waiting()[0].extra_epochs == 2
    supervisor.stop(run_id)
    assert (supervisor.state(run_id).state, supervisor.state(run_id).extra_epochs) == ("stopped", 0)
    supervisor.resume(run_id, extra_epochs=2)
    supervisor.cancel(going)
    wait_until(lambda: supervisor.state(run_id).step >= 1)
    supervisor.cancel(run_id)
    wait_until(lambda: supervisor.state(run_id).final)
    supervisor.resume(run_id)
    wait_until(lambda: supervisor.log(run_id).count("working with") == 2)
    assert supervisor.state(run_id).extra_epochs == 2


def test_cancel_ends_a_run_at_once_and_says_what_is_left(supervise: Supervise, workspace: Workspace) -> None:
    supervisor = supervise("deaf")
    run_id = supervisor.launch(Config())
    run = workspace.run(run_id)
    wait_until(lambda: supervisor.state(run_id).step >= 1)
    helper = int((run.path / "helper.pid").read_text())
    supervisor.cancel(run_id)
    wait_until(lambda: supervisor.state(run_id).final)
    state = supervisor.state(run_id)
    assert (state.state, state.reason) == ("stopped", Reason.CANCELLED)
    assert ending_words(state) == (
        "Cancelled at once; nothing more was saved.",
        "No checkpoint was saved yet, so Resume starts over.",
    )
    wait_until(lambda: not psutil.pid_exists(helper) or psutil.Process(helper).status() == psutil.STATUS_ZOMBIE)
    supervisor.cancel(run_id)
    assert supervisor.state(run_id).state == "stopped"
    supervisor.resume(run_id)
    wait_until(lambda: supervisor.state(run_id).state == "running")


def test_cancelling_a_waiting_run_takes_it_out_of_the_queue(supervise: Supervise) -> None:
    supervisor = supervise("steps=30000")
    first, second = supervisor.launch(Config()), supervisor.launch(Config())
    supervisor.cancel(second)
    assert (supervisor.queue(), supervisor.state(second).state) == ([], "stopped")
    assert supervisor.state(first).state == "running"


def test_waiting_runs_change_places_and_keep_them_over_a_restart(supervise: Supervise, workspace: Workspace) -> None:
    supervisor = supervise("steps=30000")
    first, *waiting = [supervisor.launch(Config()) for _ in range(4)]
    a, b, c = waiting
    supervisor.move(c, -1)
    assert supervisor.queue() == [a, c, b]
    supervisor.move(c, -5)
    assert supervisor.queue() == [c, a, b]
    supervisor.move(c, 1)
    supervisor.move(b, 1)
    assert Supervisor(workspace).queue() == [a, c, b]
    with pytest.raises(StudioError, match="is not in the queue"):
        supervisor.move(first, -1)
    supervisor.cancel(first)
    wait_until(lambda: supervisor.busy() == a)
    assert supervisor.queue() == [c, b]


@pytest.mark.slow
def test_a_deaf_worker_is_ended_by_force_with_everything_it_started(supervise: Supervise, workspace: Workspace) -> None:
    supervisor = supervise("deaf", save_seconds=0.3)
    run_id = supervisor.launch(Config())
    wait_until(lambda: supervisor.state(run_id).step >= 1)
    helper = int((workspace.run(run_id).path / "helper.pid").read_text())
    supervisor.stop(run_id)
    wait_until(lambda: supervisor.state(run_id).final)
    assert supervisor.state(run_id).state == "stopped"
    assert supervisor.state(run_id).reason is Reason.ENDED_BY_FORCE
    assert "was killed" in ending_words(supervisor.state(run_id))[0]
    wait_until(lambda: not psutil.pid_exists(helper) or psutil.Process(helper).status() == psutil.STATUS_ZOMBIE)


def test_a_worker_without_anything_to_save_is_given_less_time_to_hear(supervise: Supervise) -> None:
    supervisor = supervise("deaf-early", stop_seconds=0.3, save_seconds=600)
    run_id = supervisor.launch(Config())
    wait_until(lambda: supervisor.state(run_id).phase == "data")
    supervisor.stop(run_id)
    wait_until(lambda: supervisor.state(run_id).final)
    assert supervisor.state(run_id).reason is Reason.ENDED_BY_FORCE
    assert "was killed" in ending_words(supervisor.state(run_id))[0]


def test_a_worker_that_trains_is_given_time_to_save(supervise: Supervise) -> None:
    supervisor = supervise("deaf", stop_seconds=0.1, save_seconds=600)
    run_id = supervisor.launch(Config())
    wait_until(lambda: supervisor.state(run_id).step >= 1)
    supervisor.stop(run_id)
    step = supervisor.state(run_id).step
    wait_until(lambda: supervisor.state(run_id).step > step + 20)
    assert supervisor.state(run_id).state == "stopping"


def test_a_worker_that_vanished_is_a_failure_with_its_last_words(supervise: Supervise) -> None:
    supervisor = supervise("crash")
    run_id = supervisor.launch(Config())
    wait_until(lambda: supervisor.state(run_id).final)
    state = supervisor.state(run_id)
    assert state.state == "failed"
    assert (state.reason, state.exit_code, state.last_output) == (Reason.EXITED, 7, "something terrible")
    message, hint = ending_words(state)
    assert "exit code 7" in message
    assert "something terrible" in hint
    assert state.step == 3


def test_a_worker_killed_from_outside_is_said_to_have_been_killed(supervise: Supervise, workspace: Workspace) -> None:
    supervisor = supervise("steps=30000")
    run_id = supervisor.launch(Config())
    wait_until(lambda: supervisor.state(run_id).step >= 1)
    process = find(workspace.run(run_id))
    assert process is not None
    process.kill()
    wait_until(lambda: supervisor.state(run_id).final)
    assert supervisor.state(run_id).reason is Reason.KILLED
    assert "memory" in ending_words(supervisor.state(run_id))[0]
    assert supervisor.busy() is None


def test_a_run_that_is_alive_is_not_deleted(supervise: Supervise, workspace: Workspace) -> None:
    supervisor = supervise("steps=30000")
    first, second = supervisor.launch(Config()), supervisor.launch(Config())
    with pytest.raises(StudioError, match="cannot be deleted"):
        supervisor.delete(first)
    supervisor.delete(second)
    assert [state.id for state in supervisor.runs()] == [first]
    assert supervisor.queue() == []


def test_the_state_of_a_run_that_ended_is_not_made_again(supervise: Supervise) -> None:
    supervisor = supervise("steps=3")
    run_id = supervisor.launch(Config())
    wait_until(lambda: supervisor.state(run_id).final and supervisor.busy() is None)
    state = supervisor.state(run_id)
    assert supervisor.state(run_id) is state


def test_a_snapshot_does_not_change_while_the_run_goes_on(supervise: Supervise) -> None:
    supervisor = supervise("steps=30000")
    run_id = supervisor.launch(Config())
    wait_until(lambda: supervisor.state(run_id).step >= 1)
    snapshot = supervisor.state(run_id)
    count = len(snapshot.steps)
    wait_until(lambda: supervisor.state(run_id).step > snapshot.step + 3)
    assert len(snapshot.steps) == count


@pytest.mark.slow
def test_another_supervisor_sees_the_run_and_can_stop_it(supervise: Supervise) -> None:
    page, terminal = supervise("steps=30000"), supervise("steps=30000")
    run_id = terminal.launch(Config())
    assert page.busy() == run_id
    wait_until(lambda: page.state(run_id).step >= 1)
    page.stop(run_id)
    wait_until(lambda: terminal.state(run_id).final and page.state(run_id).final)
    assert terminal.state(run_id).state == page.state(run_id).state == "stopped"


def test_the_queue_survives_a_supervisor_and_is_taken_up_by_the_next(
    workspace: Workspace, supervise: Supervise
) -> None:
    gone = Supervisor(workspace, LocalLauncher(fake_command("steps=10")))
    first, second = gone.launch(Config()), gone.launch(Config())
    wait_until(lambda: gone.state(first).final and gone.busy() is None)
    assert gone.state(second).state == "queued"
    after = supervise("steps=1")
    wait_until(lambda: after.state(second).state == "done")


@pytest.mark.slow
def test_killing_the_parent_leaves_the_worker_alive_and_the_next_parent_finds_it(
    workspace: Workspace, supervise: Supervise
) -> None:
    then = "supervisor.start(); print(supervisor.launch(Config()), flush=True); time.sleep(600)"
    program = server(workspace, "steps=30000", then)
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    run_id = parent.stdout.readline().strip()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    supervisor = supervise("steps=30000")
    assert supervisor.busy() == run_id
    step = supervisor.state(run_id).step
    wait_until(lambda: supervisor.state(run_id).step > step + 3)
    supervisor.stop(run_id)
    wait_until(lambda: supervisor.state(run_id).final)
    assert supervisor.state(run_id).state == "stopped"
    worker = read_worker(workspace.run(run_id))
    assert worker is not None
    assert worker.pid != os.getpid()


def test_runs_of_earlier_days_are_told_of_as_they_are_read_and_each_at_once_when_asked_for(
    workspace: Workspace,
) -> None:
    runs = [workspace.create_run(f"run {number}", "{}", {}) for number in range(4)]
    for run in runs:
        run.worker.write_text('{"pid": 4194305, "started": 1.0, "launched": 2.0}')
        run.events.write_text(to_line(StepLogged(3.0, 1, 2, 0.5, 1.0, 1e-3)) * 2 + to_line(Finished(4.0, "done", 2)))
    slow = Supervisor(workspace, tick_seconds=60)
    slow.start()
    assert (slow.runs(), slow.unread) == ([], 4)
    assert len(slow.state(runs[0].id).steps) == 2
    assert [state.id for state in slow.runs()] == [runs[0].id]
    slow.close()
    assert [state.id for state in slow.runs()] == [run.id for run in workspace.runs()]
    quick = Supervisor(workspace, tick_seconds=0.01)
    quick.start()
    wait_until(lambda: len(quick.runs()) == 4 and not quick.unread)
    assert {state.state for state in quick.runs()} == {"done"}
    quick.close()


@pytest.mark.parametrize(
    ("model", "data", "titles", "expected"),
    [
        ("demo", "pirate", [], "demo-pirate-1"),
        ("Qwen/Qwen3-0.6B", "pirate", ["qwen3-0.6b-pirate-2", "qwen3-0.6b-pirate", "else-9"], "qwen3-0.6b-pirate-3"),
        ("/models/My Model/", "/data/Größe 1.jsonl", [], "my-model-größe-1-1"),
        ("C:\\models\\base", "hub:owner/set?split=test", ["base-set-9"], "base-set-10"),
        ("demo", "/data/*.jsonl", [], "demo-1"),
    ],
)
def test_an_unnamed_run_is_named_by_model_data_and_the_next_number(
    model: str, data: str, titles: list[str], expected: str
) -> None:
    config = parse({"model": {"name": model}, "data": {"train_file": data}})
    assert default_title(config, titles) == expected
