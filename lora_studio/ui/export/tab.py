"""The export tab: an adapter taken away in a form that another program reads.

A child of its own makes it; the tab paints its folder once a second, so that a reload or another server shows the same.
Draws and wires; `ui.export.results` makes what is shown.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gradio as gr

from lora_studio.chat.choices import adapter_choices
from lora_studio.config.compute import LOCAL
from lora_studio.errors import StudioError
from lora_studio.evaluate import job as evaluating
from lora_studio.export import job as exporting
from lora_studio.export.job import folders, make_request, needs_device
from lora_studio.ui import job_views, theme
from lora_studio.ui.components import QUIET, Shared, Starter, Wish
from lora_studio.ui.export import results as board
from lora_studio.ui.export.results import PARTS, ExportBoard, ExportView
from lora_studio.ui.studio import Studio

CLICKS = theme.on_load("exportForm", questions={"delete": "Delete this export and its files?"})


def build(studio: Studio, shared: Shared) -> None:
    """Draws the tab and wires it: adapter and list on the left, target and result on the right."""
    watching, starter = ExportBoard(studio.workspace, studio.supervisor), Starter()
    parts = {}
    no_adapter = job_views.build_no_adapter(shared, "export")
    with gr.Row(elem_classes="job-layout"):
        with gr.Column(elem_classes="job-form", min_width=0) as place:
            adapter = gr.Dropdown([], label="Adapter", info="A run or a checkpoint.", elem_id="export-adapter")
            where = job_views.target_field("export")
        with gr.Column(elem_classes="job-main", min_width=0):
            for name in PARTS[:3]:
                parts[name] = gr.HTML(js_on_load=CLICKS, elem_id=f"export-{name}")
            message = gr.HTML(elem_id="export-said")
            parts["head"] = gr.HTML(js_on_load=CLICKS, elem_id="export-head")
            downloaded = job_views.place(studio.workspace)
        with gr.Column(elem_classes="job-rail", min_width=0):
            parts["list"] = gr.HTML(js_on_load=CLICKS, elem_id="export-list")
    view = gr.State(ExportView())

    def opening(request: Wish) -> list[Any]:
        choices = adapter_choices(studio.workspace, studio.supervisor.runs())
        now = replace(board.remembered(studio.workspace, choices, request.adapter), export=watching.opening())
        if request.adapter:
            with contextlib.suppress(StudioError):  # a full disk: it is shown all the same
                board.keep(studio.workspace, now)
        dropdown = gr.Dropdown(choices=choices, value=now.adapter or None)
        target = job_views.target_choice(studio.workspace, now.compute_target)
        return [dropdown, target, now, *job_views.visibility(bool(choices))]

    def change(value: str | None, now: ExportView) -> ExportView:
        changed = replace(now, adapter=value or "")
        board.keep(studio.workspace, changed)
        return changed

    def move(value: str | None, now: ExportView) -> ExportView:
        changed = replace(now, compute_target=value or LOCAL)
        board.keep(studio.workspace, changed)
        return changed

    def act(event: gr.EventData, now: ExportView) -> tuple[Any, Any, Any]:
        click = (str(event.act), str(event.value), event.values, str(event.secret))
        return after_click(studio, watching, starter, now, *click)

    adapter.input(change, [adapter, view], view, **QUIET)
    where.input(move, [where, view], view, **QUIET)
    # Many at once: a field that is left by a click on the button is kept and the export begun in one moment.
    job_views.wire(
        parts,
        view,
        watching.look,
        wish=shared.wish,
        opening=opening,
        opened=[adapter, where, view, place, no_adapter],
        act=act,
        messages=[message, downloaded],
        busy=studio.supervisor.busy,
        trigger_mode="multiple",
    )


def after_click(
    studio: Studio,
    watching: ExportBoard,
    starter: Starter,
    now: ExportView,
    act: str,
    value: str,
    values: Mapping[str, Any],
    secret: str,
) -> tuple[Any, Any, Any]:
    """View, message and download link after a click: choose a form, start, stop, open, delete, download."""
    match act:
        case "choose":
            now = replace(now, target=value, values=board.values_of(studio.workspace, value))
            board.keep(studio.workspace, now)
        case "keep":  # the fields show already what was typed; size and readiness follow from what is kept
            board.keep(studio.workspace, replace(now, target=value), values)
            return gr.skip(), gr.skip(), gr.skip()
        case "start":  # what the button says, also where another card was clicked a moment ago
            board.keep(studio.workspace, replace(now, target=value), values)
            if value != now.target:
                now = replace(now, target=value, values=board.values_of(studio.workspace, value))
            now = replace(now, export=start(studio, starter, now, values, secret))
            studio.workspace.write_draft(board.LOOKED_AT, now.export)
        case "open":
            studio.workspace.write_draft(board.LOOKED_AT, value)
            now = replace(now, export=value)
        case "delete":
            watching.jobs.delete(value)
            now = replace(now, export=watching.opening()) if now.export == value else now
        case "stop":
            watching.jobs.stop(now.export)
        case _:
            folder = folders(studio.workspace).find(now.export)
            path = board.download(studio.workspace, folder, watching.result(watching.jobs.state(now.export)), value)
            return now, "", job_views.link(path)
    return now, "", gr.skip()


def start(studio: Studio, starter: Starter, now: ExportView, values: Mapping[str, Any], secret: str) -> str:
    """Starts what is chosen and gives the export's id. Raises `StudioError` for what can't be made."""
    request = make_request(
        studio.workspace,
        now.adapter,
        now.target,
        settings=board.typed(now.target, values),
        trial=bool(values.get("trial", True)),
        compute_target=now.compute_target,
    )
    at_once = bool(values.get("beside")) and needs_device(request)
    if at_once and studio.supervisor.busy() is not None:
        evaluating.check_beside(exporting.memory_for(request, studio.supervisor.allocation().for_session()))
    secrets = {"HF_TOKEN": secret} if secret else None
    return starter.start(
        (request, studio.workspace.policy.owner_id, hash(secret), at_once),  # a token is not kept
        lambda: exporting.start(studio.supervisor, request, secrets, at_once=at_once),
    )
