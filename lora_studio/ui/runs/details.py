"""The lower sections of a run on the runs tab: health, memory, log and settings, tags and note, report."""

import json
import re
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import gradio as gr
from markdown_it import MarkdownIt

from lora_studio import units
from lora_studio.config.parsing import load_config, merge, nest, parse
from lora_studio.config.sections import Config
from lora_studio.config.settings import flatten
from lora_studio.errors import StudioError
from lora_studio.evaluate.request import of_run, request_of
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import EvaluationFolder
from lora_studio.models.advice import Change, correction
from lora_studio.models.hardware import devices
from lora_studio.runs import summary
from lora_studio.runs.health import Diagnosis, of_folder
from lora_studio.runs.summary import Tags, read_tags, settings_of, tags_of, to_csv, write_tags
from lora_studio.ui import form, html, job_views, theme, words
from lora_studio.ui.evaluate.results import value
from lora_studio.ui.runs.results import touched
from lora_studio.ui.studio import (
    QUIET,
    Components,
    EventOptions,
    Handover,
    RunView,
    Shared,
    Studio,
    ViewValues,
    stat_of,
)
from lora_studio.ui.train.plan import gib
from lora_studio.workspace import RunFolder, Workspace, safe_name

_LOOK_SECONDS = 5  # a silence grows without any event
WORDS = {"error": "Serious", "warning": "Look at this"}


def build_health(studio: Studio, shared: Shared) -> Components:
    """The list; a click on a button goes to the train tab."""
    listing = gr.HTML(js_on_load=theme.on_load("clicks"), elem_id="run-health", visible=False)

    def apply(event: gr.EventData, run_id: str) -> tuple[Any, Any]:
        handover = changed(studio, run_id, event.value)
        return (handover, gr.Tabs(selected="train")) if handover else (gr.skip(), gr.skip())

    listing.click(apply, shared.run, [shared.data, shared.tabs], **QUIET)
    return {"found": listing}


def stamp_health(view: RunView) -> Hashable:
    return (
        view.mark,
        stat_of(view.folder.complete),
        int(view.now / _LOOK_SECONDS) if view.run.state == "running" else None,
    )


def view_health(view: RunView) -> ViewValues:
    diagnoses = _diagnoses(view)
    return {"found": listed(diagnoses) if diagnoses else None}


def _diagnoses(view: RunView) -> list[Diagnosis]:
    return of_folder(view.run, view.folder.config, view.now, view.comparison)


def changed(studio: Studio, run_id: str, name: str) -> Handover | None:
    """The run's settings with the change of a diagnosis; None if the run or the diagnosis is gone."""
    try:
        run, folder = studio.supervisor.state(run_id), studio.workspace.run(run_id)
    except StudioError:
        return None
    now = time.time()
    for diagnosis in _diagnoses(RunView(studio, run, folder, now)):
        if diagnosis.name == name:
            values = {**flatten(settings_of(folder, run)), **diagnosis.settings}
            return Handover(now, values, f"{words.name_of(run)} with the change")
    return None


def listed(diagnoses: Sequence[Diagnosis]) -> str:
    """The list as markup."""
    return html.render("runs.health", [(item, WORDS[item.severity], _changes(item)) for item in diagnoses])


def _changes(diagnosis: Diagnosis) -> str:
    return ", ".join(
        f"{form.title_of(path)}: {form.in_words(path, value)}" for path, value in diagnosis.settings.items()
    )


