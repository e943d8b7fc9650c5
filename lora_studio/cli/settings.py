"""Command-line flags made from the schema, and their values. The schema checks the values, not argparse."""

import argparse
from collections.abc import Mapping
from dataclasses import replace

from lora_studio.config.fields import Section, SettingValues
from lora_studio.config.settings import Setting, described, settings
from lora_studio.errors import StudioError

_PREFIX = "setting:"


def add_all(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting, named by its path: --lora.r 64."""
    group = parser.add_argument_group("settings that override the config")
    for setting in settings():
        _add(group, setting, f"--{setting.path}")


def add_section(parser: argparse.ArgumentParser, section: str) -> None:
    """A flag for each setting of a section but the file names, by its last name: --max-length 512."""
    group = parser.add_argument_group("settings")
    for setting in settings():
        if setting.section == section and not setting.path.endswith("_file"):
            _add(group, setting, "--" + setting.path.rpartition(".")[2].replace("_", "-"))


def add_sections(parser: argparse.ArgumentParser, sections: Mapping[str, type[Section]]) -> None:
    """A flag for each setting of several sections, by its name: --max-shard-size 2GB; one that several have is one."""
    group = parser.add_argument_group("settings")
    flags: dict[str, tuple[Setting, list[str]]] = {}
    for name, section in sections.items():
        for setting in described(section):
            flags.setdefault(setting.path, (setting, []))[1].append(name)
    for setting, names in flags.values():
        about = replace(setting, description=f"{', '.join(names)}: {setting.description}")
        _add(group, about, "--" + setting.path.replace("_", "-"))


def _add(group: argparse._ArgumentGroup, setting: Setting, flag: str) -> None:
    words = ", ".join(f"{value} for {method}" if method else f"{value}" for value, method in setting.defaults)
    default = f" (default: {words})" if words else ""
    metavar = "|".join(str(choice).lower() if isinstance(choice, bool) else choice for choice in setting.choices)
    group.add_argument(
        flag,
        dest=_PREFIX + setting.path,
        metavar=metavar
        or {"int": "N", "float": "X", "bool": "true|false", "str": "TEXT", "mapping": "JSON"}[setting.kind],
        help=f"{setting.help}{default}".replace("%", "%%"),
    )


def overrides(args: argparse.Namespace) -> SettingValues:
    """The settings given as flags, by path.

    Flags that argparse does not know (`args.unknown`) are taken as settings too, so that the schema's check can report
    them with all other problems.
    """
    optional = {setting.path for setting in settings() if setting.optional}
    values = {
        name.removeprefix(_PREFIX): value
        for name, value in vars(args).items()
        if name.startswith(_PREFIX) and value is not None
    }
    values |= _unknown_flags(list(args.unknown))
    return {path: None if path in optional and value in ("none", "") else value for path, value in values.items()}


def _unknown_flags(words: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            raise StudioError(
                f"Unexpected argument {word!r}.", "`python -m lora_studio train --help` lists all arguments."
            )
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else ""
        values[name.removeprefix("--")] = value
    return values
