"""Numbered checks before a run starts: what would make it fail, in a second instead of after an hour.

The checks are plain functions of the config, the machine and what a session child reports on data and model.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_studio.config.parsing import NEED_FULL_WEIGHTS, NOT_ON_EXPERTS, with_absolute_paths
from lora_studio.config.sections import Config, files_of
from lora_studio.errors import StudioError
from lora_studio.jobs.protocol import FetchConfig, FirstRows, LookAtFirst, LookAtModel, ModelFacts
from lora_studio.jobs.session import READING, Session
from lora_studio.jobs.targets import TargetLaunchers, Targets, local_files, problems_on
from lora_studio.models.accelerators import attention_lacks, expected_attention, is_flash, lacks_state_kernels
from lora_studio.models.adapters import continued
from lora_studio.models.advice import (
    Advice,
    advise,
    changes_that_fit,
    desirable_counts,
    label_counts,
    notes,
    optimizer_steps,
    situation,
    trained_tokens,
)
from lora_studio.models.hardware import Device, all_devices, choose, device_for
from lora_studio.models.hub import may_run_code_of, warning
from lora_studio.models.memory import UNLIMITED, checkpoint_bytes, estimate, settled, trained_adapter, verdict
from lora_studio.models.shape import Architecture, architecture, beyond, linear_layers, read_config
from lora_studio.units import GIB, count, size
from lora_studio.workspace import DEMO_MODEL, Workspace, model_source

BITS = {"4bit": "4 bits", "8bit": "8 bits"}
ROUGH = "parameters are counted exactly, but activations of this kind of model are estimated"
OK, NOTE, ASK, FAILED = "ok", "note", "ask", "failed"
"""What a check can say: all right; worth knowing; start only if the person insists; can't work."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what was looked at, how it went, what was found, and what to do about it."""

    title: str
    state: str
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All checks in their order, one verdict over them, and what would likely train a better adapter.

    `memory` is what the run needs of its device, in bytes; None where that is not known.
    """

    checks: tuple[Check, ...]
    advice: tuple[Advice, ...] = ()
    memory: int | None = None

    @property
    def state(self) -> str:
        """The worst that a check says: "failed", "ask" or "ok"."""
        states = {check.state for check in self.checks}
        return FAILED if FAILED in states else ASK if ASK in states else OK

    @property
    def words(self) -> str:
        """The verdict in a sentence."""
        wrong = sum(check.state == FAILED for check in self.checks)
        if wrong:
            return f"{wrong} of {len(self.checks)} checks failed: this run would fail."
        return "Memory is probably too small. Start anyway?" if self.state == ASK else "Ready to start."


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run is weighed against. `memory` is what it may take of the device, in bytes; None where a target beside
    this machine does not say. `offered` are all devices that it could have chosen.
    """

    device: Device
    memory: int | None
    disk_free: int
    offered: tuple[Device, ...] = ()


def this_machine(
    device: Device, workspace: Workspace, *, busy: bool = False, offered: Sequence[Device] = ()
) -> Machine:
    """`busy` says that a run of ours holds the device: the next one begins when it has gone."""
    free = device.memory_total if busy else device.memory_free
    return Machine(device, free, shutil.disk_usage(workspace.root).free, tuple(offered))


def preflight(
    config: Config,
    machine: Machine,
    data: FirstRows | StudioError,
    seen: ModelFacts | StudioError | None = None,
) -> Report:
    """Every check, in the order in which a run would meet them. `seen` is what the child found of the model itself
    (`engine.models.adapter.look_at_model`), where the model is on this machine."""
    numbers = read_config(config.model.name, config.model.revision)
    model = architecture(numbers) if numbers else None
    longest = None if isinstance(data, StudioError) else int(data.report["tokens"]["max"])
    checks = [
        _model(config, numbers, seen),
        *_code(config),
        *_settings(config, machine),
        *_precision(config, model, machine.device),
        *_attention(config, numbers, machine.device),
        _data(config, data, seen),
        _template(data),
        _modules(config, model, seen),
        *_notes(config, machine.device.kind),
        _batch(config, data),
        _evaluation(config, data),
        _disk(config, model, machine),
        _memory(config, model, machine, longest),
    ]
    advice = _advice(config, data, seen, fits=model is None or checks[-1].state == OK)
    return Report(tuple(checks), advice, _needed(config, model, machine, longest))


