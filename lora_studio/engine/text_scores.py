"""How near an answer's words come to the expected ones: ROUGE-L, chrF and BLEU, from the libraries that papers use."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from lora_studio.engine.metrics import normalise

NGRAMS = 4
_WORD = re.compile(r"\w+")


class _Words:
    """Words of any script. The library's own tokenizer knows only a to z and digits."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.casefold())


_ROUGE = RougeScorer(["rougeL"], tokenizer=_Words())
_CHRF = CHRF()
_BLEU = BLEU(effective_order=True)  # what single answers are counted with; it does not change the counts


def rouge_l(answer: str, expected: str) -> float:
    """F-measure of the longest common subsequence of words, 0 to 1 (Lin 2004). Two answers without words are equal."""
    said, wanted = normalise(answer), normalise(expected)
    if not _WORD.search(said) and not _WORD.search(wanted):
        return float(said == wanted)
    return float(_ROUGE.score(wanted, said)["rougeL"].fmeasure)


def chrf(answer: str, expected: str) -> float:
    """F-score of character n-grams, 0 to 100 (Popović 2015)."""
    return float(_CHRF.sentence_score(normalise(answer), [normalise(expected)]).score)


def bleu_counts(answer: str, expected: str) -> list[int]:
    """What BLEU counts of one answer: lengths of both, right n-grams and all n-grams of 1 to 4 words."""
    found = _BLEU.sentence_score(normalise(answer), [normalise(expected)])
    return [found.sys_len, found.ref_len, *found.counts, *found.totals]


def bleu(counts: np.ndarray) -> float:
    """BLEU of a whole file, 0 to 100 (Papineni et al. 2002), from the sums of its rows' `bleu_counts`."""
    sums = [int(value) for value in counts]
    said, wanted, right, of = sums[0], sums[1], sums[2 : 2 + NGRAMS], sums[2 + NGRAMS :]
    score: Any = BLEU.compute_bleu(correct=right, total=of, sys_len=said, ref_len=wanted, smooth_method="exp")
    return float(score.score)


def bleu_of(*counts: np.ndarray, axis: int = -1) -> np.ndarray:
    """`bleu` of rows whose counts stand in one array a number, over an axis: what a bootstrap takes."""
    sums = np.stack([part.sum(axis=axis) for part in counts], axis=-1)
    return np.array([bleu(row) for row in sums.reshape(-1, sums.shape[-1])]).reshape(sums.shape[:-1])


def bleu_columns(pairs: Sequence[tuple[str, str]]) -> list[np.ndarray]:
    """The counts of many (answer, expected) as `bleu_of` takes them."""
    return list(np.array([bleu_counts(*pair) for pair in pairs], dtype=np.int64).T)
