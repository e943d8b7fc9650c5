"""Examples out of flat arrays: the same as cutting every row by itself, as lists and as tables."""

import random

import numpy as np
import pytest

from lora_studio.data.cache import Arrays, ArrayWriter
from lora_studio.data.encode import Encoded, cut
from lora_studio.data.examples import Examples, RowStore, write_rows
from lora_studio.data.messages import IGNORED


def _rows(count=300):
    draw = random.Random(3)
    rows = []
    for number in range(1, count + 1):
        spans, at = [], draw.randrange(0, 20)
        for _ in range(draw.randrange(1, 4)):
            stop = at + draw.randrange(1, 60)
            spans.append((at, stop))
            at = stop + draw.randrange(1, 30)
        rows.append(Encoded(number, [draw.randrange(9000) for _ in range(at)], tuple(spans), draw.random() < 0.5))
    return rows


@pytest.fixture
def store_of(tmp_path):
    def build(rows):
        writer = ArrayWriter(tmp_path)
        for first in range(0, len(rows), 100):
            part = rows[first : first + 100]
            write_rows(writer, part, [row.row * 2 for row in part])
        writer.finish({})
        return RowStore(Arrays(tmp_path))

    return build


def test_a_store_gives_back_the_rows_that_were_written(store_of):
    rows = _rows()
    store = store_of(rows)
    assert list(store) == rows
    assert (store[-1], store[2:4]) == (rows[-1], rows[2:4])
    assert store.position[:3].tolist() == [2, 4, 6]


@pytest.mark.parametrize("truncation", ["keep_answer", "keep_start", "drop"])
@pytest.mark.parametrize("length", [8, 50, 90, 1000])
def test_examples_are_what_cutting_each_row_makes(store_of, truncation, length):
    rows = _rows()
    examples = Examples(store_of(rows), np.arange(0, 300, 2), length, truncation)
    one_by_one = [cut(row, length, truncation) for row in rows[::2]]
    wanted = [example for example in one_by_one if example.trained_tokens]
    assert list(examples) == wanted
    assert [row for row, _ in examples.dropped] == [one.row for one in one_by_one if not one.trained_tokens]
    assert examples.length.tolist() == [len(example.input_ids) for example in wanted]
    assert examples.trained.tolist() == [example.trained_tokens for example in wanted]
    assert examples.row_numbers.tolist() == [example.row for example in wanted]


def test_tables_hold_what_the_sequence_holds(store_of):
    examples = Examples(store_of(_rows()), np.arange(300), 60, "keep_answer")
    rows = [row for table in examples.tables() for row in table.to_pylist()]
    assert rows == [{"input_ids": one.input_ids, "labels": one.labels} for one in examples]


@pytest.mark.parametrize(("tokens", "length"), [(100, 40), (81, 40), (80, 40), (41, 40), (17, 8)])
@pytest.mark.parametrize("first_trained", [0, 1])
def test_a_long_text_becomes_windows_and_loses_no_token(store_of, tokens, length, first_trained):
    text = Encoded(1, list(range(tokens)), ((first_trained, tokens),), bool(first_trained), is_text=True)
    examples = Examples(store_of([text]), np.arange(1), length, "keep_answer")
    assert [token for example in examples for token in example.input_ids] == list(range(tokens))
    labels = [label for example in examples for label in example.labels]
    assert labels == [IGNORED] * first_trained + list(range(first_trained, tokens))
    assert all(1 < len(example.input_ids) <= length for example in examples)
    assert len(examples) == -(-tokens // length)
    assert [example.trained_tokens for example in examples] == [
        sum(label != IGNORED for label in example.labels) for example in examples
    ]
    assert examples.split_rows == 1
    assert not examples.dropped


def test_a_long_text_is_left_out_where_long_rows_are_to_be_dropped(store_of):
    text = Encoded(1, list(range(100)), ((0, 100),), is_text=True)
    examples = Examples(store_of([text]), np.arange(1), 40, "drop")
    assert (len(examples), examples.dropped, examples.split_rows) == (0, [(1, 100)], 0)
