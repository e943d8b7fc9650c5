"""The Runs tab's results of a run (sample answers, checkpoints, evaluations) and the queue of jobs.

A queued run that was never started can be edited: it leaves the queue, and its settings stand in the form.
"""

import os
import time
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.config.parsing import load_config
from lora_studio.config.settings import flatten
from lora_studio.errors import StudioError
from lora_studio.evaluate.request import of_run
from lora_studio.jobs.events import QuestionsAnswered, QuestionsAsked, RunState
from lora_studio.jobs.kinds import KINDS, TRAIN, EvaluationFolder
from lora_studio.jobs.queue import QueueEntry, is_shown
from lora_studio.runs import checkpoints
from lora_studio.runs.checkpoints import Checkpoint
from lora_studio.ui import html, job_views, theme
from lora_studio.ui import words as run_words
from lora_studio.ui.evaluate.results import headline
from lora_studio.ui.studio import (
    QUIET,
    Components,
    Handover,
    RunView,
    Shared,
    Studio,
    Updates,
    ViewValues,
    opening,
    stat_of,
)

SHOWN = 5
HEAD = ("Question", "Expected", "Base", "Adapter")


def build_answers(studio: Studio, shared: Shared) -> Components:
    """A fold with the tables, hidden for a run that asks nothing."""
    with gr.Accordion("Answers as the run goes on", open=True, visible=False, elem_id="run-answers") as fold:
        tables = gr.HTML()
    return {"fold": fold, "tables": tables}


def stamp_answers(view: RunView) -> Hashable:
    return view.run.id, view.run.questions is not None, len(view.run.answers), view.run.resumed


def view_answers(view: RunView) -> ViewValues:
    return {"fold": view.run.questions is not None, "tables": tables(view.run)}


def tables(run: RunState) -> str:
    """One table for each of the last evaluations, the newest first; only that one is open."""
    questions = run.questions
    if questions is None:
        return ""
    newest = list(reversed(run.answers))[:SHOWN]
    if not newest:
        return html.hint("The adapter answers after the first evaluation.") + _table(questions, None)
    omitted = len(run.answers) - len(newest)
    older = html.count(omitted, "earlier evaluation") if omitted else ""
    return html.render(
        "runs.answers", [(_right(questions, answered), _table(questions, answered)) for answered in newest], older
    )


def _right(questions: QuestionsAsked, answered: QuestionsAnswered) -> str:
    right, base, of = sum(answered.right), sum(questions.right), len(questions.questions)
    return (
        f"Step {answered.step:,}, epoch {answered.epoch:.2f}: the adapter answers {right:,} of {of:,} exactly as "
        f"expected, the base {base:,}"
    )


def _table(questions: QuestionsAsked, answered: QuestionsAnswered | None) -> str:
    answers: Sequence[str | None] = answered.answers if answered else [None] * len(questions.questions)
    right: Sequence[bool] = answered.right if answered else [False] * len(questions.questions)
    rows = [
        (question, reference, _marked(base, exact), _marked(answer, same))
        for question, reference, base, exact, answer, same in zip(
            questions.questions, questions.references, questions.answers, questions.right, answers, right, strict=True
        )
    ]
    label = f"Answers after step {answered.step:,}" if answered else "Answers of the base"
    return html.table(HEAD if answered else HEAD[:3], rows if answered else [row[:3] for row in rows], label)


def _marked(answer: str | None, right: bool) -> str | None:
    """An answer, with a tick where it is the expected one; an empty one is named."""
    if answer is None:
        return None
    return ("✓ " if right else "") + (answer or "(nothing)")


ACTIONS = (("chat", "Chat"), ("download", "Download"), ("delete", "Delete…"))


