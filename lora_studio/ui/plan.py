"""What the form's settings come to before anything starts: rows, steps and the effective batch. Plain arithmetic."""

import functools
import math
from dataclasses import dataclass
from pathlib import Path

from lora_studio.config import Config
from lora_studio.data.records import read_records
from lora_studio.errors import StudioError
from lora_studio.ui.run_words import figure
from lora_studio.ui.text import tiles
from lora_studio.workspace import shipped_data

LARGEST_COUNTED = 64_000_000  # bytes; larger files are counted by the run itself, the form stays quick


@dataclass(frozen=True, slots=True)
class Plan:
    """`rows` are training rows; rows and steps are None where they are not known before the data is read."""

    effective_batch: int
    rows: int | None = None
    steps: int | None = None


def plan(config: Config) -> Plan:
    """The run that a config describes, as far as its numbers alone tell."""
    training, data = config.training, config.data
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
    found = count_rows(data_path(data.train_file))
    if found is None:
        return Plan(batch, None, training.max_steps if training.max_steps > 0 else None)
    kept = 0 if data.validation_file else round(found * data.validation_fraction)
    rows = min(found - kept, data.max_samples or found)
    if training.max_steps > 0:
        return Plan(batch, rows, training.max_steps)
    if training.packing:
        return Plan(batch, rows, None)
    batches = math.ceil(rows / training.per_device_train_batch_size)
    per_epoch = max(1, math.ceil(batches / training.gradient_accumulation_steps))
    return Plan(batch, rows, math.ceil(per_epoch * training.num_train_epochs))


def data_path(name: str) -> Path:
    """The file that a config's training data names."""
    shipped = shipped_data()
    return shipped[name].train if name in shipped else Path(name).expanduser()


def count_rows(path: Path) -> int | None:
    """Usable rows of a file; None where there is no such file, it can't be read, or it is too large to count here."""
    if not path.is_file() or path.stat().st_size > LARGEST_COUNTED:
        return None
    stamp = path.stat()
    return _count(path, stamp.st_mtime_ns, stamp.st_size)


@functools.lru_cache(maxsize=32)
def _count(path: Path, _changed: int, _size: int) -> int | None:
    try:
        return len(read_records(path).records)
    except StudioError:
        return None


def words(found: Plan | None) -> str:
    """The plan as tiles; `None` stands for settings that are not right yet."""
    if found is None:
        return tiles([("–", "Effective batch", ""), ("–", "Training rows", ""), ("–", "Steps", "")])
    return tiles(
        [
            (f"{found.effective_batch:,}", "Effective batch", "rows a step"),
            ("–" if found.rows is None else f"{found.rows:,}", "Training rows", ""),
            ("–" if found.steps is None else f"{figure(found.steps)}", "Steps", "about"),
        ]
    )
