"""Settings that are valid alone and wrong together, or wrong on this machine.

All conflicts are reported before anything slow, each with what to choose instead. The schema checks single values.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lora_studio.config.sections import Config
from lora_studio.models.module_patterns import PatternError, check, is_regular_expression

NEED_FULL_WEIGHTS = ("pissa", "pissa_niter_16", "olora")
"""First weights of an adapter that are taken out of the base's own weights."""

NOT_ON_EXPERTS = (*NEED_FULL_WEIGHTS, "orthogonal", "eva")
"""First weights that stacked experts can't begin with: peft looks for one matrix a module there."""
SHOWN = 200  # characters of what was found


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a config: where, what, and what was found there."""

    path: str
    message: str
    value: Any = None

    def __str__(self) -> str:
        text = repr(self.value)
        text = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
        return f"{self.path}: {self.message}" + ("" if self.value is None else f" (found {text})")


def contradictions(config: Config) -> Iterator[Problem]:
    """What can't work together on any machine."""
    yield from _adapter(config)
    yield from _schedule(config)
    yield from _best(config)
    yield from _unmeasured(config)
    yield from _preference(config)


def machine_conflicts(config: Config, *, cuda: bool) -> Iterator[Problem]:
    """What can't work here: `cuda` says whether this machine has an NVIDIA GPU."""
    optim = config.training.optim
    if optim.startswith("paged") and not cuda:
        instead = optim.removeprefix("paged_").replace("adamw_32bit", "adamw_torch")
        yield Problem(
            "training.optim", f"{optim} moves its state out of a CUDA GPU, and this machine shows none; take {instead}"
        )
    if config.model.dtype == "float16" and not cuda:
        yield Problem("model.dtype", "float16 needs a CUDA GPU, and this machine shows none; take auto or float32")
    if config.model.attn_implementation == "flash_attention_2" and not (cuda and _installed("flash_attn")):
        lacks = "the package flash-attn is not installed" if cuda else "this machine shows no CUDA GPU"
        yield Problem("model.attn_implementation", f"flash_attention_2 can't run here: {lacks}; take auto or sdpa")
    tracker = config.tracking.report_to
    if tracker != "tensorboard" and not _installed(tracker):
        yield Problem(
            "tracking.report_to",
            f"the package {tracker} is not installed; `pip install {tracker}`, or take tensorboard",
        )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _adapter(config: Config) -> Iterator[Problem]:
    lora, quantization = config.lora, config.model.quantization
    start = lora.init_lora_weights
    if start in NEED_FULL_WEIGHTS and quantization != "none":
        yield Problem(
            "lora.init_lora_weights",
            f"{start} takes the base's weights apart, which {quantization} has already rounded;"
            " set model.quantization to none, or take loftq with 4bit",
        )
    if start == "loftq" and quantization != "4bit":
        yield Problem(
            "lora.init_lora_weights",
            "loftq makes up for what 4bit loses; set model.quantization to 4bit, or take pissa",
        )
    if start == "loftq" and lora.use_dora:
        yield Problem("lora.use_dora", "DoRA measures the base before loftq changes it; choose one of the two")
    if start == "orthogonal" and lora.r % 2:
        yield Problem("lora.r", "orthogonal first weights come in pairs; take an even rank", lora.r)
    if is_regular_expression(lora.target_modules):
        try:
            check([lora.target_modules])
        except PatternError as error:
            yield Problem("lora.target_modules", str(error), lora.target_modules)
    if lora.modules_to_save and is_regular_expression(lora.modules_to_save):
        yield Problem("lora.modules_to_save", "takes names of modules, such as lm_head, and no expression")


def _schedule(config: Config) -> Iterator[Problem]:
    training = config.training
    if training.max_steps == 0:
        yield Problem("training.max_steps", "must be -1 (no limit) or at least 1", 0)
    if training.warmup_steps and 0 < training.max_steps <= training.warmup_steps:
        yield Problem(
            "training.warmup_steps",
            f"the run ends after {training.max_steps} steps, before the warm-up does",
            training.warmup_steps,
        )
    if training.lr_scheduler_type == "warmup_stable_decay" and training.warmup_steps is None:
        both = training.warmup_ratio + training.decay_ratio
        if both > 1:
            yield Problem("training.decay_ratio", f"warm-up and decay are {both:g} of the steps together; at most 1 is")


