"""An evaluation or a public benchmark as a job: its request, how it is started, and what it found in one sentence."""

import importlib.util
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lora_studio.config.compute import LOCAL
from lora_studio.config.fields import Section, setting
from lora_studio.config.parsing import load_config, parse
from lora_studio.config.sections import Config, Generation
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject, absolute, source_title
from lora_studio.jobs.devices import request_facts, single_device
from lora_studio.jobs.kinds import (
    BENCHMARK,
    EVALUATE,
    BenchmarkFolder,
    JobFolders,
    JobStarter,
    damaged_request,
)
from lora_studio.jobs.kinds import EvaluationFolder as EvaluationFolder
from lora_studio.jobs.protocol import TRANSFORMERS, VLLM
from lora_studio.models.accelerators import AUTO
from lora_studio.models.adapters import named_adapter, read_card
from lora_studio.models.hardware import Device, devices
from lora_studio.models.memory import MemoryVerdict, memory_verdict
from lora_studio.units import figure
from lora_studio.workspace import RunFolder, Workspace, model_source, shipped_data

MAX_ADAPTERS = 3
BASE, ADAPTER = "base", "adapter"
VALIDATION = "validation"
"""The name of the data that a run was validated with: its validation file, or the rows that were split off."""
NAMED, OF_RUN = "it was given", "the run was trained with it (data.mapping)"


class Measuring(Section):
    """How a test file is gone through; how answers are made is the section `generation` of a config."""

    batch_size: int | None = setting(
        None,
        "Eval batch size per device",
        "Rows answered at once. Empty: as many as the free memory holds.",
        ge=1,
        le=4096,
    )
    max_samples: int | None = setting(None, "Max rows", "Uses the first rows of the file. Empty: all rows.", ge=1)
    engine: Literal["transformers", "vllm"] = setting(
        "transformers",
        "Engine",
        "vllm answers many rows faster. It needs a GPU and vLLM.",
        details="It is used only if its greedy answers to 20 prompts are those of transformers.",
    )


def check_engine(engine: str, *, gpu: bool) -> None:
    """Raises `StudioError` for an engine that this machine does not have; `gpu` says whether it has one."""
    if engine != VLLM:
        return
    if shutil.which(VLLM) is None:
        raise StudioError("vLLM is not installed.", "Set the engine to transformers, or install vLLM: pip install vllm")
    if not gpu:
        raise StudioError("vLLM needs a GPU, and there is none here.", "Set the engine to transformers.")


