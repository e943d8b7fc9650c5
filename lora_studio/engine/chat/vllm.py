"""Answers from vLLM: a server of its own for base and adapters, asked over HTTP on this machine alone.

It gets the tokens of our prompts, so templates are ours. Before it answers anybody, its greedy answers to some prompts
are compared with ours (`agreement`); if one differs, it is not used. It ends with this process (`engine.guard`).
Arguments, routes and fields are those of vLLM 0.10.2 and later (`vllm/engine/arg_utils.py`,
`vllm/entrypoints/openai/cli_args.py`, `completion/protocol.py` and `serve/lora`).
"""

import contextlib
import itertools
import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import httpx
from transformers import GenerationConfig

from lora_studio.engine.accelerator import by_number, on_cpu, read_memory
from lora_studio.engine.chat.agreement import check_agreement
from lora_studio.engine.chat.analysis import Call
from lora_studio.engine.chat.batch import BatchPrompt, batch_prompt, hand_end
from lora_studio.engine.chat.generate import (
    Answer,
    Column,
    Generating,
    channels_of,
    end_ids,
    generate,
    greedy,
    opening,
    prompt_ids,
)
from lora_studio.engine.guard import guarded
from lora_studio.engine.models.load import dtype_name, give_back_memory
from lora_studio.engine.models.multi_adapter import LoadedModel
from lora_studio.errors import StudioError
from lora_studio.evaluate.job import check_engine
from lora_studio.files import JsonObject
from lora_studio.jobs.protocol import VLLM, GenerateBatch, Piece
from lora_studio.models.adapter_files import max_rank, read_settings
from lora_studio.units import shorten
from lora_studio.workspace import model_source

BASE = "base"
ENVIRONMENT = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
"""Opens the routes that load and unload adapters."""
COMPARED = 20
"""Prompts whose greedy answers have to be ours."""
AT_ONCE = 64
"""Requests under way; the server makes batches of them."""
START_SECONDS = 900.0
"""Loading a model and compiling it takes minutes."""
JOIN_SECONDS = 0.02
"""Between two looks for requests that join."""
FREE_SHARE = 0.85
"""Of the memory that our model leaves free, which scores the expected answers meanwhile."""
LEAST_SHARE = 0.001
"""vLLM refuses to be given nothing in other words than to be given too little."""
RESERVE = 2 << 30
"""Bytes for what vLLM computes with beside weights and keys and values: activations, scores, CUDA graphs, adapters."""
LEAST_LENGTH = 2048
HINT = "Set the engine to transformers."


def check_columns(loaded: LoadedModel, columns: Mapping[str, str]) -> int:
    """The largest rank of the adapters, by the folder of each column ("" for the base). Raises `StudioError` for what
    vLLM answers otherwise."""
    if "quantization_config" in loaded.base.config.to_dict():
        raise StudioError("vLLM needs the base model unquantized.", HINT)
    if any(channels_of(loaded, name if folder else None) for name, folder in columns.items()):
        raise StudioError("vLLM's answers in channels (harmony) are not read.", HINT)
    return max((max_rank(read_settings(Path(folder))) for folder in columns.values() if folder), default=0)


def served_length(loaded: LoadedModel, needed: int | None) -> int | None:
    """Tokens of prompt and answer that vLLM makes room for; None leaves it to vLLM, for a model without a limit.

    It is the model's own length, if it is not known how many are `needed`, or what the memory holds beside the weights
    if that is less: vLLM does not start where one conversation of the whole length would not fit into its KV cache.
    """
    if loaded.longest_text is None:
        return None
    if needed is not None:
        return min(loaded.longest_text, max(needed, LEAST_LENGTH))
    weights = sum(weight.nbytes for weight in loaded.base.parameters())
    fitting = loaded.cached_tokens(int(FREE_SHARE * read_memory().free) - weights - RESERVE)
    return loaded.longest_text if fitting is None else min(loaded.longest_text, max(fitting, LEAST_LENGTH))


