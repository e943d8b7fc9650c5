"""`jobs` and `runs`: list, show, follow, stop, resume and delete jobs, also those started on the page."""

import argparse
import getpass
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lora_studio.cli import evaluate, export
from lora_studio.cli import rows as document_rows
from lora_studio.cli.following import Telling, exit_code, follow, list_queue, progress_line, step_line
from lora_studio.cli.output import age, confirm_deletion, print_json, say, table
from lora_studio.cli.runs import RESULT_ACTIONS, act_on_results, describe, facts_of, list_runs, what_came_out, what_goes
from lora_studio.cli.train import follow_to_end, result_of, tell_search
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject, bytes_in
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import (
    DOCUMENTS,
    KINDS,
    SEARCH,
    STATES,
    TRAIN,
    DocumentsFolder,
    EvaluationFolder,
    ExportFolder,
    Kind,
    ending_words,
)
from lora_studio.jobs.notes import FORMATS, read_webhook, remove_webhook, save_webhook, send_test
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.units import duration, gib, size
from lora_studio.workspace import JobFolder, RunFolder, Workspace

_BENCHMARKING = Telling({"answer": "asking"}, progress_line, "answers are lost")


def tell_to_end(supervisor: Supervisor, kind: Kind, folder: JobFolder, as_json: bool) -> int:
    """Follows any job to its end; the exit code. Ctrl-C ends only the telling."""
    if kind is SEARCH:
        return tell_search(supervisor, folder.id, as_json, leaves=True)
    match folder:
        case RunFolder():
            return follow_to_end(supervisor, folder, as_json, leaves=True)
        case EvaluationFolder():
            return evaluate.tell_to_end(supervisor, folder, as_json, leaves=True)
        case ExportFolder():
            return export.tell_to_end(supervisor, folder, as_json, leaves=True)
        case DocumentsFolder():
            return document_rows.tell_to_end(supervisor, folder, as_json, leaves=True)
    state = follow(supervisor, folder.id, _BENCHMARKING, leaves=True)
    if as_json:
        print_json({kind.noun: folder.id, **facts(state), **folder.read_result()})
    else:
        print("\n".join([*_describe_job(state), supervisor.log(folder.id, 40)]))
    return exit_code(state, supervisor.exit_code(folder.id))


def facts(state: RunState) -> Mapping[str, Any]:
    """A job's state for a script, with why it ended."""
    message, hint = ending_words(state)
    charge = state.charge
    cost = {"cost": charge.at(time.time()), "max_cost": charge.most, "trouble": charge.trouble} if charge else {}
    where = {"target": state.target, "devices": state.devices, "waiting": state.waiting}
    return {"state": state.state, "reason": state.reason, "message": message, "hint": hint, **where, **cost}


def end(supervisor: Supervisor, kind: Kind, job_id: str, *, at_once: bool) -> None:
    """Asks a worker to end, or ends it, and stays until it has, so that one that does not listen is ended."""
    if supervisor.state(job_id).final:
        say(f"{kind.noun.capitalize()} {job_id} has already ended.")
        return
    if at_once:
        supervisor.cancel(job_id)
    else:
        supervisor.stop(job_id)
    supervisor.start()
    try:
        while not (state := supervisor.state(job_id)).final:
            time.sleep(0.05)
    finally:
        supervisor.close()
    if at_once and kind is TRAIN:
        last = f"The last checkpoint is {state.checkpoints[-1].name}." if state.checkpoints else "It has no checkpoint."
        say(f"Cancelled run {job_id} without saving. {last}")


def progress_of(state: RunState) -> str:
    """How far a job is, in one line; "" where nothing is known yet."""
    if state.state == "queued":
        return f"queued: {state.waiting}" if state.waiting else "queued"
    if state.kind == TRAIN.name:
        return step_line(state) if state.steps else state.phase
    line = evaluate.answered_line(state) if state.phase == "answer" else progress_line(state)
    return line or state.phase


