"""Curves of runs as a chart takes them, downsampled and smoothed. No gradio.

A run only gets longer, so a line takes up new points and is never made anew. Downsampling keeps spikes.
"""

import math
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from lora_studio.jobs.events import Evaluated, RunState, StepLogged
from lora_studio.ui.words import unit_of_loss
from lora_studio.units import GIB

MOST_A_LINE = 500


class Downsampled:
    """Values that only get more. `kept` names those to draw: of every bucket the lowest and the highest.

    Buckets hold a power of two of neighbouring values and double when there are too many, so that what is drawn stays
    where it is while the curve grows.
    """

    def __init__(self, most_buckets: int = 1024) -> None:
        self.values = array("d")
        self._most_buckets = most_buckets
        self._size = 1
        self._low: list[int] = []
        self._high: list[int] = []

    def add(self, value: float | None) -> None:
        """One more value; None, NaN and infinity are gaps in the line."""
        index = len(self.values)
        self.values.append(value if value is not None and math.isfinite(value) else math.nan)
        if index % self._size:
            self._low[-1], self._high[-1] = self._wider(self._low[-1], self._high[-1], index, index)
            return
        if len(self._low) == self._most_buckets:
            self._merge()
        if index % self._size:
            self._low[-1], self._high[-1] = self._wider(self._low[-1], self._high[-1], index, index)
        else:
            self._low.append(index)
            self._high.append(index)

    def kept(self, most: int) -> list[int]:
        """Indexes of at most `most` values, rising, with the first and the last."""
        count = len(self.values)
        if count <= most:
            return list(range(count))
        together = 1
        while 2 * math.ceil(len(self._low) / together) > most - 2:
            together *= 2
        indexes = {0, count - 1}
        for start in range(0, len(self._low), together):
            low, high = self._low[start], self._high[start]
            for next_low, next_high in zip(
                self._low[start + 1 : start + together], self._high[start + 1 : start + together], strict=True
            ):
                low, high = self._wider(low, high, next_low, next_high)
            indexes |= {low, high}
        return sorted(indexes)

    def _merge(self) -> None:
        """Two neighbouring buckets become one."""
        pairs = [
            self._wider(*self._bucket(number), *self._bucket(min(number + 1, len(self._low) - 1)))
            for number in range(0, len(self._low), 2)
        ]
        self._low, self._high = [low for low, _ in pairs], [high for _, high in pairs]
        self._size *= 2

    def _bucket(self, number: int) -> tuple[int, int]:
        return self._low[number], self._high[number]

    def _wider(self, low: int, high: int, other_low: int, other_high: int) -> tuple[int, int]:
        """The lowest and highest of two buckets; a gap counts only where there is nothing else."""
        values = self.values
        if math.isnan(values[low]):
            return other_low, other_high
        if math.isnan(values[other_low]):
            return low, high
        return (
            other_low if values[other_low] < values[low] else low,
            other_high if values[other_high] > values[high] else high,
        )


def downsample(
    xs: Sequence[float], ys: Sequence[float | None], most: int = MOST_A_LINE
) -> tuple[list[float], list[float | None]]:
    """At most `most` points of a curve that is there as a whole, lowest and highest of each bucket kept."""
    curve = Downsampled()
    for y in ys:
        curve.add(y)
    indexes = curve.kept(most)
    return [xs[index] for index in indexes], [short(curve.values[index]) for index in indexes]


class Smoothed:
    """The exponential moving average of values that only get more, without the pull of its start towards zero.

    `weight` is what remains of the past at each point, 0 to below 1 (as in TensorBoard); gaps stay gaps.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.curve = Downsampled()
        self._sum = self._weights = 0.0

    def follow(self, values: Sequence[float]) -> None:
        """Takes up what is new in `values`."""
        for value in values[len(self.curve.values) :]:
            if math.isnan(value):
                self.curve.add(None)
                continue
            self._sum = self.weight * self._sum + (1 - self.weight) * value
            self._weights = self.weight * self._weights + (1 - self.weight)
            self.curve.add(self._sum / self._weights)


def short(value: float) -> float | None:
    """Five digits are more than a chart can show; None where there is no number."""
    return None if math.isnan(value) else float(f"{value:.5g}")


MOST_POINTS = 2000  # in one drawing, shared by all its lines: about 18 bytes each stays under 50 kB
FEWEST_A_LINE = 12
RUNS_KEPT = 24
LOSS = "Loss"
AXES = ("step", "epoch", "time")
SCALES = ("auto", "linear", "log")
MAX_LINEAR_RATIO = 100
"""Over a larger ratio of the largest to the smallest loss a linear axis shows a corner and a flat line."""


@dataclass(frozen=True, slots=True)
class Style:
    """How curves are drawn: the horizontal axis (one of `AXES`), smoothing, scale (one of `SCALES`), more curves."""

    axis: str = "step"
    smoothing: float = 0.6
    scale: str = "auto"
    everything: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A line as the browser draws it; `color_index` numbers the colour from 1; `kind` is line, pale, marks or best.

    Lines of the same `group` are hidden together by a click in the legend.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    color_index: int = 1
    kind: str = "line"
    group: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines that share an axis; `logarithmic` says whether a logarithmic one makes sense, `main` is the large panel.

    `unit` stands beside the title; a panel in "%" holds shares from 0 to 1.
    """

    title: str
    lines: Sequence[Line]
    logarithmic: bool = False
    main: bool = False
    unit: str = ""


