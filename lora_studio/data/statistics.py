"""Numbers about encoded rows: lengths, their histogram, what every `max_length` would cut, and which to choose."""

import math
from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np

from lora_studio.data.truncate import Measures
from lora_studio.errors import StudioError

PERCENTILES = (50, 90, 95, 99)
_MULTIPLE = 64
_CANDIDATES = 200
_MANY_ROWS = 200_000  # fewer candidates from here on, for a curve within two seconds
_BINS = 60
_MIN_LENGTH = 8


class Suggestion(TypedDict):
    """A `max_length` with its reason."""

    max_length: int
    reason: str


def lengths(values: np.ndarray, percentiles: Sequence[float] = PERCENTILES) -> dict[str, float]:
    """Minimum, mean, percentiles (nearest rank) and maximum of lengths; zeros for no rows.

    The percentiles are those asked for and always 50, 90, 95 and 99; "p99.9" is the name of 99.9.
    """
    if not all(0 <= share <= 100 for share in percentiles):
        raise StudioError(f"{list(percentiles)} are not all percentiles.", "A percentile is a number from 0 to 100.")
    shares = sorted({*map(float, percentiles), *map(float, PERCENTILES)})
    names = [f"p{share:g}" for share in shares]
    if not len(values):
        return {"min": 0, "mean": 0.0, **dict.fromkeys(names, 0), "max": 0}
    ranked = np.sort(values)
    ranks = [max(math.ceil(share * len(values) / 100 - 1e-9), 1) for share in shares]
    by_percentile = {name: int(ranked[rank - 1]) for name, rank in zip(names, ranks, strict=True)}
    return {"min": int(values.min()), "mean": round(float(values.mean()), 2), **by_percentile, "max": int(values.max())}


def suggest(values: np.ndarray) -> Suggestion:
    """A `max_length` for rows of these lengths, with its reason: 1.1 to 1.2 times the 95th percentile."""
    summary = lengths(values)
    p95, longest = int(summary["p95"]), int(summary["max"])
    low, high = -(-11 * p95 // 10), 12 * p95 // 10
    rounded = max(_MULTIPLE, -(-low // _MULTIPLE) * _MULTIPLE)
    if longest <= rounded:
        return {"max_length": max(longest, _MIN_LENGTH), "reason": f"No row is longer than {longest:,} tokens."}
    over = int((values > rounded).sum())
    return {
        "max_length": rounded,
        "reason": f"95 of 100 rows have at most {p95:,} tokens; 1.1 to 1.2 times that is {low:,} to {high:,}, "
        f"rounded up to a multiple of {_MULTIPLE}. {over:,} {'row is' if over == 1 else 'rows are'} longer.",
    }


def histogram(values: np.ndarray, bins: int = _BINS) -> dict[str, list[int]]:
    """Counts of lengths in at most `bins` whole-numbered bins; `edges` has one more than `counts`."""
    if not len(values):
        return {"edges": [], "counts": []}
    low, high = int(values.min()), int(values.max()) + 1
    width = max(1, -(-(high - low) // bins))
    edges = np.arange(low, high + width, width)
    counts, _ = np.histogram(values, edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def cut_curve(
    measures: Measures, truncation: str, current: int, tell: Callable[[int, int], None] = lambda done, total: None
) -> list[dict[str, int]]:
    """For each candidate `max_length`: rows cut, trained tokens lost, rows left without trained tokens. Exact.

    `tell` is called with how many of how many candidates are done.
    """
    tell(0, 0)
    ranked = measures.longest_first()
    never_trained = np.concatenate([[0], np.cumsum(ranked.trained == 0)])
    curve = []
    candidates = _candidates(measures.length, current)
    for done, candidate in enumerate(candidates):
        tell(done, len(candidates))
        over = ranked.first(int(np.searchsorted(-ranked.length, -candidate)))
        trained = over.kept(candidate, truncation)
        curve.append(
            {
                "max_length": candidate,
                "rows": int(over.cut_rows(candidate, truncation).sum()),
                "lost_trained_tokens": over.trained_tokens - int(trained.sum()),
                "dropped_rows": int((trained == 0).sum() + never_trained[-1] - never_trained[len(trained)]),
            }
        )
    return curve


def _candidates(values: np.ndarray, current: int) -> list[int]:
    """At most 200 lengths: the current one, the percentiles, powers of two, the longest row, and steps between."""
    if not len(values):
        return [current]
    longest = int(values.max())
    most = _CANDIDATES if len(values) < _MANY_ROWS else _CANDIDATES // 3
    candidates: set[int] = {current, longest}
    shares = range(50, 100, 1 if most == _CANDIDATES else 3)
    candidates.update(int(value) for value in np.percentile(values, shares, method="inverted_cdf"))
    power = _MIN_LENGTH
    while power < 2 * longest:
        candidates.add(power)
        power *= 2
    for value in np.unique(np.linspace(_MIN_LENGTH, max(longest, _MIN_LENGTH), most // 2).astype(int)):
        if len(candidates) < most:
            candidates.add(int(value))
    return sorted(candidates)