def _advice(
    config: Config, data: FirstRows | StudioError, seen: ModelFacts | StudioError | None, *, fits: bool
) -> tuple[Advice, ...]:
    """Advice on the run. Rows, steps and tokens are known where all rows were looked at."""
    run = situation(config, fits=fits)
    if isinstance(seen, ModelFacts) and seen.trainable:
        run = replace(run, trainable=seen.trainable)
    if not isinstance(data, StudioError) and not data.report["sampled"]:
        rows = data.report["train_rows"]
        steps = None if config.training.packing else optimizer_steps(config, rows)
        tokens, labels = trained_tokens(data.report), label_counts(data.report)
        run = replace(run, rows=rows, steps=steps, trained_tokens=tokens, labels=labels)
        good, bad = desirable_counts(data.report, config.training.method)
        run = replace(run, desirable=good, undesirable=bad)
    return advise(run)


def _model(config: Config, numbers: Mapping[str, Any] | None, seen: ModelFacts | StudioError | None = None) -> Check:
    name, title = config.model.name, "Model"
    if isinstance(seen, StudioError):
        return Check(title, FAILED, seen.message, seen.hint)
    if seen and seen.problem:
        return Check(title, FAILED, *seen.problem)
    if os.path.isdir(model_source(name)):
        if numbers is None:
            return Check(title, FAILED, f"{name} has no readable config.json.", "Give the folder of a model.")
        return Check(title, OK, f"{name} is on this machine.")
    if numbers is not None:
        return Check(title, OK, f"{name} is in the cache of this machine.")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        return Check(title, FAILED, f"There is no model {name}.", "Give a folder with a config.json, or a Hub id.")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        advice = "Unset HF_HUB_OFFLINE, or name a folder."
        return Check(title, FAILED, f"{name} is not on this machine, and HF_HUB_OFFLINE disables downloads.", advice)
    return Check(title, NOTE, f"{name} is not on this machine yet and will be downloaded first.")


def _code(config: Config) -> list[Check]:
    """That a model's own program code runs, where it was allowed to; nothing where it was not."""
    if not may_run_code_of(config.model.name):
        return []
    return [Check("Code", NOTE, warning(config.model.name), "Continue only if you know what this code does.")]


def _settings(config: Config, machine: Machine) -> list[Check]:
    """The settings that cannot work on this machine; nothing where all can."""
    problems = problems_on(config, machine.offered or (machine.device,))
    return [Check("Settings", FAILED, f"{problem.path}: {problem.message}.") for problem in problems]


def _precision(config: Config, model: Architecture | None, device: Device) -> list[Check]:
    """That a base which is stored in 4 or 8 bits stays so, whatever is chosen; nothing for all others."""
    if model is None or model.stored == "none":
        return []
    title, stored, chosen = "Precision", BITS[model.stored], config.model.quantization
    if why := device.lacks.get(model.stored):
        found = f"The base is stored in {stored}, which cannot run here: {why}."
        return [Check(title, FAILED, found, "Use a 16-bit version of the base.")]
    if chosen not in ("none", model.stored):
        advice = f"Set model.quantization to {model.stored}, or use a 16-bit version of the base."
        return [Check(title, FAILED, f"The base is stored in {stored} and cannot be loaded in {chosen}.", advice)]
    if config.lora.init_lora_weights in NEED_FULL_WEIGHTS:
        first = config.lora.init_lora_weights
        advice = "Set lora.init_lora_weights to default, or use a 16-bit version of the base."
        return [
            Check(
                title,
                FAILED,
                f"The base is stored in {stored}, which does not support the initialization {first}.",
                advice,
            )
        ]
    if chosen == "none":
        return [Check(title, NOTE, f"The base is stored in {stored} and is trained that way, as with {model.stored}.")]
    return [Check(title, OK, f"The base is stored in {stored}, as configured.")]


