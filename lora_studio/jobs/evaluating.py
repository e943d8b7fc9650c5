"""Starts, follows, stops and resumes evaluations: the parent's side."""

from dataclasses import dataclass, replace

from lora_studio.errors import StudioError
from lora_studio.evaluations import EvaluationFolder, Request, create, folders
from lora_studio.events import RunState
from lora_studio.jobs.folder_jobs import FolderJobs
from lora_studio.jobs.launcher import Launcher, python_module
from lora_studio.workspace import Workspace

RUN_WORDS = {
    "The run was": "The evaluation was",
    "No checkpoint was saved yet: Resume begins again.": "Resume answers the rows that are left.",
    "ready to train": "ready to answer",
    "and nothing more was saved": "and what was answered is kept",
}


@dataclass(frozen=True, slots=True)
class Speed:
    """Rows a second since this start, and the seconds that the rest will take."""

    rows_per_second: float
    seconds_left: float


def speed_of(state: RunState) -> Speed | None:
    """How fast an evaluation answers; None before the first batch."""
    if state.phase != "answer" or state.phase_started is None or state.last_event is None:
        return None
    done, seconds = state.phase_done - state.step, state.last_event - state.phase_started
    if done <= 0 or seconds <= 0:
        return None
    return Speed(done / seconds, (state.phase_total - state.phase_done) * seconds / done)


class Evaluations(FolderJobs[EvaluationFolder]):
    """Looks after the evaluations of a workspace."""

    def __init__(self, workspace: Workspace, launcher: Launcher | None = None) -> None:
        super().__init__(
            folders(workspace), launcher or Launcher(python_module("lora_studio.engine.evaluator")), RUN_WORDS
        )
        self._workspace = workspace

    def start(self, request: Request) -> str:
        """Makes the evaluation's folder and starts its child. Raises `StudioError` while another one answers."""
        most = self._workspace.test_rows(request.measuring.max_samples)
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
