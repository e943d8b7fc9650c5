"""The loss curve of a run as a picture that stands in a file of its own: inline SVG, drawn from the run's points."""

import math
from collections.abc import Iterable, Sequence

from lora_studio.jobs.events import RunState
from lora_studio.ui.curves import downsample, spans_decades
from lora_studio.ui.html import Html, render

WIDTH, HEIGHT = 720, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 40
Point = tuple[float, float]


def loss_svg(run: RunState) -> Html:
    """Training and validation loss by step, with axes; a sentence if there is nothing to draw."""
    training = _finite([(item.step, item.loss) for item in run.steps])
    validation = _finite([(item.step, item.loss) for item in run.evaluations])
    points = training + validation
    if not points:
        return render("report.no_curve")
    losses = [loss for _, loss in points]
    logarithmic = spans_decades(losses)
    low, high = (min(losses), max(losses)) if logarithmic else (min(0.0, *losses), max(losses))
    last = max(1.0, *(step for step, _ in points))

    def place(point: Point) -> Point:
        return LEFT + point[0] / last * (WIDTH - LEFT - RIGHT), _height(point[1], low, high, logarithmic)

    marks = decades(low, high) if logarithmic else ticks(low, high)
    up = [(_height(mark, low, high, logarithmic), f"{mark:g}") for mark in marks]
    across = [(place((mark, high))[0], f"{mark:,.0f}") for mark in ticks(0, last)]
    thinned = downsample([step for step, _ in training], [loss for _, loss in training])
    line = [(x, y) for x, y in zip(*thinned, strict=True) if y is not None]
    return render("report.curve", _path(map(place, line)), list(map(place, validation)), up, across)


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(step, loss) for step, loss in points if math.isfinite(loss)]


def _height(loss: float, low: float, high: float, logarithmic: bool) -> float:
    """Where a loss stands, in pixels from the top."""
    if logarithmic:
        loss, low, high = math.log10(loss), math.log10(low), math.log10(high)
    share = (loss - low) / (high - low) if high > low else 0.5
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _path(points: Iterable[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]


def decades(low: float, high: float) -> list[float]:
    """The powers of ten between two positive numbers."""
    return [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
