"""The form that outlives a reload: kept as it is typed, and with what it was before the page filled it."""

import contextlib
from collections.abc import Sequence
from typing import Any

from lora_studio.errors import StudioError
from lora_studio.ui import form as forms
from lora_studio.ui.components import Updates
from lora_studio.ui.train import config_file
from lora_studio.ui.train import presets as own
from lora_studio.ui.train.layout import TrainView
from lora_studio.workspace import Workspace

FormState = tuple[str | None, Sequence[Any]]
"""The preset that a form began with, and what its widgets hold."""


def keep(view: TrainView, workspace: Workspace, state: FormState) -> Updates:
    """Keeps the form as it is, right or wrong, with the preset that it began with.

    A disk that takes nothing more is told in the summary, and the form goes on: what it holds can still be started.
    """
    try:
        forms.save_draft(workspace, *state)
    except StudioError as error:
        return {view.summary: config_file.problem_box(error)}
    return {}


def record(view: TrainView, workspace: Workspace, origin: str, before: FormState, after: FormState) -> Updates:
    """Keeps a form that the page filled, and shows what changed from the form `before`, with an Undo.

    `origin` names what filled it. Where it can't be kept, the summary says so.
    """
    try:
        forms.save_draft(workspace, *after)
        return own.record(view.changes, workspace, origin, before, after[1])
    except StudioError as error:
        return {view.summary: config_file.problem_box(error)}


def forget_changes(view: TrainView, workspace: Workspace) -> None:
    """Nothing is left to undo once a run was started, also where a full disk keeps the notice for a reload."""
    with contextlib.suppress(StudioError):
        own.clear(view.changes, workspace)
