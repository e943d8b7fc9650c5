"""What each user of a server may see, read and store in the workspace: their own uploads and jobs, and no other files.

Jobs of all users are listed together, because they share the device; each names its owner. The workspace's owner sees
the jobs and uploads of everybody. Disk usage counts uploads, drafts, jobs and downloads.
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_studio.access.accounts import JobsTokens
from lora_studio.config.fields import read_yaml
from lora_studio.errors import StudioError
from lora_studio.files import bytes_in, split_sheet
from lora_studio.jobs.kinds import EVALUATE, TRAIN, EvaluationFolder, JobIndex, made_by
from lora_studio.models.hub import NO_TOKEN
from lora_studio.workspace import DEMO_MODEL, JobFolder, Policy, RunFolder, Workspace, demo_folder, shipped_data

OF = "of-"  # before a visitor's name, the name of the folder of their downloads


def used_bytes(workspace: Workspace, matches: Callable[[str], bool], users_folder: Path) -> int:
    """Bytes used by all users whose names match; each has a folder of their own below `users_folder`."""
    jobs = [folder.path for name, folder in made_by(workspace) if matches(name)]
    folders = [path for path in users_folder.iterdir() if matches(path.name)] if users_folder.is_dir() else []
    downloads = [path for name, path in downloads_of(workspace) if matches(name)]
    return sum(bytes_in(path) for path in [*jobs, *folders, *downloads])


def downloads_folder(workspace: Workspace, user_id: str) -> Path:
    """The folder of files prepared for a user to download."""
    return workspace.downloads_folder / f"{OF}{user_id}"


def downloads_of(workspace: Workspace) -> Iterator[tuple[str, Path]]:
    """All download folders, with the user they belong to."""
    for path in workspace.downloads_folder.glob(f"{OF}*"):
        yield path.name.removeprefix(OF), path


def quota_exceeded(used: int, size: int, limit: int, subject: str, hint: str) -> StudioError:
    """The error for a user who has no room for `size` more bytes."""
    more = f", and this would add {size / 1e6:,.1f} MB" if size else ""
    return StudioError(f"{subject} {used / 1e6:,.1f} MB of the available {limit / 1e6:,.0f} MB{more}.", hint)


def delete_upload(workspace: Workspace, name: str) -> None:
    """Deletes a listed upload. Raises `StudioError` if there is none of that name or a job needs it."""
    path = next((path for path in workspace.uploads() if str(path) == name), None)
    if path is None:
        raise StudioError("This file is no longer among your uploads.")
    for job, title in _unfinished_jobs(workspace):
        if any(path == read or path in read.parents for read in _reads(job)):
            subject = f"“{title}”" if workspace.policy.can_read(job) else "Another visitor's run"
            raise StudioError(
                f"{subject} is not finished and uses {path.name}.",
                "Wait until it ends or delete it. Then delete the file.",
            )
    hidden = path.rename(path.with_name(f".deleted-{path.name}"))
    if hidden.is_dir():
        shutil.rmtree(hidden)
    else:
        hidden.unlink()


def _unfinished_jobs(workspace: Workspace) -> Iterator[tuple[JobFolder, str]]:
    """All unfinished runs and evaluations of all users, with their titles."""
    index = JobIndex(workspace.unrestricted)
    for job in (*index.of(TRAIN), *index.of(EVALUATE)):
        if not job.complete.exists():
            yield job, str(job.read_facts().get("title", job.id))


def _reads(job: JobFolder) -> list[Path]:
    if isinstance(job, EvaluationFolder):
        return [Path(split_sheet(job.data)[0])]
    if not isinstance(job, RunFolder):
        return []
    data = read_yaml(job.config)["data"]
    names = [split_sheet(str(data[name]))[0] for name in ("train_file", "validation_file") if data.get(name)]
    return [Path(name).expanduser() for name in names]


USERS = "users"
FILE_PARAMETERS = ("train_file", "validation_file", "model", "base", "adapter")
MAX_CACHED = 10_000
MAX_QUEUED = 10  # jobs of a user
MAX_UNMEASURED_BYTES, MAX_UNMEASURED_SECONDS = 100_000, 5.0  # written before the disk is measured again
_USER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DRIVE = re.compile(r"[A-Za-z]:|\\\\|[A-Za-z][A-Za-z0-9+.-]*://")  # of Windows, or of another machine
# Options only after hub: elsewhere a question mark is a pattern that fits files.
_HUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?|hub:[\w-][\w.-]*/[\w-][\w.-]*(\?[\w.=&%/-]*)?")
_REVISION = re.compile(r"[\w][\w./-]*")
_GLOB = set("*?[")


class Users:
    """The users of one server: who owns each job, and how much disk space each user takes.

    `workspace` is unrestricted. `folders` are folders outside it in which users may name files. `quota` is the number
    of bytes that each user except the owner may store, `device_share` the number of devices that their jobs may hold at
    a time.
    """

    def __init__(
        self,
        workspace: Workspace,
        owner: str,
        folders: Sequence[Path] = (),
        quota: int | None = None,
        device_share: int = 1,
    ) -> None:
        self.workspace, self.owner, self.quota = workspace.unrestricted, owner, quota
        self.device_share = device_share
        self.folders = (demo_folder(), *folders)
        self._empty = tempfile.TemporaryDirectory(prefix="lora-studio-nobody-")
        self._owner_ids: dict[Path, str] = {}
        self.growth: dict[str, tuple[int, float]] = {}
        self.jobs_tokens = JobsTokens()

    def policy(self, user_id: str) -> "UserPolicy":
        """The policy of that user; a caller without a name ("") sees nothing."""
        return UserPolicy(self, user_id)

    def workspace_for(self, caller: Callable[[], str]) -> Workspace:
        """The workspace as seen by the user that `caller` returns, evaluated at each use."""
        return self.workspace.with_policy(lambda: self.policy(caller()))

    def folder(self, user_id: str) -> Path:
        """The folder of a user's uploads and drafts. Raises `StudioError` for a name that cannot be a folder."""
        if user_id == self.owner:
            return self.workspace.root
        if user_id and not _USER_NAME.fullmatch(user_id):
            raise StudioError(f"{user_id!r} is not a valid user name.", "Use letters, digits, dots and dashes.")
        folder = self.workspace.root / USERS / user_id if user_id else Path(self._empty.name)
        for part in ("uploads", "drafts"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        return folder

    def downloads(self, user_id: str) -> Path:
        """The folder of files prepared for that user to download."""
        return downloads_folder(self.workspace, user_id)

    def owner_of(self, job: JobFolder) -> str | None:
        """The owner of a job; None if it was deleted meanwhile."""
        owner_id = self._owner_ids.get(job.path)
        if owner_id is None:
            try:
                owner_id = self._owner_ids[job.path] = job.owner_id
            except FileNotFoundError:
                return None
        return owner_id

    def used_bytes(self, matches: Callable[[str], bool]) -> int:
        """Bytes used by all users whose names match."""
        return used_bytes(self.workspace, matches, self.workspace.root / USERS)


class UserPolicy(Policy):
    """What one user of a server may do."""

    def __init__(self, users: Users, user_id: str) -> None:
        self._users = users
        self.owner_id = user_id
        self.is_admin = user_id == users.owner
        self.has_quota = users.quota is not None
        self.max_queued = None if self.is_admin else MAX_QUEUED
        self.device_share = None if self.is_admin else users.device_share

    def user_folder(self, root: Path) -> Path:
        return self._users.folder(self.owner_id)

    def tokens(self, owner_id: str) -> Mapping[str, str]:
        return {} if owner_id in ("", self._users.owner) else NO_TOKEN

    def jobs_token(self, owner_id: str) -> str | None:
        return None if owner_id in ("", self._users.owner) else self._users.jobs_tokens.token(owner_id)

    def uploads_of_others(self, root: Path) -> list[Path]:
        paths = (root / USERS).glob("*/uploads/*") if self.is_admin else ()
        return sorted(path for path in paths if not path.name.startswith("."))

    def can_read(self, job: JobFolder) -> bool:
        return self.is_admin or (self.owner_id != "" and self._users.owner_of(job) == self.owner_id)

    def shares_queue_with(self, owner_id: str) -> bool:
        return owner_id == self.owner_id

    # -- disk usage

    def check_room(self, size: int = 0) -> None:
        quota = self._users.quota
        if quota is None or self.is_admin:
            return
        used = self._users.used_bytes(self.owner_id.__eq__)
        if used + max(size, 1) > quota:
            raise quota_exceeded(used, size, quota, "Your uploads and runs use", self._room_hint())

    def check_growth(self, size: int) -> None:
        if not self.has_quota or self.is_admin or size <= 0:
            return
        growth = self._users.growth
        grown, since = growth.get(self.owner_id, (0, 0.0))
        now = time.monotonic()
        # Measuring the disk for every keystroke would take longer than writing it.
        if size + grown > MAX_UNMEASURED_BYTES or now - since > MAX_UNMEASURED_SECONDS:
            self.check_room(size)
            grown, since = 0, now
            if len(growth) > MAX_CACHED:
                growth.clear()
        growth[self.owner_id] = grown + size, since

    def over_quota(self, owner_id: str) -> str:
        quota = self._users.quota
        if quota is None or owner_id in ("", self._users.owner):
            return ""
        used = self._users.used_bytes(owner_id.__eq__)
        if used <= quota:
            return ""
        return (
            f"The job was ended because its owner's disk quota was exceeded: {used / 1e6:,.1f} MB of "
            f"{quota / 1e6:,.0f} MB. The files saved after that were removed."
        )

    def _room_hint(self) -> str:
        return "Delete runs, evaluations or exports that you no longer need, or uploads at the bottom of the Data tab."

    # -- files

    def check_path(self, name: str) -> None:
        """Accepts names on the Hub, shipped names, and files of the user or in the shared folders."""
        if not name or self._is_hub_name(name):
            return
        if "\0" in name or _DRIVE.match(name):
            raise self._refusal(name)
        # As a whole too: a model's name is opened as it stands, where that of data is a file and its sheet.
        for part in {name, split_sheet(name)[0]}:
            path = Path(os.path.abspath(os.path.expanduser(part)))
            paths = [path]
            if _GLOB & set(path.name) and not os.path.exists(path):
                paths = [path.parent, *path.parent.glob(path.name)] if self._is_readable(path.parent) else [path]
            if not all(self._is_readable(path) for path in paths):
                raise self._refusal(name)

    def check_request(self, params: Mapping[str, Any]) -> None:
        for name in FILE_PARAMETERS:
            self.check_path(str(params.get(name) or ""))
        for name in (*(params.get("adapters") or {}).values(), *(params.get("documents") or ())):
            self.check_path(str(name))
        revision = str(params.get("revision") or "")
        if revision and (".." in revision or not _REVISION.fullmatch(revision)):
            raise StudioError(f"{revision!r} is not a valid revision.", "Give a branch, a tag or a commit.")
        if params.get("of"):
            self.check_request(params["of"])

    def _is_hub_name(self, name: str) -> bool:
        """Whether a name is on the Hub or shipped, and not a local file."""
        if ".." in name or not _HUB.fullmatch(name):
            return False
        if name == DEMO_MODEL or name in shipped_data():
            return True
        return not os.path.lexists(name.removeprefix("hub:").partition("?")[0])

    def _may_read_run(self, name: str) -> bool:
        run = self._users.workspace.run_named(name)
        return run is not None and self.can_read(run)

    def _is_readable(self, path: Path) -> bool:
        """Whether a path, after resolving links, lies in a folder that the user may read."""
        try:
            real = path.resolve()
        except (OSError, RuntimeError):  # links that go round in a circle
            return False
        runs = self._users.workspace.runs_folder
        if runs in real.parents and self._may_read_run(real.relative_to(runs).parts[0]):
            return True
        folders = (self._users.folder(self.owner_id).resolve(), *self._users.folders)
        return any(folder == real or folder in real.parents for folder in folders)

    def _refusal(self, name: str) -> StudioError:
        folders = ", ".join(str(folder) for folder in self._users.folders[1:])
        return StudioError(
            f"{name!r} is outside the folders that visitors may use.",
            f"Upload the file, or use one in {folders}." if folders else "Upload the file instead.",
        )
