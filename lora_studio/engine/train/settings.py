"""What trl's trainers take: a run's settings by their names, and the learning-rate schedule in whole steps.

A run that is lengthened follows the schedule of a run that had that length from the start.
"""

import math
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments
from trl import DPOConfig, KTOConfig, SFTConfig

from lora_studio.config.sections import Config
from lora_studio.config.training import checkpointing_arguments, pins_memory
from lora_studio.engine.accelerator import device_kind
from lora_studio.engine.models.load import dtype_name, why_rows_meet
from lora_studio.engine.train_script import METHODS
from lora_studio.errors import StudioError
from lora_studio.models.accelerators import CUDA, DEVICE_KINDS, is_flash, joins_rows
from lora_studio.workspace import RunFolder

PROJECT = "lora-studio"
RISING = ("accuracy", "f1", "reward_accuracy", "reward_margin")
MIN_POINTS = 20
SAME_NAME = {
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "neftune_noise_alpha",
    "label_smoothing_factor",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "seed",
    "train_sampling_strategy",
    "torch_compile",
    "use_liger_kernel",
    "dataloader_num_workers",
    "save_strategy",
    "save_steps",
    "save_total_limit",
}
"""Settings that the trainers take under the same name."""
SCHEDULE = {"lr_scheduler_type", "warmup_ratio", "warmup_steps", "num_cycles", "decay_ratio", "min_lr_rate"}
"""The training settings that `scheduler_settings` takes."""


TrainerArguments = dict[str, Any]
"""Arguments of the trainers' configs by transformers' and trl's names."""


def scheduler_settings(
    total_steps: int,
    *,
    lr_scheduler_type: str,
    warmup_ratio: float,
    warmup_steps: int | None,
    num_cycles: int,
    decay_ratio: float,
    min_lr_rate: float,
) -> tuple[int, TrainerArguments]:
    """The warm-up steps, and the scheduler's own arguments (`lr_scheduler_kwargs`).

    Warm-up steps take precedence over the ratio, which leaves at least the last step at full rate. The first step of a
    warm-up has a rate of 0, so a run of one step has none.
    """
    rising = min(math.ceil(warmup_ratio * total_steps), total_steps - 1) if warmup_steps is None else warmup_steps
    rising = rising if total_steps > 1 else 0
    falling = min(math.ceil(decay_ratio * total_steps), max(total_steps - rising, 0))
    own: dict[str, TrainerArguments] = {
        "cosine_with_restarts": {"num_cycles": num_cycles},
        "cosine_with_min_lr": {"min_lr_rate": min_lr_rate},
        "warmup_stable_decay": {"num_decay_steps": falling, "decay_type": "linear"},
    }
    return rising, own.get(lr_scheduler_type, {})


def lengthen(args: TrainingArguments, extra_epochs: float, steps_an_epoch: int) -> None:
    """Adds epochs to a trainer's plan, or their number of steps if it counts steps."""
    if args.max_steps > 0:
        args.max_steps += math.ceil(extra_epochs * steps_an_epoch)
    else:
        args.num_train_epochs += extra_epochs


def planned_steps(trainer: Trainer, extra_epochs: float) -> int:
    """The total number of steps, including extra epochs."""
    loader = trainer.get_train_dataloader()
    steps_an_epoch = trainer.set_initial_training_values(trainer.args, loader)[1]
    lengthen(trainer.args, extra_epochs, steps_an_epoch)
    return trainer.set_initial_training_values(trainer.args, loader)[-1]


def trainer_settings(
    config: Config,
    run: RunFolder,
    dtype: torch.dtype,
    *,
    measured: bool,
    checkpointing: bool,
    padding_free: bool = False,
) -> SFTConfig | DPOConfig | KTOConfig:
    """The config as trl's arguments. Truncation and labels are done already, so trl only packs, or joins the rows of a
    batch (`padding_free`)."""
    arguments, _ = METHODS[config.training.method]
    kind = device_kind()
    values = trainer_values(config, dtype_name(dtype), kind=kind, measured=measured, checkpointing=checkpointing)
    config_of_trl: SFTConfig | DPOConfig | KTOConfig = arguments(
        output_dir=str(run.checkpoints),
        report_to=list(dict.fromkeys(["tensorboard", config.tracking.report_to])),
        run_name=config.title or run.id,
        project=PROJECT,
        **values | method_values(config, padding_free=padding_free),
    )
    return config_of_trl


