"""What the form comes to on this machine: the plan of the run, and the recipes that fit it."""

from collections.abc import Sequence
from typing import Any

from lora_studio.config.parsing import ConfigError
from lora_studio.config.sections import Config
from lora_studio.ui import form as forms
from lora_studio.ui.components import Updates
from lora_studio.ui.studio import Studio
from lora_studio.ui.train import card as plan_card
from lora_studio.ui.train import picker, recipes
from lora_studio.ui.train.drafts import FormState
from lora_studio.ui.train.layout import TrainView
from lora_studio.ui.train.plan import Plan, form_plan


def in_plan(view: TrainView, studio: Studio, state: FormState, config: Config | ConfigError) -> Updates:
    """What depends on data, model and device: facts of both, recipes, steps, time and memory."""
    preset, raws = state
    planned = planned_of(studio, config)
    now = situation_of(studio, raws, planned)
    return {
        **plan_card.updates(view.card, planned),
        **picker.updates(view.picker, config if isinstance(config, Config) else None, planned),
        view.cards: recipes.markup(now, preset, raws),
    }


def planned_of(studio: Studio, config: Config | ConfigError) -> Plan | None:
    """What the form comes to, with what the Data tab found."""
    seen = studio.looks.last(studio.workspace)
    return form_plan(config, studio.workspace, seen, busy=bool(studio.supervisor.busy()))


def situation_of(studio: Studio, raws: Sequence[Any], planned: Plan | None) -> recipes.Situation:
    """What recipes are chosen by; the format of the rows is known where the data tab looked at this data."""
    seen = studio.looks.last(studio.workspace)
    shape = seen.shape if seen and seen.settings.get("data.train_file") == forms.values(raws)["data.train_file"] else ""
    return recipes.situation(raws, planned, shape)
