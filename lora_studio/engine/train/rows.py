"""The rows of a run: prepared, compared with those that it began with, and what is measured on them."""

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lora_studio.config.sections import Config
from lora_studio.data.dataset import Prepared, prepare
from lora_studio.data.examples import Examples, Pairs
from lora_studio.data.preview import Question, questions
from lora_studio.data.report import reading
from lora_studio.engine.models.tokenizer import load_tokenizer
from lora_studio.engine.runtime import EventLog, data_progress
from lora_studio.engine.train.labels import LabelMeter, labelled_rows
from lora_studio.errors import OtherRowsError, StudioError
from lora_studio.jobs.events import DataPrepared, Warned
from lora_studio.units import count
from lora_studio.workspace import RunFolder


@dataclass(frozen=True)
class TrainingRows:
    """Prepared rows with their tokenizer, the meter of labels if labels are named, and the validation questions."""

    prepared: Prepared
    tokenizer: PreTrainedTokenizerBase
    meter: LabelMeter | None
    questions: list[Question]


def prepare_rows(run: RunFolder, config: Config, log: EventLog, *, resumed: bool) -> TrainingRows:
    """Prepares the rows with the function that the preview uses.

    Raises `OtherRowsError` for a resumed run whose rows changed, unless a person accepted the new ones.
    """
    log.phase("data")
    tokenizer = load_tokenizer(config.model.name, config.model.revision)
    prepared = prepare(
        **config.data.model_dump(),
        tokenizer=tokenizer,
        goal=config.training.goal,
        cache_folder=run.cache,
        on_progress=data_progress(log),
    )
    tokenizer.chat_template = prepared.template.source  # goes with every save
    data = data_event(prepared)
    before = log.state()
    if resumed and not before.other_rows:
        check_same_rows(run, before.data, data)
    if resumed and (words := other_rows(before.data, data)):
        log.emit(Warned(time.time(), f"The run goes on with other rows than it began with, as was chosen: {words}."))
    log.emit(data)
    for message in prepared.marks:
        log.emit(Warned(time.time(), message))
    meter = label_meter(config, prepared, tokenizer, log)
    return TrainingRows(prepared, tokenizer, meter, questions_to_ask(config, prepared))


def data_event(prepared: Prepared) -> DataPrepared:
    """The event on the prepared data."""
    return DataPrepared(
        time=time.time(),
        train_rows=len(prepared.train),
        validation_rows=len(prepared.validation),
        bad_rows=len(prepared.bad_rows),
        dropped_rows=len(prepared.dropped),
        tokens=int(prepared.train.length.sum()),
        trained_tokens=int(prepared.train.trained.sum()),
        fingerprint=prepared.fingerprint,
        prompt_style=prepared.template.name,
        reading=reading(prepared),
        rows_digest=rows_digest(prepared),
    )


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


def label_meter(config: Config, prepared: Prepared, tokenizer: Any, log: EventLog) -> LabelMeter | None:
    """Measures accuracy and F1 if labels are configured. Raises `StudioError` if no validation row has one."""
    labels, rows = config.evaluation.label_names, prepared.validation.answers
    if not labels:
        return None
    check_rows_to_measure(prepared, "accuracy and F1 of evaluation.labels")

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    labelled = labelled_rows(rows, labels, decode)
    if labelled < len(rows):
        words = f"{len(rows) - labelled:,} of {len(rows):,} validation rows have an answer that is none of the labels"
        log.emit(Warned(time.time(), f"{words} {', '.join(labels)}: accuracy and F1 leave them out."))
    return LabelMeter(labels, decode)


def questions_to_ask(config: Config, prepared: Prepared) -> list[Question]:
    """The validation questions for sample generations; empty if none are configured."""
    count = config.evaluation.gen_eval_samples
    if not count:
        return []
    check_rows_to_measure(prepared, "answers (evaluation.gen_eval_samples)")
    return questions(prepared, count, seed=config.data.split_seed, longest=config.data.max_length)


def check_rows_to_measure(prepared: Prepared, noun: str) -> None:
    if not prepared.validation:
        raise StudioError(
            f"No row is left to measure {noun} on.", "Raise data.validation_fraction, or name a data.validation_file."
        )
