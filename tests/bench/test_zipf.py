"""Streams of keys are what their distribution says, and the same from the same seed."""

from collections import Counter

import pytest

from bench.zipf import Zipf, uniform


def test_the_same_seed_draws_the_same_keys():
    assert Zipf(1000, seed=5).draw(500) == Zipf(1000, seed=5).draw(500)
    assert Zipf(1000, seed=5).draw(500) != Zipf(1000, seed=6).draw(500)
    assert uniform(1000, 500, seed=5) == uniform(1000, 500, seed=5)


def test_draws_go_on_where_the_last_ones_ended():
    whole, parts = Zipf(1000), Zipf(1000)
    assert whole.draw(300) == parts.draw(100) + parts.draw(200)


def test_shares_follow_the_ranks():
    zipf, draws = Zipf(1000, 0.99), 200_000
    counts = Counter(zipf.draw(draws))
    weights = [rank**-0.99 for rank in range(1, 1001)]
    for rank in (0, 1, 9, 99):
        expected = draws * weights[rank] / sum(weights)
        assert counts[zipf.key_of_rank(rank)] == pytest.approx(expected, abs=5 * expected**0.5)
    assert zipf.share(1000) == 1.0
    assert zipf.share(10) == pytest.approx(sum(weights[:10]) / sum(weights))


def test_ranks_are_scattered_over_all_keys():
    zipf = Zipf(1000)
    keys = [zipf.key_of_rank(rank) for rank in range(1000)]
    assert sorted(keys) == list(range(1000))
    assert keys != sorted(keys)


def test_no_keys_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Zipf(0)


def test_uniform_reaches_every_key_about_as_often():
    counts = Counter(uniform(100, 100_000))
    assert len(counts) == 100
    assert all(800 < count < 1200 for count in counts.values())


def test_another_seed_leaves_the_popular_keys_popular():
    one, other = Zipf(1000), Zipf(1000)
    other.reseed(9)
    assert one.draw(500) != other.draw(500)
    assert [one.key_of_rank(rank) for rank in range(1000)] == [other.key_of_rank(rank) for rank in range(1000)]
