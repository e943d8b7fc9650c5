"""The batches of a run that several processes train: each takes its share of those that one process would make."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from lora_studio.data.encode import IGNORED
from lora_studio.engine import ranks
from lora_studio.engine.train.rows import Batch
from lora_studio.engine.train_script import EpochOrder


class RankBatches(torch.utils.data.Sampler[list[int]]):
    """This process's share of the batches that one process would make of the same order: of each `world.size` one.

    So a step has the same rows with any number of processes. All have as many batches: one without rows is empty.
    """

    def __init__(self, order: torch.utils.data.Sampler[int], batch_size: int, world: ranks.World) -> None:
        self.order, self.batch_size, self.world = order, batch_size, world

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.order, EpochOrder):
            self.order.set_epoch(epoch)

    def __len__(self) -> int:
        rows: Any = self.order
        return -(-len(rows) // (self.batch_size * self.world.size))

    def __iter__(self) -> Iterator[list[int]]:
        rows = list(self.order)
        for turn in range(len(self)):
            start = (turn * self.world.size + self.world.rank) * self.batch_size
            yield rows[start : start + self.batch_size]


class RankLoader(torch.utils.data.DataLoader[Any]):
    """The batches of `RankBatches`. An empty one becomes `blank`: a row that trains nothing, so that all keep step."""

    def __init__(
        self, dataset: Any, batches: RankBatches, collate: Callable[[list[Any]], Batch], pin: bool, workers: int
    ) -> None:
        def with_blank(rows: list[Any]) -> Batch:
            return collate(rows) if rows else blank(collate([dataset[0]]))

        super().__init__(dataset, batch_sampler=batches, collate_fn=with_blank, pin_memory=pin, num_workers=workers)

    def set_epoch(self, epoch: int) -> None:
        shares: Any = self.batch_sampler
        shares.set_epoch(epoch)


def blank(batch: Batch) -> Batch:
    """The batch without a trained token."""
    if "labels" in batch:
        return {**batch, "labels": torch.full_like(batch["labels"], IGNORED)}
    return {name: torch.zeros_like(of) if name.endswith("completion_mask") else of for name, of in batch.items()}


def is_blank(batch: Batch) -> bool:
    return not bool((batch["labels"] != IGNORED).any() if "labels" in batch else batch["completion_mask"].any())


def tokens_of(batch: Batch) -> int:
    """The tokens of a batch, as trl counts them."""
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["position_ids"].shape[1]


def unshared(tensor: torch.Tensor) -> torch.Tensor:
    """What gathering comes to in one process."""
    return tensor.reshape(1) if tensor.dim() == 0 else tensor
