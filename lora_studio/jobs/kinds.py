"""The kinds of jobs: what does each is started by name, and where its folders lie. All else is one life for all."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_studio.jobs.folder import BenchmarkFolder, EvaluationFolder, ExportFolder
from lora_studio.workspace import JobFolder, RunFolder, Workspace


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

    def find(self, name: str) -> tuple[Kind, JobFolder]:
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
        return TRAIN, self._workspace.run(name)


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
