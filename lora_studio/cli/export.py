"""`export`: exports an adapter for another program, and prints where the result is."""

import argparse
import getpass
import sys

from lora_studio.cli.following import FAILED, Telling, exit_code, follow, goes_on, progress_line
from lora_studio.cli.output import print_json, say, table
from lora_studio.cli.settings import add_sections, overrides
from lora_studio.evaluate import job as evaluating
from lora_studio.export import job as exporting
from lora_studio.export.job import PHASES, folders, make_request, needs_device, readiness_of, result_bytes
from lora_studio.export.targets import TARGETS, sizes_of
from lora_studio.files import JsonObject
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import ExportFolder, ending_words
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.models.adapters import named_adapter
from lora_studio.models.hub import hub_secrets, knows_token
from lora_studio.units import duration, size
from lora_studio.workspace import Workspace


def add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting of the export formats."""
    add_sections(parser, {target.name: target.settings for target in TARGETS.values()})


def export(workspace: Workspace, args: argparse.Namespace) -> int:
    """Starts an export and follows it; 0 done, 1 failed or made in part only, 2 wrong input, 130 stopped."""
    if args.to == "list":
        return _list(workspace, args)
    request = make_request(
        workspace,
        args.adapter,
        args.to,
        settings={name: value for name, value in overrides(args).items() if value is not None},
        out=args.out,
        trial=not args.no_trial,
        compute_target=args.compute_target,
    )
    if (state := readiness_of(workspace, request)).kind == "warning":
        say(state.words)
    jobs = Supervisor(workspace)
    at_once = args.at_once and needs_device(request)
    if at_once and jobs.busy() is not None:
        evaluating.check_beside(exporting.memory_for(request, jobs.allocation().for_session()))
    folder = folders(workspace).find(exporting.start(jobs, request, _secrets(request.target), at_once=at_once))
    large = result_bytes(workspace, request)
    say(f"Export {folder.id}: {request.title}" + (f", about {size(large)}" if large else ""))
    say(goes_on(folder.id))
    return tell_to_end(jobs, folder, args.json)


def tell_to_end(jobs: Supervisor, folder: ExportFolder, as_json: bool, *, leaves: bool = False) -> int:
    """Follows an export and says what came out; the exit code. With `leaves` Ctrl-C ends only the telling."""
    telling = Telling(PHASES, progress_line, "partial files are removed")
    state = follow(jobs, folder.id, telling, leaves=leaves)
    result = folder.read_result()
    if as_json:
        words = dict(zip(("message", "hint"), ending_words(state), strict=True)) if state.state != "done" else {}
        print_json({"export": folder.id, "state": state.state, "reason": state.reason, **words, **result})
    _tell(state, result, show=not as_json)
    if result.get("missing"):
        return FAILED
    return exit_code(state, jobs.exit_code(folder.id))


def _secrets(target: str) -> dict[str, str]:
    """A token for the Hub, asked for where a person sits before the terminal and none is known; never an argument."""
    if target != "hub" or knows_token() or not sys.stdin.isatty():
        return {}
    return hub_secrets(getpass.getpass("Hub token (hidden, not stored): "))


def _list(workspace: Workspace, args: argparse.Namespace) -> int:
    """The forms that an adapter can take, with their sizes."""
    adapter = named_adapter(workspace, args.adapter)
    rows, sizes = [], sizes_of(adapter.folder, workspace.run(adapter.run) if adapter.run else None)
    for target in TARGETS.values():
        settings = target.settings()
        large, room = target.size(sizes, settings), target.room_for(sizes, settings)
        cells = [size(octets) if octets else "unknown" for octets in (large, room)]
        rows.append([target.name, *cells, target.description])
    if args.json:
        print_json(
            {name: {"size": large, "room": room, "what": description} for name, large, room, description in rows}
        )
    else:
        print(table(["format", "size", "space needed", "description"], rows))
    return 0


def _tell(state: RunState, result: JsonObject, *, show: bool) -> None:
    for words in state.warnings:
        say(f"note: {words}")
    if state.state != "done":
        message, hint = ending_words(state)
        say(f"Failed: {message}" if state.state == "failed" else message)
        say(hint)
        return
    if not result:
        say("result.json of this export is damaged, so the result is unknown. Export again.")
        return
    for words in result["notes"]:
        say(f"note: {words}")
    if result.get("missing"):
        say(f"Incomplete: {result['missing']} was not created.")
    say(f"{size(result['bytes'])} in {duration(result['seconds'])}. {result['tried']}".rstrip())
    say(result["words"])
    if not show:
        return
    print(result["place"])
    for text in (result["link"], result["command"]):
        if text:
            print(text)
