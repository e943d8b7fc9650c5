"""Follows a job with a folder of its own (an evaluation, an export) in the terminal; Ctrl-C is handed on as a stop."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lora_studio.cli.terminal import say
from lora_studio.events import RunState
from lora_studio.job_folders import Folder
from lora_studio.jobs.folder_jobs import FolderJobs

FAILED = 1

LOOK_SECONDS, SAY_SECONDS = 0.2, 3.0


@dataclass(frozen=True, slots=True)
class Telling:
    """What is said of a kind of job. A phase without words is told by its progress alone.

    `progress` gives a line, "" where there is nothing to tell yet; `notes` says that the job's warnings are told as
    they come (else whoever follows tells them).
    """

    phases: Mapping[str, str]
    progress: Callable[[RunState], str]
    stopping: str
    notes: bool = False


def goes_on(name: str) -> str:
    """What is said of a job or a run as it begins."""
    runs = "python -m lora_studio runs"
    return f"  It goes on if this terminal is closed: `{runs} follow {name}` tells of it, `{runs} stop {name}` ends it."


def follow(jobs: FolderJobs[Folder], folder: Folder, telling: Telling, *, leaves: bool = False) -> RunState:
    """Tells of a job until it ends. Ctrl-C stops it, a second one ends it at once; with `leaves` it only ends this."""
    said, phase, interrupted, noted = 0.0, "", 0, 0
    while True:
        try:
            state = jobs.state(folder.id)
            for note in state.warnings[noted:] if telling.notes else ():
                say(f"  note: {note}")
            noted = len(state.warnings)
            if state.final and jobs.busy() is None:
                return state
            if state.phase != phase:
                phase, words = state.phase, telling.phases.get(state.phase, "")
                if words:
                    say(words)
                said = time.monotonic() if words else 0.0
            line = telling.progress(state)
            if line and time.monotonic() - said >= SAY_SECONDS:
                said = time.monotonic()
                say(f"  {line}")
            time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt:
            if leaves:
                raise
            interrupted += 1
            if interrupted == 1:
                say(f"Stopping; {telling.stopping}. Ctrl-C again ends it at once.")
                jobs.stop(folder.id)
            else:
                jobs.kill(folder.id)


def exit_code(state: RunState, child: int | None) -> int:
    """0 done, 1 failed, 2 wrong input, 130 stopped; `child` is how the child itself ended, where that is known."""
    if state.state == "done":
        return 0
    return 130 if state.state == "stopped" else 2 if child == 2 else FAILED
