"""The schema: every setting once, with type, bounds, default, title and description.

The form, the command-line flags, the check of a YAML file and the documentation are made from these models. Names are
those of transformers, peft and trl. Nothing else holds a default or a bound.
"""

from typing import Any, Literal

import yaml
from pydantic import field_validator

from lora_studio.config import fields
from lora_studio.config.fields import MAX_SEED, Section, SettingValues, setting


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


class Model(Section):
    """The base model and how it is loaded."""

    name: str = setting(
        "demo",
        "Base model",
        "The built-in `demo`, a folder on this machine, or a Hugging Face id such as Qwen/Qwen3-0.6B.",
        basic=True,
        min_length=1,
    )
    revision: str | None = setting(
        None, "Revision", "Branch, tag or commit of a Hub model; empty means its main branch."
    )
    adapter_name_or_path: str | None = setting(
        None,
        "Continue from adapter",
        "A run, RUN/checkpoint-N or an adapter's folder to train further, with its own rank and modules; empty begins "
        "a fresh adapter.",
    )
    quantization: Literal["none", "8bit", "4bit"] = setting(
        "none",
        "Quantization",
        "4bit (QLoRA) needs about a quarter of the memory for the base's weights, 8bit about half.",
        basic=True,
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = setting(
        "auto", "Precision", "auto takes bfloat16 where the device has it, else float16, else (CPU) float32."
    )
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = setting(
        "auto", "Attention", "auto takes FlashAttention 2 where it is installed, else PyTorch's own (sdpa)."
    )
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = setting(
        "nf4", "4-bit numbers", "nf4 is made for weights and loses less than fp4; only with 4bit."
    )
    bnb_4bit_use_double_quant: bool = setting(
        True,
        "Double quantization",
        "Quantizes the 4-bit constants too: another 0.4 bits a weight saved; only with 4bit.",
    )
    bnb_4bit_compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = setting(
        "auto", "4-bit computing", "Numbers that 4-bit weights are multiplied in; auto is the precision above."
    )


class Data(Section):
    """What is trained on and how a row becomes tokens."""

    train_file: str = setting(
        "pirate",
        "Training data",
        "A file (JSON, JSONL, CSV, Parquet, text) or the name of a data set that comes with the studio.",
        basic=True,
        min_length=1,
    )
    validation_file: str | None = setting(
        None,
        "Validation data",
        "A second file to measure on; empty means that a share of the training data is kept back.",
    )
    validation_fraction: float = setting(
        0.1,
        "Validation share",
        "Share of the rows kept back to measure on when there is no validation file.",
        ge=0,
        le=0.9,
    )
    split_seed: int = setting(42, "Split seed", "The same seed keeps the same rows back.", ge=0, le=MAX_SEED)
    max_samples: int | None = setting(None, "Most rows", "Use at most this many training rows; empty means all.", ge=1)
    max_eval_samples: int | None = setting(
        None, "Most validation rows", "Measure on at most this many rows; empty means all.", ge=1
    )
    prompt_style: Literal["auto", "chat", "chatml", "alpaca", "plain"] = setting(
        "auto", "Prompt style", "auto is the model's own chat template, or ChatML for a model that has none."
    )
    system_prompt: str | None = setting(
        None, "System prompt", "Put in front of every row that brings none of its own.", max_length=20_000
    )
    enable_thinking: bool | None = setting(
        None, "Thinking", "For templates with a thinking switch: on, off, or the template's own default."
    )
    max_length: int = setting(
        1024,
        "Longest row",
        "Tokens a row may have; the data tab shows what a value would cut.",
        basic=True,
        ge=8,
        le=1_048_576,
    )
    truncation: Literal["keep_answer", "keep_start", "drop"] = setting(
        "keep_answer",
        "Rows that are too long",
        "Cut the prompt's start, cut the row's end, or leave the row out.",
        names={"keep_answer": "keep the answer", "keep_start": "keep the start", "drop": "leave the row out"},
    )
    bad_rows: Literal["skip", "stop"] = setting(
        "skip",
        "Bad rows",
        "Rows that can't be used: leave them out and count them, or stop before training starts.",
        names={"skip": "leave them out", "stop": "stop before training"},
    )
    train_on: Literal["assistant", "last_turn", "all"] = setting(
        "assistant",
        "Trained part",
        "Every answer, only the last answer, or every token of the row.",
        names={"assistant": "every answer", "last_turn": "the last answer", "all": "every token"},
    )
    encoding: str | None = setting(
        None,
        "Encoding",
        "Of a text file that is not UTF-8, for instance gb18030 or windows-1250; empty finds it by its letters.",
        max_length=40,
    )
    mapping: SettingValues | None = setting(
        None, "Reading", "Which column is what, where the recognised reading is not the right one; empty recognises it."
    )

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        """A name of an encoding that Python knows, or None."""
        if not value or not value.strip():
            return None
        try:
            "a".encode(value.strip())
        except (LookupError, UnicodeError, ValueError):
            raise ValueError("must be a known encoding, such as windows-1252, gb18030 or shift_jis") from None
        return value.strip()

    @field_validator("mapping", mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        """A mapping typed as text, as form and flags give it."""
        if not isinstance(value, str):
            return value
        try:
            return fields.load(value)
        except yaml.YAMLError:
            return value


class Evaluation(Section):
    """Measuring on the validation rows while the run goes on."""

    eval_strategy: Literal["epoch", "steps", "no"] = setting(
        "epoch",
        "Evaluate",
        "After each epoch, every n steps, or never.",
        names={"epoch": "after each epoch", "steps": "every n steps", "no": "never"},
    )
    eval_steps: int = setting(500, "Steps between evaluations", "Only with evaluation by steps.", ge=1)
    per_device_eval_batch_size: int = setting(
        8, "Rows at once when evaluating", "Needs less memory than training.", ge=1, le=4096
    )
    labels: str = setting(
        "",
        "Labels",
        "For answers that are one of a few, such as Yes, No: accuracy and F1 are measured; empty measures neither.",
        max_length=2000,
    )
    metric_for_best_model: Literal["loss", "accuracy", "f1", "reward_accuracy", "reward_margin"] = setting(
        "loss",
        "Best by",
        "What decides which checkpoint is best and when to end early; accuracy and f1 need labels, rewards dpo.",
        names={"f1": "F1", "reward_accuracy": "reward accuracy", "reward_margin": "reward margin"},
    )
    load_best_model_at_end: bool = setting(
        False, "Keep the best", "The finished adapter is the best checkpoint by the measure above, not the last one."
    )
    early_stopping_patience: int = setting(
        0, "Patience", "End the run after this many evaluations in a row without a gain; 0 never does.", ge=0, le=1000
    )
    early_stopping_threshold: float = setting(
        0.0, "Least gain", "How much better than the best so far an evaluation must be to count as a gain.", ge=0
    )

    gen_eval_samples: int = setting(
        0,
        "Answers to read",
        "Validation questions that are answered after each evaluation, shown on the runs tab; 0 asks none.",
        ge=0,
        le=256,
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _label_text(cls, value: Any) -> Any:
        """A list of labels as text; YAML reads the words Yes and No in a list as true and false."""
        if not isinstance(value, list):
            return value
        if any(isinstance(item, bool) for item in value):
            raise ValueError('YAML reads Yes and No in a list as true and false: write "Yes, No" as one text')
        return ", ".join(str(item) for item in value)

    @field_validator("labels")
    @classmethod
    def _several(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",")] if value.strip() else []
        if names and (len(names) < 2 or "" in names or len({name.casefold() for name in names}) < len(names)):
            raise ValueError("must be at least two different labels separated by commas, such as Yes, No")
        return ", ".join(names)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels one by one."""
        return tuple(self.labels.split(", ")) if self.labels else ()


class Tracking(Section):
    """What is written down while training."""

    logging_steps: int = setting(
        0, "Steps between points", "0 adapts to the run's length, so that every run draws at least 20 points.", ge=0
    )
    report_to: Literal["tensorboard", "trackio", "wandb"] = setting(
        "tensorboard",
        "Report to",
        "TensorBoard files are always written; trackio and wandb get the numbers too, where installed.",
    )


class Generation(Section):
    """How answers are made in the chat and in evaluation."""

    max_new_tokens: int = setting(256, "Longest answer", "Tokens an answer may have.", ge=1, le=131_072)
    temperature: float = setting(
        0.0, "Temperature", "0 always takes the likeliest token; higher is more varied.", ge=0, le=5
    )
    top_p: float = setting(1.0, "Top-p", "Sample from the likeliest tokens that together have this share.", gt=0, le=1)
    top_k: int = setting(0, "Top-k", "Sample from this many of the likeliest tokens; 0 means all.", ge=0)
    min_p: float = setting(
        0.0, "Min-p", "Sample from tokens at least this share as likely as the likeliest; 0 means all.", ge=0, le=1
    )
    repetition_penalty: float = setting(1.0, "Repetition penalty", "Above 1 makes repeating less likely.", ge=0.5, le=3)
    seed: int = setting(42, "Seed", "The same seed gives the same sampled answer.", ge=0, le=MAX_SEED)
    stop_strings: str = setting("", "Stop texts", "An answer ends before any of these texts, one a line.")
    enable_thinking: bool | None = setting(
        None, "Thinking", "For templates with a thinking switch: on, off, or as the adapter was trained."
    )

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The stop texts one by one."""
        return tuple(line for line in self.stop_strings.splitlines() if line)


class Config(Section):
    """A whole run. Every value has a default: an empty mapping is a config."""

    title: str = setting("", "Name", "What you want to call this run.", basic=True, max_length=120)
    model: Model = Model()
    data: Data = Data()
    lora: Lora = Lora()
    training: Training = Training()
    preference: Preference = Preference()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    generation: Generation = Generation()


def files_of(config: Config) -> dict[str, str | None]:
    """What a config names of files, folders and the Hub, by the names that requests to a child process use."""
    return {
        "train_file": config.data.train_file,
        "validation_file": config.data.validation_file,
        "model": config.model.name,
        "revision": config.model.revision,
        "adapter": config.model.adapter_name_or_path,
    }
