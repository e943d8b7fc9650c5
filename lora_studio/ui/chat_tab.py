"""The chat tab: one question, the answers of the base and of up to three adapters side by side.

Draws and wires; what the events do stands in chatting.py.
"""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from lora_studio.ui import browser, chat_blind, chat_prompts, chat_sources, downloads, form, text
from lora_studio.ui.chat_choices import MOST
from lora_studio.ui.chat_sampling import SAMPLING
from lora_studio.ui.chatting import OWN_SAMPLING, Chat, Parts, Updates
from lora_studio.ui.studio import Shared, Studio, Wish

NO_RUNS = text.empty("No adapter yet", "Train one on the Train tab; its first checkpoint can be tried here at once.")


def build(studio: Studio, shared: Shared) -> None:
    """Draws the tab and wires it."""
    who = gr.State("")
    parts = draw(OWN_SAMPLING)
    place = downloads.place(studio.workspace)
    act = Chat(studio, parts)
    parts.like.choices = [(name, name) for name in (OWN_SAMPLING, *act.offers())]
    _wire(act, who, shared.wish, place)
    chat_sources.build(act, who)
    with parts.body:
        chat_prompts.build(act, who)
        chat_blind.build(act, who)


def draw(like: str = OWN_SAMPLING) -> Parts:
    nothing = gr.HTML(NO_RUNS, visible=False)  # until it is known whether there is one
    with gr.Column(visible=False) as body:
        with gr.Row(equal_height=True, elem_classes="ls-pager"):
            choice = gr.Dropdown(
                [],
                label=f"Adapters beside the base, up to {MOST}",
                multiselect=True,
                max_choices=MOST,
                scale=4,
                min_width=260,
                elem_id="chat-choice",
            )
            load = gr.Button("Load", scale=0, min_width=110)
            unload = gr.Button("Unload", scale=0, min_width=110, interactive=False)
        status = gr.HTML(js_on_load=browser.on_load("clicks"), elem_id="chat-status")
        board = gr.HTML(js_on_load=browser.on_load("chatBoard"), elem_id="chat-board")
        near = gr.HTML(
            js_on_load=browser.on_load("clicks"), elem_id="chat-said"
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
    said = (question, send, stop, near, extra, system, like_box)
    return Parts(nothing, body, choice, load, unload, status, board, *said, sampling)


def _wire(act: Chat, who: gr.State, wish: gr.State, place: gr.HTML) -> None:
    p = act.parts
    everything = p.all()
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    answer: dict[str, Any] = {"concurrency_id": "chat", "concurrency_limit": 8, **quiet}

    def open_page(given: str) -> Updates:
        return {who: given} | act.arrive(given)

    def take_up(person: str, asked: Wish) -> Updates:
        return {wish: Wish()} | act.arrive(person, asked.adapter)

    name = gr.Textbox(visible=False)
    gr.on(fn=open_page, inputs=name, outputs=[who, *everything], js=browser.call("chatName"), **quiet)
    tab = p.body.parent
    assert isinstance(tab, gr.Tab)  # its own event, because that of `shared.tabs` is silent when another tab opens it
    tab.select(take_up, [who, wish], [*everything, wish], **quiet)
    p.choice.input(act.pick, [who, p.choice], everything, **quiet)
    p.load.click(act.load, who, everything, **answer)
    p.unload.click(act.unload, who, everything, **answer)
    gr.on([p.send.click, p.question.submit], act.send, [who, p.question, p.system, *p.sampling], everything, **answer)
    p.stop.click(act.stop, who, queue=False, **quiet)
    p.like.select(act.sampling_like, p.like, p.sampling, **quiet)

    def click(event: gr.EventData, person: str, system: str, *sampling: Any) -> Iterator[Updates]:
        given = {"act": str(event.act), "column": str(event.column), "value": str(event.value), "text": str(event.text)}
        yield from act.act(given, person, system, place, sampling)

    def insist(event: gr.EventData, person: str) -> Iterator[Updates]:
        yield from act.load(person, insist=event.act == "insist")

    p.board.click(click, [who, p.system, *p.sampling], [*everything, place], **answer)
    gr.on([p.status.click, p.said.click], insist, who, everything, **answer)
