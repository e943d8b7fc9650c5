"""trl's DPOTrainer as we use it: pairs come ready as tokens with our masks, and the reference is the base.

Everything else is as in trainer.py: order of rows, random numbers, what is saved.
"""

from typing import Any

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput
from trl import DPOTrainer

from lora_studio.data.encode import IGNORED
from lora_studio.engine.report import COMPARED
from lora_studio.engine.trainer import Ways


class Collator:
    """Pairs as one batch, padded on the right: the better sides, then the worse ones."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, pairs: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        ids = [pair[name] for name in ("chosen_ids", "rejected_ids") for pair in pairs]
        labels = [pair[name] for name in ("chosen_labels", "rejected_labels") for pair in pairs]
        shape = len(ids), max(map(len, ids))
        input_ids = torch.full(shape, self.pad_token_id)
        attention_mask, completion_mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for row, (tokens, trained) in enumerate(zip(ids, labels, strict=True)):
            input_ids[row, : len(tokens)] = torch.tensor(tokens)
            attention_mask[row, : len(tokens)] = 1
            completion_mask[row, : len(tokens)] = torch.tensor(trained) != IGNORED
        return {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}


class PreferenceTrainer(Ways, DPOTrainer):
    """DPOTrainer with the differences that the module's docstring names."""

    sequences = ("chosen_ids", "rejected_ids")

    def __init__(self, **kwargs: Any) -> None:
        self._pairs: list[int] = []
        super().__init__(data_collator=Collator(kwargs["processing_class"].pad_token_id), **kwargs)
        adapted: Any = self.model
        if starts_as_base(adapted):  # trl's copy of the first adapter changes nothing: the bare base is the same
            adapted.delete_adapter("ref")

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _get_eval_sampler(self, eval_dataset: Any) -> LengthGroupedSampler:
        generator = torch.Generator().manual_seed(self.args.seed)
        lengths = self.row_lengths(eval_dataset)
        return LengthGroupedSampler(self.args.eval_batch_size, lengths=lengths, generator=generator)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        self._pairs.append(len(inputs["input_ids"]) // 2)
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Means over pairs, where trl's are over batches."""
        self._pairs = []
        output = super().evaluation_loop(*args, **kwargs)
        metrics = dict(output.metrics or {})
        for theirs, ours in COMPARED.items():
            batches = zip(self._metrics["eval"][theirs], self._pairs, strict=True)
            metrics[f"eval_{ours}"] = sum(mean * pairs for mean, pairs in batches) / sum(self._pairs)
        return output._replace(metrics=metrics)


def starts_as_base(model: Any) -> bool:
    """Whether a model with its fresh adapter answers exactly as the base: LoRA's second matrix is zero everywhere."""
    second = [weight for name, weight in model.named_parameters() if "lora_B" in name or "lora_embedding_B" in name]
    return not any(bool(weight.any()) for weight in second)
