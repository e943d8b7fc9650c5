"""The child process that analyzes data and generates chat answers, with the messages of `jobs.protocol` over pipes.

A thread reads the requests, so that a stop arrives while an answer is generated. The process ends when stdin closes,
because its parent is gone. Output of libraries goes to stderr.
"""

import importlib
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lora_studio.data.memory_limit import MemoryLimitError, go_first, limited
from lora_studio.engine.chat.analysis import Call, DataAnalysis
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.jobs import protocol
from lora_studio.models.adapters import changed, fingerprint, read_card, together, written_at
from lora_studio.models.hub import without_implicit_token

if TYPE_CHECKING:
    from lora_studio.engine.chat.vllm import Served
    from lora_studio.engine.models.multi_adapter import LoadedModel

MAX_ADAPTERS = 8
IDLE_SECONDS = 5.0
"""How long nothing is asked for until a child that was warmed up imports what only later requests need."""


class Calls:
    """Calls a function with phase, done and total; in the place of an event log."""

    def __init__(self, tell: Callable[[str, int, int], None]) -> None:
        self._tell, self._phase = tell, ""

    def phase(self, phase: str, total: int = 0, unit: str = "") -> None:
        self._phase = phase
        self._tell(phase, 0, total)

    def progress(self, done: int, total: int) -> None:
        self._tell(self._phase, done, total)


