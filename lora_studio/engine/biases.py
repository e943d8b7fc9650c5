"""The base's own biases, and those that an adapter trained in their place (`lora.bias` all or lora_only).

peft trains and loads such biases inside the base: leaving the adapter out does not bring the base's own back. So
they are kept as numbers beside the model, and put in for as long as someone is to answer with them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

Biases = list[tuple[torch.nn.Parameter, torch.Tensor]]
"""Each bias of a model with the values it is to have."""


def biases_of(model: Any) -> Biases:
    """All biases of a model with the values that they have now."""
    return [
        (parameter, parameter.detach().clone())
        for name, parameter in model.named_parameters()
        if name.endswith(".bias") and ".lora_" not in name
    ]


def put_in(biases: Biases) -> None:
    """Gives the model these values for good."""
    for parameter, values in biases:
        parameter.data.copy_(values)


@contextmanager
def with_biases(biases: Biases) -> Iterator[None]:
    """The model has these values within, and its present ones again afterwards."""
    present: Biases = [(parameter, parameter.detach().clone()) for parameter, _ in biases]
    put_in(biases)
    try:
        yield
    finally:
        put_in(present)
