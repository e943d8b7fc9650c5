"""`presets` and `check`: looks at settings without starting anything."""

import argparse

from lora_studio.cli.output import print_json, say, table
from lora_studio.cli.settings import overrides
from lora_studio.cli.train import as_json, check_first
from lora_studio.config.parsing import ConfigError, to_yaml
from lora_studio.config.presets import presets, resolve
from lora_studio.errors import StudioError
from lora_studio.workspace import Workspace


def show_presets(workspace: Workspace, given: argparse.Namespace) -> int:
    """The list of presets, or one preset's file."""
    known = presets(workspace)
    if given.action == "list":
        if given.json:
            print_json({"presets": [{"name": preset.name, "about": preset.about} for preset in known.values()]})
        else:
            print(table(("preset", "what for"), [(preset.name, preset.about) for preset in known.values()]))
        return 0
    if given.preset not in known:
        raise StudioError(
            "Which preset?" if given.preset is None else f"There is no preset {given.preset!r}.",
            f"Presets are: {', '.join(sorted(known))}.",
        )
    preset = known[given.preset]
    if given.json:
        print_json({"name": preset.name, "about": preset.about, "values": preset.values()})
    else:
        print(preset.path.read_text(encoding="utf-8"), end="")
    return 0


def check(workspace: Workspace, given: argparse.Namespace, unknown: list[str]) -> int:
    """The whole config as YAML, or every problem at once and exit code 2."""
    try:
        config = resolve(given.config, overrides(given, unknown), workspace)
    except ConfigError as error:
        if not given.json:
            raise
        say(str(error))
        problems = [{"path": p.path, "message": p.message, "found": p.found} for p in error.problems]
        print_json({"ok": False, "problems": problems, "error": error.message, "hint": error.hint})
        return 2
    if given.preflight:
        report = check_first(config, workspace, busy=False)
        if given.json:
            print_json({"ok": True, "config": config.model_dump(), "preflight": as_json(report)})
        return 0
    if given.json:
        print_json({"ok": True, "config": config.model_dump()})
    else:
        print(to_yaml(config), end="")
        say("Everything is right.")
    return 0