def _describe_job(state: RunState) -> list[str]:
    lines = [f"{state.id}  {state.title}", f"state       {STATES[state.state].lower()}, phase {state.phase or '-'}"]
    if state.final:
        lines.append(f"took        {duration(state.seconds)}")
    elif progress := progress_of(state):
        lines.append(f"progress    {progress}")
    return [*lines, *(text for text in ending_words(state) if text)]


def going_on(supervisor: Supervisor) -> list[str]:
    """A line for each job beside the runs that works or waits now, with how to end it."""
    return [
        f"The {kind.noun} {state.id} ({state.title}) {'is queued' if state.state == 'queued' else 'is running'}; "
        f"`jobs stop {state.id}` stops it."
        for kind in KINDS.values()
        if kind is not TRAIN
        for state in supervisor.jobs(kind)
        if not state.final
    ]


def runs(workspace: Workspace, args: argparse.Namespace) -> int:
    """One of the actions on one run, or the list of all."""
    supervisor = Supervisor(workspace)
    if args.action == "list":
        list_runs(workspace, supervisor, args.json)
        for line in going_on(supervisor):
            say(line)
        return 0
    if args.action == "queue":
        return list_queue(supervisor, args.json)
    if args.run is None:
        raise StudioError(f"`runs {args.action}` needs a run.", "Give its id, or `last`.")
    if args.more and args.action not in RESULT_ACTIONS:
        raise StudioError(f"`runs {args.action}` takes a single run.", f"Remove {' '.join(args.more)}.")
    if args.action in RESULT_ACTIONS:
        act_on_results(workspace, supervisor, args.action, args.run, args.more, args.json)
        return 0
    return _act_on_any(workspace, supervisor, args.run, args, "run")


def _act_on_any(workspace: Workspace, supervisor: Supervisor, name: str, args: argparse.Namespace, noun: str) -> int:
    """An action on a job of any kind, named by a person; the exit code."""
    kind, folder = supervisor.find(name, noun)
    if args.action in ("up", "down"):
        supervisor.move(folder.id, -1 if args.action == "up" else 1)
        return list_queue(supervisor, args.json)
    if args.action == "start":
        supervisor.start_now(folder.id)
        return list_queue(supervisor, args.json)
    if args.action == "follow":
        return tell_to_end(supervisor, kind, folder, args.json)
    if args.action == "delete":
        if not args.yes and (subject := _what_goes(workspace, supervisor, kind, folder)):
            confirm_deletion(subject)
        supervisor.delete(folder.id)
        say(f"Deleted {kind.noun} {folder.id}.")
        if args.json:
            print_json({kind.noun: folder.id, "state": "deleted"})
        return 0
    if args.action in ("stop", "cancel"):
        end(supervisor, kind, folder.id, at_once=args.action == "cancel")
    if args.action == "resume":
        if kind is DOCUMENTS:
            document_rows.resume(supervisor, folder.id)
        else:
            supervisor.resume(folder.id)
        say(f"Resumed in the background. Follow it: `python -m lora_studio jobs follow {folder.id}`")
    _print_job(supervisor.state(folder.id), kind, folder, args.json, whole=args.action == "show")
    return 0


def _what_goes(workspace: Workspace, supervisor: Supervisor, kind: Kind, folder: JobFolder) -> str:
    """What a person is asked about before a deletion; "" for what can't be deleted, which the supervisor refuses."""
    if kind is TRAIN:
        return what_goes(workspace, supervisor, folder.id)
    state = supervisor.state(folder.id)
    return f"{kind.noun} {folder.id} ({state.title}, {size(bytes_in(folder.path))})" if state.final else ""


def _print_job(state: RunState, kind: Kind, folder: JobFolder, as_json: bool, *, whole: bool) -> None:
    """A job in a few lines or as an object; of a run, where `whole` is wanted, all that is known of it."""
    if isinstance(folder, RunFolder) and kind is TRAIN:
        if as_json:
            print_json(facts_of(folder, state) if whole else result_of(folder, state))
        else:
            print("\n".join([*describe(folder, state), *(what_came_out(folder, state) if whole else ())]))
    elif as_json:
        print_json({kind.noun: folder.id, **facts(state)})
    else:
        print("\n".join(_describe_job(state)))


