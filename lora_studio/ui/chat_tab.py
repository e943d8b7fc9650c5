"""The chat tab: one question, two answers side by side, of the base and of the base with an adapter.

Draws and wires; what the events do stands in chatting.py.
"""

from typing import Any

import gradio as gr

from lora_studio.ui import text
from lora_studio.ui.chatting import SAMPLING, Chat, Parts, Updates
from lora_studio.ui.dialogue import COLUMNS, EXAMPLES
from lora_studio.ui.studio import Shared, Studio

NO_RUNS = text.empty("No adapter yet", "Train one on the Train tab; its first checkpoint can be tried here at once.")


def build(studio: Studio, shared: Shared) -> None:
    """Draws the tab and wires it."""
    parts = draw()
    _wire(Chat(studio, parts))


def draw() -> Parts:
    nothing = gr.HTML(NO_RUNS)
    with gr.Column(visible=False) as body:
        with gr.Row(equal_height=True, elem_classes="ls-pager"):
            choice = gr.Dropdown([], label="Adapter", scale=4, min_width=260)
            load = gr.Button("Load", scale=0, min_width=110)
            unload = gr.Button("Unload", scale=0, min_width=110, interactive=False)
        status = gr.HTML()
        with gr.Row():
            columns = [_draw_column(name) for name in COLUMNS]
        with gr.Row(elem_classes="ls-examples"):
            examples = [gr.Button("", visible=False, size="sm", min_width=130) for _ in range(EXAMPLES)]
        with gr.Row(equal_height=True, elem_classes="ls-pager"):
            question = gr.Textbox(
                label="Your question",
                placeholder="Both columns are asked; Enter sends",
                lines=1,
                max_lines=8,
                scale=6,
                min_width=260,
            )
            send = gr.Button("Send", variant="primary", scale=0, min_width=100)
            stop = gr.Button("Stop", scale=0, min_width=80, interactive=False)
            clear = gr.Button("Clear", scale=0, min_width=80)
        with gr.Accordion("System prompt and sampling", open=False):
            system = gr.Textbox(
                label="System prompt",
                info="Given to both columns; at first the one that the adapter was trained with.",
                lines=2,
                max_lines=8,
                placeholder="none",
            )
            with gr.Row():
                sampling = [
                    gr.Number(
                        setting.default,
                        label=setting.title,
                        info=setting.description,
                        min_width=180,
                        precision=0 if setting.kind == "int" else None,
                    )
                    for setting in SAMPLING
                ]
    titles, talks, notes = (list(parts) for parts in zip(*columns, strict=True))
    said = (titles, talks, notes, examples, question)
    return Parts(nothing, body, choice, load, unload, status, *said, send, stop, clear, system, sampling)


def _draw_column(name: str) -> tuple[gr.HTML, gr.HTML, gr.HTML]:
    with gr.Column(min_width=280):
        title = gr.HTML()
        talk = gr.HTML(elem_id=f"chat-{name}", elem_classes="ls-chat")
        return title, talk, gr.HTML()


def _wire(act: Chat) -> None:
    p = act.parts
    everything = p.all()
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    gr.on(fn=act.repaint, outputs=everything, **quiet)
    tab = p.body.parent
    assert isinstance(tab, gr.Tab)  # its own event, because that of `shared.tabs` is silent when another tab opens it
    tab.select(act.arrive, p.choice, everything, **quiet)
    p.choice.input(act.pick, p.choice, everything, **quiet)
    p.load.click(act.load, p.choice, everything, concurrency_id="chat", concurrency_limit=1, **quiet)
    p.unload.click(act.unload, p.choice, everything, **quiet)
    answer: dict[str, Any] = {"concurrency_id": "chat", "concurrency_limit": 1, **quiet}
    asked = [p.question, p.choice, p.system, *p.sampling]
    gr.on([p.send.click, p.question.submit], act.send, asked, everything, **answer)
    for position, button in enumerate(p.examples):

        def put(value: str | None, system: str, position: int = position) -> Updates:
            return act.ask_example(position, value, system)

        filled = button.click(put, [p.choice, p.system], [p.question, p.system], **quiet)
        filled.then(act.send, asked, everything, **answer)
    p.stop.click(act.stop, queue=False, **quiet)
    p.clear.click(act.clear, [p.choice, p.system], everything, **quiet)
