"""When a run has waited long enough for a gain."""

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from lora_studio.engine.train.callbacks import EarlyStopping, evaluations_without_gain, value_of
from lora_studio.jobs.events import Evaluated


@pytest.mark.parametrize(
    ("values", "rising", "threshold", "waited"),
    [
        ([], False, 0.0, 0),
        ([2.0], False, 0.0, 0),
        ([2.0, 1.0, 0.5], False, 0.0, 0),
        ([2.0, 1.0, 1.0, 1.5], False, 0.0, 2),
        ([2.0, 1.0, 1.5, 0.9], False, 0.0, 0),
        ([2.0, 1.95, 1.91], False, 0.1, 2),
        ([0.5, 0.7, 0.6], True, 0.0, 1),
        ([0.5, 0.4, 0.6], True, 0.0, 0),
    ],
)
def test_evaluations_without_gain_are_counted_from_the_best_so_far(
    values: list[float], rising: bool, threshold: float, waited: int
) -> None:
    assert evaluations_without_gain(values, rising=rising, threshold=threshold) == waited


def ended(stopping: EarlyStopping, values: list[float], tmp_path: object) -> list[bool]:
    state, control = TrainerState(global_step=4, max_steps=9), TrainerControl()
    arguments = TrainingArguments(str(tmp_path))
    found = []
    for value in values:
        stopping.on_evaluate(arguments, state, control, metrics={"eval_loss": 1.0, "eval_f1": value})
        found.append(control.should_training_stop)
    return found


def test_a_run_ends_after_its_patience_and_says_why(tmp_path: object) -> None:
    stopping = EarlyStopping("f1", 2, 0.01, [])
    assert stopping.words == ""
    assert ended(stopping, [0.5, 0.6, 0.605, 0.4], tmp_path) == [False, False, False, True]
    assert stopping.words == "Stopped early at step 4: F1 has not increased by more than 0.01 for 2 evaluations."


def test_a_resumed_run_remembers_how_long_it_has_waited(tmp_path: object) -> None:
    assert ended(EarlyStopping("f1", 2, 0.0, [0.9, 0.8]), [0.7], tmp_path) == [True]


def test_a_measure_is_found_in_an_evaluation_by_its_name() -> None:
    evaluation = Evaluated(0.0, 1, 0.1, 0.5, {"f1": 0.8})
    assert (value_of(evaluation, "loss"), value_of(evaluation, "f1")) == (0.5, 0.8)
