"""The learning-rate schedule in whole steps, and extra epochs beyond a run's plan.

An extended run follows the schedule of a run that had that length from the start.
"""

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments

SCHEDULE = {"lr_scheduler_type", "warmup_ratio", "warmup_steps", "num_cycles", "decay_ratio", "min_lr_rate"}
"""The training settings that `scheduler_settings` takes."""


TrainerArguments = dict[str, Any]
"""Arguments of the trainers' configs by transformers' and trl's names."""


def scheduler_settings(
    total_steps: int,
    *,
    lr_scheduler_type: str,
    warmup_ratio: float,
    warmup_steps: int | None,
    num_cycles: int,
    decay_ratio: float,
    min_lr_rate: float,
) -> tuple[int, TrainerArguments]:
    """The warm-up steps, and the scheduler's own arguments (`lr_scheduler_kwargs`).

    Warm-up steps take precedence over the ratio, which leaves at least the last step at full rate. The first step of a
    warm-up has a rate of 0, so a run of one step has none.
    """
    rising = min(math.ceil(warmup_ratio * total_steps), total_steps - 1) if warmup_steps is None else warmup_steps
    rising = rising if total_steps > 1 else 0
    falling = min(math.ceil(decay_ratio * total_steps), max(total_steps - rising, 0))
    own: dict[str, TrainerArguments] = {
        "cosine_with_restarts": {"num_cycles": num_cycles},
        "cosine_with_min_lr": {"min_lr_rate": min_lr_rate},
        "warmup_stable_decay": {"num_decay_steps": falling, "decay_type": "linear"},
    }
    return rising, own.get(lr_scheduler_type, {})


def lengthen(args: TrainingArguments, extra_epochs: float, steps_an_epoch: int) -> None:
    """Adds epochs to a trainer's plan, or their number of steps if it counts steps."""
    if args.max_steps > 0:
        args.max_steps += math.ceil(extra_epochs * steps_an_epoch)
    else:
        args.num_train_epochs += extra_epochs


def planned_steps(trainer: Trainer, extra_epochs: float) -> int:
    """The total number of steps, including extra epochs."""
    loader = trainer.get_train_dataloader()
    steps_an_epoch = trainer.set_initial_training_values(trainer.args, loader)[1]
    lengthen(trainer.args, extra_epochs, steps_an_epoch)
    return trainer.set_initial_training_values(trainer.args, loader)[-1]


def follow_schedule(optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
    """Sets the next step's learning rate to that of the schedule.

    A checkpoint restores the old schedule's rate, which is the same only for a run of the same length.
    """
    if isinstance(scheduler, LambdaLR):
        rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        scheduler._last_lr = [base * share(scheduler.last_epoch) for base, share in rates]
        for group, rate in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate


class RandomNumbers:
    """A snapshot of torch's random state on the CPU and the GPUs."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._gpus:
            torch.cuda.set_rng_state_all(self._gpus)
