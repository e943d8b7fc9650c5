"""Advice on settings: changes that save the most memory, and changes that train better adapters by published results.

A saving is computed with the estimate that the page shows, so the form confirms it. Each piece of the other advice is a
function of what is known of a run; its docstring names the source.
"""

import contextlib
import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lora_studio.config.fields import SettingValues
from lora_studio.config.parsing import contradictions
from lora_studio.config.sections import Config
from lora_studio.config.settings import effective_batch
from lora_studio.config.training import LEARNING_RATES
from lora_studio.models.accelerators import DEVICE_KINDS, FOUR_BIT, OPTIMIZER_8BIT, missing
from lora_studio.models.adapter_files import PatternError
from lora_studio.models.memory import Estimate, estimate, settled, trained_adapter, with_settings
from lora_studio.models.notes import Note, model_notes
from lora_studio.models.shape import Architecture, architecture, read_config, shape_of
from lora_studio.models.targets import names
from lora_studio.workspace import shipped_data

SHOWN = 3
FEW_STEPS = 100
"""After fewer optimizer steps an adapter hardly changes the answers."""
MAX_ADVISED_EPOCHS = 30
"""More passes over the same rows make a model repeat them."""
WORTH_IT = 0.01  # of the whole: smaller savings are not worth a person's attention


@dataclass(frozen=True, slots=True)
class Change:
    """A change of settings, by path: what it does, what it costs, and the bytes it saves.

    `kind` is the same for changes of the same setting.
    """

    kind: str
    title: str
    cost: str
    settings: Mapping[str, Any]
    saves: int = 0

    @property
    def flags(self) -> str:
        """The same for the command line."""
        return as_flags(self.settings)


def as_flags(settings: Mapping[str, Any]) -> str:
    """Settings by path as flags of the command line."""
    words = {path: str(value).lower() if isinstance(value, bool) else str(value) for path, value in settings.items()}
    return " ".join(f"--{path} {shlex.quote(value)}" for path, value in words.items())


def best_changes(config: Config, model: Architecture, device: str, longest: int | None = None) -> list[Change]:
    """The three changes that save the most, the largest saving first; fewer where fewer would help.

    `config` has its checkpointing settled (`memory.settled`).
    """
    changes = _useful(config, model, device, longest)
    return sorted(changes, key=lambda change: -change.saves)[:SHOWN]


def _changes(config: Config, device: str, longest: int | None) -> Iterator[Change]:
    """Everything that makes this config smaller and goes with the rest of it, what costs least first."""
    for change in _smaller(config, device, longest):
        if not any(contradictions(with_settings(config, change.settings))):
            yield change


