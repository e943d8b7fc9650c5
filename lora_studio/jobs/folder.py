"""Folders of jobs that are no runs (evaluations, exports): made, listed, found and deleted in one way.

Each has a run's life (events, worker, log), so that whatever follows and stops runs follows and stops them.
"""

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lora_studio.errors import StudioError
from lora_studio.workspace import JobFolder, Workspace, write_atomically

Folder = TypeVar("Folder", bound=JobFolder)


class EvaluationFolder(JobFolder):
    """The files of one evaluation."""

    @property
    def predictions(self) -> Path:
        """One line a row, appended as answers come."""
        return self.path / "predictions.jsonl"

    @property
    def task(self) -> Path:
        """Which kind of task the test file sets, told from all its rows before the first is answered."""
        return self.path / "task.json"

    @property
    def complete(self) -> Path:
        """What the answers amount to: the last file written."""
        return self.path / "metrics_summary.json"

    def read_result(self) -> dict[str, Any]:
        """What the answers amount to; empty before they were measured, and where the file is damaged."""
        summary = super().read_result()
        try:
            return summary if all(item["unit"] for item in summary["metrics"].values()) and summary["columns"] else {}
        except (KeyError, TypeError, AttributeError):
            return {}

    def rows(self) -> Iterator[dict[str, Any]]:
        """The answered rows; a line that a killed process left torn is no row."""
        try:
            with self.predictions.open(encoding="utf-8") as file:
                for line in file:
                    with contextlib.suppress(ValueError, RecursionError):
                        if line.endswith("\n") and isinstance(row := json.loads(line), dict):
                            yield row
        except (FileNotFoundError, UnicodeDecodeError):
            return


class ExportFolder(JobFolder):
    """The files of one export."""

    @property
    def complete(self) -> Path:
        """What came out: the last file written."""
        return self.path / "result.json"

    @property
    def result(self) -> Path:
        """The folder that was made, or the one file where a person named one for it."""
        out = self.read_facts().get("out")
        return Path(out) if out and isinstance(out, str) else self.path / "result"

    @property
    def unfinished(self) -> Path:
        """Where the result is written before it takes its place: on the same disk."""
        return self.result.with_name(f".{self.result.name}.{self.id}")

    def remove_unfinished(self) -> None:
        shutil.rmtree(self.unfinished, ignore_errors=True)


class BenchmarkFolder(JobFolder):
    """The files of one benchmark."""

    @property
    def results(self) -> Path:
        """Where lm-evaluation-harness puts its numbers."""
        return self.path / "results"


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
        self.workspace.policy.check_room()
        folder = self.kind(self.parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
        folder.path.mkdir(parents=True)
        made = {"created": time.time(), "maker": self.workspace.policy.owner_id}
        write_atomically(folder.facts, json.dumps({**made, **facts}, indent=2))
        return folder

    def all(self) -> list[Folder]:
        """Every one that is shown, newest first."""
        return [folder for folder in self.list_all() if self.workspace.policy.can_read(folder)]

    def list_all(self) -> list[Folder]:
        """Every one, whoever made it, newest first."""
        if not self.parent.is_dir():
            return []
        names = sorted(os.listdir(self.parent), reverse=True)
        folders = [self.kind(self.parent / name) for name in names if not name.startswith(".")]
        return [folder for folder in folders if folder.facts.is_file()]

    def find(self, name: str) -> Folder:
        """The one of that id. Raises `StudioError` where there is none."""
        match = next((folder for folder in self.all() if folder.id == name), None)
        if match is None:
            raise StudioError(f"There is no {self.noun} {name!r}.", "It may have been deleted: choose another one.")
        return match


def remove(folder: JobFolder) -> None:
    """Removes a job's folder: first out of sight by a rename, so that no half one is ever listed."""
    hidden = folder.path.with_name(f".deleted-{folder.id}")
    folder.path.rename(hidden)
    shutil.rmtree(hidden)
