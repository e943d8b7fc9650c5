"""The checkpoints of a run that are on disk, on the runs tab: what each measured, and what can be done with it."""

from collections.abc import Hashable
from typing import Any

import gradio as gr

from lora_studio import checkpoints
from lora_studio.checkpoints import Checkpoint
from lora_studio.errors import StudioError
from lora_studio.ui import browser, downloads, run_words, text
from lora_studio.ui.run_section import QUIET, Look, stat_of
from lora_studio.ui.studio import Shared, Studio, opening

ACTIONS = (("chat", "Chat"), ("download", "Download"), ("delete", "Delete…"))


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    """A fold with the table; a deletion is asked about first."""
    doomed = gr.State("")
    with gr.Accordion("Checkpoints", open=False, elem_id="run-checkpoints") as fold:
        table = gr.HTML(js_on_load=browser.on_load("clicks"))
        with gr.Row(visible=False, elem_classes="confirm") as confirm:
            question = gr.HTML(min_width=260)
            yes = gr.Button("Delete for good", variant="stop", elem_id="checkpoint-delete-yes", scale=0, min_width=150)
            no = gr.Button("Keep it", scale=0, min_width=100)
        said = downloads.place(studio.workspace)

    def act(event: gr.EventData) -> dict[Any, Any]:
        run_id, _, name = str(event.value).rpartition("/")
        try:
            run = studio.workspace.run(run_id)
            folder = checkpoints.folder_of(run, name)
            if event.act == "chat":
                wish, tabs = opening("chat", adapter=f"{run.id}/{name}")
                return {shared.wish: wish, shared.tabs: tabs}
            if event.act == "download":
                target = downloads.new_file(studio.workspace, f"{run.id}-{name}.zip")
                checkpoints.write_zip(folder, target)
                return {said: downloads.link(target)}
        except StudioError as error:
            return {said: text.problem(error)}
        words = f"Delete {name}? Neither resuming nor chatting with this step is possible afterwards."
        return {confirm: gr.Row(visible=True), question: text.notice(words, kind="warning"), doomed: str(event.value)}

    def delete(value: str) -> dict[Any, Any]:
        run_id, _, name = value.rpartition("/")
        try:
            checkpoints.delete(studio.workspace.run(run_id), studio.supervisor.state(run_id), name)
        except StudioError as error:
            return {confirm: gr.Row(visible=False), said: text.problem(error)}
        return {confirm: gr.Row(visible=False), said: ""}

    touched = [confirm, said, question, doomed, shared.wish, shared.tabs]
    table.click(act, None, touched, show_progress_on=table, api_visibility="private")
    yes.click(delete, doomed, touched, **QUIET)
    no.click(lambda: gr.Row(visible=False), None, confirm, **QUIET)
    shared.run.change(lambda: (gr.Row(visible=False), ""), None, [confirm, said], **QUIET)
    return {"fold": fold, "table": table}


def stamp(look: Look) -> Hashable:
    run = look.run
    return run.id, run.final, len(run.evaluations), tuple(run.checkpoints), stat_of(look.folder.checkpoints)


def view(look: Look) -> dict[str, Any]:
    found = checkpoints.checkpoints(look.folder, look.run)
    words = f"Checkpoints: {len(found)}, {text.size(sum(item.bytes for item in found))}" if found else "Checkpoints"
    return {"fold": gr.update(label=words), "table": table(look.run.id, found, look.run.final)}


def table(run_id: str, found: list[Checkpoint], final: bool) -> str:
    """The checkpoints with step, epoch, what was measured there, and buttons; those of a run that goes on stay."""
    if not found:
        return text.empty("No checkpoint yet", "One is saved after each epoch, unless the settings say otherwise.")
    metrics = list(dict.fromkeys(name for item in found for name in item.metrics))
    more = ["Epoch", *(run_words.sentence_case(_plain(name))[:-1] for name in metrics), "Size"]
    rows = [(item, *_numbers(item, metrics), [act for act in ACTIONS if final or act[0] != "delete"]) for item in found]
    return text.render("runs.checkpoints", more, rows, run_id)


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _numbers(item: Checkpoint, metrics: list[str]) -> tuple[str, list[str]]:
    """The validation loss, and what stands in the columns after it."""
    epoch = "–" if item.epoch is None else f"{item.epoch:.2f}"
    more = [epoch, *(run_words.figure(item.metrics.get(name)) for name in metrics), text.size(item.bytes)]
    return run_words.figure(item.loss), more
