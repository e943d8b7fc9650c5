"""CPU seconds as a quiet core would take them, for limits that hold on a busy or slower machine too."""

import time
from typing import Self

LOOPS = 200_000
QUIET_SECONDS = 0.014  # of `_loop` on a quiet core of 2 to 3 GHz with Python 3.11


class CpuTime:
    """Measures the process's CPU time in a `with` block, scaled by the machine's slowness before and after it."""

    def __enter__(self) -> Self:
        self._before = slowness()
        self._start = time.process_time()
        return self

    def __exit__(self, *_error: object) -> None:
        spent = time.process_time() - self._start
        self.seconds = spent / ((self._before + slowness()) / 2)


def slowness() -> float:
    """How many times the CPU time of a quiet core a fixed loop takes, at least 1.

    Processes that share a core's caches and threads slow each other down by up to three times, also in CPU seconds.
    """
    return max(1.0, _loop() / QUIET_SECONDS)


def _loop() -> float:
    start = time.process_time()
    total = 0
    for number in range(LOOPS):
        total += number & 7
    return time.process_time() - start
