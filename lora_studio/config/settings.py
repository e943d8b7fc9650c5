"""The settings of the schema one by one, as form, flags and documentation need them, and the search among them.

A name that LLaMA-Factory, axolotl, Unsloth, trl or a typo has for a setting is answered with its name here.
"""

import difflib
import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from lora_studio.config.fields import Section, SettingValues
from lora_studio.config.sections import Config


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as form, flags and documentation need it. `kind` is int, float, bool, str, choice or mapping.

    `description` is the hint, `details` what the tooltip and the documentation add to it; `names` labels some choices.
    `by_method` holds the defaults of the training methods, where they differ.
    """

    path: str
    kind: str
    default: Any
    title: str
    description: str
    basic: bool
    group: str = ""
    choices: tuple[Any, ...] = ()
    optional: bool = False
    minimum: float | None = None
    maximum: float | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    details: str = ""
    by_method: Mapping[str, Any] = field(default_factory=dict)

    @property
    def section(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def key(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def help(self) -> str:
        """The hint with its details, for `--help` and the documentation."""
        return f"{self.description} {self.details}".rstrip()

    @property
    def defaults(self) -> tuple[tuple[Any, str], ...]:
        """The defaults, each with the training method that it is for; "" where all have the same, () for none."""
        if self.by_method:
            return tuple((value, method) for method, value in self.by_method.items())
        return () if self.default in (None, "") else ((self.default, ""),)


@cache
def settings() -> tuple[Setting, ...]:
    """Every setting in the order of the schema, which does not change while a process lives."""
    entries: list[Setting] = []
    for name, info in Config.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            entries += described(info.annotation, f"{name}.")
        else:
            entries.append(_describe(name, info))
    return tuple(entries)


@cache
def described(section: type[Section], prefix: str = "") -> tuple[Setting, ...]:
    """The settings of one section; `prefix` stands before their names in a path."""
    return tuple(_describe(f"{prefix}{leaf}", info) for leaf, info in section.model_fields.items())


def _describe(path: str, info: FieldInfo) -> Setting:
    """Reads kind, choices and bounds off a field's annotation and constraints."""
    annotation = info.annotation
    union = get_origin(annotation) in (Union, types.UnionType)
    parts = [part for part in (get_args(annotation) if union else (annotation,)) if part is not type(None)]
    optional = union and type(None) in get_args(annotation)
    choices: list[Any] = []
    for part in parts:
        if get_origin(part) is Literal:
            choices = [*get_args(part), *choices]
        elif part is bool and (len(parts) > 1 or optional):
            choices = [*choices, True, False]
    plain = {bool: "bool", int: "int", float: "float", str: "str", dict: "mapping"}
    kind = "choice" if choices else plain[get_origin(parts[0]) or parts[0]]
    bounds = {type(mark): mark for mark in info.metadata}
    lowest = bounds[Ge].ge if Ge in bounds else bounds[Gt].gt if Gt in bounds else None
    highest = bounds[Le].le if Le in bounds else bounds[Lt].lt if Lt in bounds else None
    extra = info.json_schema_extra
    details: SettingValues = (
        extra if isinstance(extra, dict) else {"details": "", "basic": False, "group": "", "names": {}, "by_method": {}}
    )
    return Setting(
        path=path,
        kind=kind,
        default=info.default,
        title=info.title or path,
        description=info.description or "",
        basic=details["basic"],
        group=details["group"],
        choices=tuple(choices),
        optional=optional,
        minimum=lowest,
        maximum=highest,
        names=details["names"],
        details=details["details"],
        by_method=details["by_method"],
    )


def batch_factors(config: Config, processes: int | None = None) -> list[int]:
    """Batch size per device, accumulation and processes, which make the effective batch. The number of processes is
    that of the config, or one that is known better: a target has its own."""
    training = config.training
    size = config.compute.world_size if processes is None else processes
    return [training.per_device_train_batch_size, training.gradient_accumulation_steps, size]


def effective_batch(config: Config, processes: int | None = None) -> int:
    """Rows (or pairs) of a step, of all processes."""
    return math.prod(batch_factors(config, processes))


def batch_words(config: Config, processes: int | None = None) -> str:
    """The factors of the effective batch; processes where there are several."""
    rows, accumulation, size = batch_factors(config, processes)
    return f"{rows:,} × {accumulation:,}" + (f" × {size:,}" if size > 1 else "")


