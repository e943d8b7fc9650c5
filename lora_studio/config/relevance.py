"""Which settings have an effect under the values of others, so that a form can hide the ones that have none."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_studio.config.settings import settings

Values = Mapping[str, Any]
"""Settings by path, right or wrong: a form is asked while it is being typed into."""


@dataclass(frozen=True, slots=True)
class Condition:
    """When a setting has an effect; `words` end the sentence "applies only ...", the most general condition first."""

    words: str
    holds: Callable[[Values], bool]


def _equals(path: str, *choices: Any) -> Callable[[Values], bool]:
    return lambda values: values.get(path) in choices


def _has(path: str) -> Callable[[Values], bool]:
    """Whether a number or text is given: neither empty nor 0."""
    return lambda values: values.get(path) not in (None, "", 0, 0.0, False)


def _validates(values: Values) -> bool:
    return bool(values.get("data.validation_file")) or values.get("data.validation_fraction") not in (0, 0.0)


def _measures(values: Values) -> bool:
    return values.get("evaluation.eval_strategy") != "no" and _validates(values)


def _selects(values: Values) -> bool:
    return _has("evaluation.load_best_model_at_end")(values) or _has("evaluation.early_stopping_patience")(values)


_FOUR_BITS = Condition("with 4-bit quantization", _equals("model.quantization", "4bit"))
_SFT = Condition("with method SFT", _equals("training.method", "sft"))
_DPO = Condition("with method DPO", _equals("training.method", "dpo"))
_SPLIT = Condition("without a validation file", lambda values: not values.get("data.validation_file"))
_MEASURED = Condition("with evaluation and validation rows", _measures)
_SELECTED = Condition("with load best model at end or early stopping", _selects)
_SAMPLED = Condition("with a temperature above 0", _has("generation.temperature"))
_BETAS = Condition(
    "with Adam or Lion optimizers",
    lambda values: any(name in str(values.get("training.optim")) for name in ("adam", "lion", "ademamix")),
)
_EPSILON = Condition(
    "with Adam optimizers",
    lambda values: any(name in str(values.get("training.optim")) for name in ("adamw", "ademamix")),
)


def _scheduler(name: str) -> Condition:
    return Condition(f"with the LR scheduler {name}", _equals("training.lr_scheduler_type", name))


_WARMUP = Condition(
    "with an LR scheduler other than constant", lambda values: values.get("training.lr_scheduler_type") != "constant"
)
CONDITIONS: dict[str, tuple[Condition, ...]] = {
    "model.bnb_4bit_quant_type": (_FOUR_BITS,),
    "model.bnb_4bit_use_double_quant": (_FOUR_BITS,),
    "model.bnb_4bit_compute_dtype": (_FOUR_BITS,),
    "data.validation_fraction": (_SPLIT,),
    "data.split_seed": (_SPLIT, Condition("with a validation split", _has("data.validation_fraction"))),
    "data.max_eval_samples": (Condition("with validation rows", _validates),),
    "training.packing": (_SFT,),
    "training.neftune_noise_alpha": (_SFT,),
    "training.label_smoothing_factor": (_SFT,),
    "preference.beta": (_DPO,),
    "preference.loss_type": (_DPO,),
    "preference.label_smoothing": (_DPO, Condition("with the loss robust", _equals("preference.loss_type", "robust"))),
    "training.warmup_steps": (_WARMUP,),
    "training.warmup_ratio": (
        _WARMUP,
        Condition("without warmup steps", lambda values: values.get("training.warmup_steps") is None),
    ),
    "training.num_cycles": (_scheduler("cosine_with_restarts"),),
    "training.decay_ratio": (_scheduler("warmup_stable_decay"),),
    "training.min_lr_rate": (_scheduler("cosine_with_min_lr"),),
    "training.adam_beta1": (_BETAS,),
    "training.adam_beta2": (_BETAS,),
    "training.adam_epsilon": (_EPSILON,),
    "training.save_steps": (Condition("with the save strategy steps", _equals("training.save_strategy", "steps")),),
    "training.save_total_limit": (
        Condition("with checkpoints", lambda values: values.get("training.save_strategy") != "no"),
    ),
    "evaluation.eval_steps": (Condition("with the eval strategy steps", _equals("evaluation.eval_strategy", "steps")),),
    "evaluation.per_device_eval_batch_size": (_MEASURED,),
    "evaluation.labels": (_SFT, _MEASURED),
    "evaluation.metric_for_best_model": (_MEASURED, _SELECTED),
    "evaluation.load_best_model_at_end": (_MEASURED,),
    "evaluation.early_stopping_patience": (_MEASURED,),
    "evaluation.early_stopping_threshold": (
        _MEASURED,
        Condition("with early stopping", _has("evaluation.early_stopping_patience")),
    ),
    "evaluation.gen_eval_samples": (_MEASURED,),
    "generation.top_p": (_SAMPLED,),
    "generation.top_k": (_SAMPLED,),
    "generation.min_p": (_SAMPLED,),
    "generation.seed": (_SAMPLED,),
}
"""The conditions of settings that do not always apply; all of a setting's have to hold."""


def unmet(path: str, values: Values) -> str:
    """Why a setting has no effect ("applies only with 4-bit quantization"); "" for a setting that applies."""
    for condition in CONDITIONS.get(path, ()):
        if not condition.holds(values):
            return f"applies only {condition.words}"
    return ""


def irrelevant(values: Values) -> list[str]:
    """Paths of the settings that have no effect under these values, in the order of the schema."""
    return [setting.path for setting in settings() if unmet(setting.path, values)]
