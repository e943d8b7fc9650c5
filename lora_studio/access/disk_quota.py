"""How much of the disk users take with uploads, drafts, jobs and downloads; and deleting uploads that no job reads."""

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


def used_bytes(workspace: Workspace, matches: Callable[[str], bool], users_folder: Path) -> int:
    """Bytes of all that users of matching names have; each has a folder of their own below `users_folder`."""
    jobs = [folder.path for name, folder in made_by(workspace) if matches(name)]
    folders = [path for path in users_folder.iterdir() if matches(path.name)] if users_folder.is_dir() else []
    downloads = [path for name, path in downloads_of(workspace) if matches(name)]
    return sum(bytes_in(path) for path in [*jobs, *folders, *downloads])


def downloads_folder(workspace: Workspace, user_id: str) -> Path:
    """The folder of files that were made for a user to download."""
    return workspace.downloads_folder / f"{OF}{user_id}"


def downloads_of(workspace: Workspace) -> Iterator[tuple[str, Path]]:
    """Every folder of files made for downloads, with the name of the user who asked for them."""
    for path in workspace.downloads_folder.glob(f"{OF}*"):
        yield path.name.removeprefix(OF), path


def no_room(used: int, size: int, limit: int, subject: str, hint: str) -> StudioError:
    """The error of a user who has no room for `size` bytes more."""
    more = f", and {size / 1e6:,.1f} MB would come to it" if size else ""
    return StudioError(f"{subject} {used / 1e6:,.1f} MB of the {limit / 1e6:,.0f} MB that there are{more}.", hint)


def delete_upload(workspace: Workspace, name: str) -> None:
    """Removes a file or folder of the uploads that are listed. Raises `StudioError` where it is none or is needed."""
    path = next((path for path in workspace.uploads() if str(path) == name), None)
    if path is None:
        raise StudioError("That file is not among your uploads any more.")
    for job, title in _at_work(workspace):
        if any(path == read or path in read.parents for read in _reads(job)):
            subject = f"“{title}”" if workspace.policy.can_read(job) else "Another visitor's run"
            raise StudioError(
                f"{subject} is not finished and reads {path.name}.",
                "Wait for it, or delete it first; then the file can go.",
            )
    hidden = path.rename(path.with_name(f".deleted-{path.name}"))
    if hidden.is_dir():
        shutil.rmtree(hidden)
    else:
        hidden.unlink()


def _at_work(workspace: Workspace) -> Iterator[tuple[RunFolder | EvaluationFolder, str]]:
    """Every run and evaluation without a last word, whoever made it, with its title."""
    runs: tuple[RunFolder | EvaluationFolder, ...] = tuple(workspace.unrestricted.runs())
    for job in (*runs, *request.folders(workspace.unrestricted).list_all()):
        if not job.complete.exists():
            yield job, str(job.read_facts().get("title", job.id))


def _reads(job: RunFolder | EvaluationFolder) -> list[Path]:
    if isinstance(job, EvaluationFolder):
        return [Path(request.request_of(job).data)]
    data = read_yaml(job.config)["data"]
    return [Path(str(data[name])).expanduser() for name in ("train_file", "validation_file") if data.get(name)]
