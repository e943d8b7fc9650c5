"""The settings that peft itself writes, of every kind that can answer, pass the schema for files from anywhere."""

from pathlib import Path
from typing import Any

import pytest
from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoraConfig, PrefixTuningConfig

from lora_studio.models.adapter_files import read_adapter_settings


@pytest.mark.parametrize(
    "made",
    [
        LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], rank_pattern={"k_proj": 4}, use_rslora=True),
        LoraConfig(target_modules=r".*\.q_proj", exclude_modules=r".*\.1\..*", lora_alpha=3),
        LoraConfig(target_modules=["q_proj"], layers_to_transform=[0, 1], layers_pattern="layers"),
        LoraConfig(target_modules="all-linear", modules_to_save=["lm_head"], trainable_token_indices=[1, 2]),
        LoraConfig(target_parameters=["mlp.experts.gate_up_proj"], init_lora_weights="gaussian"),
        AdaLoraConfig(target_modules=["q_proj"], total_step=10, rank_pattern={"q_proj": [True, False]}),
        LoHaConfig(target_modules=["q_proj"], alpha_pattern={"q_proj": 2}),
        IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
        PrefixTuningConfig(num_virtual_tokens=8, task_type="CAUSAL_LM"),
    ],
    ids=lambda made: type(made).__name__,
)
def test_what_peft_writes_passes(tmp_path: Path, made: Any) -> None:
    made.base_model_name_or_path = "demo"
    made.save_pretrained(str(tmp_path))
    assert read_adapter_settings(tmp_path / "adapter_config.json")["peft_type"] == made.peft_type.value
