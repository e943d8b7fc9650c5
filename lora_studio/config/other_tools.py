"""The config files of other trainers: whose a file is, which setting a key means, and its values in our terms.

`other_tools.yaml` has the keys of each: LLaMA-Factory, axolotl, trl, ms-swift, Unsloth Studio and peft.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from lora_studio.config.fields import SettingValues
from lora_studio.config.sections import Training
from lora_studio.config.settings import AS_VALUES, BY_VALUE, OTHER_NAMES, Setting, meant, other_tools, reasons, settings
from lora_studio.config.training import Preference

Kind = Literal["taken", "differs", "same", "none"]
EMPTY, OFF = "it is empty", "it is off"
METHODS: tuple[str, ...] = get_args(Training.model_fields["method"].annotation)
SFT_LOSSES = ("nll", "chunked_nll", "dft")
FRACTION = "data.validation_fraction"
MAX_SHOWN = 60  # characters of a value
LABEL_WEIGHTS: Mapping[str, str] = {
    **dict.fromkeys(("desirable_weight", "kto_desirable_weight", "kto_chosen_weight"), "preference.desirable_weight"),
    **dict.fromkeys(
        ("undesirable_weight", "kto_undesirable_weight", "kto_rejected_weight"), "preference.undesirable_weight"
    ),
}
"""KTO's weights of good and bad answers, by the names of trl, axolotl and LLaMA-Factory."""
LOSSES: tuple[str, ...] = get_args(Preference.model_fields["loss_type"].annotation)


@dataclass(frozen=True, slots=True)
class Tool:
    """A trainer's config files; `other_tools.yaml` says what each part is."""

    name: str
    title: str
    keys: frozenset[str]
    marks: frozenset[str]
    paths: Mapping[str, str]
    notes: Mapping[str, str]
    about: Mapping[str, str]
    defaults: Mapping[str, Any]
    unchanged: Mapping[str, str]
    adapter_key: str
    sections: tuple[str, ...]


@cache
def tools() -> Mapping[str, Tool]:
    """The trainers by name."""
    tables = other_tools()
    shared = tables["trainer"].split()
    return {
        name: Tool(
            name,
            table["title"],
            frozenset(table["keys"].split()) | frozenset(shared if table.get("trainer") else ()),
            frozenset(table["marks"].split()),
            paths=table.get("paths", {}),
            notes=table.get("notes", {}),
            about=table.get("about", {}),
            defaults=table.get("defaults", {}),
            unchanged=table.get("unchanged", {}),
            adapter_key=table.get("adapter_key", ""),
            sections=tuple(table.get("sections", ())),
        )
        for name, table in tables["tools"].items()
    }


_MARK = 3  # how much more a key counts that tells a tool from the others


def keys_of(tool: Tool, values: Mapping[str, Any]) -> SettingValues:
    """The values of a file as the tool's table names them: those of its sections as "section.key"."""
    flat: SettingValues = {}
    for key, value in values.items():
        inside = isinstance(value, Mapping) and key in tool.sections
        flat |= {f"{key}.{inner}": item for inner, item in value.items()} if inside else {str(key): value}
    return flat


def tool_of(values: Mapping[str, Any]) -> Tool | None:
    """The trainer that most likely wrote a file; None for a config of this studio, and for a file without its marks."""
    keys = {tool.name: keys_of(tool, values).keys() for tool in tools().values()}
    marked = [tool for tool in tools().values() if tool.marks & keys[tool.name]]
    if not marked:
        return None
    best = max(marked, key=lambda tool: _MARK * len(tool.marks & keys[tool.name]) + len(tool.keys & keys[tool.name]))
    sections = {setting.section for setting in settings()}
    nested = {
        f"{section}.{key}"
        for section in sections
        if isinstance(values.get(section), Mapping)
        for key in values[section]
    }
    own = len(nested & by_path().keys())
    return best if len(best.keys & keys[best.name]) > own and (best.sections or not own) else None


