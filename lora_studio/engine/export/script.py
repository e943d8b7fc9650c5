"""A program that repeats a run's training without LoRA Studio: train.py with settings, rows, tokenizer and
requirements.

The rows are exported as prepared, so the data path is not needed; the order of rows, schedule and numbers are the
run's. Runs that it cannot repeat are refused, and what it leaves out is listed.
"""

import json
import math
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import pyarrow.parquet as pq

from lora_studio.config.sections import Config
from lora_studio.data.dataset import Prepared, prepare
from lora_studio.data.examples import Examples, Pairs
from lora_studio.engine import train_script
from lora_studio.engine.export.context import (
    ExportContext,
    ExportResult,
    base_to_name,
    check_places,
    is_local,
    last_line,
)
from lora_studio.engine.models.source import auto_class, load_tokenizer, read_config, unpacking, without_weights
from lora_studio.engine.runtime import data_progress, guarded
from lora_studio.engine.train.settings import (
    SCHEDULE,
    TrainerArguments,
    logging_interval,
    method_values,
    scheduler_settings,
    trainer_values,
)
from lora_studio.errors import StudioError
from lora_studio.jobs.events import RunState
from lora_studio.models.adapter_files import CARD_FILE, SETTINGS_FILE, WEIGHTS_FILE, carried
from lora_studio.models.adapters import read_header
from lora_studio.models.memory import with_settings
from lora_studio.runs.summary import settings_of
from lora_studio.workspace import DEMO_MODEL, model_source

LIBRARIES = ("torch", "transformers", "peft", "trl", "datasets", "accelerate")
NOT_BUILT = frozenset(
    (
        "task_type",
        "peft_type",
        "peft_version",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    )
)
"""Entries of an adapter's saved settings that do not define its structure."""

TRIAL_SECONDS, CLOSE = 600, 1e-4
SHOWN_AFTER = 3
"""Steps after the warm-up until the loss distinguishes adapters: A changes only once B is no longer 0."""


