"""A packed tree against a sorted list."""

from __future__ import annotations

import random
from array import array
from bisect import bisect_left, bisect_right
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from partitions import packed_tree
from partitions.packed_tree import PackedTree
from voltpy.errors import Corruption

BYTES = st.binary(max_size=4).map(lambda key: key.replace(b"\xff", b"\xfe"))
KEYS = (
    BYTES
    | BYTES.map(lambda key: b"customer-of-the-company-" + key)
    | st.integers(0, 999).map(lambda number: b"customer-%09d" % number)
    | st.sampled_from([b"", b"\0", b"a", b"a\0", b"a\0\0", b"a" * 300, b"a" * 300 + b"b", b"\xfe" * 9])
)
ENTRIES = st.integers(-(2**63), 2**63 - 1)


class TreeMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.expected: dict[bytes, int] = {}

    @initialize()
    def begin(self) -> None:
        self.tree = PackedTree()

    def between(self, low: bytes | None, high: bytes | None, low_excluded: bool, high_excluded: bool) -> Any:
        keys = sorted(self.expected)
        first = 0 if low is None else (bisect_right if low_excluded else bisect_left)(keys, low)
        last = len(keys) if high is None else (bisect_left if high_excluded else bisect_right)(keys, high)
        return [(key, self.expected[key]) for key in keys[first:last]]

    @rule(pairs=st.lists(st.tuples(KEYS, ENTRIES), max_size=8))
    def insert(self, pairs: list[tuple[bytes, int]]) -> None:
        added = []
        for key, entry in pairs:
            added.append(int(key not in self.expected))
            self.expected.setdefault(key, entry)
        assert self.tree.insert_all([key for key, _ in pairs], [entry for _, entry in pairs]) == added

    @rule(seed=st.integers(0, 99), count=st.integers(1, 60), prefix=st.sampled_from([b"", b"customer-", b"a" * 200]))
    def insert_many(self, seed: int, count: int, prefix: bytes) -> None:
        rng = random.Random(seed)
        for _ in range(count):
            key = prefix + b"%06d" % rng.randrange(10**6)
            assert self.tree.insert(key, count) == (key not in self.expected)
            self.expected.setdefault(key, count)

    @rule(numbers=st.sets(st.integers(0, 999), max_size=60), prefix=st.sampled_from([b"", b"\xfe", b"z" * 90]))
    def extend(self, numbers: set[int], prefix: bytes) -> None:
        last = max(self.expected, default=b"")
        keys = [last + prefix + b"\1%03d" % number for number in sorted(numbers)]
        if len(last) < 600:
            self.tree.extend(keys, array("q", range(len(keys))))
            self.expected |= {key: number for number, key in enumerate(keys)}

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), entry=ENTRIES)
    def give_another_entry(self, data: st.DataObject, entry: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.expected)))
        self.tree[key] = self.expected[key] = entry

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), most=st.sampled_from([1, 5, 200]), backwards=st.booleans())
    def delete(self, data: st.DataObject, most: int, backwards: bool) -> None:
        keys = sorted(self.expected)
        first = data.draw(st.integers(0, len(keys) - 1))
        some = keys[first : first + most]
        for key in reversed(some) if backwards else some:
            del self.tree[key]
            del self.expected[key]

    @rule(key=KEYS)
    def a_key_that_is_not_there_is_refused(self, key: bytes) -> None:
        assert self.tree.get(key, -7) == self.expected.get(key, -7)
        if key not in self.expected:
            with pytest.raises(KeyError):
                del self.tree[key]
            with pytest.raises(KeyError):
                self.tree[key] = 1

    @rule(data=st.data(), low_excluded=st.booleans(), high_excluded=st.booleans())
    def ranges_are_in_order_both_ways(self, data: st.DataObject, low_excluded: bool, high_excluded: bool) -> None:
        bounds = st.none() | KEYS | KEYS.map(lambda key: key + b"\xff")
        if self.expected:
            bounds |= st.sampled_from(sorted(self.expected))
        between = data.draw(bounds), data.draw(bounds), low_excluded, high_excluded
        self.same(between)

    @rule(beginning=KEYS)
    def keys_that_begin_with_others(self, beginning: bytes) -> None:
        self.same((beginning, beginning + b"\xff", False, False))
        found = [key for key, _ in self.tree.iteritems(beginning, beginning + b"\xff")]
        assert found == sorted(key for key in self.expected if key.startswith(beginning))

    def same(self, between: tuple[bytes | None, bytes | None, bool, bool]) -> None:
        expected = self.between(*between)
        assert list(self.tree.iteritems(*between)) == expected
        assert list(self.tree.reversed_items(*between)) == expected[::-1]
        assert list(self.tree.itervalues(*between)) == [entry for _, entry in expected]
        assert self.tree.count(*between) == len(expected)

    @invariant()
    def every_key_is_found(self) -> None:
        if hasattr(self, "tree"):
            for key, entry in self.expected.items():
                assert self.tree.get(key, -7) == entry
            assert self.tree.measured_bytes() <= 2 * self.tree.size_bytes  # arrays that got shorter keep their room

    @rule()
    def check(self) -> None:
        self.tree.check("i")
        assert list(self.tree.iteritems()) == sorted(self.expected.items())


