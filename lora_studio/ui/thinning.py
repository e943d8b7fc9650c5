"""Lines of very many points made fit to be drawn: thinned so that spikes survive, and smoothed.

A run only ever gets longer, so a line takes up new points and is never made anew: a hundred thousand of them cost no
more a look than a thousand.
"""

import math
from array import array
from collections.abc import Sequence

MOST_A_LINE = 500


class Thinned:
    """Values that only get more. `kept` names those to draw: of every bucket the lowest and the highest.

    Buckets hold a power of two of neighbouring values and double when there are too many, so that what is drawn stays
    where it is while the curve grows.
    """

    def __init__(self, most_buckets: int = 1024) -> None:
        self.values = array("d")
        self._most_buckets = most_buckets
        self._size = 1
        self._low: list[int] = []
        self._high: list[int] = []

    def add(self, value: float | None) -> None:
        """One more value; None, NaN and infinity are gaps in the line."""
        index = len(self.values)
        self.values.append(value if value is not None and math.isfinite(value) else math.nan)
        if index % self._size:
            self._low[-1], self._high[-1] = self._wider(self._low[-1], self._high[-1], index, index)
            return
        if len(self._low) == self._most_buckets:
            self._merge()
        if index % self._size:
            self._low[-1], self._high[-1] = self._wider(self._low[-1], self._high[-1], index, index)
        else:
            self._low.append(index)
            self._high.append(index)

    def kept(self, most: int) -> list[int]:
        """Indexes of at most `most` values, rising, with the first and the last."""
        count = len(self.values)
        if count <= most:
            return list(range(count))
        together = 1
        while 2 * math.ceil(len(self._low) / together) > most - 2:
            together *= 2
        kept = {0, count - 1}
        for start in range(0, len(self._low), together):
            low, high = self._low[start], self._high[start]
            for next_low, next_high in zip(
                self._low[start + 1 : start + together], self._high[start + 1 : start + together], strict=True
            ):
                low, high = self._wider(low, high, next_low, next_high)
            kept |= {low, high}
        return sorted(kept)

    def _merge(self) -> None:
        """Two neighbouring buckets become one."""
        pairs = [
            self._wider(*self._bucket(number), *self._bucket(min(number + 1, len(self._low) - 1)))
            for number in range(0, len(self._low), 2)
        ]
        self._low, self._high = [low for low, _ in pairs], [high for _, high in pairs]
        self._size *= 2

    def _bucket(self, number: int) -> tuple[int, int]:
        return self._low[number], self._high[number]

    def _wider(self, low: int, high: int, other_low: int, other_high: int) -> tuple[int, int]:
        """The lowest and highest of two buckets; a gap counts only where there is nothing else."""
        values = self.values
        if math.isnan(values[low]):
            return other_low, other_high
        if math.isnan(values[other_low]):
            return low, high
        return (
            other_low if values[other_low] < values[low] else low,
            other_high if values[other_high] > values[high] else high,
        )


def thin(
    xs: Sequence[float], ys: Sequence[float | None], most: int = MOST_A_LINE
) -> tuple[list[float], list[float | None]]:
    """At most `most` points of a curve that is there as a whole, lowest and highest of each bucket kept."""
    curve = Thinned()
    for y in ys:
        curve.add(y)
    kept = curve.kept(most)
    return [xs[index] for index in kept], [short(curve.values[index]) for index in kept]


class Smoothed:
    """The exponential moving average of values that only get more, without the pull of its start towards zero.

    `weight` is what remains of the past at each point, 0 to below 1 (as in TensorBoard); gaps stay gaps.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.curve = Thinned()
        self._sum = self._weights = 0.0

    def follow(self, values: Sequence[float]) -> None:
        """Takes up what is new in `values`."""
        for value in values[len(self.curve.values) :]:
            if math.isnan(value):
                self.curve.add(None)
                continue
            self._sum = self.weight * self._sum + (1 - self.weight) * value
            self._weights = self.weight * self._weights + (1 - self.weight)
            self.curve.add(self._sum / self._weights)


def short(value: float) -> float | None:
    """Five digits are more than a chart can show; None where there is no number."""
    return None if math.isnan(value) else float(f"{value:.5g}")
