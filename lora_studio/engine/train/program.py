"""The training program, to be read from top to bottom: config, rows, model, training, adapter out, report.

The data path is `data.dataset.prepare`, the loop is trl's; ours are the order, the checks and the run's folder.
"""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainerCallback

from lora_studio.config.parsing import ConfigError, load_config, machine_conflicts
from lora_studio.config.sections import Config
from lora_studio.engine import ranks
from lora_studio.engine.accelerator import device, device_kind, device_name, on_cpu, read_memory, set_tf32
from lora_studio.engine.chat.logprobs import against_base
from lora_studio.engine.models.load import choose_dtype, dtype_name
from lora_studio.engine.runtime import EventLog, Stopped, StopSignal
from lora_studio.engine.train.callbacks import (
    EarlyStopping,
    GenEval,
    ReportCallback,
    check_weights,
    early_stopping,
    put_trackers_last,
    report_callback,
)
from lora_studio.engine.train.model import CardValues, TrainedModel, build_model, studio_card, train_in_float32
from lora_studio.engine.train.report import TrainResult, final_evaluation, mean_loss, training_speed, write_report
from lora_studio.engine.train.rows import TrainingRows, as_dataset, prepare_rows
from lora_studio.engine.train.settings import (
    PROJECT,
    SCHEDULE,
    logging_interval,
    planned_steps,
    scheduler_settings,
    trainer_settings,
)
from lora_studio.engine.train.trainers import (
    TrainerMixin,
    save_final_adapter,
    save_where_stopped,
    starting_checkpoint,
    trainer_of,
)
from lora_studio.jobs.events import Evaluated, RunStarted, Warned
from lora_studio.workspace import RunFolder, step_of


@dataclass(frozen=True)
class Context:
    """What every phase works with: the run's folder and config, its events, the stop, and where it starts from.

    The config is the run's own, but for the accumulation of a run that goes on with another number of processes.
    """

    run: RunFolder
    config: Config
    log: EventLog
    stop: StopSignal
    dtype: torch.dtype
    checkpoint: Path | None

    def warn(self, messages: Iterable[str]) -> None:
        for message in filter(None, messages):
            self.log.emit(Warned(time.time(), message))


@dataclass(frozen=True)
class Training:
    """A trainer that is ready to run, with those of its callbacks that are asked afterwards, and its studio.json."""

    trainer: TrainerMixin
    report: ReportCallback
    ending: EarlyStopping | None
    card: CardValues


def train(run: RunFolder, *, resume: bool, log: EventLog, stop: StopSignal) -> TrainResult:
    """Trains what the run's config says and returns the numbers of complete.json. Raises `Stopped` when asked to."""
    context = begin(run, resume=resume, log=log, stop=stop)
    rows = prepare_rows(run, context.config, log, resumed=context.checkpoint is not None)
    model = build_model(context.config, rows, log, dtype=context.dtype, checkpoint=context.checkpoint)
    training = build_trainer(context, rows, model)
    fit(context, training)
    return finish(context, rows, model, training)


def begin(run: RunFolder, *, resume: bool, log: EventLog, stop: StopSignal) -> Context:
    """Reads the config, meets the other processes of the run if there are any, and finds where to start from."""
    config = load_config(run.config)
    device()  # a GPU that can't be used is told before anything slow
    if problems := list(machine_conflicts(config, device_kind())):
        raise ConfigError(problems)
    dtype = choose_dtype(config.model.dtype)
    notes = ranks.join(cpu=on_cpu())
    checkpoint, found = starting_checkpoint(run, config, resume=resume)
    first_step, size = step_of(checkpoint.name) if checkpoint else 0, ranks.world().size
    if first_step:
        config, note = with_same_batch(config, log.state().first_processes, size)
        found.append(note)
    context = Context(run, config, log, stop, dtype, checkpoint)
    log.emit(RunStarted(time.time(), os.getpid(), device_name(), dtype_name(dtype), first_step, device_kind(), size))
    context.warn([*found, *notes])
    return context


def with_same_batch(config: Config, before: int, now: int) -> tuple[Config, str]:
    """The config with the accumulation that keeps the effective batch of a run that began with `before` processes, and
    a note."""
    steps, note = ranks.accumulation(config.training.gradient_accumulation_steps, before, now)
    training = config.training.model_copy(update={"gradient_accumulation_steps": steps})
    return config.model_copy(update={"training": training}), note


def build_trainer(context: Context, rows: TrainingRows, model: TrainedModel) -> Training:
    """The trainer of the config's method, its callbacks, and its schedule in whole steps."""
    config, run, log, prepared = context.config, context.run, context.log, rows.prepared
    # The callbacks of the trackers take folder and project from the environment only.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.tensorboard)
    os.environ.setdefault("WANDB_DIR", str(run.path))
    os.environ.setdefault("WANDB_PROJECT", PROJECT)
    card = studio_card(config, run.id, context.dtype, prepared.template.name, model.quantization)
    report = report_callback(log, context.stop)
    ending = early_stopping(config, prepared, log.state().evaluations)
    callbacks: list[TrainerCallback] = [ending] if ending else []
    if rows.questions:
        callbacks.append(
            GenEval(
                model.loaded,
                rows.questions,
                base=model.bare,
                autocast=lambda: trainer.accelerator.autocast(),
                at_once=config.evaluation.per_device_eval_batch_size,
                max_new_tokens=config.generation.max_new_tokens,
                enable_thinking=config.data.enable_thinking,
                log=log,
                stop=context.stop,
            )
        )
    trainer = trainer_of(config, rows.meter)(
        model=model.model,
        args=trainer_settings(
            config,
            run,
            context.dtype,
            measured=bool(prepared.validation),
            checkpointing=model.checkpointing,
            padding_free=model.padding_free,
        ),
        train_dataset=as_dataset(prepared.train, run.cache),
        eval_dataset=as_dataset(prepared.validation, run.cache) if prepared.validation else None,
        processing_class=rows.tokenizer,
        callbacks=[*callbacks, report],
        card=card,
        stop=context.stop,
        initial_state=model.initial_state,
        loraplus_lr_ratio=config.lora.loraplus_lr_ratio,
        sharded=model.sharded,
    )
    if config.training.torch_compile or config.training.tf32:
        # With torch.compile accelerate and transformers turn TF32 on, which in float32 is for a person to choose.
        set_tf32(config.training.tf32 or context.dtype is not torch.float32)
    if model.sharded:
        context.stop.only_together()
    put_trackers_last(trainer)
    train_in_float32(model.model, context.dtype)
    plan_steps(context, rows, trainer)
    ranks.vary_seed(config.training.seed)
    return Training(trainer, report, ending, card)


