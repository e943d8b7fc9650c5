"""From a mapping or a YAML file to a checked config, and back. Every problem is reported at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lora_studio.config import fields
from lora_studio.config.conflicts import Problem, contradictions
from lora_studio.config.other_names import meant, plain_value
from lora_studio.config.sections import Config
from lora_studio.config.settings import settings
from lora_studio.errors import StudioError


class ConfigError(StudioError):
    """All problems of a config at once."""

    def __init__(self, problems: list[Problem]) -> None:
        noun = "setting is" if len(problems) == 1 else "settings are"
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"{len(problems)} {noun} not right:\n{lines}", "Mend these and try again.")
        self.problems = problems


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
    "string_too_long": "must have at most {max_length:,} characters",
    "literal_error": "must be {expected}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "value_error": "{error}",
    "dict_type": "must be a mapping of names to columns",
    "model_type": "must be a section: names with values below it",
    "model_attributes_type": "must be a section: names with values below it",
}
"""What pydantic's kinds of error say to a person; kinds that are not here keep pydantic's words."""


def parse(values: Mapping[str, Any]) -> Config:
    """The checked config of a nested mapping. Raises `ConfigError` with every problem."""
    try:
        config = Config.model_validate(dict(values))
    except ValidationError as error:
        by_path: dict[str, Problem] = {}
        for problem in map(_explain, error.errors(include_url=False)):
            earlier = by_path.get(problem.path)
            both = f"{earlier.message}, or {problem.message}" if earlier else problem.message
            by_path[problem.path] = Problem(problem.path, both, problem.value)
        raise ConfigError(list(by_path.values())) from None
    problems = list(contradictions(config))
    if problems:
        raise ConfigError(problems)
    return config


def _explain(item: Any) -> Problem:
    """A pydantic error in plain words; names that are none of ours get the one that is meant."""
    paths = [setting.path for setting in settings()]
    location = [str(part) for part in item["loc"]]
    path = ".".join(location)
    if item["type"] == "extra_forbidden":
        return Problem(path, f"there is no such setting{meant(path, item['input']).words}", item["input"])
    if item["type"].startswith("model_") and (suggestion := plain_value(path, item["input"])):
        return Problem(path, f"is a section: names with values below it; did you mean `{suggestion}`?", item["input"])
    while path not in paths and len(location) > 1:
        location.pop()
        path = ".".join(location)
    return Problem(path, plain_words(item), item["input"])


def plain_words(item: Any) -> str:
    """What pydantic found wrong with a value, as a person would say it."""
    return _PLAIN.get(item["type"], str(item["msg"])).format(**item.get("ctx", {}))


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> fields.SettingValues:
    """`base` with the values of `over` on top, section by section."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def nest(flat: Mapping[str, Any]) -> fields.SettingValues:
    """{"lora.r": 8} as {"lora": {"r": 8}}."""
    nested: fields.SettingValues = {}
    for path, value in flat.items():
        section, _, leaf = path.rpartition(".")
        nested = merge(nested, {section: {leaf: value}} if section else {leaf: value})
    return nested


def read_yaml(path: Path) -> fields.SettingValues:
    """The mapping in a YAML file. Raises `StudioError` for a missing file, broken YAML or anything but a mapping."""
    try:
        with path.open(encoding="utf-8") as file:
            values = fields.load(file.read(fields.MAX_CHARACTERS + 1))
    except FileNotFoundError:
        raise StudioError(f"There is no file {path}.", "Give the path of a YAML config.") from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise StudioError(f"{path} is not a text file.", "Give the path of a YAML config.") from None
    except yaml.YAMLError as error:
        raise StudioError(f"{path} is not valid YAML: {error}", "Check indentation and colons.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise StudioError(
            f"{path} holds a {type(values).__name__}, not settings.", "A config is `section:` and names below."
        )
    return values


def to_yaml(config: Config) -> str:
    """The whole config, defaults included, as YAML that `parse` reads back to the same."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True, width=120)
