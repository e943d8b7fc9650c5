"""The list of base models on this machine: each once, with its size, and nothing that is no language model."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_studio.models.shape import read_config
from lora_studio.ui.train import picker
from lora_studio.workspace import Workspace


def model_in(folder: Path, weights: str = "model.safetensors", **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**(read_config("demo") or {}), **config}), encoding="utf-8")
    if weights:
        (folder / weights).write_bytes(b"0" * 1000)
    return folder


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with no models but those that the test puts there."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    picker._folders_at.cache_clear()
    return tmp_path


def cached(machine: Path, name: str, **config: Any) -> None:
    entry = machine / "hub" / f"models--{name.replace('/', '--')}"
    model_in(entry / "snapshots" / "abc", **config)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("abc", encoding="utf-8")


def names(workspace: Workspace) -> list[str]:
    return [model.name for model in picker.local_models(workspace)]


def test_built_in_folders_cache_exports_and_models_of_earlier_runs_are_listed_once(
    machine: Path, workspace: Workspace
) -> None:
    folder = model_in(machine / "home" / "models" / "maker" / "mine")
    export = model_in(workspace.exports_folder / "merged-1" / "model")
    cached(machine, "maker/small")
    for model in ("maker/small", "maker/elsewhere", "demo"):
        workspace.create_run("earlier", "title: x\n", {"model": model})
    listed = {model.name: model for model in picker.local_models(workspace)}
    assert set(listed) == {"demo", "maker/small", "maker/elsewhere", str(folder), str(export)}
    assert names(workspace)[0] == "demo"
    assert listed["demo"].parameters == listed[str(folder)].parameters
    assert listed["maker/small"].disk_bytes == 1000
    assert listed["maker/elsewhere"] == picker.LocalModel("maker/elsewhere", picker.USED)


def test_what_is_no_language_model_or_has_no_weights_is_left_out(machine: Path, workspace: Workspace) -> None:
    model_in(machine / "models" / "empty", weights="")
    model_in(machine / "models" / "encoder", architectures=["BertForMaskedLM"])
    broken = machine / "models" / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{", encoding="utf-8")
    assert names(workspace) == ["demo"]


def test_a_visitor_is_offered_only_what_they_may_read(
    machine: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_studio.errors import StudioError

    model_in(machine / "models" / "private")

    def check(params: dict[str, str]) -> None:
        if "private" in params["model"]:
            raise StudioError("Not yours.")

    assert len(names(workspace)) == 2
    monkeypatch.setattr(type(workspace.policy), "check_request", lambda _self, params: check(params))
    assert names(workspace) == ["demo"]
