"""What counts as the same answer, which label an answer gives, and how many are right. Pure functions on texts."""

import json
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

_THINKING = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_END_OF_THINKING = "</think>"
_FINAL_NUMBER = re.compile(r"####\s*(\S+)")
_NUMBER = re.compile(r"(?:(?<![\w)])[-−])?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)")
_PIECE = re.compile(r"[^\W_]+|_|[^\w\s]")


def without_thinking(text: str) -> str:
    """The answer without a reasoning block, as models that think put before it.

    Some templates open the block in the prompt, so that the answer only closes it.
    """
    return _THINKING.sub("", text).rpartition(_END_OF_THINKING)[2]


def normalise(text: str) -> str:
    """One form for texts that look the same: composed characters, single blanks, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", without_thinking(text)).split())


def is_exact(answer: str, expected: str) -> bool:
    """Whether an answer is the expected one, letter by letter, white space and reasoning apart."""
    return normalise(answer) == normalise(expected)


def share(right: list[bool]) -> float:
    """Part of a whole, 0 to 1; 0 for nothing at all."""
    return sum(right) / len(right) if right else 0.0


def number_of(answer: str) -> Decimal | None:
    """The number that a worked answer ends in: what follows the last `####` (GSM8K's mark), else its last number."""
    text = normalise(answer)
    marked = _FINAL_NUMBER.findall(text)
    found = _NUMBER.findall(marked[-1] if marked else text)
    if not found:
        return None
    return Decimal((found[0] if marked else found[-1]).replace(",", "").replace("−", "-"))


def same_number(answer: str, expected: str) -> bool:
    """Whether both end in the same number: 1,000 is 1000.0."""
    wanted = number_of(expected)
    return wanted is not None and number_of(answer) == wanted


def json_of(answer: str) -> tuple[bool, Any]:
    """Whether an answer is JSON, also inside a code fence, and its value. Bare words and numbers don't count."""
    text = without_thinking(answer).strip()
    first, _, rest = text.partition("\n")
    fenced = first.strip().lower() in ("```", "```json") and rest.endswith("```")
    try:
        value = json.loads(rest.removesuffix("```") if fenced else text)
    except (json.JSONDecodeError, RecursionError):
        return False, None
    return isinstance(value, dict | list), value


def label_of(answer: str, labels: Sequence[str], *, whole: bool = True) -> str | None:
    """The label that an answer gives, however it is written; None where it gives none.

    It is the one that the answer begins with (the longest, where one begins another), else the only one that it holds.
    Case, white space, punctuation around it and reasoning before it don't matter. An answer that is not `whole` breaks
    off somewhere: it also gives the only label that it is the beginning of.
    """
    words = _pieces(answer)
    known = sorted(((_pieces(label), label) for label in labels), key=lambda pair: -len(pair[0]))
    firsts = {pieces[0] for pieces, _ in known}
    while words and not words[0].isalnum() and words[0] not in firsts:
        words = words[1:]
    if not whole and words:
        said = " ".join(words)
        begun = [label for pieces, label in known if " ".join(pieces).startswith(said)]
        if len(begun) == 1:
            return begun[0]
    found = list[str]()
    at = 0
    while at < len(words):
        label, size = next(
            ((label, len(pieces)) for pieces, label in known if words[at : at + len(pieces)] == pieces), ("", 1)
        )
        if label and at == 0:
            return label
        found += [label] if label else []
        at += size
    return found[0] if len(set(found)) == 1 else None


def _pieces(text: str) -> list[str]:
    """A text as words and single marks, in lower case."""
    return _PIECE.findall(normalise(text).casefold())


def label_scores(expected: Sequence[str], given: Sequence[str | None]) -> dict[str, float]:
    """Accuracy, macro F1 and the share without an answer, which counts as wrong. Empty for no rows.

    Macro F1 is the mean of each label's harmonic mean of precision and recall, over the labels expected or given.
    """
    if not expected:
        return {}
    pairs = list(zip(expected, given, strict=True))
    f1 = []
    for label in sorted({*expected, *(one for one in given if one is not None)}):
        right = sum(wanted == said == label for wanted, said in pairs)
        f1.append(2 * right / (expected.count(label) + given.count(label)))
    return {
        "accuracy": share([wanted == said for wanted, said in pairs]),
        "f1": sum(f1) / len(f1),
        "unanswered": share([said is None for _, said in pairs]),
    }
