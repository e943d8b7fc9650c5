"""Detects the task of a test file from its expected answers, and scores answers: match, label, ROUGE-L and others."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

_THINKING = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_END_OF_THINKING = "</think>"
_FINAL_NUMBER = re.compile(r"####\s*(\S+)")
_NUMBER = re.compile(r"(?:(?<![\w)])[-−])?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)")
_PIECE = re.compile(r"[^\W_]+|_|[^\w\s]")


def without_thinking(text: str) -> str:
    """The answer without the reasoning block of a thinking model.

    Some templates open the block in the prompt, so that the answer only closes it.
    """
    return _THINKING.sub("", text).rpartition(_END_OF_THINKING)[2]


def normalise(text: str) -> str:
    """A canonical form for texts that look the same: composed characters, single spaces, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", without_thinking(text)).split())


def is_exact(answer: str, expected: str) -> bool:
    """Whether an answer equals the expected answer, ignoring white space and reasoning."""
    return normalise(answer) == normalise(expected)


def share(right: list[bool]) -> float:
    """A part of a whole, 0 to 1; 0 if the whole is 0."""
    return sum(right) / len(right) if right else 0.0


def number_of(answer: str) -> Decimal | None:
    """The final number of a worked answer: what follows the last `####` (as in GSM8K), else its last number."""
    text = normalise(answer)
    marked = _FINAL_NUMBER.findall(text)
    numbers = _NUMBER.findall(marked[-1] if marked else text)
    if not numbers:
        return None
    return Decimal((numbers[0] if marked else numbers[-1]).replace(",", "").replace("−", "-"))


def same_number(answer: str, expected: str) -> bool:
    """Whether both answers end in the same number: 1,000 equals 1000.0."""
    number = number_of(expected)
    return number is not None and number_of(answer) == number


def json_of(answer: str) -> tuple[bool, Any]:
    """Whether an answer is JSON, also inside a code fence, and its value. Bare words and numbers do not count."""
    text = without_thinking(answer).strip()
    first, _, body = text.partition("\n")
    fenced = first.strip().lower() in ("```", "```json") and body.endswith("```")
    try:
        value = json.loads(body.removesuffix("```") if fenced else text)
    except (json.JSONDecodeError, RecursionError):
        return False, None
    return isinstance(value, dict | list), value


def label_of(answer: str, labels: Sequence[str], *, whole: bool = True) -> str | None:
    """The label that an answer gives; None if it gives none.

    It is the label that the answer begins with (the longest if several match), else the only one that it contains.
    Case, white space, surrounding punctuation and reasoning are ignored. An answer that is not `whole` was cut off: it
    also gives the only label that it is a prefix of.
    """
    words = _pieces(answer)
    labels_by_length = sorted(((_pieces(label), label) for label in labels), key=lambda pair: -len(pair[0]))
    firsts = {pieces[0] for pieces, _ in labels_by_length}
    while words and not words[0].isalnum() and words[0] not in firsts:
        words = words[1:]
    if not whole and words:
        prefix = " ".join(words)
        begun = [label for pieces, label in labels_by_length if " ".join(pieces).startswith(prefix)]
        if len(begun) == 1:
            return begun[0]
    matches = list[str]()
    at = 0
    while at < len(words):
        label, size = next(
            ((label, len(pieces)) for pieces, label in labels_by_length if words[at : at + len(pieces)] == pieces),
            ("", 1),
        )
        if label and at == 0:
            return label
        matches += [label] if label else []
        at += size
    return matches[0] if len(set(matches)) == 1 else None


def _pieces(text: str) -> list[str]:
    """A text as lower-case words and single punctuation marks."""
    return _PIECE.findall(normalise(text).casefold())


def label_scores(expected: Sequence[str], predicted: Sequence[str | None]) -> dict[str, float]:
    """Accuracy, macro F1 and the share without an answer, which counts as wrong. Empty for no rows.

    Macro F1 is the mean F1 over the labels that are expected or predicted.
    """
    if not expected:
        return {}
    pairs = list(zip(expected, predicted, strict=True))
    f1 = []
    for label in sorted({*expected, *(value for value in predicted if value is not None)}):
        right = sum(expected_label == predicted_label == label for expected_label, predicted_label in pairs)
        f1.append(2 * right / (expected.count(label) + predicted.count(label)))
    return {
        "accuracy": share([expected_label == predicted_label for expected_label, predicted_label in pairs]),
        "f1": sum(f1) / len(f1),
        "unanswered": share([predicted_label is None for _, predicted_label in pairs]),
    }


NGRAMS = 4
_WORD = re.compile(r"\w+")


class _Words:
    """Splits words of any script. The library's own tokenizer knows only a to z and digits."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.casefold())


# Loaded when they are asked for: every run imports this module, few need a score of text.


@cache
def _chrf() -> "CHRF":
    from sacrebleu.metrics import CHRF

    return CHRF()


@cache
def _bleu() -> "BLEU":
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)  # for single answers; it does not change the counts


@cache
def _rouge() -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer  # seconds: nltk and with it scipy

    return RougeScorer(["rougeL"], tokenizer=_Words())


def rouge_l(answer: str, expected: str) -> float:
    """F-measure of the longest common subsequence of words, 0 to 1 (Lin 2004). Two answers without words are equal."""
    answer_text, expected_text = normalise(answer), normalise(expected)
    if not _WORD.search(answer_text) and not _WORD.search(expected_text):
        return float(answer_text == expected_text)
    return float(_rouge().score(expected_text, answer_text)["rougeL"].fmeasure)


def chrf(answer: str, expected: str) -> float:
    """F-score of character n-grams, 0 to 100 (Popović 2015)."""
    return float(_chrf().sentence_score(normalise(answer), [normalise(expected)]).score)


def bleu_counts(answer: str, expected: str) -> list[int]:
    """BLEU's counts for one answer: lengths of both texts, matching and total n-grams of 1 to 4 words."""
    score = _bleu().sentence_score(normalise(answer), [normalise(expected)])
    return [score.sys_len, score.ref_len, *score.counts, *score.totals]