def method_values(config: Config, *, padding_free: bool) -> TrainerArguments:
    """Arguments of the method's own config. KTO's rows are in an order of ours, which trl calls sequential."""
    preference = config.preference
    if config.training.method == "sft":
        return packing_values(config, padding_free=padding_free)
    if config.training.method == "dpo":
        own = preference.model_dump(include={"beta", "loss_type", "label_smoothing"})
        return {**own, "max_length": None, "remove_unused_columns": False}
    return {
        **preference.model_dump(include={"beta", "desirable_weight", "undesirable_weight"}),
        "max_length": config.data.max_length,
        "remove_unused_columns": False,
        "train_sampling_strategy": "sequential",
    }


def packing_values(config: Config, *, padding_free: bool) -> TrainerArguments:
    """Arguments of SFTConfig alone."""
    packing = config.training.packing
    return {
        "packing": packing,
        "padding_free": padding_free,
        "eval_packing": False,
        "max_length": config.data.max_length if packing else None,
        "dataset_kwargs": None if packing else {"skip_prepare_dataset": True},
    }


def padding_free_batches(config: Config, base: PreTrainedModel) -> tuple[bool, str]:
    """Whether batches are made without padding, and a note. Raises `StudioError` where packing or padding-free batches
    were chosen and the rows of a sequence would not stay apart in this model."""
    training = config.training
    possible = training.method == "sft" and not training.packing and training.per_device_train_batch_size > 1
    implementation = str(base.config._attn_implementation)
    joined = joins_rows(training.padding_free, implementation, possible=possible)
    if not (joined or training.packing):
        return False, ""
    if reason := why_rows_meet(base):
        if training.padding_free == "auto" and not training.packing:
            return False, f"Batches are padded: {reason}."
        path = "training.packing" if training.packing else "training.padding_free"
        raise StudioError(f"{config.model.name} cannot have several rows in a sequence: {reason}.", f"Turn {path} off.")
    if is_flash(implementation):
        return joined, ""
    noun = "Packing" if training.packing else "Padding-free batches"
    return joined, (
        f"{noun} without FlashAttention ({implementation} is used): each layer reads a mask of the whole sequence, "
        "which costs time."
    )


def trainer_values(config: Config, dtype: str, *, kind: str, measured: bool, checkpointing: bool) -> TrainerArguments:
    """Arguments shared by both methods, as plain values; `kind` is the device's. An exported script uses the same."""
    kind = kind if kind in DEVICE_KINDS else CUDA  # an older run's events need not name the kind
    on_cpu = not DEVICE_KINDS[kind].is_gpu
    training, evaluation = config.training, config.evaluation
    return {
        **training.model_dump(include=SAME_NAME),
        **({"activation_offloading": True} if training.activation_offloading else {}),
        **({"tf32": True} if training.tf32 else {}),  # left alone, PyTorch's own default counts
        "data_seed": training.seed,
        "gradient_checkpointing": checkpointing,
        "gradient_checkpointing_kwargs": (checkpointing_arguments(training) or None) if checkpointing else None,
        "per_device_eval_batch_size": evaluation.per_device_eval_batch_size,
        "eval_strategy": evaluation.eval_strategy if measured else "no",
        "eval_steps": evaluation.eval_steps,
        "load_best_model_at_end": evaluation.load_best_model_at_end and measured,
        "metric_for_best_model": f"eval_{evaluation.metric_for_best_model}",
        "greater_is_better": evaluation.metric_for_best_model in RISING,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a loss that is not a number has to be seen
        "disable_tqdm": True,
        "use_cpu": on_cpu,
        "bf16": dtype == "bfloat16" and not on_cpu,
        "fp16": dtype == "float16",
        "dataloader_pin_memory": pins_memory(training, kind),
        # From page-locked memory a batch is copied while the device computes; else each copy waits for all before it.
        **({"accelerator_config": {"non_blocking": True}} if pins_memory(training, kind) else {}),
    }


def logging_interval(setting: int, total_steps: int) -> int:
    """Steps between log points: the setting, reduced so that a run logs at least 20 points.

    0 means automatic: at least 50 points if the run has that many steps, and a point at least every 10 steps.
    """
    if setting == 0:
        return max(1, min(10, total_steps // 50))
    return max(1, min(setting, total_steps // MIN_POINTS))
