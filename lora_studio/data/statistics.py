"""Numbers about encoded rows: lengths, histogram, and what every possible `max_length` would cut. Arrays only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_studio.data.encode import Encoded

_PERCENTILES = (50, 90, 95, 99)
_CANDIDATES = 200
_BINS = 60
_SHORTEST = 8


@dataclass(frozen=True)
class Measures:
    """Length and trained token ranges of many rows, flat: range i belongs to row `owner[i]`."""

    length: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    owner: np.ndarray
    keep_first: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Encoded]) -> "Measures":
        """The measures of rows before any cut."""
        spans = [(begin, end, owner) for owner, row in enumerate(rows) for begin, end in row.spans]
        flat = np.array(spans, dtype=np.int64).reshape(-1, 3)
        length = np.fromiter((len(row.ids) for row in rows), np.int64, len(rows))
        keep_first = np.fromiter((row.keep_first for row in rows), np.int64, len(rows))
        return cls(length, flat[:, 0], flat[:, 1], flat[:, 2], keep_first)

    @property
    def trained_tokens(self) -> int:
        return int((self.end - self.begin).sum())

    def kept(self, max_length: int, truncation: str) -> np.ndarray:
        """Trained tokens of each row that a cut keeps: `encode.window` for all rows at once."""
        first, stop = self._windows(max_length, truncation)
        inside = np.minimum(self.end, stop[self.owner]) - np.maximum(self.begin, first[self.owner])
        return np.bincount(self.owner, np.maximum(inside, 0), minlength=len(self.length)).astype(np.int64)

    def _windows(self, max_length: int, truncation: str) -> tuple[np.ndarray, np.ndarray]:
        first = np.zeros_like(self.length)
        stop = np.minimum(self.length, max_length)
        over = self.length > max_length
        if truncation == "drop":
            stop[over] = 0
        if truncation != "keep_answer":
            return first, stop
        begin, end = np.zeros_like(self.length), np.zeros_like(self.length)
        begin[self.owner], end[self.owner] = self.begin, self.end
        budget = max_length - self.keep_first
        fits = end - begin <= budget
        left = np.where(fits, end - budget, np.maximum(0, begin - max_length // 4))
        moved = over & (end > max_length)
        first = np.where(moved, left, first)
        stop = np.where(moved, np.minimum(left + budget, self.length), stop)
        return first, stop


def lengths(values: np.ndarray) -> dict[str, float]:
    """Minimum, mean, percentiles (nearest rank) and maximum of token lengths; zeros for no rows."""
    if not len(values):
        return {"min": 0, "mean": 0.0, **{f"p{share}": 0 for share in _PERCENTILES}, "max": 0}
    ranked = np.percentile(values, _PERCENTILES, method="inverted_cdf")
    named = {f"p{share}": int(value) for share, value in zip(_PERCENTILES, ranked, strict=True)}
    return {"min": int(values.min()), "mean": round(float(values.mean()), 2), **named, "max": int(values.max())}


def histogram(values: np.ndarray, bins: int = _BINS) -> dict[str, list[int]]:
    """Counts of lengths in at most `bins` whole-numbered bins; `edges` has one more than `counts`."""
    if not len(values):
        return {"edges": [], "counts": []}
    low, high = int(values.min()), int(values.max()) + 1
    width = max(1, -(-(high - low) // bins))
    edges = np.arange(low, high + width, width)
    counts, _ = np.histogram(values, edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def cut_curve(measures: Measures, truncation: str, current: int) -> list[dict[str, int]]:
    """For each candidate `max_length`: rows cut, trained tokens lost, rows left with nothing to train. Exact."""
    total = measures.trained_tokens
    curve = []
    for candidate in _candidates(measures.length, current):
        kept = measures.kept(candidate, truncation)
        curve.append(
            {
                "max_length": candidate,
                "rows": int((measures.length > candidate).sum()),
                "lost_trained_tokens": total - int(kept.sum()),
                "dropped_rows": int((kept == 0).sum()),
            }
        )
    return curve


def _candidates(values: np.ndarray, current: int) -> list[int]:
    """At most 200 lengths: the current one, the percentiles, powers of two, the longest row, and steps between."""
    if not len(values):
        return [current]
    longest = int(values.max())
    wanted: set[int] = {current, longest}
    wanted.update(int(value) for value in np.percentile(values, range(50, 100), method="inverted_cdf"))
    power = _SHORTEST
    while power < 2 * longest:
        wanted.add(power)
        power *= 2
    for value in np.unique(np.linspace(_SHORTEST, max(longest, _SHORTEST), _CANDIDATES // 2).astype(int)):
        if len(wanted) < _CANDIDATES:
            wanted.add(int(value))
    return sorted(wanted)


def count_reasons(bad_rows: Sequence[Any]) -> dict[str, int]:
    """How many rows have each fault, the most frequent first."""
    counts: dict[str, int] = {}
    for bad in bad_rows:
        counts[bad.reason] = counts.get(bad.reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
