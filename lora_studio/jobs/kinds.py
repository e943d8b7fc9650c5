"""The kinds of jobs: what does each is started by name, and where its folders lie. All else is one life for all."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lora_studio.job_folders import BenchmarkFolder, EvaluationFolder, ExportFolder
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
    module="lora_studio.engine.worker",
    folder=RunFolder,
    place=lambda workspace: workspace.runs_folder,
    resumes=True,
    save_seconds=120.0,
)
EVALUATE = Kind(
    name="evaluate",
    noun="evaluation",
    module="lora_studio.engine.evaluator",
    folder=EvaluationFolder,
    place=lambda workspace: workspace.evaluations_folder,
    resumes=True,
)
EXPORT = Kind(
    name="export",
    noun="export",
    module="lora_studio.engine.exporter",
    folder=ExportFolder,
    place=lambda workspace: workspace.exports_folder,
    resumes=False,
    needs_device=False,
)
BENCHMARK = Kind(
    name="benchmark",
    noun="benchmark",
    module="lora_studio.engine.benchmark",
    folder=BenchmarkFolder,
    place=lambda workspace: workspace.benchmarks_folder,
    resumes=False,
)
KINDS = {kind.name: kind for kind in (TRAIN, EVALUATE, EXPORT, BENCHMARK)}
"""By name, in the order in which lists show them."""


def needs_device(kind: Kind, folder: JobFolder) -> bool:
    """Whether a job computes on the device, and so waits for it; its request says it where a kind has both."""
    return bool(folder.read_facts().get("needs_device", kind.needs_device))