def _smaller(config: Config, device: str, longest: int | None) -> Iterator[Change]:
    training = config.training
    if not training.gradient_checkpointing:
        settings: SettingValues = {"training.gradient_checkpointing": True}
        yield Change("checkpointing", "Turn gradient checkpointing on", "about a third more time per step", settings)
    rows, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
    if rows > 1:
        halved = rows // 2
        settings = {
            "training.per_device_train_batch_size": halved,
            "training.gradient_accumulation_steps": max(1, round(rows * steps / halved)),
        }
        cost = "same effective batch size"
        yield Change("rows", f"Batch size {halved} instead of {rows}", cost, settings)
    small_optimizer = DEVICE_KINDS[device].is_gpu and not missing(device, OPTIMIZER_8BIT)
    if small_optimizer and training.optim.startswith("adamw_torch"):
        yield Change("optimizer", "Use an 8-bit optimizer", "almost none", {"training.optim": "adamw_8bit"})
    if config.model.quantization != "4bit" and not missing(device, FOUR_BIT):
        cost = "slower steps and a quantized base"
        yield Change("quantization", "Load the base in 4-bit", cost, {"model.quantization": "4bit"})
    length = min(config.data.max_length, longest or config.data.max_length)
    if length >= 128:
        yield Change(
            "length",
            f"Max length of {length // 2:,} tokens",
            "longer rows are truncated",
            {"data.max_length": length // 2},
        )
    if config.lora.r >= 8:
        half = config.lora.r // 2
        settings = {"lora.r": half, "lora.lora_alpha": max(1, config.lora.lora_alpha // 2)}
        yield Change("rank", f"LoRA rank {half} instead of {config.lora.r}", "a smaller adapter", settings)
    if config.lora.target_modules.strip() == "all-linear":
        cost = "a smaller adapter, on attention only"
        yield Change("targets", "Target attention only", cost, {"lora.target_modules": "attention"})


def changes_that_fit(
    config: Config, model: Architecture, device: str, available: int, *, longest: int | None = None, factor: float = 1.0
) -> Change | None:
    """The mildest change after which the run fits: one alone, else several together; None where nothing does.

    `factor` corrects what changes with the batch by what was measured: 1.3 for a run that needed 1.3 times as much.
    """
    start = settled(config, model, device, available, longest)
    for change in _changes(start, device, longest):
        if _fits(with_settings(start, change.settings), model, device, available, longest, factor):
            return _measured(start, change, model, device, longest)
    together: SettingValues = {}
    titles: dict[str, str] = {}
    current = start
    while mild := next(_useful(current, model, device, longest), None):
        together |= mild.settings
        titles[mild.kind] = mild.title
        current = with_settings(start, together)
        if _fits(current, model, device, available, longest, factor):
            words = Change("several", "; ".join(titles.values()), "smallest changes first", together)
            return _measured(start, words, model, device, longest)
    return None


def correction(
    config: Config, checkpointing: bool | None, device: str, *, needed: int, available: int
) -> Change | None:
    """The mildest change that fits after a run of `config` ran out of memory; None where nothing does.

    The run needed at least `needed`, and in any case more than there is; that the estimate was lower is laid to what
    grows with the batch. `checkpointing` is what the run chose.
    """
    model = shape_of(config.model.name, config.model.revision)
    if model is None:
        return None
    if checkpointing is not None:
        config = with_settings(config, {"training.gradient_checkpointing": checkpointing})
    config = settled(config, model, device, available)
    now = estimate(config, model, device)
    moving = max(1, now.parts["activations"] + now.parts["logits"])
    short = max(needed, round(1.05 * available)) - now.total
    return changes_that_fit(config, model, device, available, factor=max(1.0, 1 + short / moving))


def _useful(config: Config, model: Architecture, device: str, longest: int | None) -> Iterator[Change]:
    """The changes that save anything worth it, what costs least first."""
    now = estimate(config, model, device, longest).total
    for change in _changes(config, device, longest):
        after = estimate(with_settings(config, change.settings), model, device, longest).total
        if now - after > WORTH_IT * now:
            yield replace(change, saves=now - after)


def _fits(config: Config, model: Architecture, device: str, available: int, longest: int | None, factor: float) -> bool:
    return corrected(estimate(config, model, device, longest), factor) <= 0.95 * available


def corrected(estimate: Estimate, factor: float) -> float:
    """The total with the parts that follow the batch multiplied by what a measurement said of them."""
    moving = estimate.parts["activations"] + estimate.parts["logits"]
    return estimate.total + (factor - 1) * moving


def _measured(config: Config, change: Change, model: Architecture, device: str, longest: int | None) -> Change:
    before = estimate(config, model, device, longest).total
    after = estimate(with_settings(config, change.settings), model, device, longest).total
    return replace(change, saves=before - after)


def notes(config: Config, kind: str) -> tuple[Note, ...]:
    """What to know of a config's base model on that kind of device; nothing for a model that is not on this machine.

    Raises `PatternError` for an expression of `lora.target_modules` that takes too long.
    """
    numbers = read_config(config.model.name, config.model.revision)
    model = architecture(numbers) if numbers else None
    return tuple(model_notes(config, numbers, model, kind)) if numbers and model else ()


@dataclass(frozen=True, slots=True)
class Advice:
    """What would likely train a better adapter: a finding, why it matters, and the change of settings by path."""

    name: str
    finding: str
    reason: str
    title: str
    settings: Mapping[str, Any]

    @property
    def flags(self) -> str:
        """The change for the command line."""
        return as_flags(self.settings)

    @property
    def words(self) -> str:
        """All of it in one line."""
        return f"{self.finding} {self.reason} {self.title}: {self.flags}"


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known of a run; None or empty for what is not.

    `trainable` are the adapter's parameters, `steps` those of the optimizer, `trained_tokens` the tokens of one epoch
    that count in the loss, `labels` the answers with their numbers where the rows are a classification, `desirable` and
    `undesirable` the training rows that KTO takes as good and as bad. `fits` says that there is memory for more.
    """

    config: Config
    model: Architecture | None = None
    trainable: int | None = None
    rows: int | None = None
    steps: int | None = None
    trained_tokens: float | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    desirable: int = 0
    undesirable: int = 0
    fits: bool = True

    @property
    def is_new_adapter(self) -> bool:
        """Whether the settings of the adapter are free; one to continue from brings its own."""
        return self.config.model.adapter_name_or_path is None


def situation(config: Config, **known: Any) -> Situation:
    """The situation of a config, with the numbers of its model where they are on this machine."""
    model = shape_of(config.model.name, config.model.revision)
    if "trainable" not in known and model is not None and model.counted:
        with contextlib.suppress(PatternError):  # too slow for this very model; the checks tell so
            known["trainable"] = trained_adapter(config, model).trainable
    return Situation(config, model, **known)


def label_counts(report: Mapping[str, Any]) -> dict[str, int]:
    """The answers of classification data with their numbers, off a report on prepared data; {} for other data."""
    labels = (report.get("hygiene") or {}).get("labels") or {}
    return {str(label): int(number) for label, number in labels.get("counts", {}).items()}


def desirable_counts(report: Mapping[str, Any], method: str) -> tuple[int, int]:
    """How many training rows KTO takes as good and as bad, off a report on prepared data: labelled ones, or both sides
    of each pair; 0 for other data or another method."""
    if method != "kto":
        return 0, 0
    if report.get("format") == "preference":
        pairs = int(report.get("train_rows", 0)) if not report.get("desirable_rows") else 0
        return pairs or int(report["desirable_rows"]), pairs or int(report["undesirable_rows"])
    return int(report.get("desirable_rows", 0)), int(report.get("undesirable_rows", 0))


def trained_tokens(report: Mapping[str, Any]) -> float:
    """Tokens of the training rows that count in the loss, off a report on prepared data; 0 where it has none."""
    rows = report.get("train_rows", 0) + report.get("validation_rows", 0)
    return float(report.get("trained_tokens", 0)) * report.get("train_rows", 0) / rows if rows else 0.0


def optimizer_steps(config: Config, rows: int) -> int:
    """The optimizer steps of a whole run on so many rows or packs."""
    training = config.training
    if training.max_steps > 0:
        return training.max_steps
    batches = math.ceil(rows / (training.per_device_train_batch_size * config.compute.world_size))
    per_epoch = max(1, math.ceil(batches / training.gradient_accumulation_steps))
    return math.ceil(per_epoch * training.num_train_epochs)


def advise(run: Situation) -> tuple[Advice, ...]:
    """All advice on a run, what matters most first; no setting twice, and nothing that the schema refuses."""
    advised: set[str] = set()
    items = []
    for adviser in ADVISERS:
        item = adviser(run)
        if item is None or advised & item.settings.keys():
            continue
        if any(contradictions(with_settings(run.config, item.settings))):
            continue
        advised |= item.settings.keys()
        items.append(item)
    return tuple(items)


RATE = "training.learning_rate"
DIVERGED: Mapping[str, float] = {"sft": 2e-3, "dpo": 5e-5, "kto": 5e-6}
TINY = 100_000_000
"""Models of fewer parameters need higher learning rates than any published for LoRA."""


def rate_too_high(run: Situation) -> Advice | None:
    """The learning rate is in the range that diverged elsewhere.

    SFT: 72 of 80 runs over 27 models did at 3e-3, and 1e-3 was the highest best rate (tinker-cookbook, sft_sweep.md).
    DPO: LoRA takes 5e-6 (trl, peft_integration); ten times that is the limit. KTO: 5e-7 to 5e-6 (trl, kto_trainer).
    The sweep has no tiny model.
    """
    training = run.config.training
    if training.learning_rate < DIVERGED[training.method] or (run.model and run.model.parameters < TINY):
        return None
    rate = (published_rate(run.config.model.name) if training.method == "sft" else None) or LEARNING_RATES[
        training.method
    ]
    reason = "72 of 80 published LoRA runs diverged at 3e-3."
    if training.method != "sft":
        reason = f"{_power(LEARNING_RATES[training.method])} is usual for LoRA with {training.method.upper()}."
    finding = f"A learning rate of {_power(training.learning_rate)} is likely to diverge."
    return Advice("rate", finding, reason, f"Set learning rate to {_power(rate)}", {RATE: rate})


BEST_RATES: Mapping[str, float] = {
    **dict.fromkeys(("llama-3.2-1b", "llama-3.2-3b", "qwen3-4b", "qwen3-8b", "qwen3-30b-a3b"), 1e-3),
    **dict.fromkeys(("qwen3-32b", "qwen3.5-4b", "qwen3.5-27b", "qwen3.5-35b-a3b"), 3e-4),
    **dict.fromkeys(("llama-3.1-8b", "llama-3.1-70b"), 3e-4),
    "nemotron-3-nano": 4e-4,
    "gpt-oss-20b": 1e-4,
}
"""The best learning rate of LoRA in SFT at batch 128, by model (tinker-cookbook, `hyperparam_utils.get_lr`)."""
FAR = 3.0
"""Times that a rate is off the published one before it is worth a word: the losses of neighbours hardly differ."""


def published_rate(model: str) -> float | None:
    """The best learning rate that is published for a model, its variants included; None for another one."""
    name = model.rstrip("/").rpartition("/")[2].lower().removeprefix("meta-")
    for known, rate in BEST_RATES.items():
        if name == known or name.startswith((f"{known}-", f"{known}_")):
            return rate
    return None


def rate_of_family(run: Situation) -> Advice | None:
    """SFT at a rate far from the best published one of this model (tinker-cookbook, `hyperparam_utils.get_lr`, found at
    batch 128; sft_sweep.md: Qwen3-8B ends at .5605 with 4e-5 and at .5405 with 1e-3)."""
    training, name = run.config.training, run.config.model.name
    rate = published_rate(name) if training.method == "sft" else None
    if rate is None or 1 / FAR < training.learning_rate / rate < FAR:
        return None
    finding = f"The best published learning rate of this model is {_power(rate)}, not {_power(training.learning_rate)}."
    reason = "It was found at an effective batch of 128."
    return Advice("family-rate", finding, reason, f"Set learning rate to {_power(rate)}", {RATE: rate})


MAX_ADVISED_RANK = 256


def capacity(run: Situation) -> Advice | None:
    """SFT with more trained tokens than the adapter has parameters: LoRA keeps up with full fine-tuning while its
    parameters are at least the trained tokens (Tinker documentation, LoRA primer)."""
    lora, trainable, tokens = run.config.lora, run.trainable, run.trained_tokens
    if not trainable or not tokens or tokens <= trainable or run.config.training.method != "sft":
        return None
    if not run.is_new_adapter or not run.fits:
        return None
    rank = min(MAX_ADVISED_RANK, 2 ** math.ceil(math.log2(lora.r * tokens / trainable)))
    if rank <= lora.r:
        return None
    settings: SettingValues = {"lora.r": rank}
    if rank >= HIGH_RANK:
        settings["lora.use_rslora"] = True
    elif not lora.use_rslora:
        settings["lora.lora_alpha"] = max(1, round(lora.lora_alpha * rank / lora.r))  # the same scale
    finding = f"{_millions(tokens)} trained tokens are more than the adapter's {_millions(trainable)} parameters."
    reason = "An adapter keeps up with full fine-tuning while it is the larger of the two."
    return Advice("capacity", finding, reason, f"Set LoRA rank to {rank}", settings)


ATTENTION_MODULES = frozenset(
    ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj", "query_key_value", "c_attn", "Wqkv")
)


def few_targets(run: Situation) -> Advice | None:
    """An adapter on attention alone, or on queries and values: all linear layers are better at any rank ("LoRA Without
    Regret", Thinking Machines 2025; Biderman et al. 2024, arXiv:2405.09673: all > MLP > attention; peft
    method_comparison: r32 on q, v 47.8 % against 49.4 % on the MLP alone at the same size)."""
    targets = run.config.lora.target_modules.strip()
    modules = set(names(targets))
    if targets not in ("attention", "q_v") and not (modules and modules <= ATTENTION_MODULES):
        return None
    if not run.is_new_adapter or not run.fits:
        return None
    settings: SettingValues = {"lora.target_modules": "all-linear"}
    if run.model and run.model.stacks and run.config.lora.lora_dropout:
        settings["lora.lora_dropout"] = 0.0  # peft has none on stacked experts
    finding = "The adapter is on attention only."
    reason = "All linear layers learn more, at the same size too."
    return Advice("targets", finding, reason, "Target all linear layers", settings)


MAX_BATCH = 32


def large_batch(run: Situation) -> Advice | None:
    """An effective batch above 32: LoRA loses more by large batches than full fine-tuning does, whatever the rank
    ("LoRA Without Regret", Thinking Machines 2025)."""
    rows, processes, batch = (
        run.config.training.per_device_train_batch_size,
        run.config.compute.world_size,
        effective_batch(run.config),
    )
    most = max(1, MAX_BATCH // processes)  # rows of each process
    if batch <= max(MAX_BATCH, processes):
        return None
    settings: SettingValues = {"training.gradient_accumulation_steps": max(1, most // rows)}
    if rows > most:
        settings["training.per_device_train_batch_size"] = most
    after = min(rows, most) * max(1, most // rows) * processes
    finding = f"An effective batch of {batch:,} is large for LoRA."
    reason = f"LoRA learns less per row above {MAX_BATCH}."
    return Advice("batch", finding, reason, f"Set the effective batch to {after}", settings)


HIGH_RANK = 64


def high_rank(run: Situation) -> Advice | None:
    """Rank 64 or more without rsLoRA: r64 with rsLoRA and alpha 64 scored 51.3 %, with alpha 128 alone 47.4 % (peft
    method_comparison, MetaMathQA; Kalajdzievski 2023, arXiv:2312.03732)."""
    lora = run.config.lora
    if lora.r < HIGH_RANK or lora.use_rslora or not run.is_new_adapter:
        return None
    settings: SettingValues = {"lora.use_rslora": True}
    if lora.lora_alpha > lora.r:
        settings["lora.lora_alpha"] = lora.r
    finding = f"Rank {lora.r} is scaled by alpha / r, which limits high ranks."
    reason = "In peft's comparison rsLoRA raised rank 64 from 47.4 % to 51.3 %."
    return Advice("rslora", finding, reason, "Turn rsLoRA on", settings)


def costly_dora(run: Situation) -> Advice | None:
    """DoRA: 1190 s against 966 s at rank 64, and 46.9 % against 47.4 % (peft method_comparison, MetaMathQA)."""
    if not run.config.lora.use_dora or not run.is_new_adapter:
        return None
    finding = "DoRA takes about a quarter more time."
    reason = "In peft's comparison it was no better: 46.9 % against 47.4 %."
    return Advice("dora", finding, reason, "Turn DoRA off", {"lora.use_dora": False})


MANY_ROWS = 10_000
MANY_EPOCHS = 3


def many_epochs(run: Situation) -> Advice | None:
    """More than 3 passes over 10,000 rows or more: Alpaca took 3 over 52,000 (Taori et al. 2023), and further passes
    make an adapter forget more than they teach it (Biderman et al. 2024, arXiv:2405.09673)."""
    training = run.config.training
    if run.rows is None or run.rows < MANY_ROWS or training.max_steps > 0 or training.num_train_epochs <= MANY_EPOCHS:
        return None
    finding = f"{training.num_train_epochs:g} epochs are many for {run.rows:,} rows."
    reason = "Further passes forget more than they teach."
    settings = {"training.num_train_epochs": float(MANY_EPOCHS)}
    return Advice("epochs", finding, reason, f"Set epochs to {MANY_EPOCHS}", settings)


def few_steps(run: Situation) -> Advice | None:
    """Under 100 optimizer steps on own data: LoRA then takes 15 times the rate of full fine-tuning instead of 10, or
    more steps ("LoRA Without Regret", Thinking Machines 2025). Built-in data has its epochs in its presets."""
    training, steps = run.config.training, run.steps
    if not steps or steps >= FEW_STEPS or training.max_steps > 0 or run.config.data.train_file in shipped_data():
        return None
    epochs = min(MAX_ADVISED_EPOCHS, math.ceil(FEW_STEPS * training.num_train_epochs / steps))
    if epochs <= training.num_train_epochs:
        return None
    finding = f"{steps:,} {'step' if steps == 1 else 'steps'} may be too few for this dataset."
    reason = f"Under about {FEW_STEPS} an adapter hardly changes the answers."
    settings = {"training.num_train_epochs": float(epochs)}
    return Advice("steps", finding, reason, f"Set epochs to {epochs}", settings)


def no_validation(run: Situation) -> Advice | None:
    """Nothing is held out: overfitting shows in the validation loss (Prechelt 1998, doi:10.1007/3-540-49430-8_3)."""
    data = run.config.data
    if data.validation_file or data.validation_fraction > 0:
        return None
    settings: SettingValues = {"data.validation_fraction": 0.1}
    if run.config.evaluation.eval_strategy == "no":
        settings["evaluation.eval_strategy"] = "epoch"
    finding = "There are no validation rows."
    return Advice("validation", finding, "Overfitting shows in their loss only.", "Hold out 10 % of the rows", settings)


BALANCE = (1.0, 4 / 3)
"""The range of good answers times their weight, relative to bad answers times theirs (arXiv:2402.01306, eq. 8)."""


def suggested_weights(good: int, bad: int, desirable_weight: float, undesirable_weight: float) -> SettingValues:
    """The weights with which so many good and bad answers are in the range of KTO's paper; {} where they are.

    The rarer label gets the weight, as small as the range allows, and the other one 1.
    """
    low, high = BALANCE
    if not good or not bad or low <= good * desirable_weight / (bad * undesirable_weight) <= high:
        return {}
    ratio = good / bad
    up = max(1.0, math.ceil(100 * low / ratio) / 100)
    down = max(1.0, math.ceil(100 * ratio / high) / 100)
    return {"preference.desirable_weight": up, "preference.undesirable_weight": down}


def uneven_labels(run: Situation) -> Advice | None:
    """KTO with more bad than good answers, or the reverse, and weights that do not make up for it (Ethayarajh et al.
    2024, arXiv:2402.01306, section 4.1: good times weight over bad times weight between 1 and 4/3)."""
    if run.config.training.method != "kto":
        return None
    preference, good, bad = run.config.preference, run.desirable, run.undesirable
    settings = suggested_weights(good, bad, preference.desirable_weight, preference.undesirable_weight)
    if not settings:
        return None
    finding = f"{good:,} good and {bad:,} bad answers do not weigh alike."
    up, down = settings.values()
    weight = f"desirable weight to {up:g}" if down == 1 else f"undesirable weight to {down:g}"
    reason = "With these weights one label outweighs the other."
    return Advice("weights", finding, reason, f"Set {weight}", settings)


ONE_SIDED = 0.8
MAX_LABELS = 20


def one_label(run: Situation) -> Advice | None:
    """Four of five answers are the same label: always answering it looks accurate, F1 shows it (He and Garcia 2009,
    "Learning from Imbalanced Data", doi:10.1109/TKDE.2008.239)."""
    labels, evaluation = run.labels, run.config.evaluation
    if not 2 <= len(labels) <= MAX_LABELS or evaluation.labels or any("," in label for label in labels):
        return None
    label, most = max(labels.items(), key=lambda item: item[1])
    share = most / sum(labels.values())
    if share < ONE_SIDED:
        return None
    settings: SettingValues = {"evaluation.labels": ", ".join(labels)}
    if evaluation.load_best_model_at_end or evaluation.early_stopping_patience:
        settings["evaluation.metric_for_best_model"] = "f1"
    finding = f"{100 * share:.0f} % of the answers are “{label}”."
    reason = "Always answering it looks accurate; F1 shows it."
    return Advice("label", finding, reason, "Measure accuracy and F1", settings)


def _power(rate: float) -> str:
    """A learning rate as people write it: 2e-4."""
    mantissa, _, exponent = f"{rate:.1e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _millions(value: float) -> str:
    return f"{value / 1e6:,.1f} M" if value >= 1e6 else f"{value:,.0f}"


ADVISERS: tuple[Callable[[Situation], Advice | None], ...] = (
    rate_too_high,
    rate_of_family,
    uneven_labels,
    few_steps,
    no_validation,
    few_targets,
    capacity,
    high_rank,
    large_batch,
    many_epochs,
    one_label,
    costly_dora,
)
"""What matters most first."""
