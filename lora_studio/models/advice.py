"""The changes of settings that save the most memory, with what each costs; and more epochs for few rows.

Every change is computed with the estimate that the page shows, so the form confirms what was promised.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_studio.config.fields import SettingValues
from lora_studio.config.parsing import contradictions
from lora_studio.config.sections import Config
from lora_studio.models.accelerators import DEVICE_KINDS, FOUR_BIT, OPTIMIZER_8BIT, missing
from lora_studio.models.memory import Estimate, estimate, settled, with_settings
from lora_studio.models.shape import Architecture, architecture, read_config

SHOWN = 3
FEW_STEPS = 100
"""After fewer optimizer steps an adapter hardly changes the answers."""
MAX_ADVISED_EPOCHS = 30
"""More passes over the same rows make a model repeat them."""
WORTH_IT = 0.01  # of the whole: smaller savings are not worth a person's attention


@dataclass(frozen=True, slots=True)
class Change:
    """A change of settings, by path: what it does, what it costs, and the bytes it saves.

    `kind` is the same for changes of the same setting.
    """

    kind: str
    title: str
    cost: str
    settings: Mapping[str, Any]
    saves: int = 0

    @property
    def flags(self) -> str:
        """The same for the command line."""
        return " ".join(f"--{path} {str(value).lower()}" for path, value in self.settings.items())


def best_changes(config: Config, model: Architecture, device: str, longest: int | None = None) -> list[Change]:
    """The three changes that save the most, the largest saving first; fewer where fewer would help.

    `config` has its checkpointing settled (`memory.settled`).
    """
    now = estimate(config, model, device, longest).total
    changes = []
    for change in _changes(config, device, longest):
        after = estimate(with_settings(config, change.settings), model, device, longest).total
        if now - after > WORTH_IT * now:
            changes.append(Change(change.kind, change.title, change.cost, change.settings, now - after))
    return sorted(changes, key=lambda change: -change.saves)[:SHOWN]


def more_epochs(config: Config, steps: int | None) -> Change | None:
    """The change after which a run of so few `steps` takes enough of them; None where they are enough, where a number
    of steps is set, or where as many epochs are set as can be advised."""
    training = config.training
    if not steps or steps >= FEW_STEPS or training.max_steps > 0:
        return None
    epochs = min(MAX_ADVISED_EPOCHS, math.ceil(FEW_STEPS * training.num_train_epochs / steps))
    if epochs <= training.num_train_epochs:
        return None
    return Change("epochs", f"Set epochs to {epochs}", "a longer run", {"training.num_train_epochs": float(epochs)})


def _changes(config: Config, device: str, longest: int | None) -> Iterator[Change]:
    """Everything that makes this config smaller and goes with the rest of it, what costs least first."""
    for change in _smaller(config, device, longest):
        if not any(contradictions(with_settings(config, change.settings))):
            yield change


def _smaller(config: Config, device: str, longest: int | None) -> Iterator[Change]:
    training = config.training
    if not training.gradient_checkpointing:
        settings: SettingValues = {"training.gradient_checkpointing": True}
        yield Change("checkpointing", "Turn gradient checkpointing on", "about a third more time per step", settings)
    rows, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
    if rows > 1:
        halved = rows // 2
        settings = {
            "training.per_device_train_batch_size": halved,
            "training.gradient_accumulation_steps": max(1, round(rows * steps / halved)),
        }
        cost = "same effective batch size"
        yield Change("rows", f"Batch size {halved} instead of {rows}", cost, settings)
    small_optimizer = DEVICE_KINDS[device].is_gpu and not missing(device, OPTIMIZER_8BIT)
    if small_optimizer and training.optim.startswith("adamw_torch"):
        yield Change("optimizer", "Use an 8-bit optimizer", "almost none", {"training.optim": "adamw_8bit"})
    if config.model.quantization != "4bit" and not missing(device, FOUR_BIT):
        cost = "slower steps and a quantized base"
        yield Change("quantization", "Load the base in 4-bit", cost, {"model.quantization": "4bit"})
    length = min(config.data.max_length, longest or config.data.max_length)
    if length >= 128:
        yield Change(
            "length",
            f"Max length of {length // 2:,} tokens",
            "longer rows are truncated",
            {"data.max_length": length // 2},
        )
    if config.lora.r >= 8:
        half = config.lora.r // 2
        settings = {"lora.r": half, "lora.lora_alpha": max(1, config.lora.lora_alpha // 2)}
        yield Change("rank", f"LoRA rank {half} instead of {config.lora.r}", "a smaller adapter", settings)
    if config.lora.target_modules.strip() == "all-linear":
        cost = "a smaller adapter, on attention only"
        yield Change("targets", "Target attention only", cost, {"lora.target_modules": "attention"})


def changes_that_fit(
    config: Config, model: Architecture, device: str, available: int, *, longest: int | None = None, factor: float = 1.0
) -> Change | None:
    """The mildest change after which the run fits: one alone, else several together; None where nothing does.

    `factor` corrects what changes with the batch by what was measured: 1.3 for a run that needed 1.3 times as much.
    """
    start = settled(config, model, device, available, longest)
    for change in _changes(start, device, longest):
        if _fits(with_settings(start, change.settings), model, device, available, longest, factor):
            return _measured(start, change, model, device, longest)
    together: SettingValues = {}
    titles: dict[str, str] = {}
    current = start
    while mild := next(_useful(current, model, device, longest), None):
        together |= mild.settings
        titles[mild.kind] = mild.title
        current = with_settings(start, together)
        if _fits(current, model, device, available, longest, factor):
            words = Change("several", "; ".join(titles.values()), "smallest changes first", together)
            return _measured(start, words, model, device, longest)
    return None


def correction(
    config: Config, checkpointing: bool | None, device: str, *, needed: int, available: int
) -> Change | None:
    """The mildest change that fits after a run of `config` ran out of memory; None where nothing does.

    The run needed at least `needed`, and in any case more than there is; that the estimate was lower is laid to what
    grows with the batch. `checkpointing` is what the run chose.
    """
    numbers = read_config(config.model.name, config.model.revision)
    model = architecture(numbers) if numbers else None
    if model is None:
        return None
    if checkpointing is not None:
        config = with_settings(config, {"training.gradient_checkpointing": checkpointing})
    config = settled(config, model, device, available)
    now = estimate(config, model, device)
    moving = max(1, now.parts["activations"] + now.parts["logits"])
    short = max(needed, round(1.05 * available)) - now.total
    return changes_that_fit(config, model, device, available, factor=max(1.0, 1 + short / moving))


def _useful(config: Config, model: Architecture, device: str, longest: int | None) -> Iterator[Change]:
    """The changes that save anything worth it, what costs least first."""
    now = estimate(config, model, device, longest).total
    for change in _changes(config, device, longest):
        after = estimate(with_settings(config, change.settings), model, device, longest).total
        if now - after > WORTH_IT * now:
            yield change


def _fits(config: Config, model: Architecture, device: str, available: int, longest: int | None, factor: float) -> bool:
    return corrected(estimate(config, model, device, longest), factor) <= 0.95 * available


def corrected(estimate: Estimate, factor: float) -> float:
    """The total with the parts that follow the batch multiplied by what a measurement said of them."""
    moving = estimate.parts["activations"] + estimate.parts["logits"]
    return estimate.total + (factor - 1) * moving


def _measured(config: Config, change: Change, model: Architecture, device: str, longest: int | None) -> Change:
    before = estimate(config, model, device, longest).total
    after = estimate(with_settings(config, change.settings), model, device, longest).total
    return Change(change.kind, change.title, change.cost, change.settings, before - after)
