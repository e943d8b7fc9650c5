"""trl's trainers as we use them: examples come ready with labels, and what they save is what we hand out.

What differs from trl: the order of rows depends on seed and epoch alone (so that a resumed run sees the same rows),
evaluation leaves the random numbers of training untouched and is a plain mean over tokens, LoRA+ has its optimizer, and
every save holds the adapter with its tokenizer, template and `studio.json`, and nothing of the machine.
"""

import json
import mmap
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from lora_studio.adapter_files import CARD_FILE
from lora_studio.data.encode import IGNORED
from lora_studio.data.examples import Examples
from lora_studio.data.pairs import Pairs
from lora_studio.engine.diverged import check_weights
from lora_studio.engine.first_weights import save_as_difference
from lora_studio.engine.label_metrics import LabelMeter
from lora_studio.engine.lengthening import follow_schedule
from lora_studio.engine.standalone import EpochOrder, WithoutRouterLoss, loraplus_optimizer
from lora_studio.manifest import write_manifest
from lora_studio.workspace import RunFolder, write_atomically

AS_TRAINED = "as_trained"
"""Folder of a checkpoint with the weights to resume from, where those that are handed out differ from them."""


def as_dataset(examples: Examples | Pairs, folder: Path) -> Dataset:
    """The table that the trainer takes, memory-mapped from a nameless file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = examples.tables()
    first = next(tables)
    with tempfile.TemporaryFile(dir=folder) as file:
        with pa.ipc.new_stream(file, first.schema) as stream:
            for table in chain([first], tables):
                stream.write_batch(table)
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    rows = pa.ipc.open_stream(pa.BufferReader(pa.py_buffer(mapped))).read_all()
    return Dataset(InMemoryTable(rows), fingerprint=secrets.token_hex(8))


def save_adapter(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    card: Mapping[str, Any],
    folder: Path,
    taken_out: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Adapter weights and config, tokenizer with chat template, and studio.json into `folder`.

    `taken_out` are the first weights of an adapter that took them out of the base, see `first_weights.beginning`.
    """
    model.save_pretrained(str(folder), save_embedding_layers=False, selected_adapters=["default"])
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    if taken_out is not None:
        save_as_difference(folder, taken_out)
    tokenizer.save_pretrained(str(folder))
    write_atomically(folder / CARD_FILE, json.dumps(card, indent=2, ensure_ascii=False) + "\n")


def hand_out(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    card: Mapping[str, Any],
    run: RunFolder,
    taken_out: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """The run's finished adapter: written beside its place, so that there is the old one or the new one, never half."""
    shutil.rmtree(run.unfinished_adapter, ignore_errors=True)
    save_adapter(model, tokenizer, card, run.unfinished_adapter, taken_out)
    shutil.rmtree(run.adapter, ignore_errors=True)
    run.unfinished_adapter.rename(run.adapter)


class Ways(WithoutRouterLoss):
    """What the trainers of both methods do our way; stands before trl's class among the bases.

    `sequences` are the columns of a row that the model reads.
    """

    sequences: tuple[str, ...] = ("input_ids",)
    packing = False

    def __init__(
        self,
        *,
        card: Mapping[str, Any],
        taken_out: Mapping[str, torch.Tensor] | None = None,
        loraplus_lr_ratio: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.card = card
        self.taken_out = taken_out
        self.loraplus_lr_ratio = loraplus_lr_ratio
        super().__init__(**kwargs)

    def row_lengths(self, dataset: Dataset) -> list[int]:
        """The length of each row: that of its longest sequence."""
        columns = [pc.list_value_length(dataset.data.column(name)) for name in self.sequences]
        return pc.max_element_wise(*columns).to_pylist()

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        dataset: Any = train_dataset if train_dataset is not None else self.train_dataset
        grouped = self.args.train_sampling_strategy == "group_by_length" and not self.packing
        lengths = self.row_lengths(dataset) if grouped else None
        return EpochOrder(len(dataset), self.args.train_batch_size, self.args.seed, lengths)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.loraplus_lr_ratio is None or self.optimizer is not None:
            return super().create_optimizer(model)
        self.optimizer = loraplus_optimizer(self, self.loraplus_lr_ratio)
        return self.optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A loss that is no number is told at once, by a point of its own, at which `Report` ends the training."""
        loss = super().training_step(*args, **kwargs)
        if not bool(torch.isfinite(loss)):
            self.control.should_log = True
        return loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        with torch.random.fork_rng():
            return super().evaluation_loop(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        check_weights(self.model, self.state.global_step)
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer: Any = self.processing_class
        adapted: Any = self.model
        save_adapter(adapted, tokenizer, self.card, folder, self.taken_out)
        if self.taken_out is not None:
            adapted.save_pretrained(str(folder / AS_TRAINED), save_embedding_layers=False)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            write_manifest(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(str(self._as_trained(resume_from_checkpoint)), model)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        self.state.best_model_checkpoint = str(self._as_trained(best))
        super()._load_best_model()
        self.state.best_model_checkpoint = best

    def _as_trained(self, checkpoint: str | None) -> Path:
        """Where a checkpoint holds the weights that this model had."""
        folder = Path(str(checkpoint))
        return folder / AS_TRAINED if self.taken_out is not None else folder

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.optimizer is not None:
            follow_schedule(self.optimizer, self.lr_scheduler)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card: trl's would stand in the checkpoints with this machine's paths."""


class StudioTrainer(Ways, SFTTrainer):
    """SFTTrainer with the differences that this module's docstring names."""

    def __init__(self, *, meter: LabelMeter | None = None, **kwargs: Any) -> None:
        self.meter = meter
        self.packing = kwargs["args"].packing
        self._eval_nats = 0.0
        self._eval_tokens = 0
        super().__init__(**kwargs)
        if meter:
            adapted: Any = self.model
            meter.watch(adapted.get_base_model())

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        trained = int((inputs["labels"][..., 1:] != IGNORED).sum())
        if loss is not None and trained:  # the mean over no token is no number
            self._eval_nats += float(loss) * trained
            self._eval_tokens += trained
        if self.meter:
            self.meter.add(inputs)
        return loss, logits, labels

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        self._eval_nats, self._eval_tokens = 0.0, 0
        if self.meter:
            self.meter.begin()
        smoother, self.label_smoother = self.label_smoother, None  # smoothing is for learning, not for measuring
        output = super().evaluation_loop(*args, **kwargs)
        self.label_smoother = smoother
        metrics = dict(output.metrics or {})
        metrics["eval_loss"] = self._eval_nats / max(self._eval_tokens, 1)
        if self.meter:
            metrics |= {f"eval_{name}": value for name, value in self.meter.scores().items()}
        return output._replace(metrics=metrics)