def flatten(config: Config) -> SettingValues:
    """Every setting's value by its path."""
    values = config.model_dump()
    return {
        setting.path: values[setting.section][setting.path.rpartition(".")[2]]
        if setting.section
        else values[setting.path]
        for setting in settings()
    }


_CLOSE = 0.75
"""Likeness (difflib's ratio) from which a name is taken for a slip of another."""
OTHER_NAMES: dict[str, str] = {
    # where it runs
    "cluster": "compute.target",
    "devices": "compute.device",
    "gpu_ids": "compute.device",
    "cuda_visible_devices": "compute.device",
    "nproc_per_node": "compute.processes",
    "num_processes": "compute.processes",
    "num_gpus": "compute.processes",
    "distributed_type": "compute.strategy",
    # the base
    "model_name_or_path": "model.name",
    "model_name": "model.name",
    "base_model": "model.name",
    "base_model_name_or_path": "model.name",
    "pretrained_model_name_or_path": "model.name",
    "model_id": "model.name",
    "model_revision": "model.revision",
    "torch_dtype": "model.dtype",
    "quant_type": "model.bnb_4bit_quant_type",
    "double_quantization": "model.bnb_4bit_use_double_quant",
    "use_bnb_nested_quant": "model.bnb_4bit_use_double_quant",
    "attn": "model.attn_implementation",
    "lora_model_dir": "model.adapter_name_or_path",
    "adapter_path": "model.adapter_name_or_path",
    "peft_model_id": "model.adapter_name_or_path",
    # the data
    "dataset": "data.train_file",
    "datasets": "data.train_file",
    "dataset_name": "data.train_file",
    "dataset_path": "data.train_file",
    "data_path": "data.train_file",
    "train_data": "data.train_file",
    "training_file": "data.train_file",
    "data.name": "data.train_file",
    "data.path": "data.train_file",
    "data.file": "data.train_file",
    "eval_dataset": "data.validation_file",
    "test_datasets": "data.validation_file",
    "eval_file": "data.validation_file",
    "validation_data": "data.validation_file",
    "val_size": "data.validation_fraction",
    "val_set_size": "data.validation_fraction",
    "test_size": "data.validation_fraction",
    "validation_split": "data.validation_fraction",
    "cutoff_len": "data.max_length",
    "sequence_len": "data.max_length",
    "sequence_length": "data.max_length",
    "seq_length": "data.max_length",
    "seq_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "model_max_length": "data.max_length",
    "template": "data.prompt_style",
    "chat_template": "data.prompt_style",
    "prompt_template": "data.prompt_style",
    "conversation_template": "data.prompt_style",
    "default_system": "data.system_prompt",
    "default_system_message": "data.system_prompt",
    "max_train_samples": "data.max_samples",
    "columns": "data.mapping",
    "dataset_text_field": "data.mapping",
    "formatting": "data.mapping",
    "field_messages": "data.mapping",
    # the adapter
    "lora_rank": "lora.r",
    "lora_r": "lora.r",
    "lora_dim": "lora.r",
    "rank": "lora.r",
    "alpha": "lora.lora_alpha",
    "dropout": "lora.lora_dropout",
    "lora_target": "lora.target_modules",
    "lora_target_modules": "lora.target_modules",
    "lora.target": "lora.target_modules",
    "lora.modules": "lora.target_modules",
    "additional_target": "lora.modules_to_save",
    "lora_modules_to_save": "lora.modules_to_save",
    "peft_use_dora": "lora.use_dora",
    "peft_use_rslora": "lora.use_rslora",
    "rslora": "lora.use_rslora",
    "dora": "lora.use_dora",
    "loraplus_ratio": "lora.loraplus_lr_ratio",
    "peft_init_lora_weights": "lora.init_lora_weights",
    # the schedule
    "num_epochs": "training.num_train_epochs",
    "epochs": "training.num_train_epochs",
    "train_epochs": "training.num_train_epochs",
    "lr": "training.learning_rate",
    "micro_batch_size": "training.per_device_train_batch_size",
    "batch_size": "training.per_device_train_batch_size",
    "train_batch_size": "training.per_device_train_batch_size",
    "gradient_accumulation": "training.gradient_accumulation_steps",
    "grad_accum": "training.gradient_accumulation_steps",
    "accumulation": "training.gradient_accumulation_steps",
    "lr_scheduler": "training.lr_scheduler_type",
    "scheduler": "training.lr_scheduler_type",
    "schedule": "training.lr_scheduler_type",
    "warmup": "training.warmup_ratio",
    "optimizer": "training.optim",
    "optimiser": "training.optim",
    "random_state": "training.seed",
    "random_seed": "training.seed",
    "sample_packing": "training.packing",
    "neat_packing": "training.packing",
    "pack_dataset": "training.packing",
    "use_gradient_checkpointing": "training.gradient_checkpointing",
    "gradient_clipping": "training.max_grad_norm",
    "noisy_embedding_alpha": "training.neftune_noise_alpha",
    "rl": "training.method",
    "stage": "training.method",
    "dpo_beta": "preference.beta",
    "pref_beta": "preference.beta",
    "rl_beta": "preference.beta",
    "pref_loss": "preference.loss_type",
    "dpo_loss_type": "preference.loss_type",
    "kto_desirable_weight": "preference.desirable_weight",
    "kto_chosen_weight": "preference.desirable_weight",
    "kto_undesirable_weight": "preference.undesirable_weight",
    "kto_rejected_weight": "preference.undesirable_weight",
    # measuring, and what is written down
    "evaluation_strategy": "evaluation.eval_strategy",
    "evaluation.strategy": "evaluation.eval_strategy",
    "evaluation.steps": "evaluation.eval_steps",
    "evaluation.batch_size": "evaluation.per_device_eval_batch_size",
    "eval_batch_size": "evaluation.per_device_eval_batch_size",
    "micro_eval_batch_size": "evaluation.per_device_eval_batch_size",
    "patience": "evaluation.early_stopping_patience",
    "log_every": "tracking.logging_steps",
    "max_tokens": "generation.max_new_tokens",
    "generation.max_length": "generation.max_new_tokens",
    "run_name": "title",
    "wandb_name": "title",
    "wandb_run_id": "title",
    "lora_bias": "lora.bias",
    "lorap_lr_ratio": "lora.loraplus_lr_ratio",
    "init_weights": "lora.init_lora_weights",
    "attn_impl": "model.attn_implementation",
    "flash_attn": "model.attn_implementation",
    "revision_of_model": "model.revision",
    "quantization_bit": "model.quantization",
    "quant_bits": "model.quantization",
    "quantization_type": "model.bnb_4bit_quant_type",
    "adapters": "model.adapter_name_or_path",
    "hf_dataset": "data.train_file",
    "local_dataset": "data.train_file",
    "local_datasets": "data.train_file",
    "pretraining_dataset": "data.train_file",
    "dataset_mixer": "data.train_file",
    "dataset_mixture": "data.train_file",
    "val_dataset": "data.validation_file",
    "local_eval_dataset": "data.validation_file",
    "local_eval_datasets": "data.validation_file",
    "split_dataset_ratio": "data.validation_fraction",
    "data_seed": "data.split_seed",
    "truncation_strategy": "data.truncation",
    "excess_length_strategy": "data.truncation",
    "truncation_mode": "data.truncation",
    "loss_scale": "data.train_on",
    "train_on_completions": "data.train_on",
    "system": "data.system_prompt",
    "cosine_min_lr_ratio": "training.min_lr_rate",
    "lr_scheduler_kwargs": "training.min_lr_rate",
    "disable_gradient_checkpointing": "training.gradient_checkpointing",
    "activation_checkpointing": "training.gradient_checkpointing",
    "every_n_layers": "training.gradient_checkpointing_every_n_layers",
    "enable_liger_kernel": "training.use_liger_kernel",
    "num_workers": "training.dataloader_num_workers",
    "pin_memory": "training.dataloader_pin_memory",
    "pissa_iter": "lora.init_lora_weights",
    "rlhf_type": "training.method",
    "dpo_label_smoothing": "preference.label_smoothing",
    "log_frequency": "tracking.logging_steps",
    "project_name": "title",
}
"""The names of other programs, the last one or the whole path, and the path here."""
AS_VALUES: dict[str, tuple[str, str]] = {
    "load_in_4bit": ("model.quantization", "4bit"),
    "load_in_8bit": ("model.quantization", "8bit"),
    "bf16": ("model.dtype", "bfloat16"),
    "fp16": ("model.dtype", "float16"),
    "pure_bf16": ("model.dtype", "bfloat16"),
    "flash_attention": ("model.attn_implementation", "flash_attention_2"),
    "use_flash_attention_2": ("model.attn_implementation", "flash_attention_2"),
    "flex_attention": ("model.attn_implementation", "flex_attention"),
    "sdp_attention": ("model.attn_implementation", "sdpa"),
    "eager_attention": ("model.attn_implementation", "eager"),
    "lora_target_linear": ("lora.target_modules", "all-linear"),
    "group_by_length": ("training.train_sampling_strategy", "group_by_length"),
    "mask_history": ("data.train_on", "last_turn"),
    "train_on_inputs": ("data.train_on", "all"),
    "train_on_prompt": ("data.train_on", "all"),
    "assistant_only_loss": ("data.train_on", "assistant"),
    "completion_only_loss": ("data.train_on", "assistant"),
    "saves_per_epoch": ("training.save_strategy", "epoch"),
    "evals_per_epoch": ("evaluation.eval_strategy", "epoch"),
    "wandb_project": ("tracking.report_to", "wandb"),
    "use_wandb": ("tracking.report_to", "wandb"),
    "enable_wandb": ("tracking.report_to", "wandb"),
    "pissa_init": ("lora.init_lora_weights", "pissa"),
    "bfloat16": ("model.dtype", "bfloat16"),
    "float16": ("model.dtype", "float16"),
    "float32": ("model.dtype", "float32"),
    "use_loftq": ("lora.init_lora_weights", "loftq"),
    "use_cpu": ("compute.device", "cpu"),
}
"""Switches of other programs that are one value of a setting here."""
BY_VALUE: dict[str, dict[str, tuple[str, str]]] = {
    "adapter": {"qlora": ("model.quantization", "4bit")},
    "quantization_bit": {"4": ("model.quantization", "4bit"), "8": ("model.quantization", "8bit")},
    "quant_bits": {"4": ("model.quantization", "4bit"), "8": ("model.quantization", "8bit")},
    "quantization": {"4": ("model.quantization", "4bit"), "8": ("model.quantization", "8bit")},
    "bits": {"4": ("model.quantization", "4bit"), "8": ("model.quantization", "8bit")},
}
"""Settings of other programs that mean one thing or another by their value."""