def _attention(config: Config, numbers: Mapping[str, Any] | None, device: Device) -> list[Check]:
    """Which attention the run will most likely take and why, and that rows may share a sequence; nothing where the
    settings already told that it can't run."""
    title, training = "Attention", config.training
    kind, capability = device.kind, device.capability
    expected = expected_attention(config.model.attn_implementation, kind, config.model.dtype, capability)
    if attention_lacks(expected.name, kind):
        return []
    if why := attention_lacks(expected.name, kind, capability=capability):
        return [Check(title, FAILED, f"{expected.name} cannot run here: {why}.", "Use auto or sdpa.")]
    joined = training.packing or training.padding_free is True
    layer = linear_layers(numbers or {})
    if joined and layer and lacks_state_kernels():
        path = "training.packing" if training.packing else "training.padding_free"
        words = f"The model has layers with linear attention ({layer}), which carry a state from row to row."
        return [Check(title, FAILED, words, f"Turn {path} off, or install causal_conv1d and flash-linear-attention.")]
    words = f"{expected.words}."
    if joined and not is_flash(expected.name):
        words += " Rows that share a sequence are fast with FlashAttention only: each layer reads a mask of all of it."
    return [Check(title, OK, words)]


def _data(config: Config, data: FirstRows | StudioError, seen: ModelFacts | StudioError | None = None) -> Check:
    title = "Data"
    if isinstance(data, StudioError):
        return Check(title, FAILED, data.message, data.hint)
    report = data.report
    if isinstance(seen, ModelFacts):
        longest = min(int(report["tokens"]["max"]), config.data.max_length)
        error = beyond(
            config.model.name,
            largest_id=data.largest_id,
            longest=longest,
            embeddings=seen.embeddings,
            positions=seen.positions,
        )
        if error is not None:
            return Check(title, FAILED, error.message, error.hint)
    looked = f"the first {report['sampled']:,} rows" if report["sampled"] else "all rows"
    usable, bad, dropped = report["train_rows"] + report["validation_rows"], report["bad_rows"], report["dropped_rows"]
    found = f"{report['reading']} Checked {looked}: {usable:,} valid"
    found += f", {report['marked_bad_rows']:,} labelled bad and ignored" if report["marked_bad_rows"] else ""
    found += f", {bad:,} invalid" if bad else ""
    found += f", {dropped:,} without a trained token at {config.data.max_length:,} tokens" if dropped else ""
    if bad + dropped > usable:
        return Check(title, NOTE, found + ".", "Check the Data tab: most rows are lost.")
    return Check(title, OK, found + ".")


def _template(data: FirstRows | StudioError) -> Check:
    title = "Template"
    if isinstance(data, StudioError):
        return Check(title, NOTE, "Not checked: the data could not be read.")
    report = data.report
    style, ends = report["prompt_style"], [shown["ends_with_eos"] for shown in report["examples"]]
    if not any(ends):
        advice = "A model that never sees its end token does not learn to stop. A higher data.max_length may help."
        return Check(title, NOTE, f"{style}: the answer of the example does not end with the end token.", advice)
    return Check(title, OK, f"{style}: answers end with the model's end token, which is trained.")


def _modules(config: Config, model: Architecture | None, seen: ModelFacts | StudioError | None = None) -> Check:
    title = "Adapter"
    if isinstance(seen, ModelFacts) and seen.adapter_problem:
        return Check(title, FAILED, *seen.adapter_problem)
    if model is None:
        return Check(title, NOTE, f"The model's modules are unknown{_why_unknown(config)}.")
    lora = config.lora
    trained = trained_adapter(config, model)
    known = ", ".join(dict.fromkeys(item.leaf for item in model.linears))
    missing = "" if config.model.adapter_name_or_path else ", ".join(trained.missing)  # the child looked at its places
    if missing and not model.exact:
        return Check(title, NOTE, f"{missing}: not among the expected modules of this model ({known}).")
    if missing:
        return Check(title, FAILED, f"The model has no module {missing}.", f"Its modules are: {known}.")
    if trained.on_parameters and lora.lora_dropout:
        advice = "Set lora.lora_dropout to 0, or lora.target_modules to attention."
        return Check(title, FAILED, "Adapters on stacked experts do not support dropout.", advice)
    if trained.on_parameters and lora.init_lora_weights in NOT_ON_EXPERTS:
        advice = "Set lora.init_lora_weights to default, or lora.target_modules to attention."
        found = f"Adapters on stacked experts do not support the initialization {lora.init_lora_weights}."
        return Check(title, FAILED, found, advice)
    counted = seen.trainable if isinstance(seen, ModelFacts) else None
    number = trained.trainable if counted is None else counted
    share = 100 * number / (model.parameters + (trained.added if counted is None else counted))
    about = "" if counted is not None or model.exact else "About "
    return Check(title, OK, f"{about}{number:,} trainable parameters, {share:.2f} % of the model.")


