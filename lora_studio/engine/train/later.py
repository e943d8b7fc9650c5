"""Numbers that stay on the device until they are logged, so that a training step never waits for the GPU.

trl reads its metrics off the device in every batch (`.item()`, five times in `SFTTrainer.compute_loss`), and each read
waits until the GPU has done all that was asked of it. Here they are tensors until the trainer logs.
"""

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch


class Later(torch.Tensor):
    """A tensor that is its own number: `item` gives it itself, and a question such as `> 0` is answered by True.

    What such questions guard are means over no token, which are 0: so is a quotient of two of these by 0.
    """

    def item(self) -> Any:
        return self

    def __bool__(self) -> bool:
        return True

    def __truediv__(self, other: Any) -> Any:
        quotient = super().__truediv__(other)
        return torch.where(other > 0, quotient, 0.0) if isinstance(other, Later) else quotient


@contextmanager
def later(accelerator: Any) -> Iterator[None]:
    """Inside, what trl gathers for its metrics from the processes is read later."""
    names = ("gather", "gather_for_metrics")
    replaced = {name: vars(accelerator)[name] for name in names if name in vars(accelerator)}
    before = {name: getattr(accelerator, name) for name in names}

    def postponed(gather: Callable[..., Any]) -> Callable[..., Any]:
        return lambda tensor, *args, **kwargs: gather(tensor, *args, **kwargs).detach().as_subclass(Later)

    vars(accelerator).update({name: postponed(gather) for name, gather in before.items()})
    try:
        yield
    finally:
        for name in names:
            del vars(accelerator)[name]
        vars(accelerator).update(replaced)


def read(metrics: MutableMapping[str, list[Any]]) -> None:
    """Replaces the tensors of a trainer's metrics by their numbers, with one read for each of their types."""
    places = [(values, at) for values in metrics.values() for at, value in enumerate(values) if torch.is_tensor(value)]
    kinds = {values[at].dtype for values, at in places}
    for kind in kinds:
        same = [(values, at) for values, at in places if torch.is_tensor(values[at]) and values[at].dtype is kind]
        plain = [values[at].as_subclass(torch.Tensor).reshape(()) for values, at in same]
        for (values, at), number in zip(same, torch.stack(plain).tolist(), strict=True):
            values[at] = number
