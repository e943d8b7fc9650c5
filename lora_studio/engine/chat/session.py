"""The child behind pipes that looks at data and answers chats: one JSON object a line on stdin, answers on stdout.

`METHODS` are what can be asked. A thread reads the requests, so that "stop" is heard while an answer is being made; the
process ends when stdin closes, for then the parent is gone. What libraries print goes to stderr.
"""

import gc
import importlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TextIO, TypeVar

from pydantic import ValidationError

from lora_studio.config.parsing import parse
from lora_studio.data.dataset import Prepared, look_at_first, open_data, prepare, recut
from lora_studio.data.examples import largest_id
from lora_studio.data.mapping import ReadingError
from lora_studio.data.memory_limit import MemoryLimitError, go_first, limited
from lora_studio.data.preview import first_records, tried, unread
from lora_studio.data.report import Look, describe, preview, save_bad_rows
from lora_studio.data.rows import Record
from lora_studio.engine.models.load import Calls, Download
from lora_studio.errors import StudioError
from lora_studio.jobs import protocol
from lora_studio.models.adapter_files import WEIGHTS_FILE
from lora_studio.models.adapters import changed, fingerprint, read_card, together
from lora_studio.models.hub import withheld

if TYPE_CHECKING:
    from lora_studio.engine.models.multi_adapter import LoadedModel

PROGRESS_SECONDS = 0.2
MAX_ADAPTERS = 8

M = TypeVar("M", bound=protocol.Request[Any])


class Call(Generic[M]):
    """A request that is being answered: its message, a flag that "stop" sets, and the way to answer."""

    def __init__(self, number: int, message: M, write: Callable[[dict[str, Any]], None]) -> None:
        self.number = number
        self.message = message
        self.stopped = threading.Event()
        self._write = write
        self._sent = 0.0
        self._phase, self._began = "", 0.0

    def answer(self, message: protocol.Message) -> None:
        self._write({**message.to_fields(), "id": self.number, "kind": protocol.kind_of(message)})

    def progress(self, phase: str, done: int = 0, total: int = 0) -> None:
        """At most five a second, and always the first and last of a phase; with the phase's speed and time left."""
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._began = phase, now
        if done in (0, total) or now - self._sent >= PROGRESS_SECONDS:
            self._sent = now
            speed = done / (now - self._began) if done and now > self._began else 0.0
            left = (total - done) / speed if speed and total else None
            self.answer(
                protocol.Progress(phase=phase, done=done, total=total, rows_per_second=speed, seconds_left=left)
            )


