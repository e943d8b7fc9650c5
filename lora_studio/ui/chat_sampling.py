"""How the chat's answers are sampled: the settings of a config's section `generation`, from its boxes to the engine."""

from collections.abc import Mapping, Sequence
from typing import Any

from lora_studio.parsing import nest, parse
from lora_studio.settings import settings
from lora_studio.ui import form

SAMPLING = tuple(setting for setting in settings() if setting.section == "generation")


def checked(raws: Sequence[Any]) -> dict[str, Any]:
    """The settings by path, checked; an emptied box is its default."""
    chosen = {}
    for setting, raw in zip(SAMPLING, raws, strict=True):
        value = form.from_widget(setting, raw)
        chosen[setting.path] = setting.default if value is None else value
    found = parse(nest(chosen)).generation.model_dump()
    return {setting.path: found[_name(setting.path)] for setting in SAMPLING}


def boxes(generation: Mapping[str, Any]) -> list[Any]:
    """What the boxes hold for these settings, given by their last names."""
    return [form.to_widget(setting, generation[_name(setting.path)]) for setting in SAMPLING]


def plain(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their last names, as the engine takes them."""
    return {_name(path): value for path, value in sampling.items()}


def _name(path: str) -> str:
    return path.rpartition(".")[2]
