"""Texts for a terminal: tables, times, and lines that go to stderr so that stdout stays for results."""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any


def say(text: str = "") -> None:
    """A line for the person who watches."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """The result of a command, as one object on one line."""
    print(json.dumps(value, ensure_ascii=False, default=str), flush=True)


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


def age(then: float) -> str:
    """How long ago, in the largest unit that fits."""
    seconds = max(0.0, time.time() - then)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now"
