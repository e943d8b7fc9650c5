"""Only launchers know processes: nothing else starts, signals or looks for one by its number."""

import ast
import subprocess
import sys

import pytest

from lora_studio.jobs.kinds import KINDS
from lora_studio.jobs.launchers import Exit, Launcher, local
from lora_studio.workspace import Workspace
from tests.jobs.conftest import fake_command, wait_until
from tests.source import MODULES, PACKAGE, nodes_of

OF_PROCESSES = {
    "subprocess.Popen",
    "os.kill",
    "os.killpg",
    "psutil.Process",
    "psutil.pid_exists",
    "psutil.process_iter",
    "psutil.wait_procs",
}
HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "gradio")
OWN = ("psutil.Process()",)  # what this process itself takes
ELSEWHERE = {  # no job's worker: programs that end before their starter does, or with it
    "data/render_process.py",
    "engine/guard.py",
    "demo/__main__.py",
}


def test_no_module_outside_of_the_launchers_knows_a_process() -> None:
    names = {name.rpartition(".")[2] for name in OF_PROCESSES}
    found = {
        f"{path.relative_to(PACKAGE)}: {ast.unparse(node)}"
        for path in MODULES
        if "launchers" not in path.parts and str(path.relative_to(PACKAGE)) not in ELSEWHERE
        for node in nodes_of(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names
        if ast.unparse(node.func) in OF_PROCESSES and ast.unparse(node) not in OWN
    }
    assert not found


def test_no_module_outside_of_the_launchers_reads_a_process_number() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}: {ast.unparse(node)}"
        for path in MODULES
        if "launchers" not in path.parts
        if path.name not in ("events.py", "guard.py")  # a worker's own record, and a program that ends with its worker
        for node in nodes_of(path)
        if isinstance(node, ast.Attribute) and node.attr == "pid"
    }
    assert not found


def test_a_worker_is_found_from_its_folder_by_a_launcher_that_did_not_start_it(workspace: Workspace) -> None:
    run = workspace.create_run("test", "{}", {})
    mine: Launcher = local.LocalLauncher(fake_command("steps=30000"))
    other: Launcher = local.LocalLauncher()
    assert (other.worker(run), other.is_alive(run), other.ask_to_stop(run)) == (None, False, False)
    mine.start(run, "a module that the command takes the place of", env={"WHO": "me"})
    assert other.is_alive(run)
    wait_until(lambda: "working with" in other.log(run, 5))
    assert other.ask_to_stop(run)
    worker = other.worker(run)
    assert worker is not None
    assert worker.stop_asked is not None
    wait_until(lambda: not mine.is_alive(run))
    assert mine.how_it_ended(run) == Exit(130)
    assert other.how_it_ended(run) == Exit(None)


@pytest.mark.slow
def test_the_program_of_every_kind_can_report_before_it_has_the_slow_libraries() -> None:
    modules = [kind.module for kind in KINDS.values()]
    program = f"import sys, {', '.join(modules)}; print(*[name for name in {HEAVY} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == ""