@dataclass(frozen=True, slots=True)
class EvaluatedColumn:
    """Who answers: `name` is what the files call it, `folder` the adapter's ("" for the base), `run` whose it is."""

    name: str
    title: str
    folder: str = ""
    run: str = ""


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """What is to be evaluated. The base stands first among the columns, where it is one of them.

    `mapping` says which column of the file is what, None recognises it; where `mapping_from` is `OF_RUN`, it counts for
    files that have the columns. `encoding` is that of a text file that is not UTF-8, None finds it. With a `split`, the
    settings by which a run divided its rows, only its validation rows are answered.
    """

    title: str
    data: str
    columns: tuple[EvaluatedColumn, ...]
    labels: tuple[str, ...]
    labels_from: str
    measuring: Measuring
    generation: Generation
    mapping: JsonObject | None = None
    mapping_from: str = ""
    encoding: str | None = None
    split: JsonObject | None = None
    compute_target: str = LOCAL
    compute_device: str = AUTO

    def to_dict(self) -> JsonObject:
        """As the folder keeps it."""
        return {
            "title": self.title,
            "data": self.data,
            "columns": [asdict(column) for column in self.columns],
            "labels": list(self.labels),
            "labels_from": self.labels_from,
            "measuring": self.measuring.model_dump(),
            "generation": self.generation.model_dump(),
            "mapping": self.mapping,
            "mapping_from": self.mapping_from,
            "encoding": self.encoding,
            "split": self.split,
            "compute_target": self.compute_target,
            "compute_device": self.compute_device,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EvaluationRequest":
        return cls(
            values["title"],
            values["data"],
            tuple(EvaluatedColumn(**column) for column in values["columns"]),
            tuple(values["labels"]),
            values["labels_from"],
            Measuring(**values["measuring"]),
            Generation(**values["generation"]),
            values.get("mapping"),  # absent from what an older studio began
            values.get("mapping_from", ""),
            values.get("encoding"),
            values.get("split"),
            values.get("compute_target", LOCAL),
            values.get("compute_device", AUTO),
        )

    @property
    def wanted(self) -> Config:
        """Where it computes, as a run's config says it."""
        return parse({"compute": {"target": self.compute_target, "device": self.compute_device}})

    @property
    def adapters(self) -> tuple[EvaluatedColumn, ...]:
        return tuple(column for column in self.columns if column.folder)


def request_of(folder: EvaluationFolder) -> EvaluationRequest:
    """What was asked for. Raises `StudioError` where its file is damaged."""
    try:
        return EvaluationRequest.from_dict(folder.read_facts())
    except (TypeError, KeyError, AttributeError, ValueError):
        raise damaged_request(folder) from None


def make_request(
    workspace: Workspace,
    adapters: Sequence[str],
    data: str,
    *,
    compare: bool = True,
    labels: str = "",
    mapping: str | Mapping[str, Any] | None = None,
    encoding: str | None = None,
    measuring: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
    compute_target: str = LOCAL,
    compute_device: str = AUTO,
) -> EvaluationRequest:
    """What a person asked for, checked. Adapters are named by run, RUN/checkpoint-N or folder.

    Labels, a mapping and an encoding that are not named are those of the first adapter's run. A shipped data set's name
    stands for its held-out file. `compute_device` is a device of this machine. Raises `StudioError` for what can't be
    evaluated.
    """
    device = single_device(compute_device)
    if device != AUTO and compute_target != LOCAL:
        raise StudioError(f"{compute_target} chooses its devices itself.", "Leave the device at auto.")
    names = list(dict.fromkeys(adapters))
    if not 1 <= len(names) <= MAX_ADAPTERS:
        raise StudioError(
            f"{len(names)} adapters are selected.", f"Choose one to {MAX_ADAPTERS}: they answer together with the base."
        )
    columns = [_column(workspace, name, number) for number, name in enumerate(names, 1)]
    own = _config_of(workspace, columns[0])
    source = _source(columns[0], own, data)
    workspace.policy.check_path(source.name)
    label_names, origin = parse({"evaluation": {"labels": labels}}).evaluation.label_names, "they were given"
    if not label_names:
        label_names, origin = own.evaluation.label_names, "they are those of the training (evaluation.labels)"
    columns_of_file = parse({"data": {"mapping": mapping, "encoding": encoding}}).data
    reading, reading_from = columns_of_file.mapping, NAMED
    if not reading:
        reading, reading_from = own.data.mapping, OF_RUN
    measured = checked(measuring or {})
    if compute_target == LOCAL:
        check_engine(measured.engine, gpu=any(offered.is_gpu for offered in devices()))
    return EvaluationRequest(
        title=f"{_listed(columns, compare)} on {source.title}",
        data=source.place,
        columns=tuple([EvaluatedColumn(BASE, "Base")] * compare + columns),
        labels=label_names,
        labels_from=origin if label_names else "",
        measuring=measured,
        generation=parse({"generation": dict(generation or {})}).generation,
        mapping=reading or None,
        mapping_from=reading_from if reading else "",
        encoding=columns_of_file.encoding or own.data.encoding,
        split=source.split,
        compute_target=compute_target,
        compute_device=device,
    )


@dataclass(frozen=True, slots=True)
class _Source:
    """Test data: the name as given, what people call it, where it is, and how its validation rows were split off."""

    name: str
    title: str
    place: str
    split: JsonObject | None = None


def _source(column: EvaluatedColumn, own: Config, data: str) -> _Source:
    """What a name of test data means. Raises `StudioError` if the run has no validation rows."""
    shipped = shipped_data().get(data)
    if shipped:
        return _Source(data, shipped.title, str(shipped.heldout))
    if data != VALIDATION or os.path.exists(data):
        return _Source(data, source_title(data), absolute(data))
    if not has_validation_rows(column.run, own):
        raise StudioError(
            f"{column.title} has no validation rows: its run has no validation file and no validation split.",
            "Choose a test file.",
        )
    rules = ("validation_fraction", "split_seed", "max_samples", "max_eval_samples")
    split = {name: getattr(own.data, name) for name in rules} | {"goal": own.training.goal}
    name = own.data.validation_file or own.data.train_file
    place = str(shipped_data()[name].train) if name in shipped_data() else absolute(name)
    return _Source(name, f"validation rows of {source_title(name)}", place, None if own.data.validation_file else split)


def has_validation_rows(run: str, config: Config) -> bool:
    """Whether an adapter's run was validated with rows that it did not train on; `run` is "" for none."""
    return bool(run) and bool(config.data.validation_file or config.data.validation_fraction > 0)


def _listed(columns: Sequence[EvaluatedColumn], compare: bool) -> str:
    """The names of all that answer: pirate, polite and base."""
    *names, last = [column.title for column in columns] + [BASE] * compare
    return f"{', '.join(names)} and {last}" if names else last


def checked(values: Mapping[str, Any]) -> Measuring:
    """The settings of a measurement. Raises `StudioError` for values out of bounds."""
    if (engine := values.get("engine")) not in (None, TRANSFORMERS, VLLM):
        raise StudioError(f"There is no engine {engine!r}.", f"Choose {TRANSFORMERS} or {VLLM}.")
    for name in ("batch_size", "max_samples"):
        value, field = values.get(name), Measuring.model_fields[name]
        if value is not None and (type(value) is not int or value < 1 or (name == "batch_size" and value > 4096)):
            raise StudioError(f"{field.title} cannot be {value}.", f"Give a whole number from 1. {field.description}")
    return Measuring(**{name: value for name, value in values.items() if value is not None})


def _column(workspace: Workspace, name: str, number: int) -> EvaluatedColumn:
    adapter = named_adapter(workspace, name)
    return EvaluatedColumn(
        ADAPTER if number == 1 else f"{ADAPTER}{number}", adapter.title, str(adapter.folder), adapter.run
    )


def _config_of(workspace: Workspace, column: EvaluatedColumn) -> Config:
    """The settings of an adapter's run; the defaults for one from elsewhere."""
    return load_config(RunFolder(workspace.runs_folder / column.run).config) if column.run else Config()


def folders(workspace: Workspace) -> JobFolders[EvaluationFolder]:
    """Where evaluations are kept."""
    return JobFolders(workspace, workspace.evaluations_folder, EvaluationFolder, "evaluation")


def create(workspace: Workspace, request: EvaluationRequest, demand: JsonObject | None = None) -> EvaluationFolder:
    """A new evaluation's folder; `demand` notes which devices it needs."""
    return folders(workspace).create({**request.to_dict(), **(demand or {})})


def evaluations(workspace: Workspace) -> list[EvaluationFolder]:
    """Every evaluation, newest first."""
    return folders(workspace).all()


def evaluation(workspace: Workspace, name: str) -> EvaluationFolder:
    """The evaluation of that id. Raises `StudioError` where there is none."""
    return folders(workspace).find(name)


def of_run(workspace: Workspace, run_id: str) -> list[EvaluationFolder]:
    """The evaluations in which an adapter of that run answers, newest first."""
    return [
        folder
        for folder in evaluations(workspace)
        if any(
            isinstance(column, dict) and column.get("run") == run_id
            for column in folder.read_facts().get("columns") or ()
        )
    ]


PROMPT_TOKENS = 512
"""Tokens of a test file's row that are reckoned with before its answer."""


def start(
    supervisor: JobStarter,
    request: EvaluationRequest,
    *,
    at_once: bool = False,
    memory: int | None = None,
    offered: Sequence[Device] = (),
) -> str:
    """Makes the evaluation's folder and starts its worker, or queues it while other jobs hold all devices; its id.

    It waits until a device has so much `memory` free, in bytes, where that is given; `offered` are those among which is
    the one that it names. With `at_once` it begins at once:
    whoever asks for that has looked whether the memory will do (`memory_for`).
    """
    workspace, demand = supervisor.workspace, {} if memory is None else {"memory_bytes": memory}
    if request.compute_device != AUTO:
        demand |= request_facts(request.wanted, offered)
    most = workspace.policy.test_rows(request.measuring.max_samples)
    workspace.policy.check_request({"settings": request.generation.model_dump()})
    request = replace(request, measuring=request.measuring.model_copy(update={"max_samples": most}))
    files = [Path(name) for name in (request.data, *(column.folder for column in request.adapters))]
    return supervisor.submit(
        EVALUATE,
        partial(create, workspace, request, demand),
        at_once=at_once,
        target=request.compute_target,
        files=[path for path in files if path.exists()],
    )


def memory_for(request: EvaluationRequest, device: Device) -> MemoryVerdict:
    """Whether an evaluation fits beside what is in a device's memory now."""
    card = read_card(Path(request.adapters[0].folder))
    row_tokens = PROMPT_TOKENS + request.generation.max_new_tokens
    rows = request.measuring.batch_size or 1  # left to the worker, it takes as many as fit
    tokens = rows * len(request.columns) * row_tokens
    folders = [Path(column.folder) for column in request.adapters]
    return memory_verdict(card.base, card.revision, card.quantization, folders, tokens, device)


def check_beside(memory: MemoryVerdict) -> None:
    """Raises `StudioError` where the memory will not do for a job beside what works."""
    if memory.need is not None and not memory.fits:
        raise StudioError(
            f"It needs about {memory.need / 1e9:.1f} GB; {memory.free / 1e9:.1f} GB are free besides the running jobs.",
            "Queue it instead: it starts when a device is free.",
        )


PACKAGE = "lm_eval"
TASKS = "hellaswag, arc_easy"


def installed() -> bool:
    """Whether this Python can run it."""
    return importlib.util.find_spec(PACKAGE) is not None


def command(adapter: Path, base: str, quantization: str, tasks: str, results: Path | str = "results") -> list[str]:
    """The words of the command. Raises `StudioError` for names that are no tasks."""
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names or not all(name.replace("_", "").replace("-", "").isalnum() for name in names):
        raise StudioError(f"{tasks!r} is not a list of task names.", f"Separate task names by commas, such as {TASKS}.")
    for part in (base, str(adapter)):
        if "," in part:  # where lm_eval's next argument begins: an adapter's own files say what its base is called
            raise StudioError(
                f"lm_eval does not support names with a comma: {part!r}.", "Rename the base or the folder."
            )
    bits = {"4bit": ",load_in_4bit=True", "8bit": ",load_in_8bit=True"}.get(quantization, "")
    model = f"pretrained={model_source(base)},peft={adapter},tokenizer={adapter}{bits}"
    words = ["--model", "hf", "--model_args", model, "--tasks", ",".join(names), "--apply_chat_template"]
    return [PACKAGE, *words, "--batch_size", "auto", "--output_path", str(results)]


def in_a_shell(words: Sequence[str]) -> str:
    """The command as it can be typed."""
    return shlex.join(words)


def start_benchmark(supervisor: JobStarter, title: str, words: Sequence[str]) -> str:
    """Makes a benchmark's folder and starts it, or queues it while another job holds the device; its id.

    `words` are those of `command`. Raises `StudioError` where it can't be run.
    """
    workspace = supervisor.workspace
    workspace.policy.check_may("run benchmarks")
    if not installed():
        raise StudioError("lm-evaluation-harness is not installed.", "Install it: pip install lm_eval")
    folders = JobFolders(workspace, workspace.benchmarks_folder, BenchmarkFolder, BENCHMARK.noun)
    return supervisor.submit(BENCHMARK, lambda: folders.create({"title": title, "words": list(words)}))


@dataclass(frozen=True, slots=True)
class Sentence:
    """One adapter's result; `kind` is good, bad, or "" where nothing is shown to differ."""

    kind: str
    words: str

    @property
    def parts(self) -> tuple[str, str]:
        """What is claimed, and what it rests on: the number of rows and the odds; "" where nothing was counted."""
        claim, counted, odds = self.words.partition(", n = ")
        return claim, f"n = {odds}" if counted else ""


def value(number: float | None, unit: str, *, signed: bool = False) -> str:
    """A metric's value: 95 % for a share, four digits for others. Shares differ by points: 2 % more of 50 % are 51."""
    if number is None:
        return "–"
    sign = "+" if signed and number > 0 else "−" if number < 0 else ""
    if unit == "share":
        return f"{sign}{100 * abs(number):.1f}".removesuffix(".0") + (" points" if signed else " %")
    return f"{sign}{figure(abs(number))}"


def verdict(summary: Mapping[str, Any]) -> list[Sentence]:
    """The most telling metric of each adapter against the first column, with n and p."""
    first, *adapters = summary["columns"]
    if not adapters:
        metric = next(iter(summary["metrics"].values()))
        words = f"{_name(metric)} {value(metric[first['name']]['value'], metric['unit'])}, n = {metric['rows']:,}"
        return [Sentence("", f"{first['title']}: {words}. No base to compare with.")]
    return [
        _compared(leading(summary, number), first, column, number, with_name=len(adapters) > 1)
        for number, column in enumerate(adapters, 1)
    ]


def leading(summary: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """The metric that decides on the adapter of that number: the first, unless both columns have none or all of it.

    Free text is rarely answered letter by letter, so 0 % exact match of both says nothing; the next metric in which
    they differ does.
    """
    metrics = list(summary["metrics"].values())
    first, name = metrics[0], difference_name(number)
    compared = (summary["columns"][0], summary["columns"][number])
    saturated = first["unit"] == "share" and {first[column["name"]]["value"] for column in compared} <= {0, 1}
    if first[name]["words"] != "the same" or not saturated:
        return first
    return next((metric for metric in metrics[1:] if metric[name]["words"] != "the same"), first)


def _compared(
    metric: Mapping[str, Any], first: Mapping[str, Any], column: Mapping[str, Any], number: int, *, with_name: bool
) -> Sentence:
    difference = metric[difference_name(number)]
    against = "the base" if first["name"] == BASE else str(first["title"])
    kind, relation = _relation(difference)
    who = f"{column['title']} is {relation}" if with_name or against != "the base" else relation
    before, after = (value(metric[item["name"]]["value"], metric["unit"]) for item in (first, column))
    values = f"{before} both" if before == after else f"{before} → {after}"
    words = f"{who} {against}: {_name(metric)} {values}, n = {metric['rows']:,}"
    return Sentence(kind, f"{words[:1].upper() if not with_name else words[:1]}{words[1:]}{_odds(difference, metric)}")


def difference_name(number: int) -> str:
    """The key under which a summary holds the difference of the adapter of that number, counted from 1."""
    return "difference" + ("" if number == 1 else str(number))


def significance(difference: Mapping[str, Any]) -> str:
    """good, bad, or "" where chance explains the difference."""
    if not difference["more_than_chance"] or difference["words"] == "the same":
        return ""
    return "good" if difference["words"].startswith("better") else "bad"


def _relation(difference: Mapping[str, Any]) -> tuple[str, str]:
    kind = significance(difference)
    if kind:
        return kind, "better than" if kind == "good" else "worse than"
    better = difference["words"].startswith("better")
    return "", "not significantly better than" if better else "no better than"


def _odds(difference: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    if difference["words"] == "the same":
        return ""
    if difference["p"] is not None:
        p = difference["p"]
        return f", p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
    if difference["low"] is None:
        return ""
    low, high = (value(difference[end], metric["unit"], signed=True) for end in ("low", "high"))
    return f", 95 % CI of the difference {low.removesuffix(' points')} to {high}"


def elsewhere(summary: Mapping[str, Any]) -> str:
    """The other metrics that differ significantly where the leading one does not; "" where there is none."""
    first, *adapters = summary["columns"]
    metrics = list(summary["metrics"].values())
    parts = []
    for number, column in enumerate(adapters, 1):
        name = difference_name(number)
        leader = leading(summary, number)
        if significance(leader[name]):
            continue
        who = f"{column['title']}: " if len(adapters) > 1 else ""
        for metric in metrics:
            if metric is not leader and (kind := significance(metric[name])):
                before, after = (value(metric[item["name"]]["value"], metric["unit"]) for item in (first, column))
                word = "better" if kind == "good" else "worse"
                parts.append(f"{who}{_name(metric)} is {word} ({before} → {after})")
    return f"Other metrics: {', '.join(parts)}." if parts else ""


def _name(metric: Mapping[str, Any]) -> str:
    """A metric's title inside a sentence: Exact match loses its capital, ROUGE-L keeps its own."""
    title = str(metric["title"])
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]