def _notes(config: Config, kind: str) -> list[Check]:
    """What is worth knowing of the base model."""
    return [Check(note.title, NOTE, note.finding, note.advice) for note in notes(config, kind)]


def _why_unknown(config: Config) -> str:
    """Why a model's numbers are not known."""
    if read_config(config.model.name, config.model.revision) is None:
        return " before it is downloaded"
    return ": its config.json lacks the values of a supported architecture"


def _batch(config: Config, data: FirstRows | StudioError) -> Check:
    title = "Batch"
    training = config.training
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps * config.compute.world_size
    if isinstance(data, StudioError) or data.report["sampled"] or training.packing:
        return Check(title, OK, f"{count(rows, 'row')} per step.")
    there = data.report["train_rows"]
    if there < rows:
        advice = "Lower training.gradient_accumulation_steps or training.per_device_train_batch_size."
        words = f"{count(rows, 'row')} per step, but only {count(there, 'row')}: an epoch is a single step."
        return Check(title, NOTE, words, advice)
    return Check(title, OK, f"{count(rows, 'row')} per step, {count(there, 'row')}.")


def _evaluation(config: Config, data: FirstRows | StudioError) -> Check:
    title, evaluation = "Validation", config.evaluation
    if isinstance(data, StudioError):
        return Check(title, NOTE, "Not checked: the data could not be read.")
    rows, wanted = data.report["validation_rows"], evaluation.eval_strategy != "no"
    uses = {
        "evaluation.load_best_model_at_end": evaluation.load_best_model_at_end,
        "evaluation.early_stopping_patience": evaluation.early_stopping_patience,
        "evaluation.labels": evaluation.labels,
        "evaluation.gen_eval_samples": evaluation.gen_eval_samples,
    }
    needed = [name for name, on in uses.items() if on]
    if rows or not wanted:
        return Check(title, OK, f"{rows:,} validation rows." if rows else "Evaluation is off.")
    advice = "Increase data.validation_fraction, or set a data.validation_file."
    if needed:
        return Check(title, FAILED, f"There are no validation rows, which {needed[0]} requires.", advice)
    return Check(title, NOTE, "There are no validation rows, so there will be no validation loss.", advice)


def _disk(config: Config, model: Architecture | None, machine: Machine) -> Check:
    title, free = "Disk", f"{size(machine.disk_free)} free"
    if model is None:
        return Check(title, NOTE, f"{free}; the size of a checkpoint is unknown{_why_unknown(config)}.")
    each = checkpoint_bytes(config, model)
    kept = 1 if config.training.save_strategy == "no" else config.training.save_total_limit + 2
    needed = each * kept  # one more while it is written, and the adapter itself
    found = f"{free}; checkpoints and adapter need up to {size(needed)}."
    if needed > machine.disk_free:
        advice = "Free some space, or lower training.save_total_limit."
        return Check(title, FAILED, found, advice)
    return Check(title, OK, found)


def _needed(config: Config, model: Architecture | None, machine: Machine, longest: int | None) -> int | None:
    """The memory of the run, in bytes; None where it is unknown or a guess."""
    if model is None or not model.counted:
        return None
    kind, room = machine.device.kind, machine.memory or UNLIMITED
    return estimate(settled(config, model, kind, room, longest), model, kind, longest).total


