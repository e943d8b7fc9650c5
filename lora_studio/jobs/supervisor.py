"""Starts, follows and stops runs: the parent's side of training.

The truth is on disk (run folders, the queue), so that several supervisors (the page's, a terminal's) can look after
one workspace at once and a new one finds everything again. Ending a supervisor never touches a worker.
"""

import importlib.metadata
import logging
import os
import shutil
import threading
import time
from collections.abc import Collection
from pathlib import Path

from lora_studio import __version__
from lora_studio.adapter_source import continued
from lora_studio.config import Config, files_of
from lora_studio.conflicts import machine_conflicts
from lora_studio.errors import StudioError
from lora_studio.events import Event, Extended, Finished, OtherRowsAccepted, Reason, RunState, to_line
from lora_studio.hardware import devices
from lora_studio.jobs.follow import BEFORE_WORK, Follower
from lora_studio.jobs.kinds import TRAIN
from lora_studio.jobs.launchers.interface import Launcher
from lora_studio.jobs.launchers.local import LocalLauncher, end_last_line
from lora_studio.jobs.waiting import MAX_EXTRA_EPOCHS, Waiting, check_room, lock, moved, passed, read_queue, write_queue
from lora_studio.parsing import ConfigError, to_yaml
from lora_studio.taken import at_work
from lora_studio.workspace import DEMO_MODEL, RunFolder, Workspace, shipped_data

_log = logging.getLogger(__name__)
_RECORDED_VERSIONS = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes")


