"""Writes a copy of a dataset without the rows that repeat an earlier row."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lora_studio.data.dataset import Prepared
from lora_studio.data.quality import near_groups

NEAR_SECONDS = 60.0
Report = Callable[[int, int], None]
"""Hears how many rows of how many are compared."""


def save_without_duplicates(
    prepared: Prepared, path: Path, *, near: bool, report: Report = lambda done, total: None
) -> tuple[int, int]:
    """Writes the raw rows of the training file as JSONL; of like rows the first stays. Returns rows written, removed.

    `near` removes near-duplicates too. Rows that can't be read are not in the copy; those that are invalid for another
    reason are.
    """
    records = prepared.part.records
    removed = duplicates(prepared) | (near_duplicates(prepared, report) if near else set())
    written = 0
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for position, record in enumerate(records.records(range(len(records)))):
            if position not in removed:
                file.write(json.dumps(record.fields, ensure_ascii=False) + "\n")
                written += 1
    return written, len(removed)


def duplicates(prepared: Prepared) -> set[int]:
    """Positions of the rows that repeat an earlier row, ignoring case and white space."""
    part = prepared.part
    first = np.unique(part.all_groups, return_index=True)[1]
    return set(np.delete(part.all_positions, first).tolist())


def near_duplicates(prepared: Prepared, report: Report = lambda done, total: None) -> set[int]:
    """Positions of the rows that share most words with an earlier row, as far as `NEAR_SECONDS` reach."""
    done, total = 0, len(prepared.conversations)

    def step(rows: int) -> None:
        nonlocal done
        done += rows
        report(done, total)

    groups, _ = near_groups(prepared.conversations, NEAR_SECONDS, step=step)
    repeated = [row for group in groups for row in group[1:]]
    return set(np.searchsorted(prepared.part.records.row, repeated).tolist())
