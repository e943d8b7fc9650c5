"""What the chart is given of runs: panels, lines, axes, and how much of it."""

import json
import math
from dataclasses import replace
from statistics import median
from typing import Any

import pytest

from lora_studio.jobs.events import Evaluated, Event, Finished, PhaseStarted, RunStarted, RunState, StepLogged, fold
from lora_studio.ui.curves import Curves, Line, Panel, Style, drawing, title_of
from tests.cpu_time import CpuTime

PLAIN = Style(smoothing=0)
STEPS: list[Event] = [
    RunStarted(1.0, 1, "cpu", "float32"),
    PhaseStarted(1.0, "train", 4, "steps"),
    StepLogged(2.0, 1, 4, 0.5, loss=2.0, learning_rate=1e-3),
    Evaluated(3.0, 1, 0.5, loss=1.5, metrics={"accuracy": 0.25}),
    StepLogged(4.0, 2, 4, 1.0, loss=math.nan, learning_rate=1e-4, grad_norm=0.5, metrics={"rewards/margins": 1.5}),
    Evaluated(5.0, 2, 1.0, loss=1.75, metrics={"accuracy": 0.5}),
]


def run_of(events: list[Event], id: str = "run") -> RunState:
    state = fold(events)
    state.id, state.title = id, id
    return state


def long_run(steps: int, id: str = "long") -> RunState:
    """A run with everything that is measured, at every step."""
    points = [
        StepLogged(
            float(step),
            step,
            steps,
            step / 1000,
            loss=2 + math.sin(step * 0.7123) / 3,
            learning_rate=1e-3 * (1 - step / (steps + 1)),
            grad_norm=1.1234567 + math.sin(step),
            token_accuracy=0.5 + math.cos(step) / 9,
            tokens=step * 100,
            tokens_per_second=1234.567 + step % 7,
            memory_bytes=10**9 + step * 10_001,
            entropy=1 + math.sin(step) / 7,
        )
        for step in range(1, steps + 1)
    ]
    measured = [Evaluated(float(step), step, step / 1000, 1.9 - step / steps, {}) for step in range(500, steps, 500)]
    state = run_of([RunStarted(0.0, 1, "cpu", "float32")], id)
    state.steps, state.evaluations = points, measured
    return state


def lines(drawn: dict[str, Any], title: str) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for panel in drawn["panels"] if panel["title"] == title for line in panel["lines"]}


def size(drawn: dict[str, Any]) -> int:
    return len(json.dumps(drawn, separators=(",", ":")))


def test_the_curves_of_a_run_are_json_and_name_the_best_evaluation() -> None:
    drawn = Curves().draw({"run": run_of(STEPS)}, PLAIN)
    assert "NaN" not in json.dumps(drawn)
    loss = lines(drawn, "Loss")
    assert (loss["training"]["x"], loss["training"]["y"]) == ([1, 2], [2.0, None])
    assert (loss["validation"]["x"], loss["validation"]["y"]) == ([1, 2], [1.5, 1.75])
    assert (loss["best (step 1)"]["x"], loss["best (step 1)"]["y"]) == ([1], [1.5])
    assert lines(drawn, "Gradient norm")["training"]["y"] == [None, 0.5]
    assert drawn["panels"][0]["main"]


def test_what_a_method_measures_beyond_the_loss_has_a_panel_of_its_own() -> None:
    drawn = Curves().draw({"run": run_of(STEPS)}, PLAIN)
    assert lines(drawn, "Accuracy")["validation"]["y"] == [0.25, 0.5]
    assert lines(drawn, "Rewards: margins")["training"] | {"color_index": 0} == {
        "name": "training",
        "group": "training",
        "x": [2],
        "y": [1.5],
        "color_index": 0,
        "kind": "line",
    }
    assert title_of("f1") == "F1"


def test_what_was_never_measured_has_no_panel() -> None:
    titles = [panel["title"] for panel in Curves().draw({"run": run_of(STEPS)}, Style(everything=True))["panels"]]
    assert "Token accuracy" not in titles
    assert "Memory" not in titles


def test_a_run_without_steps_has_an_empty_main_panel() -> None:
    assert Curves().draw({"run": run_of([])})["panels"] == [
        {"title": "Loss", "unit": "nats/token", "log": False, "main": True, "lines": []}
    ]


def test_smoothing_leaves_the_raw_line_pale_behind_and_the_learning_rate_alone() -> None:
    drawn = Curves().draw({"run": long_run(200)}, Style(smoothing=0.9))
    loss = list(lines(drawn, "Loss").values())
    assert [(line["name"], line["kind"]) for line in loss[:2]] == [
        ("training, raw", "pale"),
        ("training", "line"),
    ]
    assert max(loss[1]["y"][50:]) < max(loss[0]["y"][50:])
    assert list(lines(drawn, "Learning rate")) == ["training"]


def test_only_panels_where_it_makes_sense_become_logarithmic() -> None:
    drawn = Curves().draw({"run": long_run(50)}, Style(scale="log"))
    assert {panel["title"]: panel["log"] for panel in drawn["panels"]} == {
        "Loss": True,
        "Token accuracy": False,
        "Learning rate": True,
        "Gradient norm": True,
    }


