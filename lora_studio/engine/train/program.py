"""The training program, to be read from top to bottom: config, data, model, adapter, training, saving, report.

The data path is `data.dataset.prepare` and the loop is trl's; this module adds the order, the checks and the run's
folder. Only this module of the engine knows the config.
"""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from transformers import TrainerCallback, set_seed
from trl import DPOConfig, SFTConfig

from lora_studio.config.conflicts import NEED_FULL_WEIGHTS, machine_conflicts
from lora_studio.config.parsing import ConfigError, parse, read_yaml
from lora_studio.config.sections import Config
from lora_studio.data.dataset import Prepared, prepare
from lora_studio.data.examples import largest_id
from lora_studio.engine.chat.logprobs import against_base
from lora_studio.engine.models.adapter import add_adapter, continue_adapter, learned_positions, other_text, take_layout
from lora_studio.engine.models.load import (
    Download,
    attention_words,
    choose_dtype,
    device,
    dtype_name,
    load_model,
    memory_bytes,
)
from lora_studio.engine.models.multi_adapter import LoadedModel, biases_of
from lora_studio.engine.models.tokenizer import load_tokenizer
from lora_studio.engine.models.weights import rows_of
from lora_studio.engine.runtime import EventLog, Stopped, StopSignal, data_progress
from lora_studio.engine.train.callbacks import (
    RISING,
    GenEval,
    ReportCallback,
    check_weights,
    data_event,
    early_stopping,
    label_meter,
    logging_interval,
    put_trackers_last,
    questions_to_ask,
)
from lora_studio.engine.train.lora_init import as_base, fill, initial_lora_state
from lora_studio.engine.train.memory import foresee, gpu_id, read_memory
from lora_studio.engine.train.report import TrainResult, write_report
from lora_studio.engine.train.resume import (
    check_same_rows,
    last_whole_checkpoint,
    other_rows,
    rows_digest,
    save_where_stopped,
)
from lora_studio.engine.train.schedule import SCHEDULE, TrainerArguments, planned_steps, scheduler_settings
from lora_studio.engine.train.trainers import (
    PreferenceTrainer,
    StudioTrainer,
    TrainerMixin,
    as_dataset,
    save_final_adapter,
)
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Evaluated, ModelLoaded, RunStarted, StepLogged, Warned
from lora_studio.models.adapters import changed, fingerprint, read_card
from lora_studio.models.hardware import Sensors
from lora_studio.models.shape import beyond, stored_quantization
from lora_studio.models.shape import read_config as read_numbers
from lora_studio.units import count
from lora_studio.workspace import RunFolder, step_of

PROJECT = "lora-studio"
SAME_NAME = {
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "neftune_noise_alpha",
    "label_smoothing_factor",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "seed",
    "train_sampling_strategy",
    "save_strategy",
    "save_steps",
    "save_total_limit",
}
"""Settings that the trainers take under the same name."""


