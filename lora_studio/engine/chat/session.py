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
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

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
from lora_studio.models.adapter_files import WEIGHTS_FILE
from lora_studio.models.adapters import changed, fingerprint, read_card, together
from lora_studio.models.hub import withheld

if TYPE_CHECKING:
    from lora_studio.engine.models.multi_adapter import LoadedModel

PROGRESS_SECONDS = 0.2
MOST_ADAPTERS = 8


class Request:
    """One request: its parameters, a flag that "stop" sets, and the way to answer."""

    def __init__(self, number: int, method: str, params: dict[str, Any], write: Callable[[dict[str, Any]], None]):
        self.number = number
        self.method = method
        self.params = params
        self.stopped = threading.Event()
        self._write = write
        self._shown = 0.0
        self._phase, self._began = "", 0.0

    def answer(self, kind: str, /, **values: Any) -> None:
        self._write({**values, "id": self.number, "kind": kind})

    def progress(self, phase: str, done: int = 0, total: int = 0) -> None:
        """At most five a second, and always the first and last of a phase; with the phase's speed and time left."""
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._began = phase, now
        if done in (0, total) or now - self._shown >= PROGRESS_SECONDS:
            self._shown = now
            speed = done / (now - self._began) if done and now > self._began else 0.0
            left = (total - done) / speed if speed and total else None
            self.answer("progress", phase=phase, done=done, total=total, rows_per_second=speed, seconds_left=left)


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

    def inspect(self, request: Request) -> dict[str, Any]:
        """Looks at a data file as training would. Parameters: model, revision, cache_folder, those of `Look`
        and those of prepare()."""
        prepared, look = self._have(request, request.params)
        return _named(describe(prepared, look, _progress(request)))

    def _have(self, request: Request, wanted: Mapping[str, Any]) -> tuple[Prepared, Look]:
        """The data of these parameters of `inspect`, prepared now unless they are what was prepared last."""
        params = dict(wanted)
        model, revision = params.pop("model", "demo"), params.pop("revision", None)
        look = Look(**{field.name: params.pop(field.name) for field in fields(Look) if field.name in params})
        length, cut = params.pop("max_length", 1024), params.pop("truncation", "keep_answer")
        folder = params.pop("cache_folder", None)
        encoding = params.get("encoding")
        stamps = [_stamps(name, encoding) for name in (params["train_file"], params.get("validation_file")) if name]
        key = (model, revision, json.dumps(params, sort_keys=True), stamps)

        def first_look(sample: Prepared) -> None:
            rows = len(sample.conversations)
            request.answer("progress", phase="sample", done=rows, total=0, sample=_named(describe(sample, look)))

        progress = _progress(request)
        if self._prepared is None or key != self._prepared_for:
            request.progress("tokenizer")
            tokenizer = self._tokenizer(model, revision)
            try:
                self._prepared = prepare(
                    tokenizer=tokenizer,
                    max_length=length,
                    truncation=cut,
                    goal="any",
                    cache_folder=Path(folder) if folder else None,
                    on_progress=progress,
                    on_sample=first_look,
                    **params,
                )
            except ReadingError:
                request.answer("progress", phase="rows", done=0, total=0, unread=unread(params["train_file"], encoding))
                raise
            self._prepared_for = key
        elif (length, cut) != (self._prepared.settings.max_length, self._prepared.settings.truncation):
            self._prepared = recut(self._prepared, max_length=length, truncation=cut, report=progress)
        return self._prepared, look

    def _meant(self, request: Request) -> Prepared:
        """The data that a request is about: those of its parameter `of`, else those last inspected."""
        if request.params.get("of"):
            return self._have(request, request.params["of"])[0]
        if self._prepared is None:
            raise StudioError("No data has been looked at yet.", "Choose a file first.")
        return self._prepared

    def try_reading(self, request: Request) -> dict[str, Any]:
        """What a mapping makes of the first rows, before the file is read by it. Parameters: train_file, mapping,
        encoding."""
        name, encoding = request.params["train_file"], request.params.get("encoding")
        key = (name, encoding, _stamps(name, encoding))
        if key != self._first_for:
            self._first, self._first_for = first_records(name, encoding=encoding), key
        return tried(self._first, request.params.get("mapping"))

    def preview(self, request: Request) -> dict[str, Any]:
        """One row of inspected data, from record to trained tokens. Parameters: row_index, window, and `of`."""
        return preview(self._meant(request), int(request.params["row_index"]), request.params.get("window"))

    def save_bad_rows(self, request: Request) -> dict[str, Any]:
        """Writes all bad rows of inspected data into a file. Parameters: path, and `of`."""
        return {"rows": save_bad_rows(self._meant(request), Path(request.params["path"]))}

    def look_at_first(self, request: Request) -> dict[str, Any]:
        """The first rows as training would see them. Parameters: model, revision, and those of prepare()."""
        params = dict(request.params)
        tokenizer = self._tokenizer(params.pop("model", "demo"), params.pop("revision", None))
        seen = look_at_first(tokenizer=tokenizer, **params)
        largest = max(largest_id(rows) for rows in (seen.train, seen.validation))
        return _named(describe(seen, Look(show_examples=1))) | {"largest_id": largest}

    def rest(self, request: Request) -> dict[str, Any]:
        """Answers as soon as nothing else is being done."""
        return {}

    def warm_up(self, request: Request) -> dict[str, Any]:
        """Imports what reads a tokenizer, which takes seconds."""
        importlib.import_module("lora_studio.engine.models.tokenizer")
        return {}

    def fetch_config(self, request: Request) -> dict[str, Any]:
        """The model's config.json into this machine's cache, and nothing else of it. Parameters: model, revision."""
        from lora_studio.engine.models.load import read_config
        from lora_studio.engine.models.shapes import take_layout  # seconds: torch, transformers, peft

        model, revision = request.params["model"], request.params.get("revision")
        numbers = read_config(model, revision).to_dict()
        take_layout(model, revision)
        return {"numbers": numbers}

    def look_at_model(self, request: Request) -> dict[str, Any]:
        """What the checks before a start want to know of a model: see `layout.look_at_model`, whose parameters these
        are, with `model` for its name."""
        from lora_studio.engine.models import shapes  # seconds: torch, transformers, peft

        params = dict(request.params)
        return shapes.look_at_model(params.pop("model"), params.pop("revision", None), **params)

    def load(self, request: Request) -> dict[str, Any]:
        """Base and adapters into memory; what is there already is kept, and of adapters not asked for the last few."""
        from lora_studio.engine.models import load, multi_adapter  # seconds: torch, transformers, peft

        params = request.params
        folders = {name: Path(folder) for name, folder in params.get("adapters", {}).items()}
        cards = [read_card(folder) for folder in folders.values()]
        notes = together(cards) if cards else []
        card: dict[str, Any] = cards[0].values if cards else {}
        base = params.get("base") or card.get("base_model") or "demo"
        revision = params.get("revision") or (card.get("revision") if base == card.get("base_model") else None)
        quantization = params.get("quantization") or card.get("quantization") or "none"
        dtype = params.get("dtype") or "auto"
        four_bit = card.get("four_bit") or {}
        key = (base, revision, quantization, dtype, *four_bit.items())
        if self._loaded is None or (*key, fingerprint(base, revision)) != self._loaded_for:
            self.unload(request)
            request.progress("base", 0, 1)
            bar = Download(Calls(request.progress), "base").bar_class()
            self._loaded = multi_adapter.load_base(
                base, revision=revision, dtype=dtype, quantization=quantization, four_bit=four_bit, tqdm_class=bar
            )
            self._loaded_for = (*key, fingerprint(base, revision))  # after it was fetched, where it was not here
        self._have_adapters(request, folders)
        notes += [words for adapter in cards if (words := changed(adapter, base, revision))]
        return {
            "base": base,
            "adapters": list(folders),
            "cards": {name: self._loaded.cards[name] for name in folders},
            "device": self._loaded.model.device.type,
            "dtype": load.dtype_name(self._loaded.model.dtype),
            "quantization": quantization,
            "memory_bytes": load.memory_bytes(),
            "template_name": card.get("prompt_style", "chat"),
            "templates": {name: self._loaded.template(name) for name in folders},
            "system_prompt": card.get("system_prompt"),
            "enable_thinking": card.get("enable_thinking"),
            "max_length": card.get("max_length"),
            "longest_text": self._loaded.longest_text,
            "mixes": self._loaded.shares(folders),
            "notes": list(dict.fromkeys([*notes, *(words for name in folders for words in self._loaded.told[name])])),
        }

    def _have_adapters(self, request: Request, folders: dict[str, Path]) -> None:
        """Adds the adapters that are not in memory; those used longest ago go where there are too many."""
        from lora_studio.engine.models import multi_adapter

        assert self._loaded is not None
        stamps = {name: (str(folder), (folder / WEIGHTS_FILE).stat().st_mtime_ns) for name, folder in folders.items()}
        gone = [name for name in folders if name in self._adapters and self._adapters[name] != stamps[name]]
        others = [name for name in self._adapters if name not in folders]
        gone += others[: max(0, len(others) + len(folders) - MOST_ADAPTERS)]
        new = {name: folder for name, folder in folders.items() if name in gone or name not in self._adapters}
        request.progress("adapters", 0, len(new))
        try:
            if gone:
                self._loaded = multi_adapter.remove_adapters(self._loaded, gone)
            multi_adapter.add_adapters(self._loaded, new)
        except StudioError:
            self.unload(request)  # an adapter that does not fit leaves the base half changed
            raise
        kept = {name: stamp for name, stamp in self._adapters.items() if name not in gone and name not in folders}
        self._adapters = kept | stamps  # the last used stand last
        request.progress("adapters", len(new), len(new))

    def generate(self, request: Request) -> dict[str, Any]:
        """All columns answer at once; pieces of text come while they do. Parameters: columns, settings, and in `stop`
        texts that end an answer, which other than those of the settings may have several lines."""
        from lora_studio.engine.chat import generate

        loaded = self._model()
        chosen = parse({"generation": dict(request.params.get("settings", {}))}).generation
        values = chosen.model_dump(exclude={"seed", "stop_strings", "enable_thinking"})
        columns = [generate.Column(column.get("adapter"), column["messages"]) for column in request.params["columns"]]
        answers = generate.generate(
            loaded,
            columns,
            generate.generation_config(loaded, **values),
            seed=chosen.seed,
            enable_thinking=chosen.enable_thinking,
            stop_strings=(*chosen.stop_texts, *request.params.get("stop", ())),
            on_pieces=lambda texts, tokens: request.answer("piece", texts=texts, tokens=tokens),
            stop=request.stopped.is_set,
        )
        return {"columns": [answer.to_dict() for answer in answers]}

    def score(self, request: Request) -> dict[str, Any]:
        """How base and adapters predict one forced answer, token by token. Parameters: adapters, messages, answer."""
        from lora_studio.engine.chat import logprobs

        params = request.params
        return logprobs.score(self._model(), params["adapters"], params["messages"], params["answer"])

    def _model(self) -> "LoadedModel":
        if self._loaded is None:
            raise StudioError("No model is loaded.", "Load one first.")
        return self._loaded

    def modules(self, request: Request) -> dict[str, Any]:
        """Names of a model's modules, from its config alone. Parameters: model, revision."""
        from lora_studio.engine.models import adapter as adapters
        from lora_studio.engine.models import load

        model = load.without_weights(request.params.get("model") or "demo", request.params.get("revision"))
        return {"linear": adapters.last_names(adapters.linear_modules(model)), "whole": adapters.bearing_names(model)}

    def unload(self, request: Request) -> dict[str, Any]:
        """Forgets the model. Certain to give all memory back is only the end of this process."""
        if self._loaded is not None:
            import torch

            self._loaded, self._loaded_for, self._adapters = None, (), {}
            gc.collect()
            torch.cuda.empty_cache()
        return {}

    def _tokenizer(self, model: str, revision: str | None) -> Any:
        from lora_studio.engine.models.tokenizer import load_tokenizer

        if (model, revision) not in self._tokenizers:
            self._tokenizers = {(model, revision): load_tokenizer(model, revision)}
        return self._tokenizers[model, revision]