class Session:
    """What the child holds between requests: the last data looked at, and the model in memory."""

    def __init__(self) -> None:
        self._tokenizers: dict[tuple[str, str | None], Any] = {}
        self._prepared: Prepared | None = None
        self._prepared_for: tuple[Any, ...] = ()
        self._first: list[Record] = []
        self._first_for: tuple[Any, ...] = ()
        self._loaded: LoadedModel | None = None
        self._loaded_for: tuple[Any, ...] = ()
        self._adapters: dict[str, tuple[str, int]] = {}

    def inspect(self, call: Call[protocol.Inspect]) -> protocol.Inspected:
        """Looks at a data file as training would."""
        prepared, view = self._prepare(call, call.message)
        return protocol.Inspected(report=_report(describe(prepared, view, _progress(call))))

    def _prepare(self, call: Call[Any], message: protocol.Inspect) -> tuple[Prepared, Look]:
        """The data of a request to inspect, prepared now unless it is what was prepared last."""
        settings, view = message.settings(), Look(**message.view())
        length, truncation = settings.pop("max_length", 1024), settings.pop("truncation", "keep_answer")
        encoding = message.encoding
        stamps = [_stamps(name, encoding) for name in (message.train_file, message.validation_file) if name]
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
                call.answer(protocol.Progress(phase="rows", done=0, total=0, unread=rows))
                raise
            self._prepared_for = key
        elif (length, truncation) != (self._prepared.settings.max_length, self._prepared.settings.truncation):
            self._prepared = recut(self._prepared, max_length=length, truncation=truncation, report=progress)
        return self._prepared, view

    def _prepared_of(self, call: Call[Any], of: protocol.Inspect | None) -> Prepared:
        """The data of the request `of`, else what was last inspected."""
        if of is not None:
            return self._prepare(call, of)[0]
        if self._prepared is None:
            raise StudioError("No data has been looked at yet.", "Choose a file first.")
        return self._prepared

    def try_reading(self, call: Call[protocol.TryReading]) -> protocol.TriedReading:
        """What a mapping makes of the first rows, before the file is read by it."""
        name, encoding = call.message.train_file, call.message.encoding
        key = (name, encoding, _stamps(name, encoding))
        if key != self._first_for:
            self._first, self._first_for = first_records(name, encoding=encoding), key
        return protocol.TriedReading(**tried(self._first, call.message.mapping))

    def preview(self, call: Call[protocol.Preview]) -> protocol.PreviewedRow:
        """One row of inspected data, from record to trained tokens."""
        message = call.message
        row = preview(self._prepared_of(call, message.of), message.row_index, message.window)
        return protocol.PreviewedRow(report=row)

    def save_bad_rows(self, call: Call[protocol.SaveBadRows]) -> protocol.SavedRows:
        """Writes all bad rows of inspected data into a file."""
        return protocol.SavedRows(rows=save_bad_rows(self._prepared_of(call, call.message.of), Path(call.message.path)))

    def look_at_first(self, call: Call[protocol.LookAtFirst]) -> protocol.FirstRows:
        """The first rows as training would see them."""
        tokenizer = self._tokenizer(call.message.model, call.message.revision)
        prepared = look_at_first(tokenizer=tokenizer, **call.message.settings())
        largest = max(largest_id(rows) for rows in (prepared.train, prepared.validation))
        return protocol.FirstRows(report=_report(describe(prepared, Look(show_examples=1))), largest_id=largest)

    def rest(self, call: Call[protocol.Rest]) -> protocol.Done:
        """Answers as soon as nothing else is being done."""
        return protocol.Done()

    def warm_up(self, call: Call[protocol.WarmUp]) -> protocol.Done:
        """Imports what reads a tokenizer, which takes seconds."""
        importlib.import_module("lora_studio.engine.models.tokenizer")
        return protocol.Done()

    def fetch_config(self, call: Call[protocol.FetchConfig]) -> protocol.FetchedConfig:
        """The model's config.json into this machine's cache, and nothing else of it."""
        from lora_studio.engine.models.load import read_config
        from lora_studio.engine.models.shapes import take_layout  # seconds: torch, transformers, peft

        model, revision = call.message.model, call.message.revision
        numbers = read_config(model, revision).to_dict()
        take_layout(model, revision)
        return protocol.FetchedConfig(numbers=numbers)

    def look_at_model(self, call: Call[protocol.LookAtModel]) -> protocol.ModelFacts:
        """What the checks before a start want to know of a model."""
        from lora_studio.engine.models import shapes  # seconds: torch, transformers, peft

        message = call.message
        facts = shapes.look_at_model(
            message.model, message.revision, lora=message.lora, seed=message.seed, adapter=message.adapter
        )
        return protocol.ModelFacts(**facts)

    def load(self, call: Call[protocol.Load]) -> protocol.Loaded:
        """Base and adapters into memory; what is there already is kept, and of adapters not asked for the last few."""
        from lora_studio.engine.models import load, multi_adapter  # seconds: torch, transformers, peft

        message = call.message
        folders = {name: Path(folder) for name, folder in message.adapters.items()}
        cards = [read_card(folder) for folder in folders.values()]
        notes = together(cards) if cards else []
        card: dict[str, Any] = cards[0].values if cards else {}
        base = message.base or card.get("base_model") or "demo"
        revision = message.revision or (card.get("revision") if base == card.get("base_model") else None)
        quantization = message.quantization or card.get("quantization") or "none"
        dtype = message.dtype or "auto"
        four_bit = card.get("four_bit") or {}
        key = (base, revision, quantization, dtype, *four_bit.items())
        if self._loaded is None or (*key, fingerprint(base, revision)) != self._loaded_for:
            self._forget_model()
            call.progress("base", 0, 1)
            bar = Download(Calls(call.progress), "base").bar_class()
            self._loaded = multi_adapter.load_base(
                base, revision=revision, dtype=dtype, quantization=quantization, four_bit=four_bit, tqdm_class=bar
            )
            self._loaded_for = (*key, fingerprint(base, revision))  # after it was fetched, where it was not here
        self._load_adapters(call, folders)
        notes += [note for adapter in cards if (note := changed(adapter, base, revision))]
        notes += [note for name in folders for note in self._loaded.told[name]]
        return protocol.Loaded(
            base=base,
            adapters=list(folders),
            cards={name: self._loaded.cards[name] for name in folders},
            device=self._loaded.model.device.type,
            dtype=load.dtype_name(self._loaded.model.dtype),
            quantization=quantization,
            memory_bytes=load.memory_bytes(),
            template_name=card.get("prompt_style", "chat"),
            templates={name: self._loaded.template(name) for name in folders},
            system_prompt=card.get("system_prompt"),
            enable_thinking=card.get("enable_thinking"),
            max_length=card.get("max_length"),
            longest_text=self._loaded.longest_text,
            mixes=self._loaded.shares(folders),
            notes=list(dict.fromkeys(notes)),
        )

    def _load_adapters(self, call: Call[Any], folders: dict[str, Path]) -> None:
        """Adds the adapters that are not in memory; those used longest ago go where there are too many."""
        from lora_studio.engine.models import multi_adapter

        assert self._loaded is not None
        stamps = {name: (str(folder), (folder / WEIGHTS_FILE).stat().st_mtime_ns) for name, folder in folders.items()}
        gone = [name for name in folders if name in self._adapters and self._adapters[name] != stamps[name]]
        others = [name for name in self._adapters if name not in folders]
        gone += others[: max(0, len(others) + len(folders) - MAX_ADAPTERS)]
        new = {name: folder for name, folder in folders.items() if name in gone or name not in self._adapters}
        call.progress("adapters", 0, len(new))
        try:
            if gone:
                self._loaded = multi_adapter.remove_adapters(self._loaded, gone)
            multi_adapter.add_adapters(self._loaded, new)
        except StudioError:
            self._forget_model()  # an adapter that does not fit leaves the base half changed
            raise
        kept = {name: stamp for name, stamp in self._adapters.items() if name not in gone and name not in folders}
        self._adapters = kept | stamps  # the last used stand last
        call.progress("adapters", len(new), len(new))

    def generate(self, call: Call[protocol.Generate]) -> protocol.Generated:
        """All columns answer at once; pieces of text come while they do."""
        from lora_studio.engine.chat import generate

        loaded, message = self._model(), call.message
        settings = parse({"generation": message.settings}).generation
        values = settings.model_dump(exclude={"seed", "stop_strings", "enable_thinking"})
        answers = generate.generate(
            loaded,
            [generate.Column(column.adapter, column.messages) for column in message.columns],
            generate.generation_config(loaded, **values),
            seed=settings.seed,
            enable_thinking=settings.enable_thinking,
            stop_strings=(*settings.stop_texts, *message.stop),
            on_pieces=lambda texts, tokens: call.answer(protocol.Piece(texts=list(texts), tokens=list(tokens))),
            stop=call.stopped.is_set,
        )
        return protocol.Generated(columns=[protocol.ColumnAnswer(**answer.to_dict()) for answer in answers])

    def score(self, call: Call[protocol.Score]) -> protocol.Scored:
        """How base and adapters predict a given answer, token by token."""
        from lora_studio.engine.chat import logprobs

        message = call.message
        return protocol.Scored(**logprobs.score(self._model(), message.adapters, message.messages, message.answer))

    def _model(self) -> "LoadedModel":
        if self._loaded is None:
            raise StudioError("No model is loaded.", "Load one first.")
        return self._loaded

    def modules(self, call: Call[protocol.Modules]) -> protocol.ModuleNames:
        """Names of a model's modules, from its config alone."""
        from lora_studio.engine.models import adapter as adapters
        from lora_studio.engine.models import load

        model = load.without_weights(call.message.model or "demo", call.message.revision)
        return protocol.ModuleNames(
            linear=list(adapters.last_names(adapters.linear_modules(model))), whole=list(adapters.bearing_names(model))
        )

    def unload(self, call: Call[protocol.Unload]) -> protocol.Done:
        """Forgets the model. Certain to give all memory back is only the end of this process."""
        self._forget_model()
        return protocol.Done()

    def _forget_model(self) -> None:
        if self._loaded is not None:
            import torch

            self._loaded, self._loaded_for, self._adapters = None, (), {}
            gc.collect()
            torch.cuda.empty_cache()

    def _tokenizer(self, model: str, revision: str | None) -> Any:
        from lora_studio.engine.models.tokenizer import load_tokenizer

        if (model, revision) not in self._tokenizers:
            self._tokenizers = {(model, revision): load_tokenizer(model, revision)}
        return self._tokenizers[model, revision]


