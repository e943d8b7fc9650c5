"""What the form's settings come to before anything starts: rows, steps, time, memory. Plain arithmetic, no drawing.

What is not known is None: the rows of a large file, the speed of a model that never ran here, the memory of a model
whose config.json is not on this machine.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.adapter_source import continued
from lora_studio.advice import Change, best_changes
from lora_studio.architecture import architecture, read_config
from lora_studio.config import Config, Data
from lora_studio.errors import StudioError
from lora_studio.estimate import Estimate, estimate, settled, verdict
from lora_studio.hardware import Device, recent_devices
from lora_studio.jobs.row_count import QuickLook, count_rows
from lora_studio.past_runs import Speed, speed
from lora_studio.ui.data_choice import DataLook
from lora_studio.workspace import Workspace, shipped_data

GUESSED = "a guess"
"""The verdict on a model whose parameters could not be counted: nothing is promised of it."""


@dataclass(frozen=True, slots=True)
class Memory:
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
    memory: Memory | None = None
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
    seen, rows = seen_data(config, look), training_rows(config, look)
    steps = total_steps(config, rows, seen)
    device = recent_devices()[0]
    known = speed(
        workspace,
        model=config.model.name,
        quantization=config.model.quantization,
        device=device.kind,
        data=config.data.train_file,
    )
    memory = needed_memory(_as_trained(config, workspace), device, seen.longest if seen else None, busy=busy)
    return Plan(batch, rows, steps, seconds(config, steps, known, seen), memory, reading(config, look))


def _as_trained(config: Config, workspace: Workspace) -> Config:
    """The config with the settings of an adapter to continue from; one that can't be is told by the checks."""
    try:
        return continued(config, workspace)
    except StudioError:
        return config


def needed_memory(config: Config, device: Device, longest: int | None, *, busy: bool) -> Memory | None:
    """The estimate for the config; None for a model whose numbers are not here."""
    numbers = read_config(config.model.name, config.model.revision)
    model = architecture(numbers) if numbers else None
    if model is None:
        return None
    available = device.memory_total if busy else device.memory_free
    chosen = settled(config, model, device.kind, available, longest)
    found = estimate(chosen, model, device.kind, longest)
    changes = best_changes(chosen, model, device.kind, longest)
    assumed = config.data.max_length if longest is None else None
    said = verdict(found.total, available) if model.counted else GUESSED
    return Memory(found, device, available, said, tuple(changes), assumed)


def seen_data(config: Config, look: DataLook | None) -> Seen | None:
    """What the data tab last found, where it looked at this data with this model's tokenizer."""
    if look is None or any(look.settings.get(path) != value for path, value in _looked_at(config).items()):
        return None
    limit = config.data.max_length
    return Seen(min(limit, look.longest), min(limit, look.mean), look.packs)


def _looked_at(config: Config) -> dict[str, Any]:
    return {
        "model.name": config.model.name,
        "data.train_file": config.data.train_file,
        "data.max_length": config.data.max_length,
        "data.train_on": config.data.train_on,
    }


def training_rows(config: Config, look: DataLook | None) -> int | None:
    """Rows that are left to train on after the split, where the data was looked at or is quick to count."""
    data, known = config.data, counted(config, look)
    if known and known.exact:
        return known.train_rows
    found = known.usable_rows if known else _quick_look(config).rows
    if found is None:
        return None
    kept = 0 if data.validation_file else round(found * data.validation_fraction)
    return min(found - kept, data.max_samples or found)


def reading(config: Config, look: DataLook | None) -> str:
    """How the data is read, in sentences: as the data tab did, or by a quick look; "" where neither could."""
    known = counted(config, look)
    return known.reading if known and known.exact and known.reading else _quick_look(config).reading


def _quick_look(config: Config) -> QuickLook:
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
    given = {path.removeprefix("data."): value for path, value in settings.items() if path.startswith("data.")}
    then, now = ({**one, "bad_rows": None} for one in ({**Data().model_dump(), **given}, config.data.model_dump()))
    if any(then[name] != now[name] for name in ("train_file", "mapping")):
        return None
    exact = then == now and settings["model.name"] == config.model.name
    return Counted(look.usable_rows, look.train_rows, exact, look.reading)


def total_steps(config: Config, rows: int | None, seen: Seen | None) -> int | None:
    """Optimizer steps of the whole run; packed rows can only be counted after a look at the data."""
    training = config.training
    if training.max_steps > 0:
        return training.max_steps
    units = seen.packs if training.packing and seen else None if training.packing else rows
    if units is None:
        return None
    batches = math.ceil(units / training.per_device_train_batch_size)
    per_epoch = max(1, math.ceil(batches / training.gradient_accumulation_steps))
    return math.ceil(per_epoch * training.num_train_epochs)


def seconds(config: Config, steps: int | None, known: Speed | None, seen: Seen | None) -> float | None:
    """Time of training at the speed of an earlier run, by real tokens."""
    if steps is None or known is None:
        return None
    training = config.training
    mean = seen.mean if seen else known.tokens_per_row if known.data == config.data.train_file else None
    if training.packing:
        mean = float(config.data.max_length)
    if mean is None:
        return None
    rows = steps * training.per_device_train_batch_size * training.gradient_accumulation_steps
    return rows * mean / known.tokens_per_second


def data_path(name: str) -> Path:
    """The file that a config's training data names."""
    shipped = shipped_data()
    return shipped[name].train if name in shipped else Path(name).expanduser()
