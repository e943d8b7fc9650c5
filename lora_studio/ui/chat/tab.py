"""The Chat tab: one question, the answers of the base and up to three adapters side by side.

Draws and wires; `ui.chat.handlers` has what the events do. A fold loads external adapters.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.chat.choices import FOLDER, MAX_ADAPTERS
from lora_studio.chat.conversation import SAMPLING
from lora_studio.errors import StudioError
from lora_studio.models import imports
from lora_studio.ui import form, html, job_views, theme
from lora_studio.ui.chat import prompts
from lora_studio.ui.chat import prompts as blind
from lora_studio.ui.chat.handlers import OWN_SAMPLING, Chat, Parts, Updates
from lora_studio.ui.studio import QUIET, EventOptions, Shared, Studio, Wish

ABOUT = (
    "Adapters of the same base, stored as safetensors: LoRA, or another kind that peft trains. "
    "Task, base and shapes are checked before anything is loaded; files that could run code are never read."
)


def build_sources(act: Chat, who: gr.State) -> None:
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
            imported = gr.Dropdown(
                [], label="Adapters that were brought in", scale=4, min_width=260, elem_id="chat-kept"
            )
            gone = gr.Button("Remove", scale=0, min_width=100, elem_id="chat-remove")
        message = gr.HTML(elem_id="chat-elsewhere-said")
    outputs = [*act.parts.all(), message, name, imported]

    def named(text: str, person: str) -> Updates:
        return added(act, person, text.strip())

    def upload(path: str, person: str) -> Updates:
        return added(act, person, path, zipped=True)

    def told(updates: Updates) -> Updates:
        own = {"said": message, "name": name}
        return {own.get(key, key): value for key, value in updates.items()} | listed()

    def listed() -> Updates:
        return {imported: gr.Dropdown(choices=offered(act), value=None)}

    gr.on([add.click, name.submit], lambda text, person: told(named(text, person)), [name, who], outputs, **QUIET)
    gone.click(lambda folder, person: told(removed(act, person, folder)), [imported, who], outputs, **QUIET)
    fold.expand(listed, None, [imported], **QUIET)
    zipped.upload(lambda path, person: told(upload(path, person)), [zipped, who], outputs, **QUIET)


def added(act: Chat, who: str, source: str, *, zipped: bool = False) -> Updates:
    """Takes an adapter in and gives it a column; "said" and "name" stand for the fold's own components."""
    talk = act.talk(who)
    workspace = act.studio.workspace
    try:
        if not source:
            raise StudioError("Nothing is named yet.", "Type a folder or hub:owner/name, or upload a zip.")
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
        where = "It can be chosen above once a column is free." if full else "It has a column now."
        words = html.notice(f"{folder.name}: {imports.about(folder)}. {where}", kind="good")
        return act.paint(talk) | {"said": words, "name": ""}
    except StudioError as error:
        return {"said": html.problem(error)}


def offered(act: Chat) -> list[tuple[str, str]]:
    """The adapters that were brought in, as (name, folder), those among them that can't be read."""
    return [(folder.name, str(folder)) for folder in imports.imported(act.studio.workspace)]


def removed(act: Chat, who: str, selected: str | None) -> Updates:
    """Deletes an adapter that was brought in, and takes it out of the columns."""
    talk = act.talk(who)
    try:
        if not selected:
            raise StudioError("No adapter is chosen to be removed.", "Choose one of those that were brought in.")
        folder = Path(selected)
        imports.remove(folder, act.studio.workspace)
        talk.adapters = [value for value in talk.adapters if value != f"{FOLDER}{folder}"]
        act.keep(who, talk)
        return act.arrive(who) | {"said": html.notice(f"{folder.name} is removed.", kind="good")}
    except StudioError as error:
        return {"said": html.problem(error)}


NO_RUNS = html.empty("No adapter yet", "Train one on the Train tab; its first checkpoint can be tried here at once.")


def build(studio: Studio, shared: Shared) -> None:
    """Draws the tab and wires it."""
    who = gr.State("")
    parts = draw(OWN_SAMPLING)
    place = job_views.place(studio.workspace)
    act = Chat(studio, parts)
    parts.like.choices = [(name, name) for name in (OWN_SAMPLING, *act.offers())]
    _wire(act, who, shared.wish, place)
    build_sources(act, who)
    with parts.body:
        prompts.build(act, who)
        blind.build_blind(act, who)


