"""lm-evaluation-harness: its command for an adapter, and its start where it is installed."""

import sys
from pathlib import Path

import pytest

from lora_studio.errors import StudioError
from lora_studio.jobs import harness
from lora_studio.jobs.harness import Harness, command, in_a_shell
from lora_studio.workspace import Workspace

from .conftest import wait_until


def test_the_command_names_base_adapter_and_tasks() -> None:
    words = command(Path("/runs/my run/adapter"), "Qwen/Qwen3-0.6B", "4bit", "hellaswag, arc_easy")
    model = "pretrained=Qwen/Qwen3-0.6B,peft=/runs/my run/adapter,tokenizer=/runs/my run/adapter,load_in_4bit=True"
    assert words[:7] == ["lm_eval", "--model", "hf", "--model_args", model, "--tasks", "hellaswag,arc_easy"]
    assert f"'{model}'" in in_a_shell(words)


@pytest.mark.parametrize("tasks", ["", "a; rm -rf /", "--help me"])
def test_words_that_are_no_tasks_are_refused(tasks: str) -> None:
    with pytest.raises(StudioError, match="no names of tasks"):
        command(Path("/adapter"), "demo", "none", tasks)


@pytest.mark.parametrize(("adapter", "base"), [("/adapter", "x/y,trust_remote_code=True"), ("/a,b", "x/y")])
def test_a_name_can_not_bring_an_argument_of_its_own(adapter: str, base: str) -> None:
    with pytest.raises(StudioError, match="comma"):
        command(Path(adapter), base, "none", "hellaswag")


def test_where_it_is_not_installed_that_is_said(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "installed", lambda: False)
    with pytest.raises(StudioError, match="not installed"):
        Harness(workspace).start(["lm_eval"])


def test_it_runs_in_a_process_of_its_own_and_its_words_are_shown(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "lm_eval.py").write_text("import sys, time\nprint(sys.argv[1:], flush=True)\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert harness.installed()
    bench = Harness(workspace)
    bench.start(["lm_eval", "--tasks", "one"])
    wait_until(lambda: "--tasks" in bench.said())
    with pytest.raises(StudioError, match="running already"):
        bench.start(["lm_eval"])
    bench.stop()
    wait_until(lambda: not bench.running)
    assert "exit code" in bench.said()
