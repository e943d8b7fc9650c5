"""The prepared run on a GPU does every part with tiny shapes on the CPU, and packs what its machine lacks."""

import argparse
import json
import os
import subprocess
import sys
import time
import zipfile
from importlib.metadata import requires
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import gpu, gpu_pack
from lora_studio.jobs.events import StepLogged, to_line
from lora_studio.workspace import Workspace


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dry run of all parts."""
    out = tmp_path_factory.mktemp("gpu")
    gpu.everything(argparse.Namespace(only=list(gpu.PARTS), dry=True), out, time.monotonic())
    return out


@pytest.mark.slow
def test_a_dry_run_does_every_part_and_says_what_is_missing(results: Path) -> None:
    found = json.loads((results / "gpu.json").read_text(encoding="utf-8"))
    parts: dict[str, dict[str, dict[str, Any]]] = found["parts"]
    assert list(parts) == list(gpu.PARTS)
    states = {f"{part}, {case}": result.get("state") for part, cases in parts.items() for case, result in cases.items()}
    assert "failed" not in states.values(), states
    for case in ("LoRA", "QLoRA", "DPO", "attention sdpa", "attention eager", "stop and resume", "chat, three columns"):
        assert states[f"smoke, {case}"] == "done"
    assert 0 < parts["smoke"]["stop and resume"]["stopped_at"] < parts["smoke"]["stop and resume"]["steps"]
    assert "cannot run here" in parts["smoke"]["attention flash_attention_2"]["refused"]
    for result in parts["memory"].values():  # on a CPU the peak is that of the process, with what it did before
        assert result["ratio"] == pytest.approx(
            result["estimated_memory_bytes"] / result["peak_memory_bytes"], abs=1e-3
        )
    assert parts["speed"]["tiny, ours"]["share_of_matrix_rate"] > 0
    assert parts["chat"]["two in a batch"]["columns"] == 2
    assert any("float16" in line for line in found["missing"])


@pytest.mark.slow
def test_its_table_has_each_case_and_the_machine(results: Path) -> None:
    table = (results / "gpu.md").read_text(encoding="utf-8")
    found = json.loads((results / "gpu.json").read_text(encoding="utf-8"))
    assert f"torch {found['machine']['torch']}" in table
    assert all(f"| {case} |" in table for cases in found["parts"].values() for case in cases)
    assert all(f"- {line}" in table for line in found["missing"])


def test_a_case_that_fails_leaves_the_next_ones_and_no_time_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cases(world: gpu.World) -> Any:
        yield "first", lambda: 1 / 0
        yield "second", lambda: {"state": "done"}

    monkeypatch.setitem(gpu.PARTS, "smoke", cases)
    written: dict[str, Any] = {}
    gpu.run_part("smoke", gpu.World(tmp_path, dry=True), 60, written.__setitem__)
    assert written["first"]["message"].startswith("ZeroDivisionError")
    assert written["second"]["state"] == "done"
    gpu.run_part("smoke", gpu.World(tmp_path, dry=True), -1, written.__setitem__)
    found = {"parts": {"smoke": {"first": {"state": "failed", "message": "boom"}, "second": written["second"]}}}
    assert gpu.missing(found, {"chat": "its process ended with code 1"}) == [
        "chat: its process ended with code 1",
        "smoke, first: failed: boom",
        "smoke, second: no time was left",
    ]


def test_what_waits_in_every_step_is_told_with_its_line() -> None:
    words = "called a synchronizing CUDA operation (Triggered internally at CUDAFunctions.cpp)"
    often, seldom, other = (
        SimpleNamespace(filename=f"/lib/{name}.py", lineno=7, message=text)
        for name, text in (("utils", words), ("trainer", words), ("peft", "deprecated"))
    )
    assert gpu.waits_in([often] * 80 + [seldom] * 39 + [other] * 90, 40) == {
        "waits_a_step": 2.0,
        "places": "utils.py:7 (80)",
    }
    assert gpu.waits_in([seldom], 40) == {"waits_a_step": 0.0, "places": "none"}


def test_the_steps_in_which_kernels_are_compiled_are_not_measured(tmp_path: Path) -> None:
    run, at = Workspace(tmp_path).create_run("gpu", "{}", {}), [0.0, 30.0, 31.0, 32.0, 34.0]
    points = [StepLogged(time, step, 5, 1.0, 1.0, 1e-4, tokens=100 * step) for step, time in enumerate(at, 1)]
    run.events.write_text("".join(to_line(point) for point in points), encoding="utf-8")
    assert gpu.settled_speed(run.path, 0) == pytest.approx(400 / 34)
    assert gpu.settled_speed(run.path, 1) == pytest.approx(300 / 4)


def test_whatever_the_packed_wheels_need_is_packed_or_on_the_machine() -> None:
    there = {canonicalize_name(name) for name in (*gpu_pack.PACKAGES, *gpu_pack.ON_IT)}
    machine = {"extra": "", "python_version": gpu_pack.THERE["python"], "sys_platform": "linux"}
    lacking = [
        f"{requirement.name} of {name}"
        for name in (*gpu_pack.PACKAGES, "accelerate", "tensorboard", "jinja2", "safetensors")
        for requirement in map(Requirement, requires(name) or [])
        if not requirement.marker or requirement.marker.evaluate(machine)
        if canonicalize_name(requirement.name) not in there
    ]
    assert lacking == []


def a_case(world: gpu.World) -> Any:
    """Cases of a part that ends its process, hangs, breaks the GPU and goes on."""
    yield "crash", lambda: os._exit(9)
    yield "fine", lambda: {"state": "done"}
    yield "hang", lambda: time.sleep(60)
    yield "broken", lambda: {"state": "failed", "message": "CUDA error: an illegal memory access was encountered"}
    yield "last", lambda: {"state": "done"}


PART = """
import sys
from pathlib import Path
from benchmarks import gpu
from tests.test_gpu_script import a_case
gpu.PARTS["smoke"] = a_case
out, folder, seconds = Path(sys.argv[4]), Path(sys.argv[6]), float(sys.argv[8])
sys.exit(0 if gpu.part("smoke", out, folder, seconds, dry=False) else gpu.AGAIN)
"""


def test_a_case_that_crashes_hangs_or_breaks_the_gpu_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    popen = subprocess.Popen

    def start(words: list[str], **options: Any) -> Any:
        started.append(words)
        return popen([sys.executable, "-c", PART, *words[3:]], **options)

    monkeypatch.setattr(gpu.subprocess, "Popen", start)
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(gpu, "CASE_SECONDS", 3.0)
    assert gpu.child("smoke", tmp_path, tmp_path, time.monotonic() + 60) == ""
    found = gpu.lines_of(tmp_path / "smoke.jsonl")
    assert found["crash"] == {"state": "failed", "message": "its process ended with code 9"}
    assert found["hang"] == {"state": "failed", "message": "it took more than 3 seconds"}
    assert found["broken"]["state"] == "failed"
    assert [found[case]["state"] for case in ("fine", "last")] == ["done", "done"]
    assert len(started) == 4
    assert gpu.child("chat", tmp_path, tmp_path, time.monotonic() - 1) == "no time was left"


def test_the_parts_together_take_at_most_eight_minutes() -> None:
    assert sum(gpu.SECONDS.values()) <= 480
    assert set(gpu.SECONDS) == set(gpu.PARTS)


def test_a_stripped_wheel_keeps_the_binary_of_one_cuda_and_a_true_list_of_files(tmp_path: Path) -> None:
    wheel = tmp_path / "bitsandbytes-0-py3-none-any.whl"
    names = [f"bitsandbytes/libbitsandbytes_{kind}.so" for kind in ("cuda118", "cuda130", "rocm70", "cpu")]
    with zipfile.ZipFile(wheel, "w") as file:
        for name in [*names, "bitsandbytes/nn.py"]:
            file.writestr(name, "x" * 1000)
        listed = "\n".join(f"{name},sha256=0,1000" for name in [*names, "bitsandbytes/nn.py"])
        file.writestr("bitsandbytes-0.dist-info/RECORD", listed)
    gpu_pack.strip(wheel, "130")
    with zipfile.ZipFile(wheel) as file:
        left = set(file.namelist())
        record = file.read("bitsandbytes-0.dist-info/RECORD").decode()
    assert left == {names[1], names[3], "bitsandbytes/nn.py", "bitsandbytes-0.dist-info/RECORD"}
    assert {line.partition(",")[0] for line in record.split()} == left - {"bitsandbytes-0.dist-info/RECORD"}
    with pytest.raises(FileNotFoundError, match="cuda999"):
        gpu_pack.strip(wheel, "999")
