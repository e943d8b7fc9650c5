"""The schema: every setting once, with type, bounds, default, title and description.

The form, the command-line flags, the check of a YAML file and the documentation are made from these models. Names are
those of transformers, peft and trl. Nothing else holds a default or a bound.
"""

from collections.abc import Mapping
from typing import Any, Literal

import yaml
from pydantic import field_validator, model_validator

from lora_studio.config import fields
from lora_studio.config.compute import Compute
from lora_studio.config.fields import MAX_SEED, Section, SettingValues, setting
from lora_studio.config.training import COMPARING_METHODS, LEARNING_RATES, Preference, Speed, default_rate


class Lora(Section):
    """The adapter (Hu et al. 2021, arXiv:2106.09685)."""

    r: int = setting(
        16,
        "LoRA rank (r)",
        "Size of the adapter. Higher ranks learn more and need more data.",
        basic=True,
        ge=1,
        le=1024,
    )
    lora_alpha: int = setting(
        32,
        "LoRA alpha",
        "The adapter's output is scaled by alpha / r.",
        group="Scaling and modules",
        ge=1,
        le=4096,
    )
    lora_dropout: float = setting(
        0.0,
        "LoRA dropout",
        "Fraction of the adapter's input that is dropped at random.",
        group="Scaling and modules",
        ge=0,
        lt=1,
    )
    target_modules: str = setting(
        "all-linear",
        "Target modules",
        "all-linear, attention, q_v, module names, or a regular expression.",
        details="q_v adapts q_proj and v_proj. A regular expression must match whole module paths.",
        group="Scaling and modules",
        min_length=1,
    )
    modules_to_save: str | None = setting(
        None,
        "Modules to save (trained in full)",
        "Trained and saved in full with the adapter, e.g. lm_head.",
        group="Scaling and modules",
    )
    bias: Literal["none", "all", "lora_only"] = setting(
        "none",
        "Bias",
        "Bias terms to train. lora_only: those of the target modules.",
        group="Variants",
    )
    use_rslora: bool = setting(
        False, "rsLoRA", "Scales by alpha / sqrt(r), which keeps high ranks stable.", group="Variants"
    )
    use_dora: bool = setting(
        False, "DoRA", "Trains magnitude and direction separately. Slower, often better at low ranks.", group="Variants"
    )
    init_lora_weights: Literal[
        "default", "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora", "eva", "loftq"
    ] = setting(
        "default",
        "LoRA initialization",
        "default starts with an adapter that changes nothing.",
        details="pissa and olora start from the base's principal directions, eva from those of your data, loftq from"
        " the 4-bit quantization error.",
        group="Variants",
    )
    loraplus_lr_ratio: float | None = setting(
        None,
        "LoRA+ learning-rate ratio",
        "Learning rate of B relative to A, e.g. 16. Empty: equal.",
        group="Variants",
        ge=1,
        le=1000,
    )

    @field_validator("target_modules", "modules_to_save", mode="before")
    @classmethod
    def _join(cls, value: Any) -> Any:
        return ", ".join(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value


class Learning(Section):
    """Method, duration, schedule, optimizer and checkpoints of a run."""

    method: Literal["sft", "dpo", "kto"] = setting(
        "sft",
        "Method",
        "SFT learns answers, DPO from chosen and rejected, KTO from labelled ones.",
        details="kto takes rows labelled good or bad, or pairs. dpo and kto run without dropout.",
        basic=True,
        names={"sft": "SFT (answers)", "dpo": "DPO (pairs)", "kto": "KTO (good/bad labels)"},
    )
    num_train_epochs: float = setting(3.0, "Epochs", "Passes over the training data.", basic=True, gt=0, le=1000)
    max_steps: int = setting(
        -1,
        "Max steps",
        "Stops after this many steps, regardless of epochs. -1: no limit.",
        group="Duration and memory",
        ge=-1,
    )
    learning_rate: float = setting(
        LEARNING_RATES["sft"],
        "Learning rate",
        "Typical: SFT 1e-4 to 1e-3, DPO 5e-6, KTO 1e-6.",
        details="Tiny models need more.",
        basic=True,
        by_method=LEARNING_RATES,
        gt=0,
        le=1,
    )
    per_device_train_batch_size: int = setting(
        4, "Batch size per device", "Rows processed together on one device.", basic=True, ge=1, le=4096
    )
    gradient_accumulation_steps: int = setting(
        4,
        "Gradient accumulation steps",
        "Batches per optimizer step. Effective batch size = batch size × this.",
        group="Duration and memory",
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
    ] = setting("cosine", "LR scheduler", "How the learning rate changes after warmup.", group="Schedule")
    warmup_ratio: float = setting(
        0.03,
        "Warmup ratio",
        "Fraction of the steps used for warmup.",
        details="The constant scheduler has no warmup.",
        group="Schedule",
        ge=0,
        le=1,
    )
    warmup_steps: int | None = setting(
        None, "Warmup steps", "Overrides the warmup ratio. Empty: the ratio is used.", group="Schedule", ge=0
    )
    num_cycles: int = setting(
        1, "LR cycles", "Number of cycles of cosine_with_restarts.", group="Schedule", ge=1, le=1000
    )
    decay_ratio: float = setting(
        0.1,
        "Decay ratio",
        "Fraction of the steps for the final decay of warmup_stable_decay.",
        group="Schedule",
        gt=0,
        le=1,
    )
    min_lr_rate: float = setting(
        0.1,
        "Min LR ratio",
        "Final learning rate of cosine_with_min_lr, relative to the peak.",
        group="Schedule",
        ge=0,
        lt=1,
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
        "adamw_torch_fused",  # transformers' default too; its step takes a third of adamw_torch's (docs/speed.md)
        "Optimizer",
        "8-bit variants need a quarter of the memory for optimizer state.",
        details="Paged variants move optimizer state to the CPU when the GPU is full.",
        group="Optimizer",
    )
    adam_beta1: float = setting(
        0.9, "Adam beta1", "Decay rate of the averaged gradients (Adam and Lion).", group="Optimizer", ge=0, lt=1
    )
    adam_beta2: float = setting(
        0.999, "Adam beta2", "Decay rate of the averaged squared gradients (Adam).", group="Optimizer", ge=0, lt=1
    )
    adam_epsilon: float = setting(
        1e-8,
        "Adam epsilon",
        "Avoids division by zero. Raise it if training is unstable.",
        group="Optimizer",
        gt=0,
        le=1,
    )
    weight_decay: float = setting(
        0.0, "Weight decay", "Pulls the adapter's weights towards zero.", group="Optimizer", ge=0, le=1
    )
    max_grad_norm: float = setting(
        1.0, "Max grad norm", "Gradients above this norm are clipped.", group="Optimizer", gt=0
    )
    neftune_noise_alpha: float | None = setting(
        None,
        "NEFTune noise alpha",
        "Adds noise to the embeddings, e.g. 5. Empty: no noise.",
        group="Regularization",
        gt=0,
        le=1000,
    )
    label_smoothing_factor: float = setting(
        0.0,
        "Label smoothing",
        "Share of the target probability spread over all tokens.",
        details="Needs memory for the logits of every token.",
        group="Regularization",
        ge=0,
        lt=1,
    )
    seed: int = setting(
        42, "Seed", "The same seed, data and machine give the same run.", group="Duration and memory", ge=0, le=MAX_SEED
    )
    save_strategy: Literal["steps", "epoch", "no"] = setting(
        "epoch",
        "Save strategy",
        "When to save a checkpoint.",
        group="Checkpoints",
    )
    save_steps: int = setting(
        500, "Save steps", "Steps between checkpoints if the save strategy is steps.", group="Checkpoints", ge=1
    )
    save_total_limit: int = setting(
        2,
        "Checkpoints to keep",
        "Older checkpoints are deleted. The best checkpoint is kept.",
        group="Checkpoints",
        ge=1,
        le=100,
    )

    @model_validator(mode="before")
    @classmethod
    def _rate_of_method(cls, values: Any) -> Any:
        """A learning rate that is not set is the default of the method."""
        if isinstance(values, Mapping) and "learning_rate" not in values:
            return {**values, "learning_rate": default_rate(values.get("method"))}
        return values

    @property
    def goal(self) -> str:
        """What the data are read for (see `data.formats.detect_format`)."""
        return {"dpo": "preference", "kto": "unpaired"}.get(self.method, "answers")

    @property
    def compares(self) -> bool:
        """Whether good answers are compared with bad ones, and both with the model that the run began with."""
        return self.method in COMPARING_METHODS


class Training(Speed, Learning):
    """How a run trains: what it learns by (`Learning`), then what only changes its speed and memory (`Speed`)."""


class Model(Section):
    """The base model and how it is loaded."""

    name: str = setting(
        "demo",
        "Base model",
        "demo, a folder on this machine, or a Hub id (Qwen/Qwen3-0.6B).",
        basic=True,
        min_length=1,
    )
    revision: str | None = setting(None, "Revision", "Branch, tag or commit on the Hub. Empty: main branch.")
    adapter_name_or_path: str | None = setting(
        None,
        "Start from adapter",
        "A run, RUN/checkpoint-N or adapter folder. Empty: a new adapter.",
        details="Training continues with the rank and target modules of that adapter.",
    )
    quantization: Literal["none", "8bit", "4bit"] = setting(
        "none",
        "Quantization",
        "Memory for base weights: 4bit (QLoRA) about a quarter, 8bit about half.",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = setting(
        "auto", "Precision", "auto: bfloat16 if supported, else float16; float32 on the CPU."
    )
    attn_implementation: Literal[
        "auto",
        "sdpa",
        "eager",
        "flash_attention_2",
        "flash_attention_3",
        "flex_attention",
        "kernels-community/flash-attn2",
        "kernels-community/vllm-flash-attn3",
    ] = setting(
        "auto",
        "Attention implementation",
        "auto: the best FlashAttention that is installed, else PyTorch SDPA.",
        details="Kernels of kernels-community are downloaded from the Hub, and run code from there.",
    )
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = setting(
        "nf4", "4-bit quant type", "nf4 is made for weights and loses less than fp4."
    )
    bnb_4bit_use_double_quant: bool = setting(
        True,
        "Double quantization",
        "Quantizes the 4-bit constants. Saves 0.4 bits per weight.",
    )
    bnb_4bit_compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = setting(
        "auto", "4-bit compute dtype", "auto: same as the precision of the model."
    )


class Data(Section):
    """The training data and how a row becomes tokens."""

    train_file: str = setting(
        "pirate",
        "Training data",
        "A file, a folder, a Hub dataset or a built-in dataset.",
        details="Files may be JSON, JSONL, CSV, Parquet or text. Write a Hub dataset as OWNER/NAME.",
        basic=True,
        min_length=1,
    )
    validation_file: str | None = setting(
        None,
        "Validation data",
        "A separate file. Empty: split off from the training data.",
    )
    validation_fraction: float = setting(
        0.1,
        "Validation split",
        "Fraction of the rows used for validation without a validation file.",
        ge=0,
        le=0.9,
    )
    split_seed: int = setting(42, "Split seed", "The same seed selects the same validation rows.", ge=0, le=MAX_SEED)
    max_samples: int | None = setting(
        None, "Max training rows", "Use at most this many training rows. Empty: all rows.", ge=1
    )
    max_eval_samples: int | None = setting(
        None, "Max validation rows", "Use at most this many validation rows. Empty: all rows.", ge=1
    )
    prompt_style: Literal["auto", "chat", "chatml", "alpaca", "plain"] = setting(
        "auto", "Prompt style", "auto: the model's chat template, or ChatML if it has none."
    )
    system_prompt: str | None = setting(
        None, "System prompt", "Added to rows that have no system prompt.", max_length=20_000
    )
    enable_thinking: bool | None = setting(None, "Thinking", "For chat templates with a thinking switch.")
    max_length: int = setting(
        1024,
        "Max length (tokens)",
        "Longer rows are truncated. The Data tab shows how many.",
        basic=True,
        ge=8,
        le=1_048_576,
    )
    truncation: Literal["keep_answer", "keep_start", "drop"] = setting(
        "keep_answer",
        "Truncation",
        "What happens to rows longer than the max length.",
        names={"keep_answer": "keep answer, cut prompt", "keep_start": "keep start, cut end", "drop": "drop row"},
    )
    bad_rows: Literal["skip", "stop"] = setting(
        "skip",
        "Invalid rows",
        "Skip and count invalid rows, or stop before training.",
    )
    train_on: Literal["assistant", "last_turn", "all"] = setting(
        "assistant",
        "Train on (loss mask)",
        "Tokens that count in the loss.",
        names={"assistant": "all answers", "last_turn": "last answer", "all": "all tokens"},
    )
    encoding: str | None = setting(
        None,
        "Text encoding",
        "For files that are not UTF-8, e.g. gb18030. Empty: detected.",
        max_length=40,
    )
    mapping: SettingValues | None = setting(None, "Column mapping", "Which column holds what. Empty: detected.")

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
    """Evaluation on the validation rows during training."""

    eval_strategy: Literal["epoch", "steps", "no"] = setting(
        "epoch",
        "Eval strategy",
        "When to evaluate on the validation rows.",
    )
    eval_steps: int = setting(500, "Eval steps", "Steps between evaluations if the eval strategy is steps.", ge=1)
    per_device_eval_batch_size: int = setting(
        8, "Eval batch size per device", "Evaluation needs less memory than training.", ge=1, le=4096
    )
    labels: str = setting(
        "",
        "Labels",
        "Measures accuracy and F1 of short answers such as Yes, No.",
        details="List every label, separated by commas. Empty: neither is measured.",
        max_length=2000,
    )
    metric_for_best_model: Literal["loss", "accuracy", "f1", "reward_accuracy", "reward_margin"] = setting(
        "loss",
        "Metric for best model",
        "Selects the best checkpoint; early stopping uses it too.",
        details="accuracy and f1 need labels; the reward metrics need dpo or kto.",
    )
    load_best_model_at_end: bool = setting(
        False, "Load best model at end", "The final adapter is the best checkpoint, not the last."
    )
    early_stopping_patience: int = setting(
        0,
        "Early-stopping patience",
        "Evaluations without improvement before the run stops. 0: never stops early.",
        ge=0,
        le=1000,
    )
    early_stopping_threshold: float = setting(
        0.0, "Early-stopping threshold", "Smallest improvement that counts.", ge=0
    )

    gen_eval_samples: int = setting(
        0,
        "Sample generations",
        "Validation prompts answered after each evaluation. 0: none.",
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
    """Logging during training."""

    logging_steps: int = setting(
        0, "Logging steps", "Steps between logged points. 0: automatic, at least 20 per run.", ge=0
    )
    report_to: Literal["tensorboard", "trackio", "wandb"] = setting(
        "tensorboard",
        "Report to",
        "TensorBoard files are always written.",
        details="trackio and wandb also receive the metrics if they are installed.",
    )


class Generation(Section):
    """How answers are generated in the chat and in evaluations."""

    max_new_tokens: int = setting(256, "Max new tokens", "Length limit of an answer in tokens.", ge=1, le=131_072)
    temperature: float = setting(
        0.0, "Temperature", "0 is greedy decoding. Higher values give more varied answers.", ge=0, le=5
    )
    top_p: float = setting(
        1.0, "Top-p", "Samples from the most likely tokens up to this total probability.", gt=0, le=1
    )
    top_k: int = setting(0, "Top-k", "Samples from this many of the most likely tokens. 0: all.", ge=0)
    min_p: float = setting(
        0.0, "Min-p", "Minimum probability relative to the most likely token. 0: no minimum.", ge=0, le=1
    )
    repetition_penalty: float = setting(
        1.0, "Repetition penalty", "Values above 1 make repetition less likely.", ge=0.5, le=3
    )
    seed: int = setting(42, "Seed", "The same seed gives the same sampled answer.", ge=0, le=MAX_SEED)
    stop_strings: str = setting("", "Stop strings", "An answer ends before any of these strings, one per line.")
    enable_thinking: bool | None = setting(
        None, "Thinking", "For templates with a thinking switch. default: as in training."
    )
    cache_implementation: Literal["dynamic", "static"] = setting(
        "dynamic",
        "KV cache",
        "static has a fixed size, for which a GPU compiles the model.",
        details="Compiling takes minutes, and again for other adapters or another number of answers in a batch.",
    )

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The stop texts one by one."""
        return tuple(line for line in self.stop_strings.splitlines() if line)


class Config(Section):
    """A whole run. Every value has a default: an empty mapping is a config."""

    title: str = setting(
        "", "Run name", "Display name. Empty: base model, data and a number.", basic=True, max_length=120
    )
    model: Model = Model()
    data: Data = Data()
    lora: Lora = Lora()
    training: Training = Training()
    preference: Preference = Preference()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    generation: Generation = Generation()
    compute: Compute = Compute()


def defaults_of(method: Any) -> Config:
    """Every setting's default, the learning rate that of a training method; the method itself is the default one."""
    start = Config()
    training = start.training.model_copy(update={"learning_rate": default_rate(method)})
    return start.model_copy(update={"training": training})


def files_of(config: Config) -> dict[str, str | None]:
    """What a config names of files, folders and the Hub, by the names that requests to a child process use."""
    return {
        "train_file": config.data.train_file,
        "validation_file": config.data.validation_file,
        "model": config.model.name,
        "revision": config.model.revision,
        "adapter": config.model.adapter_name_or_path,
    }
