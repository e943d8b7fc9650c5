"""What a supervisor does beside starting jobs: it ends those that do not stop, those that fill more of the disk than
their user has and the weak runs of groups, and tells of jobs that ended.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterable, Sequence

from lora_studio.errors import StudioError
from lora_studio.jobs.events import Evaluated, Finished, Reason
from lora_studio.jobs.groups import weak_runs
from lora_studio.jobs.kinds import TRAIN, Membership, append_event, at_work, membership
from lora_studio.jobs.launchers import Launcher
from lora_studio.jobs.notes import Notes
from lora_studio.jobs.watcher import BEFORE_WORK, Follower
from lora_studio.workspace import Workspace

_log = logging.getLogger(__name__)


def end_the_deaf(
    followers: Iterable[Follower], launcher: Launcher, stop_seconds: float, save_seconds: float | None
) -> None:
    """Ends workers that were asked to stop long ago; see `Supervisor` for the seconds."""
    for follower in followers:
        asked = follower.worker.stop_asked if follower.worker else None
        if follower.alive and asked is not None:
            saving = follower.kind.save_seconds if save_seconds is None else save_seconds
            patience = stop_seconds if follower.state.phase in BEFORE_WORK else saving
            if time.time() - asked > patience:
                with contextlib.suppress(StudioError):  # a cluster that does not answer now
                    launcher.kill(follower.folder)


def end_the_overdrawn(workspace: Workspace, launcher: Launcher) -> None:
    """Ends all kinds of work that fill more of the disk than whoever asked for them has. Nothing more is saved: to
    save would take more of what there is none left of. The checkpoints saved last go where they are too much."""
    if not workspace.policy.has_quota:
        return
    for maker, folder in at_work(workspace.unrestricted):
        if launcher.is_alive(folder) and (reason := workspace.policy.over_quota(maker)):
            _log.warning("%s: %s", folder.id, reason)
            launcher.kill(folder, reason=reason)
            folder.remove_unfinished()
            for checkpoint in reversed(folder.checkpoint_folders()):
                if not workspace.policy.over_quota(maker):
                    break
                shutil.rmtree(checkpoint, ignore_errors=True)  # a writer that dies may still hold it


class Housekeeping:
    """All of that, and the notes of jobs that ended, at each look of a supervisor."""

    def __init__(self, workspace: Workspace, launcher: Launcher) -> None:
        self._workspace, self._launcher = workspace, launcher
        self._weak, self._notes = WeakRuns(launcher), Notes(workspace.unrestricted)

    def look(
        self, followers: Sequence[Follower], queued: set[str], stop_seconds: float, save_seconds: float | None
    ) -> None:
        """One look at all jobs."""
        end_the_deaf(followers, self._launcher, stop_seconds, save_seconds)
        end_the_overdrawn(self._workspace, self._launcher)
        self._weak.stop(followers)
        self._notes.look(followers, queued)

    def close(self, followers: Sequence[Follower], queued: set[str]) -> None:
        """Tells of what ended at last, and waits until that was sent."""
        self._notes.look(followers, queued)
        self._notes.close()


class WeakRuns:
    """Stops the weak runs of groups that want it, and writes down why a run was stopped.

    What is decided follows from the runs' events alone: a supervisor that begins later comes to the same.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._groups: dict[str, Membership | None] = {}  # by id of the run
        self._decided: dict[str, tuple[object, dict[str, Evaluated]]] = {}  # by id of the group

    def stop(self, followers: Sequence[Follower]) -> None:
        """One look at all runs."""
        groups: dict[str, list[Follower]] = {}
        for follower in followers:
            if follower.kind is TRAIN and (group := self._group(follower)) is not None and group.stop_weak:
                groups.setdefault(group.id, []).append(follower)
        for group_id, members in groups.items():
            if any(member.alive for member in members) or group_id in self._decided:
                self._stop(group_id, members)

    def _group(self, follower: Follower) -> Membership | None:
        run_id = follower.folder.id
        if run_id not in self._groups:
            self._groups[run_id] = membership(follower.folder.read_facts())
        return self._groups[run_id]

    def _stop(self, group_id: str, members: Sequence[Follower]) -> None:
        states = {member.folder.id: member.in_short for member in members}
        mark = tuple((run_id, len(state.evaluations)) for run_id, state in states.items())
        decided = self._decided.get(group_id)
        if decided is None or decided[0] != mark:
            group = self._groups[members[0].folder.id]
            metric = group.metric if group else "loss"
            weak = weak_runs(((run_id, state.evaluations) for run_id, state in states.items()), metric)
            decided = self._decided[group_id] = (mark, weak)
        for member in members:
            if member.folder.id in decided[1]:
                self._end(member, decided[1][member.folder.id])

    def _end(self, member: Follower, evaluation: Evaluated) -> None:
        """Asks a weak run to stop; one that a person resumed after that goes on."""
        state, worker = member.in_short, member.worker
        if worker is None or worker.launched > evaluation.time:
            return
        if member.alive and not member.ended and worker.stop_asked is None:
            with contextlib.suppress(StudioError):  # a cluster that does not answer now
                self._launcher.ask_to_stop(member.folder)
        elif not member.alive and state.reason is Reason.STOPPED and (state.finished or 0.0) >= evaluation.time:
            words = f"Stopped early: in the weaker half of its group at step {evaluation.step:,}."
            append_event(member.folder, Finished(time.time(), "stopped", state.step, words, "", Reason.PRUNED))
