"""How well base and adapters predict answers that are given: loss and right tokens of each row, nothing generated.

The rows' tokens are those of training, from the one data path; a row's sums are over its trained tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_studio.data.encode import IGNORED, Example
from lora_studio.engine.difference import MOST_SCORES, groups_of, log_probabilities, tensors_of
from lora_studio.engine.loaded import LoadedModel


@dataclass(frozen=True, slots=True)
class Forced:
    """A row's loss in nats, and how many of its answer's tokens the model would have written next."""

    loss: float
    right_tokens: int
    expected_tokens: int


@torch.no_grad()
def forced_scores(loaded: LoadedModel, column: str | None, rows: Sequence[Example]) -> list[Forced]:
    """Scores of one column (None is the base) for each row, in their order."""
    vocabulary = loaded.model.config.get_text_config().vocab_size
    found: list[Forced] = []
    before = loaded.apart[column].scores_before if column in loaded.apart else 0
    with loaded.answering_as(column) as model:
        for group in groups_of(rows, vocabulary):
            sums = torch.zeros(len(group), 3, dtype=torch.float64)
            for part in _measure(model, group, max(1, MOST_SCORES // vocabulary), before):
                sums += part
            found += [Forced(loss, int(right), int(tokens)) for loss, right, tokens in sums.tolist()]
    return found


def _measure(model: Any, group: Sequence[Example], most: int, before: int) -> Iterator[torch.Tensor]:
    """Loss, right tokens and tokens of each row, [rows, 3], for so many positions at a time as may be in memory.

    The model's scores begin with those of `before` virtual tokens.
    """
    ids, labels, mask = tensors_of(group)
    places = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().flatten()
    for some in places.split(max(1, most // len(group))):
        end = int(some[-1]) + 1  # what comes after can't be seen from here: it is left out
        wanted = labels[:, some + 1]
        scores = log_probabilities(model, {"input_ids": ids[:, :end], "attention_mask": mask[:, :end]}, some + before)
        wanted = wanted.to(scores.device)
        trained = wanted != IGNORED
        chosen = scores.gather(2, wanted.clamp(min=0)[..., None])[..., 0].double()
        losses = torch.where(trained, -chosen, 0.0).sum(dim=1)
        right = (trained & (scores.argmax(dim=-1) == wanted)).sum(dim=1).double()
        yield torch.stack([losses, right, trained.sum(dim=1).double()], dim=1).cpu()
