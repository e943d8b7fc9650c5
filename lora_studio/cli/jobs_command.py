"""`jobs`: runs, evaluations, exports and benchmarks in one list, and what can be done with each of them."""

import argparse
from typing import Any

from lora_studio.cli import job_actions
from lora_studio.cli.runs_command import act_on_run, queue
from lora_studio.cli.terminal import age, duration, print_json, say, table
from lora_studio.errors import StudioError
from lora_studio.events import RunState
from lora_studio.jobs.kinds import KINDS, TRAIN
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.workspace import RunFolder, Workspace

HEAD = ("job", "kind", "state", "name", "how far", "time", "made")


def jobs(workspace: Workspace, given: argparse.Namespace) -> int:
    """One of the actions on one job, or the list of all."""
    supervisor = Supervisor(workspace)
    if given.action == "list":
        _list(supervisor, given.json)
        return 0
    if given.action == "queue":
        return queue(supervisor, given.json)
    if given.job is None:
        raise StudioError(f"Which job is to be used for `jobs {given.action}`?", "Give its id; `jobs list` has all.")
    _, folder = supervisor.find(given.job)
    if given.action in ("up", "down"):
        supervisor.move(folder.id, -1 if given.action == "up" else 1)
        return queue(supervisor, given.json)
    if isinstance(folder, RunFolder):
        return act_on_run(workspace, supervisor, folder, given.action, given.json, sure=given.yes)
    return job_actions.act(supervisor, folder.id, given.action, given.json, sure=given.yes)


def _list(supervisor: Supervisor, as_json: bool) -> None:
    """Every job, newest first, with those that wait in their order."""
    states = [state for kind in KINDS.values() for state in supervisor.jobs(kind)]
    states.sort(key=lambda state: state.created, reverse=True)
    if as_json:
        working = [state.id for state in supervisor.working()]
        print_json({"jobs": list(map(_row, states)), "working": working, "queue": supervisor.queue()})
        return
    if not states:
        say("There are no jobs yet. `python -m lora_studio train demo` makes one.")
        return
    rows = [
        (
            state.id,
            KINDS[state.kind].noun,
            state.state,
            state.title,
            "-" if state.final else job_actions.progress_of(state) or "-",
            duration(state.seconds) if state.seconds else "-",
            age(state.created),
        )
        for state in states
    ]
    print(table(HEAD, rows))


def _row(state: RunState) -> dict[str, Any]:
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
        **job_actions.facts(state),
    }
