"""The results of a run on the Runs tab: sample generations, checkpoints, evaluations, and the report to download."""

import os
import re
import time
from collections.abc import Callable, Hashable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import gradio as gr
from markdown_it import MarkdownIt

from lora_studio.errors import StudioError
from lora_studio.evaluate.job import EvaluationFolder, difference_name, of_run, request_of, value
from lora_studio.jobs.events import QuestionsAnswered, QuestionsAsked, RunState
from lora_studio.runs import checkpoints
from lora_studio.runs.checkpoints import Checkpoint
from lora_studio.runs.summary import SHARES, share, to_csv
from lora_studio.ui import html, job_views, theme, words
from lora_studio.ui.components import QUIET, Components, Shared, Updates, opening, stat_of
from lora_studio.ui.evaluate.results import headline
from lora_studio.ui.form import in_words
from lora_studio.ui.plots import loss_picture
from lora_studio.ui.studio import RunView, Studio, ViewValues
from lora_studio.workspace import RunFolder, Workspace, safe_name

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
    more = ["Epoch", *(words.sentence_case(name.replace("_", " "))[:-1] for name in metrics), "Size"]
    rows = [
        (item, *_numbers(item, metrics), [act for act in ACTIONS if final or act[0] != "delete"]) for item in on_disk
    ]
    total = f"{html.count(len(on_disk), 'checkpoint')}, {html.size(sum(item.bytes for item in on_disk))}"
    return html.hint(total) + html.render("runs.checkpoints", more, rows, run_id)


def _numbers(item: Checkpoint, metrics: list[str]) -> tuple[str, list[str]]:
    """The validation loss, and what stands in the columns after it."""
    epoch = "–" if item.epoch is None else f"{item.epoch:.2f}"
    more = [epoch, *(_measured(name, item.metrics.get(name)) for name in metrics), html.size(item.bytes)]
    return words.figure(item.loss), more


def _measured(name: str, value: float | None) -> str:
    """A share in percent, as in the tiles above; any other number as it is."""
    return share(value) if name in SHARES and value is not None else words.figure(value)


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


MAX_ANSWERS = 5
Row = tuple[str, str, str, str]
"""Question, expected answer, answer of the base, answer of the adapter."""


def build_report(studio: Studio, shared: Shared) -> Components:
    """Buttons, and the report as it reads."""
    with gr.Row(elem_classes="actions"):
        copy = gr.Button("Copy summary", size="md", scale=0, min_width=0, elem_id="copy-summary")
        page = gr.Button("Download HTML", size="md", scale=0, min_width=0, elem_id="download-html")
        markdown = gr.Button("Download Markdown", size="md", scale=0, min_width=0, elem_id="download-report")
        numbers = gr.Button("Download metrics (CSV)", size="md", scale=0, min_width=0, elem_id="download-csv")
    download = job_views.place(studio.workspace)
    text = gr.HTML(elem_classes="report")

    def give(name: str, write: Callable[[RunView], str]) -> Callable[[str], str]:
        def handler(run_id: str) -> str:
            try:
                run, folder = studio.supervisor.state(run_id), studio.workspace.run(run_id)
                content = write(RunView(studio, run, folder, time.time()))
                target = job_views.new_file(studio.workspace, f"{safe_name(run_id)}-{name}")
            except StudioError as error:
                return html.problem(error)
            target.write_text(content, encoding="utf-8")
            return job_views.link(target)

        return handler

    files = (
        (page, "report.html", page_of),
        (markdown, "report.md", _markdown_of),
        (numbers, "metrics.csv", lambda view: to_csv(view.run)),
    )
    for button, name, write in files:
        button.click(give(name, write), shared.run, download, show_progress_on=button, api_visibility="private")
    copy.click(None, js=theme.call("copySummary"), api_visibility="private")
    shared.run.change(lambda: "", None, download, show_progress="hidden", api_visibility="private")
    return {"markdown": markdown, "text": text}


def stamp_report(view: RunView) -> Hashable:
    evaluated = touched(view.studio.workspace.evaluations_folder)
    return view.run.id, view.run.final, stat_of(view.folder.report), evaluated


def view_report(view: RunView) -> ViewValues:
    if not view.folder.report.is_file():
        text = html.empty("No report yet", "It is written when the run is finished.")
        return {"markdown": False, "text": text}
    return {"markdown": True, "text": rendered(whole(view.studio.workspace, view.folder))}


def summary_text(view: RunView) -> str:
    """The run in a few lines of plain text, to paste into a chat or an issue."""
    run, facts = view.run, view.folder.read_facts()
    best = run.best
    data = f"Data: {in_words('data.train_file', facts.get('data'))}"
    if run.data:
        data += f" ({html.count(run.data.train_rows, 'row')}, {html.count(run.data.validation_rows, 'validation row')})"
    losses = [
        f"training loss {words.figure(run.steps[-1].loss)}" if run.steps else "",
        f"validation loss {words.figure(run.evaluations[-1].loss)}" if run.evaluations else "",
        f"best {words.figure(best.loss)} at step {best.step:,}" if best else "",
    ]
    steps = f", step {run.step:,} of {run.total_steps:,}" if run.total_steps else ""
    worked = words.elapsed(run, view.now)
    lines = [
        f"{words.name_of(run)} ({run.id})",
        f"{words.STATES.get(run.state, run.state)}{steps}" + (f", {words.clock(worked)}" if worked else ""),
        f"{view.verdict.title}. {view.verdict.sentence}".strip(),
        f"Base model: {in_words('model.name', facts.get('model'))}",
        data,
        f"Settings: {_settings(view)}" if view.config else "",
        ", ".join(filter(None, losses)).capitalize(),
    ]
    return "\n".join(filter(None, lines))


