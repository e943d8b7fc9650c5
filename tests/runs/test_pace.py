"""How fast something goes, and the words for it in terminal and page."""

from lora_studio.cli.following import progress_line
from lora_studio.jobs.events import RunState
from lora_studio.runs.summary import Pace, pace, pace_of
from lora_studio.ui.words import speed_words


def test_speed_counts_what_was_done_since_this_start_alone() -> None:
    state = RunState(phase="answer", phase_started=10.0, last_event=14.0, phase_done=30, phase_total=50, step=10)
    assert pace_of(state, before=10) == Pace(5.0, 4.0)
    assert pace_of(RunState(phase="answer", phase_started=10.0, last_event=14.0, phase_total=50)) is None
    assert pace_of(RunState(phase="model")) is None


def test_a_moment_makes_no_speed_and_more_than_all_leaves_no_time() -> None:
    assert pace(10, 100, 0.2) is None
    assert pace(120, 100, 2.0) == Pace(60.0, 0.0)


def test_a_wait_says_how_fast_and_how_long_with_its_own_unit() -> None:
    state = RunState(phase_started=0.0, last_event=10.0, phase_done=40_000, phase_total=100_000, phase_unit="rows read")
    assert progress_line(state) == "40,000 of 100,000 rows read, 4,000 rows/s, 15 s left"
    assert speed_words(state) == "4,000 rows/s, 15 s left"
    state.phase_unit, state.phase_done, state.phase_total = "bytes", 10**9, 4 * 10**9
    assert progress_line(state) == "1,000.0 of 4,000.0 MB, 100.0 MB/s, 30 s left"
    assert speed_words(state) == "100 MB/s, 30 s left"
    state.phase_unit, state.phase_done, state.phase_total = "percent", 50, 100
    assert progress_line(state) == "50 of 100 percent, 10 s left"
    assert speed_words(state) == "10 s left"
