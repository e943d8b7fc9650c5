"""Reads a config file of another trainer as settings, and tells of each of its keys what became of it.

Every key is taken over, taken over with a difference that is told, needs nothing, or has no counterpart. What the
trainer does where the file is silent is set too, where it changes what is learned: the run is the one that the file
describes.
"""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.config.fields import SettingValues, read_yaml
from lora_studio.config.other_tools import (
    EMPTY,
    FRACTION,
    LOSSES,
    METHODS,
    SFT_LOSSES,
    SPECIAL,
    Answer,
    Kind,
    Source,
    Tool,
    answer_to,
    by_path,
    keys_of,
    shown,
    taken,
    tool_of,
    tools,
    without,
)
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.models.adapter_files import read_object
from lora_studio.models.hub import dataset_name

TITLES: Mapping[Kind, str] = {
    "taken": "Taken over",
    "differs": "Different here",
    "same": "Nothing to set",
    "none": "No counterpart",
}
"""What can become of a key, as a heading."""
DATASET_INFO = "dataset_info.json"
MAX_KEYS = 1000
TRAIN, VALIDATION, MAPPING = "data.train_file", "data.validation_file", "data.mapping"
_SECRET = re.compile(r"api_?key|secret|password|webhook|^env$")
_SERVICE = re.compile(r"hub|hf|ms|om|wandb|swanlab|auth|access")
"""Whose token a key that ends so holds: others, such as pad_token, are text of a model."""


@dataclass(frozen=True, slots=True)
class Line:
    """A key of the file with its value (hidden where it is a secret), and what became of it."""

    key: str
    value: str
    kind: Kind
    settings: SettingValues
    note: str

    @property
    def words(self) -> str:
        """The line in one sentence."""
        here = ", ".join(f"{path} {shown(value)}" for path, value in self.settings.items())
        text = f"{self.key}: {self.value}" if self.value else self.key
        return text + (f" → {here}" if here else "") + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True, slots=True)
class Imported:
    """A file of another trainer as settings by path; `defaults` of these are what it does where the file is silent.

    `unchanged` are the defaults of the trainer that were not taken over, in words, by the path that differs.
    """

    tool: Tool
    settings: SettingValues
    lines: tuple[Line, ...]
    defaults: SettingValues
    unchanged: Mapping[str, str]

    def of(self, kind: Kind) -> list[Line]:
        """The lines of a kind, but for keys that are empty."""
        return [line for line in self.lines if line.kind == kind and line.note != EMPTY]

    @property
    def empty(self) -> list[str]:
        """Keys without a value."""
        return [line.key for line in self.lines if line.note == EMPTY]


def read_values(path: Path) -> SettingValues:
    """The mapping in a YAML or JSON file. Raises `StudioError`."""
    return read_object(path) if path.suffix.lower() == ".json" else read_yaml(path)


def import_file(
    path: Path, info: Path | None = None, tool: str = "", uploads: Mapping[str, str] | None = None
) -> Imported:
    """The settings of another trainer's file. `info` is LLaMA-Factory's dataset_info.json (None: looked for).

    `uploads` are the known files by name where the file was uploaded: nothing is looked for beside it then.
    Raises `StudioError` for a file that is not recognized, and for a method that the studio does not have.
    """
    values = read_values(path)
    writer = tools().get(tool) or tool_of(values)
    if writer is None:
        titles = ", ".join(tool.title for tool in tools().values())
        keys = ", ".join(map(str, list(values)[:8])) or "nothing"
        raise StudioError(
            f"{path.name} is not recognized as a config of another trainer (found {keys}).",
            f"Files of these are read: {titles}. A config of LoRA Studio itself needs no import.",
        )
    if uploads is not None:
        return convert(Source(writer, values, (), read_object(info) if info else {}, None, uploads))
    info_file = info or (_dataset_info(values, path) if writer.name == "llama-factory" else None)
    infos, folder = (read_object(info_file), info_file.parent.resolve()) if info_file else ({}, None)
    return convert(Source(writer, values, (path.parent,), infos, folder))


def _dataset_info(values: Mapping[str, Any], path: Path) -> Path | None:
    """LLaMA-Factory's list of datasets: in `dataset_dir` from here or from the file, or beside the file."""
    folder = Path(os.path.expanduser(str(values.get("dataset_dir") or "data")))
    places = (place / DATASET_INFO for place in (folder, path.parent / folder, path.parent))
    return next((place for place in places if os.path.isfile(place)), None)