@pytest.mark.parametrize("leaf_keys", [4, 96])
def test_a_packed_tree_against_a_sorted_list(leaf_keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_tree, "LEAF_KEYS", leaf_keys)
    monkeypatch.setattr(packed_tree, "_FEW_KEYS", leaf_keys // 4 + 1)
    monkeypatch.setattr(packed_tree, "_FULL_KEYS", leaf_keys * 3 // 4)
    run_state_machine_as_test(TreeMachine, settings=settings(max_examples=40, stateful_step_count=20, deadline=None))  # type: ignore[no-untyped-call]


def test_leaves_go_when_their_keys_go() -> None:
    tree, least = PackedTree(), PackedTree().size_bytes
    keys = [b"%09d" % number for number in range(20_000)]
    for order in (keys, keys[::-1], random.Random(1).sample(keys, len(keys))):
        tree.insert_all(keys, range(len(keys)))
        assert tree.size_bytes > 100 * least
        for key in order:
            del tree[key]
        tree.check("i")
        assert tree.size_bytes == least


def test_a_queue_stays_as_small_as_what_is_in_it() -> None:
    tree = PackedTree()
    for number in range(30_000):
        tree.insert(b"%09d" % number, number)
        if number >= 1000:
            del tree[b"%09d" % (number - 1000)]
    tree.check("i")
    assert tree.size_bytes < 40_000


def test_long_keys_have_leaves_of_few() -> None:
    tree = PackedTree()
    keys = [b"%b%d" % (b"x" * length, place) for length in (10_000, 3) for place in range(200)]
    tree.insert_all(random.Random(1).sample(keys, len(keys)), range(len(keys)))
    tree.check("i")
    assert [key for key, _ in tree.iteritems()] == sorted(keys)
    assert tree.size_bytes < 2 * sum(map(len, keys))


def test_keys_that_are_not_in_order_are_no_run() -> None:
    tree = PackedTree()
    tree.extend([b"b", b"d"], array("q", [1, 2]))
    for keys in ([b"c"], [b"d"], [b"f", b"e"], [b"e", b"e"], [b"e\xff"]):
        with pytest.raises(ValueError, match="not in order"):
            tree.extend(keys, array("q", range(len(keys))))
    tree.check("i")
    assert list(tree.iteritems()) == [(b"b", 1), (b"d", 2)]


def test_what_is_damaged_is_found() -> None:
    def filled() -> Any:
        tree = PackedTree()
        tree.insert_all([b"key %06d" % number for number in range(500)], range(500))
        tree.check("i")
        return tree

    for damage in (
        lambda tree: tree._leaves[3].entries.pop(),
        lambda tree: tree._fences.reverse(),
        lambda tree: tree._leaves.reverse(),
        lambda tree: setattr(tree._leaves[2], "keys", tree._leaves[2].keys.replace(b"\xff", b"\xff1", 1)),
        lambda tree: setattr(tree._leaves[2], "skip", 0),
        lambda tree: setattr(tree, "_key_count", 1),
    ):
        tree = filled()
        damage(tree)
        with pytest.raises(Corruption, match="index i:"):
            tree.check("i")
