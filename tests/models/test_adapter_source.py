"""An adapter to continue from is found, checked against the base, and lends its rank and modules to the config."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_studio.config.sections import Config, Lora, Model
from lora_studio.errors import StudioError
from lora_studio.models.adapters import continued
from lora_studio.workspace import Workspace


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"")
    write(folder)
    return folder


def write(folder: Path, **changes: Any) -> None:
    settings = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 24,
        "lora_dropout": 0.5,
        "target_modules": ["v_proj", "q_proj"],
    }
    settings |= {"use_rslora": True, "base_model_name_or_path": "Qwen/Qwen3-0.6B", "revision": None, **changes}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def config(folder: Path, name: str = "Qwen/Qwen3-0.6B", **model: Any) -> Config:
    return Config(model=Model(name=name, adapter_name_or_path=str(folder), **model), lora=Lora(r=64, lora_dropout=0.1))


def test_rank_and_modules_come_from_the_adapter_and_dropout_from_the_config(
    adapter: Path, workspace: Workspace
) -> None:
    lora = continued(config(adapter), workspace).lora
    assert (lora.r, lora.lora_alpha, lora.target_modules, lora.use_rslora) == (8, 24, "q_proj, v_proj", True)
    assert lora.lora_dropout == 0.1


def test_a_config_without_an_adapter_stays_as_it_is(workspace: Workspace) -> None:
    assert continued(Config(), workspace) == Config()


def test_a_local_copy_under_the_same_name_is_the_same_base(adapter: Path, workspace: Workspace, tmp_path: Path) -> None:
    assert continued(config(adapter, str(tmp_path / "Qwen3-0.6B")), workspace).lora.r == 8


def test_another_base_is_refused_with_the_one_that_fits(adapter: Path, workspace: Workspace) -> None:
    with pytest.raises(StudioError, match=r"trained on Qwen/Qwen3-0\.6B, not on demo") as raised:
        continued(config(adapter, "demo"), workspace)
    assert "Set model.name to Qwen/Qwen3-0.6B" in raised.value.hint


def test_another_revision_is_refused(adapter: Path, workspace: Workspace) -> None:
    write(adapter, revision="v1")
    with pytest.raises(StudioError, match="revision v1"):
        continued(config(adapter, revision="v2"), workspace)


def test_weights_that_could_run_code_are_refused(adapter: Path, workspace: Workspace) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(StudioError, match="not stored as safetensors"):
        continued(config(adapter), workspace)


def test_only_lora_can_be_trained_further(adapter: Path, workspace: Workspace) -> None:
    write(adapter, peft_type="IA3")
    with pytest.raises(StudioError, match=r"is \(IA\)³, not LoRA"):
        continued(config(adapter), workspace)


def test_a_run_without_an_adapter_is_refused_before_anything_starts(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="There is no run"):
        continued(config(tmp_path / "nothing"), workspace)
