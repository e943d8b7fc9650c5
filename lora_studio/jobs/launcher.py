"""How a worker is started, recognised, asked to stop and ended.

A worker is a process of its own session that writes to files, never to pipes, so that it outlives the page, the
terminal and the web server. `worker.json` in the run folder holds its process id and start time: together they name
one process for good, while an id alone is given to another process later.
"""

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

from lora_studio.accounts import SECRETS
from lora_studio.files import is_time, read_object
from lora_studio.jobs.oom import oom_kills
from lora_studio.workspace import RunFolder, write_atomically

# Start times come from the clock ticks since boot; setting the machine's clock moves them by fractions of a second.
_SAME_START_SECONDS = 2.0
MAX_PID = 1 << 31


def python_module(name: str) -> list[str]:
    """The command that runs a module with this Python; -P keeps the current folder's files from posing as libraries."""
    return [sys.executable, "-P", "-m", name]


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process' environment for a child that finds the package from any folder and prints without delay.

    The passwords of the page's visitors are not for children.
    """
    own = {name: value for name, value in os.environ.items() if name not in SECRETS}
    package_parent = str(Path(__file__).resolve().parents[2])
    paths = [package_parent, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**own, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONUNBUFFERED": "1", **(extra or {})}


@dataclass(frozen=True, slots=True)
class Worker:
    """What `worker.json` holds: which process it is, when it was started, and what was asked of it since.

    `reason` are the words for whoever wonders why it was killed without having been asked to stop.
    """

    pid: int
    started: float
    launched: float
    stop_asked: float | None = None
    killed: float | None = None
    cancelled: bool = False
    reason: str = ""
    oom_kills: int | None = None


def read_worker(run: RunFolder) -> Worker | None:
    """The run's latest worker, alive or not; None where none was ever started, or where its file is damaged."""
    try:
        worker = Worker(**read_object(run.worker))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    known = isinstance(worker.pid, int) and 0 < worker.pid < MAX_PID
    times = (worker.started, worker.launched, worker.stop_asked or 0.0, worker.killed or 0.0)
    return worker if known and all(map(is_time, times)) and isinstance(worker.reason, str) else None


def find(run: RunFolder) -> psutil.Process | None:
    """The run's worker if it is alive. A process that ended and was not collected yet (a zombie) is not."""
    worker = read_worker(run)
    return _process(worker) if worker else None


def _process(worker: Worker) -> psutil.Process | None:
    try:
        process = psutil.Process(worker.pid)
        same = abs(process.create_time() - worker.started) < _SAME_START_SECONDS
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def ask_to_stop(run: RunFolder) -> bool:
    """SIGTERM to the run's worker, which saves and ends; False where no worker is alive.

    Only the worker itself gets it: processes that load data for it must live on while it saves.
    """
    worker, process = read_worker(run), find(run)
    if worker is None or process is None:
        return False
    if worker.stop_asked is None:
        _write(run, replace(worker, stop_asked=time.time()))
    try:
        process.send_signal(signal.SIGTERM)
    except psutil.NoSuchProcess:
        return False
    return True


def kill(run: RunFolder, cancelled: bool = False, reason: str = "") -> bool:
    """SIGKILL to the worker and everything it started; False where nothing was left.

    `cancelled` notes that a person wanted this, and not only an end; `reason` why nobody was asked.
    """
    worker = read_worker(run)
    if worker is None or not sweepable(worker):
        return False
    if _process(worker):
        _write(run, replace(worker, killed=time.time(), cancelled=cancelled, reason=reason))
    try:
        os.killpg(worker.pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def sweepable(worker: Worker) -> bool:
    """Whether the worker's process group is its own: a living stranger under its id means that the group is gone."""
    try:
        return abs(psutil.Process(worker.pid).create_time() - worker.started) < _SAME_START_SECONDS
    except psutil.NoSuchProcess:
        return True


def _write(run: RunFolder, worker: Worker) -> None:
    write_atomically(run.worker, json.dumps(asdict(worker)))


class Launcher:
    """Starts workers and collects those of its children that ended. `command` gets the run folder appended."""

    def __init__(self, command: Sequence[str] | None = None, env: Mapping[str, str] | None = None) -> None:
        self._command = list(command or python_module("lora_studio.engine.worker"))
        self._env = env
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, run: RunFolder, resume: bool = False, env: Mapping[str, str] | None = None) -> Worker:
        """A new worker for the run. The caller makes sure that the run has none alive. `env` is for this one alone."""
        run.complete.unlink(missing_ok=True)
        end_last_line(run.events)
        launched = time.time()
        with run.log.open("ab") as log:
            child = subprocess.Popen(
                [*self._command, str(run.path), *(["--resume"] if resume else [])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=run.path,
                env=child_environment({**(self._env or {}), **(env or {})}),
                start_new_session=True,
            )
        worker = Worker(child.pid, psutil.Process(child.pid).create_time(), launched, oom_kills=oom_kills())
        _write(run, worker)
        self._children[child.pid] = child
        return worker

    def collect(self) -> None:
        """Takes the exit status of children that ended, so that none stays behind as a zombie."""
        for child in self._children.values():
            child.poll()

    def exit_code(self, worker: Worker) -> int | None:
        """How a child of this launcher ended (negative: by that signal); None where that is not known."""
        child = self._children.get(worker.pid)
        return child.poll() if child else None


def end_last_line(path: Path) -> None:
    """Ends a line that a killed worker left torn, so that the next line written does not become part of it."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