def bleu(counts: np.ndarray) -> float:
    """BLEU of a whole file, 0 to 100 (Papineni et al. 2002), from the sums of its rows' `bleu_counts`."""
    sums = [int(value) for value in counts]
    answer_length, expected_length, right, of = sums[0], sums[1], sums[2 : 2 + NGRAMS], sums[2 + NGRAMS :]
    score: Any = _bleu().compute_bleu(
        correct=right, total=of, sys_len=answer_length, ref_len=expected_length, smooth_method="exp"
    )
    return float(score.score)


def bleu_of(*counts: np.ndarray, axis: int = -1) -> np.ndarray:
    """`bleu` from arrays of counts, over an axis, as a bootstrap takes it."""
    sums = np.stack([part.sum(axis=axis) for part in counts], axis=-1)
    return np.array([bleu(row) for row in sums.reshape(-1, sums.shape[-1])]).reshape(sums.shape[:-1])


def bleu_columns(pairs: Sequence[tuple[str, str]]) -> list[np.ndarray]:
    """The counts of many (answer, expected) pairs, as `bleu_of` takes them."""
    return list(np.array([bleu_counts(*pair) for pair in pairs], dtype=np.int64).T)


MAX_LABELS, MAX_LABEL_LENGTH, MIN_ROWS_A_LABEL = 20, 40, 3
NEARLY_ALL = 0.9
POSITIVE = ("yes", "true", "positive", "1", "spam", "relevant")
_DIGIT = re.compile(r"\d")
_BARE_NUMBER = re.compile(r"[^\w]*\d(?:[\d,. ]*\d)?[^\w]*")


@dataclass(frozen=True, slots=True)
class Task:
    """`kind` is labels, numbers, json, text, or reading for rows without questions; `why` says how it was detected."""

    kind: str
    why: str
    labels: Sequence[str] = ()

    @property
    def positive(self) -> str | None:
        """The positive label of two: the one that means yes, else the first."""
        if len(self.labels) != 2:
            return None
        return next((label for label in self.labels if label.casefold() in POSITIVE), self.labels[0])


READING = Task(
    "reading",
    "The rows contain no prompts: each text is scored by how well the models predict it.",
)


@dataclass(frozen=True, slots=True)
class AnswerVerdict:
    """The judgement of an answer: `score` from 0 to 1 orders rows; `given` is the label or number that was read from
    it."""

    right: bool
    score: float
    given: str | None = None


def choose_task(expected: Sequence[str], labels: Sequence[str] = (), labels_from: str = "") -> Task:
    """The task that the expected answers set; explicit labels decide it."""
    if labels:
        with_label = sum(label_of(answer, labels) is not None for answer in expected)
        if with_label:
            return Task(
                "labels", f"Each answer is one of the labels {', '.join(labels)}: {labels_from}.", tuple(labels)
            )
    if _nearly_all(_is_number(answer) for answer in expected):
        return Task("numbers", "The expected answers end in a number (after #### if they contain a calculation).")
    if _nearly_all(json_of(answer)[0] for answer in expected):
        return Task("json", "The expected answers are JSON.")
    few = few_labels(expected)
    if few:
        reason = f"The expected answers repeat the same {len(few)} short answers: {', '.join(few)}."
        return Task("labels", reason, few)
    return Task("text", "The expected answers are free text, not labels, numbers or JSON.")


def _is_number(answer: str) -> bool:
    """Whether an answer is a number, or ends in one after ####."""
    worked = any(map(_DIGIT.search, _FINAL_NUMBER.findall(answer)))
    return worked or _BARE_NUMBER.fullmatch(normalise(answer)) is not None


def _nearly_all(those: Iterable[bool]) -> bool:
    values = list(those)
    return bool(values) and sum(values) >= NEARLY_ALL * len(values)


def few_labels(expected: Sequence[str]) -> tuple[str, ...]:
    """The distinct answers as labels, the most frequent first; empty unless they are few and short."""
    plain = [normalise(answer).strip(" .!\"'") for answer in expected]
    spelled = Counter(plain)
    ways: dict[str, list[str]] = {}
    for text, _ in spelled.most_common():
        ways.setdefault(text.casefold(), []).append(text)
    few = 2 <= len(ways) <= MAX_LABELS and len(plain) >= MIN_ROWS_A_LABEL * len(ways)
    short = all(0 < len(text) <= MAX_LABEL_LENGTH and "\n" not in text for text in ways)
    return tuple(same[0] for same in ways.values()) if few and short else ()


def judge(task: Task, answer: str, expected: str) -> AnswerVerdict:
    """Whether an answer is correct: the same label, number or JSON value, else the same text."""
    if task.kind == "labels":
        predicted, label = label_of(answer, task.labels), label_of(expected, task.labels)
        right = predicted == label if label is not None else is_exact(answer, expected)
        return AnswerVerdict(right, float(right), predicted)
    if task.kind == "numbers":
        number, right = number_of(answer), same_number(answer, expected)
        return AnswerVerdict(right, float(right), None if number is None else str(number))
    if task.kind == "json":
        (valid, value), (_, wanted_value) = json_of(answer), json_of(expected)
        right = valid and value == wanted_value
        return AnswerVerdict(right, 1.0 if right else 0.5 * valid * rouge_l(answer, expected))
    right = is_exact(answer, expected)
    return AnswerVerdict(right, 1.0 if right else rouge_l(answer, expected))
