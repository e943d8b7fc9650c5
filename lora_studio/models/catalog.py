"""The base models on this machine: built in, in folders, in the Hugging Face cache, exported, or used by a run before.

Only config files and file sizes are read: no weights, no network.
"""

import functools
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.models.shape import architecture, hub_cache, model_folder
from lora_studio.workspace import DEMO_MODEL, Workspace

BUILT_IN, FOLDER, CACHED, EXPORTED, USED = "built in", "folder", "downloaded", "exported here", "used before"
MODEL_FOLDERS = "models"
"""Where people keep models: this folder in the workspace, beside the program, and at home."""
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
MAX_LISTED = 60
MAX_RUNS = 100  # the newest that are asked for their model
RECENT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model to train on. `name` is what `model.name` takes; parameters and size are None if they are unknown here."""

    name: str
    origin: str
    parameters: int | None = None
    disk_bytes: int | None = None


def local_models(workspace: Workspace) -> list[LocalModel]:
    """What the caller may train on, each model once: built in, used before, folders, downloaded ones, exports."""
    used = [(name, USED) for name in _used_before(workspace)]
    origins: dict[str, str] = {}
    for name, origin in ((DEMO_MODEL, BUILT_IN), *used, *_folders_at(workspace.root, _moment())):
        if _may_use(workspace, name):
            origins.setdefault(name, origin)
    return [describe(name, origin) for name, origin in list(origins.items())[:MAX_LISTED]]


def describe(name: str, origin: str = USED) -> LocalModel:
    """A model's numbers from its files on this machine; none for a model that is not here."""
    folder = model_folder(name)
    if folder is None:
        return LocalModel(name, origin)
    try:
        changed = (folder / "config.json").stat().st_mtime_ns
    except OSError:
        return LocalModel(name, origin)
    return LocalModel(name, origin, *_numbers(folder, changed))


def _moment() -> int:
    return int(time.monotonic() / RECENT_SECONDS)


@functools.lru_cache(maxsize=8)
def _folders_at(root: Path, _moment: int) -> tuple[tuple[str, str], ...]:
    """Names of models in folders and caches; asked of the disk at most every few seconds."""
    return tuple(_folders(root))


def _folders(root: Path) -> Iterator[tuple[str, str]]:
    for place in dict.fromkeys((root / MODEL_FOLDERS, Path(MODEL_FOLDERS), Path.home() / MODEL_FOLDERS)):
        yield from ((str(folder.resolve()), FOLDER) for folder in _models_below(place))
    for folder in sorted(hub_cache().glob("models--*")):
        name = folder.name.removeprefix("models--").replace("--", "/")
        snapshot = model_folder(name)
        if snapshot is not None and is_language_model(snapshot):
            yield name, CACHED
    for folder in sorted((root / "exports").glob("*/*")):
        if is_language_model(folder):
            yield str(folder), EXPORTED


def _models_below(place: Path) -> Iterator[Path]:
    """Model folders in a folder, and in those below it (publisher/model)."""
    for pattern in ("*", "*/*"):
        yield from (folder for folder in sorted(place.glob(pattern)) if is_language_model(folder))


def is_language_model(folder: Path) -> bool:
    """Whether a folder holds the weights of a model that answers in text, and is no adapter."""
    if not os.path.isfile(folder / "config.json") or not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        return False
    config = _config(folder)
    names = config.get("architectures") or ["ForCausalLM"]
    named = any(str(name).endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")) for name in names)
    return named and architecture(config) is not None


def _config(folder: Path) -> JsonObject:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


@functools.lru_cache(maxsize=256)
def _numbers(folder: Path, _changed: int) -> tuple[int | None, int | None]:
    """Parameters, and bytes of the weights on the disk."""
    model = architecture(_config(folder))
    octets = 0
    for pattern in WEIGHTS:
        octets = octets or sum(file.stat().st_size for file in folder.glob(pattern) if file.is_file())
    return (model.parameters if model and model.counted else None), (octets or None)


def _used_before(workspace: Workspace) -> list[str]:
    names = (run.read_facts().get("model") for run in workspace.runs()[:MAX_RUNS])
    return list(dict.fromkeys(str(name) for name in names if name))


def _may_use(workspace: Workspace, name: str) -> bool:
    try:
        workspace.policy.check_request({"model": name})
    except StudioError:
        return False
    return True
