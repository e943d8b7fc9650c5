"""The worker that writes rows about documents: `python -m lora_studio.engine.chat.documents FOLDER [--resume]`.

Answers are appended to answers.jsonl one by one; a resumed job keeps them and asks about the remaining chunks only. The
events always end with a `Finished`, and result.json is written last. A model of this machine is loaded here; for a
server no torch is. Exit codes: 0 done, 1 failed, 2 wrong input, 130 stopped.

A server speaks OpenAI's chat completions: llama.cpp, vLLM, Ollama, a paid service. What passes by itself (429, 5xx, a
lost connection, an answer that is none) is tried again; what does not ends the work with a sentence. The key is sent to
that server only, in a header, and is in no message, event or log.
"""

import email.utils
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from lora_studio.chat.documents import DocumentsRequest, as_answer, request_of, result_of, used_chunks
from lora_studio.data.generated import fill, read_rows
from lora_studio.data.readers.documents import Chunk
from lora_studio.engine.runtime import (
    WRONG_INPUT,
    EventLog,
    Explained,
    JsonLines,
    StopSignal,
    begin,
    emit_finished,
    ending_of,
    is_out_of_memory,
    leave,
    see_one_gpu,
    unexpected,
)
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Reason, RunStarted, Warned
from lora_studio.jobs.kinds import DocumentsFolder
from lora_studio.models.accelerators import CPU
from lora_studio.models.adapters import read_card
from lora_studio.models.hub import SERVER_KEY
from lora_studio.units import duration, shorten
from lora_studio.workspace import write_atomically

ADAPTER = "adapter"
MIN_ANSWER_TOKENS = 32
"""What a prompt has to leave of the context for an answer."""
ATTEMPTS = 6
FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS = 2.0, 60.0
MAX_ASKED_SECONDS = 900.0
"""The longest wait that a server may ask for by Retry-After; a longer one ends the work, to be resumed later."""
TIMEOUT = httpx.Timeout(connect=15.0, read=180.0, write=60.0, pool=None)
WHOLE_SECONDS = 900.0
"""For one answer: a server that sends a byte now and then would otherwise never end it."""
MAX_ANSWER_BYTES = 8_000_000
FINISH_SECONDS = 15.0
"""How long answers that are under way are waited for after a stop: they are paid for."""
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)
_KEY_HINT = f"Check the key: the field API key on the page, {SERVER_KEY} in the terminal. Then resume."


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's answer. Tokens are those that the server counted, None where it does not say; `cut` says that it ended
    at the limit of new tokens."""

    text: str
    input_tokens: int | None
    output_tokens: int | None
    cut: bool = False


Replies = Iterator[tuple[int, Reply]]
"""Replies with the position of their chunk, in any order."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes rows and returns the exit code."""
    module = "lora_studio.engine.chat.documents"
    child = begin(arguments, module, DocumentsFolder, "generation", lambda folder: folder.facts)
    if child is None:
        return WRONG_INPUT
    folder, log, stop = child.folder, child.log, child.stop
    key = os.environ.pop(SERVER_KEY, "")
    see_one_gpu()
    if not child.resume:
        folder.answers.unlink(missing_ok=True)

    def work() -> None:
        log.phase("start")
        write_rows(folder, log, stop, key)

    ending = ending_of(work, stop, explain=_explain)
    if ending.state == "done":
        result = result_of(folder, request_of(folder), ending.state)
        write_atomically(folder.complete, json.dumps(result, indent=2) + "\n")
    return emit_finished(log, ending)


def write_rows(folder: DocumentsFolder, log: EventLog, stop: StopSignal, key: str) -> None:
    """The program: asks the writer about all chunks without an answer."""
    request = request_of(folder)
    chunks = used_chunks(folder, request.writing)
    answered = {answer["chunk"] for answer in folder.read_answers()}
    remaining = [chunk for chunk in chunks if chunk.number not in answered]
    prompts = [fill(request.writing.prompt, chunk, request.writing.questions) for chunk in remaining]
    ask = _ask_server if request.server else _ask_model
    replies = ask(request, prompts, log, stop, key, len(answered))
    _append(folder, remaining, replies, log, len(answered), len(chunks))
    stop.end_at_once()


