"""`export` in the terminal: what it prints, and what it refuses before anything starts. The child is a fake."""

import json
import sys
from pathlib import Path

import pytest

from lora_studio.cli.following import progress_line
from lora_studio.export import job
from lora_studio.export.job import folders, make_request, request_of
from lora_studio.export.targets import TARGETS
from lora_studio.jobs.events import RunState
from lora_studio.jobs.launchers import local
from lora_studio.jobs.launchers.local import LocalLauncher
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.workspace import Workspace
from tests.adapters import files, write
from tests.conftest import Say
from tests.jobs.conftest import wait_until


@pytest.fixture(autouse=True)
def fake_child(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Path(__file__).parent.parent / "jobs" / "fake_exporter.py"
    monkeypatch.setattr(local, "python_module", lambda name: [sys.executable, str(fake), "quick"])


@pytest.fixture
def adapter(workspace: Workspace) -> str:
    return str(write(workspace.root / "adapter", files()))


@pytest.mark.slow
def test_it_follows_the_export_and_prints_where_the_result_is(say: Say, adapter: str, workspace: Workspace) -> None:
    code, out, told = say("export", adapter, "--to", "merged", "--dtype", "float16", "--no-trial")
    (folder,) = folders(workspace).all()
    assert code == 0
    assert out.splitlines() == [str(folder.result)]
    assert "adapter: Merged model, about" in told
    assert f"jobs stop {folder.id} --workspace {workspace.root}` stops it" in told
    assert request_of(folder).settings["dtype"] == "float16"
    assert not request_of(folder).trial
    code, out, _ = say("export", adapter, "--to", "zip", "--json")
    assert code == 0
    assert json.loads(out)["state"] == "done"


@pytest.mark.slow
def test_one_that_was_made_in_part_is_told_so_and_is_no_success(
    say: Say, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Path(__file__).parent.parent / "jobs" / "fake_exporter.py"
    monkeypatch.setattr(local, "python_module", lambda name: [sys.executable, str(fake), "part"])
    monkeypatch.setattr(job, "find_llama_cpp", lambda: None)
    code, out, told = say("export", adapter, "--to", "gguf", "--json")
    assert code == 1
    assert json.loads(out)["missing"] == "it.gguf"
    assert told.startswith("Needs llama.cpp: one more step.")
    assert "Incomplete: it.gguf was not created." in told


def test_list_says_what_there_is_with_sizes(say: Say, adapter: str) -> None:
    code, out, _ = say("export", adapter, "--to", "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(TARGETS)
    assert "MB" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--to", "cake"], "no export format 'cake'"),
        (["--to", "zip", "--dtype", "float16"], "has no setting dtype"),
        (["--to", "script"], "belongs to none here"),
        (["--to", "zip", "--out", "/"], "already exists"),
    ],
)
def test_what_cannot_be_made_is_wrong_input(say: Say, adapter: str, words: list[str], told: str) -> None:
    code, _, said = say("export", adapter, *words)
    assert code == 2
    assert told in said


def test_one_whose_terminal_is_gone_is_listed_followed_and_stopped_by_its_id(
    say: Say, adapter: str, workspace: Workspace
) -> None:
    fake = Path(__file__).parent.parent / "jobs" / "fake_exporter.py"
    supervisor = Supervisor(workspace, LocalLauncher([sys.executable, str(fake), "slow"]))
    name = job.start(supervisor, make_request(workspace, adapter, "zip"))
    wait_until(lambda: supervisor.state(name).phase == "write")
    assert f"The export {name}" in say("runs", "list")[2]
    assert "progress    0.0 of 0.0 MB" in say("runs", "show", name)[1]
    code, out, _ = say("runs", "stop", name)
    assert code == 0
    assert "state       stopped" in out
    assert name not in say("runs", "list")[2]
    assert "already ended" in say("runs", "cancel", name)[2]
    code, _, told = say("runs", "follow", name)
    assert (code, "Stopped on request." in told) == (130, True)
    assert "cannot be resumed" in say("runs", "resume", name)[2]
    assert json.loads(say("runs", "delete", name, "--json", "--yes")[1]) == {"export": name, "state": "deleted"}
    assert "There is no run" in say("runs", "stop", name)[2]


def test_progress_is_told_in_megabytes_or_counts() -> None:
    assert progress_line(RunState(phase_done=1_500_000, phase_total=3_000_000, phase_unit="bytes")) == "1.5 of 3.0 MB"
    assert progress_line(RunState(phase_done=3, phase_total=42, phase_unit="matrices")) == "3 of 42 matrices"
