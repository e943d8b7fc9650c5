"""Starts, follows, stops and resumes evaluations: the parent's side.

Each is a child of its own session that writes to its folder, as a run's worker is; the truth is on disk, so that a
reload, a new server or a terminal finds it again.
"""

import threading
import time
from dataclasses import dataclass

from lora_studio.errors import StudioError
from lora_studio.evaluations import EvaluationFolder, Request, create, delete, evaluation, evaluations
from lora_studio.events import RunState
from lora_studio.jobs.follow import Follower
from lora_studio.jobs.launcher import Launcher, ask_to_stop, kill, python_module
from lora_studio.workspace import Workspace

STOP_SECONDS = 20.0
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


class Evaluations:
    """Looks after the evaluations of a workspace. Safe to use from many threads."""

    def __init__(self, workspace: Workspace, launcher: Launcher | None = None) -> None:
        self._workspace = workspace
        self._launcher = launcher or Launcher(python_module("lora_studio.engine.evaluator"))
        self._lock = threading.RLock()
        self._followers: dict[str, Follower] = {}

    def start(self, request: Request) -> str:
        """Makes the evaluation's folder and starts its child. Raises `StudioError` while another one answers."""
        with self._lock:
            self._check_free()
            folder = create(self._workspace, request)
            self._launcher.start(folder)
        return folder.id

    def resume(self, name: str) -> None:
        """Answers the rows that are left."""
        with self._lock:
            state = self.state(name)
            if not state.final or state.state == "done":
                raise StudioError(f"This evaluation is {state.state}.", "Only one that ended early can be resumed.")
            self._check_free()
            self._launcher.start(evaluation(self._workspace, name), resume=True)

    def stop(self, name: str) -> None:
        """Asks the child to end; it keeps what is answered. One that does not hear is ended by the next look."""
        ask_to_stop(evaluation(self._workspace, name))

    def delete(self, name: str) -> None:
        """Removes an evaluation's folder. Raises `StudioError` while its child lives."""
        with self._lock:
            if not self.state(name).final:
                raise StudioError("This evaluation is not over.", "Stop it first.")
            delete(evaluation(self._workspace, name))
            self._followers.pop(name, None)

    def state(self, name: str) -> RunState:
        """The evaluation as of now. Raises `StudioError` where there is none."""
        with self._lock:
            return self._look(evaluation(self._workspace, name))

    def all(self) -> list[RunState]:
        """Every evaluation, newest first."""
        with self._lock:
            return [self._look(folder) for folder in evaluations(self._workspace)]

    def busy(self) -> str | None:
        """Id of the evaluation whose child is alive; None where none is."""
        with self._lock:
            return next((state.id for state in self.all() if self._followers[state.id].alive), None)

    def exit_code(self, name: str) -> int | None:
        """How the evaluation's child ended, where this process started it."""
        worker = self._followers[name].worker
        return self._launcher.exit_code(worker) if worker else None

    def _check_free(self) -> None:
        other = self.busy()
        if other is not None:
            raise StudioError(
                f"The evaluation {self._followers[other].state.title} is going on.", "Wait for it, or stop it first."
            )

    def _look(self, folder: EvaluationFolder) -> RunState:
        self._launcher.collect()
        follower = self._followers.get(folder.id)
        if follower is None:
            follower = self._followers[folder.id] = Follower(folder)
        follower.refresh(False, self._launcher.exit_code)
        worker = follower.worker
        if follower.alive and worker and worker.stop_asked and time.time() - worker.stop_asked > STOP_SECONDS:
            kill(folder)
        return _in_words(follower.state)


def _in_words(state: RunState) -> RunState:
    """A vanished child's end in the words of an evaluation: it keeps answers, not checkpoints."""
    for said, meant in RUN_WORDS.items():
        state.message, state.hint = state.message.replace(said, meant), state.hint.replace(said, meant)
    return state
