"""Charts beside the curves of runs: values against a setting or a step, and the lengths of a data set's rows.

Values (the runs of a group, the sweep of a rate finder, the losses of a report) are a picture in inline SVG, without a
script and light or dark as the page is. Of lengths the browser keeps one chart and gets new numbers, so what is zoomed
stays.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import gradio as gr

from lora_studio.jobs.events import RunState
from lora_studio.ui import theme
from lora_studio.ui.curves import downsample, spans_decades
from lora_studio.ui.html import Html, number, render
from lora_studio.ui.words import unit_of_loss
from lora_studio.units import count, figure, float_text

WIDTH, HEIGHT = 100, 260
"""Of a picture: its width is that of its place on the page, in percent, and its height in pixels, so that words and
lines keep their size wherever it stands."""
TOP, BOTTOM = 16, 44
Place = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Dot:
    """A point with what its tooltip says; `color_index` numbers the colour from 1, `best` draws a star."""

    x: float
    y: float
    words: str
    color_index: int = 1
    best: bool = False


@dataclass(frozen=True, slots=True)
class Series:
    """Points that a line joins, in the order of their x; `pale` for what is behind another line."""

    name: str
    points: Sequence[tuple[float, float]]
    color_index: int = 1
    pale: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """What stands under or beside the picture. `names` are the values of an axis without numbers: x counts them."""

    title: str
    logarithmic: bool = False
    names: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at a value of x, with its label."""

    x: float
    label: str


def picture(
    across: Axis,
    up: Axis,
    *,
    dots: Sequence[Dot] = (),
    lines: Sequence[Series] = (),
    marks: Sequence[Mark] = (),
) -> Html:
    """The picture; points that are not finite, or not positive on a logarithmic axis, are left out."""
    points = [(dot.x, dot.y) for dot in dots] + [point for line in lines for point in line.points]
    points = [point for point in points if _fits(point, across, up)]
    if not points:
        return render("runs.no_plot")
    xs = [*(x for x, _ in points), *(mark.x for mark in marks)]
    low_x, high_x = (-0.5, len(across.names) - 0.5) if across.names else _padded(min(xs), max(xs), across.logarithmic)
    ys = [y for _, y in points]
    low_y, high_y = _padded(min(ys), max(ys), up.logarithmic)
    place_x = _scale(low_x, high_x, 0, WIDTH, logarithmic=across.logarithmic)
    place_y = _scale(low_y, high_y, HEIGHT - BOTTOM, TOP, logarithmic=up.logarithmic)
    names = [(place_x(float(number)), name) for number, name in enumerate(across.names)]
    return render(
        "runs.plot",
        f"{up.title} against {across.title}",
        [(place_y(value), label) for value, label in _labels(low_y, high_y, up.logarithmic)],
        names or [(place_x(value), label) for value, label in _labels(low_x, high_x, across.logarithmic)],
        (f"{across.title}, log scale" if across.logarithmic else across.title, up.title),
        [(line, _path(line.points, across, up, place_x, place_y)) for line in lines],
        [(dot, place_x(dot.x), place_y(dot.y)) for dot in dots if _fits((dot.x, dot.y), across, up)],
        [(mark.label, place_x(mark.x), place_x(mark.x) > WIDTH * 0.6) for mark in marks],
    )


