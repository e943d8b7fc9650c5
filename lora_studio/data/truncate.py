"""Truncation and packing of many rows as array arithmetic, and statistics of their lengths.

`encode.window` is the rule for one row; a test compares the two. Packing: Ding et al. 2024, arXiv:2404.10830.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from lora_studio.data.encode import PROMPT_SHARE, Encoded
from lora_studio.errors import StudioError


@dataclass(frozen=True)
class Cuts:
    """What a cut makes of rows: example i is the tokens `first[i]:stop[i]` of row `owner[i]`, with the row's first
    token in front where `head[i]` says so; `trained[i]` of them are trained, `lost[i]` trained tokens are cut off."""

    owner: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    head: np.ndarray
    trained: np.ndarray
    lost: np.ndarray

    @property
    def length(self) -> np.ndarray:
        """Tokens of each example."""
        return self.stop - self.first + self.head


@dataclass(frozen=True)
class Measures:
    """Length and trained token ranges of rows, flat: range i belongs to row `owner[i]`. `is_text`: plain text."""

    length: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    owner: np.ndarray
    keep_first: np.ndarray
    is_text: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Encoded]) -> "Measures":
        """The measures of rows before any cut."""
        spans = [(begin, end, owner) for owner, row in enumerate(rows) for begin, end in row.spans]
        flat = np.array(spans, dtype=np.int64).reshape(-1, 3)
        length = np.fromiter((len(row.ids) for row in rows), np.int64, len(rows))
        keep_first = np.fromiter((row.keep_first for row in rows), bool, len(rows))
        is_text = np.fromiter((row.is_text for row in rows), bool, len(rows))
        return cls(length, flat[:, 0], flat[:, 1], flat[:, 2], keep_first, is_text)

    def joined(self, other: "Measures") -> "Measures":
        """These rows, then the other's."""
        pairs = [(vars(self)[name], vars(other)[name]) for name in ("length", "begin", "end")]
        flags = [np.concatenate([vars(self)[name], vars(other)[name]]) for name in ("keep_first", "is_text")]
        length, begin, end = (np.concatenate(pair) for pair in pairs)
        return Measures(length, begin, end, np.concatenate([self.owner, other.owner + len(self.length)]), *flags)

    def longest_first(self) -> "Measures":
        """The same rows by length, so that the rows that a cut touches come first."""
        order = np.argsort(-self.length, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        spans = np.argsort(place[self.owner], kind="stable")
        flags = self.keep_first[order], self.is_text[order]
        return Measures(self.length[order], self.begin[spans], self.end[spans], place[self.owner[spans]], *flags)

    def first(self, count: int) -> "Measures":
        """The first rows; owners must be rising."""
        spans = slice(0, int(np.searchsorted(self.owner, count)))
        flags = self.keep_first[:count], self.is_text[:count]
        return Measures(self.length[:count], self.begin[spans], self.end[spans], self.owner[spans], *flags)

    @property
    def trained_tokens(self) -> int:
        return int((self.end - self.begin).sum())

    @property
    def trained(self) -> np.ndarray:
        """Trained tokens of each row before any cut."""
        return np.bincount(self.owner, self.end - self.begin, minlength=len(self.length)).astype(np.int64)

    def split(self, max_length: int, truncation: str) -> np.ndarray:
        """Mask of long plain texts, which are split into windows instead of truncated."""
        return self.is_text & (self.length > max_length) & (truncation != "drop")

    def cut_rows(self, max_length: int, truncation: str) -> np.ndarray:
        """Mask of rows that lose tokens."""
        return (self.length > max_length) & ~self.split(max_length, truncation)

    def kept(self, max_length: int, truncation: str) -> np.ndarray:
        """Trained tokens of each row that a cut keeps."""
        first, stop = self._windows(max_length, truncation)
        whole = self.split(max_length, truncation)
        first[whole], stop[whole] = 0, self.length[whole]
        inside = np.minimum(self.end, stop[self.owner]) - np.maximum(self.begin, first[self.owner])
        return np.bincount(self.owner, np.maximum(inside, 0), minlength=len(self.length)).astype(np.int64)

    def cuts(self, max_length: int, truncation: str) -> Cuts:
        """The examples that the rows become, in the rows' order; a row may leave one without any trained token."""
        first, stop = self._windows(max_length, truncation)
        head = self.keep_first & (first > 0)
        trained, whole = self.kept(max_length, truncation), self.trained
        owner = np.arange(len(self.length))
        split = self.split(max_length, truncation)
        if split.any():
            parts = np.where(split, -(-self.length // max_length), 1)
            owner = np.repeat(owner, parts)
            part = np.arange(len(owner)) - np.repeat(np.cumsum(parts) - parts, parts)
            long, length = split[owner], self.length[owner]
            # A last window of a single token would have nothing to predict: it takes one from the window before.
            begins = np.minimum(part * max_length, np.where(part > 0, length - 2, 0))
            ends = np.where(part + 1 == parts[owner], length, np.minimum((part + 1) * max_length, length - 2))
            first, stop = np.where(long, begins, first[owner]), np.where(long, ends, stop[owner])
            head = head[owner] & ~long
            untrained = np.maximum(0, (length - whole[owner]) - first)  # at most the leading token is not trained
            trained = np.where(long, stop - first - np.minimum(untrained, stop - first), trained[owner])
            return Cuts(owner, first, stop, head, trained, np.where(long, 0, whole[owner] - trained))
        return Cuts(owner, first, stop, head, trained, whole - trained)

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
        start = np.where(fits, end - budget, np.maximum(0, begin - max_length // PROMPT_SHARE))
        moved = over & (end > max_length)
        first = np.where(moved, start, first)
        stop = np.where(moved, np.minimum(start + budget, self.length), stop)
        return first, stop


class PackingForecast(TypedDict):
    """Rows and the sequences that they fill, with the share of padding alone and packed."""

    max_length: int
    rows: int
    packs: int
    rows_per_pack: float
    padding_alone: float
    padding_packed: float


def count_packs(lengths: np.ndarray, max_length: int) -> int:
    """Sequences of at most `max_length` tokens that rows of these lengths fill; longer rows count as cut.

    Rows of one length are placed at once: the fullest sequence that still takes one takes as many as it can.
    """
    counts = np.bincount(np.minimum(lengths[lengths > 0], max_length), minlength=max_length + 1)
    free: dict[int, int] = defaultdict(int)  # sequences by the room they have left
    open_rooms = 0  # the same rooms as bits, to find the smallest that is large enough
    packs = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        remaining = int(counts[length])
        while remaining:
            fitting = open_rooms >> length
            room = length + (fitting & -fitting).bit_length() - 1 if fitting else max_length
            per_pack = room // length
            here = free[room] if fitting else remaining  # a new sequence is always to be had
            filled = min(here, remaining // per_pack) or 1
            rows = min(filled * per_pack, remaining)
            if fitting:
                free[room] -= filled
                open_rooms &= ~(0 if free[room] else 1 << room)
            else:
                packs += filled
            room_left = room - rows // filled * length
            free[room_left] += filled
            open_rooms |= 1 << room_left if room_left else 0
            remaining -= rows
    return packs


def padding(lengths: np.ndarray, batch_size: int) -> float:
    """Share of padding in random batches that are padded to their longest row."""
    order = np.random.default_rng(0).permutation(lengths)
    starts = np.arange(0, len(order), batch_size)
    if not len(starts):
        return 0.0
    sizes = np.diff([*starts, len(order)])
    filled = int((np.maximum.reduceat(order, starts) * sizes).sum())
    return round(1 - int(order.sum()) / filled, 4) if filled else 0.0


def forecast(lengths: np.ndarray, max_length: int, batch_size: int = 1) -> PackingForecast:
    """Forecast of packing: rows to sequences, and the share of padding of batches without it and
    sequences that are filled up have with it."""
    rows, tokens = int((lengths > 0).sum()), int(np.minimum(lengths, max_length).sum())
    packs = count_packs(lengths, max_length)
    packed = packs * max_length - tokens
    return {
        "max_length": max_length,
        "rows": rows,
        "packs": packs,
        "rows_per_pack": round(rows / packs, 2) if packs else 0.0,
        "padding_alone": padding(np.minimum(lengths[lengths > 0], max_length), batch_size),
        "padding_packed": round(packed / (packs * max_length), 4) if packs else 0.0,
    }


def steps(rows: int, batch_size: int, accumulation: int) -> int:
    """Optimizer steps in one epoch on one device, as the trainer counts them: the last one may be short."""
    return math.ceil(math.ceil(rows / batch_size) / accumulation)


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
        return {"max_length": max(longest, _MIN_LENGTH), "reason": f"All rows have at most {longest:,} tokens."}
    over = int((values > rounded).sum())
    return {
        "max_length": rounded,
        "reason": f"95 of 100 rows have at most {p95:,} tokens; 1.1 to 1.2 times that is {low:,} to {high:,}, "
        f"rounded up to a multiple of {_MULTIPLE}. {over:,} {'row is' if over == 1 else 'rows are'} "
        "longer.",
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
