"""The queue of jobs on the Runs tab: what works, what waits and when it is expected to start.

A queued run that was never started can be edited: it leaves the queue, and its settings fill the form.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

import gradio as gr

from lora_studio.config.parsing import load_config
from lora_studio.config.settings import flatten
from lora_studio.errors import StudioError
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import KINDS, TRAIN
from lora_studio.jobs.queue import QueueEntry, is_shown
from lora_studio.ui import html, theme
from lora_studio.ui.components import QUIET, Components, Handover, Shared, Updates
from lora_studio.ui.studio import Studio, ViewValues
from lora_studio.ui.words import clock

RULE = "One job uses the device at a time; the others start in this order."


def build_queue(studio: Studio, shared: Shared) -> Components:
    """The list, hidden while nothing waits, and what went wrong with an action."""
    listed = gr.HTML(js_on_load=theme.on_load("clicks"), visible=False, elem_id="run-queue")
    error_box = gr.HTML(visible=False)

    def act(event: gr.EventData) -> Updates:
        try:
            if event.act == "edit":
                return {shared.form: edit(studio, event.value), shared.tabs: gr.Tabs(selected="train")}
            if event.act in ("out", "stop"):
                studio.supervisor.stop(event.value)
            else:
                studio.supervisor.move(event.value, -1 if event.act == "up" else 1)
        except StudioError as error:
            return {error_box: gr.HTML(html.problem(error), visible=True)}
        return {error_box: gr.HTML(visible=False)}

    listed.click(act, None, [error_box, shared.form, shared.tabs], **QUIET)
    return {"queue": listed}


def edit(studio: Studio, run_id: str) -> Handover:
    """Takes a waiting run away and returns its settings. Raises `StudioError` for one that trained before."""
    run = studio.workspace.run(run_id)
    if studio.supervisor.state(run.id).state != "queued" or run.worker.exists():
        raise StudioError(
            "Only a run that was never started can be edited.", "Take it out, or continue from its adapter."
        )
    values = flatten(load_config(run.config))
    studio.supervisor.delete(run.id)
    return Handover(time.time(), values, f"Edited run {run.id}")


def view_queue(studio: Studio) -> ViewValues:
    """The jobs that wait and, if other kinds of jobs are among them, those that work."""
    supervisor, workspace = studio.supervisor, studio.workspace
    waiting, working = supervisor.waiting(), supervisor.working()
    other_kinds = [job for job in working if job.kind != TRAIN.name]
    if not waiting and not other_kinds:
        return {"queue": None}
    hidden = {entry.job for entry in waiting if not is_shown(workspace, entry)}
    hidden |= {job.id for job in working if not workspace.policy.can_read(KINDS[job.kind].folder_of(workspace, job.id))}
    titles = {entry.job: supervisor.state(entry.job).title for entry in waiting if entry.job not in hidden}
    starts = expected_starts(waiting, working, lambda entry: duration_of(studio, entry))
    return {"queue": rows(waiting, titles, hidden, working, starts)}


def expected_starts(
    waiting: Sequence[QueueEntry], working: Sequence[RunState], duration: Callable[[QueueEntry], float | None]
) -> list[float | None]:
    """Seconds until each waiting job starts; None from the first job on whose end is not known."""
    remaining = [job.seconds_left for job in working]
    at: float | None = 0.0
    for seconds in remaining:
        at = None if at is None or seconds is None else max(at, seconds)
    starts: list[float | None] = []
    for entry in waiting:
        starts.append(at)
        seconds = None if at is None else duration(entry)
        at = None if at is None or seconds is None else at + seconds
    return starts


def duration_of(studio: Studio, entry: QueueEntry) -> float | None:
    """How long a waiting run will take: as long as the newest finished run of its model and data, epoch for epoch."""
    if entry.kind != TRAIN.name:
        return None
    try:
        facts = studio.workspace.run(entry.job).read_facts()
        epochs = entry.extra_epochs or _epochs(studio, entry.job)
        for state in studio.supervisor.runs():
            if state.state != "done" or not state.seconds or state.id == entry.job:
                continue
            other = studio.workspace.run(state.id).read_facts()
            if (other.get("model"), other.get("data")) == (facts.get("model"), facts.get("data")) and state.epoch:
                training = state.seconds - state.start_seconds
                return state.start_seconds + training * epochs / state.epoch if epochs else None
    except StudioError:  # deleted meanwhile, or settings of another version
        return None
    return None


def _epochs(studio: Studio, run_id: str) -> float | None:
    """The epochs of a run's settings; None if steps limit it, or if some are done already."""
    training = load_config(studio.workspace.run(run_id).config).training
    begun = studio.supervisor.state(run_id).step
    return None if training.max_steps > 0 or begun else training.num_train_epochs


Button = tuple[str, str, str, str, bool]
"""Action, job, label, accessible name, and whether the button is disabled."""


def rows(
    waiting: Sequence[QueueEntry],
    titles: Mapping[str, str],
    hidden: Collection[str] = (),
    working: Sequence[RunState] = (),
    starts: Sequence[float | None] = (),
) -> str:
    """The jobs that work and those that wait, in order, with their buttons; hidden jobs are only counted."""
    items: list[tuple[str, str, str, Sequence[Button]]] = [_working(job, hidden=job.id in hidden) for job in working]
    for place, entry in enumerate(waiting):
        if entry.job in hidden:
            items.append((str(place + 1), _of_another(KINDS[entry.kind].noun), "", ()))
            continue
        name = titles.get(entry.job) or entry.job
        buttons = [
            ("up", entry.job, "↑", f"Move {name} up", place == 0),
            ("down", entry.job, "↓", f"Move {name} down", place == len(waiting) - 1),
            ("edit", entry.job, "Edit", f"Edit {name}", False),
            ("out", entry.job, "Remove", f"Remove {name} from the queue", False),
        ]
        editable = entry.kind == TRAIN.name and not entry.resume
        offered = [act for act in buttons if act[0] != "edit" or editable]
        start = starts[place] if place < len(starts) else None
        remark = ", ".join(filter(None, (purpose(entry), f"starts in about {clock(start)}" if start else "")))
        items.append((str(place + 1), name, remark, offered))
    return html.render("runs.queue", "Queue" if waiting else "Active jobs", RULE, items)


def _working(job: RunState, *, hidden: bool) -> tuple[str, str, str, Sequence[Button]]:
    noun = KINDS[job.kind].noun
    if hidden:
        return "▶", _of_another(noun), "", ()
    name, stopping = job.title or job.id, job.state == "stopping"
    remaining_seconds = job.seconds_left
    activity = f"{noun}, {'stopping' if stopping else 'running'}" + (
        f", ETA {clock(remaining_seconds)}" if remaining_seconds else ""
    )
    return "▶", name, activity, [("stop", job.id, "Stop", f"Stop {name}", stopping)]


def _of_another(noun: str) -> str:
    return f"{'An' if noun[0] in 'aeiou' else 'A'} {noun} of another visitor"


def purpose(entry: QueueEntry) -> str:
    """What a waiting job will do."""
    if entry.kind != TRAIN.name:
        return f"{KINDS[entry.kind].noun}, {'resumes' if entry.resume else 'new'}"
    if entry.extra_epochs:
        return f"{entry.extra_epochs:g} more epoch{'' if entry.extra_epochs == 1 else 's'}"
    return "resumes from its last checkpoint" if entry.resume else "new run"