def _settings(view: RunView) -> str:
    config = view.config
    if config is None:
        return ""
    training, lora = config.training, config.lora
    size = config.compute.world_size
    batch = f"{training.per_device_train_batch_size} × {training.gradient_accumulation_steps}"
    batch += f" × {size} processes" if size > 1 else ""
    length = f"{training.max_steps:,} steps" if training.max_steps > 0 else f"{training.num_train_epochs:g} epochs"
    return (
        f"{training.method}, rank {lora.r}, alpha {lora.lora_alpha:g}, learning rate {training.learning_rate:g}, "
        f"batch {batch}, {length}, quantization {config.model.quantization}"
    )


def page_of(view: RunView) -> str:
    """The report as one page of HTML that needs nothing else: verdict, curve, five answers, and the whole report."""
    of_what, rows = answers(view)
    text = whole(view.studio.workspace, view.folder) if view.folder.report.is_file() else ""
    facts = [line.partition(": ")[::2] for line in summary_text(view).splitlines()[3:] if ": " in line]
    return "<!doctype html>\n" + html.render(
        "report.page",
        words.name_of(view.run),
        view.run.id,
        (view.verdict.tone, view.verdict.title, view.verdict.sentence),
        facts,
        loss_picture(view.run),
        (of_what, rows),
        html.Html(rendered(text)) if text else "",
    )


def answers(view: RunView) -> tuple[str, list[Row]]:
    """Five answers of base and adapter, and where they come from: the run's samples, else its newest evaluation."""
    run = view.run
    if run.questions is not None and run.answers:
        last = run.answers[-1]
        rows = zip(run.questions.questions, run.questions.references, run.questions.answers, last.answers, strict=False)
        return f"Samples at step {last.step:,}", list(islice(rows, MAX_ANSWERS))
    for folder in of_run(view.studio.workspace, run.id):
        evaluated = [row for row in map(_answered, folder.rows()) if row is not None]
        if evaluated:
            return f"Evaluation: {request_of(folder).title}", evaluated[:MAX_ANSWERS]
    return "No answers were sampled.", []


def _answered(row: dict[str, object]) -> Row | None:
    """The row of an evaluation; None if the base or the adapter did not answer it."""
    base, adapter, prompt = row.get("base"), row.get("adapter"), row.get("prompt")
    if not isinstance(base, dict) or not isinstance(adapter, dict):
        return None
    question = prompt[-1].get("content", "") if isinstance(prompt, list) and prompt else prompt
    return str(question), str(row.get("reference", "")), str(base.get("answer")), str(adapter.get("answer"))


def _markdown_of(view: RunView) -> str:
    if not view.folder.report.is_file():
        raise StudioError("This run has no report yet.", "It is written when the run is finished.")
    return whole(view.studio.workspace, view.folder)


def whole(workspace: Workspace, run: RunFolder) -> str:
    """The report that the run wrote when it ended, and what its adapters were measured to be worth since."""
    measured = [folder for folder in of_run(workspace, run.id) if folder.read_result()]
    return "\n".join([run.report.read_text(encoding="utf-8"), *(line for folder in measured for line in _part(folder))])


def _part(folder: EvaluationFolder) -> list[str]:
    """An evaluation as a section of a report: every metric of every column, and how sure the differences are."""
    request, summary = request_of(folder), folder.read_result()
    names = [column["name"] for column in summary["columns"]]
    differences = [difference_name(number) for number in range(1, len(names))]
    heads = ["metric", *(column["title"] for column in summary["columns"]), *("difference" for _ in differences)]
    lines = [
        *(f"## Evaluation: {_unmarked(request.title)}", ""),
        *(f"{summary['rows']:,} of {summary['of_rows']:,} rows of {_unmarked(request.data)}.", ""),
        *(_row(heads), _row(["---"] * len(heads))),
    ]
    for metric in summary["metrics"].values():
        values = [value(metric[name]["value"], metric["unit"]) for name in names]
        unlike = [
            f"{value(metric[name]['value'], metric['unit'], signed=True)}: {metric[name]['words']}"
            for name in differences
        ]
        lines.append(_row([metric["title"], *values, *unlike]))
    return [*lines, ""]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell if cell == '---' else _unmarked(cell) for cell in cells)} |"


def _unmarked(words: str) -> str:
    """A text in which Markdown finds no mark."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(words.split()))


def rendered(markdown: str) -> str:
    """Markdown as HTML in which nothing runs and nothing is fetched: raw HTML is text, links and images are off."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    reader.disable(["link", "image", "autolink", "html_inline", "html_block", "reference"])
    return f'<div class="report-text">{reader.render(html.visible(markdown)).translate(html.TEMPLATE)}</div>'
