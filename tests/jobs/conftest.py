"""A supervisor whose workers are fakes, and that leaves no process behind."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_studio.jobs.launchers.local import LocalLauncher, kill
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.workspace import Workspace

Supervise = Callable[..., Supervisor]


def fake_command(mode: str) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("fake_worker.py")), mode]


def server(workspace: Workspace, mode: str, then: str) -> str:
    """A program that has such a `supervisor` of its own, not started, and goes on as `then` says."""
    return (
        "import sys, time; from lora_studio.config.sections import Config\n"
        "from lora_studio.jobs.launchers.local import LocalLauncher\n"
        "from lora_studio.jobs.supervisor import Supervisor; from lora_studio.workspace import Workspace\n"
        f"supervisor = Supervisor(Workspace.find({str(workspace.root)!r}), LocalLauncher({fake_command(mode)!r}))\n"
        f"{then}\n"
    )


@pytest.fixture
def supervise(workspace: Workspace) -> Iterator[Supervise]:
    """supervise("steps=40") starts a supervisor whose workers make 40 steps."""
    started: list[Supervisor] = []

    def make(mode: str, stop_seconds: float = 20.0, save_seconds: float = 20.0) -> Supervisor:
        supervisor = Supervisor(
            workspace, LocalLauncher(fake_command(mode)), stop_seconds, save_seconds, tick_seconds=0.05
        )
        supervisor.start()
        started.append(supervisor)
        return supervisor

    yield make
    for supervisor in started:
        supervisor.close()
    for run in workspace.runs():
        kill(run)


def wait_until(condition: Callable[[], bool], seconds: float = 200.0) -> None:
    """Waits for something another process does; fails the test when it takes too long even for a busy machine."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
