"""What counts as the same answer. Pure functions on texts."""

import re
import unicodedata

_THINKING = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)


def without_thinking(text: str) -> str:
    """The answer without a reasoning block, as models that think put before it."""
    return _THINKING.sub("", text)


def normalise(text: str) -> str:
    """One form for texts that look the same: composed characters, single blanks, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", without_thinking(text)).split())


def is_exact(answer: str, expected: str) -> bool:
    """Whether an answer is the expected one, letter by letter, white space and reasoning apart."""
    return normalise(answer) == normalise(expected)


def share(right: list[bool]) -> float:
    """Part of a whole, 0 to 1; 0 for nothing at all."""
    return sum(right) / len(right) if right else 0.0
