"""The data tab: choose a file, see what it is, what is trained, what would be cut and what is broken, before training.

Draws and wires; `ui.data.handlers` has what the events do.
"""

from typing import Any

import gradio as gr

from lora_studio.config.fields import SettingValues
from lora_studio.ui import charts, form, html, job_views, theme
from lora_studio.ui.data import mapping_form, report
from lora_studio.ui.data.choice import BAD_ROWS, ENCODING, PERCENTILES, SETTINGS, SPLIT, THINKING, remembered, sources
from lora_studio.ui.data.handlers import KEPT_BACK, AnalysisHandlers, DataControls, DataView
from lora_studio.ui.studio import QUIET, EventOptions, Shared, Studio

DELETES = "Delete this file? Runs that are not finished can not be resumed without it."


def build(studio: Studio, shared: Shared) -> None:
    """Draws the tab and wires it."""
    controls = draw_controls(studio)
    view = draw_view(studio, controls)
    _wire(AnalysisHandlers(studio, controls, view), shared)


def draw_controls(studio: Studio) -> DataControls:
    values = remembered(studio.workspace)
    # Hidden until the last choice is there: a file dropped before that would be overwritten by it.
    with gr.Column(visible=False) as whole:
        return _draw_choices(values, sources(studio.workspace), whole)


def _draw_choices(values: SettingValues, offered: list[tuple[str, str]], whole: gr.Column) -> DataControls:
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            source = gr.Dropdown(
                offered,
                value=values["data.train_file"],
                label="Data",
                filterable=True,
                allow_custom_value=True,
                info="A set that comes with the studio or a file of yours; or type a path, a folder, hub:owner/name.",
            )
            upload = gr.File(
                label="Your own files: JSON, JSONL, CSV, Parquet, Arrow, text",
                height=236,
                elem_id="data-upload",
                type="filepath",
                file_count="multiple",
            )
        with gr.Column(scale=2, min_width=300):
            model = gr.Textbox(values["model.name"], label="Base model", info="Its tokenizer counts the tokens.")
            with gr.Row():
                length = _number("data.max_length", values, "Tokens a row may have.")
                truncation = _dropdown("data.truncation", values)
            with gr.Accordion("Prompt style, system prompt, trained part, encoding", open=False):
                train_on = _dropdown("data.train_on", values)
                style = _dropdown("data.prompt_style", values)
                system = gr.Textbox(
                    values["data.system_prompt"] or "",
                    lines=2,
                    label=SETTINGS["data.system_prompt"].title,
                    info=SETTINGS["data.system_prompt"].description,
                    placeholder="none",
                )
                thinking = _dropdown(THINKING, values)
                encoding = gr.Textbox(
                    values[ENCODING] or "",
                    label=SETTINGS[ENCODING].title,
                    info=SETTINGS[ENCODING].description,
                    placeholder="found by the letters",
                )
            validation, second, parts, percentiles = _draw_folded(values, offered)
    with gr.Row():
        look = gr.Button("Look at this data", variant="primary", scale=0, min_width=220, elem_id="data-look")
        stop = gr.Button("Stop", visible=False, scale=0, min_width=120)
    read = (style, system, thinking, encoding, validation)
    settings = (source, model, length, truncation, train_on, *read, *parts, percentiles)
    mapping = gr.State(values["data.mapping"])
    return DataControls(*settings, _draw_bad_rows(values), mapping, upload, second, whole, look, stop)


def _draw_folded(
    values: SettingValues, offered: list[tuple[str, str]]
) -> tuple[gr.Dropdown, gr.UploadButton, tuple[gr.Number, gr.Number, gr.Number, gr.Number], gr.Textbox]:
    """What few need: a second file to measure on or another share, fewer rows, other percentiles."""
    with gr.Accordion("Validation rows, number of rows, percentiles", open=False):
        validation = gr.Dropdown(
            [KEPT_BACK, *offered],
            value=values["data.validation_file"] or "",
            label=SETTINGS["data.validation_file"].title,
            info="A second file to measure on, or a share of the training rows.",
            filterable=True,
            allow_custom_value=True,
        )
        second = gr.UploadButton("Upload a validation file…", size="sm")
        with gr.Row():
            fraction, seed, most, measured = (_number(path, values, SETTINGS[path].description) for path in SPLIT)
        percentiles = gr.Textbox(
            values[PERCENTILES], label="Percentiles", info="Of the tokens a row, from 0 to 100.", max_lines=1
        )
    return validation, second, (fraction, seed, most, measured), percentiles


