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
from lora_studio.models.hardware import default_devices
from lora_studio.ui import html, theme
from lora_studio.ui.components import QUIET, Components, Handover, Shared, Updates
from lora_studio.ui.studio import Studio, ViewValues
from lora_studio.ui.words import clock

RULE = "Each device runs one job at a time; the others start in this order."


def build_queue(studio: Studio, shared: Shared) -> Components:
    """The list, hidden while nothing waits, and what went wrong with an action."""
    devices = gr.HTML(visible=False, elem_id="run-devices")
    listed = gr.HTML(js_on_load=theme.on_load("clicks"), visible=False, elem_id="run-queue")
    error_box = gr.HTML(visible=False)

    def act(event: gr.EventData) -> Updates:
        try:
            if event.act == "edit":
                return {shared.form: edit(studio, event.value), shared.tabs: gr.Tabs(selected="train")}
            if event.act in ("out", "stop"):
                studio.supervisor.stop(event.value)
            elif event.act == "now":
                studio.supervisor.start_now(event.value)
            else:
                studio.supervisor.move(event.value, -1 if event.act == "up" else 1)
        except StudioError as error:
            return {error_box: gr.HTML(html.problem(error), visible=True)}
        return {error_box: gr.HTML(visible=False)}

    listed.click(act, None, [error_box, shared.form, shared.tabs], **QUIET)
    return {"devices": devices, "queue": listed}


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
    """The devices, where there are several; the jobs that wait and, if other kinds of jobs are among them, those that
    work."""
    supervisor, workspace = studio.supervisor, studio.workspace
    devices = view_devices(supervisor.usage())
    waiting, working = supervisor.waiting(), supervisor.working()
    other_kinds = [job for job in working if job.kind != TRAIN.name]
    if not waiting and not other_kinds:
        return {"devices": devices, "queue": None}
    hidden = {entry.job for entry in waiting if not is_shown(workspace, entry)}
    hidden |= {job.id for job in working if not workspace.policy.can_read(KINDS[job.kind].folder_of(workspace, job.id))}
    states = {entry.job: supervisor.state(entry.job) for entry in waiting if entry.job not in hidden}
    slots = len(default_devices(supervisor.devices()))
    starts = expected_starts(waiting, working, lambda entry: duration_of(studio, entry), slots)
    short = {job for job in states if workspace.policy.is_admin and supervisor.waits_for_memory(job)}
    return {"devices": devices, "queue": rows(waiting, states, hidden, working, starts, short)}


def view_devices(usage: theme.Usage) -> str | None:
    """Each device with its memory, load and users; None where there is only one, which the header tells."""
    if len(usage) < 2:
        return None
    listed = []
    for device, users in usage:
        used = device.memory_total - device.memory_free
        load = f", {device.load:.0f} % busy" if device.load is not None else ""
        name, share = device.name if device.is_gpu else "", 100 * used / device.memory_total
        facts = f"{theme.free_of(device)}{load}"
        listed.append((device.label, name, facts, share, " and ".join(users), device.describe()))
    return html.render("runs.devices", listed)


def expected_starts(
    waiting: Sequence[QueueEntry],
    working: Sequence[RunState],
    duration: Callable[[QueueEntry], float | None],
    slots: int = 1,
) -> list[float | None]:
    """Seconds until each waiting job starts, where so many work at a time; None where the end of one before it is not
    known."""
    free_at: list[float | None] = [0.0] * slots
    for number, job in enumerate(working):
        before, seconds = free_at[number % slots], job.seconds_left
        free_at[number % slots] = None if before is None or seconds is None else max(before, seconds)
    starts: list[float | None] = []
    for entry in waiting:
        if None in free_at:
            starts.append(None)
            continue
        first = min(range(slots), key=lambda slot: free_at[slot] or 0.0)
        start, seconds = free_at[first], duration(entry)
        starts.append(start)
        free_at[first] = None if start is None or seconds is None else start + seconds
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
    states: Mapping[str, RunState],
    hidden: Collection[str] = (),
    working: Sequence[RunState] = (),
    starts: Sequence[float | None] = (),
    short: Collection[str] = (),
) -> str:
    """The jobs that work and those that wait, in order, with their buttons; hidden jobs are only counted. Those `short`
    of memory can be started all the same."""
    items: list[tuple[str, str, str, Sequence[Button]]] = [_working(job, hidden=job.id in hidden) for job in working]
    for place, entry in enumerate(waiting):
        if entry.job in hidden:
            items.append((str(place + 1), _of_another(KINDS[entry.kind].noun), "", ()))
            continue
        state = states.get(entry.job)
        name = (state.title if state else "") or entry.job
        buttons = [
            ("up", entry.job, "↑", f"Move {name} up", place == 0),
            ("down", entry.job, "↓", f"Move {name} down", place == len(waiting) - 1),
            ("edit", entry.job, "Edit", f"Edit {name}", False),
            ("now", entry.job, "Start anyway", f"Start {name} with little memory free", False),
            ("out", entry.job, "Remove", f"Remove {name} from the queue", False),
        ]
        editable = entry.kind == TRAIN.name and not entry.resume
        possible = {"edit": editable, "now": entry.job in short}
        offered = [act for act in buttons if possible.get(act[0], True)]
        start = starts[place] if place < len(starts) else None
        remark = ", ".join(filter(None, (purpose(entry), f"starts in about {clock(start)}" if start else "")))
        why = state.waiting if state else ""
        items.append((str(place + 1), name, f"{remark}. {why}" if why else remark, offered))
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