def convert(source: Source) -> Imported:
    """The settings of values that were read. Raises `StudioError` for a method that the studio does not have."""
    tool = source.tool
    flat = {key: _plain(value) for key, value in keys_of(tool, source.values).items()}
    if len(flat) > MAX_KEYS:
        raise StudioError(f"The file has {len(flat):,} keys; the limit is {MAX_KEYS:,}.", "Open a config file.")
    source = Source(tool, flat, source.folders, source.datasets, source.dataset_folder, source.files)
    _refuse(source)
    results: SettingValues = {}
    lines = []
    for key, value in flat.items():
        answer = _answer(key, value, source)
        clash = [path for path, new in answer.settings.items() if path in results and results[path] != new]
        if clash:
            answer = without(f"another key has set {', '.join(clash)}")
        results |= answer.settings
        text = "(hidden)" if is_secret(key) and value else shown(value)
        lines.append(Line(shown(key), text, answer.kind, answer.settings, answer.note))
    if tool.adapter_key and not flat.get(tool.adapter_key):
        warning = "; LoRA wants about ten times the learning rate of training all weights"
        rate = warning if "training.learning_rate" in results else "; the learning rate is the default for LoRA here"
        lines.append(Line(f"no {tool.adapter_key}", "", "differs", {}, tool.about[tool.adapter_key] + rate))
    defaults = _defaults(source, results)
    if enough := _rows_for_kl({**results, **defaults}):
        note = "KTO estimates KL within a batch, which takes two rows"
        lines.append(Line("batches of one row", "", "differs", enough, note))
        results |= enough
        defaults = {path: value for path, value in defaults.items() if path not in enough}
    unchanged = {path: words for path, words in tool.unchanged.items() if path not in results}
    return Imported(tool, {**results, **defaults}, tuple(lines), defaults, unchanged)


