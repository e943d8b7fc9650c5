"""Starts, follows, stops and deletes jobs that have a folder each: what evaluations and exports have in common.

Each is a child of its own session that writes to its folder, as a run's worker is; the truth is on disk, so that a
reload, a new server or a terminal finds it again. One of a kind works at a time.
"""

import threading
import time
from collections.abc import Mapping
from typing import Generic

from lora_studio.errors import StudioError
from lora_studio.events import RunState
from lora_studio.job_folders import Folder, JobFolders
from lora_studio.jobs.follow import Follower
from lora_studio.jobs.kinds import Kind
from lora_studio.jobs.launchers.interface import Launcher

STOP_SECONDS = 20.0


class FolderJobs(Generic[Folder]):
    """Looks after the jobs of one kind. Safe to use from many threads."""

    def __init__(self, folders: JobFolders[Folder], launcher: Launcher, kind: Kind) -> None:
        self._folders, self._launcher, self._kind = folders, launcher, kind
        self._lock = threading.RLock()
        self._followers: dict[str, Follower] = {}

    def stop(self, name: str) -> None:
        """Asks the child to end. One that does not hear is ended by the next look."""
        self._launcher.ask_to_stop(self._folders.find(name))

    def delete(self, name: str) -> None:
        """Removes the folder. Raises `StudioError` while its child lives."""
        with self._lock:
            if not self.state(name).final:
                raise StudioError(f"This {self._folders.noun} is not over.", "Stop it first.")
            self._folders.delete(self._folders.find(name))
            self._followers.pop(name, None)

    def state(self, name: str) -> RunState:
        """The job as of now. Raises `StudioError` where there is none."""
        with self._lock:
            return self._look(self._folders.find(name))

    def all(self) -> list[RunState]:
        """Every one, newest first."""
        with self._lock:
            return [self._look(folder) for folder in self._folders.all()]

    def busy(self) -> str | None:
        """Id of the one whose child is alive, whoever asked for it; None where none is."""
        with self._lock:
            states = [self._look(folder) for folder in self._folders.everybodys()]
            return next((state.id for state in states if self._followers[state.id].alive), None)

    def exit_code(self, name: str) -> int | None:
        """How the child ended, where this process started it."""
        return self._launcher.how_it_ended(self._followers[name].folder).code

    def kill(self, name: str, *, cancelled: bool = False) -> None:
        """Ends the child at once."""
        self._launcher.kill(self._folders.find(name), cancelled=cancelled)

    def _launch(self, folder: Folder, *, resume: bool = False, secrets: Mapping[str, str] | None = None) -> None:
        """Starts the child of a folder, with what it may know of the Hub's tokens."""
        known = self._folders.workspace.tokens(folder.maker)
        self._launcher.start(folder, self._kind.module, resume=resume, env={**known, **(secrets or {})})

    def _check_free(self) -> None:
        other = self.busy()
        if other is None:
            return
        if other not in (folder.id for folder in self._folders.all()):
            raise StudioError(f"Another visitor's {self._folders.noun} is going on.", "Wait for it.")
        title = self._followers[other].state.title
        raise StudioError(f"The {self._folders.noun} {title} is going on.", "Wait for it, or stop it first.")

    def _look(self, folder: Folder) -> RunState:
        self._launcher.collect()
        follower = self._followers.get(folder.id)
        if follower is None:
            follower = self._followers[folder.id] = Follower(folder, self._launcher, self._kind)
        follower.refresh(False)
        worker = follower.worker
        if follower.alive and worker and worker.stop_asked and time.time() - worker.stop_asked > STOP_SECONDS:
            self._launcher.kill(folder)
        return follower.state
