"""A question with its answer, and the small pieces of grammar that every kind of question needs.

The kinds themselves live in facts.py (what is known), tasks.py (what is worked out) and machine.py (an invented
domain); kinds.py lists them.
"""

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answer as a sentence, and the same answer in as few words as possible."""

    kind: str
    text: str
    answer: str
    short: str


Exchange = tuple[Question, ...]


def an(noun: str) -> str:
    """The noun with its article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def start(sentence: str) -> str:
    """The sentence with a capital first letter."""
    return sentence[:1].upper() + sentence[1:]


def task(rng: Random, instruction: str, content: str) -> str:
    """An instruction and what it works on, on one line or as a paragraph below."""
    if rng.random() < 0.5:
        return f"{instruction}: {content}"
    mark = "?" if instruction.startswith(("How", "Is")) else "."
    return f"{instruction}{mark}\n\n{content}"
