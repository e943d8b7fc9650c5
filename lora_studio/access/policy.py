"""How much of the disk visitors take: what they uploaded and typed, their runs, evaluations, exports and downloads.

What was uploaded and who still reads it: a file that no run or evaluation at work needs can be deleted.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from lora_studio.config.parsing import read_yaml
from lora_studio.errors import StudioError
from lora_studio.evaluate import request
from lora_studio.files import bytes_in
from lora_studio.jobs.folder import EvaluationFolder
from lora_studio.jobs.kinds import made_by
from lora_studio.workspace import RunFolder, Workspace

OF = "of-"  # before a visitor's name, the name of the folder of their downloads


def taken(whole: Workspace, whose: Callable[[str], bool], own: Path) -> int:
    """Bytes of all that the visitors of those names have; each has a folder of their own below `own`."""
    made = [folder.path for name, folder in made_by(whole) if whose(name)]
    folders = [path for path in own.iterdir() if whose(path.name)] if own.is_dir() else []
    downloads = [path for name, path in downloads_of(whole) if whose(name)]
    return sum(bytes_in(path) for path in [*made, *folders, *downloads])


def downloads_of(whole: Workspace) -> Iterator[tuple[str, Path]]:
    """Every folder of files made for downloads, with the name of whoever asked for them."""
    for path in whole.downloads_folder.glob(f"{OF}*"):
        yield path.name.removeprefix(OF), path


def no_room(taken: int, coming: int, most: int, whose: str, hint: str) -> StudioError:
    """What a visitor is told who has no room left."""
    more = f", and {coming / 1e6:,.1f} MB would come to it" if coming else ""
    return StudioError(f"{whose} {taken / 1e6:,.1f} MB of the {most / 1e6:,.0f} MB that there are{more}.", hint)


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
    for job in (*found, *request.folders(workspace.whole).everybodys()):
        if not job.complete.exists():
            yield job, str(job.read_facts().get("title", job.id))


def _reads(job: RunFolder | EvaluationFolder) -> list[Path]:
    if isinstance(job, EvaluationFolder):
        return [Path(request.request_of(job).data)]
    data = read_yaml(job.config)["data"]
    return [Path(str(data[name])).expanduser() for name in ("train_file", "validation_file") if data.get(name)]