def _append(
    folder: DocumentsFolder, remaining: Sequence[Chunk], replies: Replies, log: EventLog, done: int, total: int
) -> None:
    with JsonLines(folder.answers) as answers:
        for position, reply in replies:
            rows = read_rows(reply.text, remaining[position].number)
            tokens = reply.input_tokens, reply.output_tokens
            answers.add([as_answer(remaining[position].number, rows, reply.text, tokens, cut=reply.cut)])
            done += 1
            log.progress(done, total)


def _begin(log: EventLog, stop: StopSignal, done: int, total: int) -> None:
    log.phase("answer", total, "chunks")
    log.progress(done, total)
    stop.finish_step_first()


def _ask_server(
    request: DocumentsRequest, prompts: Sequence[str], log: EventLog, stop: StopSignal, key: str, done: int
) -> Replies:
    """Several requests at a time, without a device."""
    writing, reported = request.writing, set[str]()

    def tell(words: str) -> None:
        """A warning, once for each reason."""
        reason = words.partition(" Trying again")[0]
        if reason not in reported:
            reported.add(reason)
            log.emit(Warned(time.time(), words))

    log.emit(RunStarted(time.time(), os.getpid(), "", "", done, CPU))
    server = Server(
        request.server,
        request.model,
        key,
        max_new_tokens=writing.max_new_tokens,
        temperature=writing.temperature,
        tell=tell,
    )
    _begin(log, stop, done, done + len(prompts))
    yield from ask_all(server, prompts, at_once=writing.batch_size, stop=lambda: stop.asked)


def _ask_model(
    request: DocumentsRequest, prompts: Sequence[str], log: EventLog, stop: StopSignal, key: str, done: int
) -> Replies:
    """Batches of a base or an adapter, the longest prompts first, so that a lack of memory shows at once."""
    from lora_studio.engine.chat.generate import Column, generate, generation_config  # seconds: torch
    from lora_studio.engine.models import load, multi_adapter

    writing = request.writing
    dtype, kind = load.dtype_name(load.choose_dtype("auto")), load.device_kind()
    log.emit(RunStarted(time.time(), os.getpid(), kind, dtype, done, kind))
    card = read_card(Path(request.adapter)) if request.adapter else None
    log.phase("model")
    model = multi_adapter.load_base(
        request.model,
        revision=card.revision if card else None,
        quantization=card.quantization if card else writing.quantization,
        four_bit=card.values.get("four_bit") if card else None,
        log=log,
    )
    if card:
        multi_adapter.add_adapters(model, {ADAPTER: Path(request.adapter)})
        for note in model.notes[ADAPTER]:
            log.emit(Warned(time.time(), note))
    longest, limit = (
        max((len(model.tokenizer(prompt)["input_ids"]) for prompt in prompts), default=0),
        model.longest_text,
    )
    if limit is not None and longest + MIN_ANSWER_TOKENS > limit:
        raise StudioError(
            f"The longest prompt has {longest:,} tokens; {request.model} reads and writes at most {limit:,}.",
            "Lower the chunk size, or shorten the prompt.",
        )
    system = card.values.get("system_prompt") if card else None
    opening = [{"role": "system", "content": system}] if system else []
    settings = generation_config(
        model,
        max_new_tokens=writing.max_new_tokens,
        temperature=writing.temperature,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
    )
    _begin(log, stop, done, done + len(prompts))
    longest_first = sorted(range(len(prompts)), key=lambda position: (-len(prompts[position]), position))
    for first in range(0, len(prompts), writing.batch_size):
        batch = longest_first[first : first + writing.batch_size]
        columns = [
            Column(ADAPTER if card else None, [*opening, {"role": "user", "content": prompts[position]}])
            for position in batch
        ]
        answers = generate(model, columns, settings, seed=first, stop=lambda: stop.asked)
        if stop.asked:
            return
        for position, answer in zip(batch, answers, strict=True):
            yield position, Reply(answer.text, answer.prompt_tokens, answer.tokens, cut=answer.finish == "length")


def _explain(error: Exception) -> Explained:
    if is_out_of_memory(error):
        return Explained(Reason.OUT_OF_MEMORY, "Out of memory.", "Lower the chunks at once, then start a new one.")
    return unexpected("Writing rows", error, "See its log for details.")


