"""Workers on this machine: how each is started, recognised, asked to stop and killed.

A worker is a process of its own session that writes to files, never to pipes, so it outlives the page and the server.
The system's count of processes killed for memory says why one died. A session child is
talked to over pipes instead, and ends with whoever started it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
from pydantic import ValidationError

from lora_studio.config.compute import Compute
from lora_studio.config.fields import read_yaml
from lora_studio.errors import StudioError
from lora_studio.files import end_last_line, is_time, read_object
from lora_studio.jobs.launchers import Exit, Wait, Worker, last_lines
from lora_studio.models.hub import SECRETS, Charge
from lora_studio.workspace import JobFolder, RunFolder, write_atomically

MACHINE = Path("/proc/vmstat")
GROUP = Path("/sys/fs/cgroup/memory.events")


def oom_kills(machine: Path = MACHINE, group: Path = GROUP) -> int | None:
    """The larger of both counts; None where neither can be read."""
    counts = [count for count in map(_count, (machine, group)) if count is not None]
    return max(counts, default=None)


def _count(path: Path) -> int | None:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


# Start times come from the clock ticks since boot; setting the machine's clock moves them by fractions of a second.
_SAME_START_SECONDS = 2.0
MAX_PID = 1 << 31
IN_PROCESSES = "lora_studio.engine.train.processes"
RENDEZVOUS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The variables by which torch's processes find each other."""


def python_module(name: str) -> list[str]:
    """The command that runs a module with this Python; -P keeps the current folder's files from posing as libraries."""
    return [sys.executable, "-P", "-m", name]


def worker_command(folder: JobFolder, module: str) -> list[str]:
    """The command that does a job's work, without the folder. A run that trains in several processes is started by the
    program that watches over them."""
    try:
        section = read_yaml(folder.config).get("compute") if isinstance(folder, RunFolder) else None
        count = Compute.model_validate(section or {}).world_size
    except (StudioError, ValidationError):  # the worker says what is wrong with it
        count = 1
    return [*python_module(IN_PROCESSES), str(count)] if count > 1 else python_module(module)


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process' environment for a child that finds the package from any folder and prints without delay.

    The passwords of the page's visitors are not for children, nor is the place of a studio that was itself started as
    one of several processes.
    """
    own = {name: value for name, value in os.environ.items() if name not in SECRETS and name not in RENDEZVOUS}
    package_parent = str(Path(__file__).resolve().parents[3])
    paths = [package_parent, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**own, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONUNBUFFERED": "1", **(extra or {})}


class ProcessPipes:
    """A child with lines of text in both directions. It has a session of its own: Ctrl-C is the parent's to handle."""

    def __init__(self, command: Sequence[str], log_path: Path, env: Mapping[str, str] | None = None) -> None:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=child_environment(env),
                start_new_session=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.input, self.output = self._process.stdin, self._process.stdout

    @property
    def exit_code(self) -> int | None:
        """How it ended (negative: by that signal); None while it lives."""
        return self._process.poll()

    def kill(self) -> None:
        """Ends the child, and what it started, by force."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until the child is gone; False where it still is there after so many seconds."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


@dataclass(frozen=True, slots=True)
class LocalWorker:
    """What `worker.json` holds: which process it is, when it was started, and what was asked of it since."""

    pid: int
    started: float
    launched: float
    stop_asked: float | None = None
    killed: float | None = None
    cancelled: bool = False
    reason: str = ""
    oom_kills: int | None = None


def read_worker(folder: JobFolder) -> LocalWorker | None:
    """The job's latest worker, alive or not; None where none was ever started, or where its file is damaged."""
    try:
        worker = LocalWorker(**read_object(folder.worker))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    known = isinstance(worker.pid, int) and 0 < worker.pid < MAX_PID
    times = (worker.started, worker.launched, worker.stop_asked or 0.0, worker.killed or 0.0)
    return worker if known and all(map(is_time, times)) and isinstance(worker.reason, str) else None


def find(folder: JobFolder) -> psutil.Process | None:
    """The job's worker if it is alive. A process that ended and was not collected yet (a zombie) is not."""
    worker = read_worker(folder)
    return _process(worker) if worker else None


