"""A model that comes from the Hub, as a phase of the run: bytes that are here of all bytes.

The Hub's library shows its progress with bars; one of these counts instead of drawing.
"""

import threading
from collections.abc import Callable
from typing import Any, Protocol

from tqdm.auto import tqdm

SMALLEST_BYTES = 1_000_000  # an index or a config is here before anyone could read of it
_SECOND_COUNT = "ownloading bytes"  # the bar of what the network brings, beside that of what is written


class Phases(Protocol):
    """What is told of a download: an event log, or what stands in for one."""

    def phase(self, phase: str, total: int = 0, unit: str = "") -> None: ...

    def progress(self, done: int, total: int) -> None: ...


class Calls:
    """Calls a function with phase, done and total, where there is no log to write events to."""

    def __init__(self, tell: Callable[[str, int, int], None]) -> None:
        self._tell, self._phase = tell, ""

    def phase(self, phase: str, total: int = 0, unit: str = "") -> None:
        self._phase = phase
        self._tell(phase, 0, total)

    def progress(self, done: int, total: int) -> None:
        self._tell(self._phase, done, total)


class Download:
    """Adds the bars of all files up to one phase, and goes back to the phase before when all are here."""

    def __init__(self, log: Phases, back_to: str = "model") -> None:
        self._log = log
        self._back_to = back_to
        self._lock = threading.Lock()
        self._bars: list[Any] = []
        self._going_on = False

    def bar_class(self) -> type[tqdm]:
        """What to give the Hub's library as `tqdm_class`."""
        download = self

        class Bar(tqdm):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **{**kwargs, "disable": True})
                self.counts = kwargs.get("unit") == "B" and not str(kwargs.get("desc")).endswith(_SECOND_COUNT)
                if self.counts:
                    download._bars.append(self)
                    download._tell()

            def update(self, n: float | None = 1) -> bool | None:
                self.n += n or 0
                if self.counts:
                    download._tell()
                return None

        return Bar

    def _tell(self) -> None:
        with self._lock:
            large = [bar for bar in self._bars if (bar.total or 0) >= SMALLEST_BYTES]
            done, total = sum(int(bar.n) for bar in large), sum(int(bar.total) for bar in large)
            if not large:
                return
            if not self._going_on and done < total:
                self._going_on = True
                self._log.phase("download", total, "bytes")
            if self._going_on:
                self._log.progress(done, total)
            if self._going_on and done >= total:
                self._going_on = False
                self._log.phase(self._back_to)
