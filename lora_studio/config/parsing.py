"""From a mapping, a YAML file or a preset to a checked config, and back; and which settings have an effect.

Settings that are valid alone and wrong together, or wrong on this machine, are found here; the schema checks single
values. Every problem is reported at once, before anything slow, with what to choose instead. Presets are small YAML
overlays on the defaults: the studio's are in `presets/`, the user's own in the workspace.
"""

import importlib.resources
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lora_studio.config.compute import FSDP, LOCAL, compute_contradictions
from lora_studio.config.fields import SettingValues, plain_words, read_yaml
from lora_studio.config.sections import Config, defaults_of
from lora_studio.config.settings import flatten, meant, plain_value, settings
from lora_studio.config.training import (
    COMPARING_METHODS,
    NEED_FULL_WEIGHTS,
    preference_contradictions,
    speed_conflicts,
    speed_contradictions,
)
from lora_studio.errors import LINE, StudioError, check_length
from lora_studio.files import absolute
from lora_studio.models.accelerators import (
    CPU,
    FLOAT16,
    attention_lacks,
    expected_attention,
    missing,
    optimizer_without,
)
from lora_studio.models.adapter_files import PatternError, check, is_regular_expression
from lora_studio.workspace import DEMO_MODEL, Workspace, safe_name, shipped_data, write_atomically

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


class ConfigError(StudioError):
    """All problems of a config at once."""

    def __init__(self, problems: list[Problem]) -> None:
        noun = "setting is" if len(problems) == 1 else "settings are"
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"{len(problems)} {noun} invalid:\n{lines}", "Fix them and try again.")
        self.problems = problems


def parse(values: Mapping[str, Any]) -> Config:
    """The checked config of a nested mapping. Raises `ConfigError` with every problem."""
    try:
        config = Config.model_validate(dict(values))
    except ValidationError as error:
        by_path: dict[str, Problem] = {}
        for problem in map(_explain, error.errors(include_url=False)):
            earlier = by_path.get(problem.path)
            both = f"{earlier.message}, or {problem.message}" if earlier else problem.message
            by_path[problem.path] = Problem(problem.path, both, problem.value)
        raise ConfigError(list(by_path.values())) from None
    problems = list(contradictions(config))
    if problems:
        raise ConfigError(problems)
    return config


def _explain(item: Any) -> Problem:
    """A pydantic error in plain words; names that are none of ours get the one that is meant."""
    paths = [setting.path for setting in settings()]
    location = [str(part) for part in item["loc"]]
    path = ".".join(location)
    if item["type"] == "extra_forbidden":
        return Problem(path, f"unknown setting{meant(path, item['input']).words}", item["input"])
    if item["type"].startswith("model_") and (suggestion := plain_value(path, item["input"])):
        return Problem(path, f"is a section with settings below it; did you mean `{suggestion}`?", item["input"])
    while path not in paths and len(location) > 1:
        location.pop()
        path = ".".join(location)
    return Problem(path, plain_words(item), item["input"])


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> SettingValues:
    """`base` with the values of `over` on top, section by section."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def nest(flat: Mapping[str, Any]) -> SettingValues:
    """{"lora.r": 8} as {"lora": {"r": 8}}."""
    nested: SettingValues = {}
    for path, value in flat.items():
        section, _, leaf = path.rpartition(".")
        nested = merge(nested, {section: {leaf: value}} if section else {leaf: value})
    return nested


def load_config(path: Path) -> Config:
    """The checked config of a YAML file. Raises `StudioError` for what can't be read, and for every problem."""
    return parse(read_yaml(path))


def to_yaml(config: Config) -> str:
    """The whole config, defaults included, as YAML that `parse` reads back to the same."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True, width=120)


def contradictions(config: Config) -> Iterator[Problem]:
    """What can't work together on any machine."""
    yield from _adapter(config)
    yield from _schedule(config)
    yield from _best(config)
    yield from _unmeasured(config)
    for path, message in preference_contradictions(flatten(config)):
        yield Problem(path, message)
    yield from _processes(config)
    for path, message in speed_contradictions(config.training, config.training.method, config.compute.strategy):
        yield Problem(path, message)


