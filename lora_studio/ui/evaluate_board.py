"""What the evaluate tab shows at one moment, painted from the evaluations' folders and from nothing else. No gradio."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_studio.errors import StudioError
from lora_studio.evaluations import evaluation, request_of
from lora_studio.events import RunState
from lora_studio.job_folders import EvaluationFolder
from lora_studio.jobs.kinds import EVALUATE
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.ui import evaluate_rows, evaluate_words, job_list
from lora_studio.ui.run_section import stat_of
from lora_studio.ui.text import empty, notice
from lora_studio.workspace import Workspace, shipped_data

LOOKED_AT, FORM = "evaluation-looked-at", "evaluate"
PARTS = ("list", "head", "results", "rows")


@dataclass(frozen=True)
class View:
    """The evaluation that is looked at, and what was chosen in its table.

    `warned` is the one of which a person knows that the memory will hardly do to go on with it.
    """

    evaluation: str = ""
    rows: evaluate_rows.Choice = field(default_factory=evaluate_rows.Choice)
    warned: str = ""


class Board:
    """Reads evaluations for the tab. What did not change on disk is not read again."""

    def __init__(self, workspace: Workspace, jobs: Supervisor) -> None:
        self.workspace, self.jobs = workspace, jobs
        self._summaries: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}
        self._rows: tuple[str, tuple[int, int], list[dict[str, Any]]] = ("", (0, 0), [])

    def summary(self, folder: EvaluationFolder) -> dict[str, Any]:
        """What the answers amount to; empty before they were measured."""
        stamp = stat_of(folder.complete)
        kept = self._summaries.get(folder.id)
        if kept is None or kept[0] != stamp:
            found = folder.read_result()
            kept = self._summaries[folder.id] = (stamp, found)
        return kept[1]

    def rows(self, folder: EvaluationFolder) -> list[dict[str, Any]]:
        """The answered rows of the one evaluation that is looked at."""
        stamp = stat_of(folder.predictions)
        if self._rows[:2] != (folder.id, stamp):
            self._rows = folder.id, stamp, list(folder.rows())
        return self._rows[2]

    def look(self, view: View, now: float) -> dict[str, str]:
        """The markup of every part."""
        states = self.jobs.jobs(EVALUATE)
        folders = {state.id: EvaluationFolder(self.workspace.evaluations_folder / state.id) for state in states}
        shown = states[: job_list.LISTED]
        headlines = {
            state.id: evaluate_words.headline(found) for state in shown if (found := self.summary(folders[state.id]))
        }
        listed = evaluate_words.listing(states, view.evaluation, now, headlines)
        state = next((one for one in states if one.id == view.evaluation), None)
        if state is None:
            return {"list": listed, "head": "", "results": "", "rows": ""}
        return {"list": listed, **self._looked_at(state, folders[state.id], view)}

    def _looked_at(self, state: RunState, folder: EvaluationFolder, view: View) -> dict[str, str]:
        try:
            request = request_of(folder)
        except StudioError as error:
            return {"head": notice(error.message, error.hint, "error"), "results": "", "rows": ""}
        summary = self.summary(folder)
        titles = {column.name: column.title for column in request.columns}
        rows = self.rows(folder)
        waiting = (
            "" if state.final else empty("The numbers come when all rows are answered", "The answers so far are below.")
        )
        title = '<h3 class="part">Answers</h3>'
        return {
            "head": evaluate_words.head(state, request, owned=self.workspace.owned),
            "results": evaluate_words.results(summary) if summary else waiting,
            "rows": title + evaluate_rows.table(rows, titles, view.rows) if rows or not state.final else "",
        }

    def opening(self) -> str:
        """The evaluation to look at first: the one looked at last, else the newest."""
        return job_list.opening(self.workspace, self.jobs.jobs(EVALUATE), LOOKED_AT)


def data_choices(workspace: Workspace) -> list[tuple[str, str]]:
    """Held-out files that come with the studio, and uploads, as (label, value)."""
    shipped = [(f"{data.title}: held-out questions (built in)", name) for name, data in shipped_data().items()]
    return shipped + [(path.name, str(path)) for path in workspace.uploads()]


def remembered(workspace: Workspace, adapters: Sequence[tuple[str, str]], asked: str = "") -> dict[str, Any]:
    """What was asked for last, as far as it is still there; the adapter `asked` for now is chosen alone."""
    draft = workspace.read_draft(FORM)
    kept: Mapping[str, Any] = draft if isinstance(draft, dict) else {}
    there = [value for _, value in adapters]
    wanted = [asked] if asked in there else kept.get("adapters", [])
    chosen = [value for value in wanted if value in there]
    data = str(kept.get("data") or "pirate")
    known = [value for _, value in data_choices(workspace)]
    return {
        **kept,
        "adapters": chosen or there[:1],
        "data": data if data in known or _there(workspace, data) else "pirate",
    }


def _there(workspace: Workspace, name: str) -> bool:
    """Whether a path is one that may be read, and is there."""
    try:
        workspace.check_path(name)
    except StudioError:
        return False
    return os.path.exists(name)


def file_of(workspace: Workspace, name: str, which: str) -> Path:
    """One of the two files of an evaluation. Raises `StudioError` where it is not there."""
    folder = evaluation(workspace, name)
    path = folder.predictions if which == "predictions" else folder.complete
    if not path.is_file():
        raise StudioError(f"There is no {path.name} yet.", "It is written as rows are answered and measured.")
    return path
