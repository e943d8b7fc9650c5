"""An adapter without its weights: its card, its base, and whether it fits a base.

Reads JSON files and the header of the safetensors file only; nothing is fetched and torch is not needed.
"""

import functools
import hashlib
import json
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lora_studio.config.parsing import parse
from lora_studio.config.sections import Config, Lora
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.models.adapter_files import (
    KINDS,
    LORA,
    PROMPT_LEARNING,
    SETTINGS_FILE,
    WEIGHTS_FILE,
    check_small_files,
    first_names,
    is_regular_expression,
    lora_place,
    plain_name,
    ranks_held,
    read_lora,
    read_settings,
    read_studio_card,
    read_template,
)
from lora_studio.models.shape import Architecture, architecture, model_folder, read_config
from lora_studio.workspace import RunFolder, Workspace, model_source


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """What is known of an adapter. `template` is the chat template it was trained with, "" for the base's own.

    `base_fingerprint` is what the base was when the adapter was trained, "" where nothing noted it; `values` is
    everything that stands beside the weights, by the names of studio.json.
    """

    name: str
    base: str
    revision: str | None
    base_fingerprint: str
    quantization: str
    system_prompt: str
    prompt_style: str
    enable_thinking: bool | None
    template: str
    kind: str
    r: int
    values: JsonObject

    @property
    def thinks(self) -> bool:
        """Whether the template has a thinking switch."""
        return "enable_thinking" in self.template


def read_card(folder: Path) -> AdapterCard:
    """The adapter's card, from studio.json where there is one, else from what peft wrote."""
    settings = read_settings(folder)
    values = read_studio_card(folder)
    base = values.get("base_model") or settings.get("base_model_name_or_path") or None
    values |= {"base_model": base, "revision": values.get("revision") or settings.get("revision")}
    thinking = values.get("enable_thinking")
    return AdapterCard(
        name=folder.name,
        base=str(base or ""),
        revision=values["revision"],
        base_fingerprint=str(values.get("base_fingerprint") or ""),
        quantization=str(values.get("quantization") or "none"),
        system_prompt=str(values.get("system_prompt") or ""),
        prompt_style=str(values.get("prompt_style") or "chat"),
        enable_thinking=thinking if isinstance(thinking, bool) else None,
        template=read_template(folder),
        kind=KINDS[settings["peft_type"]],
        r=int(settings.get("r") or 0),
        values=values,
    )


SAMPLE_BYTES = 4096
"""Read at the start, in the middle and at the end of each tensor."""
MAX_HEADER_BYTES = 256 * 1024**2
VOLATILE = ("_name_or_path", "_commit_hash", "transformers_version")
"""What a config.json says of who wrote it, and not of the model."""


def same_base(first: str, second: str, recorded: str = "") -> bool | None:
    """Whether both names load the same model; None where that can't be seen on this machine.

    `recorded` is the fingerprint that the first base had when its adapter was trained, "" where nothing noted it: it
    counts before that of what stands there now.
    """
    if same_place(first, second):
        return True
    digest, other_digest = recorded or fingerprint(first), fingerprint(second)
    return digest == other_digest if digest and other_digest else None


def same_place(first: str, second: str) -> bool:
    """Whether both are one Hub id, or one folder, by whatever path."""
    source, other_source = model_source(first), model_source(second)
    if source.rstrip("/") == other_source.rstrip("/"):
        return True
    return (
        os.path.isdir(source)
        and os.path.isdir(other_source)
        and os.path.realpath(source) == os.path.realpath(other_source)
    )


def written_at(folder: Path) -> int:
    """When an adapter's weights were written, in nanoseconds. Raises `StudioError` where they are gone."""
    try:
        return (folder / WEIGHTS_FILE).stat().st_mtime_ns
    except OSError:
        raise StudioError(
            "The adapter's weights cannot be read.", "It was deleted or moved: choose another one."
        ) from None


def fingerprint(name: str, revision: str | None = None) -> str:
    """Of a model's config and weights; "" where they are not on this machine, or can't be read."""
    folder = model_folder(name, revision)
    if folder is None:
        return ""
    files = [folder / "config.json", *_weights(folder)]
    try:
        stamps = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
        return _fingerprint(stamps) if len(files) > 1 else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""