def _number(path: str, values: SettingValues, about: str) -> gr.Number:
    setting = SETTINGS[path]
    return gr.Number(
        values[path],
        label=setting.title,
        info=about,
        precision=None if isinstance(setting.default, float) else 0,
        step=0.05 if isinstance(setting.default, float) else 1,
        minimum=setting.minimum,
        maximum=setting.maximum,
        min_width=180,
    )


def _dropdown(path: str, values: SettingValues) -> gr.Dropdown:
    setting = SETTINGS[path]
    return gr.Dropdown(
        form.options(setting),
        value=form.to_widget(setting, values[path]),
        label=setting.title,
        info=setting.description,
        min_width=180,
    )


def _draw_bad_rows(values: SettingValues) -> gr.Radio:
    """Drawn beside the list of bad rows."""
    setting = SETTINGS[BAD_ROWS]
    return gr.Radio(
        form.options(setting),
        value=values[BAD_ROWS],
        label=setting.title,
        info=setting.description,
        render=False,
        elem_id="bad-rows",
    )


def draw_view(studio: Studio, controls: DataControls) -> DataView:
    status = gr.HTML(
        html.empty("Nothing looked at yet", "Choose a set or drop a file, then press “Look at this data”.")
    )
    summary = gr.HTML()
    reading = mapping_form.draw()
    with gr.Column(visible=False) as body:
        train = gr.Button("Train on this", variant="primary", scale=0, min_width=220)
        lengths = _draw_lengths()
        gr.HTML('<h3 class="part">One conversation, and what the model learns of it</h3>')
        pages = report.draw()
        gr.HTML('<h3 class="part">Rows that can’t be used</h3>')
        controls.bad_rows.render()
        bad_line = gr.HTML()
        bad_rows = gr.HTML()
        save_bad = gr.Button("Download all bad rows (JSONL)", size="sm", scale=0, min_width=240)
        saved_bad = job_views.place(studio.workspace)
        gr.HTML('<h3 class="part">Duplicates, leaks and contradictions</h3>')
        hygiene = gr.HTML()
    with gr.Accordion("Rows as they stand in the file", open=False, visible=False) as rows:
        table = gr.HTML()
    with gr.Accordion("Your uploads, and prepared data on this disk", open=False, elem_id="data-kept"):
        uploads = gr.HTML(js_on_load=theme.on_load("clicks", questions={"delete": DELETES}))
        cache = gr.HTML()
        clear = gr.Button("Clear", size="sm", scale=0, min_width=120)
    return DataView(
        status,
        body,
        summary,
        reading,
        train,
        *lengths,
        pager=pages,
        bad_line=bad_line,
        bad_rows=bad_rows,
        save_bad=save_bad,
        saved_bad=saved_bad,
        hygiene=hygiene,
        rows=rows,
        table=table,
        uploads=uploads,
        cache=cache,
        clear=clear,
        result=gr.State(None),
    )


Lengths = tuple[gr.HTML, gr.Slider, gr.HTML, gr.Button, gr.HTML, gr.Button, gr.HTML, gr.HTML]


def _draw_lengths() -> Lengths:
    """The components in the order of `DataView`: `histogram` to `percentiles`."""
    gr.HTML('<h3 class="part">How long the rows are, and what a limit would cut</h3>')
    gr.HTML(html.hint("Drag across a part of the chart to look closer, double-click to see all of it."))
    histogram = charts.length_chart()
    cut = gr.Slider(8, 1024, step=1, label="Cut line (tokens)", buttons=[])
    sentence = gr.HTML()
    use = gr.Button("Use as the longest row", size="sm", scale=0, min_width=220)
    percentiles = gr.HTML()
    suggestion = gr.HTML()
    take = gr.Button("Take the suggestion", size="sm", scale=0, min_width=220)
    forecast = gr.HTML()
    return histogram, cut, sentence, use, suggestion, take, forecast, percentiles


