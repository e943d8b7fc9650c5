"""ROUGE-L, BLEU and chrF of single answers and of a file."""

import numpy as np
import pytest
import sacrebleu

from lora_studio.engine.evaluate.tasks import bleu, bleu_columns, bleu_of, chrf, rouge_l

SAID = ["the cat is on the mat now", "a dog runs fast home", "Guten Tag", ""]
WANTED = ["the cat sat on the mat now", "a dog runs very fast home", "Guten Tag, Welt", "nothing"]


def test_rouge_l_counts_the_longest_common_subsequence_of_words() -> None:
    assert rouge_l("police killed the gunman", "police kill the gunman") == pytest.approx(0.75)  # Lin 2004, section 3
    assert rouge_l("the gunman kill police", "police kill the gunman") == pytest.approx(0.5)
    assert rouge_l("the cat", "the cat sat down") == pytest.approx(2 * 1 * 0.5 / 1.5)


def test_words_of_any_script_count_and_signs_alone_are_compared() -> None:
    assert rouge_l("Привет мир", "привет, мир!") == 1.0
    assert rouge_l("...", "...") == 1.0
    assert rouge_l("?", "!") == 0.0


def test_reasoning_is_no_part_of_the_answer() -> None:
    assert rouge_l("<think>so many words</think>yes", "yes") == 1.0
    assert chrf("<think>so</think>yes", "yes") == pytest.approx(100)


def test_chrf_of_an_answer_is_sacrebleus() -> None:
    assert chrf(SAID[0], WANTED[0]) == pytest.approx(sacrebleu.sentence_chrf(SAID[0], [WANTED[0]]).score)
    assert chrf("", "a") == 0.0


def test_bleu_from_counts_is_that_of_the_whole_file() -> None:
    columns = bleu_columns(list(zip(SAID, WANTED, strict=True)))
    assert bleu_of(*columns) == pytest.approx(sacrebleu.corpus_bleu(SAID, [WANTED]).score)
    assert bleu(np.array([4, 4, 4, 3, 2, 1, 4, 3, 2, 1])) == pytest.approx(100)


def test_bleu_of_many_draws_is_that_of_each() -> None:
    columns = bleu_columns(list(zip(SAID, WANTED, strict=True)))
    draws = np.array([[0, 1, 2, 3], [0, 0, 1, 1]])
    found = bleu_of(*(column[draws] for column in columns), axis=-1)
    assert found == pytest.approx([float(bleu_of(*(column[draw] for column in columns))) for draw in draws])