def _weights(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.glob("*.safetensors")) if path.name != WEIGHTS_FILE]
    return files or sorted(folder.glob("pytorch_model*.bin"))


@functools.lru_cache(maxsize=64)
def _fingerprint(stamps: tuple[tuple[str, int, int], ...]) -> str:
    config, *weights = [Path(path) for path, _, _ in stamps]
    digest = hashlib.sha256()
    values = json.loads(config.read_text(encoding="utf-8"))
    digest.update(json.dumps({key: values[key] for key in values if key not in VOLATILE}, sort_keys=True).encode())
    sampled: list[tuple[str, bytes]] = []
    for path in weights:
        sampled += _tensors(path) if path.suffix == ".safetensors" else [(path.name, _whole(path))]
    for name, sample in sorted(sampled):
        digest.update(name.encode())
        digest.update(sample)
    return digest.hexdigest()[:32]


def _tensors(path: Path) -> Iterator[tuple[str, bytes]]:
    """Each tensor of a safetensors file: its name, and what tells its type, shape and numbers."""
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"{path.name} is not a safetensors file")
        header: JsonObject = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, tensor in header.items():
            begin, end = tensor["data_offsets"]
            about = json.dumps([tensor["dtype"], tensor["shape"]]).encode()
            yield name, about + _sample(file, 8 + length + begin, end - begin)


