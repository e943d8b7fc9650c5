"""How a child that works on a folder begins and ends: whatever happens, a last event in words, and an exit code.

No torch here: a child can end before it imported anything slow.
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from lora_studio.engine.event_log import EventLog
from lora_studio.engine.stopping import Stop, Stopped
from lora_studio.errors import StudioError
from lora_studio.events import Finished, Reason
from lora_studio.job_folders import Folder

DONE, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 130


@dataclass(frozen=True)
class Child(Generic[Folder]):
    """A child at work: its folder, whether it goes on with what is there, the stop it hears, its events."""

    folder: Folder
    resume: bool
    stop: Stop
    log: EventLog


def begin(
    arguments: Sequence[str] | None,
    module: str,
    kind: Callable[[Path], Folder],
    noun: str,
    asked: Callable[[Folder], Path],
    *,
    resumes: bool = True,
) -> Child[Folder] | None:
    """Listens for a stop and opens the folder that the command names; what an earlier child came to is removed.

    `asked` is the file that says what is to be done. None, with a sentence on stderr, where it is not there.
    """
    parser = argparse.ArgumentParser(prog=module)
    parser.add_argument("folder", type=Path)
    if resumes:
        parser.add_argument("--resume", action="store_true")
    options = vars(parser.parse_args(arguments))
    stop = Stop()
    stop.listen()
    folder = kind(options["folder"].resolve())
    if not asked(folder).is_file():
        print(f"{folder.path} is no {noun}: it has no {asked(folder).name}.", file=sys.stderr)
        return None
    folder.complete.unlink(missing_ok=True)
    return Child(folder, resumes and options["resume"], stop, EventLog(folder.events))


@dataclass(frozen=True, slots=True)
class Ending:
    """An exit code with its state, one of `events.FINAL_STATES`, the reason, and what only the worker knows of it."""

    code: int
    state: str
    reason: Reason
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Explained:
    """An error that ended the work: its kind, in one sentence, and what helps."""

    reason: Reason
    message: str
    hint: str


def ending_of(work: Callable[[], None], stop: Stop, *, explain: Callable[[Exception], Explained]) -> Ending:
    """Does the work and says how it ended; `explain` puts errors that nobody foresaw into words."""
    when_stopped = Ending(STOPPED, "stopped", Reason.STOPPED)
    try:
        work()
        return Ending(DONE, "done", Reason.COMPLETED)
    except Stopped:
        return when_stopped
    except StudioError as error:
        return Ending(WRONG_INPUT, "failed", Reason.REFUSED, error.message, error.hint)
    except Exception as error:  # the end of the process: nothing else can say what happened
        ending = when_stopped
        if not stop.cut_short:
            known = explain(error)
            ending = Ending(FAILED, "failed", known.reason, known.message, known.hint)
        traceback.print_exc()  # not before: on a full disk nothing can be said until room is made
        return ending


def unexpected(work: str, error: Exception, hint: str) -> Explained:
    """An error that nobody foresaw, in one sentence."""
    first = str(error).strip().partition("\n")[0][:300]
    return Explained(Reason.INTERNAL_ERROR, f"{work} ended with an error: {type(error).__name__}: {first}", hint)


def last_word(log: EventLog, ending: Ending, step: int = 0) -> int:
    """Writes the last event and returns the exit code."""
    log.emit(Finished(time.time(), ending.state, step, ending.message, ending.hint, ending.reason))
    print(f"{ending.state}: {ending.message} {ending.hint}".strip(": "), flush=True)
    return ending.code


def leave(code: int) -> None:
    """Ends the process; a thread of a library that is still loading must not hold a stopped child."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
