"""Lengths, histogram and the cut curve, each against the plain way of counting."""

import random

import numpy as np
import pytest

from lora_studio.data.encode import Encoded, cut
from lora_studio.data.truncate import Measures, cut_curve, histogram, lengths, suggest
from lora_studio.errors import StudioError


def _rows(count=200):
    draw = random.Random(1)
    rows = []
    for number in range(count):
        spans, at = [], draw.randrange(0, 20)
        for _ in range(draw.randrange(1, 5)):
            stop = at + draw.randrange(1, 60)
            spans.append((at, stop))
            at = stop + draw.randrange(1, 30)
        rows.append(Encoded(number, list(range(at)), tuple(spans), draw.random() < 0.5))
    return rows


@pytest.mark.parametrize("truncation", ["keep_answer", "keep_start", "drop"])
def test_the_cut_curve_counts_what_cutting_every_row_would(truncation):
    rows = _rows()
    curve = cut_curve(Measures.of(rows), truncation, 100)
    assert 10 < len(curve) <= 200
    for point in curve:
        examples = [cut(row, point["max_length"], truncation) for row in rows]
        assert point["rows"] == sum(example.full_length > point["max_length"] for example in examples)
        assert point["lost_trained_tokens"] == sum(example.lost_trained_tokens for example in examples)
        assert point["dropped_rows"] == sum(not example.trained_tokens for example in examples)


def test_the_cut_curve_has_the_current_length_and_ends_with_nothing_lost():
    rows = _rows(20)
    curve = cut_curve(Measures.of(rows), "keep_answer", 123)
    lengths_of_curve = [point["max_length"] for point in curve]
    assert 123 in lengths_of_curve
    assert lengths_of_curve == sorted(lengths_of_curve)
    assert curve[-1]["rows"] == curve[-1]["lost_trained_tokens"] == 0


def test_lengths_are_nearest_rank_percentiles():
    found = lengths(np.arange(1, 101))
    assert found == {"min": 1, "mean": 50.5, "p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}
    assert lengths(np.array([7]))["p99"] == 7
    assert lengths(np.array([], dtype=int))["max"] == 0


@pytest.mark.parametrize("values", [[5], [1, 2, 3], [10] * 9, list(range(1000)), [1, 100_000]])
def test_every_length_is_in_one_of_at_most_sixty_bins(values):
    found = histogram(np.array(values))
    assert sum(found["counts"]) == len(values)
    assert len(found["edges"]) == len(found["counts"]) + 1 <= 62
    assert found["edges"][0] == min(values)


def test_no_rows_make_an_empty_histogram_and_a_curve_of_one_point():
    assert histogram(np.array([])) == {"edges": [], "counts": []}
    assert cut_curve(Measures.of([]), "keep_answer", 64) == [
        {"max_length": 64, "rows": 0, "lost_trained_tokens": 0, "dropped_rows": 0}
    ]


def test_percentiles_can_be_chosen_and_the_usual_ones_are_always_there():
    found = lengths(np.arange(1, 1001), [75, 99.9])
    assert (found["p75"], found["p99.9"]) == (750, 999)
    assert list(found) == ["min", "mean", "p50", "p75", "p90", "p95", "p99", "p99.9", "max"]
    with pytest.raises(StudioError, match="percentiles"):
        lengths(np.arange(9), [101])


def test_the_suggested_length_is_a_little_more_than_most_rows_need():
    values = np.concatenate([np.full(96, 468), np.full(4, 875)])
    found = suggest(values)
    assert found["max_length"] == 576
    assert "468" in found["reason"]
    assert "515 to 561" in found["reason"]
    assert "4 rows are longer" in found["reason"]


def test_the_suggested_length_is_never_more_than_the_longest_row_needs():
    assert suggest(np.array([90, 100]))["max_length"] == 100
    assert suggest(np.array([]))["max_length"] == 8


def test_windows_of_long_text_are_neither_cut_nor_lost_in_the_curve():
    text = [Encoded(1, list(range(100)), ((0, 100),), is_text=True), Encoded(2, list(range(50)), ((10, 50),))]
    for point in cut_curve(Measures.of(text), "keep_start", 20):
        assert point["rows"] == (point["max_length"] < 50)
        assert point["lost_trained_tokens"] == max(0, 50 - max(10, point["max_length"]))