def _whole(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        return struct.pack("<Q", size) + b"".join(
            _sample(file, at, min(size - at, 1 << 20)) for at in range(0, size, 1 << 20)
        )


def _sample(file: BinaryIO, begin: int, size: int) -> bytes:
    """A digest of the start, the middle and the end of a stretch of a file."""
    digest = hashlib.sha256()
    for at in dict.fromkeys((0, max(0, size // 2 - SAMPLE_BYTES // 2), max(0, size - SAMPLE_BYTES))):
        file.seek(begin + at)
        digest.update(file.read(min(SAMPLE_BYTES, size - at)))
    return digest.digest()


MAX_HEADER, MIN_HEADER = 16 * 1024**2, 1 << 16
"""Bytes of names and shapes: the most there can be, and the most that there can be with hardly any numbers."""
_LAYER = re.compile(r"layers\.(\d+)\.")


def unlike(card: AdapterCard, base: str) -> str:
    """Why an adapter's own base is not the model of that name; "" where it is, or nothing says otherwise.

    A Hub model that is not on this machine can't be compared: a folder of its last name passes for a copy of it.
    """
    if not card.base:
        return ""
    same = same_base(card.base, base, card.base_fingerprint)
    if same is None:
        return "" if unproved(card, base) else "they cannot be compared on this machine, and their names differ."
    if same:
        return ""
    alike = Path(card.base).name.lower() == Path(base).name.lower()
    return "they are different models with the same last name." if alike else "its weights would be meaningless there."


def unproved(card: AdapterCard, base: str) -> bool:
    """Whether base and adapter's base pass for one model only by their last name, and nothing here can prove it."""
    if not card.base or same_base(card.base, base, card.base_fingerprint) is not None:
        return False
    on_hub = is_hub_id(card.base) != is_hub_id(base)
    return on_hub and Path(card.base).name.lower() == Path(base).name.lower()


def changed(card: AdapterCard, base: str, revision: str | None = None) -> str:
    """That the base under an adapter is not what it was in its training, in words; "" where it is, or no one knows."""
    now = fingerprint(base, revision) if card.base_fingerprint else ""
    if now in ("", card.base_fingerprint):
        return ""
    return (
        f"{base} has changed since {card.name} was trained: its config or weights differ. The adapter fits the "
        "earlier version."
    )


def is_hub_id(name: str) -> bool:
    """Whether a name is an id of the Hub, and no folder of this machine or another."""
    return not name.startswith((".", "/", "~")) and name.count("/") == 1 and not os.path.isdir(name)


def together(cards: Sequence[AdapterCard]) -> list[str]:
    """What a person should know of adapters that answer side by side, on the first one's base in its precision.

    Raises `StudioError` where they are of different bases or revisions.
    """
    first, notes = cards[0], []
    for other in cards[1:]:
        if other.base and (why := _unlike_first(other, first)):
            raise StudioError(
                f"{other.name} was trained on {other.base}, and {first.name} on {first.base}: {why}",
                "All columns share one base. Select adapters of the same base.",
            )
        if other.revision != first.revision and other.revision and first.revision:
            raise StudioError(
                f"{other.name} was trained on revision {other.revision} of its base, and {first.name} on "
                f"{first.revision}.",
                "All columns share one base. Select adapters of the same revision.",
            )
        if other.quantization != first.quantization:
            notes.append(
                f"{other.name} was trained on {precision(other)}. Here it runs on {precision(first)}, like "
                f"{first.name}, so base and {other.name} can give other answers than on their own."
            )
        if first.base and unproved(other, first.base):
            notes.append(
                f"{other.base} is not on this machine. {first.base} is assumed to be a copy because of its name."
            )
    return notes


def _unlike_first(other: AdapterCard, first: AdapterCard) -> str:
    """Fingerprints that both adapters recorded decide, also where neither base is where it was."""
    if first.base_fingerprint and first.base_fingerprint == other.base_fingerprint:
        return ""
    return unlike(other, first.base) if first.base else ""


def precision(card: AdapterCard) -> str:
    """The base of an adapter's training, by its precision."""
    bits = {"4bit": "4 bits", "8bit": "8 bits"}.get(card.quantization)
    return f"the base in {bits}" if bits else "the unquantized base"


def check_fit(folder: Path, base: str | None = None, check_path: Callable[[str], None] = lambda name: None) -> str:
    """The base that an adapter belongs on: `base` where it is the same model, else the one that the adapter names.

    Raises `StudioError` with the reason where task, base or shapes are wrong. `check_path` raises it for a base that
    may not be read, before anything tells whether it is there. A Hub model that was never fetched has
    no numbers to compare with: it is checked when it is loaded.
    """
    settings, card = read_settings(folder), read_card(folder)
    check_small_files(folder)
    recorded = card.base
    for name in filter(None, (recorded, settings.get("base_model_name_or_path"))):
        check_path(str(name))
    if base and (why := unlike(card, base)):
        raise StudioError(
            f"This adapter was trained on {recorded}; the columns here use {base}.",
            f"{why[0].upper()}{why[1:]} All columns share one base. Select adapters of the same base, or remove the "
            "others first.",
        )
    base_name = base or recorded
    if not base_name:
        raise StudioError(
            "This adapter does not record the base it was trained on.", "Select a column with its base first."
        )
    numbers = read_config(base_name)
    if numbers is None:
        if base_name.startswith((".", "/", "~")) or base_name.count("/") != 1:
            raise StudioError(f"The adapter's base {base_name} is not on this machine.", "Copy the model to that path.")
        return base_name
    header = read_header(folder / WEIGHTS_FILE)
    _check_ranks(header, settings)
    if model := architecture(numbers):  # one that is not counted here is checked when it is loaded
        _check_shapes(header, model, base_name)
        _check_places(header, settings, model, base_name)
        _check_prompt(header, settings, model, base_name)
    return base_name


def read_header(path: Path) -> JsonObject:
    """Names, types and shapes of a safetensors file's tensors, without the numbers."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= size - 8:
            raise StudioError(
                f"{path.name} is not a valid safetensors file: its header is damaged.", "Save the adapter again."
            )
        if length > min(MAX_HEADER, max(MIN_HEADER, 2 * (size - 8 - length))):
            raise StudioError(
                f"{path.name} has {length:,} bytes of names for {size - 8 - length:,} bytes of weights.",
                "This is not a valid adapter. Save it again.",
            )
        try:
            header = json.loads(file.read(length))
            noted = header.pop("__metadata__", {})
            if not all(isinstance(value, str) for value in noted.values()):
                raise ValueError
            end = max((int(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
            shapes = [[int(number) for number in tensor["shape"]] for tensor in header.values()]
            if any(number < 0 for shape in shapes for number in shape):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError):
            raise StudioError(f"The header of {path.name} cannot be read.", "Save the adapter again.") from None
    if end != size - 8 - length or not shapes:
        raise StudioError(f"{path.name} is truncated: it should contain {end:,} bytes of weights.", "Copy it again.")
    return dict(header)


def _check_ranks(header: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """The settings' rank of each module is that of its matrices: peft makes matrices of the settings' ranks first.

    A pattern is taken as the end of a module's name; what more it means is for the engine to say.
    """
    if settings["peft_type"] != LORA or settings.get("target_parameters"):
        return
    patterns: Mapping[str, int] = settings.get("rank_pattern") or {}
    for module, actual in ranks_held({name: tuple(tensor["shape"]) for name, tensor in header.items()}).items():
        ends = (rank for end, rank in patterns.items() if f".{module}".endswith(f".{end}"))
        configured = next(ends, None if any(map(is_regular_expression, patterns)) else int(settings.get("r") or 8))
        if configured is not None and configured != actual:
            matrix = "its largest matrix" if configured > actual else "its matrix"
            raise StudioError(
                f"The adapter's config states rank {configured:,}, but {matrix} has {actual:,} rows "
                f"({module.removeprefix('base_model.model.')}).",
                "Copy adapter_config.json and the weights from the same adapter.",
            )


def _check_places(header: Mapping[str, Any], settings: Mapping[str, Any], model: Architecture, base: str) -> None:
    """At least one LoRA matrix of the file is of a module that the base has, where the base's modules are all known."""
    module_names = {plain_name(path) for linear in model.linears for path in linear.paths}
    places = {place[0] for name in header if (place := lora_place(name))}
    if settings["peft_type"] != LORA or settings.get("target_parameters") or not model.exact or not places:
        return
    elsewhere = ("embed_tokens", "lm_head", "experts", "router", "gate")
    if not any(plain_name(place) in module_names or plain_name(place).endswith(elsewhere) for place in places):
        raise StudioError(
            f"None of the adapter's weights matches a module of {base}: it has {first_names(sorted(places), 2)}.",
            f"It was trained on another model: {base} has {first_names(sorted(module_names), 2)}.",
        )


def _check_prompt(header: Mapping[str, Any], settings: Mapping[str, Any], model: Architecture, base: str) -> None:
    """The trained virtual tokens of prompt learning: as many as the settings say, and as wide as the base is."""
    kind = settings["peft_type"]
    if kind not in PROMPT_LEARNING:
        return
    keys_and_values = model.layers * 2 * model.kv_heads * model.head_size
    expected = [settings.get("num_virtual_tokens"), keys_and_values if kind == "PREFIX_TUNING" else model.hidden]
    shape = header.get("prompt_embeddings", {}).get("shape")
    if shape != expected or (settings.get("token_dim") not in (None, expected[1]) and kind != "PREFIX_TUNING"):
        raise StudioError(
            f"The adapter's virtual tokens have the shape {shape}; {base} needs {expected}.",
            "It was trained on another model, or its config belongs to another adapter.",
        )


def _check_shapes(header: Mapping[str, Any], model: Architecture, base: str) -> None:
    linears = {plain_name(path): linear for linear in model.linears for path in linear.paths}
    for name, tensor in header.items():
        place = lora_place(name)
        if place is None or place[1] not in ("A", "B") or len(tensor["shape"]) != 2:
            continue
        (module, side), shape = (plain_name(place[0]), place[1]), tuple(tensor["shape"])
        layer = _LAYER.match(module)
        if layer and int(layer[1]) >= model.layers:
            raise StudioError(
                f"The adapter has weights for layer {int(layer[1]) + 1}, but {base} has {model.layers} layers.",
                "It was trained on another model.",
            )
        if module in linears:
            expected = linears[module].inputs if side == "A" else linears[module].outputs
            size = shape[-1] if side == "A" else shape[0]
            if size != expected:
                counted = "columns" if side == "A" else "rows"
                module_name = place[0].removeprefix("base_model.model.")
                raise StudioError(
                    f"The adapter's matrix for {module_name} has {size:,} {counted}; {base} needs {expected:,}.",
                    "It was trained on another model.",
                )


# Of the adapter's settings these are no part of its weights: a new run may choose them anew.
FREE = ("lora_dropout", "init_lora_weights")


def adapter_folder(workspace: Workspace, name: str) -> Path:
    """The folder of an adapter named by itself, by its run, or by a run's checkpoint."""
    workspace.policy.check_path(name)
    path = Path(name).expanduser()
    # os.path, as a path asked itself fails for a name that no file can bear
    if os.path.isfile(path / SETTINGS_FILE):
        return path.resolve()
    if os.path.isdir(path) and not (path / "run.json").is_file():
        raise StudioError(
            f"{path} is not an adapter: it has no {SETTINGS_FILE}.", "Give the folder of an adapter, or a run."
        )
    run_name, _, checkpoint = name.rstrip("/").rpartition("/")
    if checkpoint.startswith("checkpoint-") and run_name:
        run = workspace.run(Path(run_name).name)
        names = [folder.name for folder in run.checkpoint_folders()]
        if checkpoint not in names:
            raise StudioError(
                f"Run {run.id} has no {checkpoint}.", f"It has: {', '.join(names) or 'no checkpoint yet'}."
            )
        return run.checkpoints / checkpoint
    run = workspace.run(path.name)
    if (run.adapter / SETTINGS_FILE).is_file():
        return run.adapter
    checkpoints = run.checkpoint_folders()
    if not checkpoints:
        raise StudioError(
            f"Run {run.id} has no adapter yet.", "The adapter exists when the run is finished or has a checkpoint."
        )
    return checkpoints[-1]


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """An adapter as a person knows it; `run` is the id of the run that trained it, "" for one from elsewhere."""

    title: str
    folder: Path
    run: str


def named_adapter(workspace: Workspace, name: str) -> NamedAdapter:
    """The adapter of a run, RUN/checkpoint-N or folder, with its title. Raises `StudioError` unless it can be used."""
    folder = adapter_folder(workspace, name)
    for base in bases_of(folder):
        workspace.policy.check_path(base)
    run = folder.parent if folder.parent.parent == workspace.runs_folder else folder.parent.parent
    inside = run.parent == workspace.runs_folder
    title = str(RunFolder(run).read_facts()["title"]) if inside else folder.name
    if inside and folder.name.startswith("checkpoint-"):
        title += f", step {folder.name.rpartition('-')[2]}"
    return NamedAdapter(title, folder, run.name if inside else "")


def bases_of(folder: Path) -> list[str]:
    """What an adapter's own files say of the base that it belongs on. Raises `StudioError` unless it is one to use."""
    bases = (read_card(folder).base, read_settings(folder).get("base_model_name_or_path"))
    return [str(base) for base in dict.fromkeys(bases) if base]


def continued(config: Config, workspace: Workspace) -> Config:
    """The config with its adapter by its whole path and the adapter's own LoRA settings; unchanged where it names none.

    Raises `StudioError` where the adapter is not there, can't be read safely, or belongs to another base.
    """
    name = config.model.adapter_name_or_path
    if name is None:
        return config
    folder = adapter_folder(workspace, name)
    settings = read_lora(folder)
    check_base(config, folder)
    values = config.model_dump()
    values["model"]["adapter_name_or_path"] = str(folder)
    earlier = {key: value for key in Lora.model_fields if (value := _kept(key, settings)) is not None}
    values["lora"] |= {"init_lora_weights": "default", **earlier}
    return parse(values)


def _kept(key: str, settings: JsonObject) -> Any:
    """The adapter's own value of a LoRA setting; None where it has none or a run may choose it."""
    value = None if key in FREE else settings.get(key)
    if key == "target_modules":
        value = value or settings.get("target_parameters")
    if isinstance(value, float):
        return max(1, round(value))  # an alpha that is no whole number; what is computed with is the adapter's own
    return ", ".join(sorted(value)) if isinstance(value, list) else value


def check_base(config: Config, folder: Path) -> None:
    """Raises `StudioError` where the adapter was trained on another base than the config's."""
    card = read_card(folder)
    if same := unlike(card, config.model.name):
        raise StudioError(
            f"This adapter was trained on {card.base}, not on {config.model.name}: {same}",
            f"Set model.name to {card.base}, or leave model.adapter_name_or_path empty for a new adapter.",
        )
    if card.revision and config.model.revision and card.revision != config.model.revision:
        raise StudioError(
            f"This adapter was trained on revision {card.revision} of {card.base}, not on {config.model.revision}.",
            f"Set model.revision to {card.revision}.",
        )
