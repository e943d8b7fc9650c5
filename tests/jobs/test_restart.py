"""A container that sleeps, restarts or crashes while a run works: what the next start finds, and goes on with."""

import json
import os

from lora_studio.config.sections import Config
from lora_studio.jobs.kinds import ending_words
from lora_studio.jobs.launchers.local import find, kill, read_worker
from lora_studio.workspace import Workspace
from tests.jobs.conftest import Supervise, wait_until


def test_a_container_that_ends_in_order_goes_on_where_it_was(supervise: Supervise, workspace: Workspace) -> None:
    before = supervise("steps=30000")
    first, second = before.launch(Config()), before.launch(Config())
    wait_until(lambda: before.state(first).step >= 3)
    before.go_to_sleep(60)
    assert find(workspace.run(first)) is None
    assert workspace.run(first).checkpoint_folders()
    assert before.queue() == [first, second]
    after = supervise("steps=30000")
    wait_until(lambda: after.busy() == first)
    wait_until(lambda: "--resume" in after.log(first))
    assert after.queue() == [second]


def test_a_run_without_a_checkpoint_begins_again(supervise: Supervise, workspace: Workspace) -> None:
    before = supervise("phase=data")
    first = before.launch(Config())
    wait_until(lambda: before.state(first).phase == "data")
    before.go_to_sleep(60)
    after = supervise("steps=5")
    wait_until(lambda: after.state(first).state == "done")
    assert "--resume" not in after.log(first)


def test_after_a_crash_the_run_is_offered_for_resume_though_a_stranger_has_its_number(
    supervise: Supervise, workspace: Workspace
) -> None:
    before = supervise("steps=30000")
    first = before.launch(Config())
    wait_until(lambda: before.state(first).step >= 3)
    before.close()
    run, worker = workspace.run(first), read_worker(workspace.run(first))
    assert worker is not None
    kill(run)
    wait_until(lambda: find(run) is None)
    reborn = json.loads(run.worker.read_text()) | {
        "pid": os.getpid(),
        "killed": None,
    }  # numbers begin anew in a container
    run.worker.write_text(json.dumps(reborn))
    after = supervise("steps=5")
    wait_until(lambda: after.state(first).final)
    message, hint = ending_words(after.state(first))
    assert "restarted" in message
    assert "Resume starts over" in hint
    after.resume(first)
    wait_until(lambda: after.state(first).state == "done")
