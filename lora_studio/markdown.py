"""Markdown in which whatever comes from a person, a file or a model is read as text, never as markup."""

import re
from collections.abc import Iterable
from typing import Any

SHARES = ("token_accuracy", "accuracy", "f1", "unanswered", "reward_accuracy")
"""Metrics of a run that lie between 0 and 1 and are told in percent, as evaluations tell them."""


def number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def metric(name: str, value: float | None) -> str:
    """A metric by its name: a share in percent, others in four digits."""
    return share(value) if name in SHARES else number(value)


def share(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"


def plain(text: str) -> str:
    """Text in which Markdown finds no markup."""
    return re.sub(r"([\\`*_\[\]<>&|~$#!])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Text as code, whatever signs it holds."""
    line = " ".join(text.split()) or " "
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}" if line.startswith("`") or line.endswith("`") else f"{fence}{line}{fence}"


def prose(text: str) -> str:
    """Words in which `names` are set off: they may come from a file, so everything else is plain text."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return plain(text)
    return "".join(code(part) if at % 2 else _spaced(part) for at, part in enumerate(parts))


def _spaced(part: str) -> str:
    """Plain text that keeps the blanks at its ends."""
    return f"{' ' * part[:1].isspace()}{plain(part)}{' ' * (part[-1:].isspace() and bool(part.strip()))}"


def table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    """A Markdown table; a sign that would end a cell is written out."""

    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", str(cell)) for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *(line(row) for row in rows)]
