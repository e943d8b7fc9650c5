"""In whatever phase a run is: its server may die, its worker may die, and nobody has to look at it."""

import signal
import subprocess
import sys

import pytest

from lora_studio.config.sections import Config
from lora_studio.jobs.events import PHASES
from lora_studio.jobs.kinds import ending_words
from lora_studio.jobs.launchers.local import find
from lora_studio.workspace import Workspace
from tests.jobs.conftest import Supervise, server, wait_until


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_a_server_killed_in_any_phase_finds_its_run_going_on(
    phase: str, supervise: Supervise, workspace: Workspace
) -> None:
    mode = f"phase={phase}"
    then = "supervisor.start(); print(supervisor.launch(Config()), flush=True); time.sleep(600)"
    program = server(workspace, mode, then)
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    run_id = parent.stdout.readline().strip()
    run = workspace.run(run_id)
    wait_until(lambda: run.events.is_file() and f'"{phase}"' in run.events.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    again = supervise(mode)
    assert (again.busy(), again.state(run_id).state, again.state(run_id).phase) == (run_id, "running", phase)
    again.stop(run_id)
    wait_until(lambda: again.state(run_id).final)
    assert again.state(run_id).state == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_a_worker_killed_in_any_phase_is_a_failure_in_words_and_can_go_on(
    phase: str, supervise: Supervise, workspace: Workspace
) -> None:
    supervisor = supervise(f"phase={phase}")
    run_id = supervisor.launch(Config())
    events = workspace.run(run_id).events
    wait_until(lambda: events.is_file() and f'"{phase}"' in events.read_text())
    process = find(workspace.run(run_id))
    assert process is not None
    process.kill()
    wait_until(lambda: supervisor.state(run_id).final)
    state = supervisor.state(run_id)
    message, hint = ending_words(state)
    assert (state.state, "killed" in message, "Resume" in hint) == ("failed", True, True)
    supervisor.resume(run_id)
    wait_until(lambda: supervisor.state(run_id).state == "running")


def test_a_run_ends_well_with_nobody_looking(supervise: Supervise, workspace: Workspace) -> None:
    supervisor = supervise("steps=20")
    run = workspace.run(supervisor.launch(Config()))
    supervisor.close()
    wait_until(run.complete.is_file)
    wait_until(lambda: '"Finished"' in run.events.read_text())
    assert supervise("steps=1").state(run.id).state == "done"
