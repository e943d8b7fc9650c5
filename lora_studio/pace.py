"""How fast something goes and how long the rest of it takes: numbers, which terminal and page put into words."""

from dataclasses import dataclass

from lora_studio.events import RunState

LEAST_SECONDS = 1.0
"""After a shorter time a speed is a guess."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What is done in a second, and the seconds that the rest will take."""

    per_second: float
    seconds_left: float


def pace(done: float, total: float, seconds: float) -> Pace | None:
    """None where nothing is done yet, or too short a time has passed."""
    if done <= 0 or seconds < LEAST_SECONDS:
        return None
    return Pace(done / seconds, max(0.0, total - done) * seconds / done)


def short(number: float) -> str:
    """A speed with three digits or all before the point: 0.512, 4.2, 12,345."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def pace_of(state: RunState, before: int = 0) -> Pace | None:
    """The pace of the phase that goes on; `before` is what was done before this start. None in one without counts."""
    if not state.phase_total or state.phase_started is None or state.last_event is None:
        return None
    return pace(state.phase_done - before, state.phase_total - before, state.last_event - state.phase_started)
