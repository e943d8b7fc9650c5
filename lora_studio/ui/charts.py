"""The charts on the page: curves of runs, and lengths of a data set's rows.

The browser keeps one chart and gets new numbers, so zoom and hidden curves stay. How curves are drawn is kept in the
workspace and holds for every run.
"""

import importlib.resources
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.ui import html, theme, words
from lora_studio.ui.components import QUIET, Components, Shared
from lora_studio.ui.curves import AXES, SCALES, Style
from lora_studio.ui.studio import RunView, Studio, ViewValues
from lora_studio.workspace import Workspace


@dataclass(frozen=True)
class Controls:
    """The widgets beside a chart, from which `style` is made."""

    axis: gr.Radio
    smoothing: gr.Slider
    scale: gr.Radio
    everything: gr.Checkbox

    @property
    def widgets(self) -> list[Any]:
        """In the order that `style` takes their values."""
        return [self.axis, self.smoothing, self.scale, self.everything]


def style(axis: str, smoothing: float, scale: str | bool, everything: bool) -> Style:
    """How a person wants the curves drawn, from the values of the controls; a box for the scale was ticked earlier."""
    named = "log" if scale is True else scale if scale in SCALES else "auto"
    return Style(axis, min(max(float(smoothing), 0.0), 0.99), str(named), everything)


def draw_controls(start: Style | None = None) -> Controls:
    """Draws the controls in one row."""
    start = start or Style()
    with gr.Row(elem_classes="chart-controls"):
        across = [(name.capitalize(), name) for name in AXES]
        axis = gr.Radio(across, value=start.axis, label="X axis", min_width=220)
        smoothing = gr.Slider(0, 0.99, value=start.smoothing, step=0.01, label="Smoothing", min_width=200)
        scale = gr.Radio(
            [(name.capitalize(), name) for name in SCALES], value=start.scale, label="Scale", min_width=200
        )
        everything = gr.Checkbox(value=start.everything, label="Show more curves", min_width=160)
    return Controls(axis, smoothing, scale, everything)


def plotly_script() -> str:
    """The tag that brings plotly's script out of its own package; a page that has it twice loads it once."""
    script = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"
    gr.set_static_paths([str(script)])
    return f'<script src="gradio_api/file={script}"></script>'


def curves_chart(
    elem_id: str = "chart", label: str = "Charts of the run: loss, learning rate, gradient norm"
) -> gr.HTML:
    """The chart's place on the page; its value is a `curves.drawing`."""
    return gr.HTML(
        value={},
        html_template=f'<div class="chart" role="img" aria-label="{label}"></div>',
        js_on_load=theme.on_load("charts.curves"),
        head=plotly_script(),
        elem_id=elem_id,
    )


PERCENTILES = (("p50", "50 %"), ("p95", "95 %"), ("p99", "99 %"))
EMPTY = '<div class="chart" role="img" aria-label="Rows by number of tokens"></div>'


class Mark(TypedDict):
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
    marks: list[Mark]
    cut: Mark
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
        "labels": [f"{_tokens(low, high - 1)}: {html.count(rows, 'row')}" for low, high, rows in bars],
        "over": [low > cut for low, _, _ in bars],
        "range": [first - 0.5 - pad, last + 0.5 + pad],
        "marks": [_mark(name, result["tokens"][key]) for key, name in PERCENTILES],
        "cut": {"at": cut + 0.5, "label": _limit(result, cut, is_set, first, last)},
        "words": f"Rows by number of tokens, {html.number(first)} to {html.number(int(result['tokens']['max']))}. "
        + "; ".join(f"{name} have at most {html.number(result['tokens'][key])}" for key, name in PERCENTILES)
        + f". {cut_words}.",
    }


def _limit(result: Mapping[str, Any], cut: int, is_set: bool, first: int, last: int) -> str:
    """What the line stands for: the setting, also where that lies beyond the longest row, or a length that is tried.

    An arrow points to a length outside the chart.
    """
    length = result["max_length"] if is_set else cut
    words = f"{'max length' if is_set else 'trying'} {html.number(length)}"
    return f"← {words}" if length < first else f"{words} →" if length > last else words


def _tokens(low: int, high: int) -> str:
    return html.count(low, "token") if low == high else f"{low:,} to {high:,} tokens"


def _mark(name: str, value: float) -> Mark:
    return {"at": value, "label": f"{name} ≤ {html.number(value)}"}


def length_chart() -> gr.HTML:
    """The chart's place on the page. Its value is what `lengths` gives."""
    return gr.HTML(
        value={},
        html_template=EMPTY,
        js_on_load=theme.on_load("charts.lengths"),
        head=plotly_script(),
        elem_id="lengths",
    )


STYLE = "chart-style"


def build_chart(studio: Studio, shared: Shared) -> Components:
    """Chart, and its controls in a fold. A change of the controls is drawn at once."""
    chart = curves_chart()
    with gr.Accordion("Chart options", open=False, visible=False, elem_id="chart-options") as fold:
        controls = draw_controls(kept_style(studio.workspace))

    def draw(run_id: str, *wishes: Any) -> Any:
        studio.workspace.write_draft(STYLE, list(wishes))
        try:
            run = studio.supervisor.state(run_id)
        except StudioError:  # deleted meanwhile: the tab takes it away
            return gr.skip()
        return studio.curves.draw({words.name_of(run): run}, style(*wishes))

    changes = [widget.input for widget in controls.widgets]
    gr.on(changes, draw, [shared.run, *controls.widgets], chart, trigger_mode="always_last", **QUIET)
    return {"controls": fold, "chart": chart}


def kept_style(workspace: Workspace) -> Style:
    """How curves were drawn last."""
    draft = workspace.read_draft(STYLE)
    try:
        return style(*draft) if isinstance(draft, list) else Style()
    except (TypeError, ValueError):
        return Style()


def stamp_chart(view: RunView) -> Hashable:
    return view.mark, kept_style(view.studio.workspace)


def view_chart(view: RunView) -> ViewValues:
    run = view.run
    style = kept_style(view.studio.workspace)
    return {"controls": bool(run.steps), "chart": view.studio.curves.draw({words.name_of(run): run}, style)}
