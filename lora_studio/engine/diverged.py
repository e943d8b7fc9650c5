"""A training whose loss or weights are no numbers any more: nothing after that can be right, so it ends there."""

import math
from typing import Any

import torch

from lora_studio.config import Config


class DivergedError(ArithmeticError):
    """The loss, the validation loss (`what`) or the adapter's weights are not finite at a step."""

    def __init__(self, what: str, value: float, step: int) -> None:
        self.what, self.value, self.step = what, value, step
        shown = "infinite" if math.isinf(value) else "not a number (NaN)"
        super().__init__(f"The {what} is {shown} at step {step:,}.")


def check_number(what: str, value: float, step: int) -> None:
    """Raises `DivergedError` for a value that is not finite."""
    if not math.isfinite(value):
        raise DivergedError(what, value, step)


def check_weights(model: Any, step: int) -> None:
    """Raises `DivergedError` where a trained weight is not finite."""
    for parameter in model.parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise DivergedError("adapter", math.nan, step)


def explain(error: DivergedError, config: Config, dtype: str) -> dict[str, Any]:
    """What complete.json says of a run that ended so: why, and what helps."""
    half = dtype == "float16"
    why = "float16 ran over its largest number" if half else "a step was too large"
    if error.step <= 1 and error.what == "training loss":
        why = f"the base itself computes no number in {dtype}" if half else "the base itself computes no number"
    rate = float(f"{config.training.learning_rate / 3:.2g}")
    cures = ["set model.dtype to float32 (or auto, where the GPU has bfloat16)"] if half else []
    cures.append(f"lower training.learning_rate to {rate:g}")
    if config.training.max_grad_norm > 1:
        cures.append(f"lower training.max_grad_norm to 1 (it is {config.training.max_grad_norm:g})")
    return {
        "message": f"{error} Probably {why}. The training ended there: nothing learned after it can be right.",
        "hint": f"Start a new run: {', or '.join(cures)}. Checkpoints from before are still good to chat with.",
    }