def _progress(request: Request) -> Callable[[str, int, int], None]:
    """Tells how far a look at data is, until a stop is asked for."""

    def progress(phase: str, done: int, total: int) -> None:
        if request.stopped.is_set():
            raise StudioError("The look at the data was stopped.", "Look again to start anew.")
        request.progress(phase, done, total)

    return progress


def _stamps(name: str, encoding: str | None) -> list[tuple[str, int, int]]:
    """What tells whether the files of a source are still the same."""
    return [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in open_data(name, encoding).files]


def _named(found: dict[str, Any]) -> dict[str, Any]:
    """A description with its `kind` under a name that an answer has not taken yet."""
    return {**found, "file_kind": found["kind"]}


METHODS: dict[str, Callable[[Session, Request], dict[str, Any]]] = {
    "inspect": Session.inspect,
    "preview": Session.preview,
    "save_bad_rows": Session.save_bad_rows,
    "look_at_first": Session.look_at_first,
    "fetch_config": Session.fetch_config,
    "look_at_model": Session.look_at_model,
    "try_reading": Session.try_reading,
    "load": Session.load,
    "generate": Session.generate,
    "score": Session.score,
    "modules": Session.modules,
    "unload": Session.unload,
    "warm_up": Session.warm_up,
    "rest": Session.rest,
}


