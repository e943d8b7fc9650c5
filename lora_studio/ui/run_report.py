"""What a finished run's report says, and its files to take along: the report, and all measurements as CSV."""

import re
from collections.abc import Hashable, Sequence
from typing import Any

import gradio as gr
from markdown_it import MarkdownIt

from lora_studio import units
from lora_studio.errors import StudioError
from lora_studio.evaluations import of_run, request_of
from lora_studio.job_folders import EvaluationFolder
from lora_studio.metrics_csv import to_csv
from lora_studio.ui import downloads, text
from lora_studio.ui.evaluate_words import value
from lora_studio.ui.run_evaluations import touched
from lora_studio.ui.run_section import Look, stat_of
from lora_studio.ui.studio import Shared, Studio
from lora_studio.workspace import RunFolder, Workspace, safe_name


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    """A fold with the report, and two buttons."""
    with gr.Accordion("Report and measurements", open=False, elem_id="run-report"):
        with gr.Row(elem_classes="actions"):
            report = gr.Button("Download report", size="md", scale=0, min_width=150, elem_id="download-report")
            numbers = gr.Button(
                "Download measurements (CSV)", size="md", scale=0, min_width=210, elem_id="download-csv"
            )
        said = downloads.place(studio.workspace)
        words = gr.HTML(elem_classes="report")

    def give_report(run_id: str) -> str:
        try:
            run = studio.workspace.run(run_id)
        except StudioError as error:
            return text.problem(error)
        if not run.report.is_file():
            return text.notice("This run has no report yet.", "It is written when the run is finished.")
        target = downloads.new_file(studio.workspace, f"{run.id}-report.md")
        target.write_text(whole(studio.workspace, run), encoding="utf-8")
        return downloads.link(target)

    def give_numbers(run_id: str) -> str:
        try:
            state = studio.supervisor.state(run_id)
        except StudioError as error:
            return text.problem(error)
        target = downloads.new_file(studio.workspace, f"{safe_name(state.id)}-metrics.csv")
        target.write_text(to_csv(state), encoding="utf-8")
        return downloads.link(target)

    for button, give in ((report, give_report), (numbers, give_numbers)):
        button.click(give, shared.run, said, show_progress_on=button, api_visibility="private")
    shared.run.change(lambda: "", None, said, show_progress="hidden", api_visibility="private")
    return {"report": report, "words": words}


def stamp(look: Look) -> Hashable:
    evaluated = touched(look.studio.workspace.evaluations_folder)
    return look.run.id, look.run.final, stat_of(look.folder.report), evaluated


def view(look: Look) -> dict[str, Any]:
    if not look.folder.report.is_file():
        words = text.empty("No report yet", "It is written when the run is finished.")
        return {"report": False, "words": words}
    return {"report": True, "words": rendered(whole(look.studio.workspace, look.folder))}


def whole(workspace: Workspace, run: RunFolder) -> str:
    """The report that the run wrote when it ended, and what its adapters were measured to be worth since."""
    measured = [folder for folder in of_run(workspace, run.id) if folder.read_result()]
    return "\n".join([run.report.read_text(encoding="utf-8"), *(line for folder in measured for line in _part(folder))])


def _part(folder: EvaluationFolder) -> list[str]:
    """An evaluation as a section of a report: every metric of every column, and how sure the differences are."""
    request, summary = request_of(folder), folder.read_result()
    names = [column["name"] for column in summary["columns"]]
    apart = ["difference" + ("" if number == 1 else str(number)) for number in range(1, len(names))]
    heads = ["metric", *(column["title"] for column in summary["columns"]), *("difference" for _ in apart)]
    lines = [
        *(f"## Evaluation: {_plain(request.title)}", ""),
        *(f"{summary['rows']:,} of {summary['of_rows']:,} rows of {_plain(request.data)}.", ""),
        *(_row(heads), _row(["---"] * len(heads))),
    ]
    for metric in summary["metrics"].values():
        values = [value(metric[name]["value"], metric["unit"]) for name in names]
        unlike = [
            f"{value(metric[name]['value'], metric['unit'], signed=True)}: {metric[name]['words']}" for name in apart
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
    return f'<div class="report-text">{reader.render(text.visible(markdown)).translate(units.TEMPLATE)}</div>'
