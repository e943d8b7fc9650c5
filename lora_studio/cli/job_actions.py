"""What `jobs` and `runs` do with one job of whatever kind, which goes on without the terminal that started it."""

import time
from collections.abc import Mapping
from typing import Any

from lora_studio.cli import evaluate_command, export_command
from lora_studio.cli.following import Telling, exit_code, follow
from lora_studio.cli.terminal import confirmed, duration, print_json, progress_line, say, size
from lora_studio.cli.train_command import follow_to_end, step_line
from lora_studio.errors import StudioError
from lora_studio.events import RunState
from lora_studio.files import bytes_in
from lora_studio.job_folders import EvaluationFolder, ExportFolder
from lora_studio.jobs.ending_words import ending_words
from lora_studio.jobs.kinds import KINDS, TRAIN, Kind
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.workspace import JobFolder, RunFolder

ACTIONS = ("show", "follow", "stop", "cancel", "resume", "delete")
_BENCHMARKING = Telling({"answer": "asking"}, progress_line, "what was asked is lost")


def act(supervisor: Supervisor, name: str, action: str, as_json: bool, *, sure: bool = False) -> int:
    """One of `ACTIONS` on a job that is no run; the exit code. Unless `sure`, a person is asked before anything is
    deleted."""
    kind, folder = supervisor.find(name)
    if action == "follow":
        return tell_to_end(supervisor, folder, as_json)
    if action == "delete":
        state = supervisor.state(folder.id)
        if state.final and not sure:
            ask(f"{kind.noun} {folder.id} ({state.title}, {size(bytes_in(folder.path))})")
        supervisor.delete(folder.id)
        say(f"Deleted {kind.noun} {folder.id}.")
        if as_json:
            print_json({kind.noun: folder.id, "state": "deleted"})
        return 0
    if action in ("stop", "cancel"):
        end(supervisor, kind, folder.id, at_once=action == "cancel")
    if action == "resume":
        supervisor.resume(folder.id)
        say(f"Resumed. It goes on in the background: `python -m lora_studio jobs follow {folder.id}` tells of it.")
    state = supervisor.state(folder.id)
    if as_json:
        print_json({kind.noun: folder.id, **facts(state)})
    else:
        print("\n".join(_describe(state)))
    return 0


def tell_to_end(supervisor: Supervisor, folder: JobFolder, as_json: bool) -> int:
    """Follows any job to its end; the exit code. Ctrl-C ends only the telling."""
    match folder:
        case RunFolder():
            return follow_to_end(supervisor, folder, as_json, leaves=True)
        case EvaluationFolder():
            return evaluate_command.tell_to_end(supervisor, folder, as_json, leaves=True)
        case ExportFolder():
            return export_command.tell_to_end(supervisor, folder, as_json, leaves=True)
    state = follow(supervisor, folder.id, _BENCHMARKING, leaves=True)
    if as_json:
        print_json({KINDS[state.kind].noun: folder.id, **facts(state), **folder.read_result()})
    else:
        print("\n".join([*_describe(state), supervisor.log(folder.id, 40)]))
    return exit_code(state, supervisor.exit_code(folder.id))


def facts(state: RunState) -> Mapping[str, Any]:
    """A job's state for a script, with why it ended."""
    message, hint = ending_words(state)
    return {"state": state.state, "reason": state.reason, "message": message, "hint": hint}


def ask(what: str) -> None:
    """Asks whether that may be deleted. Raises `StudioError` where nobody says yes."""
    if not confirmed(f"Delete {what} for good?"):
        raise StudioError(f"Nothing was deleted. What would go is {what}.", "Say y when asked, or add --yes.")


def end(supervisor: Supervisor, kind: Kind, job_id: str, *, at_once: bool) -> None:
    """Asks a worker to end, or ends it, and stays until it has, so that one that does not listen is ended."""
    if supervisor.state(job_id).final:
        say(f"{kind.noun.capitalize()} {job_id} has ended already.")
        return
    if at_once:
        supervisor.cancel(job_id)
    else:
        supervisor.stop(job_id)
    supervisor.start()
    try:
        while not supervisor.state(job_id).final:
            time.sleep(0.05)
    finally:
        supervisor.close()


def progress_of(state: RunState) -> str:
    """How far a job is, in one line; "" where nothing is known yet."""
    if state.state == "queued":
        return "waits for the device"
    if state.kind == TRAIN.name:
        return step_line(state) if state.steps else state.phase
    line = evaluate_command.answered_line(state) if state.phase == "answer" else progress_line(state)
    return line or state.phase


def _describe(state: RunState) -> list[str]:
    lines = [f"{state.id}  {state.title}", f"state       {state.state}, phase {state.phase or '-'}"]
    if state.final:
        lines.append(f"took        {duration(state.seconds)}")
    elif told := progress_of(state):
        lines.append(f"progress    {told}")
    return [*lines, *(text for text in ending_words(state) if text)]


def going_on(supervisor: Supervisor) -> list[str]:
    """A line for each job beside the runs that works or waits now, with how to end it."""
    return [
        f"The {kind.noun} {state.id} ({state.title}) {'waits' if state.state == 'queued' else 'is going on'}; "
        f"`jobs stop {state.id}` ends it."
        for kind in KINDS.values()
        if kind is not TRAIN
        for state in supervisor.jobs(kind)
        if not state.final
    ]
