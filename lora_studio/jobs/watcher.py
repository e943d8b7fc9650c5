"""One job's state kept up to date from its folder: new lines of events.jsonl, and whether the worker lives; and the end
of workers that do not stop, or fill more of the disk than their user has.

A snapshot of the fold beside the events saves reading them again. It holds for one size and time of the file and may be
deleted at any time.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

from lora_studio import __version__
from lora_studio.config.compute import LOCAL
from lora_studio.errors import StudioError
from lora_studio.jobs.devices import Holder, demand_of, read_held
from lora_studio.jobs.events import (
    CheckpointSaved,
    DataPrepared,
    Evaluated,
    MemoryEstimated,
    ModelLoaded,
    Reason,
    RowsRead,
    RunState,
    StepLogged,
    fold_lines,
    of_right_kinds,
    reason_named,
)
from lora_studio.jobs.kinds import TRAIN, Kind, at_work
from lora_studio.jobs.launchers import Exit, Launcher, Wait, Worker, last_error
from lora_studio.models.hub import Charge
from lora_studio.workspace import JobFolder, Workspace

_log = logging.getLogger(__name__)
Key = tuple[int, int]
"""Size and time of change (nanoseconds) of the events."""
_ONE: dict[str, type] = {
    "data": DataPrepared,
    "test_rows": RowsRead,
    "model": ModelLoaded,
    "memory": MemoryEstimated,
}
_MANY: dict[str, type] = {"steps": StepLogged, "evaluations": Evaluated, "checkpoints": CheckpointSaved}
_FIELDS = {
    kind.__name__: [item.name for item in dataclasses.fields(kind)] for kind in (*_ONE.values(), *_MANY.values())
}
_MADE_BY = [__version__, [item.name for item in dataclasses.fields(RunState)], _FIELDS]


def brief(state: RunState) -> RunState:
    """The same without what grows with every step: of the steps only the last one is left, of the answers none."""
    return dataclasses.replace(state, steps=state.steps[-1:], questions=None, answers=[])


def read_folded(folder: JobFolder, key: Key) -> RunState | None:
    """The run's brief state as of events of that size and time; None where that is not known."""
    try:
        snapshot = json.loads(folder.folded.read_text(encoding="utf-8"))
        return _state(snapshot["state"]) if (snapshot["made_by"], snapshot["key"]) == (_MADE_BY, list(key)) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def keep_folded(folder: JobFolder, state: RunState, key: Key) -> None:
    """Writes the run's brief state down. Where that is not possible (disk full, run gone), nothing is lost but time."""
    snapshot = {"made_by": _MADE_BY, "key": key, "state": dataclasses.asdict(brief(state))}
    temporary = folder.folded.with_name(f"{folder.folded.name}.{os.getpid()}-{threading.get_ident()}")
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps(snapshot), encoding="utf-8")
        os.replace(temporary, folder.folded)
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def _state(values: Mapping[str, Any]) -> RunState:
    one = {name: kind(**values[name]) for name, kind in _ONE.items() if values[name] is not None}
    many = {name: [kind(**item) for item in values[name]] for name, kind in _MANY.items()}
    pauses = [(begin, end) for begin, end in values["pauses"]]
    reason = reason_named(values["reason"])
    state = RunState(**{**values, **one, **many, "pauses": pauses, "reason": reason})
    if not all(map(of_right_kinds, (state, *one.values(), *(item for items in many.values() for item in items)))):
        raise ValueError("values of wrong types")
    return state


# A job's folder is made a moment before it stands in the queue; another process must not call it lost in between.
_BIRTH_SECONDS = 10.0
_FULL_BYTES = 1 << 20
STOPPED_THERE = (Reason.CANCELLED_ELSEWHERE, Reason.OUT_OF_TIME, Reason.PREEMPTED)
"""Why a target ended work that did not fail."""
BEFORE_WORK = ("", "start", "data", "download", "model")
"""Phases in which a worker has nothing to save yet."""


class JobFacts(TypedDict):
    """The fields of a job's state that its folder's facts give, not its events."""

    id: str
    kind: str
    title: str
    created: float
    target: str


