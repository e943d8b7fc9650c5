"""The chart of a file's lengths: rows by their number of tokens, percentiles, and the cut line.

The browser keeps one chart and is given new numbers, so that a closer look stays while the cut line moves.
"""

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

from lora_studio.ui import data_view, text
from lora_studio.ui.plots import plotly_script

PERCENTILES = (("p50", "50 %"), ("p95", "95 %"), ("p99", "99 %"))
EMPTY = '<div class="chart" role="img" aria-label="Rows by number of tokens"></div>'

_SCRIPT = """
const box = element.querySelector('.chart');
const tone = name => getComputedStyle(box).getPropertyValue(name).trim();
function draw() {
  const data = props.value;
  if (!data || !data.words) return;
  box.setAttribute('aria-label', data.words);
  if (!window.Plotly || !box.clientWidth) return;
  const width = box.clientWidth, narrow = width < 560;
  const [first, last] = data.range;
  const inside = x => Math.min(Math.max(x, first), last);
  const side = x => inside(x) > (first + last) / 2 ? 'right' : 'left';
  const upright = (x, line, top) => ({type: 'line', x0: x, x1: x, y0: 0, y1: top, yref: 'paper', line});
  const label = (mark, height, ink) => ({text: mark.label, x: inside(mark.at), y: 1, yref: 'paper', yshift: height,
    yanchor: 'middle', xanchor: side(mark.at), showarrow: false, font: {size: 12, color: tone(ink)}});
  const plain = more => Object.assign({gridcolor: tone('--line'), linecolor: tone('--line'), zeroline: false,
    tickfont: {size: 11}, automargin: true}, more);
  const trace = {type: 'bar', x: data.x, y: data.rows, width: data.width, customdata: data.labels,
    hovertemplate: '%{customdata}<extra></extra>',
    marker: {color: data.over.map(over => tone(over ? '--ls-lost' : '--busy'))}};
  const quiet = {color: tone('--quiet'), width: 1, dash: 'dot'};
  const layout = {
    uirevision: data.key, width, height: 310, margin: {l: 52, r: 12, t: 72, b: 40}, bargap: 0, showlegend: false,
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', hovermode: 'closest',
    dragmode: narrow ? false : 'zoom',
    hoverlabel: {bgcolor: tone('--block-background-fill'), bordercolor: tone('--line'),
      font: {color: tone('--body-text-color')}},
    font: {family: tone('--font'), color: tone('--body-text-color'), size: 12},
    xaxis: plain({range: [first, last], title: {text: 'tokens a row', font: {size: 12}}, separatethousands: true}),
    yaxis: plain({rangemode: 'tozero', fixedrange: true, title: {text: 'rows', font: {size: 12}}, nticks: 5}),
    shapes: [...data.marks.map(mark => upright(mark.at, quiet, 1)),
      ...(data.cut.at === inside(data.cut.at) ? [upright(data.cut.at, {color: tone('--ls-cut'), width: 2}, 1)] : [])],
    annotations: [...data.marks.map((mark, row) => label(mark, 8 + 17 * row, '--body-text-color-subdued')),
      label(data.cut, 60, '--ls-cut')],
  };
  window.Plotly.react(box, [trace], layout, {responsive: false, displaylogo: false, displayModeBar: false,
    doubleClick: 'reset+autosize'});
}
watch('value', draw);
new ResizeObserver(draw).observe(box);
new MutationObserver(draw).observe(document.body, {attributes: true, attributeFilter: ['class']});
draw();
"""


def lengths(result: Mapping[str, Any], cut: int) -> dict[str, Any]:
    """Everything that the chart shows, as JSON takes it; `cut` is the longest length that is not cut."""
    edges, counts = result["histogram"]["edges"], result["histogram"]["counts"]
    if not counts:
        return {}
    bars = list(zip(edges, edges[1:], counts, strict=False))
    first, last = edges[0], edges[-1] - 1
    # A bar covers whole numbers, low to high - 1: it stands half a token to both sides of them.
    pad = max(0.5, (edges[-1] - edges[0]) / 100)
    arrows = ("← " if cut < first else "", " →" if cut > last else "")
    return {
        "key": json.dumps([edges, counts]),
        "x": [(low + high - 1) / 2 for low, high, _ in bars],
        "width": [high - low for low, high, _ in bars],
        "rows": counts,
        "labels": [f"{_tokens(low, high - 1)}: {text.count(rows, 'row')}" for low, high, rows in bars],
        "over": [low > cut for low, _, _ in bars],
        "range": [first - 0.5 - pad, last + 0.5 + pad],
        "marks": [_mark(name, result["tokens"][key]) for key, name in PERCENTILES],
        "cut": {"at": cut + 0.5, "label": f"{arrows[0]}cut at {text.number(cut)}{arrows[1]}"},
        "words": f"Rows by number of tokens, {text.number(first)} to {text.number(int(result['tokens']['max']))}. "
        + "; ".join(f"{name} have at most {text.number(result['tokens'][key])}" for key, name in PERCENTILES)
        + f". The cut line stands at {text.count(cut, 'token')}. {data_view.cut_words(result, cut)}",
    }


def _tokens(low: int, high: int) -> str:
    return text.count(low, "token") if low == high else f"{low:,} to {high:,} tokens"


def _mark(name: str, value: float) -> dict[str, Any]:
    return {"at": value, "label": f"{name} ≤ {text.number(value)}"}


def chart() -> gr.HTML:
    """The chart's place on the page. Its value is what `lengths` gives."""
    return gr.HTML(value={}, html_template=EMPTY, js_on_load=_SCRIPT, head=plotly_script(), elem_id="lengths")
