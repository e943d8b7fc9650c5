"""Where a run is set up and started: preset, form, what it comes to, Start.

The form is kept as typed in the workspace, so that a reload or restart brings it back. What runs is what the form says
at the click, checked whole before anything starts.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.config.fields import read_yaml
from lora_studio.config.parsing import ConfigError, Problem, machine_conflicts, parse, to_yaml
from lora_studio.config.presets import Preset, is_for_model, presets
from lora_studio.config.sections import Config
from lora_studio.config.settings import flatten
from lora_studio.errors import StudioError
from lora_studio.jobs.kinds import EVALUATE
from lora_studio.jobs.preflight import ASK, FAILED, check_before_start, fetch_numbers
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.models.hardware import recent_devices
from lora_studio.models.module_patterns import PatternError
from lora_studio.ui import form as forms
from lora_studio.ui import html, theme
from lora_studio.ui.data.choice import is_there
from lora_studio.ui.form import read_draft, save_draft
from lora_studio.ui.studio import QUIET, EventOptions, Handover, Shared, Studio, Updates
from lora_studio.ui.train import plan as plan_card
from lora_studio.ui.train import plan as plan_words
from lora_studio.ui.train import presets as form_changes
from lora_studio.ui.train import presets as module_choice
from lora_studio.ui.train import presets as preset_keeper
from lora_studio.ui.train.plan import Plan, plan
from lora_studio.workspace import DEMO_MODEL, Workspace, shipped_data

OWN_CHOICES = ("model.name", "model.revision", "data.train_file", "data.validation_file")
FormState = tuple[str | None, Sequence[Any]]
IN_TURN: EventOptions = {"concurrency_id": "form", "concurrency_limit": 1}  # of two that fill it, the last one tells
CHAT_HELD = html.notice("The chat holds a model in memory as well.", "Unload it on the Chat tab, and start again.")
EVALUATION_HELD = html.notice(
    "An evaluation holds a model in memory.",
    "A run that is started now waits for its end; stop it on its tab to begin at once.",
)
NOT_TAUGHT = ("preference",)  # shipped pairs that teach by comparison, which this form does not do


class Starter:
    """Starts a run for a click. The second click of a double click gets the first one's run."""

    def __init__(self, supervisor: Supervisor, seconds: float = 3.0) -> None:
        self._supervisor, self._seconds = supervisor, seconds
        self._lock = threading.Lock()
        self._last: tuple[tuple[Config, str], str, float] | None = None

    def start(self, config: Config, visitor: str = "") -> str:
        request = (config, visitor)
        with self._lock:
            if self._last and self._last[0] == request and time.monotonic() - self._last[2] < self._seconds:
                return self._last[1]
            run_id = self._supervisor.launch(config)
            self._last = (request, run_id, time.monotonic())
            return run_id


@dataclass
class ReportedProblems:
    """Problems that the person was told of: `paths` of fields, and `general` ones that belong to no field.

    A field is not called wrong while it is being typed, only once a start or a file brought the mistake to light.
    Events that run at once share the object: a start may be refused while an edit before it is still looked at.
    """

    paths: tuple[str, ...] = ()
    general: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainView:
    """The tab's components. `reported` is what is in sight of problems, see `ReportedProblems`."""

    whole: gr.Row
    form: forms.SettingsForm
    preset: gr.Dropdown
    about: gr.HTML
    changes: form_changes.Notice
    upload: gr.UploadButton
    summary: gr.HTML
    card: plan_card.Card
    checks: gr.HTML
    start: gr.Button
    anyway: gr.Button
    yaml: gr.Code
    reported: gr.State
    keeper: preset_keeper.Keeper
    modules: module_choice.ModuleChoice

    @property
    def outputs(self) -> list[Any]:
        """Everything that a change of the form may change."""
        own = [self.preset, self.about, self.summary, self.checks, self.anyway, self.yaml, self.reported]
        own += self.changes.parts
        return [*own, self.keeper.delete, self.keeper.replace, *self.card.outputs, *self.form.parts]


def build(studio: Studio, shared: Shared) -> None:
    """Draws the tab and wires it."""
    view = _draw(studio.workspace, shared.start)
    _keep(view, studio)
    _fill(view, shared, studio)
    _start(view, shared, studio)


