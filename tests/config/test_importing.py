"""Config files of other trainers are read as settings, and every key is told."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_studio.config.importing import Imported, Source, as_json, convert, import_file, report
from lora_studio.config.other_tools import SPECIAL, path_of, tool_of, tools
from lora_studio.config.parsing import nest, parse
from lora_studio.config.settings import AS_VALUES, BY_VALUE, reasons, settings
from lora_studio.data.convert import convert as conversation_of
from lora_studio.data.formats import read_as
from lora_studio.data.messages import Record
from lora_studio.errors import StudioError

PATHS = {setting.path for setting in settings()}
LLAMA_FACTORY = """
model_name_or_path: my/base
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 4
lora_target: all
dataset: pets
template: qwen
cutoff_len: 512
output_dir: saves/pets
per_device_train_batch_size: 2
learning_rate: 3.0e-4
bf16: true
val_size: 0.2
deepspeed: ds_z3.json
resume_from_checkpoint: null
"""
AXOLOTL = """
base_model: my/base
adapter: qlora
load_in_4bit: true
load_in_8bit: false
datasets:
  - path: pets.jsonl
    type: chat_template
    field_messages: talk
    roles: {user: [person], assistant: [bot]}
val_set_size: 25
sequence_len: 256
sample_packing: true
lora_r: 8
lora_alpha: 4
lora_target_linear: true
lora_target_modules: [q_proj]
micro_batch_size: 2
num_epochs: 2
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 1e-4
bf16: auto
flash_attention: true
train_on_inputs: false
warmup_steps: 0
warmup_ratio: 0.2
evals_per_epoch: 2
saves_per_epoch: 1
wandb_entity:
special_tokens: {pad_token: x}
"""
TRL = """
model_name_or_path: my/base
use_peft: true
lora_r: 8
dataset_name: owner/pets
dataset_config: small
dataset_train_split: train[:50%]
dataset_test_split: test
eval_strategy: epoch
beta: 0.2
max_length: 300
report_to: [none]
hub_token: hf_not_to_be_seen
"""
SWIFT = """
model: my/base
tuner_type: lora
dataset: [owner/pets:small#20, other.jsonl]
lora_rank: 4
target_modules: [all-linear]
torch_dtype: bfloat16
quant_bits: 4
quant_method: bnb
per_device_train_batch_size: 4
truncation_strategy: left
loss_scale: last_round
init_weights: true
"""
UNSLOTH = """
training:
  max_seq_length: 512
  num_epochs: 0
  max_steps: 30
  learning_rate: 2e-4
  batch_size: 2
  save_steps: 0
  random_seed: 7
  train_on_completions: true
  gradient_checkpointing: unsloth
lora:
  lora_r: 8
  target_modules: "q_proj,v_proj"
  use_loftq: true
logging:
  enable_wandb: false
  wandb_project: pets
inference:
  top_k: -1
"""
PEFT = (
    '{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "my/base", "r": 16, "rank_pattern": {}}'
)
EXPECTED: dict[str, tuple[str, dict[str, Any]]] = {
    LLAMA_FACTORY: (
        "llama-factory",
        {
            "model.name": "my/base",
            "training.method": "sft",
            "lora.r": 4,
            "lora.target_modules": "all-linear",
            "data.train_file": "pets",
            "data.prompt_style": "auto",
            "data.max_length": 512,
            "training.per_device_train_batch_size": 2,
            "training.learning_rate": 3e-4,
            "model.dtype": "bfloat16",
            "data.validation_fraction": 0.2,
            "lora.lora_alpha": 8,
            "training.gradient_accumulation_steps": 1,
            "training.lr_scheduler_type": "linear",
            "training.warmup_ratio": 0.0,
        },
    ),
    AXOLOTL: (
        "axolotl",
        {
            "model.name": "my/base",
            "model.quantization": "4bit",
            "data.train_file": "pets.jsonl",
            "data.mapping": {"messages": "talk", "roles": {"person": "user", "bot": "assistant"}},
            "data.prompt_style": "chat",
            "data.validation_fraction": 0.1,
            "data.max_eval_samples": 25,
            "data.max_length": 256,
            "training.packing": True,
            "lora.r": 8,
            "lora.lora_alpha": 4,
            "lora.target_modules": "all-linear",
            "training.per_device_train_batch_size": 2,
            "training.num_train_epochs": 2,
            "training.optim": "adamw_8bit",
            "training.lr_scheduler_type": "cosine",
            "training.learning_rate": 1e-4,
            "model.dtype": "auto",
            "model.attn_implementation": "auto",
            "data.train_on": "assistant",
            "training.warmup_ratio": 0.2,
            "evaluation.eval_strategy": "epoch",
            "training.save_strategy": "epoch",
            "data.truncation": "drop",
            "training.gradient_accumulation_steps": 1,
        },
    ),
    TRL: (
        "trl",
        {
            "model.name": "my/base",
            "lora.r": 8,
            "data.train_file": "hub:owner/pets?config=small",
            "data.validation_file": "hub:owner/pets?config=small&split=test",
            "evaluation.eval_strategy": "epoch",
            "training.method": "dpo",
            "preference.beta": 0.2,
            "data.max_length": 300,
            "data.truncation": "keep_start",
            "lora.lora_dropout": 0.05,
            "lora.target_modules": "q_v",
            "training.learning_rate": 1e-6,
            "training.per_device_train_batch_size": 8,
            "training.gradient_accumulation_steps": 1,
            "training.lr_scheduler_type": "linear",
            "training.warmup_ratio": 0.0,
        },
    ),
    SWIFT: (
        "ms-swift",
        {
            "model.name": "my/base",
            "data.train_file": "hub:owner/pets?config=small",
            "data.max_samples": 20,
            "lora.r": 4,
            "lora.target_modules": "all-linear",
            "model.dtype": "bfloat16",
            "model.quantization": "4bit",
            "training.per_device_train_batch_size": 4,
            "data.truncation": "keep_answer",
            "data.train_on": "last_turn",
            "lora.init_lora_weights": "default",
            "lora.lora_alpha": 32,
            "lora.lora_dropout": 0.05,
            "data.validation_fraction": 0.0,
            "training.learning_rate": 1e-4,
            "training.gradient_accumulation_steps": 4,
            "training.warmup_ratio": 0.0,
            "training.weight_decay": 0.1,
            "training.adam_beta2": 0.95,
        },
    ),
    UNSLOTH: (
        "unsloth",
        {
            "data.max_length": 512,
            "training.max_steps": 30,
            "training.learning_rate": 2e-4,
            "training.per_device_train_batch_size": 2,
            "training.save_strategy": "no",
            "training.seed": 7,
            "data.train_on": "assistant",
            "training.gradient_checkpointing": True,
            "lora.r": 8,
            "lora.target_modules": "q_proj, v_proj",
            "lora.init_lora_weights": "loftq",
            "generation.top_k": 0,
            "lora.lora_alpha": 16,
            "model.quantization": "4bit",
            "data.truncation": "keep_start",
            "data.validation_fraction": 0.0,
            "training.num_train_epochs": 1.0,
            "training.gradient_accumulation_steps": 1,
            "training.lr_scheduler_type": "linear",
            "training.weight_decay": 0.001,
        },
    ),
    PEFT: (
        "peft",
        {"model.name": "my/base", "lora.r": 16, "lora.lora_alpha": 8, "lora.target_modules": "q_v"},
    ),
}


def leaf(key: str) -> str:
    return key.rpartition(".")[2]


def imported(text: str, **more: Any) -> Imported:
    values = {**yaml.safe_load(text), **more}
    tool = tool_of(values)
    assert tool
    return convert(Source(tool, values))


@pytest.mark.parametrize("text", EXPECTED, ids=[tool for tool, _ in EXPECTED.values()])
def test_a_file_becomes_the_settings_that_it_means_and_each_key_is_told_once(text: str) -> None:
    result = imported(text)
    tool, expected = EXPECTED[text]
    assert result.tool.name == tool
    assert result.settings == expected
    assert parse(nest(result.settings))
    values = yaml.safe_load(text)
    keys = [f"{key}.{inner}" for key in values if key in result.tool.sections for inner in values[key]]
    assert [line.key for line in result.lines] == (keys or list(values))
    text_of_all = "\n".join(report(result))
    assert all(f"{key}" in text_of_all for key in keys or values)
    assert json.loads(json.dumps(as_json(result)))["settings"] == expected


ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    1,
    -1,
    0.5,
    "2e-4",
    "",
    ",",
    "text",
    [],
    [None],
    [{}],
    {},
    {"datasets": [1], "columns": 5},
    "\0",
    "~x/y",
)


@pytest.mark.parametrize("name", tools())
def test_every_key_with_every_odd_value_is_told_or_refused_in_a_sentence(name: str) -> None:
    tool, count, refused = tools()[name], 0, list[str]()
    for key in tool.keys:
        section, _, last = key.rpartition(".") if tool.sections else ("", "", key)
        for value in ODD:
            try:
                result = convert(
                    Source(tool, {section: {last: value}} if section else {key: value}, (Path("/nowhere"),))
                )
            except StudioError as error:
                refused.append(error.message)
                continue
            (line,) = [line for line in result.lines if line.key == key]
            assert line.note or line.settings
            assert result.settings.keys() <= PATHS
            count += 1
    assert count > 10 * len(tool.keys)
    assert all("not available here" in words or "Hub dataset" in words for words in refused)


def test_the_tables_name_settings_that_there_are_and_every_key_has_a_meaning() -> None:
    for tool in tools().values():
        assert {*tool.defaults, *tool.unchanged, *filter(None, tool.paths.values())} <= PATHS
        assert {*tool.notes, *tool.about, *tool.paths, *tool.marks} <= tool.keys
        known = {*AS_VALUES, *BY_VALUE, *reasons("always"), *reasons("elsewhere")}
        assert not [key for key in tool.keys - tool.paths.keys() if not path_of(tool, key) and leaf(key) not in known]
    leaves = {leaf(key) for tool in tools().values() for key in tool.keys}
    assert SPECIAL.keys() <= leaves
    assert not reasons("always").keys() & reasons("elsewhere").keys()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stage: ppo\ncutoff_len: 5", "stage: ppo"),
        ("stage: rm\nfinetuning_type: full", "stage: rm; finetuning_type: full"),
        ("stage: dpo\npref_loss: orpo\ncutoff_len: 5", "pref_loss: orpo"),
        ("base_model: a\nrl: grpo", "rl: grpo"),
        ("dataset_name: a/b\nreward_funcs: [a]", "which belongs to GRPO"),
        ("dataset_name: a/b\nloss_type: apo_zero_unpaired", "loss_type: apo_zero_unpaired"),
        ("dataset_name: a/b\nloss_type: [sigmoid, bco_pair]", "loss_type"),
        ("rlhf_type: simpo\ntuner_type: lora", "rlhf_type: simpo"),
        ("tuner_type: full\nmodel: a/b", "tuner_type: full"),
        ("training: {training_type: full, max_seq_length: 5}", "training.training_type: full"),
        ('{"peft_type": "LOHA", "base_model_name_or_path": "a"}', "peft_type: LOHA"),
        ('{"peft_type": "LORA", "task_type": "SEQ_CLS"}', "task_type: SEQ_CLS"),
    ],
)
def test_a_method_that_is_not_available_is_refused_by_its_name(text: str, words: str) -> None:
    with pytest.raises(StudioError) as refused:
        imported(text)
    assert words in refused.value.message
    assert "SFT" in refused.value.hint


@pytest.mark.parametrize(
    ("tool", "more", "path", "value", "words"),
    [
        ("llama-factory", {"packing": True}, "training.packing", True, "see each other there"),
        ("llama-factory", {"packing": True, "neat_packing": True}, "training.packing", True, ""),
        ("llama-factory", {"quantization_bit": 8}, "model.quantization", "8bit", ""),
        ("llama-factory", {"quantization_bit": 3}, None, None, "not available: 3"),
        ("llama-factory", {"pissa_init": True, "pissa_iter": -1}, "lora.init_lora_weights", "pissa", ""),
        ("llama-factory", {"stage": "pt"}, "data.train_on", "all", "every token is trained"),
        ("llama-factory", {"flash_attn": "fa2"}, "model.attn_implementation", "auto", "if it is installed"),
        ("llama-factory", {"flash_attn": "sdpa"}, "model.attn_implementation", "sdpa", ""),
        ("llama-factory", {"mask_history": True}, "data.train_on", "last_turn", ""),
        ("llama-factory", {"train_on_prompt": True}, "data.train_on", "all", ""),
        ("llama-factory", {"neftune_noise_alpha": 5}, "training.neftune_noise_alpha", 5, ""),
        ("llama-factory", {"learning_rate": "2e-4"}, "training.learning_rate", 2e-4, ""),
        ("llama-factory", {"lora_rank": "8"}, "lora.r", 8, ""),
        ("llama-factory", {"template": "chatml"}, "data.prompt_style", "chatml", ""),
        ("llama-factory", {"disable_gradient_checkpointing": True}, "training.gradient_checkpointing", False, ""),
        ("llama-factory", {"warmup_steps": 0.1}, "training.warmup_ratio", 0.1, ""),
        ("llama-factory", {"eval_steps": 0.25}, "evaluation.eval_strategy", "epoch", "a fraction of all steps"),
        ("llama-factory", {"report_to": "wandb"}, "tracking.report_to", "wandb", ""),
        ("llama-factory", {"report_to": "swanlab"}, None, None, "not available: swanlab"),
        ("llama-factory", {"dpo_label_smoothing": 0.1}, None, None, "needs the loss robust"),
        (
            "axolotl",
            {"batch_size": 16, "micro_batch_size": 4},
            "training.gradient_accumulation_steps",
            4,
            "all devices",
        ),
        ("axolotl", {"optimizer": "muon"}, None, None, "not available: muon; adamw_torch_fused is used"),
        ("axolotl", {"optimizer": "adamw_torch_4bit"}, "training.optim", "adamw_8bit", "comes nearest"),
        ("axolotl", {"lr_scheduler": "rex"}, None, None, "not available: rex; cosine is used"),
        ("axolotl", {"cosine_min_lr_ratio": 0.2}, "training.lr_scheduler_type", "cosine_with_min_lr", ""),
        ("axolotl", {"excess_length_strategy": "truncate"}, "data.truncation", "keep_start", ""),
        ("axolotl", {"rl": "ipo"}, "preference.loss_type", "ipo", ""),
        ("axolotl", {"rl": "kto"}, "training.method", "kto", ""),
        ("axolotl", {"kto_undesirable_weight": 0.2}, "preference.undesirable_weight", 0.2, ""),
        ("llama-factory", {"kto_chosen_weight": 1.5}, "preference.desirable_weight", 1.5, ""),
        ("trl", {"desirable_weight": 2}, "training.method", "kto", ""),
        ("trl", {"loss_type": ["kto"]}, "training.method", "kto", ""),
        ("trl", {"beta": 0.2}, "training.method", "dpo", "taken for DPO"),
        ("ms-swift", {"rlhf_type": "kto"}, "training.method", "kto", ""),
        ("axolotl", {"pretraining_dataset": "owner/text"}, "data.train_on", "all", ""),
        ("axolotl", {"gradient_checkpointing": "unsloth"}, "training.gradient_checkpointing", True, "unsloth"),
        ("axolotl", {"gradient_checkpointing": "offload"}, "training.gradient_checkpointing_offload", True, ""),
        ("trl", {"padding_free": True}, "training.padding_free", "auto", "on with FlashAttention"),
        ("llama-factory", {"enable_liger_kernel": True}, "training.use_liger_kernel", True, ""),
        ("axolotl", {"flex_attention": True}, "model.attn_implementation", "flex_attention", ""),
        ("axolotl", {"peft_init_lora_weights": False}, None, None, "default is used"),
        ("axolotl", {"group_by_length": False}, "training.train_sampling_strategy", "random", ""),
        ("trl", {"assistant_only_loss": False}, "data.train_on", "all", "prompts are trained"),
        ("trl", {"packing_strategy": "wrapped"}, None, None, "packed whole"),
        ("trl", {"dataset_text_field": "story"}, "data.mapping", {"text": "story"}, ""),
        ("trl", {"lr_scheduler_kwargs": {"min_lr_rate": 0.3, "x": 1}}, "training.min_lr_rate", 0.3, "without x"),
        ("trl", {"num_processes": 2}, "compute.processes", "2", ""),
        ("trl", {"use_cpu": True}, "compute.device", "cpu", ""),
        ("ms-swift", {"loss_scale": "react"}, None, None, "single tokens"),
        ("ms-swift", {"lorap_lr_ratio": 16}, "lora.loraplus_lr_ratio", 16, ""),
        ("ms-swift", {"quant_method": "gptq"}, None, None, "bitsandbytes"),
        ("peft", {"r": 8, "lora_alpha": 16.0}, "lora.lora_alpha", 16, ""),
        ("peft", {"target_modules": "all-linear"}, "lora.target_modules", "all-linear", ""),
        ("peft", {"target_modules": r".*\.(q|v)_proj"}, "lora.target_modules", r".*\.(q|v)_proj", ""),
        ("peft", {"init_lora_weights": "pissa_niter_4"}, "lora.init_lora_weights", "pissa_niter_16", "comes nearest"),
        ("peft", {"rank_pattern": {"q_proj": 4}}, None, None, "one rank"),
    ],
)
def test_a_value_means_the_same_or_is_told_to_differ(
    tool: str, more: dict[str, Any], path: str | None, value: Any, words: str
) -> None:
    result = convert(Source(tools()[tool], more))
    line = result.lines[0]
    assert words in line.note
    if path is None:
        assert (line.kind, line.settings) == ("none", {})
    else:
        assert result.settings[path] == value
        assert line.kind == ("differs" if words or line.key in result.tool.notes else "taken")


def test_full_training_by_omission_is_told_and_its_rate_is_not_taken_for_one_of_lora() -> None:
    result = convert(Source(tools()["trl"], {"dataset_name": "a/b"}))
    assert "training.learning_rate" not in result.settings
    assert "lora.target_modules" not in result.settings
    assert any("trains all weights" in line.words and "default for LoRA" in line.words for line in result.lines)
    with_rate = convert(Source(tools()["axolotl"], {"base_model": "a", "learning_rate": 2e-5}))
    assert any("ten times" in line.words for line in with_rate.lines)


def test_a_file_of_very_many_keys_is_refused_before_each_is_looked_up() -> None:
    with pytest.raises(StudioError, match="100,001 keys"):
        convert(Source(tools()["trl"], {"max_steps": 1, **{f"key{number}": 1 for number in range(100_000)}}))


def test_secrets_are_not_repeated() -> None:
    secrets = {
        "hub_token": "s3cret",
        "wandb_api_key": "s3cret",
        "env": {"A": "s3cret"},
        "swanlab_lark_secret": "s3cret",
    }
    result = convert(Source(tools()["llama-factory"], {"cutoff_len": 8, **secrets}))
    assert "s3cret" not in f"{report(result)}{as_json(result)}"


PAIRS = {"prompt": "q", "chosen": "good", "rejected": "bad"}
ASKED = {"prompt": "q", "query": "more", "response": "a"}
TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "person", "assistant_tag": "bot"}
TALKS = {"messages": "lines", "system": "rules", "images": "photos"}
ROLES = {"person": "user", "bot": "assistant"}
INFO = {
    "pets": {"file_name": "pets.json"},
    "talks": {"file_name": "talks.json", "formatting": "sharegpt", "columns": TALKS, "tags": TAGS},
    "asked": {"file_name": "asked.json", "columns": ASKED, "num_samples": 9},
    "pairs": {"hf_hub_url": "owner/pairs", "subset": "en", "split": "dev", "ranking": True, "columns": PAIRS},
    "text": {"file_name": "text.txt", "columns": {"prompt": "text"}},
    "elsewhere": {"ms_hub_url": "owner/name"},
}


@pytest.mark.parametrize(
    ("name", "file", "mapping", "words"),
    [
        ("pets", "pets.json", None, ""),
        ("talks", "talks.json", {"system": "rules", "messages": "lines", "roles": ROLES}, "images are left out"),
        ("asked", "asked.json", {"user_template": "{q}\n{more}", "assistant": "a"}, ""),
        ("pairs", "hub:owner/pairs?config=en&split=dev", {"chosen": "good", "rejected": "bad", "user": "q"}, ""),
        ("text", "text.txt", {"text": "text"}, ""),
        ("elsewhere", None, None, "neither a file nor a dataset of the Hugging Face Hub"),
        ("unknown", "unknown", None, "dataset_info.json does not list it"),
        ("pets,talks", "pets.json", None, "2 datasets"),
    ],
)
def test_a_dataset_of_llama_factory_is_looked_up_in_its_list(
    name: str, file: str | None, mapping: dict[str, Any] | None, words: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(INFO))
    config = tmp_path / "sft.yaml"
    config.write_text(f"stage: sft\ndataset: {name}\ncutoff_len: 64\n")
    result = import_file(config)
    found = result.settings.get("data.train_file")
    assert found == (str(tmp_path / "data" / file) if file and not file.startswith("hub:") and file != name else file)
    assert result.settings.get("data.mapping") == mapping
    line = next(line for line in result.lines if line.key == "dataset")
    assert words in line.note
    assert result.settings.get("data.max_samples") == (9 if name == "asked" else None)


@pytest.mark.parametrize(
    ("row", "name", "goal", "spoken"),
    [
        (
            {"lines": [{"role": "person", "content": "a"}, {"role": "bot", "content": "b"}], "rules": "x"},
            "talks",
            "answers",
            [("system", "x"), ("user", "a"), ("assistant", "b")],
        ),
        ({"q": "a", "more": "b", "a": "c"}, "asked", "answers", [("user", "a\nb"), ("assistant", "c")]),
        ({"q": "a", "more": "", "a": "c"}, "asked", "answers", [("user", "a"), ("assistant", "c")]),
        ({"q": "a", "good": "b", "bad": "c"}, "pairs", "preference", [("user", "a")]),
    ],
)
def test_the_columns_of_a_dataset_read_its_rows(
    row: dict[str, Any], name: str, goal: str, spoken: list[tuple[str, str]]
) -> None:
    values = {"stage": "sft" if goal == "answers" else "dpo", "dataset": name, "cutoff_len": 64}
    mapping = convert(Source(tools()["llama-factory"], values, datasets=INFO)).settings["data.mapping"]
    records = [Record(number, row) for number in range(1, 4)]
    conversation = conversation_of(records[0], read_as(records, mapping, goal))
    assert [(message.role, message.content) for message in conversation.messages] == spoken


def test_files_lie_beside_the_config_or_are_said_to_be_missing(tmp_path: Path) -> None:
    config = tmp_path / "axolotl.yml"
    config.write_text("base_model: base\nsequence_len: 64\ndatasets:\n  - path: rows.jsonl\n  - path: more.jsonl\n")
    assert "there is no rows.jsonl here" in import_file(config).lines[2].note
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "base").mkdir()
    result = import_file(config)
    assert result.settings["data.train_file"] == str(tmp_path / "rows.jsonl")
    assert result.settings["model.name"] == str(tmp_path / "base")
    assert "2 datasets: the first is taken" in result.lines[2].note
    uploaded = import_file(config, uploads={"rows.jsonl": "/uploads/rows.jsonl"})
    assert uploaded.settings["data.train_file"] == "/uploads/rows.jsonl"


def test_a_file_of_nobody_is_refused_and_one_of_ours_is_left_alone(tmp_path: Path) -> None:
    own = {
        "model": {"name": "demo"},
        "data": {"train_file": "pirate"},
        "training": {"learning_rate": 1e-3},
        "lora": {"r": 4},
    }
    assert tool_of(own) is None
    assert tool_of({**own, "cutoff_len": 5}) is None
    path = tmp_path / "x.yaml"
    path.write_text("a: 1\nb: 2\n")
    with pytest.raises(StudioError, match="not recognized"):
        import_file(path)
    path.write_text("cutoff_len: 64\n")
    assert import_file(path, tool="llama-factory").settings["data.max_length"] == 64


def test_a_file_for_kto_gets_its_label_column_its_weights_and_batches_that_kl_can_be_estimated_in(
    tmp_path: Path,
) -> None:
    entry = {"file_name": "kto.json", "columns": {"prompt": "ask", "response": "tell", "kto_tag": "fine"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}), encoding="utf-8")
    (tmp_path / "kto.yaml").write_text(
        "stage: kto\nfinetuning_type: lora\ndataset: mine\npref_beta: 0.2\nkto_rejected_weight: 1.5\n"
        "per_device_train_batch_size: 1\ngradient_accumulation_steps: 8\nper_device_eval_batch_size: 1\n",
        encoding="utf-8",
    )
    result = import_file(tmp_path / "kto.yaml", tmp_path / "dataset_info.json")
    config = parse(nest(result.settings))
    assert (config.training.method, config.preference.beta, config.preference.undesirable_weight) == ("kto", 0.2, 1.5)
    assert config.data.mapping == {"user": "ask", "assistant": "tell", "label": "fine"}
    training = config.training
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (2, 4)
    assert config.evaluation.per_device_eval_batch_size == 2
    assert any("KTO estimates KL within a batch" in line.note for line in result.of("differs"))


def test_beta_belongs_to_the_method_that_a_file_shows_by_its_other_keys() -> None:
    result = convert(Source(tools()["trl"], {"beta": 0.3, "undesirable_weight": 2.0}))
    assert (result.settings["training.method"], result.settings["preference.beta"]) == ("kto", 0.3)
    assert not [line for line in result.lines if "another key" in line.note]
