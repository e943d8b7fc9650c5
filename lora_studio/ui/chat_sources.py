"""The fold of the chat tab that brings in adapters from elsewhere: a folder, a zip, or one of the Hub."""

from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio import foreign_adapters
from lora_studio.errors import StudioError
from lora_studio.ui import text
from lora_studio.ui.chat_choices import FOLDER, MOST
from lora_studio.ui.chatting import Chat, Updates

ABOUT = (
    "Adapters of the same base, stored as safetensors: LoRA, or another kind that peft trains. "
    "Task, base and shapes are checked before anything is loaded; files that could run code are never read."
)


def build(act: Chat, who: gr.State) -> None:
    """Draws the fold and wires it."""
    with gr.Accordion("An adapter from elsewhere", open=False, elem_id="chat-elsewhere") as fold:
        with gr.Row(equal_height=True, elem_classes="ls-pager"):
            name = gr.Textbox(
                label="Folder or Hub name",
                info=ABOUT,
                placeholder="/path/to/adapter or hub:owner/name",
                scale=4,
                min_width=260,
            )
            add = gr.Button("Add", scale=0, min_width=100)
            zipped = gr.UploadButton("Upload a zip", file_types=[".zip"], scale=0, min_width=170)
        with gr.Row(equal_height=True, elem_classes="ls-pager"):
            kept = gr.Dropdown([], label="Adapters that were brought in", scale=4, min_width=260, elem_id="chat-kept")
            gone = gr.Button("Remove", scale=0, min_width=100, elem_id="chat-remove")
        said = gr.HTML(elem_id="chat-elsewhere-said")
    outputs = [*act.parts.all(), said, name, kept]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def named(given: str, person: str) -> Updates:
        return added(act, person, given.strip())

    def upload(path: str, person: str) -> Updates:
        return added(act, person, path, zipped=True)

    def told(updates: Updates) -> Updates:
        own = {"said": said, "name": name}
        return {own.get(key, key): value for key, value in updates.items()} | listed()

    def listed() -> Updates:
        return {kept: gr.Dropdown(choices=offered(act), value=None)}

    gr.on([add.click, name.submit], lambda given, person: told(named(given, person)), [name, who], outputs, **quiet)
    gone.click(lambda chosen, person: told(removed(act, person, chosen)), [kept, who], outputs, **quiet)
    fold.expand(listed, None, [kept], **quiet)
    zipped.upload(lambda path, person: told(upload(path, person)), [zipped, who], outputs, **quiet)


def added(act: Chat, who: str, given: str, *, zipped: bool = False) -> Updates:
    """Takes an adapter in and gives it a column; "said" and "name" stand for the fold's own components."""
    talk = act.talk(who)
    workspace = act.studio.workspace
    try:
        if not given:
            raise StudioError("Nothing is named yet.", "Type a folder or hub:owner/name, or upload a zip.")
        base = act.columns(talk).chosen[0].card().base if talk.adapters else None
        if zipped:
            folder = foreign_adapters.from_zip(Path(given), workspace, Path(given).name, base)
        elif foreign_adapters.is_hub_name(given):
            folder = foreign_adapters.from_hub(given, workspace, base)
        else:
            folder = foreign_adapters.from_folder(given, workspace, base)
            talk.folders = list(dict.fromkeys([*talk.folders, str(folder)]))
        value = f"{FOLDER}{folder}"
        full = len(talk.adapters) >= MOST and value not in talk.adapters
        if not full:
            talk.adapters = list(dict.fromkeys([*talk.adapters, value]))
        act.keep(who, talk)
        where = "It can be chosen above once a column is free." if full else "It has a column now."
        words = text.notice(f"{folder.name}: {foreign_adapters.about(folder)}. {where}", kind="good")
        return act.paint(talk) | {"said": words, "name": ""}
    except StudioError as error:
        return {"said": text.problem(error)}


def offered(act: Chat) -> list[tuple[str, str]]:
    """The adapters that were brought in, as (name, folder), those among them that can't be read."""
    return [(folder.name, str(folder)) for folder in foreign_adapters.brought(act.studio.workspace)]


def removed(act: Chat, who: str, chosen: str | None) -> Updates:
    """Deletes an adapter that was brought in, and takes it out of the columns."""
    talk = act.talk(who)
    try:
        if not chosen:
            raise StudioError("No adapter is chosen to be removed.", "Choose one of those that were brought in.")
        folder = Path(chosen)
        foreign_adapters.remove(folder, act.studio.workspace)
        talk.adapters = [value for value in talk.adapters if value != f"{FOLDER}{folder}"]
        act.keep(who, talk)
        return act.arrive(who) | {"said": text.notice(f"{folder.name} is removed.", kind="good")}
    except StudioError as error:
        return {"said": text.problem(error)}
