"""How a worker hears that it should stop: a signal sets a flag, and, outside of training, ends the phase at once.

No torch here: the worker listens before it imports anything slow.
"""

import signal
import time
from types import FrameType

# A stop waits so long for the end of a step; after that the batches added up for it so far are given away.
STEP_SECONDS = 3.0


class Stopped(BaseException):
    """The user asked for an end. Not an `Exception`: a library that catches those must not swallow it."""


class Stop:
    """`asked` once a stop was asked for. Until `finish_step_first` the signal itself raises `Stopped`.

    It is `cut_short` once it did so: libraries that are loading swallow it or make an error of it, and any error after
    that means the stop.
    """

    def __init__(self) -> None:
        self.asked = self.cut_short = False
        self._asked_at = 0.0
        self._at_once = True

    def listen(self) -> None:
        """From now on SIGTERM and Ctrl-C ask for a stop instead of killing the process."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._asked_at = self._asked_at or time.monotonic()
        if self._at_once:
            self._at_once = False  # a second signal must not interrupt the tidying up
            self.cut_short = True
            raise Stopped

    def check(self) -> None:
        """Raises `Stopped` if a stop was asked for."""
        if self.asked:
            raise Stopped

    def check_long_step(self) -> None:
        """Between two batches of one step: raises `Stopped` where the whole step would take too long to wait for."""
        if self.asked and time.monotonic() - self._asked_at > STEP_SECONDS:
            raise Stopped

    def finish_step_first(self) -> None:
        """Training begins: a signal only sets the flag, and the callback ends the run after the step."""
        self._at_once = False
        self.check()

    def end_at_once(self) -> None:
        """Training is over: a signal ends what follows."""
        self._at_once = True
        self.check()
