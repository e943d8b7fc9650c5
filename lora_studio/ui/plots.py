"""The chart on the page: draws what `curves` gives, and holds the controls for how it is drawn.

The browser keeps one chart and is given new numbers, so that zoom and hidden curves stay while the run goes on.
"""

import importlib.resources
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.ui.curves import AXES, Style

_SCRIPT = """
const box = element.querySelector('.chart');
const tone = name => getComputedStyle(box).getPropertyValue(name).trim();
const INKS = 8;
const ink = number => tone(`--curve-${(number - 1) % INKS + 1}`);
const MAIN = 250, SMALL = 104, GAP = 58, BOTTOM = 40;
function line(part, suffix, legend) {
  const colour = ink(part.ink), kind = part.kind;
  const trace = {x: part.x, y: part.y, name: part.name, type: 'scatter', mode: 'lines', connectgaps: false,
    xaxis: 'x' + suffix, yaxis: 'y' + suffix, showlegend: legend && kind !== 'pale', legendgroup: part.group,
    line: {color: colour, width: 2}, hovertemplate: '%{y:.4~g}'};
  if (part.x.length < 3) trace.mode = 'lines+markers';
  if (kind === 'pale') Object.assign(trace, {opacity: 0.32, line: {color: colour, width: 1.2}});
  if (kind === 'marks') Object.assign(trace, {mode: 'lines+markers', marker: {size: 5, color: colour},
    line: {color: colour, width: 2, dash: 'dot'}});
  if (kind === 'best') Object.assign(trace, {mode: 'markers', hoverinfo: 'skip', hovertemplate: null,
    marker: {symbol: 'star', size: 13, color: colour}});
  return trace;
}
function axis(more) {
  return Object.assign({gridcolor: tone('--line'), linecolor: tone('--line'), zeroline: false,
    tickfont: {size: 11}, automargin: false}, more);
}
function draw() {
  const data = props.value;
  if (!data || !data.panels || !window.Plotly || !box.clientWidth) return;
  const width = box.clientWidth, columns = width < 460 ? 1 : width < 820 ? 2 : 3;
  const TOP = width < 460 ? 52 : 30;
  const small = data.panels.filter(panel => !panel.main), rows = Math.ceil(small.length / columns);
  const height = TOP + MAIN + rows * (GAP + SMALL) + BOTTOM, inner = height - TOP - BOTTOM;
  const traces = [], annotations = [];
  const layout = {
    uirevision: data.key, width, height, margin: {l: 52, r: 12, t: TOP, b: BOTTOM},
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', hovermode: 'x unified',
    hoverlabel: {bgcolor: tone('--block-background-fill'), font: {color: tone('--body-text-color')}},
    font: {family: tone('--font'), color: tone('--body-text-color'), size: 12}, annotations,
    legend: {orientation: 'h', x: 1, xanchor: 'right', y: 1, yanchor: 'bottom'},
  };
  const caption = (text, x, y) => ({text, x, y, xref: 'paper', yref: 'paper', xanchor: 'left', yanchor: 'bottom',
    showarrow: false, font: {size: 12, color: tone('--body-text-color-subdued')}});
  const between = 52 / Math.max(width - 64, 1);
  let place = 0;
  data.panels.forEach((panel, number) => {
    const suffix = number ? String(number + 1) : '';
    let top = 0, high = MAIN, left = 0, right = 1;
    if (!panel.main) {
      const row = Math.floor(place / columns), column = place % columns, wide = (1 - between * (columns - 1)) / columns;
      top = MAIN + GAP + row * (SMALL + GAP); high = SMALL;
      left = column * (wide + between); right = left + wide;
      place += 1;
    }
    const above = 1 - top / inner, below = 1 - (top + high) / inner;
    layout['xaxis' + suffix] = axis({domain: [left, right], anchor: 'y' + suffix, rangemode: 'tozero', nticks:
      panel.main ? 10 : 5, ...(number ? {matches: 'x'} : {}),
      ...(panel.main ? {title: {text: data.across, font: {size: 12}, standoff: 4}} : {})});
    layout['yaxis' + suffix] = axis({domain: [Math.max(0, below), above], anchor: 'x' + suffix,
      type: panel.log ? 'log' : 'linear', nticks: panel.main ? 7 : 4, exponentformat: 'e',
      ...(panel.log ? {} : {rangemode: panel.lines.some(part => part.y.some(y => y < 0)) ? 'normal' : 'tozero'})});
    annotations.push(caption(panel.title, left, above));
    for (const part of panel.lines) traces.push(line(part, suffix, panel.main));
    if (panel.main && !panel.lines.length) {
      traces.push({x: [], y: [], xaxis: 'x', yaxis: 'y', showlegend: false});
      annotations.push(Object.assign(caption('The curves begin with the first step.', 0.5, 1 - MAIN / 2 / inner),
        {xanchor: 'center'}));
    }
  });
  box.style.height = height + 'px';
  window.Plotly.react(box, traces, layout, {responsive: false, displaylogo: false, displayModeBar: false,
    doubleClick: 'reset+autosize'});
}
watch('value', draw);
let wide = 0;
new ResizeObserver(() => { if (box.clientWidth !== wide) { wide = box.clientWidth; draw(); } }).observe(box);
new MutationObserver(draw).observe(document.body, {attributes: true, attributeFilter: ['class']});
draw();
"""


@dataclass(frozen=True)
class Controls:
    """The widgets beside a chart, from which `style` is made."""

    axis: gr.Radio
    smoothing: gr.Slider
    logarithmic: gr.Checkbox
    everything: gr.Checkbox

    @property
    def widgets(self) -> list[Any]:
        """In the order that `style` takes their values."""
        return [self.axis, self.smoothing, self.logarithmic, self.everything]


def style(axis: str, smoothing: float, logarithmic: bool, everything: bool) -> Style:
    """How a person wants the curves drawn, from the values of the controls."""
    return Style(axis, min(max(float(smoothing), 0.0), 0.99), logarithmic, everything)


def controls(start: Style | None = None) -> Controls:
    """Draws the controls in one row."""
    start = start or Style()
    with gr.Row(elem_classes="chart-controls"):
        across = [(name.capitalize(), name) for name in AXES]
        axis = gr.Radio(across, value=start.axis, label="Horizontal axis", min_width=220)
        smoothing = gr.Slider(0, 0.99, value=start.smoothing, step=0.01, label="Smoothing", min_width=200)
        with gr.Column(min_width=180):
            logarithmic = gr.Checkbox(value=start.logarithmic, label="Logarithmic loss")
            everything = gr.Checkbox(value=start.everything, label="More curves")
    return Controls(axis, smoothing, logarithmic, everything)


def plotly_script() -> str:
    """The tag that brings plotly's script out of its own package; a page that has it twice loads it once."""
    script = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"
    gr.set_static_paths([str(script)])
    return f'<script src="gradio_api/file={script}"></script>'


def chart(elem_id: str = "chart", label: str = "Curves of the run: loss, learning rate, gradient norm") -> gr.HTML:
    """The chart's place on the page; its value is a `curves.drawing`."""
    return gr.HTML(
        value={},
        html_template=f'<div class="chart" role="img" aria-label="{label}"></div>',
        js_on_load=_SCRIPT,
        head=plotly_script(),
        elem_id=elem_id,
    )