class Follower:
    """Follows one job. `refresh` sees what is new; `state` is a snapshot that never changes once handed out.

    `alive`: the worker's process is there; `ended`: the worker said its last word. For a moment both are so.
    `on_device`: it needs devices, which others wait for as long as it is alive: its `demand`, and those `held`, by id
    and name; no job does that is `remote`, on a target beside this machine.
    `known`: its events were read, at least in short; of a run without a worker that waits until somebody asks.
    """

    def __init__(self, folder: JobFolder, launcher: Launcher, kind: Kind = TRAIN) -> None:
        self.folder, self.kind, self.launcher = folder, kind, launcher
        facts = folder.read_facts()
        title, created = str(facts.get("title", folder.id)), facts["created"]
        target = str(facts.get("compute_target", LOCAL))
        self.remote = target != LOCAL
        self.on_device = not self.remote and bool(facts.get("needs_device", kind.needs_device))
        self.demand = demand_of(facts)
        self.held: list[tuple[str, str]] = []
        self._why, self.short_of_memory = "", False
        self._facts: JobFacts = {
            "id": folder.id,
            "kind": kind.name,
            "title": title,
            "created": created,
            "target": target,
        }
        self._begin_anew()
        self._watched = tuple(map(str, folder.watched))
        self._signature: tuple[object, ...] = ()
        self._waiting = False
        self._state: RunState | None = None
        self._unread = False
        self._wanted_whole = False
        self.worker: Worker | None = None
        self._wait: Wait | None = None
        self._charge: Charge | None = None
        self.alive = False
        self.known = False
        self._refreshed = False

    def _begin_anew(self) -> None:
        self._folded, self._offset, self._in_short = RunState(**self._facts), 0, False

    def wait_for(self, why: str, *, short_of_memory: bool = False) -> None:
        """Notes why the job, which is queued, does not start yet; "" where its turn has come."""
        self.short_of_memory = short_of_memory
        if why != self._why:
            self._why, self._state = why, None

    def as_holder(self, ids: Sequence[str]) -> Holder:
        """The job as the holder of these devices."""
        state, demand = self.in_short, self.demand
        title = state.title or state.id
        return Holder(self.kind.noun, title, tuple(ids), demand.owner, demand.memory or 0, self.folder.id)

    def refresh(self, waiting: bool) -> bool:
        """Reads what is new and says whether anything is; `waiting` means that the job stands in the queue."""
        files = tuple(map(_signature, self._watched))
        alive = self.alive
        started = files[:1] != self._signature[:1]
        if self.alive or started:
            self.worker = self.launcher.worker(self.folder)
            alive = self.launcher.is_alive(self.folder)
            self._wait = self.launcher.waits(self.folder) if alive else None
            self._charge = self.launcher.charge(self.folder) if self.remote else None
        if alive and (started or not self.alive):
            self.held = read_held(self.folder)
        unborn = self.worker is None and files[1] is None and time.time() - self._facts["created"] < _BIRTH_SECONDS
        signature = (*files, alive, self._wait, self._charge, waiting, unborn)
        if self._refreshed and signature == self._signature:
            return False
        # The events are read after the look at the process: a worker seen dead has written all it ever will.
        self.alive = alive
        self._signature = signature
        self._waiting, self._state, self._unread = waiting or unborn, None, True
        if alive or files[1] is None:
            self.read()
        self._refreshed = True
        return True

    @property
    def ended(self) -> bool:
        self.read()
        launched = self.worker.launched if self.worker else 0.0
        final = self._folded.final and (self._folded.finished or 0.0) >= launched
        return final and self._wait is None and not self._stopped_by_target

    @property
    def _stopped_by_target(self) -> bool:
        """Whether the worker ended because its target wanted that, which may begin it again: more is known when the
        target is done with it."""
        own = self.worker is not None and self.worker.stop_asked is not None
        return self.remote and self.alive and self._folded.reason is Reason.STOPPED and not own

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
            file = self.folder.events.open("rb")
        except FileNotFoundError:
            return
        with file:
            status = os.fstat(file.fileno())
            key = (status.st_size, status.st_mtime_ns)
            short = not self.alive and not self._wanted_whole
            if short and (self._in_short or not self._offset) and (known := read_folded(self.folder, key)) is not None:
                self._folded, self._in_short = replace(known, **self._facts), True
                return
            if self._in_short:
                self._begin_anew()
            file.seek(self._offset)
            new = file.read()
        self._fold_lines(new)
        if not self.alive and self._folded.events:
            keep_folded(self.folder, self._folded, key)
            if short:
                self._folded, self._in_short = brief(self._folded), True

    def _fold_lines(self, new: bytes) -> None:
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        fold_lines(whole.decode("utf-8", errors="replace").split("\n"), self._folded)

    def _snapshot(self) -> RunState:
        """The fold, corrected by what is known of the worker's process and of checkpoints that were deleted since."""
        folded = self._folded
        state = replace(
            folded,
            steps=list(folded.steps),
            evaluations=list(folded.evaluations),
            checkpoints=[item for item in folded.checkpoints if self.folder.holds_checkpoint(item.name)],
            warnings=list(folded.warnings),
            pauses=list(folded.pauses),
        )
        if state.final:
            state.warnings += [
                f"{name} of this {self.kind.noun} is damaged: its contents are not shown."
                for name in self.folder.damaged()
            ]
        launched = self.worker.launched if self.worker else 0.0
        state.charge = self._charge
        state.restarts = self.worker.restarts if self.worker else 0
        if self._waiting and (self.ended or not self.alive):
            state.state, state.finished, state.reason, state.message, state.hint = "queued", None, None, "", ""
            state.waiting = self._why
        elif self._wait is not None:
            state.state, state.finished, state.reason, state.message, state.hint = "queued", None, None, "", ""
            state.waiting = self._wait.words(state.target)
            state.expected_start = self._wait.expected_start
        elif self.alive and self.worker is not None and not self.ended:
            stopping = self.worker.stop_asked is not None or self._stopped_by_target
            state.state = "stopping" if stopping else "running"
            state.devices = [name for _, name in self.held]
            state.finished, state.reason, state.message, state.hint = None, None, "", ""
            if folded.last_event is None or folded.last_event < launched:
                state.phase, state.phase_started = "start", launched
                state.phase_done = state.phase_total = 0
        elif not self.ended:
            self._add_end(state)
        elif self.remote and state.reason is Reason.STOPPED and self.worker and self.worker.stop_asked is None:
            # Its target, or whoever wanted it to end at once, asked for that stop.
            reason = self.launcher.how_it_ended(self.folder).reason
            state.reason = Reason.CANCELLED if self.worker.cancelled else reason or state.reason
        return state

    def _add_end(self, state: RunState) -> None:
        """How a job ended whose worker is gone and left no last word."""
        state.finished = state.last_event or state.created
        state.seconds = state.seconds_at(state.finished)
        state.saved = bool(self.folder.checkpoint_folders())
        state.message, state.hint = "", ""
        if self.worker is None:
            damaged = self.folder.worker.exists()
            state.state, state.reason = "failed", Reason.RECORD_DAMAGED if damaged else Reason.NEVER_STARTED
            return
        state.reason = self._asked_for(self.worker, begun=bool(state.steps) or state.phase not in BEFORE_WORK)
        state.state = "stopped"
        if state.reason is None or state.reason is Reason.OVER_QUOTA:
            state.state, state.message = "failed", self.worker.reason
        if state.reason is None:
            how = self.launcher.how_it_ended(self.folder)
            state.reason, state.exit_code = self._unasked(how), how.code
            state.state = "stopped" if state.reason in STOPPED_THERE else "failed"
            state.last_output = last_error(self.folder.log) if how.code is not None and how.code > 0 else ""

    def _asked_for(self, worker: Worker, *, begun: bool) -> Reason | None:
        """Why it ended, where somebody wanted that."""
        if worker.cancelled:
            return Reason.CANCELLED
        if worker.reason:
            return Reason.OVER_QUOTA
        if worker.killed is not None:
            return Reason.ENDED_BY_FORCE
        if worker.stop_asked is not None:
            return Reason.STOPPED_SILENTLY if begun else Reason.STOPPED_EARLY
        return None

    def _unasked(self, how: Exit) -> Reason:
        """Why it ended, as far as can be seen from outside."""
        if how.reason is not None:
            return how.reason
        if shutil.disk_usage(self.folder.path).free < _FULL_BYTES:
            return Reason.DISK_FULL
        if how.out_of_memory:
            return Reason.MEMORY_KILL
        if how.code == -signal.SIGKILL:
            return Reason.KILLED
        if how.code is None:
            return Reason.VANISHED
        return Reason.CRASHED if how.code < 0 else Reason.EXITED