def shown(value: Any) -> str:
    """A value on one short line."""
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else " ".join(str(value).split())
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a key becomes: settings by path, and how its meaning differs, or why there are none."""

    kind: Kind
    settings: SettingValues = field(default_factory=dict)
    note: str = ""


def taken(path: str, value: Any, note: str = "") -> Answer:
    """A key that is one setting here; with a note its meaning differs."""
    return Answer("differs" if note else "taken", {path: value}, note)


def without(note: str) -> Answer:
    """A key that has no counterpart."""
    return Answer("none", {}, note)


def answer_to(tool: Tool, key: str, value: Any) -> Answer:
    """What a key becomes by the tables alone."""
    leaf = key.rpartition(".")[2]
    switch = None if key in tool.paths else BY_VALUE.get(leaf, {}).get(str(value).lower()) or AS_VALUES.get(leaf)
    if switch:
        on = value not in (False, 0, "disabled", "none")
        return CONVERT.get(switch[0], plain)(*switch) if on else Answer("same", {}, OFF)
    if path := path_of(tool, key):
        return CONVERT.get(path, plain)(path, value)
    note = tool.notes.get(key) if key in tool.paths else None
    if why := note or reasons("always").get(leaf):
        return Answer("same", {}, why)
    if value in (False, 0):
        return Answer("same", {}, OFF)
    if why := reasons("elsewhere").get(leaf):
        return without(why)
    near = meant(leaf).path
    return without("this key is unknown" + (f"; {near} has a name like it" if near else ""))


def path_of(tool: Tool, key: str) -> str:
    """The setting that a key of a tool is here; "" for none, and for a switch (`settings.AS_VALUES`)."""
    if key in tool.paths:
        return tool.paths[key]
    leaf = key.rpartition(".")[2]
    if leaf in OTHER_NAMES:
        return OTHER_NAMES[leaf]
    return next((path for path in by_path() if path.rpartition(".")[2] == leaf and path not in _NOT_MEANT), "")


_NOT_MEANT = ("generation.seed", "generation.enable_thinking", "preference.label_smoothing")
"""Settings that have the last name of another one, which is meant."""


@cache
def by_path() -> Mapping[str, Setting]:
    """The settings by path."""
    return {setting.path: setting for setting in settings()}


def plain(path: str, value: Any) -> Answer:
    """Numbers that stand as text (YAML 1.1 reads 2e-4 as such) and whole ones with a point; anything else unchanged."""
    kind = by_path()[path].kind
    if kind not in ("int", "float") or isinstance(value, bool) or not isinstance(value, str | float):
        return taken(path, value)
    parsed = number(value)
    if parsed is None:
        return taken(path, value)
    return taken(path, int(parsed) if kind == "int" and parsed.is_integer() else parsed)


def number(value: Any) -> float | None:
    """A number, also one that stands as text; None for anything else."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _choice(names: Mapping[str, str], near: Mapping[str, str] | None = None) -> Callable[[str, Any], Answer]:
    """A converter to a choice of a setting; `near` are names of what is not available, and what comes nearest."""

    def choose(path: str, value: Any) -> Answer:
        setting = by_path()[path]
        name = str(value).removeprefix("torch.")
        name = names.get(name.lower(), name)
        if name in setting.choices:
            return taken(path, name)
        if near and name in near:
            return taken(path, near[name], f"not available: {name}; {near[name]} comes nearest")
        return without(f"not available: {shown(value)}; {setting.default} is used")

    return choose


def modules(path: str, value: Any) -> Answer:
    """Names of modules as a list or text, all linear ones, or a regular expression."""
    if isinstance(value, str) and set("*+()[]|\\^$?") & set(value):
        return taken(path, value)
    names = [str(item).strip() for item in (value if isinstance(value, list) else str(value).split(","))]
    everywhere = {name.lower() for name in names} & {"all", "all-linear", "all_linear"}
    return taken(path, "all-linear" if everywhere else ", ".join(names))


def _initialization(path: str, value: Any) -> Answer:
    if value is True:
        return taken(path, "default")
    if value is False:
        return without("an adapter starts without an effect; default is used")
    return _choice({}, {"pissa_niter_4": "pissa_niter_16", "pissa_niter_8": "pissa_niter_16"})(path, value)


