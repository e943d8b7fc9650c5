"""The model card: the README.md of an adapter or a merged model, as the Hugging Face Hub reads it.

It holds no path of this machine, and text from users is escaped.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lora_studio.config.parsing import load_config
from lora_studio.config.sections import Config
from lora_studio.config.settings import batch_words, effective_batch
from lora_studio.files import JsonObject, source_title
from lora_studio.jobs.events import Evaluated, RunState, StepLogged, read_state
from lora_studio.models.adapter_files import (
    SETTINGS_FILE,
    TOKENIZER_SETTINGS,
    read_adapter_settings,
    read_studio_card,
)
from lora_studio.models.mixing import recipe_of
from lora_studio.runs.summary import code, metric, number, plain, share, table
from lora_studio.workspace import DEMO_MODEL, RunFolder, shipped_data, step_of

CARD_NAME = "README.md"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_CURVE_ROWS, _BAR = 16, 24
_SELF = "PATH/TO/THIS/FOLDER"


@dataclass(frozen=True)
class Subject:
    """What a card is about.

    `base` is the name that others know the base by, `repo` the Hub's name of what the card lies in ("" where it has
    none), `hub_data` the Hub's name of the training set; `precision` is that of a merged model's weights.
    """

    title: str
    base: str
    repo: str = ""
    hub_data: str = ""
    license: str = "unknown"
    merged: bool = False
    precision: str = ""


@dataclass(frozen=True)
class _Known:
    """What the adapter's folder and its run tell; `step` is that of a checkpoint.

    An adapter that others made, and a mix of such, may hold no tokenizer: it is used with the base's (`speaks`).
    """

    settings: JsonObject
    card: JsonObject
    speaks: bool = True
    config: Config | None = None
    state: RunState = field(default_factory=RunState)
    result: JsonObject = field(default_factory=dict)
    facts: JsonObject = field(default_factory=dict)
    step: int | None = None


def model_card(adapter: Path, run: RunFolder | None, subject: Subject) -> str:
    """The card's text for an adapter's folder and the run that trained it, where there is one."""
    source = _known(adapter, run)
    sections = [
        *_opening(source, subject),
        *_recipe(source),
        *_results(source),
        *_usage(source, subject),
        *_data(source, subject),
        *_settings(source),
        *_curves(source),
        *_versions(source),
    ]
    return f"---\n{_front_matter(source, subject)}---\n\n" + "\n".join(sections).rstrip() + "\n"


def _known(adapter: Path, run: RunFolder | None) -> _Known:
    settings, card = read_adapter_settings(adapter / SETTINGS_FILE), read_studio_card(adapter)
    speaks = (adapter / TOKENIZER_SETTINGS).is_file()
    if run is None or not run.config.is_file():
        return _Known(settings, card, speaks)
    config = load_config(run.config)
    step = step_of(adapter.name) if adapter.parent == run.checkpoints else None
    state = read_state(run.events)
    return _Known(
        settings, card, speaks, config, state, run.read_result() if step is None else {}, run.read_facts(), step
    )


def _front_matter(source: _Known, subject: Subject) -> str:
    values: JsonObject = {"license": subject.license.strip() or "unknown"}
    if _HUB_NAME.fullmatch(subject.base):
        values["base_model"] = subject.base
        values["base_model_relation"] = "finetune" if subject.merged else "adapter"
    if subject.hub_data:
        values["datasets"] = [subject.hub_data]
    method = source.config.training.method if source.config else ""
    quantized = source.card.get("quantization", "none") != "none"
    values |= {
        "library_name": "transformers" if subject.merged else "peft",
        "pipeline_tag": "text-generation",
        "tags": [
            "lora-studio",
            "lora",
            *["merge"] * bool(recipe_of(source.card)),
            *["qlora"] * quantized,
            *[method] * bool(method),
        ],
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _opening(source: _Known, subject: Subject) -> list[str]:
    kind = "Base and adapter as one model" if subject.merged else "A LoRA adapter"
    recipe = recipe_of(source.card)
    made = f"mixed from {len(recipe.adapters)} adapters" if recipe else "trained"
    base = "the built-in demo model" if subject.base == DEMO_MODEL else code(subject.base)
    revision = source.card.get("revision")
    at = f" at revision {code(str(revision))}" if revision else ""
    of = f" Checkpoint of step {source.step:,}." if source.step is not None else ""
    further = " Training started from an earlier adapter." if source.card.get("continued_from") else ""
    return [
        f"# {plain(subject.title) or 'Adapter'}",
        "",
        f"{kind}, {made} with LoRA Studio on {base}{at}.{of}{further} The license of the base model also applies.",
        "",
    ]


def _recipe(source: _Known) -> list[str]:
    """What a mixed adapter was made of, and peft's call that makes it again."""
    recipe = recipe_of(source.card)
    if recipe is None:
        return []
    rows = [
        (plain(adapter.name), f"{adapter.weight:g}", code(adapter.sha256[:16]) if adapter.sha256 else "")
        for adapter in recipe.adapters
    ]
    settings = {"density": recipe.density, "seed": recipe.seed}
    details = [f"{name} {value:g}" for name, value in settings.items() if value is not None]
    method = ", ".join([f"method {code(recipe.method)}", *details])
    return [
        "## Recipe",
        "",
        f"Mixed with peft's {code('add_weighted_adapter')} in float32, {method}.",
        "",
        *table(("adapter", "weight", "SHA-256 of its weights"), rows),
        "",
    ]


