"""The chart of a file's lengths: rows by their number of tokens, percentiles, and the cut line.

The browser keeps one chart and is given new numbers, so that a closer look stays while the cut line moves.
"""

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

from lora_studio.ui import browser, data_view, text
from lora_studio.ui.plots import plotly_script

PERCENTILES = (("p50", "50 %"), ("p95", "95 %"), ("p99", "99 %"))
EMPTY = '<div class="chart" role="img" aria-label="Rows by number of tokens"></div>'


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
    return gr.HTML(
        value={},
        html_template=EMPTY,
        js_on_load=browser.on_load("charts.lengths"),
        head=plotly_script(),
        elem_id="lengths",
    )