class LineDrawing(TypedDict):
    """A `Line` as JSON."""

    name: str
    group: str
    x: list[float]
    y: list[float | None]
    color_index: int
    kind: str


class PanelDrawing(TypedDict):
    """A `Panel` as JSON; `log` says whether its axis is logarithmic."""

    title: str
    unit: str
    log: bool
    main: bool
    lines: list[LineDrawing]


class Drawing(TypedDict):
    """The chart's value: zoom is kept as long as `key` stays, `across` names the horizontal axis, `empty` is said where
    there is no curve."""

    key: str
    across: str
    empty: str
    panels: list[PanelDrawing]


def drawing(
    key: str, panels: Sequence[Panel], style: Style | None = None, across: str = "step", *, final: bool = False
) -> Drawing:
    """What the chart on the page takes. Zoom is kept as long as `key` stays; `across` is written under the axis. No
    more curves come to runs that are `final`."""
    style = style or Style()
    scales = [_is_log(panel, style) for panel in panels]
    return {
        "key": f"{key} {across} {scales[:1]}",
        "across": across,
        "empty": "Ended before the first step." if final else "Curves appear with the first step.",
        "panels": [
            {
                "title": panel.title,
                "unit": panel.unit,
                "log": log,
                "main": panel.main,
                "lines": [
                    {
                        "name": line.name,
                        "group": line.group or line.name,
                        "x": list(line.x),
                        "y": list(line.y),
                        "color_index": line.color_index,
                        "kind": line.kind,
                    }
                    for line in panel.lines
                ],
            }
            for panel, log in zip(panels, scales, strict=True)
        ],
    }


def _is_log(panel: Panel, style: Style) -> bool:
    """Whether a panel's axis is logarithmic: as chosen, else where its values span two decades.

    A learning rate spans many by its schedule, which a logarithmic axis would hide.
    """
    if not panel.logarithmic or style.scale == "linear":
        return False
    if style.scale == "log":
        return True
    values = [y for line in panel.lines for y in line.y if y is not None]
    return panel.title in _AUTO and spans_decades(values)


def spans_decades(values: Sequence[float]) -> bool:
    """Whether the largest of positive values is over a hundred times the smallest."""
    return bool(values) and min(values) > 0 and max(values) > MAX_LINEAR_RATIO * min(values)


Value = Callable[[StepLogged], float | None]
ENTROPY, SPEED, MEMORY, ACCURACY, RATE = "Entropy", "Speed", "Memory", "Token accuracy", "Learning rate"
# What a logged step tells, as (panel, whether a logarithmic axis makes sense, whether it is in sight at first, value).
_OF_A_STEP: tuple[tuple[str, bool, bool, Value], ...] = (
    (LOSS, True, True, lambda point: point.loss),
    (ACCURACY, False, True, lambda point: point.token_accuracy),
    (RATE, True, True, lambda point: point.learning_rate),
    ("Gradient norm", True, True, lambda point: point.grad_norm),
    (ENTROPY, False, False, lambda point: point.entropy),
    (SPEED, False, False, lambda point: point.tokens_per_second or None),
    (MEMORY, False, False, lambda point: point.memory_bytes / GIB or None),
)
_LOGARITHMIC = {title for title, logarithmic, _, _ in _OF_A_STEP if logarithmic}
_AUTO = (LOSS, "Gradient norm")
_FOLDED = {*(title for title, _, first, _ in _OF_A_STEP if not first), "Logits: chosen", "Logits: rejected"}
_UNITS = {
    **{ENTROPY: "nats/token", SPEED: "tokens/s", MEMORY: "GiB", ACCURACY: "%", "Gradient norm": "L2"},
    **dict.fromkeys(("Reward margin", "Chosen reward", "Rejected reward"), "beta × nats/answer"),
    **dict.fromkeys(("KL", "Logps: chosen", "Logps: rejected"), "nats/answer"),
    "Reward accuracy": "%",
}
_EACH_POINT, VALIDATION = ", raw", ", validation"
_SMOOTHED_LENGTH = 128  # points for which the weight of the moving average is what the control says
_UNSMOOTHED = (RATE, MEMORY)
_OF_A_METRIC = {"token_accuracy": ACCURACY, "entropy": ENTROPY, "f1": "F1", "kl": "KL"}


