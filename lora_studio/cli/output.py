"""Texts for a terminal: tables, times, and lines that go to stderr so that stdout stays for results.

Follows a job that is no run in the terminal; Ctrl-C is handed on as a stop.
"""

import contextlib
import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from lora_studio.files import finite
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import KINDS, TRAIN
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.runs.summary import pace_of, short

_CODES = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")


"""What steers a terminal or turns its text about; tabs and line ends do no harm."""


def plain(text: str) -> str:
    """A text in which such characters are written out, as JSON writes those that can stand in it."""
    return _CODES.sub(lambda sign: f"\\x{ord(sign[0]):02x}" if sign[0] < " " else f"\\u{ord(sign[0]):04x}", text)


class PlainOutput(io.TextIOBase):
    """A stream that all output goes through: a file, a model or a run can write nothing that steers the terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(plain(text))
        return len(text)

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


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(octets: float) -> str:
    """812 bytes, 1.9 kB, 6.7 MB, 1,204.5 MB: never a nought for something that is there."""
    if octets < 1000:
        return f"{octets:.0f} bytes"
    return f"{octets / 1e3:.1f} kB" if octets < 1e5 else f"{octets / 1e6:,.1f} MB"


def progress_line(state: RunState, before: int = 0) -> str:
    """300 of 1,000 rows, 120 rows/s, 6 s left; "" where nothing is counted or done yet.

    `before` is what was done before this start.
    """
    if not state.phase_total or not state.phase_done:
        return ""
    going, unit = pace_of(state, before), state.phase_unit
    if unit == "bytes":
        parts = [f"{state.phase_done / 1e6:,.1f} of {state.phase_total / 1e6:,.1f} MB"]
        parts += [f"{going.per_second / 1e6:,.1f} MB/s"] if going else []
    else:
        parts = [f"{state.phase_done:,} of {state.phase_total:,} {unit}".rstrip()]
        parts += [f"{short(going.per_second)} {unit.split()[0]}/s"] if going and unit not in ("", "percent") else []
    return ", ".join([*parts, *([f"{duration(going.seconds_left)} left"] if going else [])])


def age(then: float) -> str:
    """How long ago, in the largest unit that fits."""
    seconds = max(0.0, time.time() - then)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now"


FAILED = 1


LOOK_SECONDS, SAY_SECONDS = 0.2, 3.0


@dataclass(frozen=True, slots=True)
class Telling:
    """What is said of a kind of job. A phase without words is told by its progress alone.

    `progress` gives a line, "" where there is nothing to tell yet; `notes` says that the job's warnings are told as
    they come (else whoever follows tells them).
    """

    phases: Mapping[str, str]
    progress: Callable[[RunState], str]
    stopping: str
    notes: bool = False


def goes_on(name: str) -> str:
    """What is said of a job or a run as it begins."""
    jobs = "python -m lora_studio jobs"
    return f"  It goes on if this terminal is closed: `{jobs} follow {name}` tells of it, `{jobs} stop {name}` ends it."


def follow(supervisor: Supervisor, job_id: str, telling: Telling, *, leaves: bool = False) -> RunState:
    """Tells of a job until it ends, and starts it where it waits and its turn comes.

    Ctrl-C stops it, a second one ends it at once; with `leaves` it only ends this.
    """
    supervisor.start()
    try:
        return _follow(supervisor, job_id, telling, leaves)
    finally:
        supervisor.close()


def _follow(supervisor: Supervisor, job_id: str, telling: Telling, leaves: bool) -> RunState:
    last_output, phase, interrupted, noted, waits_for = 0.0, "", 0, 0, ""
    while True:
        try:
            state = supervisor.state(job_id)
            for note in state.warnings[noted:] if telling.notes else ():
                say(f"  note: {note}")
            noted = len(state.warnings)
            if state.final and not supervisor.is_alive(job_id):
                return state
            if state.state == "queued":
                waits_for = tell_waiting(supervisor, waits_for)
            elif state.phase != phase:
                phase, words = state.phase, telling.phases.get(state.phase, "")
                if words:
                    say(words)
                last_output = time.monotonic() if words else 0.0
            line = telling.progress(state) if state.state != "queued" else ""
            if line and time.monotonic() - last_output >= SAY_SECONDS:
                last_output = time.monotonic()
                say(f"  {line}")
            time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt:
            if leaves:
                raise
            interrupted += 1
            if interrupted == 1:
                say(f"Stopping; {telling.stopping}. Ctrl-C again ends it at once.")
                supervisor.stop(job_id)
            else:
                supervisor.cancel(job_id)


def tell_waiting(supervisor: Supervisor, last_holder: str) -> str:
    """Says once which job holds the device, and which one after it; gives the one that was told."""
    holder = supervisor.busy()
    if holder is None or holder == last_holder:
        return last_holder
    kind = next((job.kind for job in supervisor.working() if job.id == holder), TRAIN.name)
    say(f"Waits in the queue: {KINDS[kind].noun} {holder} holds the device.")
    return holder


def exit_code(state: RunState, child: int | None) -> int:
    """0 done, 1 failed, 2 wrong input, 130 stopped; `child` is how the child itself ended, where that is known."""
    if state.state == "done":
        return 0
    return 130 if state.state == "stopped" else 2 if child == 2 else FAILED