def _draw(workspace: Workspace, start: gr.Button) -> TrainView:
    names = list(presets(workspace))
    # Hidden until the kept form is there: what is typed before that would be overwritten.
    with gr.Row(elem_classes="train", visible=False) as whole:
        with gr.Column(scale=3, min_width=300, elem_id="form"):
            info = "A starting point that sets everything but your model and data, unless it names them."
            preset = gr.Dropdown(names, label="Preset", info=info, filterable=False, elem_id="preset")
            about = gr.HTML(elem_id="preset-about")
            changes = form_changes.draw_changes()
            keeper = preset_keeper.draw_presets()
            form = forms.draw(data_choices(workspace))
            with form.fold_with("lora.target_modules"):
                modules = module_choice.draw_modules()
        with gr.Column(scale=1, min_width=280, elem_classes="beside"):
            # What is wrong stands under the button, which must not move away from the pointer that pressed it.
            start.render()
            summary = gr.HTML(elem_id="form-summary", visible=False)
            checks = gr.HTML(elem_id="checks", visible=False)
            anyway = gr.Button("Start anyway", size="lg", visible=False, elem_id="start-anyway")
            card = plan_card.draw()
            with gr.Accordion("As a config file", open=False):
                upload = gr.UploadButton("Open a config file…", file_types=[".yaml", ".yml"], size="sm")
                yaml = gr.Code(language="yaml", show_label=False, interactive=False, max_lines=24, elem_id="form-yaml")
    reported = gr.State(ReportedProblems())
    parts = (upload, summary, card, checks, start, anyway, yaml, reported, keeper, modules)
    return TrainView(whole, form, preset, about, changes, *parts)


def _keep(view: TrainView, studio: Studio) -> None:
    """Each change is kept and shown for what it comes to; a load of the page brings the kept form back."""
    workspace = studio.workspace

    def changed(preset: str | None, reported: ReportedProblems, *raws: Any) -> Updates:
        without_preset = left_preset(workspace, preset, raws)
        if without_preset is None:
            about = {view.about: _about(presets(workspace).get(preset or ""), raws)} if preset else {}
            updates = _look(view, studio, _read(raws, workspace), reported)
            return updates | about | _kept(view, workspace, preset, raws)
        # Only what changes is written: the model's name may still be being typed.
        origin = f"Preset {preset} is for the built-in model"
        written = {
            item.widget: new
            for item, old, new in zip(view.form.fields, raws, without_preset, strict=True)
            if old != new
        }
        updates = _look(view, studio, _read(without_preset, workspace), reported)
        filled = {view.preset: gr.Dropdown(value=None), view.about: "", **updates, **written}
        return filled | _recorded(view, workspace, origin, (None, raws), (None, without_preset))

    def restore() -> Updates:
        preset, raws = read_draft(workspace)
        updates = _show(view, studio, preset, raws) | form_changes.reopen(view.changes, workspace)
        return {**updates, view.whole: gr.Row(visible=True)}

    def recount() -> Updates:
        return plan_card.updates(view.card, _planned(studio, _read(read_draft(workspace)[1], workspace)))

    inputs = [view.preset, view.reported, *view.form.widgets]
    gr.on(view.form.edits, changed, inputs, view.outputs, trigger_mode="always_last", **QUIET)
    gr.on(None, restore, None, [*view.outputs, view.whole], **QUIET)
    tab = view.whole.parent
    assert isinstance(tab, gr.Tab)  # what the data tab counted since is known when this one is opened again
    tab.select(recount, None, view.card.outputs, **IN_TURN, **QUIET)


