"""The schema: every setting once, with type, bounds, default, title and description.

The form, the flags of the command line, the check of a YAML file and the table in the documentation are made from these
models, which `settings.py` describes one by one. Names are those of transformers, peft and trl. Nothing else holds a
default or a bound.
"""

from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator


def _setting(default: Any, title: str, description: str, *, basic: bool = False, **bounds: Any) -> Any:
    """A field of the schema; `basic` ones stand in sight on the form, the others are folded."""
    return Field(default=default, title=title, description=description, json_schema_extra={"basic": basic}, **bounds)


class Section(BaseModel):
    """What all sections share: unknown names are errors, numbers are finite, values never change after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Model(Section):
    """The base model and how it is loaded."""

    name: str = _setting(
        "demo",
        "Base model",
        "The built-in `demo`, a folder on this machine, or a Hugging Face id such as Qwen/Qwen3-0.6B.",
        basic=True,
        min_length=1,
    )
    revision: str | None = _setting(
        None, "Revision", "Branch, tag or commit of a Hub model; empty means its main branch."
    )
    quantization: Literal["none", "8bit", "4bit"] = _setting(
        "none",
        "Quantization",
        "4bit (QLoRA, NF4 with double quantization) needs about a quarter of the memory for the base's weights.",
        basic=True,
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = _setting(
        "auto", "Precision", "auto takes bfloat16 where the device has it, else float16, else (CPU) float32."
    )
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = _setting(
        "auto", "Attention", "auto takes FlashAttention 2 where it is installed, else PyTorch's own (sdpa)."
    )


class Data(Section):
    """What is trained on and how a row becomes tokens."""

    train_file: str = _setting(
        "pirate",
        "Training data",
        "A file (JSON, JSONL, CSV, Parquet, text) or the name of a data set that comes with the studio.",
        basic=True,
        min_length=1,
    )
    validation_file: str | None = _setting(
        None,
        "Validation data",
        "A second file to measure on; empty means that a share of the training data is kept back.",
    )
    validation_fraction: float = _setting(
        0.1,
        "Validation share",
        "Share of the rows kept back to measure on when there is no validation file.",
        ge=0,
        le=0.9,
    )
    split_seed: int = _setting(42, "Split seed", "The same seed keeps the same rows back.", ge=0)
    max_samples: int | None = _setting(None, "Most rows", "Use at most this many training rows; empty means all.", ge=1)
    max_eval_samples: int | None = _setting(
        None, "Most validation rows", "Measure on at most this many rows; empty means all.", ge=1
    )
    prompt_style: Literal["auto", "chat", "chatml", "alpaca", "plain"] = _setting(
        "auto", "Prompt style", "auto is the model's own chat template, or ChatML for a model that has none."
    )
    system_prompt: str | None = _setting(
        None, "System prompt", "Put in front of every row that brings none of its own.", max_length=20_000
    )
    enable_thinking: bool | None = _setting(
        None, "Thinking", "For templates with a thinking switch: on, off, or the template's own default."
    )
    max_length: int = _setting(
        1024,
        "Longest row",
        "Tokens a row may have; the data tab shows what a value would cut.",
        basic=True,
        ge=8,
        le=1_048_576,
    )
    truncation: Literal["keep_answer", "keep_start", "drop"] = _setting(
        "keep_answer", "Rows that are too long", "Cut the prompt's start, cut the row's end, or leave the row out."
    )
    train_on: Literal["assistant", "last_turn", "all"] = _setting(
        "assistant", "Trained part", "Every answer, only the last answer, or every token of the row."
    )
    mapping: dict[str, Any] | None = _setting(
        None, "Reading", "Which column is what, where the recognised reading is not the right one; empty recognises it."
    )

    @field_validator("mapping", mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        """A mapping typed as text, as form and flags give it."""
        if not isinstance(value, str):
            return value
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError:
            return value


class Lora(Section):
    """The adapter (Hu et al. 2021, arXiv:2106.09685)."""

    r: int = _setting(
        16, "LoRA rank (r)", "Size of the adapter: more learns more and needs more data.", basic=True, ge=1, le=1024
    )
    lora_alpha: int = _setting(
        32, "LoRA alpha", "Strength of the adapter; its output is scaled by alpha / r.", ge=1, le=4096
    )
    lora_dropout: float = _setting(0.05, "LoRA dropout", "Share of the adapter's input left out at random.", ge=0, lt=1)
    target_modules: str = _setting(
        "all-linear",
        "Target modules",
        "all-linear, attention, or names separated by commas, such as q_proj, v_proj.",
        min_length=1,
    )
    bias: Literal["none", "all", "lora_only"] = _setting("none", "Bias", "Which bias terms are trained as well.")
    use_rslora: bool = _setting(False, "Rank-stabilized", "Scale by alpha / sqrt(r), which keeps high ranks stable.")
    use_dora: bool = _setting(False, "DoRA", "Train direction and size apart: often better at low rank, and slower.")

    @field_validator("target_modules", mode="before")
    @classmethod
    def _join(cls, value: Any) -> Any:
        return ", ".join(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value


class Training(Section):
    """The schedule of the run."""

    num_train_epochs: float = _setting(3.0, "Epochs", "How many times every row is seen.", basic=True, gt=0, le=1000)
    max_steps: int = _setting(
        -1, "Most steps", "End after this many steps, whatever the epochs say; -1 means no limit.", ge=-1
    )
    learning_rate: float = _setting(
        2e-4,
        "Learning rate",
        "Size of a step; 1e-4 to 5e-4 is usual for LoRA, more for tiny models.",
        basic=True,
        gt=0,
        le=1,
    )
    per_device_train_batch_size: int = _setting(
        4, "Rows at once", "Rows that are in memory together on one device.", basic=True, ge=1, le=4096
    )
    gradient_accumulation_steps: int = _setting(
        4,
        "Accumulation",
        "Batches added up to one step: effective batch = rows at once x this.",
        basic=True,
        ge=1,
        le=4096,
    )
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = _setting(
        "cosine", "Schedule", "How the learning rate falls after the warm-up."
    )
    warmup_ratio: float = _setting(
        0.03, "Warm-up share", "Share of the steps in which the learning rate rises.", ge=0, le=1
    )
    weight_decay: float = _setting(0.0, "Weight decay", "Pull of the adapter's weights towards zero.", ge=0, le=1)
    max_grad_norm: float = _setting(1.0, "Gradient clipping", "Longer gradients are shortened to this length.", gt=0)
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd"] = _setting(
        "adamw_torch", "Optimizer", "The 8-bit ones need less memory for their state and a CUDA GPU."
    )
    packing: bool = _setting(
        False, "Packing", "Put several short rows into one sequence of the longest length; rows do not see each other."
    )
    train_sampling_strategy: Literal["random", "group_by_length"] = _setting(
        "group_by_length",
        "Order of rows",
        "group_by_length puts rows of like length together, which wastes less padding.",
    )
    gradient_checkpointing: bool | Literal["auto"] = _setting(
        "auto", "Gradient checkpointing", "Less memory for more time; auto is on with a GPU and off on the CPU."
    )
    seed: int = _setting(42, "Seed", "The same seed, data and machine give the same run.", ge=0)
    save_strategy: Literal["steps", "epoch", "no"] = _setting(
        "epoch", "Save checkpoints", "After each epoch, every n steps, or never."
    )
    save_steps: int = _setting(500, "Steps between checkpoints", "Only with saving by steps.", ge=1)
    save_total_limit: int = _setting(
        2, "Checkpoints kept", "Older ones are deleted; the best one always stays.", ge=1, le=100
    )


class Evaluation(Section):
    """Measuring on the validation rows while the run goes on."""

    eval_strategy: Literal["epoch", "steps", "no"] = _setting(
        "epoch", "Evaluate", "After each epoch, every n steps, or never."
    )
    eval_steps: int = _setting(500, "Steps between evaluations", "Only with evaluation by steps.", ge=1)
    per_device_eval_batch_size: int = _setting(
        8, "Rows at once when evaluating", "Needs less memory than training.", ge=1, le=4096
    )
    labels: str = _setting(
        "",
        "Labels",
        "For answers that are one of a few, such as Yes, No: accuracy and F1 are measured; empty measures neither.",
        max_length=2000,
    )
    metric_for_best_model: Literal["loss", "accuracy", "f1"] = _setting(
        "loss", "Best by", "What decides which checkpoint is best and when to end early; accuracy and f1 need labels."
    )
    load_best_model_at_end: bool = _setting(
        False, "Keep the best", "The finished adapter is the best checkpoint by the measure above, not the last one."
    )
    early_stopping_patience: int = _setting(
        0, "Patience", "End the run after this many evaluations in a row without a gain; 0 never does.", ge=0, le=1000
    )
    early_stopping_threshold: float = _setting(
        0.0, "Least gain", "How much better than the best so far an evaluation must be to count as a gain.", ge=0
    )

    gen_eval_samples: int = _setting(
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

    logging_steps: int = _setting(
        0, "Steps between points", "0 adapts to the run's length, so that every run draws at least 20 points.", ge=0
    )


class Generation(Section):
    """How answers are made in the chat and in evaluation."""

    max_new_tokens: int = _setting(256, "Longest answer", "Tokens an answer may have.", ge=1, le=131_072)
    temperature: float = _setting(
        0.0, "Temperature", "0 always takes the likeliest token; higher is more varied.", ge=0, le=5
    )
    top_p: float = _setting(1.0, "Top-p", "Sample from the likeliest tokens that together have this share.", gt=0, le=1)
    top_k: int = _setting(0, "Top-k", "Sample from this many of the likeliest tokens; 0 means all.", ge=0)
    repetition_penalty: float = _setting(
        1.0, "Repetition penalty", "Above 1 makes repeating less likely.", ge=0.5, le=3
    )
    seed: int = _setting(42, "Seed", "The same seed gives the same sampled answer.", ge=0)


class Config(Section):
    """A whole run. Every value has a default: an empty mapping is a config."""

    title: str = _setting("", "Name", "What you want to call this run.", basic=True, max_length=120)
    model: Model = Model()
    data: Data = Data()
    lora: Lora = Lora()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    generation: Generation = Generation()
