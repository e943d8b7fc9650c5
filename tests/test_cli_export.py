"""`export` in the terminal: what it prints, and what it refuses before anything starts. The child is a fake."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_studio.cli import main
from lora_studio.cli.export_command import progress_line
from lora_studio.events import RunState
from lora_studio.export_targets import TARGETS
from lora_studio.exports import exports
from lora_studio.jobs import exporting
from lora_studio.workspace import Workspace
from tests.adapters import files, write

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """Runs an `export` command and gives exit code, stdout, stderr."""
    fake = Path(__file__).parent / "jobs" / "fake_exporter.py"
    monkeypatch.setattr(exporting, "python_module", lambda name: [sys.executable, str(fake), "quick"])

    def command(*words: str) -> tuple[int, str, str]:
        code = main(["export", *words, "--workspace", str(workspace.root)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture
def adapter(workspace: Workspace) -> str:
    return str(write(workspace.root / "adapter", files()))


def test_it_follows_the_export_and_prints_where_the_result_is(say: Say, adapter: str, workspace: Workspace) -> None:
    code, out, told = say(adapter, "--to", "merged", "--dtype", "float16", "--no-trial")
    (folder,) = exports(workspace)
    assert code == 0
    assert out.splitlines() == [str(folder.result)]
    assert "adapter: Merged model, about" in told
    assert folder.request().settings["dtype"] == "float16"
    assert not folder.request().trial
    code, out, _ = say(adapter, "--to", "zip", "--json")
    assert code == 0
    assert json.loads(out)["state"] == "done"


def test_list_says_what_there_is_with_sizes(say: Say, adapter: str) -> None:
    code, out, _ = say(adapter, "--to", "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(TARGETS)
    assert "MB" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--to", "cake"], "no form 'cake'"),
        (["--to", "zip", "--dtype", "float16"], "has no setting dtype"),
        (["--to", "script"], "belongs to none here"),
        (["--to", "zip", "--out", "/"], "is there already"),
    ],
)
def test_what_cannot_be_made_is_wrong_input(say: Say, adapter: str, words: list[str], told: str) -> None:
    code, _, said = say(adapter, *words)
    assert code == 2
    assert told in said


def test_progress_is_told_in_megabytes_or_counts() -> None:
    assert progress_line(RunState(phase_done=1_500_000, phase_total=3_000_000, phase_unit="bytes")) == "1.5 of 3.0 MB"
    assert progress_line(RunState(phase_done=3, phase_total=42, phase_unit="matrices")) == "3 of 42 matrices"
