"""The kinds of jobs and their folders: which program does each, and where its folders lie.

Every kind has the same life: request, events, worker, log and result in one folder.
"""

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.workspace import JobFolder, RunFolder, Workspace, write_atomically

Folder = TypeVar("Folder", bound=JobFolder)


class EvaluationFolder(JobFolder):
    """The files of one evaluation."""

    @property
    def data(self) -> Path:
        """The test file. Raises `StudioError` for a damaged request."""
        data = self.read_facts().get("data")
        if not isinstance(data, str):
            raise damaged_request(self)
        return Path(data)

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

    def read_result(self) -> JsonObject:
        """What the answers amount to; empty before they were measured, and where the file is damaged."""
        summary = super().read_result()
        try:
            return summary if all(item["unit"] for item in summary["metrics"].values()) and summary["columns"] else {}
        except (KeyError, TypeError, AttributeError):
            return {}

    def rows(self) -> Iterator[JsonObject]:
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
    return StudioError(f"{folder.facts.name} of {folder.id} is damaged: its request is lost.", "Delete it.")


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
            raise StudioError(f"There is no {self.noun} {name!r}.", "It may have been deleted. Choose another one.")
        return match


def remove(folder: JobFolder) -> None:
    """Removes a job's folder: first out of sight by a rename, so that no half one is ever listed."""
    hidden = folder.path.with_name(f".deleted-{folder.id}")
    folder.path.rename(hidden)
    shutil.rmtree(hidden)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of job. `noun` is what a person calls one, `module` the program that does it, given the job's folder.

    `resumes`: a worker can go on with what an earlier one left. `needs_device`: a job holds the device unless its
    request says otherwise. A worker that was asked to stop has `save_seconds` to save what it has.
    """

    name: str
    noun: str
    module: str
    folder: Callable[[Path], JobFolder]
    place: Callable[[Workspace], Path]
    resumes: bool
    needs_device: bool = True
    save_seconds: float = 20.0

    def folder_of(self, workspace: Workspace, job_id: str) -> JobFolder:
        """Where the files of the job of that id are, or would be."""
        return self.folder(self.place(workspace) / job_id)


TRAIN = Kind(
    name="train",
    noun="run",
    module="lora_studio.engine.train.worker",
    folder=RunFolder,
    place=lambda workspace: workspace.runs_folder,
    resumes=True,
    save_seconds=120.0,
)
EVALUATE = Kind(
    name="evaluate",
    noun="evaluation",
    module="lora_studio.engine.evaluate.worker",
    folder=EvaluationFolder,
    place=lambda workspace: workspace.evaluations_folder,
    resumes=True,
)
EXPORT = Kind(
    name="export",
    noun="export",
    module="lora_studio.engine.export.worker",
    folder=ExportFolder,
    place=lambda workspace: workspace.exports_folder,
    resumes=False,
    needs_device=False,
)
BENCHMARK = Kind(
    name="benchmark",
    noun="benchmark",
    module="lora_studio.engine.evaluate.benchmark",
    folder=BenchmarkFolder,
    place=lambda workspace: workspace.benchmarks_folder,
    resumes=False,
)
KINDS = {kind.name: kind for kind in (TRAIN, EVALUATE, EXPORT, BENCHMARK)}
"""By name, in the order in which lists show them."""


class JobStarter(Protocol):
    """The supervisor, as it is seen by whoever only asks for a job."""

    @property
    def workspace(self) -> Workspace: ...

    def submit(
        self,
        kind: Kind,
        make: Callable[[], JobFolder],
        *,
        at_once: bool = False,
        secrets: Mapping[str, str] | None = None,
    ) -> str:
        """Makes a job's folder and starts its worker, or queues it; gives its id."""


class JobIndex:
    """The folders of all kinds of jobs in a workspace, whoever made them. What was seen once is not looked into again:
    a folder becomes a job's with its request, which stays."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._known: dict[Path, JobFolder] = {}

    def of(self, kind: Kind) -> Sequence[JobFolder]:
        """Every one of a kind, newest first."""
        if kind is TRAIN:
            return self._workspace.unrestricted.runs()
        place = kind.place(self._workspace)
        try:
            names = sorted(os.listdir(place), reverse=True)
        except FileNotFoundError:
            return []
        before = self._known
        folders = {}
        for path in (place / name for name in names if not name.startswith(".")):
            folder = before.get(path) or kind.folder(path)
            if path in before or folder.facts.is_file():
                folders[path] = folder
        self._known = {path: folder for path, folder in before.items() if path.parent != place} | folders
        return list(folders.values())

    def find(self, name: str, noun: str = "run") -> tuple[Kind, JobFolder]:
        """The job of that id which is shown to whoever is answered; a run also by the beginning of its id, its title or
        "last". Raises `StudioError` where there is none."""
        for kind in KINDS.values():
            folder = kind.folder_of(self._workspace, name)
            if kind is TRAIN or folder.id != name or name.startswith("."):
                continue
            try:
                if folder.facts.is_file() and self._workspace.policy.can_read(folder):
                    return kind, folder
            except OSError:  # a name that no folder can bear
                break
        return TRAIN, self._workspace.run(name, noun)


def made_by(whole: Workspace) -> Iterator[tuple[str, JobFolder]]:
    """Every job of whatever kind, with the name of whoever made it."""
    index = JobIndex(whole)
    for folder in [folder for kind in KINDS.values() for folder in index.of(kind)]:
        try:
            yield folder.owner_id, folder
        except FileNotFoundError:  # deleted meanwhile
            continue


def at_work(whole: Workspace) -> Iterator[tuple[str, JobFolder]]:
    """Of `made_by` those that were started and have not ended."""
    for name, folder in made_by(whole):
        if folder.worker.exists() and not folder.complete.exists():
            yield name, folder
