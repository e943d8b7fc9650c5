"""The train tab's fields: basics with a line each, and all other settings in a drawer of seven groups with a search."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from lora_studio.config.parsing import irrelevant, unmet
from lora_studio.config.settings import Setting, search, settings
from lora_studio.ui import form as forms
from lora_studio.ui import html, theme
from lora_studio.ui.components import Updates

GROUPS = ("Model", "Data", "LoRA", "Optimizer", "Schedule", "Evaluation", "Compute")
PLACES: Mapping[str, tuple[str, str]] = {
    "model": ("Model", ""),
    "data": ("Data", ""),
    "lora": ("LoRA", ""),
    "training": ("Optimizer", ""),
    "preference": ("Optimizer", "Preference loss (DPO)"),
    "evaluation": ("Evaluation", ""),
    "tracking": ("Evaluation", "Logging"),
    "generation": ("Evaluation", "Generation"),
    "compute": ("Compute", ""),
    "lora/Variants": ("LoRA", "Variants"),
    "training/Schedule": ("Schedule", ""),
    "training/Checkpoints": ("Schedule", "Checkpoints"),
    "training/Regularization": ("Optimizer", "Regularization"),
    "training.max_steps": ("Schedule", ""),
    "training.packing": ("Data", "Batches"),
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
