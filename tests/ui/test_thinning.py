"""Lines of many points: what is drawn of them keeps its spikes and stays where it is while they grow."""

import math

import pytest

from lora_studio.ui.curves import MOST_A_LINE, Downsampled, Smoothed, downsample
from tests.cpu_time import CpuTime


def curve(values: list[float | None]) -> Downsampled:
    made = Downsampled()
    for value in values:
        made.add(value)
    return made


def test_a_short_line_is_left_as_it_is() -> None:
    assert downsample([1, 2, 3], [5.0, 4.0, 3.0]) == ([1, 2, 3], [5.0, 4.0, 3.0])


@pytest.mark.parametrize("most", [12, 37, 200, MOST_A_LINE])
def test_a_single_spike_up_or_down_survives(most: int) -> None:
    ys: list[float | None] = [1.0] * 100_000
    ys[54_321], ys[77_777] = 99.0, -99.0
    xs, thinned = downsample(range(100_000), ys, most)
    assert len(thinned) <= most
    drawn = dict(zip(xs, thinned, strict=True))
    assert (drawn[54_321], drawn[77_777]) == (99.0, -99.0)


@pytest.mark.parametrize("count", [501, 1023, 1024, 1025, 2049, 50_000, 65_537])
def test_first_and_last_point_stay_and_steps_rise(count: int) -> None:
    xs, _ = downsample(range(10, 10 + count), [math.sin(i / 50) for i in range(count)])
    assert (xs[0], xs[-1]) == (10, 9 + count)
    assert xs == sorted(set(xs))
    assert MOST_A_LINE / 5 < len(xs) <= MOST_A_LINE


def test_lowest_and_highest_of_the_whole_are_always_drawn() -> None:
    values = [math.sin(i * i) for i in range(30_000)]
    _, ys = downsample(range(len(values)), values, 50)
    drawn = [y for y in ys if y is not None]
    assert max(drawn) == pytest.approx(max(values), rel=1e-4)
    assert min(drawn) == pytest.approx(min(values), rel=1e-4)


def test_what_is_drawn_of_a_long_line_stays_when_a_few_points_are_added() -> None:
    growing = curve([math.sin(i * i) for i in range(40_000)])
    before = growing.kept(MOST_A_LINE)
    for i in range(40_000, 40_050):
        growing.add(math.sin(i * i))
    assert set(before[:-3]) <= set(growing.kept(MOST_A_LINE))


def test_values_that_are_no_numbers_become_gaps() -> None:
    assert downsample([1, 2, 3, 4], [1.0, math.nan, math.inf, None])[1] == [1.0, None, None, None]
    _, thinned = downsample(range(10_000), [math.nan] * 10_000)
    assert set(thinned) == {None}
    assert len(thinned) <= MOST_A_LINE


def test_smoothing_of_a_constant_is_the_constant_from_the_first_point_on() -> None:
    smoothed = Smoothed(0.9)
    smoothed.follow([3.0] * 50)
    assert list(smoothed.curve.values) == pytest.approx([3.0] * 50)


def test_smoothing_goes_on_where_it_stopped_and_passes_over_gaps() -> None:
    values = [float(i % 7) for i in range(100)]
    values[40] = math.nan
    whole, pieces = Smoothed(0.8), Smoothed(0.8)
    whole.follow(values)
    for end in (10, 41, 100):
        pieces.follow(values[:end])
    assert list(pieces.curve.values)[41:] == list(whole.curve.values)[41:]
    assert math.isnan(whole.curve.values[40])
    assert not math.isnan(whole.curve.values[41])


def test_a_hundred_thousand_points_are_taken_up_in_less_than_a_tenth_of_a_second_each_thousand() -> None:
    growing = Downsampled()
    with CpuTime() as adding:
        for i in range(100_000):
            growing.add(float(i % 977))
    with CpuTime() as drawing:
        growing.kept(MOST_A_LINE)
    assert drawing.seconds < 0.1
    assert adding.seconds / 100 < 0.1
