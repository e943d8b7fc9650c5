"""What the tabs of jobs with folders of their own (evaluations, exports) share: list, states, buttons. No gradio."""

from collections.abc import Callable, Sequence
from typing import Any

from lora_studio.events import RunState
from lora_studio.jobs.folder_jobs import FolderJobs
from lora_studio.ui import run_words
from lora_studio.ui.text import count, escape
from lora_studio.workspace import Workspace

LISTED = 30
STATES = {
    "queued": "Starting",
    "running": "Running",
    "stopping": "Stopping",
    "done": "Finished",
    "stopped": "Stopped",
    "failed": "Failed",
}


def opening(workspace: Workspace, jobs: FolderJobs[Any], draft: str) -> str:
    """The job to look at first: the one looked at last, whose id is the draft of that name, else the newest."""
    last = workspace.read_draft(draft)
    known = [state.id for state in jobs.all()]
    return str(last) if last in known else next(iter(known), "")


def listing(
    states: Sequence[RunState], looked_at: str, now: float, noun: str, about: Callable[[RunState], tuple[str, str]]
) -> str:
    """The earlier ones to choose from; `about` gives what is said before and after the time of each."""
    rows = "".join(_listed(state, state.id == looked_at, now, *about(state)) for state in states[:LISTED])
    left = len(states) - LISTED
    more = f'<p class="ls-hint">{count(left, f"older {noun}")} not shown.</p>' if left > 0 else ""
    return f'<ul class="job-list" aria-label="{noun.capitalize()}s">{rows}</ul>{more}'


def _listed(state: RunState, current: bool, now: float, said: str, outcome: str) -> str:
    name, title = escape(state.id), escape(state.title)
    delete = f'<button type="button" data-act="delete" data-value="{name}" aria-label="Delete {title}">Delete…</button>'
    about = " · ".join(filter(None, (said, run_words.ago(state.created, now), outcome)))
    return (
        f'<li aria-current="{"true" if current else "false"}"><span class="dot {escape(state.state)}"></span>'
        f'<button type="button" class="open" data-act="open" data-value="{name}">{title}</button>'
        f"<small>{escape(about)}</small>{delete if state.final else ''}</li>"
    )


def title(state: RunState) -> str:
    """What stands above the one that is looked at."""
    return f'<h2><span class="dot {escape(state.state)}"></span>{escape(state.title)}</h2>'


def ended(state: RunState, said: str = "") -> str:
    """Finished after 12 s; `said` stands in the place of the state's own word."""
    seconds = run_words.elapsed(state, 0.0)
    after = "before it began" if seconds is None else f"after {run_words.clock(seconds)}"
    words = f"{said or STATES[state.state]} {after}."
    return f'<div class="now">{escape(words)}</div>'


def buttons(*acts: tuple[str, str, str]) -> str:
    """Buttons beside each other: what a click asks for, with which value, and the words on it."""
    drawn = "".join(
        f'<button type="button" data-act="{escape(act)}" data-value="{escape(value)}">{escape(words)}</button>'
        for act, value, words in acts
    )
    return f'<div class="acts job-acts">{drawn}</div>'