def _memory(config: Config, model: Architecture | None, machine: Machine, longest: int | None) -> Check:
    title, device = "Memory", machine.device
    if model is None:
        return Check(title, NOTE, f"The memory of the run is unknown{_why_unknown(config)}.")
    if machine.memory is None:
        needed = estimate(settled(config, model, device.kind, UNLIMITED, longest), model, device.kind, longest).total
        found = f"About {needed / GIB:,.1f} GiB per process. The memory of {device.name} is not known here."
        return Check(title, NOTE, found)
    chosen = settled(config, model, device.kind, machine.memory, longest)
    expected = estimate(chosen, model, device.kind, longest)
    needed = expected.total
    found = f"About {needed / GIB:,.1f} GiB of {machine.memory / GIB:,.1f} GiB free on {device.name}."
    fit = verdict(needed, machine.memory)
    if not model.counted:
        advice = "Start only if you know that the model fits."
        return Check(title, ASK, f"{found} This is a guess: this architecture is not supported.", advice)
    if not expected.exact:
        found += f" A rough estimate: {ROUGH}."
    if fit == "fits":
        return Check(title, OK, found)
    change = changes_that_fit(config, model, device.kind, machine.memory, longest=longest)
    advice = f"This change would help: {change.title}." if change else "No single change helps: use a smaller model."
    return Check(title, NOTE if fit == "tight" else ASK, found, advice)


LOG = "preflight.log"
NOT_READ = "Model and data are not checked here: only the job reads them."


def check_before_start(config: Config, workspace: Workspace, session: Session | None = None, *, busy: bool) -> Report:
    """All checks of a config. A `session` that is at work, or none, leaves the look at the data to a child of its own.
    Raises `StudioError` for a device that is not there.

    `busy` says that jobs of ours hold the device until this run begins.
    """
    workspace.policy.check_request({**files_of(config), "target": config.compute.target})
    config = Targets(workspace).placed(continued(workspace.policy.admit(config), workspace))
    elsewhere, told = Targets(workspace).device(config.compute.target), ""
    if elsewhere is not None:
        told = TargetLaunchers(workspace).check(config.compute.target, local_files(config))
        machine = Machine(elsewhere, elsewhere.memory_total or None, shutil.disk_usage(workspace.root).free)
        if workspace.policy.jobs_token(workspace.policy.owner_id) is not None and config.model.name != DEMO_MODEL:
            return Report((Check("Model", NOTE, NOT_READ), Check("Target", OK, told)))
    else:
        offered = all_devices()
        choose(config.compute.device, offered)  # one that is not there needs no further look
        device = device_for(config.compute.device, offered)
        machine = this_machine(device, workspace, busy=busy, offered=offered)
    if session is not None and not session.busy:
        report = preflight(config, machine, _look(config, session), look_at_model(config, session))
    else:
        with Session(workspace.logs_folder / LOG, patience=lambda: READING) as own:
            report = preflight(config, machine, _look(config, own), look_at_model(config, own))
    return replace(report, checks=(*report.checks, Check("Target", OK, told))) if told else report


def _look(config: Config, session: Session) -> FirstRows | StudioError:
    """What the first rows come to with the model's tokenizer, or what is wrong with them."""
    try:
        return session.call(request_of(config))
    except StudioError as error:
        return error


def look_at_model(config: Config, session: Session) -> ModelFacts | StudioError | None:
    """What the model itself says of the run (by `look_at_model` of the engine), or what is wrong with it; None for a
    model that is not on this machine yet."""
    if read_config(config.model.name, config.model.revision) is None:
        return None
    path = Path(config.model.name).expanduser()
    folder = os.path.isdir(path) and config.model.name != DEMO_MODEL
    try:
        return session.call(
            LookAtModel(
                model=str(path.resolve()) if folder else config.model.name,
                revision=config.model.revision,
                lora=config.lora.model_dump(),
                seed=config.training.seed,
                adapter=config.model.adapter_name_or_path,
                quantization=config.model.quantization,
            )
        )
    except StudioError as error:
        return error


def look_at_model_alone(config: Config, workspace: Workspace) -> ModelFacts | StudioError | None:
    """The same with a child of its own, which ends with the answer."""
    with Session(workspace.logs_folder / "estimate.log") as own:
        return look_at_model(config, own)


def request_of(config: Config) -> LookAtFirst:
    """The look at the first rows: the data section, what it is read for, and whose tokenizer is meant."""
    data = with_absolute_paths(config).data.model_dump()
    model = config.model
    return LookAtFirst(**data, goal=config.training.goal, model=model.name, revision=model.revision)


def fetch_numbers(config: Config, session: Session) -> None:
    """Lets the child fetch the model's config.json into this machine's cache. Raises `StudioError` where it can't."""
    session.call(FetchConfig(model=config.model.name, revision=config.model.revision))
