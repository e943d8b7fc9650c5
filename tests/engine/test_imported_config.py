"""The tables of other trainers agree with the libraries that are installed, and an imported config trains."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from transformers import TrainingArguments
from trl import DPOConfig, KTOConfig, ModelConfig, ScriptArguments, SFTConfig

from lora_studio.config.importing import import_file
from lora_studio.config.other_tools import tools
from lora_studio.config.settings import other_tools
from lora_studio.workspace import RunFolder

EARLIER = {
    *("max_seq_length", "torch_dtype", "use_flash_attention_2", "max_prompt_length", "max_completion_length"),
    *("rpo_alpha", "dataset_mixer", "dataset_mixture", "dataset_splits", "chat_template", "preprocessing_num_workers"),
    *("datasets", "accelerate_config", "num_processes", "env", "hub_model_revision", "wandb_project", "wandb_entity"),
}
"""Keys of trl's files that are of earlier versions, its recipes, its command line or its trackers."""


def fields_of(*kinds: type) -> dict[str, Any]:
    """The arguments of dataclasses with their defaults; those of the first count."""
    return {item.name: item.default for kind in reversed(kinds) for item in dataclasses.fields(kind)}


def test_the_keys_of_trl_are_the_arguments_of_its_command_line() -> None:
    installed = fields_of(SFTConfig, DPOConfig, KTOConfig, ModelConfig, ScriptArguments).keys()
    shared = set(other_tools()["trainer"].split())
    assert tools()["trl"].keys - shared - installed <= EARLIER
    assert installed <= tools()["trl"].keys


def test_every_argument_of_peft_is_known() -> None:
    assert tools()["peft"].keys - {"peft_type"} <= fields_of(LoraConfig).keys() | {"auto_mapping"}
    assert fields_of(LoraConfig).keys() <= tools()["peft"].keys


def test_the_defaults_that_are_set_are_those_of_the_libraries() -> None:
    adapter, sft, model = (fields_of(kind) for kind in (LoraConfig, SFTConfig, ModelConfig))
    rates = {"sft": SFTConfig, "dpo": DPOConfig, "kto": KTOConfig}
    assert tools()["peft"].defaults == {
        "lora.r": adapter["r"],
        "lora.lora_alpha": adapter["lora_alpha"],
        "lora.target_modules": "q_v",
    }
    trl = tools()["trl"].defaults
    assert trl["training.learning_rate"] == {method: fields_of(kind)["learning_rate"] for method, kind in rates.items()}
    assert trl["lora.lora_dropout"] == model["lora_dropout"]
    assert trl["data.truncation"] == sft["truncation_mode"]
    assert (trl["training.lr_scheduler_type"], trl["training.warmup_ratio"]) == ("linear", 0.0)
    trainer = fields_of(TrainingArguments)
    assert trl["training.per_device_train_batch_size"] == trainer["per_device_train_batch_size"]
    assert trl["training.gradient_accumulation_steps"] == trainer["gradient_accumulation_steps"]
    assert trainer["lr_scheduler_type"] == "linear"
    assert (model["use_peft"], model["lora_target_modules"], trainer["warmup_steps"]) == (False, None, 0)


@pytest.mark.slow
def test_a_file_of_llama_factory_trains(
    base: Path, make_run: Callable[..., RunFolder], train: Callable[..., int], tmp_path: Path
) -> None:
    rows = [{"q": f"say {word}", "more": "", "a": word} for word in ("red", "blue", "green", "pink") * 6]
    (tmp_path / "colors.json").write_text(json.dumps(rows))
    columns = {"prompt": "q", "query": "more", "response": "a"}
    (tmp_path / "dataset_info.json").write_text(
        json.dumps({"colors": {"file_name": "colors.json", "columns": columns}})
    )
    config = tmp_path / "sft.yaml"
    config.write_text(
        f"model_name_or_path: {base}\nstage: sft\nfinetuning_type: lora\nlora_rank: 2\ndataset: colors\n"
        "template: qwen\ncutoff_len: 64\nlearning_rate: 1e-3\nmax_steps: 2\nper_device_train_batch_size: 2\n"
        "val_size: 0.25\nbf16: false\n"
    )
    result = import_file(config)
    run = make_run(**{path.replace(".", "__"): value for path, value in result.settings.items()})
    assert train(run) == 0
    adapter = json.loads((run.adapter / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"]) == (2, 4)
    assert run.read_result()["steps"] == 2