def _signature(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def end_the_deaf(followers: Iterable[Follower], stop_seconds: float, save_seconds: float | None) -> None:
    """Ends workers that were asked to stop long ago; see `Supervisor` for the seconds."""
    for follower in followers:
        asked = follower.worker.stop_asked if follower.worker else None
        if follower.alive and asked is not None:
            saving = follower.kind.save_seconds if save_seconds is None else save_seconds
            patience = stop_seconds if follower.state.phase in BEFORE_WORK else saving
            if time.time() - asked > patience:
                with contextlib.suppress(StudioError):  # a cluster that does not answer now
                    follower.launcher.kill(follower.folder)


def end_the_overdrawn(workspace: Workspace, launcher_of: Callable[[JobFolder], Launcher]) -> None:
    """Ends all kinds of work that fill more of the disk than whoever asked for them has. Nothing more is saved: to
    save would take more of what there is none left of. The checkpoints saved last go where they are too much."""
    if not workspace.policy.has_quota:
        return
    for maker, folder in at_work(workspace.unrestricted):
        launcher = launcher_of(folder)
        if launcher.is_alive(folder) and (reason := workspace.policy.over_quota(maker)):
            _log.warning("%s: %s", folder.id, reason)
            launcher.kill(folder, reason=reason)
            folder.remove_unfinished()
            for checkpoint in reversed(folder.checkpoint_folders()):
                if not workspace.policy.over_quota(maker):
                    break
                shutil.rmtree(checkpoint, ignore_errors=True)  # a writer that dies may still hold it