def _process(worker: LocalWorker) -> psutil.Process | None:
    try:
        process = psutil.Process(worker.pid)
        same = abs(process.create_time() - worker.started) < _SAME_START_SECONDS
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def ask_to_stop(folder: JobFolder) -> bool:
    """SIGTERM to the job's worker, which saves and ends; False where no worker is alive.

    Only the worker itself gets it: processes that load data for it must live on while it saves.
    """
    worker, process = read_worker(folder), find(folder)
    if worker is None or process is None:
        return False
    if worker.stop_asked is None:
        write_worker(folder, replace(worker, stop_asked=time.time()))
    try:
        process.send_signal(signal.SIGTERM)
    except psutil.NoSuchProcess:
        return False
    return True


def kill(folder: JobFolder, *, cancelled: bool = False, reason: str = "") -> bool:
    """SIGKILL to the worker and everything it started; False where nothing was left."""
    worker = read_worker(folder)
    if worker is None or not sweepable(worker):
        return False
    if _process(worker):
        write_worker(folder, replace(worker, killed=time.time(), cancelled=cancelled, reason=reason))
    try:
        os.killpg(worker.pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def sweepable(worker: LocalWorker) -> bool:
    """Whether the worker's process group is its own: a living stranger under its id means that the group is gone."""
    try:
        return abs(psutil.Process(worker.pid).create_time() - worker.started) < _SAME_START_SECONDS
    except psutil.NoSuchProcess:
        return True


def write_worker(folder: JobFolder, worker: LocalWorker) -> None:
    """Replaces what is recorded of a job's worker."""
    write_atomically(folder.worker, json.dumps(asdict(worker)))


class LocalLauncher:
    """A `Launcher` for this machine. `command` takes the place of the module that a kind of job is done by; the job's
    folder is appended to it. `env` is for all workers.
    """

    def __init__(self, command: Sequence[str] | None = None, env: Mapping[str, str] | None = None) -> None:
        self._command = list(command) if command else None
        self._env = env
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(
        self, folder: JobFolder, module: str, *, resume: bool = False, env: Mapping[str, str] | None = None
    ) -> None:
        folder.complete.unlink(missing_ok=True)
        end_last_line(folder.events)
        launched, command = time.time(), self._command or worker_command(folder, module)
        words = [*command, str(folder.path), *(["--resume"] if resume else [])]
        pid, started = self.spawn(folder, words, env)
        write_worker(folder, LocalWorker(pid, started, launched, oom_kills=oom_kills()))

    def spawn(self, folder: JobFolder, command: Sequence[str], env: Mapping[str, str] | None) -> tuple[int, float]:
        """A process of a session of its own that works on the folder; its id and when it was started."""
        with self.log_of(folder).open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder.path,
                env=child_environment({**(self._env or {}), **(env or {})}),
                start_new_session=True,
            )
        self._children[child.pid] = child
        return child.pid, psutil.Process(child.pid).create_time()

    def log_of(self, folder: JobFolder) -> Path:
        """Where the process prints to."""
        return folder.log

    def worker(self, folder: JobFolder) -> Worker | None:
        known = read_worker(folder)
        if known is None:
            return None
        return Worker(known.launched, known.stop_asked, known.killed, known.cancelled, known.reason)

    def is_alive(self, folder: JobFolder) -> bool:
        return find(folder) is not None

    def waits(self, folder: JobFolder) -> Wait | None:
        return None

    def charge(self, folder: JobFolder) -> Charge | None:
        return None

    def ask_to_stop(self, folder: JobFolder) -> bool:
        return ask_to_stop(folder)

    def kill(self, folder: JobFolder, *, cancelled: bool = False, reason: str = "") -> bool:
        return kill(folder, cancelled=cancelled, reason=reason)

    def collect(self) -> None:
        for child in self._children.values():
            child.poll()

    def how_it_ended(self, folder: JobFolder) -> Exit:
        worker = read_worker(folder)
        child = self._children.get(worker.pid) if worker else None
        before = worker.oom_kills if worker else None
        return Exit(child.poll() if child else None, before is not None and (oom_kills() or 0) > before)

    def log(self, folder: JobFolder, lines: int) -> str:
        return last_lines(folder.log, lines)
