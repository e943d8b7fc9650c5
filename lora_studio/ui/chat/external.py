"""The part of the drawer that loads adapters which were not trained here."""

from pathlib import Path

import gradio as gr

from lora_studio.chat.choices import FOLDER, MAX_ADAPTERS
from lora_studio.errors import StudioError
from lora_studio.models import imports
from lora_studio.ui import html
from lora_studio.ui.chat.handlers import Chat
from lora_studio.ui.components import QUIET, Updates

ABOUT = "Same base, safetensors. Files that could run code are never read."


def build(act: Chat, who: gr.State) -> None:
    """Draws the fold and wires it."""
    with gr.Accordion("Load external adapter", open=False, elem_id="chat-external") as fold:
        name = gr.Textbox(label="Folder or Hub name", info=ABOUT, placeholder="/path/to/adapter or hub:owner/name")
        with gr.Row(elem_classes="actions"):
            add = gr.Button("Load adapter", scale=0, size="sm")
            zipped = gr.UploadButton("Upload zip", file_types=[".zip"], scale=0, size="sm")
        imported = gr.Dropdown([], label="External adapters", elem_id="chat-imported")
        with gr.Row(elem_classes="actions"):
            remove = gr.Button("Remove adapter", scale=0, size="sm", elem_id="chat-remove")
        message = gr.HTML(elem_id="chat-external-message")
    outputs = [*act.parts.all(), message, name, imported]

    def shown(updates: Updates) -> Updates:
        own = {"message": message, "name": name}
        return {own.get(key, key): value for key, value in updates.items()} | listed()

    def listed() -> Updates:
        return {imported: gr.Dropdown(choices=offered(act), value=None)}

    def load(source: str, person: str) -> Updates:
        return shown(added(act, person, source.strip()))

    def upload(path: str, person: str) -> Updates:
        return shown(added(act, person, path, zipped=True))

    gr.on([add.click, name.submit], load, [name, who], outputs, **QUIET)
    zipped.upload(upload, [zipped, who], outputs, **QUIET)
    remove.click(lambda folder, person: shown(removed(act, person, folder)), [imported, who], outputs, **QUIET)
    fold.expand(listed, None, [imported], **QUIET)


def added(act: Chat, who: str, source: str, *, zipped: bool = False) -> Updates:
    """Takes an adapter in and gives it a column; "message" and "name" stand for the fold's own components."""
    talk = act.talk(who)
    workspace = act.studio.workspace
    try:
        if not source:
            raise StudioError("No adapter is named yet.", "Type a folder or hub:owner/name, or upload a zip.")
        base = act.columns(talk).chosen[0].card().base if talk.adapters else None
        if zipped:
            folder = imports.from_zip(Path(source), workspace, Path(source).name, base)
        elif imports.is_on_hub(source):
            folder = imports.from_hub(source, workspace, base)
        else:
            folder = imports.from_folder(source, workspace, base)
            talk.folders = list(dict.fromkeys([*talk.folders, str(folder)]))
        value = f"{FOLDER}{folder}"
        full = len(talk.adapters) >= MAX_ADAPTERS and value not in talk.adapters
        if not full:
            talk.adapters = list(dict.fromkeys([*talk.adapters, value]))
        act.keep(who, talk)
        where = "All columns are taken: choose it in one of them." if full else "It has a column now."
        words = html.notice(f"{folder.name}: {imports.about(folder)}. {where}", kind="good")
        return act.paint(talk) | {"message": words, "name": ""}
    except StudioError as error:
        return {"message": html.problem(error)}


def offered(act: Chat) -> list[tuple[str, str]]:
    """The external adapters as (name, folder), those among them that can't be read."""
    return [(folder.name, str(folder)) for folder in imports.imported(act.studio.workspace)]


def removed(act: Chat, who: str, selected: str | None) -> Updates:
    """Deletes an external adapter, and takes it out of the columns."""
    talk = act.talk(who)
    try:
        if not selected:
            raise StudioError("No adapter is chosen to be removed.", "Choose an external adapter.")
        folder = Path(selected)
        imports.remove(folder, act.studio.workspace)
        talk.adapters = [value for value in talk.adapters if value != f"{FOLDER}{folder}"]
        act.keep(who, talk)
        return act.arrive(who) | {"message": html.notice(f"{folder.name} is removed.", kind="good")}
    except StudioError as error:
        return {"message": html.problem(error)}