def build_memory(studio: Studio, shared: Shared) -> Components:
    """A line of numbers, and the button that is there only after the memory ran out."""
    numbers = gr.HTML(elem_id="run-memory", visible=False)
    retry = gr.Button(variant="primary", visible=False, elem_id="run-retry")
    error_box = gr.HTML(visible=False)

    def start(run_id: str) -> tuple[Any, Any]:
        folder = studio.workspace.run(run_id)
        change = retry_of(folder, studio.supervisor.state(run_id))
        if change is None:
            return gr.skip(), gr.HTML(visible=False)
        try:
            smaller = parse(merge(config_of(folder).model_dump(), nest(change.settings)))  # out of a file: checked
            return studio.supervisor.launch(smaller), gr.HTML(visible=False)
        except StudioError as error:
            return gr.skip(), gr.HTML(html.problem(error), visible=True)

    retry.click(start, shared.run, [shared.run, error_box], trigger_mode="once", **QUIET)
    return {"numbers": numbers, "retry": retry}


def stamp_memory(view: RunView) -> Hashable:
    return view.mark, stat_of(view.folder.complete)


def view_memory(view: RunView) -> ViewValues:
    change = retry_of(view.folder, view.run)
    label = f"Start it again so: {change.title}" if change else ""
    button = gr.update(value=label, visible=bool(change))
    peak_bytes = view.folder.read_result().get("peak_memory_bytes")
    return {"numbers": memory_words(view.run, peak_bytes) or None, "retry": button}


def memory_words(run: RunState, peak_bytes: float | None) -> str:
    """Estimated x GiB, measured y GiB, and why checkpointing is on or off."""
    if run.memory is None:
        return ""
    parts = [f"estimated {gib(run.memory.measurable_bytes)}"]
    parts += [f"measured {gib(peak_bytes)}"] if peak_bytes else []
    sentence = f"Memory: {', '.join(parts)}. {run.memory.reason}".strip()
    return html.quiet(sentence)


def config_of(folder: RunFolder) -> Config:
    return load_config(folder.config)


def retry_of(folder: RunFolder, run: RunState) -> Change | None:
    """The change that fits, after the memory ran out: the worker's own word, or ours where it was killed."""
    if run.state != "failed":
        return None
    if run.reason is None or not run.reason.by_the_system:
        retry = folder.read_result().get("retry")
        return Change("retry", retry["title"], retry.get("cost", ""), retry["settings"]) if retry else None
    device = devices()[0]
    checkpointing = run.memory.gradient_checkpointing if run.memory else None
    room = run.memory.available_bytes if run.memory else device.memory_total
    return correction(config_of(folder), checkpointing, device.kind, needed=0, available=room)


def build_files(studio: Studio, shared: Shared) -> Components:
    """Two folds."""
    with gr.Accordion("Log", open=False):
        log = gr.Textbox(lines=14, max_lines=14, show_label=False, container=False, elem_id="log")
    with gr.Accordion("Settings of this run", open=False):
        settings = gr.Code(language="yaml", show_label=False, interactive=False, max_lines=24)
    return {"log": log, "settings": settings}


def stamp_files(view: RunView) -> Hashable:
    return view.run.id, stat_of(view.folder.log), summary.words(view.run)


def view_files(view: RunView) -> ViewValues:
    longer = summary.words(view.run)
    return {
        "log": view.studio.supervisor.log(view.run.id),
        "settings": (f"# {longer}\n" if longer else "") + view.folder.config.read_text(encoding="utf-8"),
    }


def build_labels(studio: Studio, shared: Shared) -> Components:
    """Two fields. What they were filled with travels along: another run may be chosen while they are saved.

    They are filled when a run is opened and never while it is looked at: what is being typed is not written over.
    """
    filled = gr.Textbox(visible=False)
    with gr.Row(elem_classes="run-labels"):
        tags = gr.Textbox(
            label="Tags", placeholder="words with commas between, to find this run by", max_lines=1, elem_id="run-tags"
        )
        note = gr.Textbox(
            label="Note", placeholder="what you tried and what you saw", lines=1, max_lines=8, elem_id="run-note"
        )
    error_box = gr.HTML(visible=False)

    def save(name: str) -> Callable[[str, str], tuple[Any, Any]]:
        def handler(before: str, typed: str) -> tuple[Any, Any]:
            try:
                return saved(studio.workspace, json.loads(before), name, typed), gr.HTML(visible=False)
            except StudioError as error:
                return gr.skip(), gr.HTML(html.problem(error), visible=True)

        return handler

    # One after the other, none left out: the second field may be left while the first is still being saved.
    queued: EventOptions = {"trigger_mode": "multiple", "concurrency_limit": 1, "concurrency_id": "labels", **QUIET}
    gr.on([tags.blur, tags.submit], save("tags"), [filled, tags], [filled, error_box], **queued)
    note.blur(save("note"), [filled, note], [filled, error_box], **queued)
    shared.run.change(lambda: gr.HTML(visible=False), None, error_box, **QUIET)
    return {"filled": filled, "tags": tags, "note": note}


