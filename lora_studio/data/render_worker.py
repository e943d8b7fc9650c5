"""The process that runs chat templates: `python -m lora_studio.data.render_worker`, started by `render_process`.

A template is untrusted code: CPU time and memory are limited, and only jinja2 is loaded. Requests are pickles on stdin,
each after its length in eight bytes; answers are JSON lines on stdout.
"""

import json
import pickle
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypedDict

from jinja2 import TemplateError

from lora_studio.data.chat_jinja import ChatTemplate
from lora_studio.data.messages import RowError
from lora_studio.data.render import TEMPLATE_FAULTS, Renderer, Rules
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject

MAX_MEMORY = 3 << 29
MAX_CHARACTERS = 1 << 25  # of a rendered text; no row that is read has more
LENGTH = 8  # bytes before a request that say how long it is
TOO_MUCH_MEMORY = f"The chat template needs more than {MAX_MEMORY / 2**30:g} GiB of memory for one conversation."
TOO_LONG = f"The chat template writes more than {MAX_CHARACTERS:,} characters for one conversation."


class Answer(TypedDict, total=False):
    """One line of an answer: a rendered conversation, why it can't be rendered, an error, or the end of a request."""

    text: str
    spans: list[tuple[int, int]]
    rewritten: bool
    numbered: bool
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
        for answer in _answers(WORK[work], arguments):
            answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(b'{"end": true}\n')
        answers.flush()


def _answers(work: Callable[..., Iterator[Answer]], arguments: list[Any]) -> Iterator[Answer]:
    """The answers of a piece of work; an error is the last one."""
    try:
        yield from work(*arguments)
    except StudioError as error:
        yield {"error": error.message, "hint": error.hint}
    except MemoryError:
        yield {"error": TOO_MUCH_MEMORY, "hint": ""}


def rows(seconds: float, rules: Rules, conversations: list[Any]) -> Iterator[Answer]:
    """One answer for each conversation, in order. The template is compiled even without conversations."""
    with _Limit(seconds):
        renderer = _renderer(rules)
    for conversation in conversations:
        with _Limit(seconds):
            result = renderer.render(conversation)
        if isinstance(result, RowError):
            yield {"reason": result.reason, "found": result.found, "field": result.field}
        else:
            yield {
                "text": _bounded(result.text),
                "spans": result.spans,
                "rewritten": result.rewritten,
                "numbered": result.numbered,
            }


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


def _bounded(rendered: str) -> str:
    if len(rendered) > MAX_CHARACTERS:
        raise StudioError(TOO_LONG)
    return rendered


if __name__ == "__main__":
    main()
