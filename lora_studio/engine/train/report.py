"""The result of a finished run, and report.md: its base, data and settings, and its results compared with the base."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from transformers import PreTrainedTokenizerBase, Trainer

from lora_studio.config.sections import Config, defaults_of
from lora_studio.config.settings import batch_words, effective_batch, flatten, settings
from lora_studio.data.dataset import Prepared
from lora_studio.data.report import reading
from lora_studio.files import JsonObject, bytes_in
from lora_studio.jobs.events import Evaluated, RunState, StepLogged
from lora_studio.models.advice import advise, situation
from lora_studio.runs.health import diagnose, in_words
from lora_studio.runs.summary import code, metric, number, plain, prose, share, table
from lora_studio.units import GIB, size
from lora_studio.workspace import RunFolder, step_of, write_atomically

HYPERPARAMETERS = (
    "training.num_train_epochs",
    "training.max_steps",
    "training.learning_rate",
    "training.lr_scheduler_type",
    "training.warmup_ratio",
    "training.warmup_steps",
    "training.optim",
    "training.weight_decay",
    "training.max_grad_norm",
    "evaluation.per_device_eval_batch_size",
    "training.packing",
    "training.train_sampling_strategy",
    "training.save_strategy",
    "evaluation.eval_strategy",
    "training.seed",
)


class TrainResult(TypedDict):
    """complete.json of a finished run: losses in nats per trained token, times in seconds, memory in bytes."""

    run: str
    state: str
    steps: int
    epochs: float | None
    train_loss: float
    last_loss: float
    eval_loss: float | None
    eval_metrics: dict[str, float]
    message: str
    adapter: str
    seconds: float
    start_seconds: float
    tokens: int
    trainable_parameters: int
    parameters: int
    train_rows: int
    validation_rows: int
    tokens_per_second: float
    device_kind: str
    processes: int
    quantization: str
    peak_memory_bytes: int
    estimated_memory_bytes: int | None
    best_checkpoint: str | None
    difference: NotRequired[JsonObject | None]


def write_report(
    run: RunFolder,
    config: Config,
    prepared: Prepared,
    tokenizer: PreTrainedTokenizerBase,
    state: RunState,
    result: TrainResult,
) -> None:
    """Writes the report of a finished run."""
    facts = run.read_facts()
    seconds = f"{result['seconds']:.0f} s"
    method = "QLoRA" if config.model.quantization != "none" else "LoRA"
    lines = [
        f"# {plain(facts['title'])}",
        "",
        f"{method} of {code(config.model.name)} on {code(config.data.train_file)}, {result['steps']:,} steps in "
        f"{seconds} on {plain(state.device)}, finished on {time.strftime('%Y-%m-%d at %H:%M')}. Run {code(run.id)}.",
        "",
        *_outcome(result),
        *_model(config, state, result),
        *_data(config, prepared),
        *_tokenizer(config, prepared, tokenizer),
        *_training(config, result["processes"]),
        *_results(state, result),
        *_health(state, config, result),
        *_advice(config, prepared, state, result),
        *_cost(state, result, facts),
        *_files(run),
        *_settings(config),
    ]
    write_atomically(run.report, "\n".join(lines) + "\n")


def _outcome(result: TrainResult) -> list[str]:
    """The comparison with the base in words, or that there is none."""
    measured = result.get("difference")
    if not measured:
        return ["Base and adapter were not compared.", ""]
    return [f"**{plain(measured['sentence'])}**", "", plain(measured["rows_sentence"]), ""]


def _model(config: Config, state: RunState, result: TrainResult) -> list[str]:
    lora = config.lora
    share = 100 * result["trainable_parameters"] / max(1, result["parameters"])
    rows = [
        (_title("model.name"), code(config.model.name)),
        (_title("model.revision"), code(config.model.revision) if config.model.revision else "main"),
        (_title("model.quantization"), plain(config.model.quantization)),
        (_title("model.dtype"), plain(state.dtype)),
        (_title("model.attn_implementation"), plain(state.model.attention) if state.model else "unknown"),
        (_title("lora.r"), lora.r),
        (
            _title("lora.lora_alpha"),
            f"{lora.lora_alpha} (scale {lora.lora_alpha / (lora.r**0.5 if lora.use_rslora else lora.r):.4g})",
        ),
        (_title("lora.lora_dropout"), lora.lora_dropout),
        (_title("lora.target_modules"), code(lora.target_modules)),
        (_title("lora.bias"), plain(lora.bias)),
        (_title("lora.init_lora_weights"), plain(lora.init_lora_weights)),
        (
            "Variants",
            ", ".join(name for name, on in (("rsLoRA", lora.use_rslora), ("DoRA", lora.use_dora)) if on) or "none",
        ),
        ("Parameters", f"{result['parameters']:,}"),
        ("Trainable parameters", f"{result['trainable_parameters']:,} ({share:.2f} %)"),
    ]
    return ["## Model and adapter", "", *table(("", ""), rows), ""]


def _data(config: Config, prepared: Prepared) -> list[str]:
    validation_file = config.data.validation_file
    validation = (
        code(validation_file)
        if validation_file
        else f"{100 * config.data.validation_fraction:g} % of the training data"
    )
    rows = [
        (_title("data.train_file"), code(config.data.train_file)),
        (_title("data.validation_file"), validation if len(prepared.validation) else "none"),
        ("Training rows", f"{len(prepared.train):,}"),
        ("Validation rows", f"{len(prepared.validation):,}"),
        ("Invalid rows", f"{len(prepared.bad_rows):,}"),
        ("Rows without a trained token", f"{len(prepared.dropped):,}"),
        ("Fingerprint of data and settings", code(prepared.fingerprint)),
    ]
    return ["## Data", "", prose(reading(prepared)), "", *table(("", ""), rows), ""]


def _tokenizer(config: Config, prepared: Prepared, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    rows = [
        ("Tokenizer", f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens"),
        ("End token", code(str(tokenizer.eos_token))),
        (_title("data.prompt_style"), plain(prepared.template.name)),
        (_title("data.system_prompt"), code(config.data.system_prompt) if config.data.system_prompt else "none"),
        (_title("data.max_length"), f"{config.data.max_length:,}"),
        (_title("data.truncation"), plain(config.data.truncation)),
        (_title("data.train_on"), plain(config.data.train_on)),
        ("Tokens per epoch", f"{int(prepared.train.length.sum()):,}"),
        ("Trained tokens per epoch", f"{int(prepared.train.trained.sum()):,}"),
    ]
    return ["## Template and tokens", "", prose(prepared.template.origin), "", *table(("", ""), rows), ""]


def _training(config: Config, processes: int) -> list[str]:
    flat = flatten(config)
    rows: list[tuple[str, Any]] = [
        ("Effective batch size", f"{effective_batch(config, processes)} rows ({batch_words(config, processes)})"),
    ]
    values = [(_title(path), flat[path]) for path in HYPERPARAMETERS if flat.get(path) is not None]
    rows += [
        (name, ("on" if value else "off") if isinstance(value, bool) else plain(str(value))) for name, value in values
    ]
    return ["## Hyperparameters", "", *table(("", ""), rows), ""]


def _results(state: RunState, result: TrainResult) -> list[str]:
    rows = [
        ("Mean training loss", number(result["train_loss"])),
        ("Final training loss", number(result["last_loss"])),
        ("Final validation loss", number(result["eval_loss"])),
        *(
            (plain(name.replace("_", " ").capitalize()), metric(name, value))
            for name, value in (result.get("eval_metrics") or {}).items()
        ),
        (
            "Best checkpoint",
            code(result["best_checkpoint"]) if result["best_checkpoint"] else "not selected; the last step is used",
        ),
    ]
    lines = ["## Results", "", *table(("", ""), rows), ""]
    measured = result.get("difference")
    if measured:
        comparison = [
            ("Loss (nats/token)", number(measured["base_loss"]), number(measured["adapter_loss"])),
            ("Token accuracy", share(measured["base_token_accuracy"]), share(measured["adapter_token_accuracy"])),
        ]
        lines += ["### Comparison with the base", "", plain(measured["rows_sentence"]), ""]
        lines += [*table(("", "base", "adapter"), comparison), ""]
        lines += [
            f"KL divergence from the base: {number(measured['divergence'])} nats/token. "
            f"Top-1 tokens that differ: {share(measured['changed_tokens'])}.",
            "",
        ]
    if state.evaluations:
        points = [(f"{item.step:,}", f"{item.epoch:.2f}", number(item.loss)) for item in state.evaluations]
        lines += ["### Evaluations", "", *table(("step", "epoch", "validation loss"), points), ""]
    return lines


def _health(state: RunState, config: Config, result: TrainResult) -> list[str]:
    """Problems of the run and how to fix them; no section if there were none."""
    remarks = diagnose(state, config, time.time(), result.get("difference"))
    return ["## Health", "", *(f"- {prose(in_words(item))}" for item in remarks), ""] if remarks else []


def _advice(config: Config, prepared: Prepared, state: RunState, result: TrainResult) -> list[str]:
    """What would likely train a better adapter next time; no section if there is none."""
    items = advise(
        situation(
            config,
            trainable=result["trainable_parameters"],
            rows=len(prepared.train),
            steps=state.total_steps,
            trained_tokens=float(prepared.train.trained.sum()),
        )
    )
    lines = [f"- {plain(f'{item.finding} {item.reason} {item.title}:')} {code(item.flags)}" for item in items]
    return ["## Advice", "", *lines, ""] if lines else []


def _cost(state: RunState, result: TrainResult, facts: Mapping[str, Any]) -> list[str]:
    rows = [
        ("Time", f"{result['seconds']:.0f} s"),
        ("Device", plain(state.device)),
        *([("Processes", f"{result['processes']}, of which memory is that of the first")] * (result["processes"] > 1)),
        ("Peak memory", _memory(result)),
        ("Tokens seen", f"{result['tokens']:,}"),
        ("Tokens/s (without padding)", f"{result['tokens_per_second']:,.0f}"),
        *((plain(name), code(str(version))) for name, version in facts.get("versions", {}).items()),
    ]
    return ["## Time, memory, versions", "", *table(("", ""), rows), ""]


def _files(run: RunFolder) -> list[str]:
    rows = [
        (code(f"{run.adapter.name}/{path.name}"), size(path.stat().st_size)) for path in sorted(run.adapter.iterdir())
    ]
    rows += [
        (code(f"{run.checkpoints.name}/{folder.name}/"), size(bytes_in(folder))) for folder in run.checkpoint_folders()
    ]
    paths: tuple[Path, ...] = (run.config, run.events, run.tensorboard)
    rows += [
        (code(path.name), size(bytes_in(path) if path.is_dir() else path.stat().st_size))
        for path in paths
        if path.exists()
    ]
    return ["## Files", "", *table(("file", "size"), rows), ""]


def _settings(config: Config) -> list[str]:
    default = flatten(defaults_of(config.training.method))
    changed = [(code(path), code(str(value))) for path, value in flatten(config).items() if value != default[path]]
    return ["## Settings that differ from the defaults", "", *table(("setting", "value"), changed)]


def _title(path: str) -> str:
    return next(setting.title for setting in settings() if setting.path == path)


def _memory(result: TrainResult) -> str:
    measured, foreseen = result["peak_memory_bytes"], result.get("estimated_memory_bytes")
    before = f"estimated {foreseen / GIB:.2f} GiB, " if foreseen else ""
    return f"{before}measured {measured / GIB:.2f} GiB"


def final_evaluation(trainer: Trainer, state: RunState) -> Evaluated:
    """The evaluation of the final adapter. It is made only if there is none; `state` follows the events."""
    best = trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint
    step = step_of(str(best)) if best else trainer.state.global_step
    by_step = {evaluation.step: evaluation for evaluation in state.evaluations}
    if step not in by_step:
        trainer.evaluate()
        return state.evaluations[-1]
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