def _trackers(path: str, value: Any) -> Answer:
    names = [str(item).strip().lower() for item in (value if isinstance(value, list) else str(value).split(","))]
    available = [name for name in names if name in ("wandb", "trackio")]
    other = [name for name in names if name not in ("wandb", "trackio", "tensorboard", "none", "all")]
    if available:
        more = len(available) > 1 or other
        return taken(path, available[0], f"only {available[0]}, besides TensorBoard files" if more else "")
    if other:
        return without(f"not available: {', '.join(other)}; TensorBoard files are always written")
    return Answer("same", {}, "TensorBoard files are always written, and nothing is sent anywhere")


def _style(path: str, value: Any) -> Answer:
    name = str(value)
    if name in ("tokenizer_default", "chat", "chatml", "alpaca"):
        return taken(path, "chat" if name == "tokenizer_default" else name)
    return taken(path, "auto", "the file holds a template of its own" if "{" in name else "")


def _checkpointing(path: str, value: Any) -> Answer:
    on = value.lower() not in ("none", "no", "off") if isinstance(value, str) else bool(value)
    if on and str(value) == "offload":
        return Answer("taken", {path: True, "training.gradient_checkpointing_offload": True})
    return taken(path, on, f"the kind {value} is plain checkpointing here" if on and isinstance(value, str) else "")


def _padding_free(path: str, value: Any) -> Answer:
    """Taken where the attention reads such batches without a mask: the run starts on other machines as well."""
    return taken(path, "auto", "on with FlashAttention") if value is True else taken(path, value)


def _first(path: str, value: Any) -> Answer:
    several = isinstance(value, list) and len(value) > 1
    return taken(path, value[0] if isinstance(value, list) else value, "the first of several" if several else "")


_OPTIMIZERS = {
    "adamw_bnb_8bit": "adamw_8bit",
    "adamw_hf": "adamw_torch",
    "adamw": "adamw_torch",
    "adamw_apex_fused": "adamw_torch_fused",
    "paged_adamw": "paged_adamw_32bit",
    "lion": "lion_32bit",
    "paged_lion": "paged_lion_32bit",
}
_NEAR_OPTIMIZERS = {
    "adamw_torch_4bit": "adamw_8bit",
    "adamw_torch_8bit": "adamw_8bit",
    "adamw_anyprecision": "adamw_torch",
}
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
_ATTENTION = {
    **dict.fromkeys(("flash_attn", "flash_attention", "fa2", "true"), "flash_attention_2"),
    "fa3": "flash_attention_3",
    **dict.fromkeys(("disabled", "false"), "auto"),
}


def _attention(path: str, value: Any) -> Answer:
    """FlashAttention is taken where it is installed: the run starts on other machines as well."""
    answer = _choice(_ATTENTION)(path, value)
    if str(answer.settings.get(path)).startswith("flash_attention"):
        return taken(path, "auto", "FlashAttention is used if it is installed")
    return answer


