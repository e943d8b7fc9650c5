"""Measurements as CSV."""

import csv
import io

from lora_studio.jobs.events import Evaluated, RunState, StepLogged
from lora_studio.runs.summary import cell, to_csv


def read(run: RunState) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(run))))


def test_steps_and_evaluations_stand_in_the_order_of_steps() -> None:
    run = RunState(
        steps=[StepLogged(1.0, step, 3, step / 3, loss=3.0 - step, learning_rate=1e-3) for step in (1, 2, 3)],
        evaluations=[Evaluated(2.0, 2, 0.5, 1.5, {"token_accuracy": 0.25, "f1": 0.5})],
    )
    rows = read(run)
    assert [(row["kind"], row["step"]) for row in rows] == [
        ("step", "1"),
        ("step", "2"),
        ("evaluation", "2"),
        ("step", "3"),
    ]
    assert rows[0]["loss"] == "2.0"
    assert (rows[2]["loss"], rows[2]["token_accuracy"], rows[2]["f1"]) == ("1.5", "0.25", "0.5")
    assert rows[0]["f1"] == ""


def test_a_run_that_measured_nothing_is_a_head_alone() -> None:
    assert to_csv(RunState()) == "kind,step,epoch,loss\n"


def test_a_loss_that_is_no_number_is_written_as_such() -> None:
    run = RunState(steps=[StepLogged(1.0, 1, 1, 1.0, loss=float("nan"), learning_rate=1e-3)])
    assert read(run)[0]["loss"] == "nan"


def test_no_cell_and_no_column_is_taken_for_a_formula() -> None:
    assert [cell(text) for text in ("=1+1", "+1", "-1", "@x", "\t=1", "plain")] == [
        "'=1+1",
        "'+1",
        "'-1",
        "'@x",
        "'\t=1",
        "plain",
    ]
    assert cell(-1.5) == -1.5
    run = RunState(evaluations=[Evaluated(1.0, 1, 1.0, 1.0, {'=HYPERLINK("x")': 1.0})])
    assert "'=HYPERLINK" in to_csv(run)
