"""The report of a run on the Runs tab: a summary to copy, a page of HTML, Markdown, and measurements as CSV."""

import re
import time
from collections.abc import Callable, Hashable, Sequence
from itertools import islice

import gradio as gr
from markdown_it import MarkdownIt

from lora_studio.errors import StudioError
from lora_studio.evaluate.request import of_run, request_of
from lora_studio.evaluate.verdict import value
from lora_studio.jobs.kinds import EvaluationFolder
from lora_studio.runs.summary import to_csv
from lora_studio.ui import html, job_views, theme, words
from lora_studio.ui.components import Components, Shared, stat_of
from lora_studio.ui.form import in_words
from lora_studio.ui.runs.curve_svg import loss_svg
from lora_studio.ui.runs.results import touched
from lora_studio.ui.studio import RunView, Studio, ViewValues
from lora_studio.workspace import RunFolder, Workspace, safe_name

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
    batch = f"{training.per_device_train_batch_size} × {training.gradient_accumulation_steps}"
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
        loss_svg(view.run),
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
    differences = ["difference" + ("" if number == 1 else str(number)) for number in range(1, len(names))]
    heads = ["metric", *(column["title"] for column in summary["columns"]), *("difference" for _ in differences)]
    lines = [
        *(f"## Evaluation: {_plain(request.title)}", ""),
        *(f"{summary['rows']:,} of {summary['of_rows']:,} rows of {_plain(request.data)}.", ""),
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
    return f"| {' | '.join(cell if cell == '---' else _plain(cell) for cell in cells)} |"


def _plain(words: str) -> str:
    """A text in which Markdown finds no mark."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(words.split()))


def rendered(markdown: str) -> str:
    """Markdown as HTML in which nothing runs and nothing is fetched: raw HTML is text, links and images are off."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    reader.disable(["link", "image", "autolink", "html_inline", "html_block", "reference"])
    return f'<div class="report-text">{reader.render(html.visible(markdown)).translate(html.TEMPLATE)}</div>'
