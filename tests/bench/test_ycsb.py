"""The operations on a table larger than memory: their shares, their popularity, and what tells a lost update."""

from collections import Counter
from itertools import islice

import pytest

from bench.workload import BenchError
from bench.workloads.ycsb import CALLS_A_CHUNK, FIELDS, Operations, Rows, verify_updated

ROWS = Rows(2000, 400)


def drawn(seed, chunks=20):
    return list(islice(Operations(ROWS, seed).chunks(2), chunks))


def test_rows_have_the_bytes_that_were_asked_for():
    for row_bytes in (160, 400, 1000, 8000):
        fields = Rows(10, row_bytes).fields(7)
        assert len(fields) == FIELDS
        assert sum(map(len, fields)) == row_bytes
        assert len(set(fields)) == FIELDS or row_bytes == 160


def test_a_chunk_has_every_operation_once_and_one_in_twenty_is_an_update():
    chunks = drawn(3)
    for chunk in chunks:
        assert len(chunk.operations) == CALLS_A_CHUNK
        assert sorted(map(repr, chunk.operations)) == sorted(map(repr, [*chunk.reads, *chunk.updates]))
    assert sum(len(chunk.updates) for chunk in chunks) / (20 * CALLS_A_CHUNK) == pytest.approx(0.05, abs=0.01)


def test_streams_of_other_seeds_draw_other_keys_and_agree_on_the_popular_ones():
    popular = []
    for seed in (1, 2):
        counts = Counter(key for chunk in drawn(seed) for (key,) in chunk.reads)
        popular.append([key for key, _ in counts.most_common(3)])
    assert popular[0] == popular[1]
    assert drawn(1)[0].operations != drawn(2)[0].operations
    assert drawn(1)[0].operations == drawn(1)[0].operations


def test_popular_keys_are_no_neighbours():
    counts = Counter(key for chunk in drawn(1) for (key,) in chunk.reads)
    hottest = sorted(key for key, _ in counts.most_common(20))
    assert hottest[-1] - hottest[0] > ROWS.count / 2


def test_updates_write_values_of_their_own_row_that_were_not_loaded():
    for chunk in drawn(4, chunks=3):
        for key, field, value in chunk.updates:
            assert len(value) == ROWS.row_bytes // FIELDS
            verify_updated(key, field, value)


def test_an_update_that_was_lost_or_went_elsewhere_is_noticed():
    with pytest.raises(BenchError, match="column 3 of row 7"):
        verify_updated(7, 3, ROWS.value(7, 3))
    with pytest.raises(BenchError, match="key of column 3 of row 7"):
        verify_updated(7, 3, ROWS.value(8, 3, serial=1))
