"""The processes of one training: which of them this is, what they tell each other, and how they stop together.

They find each other by the variables of torch's rendezvous (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT),
whoever set them. Without these a training is one process, and everything here does nothing. What they tell each other
goes over the CPU, apart from the gradients.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from lora_studio.config.compute import accumulation as accumulation
from lora_studio.engine.runtime import Stopped, StopSignal
from lora_studio.workspace import RunFolder

TIMEOUT_MINUTES = 30
"""After so long without the others' part of a computation, a process gives up."""
PATIENCE = timedelta(days=7)
"""How long the others wait for what only the first process does: preparing rows, downloads."""
POLL_SECONDS = 0.05
WATCHED = "LORA_STUDIO_WATCHED"
"""The variable by which `engine.train.processes` tells the processes that it watches over them."""
STOP = signal.SIGUSR1
"""How it asks them to stop; its SIGTERM means that another one died."""
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux
Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """Which of `size` processes this is, and which of those on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes, saves and reports."""
        return self.rank == 0

    @property
    def is_shared(self) -> bool:
        return self.size > 1


def world() -> World:
    """As the environment says. Slurm's own variables stand in for those that a cluster's script forgot."""

    def number(*names: str, default: int) -> int:
        return next((int(value) for name in names if (value := os.environ.get(name, "")).isdecimal()), default)

    size = number("WORLD_SIZE", default=1)
    if size < 2:
        return World()
    rank = number("RANK", "SLURM_PROCID", default=0)
    return World(rank, size, number("LOCAL_RANK", "SLURM_LOCALID", default=0))


def take_part(stop: StopSignal) -> None:
    """Stops and ends together with the other processes from now on."""
    if not world().is_shared:
        return
    watched = WATCHED in os.environ
    stop.share(STOP if watched else None)
    if watched and sys.platform == "linux":  # without who watches over all, nobody could end this one
        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)


def last_words(run: RunFolder, rank: int) -> Path:
    """Where a process other than the first says why it failed."""
    return run.path / f"process-{rank + 1}.json"


class _Groups:
    """The groups over which the processes talk: `normal` ends after a while, `patient` waits for the first process."""

    normal: Any = None
    patient: Any = None


def join(*, cpu: bool) -> list[str]:
    """Connects this process with the others, if there are any; takes seconds. `cpu`: the gradients go over the CPU too.
    Gives what a person should know of that."""
    here = world()
    if not here.is_shared:
        return []
    os.environ.update({"RANK": str(here.rank), "LOCAL_RANK": str(here.local)})
    import torch.distributed as dist
    from accelerate import PartialState

    timeout = timedelta(minutes=TIMEOUT_MINUTES)
    PartialState(cpu=cpu, timeout=timeout)
    _Groups.normal = dist.new_group(backend="gloo", timeout=timeout)
    _Groups.patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    return [
        f"The run trains in {here.size} processes{' on the CPU' if cpu else ''}; this is the report of the first. It "
        f"ends if another one dies, or does not answer for {TIMEOUT_MINUTES} minutes."
    ]


def total(values: Sequence[float]) -> list[float]:
    """Each number summed over all processes."""
    if not world().is_shared:
        return list(values)
    import torch

    sums = torch.tensor(list(values), dtype=torch.float64)
    torch.distributed.all_reduce(sums, group=_Groups.normal)
    return [float(value) for value in sums.tolist()]


def collect(value: Value) -> list[Value]:
    """The values of all processes, in their order."""
    here = world()
    if not here.is_shared:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * here.size
    dist.all_gather_object(values, value, group=_Groups.normal)
    return values


def meet() -> None:
    """Waits until all processes are here, however long what the first one does takes. Signals are heard meanwhile."""
    if not world().is_shared:
        return
    import torch

    work = torch.distributed.all_reduce(torch.zeros(1), group=_Groups.patient, async_op=True)
    while not work.is_completed():
        time.sleep(POLL_SECONDS)
    work.wait()


@contextmanager
def first_alone() -> Iterator[bool]:
    """What only the first process does, or does before the others: gives whether this is it. The others wait."""
    here = world()
    if not here.is_first:
        meet()
    yield here.is_first
    if here.is_first:
        meet()


@contextmanager
def together(stop: StopSignal) -> Iterator[None]:
    """What every process does at its own pace, and which a stop ends: heard by one, it ends all of them here."""
    if not world().is_shared:
        yield
        return
    stopped = False
    try:
        yield
    except Stopped:
        stopped = True
    meet()
    if total([stopped or stop.heard])[0]:
        stop.asked = True
        raise Stopped


def vary_seed(seed: int) -> None:
    """Gives each process random numbers of its own for dropout and noise; the first has those of a single process."""
    here = world()
    if not here.is_first:
        import torch

        torch.manual_seed(seed + here.rank)


def lost_others(error: BaseException) -> bool:
    """Whether an error says that another process ended or did not answer in time; torch has no class for it."""
    if not world().is_shared:
        return False
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error).lower()
    return bool(names & {"DistBackendError", "DistNetworkError", "DistStoreError"}) or any(
        sign in text for sign in ("gloo", "nccl", "xccl", "closed by peer", "connection reset", "broken pipe")
    )