def saved(workspace: Workspace, before: dict[str, str], name: str, typed: str) -> Any:
    """Writes the one field that was changed, and gives what the fields hold now; nothing where it was only left."""
    if typed == before[name]:
        return gr.skip()
    run = workspace.run(before["run"])
    old = read_tags(run)
    new = Tags(tags_of(typed), old.note) if name == "tags" else Tags(old.tags, typed.strip())
    write_tags(run, new)
    return json.dumps({**before, name: typed})


def stamp_labels(view: RunView) -> Hashable:
    return view.run.id


def view_labels(view: RunView) -> ViewValues:
    try:
        labels = read_tags(view.folder)
    except StudioError as error:
        labels = Tags(note=error.message)  # it is not written over: saving reads the file first, and says so
    fields = {"tags": ", ".join(labels.tags), "note": labels.note}
    filled = json.dumps({"run": view.run.id, **fields})
    return {name: gr.update(value=value) for name, value in {"filled": filled, **fields}.items()}


def build_report(studio: Studio, shared: Shared) -> Components:
    """A fold with the report, and two buttons."""
    with gr.Accordion("Report and measurements", open=False, elem_id="run-report"):
        with gr.Row(elem_classes="actions"):
            report = gr.Button("Download report", size="md", scale=0, min_width=150, elem_id="download-report")
            numbers = gr.Button(
                "Download measurements (CSV)", size="md", scale=0, min_width=210, elem_id="download-csv"
            )
        download = job_views.place(studio.workspace)
        words = gr.HTML(elem_classes="report")

    def give_report(run_id: str) -> str:
        try:
            run = studio.workspace.run(run_id)
        except StudioError as error:
            return html.problem(error)
        if not run.report.is_file():
            return html.notice("This run has no report yet.", "It is written when the run is finished.")
        target = job_views.new_file(studio.workspace, f"{run.id}-report.md")
        target.write_text(whole(studio.workspace, run), encoding="utf-8")
        return job_views.link(target)

    def give_numbers(run_id: str) -> str:
        try:
            state = studio.supervisor.state(run_id)
        except StudioError as error:
            return html.problem(error)
        target = job_views.new_file(studio.workspace, f"{safe_name(state.id)}-metrics.csv")
        target.write_text(to_csv(state), encoding="utf-8")
        return job_views.link(target)

    for button, give in ((report, give_report), (numbers, give_numbers)):
        button.click(give, shared.run, download, show_progress_on=button, api_visibility="private")
    shared.run.change(lambda: "", None, download, show_progress="hidden", api_visibility="private")
    return {"report": report, "words": words}


def stamp_report(view: RunView) -> Hashable:
    evaluated = touched(view.studio.workspace.evaluations_folder)
    return view.run.id, view.run.final, stat_of(view.folder.report), evaluated


def view_report(view: RunView) -> ViewValues:
    if not view.folder.report.is_file():
        words = html.empty("No report yet", "It is written when the run is finished.")
        return {"report": False, "words": words}
    return {"report": True, "words": rendered(whole(view.studio.workspace, view.folder))}


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
    return f'<div class="report-text">{reader.render(html.visible(markdown)).translate(units.TEMPLATE)}</div>'
