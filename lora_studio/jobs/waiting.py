"""The queue of runs that wait for the device, kept in the workspace, and the lock around it.

Page and terminal may work on one workspace at once. Whoever changes the queue or starts a worker holds the lock, which
the system takes back from a process that dies.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from lora_studio.errors import StudioError
from lora_studio.files import fits
from lora_studio.workspace import RunFolder, Workspace, write_atomically

MOST_OF_A_VISITOR = 10
MAX_EXTRA_EPOCHS = 1000


@dataclass(frozen=True, slots=True)
class Waiting:
    """A run in the queue; `resume` goes on from its last checkpoint, with `extra_epochs` more than it had, and with
    `other_rows` also where its data files have changed."""

    run: str
    resume: bool = False
    extra_epochs: float = 0.0
    other_rows: bool = False


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


def read_queue(workspace: Workspace) -> list[Waiting]:
    """The runs that wait, the next one first.

    Of a damaged queue what can be read, and then those that were never started, oldest first.
    """
    try:
        entries = json.loads(workspace.queue.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError):
        entries = None
    listed = entries if isinstance(entries, list) else [None]
    found = [entry for entry in map(_waiting, listed) if entry is not None]
    known = {entry.run for entry in found}
    if len(found) == len(listed):
        return found
    return [*found, *(entry for entry in _never_started(workspace) if entry.run not in known)]


def _waiting(entry: Any) -> Waiting | None:
    """An entry of the queue's file; None for what is none."""
    kinds = {"run": (str,), "resume": (bool,), "extra_epochs": (int, float), "other_rows": (bool,)}
    if not isinstance(entry, dict) or "run" not in entry or not fits(entry, kinds) or not entry.keys() <= kinds.keys():
        return None
    return Waiting(**entry) if 0 <= entry.get("extra_epochs", 0) <= MAX_EXTRA_EPOCHS else None


def _never_started(workspace: Workspace) -> list[Waiting]:
    """A run stands in the queue from its first moment on, and one that leaves it has a worker or a last word."""
    runs = reversed(workspace.whole.runs())
    return [Waiting(run.id) for run in runs if not run.worker.exists() and not run.events.exists()]


def write_queue(workspace: Workspace, entries: list[Waiting]) -> None:
    """Replaces the queue. Only inside `lock`."""
    write_atomically(workspace.queue, json.dumps([asdict(entry) for entry in entries]))


def check_room(workspace: Workspace, entries: list[Waiting]) -> None:
    """Raises `StudioError` where a visitor has as many runs waiting as one may; the owner may have any number."""
    own = sum(workspace.shows(RunFolder(workspace.runs_folder / entry.run)) for entry in entries)
    if not workspace.owned and own >= MOST_OF_A_VISITOR:
        raise StudioError(f"{own} of your runs wait already.", "Wait for one to begin, or take one out of the queue.")


def moved(entries: list[Waiting], run_id: str, places: int) -> list[Waiting]:
    """The queue with one run moved towards the front (negative) or the end; at either end it stays."""
    at = next(place for place, entry in enumerate(entries) if entry.run == run_id)
    others = [entry for entry in entries if entry.run != run_id]
    others.insert(max(0, at + places), entries[at])
    return others


def passed(before: list[Waiting], after: list[Waiting]) -> list[Waiting]:
    """The entries whose place a move changed."""
    return [entry for entry, other in zip(before, after, strict=True) if entry != other]
