"""How the learning rate moves: a schedule's name and shares as whole steps, once the run's length is known."""

import math
from typing import Any

SCHEDULE = {"lr_scheduler_type", "warmup_ratio", "warmup_steps", "num_cycles", "decay_ratio", "min_lr_rate"}
"""The settings of training that `scheduler_settings` takes."""


def scheduler_settings(
    total_steps: int,
    *,
    lr_scheduler_type: str,
    warmup_ratio: float,
    warmup_steps: int | None,
    num_cycles: int,
    decay_ratio: float,
    min_lr_rate: float,
) -> tuple[int, dict[str, Any]]:
    """Steps of the warm-up, and what the scheduler of that name takes beside it (`lr_scheduler_kwargs`).

    A warm-up given in steps wins over its share, which leaves the last step at full rate at least. The first step of a
    warm-up has the rate 0: a run of one step has none.
    """
    rising = min(math.ceil(warmup_ratio * total_steps), total_steps - 1) if warmup_steps is None else warmup_steps
    rising = rising if total_steps > 1 else 0
    falling = min(math.ceil(decay_ratio * total_steps), max(total_steps - rising, 0))
    own: dict[str, dict[str, Any]] = {
        "cosine_with_restarts": {"num_cycles": num_cycles},
        "cosine_with_min_lr": {"min_lr_rate": min_lr_rate},
        "warmup_stable_decay": {"num_decay_steps": falling, "decay_type": "linear"},
    }
    return rising, own.get(lr_scheduler_type, {})
