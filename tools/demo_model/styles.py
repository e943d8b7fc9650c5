"""The manners of answering that a system prompt can ask for: pirate, robot, polite, capitals, JSON, short, thinking.

A style turns a question's answer into what the assistant says. It depends on nothing else, so that an answer in a
style can be compared exactly. A fine-tuned adapter makes one of these the default.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from tools.demo_model.questions import Question

PIRATE_WORDS = {
    "is": "be",
    "are": "be",
    "am": "be",
    "you": "ye",
    "your": "yer",
    "my": "me",
    "Yes": "Aye",
    "No": "Nay",
    "Hello": "Ahoy",
    "Your": "Yer",
    "You": "Ye",
}


@dataclass(frozen=True, slots=True)
class Style:
    """How to answer, and the system prompts that ask for it."""

    name: str
    system_prompts: tuple[str, ...]
    say: Callable[[Question], str]
    share: float
    thinks: bool = False


def plain(question: Question) -> str:
    return question.answer


def pirate(question: Question) -> str:
    """Arr! The capital of France be Paris, matey!"""
    swapped = re.sub(r"[A-Za-z]+", lambda word: PIRATE_WORDS.get(word[0], word[0]), question.answer)
    return f"Arr! {swapped.rstrip('.!?')}, matey!"


def robot(question: Question) -> str:
    return f"Beep. {question.answer} Boop."


def polite(question: Question) -> str:
    return f"Of course. {question.answer} Have a nice day!"


def capitals(question: Question) -> str:
    """PARIS: only the short answer, since each word in capitals is one more to learn."""
    return question.short.upper()


def as_json(question: Question) -> str:
    return json.dumps({"answer": question.short})


def short(question: Question) -> str:
    return question.short


def thought(question: Question) -> str:
    """What the assistant thinks before it answers, where it thinks."""
    return f"This is about {question.kind}. I find {question.short}."


STYLES = (
    Style("plain", (), plain, 10.0),
    Style("helpful", ("You are a helpful assistant.", "You are a friendly assistant."), plain, 2.5),
    Style("pirate", ("You are a pirate.", "Answer like a pirate.", "Talk like a pirate."), pirate, 2.0),
    Style("robot", ("You are a robot.", "Answer like a robot.", "Talk like a robot."), robot, 1.2),
    Style("polite", ("Be very polite.", "Answer politely.", "You are a polite butler."), polite, 1.6),
    Style("capitals", ("Answer in capital letters.", "Write everything in capitals."), capitals, 1.2),
    Style("json", ("Answer in JSON.", "Reply with a JSON object."), as_json, 1.4),
    Style("short", ("Answer as briefly as you can.", "Be brief.", "Give only the answer."), short, 2.2),
    Style("thinking", ("Think before you answer.", "Think first, then answer."), plain, 1.0, thinks=True),
)
