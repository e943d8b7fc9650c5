"""The split: decided by groups, fraction and seed alone, with rows that say the same on one side."""

import numpy as np
import pytest

from lora_studio.data.dataset import prepare
from lora_studio.data.quality import split


@pytest.mark.parametrize("seed", range(20))
def test_no_group_is_ever_on_both_sides(seed):
    groups = np.random.default_rng(seed).integers(0, 60, 200).astype(np.uint64)
    train, validation = split(groups, 0.25, seed)
    assert not set(groups[train]) & set(groups[validation])
    assert sorted([*train, *validation]) == list(range(200))
    assert 40 <= len(validation) <= 50
    assert list(train) == sorted(train)


def test_one_large_group_is_trained_on_and_a_small_one_kept_back():
    groups = np.array([7] * 50 + [8, 8], np.uint64)
    train, validation = split(groups, 0.01, 42)
    assert (len(train), validation.tolist()) == (50, [50, 51])


def test_rows_that_all_say_the_same_leave_nothing_to_measure_on():
    train, validation = split(np.zeros(9, np.uint64), 0.5, 1)
    assert (len(train), len(validation)) == (9, 0)


def test_repeats_in_a_file_stay_together(write, tokenizer):
    rows = [{"prompt": f"What is {n % 20}?", "completion": f" It  is {n % 20}"} for n in range(100)]
    prepared = prepare(str(write("a.jsonl", rows)), tokenizer, validation_fraction=0.2)
    sides = [{row % 20 for row in part.row_numbers} for part in (prepared.train, prepared.validation)]
    assert (len(sides[0]), len(sides[1])) == (16, 4)
    assert not sides[0] & sides[1]