def _wire(act: AnalysisHandlers, shared: Shared) -> None:
    c, v = act.controls, act.view
    settings, outputs = c.chosen(), [*c.all(), *v.all()]
    inspect: EventOptions = {"concurrency_id": "inspect", "concurrency_limit": 1, **QUIET}
    gr.on(fn=act.repaint, outputs=outputs, **QUIET)
    gone = [v.status, v.body, v.summary, v.result, v.reading.box, v.rows]
    uploaded = c.upload.upload(act.keep_upload, c.upload, [c.source, c.validation, c.upload, v.uploads, *gone], **QUIET)
    uploaded.then(None, js=theme.call("showAnalysis"), api_visibility="private")
    uploaded.then(act.look_anew, settings, outputs, **inspect)
    second = c.upload_validation.upload(
        act.keep_validation, c.upload_validation, [c.source, c.validation, v.status], **QUIET
    )
    second.then(act.look, settings, outputs, **inspect)
    # Leaving a dropdown also fires `input`: nothing is done for a choice that was analyzed already.
    c.source.input(act.choose_other, c.source, gone, **QUIET).then(act.analyze_other, settings, outputs, **inspect)
    c.source.select(None, js=theme.call("showAnalysis"), api_visibility="private")
    c.validation.input(act.measure_other, settings, outputs, **inspect)
    gr.on([c.look.click, c.percentiles.submit], act.look, settings, outputs, **inspect)
    c.stop.click(act.stop, queue=False, **QUIET)
    cut = [v.histogram, v.sentence, v.use]
    v.cut.input(act.move_cut, [v.result, v.cut], cut, trigger_mode="always_last", **QUIET)
    v.cut.release(act.settle_cut, [v.result, v.cut], v.cut, **QUIET)
    v.use.click(act.use_cut, [v.result, v.cut], [c.max_length], **QUIET).then(act.look, settings, outputs, **inspect)
    accepted = v.take.click(act.take_suggestion, v.result, c.max_length, **QUIET)
    accepted.then(act.look, settings, outputs, **inspect)
    c.bad_rows.input(act.choose_bad_rows, [v.result, *settings], [v.summary, v.bad_line, v.train], **QUIET)
    v.save_bad.click(act.save_bad_rows, None, v.saved_bad, **QUIET)
    v.train.click(act.hand_over, settings, [shared.data, shared.tabs, shared.start], **QUIET)
    v.clear.click(act.clear_cache, None, [v.uploads, v.cache, v.clear], **QUIET)
    v.uploads.click(act.delete_upload, None, outputs, **QUIET)
    _wire_pager(act)
    _wire_reading(act, outputs, inspect)


def _wire_pager(act: AnalysisHandlers) -> None:
    p, result = act.view.pager, act.view.result
    p.previous.click(act.pages.back, [result, p.index], p.all(), **QUIET)
    p.next.click(act.pages.forward, [result, p.index], p.all(), **QUIET)
    p.row.submit(act.pages.go, [result, p.row], p.all(), **QUIET)
    p.earlier.click(act.pages.earlier, [result, p.index, p.window], p.all(), **QUIET)
    p.later.click(act.pages.later, [result, p.index, p.window], p.all(), **QUIET)


def _wire_reading(act: AnalysisHandlers, outputs: list[Any], inspect: EventOptions) -> None:
    settings, form = act.controls.chosen(), act.view.reading
    source, encoding = act.controls.source, act.controls.encoding
    gr.on(
        [*(field.input for field in form.fields()), form.template.blur],
        act.try_reading,
        [form.rows, source, encoding, *form.fields()],
        form.tried,
        trigger_mode="always_last",
        **QUIET,
    )
    form.choice.input(act.take_reading, [form.rows, form.choice, *settings], outputs, **inspect)
    form.use.click(act.use_reading, [form.rows, *form.fields(), *settings], outputs, **inspect)
    form.undo.click(act.look_anew, settings, outputs, **inspect)