_TRUNCATIONS = {
    **dict.fromkeys(("delete", "raise"), "drop"),
    **dict.fromkeys(("left", "keep_end"), "keep_answer"),
    **dict.fromkeys(("right", "truncate"), "keep_start"),
}
_METRICS = {
    "eval_loss": "loss",
    **dict.fromkeys(("rewards/accuracies", "eval_rewards/accuracies"), "reward_accuracy"),
    **dict.fromkeys(("rewards/margins", "eval_rewards/margins"), "reward_margin"),
}
CONVERT: Mapping[str, Callable[[str, Any], Answer]] = {
    "training.optim": _choice(_OPTIMIZERS, _NEAR_OPTIMIZERS),
    "training.lr_scheduler_type": _choice({}, {"cosine_warmup_with_min_lr": "cosine_with_min_lr"}),
    "training.gradient_checkpointing": _checkpointing,
    "training.padding_free": _padding_free,
    "training.save_strategy": _choice({}, {"best": "epoch"}),
    "evaluation.eval_strategy": _choice({}),
    "evaluation.metric_for_best_model": _choice(_METRICS),
    "model.dtype": _choice(_DTYPES),
    "model.bnb_4bit_compute_dtype": _choice(_DTYPES),
    "model.attn_implementation": _attention,
    "model.quantization": _choice({}),
    "model.adapter_name_or_path": _first,
    "data.truncation": _choice(_TRUNCATIONS),
    "data.prompt_style": _style,
    "preference.loss_type": _first,
    "lora.target_modules": modules,
    "lora.modules_to_save": modules,
    "lora.init_lora_weights": _initialization,
    "tracking.report_to": _trackers,
    "compute.processes": lambda path, value: taken(path, str(value)),
}
"""How values of other trainers become those of a setting; of the others only numbers are made plain."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file that is being read: its values by key, and the folders that its paths may be in. `datasets` are those of
    LLaMA-Factory's list with the folder of that list; `files` are known files by name."""

    tool: Tool
    values: Mapping[str, Any]
    folders: Sequence[Path] = ()
    datasets: Mapping[str, Any] = field(default_factory=dict)
    dataset_folder: Path | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    def get(self, leaf: str) -> Any:
        """The value of a key, in whatever section."""
        return next((value for key, value in self.values.items() if key.rpartition(".")[2] == leaf), None)

    def path(self, name: str) -> str:
        """A path of the file as it is found from here: known by name, as it is, or beside the file."""
        if upload := self.files.get(Path(name).name):
            return upload
        candidates = [folder / name for folder in self.folders if os.path.exists(folder / name)]
        return str(candidates[0].resolve()) if candidates and not os.path.exists(os.path.expanduser(name)) else name


def _method(value: Any, source: Source) -> Answer:
    name = str(value).lower()
    if name == "ipo":
        return Answer("taken", {"training.method": "dpo", "preference.loss_type": "ipo"})
    if name == "pt":
        text = {"training.method": METHODS[0], "data.train_on": "all"}
        packed = {} if source.get("packing") is False else {"training.packing": True}
        return Answer("differs", text | packed, "plain text: every token is trained, in packed rows")
    return taken("training.method", name)


def _kind_of_adapter(value: Any, source: Source) -> Answer | None:
    return None if str(value).lower() == "qlora" else Answer("same", {}, "every run trains a LoRA adapter")


def _comparing(source: Source) -> str:
    """The method of a file that compares answers: KTO where it says so or has KTO's own keys, else DPO."""
    methods = {str(source.get(key)).lower() for key in ("stage", "rl", "rlhf_type", "loss_type")}
    return "kto" if "kto" in methods or any(source.get(key) is not None for key in LABEL_WEIGHTS) else "dpo"


def _preference_beta(value: Any, source: Source) -> Answer:
    answer = plain("preference.beta", value)
    return Answer(answer.kind, {**answer.settings, "training.method": _comparing(source)}, answer.note)


def _label_weight(path: str) -> Callable[[Any, Source], Answer]:
    """A weight of good or bad answers, which only KTO has."""
    return lambda value, _: Answer("taken", {**plain(path, value).settings, "training.method": "kto"})


def _loss(value: Any, source: Source) -> Answer | None:
    name = str(value[0] if isinstance(value, list) else value)
    if name in ("nll", "chunked_nll"):
        return Answer("same", {}, "the cross-entropy of the trained tokens")
    if name in SFT_LOSSES:
        return without(f"not available: {name}; the cross-entropy is trained")
    if name == "kto":
        return Answer("taken", {"training.method": "kto"})
    return Answer("taken", {"preference.loss_type": name, "training.method": "dpo"})


def _noisy_pairs(value: Any, source: Source) -> Answer | None:
    losses = source.get("loss_type") or source.get("pref_loss") or "sigmoid"
    if not number(value):
        return Answer("same", {}, OFF)
    robust = "robust" in losses
    return None if robust else without("label smoothing of DPO needs the loss robust (preference.loss_type)")


def _share(value: Any, _: Source) -> Answer:
    """A share of the rows, or from 1 on their number."""
    answer = plain(FRACTION, value)
    rows = answer.settings[FRACTION]
    if not isinstance(rows, int | float) or rows < 1:
        return answer
    capped = {FRACTION: by_path()[FRACTION].default, "data.max_eval_samples": int(rows)}
    return Answer("differs", capped, f"{int(rows)} rows there; here a fraction, of which at most so many validate")


