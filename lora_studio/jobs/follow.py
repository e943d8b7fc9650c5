"""One run's state kept up to date from its folder: new lines of events.jsonl, and whether the worker lives.

What it adds to the fold of the events is what a dead worker can't say itself. It writes nothing but what the events of
a run without a worker come to in short, so that the next look at a thousand runs need not read them.
"""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_studio.events import RunState, fold, from_line
from lora_studio.folded import brief, keep_folded, read_folded
from lora_studio.jobs.launcher import Worker, find, read_worker
from lora_studio.jobs.oom import oom_kills
from lora_studio.workspace import RunFolder

# A run folder is made a moment before it stands in the queue; another process must not call it lost in between.
_BIRTH_SECONDS = 10.0
_FULL_BYTES = 1 << 20
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

ExitCode = Callable[[Worker], int | None]


def last_lines(path: Path, count: int, most_bytes: int = 65_536) -> str:
    """The last lines of a log as a terminal would show them: progress bars by their last state, colours left out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - most_bytes))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in _TERMINAL_CODES.sub("", text).split("\n")]
    return "\n".join([line.rstrip() for line in shown if line.strip()][-count:])


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


class Follower:
    """Follows one run. `refresh` sees what is new; `state` is a snapshot that never changes once handed out.

    `alive`: the worker's process is there; `ended`: the worker said its last word. For a moment both are so.
    `known`: its events were read, at least in short; of a run without a worker that waits until somebody asks.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        facts = run.read_facts()
        self._facts: dict[str, Any] = {"id": run.id, "title": facts["title"], "created": facts["created"]}
        self._begin_anew()
        self._watched = (str(run.worker), str(run.events), str(run.checkpoints))
        self._signature: tuple[object, ...] = ()
        self._waiting = False
        self._exit_code: ExitCode = lambda _: None
        self._state: RunState | None = None
        self._unread = False
        self._wanted_whole = False
        self.worker: Worker | None = None
        self.alive = False
        self.known = False
        self.revision = 0

    def _begin_anew(self) -> None:
        self._folded, self._offset, self._in_short = RunState(**self._facts), 0, False

    def refresh(self, waiting: bool, exit_code: ExitCode) -> bool:
        """Reads what is new and says whether anything is; `waiting` means that the run stands in the queue."""
        files = tuple(map(_signature, self._watched))
        alive = self.alive
        if self.alive or files[:1] != self._signature[:1]:
            self.worker = read_worker(self.run)
            alive = find(self.run) is not None
        unborn = self.worker is None and files[1] is None and time.time() - self._facts["created"] < _BIRTH_SECONDS
        signature = (*files, alive, waiting, unborn)
        if self.revision and signature == self._signature:
            return False
        # The events are read after the look at the process: a worker seen dead has written all it ever will.
        self.alive = alive
        self._signature = signature
        self._waiting, self._exit_code, self._state, self._unread = waiting or unborn, exit_code, None, True
        if alive or files[1] is None:
            self.read()
        self.revision += 1
        return True

    @property
    def ended(self) -> bool:
        self.read()
        launched = self.worker.launched if self.worker else 0.0
        return self._folded.final and (self._folded.finished or 0.0) >= launched

    @property
    def state(self) -> RunState:
        """The run as of the last `refresh`. Made when it is asked for: most of what changes is never looked at."""
        self._wanted_whole = True
        if self._in_short:
            self._begin_anew()
            self._unread, self._state = True, None
        return self.in_short

    @property
    def in_short(self) -> RunState:
        """The same, or less: of a run without a worker only the last step and no answers."""
        self.read()
        if self._state is None:
            self._state = self._snapshot()
        return self._state

    def read(self) -> None:
        """Reads what the run has said since it was last read."""
        if self._unread:
            self._unread, self.known = False, True
            self._read_events()

    def _read_events(self) -> None:
        try:
            file = self.run.events.open("rb")
        except FileNotFoundError:
            return
        with file:
            found = os.fstat(file.fileno())
            key = (found.st_size, found.st_mtime_ns)
            short = not self.alive and not self._wanted_whole
            if short and (self._in_short or not self._offset) and (kept := read_folded(self.run, key)) is not None:
                self._folded, self._in_short = replace(kept, **self._facts), True
                return
            if self._in_short:
                self._begin_anew()
            file.seek(self._offset)
            new = file.read()
        self._fold_lines(new)
        if not self.alive and self._folded.events:
            keep_folded(self.run, self._folded, key)
            if short:
                self._folded, self._in_short = brief(self._folded), True

    def _fold_lines(self, new: bytes) -> None:
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = whole.decode("utf-8", errors="replace").split("\n")
        fold((event for event in map(from_line, lines) if event is not None), self._folded)

    def _snapshot(self) -> RunState:
        """The fold, corrected by what is known of the worker's process and of checkpoints that were deleted since."""
        folded = self._folded
        state = replace(
            folded,
            steps=list(folded.steps),
            evaluations=list(folded.evaluations),
            checkpoints=[item for item in folded.checkpoints if (self.run.checkpoints / item.name).is_dir()],
            warnings=list(folded.warnings),
            pauses=list(folded.pauses),
        )
        if state.final:
            state.warnings += [
                f"{name} of this run is damaged: what it held is not shown." for name in self.run.damaged()
            ]
        launched = self.worker.launched if self.worker else 0.0
        if self._waiting and (self.ended or not self.alive):
            state.state, state.finished, state.message, state.hint = "queued", None, "", ""
        elif self.alive and self.worker is not None and not self.ended:
            state.state = "running" if self.worker.stop_asked is None else "stopping"
            state.finished, state.message, state.hint, state.pid = None, "", "", self.worker.pid
            if folded.last_event is None or folded.last_event < launched:
                state.phase, state.phase_started = "start", launched
                state.phase_done = state.phase_total = 0
        elif not self.ended:
            self._explain_end(state)
        return state

    def _explain_end(self, state: RunState) -> None:
        """What to say of a run whose worker is gone and left no last word."""
        state.finished = state.last_event or state.created
        state.seconds = state.seconds_at(state.finished)
        state.state = "stopped"
        state.hint = "Resume goes on from the last checkpoint."
        if not self.run.checkpoint_folders():
            state.hint = "No checkpoint was saved yet: Resume begins again."
        if self.worker is None and self.run.worker.exists():
            state.state, state.message = "failed", f"{self.run.worker.name} is damaged: how the run ended is not known."
        elif self.worker is None:
            state.state, state.message, state.hint = "failed", "The run was never started.", "Resume starts it."
        elif self.worker.cancelled:
            state.message = "Cancelled: it was ended at once, and nothing more was saved."
        elif self.worker.reason:
            state.state, state.message = "failed", self.worker.reason
            state.hint = (
                "Delete it, or other things that you no longer need. A run takes less with a smaller rank, fewer "
                "checkpoints, and no module saved whole."
            )
        elif self.worker.killed is not None:
            state.message = "The worker did not stop in time and was ended by force."
        elif self.worker.stop_asked is not None:
            state.message = "Stopped before the worker was ready to train."
            if state.steps:
                state.message = "The worker ended while it was asked to stop."
        else:
            code = self._exit_code(self.worker)
            state.state, state.message = "failed", self._last_word(code)
            error = last_error(self.run.log) if code is not None and code > 0 else ""
            state.hint += f" The log ends with:\n{error}" if error else ""

    def _last_word(self, code: int | None) -> str:
        """Why a worker that said nothing has ended, as far as can be seen from outside."""
        if shutil.disk_usage(self.run.path).free < _FULL_BYTES:
            return "The disk is full: the worker could not even write down that it ended."
        before = self.worker.oom_kills if self.worker else None
        if before is not None and (oom_kills() or 0) > before:
            return "The memory ran out: the system killed the worker, as its count of such kills shows."
        if code == -signal.SIGKILL:
            return "The worker was killed: the system does that when memory runs out."
        if code is None:
            return "The worker vanished: it was killed, or the machine ran out of memory or was restarted."
        if code < 0:
            return f"The worker crashed: {signal.strsignal(-code) or 'unknown signal'} (signal {-code})."
        return f"The worker ended without saying why (exit code {code})."


def _signature(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
