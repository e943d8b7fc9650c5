"""The trial of an export can fail: what asks or computes otherwise than base and adapter is no result."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_studio.engine.export.context import EXACT, Spoken, verdict
from lora_studio.errors import StudioError
from lora_studio.jobs.events import RunStarted, Warned, from_line, to_line
from lora_studio.workspace import RunFolder
from tests.engine.exporting import build_export, last_event, take_away, workspace_of

OWN = Spoken((1, 2, 3), torch.tensor([0.1, 2.0, -1.0]), "Arr")


def moved(by: float, text: str = "Arr") -> Spoken:
    return replace(OWN, scores=OWN.scores + torch.tensor([0.0, by, 0.0]), text=text)


def test_a_result_that_asks_with_other_tokens_is_none() -> None:
    for exact in (True, False):
        with pytest.raises(StudioError, match="its tokens differ"):
            verdict(OWN, replace(OWN, prompt=(1, 2, 4)), exact=exact)


@pytest.mark.parametrize("by", [10 * EXACT, float("nan"), float("inf")])
def test_a_result_that_computes_something_else_is_none_though_it_says_the_same(by: float) -> None:
    with pytest.raises(StudioError, match="does not reproduce base and adapter"):
        verdict(OWN, moved(by), exact=True)


def test_rounding_is_told_and_may_change_words_only_where_the_precision_is_another() -> None:
    assert verdict(OWN, OWN, exact=True) == (
        "Tested: loaded, and the answer equals that of base and adapter, identical logits.",
        True,
    )
    assert verdict(OWN, moved(EXACT / 2), exact=True)[1]
    words, same = verdict(OWN, moved(0.1, "Aye"), exact=False)
    assert (same, "differs from that of base and adapter only by rounding" in words) == (False, True)


def with_names(run: RunFolder, folder: Path, name: Callable[[str], str | None]) -> str:
    """The run's adapter with other names of its weights, some left out."""
    shutil.copytree(run.adapter, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    kept = {new: tensor for key, tensor in weights.items() if (new := name(key))}
    save_file(kept, folder / "adapter_model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("target", ["zip", "vllm"])
def test_weights_without_a_place_in_the_base_are_seen_without_a_trial(
    target: str, trained: RunFolder, tmp_path: Path
) -> None:
    workspace = workspace_of(trained)
    nowhere = with_names(trained, tmp_path / "nowhere", lambda key: key.replace("model.layers", "blocks"))
    folder = build_export(workspace, nowhere, target, base_name="Owner/Tiny", trial=False)
    assert "None of the 28 weights of nowhere matches a module of" in last_event(folder).message
    half = with_names(trained, tmp_path / "half", lambda key: None if "layers.1" in key else key)
    folder = build_export(workspace, half, target, base_name="Owner/Tiny", trial=False)
    assert last_event(folder).state == "done"
    warned = [
        event.message for event in map(from_line, folder.events.read_text().splitlines()) if isinstance(event, Warned)
    ]
    assert ["no weights for 7 of the 14 modules" in message for message in warned] == [True]


@pytest.mark.parametrize("device", ["CPU", "NVIDIA A100"], ids=["as wished", "of a run on a GPU"])
def test_a_script_that_is_not_tried_belongs_to_an_adapter_with_a_place_in_its_base(
    device: str, trained: RunFolder, tmp_path: Path
) -> None:
    shutil.copytree(trained.path.parent.parent, tmp_path / "workspace")
    run = RunFolder(tmp_path / "workspace" / "runs" / trained.path.name)
    lines = [from_line(line) for line in run.events.read_text(encoding="utf-8").splitlines()]
    changed = [replace(event, device=device) if isinstance(event, RunStarted) else event for event in lines if event]
    run.events.write_text("".join(map(to_line, changed)), encoding="utf-8")
    settings = {"keep_local_base": True, "trial": device != "CPU"}
    folder = take_away(run, "script", **settings)
    assert last_event(folder).state == "done"
    assert folder.read_result()["tried"].startswith("Not tested")
    weights = load_file(run.adapter / "adapter_model.safetensors")
    elsewhere = {key.replace("model.layers", "blocks"): tensor for key, tensor in weights.items()}
    save_file(elsewhere, run.adapter / "adapter_model.safetensors", {"format": "pt"})
    assert "matches a module of" in last_event(take_away(run, "script", **settings)).message


def test_an_adapter_whose_base_is_not_here_is_taken_away_untried(trained: RunFolder, tmp_path: Path) -> None:
    away = tmp_path / "away"
    shutil.copytree(trained.adapter, away)
    for file, name in (("adapter_config.json", "base_model_name_or_path"), ("studio.json", "base_model")):
        values = json.loads((away / file).read_text(encoding="utf-8"))
        (away / file).write_text(json.dumps(values | {name: "Owner/nowhere-near"}), encoding="utf-8")
    folder = build_export(workspace_of(trained), str(away), "zip")
    assert (last_event(folder).state, last_event(folder).message) == ("done", "")
    assert folder.read_result()["tried"].startswith("Not tested: The model 'Owner/nowhere-near' is neither")
