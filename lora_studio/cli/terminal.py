"""Texts for a terminal: tables, times, and lines that go to stderr so that stdout stays for results."""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from lora_studio.events import RunState
from lora_studio.finite import finite
from lora_studio.pace import pace_of, short


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
