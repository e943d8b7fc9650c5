"""Makes the parts of the README that describe the code: tree, commands, settings. `python -m tests.readme` writes them.

A test compares what this prints with what README.md holds.
"""

import ast
import re
import sys
from pathlib import Path

from lora_studio.cli import make_parser
from lora_studio.config.presets import presets
from lora_studio.config.settings import settings

ROOT = Path(__file__).parent.parent
OTHER_FILES = {
    "app.py": None,
    "presets/": "settings to begin with, each line with its reason",
    "benchmarks/": "each prints what it measured side by side in one run, as JSON last",
    "tools/": "the generator of the built-in model and its data sets",
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
    return "```\n" + "\n".join(lines) + "\n```"


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, without its full stop."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"\.\s|\.$|\n\n", " ".join(docstring.split("\n\n")[0].split()))[0]


def commands() -> str:
    """Each command of the terminal with what it is for and its own flags."""
    parser = make_parser()
    subcommands = next(action for action in parser._actions if isinstance(action.choices, dict))
    about = {action.dest: action.help for action in subcommands._choices_actions}
    rows = []
    for name, command in subcommands.choices.items():
        if name not in about:
            continue
        named = [str(action.metavar or action.dest).upper() for action in command._get_positional_actions()]
        flags = []
        for action in command._get_optional_actions():
            option = action.option_strings[-1]
            if option not in ("--help", "--workspace", "--json") and option[2:] not in SETTING_FLAGS:
                flags.append(option)
        rows.append(f"| `{name}` | {about[name]} | {' '.join(f'`{item}`' for item in [*named, *flags])} |")
    return "\n".join(["| command | what it does | arguments |", "|---|---|---|", *rows])


SETTING_FLAGS = {setting.path for setting in settings()}


def settings_table() -> str:
    """Every setting with its default and what it does."""
    rows = [
        f"| `{setting.path}` | {_value(setting.default)} | {setting.description.replace('|', chr(92) + '|')} |"
        for setting in settings()
    ]
    return "\n".join(["| setting | default | what it does |", "|---|---|---|", *rows])


def _value(value: object) -> str:
    return "" if value in (None, "") else f"`{value}`"


def preset_list() -> str:
    """The presets that come with the studio."""
    return "\n".join(f"- `{preset.name}`: {preset.about}" for preset in presets().values())


PARTS = {"tree": tree, "commands": commands, "settings": settings_table, "presets": preset_list}


def fill(text: str) -> str:
    """README's text with every marked part made anew."""
    for name, make in PARTS.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        assert found, f"README.md lacks the mark {begin}"
        assert closed, f"README.md lacks the mark {end}"
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text(encoding="utf-8")), encoding="utf-8")
    print("README.md is as the code is.", file=sys.stderr)
