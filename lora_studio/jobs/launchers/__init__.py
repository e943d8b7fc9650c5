"""Where a worker runs and how it is started, found, stopped and ended. The only place that knows processes.
May import errors, config, and the folder and event contracts of jobs.

Here is what every launcher can do with a job's worker, and what it tells of it; what a process is stays inside.
"""

import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import field_validator

from lora_studio.config.fields import Section, setting
from lora_studio.jobs.events import Reason
from lora_studio.models.hub import Charge, Offer
from lora_studio.workspace import JobFolder

_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Worker:
    """A job's latest worker, alive or not: when it was launched, and what was asked of it since.

    `reason` are the words for whoever wonders why it was killed without having been asked to stop. `restarts` counts
    how often its target took it back and began it again.
    """

    launched: float
    stop_asked: float | None = None
    killed: float | None = None
    cancelled: bool = False
    reason: str = ""
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Exit:
    """How a worker ended, as far as its launcher can tell: `code` is negative for a signal, None where nobody knows.

    `out_of_memory`: the system counted a kill for want of memory while it worked. `reason` is what the target itself
    says of the end, such as a node that failed; it counts unless the studio asked for the end.
    """

    code: int | None = None
    out_of_memory: bool = False
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """A worker that was started and waits in its target's own queue: `reason` in the target's words, since when, and
    when the target expects to start it (None where it does not say)."""

    reason: str
    since: float
    expected_start: float | None = None

    def words(self, target: str) -> str:
        """Why the worker does not begin yet, in a sentence."""
        expected = time.strftime("%d %b %H:%M", time.localtime(self.expected_start or 0))
        return f"In the queue of {target}: {self.reason}." + (
            f" Expected start: {expected}." if self.expected_start else ""
        )


class Target(Section):
    """A place beside this machine where jobs run, as `targets.yaml` of the workspace describes it."""

    shared: bool = setting(False, "Shared with visitors", "Visitors may run jobs on this target too.")

    @property
    def ranks(self) -> int:
        """Processes of a training on this target, one for each device."""
        return 1

    @property
    def trains_only(self) -> bool:
        """Whether only trainings run there."""
        return False

    @property
    def offer(self) -> Offer | None:
        """What a job there costs; None where it costs nothing, or where that is not known."""
        return None

    @property
    def device_memory(self) -> int | None:
        """Bytes of each device, where that is known beforehand."""
        offer = self.offer
        return offer.memory if offer else None

    @property
    def device_kind(self) -> str:
        """What the devices are, one of `accelerators.DEVICE_KINDS`."""
        return "cpu"


class SlurmTarget(Target):
    """A part of a Slurm cluster. An empty setting leaves it to the cluster's own default."""

    partition: str = setting("", "Partition", "Empty: the cluster's default partition.")
    account: str = setting("", "Account", "The account that the jobs are charged to.")
    qos: str = setting("", "QoS", "Quality of service.")
    time: str = setting("", "Time limit", "As Slurm writes it: 2:00:00 or 1-12. Empty: the partition's.")
    nodes: int = setting(1, "Nodes", "Nodes of a training. Other jobs take one.", ge=1, le=10_000)
    gpus_per_node: int = setting(0, "GPUs per node", "One process for each. 0: one process on the CPU.", ge=0, le=64)
    mem: str = setting("", "Memory per node", "As Slurm writes it, such as 64G.")
    extra: str = setting("", "Other #SBATCH options", "One per line, such as --constraint=a100.")
    environment: str = setting(
        "",
        "Environment command",
        "Makes python with LoRA Studio available. Empty: this installation.",
        details="Runs in the job's script before the worker, such as: source /shared/venv/bin/activate",
    )
    shared_folder: str = setting("", "Shared folder", "Folder that all nodes see. The workspace must be inside.")
    resume_at_time_limit: bool = setting(
        False, "Resume at the time limit", "Queues a job again when its time is over, until it is done."
    )

    @field_validator("partition", "account", "qos", "time", "mem")
    @classmethod
    def _word(cls, value: str) -> str:
        if any(character.isspace() for character in value.strip()):
            raise ValueError("must be a single word")
        return value.strip()

    @field_validator("extra")
    @classmethod
    def _options(cls, value: str) -> str:
        lines = [line.strip().removeprefix("#SBATCH").strip() for line in value.splitlines() if line.strip()]
        if any(not line.startswith("-") for line in lines):
            raise ValueError("must hold one option per line, each with its dashes")
        return "\n".join(lines)

    @field_validator("shared_folder")
    @classmethod
    def _whole_path(cls, value: str) -> str:
        if value.strip() and not os.path.isabs(value.strip()):
            raise ValueError("must be a whole path")
        return value.strip()

    @property
    def ranks(self) -> int:
        return self.nodes * max(1, self.gpus_per_node)

    @property
    def device_kind(self) -> str:
        return "cuda" if self.gpus_per_node else "cpu"