def _best(config: Config) -> Iterator[Problem]:
    training, evaluation, data = config.training, config.evaluation, config.data
    measured = data.validation_file is not None or data.validation_fraction > 0
    if not evaluation.load_best_model_at_end:
        return
    if evaluation.eval_strategy == "no" or not measured:
        yield Problem("evaluation.load_best_model_at_end", "needs evaluation and validation rows to know the best")
    elif evaluation.eval_strategy != training.save_strategy:
        yield Problem(
            "evaluation.load_best_model_at_end",
            f"needs saving and evaluating at the same moments, but training.save_strategy is {training.save_strategy}"
            f" and evaluation.eval_strategy is {evaluation.eval_strategy}",
        )
    elif training.save_strategy == "steps" and training.save_steps % evaluation.eval_steps:
        yield Problem(
            "training.save_steps",
            f"must be a multiple of evaluation.eval_steps ({evaluation.eval_steps})",
            training.save_steps,
        )


def _unmeasured(config: Config) -> Iterator[Problem]:
    """What is asked of measures that are not taken."""
    evaluation, data = config.evaluation, config.data
    measured = evaluation.eval_strategy != "no" and (data.validation_file is not None or data.validation_fraction > 0)
    if evaluation.early_stopping_patience and not measured:
        yield Problem("evaluation.early_stopping_patience", "needs evaluation and validation rows to see a gain")
    if evaluation.labels and not measured:
        yield Problem("evaluation.labels", "needs evaluation and validation rows to measure accuracy and F1 on")
    if evaluation.gen_eval_samples and not measured:
        yield Problem("evaluation.gen_eval_samples", "needs evaluation and validation rows to take the questions from")
    if evaluation.labels and config.data.train_on == "all":
        yield Problem("evaluation.labels", "needs data.train_on assistant or last_turn, to tell the answer's place")
    if evaluation.metric_for_best_model in ("accuracy", "f1") and not evaluation.labels:
        yield Problem(
            "evaluation.metric_for_best_model",
            f"can't be {evaluation.metric_for_best_model} while evaluation.labels names no labels",
        )


def _preference(config: Config) -> Iterator[Problem]:
    """What does not go with learning by comparison, and what goes with nothing else."""
    training, preference, best = config.training, config.preference, config.evaluation.metric_for_best_model
    if preference.label_smoothing and preference.loss_type != "robust":
        yield Problem("preference.label_smoothing", "is used by preference.loss_type robust alone")
    if training.method != "dpo":
        if best.startswith("reward_"):
            yield Problem("evaluation.metric_for_best_model", f"can't be {best}: only training.method dpo measures it")
        return
    if training.packing:
        yield Problem("training.packing", "can't be on with training.method dpo: pairs are not packed")
    if training.label_smoothing_factor:
        yield Problem(
            "training.label_smoothing_factor", "is for training.method sft; dpo has preference.label_smoothing"
        )
    if training.neftune_noise_alpha:
        yield Problem("training.neftune_noise_alpha", "is for training.method sft: noise would blur the comparison")
    if config.data.train_on == "all":
        yield Problem("data.train_on", "can't be all with training.method dpo: answers are compared with each other")
    if config.lora.init_lora_weights in NEED_FULL_WEIGHTS:
        yield Problem(
            "lora.init_lora_weights",
            f"can't be {config.lora.init_lora_weights} with training.method dpo, which compares with the whole base",
        )
    if config.lora.bias != "none":
        yield Problem("lora.bias", "must be none with training.method dpo, which compares with the base's own biases")
    if config.evaluation.labels:
        yield Problem("evaluation.labels", "goes with training.method sft; dpo measures which answer is preferred")
