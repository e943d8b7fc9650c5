"""The live chart of a run: what is drawn, thinned out so that spikes survive, and the component that draws it.

The browser keeps one chart and is given new numbers, so that zoom and hidden curves stay while the run goes on.
"""

import importlib.resources
import math
from collections.abc import Sequence
from typing import Any

import gradio as gr

from lora_studio.events import RunState

MOST_POINTS = 800

_SCRIPT = """
const box = element.querySelector('.chart');
const tone = name => getComputedStyle(box).getPropertyValue(name).trim();
const axis = more => Object.assign({gridcolor: tone('--line'), linecolor: tone('--line'), zeroline: false,
  tickfont: {size: 11}, automargin: true}, more);
function draw() {
  const data = props.value;
  if (!data || !data.run || !window.Plotly || !box.clientWidth) return;
  const narrow = box.clientWidth < 560;
  const line = (part, name, ink, axes, more) => Object.assign({x: part.x, y: part.y, name, type: 'scatter',
    mode: part.x.length < 3 ? 'lines+markers' : 'lines', line: {color: tone(ink), width: 2}, connectgaps: false,
    hovertemplate: '%{y:.4~g}'}, axes, more || {});
  const traces = [
    line(data.loss, 'training loss', '--curve-1', {xaxis: 'x', yaxis: 'y'}),
    line(data.validation, 'validation loss', '--curve-2', {xaxis: 'x', yaxis: 'y'}, {mode: 'lines+markers'}),
    line(data.best, 'best', '--curve-2', {xaxis: 'x', yaxis: 'y'},
      {mode: 'markers', marker: {symbol: 'star', size: 13, color: tone('--curve-2')}, hoverinfo: 'skip',
        hovertemplate: null, showlegend: data.best.x.length > 0}),
    line(data.rate, 'learning rate', '--curve-3', {xaxis: 'x2', yaxis: 'y2'}, {showlegend: false}),
    line(data.norm, 'gradient norm', '--curve-4', {xaxis: 'x3', yaxis: 'y3'}, {showlegend: false}),
  ];
  const places = narrow
    ? {x: [0, 1], y: [0.6, 1], x2: [0, 1], y2: [0.3, 0.48], x3: [0, 1], y3: [0, 0.18]}
    : {x: [0, 1], y: [0.43, 1], x2: [0, 0.46], y2: [0, 0.26], x3: [0.54, 1], y3: [0, 0.26]};
  const caption = (text, x, y) => ({text, x, y, xref: 'paper', yref: 'paper', xanchor: 'left', yanchor: 'bottom',
    showarrow: false, font: {size: 12, color: tone('--body-text-color-subdued')}});
  const layout = {
    uirevision: data.run, height: narrow ? 560 : 440, margin: {l: 46, r: 12, t: 26, b: 34},
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', hovermode: 'x unified',
    hoverlabel: {bgcolor: tone('--block-background-fill'), font: {color: tone('--body-text-color')}},
    font: {family: tone('--font'), color: tone('--body-text-color'), size: 12},
    legend: {orientation: 'h', x: 1, xanchor: 'right', y: 1, yanchor: 'bottom'},
    xaxis: axis({domain: places.x, anchor: 'y', rangemode: 'tozero'}),
    yaxis: axis({domain: places.y, anchor: 'x', rangemode: 'tozero'}),
    xaxis2: axis({domain: places.x2, anchor: 'y2', matches: 'x'}),
    yaxis2: axis({domain: places.y2, anchor: 'x2', rangemode: 'tozero', exponentformat: 'e', nticks: 4}),
    xaxis3: axis({domain: places.x3, anchor: 'y3', matches: 'x', title: {text: 'step', font: {size: 12}}}),
    yaxis3: axis({domain: places.y3, anchor: 'x3', rangemode: 'tozero', nticks: 4}),
    annotations: [caption(narrow ? '' : 'loss', 0, places.y[1]), caption('learning rate', places.x2[0], places.y2[1]),
      caption('gradient norm', places.x3[0], places.y3[1]),
      ...(data.loss.x.length ? [] : [Object.assign(caption('The curve begins with the first step.', 0.5, 0.7),
        {xanchor: 'center'})])],
  };
  window.Plotly.react(box, traces, layout, {responsive: false, displaylogo: false, displayModeBar: false,
    doubleClick: 'reset+autosize'});
}
watch('value', draw);
new ResizeObserver(draw).observe(box);
new MutationObserver(draw).observe(document.body, {attributes: true, attributeFilter: ['class']});
draw();
"""


def downsample(
    xs: Sequence[float], ys: Sequence[float | None], most: int = MOST_POINTS
) -> tuple[list[float], list[float | None]]:
    """At most `most` points of a curve: each bucket keeps its lowest and highest, so that no spike is lost.

    First and last point always stay. A missing value (None, NaN, infinity) becomes None, a gap in the line.
    """
    values = [y if y is not None and math.isfinite(y) else None for y in ys]
    if len(values) <= most:
        return list(xs), values
    buckets = max(1, (most - 2) // 2)
    kept = {0, len(values) - 1}
    for number in range(buckets):
        inside = range(number * len(values) // buckets, (number + 1) * len(values) // buckets)
        present = [(value, index) for index in inside if (value := values[index]) is not None]
        if present:
            kept |= {min(present)[1], max(present)[1]}
        else:
            kept.add(inside.start)
    order = sorted(kept)
    return [xs[index] for index in order], [values[index] for index in order]


def curves(run: RunState) -> dict[str, Any]:
    """Everything that the chart of a run shows, as JSON takes it."""
    steps = [item.step for item in run.steps]
    best = run.best
    return {
        "run": run.id,
        "loss": _curve(steps, [item.loss for item in run.steps]),
        "validation": _curve([item.step for item in run.evaluations], [item.loss for item in run.evaluations]),
        "best": _curve([best.step], [best.loss]) if best else _curve([], []),
        "rate": _curve(steps, [item.learning_rate for item in run.steps]),
        "norm": _curve(steps, [item.grad_norm for item in run.steps]),
    }


def _curve(xs: Sequence[float], ys: Sequence[float | None]) -> dict[str, list[Any]]:
    thin_xs, thin_ys = downsample(xs, ys)
    return {"x": thin_xs, "y": thin_ys}


def chart() -> gr.HTML:
    """The chart's place on the page. Its value is what `curves` gives; plotly's script comes from its own package."""
    script = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"
    gr.set_static_paths([str(script)])
    return gr.HTML(
        value={},
        html_template='<div class="chart" role="img" aria-label="Loss, learning rate and gradient norm by step"></div>',
        js_on_load=_SCRIPT,
        head=f'<script src="gradio_api/file={script}"></script>',
        elem_id="chart",
    )