@cache
def other_tools() -> Mapping[str, Any]:
    """The tables of other trainers' config files."""
    tables: SettingValues = yaml.safe_load((Path(__file__).parent / "other_tools.yaml").read_text(encoding="utf-8"))
    return tables


@cache
def reasons(part: str) -> Mapping[str, str]:
    """Why the keys of other trainers need nothing ("always") or have no counterpart ("elsewhere"), by key."""
    return {key: item["why"] for item in other_tools()[part] for key in item["keys"].split()}


SECTIONS = {
    "peft": "lora",
    "peft_config": "lora",
    "lora_config": "lora",
    "train": "training",
    "trainer": "training",
    "training_args": "training",
    "training_arguments": "training",
    "dataset": "data",
    "datasets": "data",
    "eval": "evaluation",
    "logging": "tracking",
    "hardware": "compute",
    "inference": "generation",
}
"""Sections of other programs' files, and the section here."""
FOR_A_SECTION = {"model": (str, "model.name"), "data": (str, "data.train_file"), "lora": (int, "lora.r")}
"""What is meant by a plain value where a section belongs, by the value's kind."""


@dataclass(frozen=True, slots=True)
class Meant:
    """A setting's path ("" for none), the value to give it where that follows, and why none is needed."""

    path: str = ""
    value: str | None = None
    why: str = ""

    @property
    def words(self) -> str:
        """The end of the sentence that says that a name is none of ours."""
        if self.why:
            return f"; remove it: {self.why}"
        if not self.path:
            return ""
        return f"; did you mean `{self.path}`{f' with the value {self.value}' if self.value else ''}?"


