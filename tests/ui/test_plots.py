"""What the chart is given: thinned curves that keep their spikes."""

import json
import math

from lora_studio.events import Evaluated, PhaseStarted, RunStarted, StepLogged, fold
from lora_studio.ui import plots


def test_a_short_curve_is_left_as_it_is() -> None:
    assert plots.downsample([1, 2, 3], [5.0, 4.0, 3.0]) == ([1, 2, 3], [5.0, 4.0, 3.0])


def test_a_single_spike_up_or_down_survives_thinning() -> None:
    ys: list[float | None] = [1.0] * 100_000
    ys[54_321], ys[77_777] = 99.0, -99.0
    xs, thin = plots.downsample(range(100_000), ys)
    assert len(thin) <= plots.MOST_POINTS
    assert dict(zip(xs, thin, strict=True))[54_321] == 99.0
    assert dict(zip(xs, thin, strict=True))[77_777] == -99.0


def test_first_and_last_point_stay_and_steps_rise() -> None:
    xs, _ = plots.downsample(range(10, 50_010), [math.sin(i / 50) for i in range(50_000)])
    assert (xs[0], xs[-1]) == (10, 50_009)
    assert xs == sorted(set(xs))


def test_values_that_are_no_numbers_become_gaps() -> None:
    _, ys = plots.downsample([1, 2, 3, 4], [1.0, math.nan, math.inf, None])
    assert ys == [1.0, None, None, None]
    _, thin = plots.downsample(range(10_000), [math.nan] * 10_000)
    assert set(thin) == {None}
    assert len(thin) <= plots.MOST_POINTS


def test_the_curves_of_a_run_are_json_and_name_the_best_evaluation() -> None:
    run = fold(
        [
            RunStarted(1.0, 1, "cpu", "float32"),
            PhaseStarted(1.0, "train", 4, "steps"),
            StepLogged(2.0, 1, 4, 0.5, loss=2.0, learning_rate=1e-3),
            Evaluated(3.0, 1, 0.5, loss=1.5),
            StepLogged(4.0, 2, 4, 1.0, loss=math.nan, learning_rate=1e-4, grad_norm=0.5),
            Evaluated(5.0, 2, 1.0, loss=1.75),
        ]
    )
    curves = plots.curves(run)
    assert "NaN" not in json.dumps(curves)
    assert curves["loss"] == {"x": [1, 2], "y": [2.0, None]}
    assert curves["norm"]["y"] == [None, 0.5]
    assert curves["best"] == {"x": [1], "y": [1.5]}


def test_a_run_without_steps_has_empty_curves() -> None:
    assert plots.curves(fold([]))["loss"] == {"x": [], "y": []}