def build_checkpoints(studio: Studio, shared: Shared) -> Components:
    """A fold with the table; a deletion is asked about first."""
    doomed = gr.State("")
    with gr.Accordion("Checkpoints", open=False, elem_id="run-checkpoints") as fold:
        table = gr.HTML(js_on_load=theme.on_load("clicks"))
        with gr.Row(visible=False, elem_classes="confirm") as confirm:
            question = gr.HTML(min_width=260)
            yes = gr.Button("Delete for good", variant="stop", elem_id="checkpoint-delete-yes", scale=0, min_width=150)
            no = gr.Button("Keep it", scale=0, min_width=100)
        result_box = job_views.place(studio.workspace)

    def act(event: gr.EventData) -> Updates:
        run_id, _, name = str(event.value).rpartition("/")
        try:
            run = studio.workspace.run(run_id)
            folder = checkpoints.folder_of(run, name)
            if event.act == "chat":
                wish, tabs = opening("chat", adapter=f"{run.id}/{name}")
                return {shared.wish: wish, shared.tabs: tabs}
            if event.act == "download":
                target = job_views.new_file(studio.workspace, f"{run.id}-{name}.zip")
                checkpoints.write_zip(folder, target)
                return {result_box: job_views.link(target)}
        except StudioError as error:
            return {result_box: html.problem(error)}
        words = f"Delete {name}? Neither resuming nor chatting with this step is possible afterwards."
        return {confirm: gr.Row(visible=True), question: html.notice(words, kind="warning"), doomed: str(event.value)}

    def delete(value: str) -> Updates:
        run_id, _, name = value.rpartition("/")
        try:
            checkpoints.delete(studio.workspace.run(run_id), studio.supervisor.state(run_id), name)
        except StudioError as error:
            return {confirm: gr.Row(visible=False), result_box: html.problem(error)}
        return {confirm: gr.Row(visible=False), result_box: ""}

    touched = [confirm, result_box, question, doomed, shared.wish, shared.tabs]
    table.click(act, None, touched, show_progress_on=table, api_visibility="private")
    yes.click(delete, doomed, touched, **QUIET)
    no.click(lambda: gr.Row(visible=False), None, confirm, **QUIET)
    shared.run.change(lambda: (gr.Row(visible=False), ""), None, [confirm, result_box], **QUIET)
    return {"fold": fold, "table": table}


def stamp_checkpoints(view: RunView) -> Hashable:
    run = view.run
    return run.id, run.final, len(run.evaluations), tuple(run.checkpoints), stat_of(view.folder.checkpoints)


def view_checkpoints(view: RunView) -> ViewValues:
    on_disk = checkpoints.checkpoints(view.folder, view.run)
    words = (
        f"Checkpoints: {len(on_disk)}, {html.size(sum(item.bytes for item in on_disk))}" if on_disk else "Checkpoints"
    )
    return {"fold": gr.update(label=words), "table": table(view.run.id, on_disk, view.run.final)}


def table(run_id: str, on_disk: list[Checkpoint], final: bool) -> str:
    """The checkpoints with step, epoch, what was measured there, and buttons; those of a run that goes on stay."""
    if not on_disk:
        return html.empty("No checkpoint yet", "One is saved after each epoch, unless the settings say otherwise.")
    metrics = list(dict.fromkeys(name for item in on_disk for name in item.metrics))
    more = ["Epoch", *(run_words.sentence_case(_plain(name))[:-1] for name in metrics), "Size"]
    rows = [
        (item, *_numbers(item, metrics), [act for act in ACTIONS if final or act[0] != "delete"]) for item in on_disk
    ]
    return html.render("runs.checkpoints", more, rows, run_id)


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _numbers(item: Checkpoint, metrics: list[str]) -> tuple[str, list[str]]:
    """The validation loss, and what stands in the columns after it."""
    epoch = "–" if item.epoch is None else f"{item.epoch:.2f}"
    more = [epoch, *(run_words.figure(item.metrics.get(name)) for name in metrics), html.size(item.bytes)]
    return run_words.figure(item.loss), more


def build_evaluations(studio: Studio, shared: Shared) -> Components:
    """A fold with the list and the way to the evaluate tab."""
    with gr.Accordion("Evaluations", open=False, elem_id="run-evaluations") as fold:
        listed = gr.HTML(js_on_load=theme.on_load("clicks"))

    def act(event: gr.EventData) -> Any:
        return opening("evaluate", **{"job" if event.act == "open" else "adapter": str(event.value)})

    listed.click(act, None, [shared.wish, shared.tabs], **QUIET)
    return {"fold": fold, "listed": listed}


def stamp_evaluations(view: RunView) -> Hashable:
    return view.run.id, view.run.final, len(view.run.checkpoints), touched(view.studio.workspace.evaluations_folder)


def touched(folder: Path) -> tuple[tuple[str, int], ...]:
    """When each evaluation's folder last got a file: its numbers come as one."""
    if not folder.is_dir():
        return ()
    return tuple((name, stat_of(folder / name)[1]) for name in sorted(os.listdir(folder)))


def view_evaluations(view: RunView) -> ViewValues:
    evaluations = of_run(view.studio.workspace, view.run.id)
    words = f"Evaluations: {len(evaluations)}" if evaluations else "Evaluations"
    return {"fold": gr.update(label=words), "listed": listing(evaluations, view.run.id, bool(view.run.checkpoints))}


