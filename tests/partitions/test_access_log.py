"""The access log: what Space-Saving promises, how it ages, and that its dump comes back or says why not."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions.access_log import HALVE_AFTER, KEY_BYTES, AccessLog, Entry, read_access_log, write_access_log
from partitions.hint_file import write_hint


def test_a_sequence_counts_as_computed_by_hand() -> None:
    log = AccessLog(2)
    log.note(0, ["a", "a", "b", "a"])
    assert log.top(9) == [(0, "a", 3), (0, "b", 1)]
    log.note(0, ["c"])  # takes over b's counter: count 2, error 1
    assert log.top(9) == [(0, "a", 3), (0, "c", 1)]
    log.note(0, ["c", "c"])  # count 4, error 1
    assert log.top(9) == [(0, "a", 3), (0, "c", 3)]
    log.note(0, ["d"])  # a has the smallest count now: 3, so d has 4, error 3
    assert log.top(9) == [(0, "c", 3), (0, "d", 1)]
    assert log.top(1) == [(0, "c", 3)]
    assert log.top(0) == []


def test_the_same_key_of_two_tables_is_two_keys() -> None:
    log = AccessLog(4)
    log.note(1, [7, 7])
    log.note(2, [7])
    assert log.top(9) == [(1, 7, 2), (2, 7, 1)]


@settings(max_examples=150, deadline=None)
@given(noted=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12)), max_size=90), counters=st.integers(6, 10))
def test_counts_are_within_the_bounds_of_the_paper(noted: list[tuple[int, int]], counters: int) -> None:
    log = AccessLog(counters)  # fewer notes than would halve
    for table, key in noted:
        log.note(table, [key])
        log.check()
    true = Counter(noted)
    entries = log.top(counters)
    for table, key, weight in entries:
        error = log._errors.get((table, key), 0)
        assert weight <= true[table, key] <= weight + error  # never too small, too large by no more than its error
        assert error <= len(noted) / counters
    counted = {(table, key) for table, key, _ in entries}
    assert {named for named, times in true.items() if times > len(noted) / counters} <= counted
    assert len(log) == min(counters, len(true))


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 60)), max_size=60), counters=st.integers(1, 5))
def test_halving_keeps_the_invariants(steps: list[tuple[int, int]], counters: int) -> None:
    log = AccessLog(counters)
    for key, times in steps:
        log.note(0, [key] * times)
        log.check()
        weights = [weight for _, _, weight in log.top(counters)]
        assert weights == sorted(weights, reverse=True)
        assert all(weight > 0 for weight in weights)


def test_what_was_hot_gives_way() -> None:
    log = AccessLog(4)
    log.note(0, ["old"] * (HALVE_AFTER * 4 - 1))
    assert log.top(1) == [(0, "old", 63)]
    log.note(0, ["new"])  # the 64th: all are halved, and what comes to nothing goes
    assert log.top(9) == [(0, "old", 31)]
    log.note(0, ["new"] * 63)
    assert log.top(9) == [(0, "new", 63), (0, "old", 31)]
    for _ in range(6):
        log.note(0, ["new"] * 64)
    assert [key for _, key, _ in log.top(9)] == ["new"]
    log.check()


@pytest.mark.parametrize("seed", range(3))
def test_the_hot_keys_of_a_skewed_stream_are_found(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    log = AccessLog(256)
    hot = rng.sample(range(100_000), 50)
    for _ in range(300):
        log.note(0, [rng.choice(hot) if rng.random() < 0.5 else rng.randrange(100_000) for _ in range(32)])
    log.check()
    found = {key for _, key, _ in log.top(50)}
    assert len(found & set(hot)) >= 48


@pytest.mark.parametrize(("keys", "most", "each"), [(100, 10, 10), (101, 10, 11), (7, 10, 1), (10, 10, 1), (1, 1, 1)])
def test_every_key_has_its_turn_in_samples(keys: int, most: int, each: int) -> None:
    log = AccessLog(256)
    for sample in range(each):
        before = sum(weight for _, _, weight in log.top(256))
        log.note_some(0, dict.fromkeys(range(keys)), most)
        assert sum(weight for _, _, weight in log.top(256)) - before <= most, sample
    assert sorted(log.top(256)) == [(0, key, 1) for key in range(keys)]


def test_a_sample_of_nothing_is_nothing() -> None:
    log = AccessLog(4)
    log.note_some(0, {}, 10)
    log.note_some(0, {1: None}, 0)
    assert log.top(4) == []


@pytest.mark.parametrize("key", ["x" * KEY_BYTES, 2**64, None, b"raw", "\ud800", (1, (2,)), (1, None), frozenset()])
def test_what_can_be_no_key_or_is_too_long_is_not_counted(key: Any) -> None:
    log = AccessLog(4)
    log.note(0, [1, key, 2, key])
    assert log.top(9) == [(0, 1, 1), (0, 2, 1)]


keys = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.floats(allow_nan=False),
    st.booleans(),
    st.datetimes(timezones=st.just(UTC)),
    st.tuples(st.integers(0, 9), st.text("abc", max_size=3)),
)


@settings(max_examples=80, deadline=None)
@given(noted=st.lists(st.tuples(st.integers(0, 999), keys), max_size=40))
def test_a_dump_comes_back(tmp_path_factory: Any, noted: list[tuple[int, Any]]) -> None:
    log = AccessLog(64)
    for table, key in noted:
        log.note(table, [key])
    path = tmp_path_factory.mktemp("log") / "access"
    entries = log.top(64)
    write_access_log(path, 3, entries)
    found, reason = read_access_log(path, 3)
    assert (found, reason) == (entries, None)
    assert [type(key) for _, key, _ in found] == [type(key) for _, key, _ in entries]
    resumed = AccessLog(64)
    resumed.load(found)
    resumed.check()
    assert resumed.top(64) == entries


def test_loading_adds_to_what_is_there() -> None:
    log = AccessLog(2)
    log.note(0, ["a"])
    log.load([(0, "a", 5), (0, "b", 2), (0, "c", 1)])
    log.check()
    assert log.top(9) == [(0, "a", 6), (0, "c", 1)]


def test_no_file_is_no_keys_and_no_reason(tmp_path: Path) -> None:
    assert read_access_log(tmp_path / "access", 0) == ([], None)


def test_every_flipped_bit_and_every_cut_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "access"
    write_access_log(path, 3, [(1, (5, "b"), 7)])
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(len(whole))] + [whole + b"\0"]
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for data in damaged:
        path.write_bytes(data)
        entries, reason = read_access_log(path, 3)
        assert entries == []
        assert reason
    path.write_bytes(whole)
    assert read_access_log(path, 4)[1] == f"{path} offset 12: belongs to partition 3, not to 4"


@pytest.mark.parametrize(
    ("count", "payload", "reason"),
    [
        (1, b"\x90", "0 keys where 1 are due"),
        (1, b"\x91\x93\xff\x01\x01", "key 1 of table -1"),
        (1, b"\x91\x93\x00\x01\x00", "with weight 0"),
        (1, b"\x91\x93\x00\xc0\x01", "key None"),
        (1, b"\x91\x93\x00\x91\x90\x01", "is none"),
        (1, b"\x91\x93\x00\x80\x01", "key {}"),
        (1, b"\x91\x92\x00\x01", "no access log"),
        (1, b"\x91\x93\x00\xa1\xff\x01", "no access log"),
        (1, b"\x91" * 5000 + b"\x90", "no access log"),
        (1, b"\x91\x93\x00" + b"\x91" * 5000 + b"\x90\x01", "no access log"),
        (1, b"\xc1", "no access log"),
    ],
)
def test_a_whole_file_with_something_else_in_it_says_why(
    tmp_path: Path, count: int, payload: bytes, reason: str
) -> None:
    path = tmp_path / "access"
    write_hint(path, b"voltpyAL", 0, count, payload)
    entries, found = read_access_log(path, 0)
    assert entries == []
    assert found is not None
    assert reason in found


def test_a_dump_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partitions.access_log.MAX_ENTRIES", 2)
    entries: list[Entry] = [(0, "x" * (KEY_BYTES - 2), 3), (0, "b", 2), (0, "c", 1)]
    write_access_log(tmp_path / "access", 0, entries)
    assert read_access_log(tmp_path / "access", 0) == (entries[:2], None)
    with pytest.raises(ValueError, match="at least one counter"):
        AccessLog(0)