def meant(path: str, value: Any = None) -> Meant:
    """What is meant by the path of a setting that is not one of ours, as it was written."""
    path = path.lower().replace("-", "_")
    section, _, leaf = path.rpartition(".")
    why = reasons("always").get(leaf) or reasons("elsewhere").get(leaf)
    if isinstance(value, Mapping) and not section and not why:
        names = [name for name in Config.model_fields if name != "title"]
        return Meant(SECTIONS.get(leaf) or next(iter(difflib.get_close_matches(leaf, names, 1, _CLOSE)), ""))
    if leaf in BY_VALUE and str(value).lower() in BY_VALUE[leaf]:
        return Meant(*BY_VALUE[leaf][str(value).lower()])
    if leaf in AS_VALUES:
        off = value is None or str(value).lower() in ("false", "no", "off", "disabled", "none")
        return Meant(why="it is off") if off else Meant(*AS_VALUES[leaf])
    if other_name := OTHER_NAMES.get(path) or OTHER_NAMES.get(leaf):
        return Meant(other_name)
    if why:
        return Meant(why=why)
    return Meant(_nearest(path, section, leaf))


def _nearest(path: str, section: str, leaf: str) -> str:
    """The setting with that last name in another section, else the one whose name is most like it; "" for none."""
    paths = [setting.path for setting in settings()]
    leaves = [name.rpartition(".")[2] for name in paths]
    near = [leaf] if leaf in leaves else difflib.get_close_matches(leaf, leaves, 1, _CLOSE)
    if leaf not in leaves and (whole := difflib.get_close_matches(path, paths, 1, _CLOSE)):
        return whole[0]
    same_leaf = [name for name in paths if near and name.rpartition(".")[2] == near[0]]
    inside = [name for name in same_leaf if section and name.startswith(f"{section}.")]
    return next(iter([*inside, *same_leaf]), "")


