"""The event log knows what it wrote: its state is that of its file, which a start reads once."""

import errno
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from lora_studio.engine.runtime import WRITE_SECONDS, EventLog
from lora_studio.engine.train.callbacks import TensorBoard
from lora_studio.jobs.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    Extended,
    Finished,
    PhaseStarted,
    Progress,
    RunStarted,
    StepLogged,
    Warned,
    read_state,
    to_line,
)
from tests.engine.conftest import MakeRun, run_worker
from tests.opened import opened_files

EVENTS: list[Event] = [
    PhaseStarted(1.0, "start"),
    RunStarted(2.0, 42, "cpu", "float32"),
    Warned(2.5, "a line\u2028of its own, half a character \ud800 and \x85"),
    PhaseStarted(3.0, "train", 4, "steps"),
    StepLogged(4.0, 1, 4, 0.25, 1.5, 1e-4),
    StepLogged(5.0, 2, 4, 0.5, math.inf, 1e-4),
    Evaluated(6.0, 2, 0.5, 0.9, {"accuracy": 0.5}),
    CheckpointSaved(6.5, 2, "checkpoint-2"),
    Progress(7.0, 2, 4),
    Finished(8.0, "stopped", 2),
    Extended(9.0, 1.0),
    RunStarted(10.0, 43, "cpu", "float32", resumed_from_step=2),
]


def reads(opened: list[tuple[str, str]], path: Path) -> int:
    """How often that file was opened in order to read it."""
    return sum(file == str(path) and mode.startswith("r") for file, mode in opened)


def test_the_state_is_that_of_the_file_after_every_event(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for event in EVENTS:
        log.emit(event)
        assert log.state() == read_state(log.path)
    assert log.state().events == len(EVENTS)
    assert [step.loss for step in log.state().steps] == [1.5, math.inf]
    assert log.state().warnings == ["a line\u2028of its own, half a character ? and \x85"]


def test_a_log_goes_on_with_what_an_earlier_worker_wrote_and_reads_it_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("".join(map(to_line, EVENTS[:2])) + to_line(EVENTS[3])[:20], encoding="utf-8")
    with opened_files() as opened:
        log = EventLog(path)
        for event in EVENTS[4:]:
            log.emit(event)
            assert log.state().last_event == event.time
    assert reads(opened, path) == 1
    assert log.state() == read_state(path)
    assert log.state().events == len(EVENTS) - 2  # without the one that it was torn from, and one never written


def test_events_that_are_not_there_yet_are_those_of_a_queued_run(tmp_path: Path) -> None:
    assert read_state(tmp_path / "events.jsonl").state == "queued"


class Disk:
    """A log's file that counts writes by thread; `free` bytes fit on the disk."""

    def __init__(self, log: EventLog) -> None:
        self.file: Any = log._file
        self.threads: list[int] = []
        self.free = math.inf
        log._file = self  # type: ignore[assignment]

    def write(self, content: bytes) -> int:
        self.threads.append(threading.get_ident())
        fits = content[: len(content) if self.free == math.inf else int(self.free)]
        if content and not fits:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.free -= len(fits)
        return int(self.file.write(fits))


def point(step: int) -> StepLogged:
    return StepLogged(float(step), step, 100, step / 100, 1.0 / step, 1e-4, metrics={"reward": 0.5})


@pytest.mark.slow
def test_points_that_come_fast_are_written_together_and_not_by_the_thread_that_trains(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    disk = Disk(log)
    for step in range(1, 101):
        log.emit(point(step))
        log.progress(step, 200)
    assert disk.threads == []
    time.sleep(2 * WRITE_SECONDS)
    assert 1 <= len(disk.threads) <= 2
    assert threading.get_ident() not in disk.threads
    assert [step.step for step in read_state(log.path).steps] == list(range(1, 101))
    log.emit(point(101))
    log.emit(Warned(102.0, "the point before is in the file"))
    assert read_state(log.path) == log.state()
    assert log.path.read_text().splitlines()[-2:] == [
        to_line(e).strip() for e in (point(101), Warned(102.0, "the point before is in the file"))
    ]


@pytest.mark.slow
def test_a_killed_process_loses_no_more_than_a_second_of_points(tmp_path: Path) -> None:
    program = (
        "import os, sys, time; from pathlib import Path; from lora_studio.engine.runtime import EventLog\n"
        "from lora_studio.jobs.events import StepLogged; log = EventLog(Path(sys.argv[1])); begun = time.time()\n"
        "while time.time() < begun + 1.5: log.emit(StepLogged(time.time(), 1, 9, 0.1, 1.0, 1e-4)); time.sleep(0.01)\n"
        "print(time.time(), flush=True); os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "events.jsonl"
    ended = subprocess.run([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, check=False)
    assert ended.returncode == -9
    last = read_state(path).last_event
    assert last is not None
    assert float(ended.stdout) - last < 1


@pytest.mark.slow
def test_a_full_disk_ends_the_work_and_loses_no_event_once_there_is_room(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    disk = Disk(log)
    disk.free = 30
    log.emit(point(1))
    time.sleep(2 * WRITE_SECONDS)  # the thread that writes meets the full disk
    with pytest.raises(OSError, match="No space"):
        log.emit(point(2))
    disk.free = math.inf
    log.emit(Finished(3.0, "failed"))
    assert log.path.read_text() == "".join([to_line(point(1)), to_line(point(2)), to_line(Finished(3.0, "failed"))])
    assert read_state(log.path) == log.state()


def test_tensorboard_gets_the_values_of_transformers_callback_in_one_record_a_point(tmp_path: Path) -> None:
    logs = {"loss": 1.25, "learning_rate": 1e-4, "epoch": 0.5, "num_tokens": 100}
    args, state = TrainingArguments(str(tmp_path / "trainer"), report_to="none"), TrainerState(global_step=3)
    tags, records = [], []
    for kind in (TensorBoardCallback, TensorBoard):
        callback = kind()
        callback.logging_dir = str(tmp_path / kind.__name__)
        callback.on_train_begin(args, state, TrainerControl())
        for values in (logs, {"eval_loss": 2.0, "epoch": 0.5}):
            callback.on_log(args, state, TrainerControl(), logs=values)
        callback.on_train_end(args, state, TrainerControl())
        (file,) = (tmp_path / kind.__name__).iterdir()
        events = [event for event in EventFileLoader(str(file)).Load() if event.step == 3]
        records.append(len(events))
        tags.append({(value.tag, value.tensor.float_val[0]) for event in events for value in event.summary.value})
    assert tags[0] == tags[1]
    assert len(tags[0]) == 5
    assert records == [6, 3]


@pytest.mark.slow
def test_a_worker_reads_its_own_events_once_a_start(make_run: MakeRun) -> None:
    run = make_run(training__max_steps=2)
    run.events.write_text(to_line(Warned(time.time(), "said before")), encoding="utf-8")
    with opened_files() as opened:
        assert run_worker(run) == 0
    assert reads(opened, run.events) == 1
    state = read_state(run.events)
    assert (state.state, state.warnings[0]) == ("done", "said before")
