"""The Data tab: what a file holds, what is trained of it, what would be cut, what is invalid. Draws and wires."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr

from lora_studio.config.fields import SettingValues
from lora_studio.ui import form, html, job_views, plots, theme
from lora_studio.ui.components import QUIET, EventOptions, Shared
from lora_studio.ui.data import documents, mapping_form, report
from lora_studio.ui.data.choice import BAD_ROWS, ENCODING, PERCENTILES, SETTINGS, SPLIT, THINKING, remembered, sources
from lora_studio.ui.data.controls import DataControls, draw_source
from lora_studio.ui.data.handlers import SPLIT_OFF, AnalysisHandlers, DataView
from lora_studio.ui.studio import Studio

TRY_LENGTH = "Try a max length (tokens)"
TRIED = "Shows what would be cut; the setting changes only when you use it."


def build(studio: Studio, shared: Shared) -> None:
    """Draws the tab and wires it."""
    controls = draw_controls(studio)
    with controls.whole:
        rows_wish = documents.build(studio)
        view = draw_view(studio, controls)
    _wire(AnalysisHandlers(studio, controls, view), shared, rows_wish)


def draw_controls(studio: Studio) -> DataControls:
    values = remembered(studio.workspace)
    # All is hidden until the last choice is there: a file dropped before that would be overwritten by it.
    with gr.Column(visible=False) as whole:
        return _draw_choices(values, sources(studio.workspace), whole)


def _draw_choices(values: SettingValues, offered: list[tuple[str, str]], whole: gr.Column) -> DataControls:
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            fields = draw_source(values, offered)
        with gr.Column(scale=1, min_width=300):
            model = gr.Textbox(values["model.name"], label="Base model", info="Its tokenizer counts the tokens.")
            with gr.Row():
                length = _number("data.max_length", values, "Tokens per row.")
                truncation = _dropdown("data.truncation", values)
            with gr.Accordion("Prompt style, system prompt, loss mask, encoding", open=False):
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
                    placeholder="detected",
                )
            validation, second, parts, percentiles = _draw_folded(values, offered)
    with gr.Row(elem_classes="data-buttons"):
        train = gr.Button("Use for training", variant="primary", visible=False, scale=0, min_width=180)
        look = gr.Button("Analyze dataset", variant="primary", scale=0, min_width=180, elem_id="data-look")
        stop = gr.Button("Stop", visible=False, scale=0, min_width=120)
    read = (style, system, thinking, encoding, validation)
    settings = (fields.source, model, length, truncation, train_on, *read, *parts, percentiles)
    mapping = gr.State(values["data.mapping"])
    buttons = (whole, look, train, stop)
    return DataControls(*settings, _draw_bad_rows(values), mapping, second, *fields[1:], *buttons)


def _draw_folded(
    values: SettingValues, offered: list[tuple[str, str]]
) -> tuple[gr.Dropdown, gr.UploadButton, tuple[gr.Number, gr.Number, gr.Number, gr.Number], gr.Textbox]:
    """A validation file or another split, fewer rows, other percentiles."""
    with gr.Accordion("Validation, max rows, percentiles", open=False):
        validation = gr.Dropdown(
            [SPLIT_OFF, *offered],
            value=values["data.validation_file"] or "",
            label=SETTINGS["data.validation_file"].title,
            info="A second file, or rows split from the training data.",
            filterable=True,
            allow_custom_value=True,
        )
        second = gr.UploadButton("Upload validation file…", size="sm")
        with gr.Row():
            fraction, seed, most, measured = (_number(path, values, SETTINGS[path].description) for path in SPLIT)
        percentiles = gr.Textbox(
            values[PERCENTILES], label="Percentiles", info="Of the tokens per row, from 0 to 100.", max_lines=1
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
    """Drawn beside the list of invalid rows."""
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
    """The components below the choices, in the order of `DataView`."""
    status = gr.HTML(html.empty("No dataset analyzed yet", "Choose a dataset or upload a file, then analyze it."))
    outdated = gr.HTML(elem_id="data-outdated")
    summary = gr.HTML(elem_classes="of-analysis")
    parts: list[Any] = []

    def draw_example() -> None:
        with gr.Column(visible=False, elem_classes="of-analysis") as example:
            parts.extend((example, report.draw()))
        parts.append(gr.HTML(elem_classes="of-analysis"))

    reading = mapping_form.draw(draw_example)
    with gr.Column(visible=False, elem_classes="of-analysis") as body:
        lengths = _draw_lengths()
        quality = _draw_quality(studio, controls)
    with gr.Accordion("Raw rows", open=False, visible=False) as rows:
        table = gr.HTML()
    with gr.Accordion("Cache", open=False, elem_id="data-cache"):
        cache = gr.HTML()
        clear = gr.Button("Clear cache", size="sm", scale=0, min_width=120)
    example, pager, notes = parts
    above = (status, outdated, summary, example, pager, notes, reading, body)
    return DataView(*above, *lengths, *quality, rows, table, cache, clear, gr.State(None), gr.State(None))


Lengths = tuple[gr.HTML, gr.Slider, gr.HTML, gr.Button, gr.Button, gr.HTML, gr.HTML]
Quality = tuple[gr.HTML, gr.HTML, gr.Button, gr.HTML, gr.HTML, gr.Button, gr.Button]


def _draw_lengths() -> Lengths:
    """The components in the order of `DataView`: `histogram` to `forecast`."""
    gr.HTML('<h3 class="part">Row length</h3>')
    histogram = plots.length_chart()
    cut = gr.Slider(8, 1024, step=1, label=TRY_LENGTH, info=TRIED, buttons=[], elem_id="data-limit")
    sentence = gr.HTML()
    with gr.Row():
        take = gr.Button("Use suggested", size="sm", scale=0, min_width=240)
        use = gr.Button("Use", size="sm", scale=0, min_width=140)
    with gr.Accordion("Percentiles, packing, steps", open=False):
        percentiles = gr.HTML()
        forecast = gr.HTML()
    return histogram, cut, sentence, take, use, percentiles, forecast


def _draw_quality(studio: Studio, controls: DataControls) -> Quality:
    """The components in the order of `DataView`: `bad_line` to `remove_near`."""
    gr.HTML('<h3 class="part">Quality</h3>')
    bad_line = gr.HTML()
    controls.bad_rows.render()
    bad_rows = gr.HTML()
    save_bad = gr.Button("Download invalid rows (JSONL)", size="sm", scale=0, min_width=240)
    saved_bad = job_views.place(studio.workspace)
    hygiene = gr.HTML()
    with gr.Row():
        remove = gr.Button("Remove duplicates", size="sm", scale=0, min_width=160)
        remove_near = gr.Button("Remove duplicates and near-duplicates", size="sm", scale=0, min_width=280)
    return bad_line, bad_rows, save_bad, saved_bad, hygiene, remove, remove_near


Analyze = Callable[[Callable[..., gr.events.Dependency], Callable[..., Any], list[Any]], None]
"""Wires an event to an analysis: by its trigger, the handler and what that is given."""


def _wire(act: AnalysisHandlers, shared: Shared, rows_wish: gr.State) -> None:
    c, v = act.controls, act.view
    settings, outputs = c.chosen(), [*c.all(), *v.all()]
    inspect: EventOptions = {"concurrency_id": "inspect", "concurrency_limit": 1, **QUIET}
    marked = [v.outdated, c.look, c.train, v.status]

    def analyze(trigger: Callable[..., gr.events.Dependency], look: Callable[..., Any], inputs: list[Any]) -> None:
        """What a look brings may be outdated as it comes: a setting was changed meanwhile. Not asked by a change of
        `analyzed`: a page that opens tells of it before its fields are filled."""
        trigger(look, inputs, outputs, **inspect).then(act.compare, [v.analyzed, *settings], marked, **QUIET)

    gr.on(fn=act.repaint, outputs=outputs, **QUIET)
    uploaded = c.upload.upload(act.keep_upload, c.upload, outputs, **QUIET)
    uploaded.then(None, js=theme.call("showAnalysis"), api_visibility="private")
    analyze(uploaded.then, act.look_anew, settings)
    second = c.upload_validation.upload(act.keep_validation, c.upload_validation, outputs, **QUIET)
    analyze(second.then, act.look, settings)
    # Leaving a dropdown also fires `input`: nothing is done for a choice that was analyzed already.
    analyze(c.source.input(act.choose_other, c.source, outputs, **QUIET).then, act.analyze_other, settings)
    c.source.select(None, js=theme.call("showAnalysis"), api_visibility="private")
    for wish in (shared.wish, rows_wish):
        analyze(wish.change, act.open_wished, [wish, *settings])
    rows_wish.change(None, js=theme.call("showAnalysis"), api_visibility="private")
    sheet = c.sheet.input(act.choose_sheet, [c.source, c.sheet], outputs, **QUIET)
    analyze(sheet.then, act.analyze_other, settings)
    loaded = c.hub_load.click(act.choose_hub, [c.hub_id, c.hub_subset, c.hub_split], outputs, **QUIET)
    analyze(loaded.then, act.analyze_other, settings)
    for trigger, look in (
        (c.validation.input, act.measure_other),
        (c.look.click, act.look),
        (c.percentiles.submit, act.look),
    ):
        analyze(trigger, look, settings)
    c.stop.click(act.stop, queue=False, **QUIET)
    changes = [field.input for field in settings if field not in (c.source, c.validation, c.bad_rows, c.mapping)]
    gr.on(changes, act.compare, [v.analyzed, *settings], marked, trigger_mode="always_last", **QUIET)
    _wire_limit(act, analyze)
    c.bad_rows.input(act.choose_bad_rows, [v.result, *settings], [v.bad_line, c.train, v.status], **QUIET)
    v.save_bad.click(act.save_bad_rows, v.analyzed, v.saved_bad, **QUIET)
    for button, near in ((v.remove, False), (v.remove_near, True)):
        copied = button.click(partial(act.remove_duplicates, near), v.analyzed, outputs, **QUIET)
        analyze(copied.then, act.analyze_copy, settings)
    c.train.click(act.hand_over, settings, [shared.data, shared.tabs, shared.start], **QUIET)
    v.clear.click(act.clear_cache, None, [c.uploads, v.cache, v.clear], **QUIET)
    c.uploads.click(act.delete_upload, None, outputs, **QUIET)
    _wire_pager(act)
    _wire_reading(act, analyze)


def _wire_limit(act: AnalysisHandlers, analyze: Analyze) -> None:
    c, v, settings = act.controls, act.view, act.controls.chosen()
    moved = [v.histogram, v.sentence, v.take, v.use, v.status]
    v.cut.input(act.move_cut, [v.result, v.cut], moved, trigger_mode="always_last", **QUIET)
    v.cut.release(act.settle_cut, [v.result, v.cut], v.cut, **QUIET)
    v.histogram.click(act.drag_cut, v.result, [v.cut, *moved], trigger_mode="always_last", **QUIET)
    used = v.use.click(act.settle_cut, [v.result, v.cut], c.max_length, **QUIET)
    analyze(used.then, act.look, settings)
    accepted = v.take.click(act.take_suggestion, v.result, c.max_length, **QUIET)
    analyze(accepted.then, act.look, settings)


def _wire_pager(act: AnalysisHandlers) -> None:
    p, analysis = act.view.pager, [act.view.result, act.view.analyzed]
    p.previous.click(act.pages.back, [*analysis, p.index], p.all(), **QUIET)
    p.next.click(act.pages.forward, [*analysis, p.index], p.all(), **QUIET)
    p.row.submit(act.pages.go, [*analysis, p.row], p.all(), **QUIET)
    p.earlier.click(act.pages.earlier, [*analysis, p.index, p.window], p.all(), **QUIET)
    p.later.click(act.pages.later, [*analysis, p.index, p.window], p.all(), **QUIET)


def _wire_reading(act: AnalysisHandlers, analyze: Analyze) -> None:
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
    analyze(form.choice.input, act.take_reading, [form.rows, form.choice, *settings])
    analyze(form.use.click, act.use_reading, [form.rows, *form.fields(), *settings])
    analyze(form.undo.click, act.look_anew, settings)