def _fill(view: TrainView, shared: Shared, studio: Studio) -> None:
    """A preset, a config file, the data tab, an earlier run or a change that saves memory writes into the form."""
    workspace = studio.workspace

    def use_preset(name: str, *raws: Any) -> Updates:
        filled = with_preset(raws, presets(workspace)[name].values())
        return show(name, filled, f"Preset {name}", (read_draft(workspace)[0], raws))

    def open_file(path: str, preset: str | None, *raws: Any) -> Updates:
        try:
            settings = read_yaml(Path(path))
        except StudioError as error:
            return {view.summary: gr.HTML(html.problem(error), visible=True)}
        filled = forms.overlay(forms.shown(Config()), forms.known_values(settings))
        fields, general = forms.beside_fields(problems_of(settings))
        reported = ReportedProblems(tuple(fields), tuple(general))
        return show(None, filled, f"Config file {Path(path).name}", (preset, raws), reported)

    def change(settings: Mapping[str, Any], values: Sequence[Any]) -> Updates:
        preset, *raws = values
        return show(preset, forms.overlay(raws, settings), "Your choice", (preset, raws))

    def fetch(reported: ReportedProblems, *raws: Any) -> Updates:
        form = _read(raws, workspace)
        try:
            if isinstance(form, Config):
                fetch_numbers(form, studio.inspector)
        except StudioError as error:
            return {view.card.error_box: gr.HTML(html.problem(error), visible=True)}
        return _look(view, studio, form, reported)

    def show(
        preset: str | None,
        raws: Sequence[Any],
        origin: str,
        before: FormState,
        reported: ReportedProblems | None = None,
    ) -> Updates:
        filled = _show(view, studio, preset, raws, reported)
        return filled | _recorded(view, workspace, origin, before, (preset, raws))

    def renamed(preset: str | None, raws: Sequence[Any]) -> Updates:
        return _show(view, studio, preset, raws) | _kept(view, workspace, preset, raws)

    widgets = view.form.widgets
    whole = [view.preset, *widgets]
    of_model = [view.form.widget("model.name"), view.form.widget("model.revision")]
    module_choice.wire_modules(view.modules, studio.inspector, of_model, whole, view.outputs, change)
    preset_keeper.wire_presets(view.keeper, workspace, view.preset, widgets, view.outputs, forms.read, renamed)
    plan_card.wire(view.card, [view.preset, *widgets], view.outputs, change, QUIET)
    view.card.fetch.click(fetch, [view.reported, *widgets], view.outputs, trigger_mode="once", api_visibility="private")
    # A dropdown's `input` also fires when it is left without a choice; `select` only when an option is chosen.
    view.preset.select(use_preset, whole, view.outputs, **QUIET)
    view.upload.upload(open_file, [view.upload, *whole], view.outputs, **QUIET)
    form_changes.wire_changes(view.changes, workspace, view.preset, widgets, view.outputs, show)
    _take_over(view, shared, workspace, show)


def _take_over(view: TrainView, shared: Shared, workspace: Workspace, show: Callable[..., Updates]) -> None:
    """What other tabs hand over: settings on top of the form, or a whole config. The notice of changes is in sight."""

    def use_data(handover: Handover, preset: str | None, *raws: Any) -> Updates:
        _, settings, origin = handover
        filled = forms.overlay(raws, settings)
        without_preset = left_preset(workspace, preset, filled, settings)
        if without_preset is not None:
            origin += f" (preset {preset} is for the built-in model)"
        after = (preset, filled) if without_preset is None else (None, without_preset)
        return show(*after, origin, (preset, raws)) | {view.start: gr.Button(interactive=True)}

    def use_config(handover: Handover, preset: str | None, *raws: Any) -> Updates:
        _, settings, origin = handover
        return show(None, forms.overlay(forms.shown(Config()), settings), origin, (preset, raws))

    inputs = [view.preset, *view.form.widgets]
    events = (
        shared.data.change(use_data, [shared.data, *inputs], [*view.outputs, view.start], **IN_TURN, **QUIET),
        shared.form.change(use_config, [shared.form, *inputs], view.outputs, **QUIET),
    )
    for event in events:
        event.then(None, js=theme.call("showChanges"), api_visibility="private")