def _progress(call: Call[Any]) -> Callable[[str, int, int], None]:
    """Tells how far a look at data is, until a stop is asked for."""

    def progress(phase: str, done: int, total: int) -> None:
        if call.stopped.is_set():
            raise StudioError("The look at the data was stopped.", "Look again to start anew.")
        call.progress(phase, done, total)

    return progress


def _stamps(name: str, encoding: str | None) -> list[tuple[str, int, int]]:
    """What tells whether the files of a source are still the same."""
    return [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in open_data(name, encoding).files]


def _report(report: dict[str, Any]) -> dict[str, Any]:
    """A report with its `kind` as `file_kind`: an answer has a kind of its own."""
    return {name: value for name, value in report.items() if name != "kind"} | {"file_kind": report["kind"]}


METHODS: dict[type[protocol.Request[Any]], Callable[[Session, Call[Any]], protocol.Result]] = {
    protocol.Inspect: Session.inspect,
    protocol.Preview: Session.preview,
    protocol.SaveBadRows: Session.save_bad_rows,
    protocol.LookAtFirst: Session.look_at_first,
    protocol.FetchConfig: Session.fetch_config,
    protocol.LookAtModel: Session.look_at_model,
    protocol.TryReading: Session.try_reading,
    protocol.Load: Session.load,
    protocol.Generate: Session.generate,
    protocol.Score: Session.score,
    protocol.Modules: Session.modules,
    protocol.Unload: Session.unload,
    protocol.WarmUp: Session.warm_up,
    protocol.Rest: Session.rest,
}
BY_NAME = {request.method: request for request in METHODS} | {protocol.Stop.method: protocol.Stop}


