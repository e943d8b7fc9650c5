"""Runs in words: durations, states, phases; nothing from a run is ever markup."""

import math
import time
from dataclasses import replace

import pytest

from lora_studio.jobs.events import Finished, PhaseStarted, Progress, RunStarted, RunState, StepLogged, fold
from lora_studio.ui import job_views
from lora_studio.ui import words as run_words

STARTED = RunStarted(100.0, 1, "cpu", "float32")
TRAINING = [
    STARTED,
    PhaseStarted(101.0, "train", 120, "steps"),
    StepLogged(110.0, 20, 120, 0.5, loss=1.5, learning_rate=1e-3, tokens_per_second=1234.4),
    StepLogged(120.0, 30, 120, 0.75, loss=1.25, learning_rate=1e-3, tokens_per_second=1000.4),
]


def run_of(*events: object, title: str = "Pirate") -> RunState:
    state = fold(events)
    state.id, state.title, state.created = "20260101-pirate-ab12", title, 90.0
    return state


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0.2, "0 s"),
        (42.4, "42 s"),
        (59.7, "1 min"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_times_that_pass_are_whole_seconds(seconds: float | None, words: str) -> None:
    assert run_words.clock(seconds) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.123456, "0.1235"),
        (0.00057031, "0.0005703"),
        (2.5e-5, "2.50e-05"),
        (12345.6, "12,346"),
        (math.nan, "not a number"),
    ],
)
def test_measured_numbers_are_short(value: float | None, words: str) -> None:
    assert run_words.figure(value) == words


def test_a_running_run_says_phase_and_counts() -> None:
    assert run_words.now_doing(run_of(*TRAINING)) == "Training: step 30 of 120."
    data = run_of(STARTED, PhaseStarted(101.0, "data", 0, "rows"), Progress(102.0, 300, 1000))
    assert run_words.now_doing(data) == "Preparing data: 300 of 1,000 rows, 300 rows/s, 2 s left."
    assert run_words.now_doing(run_of(STARTED, PhaseStarted(101.0, "model"))) == "Loading model."
    fetched = run_of(
        STARTED, PhaseStarted(101.0, "download", 2 * 10**9, "bytes"), Progress(111.0, 5 * 10**8, 2 * 10**9)
    )
    assert run_words.now_doing(fetched) == "Downloading model: 500 MB of 2.0 GB, 50 MB/s, 30 s left."


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (Finished(200.0, "done", 120), "Finished after 120 steps in 1 min 40 s."),
        (Finished(200.0, "stopped", 30), "Stopped at step 30 of 120."),
        (Finished(200.0, "failed", 30, "Out of memory."), "Failed while training."),
    ],
)
def test_an_ended_run_says_how_it_ended(end: Finished, words: str) -> None:
    assert run_words.now_doing(run_of(*TRAINING, end)) == words


def test_a_queued_run_waits_for_its_turn() -> None:
    assert run_words.now_doing(run_of()) == "Queued."


def test_the_status_line_tells_of_the_running_run_on_every_tab() -> None:
    line = run_words.status_line([run_of(*TRAINING), run_of()])
    assert "Pirate is training: step 30 of 120, 1 min 30 s left, 1 run queued" in line
    assert "No active run." in run_words.status_line([])
    assert "No active run; model loaded for chat." in run_words.status_line([], chat=True)
    assert "No active run, 2 runs queued." in run_words.status_line([run_of(), run_of()])


def test_progress_is_whole_only_when_the_run_is_done() -> None:
    assert run_words.share_done(run_of(*TRAINING)) == 0.25
    assert run_words.share_done(run_of()) == 0.0
    assert run_words.share_done(run_of(STARTED, Finished(200.0, "done", 1))) == 1.0


def test_a_title_is_shown_as_text_and_never_run() -> None:
    run = run_of(title="<img src=x onerror=alert(1)> ${1+1}")
    markup = run_words.status_line([run])
    assert "<img" not in markup
    assert "${" not in markup


def test_a_run_begun_again_counts_no_pause_and_promises_no_end_before_it_trains() -> None:
    ended = [*TRAINING, Finished(130.0, "stopped", 30)]
    again = run_of(*ended, PhaseStarted(500.0, "start"), RunStarted(505.0, 2, "cpu", "float32", 30))
    assert run_words.elapsed(again, 510.0) == 40.0
    assert "left" not in run_words.status_line([again])
    unheard = run_of(*ended)
    unheard.state, unheard.phase, unheard.phase_started = "running", "start", 500.0
    assert run_words.elapsed(unheard, 502.0) == 32.0


def test_a_worker_that_was_killed_before_it_told_anything_is_not_said_to_have_worked_no_time() -> None:
    killed = run_of(PhaseStarted(100.0, "start"))
    killed.state, killed.started, killed.seconds = "failed", 100.0, 0.0
    assert run_words.elapsed(killed, 150.0) is None
    assert ">Failed.<" in job_views.ended(killed)
    assert ">Failed.<" in job_views.ended(replace(killed, seconds=0.3)), "its last word is not its end"
    assert ">Failed after 12 s.<" in job_views.ended(replace(killed, seconds=12.0))
    assert ">Failed before the start.<" in job_views.ended(replace(killed, started=None))


def test_the_line_on_top_names_an_evaluation_that_goes_on() -> None:
    assert "No active run; evaluation running." in run_words.status_line([], evaluating=True)
    assert "model loaded for chat, evaluation running." in run_words.status_line([], chat=True, evaluating=True)
    assert "No active run; export running." in run_words.status_line([], exporting=True)


def test_a_time_to_come_is_a_date_and_not_just_now() -> None:
    now = 1_800_000_000.0
    assert [run_words.ago(now - passed, now) for passed in (-30, 30, 120, 7200)] == [
        "just now",
        "just now",
        "2 min ago",
        "2 h ago",
    ]
    ahead = now + 2 * 86_400
    assert run_words.ago(ahead, now) == time.strftime("%d %b %H:%M", time.localtime(ahead))
