"""What a person sees of prepared data as a whole, in numbers and sentences. All of it is JSON-able."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_studio.data.dataset import Prepared, prepare, refusal
from lora_studio.data.findings import findings
from lora_studio.data.packing import forecast, steps
from lora_studio.data.parts import Part, Progress
from lora_studio.data.readings import TABLE_ROWS, readings_of, table
from lora_studio.data.row_view import preview, reading
from lora_studio.data.rows import BadRow
from lora_studio.data.statistics import PERCENTILES, cut_curve, histogram, lengths, suggest

_LISTED_BAD_ROWS = 200


@dataclass(frozen=True)
class Look:
    """What a description shows and counts with; none of it changes the data."""

    show_examples: int = 2
    percentiles: Sequence[float] = PERCENTILES
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 4


def inspect(
    train_file: str,
    tokenizer: Any,
    *,
    look: Look | None = None,
    on_sample: Callable[[dict[str, Any]], None] | None = None,
    on_progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Prepares a file (see `dataset.prepare` for the settings) and describes what came out.

    `on_sample` gets the description of the first rows before a large file is looked at whole.
    """
    give = (lambda prepared: on_sample(describe(prepared, look))) if on_sample else None
    prepared = prepare(train_file, tokenizer, on_sample=give, on_progress=on_progress, **settings)
    return describe(prepared, look, on_progress)


def describe(prepared: Prepared, look: Look | None = None, on_progress: Progress | None = None) -> dict[str, Any]:
    """Reading, faults, lengths and cuts of a prepared data set; training and validation rows together.

    `refusal` is what stops the work where bad rows are not skipped. `on_progress` is called in the phases measure, for
    every length looked at, and check, while faults of the whole are looked for.
    """
    look, report = look or Look(), on_progress or (lambda phase, done, total: None)
    part, settings, refused = prepared.part, prepared.settings, refusal(prepared)
    store = part.records
    return {
        "file": str(part.name),
        "kind": part.records.kind,
        "sampled": prepared.sampled,
        "assumptions": prepared.assumptions,
        "format": prepared.format.name,
        "words": prepared.format.words,
        "columns": prepared.format.columns,
        "reading": reading(prepared),
        "prompt_style": prepared.template.name,
        "template_origin": prepared.template.origin,
        "rows": len(prepared.chosen[0]) + len(prepared.chosen[1]),
        "usable_rows": len(prepared.conversations),
        "train_rows": len(prepared.train),
        "validation_rows": len(prepared.validation),
        "marked_bad_rows": part.marked_bad,
        "bad_rows": len(prepared.bad_rows),
        "bad_row_list": [located(part, bad) for bad in prepared.bad_rows[:_LISTED_BAD_ROWS]],
        "bad_rows_by_reason": prepared.bad_rows.reasons(),
        "refusal": {"message": refused.message, "hint": refused.hint} if refused else None,
        **_counts(prepared, look, report),
        "packing": forecast(prepared.train.length, settings.max_length, look.per_device_train_batch_size),
        "steps": _steps(prepared, look),
        **readings_of(prepared),
        "hygiene": findings(prepared, report),
        "table": table(list(store.records(range(min(TABLE_ROWS, len(store)))))),
        "examples": [preview(prepared, index) for index in _shown(prepared, look.show_examples)],
        "fingerprint": prepared.fingerprint,
    }


def located(part: Part, bad: BadRow) -> dict[str, Any]:
    """A bad row with its file and its number there, where the part is read from several files."""
    if len(part.records.starts) < 2:
        return bad.to_dict()
    name, row = part.records.place(bad.row)
    return {**bad.to_dict(), "row": row, "file": name}


def save_bad_rows(prepared: Prepared, path: Path) -> int:
    """Writes every bad row, those of a validation file among them, as one JSON object a line; returns how many."""
    parts = [part for part in (prepared.part, prepared.kept_back) if part]
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for part in parts:
            for bad in part.bad_rows:
                row = {"file": Path(part.name).name, **located(part, bad)}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return sum(len(part.bad_rows) for part in parts)


def _counts(prepared: Prepared, look: Look, report: Progress) -> dict[str, Any]:
    """Lengths, and what the cut costs."""
    settings = prepared.settings
    length, how = settings.max_length, settings.truncation
    report("measure", 0, 0)
    measures = prepared.train.measures.joined(prepared.validation.measures)
    kept = int(measures.kept(length, how).sum())
    return {
        "tokens": lengths(measures.length, look.percentiles),
        "suggested": suggest(measures.length),
        "max_length": length,
        "truncation": how,
        "truncated_rows": int(measures.cut_rows(length, how).sum()),
        "lost_trained_tokens": measures.trained_tokens - kept,
        "dropped_rows": len(prepared.dropped),
        "split_rows": prepared.train.split_rows + prepared.validation.split_rows,
        "windows": len(prepared.train) + len(prepared.validation),
        "trained_tokens": kept,
        "total_tokens": int(prepared.train.length.sum() + prepared.validation.length.sum()),
        "histogram": histogram(measures.length),
        "cut_curve": cut_curve(measures, how, length, lambda done, total: report("measure", done, total)),
    }


def _steps(prepared: Prepared, look: Look) -> dict[str, int]:
    """Optimizer steps in an epoch, with the rows one by one and packed."""
    batch, accumulation = look.per_device_train_batch_size, look.gradient_accumulation_steps
    packs = forecast(prepared.train.length, prepared.settings.max_length)["packs"]
    return {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "per_epoch": steps(len(prepared.train), batch, accumulation),
        "per_epoch_packed": steps(packs, batch, accumulation),
    }


def _shown(prepared: Prepared, count: int) -> list[int]:
    """The first rows that were rendered: all are, unless the settings ask for fewer."""
    positions = prepared.part.rows.position[: max(count, 0)]
    return np.searchsorted(prepared.conversations.positions, positions).tolist()