def _start(view: TrainView, shared: Shared, studio: Studio) -> None:
    """Start checks first what would make the run fail; a run whose memory will hardly do asks once more."""
    starter = Starter(studio.supervisor)

    def start(reported: ReportedProblems, *raws: Any) -> Iterator[Updates]:
        yield {view.checks: gr.HTML(html.progress("Checking data, model, memory and disk"), visible=True)}
        form = _read(raws, studio.workspace)
        try:
            if isinstance(form, ConfigError):
                raise form
            report = check_before_start(form, studio.workspace, studio.inspector, busy=bool(studio.supervisor.busy()))
        except StudioError as error:
            yield refused(error, reported, form)
            return
        if report.state in (FAILED, ASK):
            holders = beside(studio) if report.state == ASK else ""
            updates = {view.checks: gr.HTML(plan_words.checks(report) + holders, visible=True)}
            yield {**updates, view.anyway: gr.Button(visible=report.state == ASK)}
            return
        yield begin(reported, form)

    def start_anyway(reported: ReportedProblems, *raws: Any) -> Updates:
        return begin(reported, _read(raws, studio.workspace))

    def refused(error: StudioError, reported: ReportedProblems, form: Config | ConfigError) -> Updates:
        if isinstance(error, ConfigError):
            reported.paths, reported.general = tuple(item.path for item in error.problems), ()
            return _look(view, studio, form, reported)
        return {view.summary: gr.HTML(html.problem(error), visible=True), view.checks: gr.HTML(visible=False)}

    def begin(reported: ReportedProblems, form: Config | ConfigError) -> Updates:
        try:
            if isinstance(form, ConfigError):
                raise form
            run_id = starter.start(form, studio.workspace.policy.owner_id)
        except StudioError as error:
            return refused(error, reported, form)
        with contextlib.suppress(StudioError):  # a full disk: the run was started all the same
            form_changes.clear(view.changes, studio.workspace)
        reported.paths = reported.general = ()
        updates = {**_look(view, studio, form, reported), view.changes.row: gr.Row(visible=False)}
        return {**updates, shared.run: run_id, shared.tabs: gr.Tabs(selected="runs")}

    for button, handler in ((view.start, start), (view.anyway, start_anyway)):
        clicked = button.click(
            handler,
            [view.reported, *view.form.widgets],
            [*view.outputs, shared.run, shared.tabs],
            trigger_mode="once",
            show_progress="minimal",
            show_progress_on=button,
            api_visibility="private",
        )
        clicked.then(None, js=theme.call("showProblems"), api_visibility="private")


def beside(studio: Studio) -> str:
    """What else holds memory that a run could have, and how it is given back."""
    evaluating = bool(studio.supervisor.working(EVALUATE))
    return (CHAT_HELD if studio.chat.running else "") + (EVALUATION_HELD if evaluating else "")


def _show(
    view: TrainView, studio: Studio, preset: str | None, raws: Sequence[Any], reported: ReportedProblems | None = None
) -> Updates:
    """The whole form filled anew, with the files that are there now."""
    workspace = studio.workspace
    available, files = presets(workspace), data_choices(workspace)
    updates = {
        item.widget: gr.Dropdown(choices=files, value=raw) if item.setting.path in forms.FILES else raw
        for item, raw in zip(view.form.fields, raws, strict=True)
    }
    return {
        **updates,
        view.preset: gr.Dropdown(choices=list(available), value=preset),
        view.about: _about(available.get(preset or ""), raws),
        **preset_keeper.updates(view.keeper, workspace, preset),
        **_look(view, studio, _read(raws, workspace), reported or ReportedProblems()),
    }


def _kept(view: TrainView, workspace: Workspace, preset: str | None, raws: Sequence[Any]) -> Updates:
    """Keeps the form as it is; where that is not possible, says so, and the form goes on."""
    try:
        save_draft(workspace, preset, raws)
    except StudioError as error:
        return {view.summary: gr.HTML(html.problem(error), visible=True)}
    return {}


def _recorded(view: TrainView, workspace: Workspace, origin: str, before: FormState, after: FormState) -> Updates:
    """Keeps a form that the page filled, and shows what changed; where it can't be kept, says so."""
    try:
        save_draft(workspace, *after)
        return form_changes.record(view.changes, workspace, origin, before, after[1])
    except StudioError as error:
        return {view.summary: gr.HTML(html.problem(error), visible=True)}


def _read(raws: Sequence[Any], workspace: Workspace) -> Config | ConfigError:
    """The config of the form, or what is wrong with it: read once for all that an event shows of it."""
    try:
        return checked(raws, workspace)
    except ConfigError as error:
        return error


def _planned(studio: Studio, form: Config | ConfigError) -> Plan | None:
    """What the form comes to; None while some settings are not right."""
    if isinstance(form, ConfigError):
        return None
    try:
        look = studio.looks.last(studio.workspace)
        return plan(form, studio.workspace, look, busy=bool(studio.supervisor.busy()))
    except PatternError:  # an expression too slow for this very model: its checks tell so at the start
        return None


