"""trl's SFTTrainer and DPOTrainer for examples that already have labels.

They differ from trl in the order of rows, which depends only on seed and epoch, and in the content of checkpoints.
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
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput
from trl import DPOTrainer, SFTTrainer

from lora_studio.data.encode import IGNORED
from lora_studio.data.examples import Examples, Pairs
from lora_studio.engine.models.adapter import save_as_difference
from lora_studio.engine.train.callbacks import COMPARED, ReportCallback, check_weights
from lora_studio.engine.train.rows import Batch, LabelMeter
from lora_studio.engine.train_script import EpochOrder, WithoutRouterLoss, loraplus_optimizer
from lora_studio.models.adapter_files import CARD_FILE
from lora_studio.runs.checkpoints import write_manifest
from lora_studio.workspace import RunFolder, write_atomically

AS_TRAINED = "as_trained"
"""Folder of a checkpoint with the weights to resume from, if the saved adapter's differ from them."""


def as_dataset(examples: Examples | Pairs, folder: Path) -> Dataset:
    """The trainer's table, memory-mapped from an unnamed file in `folder`."""
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
    initial_state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Saves adapter weights and config, tokenizer with chat template, and studio.json to `folder`.

    `initial_state` are initial weights taken out of the base, see `lora_init.initial_lora_state`.
    """
    model.save_pretrained(str(folder), save_embedding_layers=False, selected_adapters=["default"])
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    if initial_state is not None:
        save_as_difference(folder, initial_state)
    tokenizer.save_pretrained(str(folder))
    write_atomically(folder / CARD_FILE, json.dumps(card, indent=2, ensure_ascii=False) + "\n")


def save_final_adapter(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    card: Mapping[str, Any],
    run: RunFolder,
    initial_state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Saves the run's final adapter atomically: written to a temporary folder, then renamed."""
    shutil.rmtree(run.unfinished_adapter, ignore_errors=True)
    save_adapter(model, tokenizer, card, run.unfinished_adapter, initial_state)
    shutil.rmtree(run.adapter, ignore_errors=True)
    run.unfinished_adapter.rename(run.adapter)


class TrainerMixin(WithoutRouterLoss):
    """The changes common to both trainers; precedes trl's class among the bases.

    `sequences` are the columns of a row that the model reads.
    """

    sequences: tuple[str, ...] = ("input_ids",)
    packing = False

    def __init__(
        self,
        *,
        card: Mapping[str, Any],
        initial_state: Mapping[str, torch.Tensor] | None = None,
        loraplus_lr_ratio: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.card = card
        self.initial_state = initial_state
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
        """Logs a loss that is not finite at once, so that `ReportCallback` ends the training."""
        loss = super().training_step(*args, **kwargs)
        if not bool(torch.isfinite(loss)):
            self.control.should_log = True
        return loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        with torch.random.fork_rng():
            return super().evaluation_loop(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        check_weights(self.model, self.state.global_step)
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer: Any = self.processing_class
        adapted: Any = self.model
        save_adapter(adapted, tokenizer, self.card, folder, self.initial_state)
        if self.initial_state is not None:
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
        """The folder in a checkpoint with the weights as this model had them."""
        folder = Path(str(checkpoint))
        return folder / AS_TRAINED if self.initial_state is not None else folder

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.optimizer is not None:
            follow_schedule(self.optimizer, self.lr_scheduler)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card: trl's would contain local paths."""


class StudioTrainer(TrainerMixin, SFTTrainer):
    """SFTTrainer with the differences that the module's docstring names."""

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
        self, model: Any, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
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


class Collator:
    """Pads pairs on the right into one batch: the chosen answers, then the rejected ones."""

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


class PreferenceTrainer(TrainerMixin, DPOTrainer):
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
        self, model: Any, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        self._pairs.append(len(inputs["input_ids"]) // 2)
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Means over pairs; trl's are over batches."""
        self._pairs = []
        output = super().evaluation_loop(*args, **kwargs)
        metrics = dict(output.metrics or {})
        for theirs, ours in COMPARED.items():
            batches = zip(self._metrics["eval"][theirs], self._pairs, strict=True)
            metrics[f"eval_{ours}"] = sum(mean * pairs for mean, pairs in batches) / sum(self._pairs)
        return output._replace(metrics=metrics)


def starts_as_base(model: Any) -> bool:
    """Whether a model with its new adapter equals the base: LoRA's B matrix is zero everywhere."""
    second = [weight for name, weight in model.named_parameters() if "lora_B" in name or "lora_embedding_B" in name]
    return not any(bool(weight.any()) for weight in second)


def follow_schedule(optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
    """Sets the next step's learning rate to that of the schedule.

    A checkpoint restores the old schedule's rate, which is the same only for a run of the same length.
    """
    if isinstance(scheduler, LambdaLR):
        rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        scheduler._last_lr = [base * share(scheduler.last_epoch) for base, share in rates]
        for group, rate in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate


def save_where_stopped(trainer: TrainerMixin, report: ReportCallback) -> None:
    """Saves a checkpoint of the last finished step, unless there is one."""
    step = trainer.state.global_step
    if step > 0 and report.saved_step != step:
        if report.after_step is not None:
            report.after_step.restore()  # as a save between two steps would have found them
        model: Any = trainer.model
        trainer._save_checkpoint(model, trial=None)
        report.on_save(trainer.args, trainer.state, trainer.control)
