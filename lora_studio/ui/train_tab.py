"""Where a run is set up and started: preset, form, what it comes to, Start.

The form is kept as typed in the workspace, so that a reload or restart brings it back. What runs is what the form says
at the click, checked whole before anything starts.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.config import Config
from lora_studio.errors import StudioError
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.parsing import ConfigError, Problem, parse, read_yaml, to_yaml
from lora_studio.presets import Preset, presets
from lora_studio.settings import flatten
from lora_studio.ui import form as forms
from lora_studio.ui import plan, text
from lora_studio.ui.data_choice import is_there
from lora_studio.ui.form_draft import read_draft, save_draft
from lora_studio.ui.studio import Shared, Studio
from lora_studio.workspace import Workspace, shipped_data

OWN_CHOICES = ("model.name", "model.revision", "data.train_file", "data.validation_file")
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
NOT_TAUGHT = ("preference",)  # shipped pairs that teach by comparison, which this form does not do


class Starter:
    """Starts a run for a click. The second click of a double click gets the first one's run."""

    def __init__(self, supervisor: Supervisor, seconds: float = 3.0) -> None:
        self._supervisor, self._seconds = supervisor, seconds
        self._lock = threading.Lock()
        self._last: tuple[Config, str, float] | None = None

    def start(self, config: Config) -> str:
        with self._lock:
            if self._last and self._last[0] == config and time.monotonic() - self._last[2] < self._seconds:
                return self._last[1]
            run_id = self._supervisor.launch(config)
            self._last = (config, run_id, time.monotonic())
            return run_id


@dataclass(frozen=True)
class Told:
    """Problems that the person was told of: `paths` of fields, and `others` that belong to no field.

    A field is not called wrong while it is being typed, only once a start or a file brought the mistake to light.
    """

    paths: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawn:
    """The tab's components. `told` is what is in sight of problems, see `Told`."""

    whole: gr.Row
    form: forms.Form
    preset: gr.Dropdown
    about: gr.HTML
    upload: gr.UploadButton
    summary: gr.HTML
    numbers: gr.HTML
    start: gr.Button
    yaml: gr.Code
    told: gr.State

    @property
    def shown(self) -> list[Any]:
        """Everything that a change of the form may change."""
        return [self.preset, self.about, self.summary, self.numbers, self.yaml, self.told, *self.form.parts]


def build(studio: Studio, shared: Shared) -> None:
    """Draws the tab and wires it."""
    drawn = _draw(studio.workspace)
    _keep(drawn, studio.workspace)
    _fill(drawn, shared, studio.workspace)
    _start(drawn, shared, studio)


def _draw(workspace: Workspace) -> Drawn:
    known = list(presets(workspace))
    # Hidden until the kept form is there: what is typed before that would be overwritten.
    with gr.Row(elem_classes="train", visible=False) as whole:
        with gr.Column(scale=3, min_width=300, elem_id="form"):
            info = "A starting point that sets everything but your model and data, unless it names them."
            preset = gr.Dropdown(known, label="Preset", info=info, filterable=False, elem_id="preset")
            about = gr.HTML(elem_id="preset-about")
            form = forms.draw(data_choices(workspace))
        with gr.Column(scale=1, min_width=280, elem_classes="beside"):
            numbers = gr.HTML(plan.words(None), elem_id="plan")
            summary = gr.HTML(elem_id="form-summary", visible=False)
            start = gr.Button("Start training", variant="primary", size="lg", elem_id="start")
            with gr.Accordion("As a config file", open=False):
                upload = gr.UploadButton("Open a config file…", file_types=[".yaml", ".yml"], size="sm")
                yaml = gr.Code(language="yaml", show_label=False, interactive=False, max_lines=24, elem_id="form-yaml")
    return Drawn(whole, form, preset, about, upload, summary, numbers, start, yaml, gr.State(Told()))


def _keep(drawn: Drawn, workspace: Workspace) -> None:
    """Each change is kept and shown for what it comes to; a load of the page brings the kept form back."""

    def changed(preset: str | None, told: Told, *raws: Any) -> dict[Any, Any]:
        save_draft(workspace, preset, raws)
        return _look(drawn, raws, told)

    def restore() -> dict[Any, Any]:
        preset, raws = read_draft(workspace)
        return {**_show(drawn, workspace, preset, raws), drawn.whole: gr.Row(visible=True)}

    given = [drawn.preset, drawn.told, *drawn.form.widgets]
    gr.on(drawn.form.edits, changed, given, drawn.shown, trigger_mode="always_last", **QUIET)
    gr.on(None, restore, None, [*drawn.shown, drawn.whole], **QUIET)