class _TryAgainError(Exception):
    """What may pass by itself; `seconds` is what the server asks to wait, None where it does not say."""

    def __init__(self, words: str, seconds: float | None = None) -> None:
        super().__init__(words)
        self.words, self.seconds = words, seconds


class Server:
    """A server at `address`, the part before `/chat/completions`. `tell` hears a sentence when a request has to wait.

    Safe to use from many threads; `close` ends waiting requests.
    """

    def __init__(
        self,
        address: str,
        model: str,
        key: str = "",
        *,
        max_new_tokens: int,
        temperature: float,
        tell: Callable[[str], None] = lambda words: None,
    ) -> None:
        self._url = httpx.URL(address)
        self._url = self._url.copy_with(path=self._url.path.rstrip("/") + "/chat/completions")
        self._host = urlsplit(address).netloc
        self._key, self._tell = key, tell
        self._body: dict[str, object] = {"model": model, "max_tokens": max_new_tokens, "temperature": temperature}
        self._model = model
        self._stopped = threading.Event()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=TIMEOUT, follow_redirects=False, headers=headers)

    def close(self) -> None:
        """Ends requests that wait for another attempt."""
        self._stopped.set()

    def ask(self, prompt: str) -> Reply:
        """The answer to one prompt. Raises `StudioError` for what does not pass by itself, or not soon."""
        pause = FIRST_WAIT_SECONDS
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._once(prompt)
            except _TryAgainError as error:
                seconds = pause if error.seconds is None else error.seconds
                last = attempt == ATTEMPTS or seconds > MAX_ASKED_SECONDS
                if last or self._stopped.is_set():
                    asks = f" It asks to wait {duration(seconds)}." if error.seconds is not None else ""
                    raise StudioError(
                        f"{error.words}{asks} Gave up after {attempt} {'attempt' if attempt == 1 else 'attempts'}.",
                        "Resume later: finished chunks are not asked again.",
                    ) from None
                self._tell(f"{error.words} Trying again in {duration(seconds)}.")
                self._stopped.wait(seconds)
                pause = min(2 * pause, MAX_WAIT_SECONDS)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _once(self, prompt: str) -> Reply:
        body = {**self._body, "messages": [{"role": "user", "content": prompt}]}
        try:
            with self._client.stream("POST", self._url, json=body) as response:
                content = self._read(response)
        except httpx.TimeoutException:
            raise _TryAgainError(f"{self._host} did not answer in time.") from None
        except (httpx.UnsupportedProtocol, httpx.InvalidURL):
            raise StudioError(
                f"{self._host} is no address of a server.", "It begins with http:// or https://."
            ) from None
        except httpx.TransportError as error:
            raise _TryAgainError(f"The connection to {self._host} failed: {self._clean(str(error))}.") from None
        if response.status_code in AGAIN:
            self._check_quota(response, content)
            words = f"{self._host} answers {response.status_code}: {self._reason(response, content)}."
            raise _TryAgainError(words, _asked_seconds(response.headers.get("retry-after", "")))
        if response.status_code == 400 and self._adapt(content):
            return self._once(prompt)
        if response.status_code != 200:
            raise self._refusal(response, content)
        return self._reply(content)

    def _read(self, response: httpx.Response) -> bytes:
        """The body. What is too long, or comes too slowly, is no answer."""
        end, content = time.monotonic() + WHOLE_SECONDS, b""
        for block in response.iter_bytes():
            content += block
            if len(content) > MAX_ANSWER_BYTES:
                raise StudioError(
                    f"{self._host} sends more than {MAX_ANSWER_BYTES / 1e6:.0f} MB for one answer.",
                    "Check that the address is that of an OpenAI-compatible server.",
                )
            if time.monotonic() > end:
                raise _TryAgainError(f"{self._host} did not finish its answer in {duration(WHOLE_SECONDS)}.")
        return content

    def _reply(self, content: bytes) -> Reply:
        try:
            answer = json.loads(content)
            choice = answer["choices"][0]
            text = choice["message"]["content"]
            usage = answer.get("usage") or {}
            counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            tokens = [count if type(count) is int and count >= 0 else None for count in counts]
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            excerpt = shorten(self._clean(content[:200].decode("utf-8", "replace")), 80)
            raise _TryAgainError(f"{self._host} sent no chat completion ({excerpt!r}).") from None
        finish = choice.get("finish_reason")
        return Reply(text if isinstance(text, str) else "", tokens[0], tokens[1], cut=finish == "length")

    def _adapt(self, content: bytes) -> bool:
        """Changes what newer models refuse: `max_tokens` has another name there, and some take no temperature. Returns
        whether there was something to change."""
        body = dict(self._body)
        if b"max_completion_tokens" in content and "max_tokens" in body:
            body["max_completion_tokens"] = body.pop("max_tokens")
        elif b"temperature" in content and "temperature" in body:
            body.pop("temperature")
            self._tell(f"{self._model} takes no temperature: its own is used.")
        changed = body != self._body
        self._body = body
        return changed

    def _check_quota(self, response: httpx.Response, content: bytes) -> None:
        """Raises `StudioError` where waiting does not help: the account has no credit left."""
        if response.status_code == 429 and b"insufficient_quota" in content:
            reason = self._reason(response, content)
            raise StudioError(f"The account at {self._host} has no credit: {reason}.", "Add credit, then resume.")

    def _refusal(self, response: httpx.Response, content: bytes) -> StudioError:
        status, reason = response.status_code, self._reason(response, content)
        if status in (401, 403):
            subject = "the API key" if self._key else "the request: no API key was given"
            return StudioError(f"{self._host} refuses {subject} ({status}: {reason}).", _KEY_HINT)
        if 300 <= status < 400:
            target = shorten(self._clean(response.headers.get("location", "")), 120)
            return StudioError(f"{self._host} redirects to {target!r}.", "Enter that address if you trust it.")
        if status == 404:
            return StudioError(
                f"{self._host} has no model {self._model!r}, or no chat completions at this address ({reason}).",
                "The address usually ends with /v1. Check the name of the model.",
            )
        return StudioError(
            f"{self._host} refuses the request ({status}: {reason}).",
            "Check the model, max new tokens and the chunk size.",
        )

    def _reason(self, response: httpx.Response, content: bytes) -> str:
        """What the server says of an error, in a line."""
        words: Any = ""
        try:
            error = json.loads(content)
            error = error.get("error", error)
            words = error if isinstance(error, str) else error.get("message") or error.get("detail") or ""
        except (ValueError, AttributeError, RecursionError):
            pass
        return shorten(self._clean(str(words or response.reason_phrase or "no reason")), 200).rstrip(".")

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "[API key]") if self._key else text


