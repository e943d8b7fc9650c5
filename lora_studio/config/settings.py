"""The settings of the schema one by one, as form, flags and documentation need them."""

import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from lora_studio.config.fields import Section, SettingValues
from lora_studio.config.sections import Config


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as form, flags and documentation need it. `kind` is int, float, bool, str, choice or mapping.

    `names` holds what the page calls some of the choices.
    """

    path: str
    kind: str
    default: Any
    title: str
    description: str
    basic: bool
    group: str = ""
    choices: tuple[Any, ...] = ()
    optional: bool = False
    minimum: float | None = None
    maximum: float | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def section(self) -> str:
        return self.path.rpartition(".")[0]


@cache
def settings() -> tuple[Setting, ...]:
    """Every setting in the order of the schema, which does not change while a process lives."""
    entries: list[Setting] = []
    for name, info in Config.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            entries += described(info.annotation, f"{name}.")
        else:
            entries.append(_describe(name, info))
    return tuple(entries)


@cache
def described(section: type[Section], prefix: str = "") -> tuple[Setting, ...]:
    """The settings of one section; `prefix` stands before their names in a path."""
    return tuple(_describe(f"{prefix}{leaf}", info) for leaf, info in section.model_fields.items())


def _describe(path: str, info: FieldInfo) -> Setting:
    """Reads kind, choices and bounds off a field's annotation and constraints."""
    annotation = info.annotation
    union = get_origin(annotation) in (Union, types.UnionType)
    parts = [part for part in (get_args(annotation) if union else (annotation,)) if part is not type(None)]
    optional = union and type(None) in get_args(annotation)
    choices: list[Any] = []
    for part in parts:
        if get_origin(part) is Literal:
            choices = [*get_args(part), *choices]
        elif part is bool and (len(parts) > 1 or optional):
            choices = [*choices, True, False]
    plain = {bool: "bool", int: "int", float: "float", str: "str", dict: "mapping"}
    kind = "choice" if choices else plain[get_origin(parts[0]) or parts[0]]
    bounds = {type(mark): mark for mark in info.metadata}
    lowest = bounds[Ge].ge if Ge in bounds else bounds[Gt].gt if Gt in bounds else None
    highest = bounds[Le].le if Le in bounds else bounds[Lt].lt if Lt in bounds else None
    extra = info.json_schema_extra
    details: SettingValues = extra if isinstance(extra, dict) else {"basic": False, "group": "", "names": {}}
    return Setting(
        path=path,
        kind=kind,
        default=info.default,
        title=info.title or path,
        description=info.description or "",
        basic=details["basic"],
        group=details["group"],
        choices=tuple(choices),
        optional=optional,
        minimum=lowest,
        maximum=highest,
        names=details["names"],
    )


def flatten(config: Config) -> SettingValues:
    """Every setting's value by its path."""
    values = config.model_dump()
    return {
        setting.path: values[setting.section][setting.path.rpartition(".")[2]]
        if setting.section
        else values[setting.path]
        for setting in settings()
    }
