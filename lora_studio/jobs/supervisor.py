"""Starts, follows and stops jobs of all kinds: runs, evaluations, exports, benchmarks.

The truth is on disk (their folders, the queue), so that several supervisors (the page's, a terminal's) can look after
one workspace at once and a new one finds everything again. Ending a supervisor never touches a worker.
"""

import contextlib
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from lora_studio.config.parsing import ConfigError, default_title, to_yaml, with_absolute_paths
from lora_studio.config.sections import Config, files_of
from lora_studio.errors import StudioError
from lora_studio.jobs.devices import CHAT, Allocation, Holder, Placement, demand_of, request_facts, write_held
from lora_studio.jobs.events import Extended, Finished, OtherRowsAccepted, Reason, RunState
from lora_studio.jobs.groups import WeakRuns
from lora_studio.jobs.kinds import KINDS, TRAIN, JobIndex, Kind, append_event, remove, versions
from lora_studio.jobs.launchers import Launcher
from lora_studio.jobs.notes import Notes
from lora_studio.jobs.queue import (
    MAX_EXTRA_EPOCHS,
    QueueEntry,
    check_longer,
    check_resumable,
    check_room,
    is_shown,
    lock,
    moved,
    passed,
    read_queue,
    with_at_once,
    write_queue,
)
from lora_studio.jobs.targets import LOCAL, TargetLaunchers, Targets, local_files
from lora_studio.jobs.watcher import Follower, end_the_deaf, end_the_overdrawn
from lora_studio.models.adapters import continued
from lora_studio.models.hardware import Device, all_devices, default_devices, environment_of
from lora_studio.workspace import JobFolder, RunFolder, Workspace

_log = logging.getLogger(__name__)
MAX_OFF_DEVICE = 4
"""Jobs that need no device and work at once; more of them wait."""
READ_SECONDS, READ_AT_ONCE_SECONDS = 0.3, 0.02
"""How long jobs that nobody has read yet are read at each look, and before others have their turn."""
RECENT_SECONDS = 2.0
"""How long a look at the devices serves those who only want to know."""


