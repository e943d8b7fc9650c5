"""The plan of a run before it starts: rows, steps, time and memory, and the card beside the form that shows it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.config.sections import Config, Data
from lora_studio.errors import StudioError
from lora_studio.jobs.preflight import ASK, FAILED, NOTE, OK, ROUGH, Report
from lora_studio.jobs.session import FileSummary, count_rows
from lora_studio.models.adapters import continued
from lora_studio.models.advice import SHOWN, Change, best_changes
from lora_studio.models.hardware import Device, recent_devices
from lora_studio.models.memory import MIB, PARTS, Estimate, estimate, settled, verdict
from lora_studio.models.shape import architecture, read_config
from lora_studio.runs.summary import Speed, speed
from lora_studio.ui.data.choice import DataLook
from lora_studio.ui.html import hint, render, tiles
from lora_studio.ui.words import clock, figure
from lora_studio.units import GIB
from lora_studio.workspace import Workspace, shipped_data

GUESSED = "a guess"
"""The verdict on a model whose parameters could not be counted: nothing is promised of it."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The estimate against the device: "fits", "tight", "does not fit" or "a guess", and the changes that save most.

    `assumed_tokens` is the length that every row is taken to have while nobody has looked at the data.
    """

    estimate: Estimate
    device: Device
    available: int
    verdict: str
    changes: tuple[Change, ...]
    assumed_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """`rows` are training rows; `seconds` is the time of training alone. None is what is not known beforehand.

    `reading` says how the data is read, what is assumed and what the first row trains or answers.
    """

    effective_batch: int
    rows: int | None = None
    steps: int | None = None
    seconds: float | None = None
    memory: MemoryPlan | None = None
    reading: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the data tab found of the same data with the same tokenizer: tokens of the longest and of the mean row."""

    longest: int
    mean: float
    packs: int


def plan(config: Config, workspace: Workspace, look: DataLook | None = None, *, busy: bool = False) -> Plan:
    """The run that a config describes. `look` is what the data tab found last; `busy` says that a run of ours holds the
    device until this one begins."""
    training = config.training
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
    measured, rows = seen_data(config, look), training_rows(config, look)
    steps = total_steps(config, rows, measured)
    device = recent_devices()[0]
    earlier = speed(
        workspace,
        model=config.model.name,
        quantization=config.model.quantization,
        device=device.kind,
        data=config.data.train_file,
    )
    memory = needed_memory(_as_trained(config, workspace), device, measured.longest if measured else None, busy=busy)
    return Plan(batch, rows, steps, seconds(config, steps, earlier, measured), memory, reading(config, look))


def _as_trained(config: Config, workspace: Workspace) -> Config:
    """The config with the settings of an adapter to continue from; one that can't be is told by the checks."""
    try:
        return continued(config, workspace)
    except StudioError:
        return config


def needed_memory(config: Config, device: Device, longest: int | None, *, busy: bool) -> MemoryPlan | None:
    """The estimate for the config; None for a model whose numbers are not here."""
    numbers = read_config(config.model.name, config.model.revision)
    model = architecture(numbers) if numbers else None
    if model is None:
        return None
    available = device.memory_total if busy else device.memory_free
    resolved = settled(config, model, device.kind, available, longest)
    estimated = estimate(resolved, model, device.kind, longest)
    changes = best_changes(resolved, model, device.kind, longest)
    assumed = config.data.max_length if longest is None else None
    outcome = verdict(estimated.total, available) if model.counted else GUESSED
    return MemoryPlan(estimated, device, available, outcome, tuple(changes), assumed)


def seen_data(config: Config, look: DataLook | None) -> Seen | None:
    """What the data tab last found, where it looked at this data with this model's tokenizer."""
    if look is None or any(look.settings.get(path) != value for path, value in _looked_at(config).items()):
        return None
    limit = config.data.max_length
    return Seen(min(limit, look.longest), min(limit, look.mean), look.packs)


def _looked_at(config: Config) -> dict[str, str | int]:
    return {
        "model.name": config.model.name,
        "data.train_file": config.data.train_file,
        "data.max_length": config.data.max_length,
        "data.train_on": config.data.train_on,
    }


def training_rows(config: Config, look: DataLook | None) -> int | None:
    """Rows that are left to train on after the split, where the data was looked at or is quick to count."""
    data, counts = config.data, counted(config, look)
    if counts and counts.exact:
        return counts.train_rows
    usable = counts.usable_rows if counts else _quick_look(config).rows
    if usable is None:
        return None
    validation = 0 if data.validation_file else round(usable * data.validation_fraction)
    return min(usable - validation, data.max_samples or usable)


