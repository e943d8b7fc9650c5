"""Files of other programs are told what each of their settings is called here, and what is told is taken."""

from typing import Any

import pytest
import yaml

from lora_studio.config.parsing import ConfigError, nest, parse
from lora_studio.config.sections import Config
from lora_studio.config.settings import (
    AS_VALUES,
    BY_VALUE,
    FOR_A_SECTION,
    OTHER_NAMES,
    SECTIONS,
    Meant,
    meant,
    reasons,
    settings,
)

PATHS = {setting.path for setting in settings()}
LEAVES = {path.rpartition(".")[2] for path in PATHS}

LLAMA_FACTORY = """
model_name_or_path: Qwen/Qwen3-0.6B
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_alpha: 16
lora_dropout: 0.1
lora_target: all
additional_target: lm_head
quantization_bit: 4
dataset: identity,alpaca_en_demo
template: chatml
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
output_dir: saves/qwen3
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
report_to: wandb
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
"""
AXOLOTL = """
base_model: NousResearch/Llama-3.2-1B
load_in_4bit: true
load_in_8bit: false
strict: false
datasets:
  - path: teknium/GPT4-LLM-Cleaned
    type: alpaca
dataset_prepared_path: last_run_prepared
val_set_size: 0.1
output_dir: ./outputs/lora-out
adapter: qlora
lora_model_dir: outputs/earlier
sequence_len: 2048
sample_packing: true
pad_to_sequence_len: true
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_target_linear: true
wandb_project: mine
gradient_accumulation_steps: 2
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_torch
lr_scheduler: cosine
learning_rate: 0.0002
train_on_inputs: false
bf16: auto
tf32: false
gradient_checkpointing: true
resume_from_checkpoint:
logging_steps: 1
flash_attention: true
warmup_steps: 10
evals_per_epoch: 4
weight_decay: 0.0
special_tokens:
  pad_token: "<|end_of_text|>"
"""
UNSLOTH = """
model_name: unsloth/Llama-3.2-1B-Instruct-bnb-4bit
max_seq_length: 2048
load_in_4bit: true
r: 16
target_modules: [q_proj, v_proj]
lora_alpha: 16
lora_dropout: 0
bias: none
use_gradient_checkpointing: true
random_state: 3407
use_rslora: false
dataset_text_field: text
packing: false
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
warmup_steps: 5
num_train_epochs: 1
max_steps: 60
learning_rate: 2.0e-4
logging_steps: 1
optim: adamw_8bit
weight_decay: 0.01
lr_scheduler_type: linear
lr_scheduler: linear
seed: 3407
output_dir: outputs
"""


def test_every_name_leads_to_a_setting_that_there_is() -> None:
    assert {*OTHER_NAMES.values(), *(path for path, _ in AS_VALUES.values())} <= PATHS
    assert {path for values in BY_VALUE.values() for path, _ in values.values()} <= PATHS
    assert {path for _, path in FOR_A_SECTION.values()} <= PATHS
    assert set(SECTIONS.values()) <= set(Config.model_fields)
    ours = {
        name
        for name in (*OTHER_NAMES, *AS_VALUES, *reasons("always"), *reasons("elsewhere"))
        if name in LEAVES or name in PATHS
    }
    assert not ours


def test_every_value_that_is_named_is_one_that_the_setting_takes() -> None:
    for path, value in [*AS_VALUES.values(), *(one for values in BY_VALUE.values() for one in values.values())]:
        needed = {"model.quantization": "4bit"} if value == "loftq" else {}
        assert parse(nest({**needed, path: value}))


def problems_of(text: str) -> dict[str, Meant]:
    values = yaml.safe_load(text)
    with pytest.raises(ConfigError) as found:
        parse(values)
    assert {problem.path for problem in found.value.problems} == set(values)
    return {name: meant(name, value) for name, value in values.items()}


@pytest.mark.parametrize("text", [LLAMA_FACTORY, AXOLOTL, UNSLOTH], ids=["LLaMA-Factory", "axolotl", "Unsloth"])
def test_a_whole_file_of_another_program_is_told_line_by_line(text: str) -> None:
    values: dict[str, Any] = yaml.safe_load(text)
    found = problems_of(text)
    assert not [name for name, one in found.items() if not one.words]
    taken = {one.path: one.value or values[name] for name, one in found.items() if one.path}
    taken["data.train_file"], taken["data.mapping"] = "pirate", None
    assert parse(nest(taken))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("model_name_or_path", "Qwen/Qwen3-0.6B", "`model.name`"),
        ("num_epochs", 3, "`training.num_train_epochs`"),
        ("lr_scheduler", "cosine", "`training.lr_scheduler_type`"),
        ("target_modules", ["q_proj"], "`lora.target_modules`"),
        ("lora.rank", 8, "`lora.r`"),
        ("lora.alpha", 8, "`lora.lora_alpha`"),
        ("training.max_seq_length", 512, "`data.max_length`"),
        ("training.learningrate", 1e-4, "`training.learning_rate`"),
        ("learning-rate", 1e-4, "`training.learning_rate`"),
        ("evaluation.seed", 1, "`training.seed`"),
        ("adapter", "qlora", "`model.quantization` with the value 4bit"),
        ("adapter", "lora", "remove it: every run trains a LoRA adapter"),
        ("load_in_4bit", True, "`model.quantization` with the value 4bit"),
        ("load_in_4bit", False, "remove it: it is off"),
        ("quantization", "4bit", "`model.quantization`"),
        ("output_dir", "out", "remove it: each run has its own folder"),
        ("trainer", {"epochs": 3}, "`training`"),
        ("modle", {"name": "x"}, "`model`"),
        ("utterly_different", 1, ""),
    ],
)
def test_a_name_is_told_with_its_section(name: str, value: Any, words: str) -> None:
    assert words in meant(name, value).words
    assert bool(words) == bool(meant(name, value).words)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": "Qwen/Qwen3-0.6B"}, "did you mean `model.name`? (found 'Qwen/Qwen3-0.6B')"),
        ({"data": "rows.jsonl"}, "did you mean `data.train_file`?"),
        ({"lora": 8}, "did you mean `lora.r`? (found 8)"),
        ({"lora": True}, "must be a section with settings below it (found True)"),
        ({"training": 3}, "must be a section with settings below it"),
    ],
)
def test_a_value_in_the_place_of_a_section_is_told_where_it_belongs(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as found:
        parse(values)
    assert words in found.value.message