class Launcher(Protocol):
    """Starts workers in one kind of place, and finds them again from the job's folder, whoever started them."""

    def start(
        self, folder: JobFolder, module: str, *, resume: bool = False, env: Mapping[str, str] | None = None
    ) -> None:
        """A new worker that runs `module` on the folder. The caller makes sure that the job has none alive.

        `env` is for this one alone, and is written nowhere.
        """

    def worker(self, folder: JobFolder) -> Worker | None:
        """The job's latest worker; None where none was ever started, or where its record is damaged."""

    def is_alive(self, folder: JobFolder) -> bool:
        """Whether the job's worker works, or is about to end."""

    def waits(self, folder: JobFolder) -> Wait | None:
        """What the job's worker waits for before it begins; None where it works, and where it ended."""

    def charge(self, folder: JobFolder) -> Charge | None:
        """What the job costs; None for a machine that is not rented."""

    def ask_to_stop(self, folder: JobFolder) -> bool:
        """Asks the worker to save and end; False where none is alive."""

    def kill(self, folder: JobFolder, *, cancelled: bool = False, reason: str = "") -> bool:
        """Ends the worker and everything it started; False where nothing was left.

        `cancelled` notes that a person wanted this, and not only an end; `reason` why nobody was asked.
        """

    def collect(self) -> None:
        """Takes notice of workers that ended, so that nothing of them is held."""

    def how_it_ended(self, folder: JobFolder) -> Exit:
        """How the latest worker ended. Asked only once it is not alive."""

    def log(self, folder: JobFolder, lines: int) -> str:
        """The end of what the worker printed."""


class RemoteLauncher(Launcher, Protocol):
    """A launcher for targets beside this machine. `name` is the target's whole name, such as `slurm:two`."""

    def check(self, name: str, target: Target, paths: Iterable[Path]) -> str:
        """What is to be known before a job starts there, such as its price; "" for nothing. Raises `StudioError` where
        the target would refuse a job, or can't see one of the files that it needs."""

    def try_out(self, name: str, target: Target, folder: Path) -> str:
        """Checks the target with a job of a moment in a folder, and says in a sentence what was seen there."""


MAX_LOG_BYTES = 65_536
"""Of the end of a log."""


def last_lines(path: Path, count: int) -> str:
    """The last lines of a log as a terminal would show them: progress bars by their last state, colours left out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - MAX_LOG_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    visible = [line.rstrip("\r").rpartition("\r")[2] for line in _TERMINAL_CODES.sub("", text).split("\n")]
    return "\n".join([line.rstrip() for line in visible if line.strip()][-count:])


def last_error(path: Path) -> str:
    """The error that a log ends with: the last traceback's own words, else its last line; "" for an empty log.

    What stands before is progress and warnings, which have nothing to do with the end.
    """
    lines = last_lines(path, 200).split("\n")
    last = max((index for index, line in enumerate(lines) if line.startswith("Traceback (")), default=None)
    if last is None:
        return lines[-1]
    words = [line for line in lines[last + 1 :] if not line.startswith(" ")]
    return "\n".join(words[:4]) or lines[-1]
