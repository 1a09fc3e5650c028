"""What partitions tell of their pools, and what becomes of it where they tell less."""

from bench import pool


def test_what_partitions_do_not_tell_is_none():
    silent = pool.of_partitions([{"rss_bytes": 1}, {}])
    assert (silent.hits, silent.misses, silent.hit_ratio, silent.figures) == (None, None, None, {})
    assert pool.hit_ratio(silent, silent) is None
    assert pool.misses(silent, silent) is None
    assert pool.text(None) == "-"


def test_counters_tell_the_ratio_between_two_moments():
    before = pool.of_partitions(
        [{"buffer_pool_hits": 900, "buffer_pool_misses": 100, "buffer_pool_hit_ratio": 0.9}] * 2
    )
    after = pool.of_partitions([{"buffer_pool_hits": 915, "buffer_pool_misses": 105, "buffer_pool_hit_ratio": 0.9}] * 2)
    assert pool.hit_ratio(before, after) == 0.75
    assert pool.misses(before, after) == 10
    assert pool.hit_ratio(before, before) is None


def test_without_counters_the_ratio_is_what_the_partitions_say():
    said = pool.of_partitions([{"buffer_pool_hit_ratio": 0.5, "pages": 10}, {"buffer_pool_hit_ratio": 0.7, "pages": 5}])
    assert pool.hit_ratio(said, said) == 0.6
    assert said.figures == {"pages": 15}
