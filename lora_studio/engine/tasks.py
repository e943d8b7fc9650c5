"""Which kind of task a test file sets, told from its expected answers, and whether one answer solves it."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lora_studio.engine.metrics import is_exact, json_of, label_of, normalise, number_of, same_number
from lora_studio.engine.text_scores import rouge_l

MOST_LABELS, LONGEST_LABEL, ROWS_A_LABEL = 20, 40, 3
NEARLY_ALL = 0.9
POSITIVE = ("yes", "true", "positive", "1", "spam", "relevant")
_WORKED = re.compile(r"####\s*(\S+)")
_DIGIT = re.compile(r"\d")
_BARE_NUMBER = re.compile(r"[^\w]*\d(?:[\d,. ]*\d)?[^\w]*")


@dataclass(frozen=True, slots=True)
class Task:
    """`kind` is labels, numbers, json or text, or reading where nothing is asked; `why` says in a sentence how that was
    told."""

    kind: str
    why: str
    labels: Sequence[str] = ()

    @property
    def positive(self) -> str | None:
        """Of two labels the one that is looked for: the one that says yes, else the first."""
        if len(self.labels) != 2:
            return None
        return next((label for label in self.labels if label.casefold() in POSITIVE), self.labels[0])


READING = Task(
    "reading",
    "The rows ask nothing: they are read, as far as the model can, and measured is how well each predicts them.",
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one answer is worth: `score` from 0 to 1 orders rows; `given` is the label or number read in it."""

    right: bool
    score: float
    given: str | None = None


def choose_task(expected: Sequence[str], labels: Sequence[str] = (), labels_from: str = "") -> Task:
    """The task of a file's expected answers; labels that were named settle it."""
    if labels:
        known = sum(label_of(answer, labels) is not None for answer in expected)
        if known:
            return Task(
                "labels", f"Each answer is one of the labels {', '.join(labels)}: {labels_from}.", tuple(labels)
            )
    if _nearly_all(_is_number(answer) for answer in expected):
        return Task("numbers", "The expected answers end in a number (after #### where they are worked out).")
    if _nearly_all(json_of(answer)[0] for answer in expected):
        return Task("json", "The expected answers are JSON.")
    found = few_labels(expected)
    if found:
        said = f"The expected answers are the same {len(found)} short ones again and again: {', '.join(found)}."
        return Task("labels", said, found)
    return Task("text", "The expected answers are free text: neither labels nor numbers nor JSON.")


def _is_number(answer: str) -> bool:
    """Whether an answer is a number by itself or ends in one after ####."""
    worked = any(map(_DIGIT.search, _WORKED.findall(answer)))
    return worked or _BARE_NUMBER.fullmatch(normalise(answer)) is not None


def _nearly_all(those: Iterable[bool]) -> bool:
    found = list(those)
    return bool(found) and sum(found) >= NEARLY_ALL * len(found)


def few_labels(expected: Sequence[str]) -> tuple[str, ...]:
    """The labels that the answers are, the commonest first; none where they are not a few short ones."""
    plain = [normalise(answer).strip(" .!\"'") for answer in expected]
    spelled = Counter(plain)
    ways: dict[str, list[str]] = {}
    for text, _ in spelled.most_common():
        ways.setdefault(text.casefold(), []).append(text)
    few = 2 <= len(ways) <= MOST_LABELS and len(plain) >= ROWS_A_LABEL * len(ways)
    short = all(0 < len(text) <= LONGEST_LABEL and "\n" not in text for text in ways)
    return tuple(same[0] for same in ways.values()) if few and short else ()


def judge(task: Task, answer: str, expected: str) -> Verdict:
    """Whether an answer solves its row: the same label, number or JSON value, else the same text."""
    if task.kind == "labels":
        given, wanted = label_of(answer, task.labels), label_of(expected, task.labels)
        right = given == wanted if wanted is not None else is_exact(answer, expected)
        return Verdict(right, float(right), given)
    if task.kind == "numbers":
        found, right = number_of(answer), same_number(answer, expected)
        return Verdict(right, float(right), None if found is None else str(found))
    if task.kind == "json":
        (valid, value), (_, wanted_value) = json_of(answer), json_of(expected)
        right = valid and value == wanted_value
        return Verdict(right, 1.0 if right else 0.5 * valid * rouge_l(answer, expected))
    right = is_exact(answer, expected)
    return Verdict(right, 1.0 if right else rouge_l(answer, expected))
