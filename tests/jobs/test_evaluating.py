"""The parent's side of evaluations: started, followed, stopped, resumed, found again, with a fake child."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_studio.config.sections import Generation
from lora_studio.errors import StudioError
from lora_studio.evaluate import job
from lora_studio.evaluate.job import EvaluatedColumn, EvaluationRequest, Measuring, evaluations
from lora_studio.jobs.kinds import EVALUATE, ending_words
from lora_studio.jobs.launchers.local import LocalLauncher, kill
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.workspace import Workspace

from .conftest import wait_until

REQUEST = EvaluationRequest(
    "title", "data", (EvaluatedColumn("adapter", "A", "/a"),), (), "", Measuring(), Generation()
)
Jobs = Callable[[str], Supervisor]


@pytest.fixture
def jobs(workspace: Workspace) -> Iterator[Jobs]:
    """Evaluations whose children are fakes of a mode, and of which none is left behind."""
    program = str(Path(__file__).with_name("fake_evaluator.py"))
    yield lambda mode: Supervisor(workspace, LocalLauncher([sys.executable, program, mode]))
    for folder in evaluations(workspace):
        kill(folder)


def test_one_that_is_done_says_so_and_can_be_deleted(jobs: Jobs, workspace: Workspace) -> None:
    mine = jobs("rows=2")
    name = job.start(mine, REQUEST)
    wait_until(lambda: mine.state(name).state == "done")
    assert [state.title for state in mine.jobs(EVALUATE)] == ["title"]
    with pytest.raises(StudioError, match="is finished"):
        mine.resume(name)
    mine.delete(name)
    assert mine.jobs(EVALUATE) == []
    with pytest.raises(StudioError, match="There is no run"):
        mine.state(name)


@pytest.mark.slow
def test_a_stopped_one_goes_on_where_it_was(jobs: Jobs, workspace: Workspace) -> None:
    mine = jobs("slow")
    name = job.start(mine, REQUEST)
    wait_until(lambda: mine.state(name).phase_done > 0)
    with pytest.raises(StudioError, match="cannot be deleted"):
        mine.delete(name)
    mine.stop(name)
    wait_until(lambda: mine.state(name).final and mine.busy() is None)
    (folder,) = evaluations(workspace)
    there = len(list(folder.rows()))
    jobs(f"rows={there + 2}").resume(name)
    wait_until(lambda: mine.state(name).state == "done")
    assert [row["row"] for row in folder.rows()] == list(range(there + 2))


def test_another_server_finds_it_and_a_killed_one_says_what_to_do(jobs: Jobs, workspace: Workspace) -> None:
    name = job.start(jobs("slow"), REQUEST)
    other = jobs("slow")
    wait_until(lambda: other.state(name).state == "running")
    assert other.busy() == name
    (folder,) = evaluations(workspace)
    kill(folder)
    wait_until(lambda: other.state(name).final)
    assert "Resume answers the remaining rows." in ending_words(other.state(name))[1]