def export(work: ExportContext, *, base_name: str, keep_local_base: bool) -> ExportResult:
    """Exports a folder with train.py and all its inputs."""
    run, state = work.of_run(), work.state()
    config = settings_of(run, state)
    check(config, state)
    base = base_to_name(work, base_name, keep_local=keep_local_base)
    write_rows(work, rows_of(work, config, state))
    write_tokenizer(work)
    if config.model.adapter_name_or_path:
        copy_start(work, config)
    if base == DEMO_MODEL:
        shutil.copytree(model_source(base), work.out / "base")
    settings = settings_for(config, state, "base" if base == DEMO_MODEL else base, work.adapter)
    (work.out / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    losses = {str(point.step): point.loss for point in state.steps}
    (work.out / "losses.json").write_text(json.dumps(losses, indent=1) + "\n", encoding="utf-8")
    (work.out / "requirements.txt").write_text("\n".join(requirements(config, run.read_facts())) + "\n")
    shutil.copyfile(train_script.__file__, work.out / "train.py")
    tried, same = try_script(work, state, config, settings["training"]["warmup_steps"])
    words = (
        "Install requirements.txt and run train.py. It trains from the base, compares the losses with those of the "
        "run and prints where the adapter is. --steps 5 ends after five steps as a test."
    )
    command = f"cd {shlex.quote(str(work.final))} && pip install -r requirements.txt && python train.py"
    notes = list(left_out(config, state))
    if base not in (config.model.name, DEMO_MODEL, "base"):
        notes.append(f"It loads {base}; the test, if any, loaded the base of the run, {config.model.name}.")
    return ExportResult(words, command, tried=tried, same=same, notes=notes)


def check(config: Config, state: RunState) -> None:
    """Raises `StudioError` for runs that the program cannot repeat."""
    instead = "Export the config instead, which LoRA Studio can run."
    if config.lora.init_lora_weights in ("pissa", "pissa_niter_16", "olora", "eva", "loftq"):
        first = config.lora.init_lora_weights
        raise StudioError(f"The script does not support the LoRA initialization {first}.", instead)
    best, evaluation = config.evaluation.metric_for_best_model, config.evaluation
    if best != "loss" and (evaluation.load_best_model_at_end or evaluation.early_stopping_patience):
        raise StudioError(
            f"The script measures the loss only; the best checkpoint of this run is selected by {best}.", instead
        )
    if not state.steps:
        raise StudioError("This run has no steps yet.", "Wait for the first step.")


def left_out(config: Config, state: RunState) -> Iterator[str]:
    """What the run did and the program does not."""
    yield "The folder contains the rows as tokens: anyone who gets it can read them."
    if config.evaluation.labels:
        yield "It does not measure accuracy and F1 of the labels."
    if config.evaluation.gen_eval_samples:
        yield "It generates no samples."
    if state.extra_epochs:
        yield "Epochs were added to the run later. The script plans the whole length at once, so losses differ."
    if "CPU" not in state.device:
        yield f"The run used {state.device}. On other devices, losses differ slightly at first and more later."


def rows_of(work: ExportContext, config: Config, state: RunState) -> Prepared:
    """The run's rows, prepared again. Raises `StudioError` if they have changed."""
    work.log.phase("data")
    prepared = prepare(
        **config.data.model_dump(),
        tokenizer=load_tokenizer(config.model.name, config.model.revision),
        goal=config.training.goal,
        cache_folder=work.of_run().cache,
        on_progress=data_progress(work.log),
    )
    if state.data is None or prepared.fingerprint != state.data.fingerprint:
        raise StudioError(
            "The data file or its column mapping has changed since this run: its rows can no longer be reproduced.",
            "Restore the old file, or export the config instead.",
        )
    return prepared


def write_rows(work: ExportContext, prepared: Prepared) -> None:
    parts: dict[str, Examples | Pairs] = {"train": prepared.train}
    if prepared.validation:
        parts["validation"] = prepared.validation
    total = sum(map(len, parts.values()))
    work.log.phase("write", total, "rows")
    done = 0
    for name, examples in parts.items():
        done = _write_part(work, examples, work.out / f"{name}.parquet", done, total)


def _write_part(work: ExportContext, examples: Examples | Pairs, target: Path, done: int, total: int) -> int:
    tables = examples.tables()
    first = next(tables)
    with pq.ParquetWriter(target, first.schema) as writer:
        for batch in (first, *tables):
            writer.write_batch(batch)
            done += len(batch)
            work.log.progress(done, total)
            work.stop.check()
    return done


def write_tokenizer(work: ExportContext) -> None:
    """Writes the adapter's tokenizer, with the chat template of the training."""
    (work.out / "tokenizer").mkdir()
    for path in carried(work.adapter):
        if path.name not in (SETTINGS_FILE, WEIGHTS_FILE, CARD_FILE):
            shutil.copyfile(path, work.out / "tokenizer" / path.name)


def copy_start(work: ExportContext, config: Config) -> None:
    """Copies the adapter that the run continued from."""
    before = Path(str(config.model.adapter_name_or_path))
    if not (before / WEIGHTS_FILE).is_file():
        raise StudioError(f"The adapter that the run started from is no longer in {before}.", "Restore it.")
    check_names(before, work.adapter)
    (work.out / "start").mkdir()
    settings = json.loads((before / SETTINGS_FILE).read_text(encoding="utf-8"))
    if is_local(str(settings.get("base_model_name_or_path") or "")):
        settings["base_model_name_or_path"] = None
    (work.out / "start" / SETTINGS_FILE).write_text(json.dumps(settings, indent=2), encoding="utf-8")
    shutil.copyfile(before / WEIGHTS_FILE, work.out / "start" / WEIGHTS_FILE)


def check_names(before: Path, trained: Path) -> None:
    """Raises `StudioError` if the run matched the adapter's tensors under other names, which peft alone would not."""
    own, starting = (set(read_header(folder / WEIGHTS_FILE)) for folder in (trained, before))
    if lacking := sorted(own - starting):
        raise StudioError(
            f"The adapter that the run started from lacks {lacking[0]}{' and others' if len(lacking) > 1 else ''}. "
            "The run read it under another name or initialized it, which the script does not support.",
            "Export the config instead, which LoRA Studio can run.",
        )


class BaseSettings(TypedDict):
    """How the script loads the base."""

    auto_class: str
    name: str
    revision: str | None
    dtype: str
    attn_implementation: str | None
    quantization: Mapping[str, Any] | None


class ScriptSettings(TypedDict):
    """settings.json of an exported training script."""

    base: BaseSettings
    lora: Mapping[str, Any]
    loraplus_lr_ratio: float | None
    patience: Mapping[str, Any]
    method: str
    training: TrainerArguments


def settings_for(config: Config, state: RunState, base: str, adapter: Path) -> ScriptSettings:
    """The content of settings.json; what the run chose automatically is a fixed value in it."""
    rising, shape = scheduler_settings(state.total_steps, **config.training.model_dump(include=SCHEDULE))
    setting = config.training.gradient_checkpointing
    accumulated = config.training.gradient_accumulation_steps * state.first_processes
    training = {
        **trainer_values(
            with_settings(config, {"training.gradient_accumulation_steps": accumulated}),  # in one process
            state.dtype,
            kind=state.device_kind,
            measured=bool(state.data and state.data.validation_rows),
            checkpointing=state.memory.gradient_checkpointing if state.memory else setting is True,
        ),
        **method_values(config, padding_free=bool(state.model and state.model.padding_free)),
        "warmup_steps": rising,
        "lr_scheduler_kwargs": shape,
        "disable_tqdm": False,  # a person sits before it
        "logging_steps": logging_interval(config.tracking.logging_steps, state.total_steps),
    }
    evaluation = config.evaluation
    return {
        "base": {
            "auto_class": auto_class(config.model.name, read_config(config.model.name, config.model.revision)).__name__,
            "name": base,
            "revision": config.model.revision,
            "dtype": state.dtype,
            "attn_implementation": (state.model.attn_implementation if state.model else "") or None,
            "quantization": quantization(config, state.dtype),
        },
        "lora": lora_settings(config, adapter),
        "loraplus_lr_ratio": config.lora.loraplus_lr_ratio,
        "patience": evaluation.model_dump(include={"early_stopping_patience", "early_stopping_threshold"}),
        "method": config.training.method,
        "training": training,
    }


def lora_settings(config: Config, adapter: Path) -> Mapping[str, Any]:
    """The arguments of LoraConfig: all saved settings of the run's adapter that define its structure.

    An adapter that the run continued from keeps its settings beside its weights; only the dropout is the run's.
    """
    if config.model.adapter_name_or_path:
        return {"lora_dropout": config.lora.lora_dropout}
    own = json.loads((adapter / SETTINGS_FILE).read_text(encoding="utf-8"))
    first = config.lora.init_lora_weights
    return {
        **{name: value for name, value in own.items() if value not in (None, {}) and name not in NOT_BUILT},
        "lora_dropout": config.lora.lora_dropout,
        "init_lora_weights": True if first == "default" else first,  # saved as done, see adapter.initial_lora_state
    }


def quantization(config: Config, dtype: str) -> Mapping[str, Any] | None:
    """The arguments of BitsAndBytesConfig, or of what unpacks a base in mxfp4 or FP8 (`load.unpacking`) with its
    `quant_method`; None for an unquantized base."""
    if config.model.quantization == "none":
        stored = read_config(config.model.name, config.model.revision).to_dict().get("quantization_config") or {}
        arguments = unpacking(stored)
        return None if arguments is None else {**arguments, "quant_method": stored["quant_method"]}
    if config.model.quantization == "8bit":
        return {"load_in_8bit": True}
    values: dict[str, str | bool] = {
        name: value for name, value in config.model.model_dump().items() if name.startswith("bnb_4bit_")
    }
    if values["bnb_4bit_compute_dtype"] == "auto":
        values["bnb_4bit_compute_dtype"] = dtype
    return {"load_in_4bit": True, **values}


def requirements(config: Config, facts: Mapping[str, Any]) -> list[str]:
    """The libraries, pinned to the versions of the run."""
    versions = facts.get("versions", {})
    eight_bit = any(sign in config.training.optim for sign in ("8bit", "paged", "32bit", "ademamix"))
    names = [*LIBRARIES, *(["bitsandbytes"] if config.model.quantization != "none" or eight_bit else [])]
    return [f"{name}=={str(versions[name]).partition('+')[0]}" if name in versions else name for name in names]


def try_script(work: ExportContext, state: RunState, config: Config, warmup: int) -> tuple[str, bool | None]:
    """Runs the program past its warm-up, if the run was trained on a CPU as well, and compares it with the run.

    The losses and the adapter's tensors have to match the run's. Raises `StudioError` otherwise.
    """
    reason = "" if work.trial else "Not tested, as requested."
    if not reason and "CPU" not in state.device:
        first = state.steps[0]
        reason = f"Not tested: the run used a GPU. Its loss at step {first.step} was {first.loss:.4f}."
    if reason:
        check_places(work, without_weights(config.model.name, config.model.revision))
        return reason, None
    work.log.phase("try")
    place = work.out / "trial"
    last = last_step_to_try(state, warmup)
    command = [sys.executable, "train.py", "--out", str(place), "--steps", str(last)]
    if config.model.name != DEMO_MODEL:  # what others call the base may not be on this machine
        command += ["--base", model_source(config.model.name)]
    try:
        with guarded(
            command, cwd=work.out, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
        ) as child:
            words = child.communicate(timeout=TRIAL_SECONDS)[1]
    except subprocess.TimeoutExpired:
        shutil.rmtree(place, ignore_errors=True)
        return f"Not tested to the end: {last} steps take more than {TRIAL_SECONDS // 60} minutes here.", None
    shutil.rmtree(work.out / "__pycache__", ignore_errors=True)
    if child.returncode:
        raise StudioError(f"The script fails: {last_line(words)}", "This is a bug. Please report it.")
    history = json.loads((place / "history.json").read_text(encoding="utf-8"))
    tensors = same_tensors(work.adapter, place / "adapter")
    shutil.rmtree(place)
    words, same = compare_losses(history, state, must_equal=not state.extra_epochs and versions_are_those_of(work))
    inside = "" if last > warmup else f" Warmup has {warmup}; the rest of it was not tested."
    return f"Run for {last} steps: {words}.{inside} It trains the same {tensors} tensors.", same


def last_step_to_try(state: RunState, warmup: int) -> int:
    """The first logged step at which a different adapter would show, among those that fit in the time limit.

    For a shorter run, its last step.
    """
    steps = [point.step for point in state.steps]
    seconds = (state.steps[-1].time - state.steps[0].time) / max(steps[-1] - steps[0], 1)
    fitting = [step for step in steps if step * seconds < TRIAL_SECONDS / 2] or steps[:1]
    return next((step for step in fitting if step >= warmup + SHOWN_AFTER), fitting[-1])


def same_tensors(own: Path, other: Path) -> int:
    """The number of tensors in both adapters. Raises `StudioError` if names or shapes differ."""
    first, second = (
        {name: tensor["shape"] for name, tensor in read_header(folder / WEIGHTS_FILE).items()}
        for folder in (own, other)
    )
    if first != second:
        different = sorted(name for name in {*first, *second} if first.get(name) != second.get(name))
        raise StudioError(
            f"The script trains an adapter with {len(second)} tensors; that of the run has {len(first)}. "
            f"Differences: {', '.join(different[:3])}{' and others' if len(different) > 3 else ''}.",
            "Export the config instead, which LoRA Studio can run, and report this bug.",
        )
    return len(first)


def versions_are_those_of(work: ExportContext) -> bool:
    """Whether the installed libraries have the versions of the run."""
    noted = work.of_run().read_facts().get("versions", {})
    return all(noted.get(name) in (None, version(name)) for name in LIBRARIES)


def compare_losses(history: Sequence[Mapping[str, Any]], state: RunState, *, must_equal: bool) -> tuple[str, bool]:
    """How far the losses are from the run's, and whether they count as equal.

    Raises `StudioError` if they had to be equal and are not.
    """
    own = {point.step: point.loss for point in state.steps}
    differences = [
        abs(entry["loss"] - own[entry["step"]]) for entry in history if "loss" in entry and entry["step"] in own
    ]
    furthest = max(differences, default=math.inf)
    differ = f"differ from those of the run by at most {furthest:.2g}" if furthest else "equal those of the run exactly"
    if must_equal and not furthest < CLOSE:
        raise StudioError(
            f"The script does not reproduce the run: its losses {differ}.",
            "Export the config instead, which LoRA Studio can run, and report this bug.",
        )
    return f"losses {differ}", furthest < CLOSE
