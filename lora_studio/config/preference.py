"""Training methods: default rates, the settings of those that compare good answers with bad ones, and conflicts."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from lora_studio.config.fields import Section, setting

LEARNING_RATES: Mapping[str, float] = {"sft": 2e-4, "dpo": 5e-6, "kto": 1e-6}
"""The default learning rate of each method: those of LoRA in trl's documentation (`peft_integration`,
`kto_trainer`)."""
COMPARING_METHODS = ("dpo", "kto")
"""The methods that compare good answers with bad ones, and both with the model that the run began with."""
NEED_FULL_WEIGHTS = ("pissa", "pissa_niter_16", "olora")
"""First weights of an adapter that are taken out of the base's own weights."""


def default_rate(method: Any) -> float:
    """The default learning rate of a method; that of SFT for a name that is no method."""
    return LEARNING_RATES.get(str(method), LEARNING_RATES["sft"])


class Preference(Section):
    """Preference training against the base without its adapter: DPO (Rafailov et al. 2023, arXiv:2305.18290) and KTO
    (Ethayarajh et al. 2024, arXiv:2402.01306)."""

    beta: float = setting(0.1, "Beta", "Higher values keep the model closer to the base.", gt=0, le=100)
    loss_type: Literal["sigmoid", "hinge", "ipo", "robust"] = setting(
        "sigmoid",
        "DPO loss",
        "sigmoid is standard DPO. robust allows for noisy pairs.",
        details="hinge and ipo stop at a margin.",
    )
    label_smoothing: float = setting(
        0.0,
        "Label smoothing (noisy pairs)",
        "Estimated share of wrongly labelled pairs. Used by the robust loss.",
        ge=0,
        lt=0.5,
    )
    desirable_weight: float = setting(
        1.0,
        "Desirable weight",
        "Loss weight of good answers. Raise it if they are rare.",
        details="Good answers times this weight should be 1 to 4/3 times bad answers times theirs.",
        gt=0,
        le=1000,
    )
    undesirable_weight: float = setting(
        1.0,
        "Undesirable weight",
        "Loss weight of bad answers. Raise it if they are rare.",
        gt=0,
        le=1000,
    )


def preference_contradictions(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What does not go with learning by comparison, and what goes with nothing else: the path of a setting and what is
    wrong with it. `values` are all settings by path."""
    method, best = values["training.method"], values["evaluation.metric_for_best_model"]
    if values["preference.label_smoothing"] and values["preference.loss_type"] != "robust":
        yield "preference.label_smoothing", "is only used if preference.loss_type is robust"
    if method not in COMPARING_METHODS:
        if best.startswith("reward_"):
            words = f"cannot be {best}, which is only measured if training.method is dpo or kto"
            yield "evaluation.metric_for_best_model", words
        return
    is_pairs = method == "dpo"
    if values["training.packing"]:
        rows = "pairs" if is_pairs else "good and bad answers"
        yield "training.packing", f"must be off if training.method is {method}: {rows} are not packed"
    if values["training.label_smoothing_factor"]:
        instead = "dpo has preference.label_smoothing" if is_pairs else "kto has no label smoothing"
        yield "training.label_smoothing_factor", f"requires training.method sft; {instead}"
    if values["training.neftune_noise_alpha"]:
        yield "training.neftune_noise_alpha", "requires training.method sft: noise would disturb the comparison"
    if values["data.train_on"] == "all":
        yield "data.train_on", f"cannot be all if training.method is {method}, which compares answers"
    if (start := values["lora.init_lora_weights"]) in NEED_FULL_WEIGHTS:
        words = f"cannot be {start} if training.method is {method}, which compares with the unchanged base"
        yield "lora.init_lora_weights", words
    if values["lora.bias"] != "none":
        yield "lora.bias", f"must be none if training.method is {method}, which compares with the base's own biases"
    if values["evaluation.labels"]:
        yield "evaluation.labels", f"requires training.method sft; {method} measures which answer is preferred"
    if method == "kto":
        yield from _kto(values)


def _kto(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What KTO needs beyond DPO. Its KL term is estimated by giving each prompt of a batch the answer of another one,
    so that trl refuses a batch of one row too."""
    for path in ("training.per_device_train_batch_size", "evaluation.per_device_eval_batch_size"):
        if values[path] < 2:
            yield path, "must be at least 2 if training.method is kto, which estimates KL within a batch"
    if values["preference.loss_type"] != "sigmoid":
        yield "preference.loss_type", "requires training.method dpo; kto has a loss of its own"
    if values["preference.label_smoothing"]:
        yield "preference.label_smoothing", "requires training.method dpo; kto has a loss of its own"
