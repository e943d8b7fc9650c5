"""The results of a run on the Runs tab: sample generations, checkpoints and evaluations."""

import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.evaluate.request import of_run
from lora_studio.jobs.events import QuestionsAnswered, QuestionsAsked, RunState
from lora_studio.jobs.kinds import EvaluationFolder
from lora_studio.runs import checkpoints
from lora_studio.runs.checkpoints import Checkpoint
from lora_studio.ui import html, job_views, theme
from lora_studio.ui import words as run_words
from lora_studio.ui.components import QUIET, Components, Shared, Updates, opening, stat_of
from lora_studio.ui.evaluate.results import headline
from lora_studio.ui.studio import RunView, Studio, ViewValues

SHOWN = 5
HEAD = ("Question", "Expected", "Base", "Adapter")


def build_answers(studio: Studio, shared: Shared) -> Components:
    """The tables."""
    return {"tables": gr.HTML(elem_id="run-answers")}


def stamp_answers(view: RunView) -> Hashable:
    return view.run.id, view.run.questions is not None, len(view.run.answers), view.run.resumed


def view_answers(view: RunView) -> ViewValues:
    return {"tables": tables(view.run)}


def tables(run: RunState) -> str:
    """One table for each of the last evaluations, the newest first; only that one is open."""
    questions = run.questions
    if questions is None:
        return html.empty("No samples", "Set “Sample generations” on the Train tab to read answers while a run trains.")
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
    """The table; a deletion is asked about first."""
    doomed = gr.State("")
    table = gr.HTML(js_on_load=theme.on_load("clicks"), elem_id="run-checkpoints")
    with gr.Row(visible=False, elem_classes="confirm") as confirm:
        question = gr.HTML(min_width=200)
        yes = gr.Button("Delete for good", variant="stop", elem_id="checkpoint-delete-yes", scale=0, min_width=150)
        no = gr.Button("Keep checkpoint", scale=0, min_width=100)
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
    return {"table": table}


def stamp_checkpoints(view: RunView) -> Hashable:
    run = view.run
    return run.id, run.final, len(run.evaluations), tuple(run.checkpoints), stat_of(view.folder.checkpoints)


def view_checkpoints(view: RunView) -> ViewValues:
    on_disk = checkpoints.checkpoints(view.folder, view.run)
    return {"table": table(view.run.id, on_disk, view.run.final)}


def table(run_id: str, on_disk: list[Checkpoint], final: bool) -> str:
    """The checkpoints with step, epoch, what was measured there, and buttons; those of a run that goes on stay."""
    if not on_disk:
        return html.empty("No checkpoint yet", "One is saved after each epoch, unless the settings say otherwise.")
    metrics = list(dict.fromkeys(name for item in on_disk for name in item.metrics))
    more = ["Epoch", *(run_words.sentence_case(_plain(name))[:-1] for name in metrics), "Size"]
    rows = [
        (item, *_numbers(item, metrics), [act for act in ACTIONS if final or act[0] != "delete"]) for item in on_disk
    ]
    total = f"{html.count(len(on_disk), 'checkpoint')}, {html.size(sum(item.bytes for item in on_disk))}"
    return html.hint(total) + html.render("runs.checkpoints", more, rows, run_id)


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _numbers(item: Checkpoint, metrics: list[str]) -> tuple[str, list[str]]:
    """The validation loss, and what stands in the columns after it."""
    epoch = "–" if item.epoch is None else f"{item.epoch:.2f}"
    more = [epoch, *(run_words.figure(item.metrics.get(name)) for name in metrics), html.size(item.bytes)]
    return run_words.figure(item.loss), more


def build_evaluations(studio: Studio, shared: Shared) -> Components:
    """The list and the way to the evaluate tab."""
    listed = gr.HTML(js_on_load=theme.on_load("clicks"), elem_id="run-evaluations")

    def act(event: gr.EventData) -> Any:
        return opening("evaluate", **{"job" if event.act == "open" else "adapter": str(event.value)})

    listed.click(act, None, [shared.wish, shared.tabs], **QUIET)
    return {"listed": listed}


def stamp_evaluations(view: RunView) -> Hashable:
    return view.run.id, view.run.final, len(view.run.checkpoints), touched(view.studio.workspace.evaluations_folder)


def touched(folder: Path) -> tuple[tuple[str, int], ...]:
    """When each evaluation's folder last got a file: its numbers come as one."""
    if not folder.is_dir():
        return ()
    return tuple((name, stat_of(folder / name)[1]) for name in sorted(os.listdir(folder)))


def view_evaluations(view: RunView) -> ViewValues:
    evaluations = of_run(view.studio.workspace, view.run.id)
    return {"listed": listing(evaluations, view.run.id, bool(view.run.checkpoints))}


def listing(evaluations: list[EvaluationFolder], run_id: str, has_adapter: bool) -> str:
    """Each evaluation with what it came to, and a button to make another; `has_adapter` says whether it can be made."""
    another = job_views.buttons(("new", run_id, "Evaluate this run…")) if has_adapter else ""
    if not evaluations:
        return html.empty("No evaluation yet", "A test file shows what the adapter learned, beside its base.") + another
    return html.render("runs.evaluations", [_listed(folder) for folder in evaluations]) + another


def _listed(folder: EvaluationFolder) -> tuple[str, str, str]:
    measured = folder.read_result()
    return folder.id, folder.read_facts()["title"], headline(measured) if measured else "not measured yet"
