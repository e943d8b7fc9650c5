"""Starts, follows, stops and resumes evaluations: the parent's side."""

from dataclasses import replace

from lora_studio.errors import StudioError
from lora_studio.evaluations import Request, create, folders
from lora_studio.job_folders import EvaluationFolder
from lora_studio.jobs.folder_jobs import FolderJobs
from lora_studio.jobs.kinds import EVALUATE
from lora_studio.jobs.launchers.interface import Launcher
from lora_studio.jobs.launchers.local import LocalLauncher
from lora_studio.workspace import Workspace


class Evaluations(FolderJobs[EvaluationFolder]):
    """Looks after the evaluations of a workspace."""

    def __init__(self, workspace: Workspace, launcher: Launcher | None = None) -> None:
        super().__init__(folders(workspace), launcher or LocalLauncher(), EVALUATE)
        self._workspace = workspace

    def start(self, request: Request) -> str:
        """Makes the evaluation's folder and starts its child. Raises `StudioError` while another one answers."""
        most = self._workspace.test_rows(request.measuring.max_samples)
        self._workspace.check_request({"settings": request.generation.model_dump()})
        request = replace(request, measuring=request.measuring.model_copy(update={"max_samples": most}))
        with self._lock:
            self._check_free()
            folder = create(self._workspace, request)
            self._launch(folder)
        return folder.id

    def resume(self, name: str) -> None:
        """Answers the rows that are left."""
        with self._lock:
            state = self.state(name)
            if not state.final or state.state == "done":
                raise StudioError(f"This evaluation is {state.state}.", "Only one that ended early can be resumed.")
            self._check_free()
            self._launch(self._folders.find(name), resume=True)