def train(run: RunFolder, *, resume: bool, log: EventLog, stop: StopSignal) -> TrainResult:
    """Trains with the run's config and returns the content of complete.json. Raises `Stopped` on a stop."""
    # Config and where to start from.
    config = parse(read_yaml(run.config))
    if problems := list(machine_conflicts(config, cuda=torch.cuda.is_available())):
        raise ConfigError(problems)
    dtype = choose_dtype(config.model.dtype)
    checkpoint, notes = last_whole_checkpoint(run) if resume else (None, [])
    first_step = step_of(checkpoint.name) if checkpoint else 0
    kind = device().type
    log.emit(RunStarted(time.time(), os.getpid(), device_name(), dtype_name(dtype), first_step, kind))
    begun = config.model.adapter_name_or_path
    if start := checkpoint or (Path(begun) if begun else None):
        notes += [changed(read_card(start), config.model.name, config.model.revision)]
    for sentence in filter(None, notes):
        log.emit(Warned(time.time(), sentence))

    # Data: the same function that the preview uses.
    log.phase("data")
    tokenizer = load_tokenizer(config.model.name, config.model.revision)
    prepared = prepare(
        **config.data.model_dump(),
        tokenizer=tokenizer,
        goal=config.training.goal,
        cache_folder=run.cache,
        on_progress=data_progress(log),
    )
    tokenizer.chat_template = prepared.template.source  # goes with every save
    data = data_event(prepared, rows_digest(prepared))
    before = log.state()
    if checkpoint is not None and not before.other_rows:
        check_same_rows(run, before.data, data)
    if checkpoint is not None and (words := other_rows(before.data, data)):
        log.emit(Warned(time.time(), f"The run goes on with other rows than it began with, as was chosen: {words}."))
    log.emit(data)
    for sentence in prepared.marks:
        log.emit(Warned(time.time(), sentence))
    meter = label_meter(config, prepared, tokenizer, log)
    samples = questions_to_ask(config, prepared)

    # The base with a new adapter or the one to continue from; a checkpoint has the same shape. DPO's reference is the
    # start of the run, also when resuming: the trainer loads a checkpoint's weights afterwards.
    log.phase("model")
    compares = config.training.method == "dpo"
    set_seed(config.training.seed)
    base = load_model(
        config.model.name,
        revision=config.model.revision,
        dtype=config.model.dtype,
        quantization=config.model.quantization,
        attn_implementation=config.model.attn_implementation,
        four_bit=four_bit(config),
        tqdm_class=Download(log).bar_class(),
    )
    stored = stored_quantization(base.config.to_dict())
    quantization = config.model.quantization if stored == "none" else stored
    for message in check_base(config, base, prepared, stored):
        log.emit(Warned(time.time(), message))
    own_biases = biases_of(base)
    attention = attention_words(base, config.model.attn_implementation, dtype)
    if begun:
        model, notes = continue_adapter(
            base,
            Path(begun) if compares or not checkpoint else checkpoint,
            base=config.model.name,
            revision=config.model.revision,
            dropout=config.lora.lora_dropout,
        )
        rows = rows_of(base.get_input_embeddings())
        for sentence in (*notes, *other_text(Path(begun), tokenizer, prepared.template.source, rows)):
            log.emit(Warned(time.time(), sentence))
    else:
        model = add_adapter(
            base,
            base=config.model.name,
            revision=config.model.revision,
            target=config.lora.target_modules,
            seed=config.training.seed,
            **config.lora.model_dump(exclude={"target_modules", "loraplus_lr_ratio"}),
        )
        if checkpoint is None or compares:
            fill(
                model,
                config.lora.init_lora_weights,
                base=(config.model.name, config.model.revision),
                rows=prepared.train.answers,
                pad=tokenizer.pad_token_id,
                seed=config.training.seed,
            )
    initial_state = initial_lora_state(model, config.lora.init_lora_weights)
    bare = partial(as_base, model, initial_state, own_biases)
    trainable, parameters = model.get_nb_trainable_parameters()
    computes_with = base.config._attn_implementation or ""
    log.emit(ModelLoaded(time.time(), parameters, trainable, memory_bytes(), attention, computes_with))
    take_layout(config.model.name, config.model.revision)
    numbers = read_numbers(config.model.name, config.model.revision) or base.config.to_dict()
    checkpointing, foreseen = foresee(config, numbers, prepared.train.longest)
    if foreseen:
        log.emit(foreseen)

    # The trainer. Trackers read folder and project from the environment only.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.tensorboard)
    os.environ.setdefault("WANDB_DIR", str(run.path))
    os.environ.setdefault("WANDB_PROJECT", PROJECT)
    card = studio_card(config, run, dtype, prepared.template.name, quantization)
    sensors = Sensors(gpu_id())
    report = ReportCallback(
        log, stop, tokens_before=log.state().steps[-1].tokens if log.state().steps else 0, sensors=sensors
    )
    ending = early_stopping(config, prepared, log.state().evaluations)
    callbacks: list[TrainerCallback] = [ending] if ending else []
    if samples:
        template: dict[str | None, str] = {None: prepared.template.source}
        callbacks.append(
            GenEval(
                LoadedModel(config.model.name, model, tokenizer, {}, templates=template),
                samples,
                base=bare,
                at_once=config.evaluation.per_device_eval_batch_size,
                max_new_tokens=config.generation.max_new_tokens,
                enable_thinking=config.data.enable_thinking,
                log=log,
                stop=stop,
            )
        )
    make_trainer = PreferenceTrainer if compares else partial(StudioTrainer, meter=meter)
    trainer = make_trainer(
        model=model,
        args=trainer_settings(config, run, dtype, measured=bool(prepared.validation), checkpointing=checkpointing),
        train_dataset=as_dataset(prepared.train, run.cache),
        eval_dataset=as_dataset(prepared.validation, run.cache) if prepared.validation else None,
        processing_class=tokenizer,
        callbacks=[*callbacks, report],
        card=card,
        initial_state=initial_state,
        loraplus_lr_ratio=config.lora.loraplus_lr_ratio,
    )
    put_trackers_last(trainer)
    for parameter in model.parameters():
        if parameter.requires_grad:  # trl makes a quantized model's adapter bf16, whose 8 bits lose small updates
            parameter.data = parameter.data.float()
    total_steps = planned_steps(trainer, log.state().extra_epochs)
    rising, shape = scheduler_settings(total_steps, **config.training.model_dump(include=SCHEDULE))
    trainer.args.warmup_steps, trainer.args.lr_scheduler_kwargs = rising, shape
    trainer.args.logging_steps = logging_interval(config.tracking.logging_steps, total_steps)
    for message in remarks(config, prepared, total_steps):
        log.emit(Warned(time.time(), message))

    # Training. A stop during an evaluation leaves the trainer by an exception: save the last step.
    sensors.start()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        stop.check()
    except Stopped:
        save_where_stopped(trainer, report)
        raise
    finally:
        sensors.close()

    # Save the adapter, measure it beside the base, and write the report.
    stop.end_at_once()
    check_weights(trainer.model, trainer.state.global_step)
    log.phase("save")
    save_final_adapter(trainer.model, tokenizer, card, run, initial_state)
    evaluation = final_evaluation(trainer, log) if prepared.validation else None
    result: TrainResult = {
        "run": run.id,
        "state": "done",
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "train_loss": mean_loss(log.state().steps),
        "last_loss": log.state().steps[-1].loss,
        "eval_loss": evaluation.loss if evaluation else None,
        "eval_metrics": evaluation.metrics if evaluation else {},
        "message": ending.words if ending else "",
        "adapter": str(run.adapter),
        "seconds": log.state().seconds_at(time.time()),
        "tokens": report.tokens,
        "trainable_parameters": trainable,
        "parameters": parameters,
        "train_rows": len(prepared.train),
        "validation_rows": len(prepared.validation),
        "tokens_per_second": training_speed(log.state().steps),
        "device_kind": device().type,
        "quantization": quantization,
        "peak_memory_bytes": read_memory().peak,
        "estimated_memory_bytes": foreseen.measurable_bytes if foreseen else None,
        "best_checkpoint": Path(trainer.state.best_model_checkpoint).name
        if trainer.state.best_model_checkpoint
        else None,
    }
    with trainer.accelerator.autocast():
        result["difference"] = against_base(
            trainer.model,
            prepared.train.answers,
            prepared.validation.answers,
            base=bare,
            log=log,
            check=stop.check,
        )
    write_report(run, config, prepared, tokenizer, log.state(), result)
    return result


