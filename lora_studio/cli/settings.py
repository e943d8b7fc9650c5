"""Command-line flags made from the schema and their values, and `import`, which reads those of another trainer's file.

The schema checks the values, not argparse.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import yaml

from lora_studio.cli.output import print_json, say
from lora_studio.config.fields import Section, SettingValues, read_yaml
from lora_studio.config.importing import as_json, import_file, report
from lora_studio.config.other_tools import tool_of, tools
from lora_studio.config.parsing import ConfigError, nest, parse, presets, resolve, save_preset
from lora_studio.config.sections import Config
from lora_studio.config.settings import Setting, described, flatten, settings
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.workspace import Workspace, write_atomically

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


def add_model(parser: argparse.ArgumentParser, section: type[Section]) -> None:
    """A flag for each setting of a section that is no part of the config; `section_values` gives their values."""
    group = parser.add_argument_group("settings")
    for setting in described(section):
        _add(group, setting, "--" + setting.path.replace("_", "-"))


def section_values(args: argparse.Namespace) -> SettingValues:
    """The settings of such a section that were given as flags, by name."""
    return {
        name.removeprefix(_PREFIX): value
        for name, value in vars(args).items()
        if name.startswith(_PREFIX) and value is not None
    }


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
    values = section_values(args)
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


def resolved(source: str | None, args: argparse.Namespace, workspace: Workspace) -> Config:
    """The config of a preset or a file with the flags on top. A file of another trainer is told how it is read."""
    try:
        return resolve(source, overrides(args), workspace)
    except ConfigError as error:
        is_file = source is not None and source not in presets(workspace)
        if source and is_file and (tool := tool_of(read_yaml(Path(source)))):
            error.hint += f" This looks like a file of {tool.title}: `lora-studio import {source}` reads it."
        raise


def problems_as_json(error: ConfigError) -> JsonObject:
    """Every problem of a config, for `--json`."""
    problems = [{"path": p.path, "message": p.message, "found": p.value} for p in error.problems]
    return {"problems": problems, "error": error.message, "hint": error.hint}


def import_config(workspace: Workspace, args: argparse.Namespace) -> int:
    """Another trainer's file as a config: what became of each key, and the result as YAML, a file or a preset."""
    if args.tool and args.tool not in tools():
        raise StudioError(f"There is no trainer {args.tool!r}.", f"Trainers are: {', '.join(tools())}.")
    if args.out and Path(args.out).exists():
        raise StudioError(f"{args.out} already exists.", "Choose another name.")
    imported = import_file(Path(args.file), Path(args.dataset_info) if args.dataset_info else None, args.tool)
    say(f"{args.file} is read as a config of {imported.tool.title}.")
    for line in report(imported):
        say(line)
    merged = {**imported.settings, **overrides(args)}
    for path, noun in (("model.name", "base model"), ("data.train_file", "data")):
        if path not in merged:
            say(f"The file names no {noun}: add --{path}, or set it later.")
    try:
        config = parse(nest(merged))
    except ConfigError as error:
        if not args.json:
            raise
        say(str(error))
        print_json({"ok": False, **as_json(imported), **problems_as_json(error)})
        return 2
    values = nest({path: value for path, value in flatten(config).items() if path in merged})
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    if args.out:
        _write(Path(args.out), text)
        say(f"Written to {args.out}. `lora-studio train {args.out}` starts it.")
    if args.preset:
        save_preset(workspace, args.preset, config, f"Imported from {Path(args.file).name} ({imported.tool.title})")
        say(f"Saved as preset {args.preset}.")
    if args.json:
        print_json({"ok": True, **as_json(imported), "config": config.model_dump()})
    elif not (args.out or args.preset):
        print(text, end="")
    return 0


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text)
    except OSError as error:
        raise StudioError(f"{path} cannot be written: {error.strerror}.", "Choose another place.") from None