def _look(view: TrainView, studio: Studio, form: Config | ConfigError, reported: ReportedProblems) -> Updates:
    """What the form comes to, and of its problems those that were told and are still there."""
    if isinstance(form, ConfigError):
        problems, yaml, noted = form.problems, "# Some settings are not right yet.", {}
    else:
        cuda = recent_devices()[0].kind == "cuda"
        problems, yaml, noted = list(machine_conflicts(form, cuda=cuda)), to_yaml(form), forms.notes(form)
    card = plan_card.updates(view.card, _planned(studio, form))  # first: a start may be refused meanwhile
    fields, _ = forms.beside_fields(problems)
    reported.paths = tuple(path for path in reported.paths if path in fields)
    in_sight = {path: message for path, message in fields.items() if path in reported.paths}
    words = summary(in_sight, reported.general)
    return {
        **card,
        view.checks: gr.HTML(visible=False),
        view.anyway: gr.Button(visible=False),
        view.yaml: yaml,
        view.reported: reported,
        view.summary: gr.HTML(words, visible=bool(words)),
        **forms.line_updates(view.form, in_sight, noted),
    }


def checked(raws: Sequence[Any], workspace: Workspace) -> Config:
    """The config of the form, with files that are there and may be read. Raises `ConfigError` with every problem."""
    config = forms.read(raws)
    problems = []
    try:
        workspace.policy.check_request({"model": config.model.name, "revision": config.model.revision})
    except StudioError as error:
        problems.append(Problem("model.name", error.message, config.model.name))
    for path, name in (
        ("data.train_file", config.data.train_file),
        ("data.validation_file", config.data.validation_file),
    ):
        if name and not is_there(name, workspace):
            problems.append(Problem(path, "there is no such file; choose one, or upload it on the Data tab", name))
    if problems:
        raise ConfigError(problems)
    return config


def problems_of(settings: Mapping[str, Any]) -> list[Problem]:
    """Everything wrong with the settings of a config file."""
    try:
        parse(settings)
    except ConfigError as error:
        return error.problems
    return []


def summary(fields: Mapping[str, str], general: Sequence[str]) -> str:
    """All that is wrong in one place, by the titles of the fields."""
    lines = [f"{forms.title_of(path)}: {message}" for path, message in fields.items()]
    parts = []
    if lines:
        head = "One setting is not right:" if len(lines) == 1 else f"{len(lines)} settings are not right:"
        parts.append(html.notice(head, "\n".join(lines), "error"))
    if general:
        parts.append(html.notice("Not taken from the file:", "\n".join(general), "warning"))
    return "".join(parts)


def with_preset(raws: Sequence[Any], overlay: Mapping[str, Any]) -> list[Any]:
    """The form of a preset; model and data stay as they are unless the preset names them."""
    overridden = forms.known_values(overlay)
    flat = {
        path: value for path, value in flatten(parse(overlay)).items() if path in overridden or path not in OWN_CHOICES
    }
    return forms.overlay(raws, flat)


def left_preset(
    workspace: Workspace, preset: str | None, raws: Sequence[Any], protected: Collection[str] = ()
) -> list[Any] | None:
    """The form without the values of a preset for the built-in model, where another model is chosen; else None.

    Its learning rate and epochs are for 2.5 M parameters. What was typed since, and the settings `given`, stay.
    """
    model = forms.values(raws)["model.name"]
    selected = presets(workspace).get(preset or "") if model != DEMO_MODEL else None
    if selected is None or is_for_model(selected, str(model)):
        return None
    overlaid = {
        path: forms.overlay(raws, {path: value}) for path, value in forms.known_values(selected.values()).items()
    }
    same = [
        path for path, filled in overlaid.items() if filled == list(raws) and path not in (*OWN_CHOICES, *protected)
    ]
    default = flatten(Config())
    return forms.overlay(raws, {path: default[path] for path in same})


def data_choices(workspace: Workspace) -> list[tuple[str, str]]:
    """Files that the form offers: the studio's own sets, then what was uploaded."""
    shipped = {name: item.title for name, item in shipped_data().items() if name not in NOT_TAUGHT}
    return forms.known_files(shipped, workspace.uploads())


def _about(preset: Preset | None, raws: Sequence[Any]) -> str:
    """What a chosen preset is for, and which of its own model and data the form has not."""
    if preset is None:
        return ""
    overridden, typed = forms.known_values(preset.values()), forms.values(raws)
    model, data = overridden.get("model.name"), overridden.get("data.train_file")
    notes = [preset.about]
    if model and model != typed["model.name"]:
        notes.append(f"Its settings are for {model}: check them for the model below.")
    elif model == DEMO_MODEL and data != typed["data.train_file"]:
        notes.append(f"Its epochs are for its own data ({data}): check them for the data below.")
    return html.quiet(" ".join(notes))