def plan_steps(context: Context, rows: TrainingRows, trainer: TrainerMixin) -> None:
    """Sets warm-up, schedule and points for as many steps as the trainer makes."""
    config, args = context.config, trainer.args
    total_steps = planned_steps(trainer, context.log.state().extra_epochs)
    args.warmup_steps, args.lr_scheduler_kwargs = scheduler_settings(
        total_steps, **config.training.model_dump(include=SCHEDULE)
    )
    args.logging_steps = logging_interval(config.tracking.logging_steps, total_steps)
    context.warn(remarks(config, total_steps, measured=bool(rows.prepared.validation)))


def fit(context: Context, training: Training) -> None:
    """Trains. A stop in the middle of an evaluation leaves the trainer by an exception: what is there is saved."""
    try:
        with training.report.watching():
            training.trainer.train(resume_from_checkpoint=str(context.checkpoint) if context.checkpoint else None)
        with ranks.together(context.stop):
            context.stop.check()
    except Stopped:
        save_where_stopped(training.trainer, training.report)
        raise


def finish(context: Context, rows: TrainingRows, model: TrainedModel, training: Training) -> TrainResult:
    """The adapter out, the last measurements (base and adapter side by side among them), and the report."""
    run, log, stop, trainer, prepared = context.run, context.log, context.stop, training.trainer, rows.prepared
    world = ranks.world()
    if not world.is_shared:
        stop.end_at_once()
    check_weights(trainer.model, trainer.state.global_step)
    log.phase("save")
    if world.is_first:
        save_final_adapter(trainer.model, rows.tokenizer, training.card, run, model.initial_state)
    evaluation = final_evaluation(trainer, log.state()) if prepared.validation else None
    stop.end_at_once()
    result = train_result(context, rows, model, training, evaluation)
    if not world.is_first:
        return result
    if model.sharded:
        context.warn(["Base and adapter are not compared: with FSDP no process has the whole base."])
    else:
        with trainer.accelerator.autocast():
            result["difference"] = against_base(
                trainer.model,
                prepared.train.answers,
                prepared.validation.answers,
                base=model.bare,
                log=log,
                check=stop.check,
            )
    write_report(run, context.config, prepared, rows.tokenizer, log.state(), result)
    return result


def train_result(
    context: Context, rows: TrainingRows, model: TrainedModel, training: Training, evaluation: Evaluated | None
) -> TrainResult:
    """The numbers of complete.json. `evaluation` is that of the final adapter."""
    state, trainer = context.log.state(), training.trainer.state
    return {
        "run": context.run.id,
        "state": "done",
        "steps": trainer.global_step,
        "epochs": trainer.epoch,
        "train_loss": mean_loss(state.steps),
        "last_loss": state.steps[-1].loss,
        "eval_loss": evaluation.loss if evaluation else None,
        "eval_metrics": evaluation.metrics if evaluation else {},
        "message": training.ending.words if training.ending else "",
        "adapter": str(context.run.adapter),
        "seconds": state.seconds_at(time.time()),
        "start_seconds": state.start_seconds,
        "tokens": training.report.tokens,
        "trainable_parameters": model.trainable,
        "parameters": model.parameters,
        "train_rows": len(rows.prepared.train),
        "validation_rows": len(rows.prepared.validation),
        "tokens_per_second": training_speed(state.steps),
        "device_kind": device_kind(),
        "processes": ranks.world().size,
        "quantization": model.quantization,
        "peak_memory_bytes": read_memory().peak,
        "estimated_memory_bytes": model.foreseen.measurable_bytes if model.foreseen else None,
        "best_checkpoint": Path(trainer.best_model_checkpoint).name if trainer.best_model_checkpoint else None,
    }


def remarks(config: Config, total_steps: int, *, measured: bool) -> Iterator[str]:
    """Notes on settings that have no effect in this run."""
    setting, interval = config.tracking.logging_steps, logging_interval(config.tracking.logging_steps, total_steps)
    if setting > interval:
        yield (
            f"{setting} logging steps are too many for {total_steps} steps: a point is logged every {interval} steps."
        )
    if config.evaluation.load_best_model_at_end and not measured:
        yield "There are no validation rows: the final adapter is the last step, not the best."
    if config.training.label_smoothing_factor:
        yield (
            "Label smoothing needs the logits of all tokens, so training steps need more time and memory. "
            "Evaluation is not affected."
        )
    warm = config.training.warmup_steps
    if total_steps == 1 and (config.training.warmup_ratio if warm is None else warm):
        yield "The run has a single step, which uses the full learning rate: with warmup, it would be 0."
    elif warm is not None and warm >= total_steps:
        yield f"Warmup takes {warm} steps, but the run has {total_steps}: the learning rate never reaches its peak."