def _each_epoch(strategy: str, steps: str) -> Callable[[Any, Source], Answer]:
    def per_epoch(value: Any, _: Source) -> Answer:
        times = number(value)
        if times is None:
            return without("not a number")
        if times <= 0:
            return taken(strategy, "no")
        note = "" if times == 1 else f"once an epoch here; for {value} set {strategy} steps and {steps}"
        return taken(strategy, "epoch", note)

    return per_epoch


def _every(strategy: str, steps: str) -> Callable[[Any, Source], Answer]:
    """Steps between two checkpoints or evaluations: 0 is never, a fraction is one of all steps."""

    def every(value: Any, source: Source) -> Answer:
        interval, strategy_name = number(value), source.get(strategy.rpartition(".")[2])
        if interval is None or strategy_name in ("no", "epoch"):
            return plain(steps, value)
        if interval == 0:
            return taken(strategy, "no")
        if interval < 1:
            return taken(strategy, "epoch", f"a fraction of all steps there; to keep it set {steps}")
        return Answer("taken", {strategy: "steps", **plain(steps, value).settings})

    return every


def _epochs(value: Any, _: Source) -> Answer | None:
    return Answer("same", {}, "the steps decide") if number(value) == 0 else None


def _steps(value: Any, _: Source) -> Answer | None:
    steps = number(value)
    return Answer("same", {}, "the epochs decide") if steps is not None and steps <= 0 else None


def _warmup(value: Any, source: Source) -> Answer | None:
    steps = number(value)
    if steps is None:
        return None
    if steps == 0:
        ratio = source.get("warmup_ratio")
        return Answer("same", {}, "the ratio decides") if ratio else taken("training.warmup_ratio", 0.0)
    return taken("training.warmup_ratio", steps) if steps < 1 else None


def _schedule(value: Any, _: Source) -> Answer:
    """Arguments of a scheduler, those that there are."""
    arguments = value if isinstance(value, Mapping) else {}
    paths = {"min_lr_rate": "training.min_lr_rate", "num_cycles": "training.num_cycles"}
    settings = {path: arguments[name] for name, path in paths.items() if name in arguments}
    other = ", ".join(name for name in arguments if name not in paths)
    if not settings:
        return without("min_lr_rate and num_cycles are available")
    return Answer("differs" if other else "taken", settings, f"without {other}" if other else "")


def _min_rate(value: Any, _: Source) -> Answer:
    return Answer("taken", {"training.min_lr_rate": value, "training.lr_scheduler_type": "cosine_with_min_lr"})


def _scheduler(value: Any, source: Source) -> Answer | None:
    return Answer("same", {}, "set by cosine_min_lr_ratio") if source.get("cosine_min_lr_ratio") else None