def listing(evaluations: list[EvaluationFolder], run_id: str, has_adapter: bool) -> str:
    """Each evaluation with what it came to, and a button to make another; `there` says whether an adapter is."""
    another = job_views.buttons(("new", run_id, "Evaluate this run…")) if has_adapter else ""
    if not evaluations:
        return html.empty("No evaluation yet", "A test file shows what the adapter learned, beside its base.") + another
    return html.render("runs.evaluations", [_listed(folder) for folder in evaluations]) + another


def _listed(folder: EvaluationFolder) -> tuple[str, str, str]:
    measured = folder.read_result()
    return folder.id, folder.read_facts()["title"], headline(measured) if measured else "not measured yet"


EXPLAINED = "One job holds the device at a time. Others start one after the other, from the top, also after a restart."


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
    """Takes a waiting run away and gives its settings. Raises `StudioError` for one that trained before."""
    run = studio.workspace.run(run_id)
    if studio.supervisor.state(run.id).state != "queued" or run.worker.exists():
        raise StudioError(
            "Only a run that was never started can be edited.", "Take it out, or continue from its adapter."
        )
    values = flatten(load_config(run.config))
    studio.supervisor.delete(run.id)
    return Handover(time.time(), values, f"Edited run {run.id}")


def stamp_queue(view: RunView) -> Hashable:
    working = view.studio.supervisor.working()
    return tuple(view.studio.supervisor.waiting()), tuple((job.id, job.state) for job in working)


def view_queue(view: RunView) -> ViewValues:
    supervisor, workspace = view.studio.supervisor, view.studio.workspace
    waiting, working = supervisor.waiting(), supervisor.working()
    hidden = {entry.job for entry in waiting if not is_shown(workspace, entry)}
    hidden |= {job.id for job in working if not workspace.policy.can_read(KINDS[job.kind].folder_of(workspace, job.id))}
    other_kinds = [job for job in working if job.kind != TRAIN.name]
    titles = {entry.job: supervisor.state(entry.job).title for entry in waiting if entry.job not in hidden}
    listed = rows(waiting, titles, hidden, working) if waiting or other_kinds else None
    return {"queue": listed}


Button = tuple[str, str, str, str, bool]
"""What a click asks for, of which job, the words on it, what it is about, and whether it is off."""


def rows(
    waiting: Sequence[QueueEntry],
    titles: Mapping[str, str],
    hidden: Collection[str] = (),
    working: Sequence[RunState] = (),
) -> str:
    """The jobs that work and those that wait, the next one first, each with its buttons; of those hidden no more than
    that they are there."""
    items = [_working(job, hidden=job.id in hidden) for job in working]
    for place, entry in enumerate(waiting):
        if entry.job in hidden:
            items.append((str(place + 1), f"Another visitor's {KINDS[entry.kind].noun}", "", ()))
            continue
        name = titles.get(entry.job) or entry.job
        buttons = [
            ("up", entry.job, "↑", f"Move {name} up", place == 0),
            ("down", entry.job, "↓", f"Move {name} down", place == len(waiting) - 1),
            ("edit", entry.job, "Edit", f"Edit {name}", False),
            ("out", entry.job, "Take out", f"Take {name} out of the queue", False),
        ]
        editable = entry.kind == TRAIN.name and not entry.resume
        offered = [act for act in buttons if act[0] != "edit" or editable]
        items.append((str(place + 1), name, purpose(entry), offered))
    return html.render("runs.queue", "Waiting for their turn" if waiting else "Working now", EXPLAINED, items)


def _working(job: RunState, *, hidden: bool) -> tuple[str, str, str, Sequence[Button]]:
    noun = KINDS[job.kind].noun
    if hidden:
        return "▸", f"Another visitor's {noun}", "", ()
    name, stopping = job.title or job.id, job.state == "stopping"
    activity = f"{noun}, {'stopping' if stopping else 'works'}"
    return "▸", name, activity, [("stop", job.id, "Stop", f"Stop {name}", stopping)]


def purpose(entry: QueueEntry) -> str:
    """What a waiting job is to do."""
    if entry.kind != TRAIN.name:
        return f"{KINDS[entry.kind].noun}, {'goes on' if entry.resume else 'begins'}"
    if entry.extra_epochs:
        return f"goes on for {entry.extra_epochs:g} more epoch{'' if entry.extra_epochs == 1 else 's'}"
    return "goes on from its last checkpoint" if entry.resume else "begins"
