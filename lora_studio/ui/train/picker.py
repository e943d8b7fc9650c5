"""Model and data: what is offered to choose from, and what is known of the chosen ones."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.config.sections import Config
from lora_studio.models.catalog import LocalModel, describe, local_models
from lora_studio.models.hardware import Device, recent_devices
from lora_studio.ui import form as forms
from lora_studio.ui import html, theme
from lora_studio.ui.components import Updates
from lora_studio.ui.train.card import VERDICTS, short
from lora_studio.ui.train.plan import Plan, fit_of
from lora_studio.workspace import Workspace, shipped_data


@dataclass(frozen=True)
class Picker:
    """What stands under both fields. `fetch` reads the config of a model of the Hub."""

    model_facts: gr.HTML
    fetch: gr.Button
    error_box: gr.HTML
    data_facts: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        return [self.model_facts, self.fetch, self.error_box, self.data_facts]


def model_choices(workspace: Workspace, config: Config | None) -> list[tuple[str, str]]:
    """Models on this machine as (label, value); the label has size and whether a run with these settings fits."""
    device = recent_devices()[0]
    return [(_label(model, config, device), model.name) for model in local_models(workspace)]


def _label(model: LocalModel, config: Config | None, device: Device) -> str:
    parts = [model.name, model.origin]
    if model.parameters:
        parts.append(short(model.parameters))
    fit = fit_of(model.name, config, device) if config else ""
    return forms.SEPARATOR.join([*parts, VERDICTS[fit][1].lower()] if fit else parts)


def data_choices(workspace: Workspace) -> list[tuple[str, str]]:
    """Files that the form offers: the studio's own sets, then what was uploaded."""
    return forms.known_files({name: item.title for name, item in shipped_data().items()}, workspace.uploads())


def model_facts(config: Config, planned: Plan) -> str:
    """Size and fit of the chosen model."""
    model = describe(config.model.name)
    facts = [f"{short(model.parameters)} parameters" if model.parameters else ""]
    facts.append(f"{html.size(model.disk_bytes)} on disk" if model.disk_bytes else "")
    memory = planned.memory
    if memory is None:
        return html.render(
            "train.source", ["Not on this machine: downloaded at the start"], ("warn", "size unknown"), ""
        )
    fit = VERDICTS[memory.verdict]
    words = f"{fit[1].lower()}: {html.gib(memory.estimate.total)} of {html.gib(memory.available)}"
    return html.render("train.source", [fact for fact in facts if fact], (fit[0], words), "")


def data_facts(planned: Plan) -> str:
    """Rows and tokens of the chosen data, how they are read, and the way to their preview."""
    lengths, facts = planned.lengths, []
    if planned.rows is not None:
        facts.append(f"{planned.rows:,} training rows")
        if lengths:
            about = "" if lengths.counted else "≈ "
            facts.append(
                f"{about}{round(planned.rows * lengths.mean, -2 if not lengths.counted else None):,.0f} tokens"
            )
    if lengths and lengths.longest:
        facts.append(f"at most {lengths.longest:,} a row")
    return html.render("train.source", facts or ["Rows not counted yet"], None, planned.reading, True)


def updates(picker: Picker, config: Config | None, planned: Plan | None) -> Updates:
    """What stands under both fields; nothing while settings are not valid."""
    if config is None or planned is None:
        return {picker.error_box: gr.HTML(visible=False)}
    return {
        picker.model_facts: model_facts(config, planned),
        picker.data_facts: data_facts(planned),
        picker.fetch: gr.Button(visible=planned.memory is None),
        picker.error_box: gr.HTML(visible=False),
    }


def draw_model() -> tuple[gr.HTML, gr.Button, gr.HTML]:
    facts = gr.HTML(elem_id="model-facts")
    fetch = gr.Button("Look up size", size="sm", visible=False, elem_id="plan-fetch")
    return facts, fetch, gr.HTML(visible=False, elem_id="plan-error")


def draw_data() -> gr.HTML:
    return gr.HTML(js_on_load=theme.on_load("clicks"), elem_id="data-facts")