def reading(config: Config, look: DataLook | None) -> str:
    """How the data is read, in sentences: as the data tab did, or by a quick look; "" where neither could."""
    counts = counted(config, look)
    return counts.reading if counts and counts.exact and counts.reading else _quick_look(config).reading


def _quick_look(config: Config) -> FileSummary:
    data = config.data
    return count_rows(data_path(data.train_file), config.training.goal, data.mapping or None, data.encoding)


@dataclass(frozen=True, slots=True)
class Counted:
    """Rows as the data tab counted and read them; `exact` where it did so under the very settings of the form."""

    usable_rows: int
    train_rows: int
    exact: bool
    reading: str


def counted(config: Config, look: DataLook | None) -> Counted | None:
    """What the data tab counted, where it looked at this data, read as the run will read it."""
    if look is None:
        return None
    settings = look.settings
    data_settings = {path.removeprefix("data."): value for path, value in settings.items() if path.startswith("data.")}
    then, now = (
        {**data, "bad_rows": None} for data in ({**Data().model_dump(), **data_settings}, config.data.model_dump())
    )
    if any(then[name] != now[name] for name in ("train_file", "mapping")):
        return None
    exact = then == now and settings["model.name"] == config.model.name
    return Counted(look.usable_rows, look.train_rows, exact, look.reading)


def total_steps(config: Config, rows: int | None, measured: Seen | None) -> int | None:
    """Optimizer steps of the whole run; packed rows can only be counted after a look at the data."""
    training = config.training
    if training.max_steps > 0:
        return training.max_steps
    units = measured.packs if training.packing and measured else None if training.packing else rows
    if units is None:
        return None
    batches = math.ceil(units / training.per_device_train_batch_size)
    per_epoch = max(1, math.ceil(batches / training.gradient_accumulation_steps))
    return math.ceil(per_epoch * training.num_train_epochs)


def seconds(config: Config, steps: int | None, earlier: Speed | None, measured: Seen | None) -> float | None:
    """Time of training at the speed of an earlier run, by real tokens."""
    if steps is None or earlier is None:
        return None
    training = config.training
    mean = measured.mean if measured else earlier.tokens_per_row if earlier.data == config.data.train_file else None
    if training.packing:
        mean = float(config.data.max_length)
    if mean is None:
        return None
    rows = steps * training.per_device_train_batch_size * training.gradient_accumulation_steps
    return rows * mean / earlier.tokens_per_second


def data_path(name: str) -> Path:
    """The file that a config's training data names."""
    shipped = shipped_data()
    return shipped[name].train if name in shipped else Path(name).expanduser()


VERDICTS = {
    "fits": ("good", "Fits"),
    "tight": ("warn", "Tight: it may or may not fit"),
    "does not fit": ("bad", "Does not fit"),
    "a guess": ("warn", "Not known"),
}
GUESS = "A guess: this kind of model is counted when the run is checked before its start."
LOOK = "press “Look at this data” on the Data tab"
NO_ROWS = f"The rows of this data are not counted yet: {LOOK}, then they stand here."
NO_PACKS = f"How many steps there are depends on how the rows fill the packs: with these settings, {LOOK}."
SIGNS = {OK: ("good", "✓"), NOTE: ("warn", "!"), ASK: ("warn", "?"), FAILED: ("bad", "✗")}
SPOKEN = {OK: "all right", NOTE: "worth knowing", ASK: "to decide", FAILED: "failed"}


def gib(octets: float) -> str:
    """An amount of memory as it is compared: 4 MiB, 0.42 GiB, 1.4 GiB, 123 GiB."""
    value = octets / GIB
    if value < 0.1:
        return f"{octets / MIB:.0f} MiB"
    return f"{value:,.0f} GiB" if value >= 100 else f"{value:.1f} GiB" if value >= 1 else f"{value:.2f} GiB"


def numbers_markup(planned: Plan | None) -> str:
    """Batch, rows, steps and time as tiles; `None` stands for settings that are not right yet."""
    if planned is None:
        return tiles([("–", name, "") for name in ("Effective batch", "Training rows", "Steps", "Time")])
    timed = planned.seconds is not None
    trained = planned.memory.estimate if planned.memory else None
    facts = [
        (f"{planned.effective_batch:,}", "Effective batch", "rows a step"),
        ("–" if planned.rows is None else f"{planned.rows:,}", "Training rows", ""),
        ("–" if planned.steps is None else figure(planned.steps), "Steps", "about"),
        (
            clock(planned.seconds) if timed else "–",
            "Time",
            "as fast as before" if timed else "unknown until a first run",
        ),
    ]
    if trained:
        share = f"{100 * trained.share:.2f} % of {_short(trained.parameters)}"
        facts += [(_short(trained.trainable), "Trained parameters", share)]
    missing = NO_ROWS if planned.rows is None else NO_PACKS if planned.steps is None else ""
    above, below = hint(missing) if missing else "", hint(planned.reading, "plan-reading") if planned.reading else ""
    return above + tiles(facts) + below


