"""The train tab's fields: basics with a line each, and all other settings in a drawer of seven groups with a search."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from lora_studio.config.compute import LOCAL
from lora_studio.config.parsing import irrelevant, unmet
from lora_studio.config.settings import Setting, described, search, settings
from lora_studio.errors import StudioError
from lora_studio.jobs.launchers import Target
from lora_studio.jobs.targets import TARGET_KINDS, Targets
from lora_studio.ui import form as forms
from lora_studio.ui import html, theme
from lora_studio.ui.components import QUIET, Updates
from lora_studio.workspace import Workspace

GROUPS = ("Model", "Data", "LoRA", "Optimizer", "Schedule", "Evaluation", "Compute")
PLACES: Mapping[str, tuple[str, str]] = {
    "model": ("Model", ""),
    "data": ("Data", ""),
    "lora": ("LoRA", ""),
    "training": ("Optimizer", ""),
    "preference": ("Optimizer", "Preference loss (DPO and KTO)"),
    "evaluation": ("Evaluation", ""),
    "tracking": ("Evaluation", "Logging"),
    "generation": ("Evaluation", "Generation"),
    "compute": ("Compute", "Device and processes"),
    "lora/Variants": ("LoRA", "Variants"),
    "training/Schedule": ("Schedule", ""),
    "training/Checkpoints": ("Schedule", "Checkpoints"),
    "training/Regularization": ("Optimizer", "Regularization"),
    "training.max_steps": ("Schedule", ""),
    "training/Speed and memory": ("Compute", "Speed and memory"),
    "training.packing": ("Data", "Batches"),
    "training.padding_free": ("Data", "Batches"),
    "training.train_sampling_strategy": ("Data", "Batches"),
    "data.validation_file": ("Data", "Validation"),
    "data.validation_fraction": ("Data", "Validation"),
    "data.split_seed": ("Data", "Validation"),
    "data.max_eval_samples": ("Data", "Validation"),
}
"""Group and part of the drawer, by section, by section and group of the schema, or by path; the last one counts."""
UNITS = {"training.num_train_epochs": "passes"}
"""Units of basics whose titles name none."""
METHOD = "training.method"
"""Choosing it also sets the learning rate, where that is a default."""
MAX_MATCHES = 6


@dataclass(frozen=True)
class Field:
    """A setting and its widget."""

    setting: Setting
    widget: Any


@dataclass
class SettingsForm:
    """All fields by path, the drawer with its groups and its search, and what serves the fields in the browser."""

    service: gr.HTML
    by_path: dict[str, Field] = field(default_factory=dict)
    folds: dict[str, gr.Accordion] = field(default_factory=dict)
    drawer: gr.Accordion | None = None
    query: gr.Textbox | None = None
    matches: gr.HTML | None = None

    def add(self, path: str, choices: Sequence[tuple[str, str]] = ()) -> Any:
        """Draws the widget of a setting where the caller stands."""
        setting = BY_PATH[path]
        widget = forms.draw_widget(setting, forms.element_id(path), choices)
        self.by_path[path] = Field(setting, widget)
        return widget

    @property
    def fields(self) -> list[Field]:
        """In the order of the schema, in which values go to and fro."""
        return [self.by_path[setting.path] for setting in settings()]

    @property
    def widgets(self) -> list[Any]:
        return [item.widget for item in self.fields]

    def widget(self, path: str) -> Any:
        """The widget of a setting."""
        return self.by_path[path].widget

    @property
    def edits(self) -> list[Any]:
        """The events of a person changing something but the method; none comes from values that the page puts in."""
        selectors = (gr.Dropdown, gr.Checkbox)
        widgets = (item.widget for item in self.fields if item.setting.path != METHOD)
        return [self.service.input, *(widget.input for widget in widgets if isinstance(widget, selectors))]

    @property
    def parts(self) -> list[Any]:
        """Every component that an update of the form may touch."""
        return [*self.widgets, self.service, *self.openers]

    @property
    def openers(self) -> list[Any]:
        """The drawer and its groups."""
        return [self.drawer, *self.folds.values()]


BY_PATH = {setting.path: setting for setting in settings()}


def service() -> SettingsForm:
    """The form before any field is drawn; it is drawn in the block of class "train" that holds all fields."""
    script = theme.on_load(
        "form", tips=tooltips(), units={forms.element_id(path): unit for path, unit in UNITS.items()}
    )
    return SettingsForm(gr.HTML({}, html_template="<i></i>", js_on_load=script, elem_classes="nothing"))


def tooltips() -> dict[str, list[str]]:
    """What the "?" of a field shows, by element id: its hint, and its key in the config."""
    return {forms.element_id(setting.path): [setting.help, setting.path] for setting in settings()}


def basics() -> list[str]:
    """The settings with a line each; model, data and name have places of their own."""
    apart = (forms.MODEL, "data.train_file", "title")
    return [setting.path for setting in settings() if setting.basic and setting.path not in apart]


def place_of(setting: Setting) -> tuple[str, str]:
    """The group of the drawer that holds a setting, and the part of it."""
    keys = (setting.section, f"{setting.section}/{setting.group}", setting.path)
    return [PLACES[key] for key in keys if key in PLACES][-1]


def part_id(group: str, part: str) -> str:
    return "part-" + "-".join(f"{group} {part}".lower().replace("(", "").replace(")", "").split())


def parts() -> dict[str, dict[str, list[Setting]]]:
    """The settings of the drawer by group and part."""
    folded: dict[str, dict[str, list[Setting]]] = {group: {} for group in GROUPS}
    for setting in settings():
        if not setting.basic:
            group, part = place_of(setting)
            folded[group].setdefault(part, []).append(setting)
    return folded


def draw_basics(form: SettingsForm) -> None:
    with gr.Column(elem_classes="lines"):
        for path in sorted(basics(), key=ORDER.index):
            form.add(path)


ORDER = (
    "training.method",
    "training.num_train_epochs",
    "training.learning_rate",
    "training.per_device_train_batch_size",
    "data.max_length",
    "lora.r",
)


@contextmanager
def drawer(form: SettingsForm, files: Sequence[tuple[str, str]]) -> Iterator[dict[str, gr.Accordion]]:
    """Draws the drawer; what the caller draws into a group inside this block stands after its fields."""
    with gr.Column(elem_classes="drawer"):
        form.query = gr.Textbox(
            placeholder="Search settings: alpha, cutoff_len, warmup …",
            label="Search settings",
            show_label=False,
            max_lines=1,
            elem_id="settings-search",
        )
        form.matches = gr.HTML(visible=False, js_on_load=theme.on_load("matches"), elem_id="settings-matches")
        with gr.Accordion("All settings", open=False, elem_id="all-settings") as form.drawer:
            for group, by_part in parts().items():
                with gr.Accordion(group, open=False, elem_classes="grid") as form.folds[group]:
                    for part, folded in by_part.items():
                        if part:
                            gr.HTML(html.render("train.part", part), elem_id=part_id(group, part))
                        for setting in folded:
                            form.add(setting.path, files)
            yield form.folds


def lines(
    form: SettingsForm,
    raws: Sequence[Any],
    errors: Mapping[str, str],
    noted: Mapping[str, str],
    changed: Mapping[str, str],
) -> Updates:
    """What stands beside and under the fields: errors before notes, what differs from the recipe (by path, with the
    recipe's value), and which fields have no effect. Folded groups that hold an error are opened."""
    texts = {path: {"words": words, "wrong": False} for path, words in noted.items()}
    texts |= {path: {"words": html.visible(words), "wrong": True} for path, words in errors.items()}
    value = {
        "lines": {forms.element_id(path): line for path, line in texts.items()},
        "changed": {forms.element_id(path): words for path, words in changed.items()},
        "hidden": hidden(forms.values(raws), errors),
    }
    updates: Updates = {form.service: value}
    for path in errors:
        updates |= opened(form, path)
    return updates


def hidden(values: Mapping[str, Any], errors: Mapping[str, str]) -> list[str]:
    """Element ids of the fields without an effect, but for those that hold an error, and of parts that are empty so."""
    gone = {path for path in irrelevant(values) if path not in errors and not BY_PATH[path].basic}
    ids = [forms.element_id(path) for path in gone]
    for group, by_part in parts().items():
        ids += [part_id(group, part) for part, folded in by_part.items() if part and {s.path for s in folded} <= gone]
    return sorted(ids)


def opened(form: SettingsForm, path: str) -> Updates:
    """Opens the drawer and the group of a setting that is folded."""
    setting = BY_PATH[path]
    if setting.basic:
        return {}
    return {form.drawer: gr.Accordion(open=True), form.folds[place_of(setting)[0]]: gr.Accordion(open=True)}


@dataclass(frozen=True, slots=True)
class Match:
    """A setting that a search found: where it is, and why it has no effect now ("" if it has one)."""

    path: str
    title: str
    place: str
    reason: str

    @property
    def id(self) -> str:
        return forms.element_id(self.path)


def matches(query: str, raws: Sequence[Any]) -> list[Match]:
    """What a search finds, settings that have an effect first."""
    values = forms.values(raws)
    listed = []
    for setting in search(query):
        place = " › ".join(part for part in place_of(setting) if part) if not setting.basic else "Basics"
        listed.append(Match(setting.path, setting.title, place, unmet(setting.path, values)))
    return sorted(listed, key=lambda match: bool(match.reason))[:MAX_MATCHES]


def matched(form: SettingsForm, query: str, raws: Sequence[Any], selected: str = "") -> Updates:
    """The list of matches, the first of them (or the one clicked) in sight: its group is opened."""
    if not query.strip():
        return {form.matches: gr.HTML("", visible=False)}
    listed = matches(query, raws)
    usable = [match for match in listed if not match.reason]
    best = next((match for match in usable if match.id == selected), usable[0] if usable else None)
    markup = html.render("train.matches", query.strip(), listed, best.id if best else "")
    return {form.matches: gr.HTML(markup, visible=True), **(opened(form, best.path) if best else {})}


@dataclass(frozen=True)
class TargetEditor:
    """The components that add, change, test and remove targets; only the owner sees them.

    `selected` is the target that is edited, or the kind of a new one; `fields` are the settings of each kind.
    """

    place: gr.Accordion
    selected: gr.Dropdown
    name: gr.Textbox
    columns: Mapping[str, gr.Column]
    fields: Mapping[str, Sequence[Field]]
    save: gr.Button
    test: gr.Button
    delete: gr.Button
    result_box: gr.HTML

    @property
    def widgets(self) -> list[Any]:
        return [item.widget for fields in self.fields.values() for item in fields]

    @property
    def parts(self) -> list[Any]:
        """Every component that an update may touch."""
        buttons = [self.test, self.delete, self.result_box]
        return [self.place, self.selected, self.name, *self.columns.values(), *self.widgets, *buttons]


def offered_targets(workspace: Workspace) -> tuple[Mapping[str, Target], gr.HTML]:
    """The targets that the caller may use, and what is wrong with their file."""
    try:
        return Targets(workspace).all(), gr.HTML(visible=False)
    except StudioError as error:
        return {}, gr.HTML(html.problem(error), visible=True)


NEW = "new "
"""Stands before a kind of target for one that is still to be named."""


def draw_targets() -> TargetEditor:
    with gr.Accordion("Edit targets", open=False, visible=False, elem_id="targets") as place:
        gr.HTML(html.quiet("Other places where jobs can run. Jobs there do not use the devices of this machine."))
        with gr.Row():
            selected = gr.Dropdown(label="Edit", filterable=False, elem_id="target-selected")
            name = gr.Textbox(label="Name", info="Letters, digits, dots, dashes.", max_lines=1, elem_id="target-name")
        columns, fields = {}, {}
        for kind, section in TARGET_KINDS.items():
            with gr.Column(visible=False, elem_classes="grid") as columns[kind]:
                listed = described(section)
                fields[kind] = [Field(item, forms.draw_widget(item, f"target-{kind}-{item.path}")) for item in listed]
        result_box = gr.HTML(visible=False, elem_id="target-result")
        with gr.Row(elem_classes="actions"):
            save = gr.Button("Save target", size="sm", elem_id="target-save")
            test = gr.Button("Test target", size="sm", visible=False, elem_id="target-test")
            delete = gr.Button("Delete target", size="sm", visible=False, elem_id="target-delete")
    return TargetEditor(place, selected, name, columns, fields, save, test, delete, result_box)


def edited(editor: TargetEditor, targets: Mapping[str, Target], selected: str | None = None) -> Updates:
    """The editor with a target, or with an empty one of the kind that `selected` names after `NEW`."""
    choices = [*((name, name) for name in targets), *((f"New {kind} target", f"{NEW}{kind}") for kind in TARGET_KINDS)]
    current = selected if selected in [value for _, value in choices] else choices[0][1]
    kind = current.removeprefix(NEW).partition(":")[0]
    target = targets.get(current) or TARGET_KINDS[kind]()
    exists = current in targets
    return {
        editor.selected: gr.Dropdown(choices=choices, value=current),
        editor.name: current.partition(":")[2] if exists else "",
        **{column: gr.Column(visible=name == kind) for name, column in editor.columns.items()},
        **{
            item.widget: forms.to_widget(item.setting, getattr(target, item.setting.key))
            for item in editor.fields[kind]
        },
        editor.test: gr.Button(visible=exists),
        editor.delete: gr.Button(visible=exists),
        editor.result_box: gr.HTML(visible=False),
    }


def wire_targets(editor: TargetEditor, workspace: Workspace, try_out: Callable[[str], str], field: gr.Dropdown) -> None:
    """`try_out` says whether jobs can run on a target; `field`, where a target is chosen, offers what there is."""

    targets = Targets(workspace)

    def select(selected: str) -> Updates:
        return edited(editor, targets.all(), selected)

    def values_of(kind: str, raws: Sequence[Any]) -> dict[str, object]:
        by_widget = dict(zip(editor.widgets, raws, strict=True))
        pairs = ((item.setting, by_widget[item.widget]) for item in editor.fields[kind])
        return {setting.key: forms.from_widget(setting, raw) for setting, raw in pairs}

    def save(selected: str, short: str, target: str, *raws: Any) -> Updates:
        kind = selected.removeprefix(NEW).partition(":")[0]
        name = f"{kind}:{short.strip()}"

        def act() -> str:
            targets.save(name, values_of(kind, raws))
            if selected != name and not selected.startswith(NEW):
                targets.delete(selected)
            return f"{name} is saved."

        return acted(act, name, target)

    def test(selected: str, target: str) -> Updates:
        return acted(lambda: try_out(selected), selected, target)

    def delete(selected: str, target: str) -> Updates:
        def act() -> str:
            targets.delete(selected)
            return f"{selected} is deleted. Jobs that run there continue."

        return acted(act, None, LOCAL if target == selected else target)

    def acted(act: Callable[[], str], selected: str | None, target: str) -> Updates:
        try:
            message = html.notice(act(), "", "good")
        except StudioError as error:
            return {editor.result_box: gr.HTML(html.problem(error), visible=True)}
        listed = targets.all()
        return {
            **edited(editor, listed, selected),
            field: gr.Dropdown(choices=forms.known_targets(listed), value=target),
            editor.result_box: gr.HTML(message, visible=True),
        }

    touched = [*editor.parts, field]
    editor.selected.input(select, editor.selected, editor.parts, **QUIET)
    inputs = [editor.selected, editor.name, field, *editor.widgets]
    editor.save.click(save, inputs, touched, trigger_mode="once", **QUIET)
    for button, handler in ((editor.test, test), (editor.delete, delete)):
        button.click(
            handler,
            [editor.selected, field],
            touched,
            trigger_mode="once",
            show_progress="minimal",
            show_progress_on=button,
            api_visibility="private",
        )
