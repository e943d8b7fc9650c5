"""The checkpoint to resume from, whether the rows are unchanged, and the checkpoint that a stop leaves."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from lora_studio.data.dataset import Prepared
from lora_studio.data.examples import Examples, Pairs
from lora_studio.engine.train.callbacks import ReportCallback
from lora_studio.engine.train.trainers import TrainerMixin
from lora_studio.errors import OtherRowsError
from lora_studio.files import numbered
from lora_studio.jobs.events import DataPrepared
from lora_studio.runs.checkpoints import MANIFEST, STATE, damage
from lora_studio.units import count
from lora_studio.workspace import RunFolder, step_of


def last_whole_checkpoint(run: RunFolder) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint, and notes on the others.

    Unfinished checkpoints of a crash are removed; damaged ones are moved aside.
    """
    whole: list[Path] = []
    notes: list[str] = []
    for folder in sorted(run.checkpoints.glob("checkpoint-*"), key=lambda path: path.name):
        if not (folder / MANIFEST).is_file() and not (folder / STATE).is_file():
            shutil.rmtree(folder)
        elif words := damage(folder):
            aside = next(path for path in numbered(folder.with_name(f"damaged-{folder.name}")) if not path.exists())
            folder.rename(aside)
            notes.append(f"{folder.name} is damaged: {words}. It is kept as {aside.name}.")
        else:
            whole.append(folder)
    last = max(whole, key=lambda folder: step_of(folder.name), default=None)
    if last is None:
        notes.append("No whole checkpoint was found: the run starts from the beginning.")
    return last, notes


def rows_digest(prepared: Prepared) -> str:
    """A fingerprint of the training and validation rows: tokens and labels of every row, in order.

    It does not depend on file names or versions. Empty for a template that writes the current date.
    """
    if prepared.template.writes_date:
        return ""
    return ":".join(_digest(rows) for rows in (prepared.train, prepared.validation))


def _digest(rows: Examples | Pairs) -> str:
    columns: dict[str, tuple[hashlib.blake2b, hashlib.blake2b]] = {}
    for table in rows.tables() if len(rows) else ():
        for name, column in zip(table.schema.names, table.columns, strict=True):
            values, lengths = columns.setdefault(name, (hashlib.blake2b(), hashlib.blake2b()))
            values.update(np.ascontiguousarray(column.values.to_numpy().astype("<i4", copy=False)).data)
            lengths.update(np.ascontiguousarray(np.diff(column.offsets.to_numpy()).astype("<i4", copy=False)).data)
    every = "".join(hasher.hexdigest() for name in sorted(columns) for hasher in columns[name])
    return hashlib.sha256(every.encode()).hexdigest()[:32]


def other_rows(before: DataPrepared | None, now: DataPrepared) -> str:
    """How a run's original rows differ from its current ones, in words; "" if they are the same.

    Runs of earlier versions logged a fingerprint of files and program, and counts: the counts decide if it changed.
    """
    if before is None or before.fingerprint == now.fingerprint:
        return ""
    numbers = [(event.train_rows, event.validation_rows, event.tokens, event.trained_tokens) for event in (before, now)]
    if before.rows_digest and now.rows_digest:
        same = before.rows_digest == now.rows_digest
    else:
        same = numbers[0][:2] == numbers[1][:2] if not now.rows_digest else numbers[0] == numbers[1]
    if same:
        return ""
    descriptions = [
        f"{count(rows, 'row')} of {count(tokens, 'token')} and {count(validation, 'validation row')}"
        for rows, validation, tokens, _ in numbers
    ]
    then, now_has = descriptions
    return f"{then} then, {'as many now, but others' if then == now_has else f'{now_has} now'}"


def check_same_rows(run: RunFolder, before: DataPrepared | None, now: DataPrepared) -> None:
    """Raises `OtherRowsError` if the rows have changed since the checkpoint was written."""
    if words := other_rows(before, now):
        raise OtherRowsError(
            f"The rows are not those that this run began with: {words}.",
            "Put the files back as they were to go on; or start a new run with the rows that are there now (it can "
            "continue from this run's adapter); or go on knowingly with other rows: "
            f"`train --resume {run.id} --other-rows`, on the page Resume with these rows.",
        )


def save_where_stopped(trainer: TrainerMixin, report: ReportCallback) -> None:
    """Saves a checkpoint of the last finished step, unless there is one."""
    step = trainer.state.global_step
    if step > 0 and report.saved_step != step:
        if report.after_step is not None:
            report.after_step.restore()  # as a save between two steps would have found them
        model: Any = trainer.model
        trainer._save_checkpoint(model, trial=None)
        report.on_save(trainer.args, trainer.state, trainer.control)