def wants_logarithm(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows values of a setting better: they span a decade, and all are above 0."""
    return bool(values) and min(values) > 0 and max(values) >= 10 * min(values)


def losses_axis(title: str, values: Sequence[float]) -> Axis:
    """The axis of losses: logarithmic where they span two decades."""
    return Axis(title, spans_decades(values))


def _fits(point: tuple[float, float], across: Axis, up: Axis) -> bool:
    pairs = ((point[0], across), (point[1], up))
    return all(math.isfinite(value) and (value > 0 or not axis.logarithmic) for value, axis in pairs)


def _padded(low: float, high: float, logarithmic: bool) -> tuple[float, float]:
    """A little more than from the lowest to the highest, so that no point lies on the edge."""
    if logarithmic:
        pad = max((math.log10(high) - math.log10(low)) * 0.05, 0.05)
        return 10 ** (math.log10(low) - pad), 10 ** (math.log10(high) + pad)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def _scale(low: float, high: float, start: float, end: float, *, logarithmic: bool) -> Place:
    if logarithmic:
        first, last = math.log10(low), math.log10(high)
        return lambda value: start + (math.log10(value) - first) / (last - first) * (end - start)
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _labels(low: float, high: float, logarithmic: bool) -> list[tuple[float, str]]:
    if not logarithmic:
        return [(value, figure(value)) for value in ticks(low, high)]
    powers = decades(low, high)
    if len(powers) < 2:  # within a decade: 1, 2 and 5 times a power of ten
        first = math.floor(math.log10(low))
        powers = [part * 10.0**power for power in range(first, first + 3) for part in (1, 2, 5)]
        powers = [value for value in powers if low <= value <= high]
    return [(value, float_text(float(f"{value:.3g}"))) for value in powers]


def _path(points: Sequence[tuple[float, float]], across: Axis, up: Axis, place_x: Place, place_y: Place) -> str:
    return " ".join(f"{place_x(x):.2f},{place_y(y):.1f}" for x, y in points if _fits((x, y), across, up))


def loss_picture(run: RunState) -> Html:
    """Training and validation loss of a run by step; a sentence if nothing was logged."""
    training, validation = ([(item.step, item.loss) for item in items] for items in (run.steps, run.evaluations))
    losses = [loss for _, loss in training + validation if math.isfinite(loss)]
    if not losses:
        return render("report.no_curve")
    thinned = zip(*downsample([step for step, _ in training], [loss for _, loss in training]), strict=True)
    lines = [
        Series("training", [(step, loss) for step, loss in thinned if loss is not None]),
        Series("validation", validation, 2),
    ]
    dots = [Dot(step, loss, f"step {step:,}: {figure(loss)}", 2) for step, loss in validation]
    up = losses_axis(f"Loss, {unit_of_loss(run.steps[-1] if run.steps else None)}", losses)
    return picture(Axis("step"), up, dots=dots, lines=lines)


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]


def decades(low: float, high: float) -> list[float]:
    """The powers of ten between two positive numbers."""
    return [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]


PERCENTILES = (("p50", "50 %"), ("p95", "95 %"), ("p99", "99 %"))
EMPTY = '<div class="chart" role="img" aria-label="Rows by number of tokens"></div>'


class LengthMark(TypedDict):
    """A vertical line of the chart with its label; `at` is its length in tokens."""

    at: float
    label: str


class LengthDrawing(TypedDict, total=False):
    """The value of the chart of lengths, empty for data without rows. The lists have an entry for each bar."""

    key: str
    x: list[float]
    width: list[int]
    rows: list[int]
    labels: list[str]
    over: list[bool]
    range: list[float]
    marks: list[LengthMark]
    cut: LengthMark
    words: str


def lengths(result: Mapping[str, Any], cut: int, cut_words: str, *, is_set: bool) -> LengthDrawing:
    """Everything that the chart shows, as JSON takes it; `cut` is the longest length that is not cut, `cut_words` what
    it cuts."""
    edges, counts = result["histogram"]["edges"], result["histogram"]["counts"]
    if not counts:
        return {}
    bars = list(zip(edges, edges[1:], counts, strict=False))
    first, last = edges[0], edges[-1] - 1
    # A bar covers whole numbers, low to high - 1: it stands half a token to both sides of them.
    pad = max(0.5, (edges[-1] - edges[0]) / 100)
    return {
        "key": json.dumps([edges, counts]),
        "x": [(low + high - 1) / 2 for low, high, _ in bars],
        "width": [high - low for low, high, _ in bars],
        "rows": counts,
        "labels": [f"{_tokens(low, high - 1)}: {count(rows, 'row')}" for low, high, rows in bars],
        "over": [low > cut for low, _, _ in bars],
        "range": [first - 0.5 - pad, last + 0.5 + pad],
        "marks": [_mark(name, result["tokens"][key]) for key, name in PERCENTILES],
        "cut": {"at": cut + 0.5, "label": _limit(result, cut, is_set, first, last)},
        "words": f"Rows by number of tokens, {number(first)} to {number(int(result['tokens']['max']))}. "
        + "; ".join(f"{name} have at most {number(result['tokens'][key])}" for key, name in PERCENTILES)
        + f". {cut_words}.",
    }


def _limit(result: Mapping[str, Any], cut: int, is_set: bool, first: int, last: int) -> str:
    """What the line stands for: the setting, also where that lies beyond the longest row, or a length that is tried.

    An arrow points to a length outside the chart.
    """
    length = result["max_length"] if is_set else cut
    words = f"{'max length' if is_set else 'trying'} {number(length)}"
    return f"← {words}" if length < first else f"{words} →" if length > last else words


def _tokens(low: int, high: int) -> str:
    return count(low, "token") if low == high else f"{low:,} to {high:,} tokens"


def _mark(name: str, value: float) -> LengthMark:
    return {"at": value, "label": f"{name} ≤ {number(value)}"}


def length_chart() -> gr.HTML:
    """The chart's place on the page. Its value is what `lengths` gives."""
    return gr.HTML(
        value={},
        html_template=EMPTY,
        js_on_load=theme.on_load("charts.lengths"),
        head=theme.plotly_script(),
        elem_id="lengths",
    )
