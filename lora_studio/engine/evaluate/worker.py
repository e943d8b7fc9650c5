"""The worker that evaluates: `python -m lora_studio.engine.evaluate.worker FOLDER [--resume]`.

Answers are appended to predictions.jsonl batch by batch; a resumed evaluation keeps them and answers the remaining
rows. The events always end with a `Finished`. metrics_summary.json is written last, also over the rows answered before
a stop. Exit codes: 0 done, 1 failed, 2 wrong input, 130 stopped.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lora_studio.engine.runtime import (
    DONE,
    WRONG_INPUT,
    EventLog,
    Explained,
    JsonLines,
    StopSignal,
    begin,
    data_progress,
    emit_finished,
    ending_of,
    is_out_of_memory,
    leave,
    see_one_gpu,
    unexpected,
)
from lora_studio.errors import StudioError
from lora_studio.evaluate.job import OF_RUN, VLLM, EvaluationRequest, request_of
from lora_studio.files import JsonObject, finite
from lora_studio.jobs.events import Reason, RowsRead, RunStarted, RunState, Warned
from lora_studio.jobs.kinds import EvaluationFolder
from lora_studio.models.adapters import AdapterCard, changed, read_card, together
from lora_studio.workspace import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_studio.engine.evaluate.answer import AskedFile, AskedRow, Voice
    from lora_studio.engine.evaluate.tasks import Task
    from lora_studio.engine.models.multi_adapter import LoadedModel


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluates and returns the exit code."""
    child = begin(
        arguments, "lora_studio.engine.evaluate.worker", EvaluationFolder, "evaluation", lambda folder: folder.facts
    )
    if child is None:
        return WRONG_INPUT
    folder, log, stop = child.folder, child.log, child.stop
    see_one_gpu()
    if not child.resume:
        folder.predictions.unlink(missing_ok=True)

    def work() -> None:
        log.phase("start")
        evaluate(folder, log, stop)

    ending = ending_of(work, stop, explain=_explain)
    if ending.code != DONE:  # what was answered until an early end is measured too
        write_summary(folder, request_of(folder), ending.state, log)
    return emit_finished(log, ending)


def evaluate(folder: EvaluationFolder, log: EventLog, stop: StopSignal) -> None:
    """The program: read, load, answer, measure."""
    from lora_studio.engine.evaluate.answer import voices_of
    from lora_studio.engine.evaluate.metrics import warnings_of
    from lora_studio.engine.evaluate.tasks import READING, choose_task
    from lora_studio.engine.models import load, multi_adapter  # seconds: the libraries
    from lora_studio.engine.models.source import load_tokenizer

    request = request_of(folder)
    cards = [read_card(Path(column.folder)) for column in request.adapters]
    notes, card = _same_base(cards), cards[0]
    done_rows = {row["row"] for row in folder.rows()}
    dtype = load.dtype_name(load.choose_dtype("auto"))
    kind = load.device_kind()
    log.emit(RunStarted(time.time(), os.getpid(), kind, dtype, len(done_rows), kind))
    log.phase("data")
    tokenizer = load_tokenizer(card.base, card.revision)
    voices = voices_of({column.name: column.folder for column in request.columns}, tokenizer)
    mapping, lacking = _reading(request)
    file = _read(folder, request, card, tokenizer, voices, mapping, log)
    _check_same_rows(log, file.prepared.fingerprint, resumed=bool(done_rows))
    _tell_data(log, file)
    _warn(log, notes)
    _warn(log, _reading_in_words(request, lacking, file.prepared.format.words))
    _warn(log, warnings_of(folder, request, file))
    expected = [row.reference for row in file.rows]
    task = READING if file.only_read else choose_task(expected, request.labels, request.labels_from)
    write_atomically(folder.task, json.dumps(asdict(task)))
    remaining = [row for row in file.rows if row.row not in done_rows]
    if remaining:
        log.phase("model")
        model = multi_adapter.load_base(
            card.base,
            revision=card.revision,
            quantization=card.quantization,
            four_bit=card.values.get("four_bit"),
            log=log,
        )
        multi_adapter.add_adapters(model, {column.name: Path(column.folder) for column in request.adapters})
        _warn(log, [words for column_notes in model.notes.values() for words in column_notes])
        _answer(folder, request, model, remaining, task, voices, log, stop)
    stop.check()
    log.phase("measure")
    write_summary(folder, request, "done", log)


def _reading(request: EvaluationRequest) -> tuple[JsonObject | None, list[str]]:
    """The column mapping for the file, and the columns that it lacks if only the run has a mapping."""
    from lora_studio.engine.evaluate.answer import fitting_mapping

    if request.mapping_from != OF_RUN:
        return request.mapping, []
    return fitting_mapping(request.data, request.mapping, request.encoding)


def _reading_in_words(request: EvaluationRequest, lacking: Sequence[str], words: str) -> list[str]:
    if request.mapping_from != OF_RUN:
        return []
    if not lacking:
        return [f"The columns are mapped as in the adapter's training: {words}"]
    columns = ", ".join(f"`{name}`" for name in lacking)
    return [
        f"The adapter was trained on rows with {columns}, which this file lacks. The columns are mapped as "
        f"follows: {words}"
    ]


def _read(
    folder: EvaluationFolder,
    request: EvaluationRequest,
    card: AdapterCard,
    tokenizer: "PreTrainedTokenizerBase",
    voices: "dict[str, Voice]",
    mapping: JsonObject | None,
    log: EventLog,
) -> "AskedFile":
    from lora_studio.engine.evaluate.answer import read_asked_file
    from lora_studio.engine.models.multi_adapter import longest_text

    folders = [Path(column.folder) for column in request.adapters]
    return read_asked_file(
        request.data,
        tokenizer,
        voices,
        mapping=mapping,
        encoding=request.encoding,
        split=request.split,
        most=request.measuring.max_samples,
        longest=longest_text(card.base, card.revision, folders),
        cache_folder=folder.cache,
        on_progress=data_progress(log),
    )


