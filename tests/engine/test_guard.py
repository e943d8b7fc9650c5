"""A program that a worker starts ends with the worker, with all that it started, even where the worker is killed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lora_studio.engine import guard
from lora_studio.engine.guard import guarded

STUBBORN = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(60)
"""
WORKER = """
import sys, time
from lora_studio.engine.guard import guarded
with guarded([sys.executable, "-S", "-c", *sys.argv[1:]], patience=60) as guard:
    print(guard.pid, flush=True)
    time.sleep(60)
"""
"""It starts a program that starts another one, as vLLM's server does with its engine."""


def test_nothing_else_of_the_engine_starts_a_program() -> None:
    engine = Path(guard.__file__).parent
    starts = re.compile(r"subprocess\.(Popen|run|call|check_call|check_output)\(|os\.(system|popen|spawn\w*)\(")
    found = {path.name for path in engine.rglob("*.py") if starts.search(path.read_text(encoding="utf-8"))}
    assert found == {"guard.py"}


def gone(pid: int, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def number(path: Path) -> int:
    end = time.monotonic() + 20.0
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return int(path.read_text())


@pytest.mark.parametrize("how", ["meek", "deaf"])
def test_a_worker_that_is_killed_takes_its_program_and_what_that_started_with_it(tmp_path: Path, how: str) -> None:
    words = [sys.executable, "-c", WORKER, STUBBORN, str(tmp_path / "pid"), how]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        guardian = int(worker.stdout.readline())
        grandchild = number(tmp_path / "pid")
        program = psutil.Process(guardian).children()[0].pid
        assert psutil.pid_exists(grandchild)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert all(gone(pid) for pid in (program, grandchild, guardian))


def test_a_program_that_ends_by_itself_leaves_nothing_behind_and_its_code_is_known(tmp_path: Path) -> None:
    start = f"sleep 60 & echo $! > {tmp_path}/pid; exit 3"
    with guarded(["/bin/sh", "-c", start]) as child:
        assert child.wait(20) == 3
    assert gone(number(tmp_path / "pid"))
    with guarded(["/bin/sh", "-c", "kill -9 $$"]) as child:
        assert child.wait(20) == 128 + signal.SIGKILL


def test_leaving_the_context_ends_the_program(tmp_path: Path) -> None:
    with guarded(["/bin/sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60"]) as child:
        pid = number(tmp_path / "pid")
    assert gone(pid, 1.0)
    assert child.returncode == 128 + signal.SIGTERM


def test_a_program_that_does_not_end_when_it_is_asked_is_ended(tmp_path: Path) -> None:
    deaf = [sys.executable, "-S", "-c", STUBBORN, str(tmp_path / "pid"), "deaf"]
    with guarded(deaf, patience=0.1) as child:
        pid = number(tmp_path / "pid")
    assert gone(pid, 1.0)
    assert child.returncode == 128 + signal.SIGKILL


def test_a_program_that_cannot_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no program"), guarded([str(tmp_path / "none")]):
        pass
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    os.chmod(broken, 0o755)
    with guarded([str(broken)], stderr=subprocess.PIPE, text=True) as child:
        assert "cannot be started" in child.communicate(timeout=20)[1]
    assert child.returncode == 127
