"""Intervals and tests, against numbers that were worked out by hand or stand in textbooks."""

from math import comb, sqrt

import numpy as np
import pytest

from lora_studio.engine.evaluate.metrics import difference_interval, interval, mcnemar, share_interval


def mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return values.mean(axis=axis)


@pytest.mark.parametrize(("right", "of"), [(0, 10), (7, 10), (10, 10), (430, 1000)])
def test_the_interval_of_a_share_is_wilsons(right: int, of: int) -> None:
    z, share = 1.959963984540054, right / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    low, high = share_interval([True] * right + [False] * (of - right))
    assert (low, high) == pytest.approx((max(0, middle - half), min(1, middle + half)), abs=1e-12)


def test_a_share_of_no_rows_may_be_anything() -> None:
    assert share_interval([]) == (0.0, 1.0)


def test_the_bootstrap_of_a_mean_is_as_wide_as_its_normal_interval() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = interval([values], mean) or (0, 0)
    half = 1.96 * values.std() / sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.04)


def test_a_single_row_has_no_interval() -> None:
    assert interval([np.array([1.0])], mean) is None


def test_rows_are_drawn_for_both_columns_together() -> None:
    """Two columns that always differ by one: their difference is certain, however much the rows vary."""
    first = np.random.default_rng(2).normal(0, 100, 50)
    assert difference_interval([first], [first + 1], mean) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 5), (1, 9), (6, 6), (3, 12)])
def test_mcnemar_is_the_exact_two_sided_test_of_a_fair_coin(only_first: int, only_second: int) -> None:
    both = [(True, True)] * 20 + [(False, False)] * 7
    pairs = both + [(True, False)] * only_first + [(False, True)] * only_second
    tosses = only_first + only_second
    tail = sum(comb(tosses, heads) for heads in range(min(only_first, only_second) + 1)) / 2**tosses
    assert mcnemar(*zip(*pairs, strict=True)) == pytest.approx(min(1.0, 2 * tail))


def test_columns_that_never_disagree_are_as_likely_as_can_be() -> None:
    assert mcnemar([True, False], [True, False]) == 1.0