class Supervisor:
    """Looks after the runs of a workspace. Safe to use from many threads.

    Whoever asks for a run that the workspace does not show them is told that there is none; the device is everybody's.

    A worker that was asked to stop is ended by force after `stop_seconds` where it has nothing to save yet, and after
    `save_seconds` where it trains: a step and a checkpoint of a large model take their time.
    """

    def __init__(
        self,
        workspace: Workspace,
        launcher: Launcher | None = None,
        stop_seconds: float = 10.0,
        save_seconds: float = 120.0,
        tick_seconds: float = 0.3,
    ) -> None:
        self._workspace = workspace
        self._launcher = launcher or LocalLauncher()
        self._stop_seconds, self._save_seconds = stop_seconds, save_seconds
        self._tick_seconds = tick_seconds
        self._lock = threading.RLock()
        self._followers: dict[str, Follower] = {}
        self._revision = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    # -- life of the background thread

    def start(self) -> None:
        """Starts the background thread: it follows runs, starts queued ones and ends workers that do not stop."""
        with self._lock:
            if self._thread is None:
                self._closing.clear()
                self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Ends the background thread. Workers go on."""
        self._closing.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def go_to_sleep(self, seconds: float) -> None:
        """For a container that is about to end, and every process in it: the run that works saves, and stands first in
        the queue, so that the next start goes on with it."""
        self.close()
        with self._lock, lock(self._workspace):
            self._refresh_all()
            at_work = [each.folder for each in self._followers.values() if each.alive and not each.ended]
            others = [entry for entry in read_queue(self._workspace) if entry.run not in {run.id for run in at_work}]
            write_queue(self._workspace, [*(Waiting(run.id, resume=True) for run in at_work), *others])
        for run in at_work:
            self._launcher.ask_to_stop(run)
        end = time.monotonic() + seconds
        while any(map(self._launcher.is_alive, at_work)) and time.monotonic() < end:
            self._launcher.collect()
            time.sleep(0.05)

    def _watch(self) -> None:
        while not self._closing.wait(self._tick_seconds):
            try:
                self.tick()
                self._read_on()
            except Exception:  # a full disk or a vanished folder must not end the watch over the other runs
                _log.exception("The supervisor could not look around")

    def _read_on(self, seconds: float = 0.3, at_once: float = 0.02) -> None:
        """Reads runs that nobody has read yet, newest first and a few at once, so that others come in between."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._closing.wait(0.001):
            with self._lock:
                unread = (follower for follower in self._followers.values() if not follower.known)
                pause = time.monotonic() + at_once
                for follower in unread:
                    follower.read()
                    self._revision += 1
                    if time.monotonic() > pause:
                        break
                else:
                    return

    def tick(self) -> None:
        """One look around, as the background thread does it again and again."""
        with self._lock:
            self._launcher.collect()
            self._refresh_all()
            self._end_the_deaf()
            self._end_the_overdrawn()
            if read_queue(self._workspace):
                with lock(self._workspace):
                    self._start_next()

    # -- looking

    @property
    def revision(self) -> int:
        """Grows whenever anything about any run changed; equal numbers mean that there is nothing new to show."""
        with self._lock:
            self._refresh_all()
            return self._revision

    def run_revision(self, run_id: str) -> int:
        """The same for one run."""
        with self._lock:
            return self._follow(run_id).revision

    def state(self, run_id: str) -> RunState:
        """The run's state as of now: a snapshot, not to be changed. Raises `StudioError` where there is no such run."""
        with self._lock:
            return self._follow(run_id).state

    def runs(self, ids: Collection[str] | None = None) -> list[RunState]:
        """Every run's state in short (see `RunState`), newest first; of those `ids` alone, where they are given.

        While the background thread reads a workspace for the first time, those that it has read: `unread` are to come.
        """
        with self._lock:
            shown = [run for run in self._refresh_all(ids) if self._workspace.shows(run)]
            followers = [self._followers[run.id] for run in shown]
            return [follower.in_short for follower in followers if follower.known or self._thread is None]

    @property
    def unread(self) -> int:
        """How many runs `runs` does not tell of yet."""
        with self._lock:
            return sum(not follower.known for follower in self._followers.values()) if self._thread else 0

    def queue(self) -> list[str]:
        """Ids of the runs that wait for the device, the next one first."""
        return [entry.run for entry in self.waiting()]

    def waiting(self) -> list[Waiting]:
        """The same with what each is to do: begin, or go on, and for how many epochs more."""
        return read_queue(self._workspace)

    def busy(self) -> str | None:
        """Id of the run whose worker holds the device; None where none does."""
        with self._lock:
            self._refresh_all()
            return next((id for id, follower in self._followers.items() if follower.alive), None)

    def exit_code(self, run_id: str) -> int | None:
        """How the run's worker ended, where this supervisor started it (negative: by that signal)."""
        with self._lock:
            return self._launcher.how_it_ended(self._follow(run_id).folder).code

    def log(self, run_id: str, lines: int = 200) -> str:
        """The end of what the run's worker printed."""
        return self._launcher.log(self._workspace.run(run_id), lines)

    # -- acting

    def launch(self, config: Config) -> str:
        """Makes the run's folder and starts its worker, or queues it where another run holds the device.

        Raises `ConfigError` for settings that this machine can't do.
        """
        if problems := list(machine_conflicts(config, cuda=any(device.kind == "cuda" for device in devices()))):
            raise ConfigError(problems)
        self._workspace.check_request(files_of(config))
        config = self._workspace.admit(config)
        config = continued(with_absolute_paths(config), self._workspace)
        title = config.title or Path(config.data.train_file).stem
        facts = {
            "model": config.model.name,
            "data": config.data.train_file,
            "seed": config.training.seed,
            "versions": {"lora_studio": __version__, **_versions()},
        }
        with self._lock, lock(self._workspace):
            self._workspace.admit(config)  # again: the same visitor may have started another one meanwhile
            check_room(self._workspace, read_queue(self._workspace))
            run = self._workspace.create_run(title, to_yaml(config), facts)
            self._enqueue(Waiting(run.id))
        return run.id

    def resume(self, run_id: str, extra_epochs: float = 0.0, *, other_rows: bool = False) -> None:
        """Goes on from the run's last checkpoint; from the beginning where there is none yet.

        `extra_epochs` are added to those of the run's config, which stays as it was written; a run that is done needs
        them, for without it has nothing left to do. `other_rows` lets it go on where its data files have changed.
        """
        if not 0 <= extra_epochs <= MAX_EXTRA_EPOCHS:
            raise StudioError(f"{extra_epochs:g} extra epochs can't be trained.", "Give a number from 0 to 1000.")
        if extra_epochs:
            self._workspace.check_may("train a run longer")
        with self._lock, lock(self._workspace):
            follower = self._follow(run_id)
            state, saved = follower.state, bool(follower.folder.checkpoint_folders())
            if not state.final:
                raise StudioError(f"This run is {state.state} already.", "Wait for it, or stop it first.")
            if state.state == "done" and not extra_epochs:
                raise StudioError(
                    "This run is complete: there is nothing left to train.",
                    "Give it extra epochs, or continue from its adapter in a new run.",
                )
            if state.state == "done" and not saved:
                raise StudioError(
                    "This run kept no checkpoint, so it can't go on where it ended.",
                    "Continue from its adapter in a new run instead.",
                )
            check_room(self._workspace, read_queue(self._workspace))
            run = self._workspace.run(run_id)
            self._enqueue(Waiting(run.id, run.has_checkpoints, extra_epochs, other_rows))

    def stop(self, run_id: str) -> None:
        """Asks the worker to save and end, or takes a waiting run out of the queue; a run that ended stays as it is."""
        with self._lock, lock(self._workspace):
            run = self._workspace.run(run_id)
            if not self._take_out(run):
                self._launcher.ask_to_stop(run)
            self._refresh_all()

    def cancel(self, run_id: str) -> None:
        """Ends the worker and all it started at once, without saving; checkpoints stay. A waiting run won't start."""
        with self._lock, lock(self._workspace):
            run = self._workspace.run(run_id)
            if not self._take_out(run):
                self._launcher.kill(run, cancelled=True)
            self._refresh_all()

    def move(self, run_id: str, places: int) -> None:
        """Moves a waiting run towards the front of the queue (negative) or its end."""
        with self._lock, lock(self._workspace):
            run = self._workspace.run(run_id)
            entries = read_queue(self._workspace)
            if run.id not in [entry.run for entry in entries]:
                raise StudioError(f"Run {run.id} does not wait in the queue.", "Only waiting runs have a place there.")
            after = moved(entries, run.id, places)
            if not all(self._workspace.shows(RunFolder(run.path.with_name(one.run))) for one in passed(entries, after)):
                raise StudioError("The run beside it is another visitor's.", "Only the owner moves runs past others'.")
            write_queue(self._workspace, after)
            self._revision += 1

    def delete(self, run_id: str) -> None:
        """Removes the run's folder; a waiting run leaves the queue. Raises `StudioError` while its worker lives."""
        with self._lock, lock(self._workspace):
            follower = self._follow(run_id)
            if follower.alive:
                raise StudioError(
                    f"This run is {'ending' if follower.ended else follower.state.state}: it can't be deleted.",
                    "Stop it first, and wait until its worker has ended.",
                )
            self._dequeue(follower.folder.id)
            self._launcher.kill(follower.folder)
            self._workspace.delete_run(follower.folder.id)
            self._refresh_all()

    # -- inside: self._lock is held; for the queue also the workspace's lock

    def _enqueue(self, entry: Waiting) -> None:
        write_queue(self._workspace, [*read_queue(self._workspace), entry])
        self._start_next()

    def _take_out(self, run: RunFolder) -> bool:
        """Takes a waiting run out of the queue; one that was never started says so from now on."""
        if not self._dequeue(run.id):
            return False
        if not self._followers[run.id].state.events:
            _append(run, Finished(time.time(), "stopped", reason=Reason.DEQUEUED))
        return True

    def _dequeue(self, run_id: str) -> bool:
        entries = read_queue(self._workspace)
        left = [entry for entry in entries if entry.run != run_id]
        self._refresh_all()
        if len(left) == len(entries):
            return False
        write_queue(self._workspace, left)
        self._refresh_all()
        return True

    def _start_next(self) -> None:
        """Starts the head of the queue if no worker of the workspace is alive.

        The run leaves the queue after its worker was started, so that whoever looks in between sees it in one of both.
        """
        self._refresh_all()
        alive = [follower for follower in self._followers.values() if follower.alive]
        working = {follower.folder.id for follower in alive if not follower.ended}
        queued = read_queue(self._workspace)
        entries = [entry for entry in queued if entry.run in self._followers.keys() - working]
        if entries and not alive:
            head = entries.pop(0)
            run = self._workspace.whole.run(head.run)
            if head.extra_epochs:
                _append(run, Extended(time.time(), head.extra_epochs))
            if head.other_rows:
                _append(run, OtherRowsAccepted(time.time()))
            env = self._workspace.tokens(run.maker)
            self._launcher.start(run, TRAIN.module, resume=head.resume and run.has_checkpoints, env=env)
        if entries != queued:
            write_queue(self._workspace, entries)
        self._refresh_all()

    def _end_the_deaf(self) -> None:
        """Ends workers that were asked to stop long ago."""
        for follower in self._followers.values():
            asked = follower.worker.stop_asked if follower.worker else None
            if follower.alive and asked is not None:
                patience = self._stop_seconds if follower.state.phase in BEFORE_WORK else self._save_seconds
                if time.time() - asked > patience:
                    self._launcher.kill(follower.folder)

    def _end_the_overdrawn(self) -> None:
        """Ends all kinds of work that fill more of the disk than whoever asked for them has. Nothing more is saved: to
        save would take more of what there is none left of. The checkpoints saved last go where they are too much."""
        if not self._workspace.bounded:
            return
        for maker, folder in at_work(self._workspace.whole):
            if self._launcher.is_alive(folder) and (reason := self._workspace.overdrawn(maker)):
                _log.warning("%s: %s", folder.id, reason)
                self._launcher.kill(folder, reason=reason)
                folder.remove_unfinished()
                for checkpoint in reversed(folder.checkpoint_folders()):
                    if not self._workspace.overdrawn(maker):
                        break
                    shutil.rmtree(checkpoint, ignore_errors=True)  # a writer that dies may still hold it

    def _follow(self, run_id: str) -> Follower:
        """The up-to-date follower of a run, by id, unique beginning or "last"."""
        run = self._workspace.run(run_id)
        self._refresh(run, self.queue())
        return self._followers[run.id]

    def _refresh_all(self, ids: Collection[str] | None = None) -> list[RunFolder]:
        """Brings every follower, or those of `ids`, up to date and gives their runs, newest first."""
        runs, queued = self._workspace.whole.runs(), set(self.queue())
        gone = self._followers.keys() - {run.id for run in runs}
        for run_id in gone:
            del self._followers[run_id]
            self._revision += 1
        runs = runs if ids is None else [run for run in runs if run.id in ids]
        for run in runs:
            self._refresh(run, queued)
        return runs

    def _refresh(self, run: RunFolder, queued: Collection[str]) -> None:
        follower = self._followers.get(run.id)
        if follower is None:
            follower = self._followers[run.id] = Follower(run, self._launcher)
        was_alive = follower.alive
        if follower.refresh(run.id in queued):
            self._revision += 1
            if was_alive and not follower.alive:
                self._launcher.kill(run)  # a worker that crashed may have left processes behind


def _append(run: RunFolder, event: Event) -> None:
    """An event that the supervisor adds while the run has no worker."""
    end_last_line(run.events)
    with run.events.open("a", encoding="utf-8") as events:
        events.write(to_line(event))


def with_absolute_paths(config: Config) -> Config:
    """Files and model folders named from the current folder, by their whole path: a worker runs in another folder."""
    data = config.data.model_copy(
        update={
            "train_file": _absolute(config.data.train_file),
            "validation_file": config.data.validation_file and _absolute(config.data.validation_file),
        }
    )
    name = config.model.name
    model = config.model.model_copy(update={"name": name if name == DEMO_MODEL else _absolute(name)})
    return config.model_copy(update={"data": data, "model": model})


def _absolute(name: str) -> str:
    path = Path(os.path.expanduser(name))
    return str(path.resolve()) if name not in shipped_data() and os.path.exists(path) else name


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _RECORDED_VERSIONS}
