"""Renders chat templates in child processes within limits of time and memory; as a program it is such a process.

It also cuts texts into words, which takes as long as rendering them.

A template is untrusted code. One that never ends or writes without end costs the process and becomes a `StudioError`;
the next request starts a new one. Requests are pickles on stdin, each after its length in eight bytes; answers are JSON
lines on stdout.
"""

import json
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from queue import LifoQueue
from typing import Any, TypedDict

from jinja2 import TemplateError

from lora_studio.data.chat_templates import ChatTemplate
from lora_studio.data.messages import Conversation, RowError
from lora_studio.data.render import TEMPLATE_FAULTS, Rendered, Renderer, Rules
from lora_studio.data.word_cutting import Cutter, Cutting, Numbers
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject

MAX_MEMORY = 3 << 29
MOST_AT_ONCE = 2  # processes; two have as much to do as the one that tokenises and stores what they render
MAX_CHARACTERS = 1 << 25  # of a rendered text; no row that is read has more
_PIECE = 1 << 20  # bytes that are written and read at once; what Linux lets a pipe hold
LENGTH = 8  # bytes before a request that say how long it is
TOO_MUCH_MEMORY = f"The chat template needs more than {MAX_MEMORY / 2**30:g} GiB of memory for one conversation."
TOO_LONG = f"The chat template writes more than {MAX_CHARACTERS:,} characters for one conversation."


class Answer(TypedDict, total=False):
    """A part of an answer: a rendered conversation, why it can't be rendered, all words, an error, or the end.

    `words` are the places of a text's words in the vocabulary, unsigned integers of 32 bits in hexadecimal.
    """

    text: str
    spans: list[tuple[int, int]]
    rewritten: bool
    numbered: bool
    masks: dict[str, list[tuple[int, int]]]
    words: str
    vocabulary: list[str]
    reason: str
    found: str
    field: str
    refused: str
    error: str
    hint: str
    end: bool


def main() -> None:
    """Answers requests until stdin closes."""
    _, highest = resource.getrlimit(resource.RLIMIT_AS)
    most = MAX_MEMORY if highest == resource.RLIM_INFINITY else min(MAX_MEMORY, highest)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)  # the parent decides; with it stdin closes
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while length := requests.read(LENGTH):
        work, *arguments = pickle.loads(requests.read(int.from_bytes(length, "big")))
        lines, size = list[str](), 0
        for answer in chain(_outcomes(WORK[work], arguments), [Answer(end=True)]):
            lines.append(json.dumps(answer))
            size += len(lines[-1])
            if size > _PIECE or "end" in answer:
                answers.write("\n".join([*lines, ""]).encode())
                lines, size = [], 0
        answers.flush()


def _outcomes(work: Callable[..., Iterator[Answer]], arguments: list[Any]) -> Iterator[Answer]:
    """The answers of a piece of work; an error is the last one."""
    try:
        yield from work(*arguments)
    except StudioError as error:
        yield {"error": error.message, "hint": error.hint}
    except MemoryError:
        yield {"error": TOO_MUCH_MEMORY, "hint": ""}


def rows(seconds: float, rules: Rules, cutting: Cutting | None, conversations: list[Any]) -> Iterator[Answer]:
    """One answer for each conversation, in order, and the vocabulary. The template is compiled in any case."""
    with _Limit(seconds):
        renderer, cutter = _renderer(rules), _cutter(cutting) if cutting else None
    numbers = Numbers()
    for conversation in conversations:
        with _Limit(seconds):
            result = renderer.render(conversation)
            words = cutter.words(_bounded(result.text)) if cutter and isinstance(result, Rendered) else None
        if isinstance(result, RowError):
            yield {"reason": result.reason, "found": result.found, "field": result.field}
            continue
        answer: Answer = {
            "text": _bounded(result.text),
            "spans": result.spans,
            "rewritten": result.rewritten,
            "numbered": result.numbered,
            "masks": result.masks,
        }
        if words is not None:
            answer["words"] = array("I", numbers.of(words)).tobytes().hex()
        yield answer
    yield {"vocabulary": list(numbers)}


