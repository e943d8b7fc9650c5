"""The verdict on a run with its one fix, and the list of everything that is wrong with it."""

import time
from collections.abc import Hashable, Sequence

import gradio as gr

from lora_studio.config.settings import flatten
from lora_studio.errors import StudioError
from lora_studio.runs.health import Diagnosis
from lora_studio.runs.summary import settings_of
from lora_studio.ui import form, html, theme, words
from lora_studio.ui.components import QUIET, Components, Handover, Shared, Updates, stat_of
from lora_studio.ui.runs.memory import memory_words, retry, retry_of
from lora_studio.ui.studio import RunView, Studio, ViewValues

_REFRESH_SECONDS = 5  # a silence grows without any event
SEVERITIES = {"error": "Error", "warning": "Warning"}
ICONS = {"good": "✓", "running": "▶", "warning": "!", "error": "✕", "idle": "◷"}


def build_verdict(studio: Studio, shared: Shared) -> Components:
    """The line, and what went wrong with its fix."""
    line = gr.HTML(js_on_load=theme.on_load("clicks"), elem_id="run-verdict")
    error_box = gr.HTML(visible=False)

    def fix(event: gr.EventData, run_id: str) -> Updates:
        try:
            if event.act == "apply":
                return _applied(studio, shared, run_id, event.value)
            if event.act == "retry":
                return {shared.run: retry(studio, run_id), error_box: gr.HTML(visible=False)}
            studio.supervisor.resume(run_id)
        except StudioError as error:
            return {error_box: gr.HTML(html.problem(error), visible=True)}
        return {error_box: gr.HTML(visible=False)}

    outputs = [shared.run, shared.data, shared.tabs, error_box]
    line.click(fix, shared.run, outputs, trigger_mode="once", **QUIET)
    shared.run.change(lambda: gr.HTML(visible=False), None, error_box, **QUIET)
    return {"line": line}


def _applied(studio: Studio, shared: Shared, run_id: str, name: str) -> Updates:
    """Opens the train tab with the run's settings and the change of a diagnosis."""
    handover = changed(studio, run_id, name)
    return {shared.data: handover, shared.tabs: gr.Tabs(selected="train")} if handover else {shared.data: gr.skip()}


def stamp_health(view: RunView) -> Hashable:
    return (
        view.mark,
        stat_of(view.folder.complete),
        int(view.now / _REFRESH_SECONDS) if view.run.state == "running" else None,
    )


def view_verdict(view: RunView) -> ViewValues:
    result = view.verdict
    title, sentence = result.title, result.sentence
    if result.kind == "training" and (view.run.phase != "train" or not sentence):
        title, sentence = "Running", words.now_doing(view.run)
    return {"line": html.render("runs.verdict", result.tone, ICONS[result.tone], title, sentence, _fix(view))}


def _fix(view: RunView) -> tuple[str, str, str, str] | None:
    """The button of the verdict: action, value, label, tooltip. None if nothing helps."""
    result = view.verdict
    change = retry_of(view.folder, view.run)
    if change is not None:
        return "retry", view.run.id, f"Start again with {change.title}", ""
    if result.diagnosis is not None and result.diagnosis.settings:
        return "apply", result.diagnosis.name, "Fix in a new run", _changes(result.diagnosis)
    if result.resume:
        return "resume", view.run.id, "Resume", "Goes on with the same settings, as if the run had not ended"
    return None


def build_health(studio: Studio, shared: Shared) -> Components:
    """The list of everything that is wrong, and what the run was expected to need of memory."""
    listing = gr.HTML(js_on_load=theme.on_load("clicks"), elem_id="run-health", visible=False)
    memory = gr.HTML(elem_id="run-memory", visible=False)

    def apply(event: gr.EventData, run_id: str) -> Updates:
        return _applied(studio, shared, run_id, event.value)

    listing.click(apply, shared.run, [shared.data, shared.tabs], **QUIET)
    return {"listing": listing, "memory": memory}


def view_health(view: RunView) -> ViewValues:
    peak_bytes = view.folder.read_result().get("peak_memory_bytes")
    return {
        "listing": listed(view.diagnoses) if view.diagnoses else None,
        "memory": memory_words(view.run, peak_bytes) or None,
    }


def changed(studio: Studio, run_id: str, name: str) -> Handover | None:
    """The run's settings with the change of a diagnosis; None if the run or the diagnosis is gone."""
    try:
        run, folder = studio.supervisor.state(run_id), studio.workspace.run(run_id)
    except StudioError:
        return None
    now = time.time()
    for diagnosis in RunView(studio, run, folder, now).diagnoses:
        if diagnosis.name == name:
            values = {**flatten(settings_of(folder, run)), **diagnosis.settings}
            return Handover(now, values, f"{words.name_of(run)} with the change")
    return None


def listed(diagnoses: Sequence[Diagnosis]) -> str:
    """The list as markup."""
    return html.render("runs.health", [(item, SEVERITIES[item.severity], _changes(item)) for item in diagnoses])


def _changes(diagnosis: Diagnosis) -> str:
    return ", ".join(
        f"{form.title_of(path)}: {form.in_words(path, value)}" for path, value in diagnosis.settings.items()
    )
