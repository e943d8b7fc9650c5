"""A few steps of training whose learning rate rises from one to the next: the same rows, model and adapter as the run.

See `runs.rate_search` for the rates and for what the losses come to.
"""

import shutil
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_studio.config.parsing import merge, parse
from lora_studio.config.sections import Config
from lora_studio.engine.runtime import EventLog, StopSignal
from lora_studio.engine.train.callbacks import DivergedError
from lora_studio.engine.train.model import build_model
from lora_studio.engine.train.program import Context, begin, build_trainer
from lora_studio.engine.train.rows import prepare_rows
from lora_studio.engine.train.settings import planned_steps
from lora_studio.files import JsonObject
from lora_studio.runs.rate_search import LOWEST, growth, has_diverged, rate_curve, search_steps
from lora_studio.workspace import RunFolder


class EndWhenDiverged(TrainerCallback):
    """Ends the sweep as soon as higher rates are of no use."""

    def __init__(self, log: EventLog) -> None:
        self.log = log

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if has_diverged([point.loss for point in self.log.state().steps]):
            control.should_training_stop = True


def as_swept(config: Config) -> Config:
    """The config of the sweep: nothing is measured or saved, and the rate is that of the first step. What is left is
    the run's own, so that its prepared rows are used."""
    swept = {
        "training": {
            "learning_rate": LOWEST,
            "lr_scheduler_type": "constant",
            "warmup_steps": None,
            "save_strategy": "no",
        },
        "evaluation": {
            "eval_strategy": "no",
            "load_best_model_at_end": False,
            "early_stopping_patience": 0,
            "gen_eval_samples": 0,
            "labels": "",
            "metric_for_best_model": "loss",
        },
        "tracking": {"report_to": "tensorboard", "logging_steps": 1},
    }
    return parse(merge(config.model_dump(), swept))


def sweep(run: RunFolder, log: EventLog, stop: StopSignal) -> JsonObject:
    """Trains with rising rates and gives the entries of complete.json. Raises `Stopped` when asked to."""
    own = begin(run, resume=False, log=log, stop=stop)
    context = Context(run, as_swept(own.config), log, stop, own.dtype, None)
    rows = prepare_rows(run, context.config, log, resumed=False)
    model = build_model(context.config, rows, log, dtype=context.dtype, checkpoint=None)
    training = build_trainer(context, rows, model)
    trainer, args = training.trainer, training.trainer.args
    steps = search_steps(planned_steps(trainer, 0.0))
    args.max_steps, args.warmup_steps, args.logging_steps = steps, 0, 1
    factor = growth(steps)
    trainer.lr_scheduler = LambdaLR(trainer.create_optimizer(), lambda step: factor**step)
    trainer.add_callback(EndWhenDiverged(log))
    training.report.sensors.start()
    try:
        trainer.train()
        stop.check()
    except DivergedError:
        pass  # the end of the search: the rates before are what it is for
    finally:
        training.report.sensors.close()
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        shutil.rmtree(run.tensorboard, ignore_errors=True)
    curve = rate_curve(log.state().steps)
    return {"suggestion": curve.suggestion, "rule": curve.words, "steps": len(log.state().steps)}
