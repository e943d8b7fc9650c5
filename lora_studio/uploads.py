"""What was uploaded and who still reads it: a file that no run or evaluation at work needs can be deleted."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from lora_studio import evaluations
from lora_studio.errors import StudioError
from lora_studio.job_folders import EvaluationFolder
from lora_studio.parsing import read_yaml
from lora_studio.workspace import RunFolder, Workspace


def delete_upload(workspace: Workspace, name: str) -> None:
    """Removes a file or folder of the uploads that are listed. Raises `StudioError` where it is none or is needed."""
    path = next((path for path in workspace.uploads() if str(path) == name), None)
    if path is None:
        raise StudioError("That file is not among your uploads any more.")
    for job, title in _at_work(workspace):
        if any(path == read or path in read.parents for read in _reads(job)):
            whose = f"“{title}”" if workspace.shows(job) else "Another visitor's run"
            raise StudioError(
                f"{whose} is not finished and reads {path.name}.",
                "Wait for it, or delete it first; then the file can go.",
            )
    hidden = path.rename(path.with_name(f".deleted-{path.name}"))
    if hidden.is_dir():
        shutil.rmtree(hidden)
    else:
        hidden.unlink()


def _at_work(workspace: Workspace) -> Iterator[tuple[RunFolder | EvaluationFolder, str]]:
    """Every run and evaluation without a last word, whoever made it, with its title."""
    found: tuple[RunFolder | EvaluationFolder, ...] = tuple(workspace.whole.runs())
    for job in (*found, *evaluations.folders(workspace.whole).everybodys()):
        if not job.complete.exists():
            yield job, str(job.read_facts().get("title", job.id))


def _reads(job: RunFolder | EvaluationFolder) -> list[Path]:
    if isinstance(job, EvaluationFolder):
        return [Path(evaluations.request_of(job).data)]
    data = read_yaml(job.config)["data"]
    return [Path(str(data[name])).expanduser() for name in ("train_file", "validation_file") if data.get(name)]