def _processes(config: Config) -> Iterator[Problem]:
    for path, message in compute_contradictions(config.compute, config.model.quantization):
        yield Problem(path, message)
    if config.compute.strategy != FSDP:
        return
    if config.evaluation.gen_eval_samples:
        yield Problem(
            "evaluation.gen_eval_samples", "must be 0 if compute.strategy is fsdp: no process has the whole base"
        )
    if config.lora.init_lora_weights == "eva":
        yield Problem(
            "lora.init_lora_weights", "eva reads the data with the whole base, which no process has with fsdp"
        )


def machine_conflicts(config: Config, kind: str) -> Iterator[Problem]:
    """What can't work on this machine's device, which is of that kind (one of `accelerators.DEVICE_KINDS`)."""
    optim, model = config.training.optim, config.model
    why, instead = optimizer_without(optim, kind)
    if why:
        yield Problem("training.optim", f"{optim} cannot run here: {why}; use {instead}")
    if model.dtype == FLOAT16 and (why := missing(kind, FLOAT16)):
        yield Problem("model.dtype", f"float16 cannot be trained here: {why}; use auto or float32")
    if kind == CPU and model.dtype == "bfloat16" and config.lora.bias != "none":  # a GPU has autocast for that
        yield Problem("lora.bias", "is trained in float32, beside bfloat16 only on a GPU; set model.dtype to auto")
    attends = expected_attention(model.attn_implementation, kind).name
    half = False if model.dtype == "float32" else None
    if why := attention_lacks(attends, kind, half=half):
        yield Problem("model.attn_implementation", f"{attends} cannot run here: {why}; use auto or sdpa")
    if model.quantization != "none" and (why := missing(kind, model.quantization) or _no_package("bitsandbytes")):
        yield Problem("model.quantization", f"{model.quantization} cannot run here: {why}; use none")
    for path, message in speed_conflicts(config.training, model.dtype, kind):
        yield Problem(path, message)
    tracker = config.tracking.report_to
    if tracker != "tensorboard" and not _installed(tracker):
        yield Problem(
            "tracking.report_to",
            f"the package {tracker} is not installed; run `pip install {tracker}`, or use tensorboard",
        )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _no_package(package: str) -> str:
    """That a package is not installed; "" where it is."""
    return "" if _installed(package) else f"the package {package} is not installed"


def _adapter(config: Config) -> Iterator[Problem]:
    lora, quantization = config.lora, config.model.quantization
    start = lora.init_lora_weights
    if start in NEED_FULL_WEIGHTS and quantization != "none":
        yield Problem(
            "lora.init_lora_weights",
            f"{start} decomposes the base's weights, which {quantization} has already quantized; set "
            "model.quantization to none, or use loftq with 4bit",
        )
    if start == "loftq" and quantization != "4bit":
        yield Problem(
            "lora.init_lora_weights",
            "loftq compensates the error of 4bit; set model.quantization to 4bit, or use pissa",
        )
    if start == "loftq" and lora.use_dora:
        yield Problem("lora.use_dora", "DoRA measures the base before loftq changes it; use only one of them")
    if start == "orthogonal" and lora.r % 2:
        yield Problem("lora.r", "the initialization orthogonal needs an even rank", lora.r)
    if is_regular_expression(lora.target_modules):
        try:
            check([lora.target_modules])
        except PatternError as error:
            yield Problem("lora.target_modules", str(error), lora.target_modules)
    if lora.modules_to_save and is_regular_expression(lora.modules_to_save):
        yield Problem("lora.modules_to_save", "takes module names, such as lm_head, not a regular expression")


def _schedule(config: Config) -> Iterator[Problem]:
    training = config.training
    if training.max_steps == 0:
        yield Problem("training.max_steps", "must be -1 (no limit) or at least 1", 0)
    if training.warmup_steps and 0 < training.max_steps <= training.warmup_steps:
        yield Problem(
            "training.warmup_steps",
            f"the run ends after {training.max_steps} steps, before warmup does",
            training.warmup_steps,
        )
    if training.lr_scheduler_type == "warmup_stable_decay" and training.warmup_steps is None:
        both = training.warmup_ratio + training.decay_ratio
        if both > 1:
            yield Problem(
                "training.decay_ratio", f"warmup and decay together take {both:g} of the steps; the maximum is 1"
            )


