"""Jobs beside the runs on the Runs tab: what works, what waits and when it should start, and notes when a job ends.

A queued run that was never started can be edited: it leaves the queue, and its settings fill the form. Notes go to the
owner's webhook, and to this browser: while the page is hidden, its script asks a route what ended since.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import gradio as gr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lora_studio.config.parsing import load_config
from lora_studio.config.settings import flatten
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import KINDS, TRAIN
from lora_studio.jobs.notes import (
    FORMATS,
    Webhook,
    note_of,
    read_webhook,
    remove_webhook,
    save_webhook,
    send_test,
)
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


MOST = 20
"""Ends that one answer tells of."""


def build_notify(studio: Studio) -> None:
    """Draws the fold and wires it. Only the owner sees the webhook."""
    with gr.Accordion("Notifications", open=False, elem_id="notify"):
        with gr.Row(elem_classes="actions"):
            gr.Button("Notify me", size="sm", scale=0, elem_id="notify-me").click(
                None, js=theme.call("notifyMe"), api_visibility="private"
            )
        gr.HTML(html.quiet("This browser tells you when a job ends and the page is hidden."), elem_id="notify-state")
        with gr.Column(visible=False, elem_id="webhook") as place:
            gr.HTML(html.quiet("A webhook tells Slack, Discord or your own server."))
            url = gr.Textbox(
                label="Webhook URL",
                type="password",
                placeholder="https://hooks.slack.com/…",
                max_lines=1,
                elem_id="webhook-url",
            )
            choices = [(label, name) for name, label in FORMATS.items()]
            shape = gr.Dropdown(choices, value="auto", label="Format", filterable=False, elem_id="webhook-format")
            with gr.Row(elem_classes="actions"):
                save = gr.Button("Save webhook", size="sm", elem_id="webhook-save")
                test = gr.Button("Send a test", size="sm", visible=False, elem_id="webhook-test")
                remove = gr.Button("Remove webhook", size="sm", visible=False, elem_id="webhook-remove")
            state_box = gr.HTML(elem_id="webhook-state")
    parts = [place, url, shape, test, remove, state_box]
    act = WebhookForm(studio)
    gr.on(None, act.look, None, parts, **QUIET)
    save.click(act.save, [url, shape], parts, **QUIET)
    remove.click(act.remove, None, parts, **QUIET)
    test.click(
        act.test,
        None,
        parts,
        trigger_mode="once",
        show_progress="minimal",
        show_progress_on=test,
        api_visibility="private",
    )


class WebhookForm:
    """What the buttons of the webhook do; the address never goes back to a browser."""

    def __init__(self, studio: Studio) -> None:
        self.workspace = studio.workspace

    def look(self, message: str = "") -> list[Any]:
        """What is shown of the webhook that is set, to the owner alone."""
        if not self.workspace.policy.is_admin:
            return [gr.Column(visible=False), "", gr.skip(), gr.Button(visible=False), gr.Button(visible=False), ""]
        webhook = read_webhook(self.workspace)
        is_set = webhook is not None
        shape = webhook.format if webhook else "auto"
        words = message + webhook_words(webhook, quiet=bool(message))
        return [gr.Column(visible=True), "", shape, gr.Button(visible=is_set), gr.Button(visible=is_set), words]

    def save(self, url: str, shape: str) -> list[Any]:
        try:
            save_webhook(self.workspace, url, shape)
        except StudioError as error:
            return [gr.skip()] * 5 + [html.problem(error)]
        return self.look()

    def test(self) -> list[Any]:
        try:
            return self.look(html.notice(send_test(self.workspace), "", "good"))
        except StudioError as error:
            return self.look(html.problem(error))

    def remove(self) -> list[Any]:
        try:
            remove_webhook(self.workspace)
        except StudioError as error:
            return [gr.skip()] * 5 + [html.problem(error)]
        return self.look()


def webhook_words(webhook: Webhook | None, *, quiet: bool = False) -> str:
    """Where notes go, and what went wrong the last time."""
    if webhook is None:
        return ""
    if webhook.error and not quiet:
        return html.notice(f"The last note did not arrive at {webhook.host}: {webhook.error}", "", "warning")
    return html.quiet(f"Notes are sent to {webhook.host} ({FORMATS.get(webhook.shape, webhook.shape)}).")


def routes(studio: Studio) -> list[Route]:
    """What ended since a time, for whoever asks: only jobs that they may see."""

    async def ended(request: Request) -> Response:
        try:
            since = float(request.query_params.get("since", ""))
        except ValueError:
            since = time.time()
        return JSONResponse(await asyncio.to_thread(ended_since, studio, since))

    return [Route("/studio/ended", ended, methods=["GET"])]


def ended_since(studio: Studio, since: float) -> JsonObject:
    """The ends after a time (seconds since 1970), oldest first, and the time now."""
    now = time.time()
    states = [state for kind in KINDS.values() for state in studio.supervisor.jobs(kind)]
    last = [state for state in states if state.final and (state.finished or 0.0) > since]
    last.sort(key=lambda state: state.finished or 0.0)
    notes = [note_of(state) for state in last[-MOST:]]
    return {"now": now, "ended": [{"title": note.title, "text": note.text} for note in notes]}
