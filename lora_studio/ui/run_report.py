"""What a finished run's report says, and its files to take along: the report, and all measurements as CSV."""

from collections.abc import Hashable
from typing import Any

import gradio as gr
from markdown_it import MarkdownIt

from lora_studio.errors import StudioError
from lora_studio.metrics_csv import to_csv
from lora_studio.ui import downloads, text
from lora_studio.ui.run_section import Look, stat_of
from lora_studio.ui.studio import Shared, Studio
from lora_studio.workspace import safe_name


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
        target.write_bytes(run.report.read_bytes())
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
    return look.run.id, look.run.final, stat_of(look.folder.report)


def view(look: Look) -> dict[str, Any]:
    if not look.folder.report.is_file():
        words = text.empty("No report yet", "It is written when the run is finished.")
        return {"report": False, "words": words}
    return {"report": True, "words": rendered(look.folder.report.read_text(encoding="utf-8"))}


def rendered(markdown: str) -> str:
    """Markdown as HTML in which nothing runs and nothing is fetched: raw HTML is text, links and images are off."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    reader.disable(["link", "image", "autolink", "html_inline", "html_block", "reference"])
    return f'<div class="report-text">{reader.render(text.visible(markdown)).translate(text.TEMPLATE)}</div>'
