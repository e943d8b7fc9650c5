"""`presets` and `check`: looks at settings without starting anything.

`estimate`, and the preflight checks of `train` and `check`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace

from lora_studio.cli.output import confirmed, print_json, say, table
from lora_studio.cli.settings import problems_as_json, resolved
from lora_studio.config.parsing import ConfigError, presets, to_yaml
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.jobs.preflight import ASK, FAILED, ROUGH, Report, check_before_start, look_at_model_alone
from lora_studio.models.adapters import continued
from lora_studio.models.advice import Advice, advise, best_changes, notes, situation
from lora_studio.models.hardware import all_devices, device_for
from lora_studio.models.memory import PARTS, settled, verdict
from lora_studio.models.memory import estimate as estimate_of
from lora_studio.models.shape import architecture, read_config
from lora_studio.units import GIB
from lora_studio.workspace import Workspace

SIGNS = {"ok": "ok", "note": "note", "ask": "confirm", "failed": "FAILED"}


def estimate(workspace: Workspace, args: argparse.Namespace) -> int:
    """Memory by part against the machine's, the trained share, and the changes that would save most."""
    config = resolved(args.config, args, workspace)
    config = continued(config, workspace)
    numbers = read_config(config.model.name, config.model.revision)
    if numbers is None:
        raise StudioError(
            f"The size of {config.model.name} is unknown: its config.json is not on this machine.",
            "Give the folder of a model, or load the model once.",
        )
    model, trainable = architecture(numbers), None
    if model is None or not model.exact:
        analysis = look_at_model_alone(config, workspace)
        if isinstance(analysis, StudioError):
            raise analysis
        model, trainable = architecture(numbers), analysis.trainable if analysis else None
    if model is None:
        raise StudioError(
            f"The size of {config.model.name} is unknown: its config.json is not that of a supported language model.",
            "Use a causal language model.",
        )
    here = device_for(config.compute.device, all_devices())
    device = args.device or here.kind
    available = round(args.memory * GIB) if args.memory else here.memory_free
    effective = settled(config, model, device, available)
    result, changes = estimate_of(effective, model, device), best_changes(effective, model, device)
    result = replace(result, trainable=result.trainable if trainable is None else trainable)
    words, assumed = verdict(result.total, available), {"assumed_tokens": config.data.max_length}
    if args.json:
        listed = [{**asdict(change), "settings": dict(change.settings)} for change in changes]
        print_json({**result.to_dict(), "available": available, "verdict": words, "changes": listed, **assumed})
        return 0
    rows = [(PARTS[key][0], f"{octets / GIB:.2f}") for key, octets in result.parts.items()]
    print(table(("part", "GiB"), [*rows, ("total", f"{result.total / GIB:.2f}")]))
    print(f"\n{words[:1].upper() + words[1:]}: {result.total / GIB:.2f} GiB of {available / GIB:.2f} GiB ({device}).")
    print(f"Trainable parameters: {result.trainable:,} of {result.parameters:,}, {100 * result.share:.2f} %.")
    print(f"Gradient checkpointing is {'on' if result.gradient_checkpointing else 'off'}.")
    print(
        f"This assumes data.max_length tokens per row ({config.data.max_length:,}); shorter rows need less. "
        "`inspect DATA` shows the lengths."
    )
    if not result.exact:
        print(f"A rough estimate: {ROUGH}.")
    for change in changes:
        print(f"{change.title} saves {change.saves / GIB:.2f} GiB: {change.flags}")
    return 0


def check_first(config: Config, workspace: Workspace, *, busy: bool) -> Report:
    """The checks before a start, told one by one. Raises `StudioError` where the run would not get far."""
    report = check_before_start(config, workspace, busy=busy)
    for number, check in enumerate(report.checks, 1):
        say(f"{number}. {check.title}: {SIGNS[check.state]}. {check.found}")
        if check.advice:
            say(f"   {check.advice}")
    say_advice(report.advice)
    say(report.words)
    if report.state == FAILED:
        raise StudioError(
            "The run was not started because it would fail.", "See the checks above; --skip-preflight skips them."
        )
    return report


def say_advice(items: Sequence[Advice]) -> None:
    """What would likely train a better adapter, a line each."""
    for item in items:
        say(f"Advice: {item.words}")


def agree(report: Report) -> None:
    """Asks a person about what needs a decision. Raises `StudioError` where nobody says yes."""
    if report.state != ASK:
        return
    if not confirmed("Start anyway?"):
        raise StudioError(
            "The run was not started because memory is probably too small.",
            "Change the settings, or add --skip-preflight.",
        )


def as_json(report: Report) -> JsonObject:
    checks = [asdict(check) for check in report.checks]
    return {"state": report.state, "words": report.words, "checks": checks, "advice": advice_as_json(report.advice)}


def advice_as_json(items: Sequence[Advice]) -> list[JsonObject]:
    return [{**asdict(item), "settings": dict(item.settings)} for item in items]


def list_or_show(workspace: Workspace, args: argparse.Namespace) -> int:
    """The list of presets, or one preset's file."""
    available = presets(workspace)
    if args.action == "list":
        if args.json:
            print_json({"presets": [{"name": preset.name, "about": preset.about} for preset in available.values()]})
        else:
            print(table(("preset", "description"), [(preset.name, preset.about) for preset in available.values()]))
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
        config = resolved(args.config, args, workspace)
    except ConfigError as error:
        if not args.json:
            raise
        say(str(error))
        print_json({"ok": False, **problems_as_json(error)})
        return 2
    if args.preflight:
        report = check_first(config, workspace, busy=False)
        if args.json:
            print_json({"ok": True, "config": config.model_dump(), "preflight": as_json(report)})
        return 0
    advice = advise(situation(config))
    about = [note.words for note in notes(config, device_for(config.compute.device, all_devices()).kind)]
    if args.json:
        listed = advice_as_json(advice)
        print_json({"ok": True, "config": config.model_dump(), "advice": listed, "notes": about})
    else:
        print(to_yaml(config), end="")
        for words in about:
            say(f"Note: {words}")
        say_advice(advice)
        say("The config is valid.")
    return 0
