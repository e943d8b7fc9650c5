"""The parent's side of exports: started, followed, stopped, deleted, found again, with a fake child."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lora_studio.access.policy import Users
from lora_studio.errors import StudioError
from lora_studio.export import job
from lora_studio.export.job import ExportRequest, folders
from lora_studio.jobs.kinds import EXPORT, ending_words
from lora_studio.jobs.launchers.local import LocalLauncher, kill
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.models.hub import hub_secrets
from lora_studio.workspace import Workspace
from tests.adapters import files, write

from .conftest import wait_until

Jobs = Callable[[str], Supervisor]


@pytest.fixture
def request_(tmp_path: Path) -> ExportRequest:
    folder = write(tmp_path / "adapter", files())
    return ExportRequest("A: zip", "zip", str(folder), str(folder), "", {"base_name": "", "keep_local_base": True})


@pytest.fixture
def jobs(workspace: Workspace) -> Iterator[Jobs]:
    """Exports whose children are fakes of a mode, and of which none is left behind."""
    program = str(Path(__file__).with_name("fake_exporter.py"))
    yield lambda mode: Supervisor(workspace, LocalLauncher([sys.executable, program, mode]))
    for folder in folders(workspace).all():
        kill(folder)


def test_one_that_is_done_has_a_result_and_goes_with_it(
    jobs: Jobs, workspace: Workspace, request_: ExportRequest
) -> None:
    mine = jobs("quick")
    name = job.start(mine, request_)
    wait_until(lambda: mine.state(name).state == "done")
    (folder,) = folders(workspace).all()
    assert [path.name for path in folder.result.iterdir()] == ["half"]
    mine.delete(name)
    assert mine.jobs(EXPORT) == []
    assert not folder.path.exists()


def test_one_that_works_is_not_deleted_and_a_stopped_one_says_so(jobs: Jobs, request_: ExportRequest) -> None:
    mine = jobs("slow")
    name = job.start(mine, request_)
    wait_until(lambda: mine.state(name).phase == "write")
    with pytest.raises(StudioError, match="cannot be deleted"):
        mine.delete(name)
    mine.stop(name)
    wait_until(lambda: mine.state(name).final and not mine.is_alive(name))
    assert mine.state(name).state == "stopped"


def test_a_killed_one_is_found_to_be_over_and_the_next_clears_what_it_left(
    jobs: Jobs, workspace: Workspace, request_: ExportRequest
) -> None:
    name = job.start(jobs("slow"), request_)
    other = jobs("quick")
    wait_until(lambda: other.state(name).phase == "write")
    (folder,) = folders(workspace).all()
    wait_until(folder.unfinished.exists)
    kill(folder)
    wait_until(lambda: other.state(name).final)
    assert "incomplete results are not kept" in ending_words(other.state(name))[1]
    next_one = job.start(other, request_)
    assert not folder.unfinished.exists()
    wait_until(lambda: other.state(next_one).state == "done")


def test_a_secret_reaches_the_child_and_no_file(jobs: Jobs, workspace: Workspace, request_: ExportRequest) -> None:
    mine = jobs("secret")
    name = job.start(mine, request_, {"HF_TOKEN": "hf_sesame"})
    wait_until(lambda: mine.state(name).state == "done")
    (folder,) = folders(workspace).all()
    assert folder.read_result()["bytes"] == len("hf_sesame")
    files = [path for path in workspace.root.rglob("*") if path.is_file()]
    assert files
    assert not any(b"hf_sesame" in path.read_bytes() for path in files)


def test_a_visitor_publishes_with_a_token_of_their_own_or_not_at_all(
    workspace: Workspace, request_: ExportRequest, tmp_path: Path
) -> None:
    visited = Users(workspace, "anna", [tmp_path]).workspace_for(lambda: "ben")
    program = str(Path(__file__).with_name("fake_exporter.py"))
    mine = Supervisor(visited, LocalLauncher([sys.executable, program, "secret"], env={"HF_TOKEN": "hf_of_the_owner"}))
    published = replace(request_, target="hub", settings={"repo": "pirate"})
    for none in (None, {}, hub_secrets(" ")):
        with pytest.raises(StudioError, match="your own token"):
            job.start(mine, published, none)
    name = job.start(mine, published, hub_secrets(" hf_mine "))
    wait_until(lambda: mine.state(name).final)
    (folder,) = folders(visited).all()
    assert folder.read_result()["bytes"] == len("hf_mine")
