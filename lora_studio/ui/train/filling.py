"""What fills the form besides typing: a preset over the defaults, and what is taken back when the model changes."""

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from lora_studio.config.fields import SettingValues
from lora_studio.config.parsing import parse
from lora_studio.config.presets import Preset, is_for_model, presets
from lora_studio.config.sections import Config
from lora_studio.config.settings import flatten
from lora_studio.errors import StudioError
from lora_studio.ui import form as forms
from lora_studio.workspace import DEMO_MODEL, Workspace

OWN_CHOICES = ("model.name", "model.revision", "data.train_file", "data.validation_file")
"""What a preset leaves as it is unless it names it."""


def with_preset(raws: Sequence[Any], overlay: Mapping[str, Any]) -> list[Any]:
    """The form of a preset; model and data stay as they are unless the preset names them."""
    overridden = forms.known_values(overlay)
    flat = {
        path: value for path, value in flatten(parse(overlay)).items() if path in overridden or path not in OWN_CHOICES
    }
    return forms.overlay(raws, flat)


def left_preset(
    workspace: Workspace, preset: str | None, raws: Sequence[Any], protected: Collection[str] = ()
) -> list[Any] | None:
    """The form without the values of a preset for the built-in model, where another model is chosen; else None.

    Its learning rate and epochs are for 2.5 M parameters. What was typed since, and `protected` settings, stay.
    """
    model = forms.values(raws)["model.name"]
    selected = presets(workspace).get(preset or "") if model != DEMO_MODEL else None
    if selected is None or is_for_model(selected, str(model)):
        return None
    overlaid = {
        path: forms.overlay(raws, {path: value}) for path, value in forms.known_values(selected.values()).items()
    }
    same = [
        path for path, filled in overlaid.items() if filled == list(raws) and path not in (*OWN_CHOICES, *protected)
    ]
    default = flatten(Config())
    return forms.overlay(raws, {path: default[path] for path in same})


def with_recipe(raws: Sequence[Any], preset: Preset, without: Collection[str] = ()) -> list[Any]:
    """The form of a preset, as `with_preset` fills it, but for the settings `without`; read once and kept."""
    flat, named = preset_settings(preset)
    protected = {path for path in OWN_CHOICES if path not in named} | set(without)
    return forms.overlay(raws, {path: value for path, value in flat.items() if path not in protected})


def baseline(workspace: Workspace, preset: str | None) -> Mapping[str, Any]:
    """Every setting by path as the chosen preset has it, else the default: what a changed field is reset to."""
    selected = presets(workspace).get(preset or "")
    return preset_settings(selected)[0] if selected else flatten(Config())


def preset_settings(preset: Preset) -> tuple[Mapping[str, Any], Collection[str]]:
    """The defaults with a preset on top, and the paths that it names; those of the defaults where it is not valid."""
    return _settings_of(preset, preset.path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _settings_of(preset: Preset, _changed: int) -> tuple[SettingValues, frozenset[str]]:
    try:
        overlay = preset.values()
        return flatten(parse(overlay)), frozenset(forms.known_values(overlay))
    except StudioError:
        return flatten(Config()), frozenset()


def changed_from(base: Mapping[str, Any], raws: Sequence[Any]) -> dict[str, str]:
    """Fields that differ from the recipe, by path, each with the recipe's value in words; model and data are free."""
    pairs = zip(raws, forms.overlay(raws, base), forms.to_draft(raws), strict=True)
    free = (*OWN_CHOICES, "title")
    return {path: forms.in_words(path, base[path]) for raw, before, path in pairs if raw != before and path not in free}
