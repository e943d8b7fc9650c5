"""The session child's requests that read data or copy it without repeated rows, and how far a request is."""

import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from lora_studio.data.dataset import Prepared, look_at_first, open_data, prepare, recut
from lora_studio.data.examples import largest_id
from lora_studio.data.mapping import ReadingError
from lora_studio.data.memory_limit import MemoryLimitError
from lora_studio.data.messages import Record
from lora_studio.data.preview import first_records, tried, unread
from lora_studio.data.quality import near_groups
from lora_studio.data.readers.documents import Chunk, read_document, split, write_chunks
from lora_studio.data.report import Look, describe, preview, save_bad_rows
from lora_studio.data.sources import Source
from lora_studio.engine.runtime import repeating
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.jobs import protocol

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


PROGRESS_SECONDS, BEAT_SECONDS = 0.2, 5.0
M = TypeVar("M", bound=protocol.Request[Any])


class Call(Generic[M]):
    """A request in progress: its message, what "stop" sets for it or for some of its columns, what joins it, and the
    way to answer."""

    def __init__(self, number: int, message: M, write: Callable[[JsonObject], None]) -> None:
        self.number = number
        self.message = message
        self.stopped = threading.Event()
        self.stopped_columns: set[int] = set()
        self.joining: queue.SimpleQueue[protocol.BatchColumn] = queue.SimpleQueue()
        self._write = write
        self._sent = 0.0
        self._phase, self._began = "", 0.0

    def answer(self, message: protocol.Message) -> None:
        self._write({**message.to_fields(), "id": self.number, "kind": protocol.kind_of(message)})

    def check(self) -> None:
        """Raises `StudioError` once the request is to be stopped."""
        if self.stopped.is_set():
            raise StudioError("Stopped before it started.", "Ask again at any time.")

    def progress(self, phase: str, done: int = 0, total: int = 0) -> None:
        """Sends at most five messages a second, and always the first and last of a phase, with speed and time left."""
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._began = phase, now
        if done in (0, total) or now - self._sent >= PROGRESS_SECONDS:
            self._sent = now
            speed = done / (now - self._began) if done and now > self._began else 0.0
            seconds_left = (total - done) / speed if speed and total else None
            self.answer(
                protocol.Progress(phase=phase, done=done, total=total, rows_per_second=speed, seconds_left=seconds_left)
            )

    def beating(self, phase: str) -> AbstractContextManager[None]:
        """Sends signs of life during work of a library that tells nothing of its progress."""
        self.progress(phase)
        return repeating(lambda: self.progress(phase), BEAT_SECONDS)


