"""Answers of an evaluation from vLLM: a server of its own for base and adapters, asked over HTTP on this machine alone.

It gets the tokens of our prompts, so templates are ours. Before it answers a row, its greedy answers to the first
prompts are compared with ours; if one differs, it is not used. `vllm serve` is a child of the worker and ends with it.
"""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from transformers import GenerationConfig

from lora_studio.data.chat_templates import is_harmony
from lora_studio.engine.accelerator import read_memory
from lora_studio.engine.chat.generate import Answer, Column, Generating, end_ids, generate, greedy, opening, prompt_ids
from lora_studio.engine.models.load import dtype_name
from lora_studio.engine.models.multi_adapter import LoadedModel
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.models.adapter_files import max_rank, read_settings
from lora_studio.units import shorten
from lora_studio.workspace import model_source

BASE = "base"
COMPARED = 20
"""Prompts whose greedy answers have to be ours."""
AT_ONCE = 64
"""Requests under way; the server makes batches of them."""
START_SECONDS = 900.0
"""Loading a model and compiling it takes minutes."""
END_SECONDS = 15.0
FREE_SHARE = 0.85
"""Of the memory that our model leaves free, which scores the expected answers meanwhile."""
HINT = "Set the engine to transformers."


def check_columns(loaded: LoadedModel, columns: Mapping[str, str]) -> int:
    """The largest rank of the adapters, by the folder of each column ("" for the base). Raises `StudioError` for what
    vLLM answers otherwise."""
    if "quantization_config" in loaded.base.config.to_dict():
        raise StudioError("vLLM needs the base model unquantized.", HINT)
    if any(is_harmony(loaded.template(name if folder else None)) for name, folder in columns.items()):
        raise StudioError("vLLM's answers in channels (harmony) are not read.", HINT)
    return max((max_rank(read_settings(Path(folder))) for folder in columns.values() if folder), default=0)


def command(loaded: LoadedModel, columns: Mapping[str, str], revision: str | None, port: int) -> list[str]:
    """The words of `vllm serve` for the base and the adapters of the columns; it listens on this machine alone."""
    rank, memory = check_columns(loaded, columns), read_memory()
    words = ["vllm", "serve", model_source(loaded.name), "--served-model-name", BASE]
    words += ["--host", "127.0.0.1", "--port", str(port), "--dtype", dtype_name(loaded.base.dtype)]
    words += ["--revision", revision] if revision else []
    words += ["--gpu-memory-utilization", f"{FREE_SHARE * memory.free / memory.total:.2f}"]
    adapters = [f"{name}={folder}" for name, folder in columns.items() if folder]
    if adapters:
        words += ["--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", str(rank)]
        words += ["--lora-modules", *adapters]
    return words


class VllmServer:
    """A running `vllm serve`. `ask` has the arguments of `generate`."""

    def __init__(self, port: int, key: str) -> None:
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(900.0, connect=5.0),
            limits=httpx.Limits(max_connections=AT_ONCE),
            trust_env=False,
        )

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
        sampling: JsonObject = {"max_tokens": settings.max_new_tokens, "temperature": 0.0, "stop": [*stop_strings]}
        if settings.do_sample:
            sampling |= {"temperature": settings.temperature, "top_p": settings.top_p, "seed": seed}
            sampling |= {"top_k": settings.top_k or -1, "min_p": settings.min_p or 0.0}
        sampling["repetition_penalty"] = settings.repetition_penalty

        def one(column: Column, prompt: list[int]) -> Answer:
            if stop():
                return Answer("", 0, 0.0, 0.0, 0.0, "stopped")
            ends, begun = sorted(end_ids(loaded, column.adapter)), time.monotonic()
            body = {"model": column.adapter or BASE, "prompt": prompt, "stop_token_ids": ends, **sampling}
            if loaded.longest_text is not None:
                body["max_tokens"] = min(body["max_tokens"], loaded.longest_text - len(prompt))
            answer, tokens, finish = self._complete(body)
            seconds = max(time.monotonic() - begun, 1e-6)
            text = opening(loaded, column.adapter, prompt) + answer
            return Answer(text, tokens, seconds, seconds, tokens / seconds, finish, prompt_tokens=len(prompt))

        prompts = [prompt_ids(loaded, column, enable_thinking) for column in columns]
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="vllm") as pool:
            return list(pool.map(one, columns, prompts))

    def _complete(self, body: Mapping[str, Any]) -> tuple[str, int, str]:
        """Text, number of tokens, and "length" or "eos"."""
        try:
            response = self._client.post("/v1/completions", json=body)
            response.raise_for_status()
            answer = response.json()
            choice = answer["choices"][0]
            finish = "length" if choice["finish_reason"] == "length" else "eos"
            return str(choice["text"]), int(answer["usage"]["completion_tokens"]), finish
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise StudioError(f"vLLM does not answer: {shorten(str(error), 200)}", f"See the log. {HINT}") from None


@contextlib.contextmanager
def serving(words: Sequence[str], port: int, check: Callable[[], None]) -> Iterator[VllmServer]:
    """Starts the command and waits until it answers; inside it serves, and afterwards it has ended.

    `check` is called every second while it starts, and raises to leave. Its output goes where the worker's goes.
    """
    key = secrets.token_hex(16)
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL, env={**os.environ, "VLLM_API_KEY": key})
    try:
        server, end = VllmServer(port, key), time.monotonic() + START_SECONDS
        while not server.is_up():
            check()
            if child.poll() is not None or time.monotonic() > end:
                how = "ended" if child.poll() is not None else "did not start in time"
                raise StudioError(f"vLLM {how}.", f"The end of the log says why. {HINT}")
            time.sleep(0.2)
        yield server
    finally:
        child.terminate()
        try:
            child.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def check_equal(
    server: VllmServer,
    loaded: LoadedModel,
    columns: Sequence[Column],
    *,
    max_new_tokens: int,
    enable_thinking: bool | None,
    stop: Callable[[], bool],
) -> None:
    """Raises `StudioError` with the first prompt whose greedy answer from the server is not ours."""
    some, settings = columns[:COMPARED], greedy(loaded, max_new_tokens)
    ours = generate(loaded, some, settings, enable_thinking=enable_thinking, stop=stop)
    theirs = server.ask(loaded, some, settings, enable_thinking=enable_thinking, stop=stop)
    if stop():
        return
    for column, own, other in zip(some, ours, theirs, strict=True):
        if own.text != other.text:
            prompt = json.dumps(shorten(str(column.messages[-1]["content"]), 60), ensure_ascii=False)
            raise StudioError(
                f"vLLM answers otherwise than transformers: to {prompt}, {column.adapter or BASE} says "
                f"{shorten(other.text, 60)!r} instead of {shorten(own.text, 60)!r}.",
                HINT,
            )


@contextlib.contextmanager
def answering(
    loaded: LoadedModel,
    folders: Mapping[str, str],
    columns: Sequence[Column],
    *,
    revision: str | None,
    max_new_tokens: int,
    enable_thinking: bool | None,
    check: Callable[[], None],
    stop: Callable[[], bool],
) -> Iterator[Generating]:
    """Inside, vLLM answers in the place of `generate`. `folders` are those of the columns' adapters by name ("" for the
    base), `columns` the first prompts, which it has to answer as we do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving(command(loaded, folders, revision, port), port, check) as server:
        check_equal(server, loaded, columns, max_new_tokens=max_new_tokens, enable_thinking=enable_thinking, stop=stop)
        yield server.ask
