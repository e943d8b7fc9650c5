"""Presets: small YAML overlays on the defaults that hold only what differs, with the reason.

The presets of the studio are in `presets/`; a workspace can hold the user's own.
"""

import importlib.resources
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lora_studio.config.fields import SettingValues, read_yaml
from lora_studio.config.parsing import ConfigError, merge, nest, parse
from lora_studio.config.sections import Config
from lora_studio.errors import LINE, StudioError, check_length
from lora_studio.workspace import DEMO_MODEL, Workspace, safe_name, write_atomically


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
    """What differs from the defaults, nested by section: `parse` makes the same config of it."""
    return _difference(Config().model_dump(), config.model_dump())


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
