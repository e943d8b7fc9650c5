"""A run's state from its folder: lines that grow, lines that are torn, workers that are gone."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from lora_studio.files import end_last_line
from lora_studio.jobs.events import CheckpointSaved, Finished, PhaseStarted, Reason, RunStarted, StepLogged, to_line
from lora_studio.jobs.kinds import ending_words
from lora_studio.jobs.launchers import last_error, last_lines
from lora_studio.jobs.launchers.local import (
    LocalLauncher,
    LocalWorker,
    ask_to_stop,
    find,
    kill,
    read_worker,
)
from lora_studio.jobs.watcher import Follower
from lora_studio.workspace import RunFolder, Workspace


@pytest.fixture
def run(workspace: Workspace) -> RunFolder:
    return workspace.create_run("test", "{}", {})


def refresh(follower: Follower, waiting: bool = False) -> bool:
    return follower.refresh(waiting)


def step(number: int) -> str:
    return to_line(StepLogged(time.time(), number, 10, 0.1, 1.0, 1e-3))


def append(run: RunFolder, text: str) -> None:
    with run.events.open("a", encoding="utf-8") as file:
        file.write(text)


def be_the_worker(run: RunFolder, pid: int, shift: float = 0.0, **more: float) -> None:
    started = psutil.Process(pid).create_time() + shift
    run.worker.write_text(json.dumps({"pid": pid, "started": started, "launched": time.time(), **more}))


def test_a_torn_last_line_is_left_until_it_is_whole(run: RunFolder) -> None:
    be_the_worker(run, os.getpid())
    follower = Follower(run, LocalLauncher())
    whole = step(2)
    append(run, step(1) + whole[:20])
    refresh(follower)
    assert [item.step for item in follower.state.steps] == [1]
    append(run, whole[20:])
    refresh(follower)
    assert [item.step for item in follower.state.steps] == [1, 2]


def test_a_line_separator_inside_a_message_does_not_split_the_line(run: RunFolder) -> None:
    be_the_worker(run, os.getpid())
    append(run, to_line(Finished(time.time(), "failed", message="one\u2028two")))
    follower = Follower(run, LocalLauncher())
    refresh(follower)
    assert follower.state.message == "one\u2028two"


def test_a_line_that_a_killed_worker_left_torn_does_not_swallow_the_next(run: RunFolder) -> None:
    append(run, step(1) + step(2)[:20])
    end_last_line(run.events)
    end_last_line(run.events)
    be_the_worker(run, os.getpid())
    append(run, to_line(RunStarted(time.time(), 1, "cpu", "float32", 1)))
    follower = Follower(run, LocalLauncher())
    refresh(follower)
    assert follower.state.state == "running"
    assert run.events.read_text().count("\n") == 3


def test_nothing_new_is_no_change(run: RunFolder) -> None:
    follower = Follower(run, LocalLauncher())
    assert refresh(follower, waiting=True)
    assert not refresh(follower, waiting=True)
    assert follower.state.state == "queued"
    append(run, step(1))
    assert refresh(follower, waiting=True)


def test_a_fresh_folder_that_does_not_stand_in_the_queue_yet_is_queued(run: RunFolder) -> None:
    follower = Follower(run, LocalLauncher())
    refresh(follower)
    assert follower.state.state == "queued"


def test_an_old_folder_that_nobody_started_is_a_failure(run: RunFolder) -> None:
    run.facts.write_text(json.dumps({"title": "old", "created": time.time() - 3600}))
    follower = Follower(run, LocalLauncher())
    refresh(follower)
    assert (follower.state.state, follower.state.reason) == ("failed", Reason.NEVER_STARTED)
    assert ending_words(follower.state) == ("The run was never started.", "Resume starts it.")


def test_a_resumed_run_is_running_before_its_new_worker_says_so(run: RunFolder) -> None:
    append(run, step(1) + to_line(Finished(time.time(), "stopped", 1)))
    time.sleep(0.01)
    be_the_worker(run, os.getpid())
    follower = Follower(run, LocalLauncher())
    refresh(follower)
    assert (follower.state.state, follower.state.phase, follower.state.finished) == ("running", "start", None)
    assert len(follower.state.steps) == 1
    append(run, to_line(PhaseStarted(time.time(), "data")))
    refresh(follower)
    assert (follower.state.state, follower.state.phase) == ("running", "data")


def test_a_worker_asked_to_stop_is_stopping_and_then_stopped_even_without_a_last_word(run: RunFolder) -> None:
    slow_to_stop = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (os.read(0, 1), os._exit(0)))\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    child = subprocess.Popen([sys.executable, "-c", slow_to_stop], start_new_session=True, **pipes)
    assert child.stdout is not None
    child.stdout.readline()
    be_the_worker(run, child.pid)
    follower = Follower(run, LocalLauncher())
    assert ask_to_stop(run)
    refresh(follower)
    assert follower.state.state == "stopping"
    child.communicate(b"now")
    refresh(follower)
    assert follower.state.state == "stopped"
    assert not ask_to_stop(run)


def test_a_process_that_got_the_same_id_later_is_not_the_worker(run: RunFolder) -> None:
    be_the_worker(run, os.getpid(), shift=-100)
    assert find(run) is None
    assert not ask_to_stop(run)
    assert not kill(run)


def test_an_ended_worker_that_nobody_collected_is_not_alive(run: RunFolder) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"], start_new_session=True)
    be_the_worker(run, child.pid)
    end = time.monotonic() + 200
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        time.sleep(0.01)
    assert find(run) is None
    child.wait()


def test_a_run_without_a_worker_has_none(run: RunFolder) -> None:
    assert read_worker(run) is None
    assert find(run) is None
    assert not kill(run)
    be_the_worker(run, os.getpid(), stop_asked=5.0)
    worker = read_worker(run)
    assert isinstance(worker, LocalWorker)
    assert worker.stop_asked == 5.0


def test_the_log_shows_progress_bars_by_their_last_state_and_no_colours(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_bytes(b"\x1b[31mred\x1b[0m\r\n\n 10%\r 50%\r100%\nlast \xff")
    assert last_lines(log, 10) == "red\n100%\nlast \ufffd"
    assert last_lines(log, 1) == "last \ufffd"
    assert last_lines(tmp_path / "missing.log", 3) == ""


def test_a_run_to_be_resumed_waits_also_while_its_last_worker_is_still_ending(run: RunFolder) -> None:
    be_the_worker(run, os.getpid())
    time.sleep(0.01)
    append(run, step(1) + to_line(Finished(time.time(), "stopped", 1)))
    follower = Follower(run, LocalLauncher())
    refresh(follower)
    assert follower.state.state == "stopped"
    refresh(follower, waiting=True)
    assert follower.state.state == "queued"


def test_a_checkpoint_that_was_deleted_is_no_longer_offered(run: RunFolder) -> None:
    be_the_worker(run, os.getpid())
    for number in (1, 2):
        folder = run.checkpoints / f"checkpoint-{number}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text("{}")
        append(run, to_line(CheckpointSaved(time.time(), number, folder.name)))
    follower = Follower(run, LocalLauncher())
    refresh(follower)
    assert [item.step for item in follower.state.checkpoints] == [1, 2]
    shutil.rmtree(run.checkpoints / "checkpoint-1")
    assert refresh(follower)
    assert [item.step for item in follower.state.checkpoints] == [2]


def test_a_worker_that_died_on_a_full_disk_is_said_to_have(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    run.worker.write_text(json.dumps({"pid": 2**22 + 1, "started": 1.0, "launched": 2.0}))
    follower = Follower(run, LocalLauncher())
    refresh(follower)
    assert (follower.state.state, follower.state.reason) == ("failed", Reason.DISK_FULL)
    assert ending_words(follower.state)[0].startswith("The disk is full:")


def test_a_settled_run_is_not_read_again(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.worker.write_text(json.dumps({"pid": 2**22 + 1, "started": 1.0, "launched": 2.0}))
    append(run, to_line(Finished(time.time(), "done", 1)))
    follower = Follower(run, LocalLauncher())
    refresh(follower)
    before = follower.state
    monkeypatch.setattr("lora_studio.jobs.launchers.local.read_worker", lambda folder: pytest.fail("read again"))
    monkeypatch.setattr(Follower, "_read_events", lambda self: pytest.fail("read again"))
    assert not refresh(follower)
    assert follower.state is before


def over(run: RunFolder, steps: int = 3) -> None:
    """A run whose worker is gone and said its last word."""
    run.worker.write_text(json.dumps({"pid": 2**22 + 1, "started": 1.0, "launched": 2.0}))
    append(run, "".join(map(step, range(1, steps + 1))) + to_line(Finished(time.time(), "done", steps)))


def test_a_run_that_is_over_is_read_once_and_told_in_short_without_its_events_afterwards(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    over(run)
    first = Follower(run, LocalLauncher())
    refresh(first)
    assert not first.known
    assert (first.in_short.state, len(first.in_short.steps), first.known) == ("done", 1, True)
    second = Follower(run, LocalLauncher())
    refresh(second)
    with monkeypatch.context() as patch:
        patch.setattr("lora_studio.jobs.watcher.fold_lines", lambda lines, state: pytest.fail("read again"))
        assert second.in_short == first.in_short
        assert second.ended
    assert [item.step for item in second.state.steps] == [1, 2, 3]
    assert second.in_short is second.state


def test_a_run_told_in_short_that_goes_on_is_whole_again(run: RunFolder) -> None:
    over(run)
    follower = Follower(run, LocalLauncher())
    refresh(follower)
    assert follower.in_short.step == 3
    be_the_worker(run, os.getpid())
    append(run, to_line(RunStarted(time.time(), 1, "cpu", "float32", 2)) + step(3) + step(4))
    refresh(follower)
    assert [item.step for item in follower.in_short.steps] == [1, 2, 3, 4]


def test_events_that_changed_since_are_read_again(run: RunFolder) -> None:
    over(run)
    follower = Follower(run, LocalLauncher())
    refresh(follower)
    follower.read()
    append(run, step(4))
    again = Follower(run, LocalLauncher())
    refresh(again)
    assert again.in_short.step == 4


def test_the_error_of_a_log_is_its_last_traceback_and_not_the_progress_before_it(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text(
        "`use_cache` is set to False.\nTraceback (most recent call last):\n  File x\n    old\nOSError: old\n"
        "Traceback (most recent call last):\n  File y\n    line\nRuntimeError: a\nsecond line\n"
    )
    assert last_error(log) == "RuntimeError: a\nsecond line"
    log.write_text("loading\nsh: no such file\n")
    assert last_error(log) == "sh: no such file"
    assert last_error(tmp_path / "missing.log") == ""
