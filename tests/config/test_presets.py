"""The presets that come with the studio: what they reproduce, and that every line says why it is there."""

from typing import Any

import pytest

from lora_studio.config.parsing import NameTakenError, delete_preset, own_presets, parse, presets, resolve, save_preset
from lora_studio.config.settings import flatten
from lora_studio.errors import StudioError
from lora_studio.workspace import Workspace

ALL_LINEAR = {"lora.target_modules": "all-linear", "lora.r": 16, "lora.lora_dropout": 0.05}
# What each setup is to be, the defaults that it relies on included: a default that changes must not change these.
SETUPS: dict[str, dict[str, Any]] = {
    "technical-assistant": {
        "model.name": "Qwen/Qwen3-0.6B",
        "model.dtype": "auto",
        "model.quantization": "none",
        "data.prompt_style": "plain",
        "data.max_length": 2048,
        "data.train_on": "all",
        "data.validation_fraction": 0.2,
        "data.split_seed": 42,
        "lora.r": 16,
        "lora.lora_alpha": 32,
        "lora.lora_dropout": 0.05,
        "lora.target_modules": "attention",
        "training.lr_scheduler_type": "cosine",
        "training.warmup_ratio": 0.05,
        "training.weight_decay": 0.1,
        "training.per_device_train_batch_size": 4,
        "training.gradient_accumulation_steps": 16,
        "training.gradient_checkpointing": True,
        "training.save_strategy": "epoch",
        "training.save_total_limit": 2,
        "generation.max_new_tokens": 800,
        "generation.temperature": 0,
    },
    "problem-solver": {
        **ALL_LINEAR,
        "model.name": "Qwen/Qwen3-0.6B",
        "model.dtype": "bfloat16",
        "model.quantization": "none",
        "data.prompt_style": "auto",
        "lora.lora_alpha": 32,
        "training.learning_rate": 2e-4,
        "training.per_device_train_batch_size": 4,
        "training.gradient_accumulation_steps": 4,
        "training.packing": False,
        "training.gradient_checkpointing": True,
        "training.save_steps": 100,
        "generation.max_new_tokens": 4096,
        "generation.temperature": 0.7,
        "generation.top_p": 0.9,
    },
    "chat-assistant": {
        "model.quantization": "4bit",
        "model.bnb_4bit_compute_dtype": "bfloat16",
        "data.max_length": 2048,
        "data.train_on": "assistant",
        "lora.target_modules": "all-linear",
        "training.num_train_epochs": 1,
        "training.per_device_train_batch_size": 1,
        "training.gradient_accumulation_steps": 8,
        "training.learning_rate": 2e-4,
        "training.gradient_checkpointing": True,
        "training.seed": 42,
        "generation.max_new_tokens": 128,
    },
    "yes-no-recommender": {
        **ALL_LINEAR,
        "model.name": "Qwen/Qwen3-0.6B",
        "model.quantization": "4bit",
        "model.attn_implementation": "auto",
        "data.train_file": "recommender",
        "data.max_length": 1024,
        "data.truncation": "keep_answer",
        "data.max_eval_samples": 1000,
        "lora.lora_alpha": 64,
        "training.num_train_epochs": 3,
        "training.learning_rate": 1.5e-4,
        "training.warmup_ratio": 0.03,
        "training.lr_scheduler_type": "cosine",
        "training.adam_beta1": 0.9,
        "training.adam_beta2": 0.999,
        "training.per_device_train_batch_size": 2,
        "training.gradient_accumulation_steps": 8,
        "training.gradient_checkpointing": False,
        "training.save_steps": 4000,
        "training.save_total_limit": 2,
        "evaluation.eval_steps": 2000,
        "evaluation.per_device_eval_batch_size": 16,
        "evaluation.load_best_model_at_end": True,
        "evaluation.labels": "Yes, No",
        "evaluation.metric_for_best_model": "f1",
        "evaluation.early_stopping_patience": 3,
        "evaluation.gen_eval_samples": 32,
        "generation.max_new_tokens": 8,
        "generation.temperature": 0,
    },
    "instruction-follower": {
        "model.name": "Qwen/Qwen2.5-1.5B-Instruct",
        "model.quantization": "4bit",
        "model.bnb_4bit_quant_type": "nf4",
        "model.bnb_4bit_compute_dtype": "float16",
        "model.dtype": "float16",
        "data.prompt_style": "alpaca",
        "data.max_length": 512,
        "data.train_on": "all",
        "lora.r": 16,
        "lora.lora_alpha": 32,
        "lora.lora_dropout": 0.05,
        "lora.bias": "none",
        "lora.target_modules": "q_v",
        "training.num_train_epochs": 3,
        "training.per_device_train_batch_size": 2,
        "training.gradient_accumulation_steps": 2,
        "training.learning_rate": 2e-4,
        "training.optim": "adamw_torch_fused",
        "training.save_strategy": "epoch",
        "evaluation.per_device_eval_batch_size": 2,
        "tracking.logging_steps": 10,
    },
}
BY_MACHINE = ("gpu-8gb", "gpu-16gb", "gpu-24gb", "cpu")


@pytest.mark.parametrize("name", SETUPS)
def test_a_known_setup_is_reproduced_value_by_value(name: str) -> None:
    flat = flatten(resolve(name))
    assert {path: flat[path] for path in SETUPS[name]} == SETUPS[name]


def test_every_preset_is_one_of_these() -> None:
    assert set(presets()) == {*SETUPS, *BY_MACHINE, "demo", "demo-preference", "demo-kto", "lora", "preference", "kto"}


def test_every_line_of_a_preset_says_why() -> None:
    lines = [
        f"{preset.name}: {line}"
        for preset in presets().values()
        for line in preset.path.read_text(encoding="utf-8").splitlines()
        if not line.endswith(":") and "# " not in line
    ]
    assert lines == []


def test_presets_for_a_machine_leave_model_and_data_alone_and_share_the_effective_batch() -> None:
    for name in BY_MACHINE:
        values = presets()[name].values()
        assert "name" not in values.get("model", {}), name
        assert "train_file" not in values.get("data", {}), name
        training = resolve(name).training
        assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 16, name


def test_a_name_that_is_taken_is_asked_about_and_one_of_the_studios_own_refused(workspace: Workspace) -> None:
    first, second = parse({"lora": {"r": 4}}), parse({"lora": {"r": 8}, "title": "a run's name"})
    save_preset(workspace, "mine", first)
    with pytest.raises(NameTakenError):
        save_preset(workspace, "mine", second)
    assert resolve("mine", workspace=workspace).lora.r == 4
    save_preset(workspace, "mine", second, "Twice as large.", replace=True)
    assert presets(workspace)["mine"].about == "Twice as large."
    assert presets(workspace)["mine"].values() == {"lora": {"r": 8}}
    with pytest.raises(StudioError, match="built-in preset"):
        save_preset(workspace, "demo", first)
    with pytest.raises(StudioError, match="no name"):
        save_preset(workspace, "  ", first)


def test_only_presets_of_ones_own_can_be_deleted(workspace: Workspace) -> None:
    save_preset(workspace, "mine", parse({"lora": {"r": 4}}))
    assert list(own_presets(workspace)) == ["mine"]
    delete_preset(workspace, "mine")
    assert own_presets(workspace) == {}
    for name in ("mine", "demo", "../runs"):
        with pytest.raises(StudioError):
            delete_preset(workspace, name)