def _asked_seconds(header: str) -> float | None:
    """What Retry-After asks for, in seconds or as a date (RFC 9110, 10.2.3); None where it says nothing."""
    if header.strip().isascii() and header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def ask_all(
    server: Server, prompts: Sequence[str], *, at_once: int, stop: Callable[[], bool] = lambda: False
) -> Iterator[tuple[int, Reply]]:
    """Yields (position, reply) as replies come, `at_once` requests at a time.

    Once `stop` returns true no more are sent, and those under way are waited for, for `FINISH_SECONDS`. Raises the
    first `StudioError` after the others under way have come.
    """
    waiting = list(reversed(range(len(prompts))))
    under_way: dict[Future[Reply], int] = {}
    failure: StudioError | None = None
    end = float("inf")
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="server")
    try:
        while (waiting or under_way) and time.monotonic() < end:
            if (stop() or failure) and end == float("inf"):
                waiting, end = [], time.monotonic() + FINISH_SECONDS
                server.close()
            while waiting and len(under_way) < at_once:
                position = waiting.pop()
                under_way[pool.submit(server.ask, prompts[position])] = position
            for future in wait(under_way, timeout=0.1, return_when=FIRST_COMPLETED).done:
                position = under_way.pop(future)
                try:
                    yield position, future.result()
                except StudioError as error:
                    failure = failure or error
    finally:
        server.close()
        pool.shutdown(wait=False, cancel_futures=True)
    if failure is not None and not stop():
        raise failure


if __name__ == "__main__":
    leave(main())