def plain_value(section: str, value: Any) -> str:
    """The setting that is meant by a plain value in the place of a whole section; "" where none is known."""
    kind, path = FOR_A_SECTION.get(section, (type(None), ""))
    return path if isinstance(value, kind) and not isinstance(value, bool) else ""


_EXACT, _START, _WORD, _INSIDE, _HINT = 100.0, 60.0, 40.0, 20.0, 5.0
_NAME_OF_ANOTHER = 0.8
"""What a match with another program's name counts, against one with our own."""
"""Similarity (difflib's ratio) from which a word counts as a typing error of another."""
_SPLIT = re.compile(r"[\s_.\-/]+")


@cache
def aliases() -> dict[str, tuple[str, ...]]:
    """What LLaMA-Factory, axolotl, Unsloth and trl call each setting, by its path."""
    names: dict[str, list[str]] = {setting.path: [] for setting in settings()}
    for name, path in OTHER_NAMES.items():
        names[path].append(name)
    for name, (path, _) in AS_VALUES.items():
        names[path].append(name)
    for name, values in BY_VALUE.items():
        for path, _ in values.values():
            names[path].append(name)
    return {path: tuple(dict.fromkeys(found)) for path, found in names.items()}


def search(query: str) -> list[Setting]:
    """The settings that a query means, the best match first; [] for none. Every word of the query has to match.

    Only if nothing matches, words are compared for typing errors.
    """
    words = [word for word in _SPLIT.split(query.casefold().strip()) if word]
    if not words:
        return []
    scores = [(_score(setting, words), setting) for setting in settings()]
    if not any(score for score, _ in scores):
        scores = [(_likeness(setting, words), setting) for setting in settings()]
    ranked = sorted(scores, key=lambda entry: -entry[0])  # stable: equals stay in the schema's order
    return [setting for score, setting in ranked if score]


def _score(setting: Setting, words: list[str]) -> float:
    """How well a setting matches all words; 0 if one of them is nowhere in it."""
    own = (setting.title, setting.key, setting.path)
    total = 0.0
    for word in words:
        best = max(
            *(_match(name, word) for name in own),
            *(_NAME_OF_ANOTHER * _match(name, word) for name in aliases()[setting.path]),
            _HINT if word in f"{setting.help} {' '.join(map(str, setting.choices))}".casefold() else 0.0,
        )
        if not best:
            return 0.0
        total += best
    together = "_".join(words)
    return total + max(_exact(name, together) for name in (*own, *aliases()[setting.path])) + setting.basic


def _match(name: str, word: str) -> float:
    parts = [part for part in _SPLIT.split(name.casefold()) if part]
    if word in parts:
        return _START if parts[0] == word else _WORD
    if any(part.startswith(word) for part in parts):
        return _WORD - 1
    return _INSIDE if any(word in part for part in parts) else 0.0


def _exact(name: str, query: str) -> float:
    return _EXACT if "_".join(_SPLIT.split(name.casefold())) == query else 0.0


def _likeness(setting: Setting, words: list[str]) -> float:
    """How close the words come to words of the title and the names; 0 if one of them is far from all."""
    parts = {
        part
        for name in (setting.title, setting.key, *aliases()[setting.path])
        for part in _SPLIT.split(name.casefold())
    }
    closest = [max(difflib.SequenceMatcher(None, word, part).ratio() for part in parts) for word in words]
    return sum(closest) + setting.basic / 10 if min(closest) >= _CLOSE else 0.0
