"""The learning-rate schedule in whole steps, and more epochs than a run had planned.

A run that is lengthened follows the schedule of a run that had that length from the start.
"""

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments

SCHEDULE = {"lr_scheduler_type", "warmup_ratio", "warmup_steps", "num_cycles", "decay_ratio", "min_lr_rate"}
"""The settings of training that `scheduler_settings` takes."""


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
    """Steps of the warm-up, and what the scheduler of that name takes beside it (`lr_scheduler_kwargs`).

    A warm-up given in steps wins over its share, which leaves the last step at full rate at least. The first step of a
    warm-up has the rate 0: a run of one step has none.
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
    """Adds epochs to a trainer's plan; where it counts steps, as many as those epochs have."""
    if args.max_steps > 0:
        args.max_steps += math.ceil(extra_epochs * steps_an_epoch)
    else:
        args.num_train_epochs += extra_epochs


def planned_steps(trainer: Trainer, extra_epochs: float) -> int:
    """How many steps a trainer makes in all, once epochs were added to its plan."""
    loader = trainer.get_train_dataloader()
    steps_an_epoch = trainer.set_initial_training_values(trainer.args, loader)[1]
    lengthen(trainer.args, extra_epochs, steps_an_epoch)
    return trainer.set_initial_training_values(trainer.args, loader)[-1]


def follow_schedule(optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
    """Gives the next step the learning rate that the schedule has for it.

    A checkpoint brings the rate that the old schedule had; only for a run of the same length is that the same number.
    """
    if isinstance(scheduler, LambdaLR):
        rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        scheduler._last_lr = [base * share(scheduler.last_epoch) for base, share in rates]
        for group, rate in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate


class RandomNumbers:
    """Where torch's random numbers stood at a moment, on the CPU and on the GPUs."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._gpus:
            torch.cuda.set_rng_state_all(self._gpus)
