"""The queue of jobs that wait for a device, and its lock.

Page and terminal may work on one workspace at once. Whoever changes the queue or starts a worker holds the lock, which
the system takes back from a process that dies.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from lora_studio.errors import StudioError
from lora_studio.files import JsonObject, fits
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import KINDS, TRAIN, JobIndex, Kind
from lora_studio.models.memory import MemoryVerdict
from lora_studio.units import size
from lora_studio.workspace import Workspace, write_atomically

MAX_EXTRA_EPOCHS = 1000


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A job in the queue, of whatever kind.

    `resume` goes on with what an earlier worker left; a run with `extra_epochs` more than it had, and with `other_rows`
    also where its data files have changed. `at_once` lets it begin while other jobs hold all devices. `device_kind` is
    the kind of GPU that it was queued for: it starts on no other.
    """

    job: str
    resume: bool = False
    extra_epochs: float = 0.0
    other_rows: bool = False
    kind: str = TRAIN.name
    at_once: bool = False
    device_kind: str = ""


@contextmanager
def lock(workspace: Workspace) -> Iterator[None]:
    """Only one process (and one thread of it) at a time is inside."""
    # A file and open for writing, for network file systems (NFS) lock nothing that is only read.
    file = os.open(workspace.queue_lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def read_queue(workspace: Workspace) -> list[QueueEntry]:
    """The jobs that wait, the next one first.

    Of a damaged queue what can be read, and then those that were never started, oldest first.
    """
    try:
        entries = json.loads(workspace.queue.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError):
        entries = None
    listed = entries if isinstance(entries, list) else [None]
    readable = [entry for entry in map(_waiting, listed) if entry is not None]
    known = {entry.job for entry in readable}
    if len(readable) == len(listed):
        return readable
    return [*readable, *(entry for entry in _never_started(workspace) if entry.job not in known)]


_FIELDS = {
    "job": (str,),
    "kind": (str,),
    "resume": (bool,),
    "extra_epochs": (int, float),
    "other_rows": (bool,),
    "at_once": (bool,),
    "device_kind": (str,),
}


def _waiting(entry: Any) -> QueueEntry | None:
    """An entry of the queue's file; None for what is none. A run stands there under "run"."""
    if not isinstance(entry, dict):
        return None
    if "run" in entry:
        entry = {"job": entry["run"], **{name: value for name, value in entry.items() if name != "run"}}
    if "job" not in entry or not fits(entry, _FIELDS) or not entry.keys() <= _FIELDS.keys():
        return None
    waiting = QueueEntry(**entry)
    return waiting if waiting.kind in KINDS and 0 <= waiting.extra_epochs <= MAX_EXTRA_EPOCHS else None


def _never_started(workspace: Workspace) -> list[QueueEntry]:
    """A job stands in the queue from its first moment on, and one that leaves it has a worker or a last word."""
    folders = JobIndex(workspace)
    waiting = [
        (folder.read_facts()["created"], QueueEntry(folder.id, kind=kind.name))
        for kind in KINDS.values()
        for folder in folders.of(kind)
        if not folder.worker.exists() and not folder.events.exists()
    ]
    return [entry for _, entry in sorted(waiting, key=lambda item: item[0])]


def write_queue(workspace: Workspace, entries: list[QueueEntry]) -> None:
    """Replaces the queue. Only inside `lock`."""
    write_atomically(workspace.queue, json.dumps(list(map(_kept, entries))))


def _kept(entry: QueueEntry) -> JsonObject:
    """An entry as its file holds it: that of a run as earlier versions read it."""
    values = asdict(entry)
    if entry.kind == TRAIN.name:
        values = {"run": values.pop("job"), **values}
        del values["kind"]
    return {name: value for name, value in values.items() if name not in ("at_once", "device_kind") or value}


def is_shown(workspace: Workspace, entry: QueueEntry) -> bool:
    """Whether a waiting job is for whoever is answered now."""
    return workspace.policy.can_read(KINDS[entry.kind].folder_of(workspace, entry.job))


def check_room(workspace: Workspace, entries: list[QueueEntry], new: int = 1) -> None:
    """Raises `StudioError` where a visitor would have more jobs waiting than one may with so many `new` ones; the owner
    may have any number."""
    most = workspace.policy.max_queued
    if most is None:
        return
    folders = (KINDS[entry.kind].folder_of(workspace, entry.job) for entry in entries)
    own = sum(workspace.policy.shares_queue_with(folder.owner_id) for folder in folders if folder.facts.is_file())
    if new > most:
        raise StudioError(f"{new} jobs at once are too many.", f"You can have at most {most} jobs in the queue.")
    if own + new > most:
        raise StudioError(
            f"{own} of your jobs are already queued.", "Wait until one starts, or remove one from the queue."
        )


def with_at_once(entries: list[QueueEntry], job_id: str) -> list[QueueEntry]:
    """The queue with one job marked to begin beside others. Raises `StudioError` where it does not wait."""
    if job_id not in [entry.job for entry in entries]:
        raise StudioError(f"{job_id} is not in the queue.", "Only queued jobs can be started.")
    return [replace(entry, at_once=entry.at_once or entry.job == job_id) for entry in entries]


def check_resumable(kind: Kind, state: RunState) -> None:
    """Raises `StudioError` where a job can't go on: its kind does not, it has not ended, or it is finished."""
    if not kind.resumes:
        raise StudioError(
            f"{kind.noun.capitalize()}s cannot be resumed: incomplete results are not kept.", "Start it again."
        )
    if not state.final:
        raise StudioError(f"This {kind.noun} is already {state.state}.", "Wait until it ends, or stop it first.")
    if kind is not TRAIN and state.state == "done":
        raise StudioError(f"This {kind.noun} is finished.", "Only jobs that ended early can be resumed.")


def check_longer(extra_epochs: float, *, saved: bool) -> None:
    """Raises `StudioError` where a run that is done can't be trained further."""
    if not extra_epochs:
        raise StudioError(
            "This run is complete.",
            "Add extra epochs, or start a new run from its adapter.",
        )
    if not saved:
        raise StudioError(
            "This run has no checkpoint to resume from.",
            "Start a new run from its adapter instead.",
        )


def moved(entries: list[QueueEntry], job_id: str, places: int) -> list[QueueEntry]:
    """The queue with one job moved towards the front (negative) or the end; at either end it stays."""
    at = next(place for place, entry in enumerate(entries) if entry.job == job_id)
    others = [entry for entry in entries if entry.job != job_id]
    others.insert(max(0, at + places), entries[at])
    return others


def passed(before: list[QueueEntry], after: list[QueueEntry]) -> list[QueueEntry]:
    """The entries whose place a move changed."""
    return [entry for entry, other in zip(before, after, strict=True) if entry != other]


def shortage(verdict: MemoryVerdict, run: str | None) -> str:
    """What is needed that the memory will hardly do for, and what there is."""
    suffix = f" while {run} trains on the same device" if run else ""
    return f"Loading needs about {size(verdict.need or 0)}; {size(verdict.free)} are free{suffix}."


def holders(run: str | None, chat: str | None, evaluating: bool = False, exporting: bool = False) -> str:
    """Who holds the device, in a sentence."""
    other_holders = ["an evaluation"] * evaluating + ["an export"] * exporting
    who = [f"the run {run}" if run else "", chat or "", *other_holders]
    names = [name for name in who if name]
    if not names:
        return "No job uses the device."
    return f"The device is used by {' and '.join(names)}" + (
        ": they share its memory and speed." if len(names) > 1 else "."
    )
