"""The search for a learning rate: how the rate rises, where the loss falls, and what is suggested.

The range test of Smith (2017, arXiv:1506.01186): the rate rises exponentially over a few steps of training, and the
loss of each step is read against the rate of the step before, which it is the result of.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_studio.config.compute import FSDP
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.jobs.events import StepLogged
from lora_studio.units import figure, float_text

LOWEST, HIGHEST = 1e-7, 1e-1
"""Between which rates the search goes."""
MIN_STEPS, MAX_STEPS, SHARE = 40, 100, 0.05
"""A search takes a share of the run's steps, within these bounds: fewer points make no curve."""
WEIGHT = 0.7
"""What remains of the past at each point of the smoothed loss (an exponential moving average, without bias)."""
DIVERGED = 4.0
"""The search ends where the smoothed loss is so many times the lowest: fastai's rule (`LRFinder`)."""
BELOW_LOWEST = 10.0
"""The suggestion is so many times below the rate of the lowest smoothed loss: fastai's rule ("minimum / 10")."""
MIN_FALL = 0.02
"""A loss that falls by a smaller share than this says nothing of the rate."""


def search_steps(run_steps: int) -> int:
    """How many steps a search takes for a run of so many steps."""
    return max(MIN_STEPS, min(MAX_STEPS, math.ceil(SHARE * run_steps)))


def growth(steps: int) -> float:
    """By what the rate is multiplied from one step to the next, so that the last step has the highest."""
    return float((HIGHEST / LOWEST) ** (1 / max(1, steps - 1)))


def smoothed(losses: Sequence[float], weight: float = WEIGHT) -> list[float]:
    """The moving average of losses; one that is not finite ends it."""
    result: list[float] = []
    total = weights = 0.0
    for loss in losses:
        if not math.isfinite(loss):
            break
        total = weight * total + (1 - weight) * loss
        weights = weight * weights + (1 - weight)
        result.append(total / weights)
    return result


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the losses so far say that higher rates are of no use."""
    curve = smoothed(losses)
    return len(curve) < len(losses) or (len(curve) > 1 and curve[-1] > DIVERGED * min(curve))


def as_searched(config: Config) -> Config:
    """The config of a search for this one: in one process, with the same effective batch. Raises `StudioError` where
    one process can't hold the base."""
    compute, training = config.compute, config.training
    if compute.strategy == FSDP:
        raise StudioError(
            "A learning-rate search runs in one process, and this base is shared out among several.",
            "Search with compute.strategy balanced.",
        )
    if compute.world_size == 1:
        return config
    accumulation = training.gradient_accumulation_steps * compute.world_size
    return config.model_copy(
        update={
            "training": training.model_copy(update={"gradient_accumulation_steps": accumulation}),
            "compute": compute.model_copy(update={"processes": "1", "device": compute.device.partition(",")[0]}),
        }
    )


@dataclass(frozen=True, slots=True)
class RateCurve:
    """Rates with the loss after a step at each, as measured and smoothed; `suggestion` is None where the losses say
    nothing, and `words` say why, or by which rule it was found."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smooth: tuple[float, ...]
    suggestion: float | None
    words: str


def rate_curve(steps: Sequence[StepLogged]) -> RateCurve:
    """What the logged steps of a search come to."""
    rates = [before.learning_rate for before in steps[:-1]]
    losses = [after.loss for after in steps[1:]]
    smooth = smoothed(losses)
    suggestion, words = _suggested(rates, smooth)
    return RateCurve(tuple(rates), tuple(losses), tuple(smooth), suggestion, words)


def _suggested(rates: Sequence[float], smooth: Sequence[float]) -> tuple[float | None, str]:
    """A tenth of the rate at which the smoothed loss is lowest, as fastai does: there the loss still falls, and is not
    about to rise. `benchmarks/lr_finder.py` measures how well it trains."""
    if len(smooth) < 3:
        return None, "Too few steps were measured."
    lowest = min(range(len(smooth)), key=lambda place: smooth[place])
    if smooth[0] - smooth[lowest] < MIN_FALL * abs(smooth[0]):
        return None, "The loss did not fall at any rate, so there is nothing to suggest."
    rate = rates[lowest] / BELOW_LOWEST
    suggestion = float(f"{rate:.1e}")
    return suggestion, (
        f"{float_text(suggestion)} is a tenth of the rate at which the smoothed loss is lowest "
        f"({figure(smooth[lowest])} at {float_text(float(f'{rates[lowest]:.1e}'))})."
    )
