"""The chart of the lengths of a data set's rows.

The browser keeps one chart and gets new numbers, so what is zoomed stays.
"""

import json
from collections.abc import Mapping
from typing import Any, TypedDict

import gradio as gr

from lora_studio.ui import html, theme

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
        head=theme.plotly_script(),
        elem_id="lengths",
    )