def _fill(drawn: Drawn, shared: Shared, workspace: Workspace) -> None:
    """A preset, a config file, the data tab or an earlier run writes into the form."""

    def use_preset(name: str, *raws: Any) -> dict[Any, Any]:
        filled = with_preset(raws, presets(workspace)[name].values())
        save_draft(workspace, name, filled)
        return _show(drawn, workspace, name, filled)

    def open_file(path: str) -> dict[Any, Any]:
        try:
            given = read_yaml(Path(path))
        except StudioError as error:
            return {drawn.summary: gr.HTML(text.problem(error), visible=True)}
        filled = forms.overlay(forms.shown(Config()), forms.known_values(given))
        save_draft(workspace, None, filled)
        fields, others = forms.beside_fields(problems_of(given))
        return _show(drawn, workspace, None, filled, Told(tuple(fields), tuple(others)))

    def use_data(chosen: tuple[float, dict[str, Any]], preset: str | None, *raws: Any) -> dict[Any, Any]:
        filled = forms.overlay(raws, chosen[1])
        save_draft(workspace, preset, filled)
        return _show(drawn, workspace, preset, filled)

    def use_config(chosen: tuple[float, dict[str, Any]]) -> dict[Any, Any]:
        filled = forms.overlay(forms.shown(Config()), chosen[1])
        save_draft(workspace, None, filled)
        return _show(drawn, workspace, None, filled)

    widgets = drawn.form.widgets
    shared.form.change(use_config, shared.form, drawn.shown, **QUIET)
    drawn.preset.input(use_preset, [drawn.preset, *widgets], drawn.shown, **QUIET)
    drawn.upload.upload(open_file, drawn.upload, drawn.shown, **QUIET)
    shared.data.change(use_data, [shared.data, drawn.preset, *widgets], drawn.shown, **QUIET)


def _start(drawn: Drawn, shared: Shared, studio: Studio) -> None:
    starter = Starter(studio.supervisor)

    def start(*raws: Any) -> dict[Any, Any]:
        try:
            run_id = starter.start(checked(raws))
        except ConfigError as error:
            return _look(drawn, raws, Told(tuple(item.path for item in error.problems)))
        except StudioError as error:
            return {drawn.summary: gr.HTML(text.problem(error), visible=True)}
        return {**_look(drawn, raws, Told()), shared.run: run_id, shared.tabs: gr.Tabs(selected="runs")}

    drawn.start.click(
        start,
        drawn.form.widgets,
        [*drawn.shown, shared.run, shared.tabs],
        trigger_mode="once",
        show_progress="minimal",
        show_progress_on=drawn.start,
        api_visibility="private",
    )


def _show(
    drawn: Drawn, workspace: Workspace, preset: str | None, raws: Sequence[Any], told: Told | None = None
) -> dict[Any, Any]:
    """The whole form filled anew, with the files that are there now."""
    known, files = presets(workspace), data_choices(workspace)
    updates = {
        item.widget: gr.Dropdown(choices=files, value=raw) if item.setting.path in forms.FILES else raw
        for item, raw in zip(drawn.form.fields, raws, strict=True)
    }
    return {
        **updates,
        drawn.preset: gr.Dropdown(choices=list(known), value=preset),
        drawn.about: _about(known.get(preset or "")),
        **_look(drawn, raws, told or Told()),
    }


def _look(drawn: Drawn, raws: Sequence[Any], told: Told) -> dict[Any, Any]:
    """What the form comes to, and of its problems those that were told and are still there."""
    try:
        config = checked(raws)
        problems, numbers, yaml = [], plan.words(plan.plan(config)), to_yaml(config)
    except ConfigError as error:
        problems, numbers, yaml = error.problems, plan.words(None), "# Some settings are not right yet."
    fields, _ = forms.beside_fields(problems)
    in_sight = {path: message for path, message in fields.items() if path in told.paths}
    words = summary(in_sight, told.others)
    return {
        drawn.numbers: numbers,
        drawn.yaml: yaml,
        drawn.told: Told(tuple(in_sight), told.others),
        drawn.summary: gr.HTML(words, visible=bool(words)),
        **forms.error_updates(drawn.form, in_sight),
    }


def checked(raws: Sequence[Any]) -> Config:
    """The config of the form, with files that are there. Raises `ConfigError` with every problem."""
    config = forms.read(raws)
    problems = []
    for path, name in (
        ("data.train_file", config.data.train_file),
        ("data.validation_file", config.data.validation_file),
    ):
        if name and not is_there(name):
            problems.append(Problem(path, "there is no such file; choose one, or upload it on the Data tab", name))
    if problems:
        raise ConfigError(problems)
    return config


def problems_of(given: Mapping[str, Any]) -> list[Problem]:
    """Everything wrong with the settings of a config file."""
    try:
        parse(given)
    except ConfigError as error:
        return error.problems
    return []


def summary(fields: Mapping[str, str], others: Sequence[str]) -> str:
    """All that is wrong in one place, by the titles of the fields."""
    lines = [f"{forms.title_of(path)}: {message}" for path, message in fields.items()]
    parts = []
    if lines:
        head = "One setting is not right:" if len(lines) == 1 else f"{len(lines)} settings are not right:"
        parts.append(text.notice(head, "\n".join(lines), "error"))
    if others:
        parts.append(text.notice("Not taken from the file:", "\n".join(others), "warning"))
    return "".join(parts)


def with_preset(raws: Sequence[Any], overlay: Mapping[str, Any]) -> list[Any]:
    """The form of a preset; model and data stay as they are unless the preset names them."""
    named = forms.known_values(overlay)
    flat = {path: value for path, value in flatten(parse(overlay)).items() if path in named or path not in OWN_CHOICES}
    return forms.overlay(raws, flat)


def data_choices(workspace: Workspace) -> list[tuple[str, str]]:
    """Files that the form offers: the studio's own sets, then what was uploaded."""
    shipped = {name: item.title for name, item in shipped_data().items() if name not in NOT_TAUGHT}
    return forms.known_files(shipped, workspace.uploads())


def _about(preset: Preset | None) -> str:
    return f'<div class="quiet">{text.escape(preset.about)}</div>' if preset else ""
