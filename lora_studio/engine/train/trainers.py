"""trl's SFTTrainer, DPOTrainer and KTOTrainer for examples that already have labels.

They differ from trl in the order of rows, which depends only on seed and epoch, and in the content of checkpoints.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput
from trl import DPOTrainer, KTOTrainer, SFTTrainer

from lora_studio.config.sections import Config
from lora_studio.data.messages import IGNORED
from lora_studio.engine import ranks
from lora_studio.engine.accelerator import on_cpu
from lora_studio.engine.models.adapter import save_adapter
from lora_studio.engine.runtime import StopSignal
from lora_studio.engine.train import fused
from lora_studio.engine.train.callbacks import COMPARED, ReportCallback, check_weights
from lora_studio.engine.train.rows import Batch, LabelMeter, RankBatches, RankLoader, is_blank, tokens_of
from lora_studio.engine.train_script import (
    EpochOrder,
    PairCollator,
    UnpairedCollator,
    WithoutRouterLoss,
    loraplus_optimizer,
    without_needless_reference,
)
from lora_studio.runs.checkpoints import base_changed, last_whole_checkpoint, write_manifest
from lora_studio.workspace import RunFolder

AS_TRAINED = "as_trained"
"""Folder of a checkpoint with the weights to resume from, if the saved adapter's differ from them."""


class Later(torch.Tensor):
    """A tensor that is its own number: `item` gives it itself, and a question such as `> 0` is answered by True.

    trl reads its metrics off the device in every batch (`.item()`, five times in `SFTTrainer.compute_loss`), and each
    read waits until the GPU has done all that was asked of it. As these they stay tensors until the trainer logs.

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
def measured_later(accelerator: Any) -> Iterator[None]:
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


def read_measured(metrics: MutableMapping[str, list[Any]]) -> None:
    """Replaces the tensors of a trainer's metrics by their numbers, with one read for each of their types."""
    places = [(values, at) for values in metrics.values() for at, value in enumerate(values) if torch.is_tensor(value)]
    kinds = {values[at].dtype for values, at in places}
    for kind in kinds:
        same = [(values, at) for values, at in places if torch.is_tensor(values[at]) and values[at].dtype is kind]
        plain = [values[at].as_subclass(torch.Tensor).reshape(()) for values, at in same]
        for (values, at), number in zip(same, torch.stack(plain).tolist(), strict=True):
            values[at] = number


