"""Renders chat templates in a child process within limits of time and memory.

A template that never ends or writes without end costs that process and becomes a `StudioError`; the next request starts
a new one.
"""

import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from lora_studio.data.messages import Conversation, RowError
from lora_studio.data.render import Rendered, Rules
from lora_studio.data.render_worker import LENGTH, Answer
from lora_studio.errors import StudioError

MAX_ROW_SECONDS = 10.0  # CPU time; a row of a thousand turns takes about five
MAX_TEXT_SECONDS = 4.0  # a text alone takes milliseconds, and others wait for it
MAX_SILENCE = 300.0  # seconds on the clock, for a machine so busy that a process hardly runs
_PIECE = 1 << 16
_HINT = "Fix the chat template. The prompt styles chatml, alpaca and plain train without it."
_PLACE_OF_PACKAGE = Path(__file__).resolve().parents[2]


class LimitedRenderer:
    """`render.Renderer` in the child process. Raises `StudioError` for an invalid template."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        _process().ask("rows", MAX_ROW_SECONDS, rules, [])

    def render(self, conversations: Sequence[Conversation]) -> list[Rendered | RowError]:
        """One result for each conversation, in order. Raises `StudioError` if a limit is reached."""
        answers = _process().ask("rows", MAX_ROW_SECONDS, self._rules, list(conversations))
        return [_result(answer) for answer in answers]


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
    (answer,) = _process().ask(*request)
    if "refused" in answer:
        raise TemplateError(answer["refused"])
    return str(answer["text"])


def _result(answer: Answer) -> Rendered | RowError:
    if "reason" in answer:
        return RowError(answer["reason"], answer["field"], answer["found"])
    spans = [(start, stop) for start, stop in answer["spans"]]
    return Rendered(answer["text"], spans, answer["rewritten"], answer["numbered"])


class _Process:
    """The child process, started on demand and restarted after its end. One request at a time."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._asking = threading.Lock()

    def ask(self, *request: Any) -> list[Answer]:
        """All answers to a request. Raises `StudioError` for an error answer and if the process ends."""
        with self._asking:
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
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._child is None or self._child.poll() is not None:
            self.end()
            paths = [str(_PLACE_OF_PACKAGE), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "lora_studio.data.render_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
            )
        return self._child


@cache
def _process() -> _Process:
    return _Process()


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
            answer: Answer = json.loads(b"".join(buffer))
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
