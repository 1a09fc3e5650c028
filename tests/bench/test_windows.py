"""Figures over time: when they have settled, when they are back, and which of them fall into an interval."""

import pytest

from bench.windows import back_at, mean, settled, split, union


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ([], False),
        ([100.0, 100.0], False),
        ([100.0, 99.0, 101.0], True),
        ([10.0, 50.0, 100.0, 99.0, 101.0], True),
        ([100.0, 99.0, 104.0], False),
        ([0.0, 0.0, 0.0], True),
        # Each step is small, and yet it drifts.
        ([100.0, 102.0, 104.0], False),
    ],
)
def test_figures_have_settled_when_the_last_ones_lie_close_together(figures, expected):
    assert settled(figures) is expected


def test_a_figure_is_back_once_it_stays_at_the_level():
    chance = [(0.0, 0.1), (1.0, 0.95), (2.0, 0.4), (3.0, 0.9), (4.0, 0.91)]
    assert back_at(chance, 0.9) == 3.0
    assert back_at(chance, 0.99) is None
    assert back_at([(0.0, 1.0)], 0.5) is None


def test_intervals_that_overlap_or_touch_are_one():
    assert union([(5.0, 6.0), (1.0, 3.0), (2.0, 2.5), (3.0, 4.0)]) == [(1.0, 4.0), (5.0, 6.0)]
    assert union([]) == []


def test_samples_are_split_into_those_inside_and_outside():
    samples = [(float(at), at * 10.0) for at in range(8)]
    inside, outside = split(samples, [(1.0, 2.0), (1.5, 3.0), (6.5, 9.0)])
    assert inside == [10.0, 20.0, 30.0, 70.0]
    assert outside == [0.0, 40.0, 50.0, 60.0]
    assert split(samples, []) == ([], [value for _, value in samples])


def test_there_is_no_mean_of_nothing():
    assert mean([]) is None
    assert mean([1.0, 2.0]) == 1.5
