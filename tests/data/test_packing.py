"""The packing forecast: against trl's own packing, and a published example's arithmetic."""

import numpy as np
import pytest

from lora_studio.data.truncate import count_packs, forecast, padding, steps


@pytest.mark.parametrize("max_length", [16, 100, 512])
def test_the_forecast_is_what_trl_packs(max_length):
    import pyarrow as pa
    from datasets import Dataset
    from trl import pack_dataset

    draw = np.random.default_rng(max_length)
    for rows in (1, 7, 300):
        lengths = np.minimum(draw.integers(1, 130, rows), max_length)
        table = Dataset(pa.table({"input_ids": [[1] * int(length) for length in lengths]}))
        assert count_packs(lengths, max_length) == len(pack_dataset(table, max_length, "bfd"))


def _like_the_example():
    """78,271 lengths with the example's figures: 393 to 875, mean 435, p95 468."""
    draw = np.random.default_rng(0)
    lengths = np.clip(np.rint(draw.normal(434, 20, 78_271)), 393, 560).astype(int)
    lengths[0] = 875
    return lengths


def test_rows_like_those_of_a_published_example_pack_to_about_the_number_it_tells():
    lengths = _like_the_example()
    assert abs(lengths.mean() - 435) < 1
    assert abs(np.percentile(lengths, 95) - 468) < 3
    found = forecast(lengths, 4736)
    assert abs(found["packs"] - 7_344) < 0.02 * 7_344
    assert abs(found["rows_per_pack"] - 10.7) < 0.2


def test_at_the_examples_own_length_only_two_rows_share_a_sequence():
    found = forecast(_like_the_example(), 1024)
    assert abs(found["packs"] - 78_271 / 2) < 2
    assert found["rows_per_pack"] == 2.0
    assert found["padding_alone"] == 0
    assert 0.14 < found["padding_packed"] < 0.16


def test_without_packing_a_batch_is_padded_to_its_longest_row():
    assert padding(np.array([10, 10, 10, 10]), 4) == 0
    assert padding(np.array([10, 20, 30]), 3) == round(1 - 60 / 90, 4)
    assert forecast(np.array([10, 100]), 64, 2)["padding_alone"] == round(1 - 74 / 128, 4)


def test_no_rows_need_no_sequence():
    assert forecast(np.array([], int), 64)["packs"] == 0


@pytest.mark.parametrize(("rows", "batch", "accumulation", "wanted"), [(10, 4, 1, 3), (10, 4, 2, 2), (0, 4, 4, 0)])
def test_an_epoch_ends_with_a_short_step(rows, batch, accumulation, wanted):
    assert steps(rows, batch, accumulation) == wanted
