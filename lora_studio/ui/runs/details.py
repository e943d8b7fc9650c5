"""The verdict on a run with its fix, and its troubles, memory, settings, log, tags and note on the Runs tab."""

import json
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import gradio as gr

from lora_studio.config.parsing import load_config, merge, nest, parse
from lora_studio.config.settings import flatten
from lora_studio.errors import StudioError
from lora_studio.jobs.events import RunState
from lora_studio.models.advice import Change, correction
from lora_studio.models.hardware import device_for, recent_devices
from lora_studio.runs import summary
from lora_studio.runs.health import Diagnosis
from lora_studio.runs.summary import Tags, read_tags, settings_of, tags_of, write_tags
from lora_studio.ui import form, html, theme, words
from lora_studio.ui.components import QUIET, Components, EventOptions, Handover, Shared, Updates, stat_of
from lora_studio.ui.studio import RunView, Studio, ViewValues
from lora_studio.workspace import RunFolder, Workspace


def build_settings(studio: Studio, shared: Shared) -> Components:
    """The run's settings as YAML."""
    return {"settings": gr.Code(language="yaml", show_label=False, interactive=False, max_lines=24)}


def stamp_settings(view: RunView) -> Hashable:
    return view.run.id, summary.words(view.run)


def view_settings(view: RunView) -> ViewValues:
    longer = summary.words(view.run)
    return {"settings": (f"# {longer}\n" if longer else "") + view.folder.config.read_text(encoding="utf-8")}


def build_log(studio: Studio, shared: Shared) -> Components:
    """The end of the worker's log."""
    log = gr.Textbox(lines=14, max_lines=14, label="Log", show_label=False, container=False, elem_id="log")
    return {"log": log}


def stamp_log(view: RunView) -> Hashable:
    return view.run.id, stat_of(view.folder.log)


def view_log(view: RunView) -> ViewValues:
    return {"log": view.studio.supervisor.log(view.run.id)}


def build_labels(studio: Studio, shared: Shared) -> Components:
    """Two fields. What they were filled with travels along: another run may be chosen while they are saved.

    They are filled when a run is opened and never while it is looked at: what is being typed is not written over.
    """
    filled = gr.Textbox(visible=False)
    with gr.Row(elem_classes="run-labels"):
        tags = gr.Textbox(
            label="Tags", placeholder="Comma-separated, to find this run by", max_lines=1, elem_id="run-tags"
        )
        note = gr.Textbox(
            label="Note", placeholder="What you tried and what you saw", lines=1, max_lines=8, elem_id="run-note"
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


def memory_words(run: RunState, peak_bytes: float | None) -> str:
    """Estimated x GiB, measured y GiB, and why checkpointing is on or off."""
    if run.memory is None:
        return ""
    parts = [f"estimated {html.gib(run.memory.measurable_bytes)}"]
    parts += [f"measured {html.gib(peak_bytes)}"] if peak_bytes else []
    sentence = f"Memory: {', '.join(parts)}. {run.memory.reason}".strip()
    return html.quiet(sentence)


def retry_of(folder: RunFolder, run: RunState) -> Change | None:
    """The change that fits, after the memory ran out: the worker's own word, or ours where it was killed."""
    if run.state != "failed":
        return None
    if run.reason is None or not run.reason.by_the_system:
        retry = folder.read_result().get("retry")
        return Change("retry", retry["title"], retry.get("cost", ""), retry["settings"]) if retry else None
    config = load_config(folder.config)
    device = device_for(config.compute.device, recent_devices())
    checkpointing = run.memory.gradient_checkpointing if run.memory else None
    room = run.memory.available_bytes if run.memory else device.memory_total
    return correction(config, checkpointing, device.kind, needed=0, available=room)


def retry(studio: Studio, run_id: str) -> str:
    """Starts the run again with the change that fits in memory; the new run's id."""
    folder = studio.workspace.run(run_id)
    change = retry_of(folder, studio.supervisor.state(run_id))
    if change is None:
        return run_id
    smaller = parse(merge(load_config(folder.config).model_dump(), nest(change.settings)))  # out of a file: checked
    return studio.supervisor.launch(smaller)


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
