"""Starts, follows, stops and deletes exports: the parent's side."""

import contextlib
import shutil
from collections.abc import Mapping

from lora_studio.errors import StudioError
from lora_studio.exports import Request, create, folders
from lora_studio.hub_token import VARIABLE
from lora_studio.job_folders import ExportFolder
from lora_studio.jobs.folder_jobs import FolderJobs
from lora_studio.jobs.kinds import EXPORT
from lora_studio.jobs.launchers.interface import Launcher
from lora_studio.jobs.launchers.local import LocalLauncher
from lora_studio.workspace import Workspace


class Exports(FolderJobs[ExportFolder]):
    """Looks after the exports of a workspace."""

    def __init__(self, workspace: Workspace, launcher: Launcher | None = None) -> None:
        super().__init__(folders(workspace), launcher or LocalLauncher(), EXPORT)
        self._workspace = workspace

    def start(self, request: Request, secrets: Mapping[str, str] | None = None) -> str:
        """Makes the export's folder and starts its child. Raises `StudioError` while another one works.

        `secrets` go into the child's environment and nowhere else. A visitor never publishes with the owner's token.
        """
        self._workspace.check_may("take adapters away")
        if request.target == "hub" and not self._workspace.owned and not (secrets or {}).get(VARIABLE):
            raise StudioError(
                "Publishing needs a token of your own: that of this machine is its owner's.",
                "Put one that may write into the field Token; it is used once and kept nowhere.",
            )
        with self._lock:
            self._check_free()
            self._clear_unfinished()
            folder = create(self._workspace, request)
            self._launch(folder, secrets=secrets)
        return folder.id

    def delete(self, name: str) -> None:
        """Removes an export with its result, but not a result that a person put elsewhere."""
        with self._lock:
            folder = self._folders.find(name)
            with contextlib.suppress(StudioError):  # a damaged request does not say where
                shutil.rmtree(folder.unfinished, ignore_errors=True)
            super().delete(name)

    def _clear_unfinished(self) -> None:
        """Removes what killed exports left half-written; called while none works."""
        for folder in self._folders.everybodys():
            with contextlib.suppress(StudioError):
                shutil.rmtree(folder.unfinished, ignore_errors=True)
