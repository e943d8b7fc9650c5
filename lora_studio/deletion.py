"""What goes with a run when it is deleted, and what stands against it. Deleting itself is the supervisor's matter."""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_studio.events import RunState
from lora_studio.files import bytes_in
from lora_studio.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Deletion:
    """A run that is to go; `against` says why it can't, `continued_by` names the runs that began with its adapter."""

    run: str
    title: str
    bytes: int
    continued_by: tuple[str, ...]
    against: str = ""


def deletions(workspace: Workspace, wanted: Sequence[str], runs: Sequence[RunState]) -> list[Deletion]:
    """What deleting the wanted runs, by id, comes to; ids of runs that are gone are left out."""
    known = {run.id: run for run in runs}
    beginnings = _beginnings(workspace)
    found = []
    for state in (known[run_id] for run_id in wanted if run_id in known):
        after = tuple(known[other].title or other for other, line in beginnings if state.id in line and other in known)
        against = "" if state.final or state.state == "queued" else f"It is {state.state}: stop it first."
        size = bytes_in(workspace.run(state.id).path)
        found.append(Deletion(state.id, state.title or state.id, size, after, against))
    return found


def _beginnings(workspace: Workspace) -> list[tuple[str, str]]:
    """Of each run that began with another's adapter: its id, and the line of its config that names the other."""
    found = []
    for run in workspace.runs():
        lines = run.config.read_text(encoding="utf-8").splitlines()
        found += [(run.id, line) for line in lines if line.lstrip().startswith("adapter_name_or_path:")]
    return found