def _short(value: int) -> str:
    """Parameters as people say them: 10.1 M, 606 M, 8.19 B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def memory(needed: MemoryPlan | None) -> str:
    """The verdict, a bar of the parts against the memory there is, and a line for each part."""
    if needed is None:
        return render("train.no_memory")
    estimate, room = needed.estimate, max(needed.available, needed.estimate.total)
    notes = [] if estimate.exact else [f"A rough estimate: {ROUGH}." if estimate.counted else GUESS]
    if needed.assumed_tokens is not None:
        notes.append(
            f"Counted for rows of {needed.assumed_tokens:,} tokens, the most allowed. For the real ones, {LOOK}."
        )
    if estimate.gradient_checkpointing:
        notes.append("With gradient checkpointing.")
    parts = [(key, 100 * octets / room, gib(octets), *PARTS[key]) for key, octets in estimate.parts.items()]
    total, available = gib(estimate.total), gib(needed.available)
    return render("train.memory", VERDICTS[needed.verdict], total, available, needed.device.name, parts, notes)


def change_label(change: Change) -> str:
    """What a button that applies a change says."""
    return f"{change.title}: saves {gib(change.saves)}"


def checks(report: Report) -> str:
    """Every check with its number, and what to do about those that are not all right."""
    rows = [(check, *SIGNS[check.state], SPOKEN[check.state]) for check in report.checks]
    kind = "error" if report.state == FAILED else "warning" if report.state == ASK else "good"
    return render("train.checks", report.words, kind, rows)


@dataclass(frozen=True)
class Card:
    """The card's components. `offered` holds the settings, by path, that each button writes into the form."""

    numbers: gr.HTML
    memory: gr.HTML
    fetch: gr.Button
    error_box: gr.HTML
    heading: gr.HTML
    buttons: tuple[gr.Button, ...]
    offered: gr.State

    @property
    def outputs(self) -> list[Any]:
        """Everything that a change of the form may change."""
        return [self.numbers, self.memory, self.fetch, self.error_box, self.heading, *self.buttons, self.offered]


def draw() -> Card:
    """Draws the card; nothing is known yet."""
    numbers = gr.HTML(numbers_markup(None), elem_id="plan")
    memory = gr.HTML(elem_id="plan-memory")
    fetch = gr.Button("Look up this model's size", size="sm", visible=False, elem_id="plan-fetch")
    error_box = gr.HTML(visible=False, elem_id="plan-said")
    heading = gr.HTML('<h3 class="part">What would save most memory</h3>', visible=False)
    buttons = tuple(
        gr.Button(size="sm", visible=False, elem_id=f"plan-change-{number}", elem_classes="plan-change")
        for number in range(1, SHOWN + 1)
    )
    return Card(numbers, memory, fetch, error_box, heading, buttons, gr.State([]))


def updates(card: Card, planned: Plan | None) -> dict[Any, Any]:
    """What the card shows of a plan; None stands for settings that are not right yet."""
    if planned is None:
        hidden: dict[Any, Any] = {button: gr.Button(visible=False) for button in card.buttons}
        blank = {card.memory: "", card.fetch: gr.Button(visible=False), card.heading: gr.HTML(visible=False)}
        return {card.numbers: numbers_markup(None), **blank, **hidden, card.offered: []}
    changes = planned.memory.changes if planned.memory else ()
    labels = [change_label(change) for change in changes]
    labels += [""] * (len(card.buttons) - len(labels))
    return {
        card.numbers: numbers_markup(planned),
        card.memory: memory(planned.memory),
        card.fetch: gr.Button(visible=planned.memory is None),
        card.error_box: gr.HTML(visible=False),
        card.heading: gr.HTML(visible=bool(changes)),
        **{button: gr.Button(label, visible=bool(label)) for button, label in zip(card.buttons, labels, strict=True)},
        card.offered: [dict(change.settings) for change in changes],
    }


def wire(
    card: Card,
    inputs: list[Any],
    outputs: list[Any],
    apply: Callable[[Mapping[str, Any], list[Any]], dict[Any, Any]],
    quiet: Mapping[str, Any],
) -> None:
    """Each button hands its change to `apply`, with the values of `inputs`."""

    def press(number: int) -> Callable[..., dict[Any, Any]]:
        def pressed(offered: list[Mapping[str, Any]], *values: Any) -> dict[Any, Any]:
            return apply(offered[number] if number < len(offered) else {}, list(values))

        return pressed

    for number, button in enumerate(card.buttons):
        button.click(press(number), [card.offered, *inputs], outputs, **quiet)