def draw(like: str = OWN_SAMPLING) -> Parts:
    nothing = gr.HTML(NO_RUNS, visible=False)  # until it is known whether there is one
    with gr.Column(visible=False) as body:
        with gr.Row(equal_height=True, elem_classes="ls-pager"):
            choice = gr.Dropdown(
                [],
                label=f"Adapters beside the base, up to {MAX_ADAPTERS}",
                multiselect=True,
                max_choices=MAX_ADAPTERS,
                scale=4,
                min_width=260,
                elem_id="chat-choice",
            )
            load = gr.Button("Load", scale=0, min_width=110)
            unload = gr.Button("Unload", scale=0, min_width=110, interactive=False)
        status = gr.HTML(js_on_load=theme.on_load("clicks"), elem_id="chat-status")
        board = gr.HTML(js_on_load=theme.on_load("chatBoard"), elem_id="chat-board")
        near = gr.HTML(
            js_on_load=theme.on_load("clicks"), elem_id="chat-said"
        )  # above: below, it would be out of sight
        with gr.Row(equal_height=True, elem_classes="ls-pager"):
            question = gr.Textbox(
                label="Your question",
                placeholder="All columns are asked; Enter sends",
                lines=1,
                max_lines=8,
                scale=6,
                min_width=260,
            )
            send = gr.Button("Send", variant="primary", scale=0, min_width=100)
            stop = gr.Button("Stop", scale=0, min_width=80, interactive=False)
        extra = gr.HTML(elem_id="chat-extra")
        with gr.Accordion("System prompt and sampling", open=False):
            system = gr.Textbox(
                label="System prompt",
                info="Given to all columns; at first the one that the first adapter was trained with.",
                lines=2,
                max_lines=8,
                placeholder="none",
            )
            like_box = gr.Dropdown(
                [like],
                value=like,
                label="Sample as a preset does",
                info="Fills in the settings below; they can be changed afterwards.",
                filterable=False,
            )
            with gr.Column(elem_classes="grid"):
                sampling = [
                    form.draw_widget(setting, f"chat-{setting.path.rpartition('.')[2]}") for setting in SAMPLING
                ]
    own = (question, send, stop, near, extra, system, like_box)
    return Parts(nothing, body, choice, load, unload, status, board, *own, sampling)


def _wire(act: Chat, who: gr.State, wish: gr.State, place: gr.HTML) -> None:
    p = act.parts
    everything = p.all()
    answer: EventOptions = {"concurrency_id": "chat", "concurrency_limit": 8, **QUIET}

    def open_page(browser: str) -> Updates:
        return {who: browser} | act.arrive(browser)

    def take_up(person: str, request: Wish) -> Updates:
        return {wish: Wish()} | act.arrive(person, request.adapter, request.others)

    name = gr.Textbox(visible=False)
    gr.on(fn=open_page, inputs=name, outputs=[who, *everything], js=theme.call("chatName"), **QUIET)
    tab = p.body.parent
    assert isinstance(tab, gr.Tab)  # its own event, because that of `shared.tabs` is silent when another tab opens it
    tab.select(take_up, [who, wish], [*everything, wish], **QUIET)
    p.choice.input(act.pick, [who, p.choice], everything, **QUIET)
    p.load.click(act.load, who, everything, **answer)
    p.unload.click(act.unload, who, everything, **answer)
    gr.on([p.send.click, p.question.submit], act.send, [who, p.question, p.system, *p.sampling], everything, **answer)
    p.stop.click(act.stop, who, queue=False, **QUIET)
    p.like.select(act.sampling_like, p.like, p.sampling, **QUIET)

    def click(event: gr.EventData, person: str, system: str, *sampling: Any) -> Iterator[Updates]:
        fields = {
            "act": str(event.act),
            "column": str(event.column),
            "value": str(event.value),
            "text": str(event.text),
        }
        yield from act.act(fields, person, system, place, sampling)

    def force(event: gr.EventData, person: str) -> Iterator[Updates]:
        yield from act.load(person, force=event.act == "force")

    p.board.click(click, [who, p.system, *p.sampling], [*everything, place], **answer)
    gr.on([p.status.click, p.message.click], force, who, everything, **answer)
