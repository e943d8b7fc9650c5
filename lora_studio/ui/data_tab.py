"""The data tab: choose a file, see what it is, what is trained, what would be cut and what is broken, before training.

Draws and wires; what the events do stands in inspection.py.
"""

from typing import Any

import gradio as gr

from lora_studio.ui import text
from lora_studio.ui.inspection import SETTINGS, Controls, Inspection, View, remembered, sources
from lora_studio.ui.studio import Shared, Studio


def build(studio: Studio, shared: Shared) -> None:
    """Draws the tab and wires it."""
    controls = draw_controls(studio)
    view = draw_view()
    _wire(Inspection(studio, controls, view), shared)


def draw_controls(studio: Studio) -> Controls:
    values = remembered(studio.workspace)
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            source = gr.Dropdown(
                sources(studio.workspace),
                value=values["data.train_file"],
                label="Data",
                filterable=True,
                info="A set that comes with the studio, or a file of yours.",
            )
            upload = gr.File(label="Your own file: JSON, JSONL, CSV, Parquet, text", height=150, type="filepath")
        with gr.Column(scale=2, min_width=300):
            model = gr.Textbox(values["model.name"], label="Base model", info="Its tokenizer counts the tokens.")
            with gr.Row():
                length = _number("data.max_length", values)
                truncation = _dropdown("data.truncation", values)
            with gr.Accordion("Prompt style, system prompt, trained part", open=False):
                train_on = _dropdown("data.train_on", values)
                style = _dropdown("data.prompt_style", values)
                system = gr.Textbox(
                    values["data.system_prompt"] or "",
                    lines=2,
                    label=SETTINGS["data.system_prompt"].title,
                    info=SETTINGS["data.system_prompt"].description,
                    placeholder="none",
                )
    with gr.Row():
        look = gr.Button("Look at this data", variant="primary", scale=0, min_width=220)
        stop = gr.Button("Stop", visible=False, scale=0, min_width=120)
    return Controls(source, model, length, truncation, train_on, style, system, upload, look, stop)


def _number(path: str, values: dict[str, Any]) -> gr.Number:
    setting = SETTINGS[path]
    return gr.Number(
        values[path],
        label=setting.title,
        info="Tokens a row may have.",
        precision=0,
        minimum=setting.minimum,
        maximum=setting.maximum,
        min_width=180,
    )


def _dropdown(path: str, values: dict[str, Any]) -> gr.Dropdown:
    setting = SETTINGS[path]
    return gr.Dropdown(
        list(setting.choices), value=values[path], label=setting.title, info=setting.description, min_width=180
    )


def draw_view() -> View:
    status = gr.HTML(
        text.empty("Nothing looked at yet", "Choose a set or drop a file, then press “Look at this data”.")
    )
    with gr.Column(visible=False) as body:
        summary = gr.HTML()
        train = gr.Button("Train on this", variant="primary", scale=0, min_width=220)
        gr.HTML('<h3 class="part">How long the rows are, and what a limit would cut</h3>')
        histogram = gr.HTML()
        cut = gr.Slider(8, 1024, step=1, label="Cut line (tokens)", buttons=[])
        sentence = gr.HTML()
        use = gr.Button("Use as the longest row", size="sm", scale=0, min_width=220)
        gr.HTML('<h3 class="part">One conversation, and what the model learns of it</h3>')
        with gr.Row(elem_classes="ls-pager"):
            previous = gr.Button("Previous", scale=0, min_width=90)
            row = gr.Number(1, label="Conversation", precision=0, minimum=1, scale=0, min_width=140)
            following = gr.Button("Next", scale=0, min_width=90)
        position = gr.HTML()
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                conversation = gr.HTML()
            with gr.Column(scale=3, min_width=300):
                tokens = gr.HTML()
        gr.HTML('<h3 class="part">Rows that can’t be used</h3>')
        bad_line = gr.HTML()
        bad_rows = gr.HTML()
        with gr.Accordion("Rows as they stand in the file", open=False):
            table = gr.HTML()
    found, index = gr.State(None), gr.State(0)
    parts = (status, body, summary, train, histogram, cut, sentence, use, position, previous, following, row)
    return View(*parts, conversation, tokens, bad_line, bad_rows, table, found, index)


def _wire(act: Inspection, shared: Shared) -> None:
    c, v = act.controls, act.view
    chosen, shown = c.chosen(), [*c.all(), *v.all()]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    inspect: dict[str, Any] = {"concurrency_id": "inspect", "concurrency_limit": 1, **quiet}
    gr.on(fn=act.repaint, outputs=shown, **quiet)
    kept = c.upload.upload(act.keep_upload, c.upload, [c.source, c.upload], **quiet)
    kept.then(act.look, chosen, shown, **inspect)
    gr.on([c.look.click, c.source.input], act.look, chosen, shown, **inspect)
    c.stop.click(act.stop, queue=False, **quiet)
    cut = [v.histogram, v.sentence, v.use]
    v.cut.input(act.move_cut, [v.found, v.cut], cut, trigger_mode="always_last", **quiet)
    v.use.click(act.use_cut, [v.found, v.cut], [c.max_length], **quiet).then(act.look, chosen, shown, **inspect)
    page = [v.position, v.row, v.index, v.conversation, v.tokens, v.previous, v.next]
    v.previous.click(act.back, [v.found, v.index], page, **quiet)
    v.next.click(act.forward, [v.found, v.index], page, **quiet)
    v.row.submit(act.go, [v.found, v.row], page, **quiet)
    v.train.click(act.hand_over, chosen, [shared.data, shared.tabs], **quiet)
