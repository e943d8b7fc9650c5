"""The event log knows what it wrote: its state is that of its file, which a start reads once."""

import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lora_studio.engine.runtime import EventLog
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


class Reads:
    """Counts how often this process opens a file in order to read it."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = str(path), 0
        sys.addaudithook(self._hear)

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open" and str(given[0]) == self.path and str(given[1]).startswith("r"):
            self.count += 1


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
    reads = Reads(path)
    log = EventLog(path)
    for event in EVENTS[4:]:
        log.emit(event)
        assert log.state().last_event == event.time
    assert reads.count == 1
    assert log.state() == read_state(path)
    assert log.state().events == len(EVENTS) - 2  # without the one that it was torn from, and one never written


def test_events_that_are_not_there_yet_are_those_of_a_queued_run(tmp_path: Path) -> None:
    assert read_state(tmp_path / "events.jsonl").state == "queued"


@pytest.mark.slow
def test_a_worker_reads_its_own_events_once_a_start(make_run: MakeRun) -> None:
    run = make_run(training__max_steps=2)
    run.events.write_text(to_line(Warned(time.time(), "said before")), encoding="utf-8")
    reads = Reads(run.events)
    assert run_worker(run) == 0
    assert reads.count == 1
    state = read_state(run.events)
    assert (state.state, state.warnings[0]) == ("done", "said before")