def _results(source: _Known) -> list[str]:
    measured, metrics = source.result.get("difference"), source.result.get("eval_metrics") or {}
    lines = []
    if measured:
        rows = [
            ("loss (nats/token)", number(measured["base_loss"]), number(measured["adapter_loss"])),
            ("token accuracy", share(measured["base_token_accuracy"]), share(measured["adapter_token_accuracy"])),
        ]
        lines += [plain(measured["sentence"]), "", *table(("", "base", "adapter"), rows), ""]
        lines += [plain(measured["rows_sentence"]), ""]
    if metrics:
        rows_of = [(plain(name.replace("_", " ")), metric(name, value)) for name, value in metrics.items()]
        lines += [*table(("on the validation rows", "adapter"), rows_of), ""]
    at = next((item for item in source.state.evaluations if item.step == source.step), None)
    if at is not None:
        lines += [f"Validation loss at this step: {number(at.loss)} nats/token.", ""]
    return ["## Results", "", *(lines or ["It was not compared with the base model.", ""])]


def _usage(source: _Known, subject: Subject) -> list[str]:
    config = source.config
    sampled = f"do_sample=True, temperature={config.generation.temperature}" if config else ""
    greedy = config is None or not config.generation.temperature
    system = [{"role": "system", "content": source.card["system_prompt"]}] if source.card.get("system_prompt") else []
    thinking = source.card.get("enable_thinking")
    program = "\n".join(
        [
            *_loading(source, subject),
            "",
            "messages = [",
            *(f"    {message!r}," for message in [*system, {"role": "user", "content": "Hello!"}]),
            "]",
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True'
            + (f", enable_thinking={thinking}" if thinking is not None else ""),
            ").to(model.device)",
            "ids = model.generate(",
            f"    **inputs, max_new_tokens={config.generation.max_new_tokens if config else 256}, "
            + ("do_sample=False" if greedy else sampled),
            ")",
            'print(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    )
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", program)), default=0))
    return [
        "## How to use it",
        "",
        "The tokenizer contains the chat template of the training. Use it to prompt the model as in training."
        if source.speaks
        else "The adapter has no tokenizer of its own: the model is prompted as the base is.",
        "",
        f"{fence}python",
        program,
        fence,
        "",
    ]


def _loading(source: _Known, subject: Subject) -> list[str]:
    """The lines that load tokenizer and model."""
    here = subject.repo or _SELF
    revision = source.card.get("revision")
    if subject.merged:
        return [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({here!r})",
            f'model = AutoModelForCausalLM.from_pretrained({here!r}, dtype="auto")',
        ]
    at = f", revision={revision!r}" if revision else ""
    base = "PATH/TO/lora_studio/demo/model" if subject.base == DEMO_MODEL else subject.base
    tokenizer = f"{here!r}" if source.speaks else f"{base!r}{at}"
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({tokenizer})",
        f'base = AutoModelForCausalLM.from_pretrained({base!r}{at}, dtype="auto")',
        f"model = PeftModel.from_pretrained(base, {here!r})",
    ]


def _data(source: _Known, subject: Subject) -> list[str]:
    config, data = source.config, source.state.data
    if config is None:
        return []
    rows: list[tuple[str, Any]] = [("training data", _data_name(config.data.train_file, subject.hub_data))]
    if data is not None:
        rows += [
            ("training rows", f"{data.train_rows:,}"),
            ("validation rows", f"{data.validation_rows:,}"),
            ("tokens per epoch, trained tokens", f"{data.tokens:,}, {data.trained_tokens:,}"),
            ("fingerprint of files and settings", code(data.fingerprint)),
        ]
    rows += [("prompt style", plain(data.prompt_style if data else config.data.prompt_style))]
    return ["## Data", "", *table(("", ""), rows), ""]


def _data_name(name: str, hub_data: str) -> str:
    shipped = shipped_data().get(name)
    if hub_data:
        return code(hub_data)
    return f"{plain(shipped.title)}, built into LoRA Studio" if shipped else code(source_title(name))


def _settings(source: _Known) -> list[str]:
    adapter, config = source.settings, source.config
    variants = [name for name, key in (("rsLoRA", "use_rslora"), ("DoRA", "use_dora")) if adapter.get(key)]
    rows: list[tuple[str, Any]] = [
        ("rank (r), alpha", plain(f"{adapter.get('r')}, {adapter.get('lora_alpha')}")),
        ("modules", code(_modules(adapter.get("target_modules")))),
        *[("variants", ", ".join(variants))] * bool(variants),
        ("quantization and compute dtype", _precision(source)),
    ]
    if config is not None:
        training, processes = config.training, source.state.first_processes
        rows += [
            ("method", plain(training.method)),
            ("dropout", config.lora.lora_dropout),
            ("learning rate, LR scheduler", plain(f"{training.learning_rate:g}, {training.lr_scheduler_type}")),
            ("effective batch size", f"{effective_batch(config, processes)} rows ({batch_words(config, processes)})"),
            ("epochs", f"{source.state.epoch:.2f}" if source.state.epoch else f"{training.num_train_epochs:g}"),
            ("steps", f"{source.step if source.step is not None else source.state.step:,}"),
            ("max length", f"{config.data.max_length:,} tokens"),
            ("packing", "yes" if training.packing else "no"),
            ("optimizer, weight decay", plain(f"{training.optim}, {training.weight_decay:g}")),
            ("seed", training.seed),
        ]
    return ["## Settings", "", *table(("", ""), rows), ""]


def _modules(target_modules: Any) -> str:
    return ", ".join(sorted(map(str, target_modules))) if isinstance(target_modules, list) else str(target_modules)


def _precision(source: _Known) -> str:
    quantization, dtype = source.card.get("quantization", "none"), source.card.get("dtype", "")
    return plain(dtype or "unknown") if quantization == "none" else plain(f"{quantization}, compute dtype {dtype}")


def _curves(source: _Known) -> list[str]:
    """The loss by step, as a table with bars: it shows wherever Markdown does, and can be read as numbers."""
    last = source.step if source.step is not None else math.inf
    steps = [item for item in source.state.steps if item.step <= last]
    evaluations = {item.step: item for item in source.state.evaluations if item.step <= last}
    if not steps:
        return []
    selected = sorted({*_spread([item.step for item in steps]), *_spread(list(evaluations))})
    rows = list(_curve(selected, steps, evaluations))
    head = ("step", "training loss", "validation loss", "training loss as a bar")
    return ["## Loss by step", "", *table(head, rows), ""]


def _curve(
    selected: Sequence[int], steps: Sequence[StepLogged], evaluations: Mapping[int, Evaluated]
) -> Iterator[tuple[str, str, str, str]]:
    """A row for each chosen step; training loss is the mean since the row before."""
    means, before = {}, 0
    for step in selected:
        between = [item.loss for item in steps if before < item.step <= step]
        means[step], before = (sum(between) / len(between) if between else None), step
    highest = max((value for value in means.values() if value is not None and math.isfinite(value)), default=0.0)
    for step in selected:
        mean, measured = means[step], evaluations.get(step)
        has_bar = mean is not None and math.isfinite(mean) and highest > 0
        bar = "█" * max(1, round(_BAR * mean / highest)) if has_bar and mean is not None else ""
        yield f"{step:,}", number(mean) if mean is not None else "", number(measured.loss) if measured else "", bar


def _spread(steps: Sequence[int]) -> list[int]:
    """At most so many of the steps, evenly over all of them, the last one among them."""
    most = min(_CURVE_ROWS, len(steps))
    return [steps[(index + 1) * len(steps) // most - 1] for index in range(most)]


def _versions(source: _Known) -> list[str]:
    versions = source.facts.get("versions", {})
    words = ", ".join(f"{plain(name)} {plain(str(version))}" for name, version in versions.items())
    return ["## Versions", "", f"Trained with {words}.", ""] if words else []
