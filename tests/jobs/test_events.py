"""Events survive their line form, and a fold tells the story of a run."""

import math

from lora_studio.jobs.events import (
    CheckpointSaved,
    Evaluated,
    Extended,
    Finished,
    OtherRowsAccepted,
    PhaseStarted,
    Progress,
    QuestionsAnswered,
    QuestionsAsked,
    RunStarted,
    StepLogged,
    fold,
    from_line,
    to_line,
)


def step(number: int, loss: float = 1.0, time: float | None = None) -> StepLogged:
    return StepLogged(float(number) if time is None else time, number, 10, number / 10, loss, 1e-4)


def test_every_event_comes_back_from_its_line() -> None:
    events = [
        RunStarted(1.0, 42, "cpu", "float32"),
        PhaseStarted(2.0, "train", 10, "steps"),
        Progress(2.5, 3, 10),
        step(1),
        Evaluated(4.0, 1, 0.1, 0.9, {"token_accuracy": 0.5}),
        QuestionsAsked(4.1, ["Who?"], ["Ahab"], ["nan"], [False]),
        QuestionsAnswered(4.2, 1, 0.1, ["Ahab"], [True]),
        CheckpointSaved(5.0, 1, "checkpoint-1", 0.9),
        Extended(5.5, 2.0),
        OtherRowsAccepted(5.6),
        Finished(6.0, "done", 10),
    ]
    assert [from_line(to_line(event)) for event in events] == events


def test_a_loss_that_is_not_a_number_survives_the_line() -> None:
    event = from_line(to_line(step(1, math.nan)))
    assert isinstance(event, StepLogged)
    assert math.isnan(event.loss)


def test_torn_lines_and_unknown_events_are_passed_over() -> None:
    line = to_line(step(1))
    assert from_line(line[: len(line) // 2]) is None
    assert from_line('{"event": "FromTheFuture", "time": 1}') is None
    assert from_line("[1, 2]") is None
    assert from_line('{"event": "StepLogged", "time": 1}') is None


def test_an_event_with_a_field_of_a_newer_version_is_still_read() -> None:
    assert from_line('{"event": "Progress", "time": 1.0, "done": 1, "total": 2, "colour": "red"}') == Progress(
        1.0, 1, 2
    )


def test_a_new_state_is_queued_and_a_started_one_runs() -> None:
    assert fold([]).state == "queued"
    state = fold([RunStarted(1.0, 42, "cpu", "float32"), PhaseStarted(2.0, "data", 5, "rows"), Progress(3.0, 4, 5)])
    assert (state.state, state.phase, state.phase_done, state.phase_total) == ("running", "data", 4, 5)


def test_time_left_follows_the_speed_of_recent_steps() -> None:
    state = fold([RunStarted(0.0, 1, "cpu", "float32"), step(2, time=10.0), step(4, time=14.0)])
    assert state.seconds_left == 12.0


def test_the_start_is_the_time_for_libraries_data_and_model_without_downloads() -> None:
    phases = ("start", 0.0), ("data", 10.0), ("download", 12.0), ("model", 50.0), ("evaluate", 53.0), ("train", 60.0)
    first = [PhaseStarted(time, phase) for phase, time in phases]
    assert fold(first).start_seconds == 15.0
    again = [PhaseStarted(100.0, "start"), PhaseStarted(108.0, "model"), PhaseStarted(110.0, "train")]
    assert fold([*first, *again]).start_seconds == 10.0


def test_the_pause_before_a_resume_does_not_count_as_slowness() -> None:
    before = [RunStarted(0.0, 1, "cpu", "float32"), step(1, time=1.0), step(2, time=2.0), Finished(3.0, "stopped", 2)]
    resumed = RunStarted(1000.0, 2, "cpu", "float32", resumed_from_step=2)
    assert fold([*before, resumed, step(3, time=1001.0)]).seconds_left is None
    assert fold([*before, resumed, step(3, time=1001.0), step(4, time=1002.0)]).seconds_left == 6.0


def test_a_resumed_run_forgets_what_lies_behind_its_checkpoint() -> None:
    first = [RunStarted(0.0, 1, "cpu", "float32"), step(1), step(2), step(3), Finished(4.0, "stopped", 3)]
    state = fold([*first, RunStarted(5.0, 2, "cpu", "float32", resumed_from_step=2), step(3, loss=0.5)])
    assert [(item.step, item.loss) for item in state.steps] == [(1, 1.0), (2, 1.0), (3, 0.5)]
    assert state.state == "running"


def test_more_epochs_add_up_over_resumes() -> None:
    more = [Extended(5.0, 2.0), RunStarted(6.0, 2, "cpu", "float32", 3), PhaseStarted(7.0, "train", 20, "steps")]
    state = fold([RunStarted(0.0, 1, "cpu", "float32"), step(3), Finished(4.0, "done", 3), *more, Extended(8.0, 0.5)])
    assert (state.extra_epochs, state.total_steps, state.state) == (2.5, 20, "running")


def test_the_time_of_a_run_is_that_of_all_its_starts_without_the_pauses_between() -> None:
    first = [PhaseStarted(0.0, "start"), RunStarted(2.0, 1, "cpu", "float32"), step(1, time=9.0)]
    assert fold(first).seconds_at(9.0) == 9.0, "the libraries' loading is time that a person waits"
    stopped = [*first, Finished(10.0, "stopped", 1)]
    again = [PhaseStarted(100.0, "start"), RunStarted(103.0, 2, "cpu", "float32", 1), Finished(107.0, "done", 10)]
    assert fold([*stopped, *again]).seconds == 17.0
    assert fold([*stopped, Extended(90.0, 2.0), *again]).seconds == 17.0, "who asks for more epochs is no worker"
    assert fold([*first, *again]).seconds == 16.0, "a worker that vanished was seen last when it last said something"


def test_the_best_evaluation_is_the_one_with_the_lowest_loss() -> None:
    state = fold([Evaluated(1.0, 1, 0.1, 0.9), Evaluated(2.0, 2, 0.2, 0.4), Evaluated(3.0, 3, 0.3, 0.6)])
    assert state.best is not None
    assert state.best.step == 2
