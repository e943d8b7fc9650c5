"""Writes the parts of the documentation that describe the code, such as settings: `python -m tests.readme`.

A test compares what this prints with what the pages hold.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from lora_studio.cli import make_parser
from lora_studio.config.other_tools import Tool, path_of, tools
from lora_studio.config.parsing import presets
from lora_studio.config.settings import AS_VALUES, BY_VALUE, Setting, reasons, settings
from lora_studio.export.targets import TARGETS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
OTHER_FILES = {
    "app.py": None,
    "presets/": "settings to begin with, each line with its reason",
    "docs/": "these pages; the wheel carries them, and the page serves them",
    "benchmarks/": "each prints what it measured side by side in one run, as JSON last",
    "tools/": "the generator of the built-in model and its datasets, the moving picture, the installation's progress",
    "tests/": "mirrors the package; small worlds, no network, no GPU",
}


def tree() -> str:
    """Every package with what lives there, and the modules that belong to none."""
    lines = []
    for name, about in OTHER_FILES.items():
        if (ROOT / name).exists() and (name == "app.py" or any((ROOT / name).iterdir())):
            lines.append(f"{name:<28}{about or first_sentence(ROOT / name)}")
    package = ROOT / "lora_studio"
    lines.append(f"{'lora_studio/':<28}{first_sentence(package / '__init__.py')}")
    lines += [f"{'  ' + path.name:<28}{first_sentence(path)}" for path in sorted(package.glob("[!_]*.py"))]
    for path in sorted(package.rglob("__init__.py"))[1:]:
        depth = len(path.relative_to(package).parts) - 1
        lines.append(f"{'  ' * depth + path.parent.name + '/':<28}{first_sentence(path)}")
    return "```text\n" + "\n".join(lines) + "\n```"


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, without its full stop."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"\.\s|\.$|\n\n", " ".join(docstring.split("\n\n")[0].split()))[0]


SETTING_FLAGS = {f"--{setting.path}" for setting in settings()}
GLOBAL_FLAGS = ("--help", "--workspace", "--json")


def _commands() -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Name, purpose and parser of each command."""
    parser = make_parser()
    subcommands = next(action for action in parser._actions if isinstance(action.choices, dict))
    about = {action.dest: str(action.help) for action in subcommands._choices_actions}
    for name, command in subcommands.choices.items():
        if name in about:
            yield name, about[name], command


def command_table() -> str:
    """Each command of the terminal with what it is for."""
    rows = [f"| [`{name}`](#{name}) | {about} |" for name, about, _ in _commands()]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


def command_flags() -> str:
    """The arguments and flags of each command, but those that every command or every setting has."""
    parts = []
    for name, about, command in _commands():
        rows = [f"| {_call(action)} | {_cell(action.help or '')} |" for action in _own_actions(command)]
        table = ["| argument | what it does |", "|---|---|", *rows] if rows else []
        more = " Takes every setting as a flag." if SETTING_FLAGS & command._option_string_actions.keys() else ""
        parts.append("\n".join([f"### {name}", "", f"{about[0].upper()}{about[1:]}.{more}", "", *table]).rstrip())
    return "\n\n".join(parts)


def _own_actions(command: argparse.ArgumentParser) -> list[argparse.Action]:
    return [
        action
        for action in [*command._get_positional_actions(), *command._get_optional_actions()]
        if not {*GLOBAL_FLAGS, *SETTING_FLAGS} & {*action.option_strings}
    ]


def _call(action: argparse.Action) -> str:
    """An argument as it is typed."""
    metavar = str(action.metavar or ("" if action.choices else action.dest.upper()))
    choices = [str(choice) for choice in action.choices or ()] or (metavar.split("|") if "|" in metavar else [])
    name = action.option_strings[-1] if action.option_strings else metavar or action.dest.upper()
    value = f" {metavar}" if action.option_strings and action.nargs != 0 and metavar and not choices else ""
    return f"`{name}{value}`" + (f" {', '.join(f'`{choice}`' for choice in choices)}" if choices else "")


def setting_tables() -> str:
    """A table of settings for each section of a config."""
    parts = []
    for section, group in groupby(settings(), key=lambda setting: setting.section):
        rows = [
            f"| `{setting.path}` | {_cell(setting.title)} | {_default(setting)} | {_values(setting)} "
            f"| {_cell(setting.help)} |"
            for setting in group
        ]
        head = ["| setting | on the page | default | values | what it does |", "|---|---|---|---|---|"]
        parts.append("\n".join([f"## {section or 'run'}", "", *head, *rows]))
    return "\n\n".join(parts)


def _default(setting: Setting) -> str:
    return ", ".join(f"`{value}`" + (f" ({method})" if method else "") for value, method in setting.defaults)