READING = ("inspect", "preview", "save_bad_rows", "look_at_first", "try_reading")
"""Methods that read files of other people, which may take only so much memory."""


class Inbox(threading.Thread):
    """Reads requests. "stop" is obeyed here and now, everything else waits its turn in `requests`."""

    def __init__(self, lines: TextIO, write: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(name="requests", daemon=True)
        self.requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._lines = lines
        self._write = write
        self._latest: Request | None = None

    def run(self) -> None:
        for line in self._lines:
            message = json.loads(line)
            request = Request(message["id"], message["method"], message.get("params", {}), self._write)
            if request.method == "stop":
                if self._latest is not None:
                    self._latest.stopped.set()
                request.answer("result")
            else:
                self._latest = request
                self.requests.put(request)
        os._exit(0)  # the parent is gone: nobody waits for an answer, and the memory is wanted


def serve(session: Session, request: Request) -> bool:
    """Answers one request with a result or an error; says whether the process is fit for another one.

    After the limit of memory was met it is not: what filled it may still be held somewhere.
    """
    try:
        if request.method not in METHODS:
            raise StudioError(f"There is no method {request.method!r}.", f"There are: {', '.join(METHODS)}.")
        within = limited() if request.method in READING else nullcontext()
        with withheld(request.params.pop("tokenless", False)), within:
            request.answer("result", **METHODS[request.method](session, request))
    except StudioError as error:
        fit = not isinstance(error, MemoryLimitError)
        request.answer("error", message=error.message, hint=error.hint, last=not fit)
        return fit
    except Exception as error:  # the child's edge: one failed request must not take the loaded model with it
        traceback.print_exc()
        from lora_studio.engine.train.memory import is_out_of_memory

        memory = is_out_of_memory(error)
        message = "The memory is not enough for this." if memory else f"{type(error).__name__}: {error}"
        hint = "Take a smaller model, 4bit, or fewer adapters." if memory else "The session's log has the details."
        request.answer("error", message=message, hint=hint, internal=True)
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
    while serve(session, inbox.requests.get()):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