class DataAnalysis:
    """Answers requests about data, keeping the data set that was prepared last."""

    def __init__(self) -> None:
        self._tokenizers: dict[tuple[str, str | None], Any] = {}
        self._prepared: Prepared | None = None
        self._prepared_for: tuple[Any, ...] = ()
        self._first: list[Record] = []
        self._first_for: tuple[Any, ...] = ()

    def inspect(self, call: Call[protocol.Inspect]) -> protocol.Inspected:
        """Analyzes a data file as training reads it."""
        prepared, view = self._prepare(call, call.message)
        return protocol.Inspected(report=_report(describe(prepared, view, _progress(call))))

    def _prepare(self, call: Call[Any], message: protocol.Inspect) -> tuple[Prepared, Look]:
        """The data of a request; prepared now unless it was the last to be prepared."""
        settings, view = message.settings(), Look(**message.view())
        length, truncation = settings.pop("max_length", 1024), settings.pop("truncation", "keep_answer")
        encoding = message.encoding
        sources = [open_data(name, encoding) for name in (message.train_file, message.validation_file) if name]
        sheets = sources[0].readings[0].sheets if len(sources[0].readings) == 1 else []
        call.answer(protocol.Progress(phase="tokenizer", sheets=sheets))
        stamps = [_stamps(source) for source in sources]
        key = (message.model, message.revision, json.dumps(settings, sort_keys=True), stamps)

        def first_look(sample: Prepared) -> None:
            rows = len(sample.conversations)
            report = _report(describe(sample, view))
            call.answer(protocol.Progress(phase="sample", done=rows, total=0, sample=report))

        progress = _progress(call)
        if self._prepared is None or key != self._prepared_for:
            call.progress("tokenizer")
            tokenizer = self._tokenizer(message.model, message.revision)
            try:
                self._prepared = prepare(
                    tokenizer=tokenizer,
                    max_length=length,
                    truncation=truncation,
                    goal="any",
                    cache_folder=Path(message.cache_folder) if message.cache_folder else None,
                    on_progress=progress,
                    on_sample=first_look,
                    **settings,
                )
            except ReadingError:
                rows = unread(message.train_file, encoding)
                call.answer(protocol.Progress(phase="rows", done=0, total=0, unread={**rows}))
                raise
            self._prepared_for = key
        elif (length, truncation) != (self._prepared.settings.max_length, self._prepared.settings.truncation):
            self._prepared = recut(self._prepared, max_length=length, truncation=truncation, report=progress)
        return self._prepared, view

    def _prepared_of(self, call: Call[Any], of: protocol.Inspect | None) -> Prepared:
        """The data of the request `of`, else the data analyzed last."""
        if of is not None:
            return self._prepare(call, of)[0]
        if self._prepared is None:
            raise StudioError("No dataset has been analyzed yet.", "Choose a file first.")
        return self._prepared

    def try_reading(self, call: Call[protocol.TryReading]) -> protocol.TriedReading:
        """The first rows read with a mapping, before the whole file is."""
        name, encoding = call.message.train_file, call.message.encoding
        key = (name, encoding, _stamps(open_data(name, encoding)))
        if key != self._first_for:
            self._first, self._first_for = first_records(name, encoding=encoding), key
        return protocol.TriedReading(**tried(self._first, call.message.mapping))

    def preview(self, call: Call[protocol.Preview]) -> protocol.PreviewedRow:
        """One row of the analyzed data, from record to trained tokens."""
        message = call.message
        row = preview(self._prepared_of(call, message.of), message.row_index, message.window)
        return protocol.PreviewedRow(report=row)

    def save_bad_rows(self, call: Call[protocol.SaveBadRows]) -> protocol.SavedRows:
        """Writes all invalid rows of the analyzed data to a file."""
        return protocol.SavedRows(rows=save_bad_rows(self._prepared_of(call, call.message.of), Path(call.message.path)))

    def save_cleaned(self, call: Call[protocol.SaveCleaned]) -> protocol.SavedCopy:
        """Writes the analyzed data without duplicates to a file."""
        message = call.message
        prepared = self._prepared_of(call, message.of)
        progress = _progress(call)
        progress("duplicates", 0, 0)
        rows, removed = save_without_duplicates(
            prepared,
            Path(message.path),
            near=message.near,
            report=lambda done, total: progress("duplicates", done, total),
        )
        return protocol.SavedCopy(rows=rows, removed=removed)

    def split(self, call: Call[protocol.Split]) -> protocol.SplitDocuments:
        """Reads documents and writes their chunks into a file. One that can't be read does not keep the others back."""
        message, progress = call.message, _progress(call)
        progress("tokenizer", 0, 0)
        tokenizer = self._tokenizer(message.model, message.revision)

        def count(texts: Sequence[str]) -> list[int]:
            if not texts:
                return []
            encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
            return [len(ids) for ids in encoded]

        chunks: list[Chunk] = []
        described: list[JsonObject] = []
        problems: list[tuple[str, str]] = []
        for number, path in enumerate(map(Path, message.documents)):
            progress("documents", number, len(message.documents))
            try:
                document = read_document(path, lambda done, total: progress("pages", done, total))
                progress("chunks", 0, 0)
                own = split(document, count, message.chunk_size, message.chunk_overlap, first=len(chunks))
            except MemoryError:
                raise MemoryLimitError(
                    f"{path.name} was not read: it needs more memory than a document may take.",
                    "It is highly compressed, or damaged. Remove it, or split it.",
                ) from None
            except StudioError as error:
                if call.stopped.is_set():
                    raise
                problems.append((error.message, error.hint))
                continue
            chunks += own
            tokens = sum(chunk.tokens for chunk in own)
            described.append({"name": path.name, "chunks": len(own), "tokens": tokens, "notes": document.notes})
        write_chunks(Path(message.path), chunks)
        return protocol.SplitDocuments(
            chunks=len(chunks),
            tokens=sum(chunk.tokens for chunk in chunks),
            prompt_tokens=count([message.prompt])[0] if message.prompt else 0,
            documents=described,
            problems=problems,
        )

    def look_at_first(self, call: Call[protocol.LookAtFirst]) -> protocol.FirstRows:
        """The first rows as training would see them."""
        tokenizer = self._tokenizer(call.message.model, call.message.revision)
        prepared = look_at_first(tokenizer=tokenizer, **call.message.settings())
        largest = max(largest_id(rows) for rows in (prepared.train, prepared.validation))
        return protocol.FirstRows(report=_report(describe(prepared, Look(show_examples=1))), largest_id=largest)

    def _tokenizer(self, model: str, revision: str | None) -> Any:
        from lora_studio.engine.models.source import load_tokenizer

        if (model, revision) not in self._tokenizers:
            self._tokenizers = {(model, revision): load_tokenizer(model, revision)}
        return self._tokenizers[model, revision]


def _progress(call: Call[Any]) -> Callable[[str, int, int], None]:
    """Reports the progress of an analysis, until a stop is requested."""

    def progress(phase: str, done: int, total: int) -> None:
        if call.stopped.is_set():
            raise StudioError("The analysis was stopped.", "Analyze it again to restart.")
        call.progress(phase, done, total)

    return progress


def _stamps(source: Source) -> list[tuple[str, str, int, int]]:
    """Path, sheet, modification time and size of a source's files, to detect changes."""
    return [
        (str(path), sheet, path.stat().st_mtime_ns, path.stat().st_size)
        for path, sheet in zip(source.files, source.sheets, strict=True)
    ]


def _report(report: JsonObject) -> protocol.Report:
    """A report with `kind` renamed to `file_kind`, because answers have a `kind` of their own."""
    return {name: value for name, value in report.items() if name != "kind"} | {"file_kind": report["kind"]}
