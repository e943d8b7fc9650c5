"""The building blocks of the schema (`setting`, `Section`), pydantic's errors in plain words, and YAML within limits.

A few lines of YAML whose aliases refer to each other can expand to billions of values, so their number is limited.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from lora_studio.errors import StudioError
from lora_studio.units import kind_of

SettingValues = dict[str, Any]
"""Values of settings: by path ("lora.r"), or nested by section."""

MAX_TEXT = 4000
"""Characters of a setting that says nothing else: room for any path, and for a list of names."""
MAX_SEED = 2**32 - 1
"""The largest that numpy takes."""
GROUPS = {
    "Scaling and modules": "Scale, dropout and target modules of the adapter.",
    "Variants": "Other initializations and parameterizations of the adapter.",
    "Duration and memory": "How long the run takes and how it uses memory.",
    "Speed and memory": "Kernels, compilation, checkpointing and offloading.",
    "Schedule": "How the learning rate changes over the run.",
    "Optimizer": "How gradients update the adapter.",
    "Regularization": "Reduces overfitting on small datasets.",
    "Checkpoints": "What is saved during the run.",
}
"""Groups of folded settings within a section, with one sentence each."""


def setting(
    default: Any,
    title: str,
    description: str,
    *,
    details: str = "",
    basic: bool = False,
    group: str = "",
    names: Mapping[str, str] | None = None,
    by_method: Mapping[str, Any] | None = None,
    **bounds: Any,
) -> Any:
    """A field of the schema.

    `title` is the standard term, with its unit. `description` is a hint of at most 12 words; `details` are for the
    tooltip, `--help` and the documentation. `basic` settings are always visible on the form, the others are folded, in
    one of `GROUPS`. `names` labels choices whose own names are not readable. `by_method` holds the defaults of the
    training methods, where they differ.
    """
    extra: SettingValues = {
        "details": details,
        "basic": basic,
        "group": group,
        "names": dict(names or {}),
        "by_method": dict(by_method or {}),
    }
    return Field(default=default, title=title, description=description, json_schema_extra=extra, **bounds)


class Section(BaseModel):
    """What all sections share: unknown names are errors, numbers are finite, values never change after the check."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), str_max_length=MAX_TEXT
    )


_PLAIN = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "missing": "is required",
    "list_type": "must be a list",
    "string_too_long": "must have at most {max_length:,} characters",
    "literal_error": "must be {expected}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "value_error": "{error}",
    "dict_type": "must be a mapping of names to columns",
    "model_type": "must be a section with settings below it",
    "model_attributes_type": "must be a section with settings below it",
}
"""What pydantic's kinds of error say to a person; kinds that are not here keep pydantic's words."""


def plain_words(item: Any) -> str:
    """What pydantic found wrong with a value, as a person would say it."""
    return _PLAIN.get(item["type"], str(item["msg"])).format(**item.get("ctx", {}))


MAX_VALUES = 100_000
MAX_CHARACTERS = 1_000_000


def load(text: str) -> Any:
    """The values. Raises `yaml.YAMLError` for text that is no YAML, or that stands for too much."""
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"it has more than {MAX_CHARACTERS:,} characters")
    try:
        values = yaml.safe_load(text)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    _check_size(values)
    return values


def _check_size(values: Any) -> None:
    """Counts what is there when every alias is followed; one that holds itself never ends."""
    remaining, waiting = MAX_VALUES, [values]
    while waiting:
        value = waiting.pop()
        inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        remaining -= 1 + len(inner)
        if remaining < 0:
            raise yaml.YAMLError(f"it expands to more than {MAX_VALUES:,} values")
        waiting.extend(inner)


def read_yaml(path: Path) -> SettingValues:
    """The mapping in a YAML file. Raises `StudioError` for a missing file, broken YAML or anything but a mapping."""
    try:
        with path.open(encoding="utf-8") as file:
            values = load(file.read(MAX_CHARACTERS + 1))
    except FileNotFoundError:
        raise StudioError(f"The file {path} does not exist.", "Give the path of a YAML config.") from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise StudioError(f"{path} is not a text file.", "Give the path of a YAML config.") from None
    except yaml.YAMLError as error:
        raise StudioError(f"{path} is not valid YAML: {error}", "Check the indentation and the colons.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise StudioError(
            f"{path} contains {kind_of(values)}, not settings.",
            "A config has sections (`section:`) with settings below.",
        )
    return values