def trainer_settings(
    config: Config, run: RunFolder, dtype: torch.dtype, *, measured: bool, checkpointing: bool
) -> SFTConfig | DPOConfig:
    """The config as trl's arguments. Truncation and labels are done already, so trl only packs."""
    dpo = partial(DPOConfig, **config.preference.model_dump(), max_length=None, remove_unused_columns=False)
    sft = partial(SFTConfig, **packing_values(config))
    method: Callable[..., SFTConfig | DPOConfig] = dpo if config.training.method == "dpo" else sft
    on_cpu = device().type == "cpu"
    values = trainer_values(config, dtype_name(dtype), on_cpu=on_cpu, measured=measured, checkpointing=checkpointing)
    return method(
        output_dir=str(run.checkpoints),
        report_to=list(dict.fromkeys(["tensorboard", config.tracking.report_to])),
        run_name=config.title or run.id,
        project=PROJECT,
        **values,
    )


def packing_values(config: Config) -> TrainerArguments:
    """Arguments of SFTConfig alone."""
    packing = config.training.packing
    return {
        "packing": packing,
        "eval_packing": False,
        "max_length": config.data.max_length if packing else None,
        "dataset_kwargs": None if packing else {"skip_prepare_dataset": True},
    }


def trainer_values(
    config: Config, dtype: str, *, on_cpu: bool, measured: bool, checkpointing: bool
) -> TrainerArguments:
    """Arguments shared by both methods, as plain values; an exported training script uses the same."""
    training, evaluation = config.training, config.evaluation
    return {
        **training.model_dump(include=SAME_NAME),
        "data_seed": training.seed,
        "gradient_checkpointing": checkpointing,
        "per_device_eval_batch_size": evaluation.per_device_eval_batch_size,
        "eval_strategy": evaluation.eval_strategy if measured else "no",
        "eval_steps": evaluation.eval_steps,
        "load_best_model_at_end": evaluation.load_best_model_at_end and measured,
        "metric_for_best_model": f"eval_{evaluation.metric_for_best_model}",
        "greater_is_better": evaluation.metric_for_best_model in RISING,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a loss that is not a number has to be seen
        "disable_tqdm": True,
        "use_cpu": on_cpu,
        "bf16": dtype == "bfloat16" and not on_cpu,
        "fp16": dtype == "float16",
        "dataloader_pin_memory": not on_cpu,
    }