def command(
    loaded: LoadedModel,
    columns: Mapping[str, str],
    revision: str | None,
    port: int,
    *,
    slots: int = 0,
    rank: int = 0,
    length: int | None = None,
) -> list[str]:
    """The words of `vllm serve` for the base and the adapters of the columns; it listens on this machine alone.

    `slots` and `rank` leave room for adapters that are loaded later, `length` is the `served_length`. Adapters are
    given as JSON: vLLM splits `name=path` at every "=", and takes it for JSON where it has a comma. Defaults of the
    model's `generation_config.json`, which vLLM would take for what a request does not set, are left out: each sets
    all.
    """
    rank, memory = max(rank, check_columns(loaded, columns)), read_memory()
    words = ["vllm", "serve", model_source(loaded.name), "--served-model-name", BASE, "--generation-config", "vllm"]
    words += ["--host", "127.0.0.1", "--port", str(port), "--dtype", dtype_name(loaded.base.dtype)]
    words += ["--revision", revision] if revision else []
    words += ["--max-model-len", str(length)] if length else []
    words += ["--gpu-memory-utilization", f"{max(FREE_SHARE * memory.free / memory.total, LEAST_SHARE):.3f}"]
    adapters = [json.dumps({"name": name, "path": folder}) for name, folder in columns.items() if folder]
    if adapters or slots:
        words += ["--enable-lora", "--max-loras", str(max(len(adapters), slots)), "--max-lora-rank", str(rank)]
    return [*words, "--lora-modules", *adapters] if adapters else words


