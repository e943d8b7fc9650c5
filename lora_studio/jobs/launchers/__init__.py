"""Where a worker runs and how it is started, found, stopped and ended. The only place that knows processes.
May import errors and the folder contracts of jobs.

Here is what every launcher can do with a job's worker, and what it tells of it; what a process is stays inside.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lora_studio.workspace import JobFolder

_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Worker:
    """A job's latest worker, alive or not: when it was launched, and what was asked of it since.

    `reason` are the words for whoever wonders why it was killed without having been asked to stop.
    """

    launched: float
    stop_asked: float | None = None
    killed: float | None = None
    cancelled: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a worker ended, as far as its launcher can tell: `code` is negative for a signal, None where nobody knows.

    `out_of_memory`: the system counted a kill for want of memory while it worked.
    """

    code: int | None = None
    out_of_memory: bool = False


class Launcher(Protocol):
    """Starts workers in one kind of place, and finds them again from the job's folder, whoever started them."""

    def start(
        self, folder: JobFolder, module: str, *, resume: bool = False, env: Mapping[str, str] | None = None
    ) -> None:
        """A new worker that runs `module` on the folder. The caller makes sure that the job has none alive.

        `env` is for this one alone, and is written nowhere.
        """

    def worker(self, folder: JobFolder) -> Worker | None:
        """The job's latest worker; None where none was ever started, or where its record is damaged."""

    def is_alive(self, folder: JobFolder) -> bool:
        """Whether the job's worker works, or is about to end."""

    def ask_to_stop(self, folder: JobFolder) -> bool:
        """Asks the worker to save and end; False where none is alive."""

    def kill(self, folder: JobFolder, *, cancelled: bool = False, reason: str = "") -> bool:
        """Ends the worker and everything it started; False where nothing was left.

        `cancelled` notes that a person wanted this, and not only an end; `reason` why nobody was asked.
        """

    def collect(self) -> None:
        """Takes notice of workers that ended, so that nothing of them is held."""

    def how_it_ended(self, folder: JobFolder) -> Exit:
        """How the latest worker ended. Asked only once it is not alive."""

    def log(self, folder: JobFolder, lines: int) -> str:
        """The end of what the worker printed."""


def last_lines(path: Path, count: int, max_bytes: int = 65_536) -> str:
    """The last lines of a log as a terminal would show them: progress bars by their last state, colours left out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - max_bytes))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    visible = [line.rstrip("\r").rpartition("\r")[2] for line in _TERMINAL_CODES.sub("", text).split("\n")]
    return "\n".join([line.rstrip() for line in visible if line.strip()][-count:])


def last_error(path: Path) -> str:
    """The error that a log ends with: the last traceback's own words, else its last line; "" for an empty log.

    What stands before is progress and warnings, which have nothing to do with the end.
    """
    lines = last_lines(path, 200).split("\n")
    last = max((index for index, line in enumerate(lines) if line.startswith("Traceback (")), default=None)
    if last is None:
        return lines[-1]
    words = [line for line in lines[last + 1 :] if not line.startswith(" ")]
    return "\n".join(words[:4]) or lines[-1]