HEAD = ("job", "kind", "state", "name", "progress", "time", "created")


def jobs(workspace: Workspace, args: argparse.Namespace) -> int:
    """One of the actions on one job, or the list of all."""
    supervisor = Supervisor(workspace)
    if args.action == "list":
        _list(supervisor, args.json)
        return 0
    if args.action == "queue":
        return list_queue(supervisor, args.json)
    if args.job is None:
        raise StudioError(f"`jobs {args.action}` needs a job.", "Give its id. `jobs list` shows all ids.")
    return _act_on_any(workspace, supervisor, args.job, args, "job")


def devices(workspace: Workspace, args: argparse.Namespace) -> int:
    """The devices that jobs may have, with memory, load and users."""
    usage = Supervisor(workspace).usage()
    if args.json:
        listed = [{**asdict(device), "id": device.id, "users": users} for device, users in usage]
        print_json({"devices": [{name: value for name, value in row.items() if name != "key"} for row in listed]})
        return 0
    rows = [
        (
            device.label,
            device.name,
            f"{gib(device.memory_free)} of {gib(device.memory_total)}",
            f"{device.load:.0f} %" if device.load is not None else "-",
            " and ".join(users) or "-",
        )
        for device, users in usage
    ]
    print(table(("device", "name", "free memory", "load", "used by"), rows))
    return 0


def _list(supervisor: Supervisor, as_json: bool) -> None:
    """Every job, newest first, with those that wait in their order."""
    states = [state for kind in KINDS.values() for state in supervisor.jobs(kind)]
    states.sort(key=lambda state: state.created, reverse=True)
    if as_json:
        working = [state.id for state in supervisor.working()]
        print_json({"jobs": list(map(_row, states)), "working": working, "queue": supervisor.queue()})
        return
    if not states:
        say("There are no jobs yet. Start one: `python -m lora_studio train demo`")
        return
    rows = [
        (
            state.id,
            KINDS[state.kind].noun,
            STATES[state.state].lower(),
            state.title,
            "-" if state.final else progress_of(state) or "-",
            duration(state.seconds) if state.seconds else "-",
            age(state.created),
        )
        for state in states
    ]
    print(table(HEAD, rows))


def _row(state: RunState) -> JsonObject:
    step = {"step": state.step, "total_steps": state.total_steps} if state.kind == TRAIN.name else {}
    return {
        "job": state.id,
        "kind": state.kind,
        "title": state.title,
        "created": state.created,
        "phase": state.phase,
        "phase_done": state.phase_done,
        "phase_total": state.phase_total,
        "seconds": state.seconds,
        **step,
        **facts(state),
    }


def notify(workspace: Workspace, args: argparse.Namespace) -> int:
    """Shows, sets, tests or removes the webhook. The address is read from stdin, so that no list of commands has it."""
    if args.action == "set":
        url = getpass.getpass("Webhook URL: ") if sys.stdin.isatty() else sys.stdin.readline()
        if not url.strip():
            raise StudioError("No address was given.", "Type it, or pipe it: `lora-studio notify set < FILE`.")
        save_webhook(workspace, url, args.format)
    elif args.action == "test":
        say(send_test(workspace))
    elif args.action == "remove":
        remove_webhook(workspace)
        say("No more notes are sent.")
    webhook = read_webhook(workspace)
    if args.json:
        known = {"host": webhook.host, "format": webhook.shape, "error": webhook.error} if webhook else None
        print_json({"webhook": known})
    elif webhook is None:
        say("No webhook is set. `lora-studio notify set` sets one.")
    else:
        say(f"Notes are sent to {webhook.host} ({FORMATS[webhook.shape]}).")
        if webhook.error:
            say(f"The last note did not arrive: {webhook.error}")
    return 0