class SessionWorker:
    """The child's state between requests: the data analyzed last, and the model in memory."""

    def __init__(self) -> None:
        self.half_warm = False
        self._loaded: LoadedModel | None = None
        self._loaded_for: tuple[Any, ...] = ()
        self._adapters: dict[str, tuple[str, int]] = {}
        self._served: Served | None = None
        self._refusals: dict[Any, StudioError] = {}
        data = DataAnalysis()
        self.methods: dict[type[protocol.Request[Any]], Callable[[Call[Any]], protocol.Result]] = {
            protocol.Inspect: data.inspect,
            protocol.Preview: data.preview,
            protocol.SaveBadRows: data.save_bad_rows,
            protocol.SaveCleaned: data.save_cleaned,
            protocol.LookAtFirst: data.look_at_first,
            protocol.TryReading: data.try_reading,
            protocol.Split: data.split,
            protocol.FetchConfig: self.fetch_config,
            protocol.LookAtModel: self.look_at_model,
            protocol.Load: self.load,
            protocol.Generate: self.generate,
            protocol.GenerateBatch: self.generate_batch,
            protocol.Score: self.score,
            protocol.Modules: self.modules,
            protocol.Mix: self.mix,
            protocol.Unload: self.unload,
            protocol.WarmUp: self.warm_up,
            protocol.Rest: self.rest,
        }

    def rest(self, call: Call[protocol.Rest]) -> protocol.Done:
        """Answers as soon as all earlier requests are done."""
        return protocol.Done()

    def warm_up(self, call: Call[protocol.WarmUp]) -> protocol.Done:
        """Imports what loads a tokenizer, which takes seconds."""
        importlib.import_module("lora_studio.engine.models.source")
        self.half_warm = True
        return protocol.Done()

    def warm_up_rest(self) -> None:
        """Imports what the checks of a model need, which takes longer: while nobody waits."""
        importlib.import_module("lora_studio.engine.models.adapter")
        self.half_warm = False

    def fetch_config(self, call: Call[protocol.FetchConfig]) -> protocol.FetchedConfig:
        """Downloads the model's config.json into the cache, and nothing else."""
        from lora_studio.engine.models import adapter as shapes  # seconds: torch, transformers, peft

        return protocol.FetchedConfig(numbers=shapes.take_layout(call.message.model, call.message.revision))

    def look_at_model(self, call: Call[protocol.LookAtModel]) -> protocol.ModelFacts:
        """The facts about a model for the checks before a start."""
        from lora_studio.engine.models import adapter as shapes  # seconds: torch, transformers, peft

        message = call.message
        facts = shapes.look_at_model(
            message.model,
            message.revision,
            lora=message.lora,
            seed=message.seed,
            adapter=message.adapter,
            quantization=message.quantization,
        )
        return protocol.ModelFacts(**facts)

    def load(self, call: Call[protocol.Load]) -> protocol.Loaded:
        """Loads base and adapters into memory. What is loaded already stays, including the most recently used other
        adapters."""
        from lora_studio.engine.models import load, multi_adapter  # seconds: torch, transformers, peft

        message = call.message
        folders = {name: Path(folder) for name, folder in message.adapters.items()}
        cards = [read_card(folder) for folder in folders.values()]
        notes = together(cards) if cards else []
        card: JsonObject = cards[0].values if cards else {}
        base = message.base or card.get("base_model") or "demo"
        revision = message.revision or (card.get("revision") if base == card.get("base_model") else None)
        quantization = message.quantization or card.get("quantization") or "none"
        dtype = message.dtype or "auto"
        four_bit = card.get("four_bit") or {}
        key = (base, revision, quantization, dtype, message.engine, *four_bit.items())
        if self._loaded is None or (*key, fingerprint(base, revision)) != self._loaded_for:
            self._forget_model()
            call.progress("base", 0, 1)
            self._loaded = multi_adapter.load_base(
                base,
                revision=revision,
                dtype=dtype,
                quantization=quantization,
                four_bit=four_bit,
                log=Calls(call.progress),
                phase="base",
            )
            self._loaded_for = (
                *key,
                fingerprint(base, revision),
            )  # the load may have downloaded it
        self._load_adapters(call, folders)
        if message.engine == protocol.VLLM:
            notes.append(self._serve(call, key, revision))
        notes += [note for adapter in cards if (note := changed(adapter, base, revision))]
        notes += [note for name in folders for note in self._loaded.notes[name]]
        return protocol.Loaded(
            base=base,
            adapters=list(folders),
            device=self._loaded.model.device.type,
            dtype=load.dtype_name(self._loaded.model.dtype),
            quantization=quantization,
            memory_bytes=load.memory_bytes(),
            system_prompt=card.get("system_prompt"),
            mixes=self._loaded.shares(folders),
            notes=list(dict.fromkeys(notes)),
        )

    def _load_adapters(self, call: Call[Any], folders: dict[str, Path]) -> None:
        """Adds the adapters that are not in memory; the least recently used are evicted if there are too many."""
        from lora_studio.engine.models import multi_adapter

        assert self._loaded is not None
        stamps = {name: (str(folder), written_at(folder)) for name, folder in folders.items()}
        gone = [name for name in folders if name in self._adapters and self._adapters[name] != stamps[name]]
        unused = [name for name in self._adapters if name not in folders]
        gone += unused[: max(0, len(unused) + len(folders) - MAX_ADAPTERS)]
        new = {name: folder for name, folder in folders.items() if name in gone or name not in self._adapters}
        call.progress("adapters", 0, len(new))
        try:
            if gone:
                self._loaded = multi_adapter.remove_adapters(self._loaded, gone)
            multi_adapter.add_adapters(self._loaded, new)
        except StudioError:
            self._forget_model()  # an adapter that does not fit leaves the base half changed
            raise
        remaining = {name: stamp for name, stamp in self._adapters.items() if name not in gone and name not in folders}
        self._adapters = remaining | stamps  # the last used stand last
        call.progress("adapters", len(new), len(new))

    def generate(self, call: Call[protocol.Generate]) -> protocol.Generated:
        """Generates the answers of all columns at once, and streams their text."""
        from lora_studio.engine.chat import batch

        return batch.answer_columns(self._model(), call)

    def generate_batch(self, call: Call[protocol.GenerateBatch]) -> protocol.Done:
        """Answers requests with settings of their own together, and those that join them; each ends by itself."""
        if self._served is not None:
            self._served.answer_call(self._model(), call)
        else:
            from lora_studio.engine.chat import batch

            batch.answer_call(self._model(), call)
        return protocol.Done()

    def _serve(self, call: Call[protocol.Load], key: tuple[Any, ...], revision: str | None) -> str:
        """Lets vLLM answer for what is loaded; says what the comparison with it came to. It is not tried again with
        what it was refused for: that takes minutes."""
        from lora_studio.engine.chat import vllm

        what = (key, *sorted(self._adapters.items()))
        if what in self._refusals:
            raise self._refusals[what]
        self._served = self._served or vllm.Served()
        folders = {name: folder for name, (folder, _) in self._adapters.items()}
        try:
            ties = self._served.follow(self._model(), folders, revision, call.check, call.beating)
        except StudioError as error:
            if not call.stopped.is_set():
                self._refusals[what] = error
            self._forget_model()
            raise
        return vllm.in_words(len(vllm.QUESTIONS), ties)

    def score(self, call: Call[protocol.Score]) -> protocol.Scored:
        """Scores a given answer token by token under base and adapters."""
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

        linear, whole = adapters.module_names(call.message.model or "demo", call.message.revision)
        return protocol.ModuleNames(linear=linear, whole=whole)

    def mix(self, call: Call[protocol.Mix]) -> protocol.Mixed:
        """Writes a mix of adapters, which needs no model in memory."""
        from lora_studio.engine.models import mixing  # seconds: torch, transformers, peft

        with call.beating("mix"):
            notes = mixing.mix_requested(call.message)
        return protocol.Mixed(notes=notes)

    def unload(self, call: Call[protocol.Unload]) -> protocol.Done:
        """Drops the model. Only the end of this process is certain to free all memory."""
        self._forget_model()
        return protocol.Done()

    def leave(self) -> None:
        """Ends what would outlive this process."""
        if self._served is not None:
            self._served.close()

    def give_back(self) -> None:
        """Frees what a failed answer held beside the model, such as its keys and values."""
        if self._loaded is not None:
            from lora_studio.engine.models.load import give_back_memory

            give_back_memory()

    def _forget_model(self) -> None:
        self.leave()
        self._served = None
        if self._loaded is not None:
            from lora_studio.engine.models.load import give_back_memory

            self._loaded, self._loaded_for, self._adapters = None, (), {}
            give_back_memory()


