"""How a child that works on a folder ends: whatever happens, one word on it for its last event, and an exit code.

No torch here: a child can end before it imported anything slow.
"""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from lora_studio.engine.event_log import EventLog
from lora_studio.engine.stopping import Stop, Stopped
from lora_studio.errors import StudioError
from lora_studio.events import Finished

DONE, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 130


@dataclass(frozen=True, slots=True)
class Ending:
    """An exit code with its state, one of `events.FINAL_STATES`, and what a person is told."""

    code: int
    state: str
    message: str = ""
    hint: str = ""


def ending_of(
    work: Callable[[], None], stop: Stop, *, stopped: str, explain: Callable[[Exception], tuple[str, str]]
) -> Ending:
    """Does the work and says how it ended. `stopped` is what helps after a stop, `explain` puts errors into words."""
    when_stopped = Ending(STOPPED, "stopped", "Stopped when asked to.", stopped)
    try:
        work()
        return Ending(DONE, "done")
    except Stopped:
        return when_stopped
    except StudioError as error:
        return Ending(WRONG_INPUT, "failed", error.message, error.hint)
    except Exception as error:  # the end of the process: nothing else can say what happened
        traceback.print_exc()
        if stop.cut_short:
            return when_stopped
        return Ending(FAILED, "failed", *explain(error))


def last_word(log: EventLog, ending: Ending, began: float) -> int:
    """Writes the last event and returns the exit code."""
    seconds = time.time() - began
    log.emit(Finished(time.time(), ending.state, message=ending.message, hint=ending.hint, seconds=seconds))
    print(f"{ending.state}: {ending.message} {ending.hint}".strip(": "), flush=True)
    return ending.code