def _answer(
    folder: EvaluationFolder,
    request: EvaluationRequest,
    loaded: "LoadedModel",
    remaining: "Sequence[AskedRow]",
    task: "Task",
    voices: "dict[str, Voice]",
    log: EventLog,
    stop: StopSignal,
) -> None:
    """Answers the remaining rows, batch by batch."""
    from lora_studio.engine.evaluate.answer import thinking_of
    from lora_studio.engine.evaluate.batches import answer_in_batches, answering_by, batch_size

    done = sum(1 for _ in folder.rows())
    total = done + len(remaining)
    columns = {column.name: column.name if column.folder else None for column in request.columns}
    engine, generation = request.measuring.engine, request.generation
    thinking = thinking_of(list(voices.values()))
    if engine == VLLM:
        log.phase("vllm")
    with (
        answering_by(
            engine,
            loaded,
            remaining,
            {column.name: column.folder for column in request.columns},
            revision=read_card(Path(request.adapters[0].folder)).revision,
            max_new_tokens=generation.max_new_tokens,
            enable_thinking=thinking if generation.enable_thinking is None else generation.enable_thinking,
            stop=stop,
            tell=lambda words: _warn(log, [words]),
        ) as ask,
        JsonLines(folder.predictions) as predictions,
    ):
        log.phase("answer", total, "rows")
        log.progress(done, total)
        at_once = batch_size(loaded, remaining, columns, generation, request.measuring.batch_size, engine)
        _warn(log, [at_once.words] if at_once.words else [])
        for batch in answer_in_batches(
            loaded,
            remaining,
            columns,
            task,
            generation,
            batch_size=at_once,
            enable_thinking=thinking,
            stop=lambda: stop.asked,
            tell=lambda words: _warn(log, [words]),
            ask=ask,
        ):
            predictions.add(batch)
            done += len(batch)
            log.progress(done, total)


def write_summary(folder: EvaluationFolder, request: EvaluationRequest, state: str, log: EventLog) -> None:
    """Writes the metrics of the answered rows, with warnings; nothing if there are no rows."""
    from lora_studio.engine.evaluate.metrics import summary
    from lora_studio.engine.evaluate.tasks import Task

    rows = sorted(folder.rows(), key=lambda row: row["row"])
    if not rows:
        return
    task = Task(**json.loads(folder.task.read_text(encoding="utf-8")))
    metrics = summary(task, rows, [column.name for column in request.columns])
    run_state = log.state()
    question_counts = rows_asked(run_state)
    of = question_counts.rows if question_counts else len(rows)
    about = {"evaluation": folder.id, "state": state, "of_rows": of, "warnings": run_state.warnings}
    whole = {**about, **request.to_dict(), **metrics}
    write_atomically(folder.complete, json.dumps(finite(whole), indent=2, ensure_ascii=False) + "\n")


def _same_base(cards: Sequence[AdapterCard]) -> list[str]:
    """Notes on adapters that are evaluated together. Raises `StudioError` if their bases differ."""
    if lacking := [card.name for card in cards if not card.base]:
        raise StudioError(
            f"{lacking[0]} does not record the base model it was trained on.",
            "Set base_model_name_or_path in its adapter_config.json.",
        )
    base, revision = cards[0].base, cards[0].revision
    return [*together(cards), *(words for card in cards if (words := changed(card, base, revision)))]


def rows_asked(state: RunState) -> RowsRead | None:
    """The counts of an evaluation's rows from its events. Earlier versions logged them as training rows."""
    data = state.data
    if state.test_rows is not None or data is None:
        return state.test_rows
    numbers = data.train_rows, data.bad_rows, data.dropped_rows
    return RowsRead(data.time, *numbers, data.fingerprint, data.prompt_style)


def _check_same_rows(log: EventLog, fingerprint: str, *, resumed: bool) -> None:
    before = rows_asked(log.state())
    if resumed and before is not None and before.fingerprint != fingerprint:
        raise StudioError(
            "The test file or its column mapping has changed since this evaluation started.",
            "Start a new evaluation: answers for different rows cannot be compared.",
        )


def _tell_data(log: EventLog, file: "AskedFile") -> None:
    prepared = file.prepared
    log.emit(
        RowsRead(
            time.time(),
            rows=len(file.rows),
            bad_rows=len(prepared.bad_rows),
            dropped_rows=sum(file.left_out.values()),
            fingerprint=prepared.fingerprint,
            prompt_style=prepared.template.name,
        )
    )
    left_out = file.left_out.items()
    _warn(
        log, [f"{count:,} {'row is' if count == 1 else 'rows are'} left out: {reason}." for reason, count in left_out]
    )


def _warn(log: EventLog, messages: Sequence[str]) -> None:
    """Logs each warning once, also when an evaluation is resumed."""
    warnings = log.state().warnings
    for message in messages:
        if message not in warnings:
            log.emit(Warned(time.time(), message))


def _explain(error: Exception) -> Explained:
    if is_out_of_memory(error):
        message = "Out of memory for this batch size."
        return Explained(Reason.OUT_OF_MEMORY, message, "Lower the batch size and resume.")
    return unexpected("The evaluation", error, "See its log for details.")


if __name__ == "__main__":
    leave(main())
