"""`presets` and `check`: looks at settings without starting anything."""

import argparse

from lora_studio.cli.estimate import as_json, check_first
from lora_studio.cli.output import print_json, say, table
from lora_studio.cli.settings import overrides
from lora_studio.config.parsing import ConfigError, to_yaml
from lora_studio.config.presets import presets, resolve
from lora_studio.errors import StudioError
from lora_studio.workspace import Workspace


def list_or_show(workspace: Workspace, args: argparse.Namespace) -> int:
    """The list of presets, or one preset's file."""
    available = presets(workspace)
    if args.action == "list":
        if args.json:
            print_json({"presets": [{"name": preset.name, "about": preset.about} for preset in available.values()]})
        else:
            print(table(("preset", "what for"), [(preset.name, preset.about) for preset in available.values()]))
        return 0
    if args.preset not in available:
        raise StudioError(
            "Which preset?" if args.preset is None else f"There is no preset {args.preset!r}.",
            f"Presets are: {', '.join(sorted(available))}.",
        )
    preset = available[args.preset]
    if args.json:
        print_json({"name": preset.name, "about": preset.about, "values": preset.values()})
    else:
        print(preset.path.read_text(encoding="utf-8"), end="")
    return 0


def check(workspace: Workspace, args: argparse.Namespace) -> int:
    """The whole config as YAML, or every problem at once and exit code 2."""
    try:
        config = resolve(args.config, overrides(args), workspace)
    except ConfigError as error:
        if not args.json:
            raise
        say(str(error))
        problems = [{"path": p.path, "message": p.message, "found": p.value} for p in error.problems]
        print_json({"ok": False, "problems": problems, "error": error.message, "hint": error.hint})
        return 2
    if args.preflight:
        report = check_first(config, workspace, busy=False)
        if args.json:
            print_json({"ok": True, "config": config.model_dump(), "preflight": as_json(report)})
        return 0
    if args.json:
        print_json({"ok": True, "config": config.model_dump()})
    else:
        print(to_yaml(config), end="")
        say("Everything is right.")
    return 0
