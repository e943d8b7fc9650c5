"""The worker that searches for a learning rate: `python -m lora_studio.engine.train.rate_search FOLDER`.

A few steps of training whose learning rate rises from one to the next: the same rows, model and adapter as the run. See
`runs.rate_search` for the rates and for what the losses come to. The folder is like a run's; the events hold the steps,
complete.json the suggestion. Exit codes: 0 done, 1 failed, 2 wrong input, 130 stopped.
"""

import shutil
from collections.abc import Sequence

from lora_studio.config.compute import BALANCED
from lora_studio.config.parsing import load_config, merge, parse
from lora_studio.config.sections import Config
from lora_studio.engine import runtime
from lora_studio.engine.runtime import WRONG_INPUT, EventLog, Explained, StopSignal, begin, ending_of, finish_run, leave
from lora_studio.engine.train.worker import explain_error
from lora_studio.files import JsonObject
from lora_studio.runs.rate_search import LOWEST, growth, rate_curve, search_steps
from lora_studio.workspace import RunFolder

MODULE = "lora_studio.engine.train.rate_search"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the search and returns the exit code."""
    child = begin(arguments, MODULE, RunFolder, "learning-rate search", lambda run: run.config, resumes=False)
    if child is None:
        return WRONG_INPUT
    run, log, stop = child.folder, child.log, child.stop
    result: JsonObject = {}

    def work() -> None:
        log.phase("start")
        if load_config(run.config).compute.strategy != BALANCED:
            runtime.see_one_gpu()
        result.update(sweep(run, log, stop))

    def explain(error: Exception) -> Explained:
        explained, numbers = explain_error(error, run, log)
        result.update(numbers)
        return explained

    return finish_run(run, log, ending_of(work, stop, explain=explain), result)


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
    # seconds: the libraries
    from torch.optim.lr_scheduler import LambdaLR

    from lora_studio.engine.train import program
    from lora_studio.engine.train.callbacks import DivergedError, RateSearchEnding
    from lora_studio.engine.train.model import build_model
    from lora_studio.engine.train.rows import prepare_rows
    from lora_studio.engine.train.settings import planned_steps

    own = program.begin(run, resume=False, log=log, stop=stop)
    context = program.Context(run, as_swept(own.config), log, stop, own.dtype, None)
    rows = prepare_rows(run, context.config, log, resumed=False)
    model = build_model(context.config, rows, log, dtype=context.dtype, checkpoint=None)
    training = program.build_trainer(context, rows, model)
    trainer, args = training.trainer, training.trainer.args
    steps = search_steps(planned_steps(trainer, 0.0))
    args.max_steps, args.warmup_steps, args.logging_steps = steps, 0, 1
    factor = growth(steps)
    trainer.lr_scheduler = LambdaLR(trainer.create_optimizer(), lambda step: factor**step)
    trainer.add_callback(RateSearchEnding(log))
    try:
        with training.report.watching():
            trainer.train()
        stop.check()
    except DivergedError:
        pass  # the end of the search: the rates before are what it is for
    finally:
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        shutil.rmtree(run.tensorboard, ignore_errors=True)
    curve = rate_curve(log.state().steps)
    return {"suggestion": curve.suggestion, "rule": curve.words, "steps": len(log.state().steps)}


if __name__ == "__main__":
    leave(main())