class CardValues(TypedDict):
    """The content of studio.json: what chat, evaluation and export need to use the adapter as in training."""

    base_model: str
    revision: str | None
    base_fingerprint: str
    dtype: str
    quantization: str
    four_bit: dict[str, str | bool] | None
    prompt_style: str
    system_prompt: str | None
    enable_thinking: bool | None
    max_length: int
    run: str
    continued_from: str | None


def studio_card(config: Config, run: RunFolder, dtype: torch.dtype, prompt_style: str, quantization: str) -> CardValues:
    """The content of studio.json for a run's adapter."""
    return {
        "base_model": config.model.name,
        "revision": config.model.revision,
        "base_fingerprint": fingerprint(config.model.name, config.model.revision),
        "dtype": dtype_name(dtype),
        "quantization": quantization,
        "four_bit": four_bit(config),
        "prompt_style": prompt_style,
        "system_prompt": config.data.system_prompt,
        "enable_thinking": config.data.enable_thinking,
        "max_length": config.data.max_length,
        "run": run.id,
        "continued_from": config.model.adapter_name_or_path,
    }


def four_bit(config: Config) -> dict[str, str | bool] | None:
    """The settings of 4-bit weights by name; None for a base without them."""
    if config.model.quantization != "4bit":
        return None
    return {name: value for name, value in config.model.model_dump().items() if name.startswith("bnb_4bit_")}


def check_base(config: Config, base: Any, prepared: Prepared, stored: str) -> Iterator[str]:
    """Notes on the loaded base. Raises `StudioError` if it cannot read the rows, or does not support the adapter's
    initialization."""
    rows = [part for part in (prepared.train, prepared.validation) if len(part)]
    error = beyond(
        config.model.name,
        embeddings=base.get_input_embeddings().weight.shape[0],
        positions=learned_positions(base),
        largest_id=max(map(largest_id, rows)),
        longest=max(part.longest for part in rows),
    )
    if error is not None:
        raise error
    if stored == "none":
        return
    if config.lora.init_lora_weights in NEED_FULL_WEIGHTS:
        raise StudioError(
            f"The base is stored in {stored}, which {config.lora.init_lora_weights} can't take apart.",
            "Set lora.init_lora_weights to default, or name the base in 16 bits.",
        )
    if config.model.quantization == "none":
        yield f"The base is stored in {stored}, and trained so: as with model.quantization {stored}."


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"CPU, {count(torch.get_num_threads(), 'thread')}"


def remarks(config: Config, prepared: Prepared, total_steps: int) -> Iterator[str]:
    """Notes on settings that have no effect in this run."""
    setting, interval = config.tracking.logging_steps, logging_interval(config.tracking.logging_steps, total_steps)
    if setting > interval:
        yield f"A point every {setting} steps would be too few for {total_steps} steps: there is one every {interval}."
    if config.evaluation.load_best_model_at_end and not prepared.validation:
        yield "No row is left to measure on: the last step is handed out, not the best."
    if config.training.label_smoothing_factor:
        yield "Label smoothing needs all scores of each token: steps take longer and more memory. Measuring has none."
    warm = config.training.warmup_steps
    if total_steps == 1 and (config.training.warmup_ratio if warm is None else warm):
        yield "The run has one step, which takes the full learning rate: the first step of a warm-up has the rate 0."
    elif warm is not None and warm >= total_steps:
        yield f"The warm-up takes {warm} steps and the run has {total_steps}: the rate never reaches its full value."


def final_evaluation(trainer: TrainerMixin, log: EventLog) -> Evaluated:
    """The evaluation of the final adapter; measured only if it is not known yet."""
    state = trainer.state
    best = trainer.args.load_best_model_at_end and state.best_model_checkpoint
    step = step_of(str(best)) if best else state.global_step
    by_step = {evaluation.step: evaluation for evaluation in log.state().evaluations}
    if step not in by_step:
        trainer.evaluate()
        return log.state().evaluations[-1]
    return by_step[step]


def training_speed(points: list[StepLogged]) -> float:
    """Real tokens per second over all points, without evaluation and saving; 0 if there are no points."""
    seconds = sum(tokens / point.tokens_per_second for tokens, point in _tokens_of(points) if point.tokens_per_second)
    return sum(tokens for tokens, _ in _tokens_of(points)) / seconds if seconds else 0.0


def _tokens_of(points: list[StepLogged]) -> Iterator[tuple[int, StepLogged]]:
    """Each point with its tokens since the previous point."""
    before = 0
    for point in points:
        yield point.tokens - before, point
        before = point.tokens


def mean_loss(points: list[StepLogged]) -> float:
    """The mean over all steps, including earlier starts of a resumed run; each point stands for the steps before it."""
    first = [0, *(point.step for point in points)]
    return sum(point.loss * (point.step - before) for point, before in zip(points, first, strict=False)) / first[-1]