def test_a_loss_that_falls_by_two_decades_is_logarithmic_by_itself() -> None:
    def log_of(losses: list[float], scale: str = "auto") -> bool:
        steps: list[Event] = [StepLogged(float(at), at, 9, 0.1, loss, 1e-3) for at, loss in enumerate(losses, 1)]
        return Curves().draw({"run": run_of(steps)}, Style(scale=scale))["panels"][0]["log"]

    assert log_of([5.0, 1.0, 0.049])
    assert not log_of([5.0, 1.0, 0.051])
    assert not log_of([5.0, 1.0, 0.0])  # a logarithmic axis has no place for it
    assert not log_of([5.0, 0.01], "linear")


def test_panels_name_their_units() -> None:
    drawn = Curves().draw({"run": long_run(50)}, Style(everything=True))
    units = {panel["title"]: panel["unit"] for panel in drawn["panels"]}
    assert (units["Loss"], units["Speed"], units["Memory"]) == ("nats/token", "tokens/s", "GiB")
    assert units["Token accuracy"] == "%"


def test_the_axis_is_steps_epochs_or_time_in_a_unit_that_suits() -> None:
    curves, run = Curves(), long_run(600)
    assert curves.draw({"run": run}, Style("epoch", 0))["panels"][0]["lines"][0]["x"][1] == 0.002
    by_time = curves.draw({"run": run}, Style("time", 0))
    assert by_time["across"] == "minutes"
    assert by_time["panels"][0]["lines"][0]["x"][-1] == 10.0
    assert by_time["key"] != curves.draw({"run": run}, PLAIN)["key"]


def test_the_pause_before_a_resume_is_not_on_the_time_axis() -> None:
    events = [
        *STEPS,
        Finished(6.0, "stopped", 2),
        PhaseStarted(1006.0, "start"),
        RunStarted(1007.0, 2, "cpu", "float32", resumed_from_step=2),
        StepLogged(1010.0, 3, 4, 1.5, loss=1.0, learning_rate=1e-4),
    ]
    drawn = Curves().draw({"run": run_of(events)}, Style("time", 0))
    assert lines(drawn, "Loss")["training"]["x"] == [1.0, 3.0, 9.0]


def test_steps_that_a_resumed_run_makes_anew_replace_the_old_ones() -> None:
    curves = Curves()
    more = [StepLogged(float(step), step, 9, step / 9, loss=5.0, learning_rate=1e-4) for step in range(3, 8)]
    curves.draw({"run": run_of([*STEPS, *more])}, PLAIN)
    resumed = RunStarted(20.0, 2, "cpu", "float32", resumed_from_step=2)
    anew = [replace(step, loss=4.0) for step in more]
    drawn = curves.draw({"run": run_of([*STEPS, *more, resumed, *anew])}, PLAIN)
    assert lines(drawn, "Loss")["training"]["y"] == [2.0, None, 4.0, 4.0, 4.0, 4.0, 4.0]


def test_several_runs_lie_over_each_other_each_in_its_colour_and_under_its_name() -> None:
    runs = {"pirate": long_run(100, "a"), "robot": long_run(80, "b")}
    runs["robot"].evaluations = [Evaluated(5.0, 50, 0.05, 1.0)]
    loss = lines(Curves().draw(runs, PLAIN), "Loss")
    assert {name: line["color_index"] for name, line in loss.items()} == {
        "pirate": 1,
        "robot": 2,
        "robot, validation": 2,
        "robot, best": 2,
    }


def test_a_run_that_ended_before_its_first_step_promises_no_curves() -> None:
    started = [RunStarted(1.0, 1, "cpu", "float32")]
    assert Curves().draw({"run": run_of(started)})["empty"] == "Curves appear with the first step."
    assert (
        Curves().draw({"run": run_of([*started, Finished(2.0, "failed", 0)])})["empty"]
        == "Ended before the first step."
    )


def test_lines_of_ones_own_are_drawn_as_they_are_given() -> None:
    drawn = drawing("own", [Panel("Loss", [Line("adapter", [1, 2], [0.5, None])], main=True)])
    assert drawn["panels"][0]["lines"] == [
        {"name": "adapter", "group": "adapter", "x": [1, 2], "y": [0.5, None], "color_index": 1, "kind": "line"}
    ]


@pytest.mark.slow
def test_drawings_of_a_hundred_thousand_steps_stay_under_fifty_kilobytes() -> None:
    curves, run, fifth = Curves(), long_run(100_000), long_run(20_000)
    for axis in ("step", "epoch", "time"):
        assert size(curves.draw({"run": run}, Style(axis, 0.6, everything=True))) < 50_000
    many = {f"a run with quite a long name {number}": replace(fifth, id=str(number)) for number in range(5)}
    assert size(curves.draw(many, Style("time", 0.6, everything=True))) < 50_000


@pytest.mark.slow
def test_a_look_at_a_hundred_thousand_steps_costs_what_is_new() -> None:
    curves, run = Curves(), long_run(100_000)
    run.steps[54_321] = replace(run.steps[54_321], loss=99.0)
    steps, run.steps = run.steps, []
    costs = []
    for end in range(0, 100_001, 2500):
        run.steps = steps[:end]
        with CpuTime() as spent:
            drawn = curves.draw({"run": run}, Style(everything=True))
        costs.append(spent.seconds)
    assert median(costs[-10:]) < 2 * median(costs[1:11])
    assert median(costs) < 0.5
    assert max(lines(drawn, "Loss")["training, raw"]["y"]) == 99.0
    assert curves.draw({"run": run}, Style(everything=True)) == drawn
