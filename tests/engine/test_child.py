"""How a child ends: a stop is a stop, whatever a library made of it while it was loading."""

import os
import signal
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from lora_studio.engine.runtime import FAILED, STOPPED, Ending, Explained, Stopped, StopSignal, ending_of, repeating
from lora_studio.jobs.events import Reason
from tests.engine.conftest import MakeRun, events, run_worker


def loads_badly(*_: Any, **__: Any) -> None:
    """A library in the middle of its import when the stop comes: it swallows it and is broken from then on."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except Stopped:
        raise ModuleNotFoundError("Could not import module") from None


def explain(error: Exception) -> Explained:
    return Explained(Reason.INTERNAL_ERROR, str(error), "the log")


def test_an_error_that_a_stop_caused_is_a_stop() -> None:
    stop, before = StopSignal(), signal.getsignal(signal.SIGTERM)
    stop.listen()
    try:
        ended = ending_of(loads_badly, stop, explain=explain)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == Ending(STOPPED, "stopped", Reason.STOPPED)


def test_an_error_without_a_stop_is_an_error() -> None:
    def fail() -> None:
        raise ValueError("broken")

    assert ending_of(fail, StopSignal(), explain=explain) == Ending(
        FAILED, "failed", Reason.INTERNAL_ERROR, "broken", "the log"
    )


def test_a_run_that_is_stopped_while_its_libraries_load_was_stopped(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lora_studio.engine.train.program", SimpleNamespace(train=loads_badly))
    run = make_run()
    assert run_worker(run) == STOPPED
    assert events(run)[-1].state == "stopped"


def test_a_repeated_action_goes_on_until_the_work_is_done() -> None:
    times = list[float]()
    with repeating(lambda: times.append(time.monotonic()), 0.005):
        end = time.monotonic() + 200
        while len(times) < 3 and time.monotonic() < end:
            time.sleep(0.005)
    repeated = len(times)
    time.sleep(0.05)
    assert len(times) == repeated >= 3
