"""The Chat tab: one question, the answers of the base and up to three adapters, also of others, side by side.

Draws and wires; `ui.chat.handlers` has what the events do.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.chat.choices import FOLDER, MAX_ADAPTERS
from lora_studio.chat.conversation import SAMPLING
from lora_studio.chat.prompts import examples_for
from lora_studio.errors import StudioError
from lora_studio.models import imports
from lora_studio.ui import form, html, job_views, theme
from lora_studio.ui.chat import prompt_sets
from lora_studio.ui.chat import prompt_sets as blind
from lora_studio.ui.chat.handlers import Chat, Click, Parts
from lora_studio.ui.components import QUIET, EventOptions, Shared, Updates, Wish
from lora_studio.ui.studio import Studio

ABOUT = "Same base, safetensors. Files that could run code are never read."


def build_external(act: Chat, who: gr.State) -> None:
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


OWN_SAMPLING = "as set below"
NO_RUNS = html.empty("No adapter yet", "Train one on the Train tab; its first checkpoint can be tried here at once.")


def build(studio: Studio, shared: Shared) -> None:
    """Draws the tab and wires it."""
    who = gr.State("")
    parts, drawer = _draw(OWN_SAMPLING)
    place = job_views.place(studio.workspace)
    act = Chat(studio, parts)
    parts.like.choices = [(name, name) for name in (OWN_SAMPLING, *form.sampling_presets(studio.workspace))]
    _wire(act, who, shared.wish, place)
    with drawer:
        prompt_sets.build(act, who)
        build_external(act, who)


def draw(like: str = OWN_SAMPLING) -> Parts:
    """The tab's components, unwired."""
    return _draw(like)[0]


def _draw(like: str) -> tuple[Parts, gr.Column]:
    """The components, and the drawer, which others add to."""
    nothing = gr.HTML(NO_RUNS, visible=False, elem_classes="no-adapter")  # until it is known whether there is one
    with gr.Column(visible=False, elem_id="chat") as body:
        with gr.Row(elem_id="chat-top"):
            status = gr.HTML(js_on_load=theme.on_load("chatClicks"), elem_id="chat-status")
            tools = gr.HTML(js_on_load=theme.on_load("chatTools"), elem_id="chat-tools")
        notes = gr.HTML(elem_id="chat-notes")
        with gr.Row(elem_id="chat-stage"):
            with gr.Column(elem_id="chat-main"):
                with gr.Column(elem_id="chat-window"):
                    heads = gr.HTML(js_on_load=theme.on_load("chatClicks"), elem_id="chat-heads")
                    board = gr.HTML(js_on_load=theme.on_load("chatBoard"), elem_id="chat-board")
                    extra = gr.HTML(js_on_load=theme.on_load("chatTokens"), elem_id="chat-extra")
                message = gr.HTML(js_on_load=theme.on_load("chatClicks"), elem_id="chat-message")
                with gr.Row(elem_id="chat-composer"):
                    question = gr.Textbox(
                        label="Your question",
                        show_label=False,
                        placeholder="Ask all columns",
                        lines=1,
                        max_lines=8,
                        elem_id="chat-question",
                    )
                    send = gr.Button("Send", variant="primary", scale=0, elem_id="chat-send")
                    stop = gr.Button("Stop", scale=0, visible=False, elem_id="chat-stop")
            with gr.Column(elem_id="chat-drawer") as drawer:
                cards, system, like_box, sampling = _draw_settings(like)
        copied = gr.HTML(js_on_load=theme.on_load("chatCopied"), elem_id="chat-copied")
    own = (question, send, stop, cards, system, like_box, sampling, copied)
    return Parts(nothing, body, status, tools, notes, heads, board, extra, message, *own), drawer


def _draw_settings(like: str) -> tuple[gr.HTML, gr.Textbox, gr.Dropdown, list[Any]]:
    """The settings of the drawer."""
    gr.HTML(html.render("chat.drawer_head"), js_on_load=theme.on_load("chatTools"), elem_id="chat-drawer-head")
    system = gr.Textbox(
        label="System prompt",
        info="For all columns; at first the first adapter's own.",
        lines=2,
        max_lines=8,
        placeholder="none",
    )
    with gr.Accordion("Sampling", open=True, elem_id="chat-sampling"):
        like_box = gr.Dropdown(
            [like], value=like, label="Sample as a preset does", info="Fills in the settings below.", filterable=False
        )
        with gr.Column(elem_classes="grid"):
            sampling = [form.draw_widget(setting, f"chat-{setting.path.rpartition('.')[2]}") for setting in SAMPLING]
    with gr.Accordion("Adapter details", open=False):
        cards = gr.HTML(elem_id="chat-cards")
    return cards, system, like_box, sampling


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
    job_views.open_anew(tab, take_up, [who, wish], [*everything, wish])

    def send(person: str, question: str, system: str, *sampling: Any) -> Iterator[Updates]:
        if act.talk(person).blinded:
            yield from blind.ask(act, person, question, system, sampling)
        else:
            yield from act.send(person, question, system, *sampling)

    def click(event: gr.EventData, person: str, system: str, *sampling: Any) -> Iterator[Updates]:
        target = Click(str(event.act), str(event.column), str(event.value), str(event.text))
        if target.act == "vote":
            yield {p.board: blind.vote(act, person, int(target.value))}
        elif target.act == "votes":
            yield {place: blind.download(act)}
        elif target.act == "example" and (talk := act.talk(person)).blinded:
            example = examples_for(act.columns(talk).shown)[int(target.value)]
            yield from blind.ask(act, person, example.question, example.system or system, sampling)
        else:
            yield from act.act(target, person, system, place, sampling)

    gr.on([p.send.click, p.question.submit], send, [who, p.question, p.system, *p.sampling], everything, **answer)
    p.stop.click(act.stop, who, [p.send, p.stop], queue=False, **QUIET)
    p.like.select(lambda name: form.sampling_like(act.studio.workspace, name), p.like, p.sampling, **QUIET)
    clicked = [p.status.click, p.tools.click, p.heads.click, p.board.click, p.message.click]
    gr.on(clicked, click, [who, p.system, *p.sampling], [*everything, place], **answer)