def _batch(value: Any, source: Source) -> Answer | None:
    """axolotl's rows of a whole step."""
    rows, micro_batch = number(value), number(source.get("micro_batch_size") or 1)
    if source.tool.name != "axolotl" or not rows or not micro_batch:
        return None
    return taken(
        "training.gradient_accumulation_steps", max(1, int(rows // micro_batch)), "rows of a step on all devices there"
    )


def _packing(value: Any, source: Source) -> Answer | None:
    isolated = value is False or source.tool.name != "llama-factory" or source.get("neat_packing")
    return (
        None
        if isolated
        else taken("training.packing", value, "rows of a pack see each other there, here they never do")
    )


def _packing_strategy(value: Any, _: Source) -> Answer:
    return without("rows are packed whole") if value == "wrapped" else Answer("same", {}, "rows are packed whole")


def _pissa(value: Any, source: Source) -> Answer | None:
    if not value:
        return None
    rounds = source.get("pissa_iter")
    return taken("lora.init_lora_weights", "pissa" if rounds == -1 else "pissa_niter_16")


def _pissa_rounds(value: Any, source: Source) -> Answer:
    if not source.get("pissa_init"):
        return Answer("same", {}, OFF)
    available = value in (16, -1)
    return (
        Answer("same", {}, "part of pissa_init") if available else without("16 iterations, or the exact decomposition")
    )


def _loss_mask(value: Any, source: Source) -> Answer:
    if value is True:
        return taken("data.train_on", "assistant")
    if source.tool.name == "unsloth":
        return taken("data.train_on", "all")
    return taken("data.train_on", "all", "prompts are trained as well")


def _inputs(value: Any, _: Source) -> Answer:
    return taken("data.train_on", "all" if value else "assistant")


def _loss_scale(value: Any, _: Source) -> Answer:
    strategies = {"default": "assistant", "last_round": "last_turn", "all": "all"}
    first, *more = str(value).split("+")
    if first not in strategies:
        return without("weights of single tokens are not available")
    return taken("data.train_on", strategies[first], f"without {' and '.join(more)}" if more else "")


def _half(value: Any, _: Source) -> Answer | None:
    return taken("model.dtype", "auto") if value == "auto" else None


def _by_length(value: Any, _: Source) -> Answer:
    return taken("training.train_sampling_strategy", "group_by_length" if value else "random")


def _no_checkpointing(value: Any, _: Source) -> Answer:
    return taken("training.gradient_checkpointing", not value)


def _targets(value: Any, source: Source) -> Answer | None:
    linear = source.get("lora_target_linear") is True
    return Answer("same", {}, "lora_target_linear takes all linear modules") if linear else None


def _tracker(value: Any, source: Source) -> Answer | None:
    switch = next((source.get(name) for name in ("enable_wandb", "use_wandb") if source.get(name) is not None), True)
    return None if switch else Answer("same", {}, OFF)


def _top_k(value: Any, _: Source) -> Answer | None:
    return taken("generation.top_k", 0) if number(value) == -1 else None


def _bits_by(value: Any, _: Source) -> Answer | None:
    bnb = str(value).lower() in ("bnb", "bitsandbytes")
    return None if bnb else without(f"not available: {value}; models are quantized by bitsandbytes")


SPECIAL: Mapping[str, Callable[[Any, Source], Answer | None]] = {
    **dict.fromkeys(("stage", "rl", "rlhf_type"), _method),
    "adapter": _kind_of_adapter,
    "beta": _preference_beta,
    "loss_type": _loss,
    **{key: _label_weight(path) for key, path in LABEL_WEIGHTS.items()},
    **dict.fromkeys(("label_smoothing", "dpo_label_smoothing"), _noisy_pairs),
    **dict.fromkeys(("val_size", "val_set_size", "split_dataset_ratio"), _share),
    "evals_per_epoch": _each_epoch("evaluation.eval_strategy", "evaluation.eval_steps"),
    "saves_per_epoch": _each_epoch("training.save_strategy", "training.save_steps"),
    "eval_steps": _every("evaluation.eval_strategy", "evaluation.eval_steps"),
    "save_steps": _every("training.save_strategy", "training.save_steps"),
    **dict.fromkeys(("num_epochs", "num_train_epochs"), _epochs),
    "max_steps": _steps,
    "warmup_steps": _warmup,
    "lr_scheduler_kwargs": _schedule,
    "cosine_min_lr_ratio": _min_rate,
    "lr_scheduler": _scheduler,
    "batch_size": _batch,
    "packing": _packing,
    "packing_strategy": _packing_strategy,
    "pissa_init": _pissa,
    "pissa_iter": _pissa_rounds,
    **dict.fromkeys(("train_on_completions", "assistant_only_loss", "completion_only_loss"), _loss_mask),
    "train_on_inputs": _inputs,
    "loss_scale": _loss_scale,
    "bf16": _half,
    "group_by_length": _by_length,
    "disable_gradient_checkpointing": _no_checkpointing,
    "lora_target_modules": _targets,
    "wandb_project": _tracker,
    "top_k": _top_k,
    **dict.fromkeys(("quantization_method", "quant_method"), _bits_by),
}
"""Keys whose meaning depends on more than the tables say; None leaves a value to them."""