def text(
    seconds: float, source: str, variables: JsonObject, messages: list[Any], tools: list[Any], prompt: bool
) -> Iterator[Answer]:
    """The text of one conversation, or why the template refuses it."""
    try:
        with _Limit(seconds):
            rendered, spans = ChatTemplate(source, variables).render(messages, tools, prompt=prompt)
    except TEMPLATE_FAULTS as error:
        yield {"refused": str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"}
    else:
        yield {"text": _bounded(rendered), "spans": spans}


WORK: dict[str, Callable[..., Iterator[Answer]]] = {"rows": rows, "text": text}


class _Limit:
    """Within, the process ends (SIGPROF) once it has used so much CPU time, be it in Python or not."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, self._seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)


@lru_cache(maxsize=8)
def _renderer(rules: Rules) -> Renderer:
    return Renderer(rules)


@lru_cache(maxsize=8)
def _cutter(cutting: Cutting) -> Cutter:
    return Cutter(cutting)


def _bounded(rendered: str) -> str:
    if len(rendered) > MAX_CHARACTERS:
        raise StudioError(TOO_LONG)
    return rendered


MAX_ROW_SECONDS = 10.0  # CPU time; a row of a thousand turns takes about five
MAX_TEXT_SECONDS = 4.0  # a text alone takes milliseconds, and others wait for it
MAX_SILENCE = 300.0  # seconds on the clock, for a machine so busy that a process hardly runs
_HINT = "Fix the chat template. The prompt styles chatml, alpaca and plain train without it."
_PLACE_OF_PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(slots=True)
class CutTexts:
    """What conversations came to, and the words of the texts of those that could be rendered.

    `words` are places in `vocabulary`, unsigned integers of 32 bits; None for a text that only the tokenizer can cut.
    """

    results: list[Rendered | RowError]
    words: list[bytes | None]
    vocabulary: list[str]


class LimitedRenderer:
    """`render.Renderer` in the child process; `cutting` says how to cut texts into words, None not to.

    Raises `StudioError` for an invalid template.
    """

    def __init__(self, rules: Rules, cutting: Cutting | None = None) -> None:
        self._rules = rules
        self._cutting = cutting
        self._ask([], cutting)

    def render(self, conversations: Sequence[Conversation]) -> list[Rendered | RowError]:
        """One result for each conversation, in order. Raises `StudioError` if a limit is reached."""
        return list(map(_result, self._ask(conversations, None)[:-1]))

    def render_and_cut(self, conversations: Sequence[Conversation]) -> CutTexts:
        """The same with the words of the texts."""
        *answers, last = self._ask(conversations, self._cutting)
        words = [answer.get("words") for answer in answers if "text" in answer]
        cut = [None if each is None else bytes.fromhex(each) for each in words]
        return CutTexts(list(map(_result, answers)), cut, last["vocabulary"])

    def _ask(self, conversations: Sequence[Conversation], cutting: Cutting | None) -> list[Answer]:
        return _processes().ask("rows", MAX_ROW_SECONDS, self._rules, cutting, list(conversations))


def render_text(
    source: str,
    variables: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    prompt: bool,
) -> str:
    """Renders a conversation as transformers' `apply_chat_template` does; values are plain JSON.

    A message's keys without a value are left out, as there. Raises `TemplateError` where the template refuses it,
    `StudioError` where a limit is reached.
    """
    turns = [{key: value for key, value in message.items() if value is not None} for message in messages]
    request = ("text", MAX_TEXT_SECONDS, source, dict(variables), turns, list(tools), prompt)
    (answer,) = _processes().ask(*request)
    if "refused" in answer:
        raise TemplateError(answer["refused"])
    return str(answer["text"])


def _result(answer: Answer) -> Rendered | RowError:
    if "reason" in answer:
        return RowError(answer["reason"], answer["field"], answer["found"])
    return Rendered(
        answer["text"],
        _pairs(answer["spans"]),
        answer["rewritten"],
        answer["numbered"],
        {name: _pairs(spans) for name, spans in answer["masks"].items()},
    )


def _pairs(spans: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Spans as tuples, which JSON has as lists."""
    return [(start, stop) for start, stop in spans]


class _Processes:
    """The child processes, each started when all others are busy. One request at a time each."""

    def __init__(self) -> None:
        self.idle = LifoQueue[_Process]()
        for _ in range(MOST_AT_ONCE):
            self.idle.put(_Process())

    def ask(self, *request: Any) -> list[Answer]:
        """All answers to a request, from the process that was busy last. Raises `StudioError` as that does."""
        process = self.idle.get()
        try:
            return process.ask(*request)
        finally:
            self.idle.put(process)


class _Process:
    """A child process, started on demand and restarted after its end."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None

    def ask(self, *request: Any) -> list[Answer]:
        """All answers to a request. Raises `StudioError` for an error answer and if the process ends."""
        child, answers = self._running(), list[Answer]()
        try:
            _send(child, pickle.dumps(request, protocol=pickle.HIGHEST_PROTOCOL))
            for answer in _answers(child):
                answers.append(answer)
        finally:
            if not answers or "end" not in answers[-1]:
                self.end()  # remaining answers would be read as the next request's
        error = next((answer for answer in answers if "error" in answer), None)
        if error:
            raise StudioError(error["error"], error["hint"] or _HINT)
        return answers[:-1]

    def end(self) -> None:
        """Ends the process, whatever it does."""
        child, self.child = self.child, None
        if child is not None:
            child.kill()
            child.communicate()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self.child is None or self.child.poll() is not None:
            self.end()
            paths = [str(_PLACE_OF_PACKAGE), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
            self.child = subprocess.Popen(
                [sys.executable, "-P", "-m", "lora_studio.data.render_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
                pipesize=_PIECE,
            )
        return self.child


@cache
def _processes() -> _Processes:
    return _Processes()


def _send(child: "subprocess.Popen[bytes]", data: bytes) -> None:
    assert child.stdin
    try:
        child.stdin.write(len(data).to_bytes(LENGTH, "big") + data)
        child.stdin.flush()
    except BrokenPipeError:
        raise _ended(child) from None


def _answers(child: "subprocess.Popen[bytes]") -> Iterator[Answer]:
    """Yields the answers to a request, the closing line included."""
    assert child.stdout
    buffer: list[bytes] = []
    while True:
        if not select.select([child.stdout], [], [], MAX_SILENCE)[0]:
            child.kill()
        piece = os.read(child.stdout.fileno(), _PIECE)
        if not piece:
            raise _ended(child)
        first, *lines = piece.split(b"\n")
        buffer.append(first)
        for line in lines:
            answer: Answer = json.loads(b"".join(buffer).decode("ascii"))
            buffer = [line]
            yield answer
            if "end" in answer:
                return


def _ended(child: "subprocess.Popen[bytes]") -> StudioError:
    """The error that explains why the process ended."""
    code = child.wait()
    if code in (-signal.SIGPROF, -signal.SIGKILL):
        why = "does not finish: it was stopped after seconds on a single conversation"
    else:
        why = f"ended the process that renders it (exit code {code})"
    return StudioError(f"The chat template {why}.", _HINT)


if __name__ == "__main__":
    main()
