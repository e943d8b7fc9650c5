"""The Chat tab: one question, the answers of the base and up to three adapters side by side.

Draws and wires; `ui.chat.handlers` has what the events do.
"""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from lora_studio.chat.conversation import SAMPLING
from lora_studio.chat.prompts import examples_for
from lora_studio.ui import form, html, job_views, theme
from lora_studio.ui.chat import blind, external, prompt_sets
from lora_studio.ui.chat.handlers import Chat, Click, Parts
from lora_studio.ui.components import QUIET, EventOptions, Shared, Updates, Wish
from lora_studio.ui.studio import Studio

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
        external.build(act, who)


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