class VllmServer:
    """A running `vllm serve`, which reads and writes at most `length` tokens. `ask` has the arguments of `generate`."""

    def __init__(self, port: int, key: str, length: int | None = None) -> None:
        self._length = length
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(900.0, connect=5.0),
            limits=httpx.Limits(max_connections=AT_ONCE),
            trust_env=False,
        )
        self.names: dict[str, str] = {}
        """Adapters that were loaded while the server runs, by the names of their columns."""
        self._loads = 0

    def is_up(self) -> bool:
        """Whether it answers requests already."""
        try:
            return self._client.get("/health", timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False

    def ask(
        self,
        loaded: LoadedModel,
        columns: Sequence[Column],
        settings: GenerationConfig,
        *,
        seed: int = 0,
        enable_thinking: bool | None = None,
        stop_strings: Sequence[str] = (),
        stop: Callable[[], bool] = lambda: False,
    ) -> list[Answer]:
        """Answers of all columns, as `generate` gives them. Raises `StudioError` where the server fails."""
        sampling: JsonObject = {"max_new_tokens": settings.max_new_tokens, "temperature": 0.0, "seed": seed}
        if settings.do_sample:
            sampling |= {name: getattr(settings, name) for name in ("temperature", "top_p", "top_k", "min_p")}
        sampling |= {"repetition_penalty": settings.repetition_penalty, "enable_thinking": enable_thinking}

        def one(column: Column) -> Answer:
            return self.answer(loaded, BatchPrompt(column, sampling, stop_strings), stop=stop)

        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="vllm") as pool:
            return list(pool.map(one, columns))

    def answer(
        self,
        loaded: LoadedModel,
        request: BatchPrompt,
        *,
        on_piece: Callable[[str, int], None] = lambda text, tokens: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """The answer to one request; `on_piece` gets its text as it grows, and the tokens so far. Leaving the stream
        ends it at the server. Raises `StudioError` for what can't be asked and where the server fails."""
        column, values = request.column, request.settings
        prompt, begun = prompt_ids(loaded, column, values["enable_thinking"]), time.monotonic()
        most = self._room(loaded, len(prompt), int(values["max_new_tokens"]))
        body: JsonObject = {
            "model": self.names.get(column.adapter or BASE, column.adapter or BASE),
            "prompt": prompt,
            "max_tokens": most,
            "temperature": values["temperature"],
            "repetition_penalty": values["repetition_penalty"],
            "stop": [*request.stop_strings],
            "stop_token_ids": sorted(end_ids(loaded, column.adapter)),
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "return_token_ids": True,
        }
        if values["temperature"] > 0:
            body |= {"top_p": values["top_p"], "top_k": values["top_k"] or -1, "min_p": values["min_p"] or 0.0}
            body["seed"] = values["seed"]
        text, tokens, finish, first = opening(loaded, column.adapter, prompt), 0, "", 0.0
        ids: list[int] = []
        if text:
            on_piece(text, 0)
        if not stop():
            with contextlib.closing(self._stream(body)) as chunks:
                for piece, more, tokens, ending in chunks:
                    first = first or time.monotonic()
                    text, finish = text + piece, ending
                    ids += more
                    if piece:
                        on_piece(piece, tokens)
                    if stop():
                        break
        if not finish and not stop():
            raise StudioError("vLLM's answer broke off.", f"See the log. {HINT}")
        seconds = max(time.monotonic() - begun, 1e-6)
        return Answer(
            text,
            tokens,
            seconds,
            max(first - begun, 0.0),
            tokens / seconds,
            finish or "stopped",
            tuple(ids),
            prompt_tokens=len(prompt),
        )

    def _room(self, loaded: LoadedModel, prompt: int, most: int) -> int:
        """Tokens of the longest answer after so many of the prompt."""
        limits = [limit for limit in (loaded.longest_text, self._length) if limit is not None]
        if limits and prompt >= min(limits):
            raise StudioError(
                f"The conversation has {prompt:,} tokens; vLLM reads at most {min(limits):,} here.",
                f"Start a new conversation. {HINT}",
            )
        return min([most, *(limit - prompt for limit in limits)])

    def _stream(self, body: JsonObject) -> Generator[tuple[str, list[int], int, str], None, None]:
        """Texts of a completion and their tokens as they come, the tokens so far, and why it ended ("" before):
        "length", "stop_string" or "eos"."""
        finish, count = "", 0
        try:
            with self._client.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code != 200:
                    raise StudioError(f"vLLM refuses: {_reason(response.read())}", HINT)
                for line in response.iter_lines():
                    data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                    if not data or data == "[DONE]":
                        continue
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise StudioError(f"vLLM refuses: {_reason(data.encode())}", HINT)
                    count = int((chunk.get("usage") or {}).get("completion_tokens", count))
                    choice = (chunk.get("choices") or [{}])[0]
                    if choice.get("finish_reason"):
                        stopped = "stop_string" if isinstance(choice.get("stop_reason"), str) else "eos"
                        finish = "length" if choice["finish_reason"] == "length" else stopped
                    yield str(choice.get("text") or ""), list(choice.get("token_ids") or ()), count, finish
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise StudioError(f"vLLM does not answer: {shorten(str(error), 200)}", f"See the log. {HINT}") from None

    def load(self, name: str, folder: str) -> None:
        """Loads an adapter while the server runs, under a name that no other had: vLLM keeps what it computed by name.
        Raises `StudioError` with vLLM's reason."""
        self._loads += 1
        served = f"adapter{self._loads}"
        self._tell("/v1/load_lora_adapter", {"lora_name": served, "lora_path": folder})
        self.names[name] = served

    def unload(self, name: str) -> None:
        """Frees an adapter's place."""
        self._tell("/v1/unload_lora_adapter", {"lora_name": self.names.pop(name)})

    def _tell(self, route: str, body: JsonObject) -> None:
        try:
            response = self._client.post(route, json=body)
        except httpx.HTTPError as error:
            raise StudioError(f"vLLM does not answer: {shorten(str(error), 200)}", f"See the log. {HINT}") from None
        if response.status_code != 200:
            raise StudioError(f"vLLM refuses the adapter: {_reason(response.content)}", HINT)


def _reason(content: bytes) -> str:
    """vLLM's own words: `error.message`, in older versions `message`."""
    try:
        body = json.loads(content)
        error = body.get("error", body)
        return shorten(str(error.get("message", error) if isinstance(error, dict) else error), 200)
    except (ValueError, AttributeError):
        return shorten(content.decode(errors="replace"), 200)


@contextlib.contextmanager
def serving(
    words: Sequence[str], port: int, check: Callable[[], None], length: int | None = None
) -> Iterator[VllmServer]:
    """Starts the command and waits until it answers; inside it serves, and afterwards it has ended.

    `check` is called every second while it starts, and raises to leave. Its output goes where the worker's goes.
    """
    key = secrets.token_hex(16)
    environment = {**os.environ, **by_number(os.environ), **ENVIRONMENT, "VLLM_API_KEY": key}
    with guarded(words, stdin=subprocess.DEVNULL, env=environment) as child:
        server, end = VllmServer(port, key, length), time.monotonic() + START_SECONDS
        while not server.is_up():
            check()
            if child.poll() is not None or time.monotonic() > end:
                how = "ended" if child.poll() is not None else "did not start in time"
                raise StudioError(f"vLLM {how}.", f"The end of the log says why. {HINT}")
            time.sleep(0.2)
        yield server


def check_equal(
    server: VllmServer,
    loaded: LoadedModel,
    columns: Sequence[Column],
    ours: Sequence[Answer] | None,
    *,
    max_new_tokens: int,
    enable_thinking: bool | None,
    stop: Callable[[], bool],
) -> int:
    """The number of ties among the tokens of the server's greedy answers; raises `StudioError` with the first that is
    not ours (`check_agreement`)."""
    settings = greedy(loaded, max_new_tokens)
    theirs = server.ask(loaded, columns, settings, enable_thinking=enable_thinking, stop=stop)
    if stop():
        return 0
    return check_agreement(loaded, columns, theirs, ours, enable_thinking=enable_thinking, engine="vLLM", hint=HINT)


def in_words(prompts: int, ties: int) -> str:
    """What the comparison of greedy answers to so many prompts came to."""
    but = f", but for {ties} as likely within 16-bit rounding" if ties else ""
    return f"vLLM answers. In its greedy answers to {prompts} prompts each token is that of transformers{but}."


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def answering(
    loaded: LoadedModel,
    folders: Mapping[str, str],
    columns: Sequence[Column],
    *,
    revision: str | None,
    max_new_tokens: int,
    enable_thinking: bool | None,
    longest: int,
    check: Callable[[], None],
    stop: Callable[[], bool],
    tell: Callable[[str], None],
) -> Iterator[Generating]:
    """Inside, vLLM answers in the place of `generate`. `folders` are those of the columns' adapters by name ("" for the
    base), `columns` the first prompts, which it has to answer as we do, `longest` the tokens of the longest prompt.
    `tell` hears what is done meanwhile, and what the comparison came to."""
    port, some = free_port(), columns[:COMPARED]
    length = served_length(loaded, longest + max_new_tokens)
    with serving(command(loaded, folders, revision, port, length=length), port, check, length) as server:
        ours = generate(loaded, some, greedy(loaded, max_new_tokens), enable_thinking=enable_thinking, stop=stop)
        limits: JsonObject = {"max_new_tokens": max_new_tokens, "enable_thinking": enable_thinking}
        tell(in_words(len(some), check_equal(server, loaded, some, ours, stop=stop, **limits)))
        yield server.ask


_TOPICS = ("the weather", "three colors", "a river and its source", "how bread is made", "the year 1969")
QUESTIONS = tuple(
    f"{verb} {topic}." for verb in ("Describe", "Tell me about", "Rhyme on", "Explain") for topic in _TOPICS
)
"""Asked of base and adapters before a chat's vLLM is used."""
PROVED_TOKENS = 16
SLOTS = 8
"""Adapters that it serves at once, as many as the chat holds."""
LEAST_RANK = 64
"""Of the adapters that are loaded while it runs; one with a higher rank starts it anew."""


class Served:
    """vLLM in the place of a loaded model, which moves to the CPU: no device is taken to hold a base twice.

    There, the tokens of an adapter that comes later are scored in one pass: generating them would read the weights for
    each token.
    """

    def __init__(self) -> None:
        self._held = contextlib.ExitStack()
        self._server: VllmServer | None = None
        self._rank = 0
        self._folders: dict[str, str] = {}

    def follow(
        self,
        loaded: LoadedModel,
        folders: Mapping[str, str],
        revision: str | None,
        check: Callable[[], None],
        doing: Callable[[str], contextlib.AbstractContextManager[None]],
    ) -> int:
        """Serves the base and these adapters, by the names of their columns, once their answers are ours; returns the
        ties among them (`check_agreement`). `doing` shows a phase, "vllm" or "agreement", for as long as it takes.

        Raises `StudioError` for what vLLM can't do and for answers that differ; then it has ended.
        """
        try:
            check_engine(VLLM, gpu=not on_cpu())
            rank = check_columns(loaded, {BASE: "", **folders})
            starts = self._server is None or rank > self._rank
            gone = [] if starts else [name for name, folder in self._folders.items() if folders.get(name) != folder]
            fresh = [name for name in folders if starts or name in gone or name not in self._folders]
            names = [*([None] if starts else []), *fresh]
            columns = [Column(name, [{"role": "user", "content": text}]) for name in names for text in QUESTIONS]
            ours = None
            if self._server is None:  # the model is on its device yet: there, generating takes a second
                with doing("agreement"):
                    ours = generate(loaded, columns, greedy(loaded, PROVED_TOKENS))
            with doing("vllm"):
                server = self._start(loaded, max(rank, LEAST_RANK), revision, check) if starts else self._running
                for name in gone:
                    server.unload(name)
                for name in fresh:
                    server.load(name, folders[name])
            self._folders = dict(folders)
            limits: JsonObject = {"max_new_tokens": PROVED_TOKENS, "enable_thinking": None}
            with doing("agreement") if columns else contextlib.nullcontext():
                return check_equal(server, loaded, columns, ours, stop=lambda: False, **limits)
        except BaseException:
            self.close()
            raise

    @property
    def _running(self) -> VllmServer:
        assert self._server is not None
        return self._server

    def _start(self, loaded: LoadedModel, rank: int, revision: str | None, check: Callable[[], None]) -> VllmServer:
        self.close()
        loaded.model.to("cpu")
        give_back_memory()
        port, length = free_port(), served_length(loaded, None)
        words = command(loaded, {BASE: ""}, revision, port, slots=SLOTS, rank=rank, length=length)
        self._server, self._rank = self._held.enter_context(serving(words, port, check, length)), rank
        return self._server

    def close(self) -> None:
        """Ends the server and waits until its memory is free."""
        self._server, self._folders = None, {}
        self._held.close()

    def answer_call(self, loaded: LoadedModel, call: Call[GenerateBatch]) -> None:
        """Answers the requests of a call and those that join it, each in a thread of its own."""
        server, count = self._running, itertools.count()

        def answer(position: int, request: BatchPrompt) -> None:
            try:
                ended: Answer | StudioError = server.answer(
                    loaded,
                    request,
                    on_piece=lambda text, tokens: call.answer(
                        Piece(positions=[position], texts=[text], tokens=[tokens])
                    ),
                    stop=lambda: call.stopped.is_set() or position in call.stopped_columns,
                )
            except StudioError as error:
                ended = error
            hand_end(call, position, ended)

        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="vllm") as pool:
            columns, working = list(call.message.columns), set[Future[None]]()
            while columns or working:
                working |= {pool.submit(answer, next(count), batch_prompt(column)) for column in columns}
                _, working = wait(working, JOIN_SECONDS, FIRST_COMPLETED)
                columns = [call.joining.get() for _ in range(call.joining.qsize())]