class Supervisor:
    """Looks after the jobs of a workspace. Safe to use from many threads.

    Whoever asks for a job that the workspace does not show them is told that there is none; devices are everybody's.
    Each works on one job at a time, but for jobs that were told to begin beside others. `devices` gives those that jobs
    may have.

    A worker that was asked to stop is ended by force after `stop_seconds` where it has nothing to save yet, and else
    after the time that its kind of job has to save (`save_seconds` for all kinds, where it is given).
    """

    def __init__(
        self,
        workspace: Workspace,
        launcher: Launcher | None = None,
        stop_seconds: float = 10.0,
        save_seconds: float | None = None,
        tick_seconds: float = 0.3,
        devices: Callable[[], Sequence[Device]] = all_devices,
    ) -> None:
        self.workspace = workspace
        self._ask_devices = devices
        self._seen_devices: tuple[float, Sequence[Device]] = (-RECENT_SECONDS, ())
        self.chat_device: Callable[[], str] = str  # id of the device on which this process' chat holds a model, or ""
        self._launchers = TargetLaunchers(workspace, launcher)
        self.targets = Targets(workspace)
        self._stop_seconds, self._save_seconds = stop_seconds, save_seconds
        self._tick_seconds = tick_seconds
        self._lock = threading.RLock()
        self._index = JobIndex(workspace)
        self._weak_runs, self._notes = WeakRuns(), Notes(workspace.unrestricted)
        self._followers: dict[str, Follower] = {}
        self._secrets: dict[str, Mapping[str, str]] = {}  # until the worker has them
        self._had_secrets: set[str] = set()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    # -- life of the background thread

    def start(self) -> None:
        """Starts the background thread: it follows jobs, starts queued ones and ends workers that do not stop."""
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
            with self._lock:
                self._refresh_all()
                followers = list(self._followers.values())
            self._notes.look(followers, set(self.queue()))
            self._notes.close()

    def go_to_sleep(self, seconds: float) -> None:
        """For a container that is about to end, and every process in it: the jobs that work save, and stand first in
        the queue, so that the next start goes on with them. What was begun with a token of its own can't begin again.
        """
        self.close()
        with self._lock, lock(self.workspace):
            self._refresh_all()
            at_work = [each for each in self._followers.values() if each.alive and not each.ended and not each.remote]
            again = [each for each in at_work if each.folder.id not in self._had_secrets]
            first = [QueueEntry(each.folder.id, each.kind.resumes, kind=each.kind.name) for each in again]
            ids = {each.folder.id for each in at_work}
            others = [entry for entry in read_queue(self.workspace) if entry.job not in ids]
            write_queue(self.workspace, [*sorted(first, key=lambda entry: entry.kind != TRAIN.name), *others])
        for each in at_work:
            each.launcher.ask_to_stop(each.folder)
        end = time.monotonic() + seconds
        while any(each.launcher.is_alive(each.folder) for each in at_work) and time.monotonic() < end:
            self._launchers.collect()
            time.sleep(0.05)

    def _watch(self) -> None:
        while not self._closing.wait(self._tick_seconds):
            try:
                self.tick()
                self._read_on()
            except Exception:  # a full disk or a vanished folder must not end the watch over the other jobs
                _log.exception("The supervisor could not look around")

    def _read_on(self) -> None:
        """Reads jobs that nobody has read yet, newest first and a few at once, so that others come in between."""
        end = time.monotonic() + READ_SECONDS
        while time.monotonic() < end and not self._closing.wait(0.001):
            with self._lock:
                unread = (follower for follower in self._followers.values() if not follower.known)
                pause = time.monotonic() + READ_AT_ONCE_SECONDS
                for follower in unread:
                    follower.read()
                    if time.monotonic() > pause:
                        break
                else:
                    return

    def tick(self) -> None:
        """One look around, as the background thread does it again and again."""
        with self._lock:
            self._launchers.collect()
            self._refresh_all()
            followers, queued = list(self._followers.values()), set(self.queue())
            end_the_deaf(followers, self._stop_seconds, self._save_seconds)
            end_the_overdrawn(self.workspace, self._launchers.of)
            self._weak_runs.stop(followers)
            self._notes.look(followers, queued)
            if read_queue(self.workspace):
                with lock(self.workspace):
                    self._start_next()

    # -- looking

    def find(self, job_id: str, noun: str = "run") -> tuple[Kind, JobFolder]:
        """Kind and folder of the job of that id, or of the run that a name means. Raises `StudioError` for none, in
        which it is called `noun`."""
        return self._index.find(job_id, noun)

    def state(self, job_id: str) -> RunState:
        """The job's state as of now: a snapshot, not to be changed. Raises `StudioError` where there is no such job."""
        with self._lock:
            return self._follow(job_id).state

    def runs(self, ids: Collection[str] | None = None) -> list[RunState]:
        """Every run's state in short (see `RunState`), newest first; of those `ids` alone, where they are given.

        While the background thread reads a workspace for the first time, those that it has read: `unread` are to come.
        """
        return [follower.in_short for follower in self._shown(TRAIN, ids) if follower.known or self._thread is None]

    def jobs(self, kind: Kind) -> list[RunState]:
        """The state of every job of a kind that is shown, newest first."""
        return [follower.in_short for follower in self._shown(kind)]

    def _shown(self, kind: Kind, ids: Collection[str] | None = None) -> list[Follower]:
        with self._lock:
            if ids is None:
                self._refresh_all()
            folders = [each for each in self._index.of(kind) if ids is None or each.id in ids]
            folders = [each for each in folders if self.workspace.policy.can_read(each)]
            if ids is not None:
                queued = set(self.queue())
                for folder in folders:
                    self._refresh(kind, folder, queued)
            return [self._followers[each.id] for each in folders if each.id in self._followers]

    @property
    def unread(self) -> int:
        """How many runs `runs` does not tell of yet."""
        with self._lock:
            followers = self._followers.values()
            return sum(each.kind is TRAIN and not each.known for each in followers) if self._thread else 0

    def queue(self) -> list[str]:
        """Ids of the jobs that wait, the next one first."""
        return [entry.job for entry in self.waiting()]

    def waiting(self) -> list[QueueEntry]:
        """The same with what each is to do: begin, or go on, and for how many epochs more."""
        return read_queue(self.workspace)

    def working(self, kind: Kind | None = None) -> list[RunState]:
        """What works now, whoever asked for it, of one kind or of all: those that hold the device first.

        While the background thread looks around, what others start is told at its next look: every tick of a page asks.
        """
        with self._lock:
            self._refresh_lively()
            alive = [each for each in self._followers.values() if each.alive and kind in (None, each.kind)]
            return [each.in_short for each in sorted(alive, key=lambda each: not each.on_device)]

    def busy(self, config: Config | None = None) -> str | None:
        """Id of a job for which a run with that config, else a job on any device, has to wait here; None for none."""
        compute = (config or Config()).compute
        with self._lock:
            self._refresh_all()
            return self._allocation(RECENT_SECONDS).blocker(compute) if compute.target == LOCAL else None

    def devices(self, seconds: float = RECENT_SECONDS) -> Sequence[Device]:
        """The devices that jobs may have, as of the last look at them within so many seconds."""
        at, listed = self._seen_devices
        if time.monotonic() - at >= seconds:
            listed = self._ask_devices()
            self._seen_devices = time.monotonic(), listed
        return listed

    def allocation(self) -> Allocation:
        """The devices with those who hold them now."""
        with self._lock:
            self._refresh_lively()
            return self._allocation(RECENT_SECONDS)

    def usage(self) -> list[tuple[Device, list[str]]]:
        """Each device with those who use it, as the caller may know them."""
        policy, allocation = self.workspace.policy, self.allocation()
        reader = None if policy.is_admin else policy.owner_id
        return [(device, allocation.users(device, reader)) for device in allocation.offered]

    def is_alive(self, job_id: str) -> bool:
        """Whether the job's worker is there, also for the moment after its last word."""
        with self._lock:
            return self._follow(job_id).alive

    def exit_code(self, job_id: str) -> int | None:
        """How the job's worker ended, where this supervisor started it (negative: by that signal)."""
        with self._lock:
            follower = self._follow(job_id)
            return follower.launcher.how_it_ended(follower.folder).code

    def log(self, job_id: str, lines: int = 200) -> str:
        """The end of what the job's worker printed."""
        folder = self._index.find(job_id)[1]
        return self._launchers.of(folder).log(folder, lines)

    def try_out(self, target: str) -> str:
        """Whether jobs can run on a target, in a sentence. Takes up to half a minute. Raises `StudioError`."""
        return self._launchers.try_out(target)

    # -- acting

    def launch(
        self,
        config: Config,
        *,
        memory: int | None = None,
        group: Mapping[str, object] | None = None,
        kind: Kind = TRAIN,
    ) -> str:
        """Makes a run's folder and starts its worker, or queues it while other jobs hold the devices that it may have.

        It waits until its device has so much `memory` free, in bytes, where that is given. `group` are the facts of
        the group that it belongs to (see `jobs.groups`). Another `kind` has a folder like a run's. Raises
        `ConfigError` for settings that its target can't do.
        """
        config = self.targets.placed(config)
        offered, elsewhere = self.devices(), config.compute.target != LOCAL
        if problems := self.targets.problems(config, offered):
            raise ConfigError(problems)
        self.workspace.policy.check_request({**files_of(config), "target": config.compute.target})
        config = self.workspace.policy.admit(config)
        config = continued(with_absolute_paths(config), self.workspace)
        share = self.workspace.policy.device_share
        title = config.title or default_title(config, [run.title for run in self.runs()])
        facts = {
            "model": config.model.name,
            "data": config.data.train_file,
            "seed": config.training.seed,
            "compute_target": config.compute.target,
            **({"group": group} if group else {}),
            **({} if elsewhere else request_facts(config, offered, memory=memory, share=share)),
            "versions": versions(),
        }

        def make() -> JobFolder:
            self.workspace.policy.admit(config)  # again: the same visitor may have started another one meanwhile
            return self.workspace.create_run(title, to_yaml(config), facts, kind.place(self.workspace))

        return self.submit(kind, make, target=config.compute.target, files=local_files(config))

    def submit(
        self,
        kind: Kind,
        make: Callable[[], JobFolder],
        *,
        at_once: bool = False,
        secrets: Mapping[str, str] | None = None,
        target: str = LOCAL,
        files: Sequence[Path] = (),
    ) -> str:
        """Makes a job's folder and starts its worker, or queues it while what it needs is taken; gives its id.

        With `at_once` it begins although another job holds the device. `secrets` go into the worker's environment and
        nowhere else: as no file may hold them, a job with some never waits. A `target` beside this machine has to see
        the `files` that the job needs. Raises `StudioError` where it can't start there.
        """
        if self.targets.find(target) is not None:
            if secrets:
                raise StudioError(f"A token cannot be sent to {target}.", "Publish from this machine.")
            self._launchers.check(target, files, noun=kind.noun)
        with self._lock, lock(self.workspace):
            check_room(self.workspace, read_queue(self.workspace))
            self._clear_unfinished(kind)
            folder = make()
            self._enqueue(QueueEntry(folder.id, kind=kind.name, at_once=at_once), secrets)
        return folder.id

    def resume(
        self,
        job_id: str,
        extra_epochs: float = 0.0,
        *,
        other_rows: bool = False,
        at_once: bool = False,
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        """Goes on from what the job's last worker left: a run from its last checkpoint, or from the beginning where
        there is none yet.

        `extra_epochs` are added to those of the run's config, which stays as it was written; a run that is done needs
        them, for without it has nothing left to do. `other_rows` lets it go on where its data files have changed.
        `at_once` and `secrets` are as for `submit`.
        """
        if not 0 <= extra_epochs <= MAX_EXTRA_EPOCHS:
            raise StudioError(f"{extra_epochs:g} extra epochs are not possible.", "Give a number from 0 to 1000.")
        if extra_epochs:
            self.workspace.policy.check_may("continue a finished run")
        with self._lock, lock(self.workspace):
            follower = self._follow(job_id)
            state, kind = follower.state, follower.kind
            check_resumable(kind, state)
            if kind is TRAIN and state.state == "done":
                check_longer(extra_epochs, saved=bool(follower.folder.checkpoint_folders()))
            check_room(self.workspace, read_queue(self.workspace))
            follower.demand = demand_of(follower.folder.read_facts())  # it may have changed since the run was read
            follower.demand.check(self.devices())
            folder = follower.folder
            saved = folder.has_checkpoints if isinstance(folder, RunFolder) else True
            self._enqueue(QueueEntry(folder.id, saved, extra_epochs, other_rows, kind.name, at_once), secrets)

    def stop(self, job_id: str) -> None:
        """Asks the worker to save and end, or takes a waiting job out of the queue; one that ended stays as it is."""
        with self._lock, lock(self.workspace):
            _, folder = self._index.find(job_id)
            if not self._take_out(folder):
                self._launchers.of(folder).ask_to_stop(folder)
            self._refresh_all()

    def cancel(self, job_id: str) -> None:
        """Ends the worker and all it started at once, without saving; checkpoints stay. A waiting job won't start."""
        with self._lock, lock(self.workspace):
            _, folder = self._index.find(job_id)
            if not self._take_out(folder):
                self._launchers.of(folder).kill(folder, cancelled=True)
            self._refresh_all()

    def move(self, job_id: str, places: int) -> None:
        """Moves a waiting job towards the front of the queue (negative) or its end."""
        with self._lock, lock(self.workspace):
            kind, folder = self._index.find(job_id)
            entries = read_queue(self.workspace)
            if folder.id not in [entry.job for entry in entries]:
                raise StudioError(
                    f"{kind.noun.capitalize()} {folder.id} is not in the queue.",
                    "Only queued jobs can be moved.",
                )
            after = moved(entries, folder.id, places)
            if not all(is_shown(self.workspace, entry) for entry in passed(entries, after)):
                raise StudioError(
                    "The next job belongs to another visitor.", "Only the owner can move jobs past those of others."
                )
            write_queue(self.workspace, after)

    def waits_for_memory(self, job_id: str) -> bool:
        """Whether a queued job waits only because too little memory is free."""
        with self._lock:
            follower = self._followers.get(job_id)
            return follower is not None and follower.short_of_memory

    def start_now(self, job_id: str) -> None:
        """Starts a waiting job beside others, however little memory is free."""
        if not self.workspace.policy.is_admin:
            raise StudioError("Only the owner can start a job out of turn.", "It starts when a device is free.")
        with self._lock, lock(self.workspace):
            _, folder = self._index.find(job_id)
            write_queue(self.workspace, with_at_once(read_queue(self.workspace), folder.id))
            self._start_next()

    def delete(self, job_id: str) -> None:
        """Removes the job's folder; a waiting one leaves the queue. Raises `StudioError` while its worker lives."""
        with self._lock, lock(self.workspace):
            follower = self._follow(job_id)
            folder, kind = follower.folder, follower.kind
            if follower.alive and (kind is TRAIN or not follower.ended):
                raise StudioError(
                    f"This {kind.noun} is {'ending' if follower.ended else follower.state.state} and cannot be "
                    "deleted.",
                    "Stop it first, and wait until its worker has ended.",
                )
            self._dequeue(folder.id)
            self._launchers.of(folder).kill(folder)
            folder.remove_unfinished()
            remove(folder)
            self._refresh_all()

    # -- inside: self._lock is held; for the queue also the workspace's lock

    def _enqueue(self, entry: QueueEntry, secrets: Mapping[str, str] | None = None) -> None:
        if secrets:
            self._secrets[entry.job] = secrets
            self._had_secrets.add(entry.job)
            entry = dataclasses.replace(entry, at_once=True)
        device = default_devices(self.devices())[0]
        entry = dataclasses.replace(entry, device_kind=device.kind if device.is_gpu else "")
        write_queue(self.workspace, [*read_queue(self.workspace), entry])
        self._start_next()

    def _clear_unfinished(self, kind: Kind) -> None:
        """Removes what workers left half-written that died while nobody looked."""
        self._refresh_all()
        for follower in self._followers.values():
            if follower.kind is kind and not kind.resumes and not follower.alive:
                follower.folder.remove_unfinished()

    def _take_out(self, folder: JobFolder) -> bool:
        """Takes a waiting job out of the queue; one that was never started says so from now on."""
        if not self._dequeue(folder.id):
            return False
        if not self._followers[folder.id].state.events:
            append_event(folder, Finished(time.time(), "stopped", reason=Reason.DEQUEUED))
        return True

    def _dequeue(self, job_id: str) -> bool:
        entries = read_queue(self.workspace)
        left = [entry for entry in entries if entry.job != job_id]
        self._refresh_all()
        if len(left) == len(entries):
            return False
        write_queue(self.workspace, left)
        self._refresh_all()
        return True

    def _start_next(self) -> None:
        """Starts what need not wait any longer, from the head of the queue on.

        A job leaves the queue after its worker was started, so that whoever looks in between sees it in one of both.
        """
        self._refresh_all()
        working = {each.folder.id for each in self._followers.values() if each.alive and not each.ended}
        queued = read_queue(self.workspace)
        entries = [entry for entry in queued if entry.job in self._followers.keys() - working]
        if entries != queued:
            write_queue(self.workspace, entries)
        for entry, follower, held in list(self._turns(entries, 0.0)):
            self._start(entry, follower, held)
            entries.remove(entry)
            write_queue(self.workspace, entries)
        self._refresh_all()

    def _turns(
        self, entries: Sequence[QueueEntry], seconds: float = RECENT_SECONDS
    ) -> Iterator[tuple[QueueEntry, Follower, Sequence[Device]]]:
        """The queued jobs that need not wait, each with its devices; the others are told why they wait."""
        here = (each for each in self._followers.values() if not each.remote)
        off_device = sum(each.alive and not each.on_device for each in here)
        allocation = self._allocation(seconds) if entries else None
        for entry in entries:
            follower = self._followers.get(entry.job)
            if follower is None or follower.alive or allocation is None:
                continue
            if follower.on_device:
                placement = allocation.place(follower.demand, entry.device_kind, beside=entry.at_once)
            elif follower.remote:
                placement = Placement()  # it waits in the queue of its target
            else:
                off_device += 1
                waits = off_device > MAX_OFF_DEVICE and not entry.at_once
                placement = Placement(why=f"{MAX_OFF_DEVICE} jobs that need no device are running." if waits else "")
            follower.wait_for(placement.why, short_of_memory=placement.short)
            if not placement.why:
                allocation.take(follower.as_holder([device.id for device in placement.devices]))
                yield entry, follower, placement.devices

    def _allocation(self, seconds: float) -> Allocation:
        chat = [Holder("", CHAT, (device,))] if (device := self.chat_device()) else []
        return Allocation(self.devices(seconds), [*self._holders(), *chat])

    def _holders(self) -> list[Holder]:
        """The jobs that hold devices. One that an earlier version started holds the first."""
        alive = [each for each in self._followers.values() if each.alive and each.on_device]
        return [
            each.as_holder([key for key, _ in each.held] or [default_devices(self.devices())[0].id]) for each in alive
        ]

    def _start(self, entry: QueueEntry, follower: Follower, held: Sequence[Device]) -> None:
        folder, kind = follower.folder, follower.kind
        write_held(folder, held)
        if entry.extra_epochs:
            append_event(folder, Extended(time.time(), entry.extra_epochs))
        if entry.other_rows:
            append_event(folder, OtherRowsAccepted(time.time()))
        sees = environment_of(held, os.environ) if held else {}
        env = {**sees, **self.workspace.policy.tokens(folder.owner_id), **self._secrets.pop(folder.id, {})}
        resume = entry.resume and (not isinstance(folder, RunFolder) or folder.has_checkpoints)
        try:
            self._launchers.of(folder).start(folder, kind.module, resume=resume, env=env)
        except StudioError as error:  # refused by its target
            ended = Finished(time.time(), "failed", 0, error.message, error.hint, Reason.REFUSED)
            append_event(folder, ended)

    def _follow(self, job_id: str) -> Follower:
        """The up-to-date follower of a job, by id; a run's also by unique beginning or "last"."""
        kind, folder = self._index.find(job_id)
        queued = self.queue()
        if folder.id in queued and self._thread is None:
            self._refresh_all()  # nobody else looks why it waits
        self._refresh(kind, folder, queued)
        return self._followers[folder.id]

    def _refresh_all(self) -> None:
        """Brings every follower up to date."""
        entries, there = self.waiting(), set()
        queued = {entry.job for entry in entries}
        for kind in KINDS.values():
            for folder in self._index.of(kind):
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile, by whoever else looks after it
                    self._refresh(kind, folder, queued)
                    there.add(folder.id)
        for job_id in self._followers.keys() - there:
            del self._followers[job_id]
        for _ in self._turns(entries):
            pass

    def _refresh_lively(self) -> None:
        """Brings what works or waits up to date, and the rest as well where no background thread does."""
        if self._thread is None:
            self._refresh_all()
            return
        queued = set(self.queue())
        for job_id, follower in list(self._followers.items()):
            if follower.alive or job_id in queued:
                self._refresh(follower.kind, follower.folder, queued)

    def _refresh(self, kind: Kind, folder: JobFolder, queued: Collection[str]) -> None:
        follower = self._followers.get(folder.id)
        if follower is None:
            follower = self._followers[folder.id] = Follower(folder, self._launchers.of(folder), kind)
        was_alive = follower.alive
        follower.refresh(folder.id in queued)
        if was_alive and not follower.alive:
            self._launchers.of(folder).kill(folder)  # a worker that crashed may have left processes behind
            if not kind.resumes:
                folder.remove_unfinished()