def _values(setting: Setting) -> str:
    """The choices or bounds of a setting."""
    if setting.choices:
        return ", ".join(
            f"`{str(choice).lower() if isinstance(choice, bool) else choice}`" for choice in setting.choices
        )
    if setting.kind == "bool":
        return "`true`, `false`"
    low, high = setting.minimum, setting.maximum
    if low is not None and high is not None:
        return f"{low:,} to {high:,}"
    return f"from {low:,}" if low is not None else {"str": "text", "mapping": "JSON"}.get(setting.kind, "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("%%", "%").replace("<", "\\<")


def preset_table() -> str:
    """The presets that come with the studio."""
    rows = [f"| `{preset.name}` | {_cell(preset.about)} |" for preset in presets().values()]
    return "\n".join(["| preset | what it is for |", "|---|---|", *rows])


def target_table() -> str:
    """The forms of an export."""
    rows = [f"| {target.title} | `{target.name}` | {_cell(target.description)} |" for target in TARGETS.values()]
    return "\n".join(["| on the page | `--to` | what it is for |", "|---|---|---|", *rows])


def import_tables() -> str:
    """What each key of other trainers is here, and which of their defaults are set."""
    parts = []
    for tool in tools().values():
        keys = sorted(tool.keys, key=lambda key: (_place_of(tool, key) is None, key))
        rows = [
            f"| `{key}` | {place} | {_cell(tool.notes.get(key) or tool.about.get(key, ''))} |"
            for key in keys
            if (place := _place_of(tool, key))
        ]
        table = ["| key | here | how it differs, or is read |", "|---|---|---|", *rows]
        words = ", ".join(f"`{path}` {_default_of(value)}" for path, value in tool.defaults.items())
        left = ", ".join(f"`{path}` ({words})" for path, words in tool.unchanged.items())
        silent = [f"Set where a file does not name it: {words}."]
        silent += (
            ["", f"Left at the defaults here, because only speed, memory or disk depend on it: {left}."] if left else []
        )
        parts.append("\n".join([f"## {tool.title}", "", *table, "", *silent]))
    known = frozenset[str]().union(*(tool.keys for tool in tools().values()))
    for part, title in (("always", "Keys that need nothing"), ("elsewhere", "Keys without a counterpart")):
        by_reason: dict[str, list[str]] = {}
        for leaf, why in reasons(part).items():
            if any(key.rpartition(".")[2] == leaf for key in known):
                by_reason.setdefault(why, []).append(f"`{leaf}`")
        rows = [f"| {_cell(why)} | {', '.join(keys)} |" for why, keys in by_reason.items()]
        parts.append("\n".join([f"## {title}", "", "| why | keys |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def _place_of(tool: Tool, key: str) -> str | None:
    """The setting that a key becomes, with its value for a switch; None for a key that becomes none."""
    leaf = key.rpartition(".")[2]
    switches = [*BY_VALUE.get(leaf, {}).values(), *([AS_VALUES[leaf]] if leaf in AS_VALUES else [])]
    if key not in tool.paths and switches:
        return ", ".join(f"`{path}` {value}" for path, value in dict.fromkeys(switches))
    path = path_of(tool, key)
    return f"`{path}`" if path else None


def _default_of(value: Any) -> str:
    if isinstance(value, dict):
        return " or ".join(f"{item:g} ({method})" for method, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


PARTS = {
    "tree": ("architecture.md", tree),
    "commands": ("cli.md", command_table),
    "flags": ("cli.md", command_flags),
    "settings": ("settings.md", setting_tables),
    "presets": ("training.md", preset_table),
    "targets": ("export.md", target_table),
    "imports": ("import.md", import_tables),
}
"""The generated parts by name: the page that holds each, and what makes it."""


def part_of(text: str, name: str) -> str:
    """What stands between a part's marks."""
    return _cut(text, name)[1]


def _cut(text: str, name: str) -> tuple[str, str, str]:
    """A page's text up to a part with its mark, the part, and the rest from its closing mark on."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    assert text.count(begin) == text.count(end) == 1, f"the page needs the marks {begin} and {end} once"
    before, _, rest = text.partition(begin)
    part, _, after = rest.partition(end)
    return before + begin, part, end + after


def write_all() -> None:
    """Writes every generated part into its page."""
    for name, (page, make) in PARTS.items():
        path = DOCS / page
        before, _, after = _cut(path.read_text(encoding="utf-8"), name)
        path.write_text(f"{before}\n{make()}\n{after}", encoding="utf-8")


if __name__ == "__main__":
    write_all()
    print("The generated parts of docs/ match the code.", file=sys.stderr)
