"""The top of a run on the runs tab: name, state and progress, and the buttons that act on it."""

import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Literal

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.lengthened import settings_of
from lora_studio.settings import flatten
from lora_studio.ui import run_deletion, run_outcome, run_words, text
from lora_studio.ui.run_section import QUIET, Look, stat_of
from lora_studio.ui.studio import Shared, Studio, Wish, opening

BUTTONS: tuple[tuple[str, str, Literal["primary", "secondary"]], ...] = (
    ("stop", "Stop", "secondary"),
    ("cancel", "Cancel", "secondary"),
    ("resume", "Resume", "secondary"),
    ("other_rows", "Resume with these rows", "secondary"),
    ("again", "Duplicate and edit", "secondary"),
    ("delete", "Delete…", "secondary"),
    ("export", "Export", "secondary"),
    ("chat", "Chat with it", "primary"),
)


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    """Headline, buttons, the question before a deletion, and what went wrong with an action."""
    parts: dict[str, Any] = {}
    with gr.Row(elem_classes="run-top"):
        parts["headline"] = gr.HTML(elem_id="run-headline", min_width=260)
        with gr.Row(elem_classes="actions", scale=0):
            for name, label, kind in BUTTONS:
                parts[name] = gr.Button(
                    label, variant=kind, size="md", visible=False, scale=0, min_width=0, elem_id=f"run-{name}"
                )
    with gr.Row(visible=False, elem_classes="confirm") as confirm:
        question = gr.HTML(min_width=260)
        yes = gr.Button("Delete for good", variant="stop", elem_id="run-delete-yes", size="md", scale=0, min_width=150)
        no = gr.Button("Keep it", elem_id="run-delete-no", size="md", scale=0, min_width=100)
    said = gr.HTML(visible=False)

    def ask(run_id: str) -> tuple[Any, Any]:
        return gr.Row(visible=True), run_deletion.question(studio, [run_id])

    def delete(run_id: str) -> tuple[Any, Any, Any]:
        problems = run_deletion.delete(studio, [run_id])
        return gr.skip() if problems else "", gr.Row(visible=False), gr.HTML(problems, visible=bool(problems))

    def again(run_id: str) -> tuple[Any, Any, Any]:
        try:
            config = settings_of(studio.workspace.run(run_id), studio.supervisor.state(run_id))
        except StudioError as error:
            return gr.skip(), gr.skip(), gr.HTML(text.problem(error), visible=True)
        return (
            (time.time(), flatten(config), f"Copied from {run_id}"),
            gr.Tabs(selected="train"),
            gr.HTML(visible=False),
        )

    parts["stop"].click(acting(studio.supervisor.stop), shared.run, said, **QUIET)
    parts["cancel"].click(acting(studio.supervisor.cancel), shared.run, said, **QUIET)
    parts["resume"].click(acting(studio.supervisor.resume), shared.run, said, **QUIET)
    go_on = partial(studio.supervisor.resume, other_rows=True)
    parts["other_rows"].click(acting(go_on), shared.run, said, **QUIET)
    for tab in ("chat", "export"):
        parts[tab].click(partial(_open, tab), shared.run, [shared.wish, shared.tabs], **QUIET)
    parts["again"].click(again, shared.run, [shared.form, shared.tabs, said], **QUIET)
    parts["delete"].click(ask, shared.run, [confirm, question], **QUIET)
    no.click(lambda: gr.Row(visible=False), None, confirm, **QUIET)
    yes.click(delete, shared.run, [shared.run, confirm, said], **QUIET)
    shared.run.change(lambda: (gr.Row(visible=False), gr.HTML(visible=False)), None, [confirm, said], **QUIET)
    return parts


def _open(tab: str, run_id: str) -> tuple[Wish, gr.Tabs]:
    return opening(tab, adapter=run_id)


def acting(action: Callable[[str], None]) -> Callable[[str], Any]:
    """An action on a run as a handler that shows what went wrong."""

    def handler(run_id: str) -> Any:
        try:
            action(run_id)
        except StudioError as error:
            return gr.HTML(text.problem(error), visible=True)
        return gr.HTML(visible=False)

    return handler


def stamp(look: Look) -> Hashable:
    folder = look.folder
    return look.mark, stat_of(folder.checkpoints), stat_of(folder.adapter), stat_of(folder.complete)


def view(look: Look) -> dict[str, Any]:
    run, folder = look.run, look.folder
    usable = (folder.adapter / "adapter_model.safetensors").is_file() or bool(folder.checkpoint_folders())
    return {
        "headline": run_words.headline(run, run_outcome.is_collapsed(look)),
        "stop": run.state in ("running", "queued"),
        "cancel": run.state in ("running", "stopping"),
        "resume": run.state in ("stopped", "failed"),
        "other_rows": run.state == "failed" and bool(folder.read_result().get("other_rows")),
        "chat": usable,
        "export": usable,
        "again": True,
        "delete": run.final,
    }
