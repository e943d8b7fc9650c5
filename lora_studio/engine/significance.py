"""How sure a measured number is, and whether a difference between two columns is more than chance.

Intervals are of 95 %. Shares get Wilson's interval (Wilson 1927), everything else the percentile bootstrap over rows
(Efron 1979); rows are drawn together for both columns, as both answered the same ones. Whether one of two columns is
right more often is McNemar's test in its exact form (McNemar 1947): a fair coin for each row that only one got right.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest, bootstrap

LEVEL = 0.95
RESAMPLES = 2000
SEED = 42
AT_ONCE = 1 << 22  # numbers of resampled rows that are in memory together

Statistic = Callable[..., Any]
"""Of arrays whose last axis is the rows, given the keyword `axis`, to a number for each of the other axes' places."""


def share_interval(right: Sequence[bool]) -> tuple[float, float]:
    """Wilson's interval of a share; of no rows everything is possible."""
    if not right:
        return 0.0, 1.0
    found = binomtest(sum(right), len(right)).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def interval(rows: Sequence[np.ndarray], statistic: Statistic) -> tuple[float, float] | None:
    """The bootstrap interval of a statistic over rows, each an array with one entry a row; None for less than two."""
    count = len(rows[0])
    if count < 2:
        return None
    found = bootstrap(
        tuple(rows),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, AT_ONCE // count),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def difference_interval(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], statistic: Statistic
) -> tuple[float, float] | None:
    """The paired bootstrap's interval of how much greater the statistic is for the second column."""
    parts = len(first)

    def apart(*arrays: np.ndarray, axis: int = -1) -> Any:
        return statistic(*arrays[parts:], axis=axis) - statistic(*arrays[:parts], axis=axis)

    return interval([*first, *second], apart)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """How likely so uneven a split of the rows that only one got right is, were both equally good."""
    only_first = sum(one and not other for one, other in zip(first, second, strict=True))
    only_second = sum(other and not one for one, other in zip(first, second, strict=True))
    if not only_first + only_second:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)