def _rows_for_kl(values: SettingValues) -> SettingValues:
    """The batches that KTO needs where a file of it has batches of one row, as those of LLaMA-Factory have: two rows
    and half of the accumulation."""
    batch, accumulation = "training.per_device_train_batch_size", "training.gradient_accumulation_steps"
    evaluated = "evaluation.per_device_eval_batch_size"
    if values.get("training.method") != "kto":
        return {}
    enough: SettingValues = {evaluated: 2} if values.get(evaluated) == 1 else {}
    if values.get(batch) == 1:
        steps = values.get(accumulation, by_path()[accumulation].default)
        enough |= {batch: 2, accumulation: max(1, steps // 2) if isinstance(steps, int) else steps}
    return enough


def is_secret(key: str) -> bool:
    """Whether a key holds a password, or the token of a service."""
    return bool(_SECRET.search(key)) or (key.endswith("token") and bool(_SERVICE.search(key.removesuffix("token"))))


def _plain(value: Any) -> Any:
    """Switches that stand as text as what they are."""
    text = value.strip().lower() if isinstance(value, str) else ""
    return {"true": True, "false": False, "null": None}.get(text, value)


_METHOD_KEYS = ("stage", "rl", "rlhf_type")
_TYPE_KEYS = ("finetuning_type", "tuner_type", "train_type", "sft_type", "training_type", "adapter", "peft_type")
_LORA_TYPES = ("lora", "qlora", "lora/qlora")
_OF_METHODS = {
    **dict.fromkeys(("num_generations", "reward_funcs"), "GRPO"),
    **dict.fromkeys(("reward_model", "process_reward_model", "center_rewards_coefficient"), "a reward model"),
}
"""Keys that tell the method of a file that does not name it."""


def _refuse(source: Source) -> None:
    """Raises `StudioError` with every method of the file that the studio does not have."""
    refusals = []
    for key, value in source.values.items():
        leaf, name = key.rpartition(".")[2], str(value).lower()
        if value in (None, "", False, [], {}):
            continue
        losses = {str(item) for item in value} if isinstance(value, list) else {str(value)}
        refused = (
            (leaf in _METHOD_KEYS and name not in (*METHODS, "pt", "ipo"))
            or (leaf in _TYPE_KEYS and name not in _LORA_TYPES)
            or (leaf in ("task_type", "lora_task_type") and name not in ("causal_lm", "tasktype.causal_lm"))
            or (leaf in ("loss_type", "pref_loss") and not losses <= {*LOSSES, *SFT_LOSSES, "kto"})
        )
        method = _OF_METHODS.get(leaf, "")
        if refused or (method and method.lower() not in METHODS):
            refusals.append(f"{key}: {shown(value)}" + (f", which belongs to {method}" if method else ""))
    if refusals:
        raise StudioError(
            f"This file of {source.tool.title} trains in a way that is not available here ({'; '.join(refusals)}).",
            "Available are LoRA and QLoRA adapters of causal language models, trained with "
            f"{' or '.join(name.upper() for name in METHODS)}.",
        )


def _answer(key: str, value: Any, source: Source) -> Answer:
    if not isinstance(value, bool) and value in (None, "", [], {}):
        return Answer("same", {}, EMPTY)
    leaf = key.rpartition(".")[2]
    special = OF_DATA.get(leaf) or SPECIAL.get(leaf)
    answer = special(value, source) if special else None
    answer = answer or answer_to(source.tool, key, value)
    note = source.tool.notes.get(key, "")
    if answer.kind not in ("taken", "differs") or not note:
        return answer
    return Answer("differs", answer.settings, "; ".join(dict.fromkeys(filter(None, (answer.note, note)))))


_LORA_ALONE = ("lora.lora_dropout", "lora.target_modules", "training.learning_rate")
"""Defaults for LoRA, or for training all weights: not set for a file that names no adapter."""


def _defaults(source: Source, results: SettingValues) -> SettingValues:
    """What the trainer does where the file is silent."""
    tool, values = source.tool, {**results}
    all_weights = bool(tool.adapter_key) and not source.values.get(tool.adapter_key)
    for path, default in tool.defaults.items():
        silent = path not in results and not (all_weights and path in _LORA_ALONE)
        if path == "training.warmup_ratio":
            silent = silent and not results.get("training.warmup_steps")
        if path == FRACTION:
            silent = silent and VALIDATION not in results
        if silent:
            values[path] = _default(default, values, source)
    if results.get("evaluation.load_best_model_at_end") and "training.save_strategy" not in results:
        values["training.save_strategy"] = results.get("evaluation.eval_strategy", "epoch")
        values["training.save_steps"] = results.get("evaluation.eval_steps", by_path()["training.save_steps"].default)
    return {path: value for path, value in values.items() if path not in results}


def _default(default: Any, values: SettingValues, source: Source) -> Any:
    """A default, computed where it depends on other settings."""
    if default == "2 × rank":
        return 2 * values["lora.r"] if isinstance(values["lora.r"], int) else by_path()["lora.lora_alpha"].default
    if default == "16 / batch size":
        rows = values["training.per_device_train_batch_size"]
        return math.ceil(16 / rows) if isinstance(rows, int) and rows > 0 else 1
    if isinstance(default, Mapping):
        return default.get(values.get("training.method", METHODS[0]), default[METHODS[0]])
    return default


def _several(items: Sequence[Any], read: Callable[[Any, Source], Answer], source: Source) -> Answer:
    """The first of several datasets, and what can be done with the others."""
    answer = read(items[0], source)
    if len(items) == 1:
        return answer
    advice = f"{len(items)} datasets: the first is taken; to train on all, put their files into a folder and name it"
    return Answer("differs", answer.settings, "; ".join(filter(None, (answer.note, advice))))


_HUB = re.compile(r"[\w.-]+/[\w.-]+")


def _named(name: str, source: Source, config: str = "", split: str = "") -> tuple[str, str]:
    """A file as it is found from here or a dataset of the Hub, and what is to be known of it."""
    name, part = name.strip(), re.sub(r"\[.*", "", split)
    local = source.path(name)
    exists = os.path.exists(os.path.expanduser(local))
    if local != name or exists or Path(name).suffix or not _HUB.fullmatch(name):
        here = exists or not source.folders
        return local, "" if here else f"there is no {name} here: set data.train_file"
    note = f"all of {part}, without {split[len(part) :]}: see data.max_samples" if part != split else ""
    return dataset_name(name, config, "" if part == "train" else part), note


def _data(path: str, name: Any, source: Source, config: Any = "", split: Any = "", **more: Any) -> Answer:
    """A dataset by its name, with what else is set by it."""
    value, note = _named(str(name), source, str(config or ""), str(split or ""))
    return Answer("differs" if note else "taken", {path: value, **more}, note)


def _with(answer: Answer, settings: SettingValues, notes: Sequence[str]) -> Answer:
    note = "; ".join(filter(None, (answer.note, *notes)))
    return Answer("differs" if note else answer.kind, {**answer.settings, **settings}, note)


def _list(value: Any) -> list[Any]:
    """One or several datasets as a list; never an empty one."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()] or [value]
    return list(value) if isinstance(value, list) and value else [value]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _dataset(value: Any, source: Source) -> Answer:
    """`dataset` of LLaMA-Factory, ms-swift and Unsloth Studio."""
    readers = {"llama-factory": _listed(TRAIN), "ms-swift": _swift(TRAIN), "unsloth": _unsloth(TRAIN)}
    return _several(_list(value), readers.get(source.tool.name, _axolotl(TRAIN)), source)


def _validation(value: Any, source: Source) -> Answer:
    readers = {"llama-factory": _listed(VALIDATION), "ms-swift": _swift(VALIDATION), "unsloth": _unsloth(VALIDATION)}
    return _several(_list(value), readers.get(source.tool.name, _axolotl(VALIDATION)), source)


Reader = Callable[[Any, Source], Answer]


def _listed(path: str) -> Reader:
    """A dataset of LLaMA-Factory's dataset_info.json."""

    def read(name: Any, source: Source) -> Answer:
        info = source.datasets.get(str(name))
        if not isinstance(info, Mapping):
            where = f"{DATASET_INFO} does not list it" if source.datasets else f"{DATASET_INFO} was not found"
            return taken(path, str(name), f"{where}: set {path} to its file")
        hub, file = info.get("hf_hub_url"), info.get("file_name")
        if not (hub or file):
            return without(f"{name} is neither a file nor a dataset of the Hugging Face Hub: set {path}")
        folder = source.dataset_folder or Path(str(source.get("dataset_dir") or ""))
        answer = (
            _data(path, hub, source, info.get("subset"), info.get("split"))
            if hub and not (file and os.path.exists(folder / str(file)))
            else _data(path, str(folder / str(file)), source)
        )
        if path == VALIDATION:
            return answer
        mapping, notes = _columns(info)
        rows = {"data.max_samples": info["num_samples"]} if info.get("num_samples") else {}
        return _with(answer, rows | ({MAPPING: mapping} if mapping else {}), notes)

    return read


_SPEAKERS = {"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system", "observation_tag": "tool"}


def _columns(info: Mapping[str, Any]) -> tuple[SettingValues, list[str]]:
    """The column mapping of an entry of dataset_info.json ({} for the usual names), and what it leaves out."""
    columns, tags = _mapping(info.get("columns")), _mapping(info.get("tags"))
    parts = ("system", "tools", "history", *(("chosen", "rejected") if info.get("ranking") else ()))
    mapping: SettingValues = {part: columns[part] for part in parts if columns.get(part)}
    mapping |= {"label": columns["kto_tag"]} if columns.get("kto_tag") else {}
    if str(info.get("formatting", "alpaca")) == "alpaca":
        question, more, answer = (columns.get(part) for part in ("prompt", "query", "response"))
        if question and more:
            mapping["user_template"] = f"{{{question}}}\n{{{more}}}"
        elif question:
            mapping["user" if answer or "chosen" in mapping else "text"] = question
        mapping |= {"assistant": answer} if answer and "chosen" not in mapping else {}
    elif columns.get("messages"):
        mapping["messages"] = columns["messages"]
    roles = {str(tags[tag]): role for tag, role in _SPEAKERS.items() if tags.get(tag) and tags[tag] != role}
    media = [part for part in ("images", "videos", "audios") if columns.get(part)]
    notes = [f"{', '.join(media)} are left out: models answer with text alone"] if media else []
    return mapping | ({"roles": roles} if roles and mapping else {}), notes


def _swift(path: str) -> Reader:
    """ms-swift's ID:SUBSET#ROWS."""

    def read(value: Any, source: Source) -> Answer:
        name, _, rows = re.sub(r"^(hf|ms)::", "", str(value), flags=re.IGNORECASE).partition("#")
        plain_name, _, subset = name.partition(":")
        limit = "data.max_samples" if path == TRAIN else "data.max_eval_samples"
        answer = _data(path, plain_name, source, subset, **({limit: int(rows)} if rows.isdigit() else {}))
        return _with(answer, {}, [_of_modelscope(plain_name, source)])

    return read


def _unsloth(path: str) -> Reader:
    def read(value: Any, source: Source) -> Answer:
        split = source.get("train_split" if path == TRAIN else "eval_split")
        return _data(path, value, source, source.get("subset"), split)

    return read


_TYPES = {"alpaca": "alpaca", "chat_template": "chat"}


def _axolotl(path: str) -> Reader:
    """An entry of axolotl's or trl's lists of datasets."""

    def read(entry: Any, source: Source) -> Answer:
        if not isinstance(entry, Mapping):
            return _data(path, entry, source)
        files = _list(entry["data_files"]) if entry.get("data_files") else []
        name = str(entry.get("path") or entry.get("id") or "")
        if files and ("/" not in name or os.path.exists(Path(source.path(name)) / str(files[0]))):
            name = str(files[0]) if name in ("json", "csv", "parquet", "text", "") else f"{name}/{files[0]}"
        answer = _data(path, name, source, entry.get("name") or entry.get("config"), entry.get("split"))
        return answer if path == VALIDATION else _with(answer, *_fields(entry, source))

    return read


def _fields(entry: Mapping[str, Any], source: Source) -> tuple[SettingValues, list[str]]:
    """What else an entry sets: the prompt style and the columns, and what it leaves out."""
    kind, settings, notes = entry.get("type"), SettingValues(), list[str]()
    names = {"messages": "field_messages", "system": "field_system", "tools": "field_tools"}
    names |= {"chosen": "field_chosen", "rejected": "field_rejected", "reasoning": "field_thinking"}
    mapping: SettingValues = {part: entry[name] for part, name in names.items() if entry.get(name)}
    if isinstance(kind, Mapping):
        own = {"user": "field_instruction", "assistant": "field_output", "system": "field_system"}
        own |= {"user": "field_prompt"} if kind.get("field_prompt") else {}
        own |= {"chosen": "field_chosen", "rejected": "field_rejected", "label": "field_label"}
        own |= {"assistant": "field_completion"} if kind.get("field_completion") else {}
        mapping |= {part: kind[name] for part, name in own.items() if kind.get(name)}
        if kind.get("field_input") and "user" in mapping:
            mapping["user_template"] = f"{{{mapping.pop('user')}}}\n{{{kind['field_input']}}}"
        notes.append("the texts around the columns (format) are those of data.prompt_style")
    elif kind == "completion":
        settings["data.train_on"] = "all"
        mapping["text"] = entry.get("field") or "text"
    elif str(kind).partition(".")[0] in _TYPES and not source.get("rl"):
        style = _TYPES[str(kind).partition(".")[0]]
        if style == "alpaca":
            settings["data.prompt_style"] = style
            notes.append("Alpaca's opening sentence is no part of the prompt here; data.system_prompt can hold it")
        elif not source.get("chat_template") and not entry.get("chat_template"):
            settings["data.prompt_style"] = style
    elif kind and not source.get("rl"):
        notes.append(f"type {kind}: the format is recognized by the rows")
    roles = _mapping(entry.get("roles"))
    spoken = {str(name): role for role, listed in roles.items() for name in _list(listed) if str(name) != role}
    if spoken and mapping:
        mapping["roles"] = spoken
    trained = entry.get("roles_to_train")
    if trained and trained != ["assistant"]:
        notes.append(f"roles_to_train {', '.join(map(str, _list(trained)))}: data.train_on knows the assistant, or all")
    return settings | ({MAPPING: mapping} if mapping else {}), notes


def _trl_dataset(value: Any, source: Source) -> Answer:
    return _data(TRAIN, value, source, source.get("dataset_config"), source.get("dataset_train_split"))


def _trl_test(value: Any, source: Source) -> Answer:
    name = source.get("dataset_name")
    strategy = source.get("eval_strategy") or source.get("evaluation_strategy")
    if not name or strategy in (None, "no", False):
        return Answer("same", {}, "nothing is evaluated without eval_strategy")
    return _data(VALIDATION, name, source, source.get("dataset_config"), value)


def _mixture(value: Any, source: Source) -> Answer:
    """The mixtures of trl's recipes: names with weights, or a list of entries."""
    if isinstance(value, Mapping) and isinstance(value.get("datasets"), list) and value["datasets"]:
        return _several(value["datasets"], _axolotl(TRAIN), source)
    splits = _list(source.get("dataset_splits") or [""])
    names = list(value) if isinstance(value, Mapping) and value else _list(value)

    def read(name: Any, of: Source) -> Answer:
        answer = _data(TRAIN, name, of, "", splits[0])
        test = _data(VALIDATION, name, of, "", splits[1]).settings if len(splits) > 1 else {}
        return _with(answer, test, ())

    return _several(names, read, source)


def _part_of_data(_: Any, source: Source) -> Answer:
    return Answer("same", {}, "a part of the dataset's name")


def _eval_split(value: Any, source: Source) -> Answer | None:
    name = source.get("dataset") or source.get("hf_dataset")
    return _data(VALIDATION, name, source, source.get("subset"), value) if name else None


def _text_column(value: Any, _: Source) -> Answer:
    if value == "text":
        return Answer("same", {}, "plain text in this column is recognized")
    return taken(MAPPING, {"text": value})


def _swift_columns(value: Any, _: Source) -> Answer:
    parts = {"query": "user", "response": "assistant", "system": "system", "messages": "messages", "history": "history"}
    parts |= {"rejected_response": "rejected", "tools": "tools"}
    names = value if isinstance(value, Mapping) else {}
    mapping = {parts[str(part)]: column for column, part in names.items() if str(part) in parts}
    return taken(MAPPING, mapping) if mapping else without("columns are mapped in data.mapping")


def _model(value: Any, source: Source) -> Answer | None:
    return taken("model.name", source.path(value), _of_modelscope(value, source)) if isinstance(value, str) else None


def _of_modelscope(name: str, source: Source) -> str:
    """That an id may be one of another hub."""
    elsewhere = source.tool.name == "ms-swift" and not source.get("use_hf") and _HUB.fullmatch(name)
    return "an id of ModelScope there; here one of the Hugging Face Hub" if elsewhere else ""


def _adapter(value: Any, source: Source) -> Answer:
    items = _list(value)
    return taken("model.adapter_name_or_path", source.path(str(items[0])), "the first of several" if items[1:] else "")


OF_DATA: Mapping[str, Reader | Callable[[Any, Source], Answer | None]] = {
    **dict.fromkeys(("dataset", "datasets", "local_dataset", "local_datasets", "hf_dataset"), _dataset),
    "pretraining_dataset": lambda value, source: _with(_dataset(value, source), {"data.train_on": "all"}, ()),
    **dict.fromkeys(
        ("eval_dataset", "test_datasets", "val_dataset", "local_eval_dataset", "local_eval_datasets"), _validation
    ),
    "dataset_name": _trl_dataset,
    "dataset_test_split": _trl_test,
    **dict.fromkeys(("dataset_mixer", "dataset_mixture"), _mixture),
    **dict.fromkeys(
        ("dataset_config", "dataset_train_split", "dataset_splits", "subset", "train_split", "dataset_dir"),
        _part_of_data,
    ),
    "eval_split": _eval_split,
    "dataset_text_field": _text_column,
    "columns": _swift_columns,
    **dict.fromkeys(("model", "model_name_or_path", "base_model", "base_model_name_or_path"), _model),
    **dict.fromkeys(("adapters", "adapter_name_or_path", "lora_model_dir"), _adapter),
}
"""Keys of data and models, whose paths are looked for from here; None leaves a value to the tables."""


def report(imported: Imported) -> list[str]:
    """What became of every key, and which defaults of the trainer were set, as lines of text."""
    lines = []
    for kind, title in TITLES.items():
        if selected := imported.of(kind):
            lines += [f"{title}:", *(f"  {line.words}" for line in selected)]
    if imported.empty:
        lines.append(f"Without a value: {', '.join(imported.empty)}")
    if imported.defaults:
        lines.append(f"Not in the file, so the defaults of {imported.tool.title} are set:")
        lines += [f"  {path} {shown(value)}" for path, value in imported.defaults.items()]
    if imported.unchanged:
        words = ", ".join(f"{path} ({other} there)" for path, other in imported.unchanged.items())
        lines.append(f"Not in the file, and left at the defaults of LoRA Studio: {words}")
    return lines


def as_json(imported: Imported) -> JsonObject:
    """The same as JSON."""
    keys = [
        {"key": line.key, "value": line.value, "kind": line.kind, "settings": line.settings, "note": line.note}
        for line in imported.lines
    ]
    return {
        "tool": imported.tool.name,
        "settings": imported.settings,
        "keys": keys,
        "defaults": imported.defaults,
        "unchanged": dict(imported.unchanged),
    }
