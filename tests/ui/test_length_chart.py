"""What the chart of lengths is given: bars that cover whole numbers, percentiles, the cut line, and words."""

import json
from typing import Any

import pytest

from lora_studio.ui import plots as chart
from lora_studio.ui.data.report import cut_place, cut_words
from lora_studio.ui.plots import LengthDrawing


@pytest.fixture
def result() -> dict[str, Any]:
    curve = [(8, 10, 40), (17, 4, 12), (30, 0, 0)]
    return {
        "rows": 10,
        "max_length": 1024,
        "trained_tokens": 100,
        "lost_trained_tokens": 0,
        "tokens": {"min": 6, "p50": 12, "p95": 29, "p99": 30, "max": 30},
        "histogram": {"edges": [6, 12, 18, 24, 31], "counts": [5, 3, 0, 2]},
        "cut_curve": [
            {"max_length": at, "rows": rows, "lost_trained_tokens": lost, "dropped_rows": 0} for at, rows, lost in curve
        ],
    }


def lengths(result: dict[str, Any], cut: int) -> LengthDrawing:
    is_set = cut == cut_place(result, result["max_length"])
    return chart.lengths(result, cut, cut_words(result, cut), is_set=is_set)


def test_bars_say_their_lengths_and_rows_and_those_beyond_the_cut_are_marked(result: dict[str, Any]) -> None:
    drawn = lengths(result, 17)
    assert drawn["rows"] == [5, 3, 0, 2]
    assert drawn["labels"][0] == "6 to 11 tokens: 5 rows"
    assert (drawn["x"][0], drawn["width"][0]) == (8.5, 6)
    assert drawn["over"] == [False, False, True, True]
    assert drawn["cut"] == {"at": 17.5, "label": "trying 17"}
    assert json.dumps(drawn)


def test_who_can_not_see_the_chart_is_told_the_same(result: dict[str, Any]) -> None:
    words = lengths(result, 17)["words"]
    assert "6 to 30. 50 % have at most 12; 95 % have at most 29" in words
    assert "At 17 tokens 4 rows (40 %) are cut, 12 trained tokens" in words


def test_a_cut_outside_the_drawn_lengths_points_to_where_it_is(result: dict[str, Any]) -> None:
    long = {**result, "histogram": {"edges": [600, 601], "counts": [3]}}
    assert lengths(long, 8)["cut"]["label"] == "← trying 8"
    assert lengths({**long, "max_length": 8}, 8)["cut"]["label"] == "← max length 8"
    assert lengths(long, 8)["labels"] == ["600 tokens: 3 rows"]
    assert lengths(result, 30)["cut"]["label"] == "max length 1,024 →"  # the longest row has 30


def test_a_closer_look_stays_while_the_line_moves_and_ends_with_other_data(result: dict[str, Any]) -> None:
    other = {**result, "histogram": {"edges": [6, 31], "counts": [10]}}
    assert lengths(result, 8)["key"] == lengths({**result, "max_length": 17}, 30)["key"] != lengths(other, 8)["key"]
    assert lengths({**result, "histogram": {"edges": [], "counts": []}}, 8) == {}