def title_of(metric: str) -> str:
    """A metric's name as a heading: accuracy -> Accuracy, rewards/margins -> Rewards: margins."""
    words = metric.replace("_", " ").replace("/", ": ")
    return _OF_A_METRIC.get(metric, words[:1].upper() + words[1:])


def _by_title(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {title_of(name): number for name, number in metrics.items()}


class _Measured:
    """One quantity of a run at some of its points; `places` says at which."""

    def __init__(self) -> None:
        self.curve = Downsampled()
        self.places = array("q")
        self.present = False
        self._smoothed: Smoothed | None = None

    def add(self, place: int, value: float | None) -> None:
        self.places.append(place)
        self.curve.add(value)
        self.present = self.present or (value is not None and math.isfinite(value))

    def smoothed(self, weight: float) -> Downsampled:
        """The moving average. Its reach is a share of the line, so that the same weight looks the same on any length.

        The length counts in powers of two: only when it doubles is the average made anew.
        """
        doubled = 1 << (len(self.curve.values) - 1).bit_length()
        reaching = weight ** (_SMOOTHED_LENGTH / doubled)
        if self._smoothed is None or self._smoothed.weight != reaching:
            self._smoothed = Smoothed(reaching)
        self._smoothed.follow(self.curve.values)
        return self._smoothed.curve


class _Points:
    """Points of a run, logged steps or evaluations, on the three axes, with what was measured there by panel."""

    def __init__(self) -> None:
        self.axes = {axis: array("d") for axis in AXES}
        self.measured: dict[str, _Measured] = {}
        self.last: StepLogged | Evaluated | None = None

    def fits(self, points: Sequence[StepLogged | Evaluated]) -> bool:
        """Whether `points` go on from those that were taken up; a resumed run forgets some."""
        count = len(self.axes["step"])
        return count == 0 or (len(points) >= count and points[count - 1] is self.last)

    def add(self, point: StepLogged | Evaluated, seconds: float, values: Mapping[str, float | None]) -> None:
        place = len(self.axes["step"])
        for axis, value in (("step", point.step), ("epoch", point.epoch), ("time", seconds)):
            self.axes[axis].append(value)
        for title, number in values.items():
            self.measured.setdefault(title, _Measured()).add(place, number)
        self.last = point


class _RunCurves:
    """All curves of one run, grown as the run grows."""

    def __init__(self) -> None:
        self.steps, self.evaluations = _Points(), _Points()

    def follow(self, run: RunState) -> None:
        if not (self.steps.fits(run.steps) and self.evaluations.fits(run.evaluations)):
            self.steps, self.evaluations = _Points(), _Points()
        for point in run.steps[len(self.steps.axes["step"]) :]:
            values = {title: value(point) for title, _, _, value in _OF_A_STEP}
            self.steps.add(point, run.seconds_at(point.time), values | _by_title(point.metrics))
        for measured in run.evaluations[len(self.evaluations.axes["step"]) :]:
            values = {LOSS: measured.loss, **_by_title(measured.metrics)}
            self.evaluations.add(measured, run.seconds_at(measured.time), values)

    def titles(self) -> list[str]:
        """The panels that have anything to show, those of a step first."""
        every = {**self.steps.measured, **self.evaluations.measured}
        return [title for title in every if any(title in of and of[title].present for of in self._both())]

    def _both(self) -> tuple[dict[str, _Measured], dict[str, _Measured]]:
        return self.steps.measured, self.evaluations.measured


@dataclass(frozen=True, slots=True)
class _Draft:
    """A line before it is known how many points it may have; `share` is its part of them."""

    panel: str
    name: str
    points: _Points
    measured: _Measured
    curve: Downsampled
    color_index: int
    kind: str
    share: int = 1

    def line(self, most: int, axis: str, divisor: float) -> Line:
        indexes = self.curve.kept(most)
        across = self.points.axes[axis]
        xs = [across[self.measured.places[index]] / divisor for index in indexes]
        ys = [short(self.curve.values[index]) for index in indexes]
        group = self.name.removesuffix(_EACH_POINT)
        return Line(self.name, [_place(x, axis) for x in xs], ys, self.color_index, self.kind, group)


class Curves:
    """The curves of the runs that were looked at last. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: OrderedDict[str, _RunCurves] = OrderedDict()

    def draw(
        self, runs: Mapping[str, RunState], style: Style | None = None, *, evaluations_only: bool = False
    ) -> Drawing:
        """A drawing of one run, or of several over each other, each under the name that it is given here. Of many
        runs the evaluations alone are told apart."""
        style = style or Style()
        with self._lock:
            followed = {name: self._follow(run) for name, run in runs.items()}
            ends = [of.steps.axes["time"][-1] for of in followed.values() if of.steps.axes["time"]]
            divisor, across = _unit(max(ends, default=0.0)) if style.axis == "time" else (1.0, style.axis)
            alone = len(followed) == 1
            drafts = [
                draft
                for number, (name, curves) in enumerate(followed.items(), start=1)
                for draft in _drafts(curves, "" if alone else name, (1, 2) if alone else (number, number), style)
                if not evaluations_only or draft.points is curves.evaluations
            ]
            point = MOST_POINTS / max(1, sum(draft.share for draft in drafts))
            most = {
                share: max(FEWEST_A_LINE, min(MOST_A_LINE, int(point * share))) for share in {d.share for d in drafts}
            }
            lines: dict[str, list[Line]] = {LOSS: []}
            for draft in drafts:
                line = draft.line(most[draft.share], style.axis, divisor)
                if evaluations_only:
                    line = replace(line, name=line.name.removesuffix(VALIDATION))
                lines.setdefault(draft.panel, []).append(line)
            for number, (name, run) in enumerate(() if evaluations_only else runs.items(), start=1):
                lines[LOSS] += _best(run, "" if alone else name, 2 if alone else number, style.axis, divisor)
        units = {
            **_UNITS,
            LOSS: next((unit_of_loss(run.steps[-1]) for run in runs.values() if run.steps), "nats/token"),
        }
        panels = [
            Panel(title, of, title in _LOGARITHMIC, title == LOSS, units.get(title, "")) for title, of in lines.items()
        ]
        final = all(run.final for run in runs.values())
        return drawing(" ".join(run.id for run in runs.values()), panels, style, across, final=final)

    def _follow(self, run: RunState) -> _RunCurves:
        curves = self._runs.setdefault(run.id, _RunCurves())
        self._runs.move_to_end(run.id)
        while len(self._runs) > RUNS_KEPT:
            self._runs.popitem(last=False)
        curves.follow(run)
        return curves


def _drafts(curves: _RunCurves, name: str, color_indices: tuple[int, int], style: Style) -> Iterator[_Draft]:
    """The lines of a run: of the steps in the first colour, of the evaluations in the second."""
    for title in curves.titles():
        if title in _FOLDED and not style.everything:
            continue
        weight = 3 if title == LOSS else 1
        of_steps, measured = curves.steps.measured.get(title), curves.evaluations.measured.get(title)
        if of_steps is not None and of_steps.present:
            smooth = style.smoothing > 0 and title not in _UNSMOOTHED
            label = name or "training"
            kind = "pale" if smooth else "line"
            raw = label + _EACH_POINT if smooth else label
            yield _Draft(title, raw, curves.steps, of_steps, of_steps.curve, color_indices[0], kind, weight)
            if smooth:
                curve = of_steps.smoothed(style.smoothing)
                yield _Draft(title, label, curves.steps, of_steps, curve, color_indices[0], "line", weight)
        if measured is not None and measured.present:
            label = f"{name}{VALIDATION}" if name else "validation"
            yield _Draft(title, label, curves.evaluations, measured, measured.curve, color_indices[1], "marks", weight)


def _best(run: RunState, name: str, color_index: int, axis: str, divisor: float) -> list[Line]:
    """The evaluation that is the best so far, marked."""
    best = run.best
    if best is None or not math.isfinite(best.loss):
        return []
    across = {"step": best.step, "epoch": best.epoch, "time": run.seconds_at(best.time)}[axis] / divisor
    label = f"{name}, best" if name else f"best (step {best.step:,})"
    return [Line(label, [_place(across, axis)], [short(best.loss)], color_index, "best")]


def _unit(seconds: float) -> tuple[float, str]:
    """The unit that suits a time, as what to divide seconds by and its words."""
    if seconds < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")


def _place(value: float, axis: str) -> float:
    return int(value) if axis == "step" else round(value, 4)
