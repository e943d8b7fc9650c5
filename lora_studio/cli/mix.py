"""`mix`: mixes adapters of one base into a new adapter."""

import argparse
import os
import shlex
from pathlib import Path

from lora_studio.chat.choices import mix_request
from lora_studio.cli.output import print_json, say
from lora_studio.errors import StudioError
from lora_studio.export.job import free_place
from lora_studio.files import JsonObject, numbered
from lora_studio.jobs.session import Session
from lora_studio.models.adapters import named_adapter, read_card
from lora_studio.models.mixing import Parent, check_parents, checked_mix
from lora_studio.workspace import Workspace, safe_name


def mix(workspace: Workspace, args: argparse.Namespace) -> int:
    """Writes the mix and prints its folder."""
    mix = checked_mix([_parent(workspace, text) for text in args.adapters], args.method, args.density, args.seed)
    check_parents(mix)
    out = _place(workspace, args.out, mix.short_name)
    say(f"Mixing {mix.title} ...")
    with Session(workspace.logs_folder / "cli-mix.log") as session:
        result = session.call(mix_request(mix, out))
    for note in result.notes:
        say(f"  note: {note}")
    say(f"Use it like any adapter, such as: lora-studio chat {shlex.quote(str(out))} --compare")
    if args.json:
        card = read_card(out)
        values: JsonObject = {"adapter": str(out), "base": card.base, "r": card.r}
        print_json({**values, "recipe": card.values["mixed_from"], "notes": result.notes})
    else:
        print(out)
    return 0


def _place(workspace: Workspace, out: str | None, name: str) -> Path:
    """Where the mix goes: the folder that was named, else a new one among the external adapters."""
    if out:
        workspace.policy.check_path(out)
        return free_place(Path(os.path.abspath(Path(out).expanduser())))
    workspace.adapters_folder.mkdir(parents=True, exist_ok=True)
    names = numbered(workspace.adapters_folder / safe_name(name, "mix"))
    return next(path for path in names if not path.exists())


def _parent(workspace: Workspace, text: str) -> Parent:
    """An adapter with its weight, from NAME=WEIGHT."""
    name, _, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        name = ""
    if not name:
        raise StudioError(f"{text} has no weight.", "Write each adapter as RUN=WEIGHT, such as last=0.5.")
    adapter = named_adapter(workspace, name)
    return Parent(adapter.title, adapter.folder, weight, adapter.run)