class Inbox(threading.Thread):
    """Reads requests. Those that concern the running one are handled immediately; all others are queued in `calls`."""

    def __init__(
        self, lines: TextIO, write: Callable[[JsonObject], None], leave: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(name="requests", daemon=True)
        self._leave = leave
        self.calls: queue.SimpleQueue[Call[Any]] = queue.SimpleQueue()
        self._lines = lines
        self._write = write
        self._latest: Call[Any] | None = None

    def run(self) -> None:
        for text in self._lines:
            line = json.loads(text)
            try:
                call: Call[Any] = Call(line["id"], protocol.parse_request(line), self._write)
            except StudioError as error:
                Call(line["id"], protocol.Stop(), self._write).answer(
                    protocol.Failure(message=error.message, hint=error.hint)
                )
                continue
            if isinstance(call.message, protocol.Stop | protocol.StopColumn | protocol.JoinBatch):
                self._tell_latest(call.message)
                call.answer(protocol.Done())
            else:
                self._latest = call
                self.calls.put(call)
        self._leave()
        os._exit(0)  # the parent is gone: free the memory at once

    def _tell_latest(self, message: protocol.Stop | protocol.StopColumn | protocol.JoinBatch) -> None:
        """Ends the latest request, or one column of it if it is that batch, or lets others join it."""
        if self._latest is None:
            return
        if isinstance(message, protocol.Stop):
            self._latest.stopped.set()
        elif getattr(self._latest.message, "batch", None) == message.batch:
            if isinstance(message, protocol.StopColumn):
                self._latest.stopped_columns.add(message.position)
            else:
                for column in message.columns:
                    self._latest.joining.put(column)


def serve(session: SessionWorker, call: Call[Any]) -> bool:
    """Answers one request with a result or a failure; returns whether the process can take another request.

    After the memory limit was hit it cannot, because the memory may still be referenced somewhere; nor after a fault
    of the GPU, with which all that follows would fail. What an answer held when the GPU's memory ran out is given back.
    """
    try:
        limit = limited() if isinstance(call.message, protocol.READING) else nullcontext()
        with without_implicit_token(call.message.tokenless), limit:
            call.answer(session.methods[type(call.message)](call))
    except StudioError as error:
        fit = not isinstance(error, MemoryLimitError)
        call.answer(protocol.Failure(message=error.message, hint=error.hint, last=not fit))
        return fit
    except Exception as error:  # a failed request must not cost the loaded model
        failure = failure_of(error)
        call.answer(failure)
        if failure.last:
            return False
    else:
        return True
    session.give_back()
    return True


def failure_of(error: Exception) -> protocol.Failure:
    """An unexpected error in words, and whether it is the last of this process; the log has all of it."""
    from lora_studio.engine.runtime import is_out_of_memory, log_traceback, lost_device, tells_of_full_disk

    log_traceback()
    message, hint = f"{type(error).__name__}: {error}", "See the session's log for details."
    if is_out_of_memory(error):
        message, hint = "Out of memory.", "Use a smaller model, 4-bit quantization, or fewer adapters."
    elif tells_of_full_disk(error):
        message, hint = "The disk is full.", "Delete runs, uploads or other files, and try again."
    elif lost_device(error):
        message = f"The GPU reported an error: {str(error).strip().partition(chr(10))[0]}"
        hint = "The next request starts a new process and loads the model again. The session's log says more."
        return protocol.Failure(message=message, hint=hint, internal=True, last=True)
    return protocol.Failure(message=message, hint=hint, internal=True)


def main() -> None:
    """Serves until stdin closes."""
    from lora_studio.engine.runtime import see_one_gpu

    if "LOCAL_RANK" not in os.environ:
        see_one_gpu()
    # A lone surrogate in a shown bad row cannot be encoded: it becomes a question mark.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    lock = threading.Lock()

    def write(message: JsonObject) -> None:
        line = json.dumps(message, ensure_ascii=False) + "\n"
        try:
            with lock:
                answers.write(line)
                answers.flush()
        except BrokenPipeError:
            session.leave()
            os._exit(0)  # nobody reads any more

    session = SessionWorker()
    inbox = Inbox(os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8"), write, session.leave)
    inbox.start()
    go_first()
    fit = True
    while fit:
        try:
            call = inbox.calls.get(timeout=IDLE_SECONDS if session.half_warm else None)
        except queue.Empty:
            session.warm_up_rest()
        else:
            fit = serve(session, call)
    session.leave()
    os._exit(0)


if __name__ == "__main__":
    main()