def unshared(tensor: torch.Tensor) -> torch.Tensor:
    """What gathering comes to in one process."""
    return tensor.reshape(1) if tensor.dim() == 0 else tensor


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
    """The changes common to the trainers; precedes trl's class among the bases.

    `sequences` are the columns of a row that the model reads. Several processes agree at the end of each batch on what
    one of them heard (a stop) or saw (a loss that is not finite); each measures its share of the validation rows alone,
    and all put together what they measured.
    """

    sequences: tuple[str, ...] = ("input_ids",)
    packing = False
    reads_later = False
    _metrics: Any
    _total_train_tokens: int

    def __init__(
        self,
        *,
        card: Mapping[str, Any],
        stop: StopSignal | None = None,
        initial_state: Mapping[str, torch.Tensor] | None = None,
        loraplus_lr_ratio: float | None = None,
        sharded: bool = False,
        **kwargs: Any,
    ) -> None:
        self.card = card
        self.sharded = sharded
        self.stop = stop or StopSignal()
        self.world = ranks.world()
        self.initial_state = initial_state
        self.loraplus_lr_ratio = loraplus_lr_ratio
        self.on_cpu = on_cpu()
        self._parameters: int | None = None
        super().__init__(**kwargs)
        if self.on_cpu and isinstance(self.model, PeftModel):
            fused.fuse(self.model)

    def row_lengths(self, dataset: Dataset) -> list[int]:
        """The length of each row: that of its longest sequence."""
        columns = [pc.list_value_length(dataset.data.column(name)) for name in self.sequences]
        return pc.max_element_wise(*columns).to_pylist()

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        dataset: Any = train_dataset if train_dataset is not None else self.train_dataset
        grouped = self.args.train_sampling_strategy == "group_by_length" and not self.packing
        lengths = self.row_lengths(dataset) if grouped else None
        return EpochOrder(len(dataset), self.args.train_batch_size, self.args.seed, lengths)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader[Any]:
        if not self.world.is_shared:
            return super().get_train_dataloader()
        order = self._get_train_sampler(self.train_dataset)
        return self._shared_out(self.train_dataset, order, self.args.train_batch_size, "Training")

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader[Any]:
        if not self.world.is_shared:
            return super().get_eval_dataloader(eval_dataset)
        rows: Any = self.eval_dataset
        order: Any = self._get_eval_sampler(rows) or torch.utils.data.SequentialSampler(rows)
        return self._shared_out(rows, order, self.args.eval_batch_size, "Evaluation")

    def _shared_out(self, dataset: Any, order: Any, batch_size: int, description: str) -> RankLoader:
        rows = self._remove_unused_columns(dataset, description=description)
        batches = RankBatches(order, batch_size, self.world)
        args = self.args
        return RankLoader(rows, batches, self.data_collator, args.dataloader_pin_memory, args.dataloader_num_workers)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.loraplus_lr_ratio is None or self.optimizer is not None:
            return super().create_optimizer(model)
        self.optimizer = loraplus_optimizer(self, self.loraplus_lr_ratio)
        return self.optimizer

    def counted_tokens(self, batch: Batch) -> int:
        """The tokens of a blank batch that trl counted with the others."""
        return tokens_of(batch)

    def training_step(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> torch.Tensor:
        """On the CPU logs a loss that is not finite at once, so that `ReportCallback` ends the training. A GPU would be
        waited for; there the next logged loss shows it."""
        shared = self.world.is_shared
        blank_tokens = 0
        if shared and is_blank(inputs):
            blank_tokens = self.counted_tokens(inputs)
            inputs.pop(fused.PLACES, None)  # those of the row that it was made of
        inputs = send_to_device(inputs, self.args.device, non_blocking=True)
        loss = super().training_step(model, inputs, *args, **kwargs).as_subclass(torch.Tensor)
        infinite: float = self.on_cpu and not bool(torch.isfinite(loss))
        if shared:
            stop = self.stop
            asked, overdue, infinite, tokens = ranks.total([stop.heard, stop.is_overdue, infinite, blank_tokens])
            stop.agree(asked=asked > 0, overdue=overdue > 0)
            self._total_train_tokens -= int(tokens)
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        if infinite:
            self.control.should_log = True
        return loss

    def compute_loss(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
        """trl's loss; what it measures beside it in training stays on the device until the next log, for a trainer that
        `reads_later`: one that never leaves a mean out by a number that it just measured."""
        if not (model.training and self.reads_later):
            return super().compute_loss(model, inputs, *args, **kwargs)
        with measured_later(self.accelerator):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        counted = {"num_tokens": [self._total_train_tokens]}  # an evaluation logs it too
        for metrics in (*self._metrics.values(), counted):
            read_measured(metrics)
        self._total_train_tokens = counted["num_tokens"][0]
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Batch) -> int:
        """transformers' estimate, which counts the parameters anew in every batch; here they are counted once."""
        if self._parameters is None:
            model: Any = self.model
            self._parameters = int(model.num_parameters(exclude_embeddings=True))
        ids = inputs.get("input_ids")
        return 0 if ids is None else 6 * ids.numel() * self._parameters

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        if not self.world.is_shared:
            with torch.random.fork_rng():
                return super().evaluation_loop(*args, **kwargs)
        with torch.random.fork_rng(), self._gathering(unshared), ranks.together(self.stop):
            self.gather_function = unshared
            output = super().evaluation_loop(*args, **kwargs)
        measured = self._metrics["eval"]
        parts = ranks.collect(dict(measured))
        for name in {name for part in parts for name in part} - {"num_tokens"}:
            measured[name] = [value for part in parts for value in part.get(name, [])]
        return output

    @contextmanager
    def _gathering(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
        """Inside, this is what trl's metrics put the values of all processes together with."""
        before, accelerator = self.accelerator.gather, vars(self.accelerator)
        accelerator["gather"] = gather
        try:
            yield
        finally:
            accelerator["gather"] = before

    def prediction_step(
        self, model: Any, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        if self.sharded:  # none may leave the others in the middle of a layer: all stop after the same batch
            self.stop.agree(asked=ranks.total([self.stop.heard])[0] > 0, overdue=False)
        if not (self.world.is_shared and is_blank(inputs)):
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        before = {name: list(values) for name, values in self._metrics["eval"].items()}
        output = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        self._metrics["eval"].clear()
        self._metrics["eval"].update(before)
        return output

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
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
        ranks.meet()  # each has saved its random numbers
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

    reads_later = True

    def __init__(self, *, meter: LabelMeter | None = None, **kwargs: Any) -> None:
        self.meter = meter
        self.packing = kwargs["args"].packing
        self._eval_nats = 0.0
        self._eval_tokens = 0
        super().__init__(**kwargs)
        if not (self.on_cpu or self.sharded or self.args.torch_compile) and isinstance(self.model, PeftModel):
            fused.KnownPlaces(self.model)
            self.data_collator = fused.WithPlaces(self.data_collator)
        if meter:
            adapted: Any = self.model
            meter.watch(adapted.get_base_model())

    def compute_loss(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
        """trl counts the tokens of a batch by its mask, or puts their number on the device, which waits for it. A mask
        made there does not; `without_padding_mask` keeps it from the model."""
        if "attention_mask" not in inputs and not self.aux_loss_enabled and self.label_smoother is None:
            inputs = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def prediction_step(
        self, model: Any, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        trained = int((inputs["labels"][..., 1:] != IGNORED).sum())
        if loss is not None and trained:  # the mean over no token is no number
            self._eval_nats += float(loss) * trained
            self._eval_tokens += trained
        if self.meter and trained:
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
        nats, tokens = ranks.total([self._eval_nats, self._eval_tokens])
        metrics["eval_loss"] = nats / max(tokens, 1)
        if self.meter:
            self.meter.put_together()
            metrics |= {f"eval_{name}": value for name, value in self.meter.scores().items()}
        return output._replace(metrics=metrics)


class ComparingTrainer(TrainerMixin):
    """What DPO and KTO share: rows that are tokens already, the reference, and losses that count rows.

    The reference is the bare base, or the adapter that the run began with.
    """

    _row_counts: list[int]
    _losses: list[float]

    def __init__(self, **kwargs: Any) -> None:
        self._weight = 1.0
        super().__init__(**kwargs)
        without_needless_reference(self.model)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def rows_of(self, batch: Batch) -> int:
        """The pairs or rows of a batch."""
        raise NotImplementedError

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """A step's loss is the mean over its batches, however many processes share them."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        if self.world.is_shared:
            real = ranks.total([sum(not is_blank(batch) for batch in batches)])[0]
            self._weight = self.world.size * len(batches) / max(real, 1)
        return batches, items

    def compute_loss(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
        loss: Any = super().compute_loss(model, inputs, *args, **kwargs)
        if not self.world.is_shared or not model.training:
            return loss
        return loss * 0.0 if is_blank(inputs) else loss * self._weight

    def prediction_step(
        self, model: Any, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        output = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if output[0] is not None and not is_blank(inputs):
            self._row_counts.append(self.rows_of(inputs))
            self._losses.append(float(output[0]))
        return output

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Means over rows; trl's are over batches."""
        self._row_counts, self._losses = [], []
        output = super().evaluation_loop(*args, **kwargs)
        if not self.world.is_shared:
            return output
        self._row_counts = [rows for part in ranks.collect(self._row_counts) for rows in part]
        self._losses = [loss for part in ranks.collect(self._losses) for loss in part]
        return output._replace(metrics={**(output.metrics or {}), "eval_loss": self.mean_of(self._losses)})

    def mean_of(self, of_batches: Sequence[float]) -> float:
        """The mean over the rows of the last evaluation of what was measured as a mean of each batch."""
        pairs = zip(of_batches, self._row_counts, strict=True)
        return sum(mean * rows for mean, rows in pairs) / sum(self._row_counts)


class PreferenceTrainer(ComparingTrainer, DPOTrainer):
    """DPOTrainer with the differences that the module's docstring names."""

    sequences = ("chosen_ids", "rejected_ids")
    reads_later = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(data_collator=PairCollator(kwargs["processing_class"].pad_token_id), **kwargs)

    def rows_of(self, batch: Batch) -> int:
        return len(batch["input_ids"]) // 2

    def _get_eval_sampler(self, eval_dataset: Any) -> LengthGroupedSampler:
        generator = torch.Generator().manual_seed(self.args.seed)
        lengths = self.row_lengths(eval_dataset)
        return LengthGroupedSampler(self.args.eval_batch_size, lengths=lengths, generator=generator)

    def training_step(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not self.world.is_shared:
            return super().training_step(model, inputs, *args, **kwargs)
        own, plain = 0 if is_blank(inputs) else self.rows_of(inputs), self.accelerator.gather

        def gather(tensor: torch.Tensor) -> torch.Tensor:
            """The pairs of all processes, of which the last batch need not have as many in each."""
            if tensor.dim() == 0:
                return plain(tensor)
            return torch.cat(ranks.collect(tensor[:own].cpu())).to(tensor.device)

        with self._gathering(gather):
            return super().training_step(model, inputs, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        output = super().evaluation_loop(*args, **kwargs)
        measured = {f"eval_{ours}": self.mean_of(self._metrics["eval"][theirs]) for theirs, ours in COMPARED.items()}
        return output._replace(metrics={**(output.metrics or {}), **measured})


class UnpairedTrainer(ComparingTrainer, KTOTrainer):
    """KTOTrainer with the differences that the module's docstring names.

    An evaluation measures the reward of each row by itself: beta times how much likelier its answer is than to the
    reference. Of the passes of a batch, which are watched for it, the one over the rows themselves is the second of the
    policy and of the reference; the first is over the rows with each other's answers.
    """

    beta: float
    reads_later = False  # trl leaves the reward of a label out where a batch has none of it, which it has to read for

    def __init__(self, **kwargs: Any) -> None:
        self._rewards: list[tuple[float, bool]] = []
        self._passes: list[torch.Tensor] | None = None
        collator = UnpairedCollator(kwargs["processing_class"].pad_token_id, kwargs["args"].max_length)
        super().__init__(data_collator=collator, **kwargs)
        adapted: Any = self.model
        adapted.get_base_model().register_forward_hook(self._watch)

    def _watch(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if self._passes is not None:
            self._passes.append(output.log_probs.sum(-1))

    def rows_of(self, batch: Batch) -> int:
        return len(batch["label"])

    def counted_tokens(self, batch: Batch) -> int:
        return 0  # `training_step` counts none of a blank batch

    def _get_eval_sampler(self, eval_dataset: Any) -> EpochOrder:
        """The same order at each evaluation, which mixes good and bad answers."""
        return EpochOrder(len(eval_dataset), self.args.eval_batch_size, self.args.seed, None)

    def training_step(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The KL term is that of each batch, as in one process; what is counted is put together, but for blank ones."""
        if not self.world.is_shared:
            return super().training_step(model, inputs, *args, **kwargs)
        blank, plain, own_kl = is_blank(inputs), self.accelerator.gather, list[torch.Tensor]()

        def gather(tensor: torch.Tensor) -> torch.Tensor:
            if not own_kl:  # trl gathers it first
                own_kl.append(tensor)
                return unshared(tensor)
            return plain(torch.zeros_like(tensor) if blank else tensor)

        with self._gathering(gather):
            loss = super().training_step(model, inputs, *args, **kwargs)
        kl, batches = ranks.total([0.0 if blank else self._metrics["train"]["kl"][-1], float(not blank)])
        self._metrics["train"]["kl"][-1] = kl / max(batches, 1)
        return loss

    def prediction_step(
        self, model: Any, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        self._passes = []
        output = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        passes, self._passes = self._passes, None
        if output[0] is not None and not is_blank(inputs):
            _, policy, _, reference = passes
            rewards = (self.beta * (policy - reference)).tolist()
            self._rewards += zip(rewards, inputs["label"].tolist(), strict=True)
        return output

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        self._rewards = []
        output = super().evaluation_loop(*args, **kwargs)
        rewards = [row for part in ranks.collect(self._rewards) for row in part]
        measured = {"kl": self.mean_of(self._metrics["eval"]["kl"]), **rewards_of(rewards)}
        metrics = {f"eval_{name}": value for name, value in measured.items()}
        return output._replace(metrics={**(output.metrics or {}), **metrics})


def rewards_of(rows: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Mean rewards of good and bad answers, their difference, and how often a good one is above a bad one.

    `rows` are rewards, each with whether the answer is good. The accuracy is over all pairs of a good and a bad row,
    equal rewards counting half (the Mann-Whitney statistic); what needs rows of a label that has none is left out.
    """
    good, bad = (np.array([reward for reward, label in rows if label == side]) for side in (True, False))
    means = {"chosen_reward": good, "rejected_reward": bad}
    measured = {name: float(rewards.mean()) for name, rewards in means.items() if len(rewards)}
    if len(measured) < 2:
        return measured
    bad.sort()
    below, not_above = np.searchsorted(bad, good, "left"), np.searchsorted(bad, good, "right")
    measured["reward_margin"] = measured["chosen_reward"] - measured["rejected_reward"]
    measured["reward_accuracy"] = float((below + not_above).sum() / (2 * len(good) * len(bad)))
    return measured


def trainer_of(config: Config, meter: LabelMeter | None) -> Callable[..., TrainerMixin]:
    """The trainer of the config's method; `meter` measures labels, which only SFT does."""
    if config.training.method == "sft":
        return partial(StudioTrainer, meter=meter)
    return PreferenceTrainer if config.training.method == "dpo" else UnpairedTrainer


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


def starting_checkpoint(run: RunFolder, config: Config, *, resume: bool) -> tuple[Path | None, list[str]]:
    """The checkpoint that a resumed run goes on from, None if there is no whole one, and what a person should know."""
    checkpoint, notes = None, list[str]()
    if resume:
        with ranks.first_alone():  # it tidies up; the others look at what is left
            checkpoint, notes = last_whole_checkpoint(run)
    return checkpoint, [*notes, base_changed(config, checkpoint)]