READING = (
    protocol.Inspect,
    protocol.Preview,
    protocol.SaveBadRows,
    protocol.LookAtFirst,
    protocol.TryReading,
)
"""Requests that read files of other people, which may take only so much memory."""


def parse_request(line: dict[str, Any]) -> protocol.Request[Any]:
    """The request of a line. Raises `StudioError` for an unknown method and for fields that are not right."""
    method = line["method"]
    if method not in BY_NAME:
        raise StudioError(f"There is no method {method!r}.", f"There are: {', '.join(BY_NAME)}.")
    try:
        return BY_NAME[method].model_validate(line.get("params", {}))
    except ValidationError as error:
        raise StudioError(f"The fields of {method!r} are not right: {error}.") from None


class Inbox(threading.Thread):
    """Reads requests. "stop" is obeyed here and now, everything else waits its turn in `calls`."""

    def __init__(self, lines: TextIO, write: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(name="requests", daemon=True)
        self.calls: queue.SimpleQueue[Call[Any]] = queue.SimpleQueue()
        self._lines = lines
        self._write = write
        self._latest: Call[Any] | None = None

    def run(self) -> None:
        for text in self._lines:
            line = json.loads(text)
            try:
                call: Call[Any] = Call(line["id"], parse_request(line), self._write)
            except StudioError as error:
                Call(line["id"], protocol.Stop(), self._write).answer(
                    protocol.Failure(message=error.message, hint=error.hint)
                )
                continue
            if isinstance(call.message, protocol.Stop):
                if self._latest is not None:
                    self._latest.stopped.set()
                call.answer(protocol.Done())
            else:
                self._latest = call
                self.calls.put(call)
        os._exit(0)  # the parent is gone: nobody waits for an answer, and the memory is wanted


def serve(session: Session, call: Call[Any]) -> bool:
    """Answers one request with a result or a failure; says whether the process is fit for another one.

    After the limit of memory was met it is not: what filled it may still be held somewhere.
    """
    try:
        limit = limited() if isinstance(call.message, READING) else nullcontext()
        with withheld(call.message.tokenless), limit:
            call.answer(METHODS[type(call.message)](session, call))
    except StudioError as error:
        fit = not isinstance(error, MemoryLimitError)
        call.answer(protocol.Failure(message=error.message, hint=error.hint, last=not fit))
        return fit
    except Exception as error:  # the child's edge: one failed request must not take the loaded model with it
        traceback.print_exc()
        from lora_studio.engine.train.memory import is_out_of_memory

        memory = is_out_of_memory(error)
        message = "The memory is not enough for this." if memory else f"{type(error).__name__}: {error}"
        hint = "Take a smaller model, 4bit, or fewer adapters." if memory else "The session's log has the details."
        call.answer(protocol.Failure(message=message, hint=hint, internal=True))
    return True


def main() -> None:
    """Serves until stdin closes."""
    if "LOCAL_RANK" not in os.environ:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    # Half a character, which a bad row may be shown with, is no text: a question mark stands for it.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    lock = threading.Lock()

    def write(message: dict[str, Any]) -> None:
        line = json.dumps(message, ensure_ascii=False) + "\n"
        try:
            with lock:
                answers.write(line)
                answers.flush()
        except BrokenPipeError:
            os._exit(0)  # nobody reads any more

    inbox = Inbox(os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8"), write)
    inbox.start()
    session = Session()
    go_first()
    while serve(session, inbox.calls.get()):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
