"""Recipes: the usual ways to train, as cards that fit model, data and device, and say what they change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_studio.config.presets import Preset, presets
from lora_studio.models.accelerators import FOUR_BIT
from lora_studio.models.hardware import Device, recent_devices
from lora_studio.ui import form as forms
from lora_studio.ui import html
from lora_studio.ui.train.filling import OWN_CHOICES, preset_settings, with_recipe
from lora_studio.ui.train.plan import Plan
from lora_studio.units import GIB
from lora_studio.workspace import DEMO_MODEL, shipped_data

QLORA_BY_MEMORY = ((20, "gpu-24gb"), (12, "gpu-16gb"), (0, "gpu-8gb"))
"""From this much memory (GiB), the preset for a GPU."""
PAIRS = "preference"
"""The built-in set of preference pairs, and the format of such rows."""
OWN_WORDS = (("model.name", "model"), ("data.train_file", "dataset"))
MAX_LISTED = 4
"""Changes on a card; the others are counted."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A card. `preset` is what it fills the form with, all but the settings `without`."""

    preset: str
    title: str
    about: str
    without: tuple[str, ...] = ()
    unavailable: str = ""
    suggested: bool = False


@dataclass(frozen=True, slots=True)
class Situation:
    """What recipes are chosen by: the base model, whether the data are preference pairs, the device, and whether the
    model fits in 16 bits (None where that is not known)."""

    model: str
    pairs: bool
    device: Device
    fits: bool | None


def situation(raws: Sequence[Any], planned: Plan | None, shape: str) -> Situation:
    """`shape` is the format of the rows as the data tab found it, "" where nobody looked."""
    typed = forms.values(raws)
    data = str(typed["data.train_file"])
    memory = planned.memory if planned else None
    full = memory is not None and typed["model.quantization"] == "none"
    pairs = shape == PAIRS or (data == PAIRS and PAIRS in shipped_data())
    return Situation(
        str(typed["model.name"]), pairs, recent_devices()[0], memory.verdict == "fits" if full and memory else None
    )


def recipes(now: Situation) -> tuple[Recipe, ...]:
    """The four cards, in the same order wherever the page is opened; one of them is suggested."""
    on_gpu, demo = now.device.is_gpu, now.model == DEMO_MODEL
    in_4bit = on_gpu and FOUR_BIT not in now.device.lacks
    suggested = "preference" if now.pairs else "demo" if demo else "qlora" if in_4bit and now.fits is False else "lora"
    memory = now.device.memory_total / GIB
    qlora = next(name for least, name in QLORA_BY_MEMORY if memory >= least)
    # Pairs of one's own are not replaced by the built-in ones.
    own_pairs = ("data.train_file",) if now.pairs else ()
    plain = "16-bit base model, for a GPU that holds it." if on_gpu else "For a machine without a GPU: short rows."
    four_bit = (
        f"4-bit base model, for a GPU with {memory:.0f} GiB."
        if in_4bit
        else "4-bit base model: a quarter of the memory."
    )
    return (
        Recipe("demo", "Demo", "Built-in model learns to talk like a pirate.", suggested=suggested == "demo"),
        Recipe("lora" if on_gpu else "cpu", "LoRA", plain, suggested=suggested == "lora"),
        Recipe(
            qlora,
            "QLoRA for this GPU" if in_4bit else "QLoRA",
            four_bit,
            unavailable="" if in_4bit else "Not on Apple GPUs" if on_gpu else "Needs a GPU",
            suggested=suggested == "qlora",
        ),
        Recipe(
            "demo-preference" if demo else "preference",
            "Preference (DPO)",
            "Learns from pairs: chosen and rejected answers.",
            own_pairs,
            suggested=suggested == "preference",
        ),
    )


def filled(recipe: Recipe, raws: Sequence[Any]) -> list[Any]:
    """The form after a click on a card."""
    return with_recipe(raws, presets()[recipe.preset], recipe.without)


def effects(recipe: Recipe, raws: Sequence[Any]) -> list[str]:
    """What a click on the card would change in the form as it is: "Epochs 8", model and data first."""
    paths = list(forms.to_draft(raws))
    after = filled(recipe, raws)
    changed = [path for path, old, new in zip(paths, raws, after, strict=True) if old != new]
    named = preset_settings(presets()[recipe.preset])[1]
    ordered = sorted(changed, key=lambda path: (path not in OWN_CHOICES, path not in named))
    values = forms.values(after)
    return [f"{forms.title_of(path)} {html.shorten(forms.in_words(path, values[path]), 24)}" for path in ordered]


def markup(now: Situation, selected: str | None, raws: Sequence[Any]) -> str:
    """The cards; `selected` is the preset that the form began with."""
    cards = []
    for recipe in recipes(now):
        changes = [] if recipe.unavailable else effects(recipe, raws)
        more = len(changes) - MAX_LISTED
        if more == 1:
            more = 0
        listed = changes[: MAX_LISTED if more > 0 else None]
        cards.append((recipe, _use(recipe, selected, raws), listed, max(more, 0)))
    return html.render("train.recipes", cards)


def _use(recipe: Recipe, selected: str | None, raws: Sequence[Any]) -> str:
    """Whether the form is the recipe's, in words; "" where it began with another one."""
    if recipe.preset != selected:
        return ""
    values, named = preset_settings(presets()[recipe.preset])
    typed = forms.values(raws)
    others = [word for path, word in OWN_WORDS if path in named and values[path] != typed[path]]
    if others:
        return f"In use, other {' and '.join(others)}"
    return "In use, changed" if any(typed[path] != values[path] for path in named) else "In use"


def about(preset: Preset | None, raws: Sequence[Any]) -> str:
    """What a chosen preset is for, and which of its own model and data the form has not."""
    if preset is None:
        return ""
    typed = forms.values(raws)
    values, named = preset_settings(preset)
    model = values["model.name"] if "model.name" in named else None
    data = values["data.train_file"] if "data.train_file" in named else None
    notes = [preset.about]
    if model and model != typed["model.name"]:
        notes.append(f"Its settings are for {model}: check them for the model above.")
    elif model == DEMO_MODEL and data != typed["data.train_file"]:
        notes.append(f"Its epochs are for its own data ({data}): check them for the data above.")
    return html.quiet(" ".join(notes))
