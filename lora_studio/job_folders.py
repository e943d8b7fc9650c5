"""Folders of jobs that are no runs (evaluations, exports): made, listed, found and deleted in one way.

Each has a run's life (events, worker, log), so that whatever follows and stops runs follows and stops them.
"""

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lora_studio.errors import StudioError
from lora_studio.workspace import RunFolder, Workspace, write_atomically

Folder = TypeVar("Folder", bound=RunFolder)


class JobFolder(RunFolder):
    """The files of one job; events, log and worker are those of a run."""

    @property
    def facts(self) -> Path:
        """What was asked for, written once before the start."""
        return self.path / "request.json"


def damaged_request(folder: JobFolder) -> StudioError:
    """What is said of a job whose request can't be read."""
    return StudioError(f"{folder.facts.name} of {folder.id} is damaged: what was asked for is lost.", "Delete it.")


@dataclass(frozen=True)
class JobFolders(Generic[Folder]):
    """The folders of one kind of job under `parent`; `noun` is what a person calls one.

    Of those of `workspace` only what it shows is found.
    """

    workspace: Workspace
    parent: Path
    kind: Callable[[Path], Folder]
    noun: str

    def create(self, facts: Mapping[str, Any]) -> Folder:
        """A new folder, named by time and four random letters, with what was asked for."""
        self.workspace.check_room()
        folder = self.kind(self.parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
        folder.path.mkdir(parents=True)
        made = {"created": time.time(), "maker": self.workspace.maker}
        write_atomically(folder.facts, json.dumps({**made, **facts}, indent=2))
        return folder

    def all(self) -> list[Folder]:
        """Every one that is shown, newest first."""
        return [folder for folder in self.everybodys() if self.workspace.shows(folder)]

    def everybodys(self) -> list[Folder]:
        """Every one, whoever made it, newest first."""
        if not self.parent.is_dir():
            return []
        names = sorted(os.listdir(self.parent), reverse=True)
        found = [self.kind(self.parent / name) for name in names if not name.startswith(".")]
        return [folder for folder in found if folder.facts.is_file()]

    def find(self, name: str) -> Folder:
        """The one of that id. Raises `StudioError` where there is none."""
        found = next((folder for folder in self.all() if folder.id == name), None)
        if found is None:
            raise StudioError(f"There is no {self.noun} {name!r}.", "It may have been deleted: choose another one.")
        return found

    def delete(self, folder: Folder) -> None:
        """Removes a folder: first out of sight by a rename, so that no half one is ever listed."""
        hidden = folder.path.with_name(f".deleted-{folder.id}")
        folder.path.rename(hidden)
        shutil.rmtree(hidden)
