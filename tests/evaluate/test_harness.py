"""lm-evaluation-harness: its command for an adapter, and its start where it is installed."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_studio.errors import StudioError
from lora_studio.evaluate import job as request
from lora_studio.evaluate.job import command, in_a_shell
from lora_studio.jobs.events import Reason
from lora_studio.jobs.kinds import BENCHMARK, ending_words
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.workspace import Workspace
from tests.jobs.conftest import wait_until


def test_the_command_names_base_adapter_and_tasks() -> None:
    words = command(Path("/runs/my run/adapter"), "Qwen/Qwen3-0.6B", "4bit", "hellaswag, arc_easy")
    model = "pretrained=Qwen/Qwen3-0.6B,peft=/runs/my run/adapter,tokenizer=/runs/my run/adapter,load_in_4bit=True"
    assert words[:7] == ["lm_eval", "--model", "hf", "--model_args", model, "--tasks", "hellaswag,arc_easy"]
    assert f"'{model}'" in in_a_shell(words)


@pytest.mark.parametrize("tasks", ["", "a; rm -rf /", "--help me"])
def test_words_that_are_no_tasks_are_refused(tasks: str) -> None:
    with pytest.raises(StudioError, match="not a list of task names"):
        command(Path("/adapter"), "demo", "none", tasks)


@pytest.mark.parametrize(("adapter", "base"), [("/adapter", "x/y,trust_remote_code=True"), ("/a,b", "x/y")])
def test_a_name_can_not_bring_an_argument_of_its_own(adapter: str, base: str) -> None:
    with pytest.raises(StudioError, match="comma"):
        command(Path(adapter), base, "none", "hellaswag")


def test_where_it_is_not_installed_that_is_said(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "installed", lambda: False)
    with pytest.raises(StudioError, match="not installed"):
        request.start_benchmark(Supervisor(workspace), "title", ["lm_eval"])


STAND_IN = """
import json, pathlib, sys, time
print("asked for", sys.argv[1:], flush=True)
if "wrong" in sys.argv:
    sys.exit(3)
time.sleep(600 if "slow" in sys.argv else 0)
place = pathlib.Path("results", "model")
place.mkdir(parents=True)
(place / "results_1.json").write_text(json.dumps({"results": {"one": {"acc,none": 0.5}}}))
"""


@pytest.fixture
def bench(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Supervisor]:
    """A supervisor whose benchmarks are asked by a stand-in of the package."""
    (tmp_path / "lm_eval.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    supervisor = Supervisor(workspace, tick_seconds=0.05)
    supervisor.start()
    yield supervisor
    supervisor.close()
    for job in supervisor.jobs(BENCHMARK):
        supervisor.cancel(job.id)


def test_one_is_a_job_whose_numbers_are_kept_in_its_folder(bench: Supervisor) -> None:
    name = request.start_benchmark(bench, "A on one", ["lm_eval", "--tasks", "one"])
    wait_until(lambda: bench.state(name).final)
    state, (_, folder) = bench.state(name), bench.find(name)
    assert (state.state, state.title, state.reason) == ("done", "A on one", Reason.COMPLETED)
    assert "asked for ['--tasks', 'one']" in bench.log(name)
    assert folder.read_result()["results"] == {"one": {"acc,none": 0.5}}


def test_one_that_the_package_ends_is_a_failure_with_its_exit_code(bench: Supervisor) -> None:
    name = request.start_benchmark(bench, "A on one", ["lm_eval", "wrong"])
    wait_until(lambda: bench.state(name).final)
    assert "exit code 3" in ending_words(bench.state(name))[0]


@pytest.mark.slow
def test_another_server_finds_the_one_that_works_and_stops_it(bench: Supervisor, workspace: Workspace) -> None:
    name = request.start_benchmark(bench, "A on one", ["lm_eval", "slow"])
    wait_until(lambda: "asked for" in bench.log(name))
    other = Supervisor(workspace)
    assert (other.busy(), other.state(name).state) == (name, "running")
    other.stop(name)
    wait_until(lambda: other.state(name).final)
    assert (other.state(name).state, other.state(name).reason) == ("stopped", Reason.STOPPED)
    with pytest.raises(StudioError, match="cannot be resumed"):
        other.resume(name)
