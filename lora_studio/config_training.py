"""The sections of the schema that say how the model learns: the adapter and the schedule of the run.

What is trained on and measured, and the schema as a whole, stand in config.py.
"""

from typing import Any, Literal

from pydantic import field_validator

from lora_studio.schema import MAX_SEED, Section, setting


class Lora(Section):
    """The adapter (Hu et al. 2021, arXiv:2106.09685)."""

    r: int = setting(
        16, "LoRA rank (r)", "Size of the adapter: more learns more and needs more data.", basic=True, ge=1, le=1024
    )
    lora_alpha: int = setting(
        32,
        "LoRA alpha",
        "Strength of the adapter; its output is scaled by alpha / r.",
        group="Strength and place",
        ge=1,
        le=4096,
    )
    lora_dropout: float = setting(
        0.05,
        "LoRA dropout",
        "Share of the adapter's input left out at random.",
        group="Strength and place",
        ge=0,
        lt=1,
    )
    target_modules: str = setting(
        "all-linear",
        "Target modules",
        "all-linear, attention, q_v (queries and values), names such as q_proj, v_proj, or a regular expression"
        " that whole module paths match.",
        group="Strength and place",
        min_length=1,
    )
    modules_to_save: str | None = setting(
        None,
        "Modules trained whole",
        "Names of modules that are trained and saved in full beside the adapter, such as lm_head; mostly empty.",
        group="Strength and place",
    )
    bias: Literal["none", "all", "lora_only"] = setting(
        "none",
        "Bias",
        "Which bias terms are trained as well.",
        group="Variants",
        names={"lora_only": "of adapted modules"},
    )
    use_rslora: bool = setting(
        False, "Rank-stabilized", "Scale by alpha / sqrt(r), which keeps high ranks stable.", group="Variants"
    )
    use_dora: bool = setting(
        False, "DoRA", "Train direction and size apart: often better at low rank, and slower.", group="Variants"
    )
    init_lora_weights: Literal[
        "default", "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora", "eva", "loftq"
    ] = setting(
        "default",
        "First weights",
        "default changes nothing at first; pissa and olora begin with the base's strongest directions, eva with those"
        " of your data, loftq with what 4bit lost.",
        group="Variants",
    )
    loraplus_lr_ratio: float | None = setting(
        None,
        "LoRA+ ratio",
        "How much faster the adapter's B matrices learn than its A matrices, 16 for instance; empty treats both alike.",
        group="Variants",
        ge=1,
        le=1000,
    )

    @field_validator("target_modules", "modules_to_save", mode="before")
    @classmethod
    def _join(cls, value: Any) -> Any:
        return ", ".join(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value


class Training(Section):
    """The schedule of the run."""

    method: Literal["sft", "dpo"] = setting(
        "sft", "Method", "sft learns from answers; dpo from pairs of a better and a worse answer, without dropout."
    )
    num_train_epochs: float = setting(3.0, "Epochs", "How many times every row is seen.", basic=True, gt=0, le=1000)
    max_steps: int = setting(
        -1,
        "Most steps",
        "End after this many steps, whatever the epochs say; -1 means no limit.",
        group="Length and memory",
        ge=-1,
    )
    learning_rate: float = setting(
        2e-4,
        "Learning rate",
        "Size of a step; 1e-4 to 5e-4 is usual for LoRA, more for tiny models.",
        basic=True,
        gt=0,
        le=1,
    )
    per_device_train_batch_size: int = setting(
        4, "Rows at once", "Rows that are in memory together on one device.", basic=True, ge=1, le=4096
    )
    gradient_accumulation_steps: int = setting(
        4,
        "Accumulation",
        "Batches added up to one step: effective batch = rows at once x this.",
        basic=True,
        ge=1,
        le=4096,
    )
    lr_scheduler_type: Literal[
        "cosine",
        "linear",
        "constant",
        "constant_with_warmup",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "warmup_stable_decay",
        "inverse_sqrt",
    ] = setting("cosine", "Schedule", "How the learning rate falls after the warm-up.", group="Schedule")
    warmup_ratio: float = setting(
        0.03,
        "Warm-up share",
        "Share of the steps in which the learning rate rises; constant has no warm-up.",
        group="Schedule",
        ge=0,
        le=1,
    )
    warmup_steps: int | None = setting(
        None, "Warm-up steps", "The same as a number of steps; empty takes the share.", group="Schedule", ge=0
    )
    num_cycles: int = setting(
        1, "Cycles", "How often cosine_with_restarts falls from the full rate to 0.", group="Schedule", ge=1, le=1000
    )
    decay_ratio: float = setting(
        0.1,
        "Decay share",
        "Share of the steps, at the end, in which warmup_stable_decay falls; before it the rate is full.",
        group="Schedule",
        gt=0,
        le=1,
    )
    min_lr_rate: float = setting(
        0.1, "Lowest rate", "Where cosine_with_min_lr ends, as a share of the full rate.", group="Schedule", ge=0, lt=1
    )
    optim: Literal[
        "adamw_torch",
        "adamw_torch_fused",
        "adamw_8bit",
        "paged_adamw_32bit",
        "paged_adamw_8bit",
        "lion_32bit",
        "lion_8bit",
        "paged_lion_32bit",
        "paged_lion_8bit",
        "ademamix",
        "ademamix_8bit",
        "paged_ademamix_8bit",
        "adafactor",
        "adagrad",
        "rmsprop",
        "sgd",
    ] = setting(
        "adamw_torch",
        "Optimizer",
        "The 8-bit ones need a quarter of the memory for their state; the paged ones move it out of a full GPU.",
        group="Optimizer",
    )
    adam_beta1: float = setting(
        0.9, "Beta 1", "How long Adam and Lion remember the direction of a gradient.", group="Optimizer", ge=0, lt=1
    )
    adam_beta2: float = setting(
        0.999, "Beta 2", "How long Adam remembers the size of a gradient.", group="Optimizer", ge=0, lt=1
    )
    adam_epsilon: float = setting(
        1e-8,
        "Epsilon",
        "Keeps Adam from dividing by 0; raise it where a run is unstable.",
        group="Optimizer",
        gt=0,
        le=1,
    )
    weight_decay: float = setting(
        0.0, "Weight decay", "Pull of the adapter's weights towards zero.", group="Optimizer", ge=0, le=1
    )
    max_grad_norm: float = setting(
        1.0, "Gradient clipping", "Longer gradients are shortened to this length.", group="Optimizer", gt=0
    )
    neftune_noise_alpha: float | None = setting(
        None,
        "NEFTune noise",
        "Random noise on the input, 5 for instance, against learning answers by heart; empty means none.",
        group="Against overfitting",
        gt=0,
        le=1000,
    )
    label_smoothing_factor: float = setting(
        0.0,
        "Label smoothing",
        "Share of certainty taken from the right token and spread over all; needs memory for every token's scores.",
        group="Against overfitting",
        ge=0,
        lt=1,
    )
    packing: bool = setting(
        False,
        "Packing",
        "Put several short rows into one sequence of the longest length; rows do not see each other.",
        group="Length and memory",
    )
    train_sampling_strategy: Literal["random", "group_by_length"] = setting(
        "group_by_length",
        "Order of rows",
        "Rows of like length together (group_by_length) waste less padding than a random order.",
        group="Length and memory",
        names={"group_by_length": "by length"},
    )
    gradient_checkpointing: bool | Literal["auto"] = setting(
        "auto",
        "Gradient checkpointing",
        "Less memory for more time; auto is on with a GPU and off on the CPU.",
        group="Length and memory",
    )
    seed: int = setting(
        42, "Seed", "The same seed, data and machine give the same run.", group="Length and memory", ge=0, le=MAX_SEED
    )
    save_strategy: Literal["steps", "epoch", "no"] = setting(
        "epoch",
        "Save checkpoints",
        "After each epoch, every n steps, or never.",
        group="Checkpoints",
        names={"epoch": "after each epoch", "steps": "every n steps", "no": "never"},
    )
    save_steps: int = setting(500, "Steps between checkpoints", "Only with saving by steps.", group="Checkpoints", ge=1)
    save_total_limit: int = setting(
        2, "Checkpoints kept", "Older ones are deleted; the best one always stays.", group="Checkpoints", ge=1, le=100
    )

    @property
    def goal(self) -> str:
        """What the data are read for (see `data.dataset.prepare`)."""
        return "preference" if self.method == "dpo" else "answers"


class Preference(Section):
    """Learning by comparison (DPO, Rafailov et al. 2023, arXiv:2305.18290), against the base without its adapter."""

    beta: float = setting(
        0.1, "Beta", "How dearly leaving the base is paid for: more stays closer to it.", gt=0, le=100
    )
    loss_type: Literal["sigmoid", "hinge", "ipo", "robust"] = setting(
        "sigmoid", "Loss", "sigmoid is DPO's own; hinge and ipo stop at a margin; robust allows for swapped pairs."
    )
    label_smoothing: float = setting(
        0.0, "Swapped pairs", "Share of pairs that may be the wrong way round; for the loss robust alone.", ge=0, lt=0.5
    )