def _best(config: Config) -> Iterator[Problem]:
    training, evaluation, data = config.training, config.evaluation, config.data
    measured = data.validation_file is not None or data.validation_fraction > 0
    if not evaluation.load_best_model_at_end:
        return
    if evaluation.eval_strategy == "no" or not measured:
        yield Problem(
            "evaluation.load_best_model_at_end", "requires evaluation and validation rows to select the best checkpoint"
        )
    elif evaluation.eval_strategy != training.save_strategy:
        yield Problem(
            "evaluation.load_best_model_at_end",
            "requires the same strategy for saving and evaluating, but training.save_strategy is "
            f"{training.save_strategy} and evaluation.eval_strategy is {evaluation.eval_strategy}",
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
        yield Problem("evaluation.early_stopping_patience", "requires evaluation and validation rows")
    if evaluation.labels and not measured:
        yield Problem("evaluation.labels", "requires evaluation and validation rows to measure accuracy and F1")
    if evaluation.gen_eval_samples and not measured:
        yield Problem(
            "evaluation.gen_eval_samples", "requires evaluation and validation rows, which provide the prompts"
        )
    if evaluation.labels and config.data.train_on == "all":
        yield Problem("evaluation.labels", "requires data.train_on assistant or last_turn, to locate the answer")
    if evaluation.metric_for_best_model in ("accuracy", "f1") and not evaluation.labels:
        yield Problem(
            "evaluation.metric_for_best_model",
            f"cannot be {evaluation.metric_for_best_model} if evaluation.labels is empty",
        )


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
_KTO = Condition("with method KTO", _equals("training.method", "kto"))
_COMPARING = Condition("with method DPO or KTO", _equals("training.method", *COMPARING_METHODS))
_NOT_KTO = Condition("with method SFT or DPO", lambda values: values.get("training.method") != "kto")
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


_CHECKPOINTED = Condition(
    "with gradient checkpointing", lambda values: values.get("training.gradient_checkpointing") is not False
)
_WITHOUT_PACKING = Condition("without packing", lambda values: not values.get("training.packing"))
_FLOAT32 = Condition("with float32 precision", _equals("model.dtype", "float32"))


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
    "training.padding_free": (_SFT, _WITHOUT_PACKING),
    "training.gradient_checkpointing_every_n_layers": (_CHECKPOINTED,),
    "training.gradient_checkpointing_offload": (_CHECKPOINTED,),
    "training.tf32": (_FLOAT32,),
    "training.dataloader_pin_memory": (Condition("on a GPU", lambda values: values.get("compute.device") != "cpu"),),
    "training.neftune_noise_alpha": (_SFT,),
    "training.label_smoothing_factor": (_SFT,),
    "training.train_sampling_strategy": (_NOT_KTO,),
    "preference.beta": (_COMPARING,),
    "preference.loss_type": (_DPO,),
    "preference.desirable_weight": (_KTO,),
    "preference.undesirable_weight": (_KTO,),
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
    "compute.device": (Condition("on this machine", _equals("compute.target", LOCAL)),),
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


@dataclass(frozen=True, slots=True)
class Preset:
    """A named overlay; `about` is the first comment of its file."""

    name: str
    about: str
    path: Path

    def values(self) -> SettingValues:
        return read_yaml(self.path)


def is_for_model(preset: Preset, model: str) -> bool:
    """Whether a preset's settings suit a model: those for the built-in one, of 2.5 M parameters, suit no other."""
    section = preset.values().get("model")
    model_name = section.get("name") if isinstance(section, Mapping) else None
    return model_name != DEMO_MODEL or model == DEMO_MODEL


class NameTakenError(StudioError):
    """A name that another preset of the workspace bears."""


def shipped_folder() -> Path:
    """Where the presets are that come with the studio: in an installed package, else at the top of the repository."""
    package = Path(str(importlib.resources.files("lora_studio")))
    installed = package / "shipped_presets"
    return installed if installed.is_dir() else package.parent / "presets"


def presets(workspace: Workspace | None = None) -> dict[str, Preset]:
    """Shipped presets and, over them, those of the workspace, by name."""
    own = _presets_in(workspace.presets_folder) if workspace is not None and workspace.presets_folder.is_dir() else {}
    return {**_shipped(), **own}


@cache
def _shipped() -> Mapping[str, Preset]:
    return _presets_in(shipped_folder())


def _presets_in(folder: Path) -> dict[str, Preset]:
    by_name = {}
    for path in sorted(folder.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        by_name[path.stem] = Preset(path.stem, first.lstrip("# ").strip() if first.startswith("#") else "", path)
    return by_name


def resolve(
    source: str | None, overrides: Mapping[str, Any] | None = None, workspace: Workspace | None = None
) -> Config:
    """The config of a preset's name or a YAML file's path (None: the defaults), with overrides by path on top.

    Raises `StudioError` where there is neither, `ConfigError` with every problem of the values.
    """
    values: SettingValues = {}
    if source is not None:
        available = presets(workspace)
        if source in available:
            values = available[source].values()
        elif Path(source).suffix in (".yaml", ".yml") or os.path.isfile(source):
            values = read_yaml(Path(source))
        else:
            raise StudioError(
                f"{source!r} is neither a preset nor a YAML file.", f"Presets are: {', '.join(sorted(available))}."
            )
    try:
        return parse(merge(values, nest(overrides or {})))
    except ConfigError as error:
        if source is None:
            error.hint += " No preset and no YAML file was given, so all other settings have their defaults."
        raise


def own_presets(workspace: Workspace) -> dict[str, Preset]:
    """The presets that were saved in the workspace, by name."""
    return {
        name: preset for name, preset in presets(workspace).items() if preset.path.parent == workspace.presets_folder
    }


def save_preset(workspace: Workspace, name: str, config: Config, about: str = "", *, replace: bool = False) -> Preset:
    """Keeps what differs from the defaults under a name in the workspace; a run's title stays out.

    Raises `StudioError` for a name that can't be, one that comes with the studio, or one taken unless `replace`.
    """
    if not name.strip():
        raise StudioError("The preset has no name.", "Enter a short name, such as my-support-bot.")
    check_length("The name of the preset", name, LINE)
    check_length("The description of the preset", about, LINE)
    path = workspace.presets_folder / f"{safe_name(f'{name.strip()}.yaml', 'preset.yaml')}"
    if path.stem in presets():
        raise StudioError(f"{path.stem} is the name of a built-in preset.", "Choose another name.")
    if path.exists() and not replace:
        raise NameTakenError(f"A preset named {path.stem} already exists.", "Replace it, or choose another name.")
    text = yaml.safe_dump(overlay_of(config.model_copy(update={"title": ""})), sort_keys=False, allow_unicode=True)
    workspace.policy.check_growth(len(text))
    write_atomically(path, f"# {' '.join(about.split()) or name}\n{text}")
    return Preset(path.stem, about, path)


def delete_preset(workspace: Workspace, name: str) -> None:
    """Removes a preset of the workspace. Raises `StudioError` where there is none of that name."""
    own = own_presets(workspace)
    if name not in own:
        raise StudioError(f"You have no preset named {name!r}.", "Built-in presets cannot be deleted.")
    own[name].path.unlink()


def overlay_of(config: Config) -> SettingValues:
    """What differs from the defaults of its method, nested by section: `parse` makes the same config of it."""
    return _difference(defaults_of(config.training.method).model_dump(), config.model_dump())


def _difference(default: Mapping[str, Any], values: Mapping[str, Any]) -> SettingValues:
    result: SettingValues = {}
    for name, value in values.items():
        before = default[name]
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            inner = _difference(before, value)
            if inner:
                result[name] = inner
        elif value != before:
            result[name] = value
    return result


def default_title(config: Config, titles: Iterable[str]) -> str:
    """The name of a run that nobody named: model, data and a number, such as qwen3-0.6b-pirate-3.

    `titles` are those of the runs that there are; the number is the next after theirs.
    """
    model = re.split(r"[/\\]", config.model.name.rstrip("/\\"))[-1]
    data = Path(config.data.train_file.removeprefix("hub:").partition("?")[0]).stem
    start = re.sub(r"[^\w.]+", "-", f"{model}-{data}".lower()).strip("-")[:60]
    ends = [title.removeprefix(f"{start}-") for title in titles if title.startswith(f"{start}-")]
    numbers = [int(end) for end in ends if end.isascii() and end.isdigit() and len(end) <= 6]
    return f"{start}-{max(numbers, default=0) + 1}"


def with_absolute_paths(config: Config) -> Config:
    """Files and model folders named from the current folder, by their whole path: a worker runs in another folder."""
    data = config.data.model_copy(
        update={
            "train_file": _absolute(config.data.train_file),
            "validation_file": config.data.validation_file and _absolute(config.data.validation_file),
        }
    )
    name = config.model.name
    model = config.model.model_copy(update={"name": name if name == DEMO_MODEL else _absolute(name)})
    return config.model_copy(update={"data": data, "model": model})


def _absolute(name: str) -> str:
    return name if name in shipped_data() else absolute(name)
