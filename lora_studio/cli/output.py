"""Text for a terminal: tables, ages and the progress of a request; messages go to stderr, so that stdout holds only
results."""

import contextlib
import io
import json
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lora_studio.errors import StudioError
from lora_studio.files import finite
from lora_studio.units import count, duration

if TYPE_CHECKING:
    from lora_studio.jobs.protocol import Progress

_CODES = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")
"""What steers a terminal or turns its text about; tabs and line ends do no harm."""


def plain(text: str) -> str:
    """A text in which such characters are written out, as JSON writes those that can stand in it."""
    return _CODES.sub(lambda sign: f"\\x{ord(sign[0]):02x}" if sign[0] < " " else f"\\u{ord(sign[0]):04x}", text)


_CALL = re.compile(r"(?<![\w./-])(python -m lora_studio|lora-studio) ([a-z][^`\n]*)")
"""A command of this program in a message: it ends with its quotation or its line."""


def program_of(arguments: Sequence[str]) -> str:
    """How this program was started, for the terminal that it was started in; "" where that is not known.

    `arguments` are those of the process (`sys.orig_argv`): its Python, then `-m lora_studio` or the installed script.
    """
    if "lora_studio" in arguments[1:3]:
        return shlex.join([arguments[0], "-m", "lora_studio"])
    script = arguments[1] if len(arguments) > 1 and Path(arguments[1]).name == "lora-studio" else ""
    return "lora-studio" if script and shutil.which("lora-studio") == script else shlex.quote(script) if script else ""


class PlainOutput(io.TextIOBase):
    """A stream that all output goes through: a file, a model or a run can write nothing that steers the terminal.

    Commands in messages are written with `program`, where that is known, and `workspace`, where one was named: they can
    be pasted.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.program, self.workspace = stream, "", ""

    def write(self, text: str) -> int:
        self.stream.write(plain(_CALL.sub(self._pasted, text) if self.program or self.workspace else text))
        return len(text)

    def _pasted(self, call: re.Match[str]) -> str:
        place = f" --workspace {shlex.quote(self.workspace)}" if self.workspace else ""
        return f"{self.program or call[1]} {call[2]}{place}"

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding


@contextlib.contextmanager
def plain_output() -> Iterator[None]:
    """Inside, everything printed is plain."""
    with (
        contextlib.redirect_stdout(PlainOutput(sys.stdout)),
        contextlib.redirect_stderr(PlainOutput(sys.stderr)),
    ):
        yield


def say(text: str = "") -> None:
    """A line for the person who watches."""
    print(text, file=sys.stderr, flush=True)


def confirmed(question: str) -> bool:
    """Whether a person at the terminal says yes; nobody there is a no."""
    if not sys.stdin.isatty():
        return False
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False


def confirm_deletion(subject: str) -> None:
    """Asks whether that may be deleted. Raises `StudioError` where nobody says yes."""
    if not confirmed(f"Delete {subject} permanently?"):
        raise StudioError(f"Nothing was deleted. It would delete {subject}.", "Answer y, or use --yes.")


def print_json(value: Any) -> None:
    """The result of a command, as one object on one line."""
    print(json.dumps(finite(value), ensure_ascii=False, default=str), flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns of equal width; those that hold numbers stand right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(head, *texts, strict=True)]
    numbers = [bool(texts) and all(_is_number(row[at]) for row in texts) for at in range(len(head))]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numbers, strict=True)
        ).rstrip()
        for row in [list(head), *texts]
    ]
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    return text in ("", "-") or text.replace(",", "").replace(".", "", 1).lstrip("-").isdigit()


def age(then: float) -> str:
    """How long ago, in the largest unit that fits; the date where a clock was wrong."""
    seconds = time.time() - then
    if seconds < -60:
        return time.strftime("%d %b %H:%M", time.localtime(then))
    for length, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return "just now"


PHASE_WORDS = {
    "lookup": "checking the cache",
    "read": "reading",
    "convert": "parsing rows",
    "encode": "tokenizing",
    "first": "analyzing the first rows",
    "split": "splitting and truncating",
    "measure": "counting truncated rows",
    "check": "searching for duplicates",
    "tokenizer": "loading tokenizer",
    "rows": "reading raw rows",
    "documents": "reading documents",
    "pages": "reading pages",
    "chunks": "splitting into chunks",
}
SAY_SECONDS = 3.0


class PhaseLines:
    """Names each phase of the work, how far a long one is, and what a first look at a large file shows."""

    def __init__(self) -> None:
        self._last, self._said = "", 0.0

    def show(self, progress: "Progress") -> None:
        if progress.sample is not None:
            sample = progress.sample
            tokens, about = sample["tokens"], f"The first {count(sample['sampled'], 'row')}"
            say(f"{about}: {sample['words']} {tokens['mean']:g} tokens per row, at most {tokens['max']:,}.")
        elif progress.phase != self._last:
            self._last, self._said = progress.phase, time.monotonic()
            say(f"{PHASE_WORDS.get(self._last, self._last)} ...")
        elif progress.done and progress.total and time.monotonic() - self._said >= SAY_SECONDS:
            self._said = time.monotonic()
            about, seconds_left = "about " if self._last == "read" else "", progress.seconds_left
            parts = [
                f"{progress.done:,} of {about}{progress.total:,}",
                f"{progress.rows_per_second:,.0f} a second",
            ]
            say(f"  {', '.join([*parts, *([f'{duration(seconds_left)} left'] if seconds_left else [])])}")
