"""The result of a finished run, and report.md: its base, data and settings, and its results compared with the base."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from transformers import PreTrainedTokenizerBase, Trainer

from lora_studio.config.sections import Config
from lora_studio.config.settings import flatten
from lora_studio.data.dataset import Prepared
from lora_studio.data.report import reading
from lora_studio.files import JsonObject, bytes_in
from lora_studio.jobs.events import Evaluated, RunState, StepLogged
from lora_studio.runs.health import diagnose, in_words
from lora_studio.runs.summary import code, metric, number, plain, prose, share, table
from lora_studio.units import GIB, size
from lora_studio.workspace import RunFolder, step_of, write_atomically

HYPERPARAMETERS = (
    ("epochs", "training.num_train_epochs"),
    ("most steps (-1: no limit)", "training.max_steps"),
    ("learning rate", "training.learning_rate"),
    ("schedule", "training.lr_scheduler_type"),
    ("share of steps for the warm-up", "training.warmup_ratio"),
    ("steps of the warm-up, where they are given", "training.warmup_steps"),
    ("optimizer", "training.optim"),
    ("weight decay", "training.weight_decay"),
    ("gradient clipping", "training.max_grad_norm"),
    ("rows at once when evaluating", "evaluation.per_device_eval_batch_size"),
    ("packing", "training.packing"),
    ("order of rows", "training.train_sampling_strategy"),
    ("checkpoints", "training.save_strategy"),
    ("evaluation", "evaluation.eval_strategy"),
    ("seed", "training.seed"),
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
    tokens: int
    trainable_parameters: int
    parameters: int
    train_rows: int
    validation_rows: int
    tokens_per_second: float
    device_kind: str
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
        *_training(config),
        *_results(state, result),
        *_health(state, config, result),
        *_cost(state, result, facts),
        *_files(run),
        *_settings(config),
    ]
    write_atomically(run.report, "\n".join(lines) + "\n")


def _outcome(result: TrainResult) -> list[str]:
    """The comparison with the base in words, or that there is none."""
    measured = result.get("difference")
    if not measured:
        return ["Base and adapter were not measured side by side.", ""]
    return [f"**{plain(measured['sentence'])}**", "", plain(measured["rows_sentence"]), ""]


def _model(config: Config, state: RunState, result: TrainResult) -> list[str]:
    lora = config.lora
    share = 100 * result["trainable_parameters"] / max(1, result["parameters"])
    rows = [
        ("base model", code(config.model.name)),
        ("revision", code(config.model.revision) if config.model.revision else "newest, or the folder's"),
        ("quantization", plain(config.model.quantization)),
        ("precision", plain(state.dtype)),
        ("attention", plain(state.model.attention) if state.model else "not known"),
        ("rank (r)", lora.r),
        ("alpha", f"{lora.lora_alpha} (scale {lora.lora_alpha / (lora.r**0.5 if lora.use_rslora else lora.r):.4g})"),
        ("dropout", lora.lora_dropout),
        ("target modules", code(lora.target_modules)),
        ("bias", plain(lora.bias)),
        ("first weights", plain(lora.init_lora_weights)),
        (
            "variants",
            ", ".join(name for name, on in (("rsLoRA", lora.use_rslora), ("DoRA", lora.use_dora)) if on) or "none",
        ),
        ("parameters", f"{result['parameters']:,}"),
        ("of them trained", f"{result['trainable_parameters']:,} ({share:.2f} %)"),
    ]
    return ["## Model and adapter", "", *table(("", ""), rows), ""]


def _data(config: Config, prepared: Prepared) -> list[str]:
    validation_file = config.data.validation_file
    validation = (
        code(validation_file)
        if validation_file
        else f"{100 * config.data.validation_fraction:g} % of the rows kept back"
    )
    rows = [
        ("training data", code(config.data.train_file)),
        ("validation data", validation if len(prepared.validation) else "none"),
        ("rows to train on", f"{len(prepared.train):,}"),
        ("rows to measure on", f"{len(prepared.validation):,}"),
        ("rows that could not be read", f"{len(prepared.bad_rows):,}"),
        ("rows without a trained token", f"{len(prepared.dropped):,}"),
        ("fingerprint of files and settings", code(prepared.fingerprint)),
    ]
    return ["## Data", "", prose(reading(prepared)), "", *table(("", ""), rows), ""]


def _tokenizer(config: Config, prepared: Prepared, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    rows = [
        ("tokenizer", f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens"),
        ("end token", code(str(tokenizer.eos_token))),
        ("prompt style", plain(prepared.template.name)),
        ("system prompt", code(config.data.system_prompt) if config.data.system_prompt else "none"),
        ("longest row", f"{config.data.max_length:,} tokens"),
        ("rows that are too long", plain(config.data.truncation)),
        ("trained part", plain(config.data.train_on)),
        ("tokens an epoch", f"{int(prepared.train.length.sum()):,}"),
        ("of them trained", f"{int(prepared.train.trained.sum()):,}"),
    ]
    return ["## Template and tokens", "", prose(prepared.template.origin), "", *table(("", ""), rows), ""]


def _training(config: Config) -> list[str]:
    flat, training = flatten(config), config.training
    at_once, accumulated = training.per_device_train_batch_size, training.gradient_accumulation_steps
    rows: list[tuple[str, Any]] = [("effective batch", f"{at_once * accumulated} rows ({at_once} × {accumulated})")]
    values = [(name, flat[path]) for name, path in HYPERPARAMETERS if flat.get(path) is not None]
    rows += [
        (name, ("on" if value else "off") if isinstance(value, bool) else plain(str(value))) for name, value in values
    ]
    return ["## Hyperparameters", "", *table(("", ""), rows), ""]


def _results(state: RunState, result: TrainResult) -> list[str]:
    rows = [
        ("training loss, mean", number(result["train_loss"])),
        ("training loss at the end", number(result["last_loss"])),
        ("validation loss", number(result["eval_loss"])),
        *(
            (plain(name.replace("_", " ")), metric(name, value))
            for name, value in (result.get("eval_metrics") or {}).items()
        ),
        (
            "best checkpoint",
            code(result["best_checkpoint"]) if result["best_checkpoint"] else "not chosen: the last step",
        ),
    ]
    lines = ["## Results", "", *table(("", ""), rows), ""]
    measured = result.get("difference")
    if measured:
        comparison = [
            ("loss, nats a token", number(measured["base_loss"]), number(measured["adapter_loss"])),
            ("token accuracy", share(measured["base_token_accuracy"]), share(measured["adapter_token_accuracy"])),
        ]
        lines += ["### Beside the base", "", plain(measured["rows_sentence"]), ""]
        lines += [*table(("", "base", "adapter"), comparison), ""]
        lines += [
            f"KL divergence of the adapter from the base (0 is the same): {number(measured['divergence'])} nats a "
            f"token. Likeliest next tokens that differ: {share(measured['changed_tokens'])}.",
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


def _cost(state: RunState, result: TrainResult, facts: Mapping[str, Any]) -> list[str]:
    rows = [
        ("time", f"{result['seconds']:.0f} s"),
        ("device", plain(state.device)),
        ("most memory", _memory(result)),
        ("tokens seen", f"{result['tokens']:,}"),
        ("real tokens a second", f"{result['tokens_per_second']:,.0f}"),
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
    default = flatten(Config())
    changed = [(code(path), code(str(value))) for path, value in flatten(config).items() if value != default[path]]
    return ["## Settings that are not at their default", "", *table(("setting", "value"), changed)]


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
