"""CPU seconds as a quiet core would take them, for limits that hold on a busy or slower machine too."""

import math
import resource
import time
from collections.abc import Callable
from typing import Self

import psutil

LOOPS = 200_000
QUIET_SECONDS = 0.014  # of `_loop` on a quiet core of 2 to 3 GHz with Python 3.11

FRESH_SECONDS = (
    0.1  # a measurement serves for so long: hundreds of short limits shall not cost more than what they limit
)
_latest = [-math.inf, 1.0]  # when slowness was measured last, and what it was


class CpuTime:
    """Measures the process's CPU time in a `with` block, scaled by the machine's slowness before and after it.

    `clock` gives that of others: `of_children` of those that end in the block.
    """

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self._clock = clock

    def __enter__(self) -> Self:
        self._before = slowness()
        self._start = self._clock()
        return self

    def __exit__(self, *_error: object) -> None:
        spent = self._clock() - self._start
        self.seconds = spent / ((self._before + slowness()) / 2)


def of_children() -> float:
    """CPU seconds of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def of_process(pid: int) -> float:
    """CPU seconds of a process that has not ended."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def slowness() -> float:
    """How many times the CPU time of a quiet core a fixed loop takes, at least 1.

    Processes that share a core's caches and threads slow each other down by up to three times, also in CPU seconds.
    """
    now = time.monotonic()
    if now - _latest[0] > FRESH_SECONDS:
        _latest[:] = now, max(1.0, _loop() / QUIET_SECONDS)
    return _latest[1]


def _loop() -> float:
    start = time.process_time()
    total = 0
    for number in range(LOOPS):
        total += number & 7
    return time.process_time() - start
