"""A table against a dict: in and between batches, with undo, ageing of decoded rows, and every kind of key."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from partitions import index as index_module
from partitions.page import PAGE_BYTES
from partitions.store import Store
from partitions.table import Table
from partitions.wal import Record
from voltpy.errors import ConstraintViolation, Corruption, DuplicateKey, ReadOnly, WrongPartition
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.messages import TableChanges
from voltpy.not_here import WHOLE_TABLE, NotHere
from voltpy.sql.ddl import parse_schema

SCHEMA = parse_schema(
    """
    CREATE TABLE ints (id INT PRIMARY KEY, n INT NOT NULL, city STRING);
    PARTITION TABLE ints ON COLUMN id;
    CREATE TABLE strings (code STRING PRIMARY KEY, n INT NOT NULL, city STRING);
    PARTITION TABLE strings ON COLUMN code;
    CREATE TABLE pairs (owner INT, item STRING, n INT NOT NULL, city STRING, PRIMARY KEY (item, owner));
    PARTITION TABLE pairs ON COLUMN owner;
    CREATE TABLE floats (f FLOAT PRIMARY KEY, n INT NOT NULL, city STRING);
    CREATE TABLE moments (at TIMESTAMP PRIMARY KEY, n INT NOT NULL, city STRING);
    CREATE TABLE hidden (owner INT NOT NULL, n INT NOT NULL, city STRING);
    PARTITION TABLE hidden ON COLUMN owner;
    CREATE TABLE sums (id INT PRIMARY KEY, x FLOAT);
    """
)
KEYED = ["ints", "strings", "pairs", "floats", "moments"]

# What a key is made of: (as it is stored, the columns that say it).
KEYS: dict[str, Callable[[int], tuple[Any, dict[str, Any]]]] = {
    "ints": lambda i: (i - 5, {"id": i - 5}),
    "strings": lambda i: (f"s{i}", {"code": f"s{i}"}),
    "pairs": lambda i: ((f"i{i % 3}", i // 3), {"item": f"i{i % 3}", "owner": i // 3}),
    "floats": lambda i: (i / 4, {"f": i / 4}),
    "moments": lambda i: (datetime.fromtimestamp(i, UTC), {"at": datetime.fromtimestamp(i, UTC)}),
}


def store_of(partition: int = 0, partitions: int = 1, memory_bytes: int = 256 << 20) -> Store:
    store = Store(SCHEMA, partition, partitions, memory_bytes)
    keys = iter(range(1, 1 << 40)).__next__
    for table in store.tables:
        table.hide_keys_with(keys)
    store.changes()
    store.apply()
    return store


@pytest.fixture
def store() -> Store:
    return store_of()


def as_tuple(row: Any) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in row.__struct_fields__)


def keep_decoded(table: Table, key: Any) -> None:
    """A row that is asked for again is worth keeping."""
    table.get(key)
    table.get(key)


class Model:
    """One table beside a dict; each step does the same to both and compares everything that can be read."""

    def __init__(self, store: Store, name: str, rng: random.Random) -> None:
        self.store = store
        self.table: Table = store.by_name[name]
        self.name = name
        self.rng = rng
        self.rows: dict[Any, tuple[Any, ...]] = {}
        self.key_of = self.table._key_of

    def a_key(self) -> tuple[Any, dict[str, Any]]:
        return KEYS[self.name](self.rng.randrange(24))

    def step(self) -> None:
        key, columns = self.a_key()
        n, city = self.rng.randrange(5), self.rng.choice([None, "Oslo", "Bergen" * self.rng.randrange(1, 300)])
        what = self.rng.choice(["get", "insert", "insert", "update", "update", "upsert", "delete"])
        if what == "get":
            row = self.table.get(key)
            assert (None if row is None else as_tuple(row)) == self.rows.get(key)
        elif what == "insert" and key in self.rows:
            with pytest.raises(DuplicateKey, match=f"table {self.name}: a row with key"):
                self.table.insert(**columns, n=n, city=city)
        elif what in ("insert", "upsert"):
            row = getattr(self.table, what)(**columns, n=n, city=city)
            assert self.key_of(row) == key
            self.rows[key] = as_tuple(row)
        elif what == "update" and key in self.rows:
            row = self.table.update(key, n=n, city=city)
            assert (row.n, row.city) == (n, city)
            self.rows[key] = as_tuple(row)
        elif what == "update":
            with pytest.raises(KeyError, match=f"table {self.name} has no row"):
                self.table.update(key, n=n)
        else:
            assert self.table.delete(key) == (self.rows.pop(key, None) is not None)

    def compare(self) -> None:
        table, rows = self.table, self.rows
        assert table.count() == len(rows)
        assert sorted(map(as_tuple, table.scan()), key=repr) == sorted(rows.values(), key=repr)
        n = self.rng.randrange(5)
        at = table._format.struct.__struct_fields__.index("n")
        expected = [row for row in rows.values() if row[at] == n]
        assert sorted(map(as_tuple, table.where(n=n)), key=repr) == sorted(expected, key=repr)
        assert len(table.where(n=n, city=None)) == len([row for row in expected if row[-1] is None])
        low, high = self.a_key()[0], self.a_key()[0]
        assert [as_tuple(row) for row in table.range(low, high)] == [rows[k] for k in sorted(rows) if low <= k < high]
        key, columns = self.a_key()
        assert [as_tuple(row) for row in table.where(**columns)] == ([rows[key]] if key in rows else [])

    def seal(self) -> list[TableChanges]:
        changes = self.store.changes()
        self.store.apply()
        self.store.check()
        return changes


@pytest.mark.parametrize("name", KEYED)
@pytest.mark.parametrize("seed", range(3))
def test_every_method_equals_the_dict(name: str, seed: int, store: Store) -> None:
    model = Model(store, name, random.Random(f"{name}{seed}"))
    copy = store_of()
    for _ in range(60):
        for _ in range(model.rng.randrange(12)):
            model.step()
            model.compare()
        committed = dict(model.rows)
        mark = len(store.undo_log)
        for _ in range(model.rng.randrange(8)):
            model.step()
        store.undo_to(mark)
        model.rows = committed
        model.compare()
        model.table._rows_limit = model.rng.choice([0, 3, 1000])
        changes = model.seal()
        model.compare()
        copy.replay(Record(b"\x90", changes), 1)  # type: ignore[arg-type]  # Raw only on the wire
        if model.rng.random() < 0.3:
            copy.apply_turn()
            copy.check()
    copy.apply_turn()
    copy.check()
    assert sorted(map(repr, copy.by_name[name].scan())) == sorted(map(repr, model.table.scan()))


@pytest.mark.parametrize("seed", range(3))
def test_a_whole_batch_is_undone(seed: int, store: Store) -> None:
    models = [Model(store, name, random.Random(f"{name}{seed}")) for name in KEYED]
    for _ in range(25):
        for model in models:
            for _ in range(6):
                model.step()
            model.seal()
        before = [dict(model.rows) for model in models]
        pages = store.metrics()["page_bytes"]
        for _ in range(12):
            models[0].rng.choice(models).step()
        store.undo_batch()
        for model, rows in zip(models, before, strict=True):
            model.rows = rows
            model.compare()
        assert store.changes() == []
        assert store.metrics()["page_bytes"] == pages
        store.check()


def test_hashes_that_collide_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "xxh3_64_intdigest", lambda packed: len(packed) % 2)
    for name in ("strings", "pairs"):
        test_every_method_equals_the_dict(name, 7, store_of())


# ---------------------------------------------------------------------------------------------------- ageing


def test_decoded_rows_are_bounded_and_old_ones_are_found_again(store: Store) -> None:
    ints = store.by_name["ints"]
    for first in range(0, 3000, 100):
        for i in range(first, first + 100):
            ints.insert(i, i)
            keep_decoded(ints, i)
        store.changes()
        store.apply()
        ints._rows_limit = 150
        store.check()
    assert ints.decoded_rows < 900
    assert len(ints._rows) + len(ints._old) <= 500
    assert [ints.get(i).n for i in range(3000)] == list(range(3000))
    assert ints.get(5000) is None
    ints.update(7, n=-7)
    store.changes()
    store.apply()  # everything is old now
    store.changes()
    store.apply()
    assert ints.get(7).n == -7
    assert ints.get(5000) is None
    store.check()


def test_how_many_rows_are_kept_decoded_follows_from_what_they_take(store: Store) -> None:
    """Before there is one, nobody knows: a guess of their size let the first generation take five times its share."""
    strings = store.by_name["strings"]
    for i in range(4000):
        strings.insert(f"{i:04d}", i, "x" * 2000)
    store.changes()
    store.apply()
    strings.limit_decoded(1 << 20)
    most = 0
    for first in range(0, 4000, 50):
        for i in range(first, first + 50):
            keep_decoded(strings, f"{i:04d}")
        store.changes()
        store.apply()
        most = max(most, strings.decoded_bytes)
    assert 1 << 20 < most < 2.2 * (1 << 20)


def test_a_tombstone_that_aged_does_not_hide_a_new_row(store: Store) -> None:
    ints = store.by_name["ints"]
    ints._rows_limit = 0
    ints.insert(1, 1)
    store.apply()
    ints.delete(1)
    store.apply()
    ints._rows_limit = 0
    assert ints.get(1) is None
    store.apply()
    ints.insert(1, 2)
    assert ints.get(1).n == 2
    store.apply()
    assert ints.get(1).n == 2
    store.check()


# ---------------------------------------------------------------------------------------------------- hidden keys


def test_rows_with_hidden_keys_equal_a_dict(store: Store) -> None:
    rng = random.Random(4)
    hidden = store.by_name["hidden"]
    rows: dict[int, tuple[Any, ...]] = {}
    for _ in range(60):
        for _ in range(rng.randrange(10)):
            what = rng.random()
            if what < 0.5 or not rows:
                row = rng.choice([hidden.insert, hidden.upsert])(rng.randrange(9), rng.randrange(5), city="Oslo")
                rows[row.rowid] = as_tuple(row)
            elif what < 0.7:
                key = rng.choice(list(rows))
                rows[key] = as_tuple(hidden.update(key, n=-1))
            elif what < 0.85:
                key = rng.choice(list(rows))
                assert hidden.delete(key)
                del rows[key]
            else:
                mark, key = len(store.undo_log), rng.choice(list(rows))
                new = hidden.insert(1, 1, None)
                hidden.delete(new.rowid)
                hidden.insert(1, 2, None)
                hidden.delete(key)
                store.undo_to(mark)
                assert hidden.get(new.rowid) is None
            assert hidden.count() == len(rows)
            assert sorted(map(as_tuple, hidden.scan())) == sorted(rows.values())
            if rows:
                key = rng.choice(list(rows))
                assert as_tuple(hidden.get(key)) == rows[key]
                assert [r.rowid for r in hidden.range(0, 1 << 40)] == sorted(rows)
        hidden._rows_limit = rng.choice([0, 1000])
        store.changes()
        store.apply()
        store.check()
    assert hidden.get(12345678) is None


# ---------------------------------------------------------------------------------------------------- keys of others


def of_partition(partition: int, make: Callable[[int], Any] = lambda i: i) -> Iterator[Any]:
    owners = slot_owners(2)
    return (make(i) for i in range(1, 10_000) if owners[hash_slot(make(i))] == partition)


def test_a_key_of_another_partition_is_never_an_empty_answer() -> None:
    store = store_of(partition=0, partitions=2)
    ints, strings, pairs = (store.by_name[name] for name in ("ints", "strings", "pairs"))
    here, there = next(of_partition(0)), next(of_partition(1))
    text = next(of_partition(1, lambda i: f"k{i}"))
    touches: list[Callable[[], Any]] = [
        lambda: ints.get(there), lambda: ints.insert(there, 1), lambda: ints.upsert(there, 1),
        lambda: ints.update(there, n=1), lambda: ints.delete(there), lambda: ints.where(id=there),
        lambda: ints.where(id=there, n=5), lambda: strings.get(text), lambda: strings.insert(text, 1),
        lambda: pairs.get(("x", there)), lambda: pairs.insert(there, "x", 1), lambda: pairs.delete(("x", there)),
        lambda: pairs.where(owner=there), lambda: pairs.where(owner=there, n=1),
    ]  # fmt: skip
    for _ in range(2):  # a refusal must not be remembered as an absence
        for touch in touches:
            with pytest.raises(WrongPartition, match="does not live in partition 0"):
                touch()
    assert ints.get(here) is None
    assert pairs.get(("x", here)) is None
    assert pairs.where(owner=here) == []
    ints.insert(here, 1)
    assert store.undo_log == [(ints, here, None)]


def test_rows_with_hidden_keys_live_where_their_partition_column_says() -> None:
    store = store_of(partition=0, partitions=2)
    hidden = store.by_name["hidden"]
    here, also_here = list(of_partition(0))[:2]
    there = next(of_partition(1))
    for add in (hidden.insert, hidden.upsert):
        with pytest.raises(WrongPartition, match=f"table hidden: key {there}"):
            add(there, 1, None)
    row = hidden.insert(here, 1, None)
    with pytest.raises(WrongPartition, match=f"table hidden: key {there}"):
        hidden.update(row.rowid, owner=there)
    assert hidden.update(row.rowid, owner=also_here).owner == also_here
    with pytest.raises(WrongPartition):
        hidden.where(owner=there)
    assert [r.rowid for r in hidden.where(owner=also_here)] == [row.rowid]
    store.changes()
    store.apply()
    store.check()


def test_a_replicated_table_has_every_key_in_every_partition() -> None:
    for partition in range(3):
        sums = store_of(partition, 3).by_name["sums"]
        for key in range(50):
            assert sums.get(key) is None
            sums.insert(key, 1.0)
        assert sums.count() == 50


# ------------------------------------------------------------------------------------------------- keys of a wrong type


@pytest.mark.parametrize(
    ("name", "key"),
    [("ints", "1"), ("ints", 1.5), ("ints", None), ("ints", False), ("ints", 0.0), ("ints", (1,)), ("strings", 1),
     ("strings", b"s1"), ("strings", None), ("strings", "\ud800"), ("pairs", 1), ("pairs", ("i1",)),
     ("pairs", (0, "i0")),
     ("pairs", ("i0", "0")), ("pairs", ("i0", 0, 0)), ("pairs", None), ("floats", "1.0"), ("floats", float("nan")),
     ("floats", None), ("moments", "1970-01-01T00:00:00Z"), ("moments", 0), ("moments", datetime(1970, 1, 1))],
)  # fmt: skip
def test_a_key_of_the_wrong_type_is_an_error_not_an_absence(name: str, key: Any, store: Store) -> None:
    table = store.by_name[name]
    for touch in (table.get, table.delete, lambda k: table.update(k, n=1)):
        with pytest.raises(ConstraintViolation, match=f"table {name}: .* is not a key"):
            touch(key)
    with pytest.raises(ConstraintViolation, match="is not a key"):
        list(table.range(key, key))


def test_an_unhashable_key_is_an_error(store: Store) -> None:
    with pytest.raises(TypeError, match="unhashable"):
        store.by_name["pairs"].get(["i1", 1])


@pytest.mark.parametrize(
    ("name", "key", "same"),
    [("ints", 1, True), ("ints", 1, 1.0), ("floats", 1.0, 1), ("floats", 0.0, -0.0), ("pairs", ("a", 1), ("a", True)),
     ("pairs", ("a", 1), ("a", 1.0))],
)  # fmt: skip
@pytest.mark.parametrize("decoded", [True, False])
def test_an_equal_key_of_another_type_harms_nothing(
    name: str, key: Any, same: Any, decoded: bool, store: Store
) -> None:
    """Python calls True, 1 and 1.0 equal, so the decoded rows do too; what goes into the WAL must be the row's own."""
    table = store.by_name[name]
    columns = dict(zip(table.schema.primary_key, key if isinstance(key, tuple) else (key,), strict=True))

    def begin() -> None:
        table._rows_limit = 1000 if decoded else 0
        store.changes()
        store.apply()
        if decoded:
            keep_decoded(table, key)
        store.check()

    copy = store_of()
    table.insert(**columns, n=1)
    copy.replay(Record(b"\x90", store.changes()), 1)  # type: ignore[arg-type]  # Raw only on the wire
    begin()
    for touch in (lambda: table.update(same, n=2), lambda: table.delete(same)):
        try:
            touch()
        except ConstraintViolation:
            assert not decoded
            table.update(key, n=2)
        copy.replay(Record(b"\x90", store.changes()), 2)  # type: ignore[arg-type]  # Raw only on the wire
        copy.apply_turn()
        copy.check()
        begin()
        assert [row.n for row in copy.by_name[name].scan()] == [row.n for row in table.scan()]


def test_equal_floats_are_one_row(store: Store) -> None:
    floats = store.by_name["floats"]
    for limit in (1000, 0):
        floats._rows_limit = limit
        floats.upsert(f=0.0, n=1)
        floats.upsert(f=1, n=1)
        store.changes()
        store.apply()
        for same in (0.0, -0.0, 0):
            assert floats.get(same).n == 1
            with pytest.raises(DuplicateKey):
                floats.insert(f=same, n=2)
            store.changes()
            store.apply()
        assert floats.get(1).n == floats.get(1.0).n == 1
        assert floats.count() == 2
        store.check()
    with pytest.raises(ConstraintViolation):
        floats.insert(f=float("nan"), n=1)


def test_a_primary_key_cannot_be_changed(store: Store) -> None:
    store.by_name["ints"].insert(1, 1)
    store.by_name["pairs"].insert(1, "a", 1)
    with pytest.raises(ConstraintViolation, match="table ints: a primary key can't be changed"):
        store.by_name["ints"].update(1, id=2)
    with pytest.raises(ConstraintViolation, match="table pairs: a primary key can't be changed"):
        store.by_name["pairs"].update(("a", 1), owner=2)
    hidden = store.by_name["hidden"].insert(1, 1)
    with pytest.raises(ConstraintViolation, match="table hidden: a primary key can't be changed"):
        store.by_name["hidden"].update(hidden.rowid, rowid=5)


def test_unknown_columns_are_named_with_the_table(store: Store) -> None:
    ints = store.by_name["ints"]
    ints.insert(1, 1)
    with pytest.raises(TypeError, match=r"ints.*nope"):
        ints.update(1, nope=1)
    with pytest.raises(TypeError, match="table ints has no column nope"):
        ints.where(nope=1)
    with pytest.raises(TypeError, match=r"ints\.insert.*nope"):
        ints.insert(2, 2, nope=1)
    assert ints.count() == 1


def test_a_refused_update_leaves_the_row_as_it_was(store: Store) -> None:
    ints = store.by_name["ints"]
    before = ints.insert(1, 1, "Oslo")
    store.apply()
    for changes in ({"n": None}, {"n": True}, {"n": 2**63}, {"city": "\ud800"}, {"city": "x" * 2_000_000}, {"n": "1"}):
        with pytest.raises(ConstraintViolation, match="table ints"):
            ints.update(1, **changes)
        assert ints.get(1) == before
    assert store.undo_log == []
    assert not ints.changed
    assert ints.update(1, city=None).city is None


def test_a_scan_sees_what_the_loop_over_it_changes(store: Store) -> None:
    ints = store.by_name["ints"]
    for i in range(10):
        ints.insert(i, i)
    store.apply()
    for i in range(10, 20):
        ints.insert(i, i)
    seen = []
    for row in ints.scan():
        seen.append(row.id)
        if row.id % 2 == 0:
            ints.delete(row.id + 1)
        ints.upsert(100 + row.id, 0)
    assert [i for i in seen if i < 100] == list(range(0, 20, 2))
    assert ints.count() == len(list(ints.scan()))


# --------------------------------------------------------------------------------------------------- keys that are away


def test_a_key_that_is_away_is_missed_by_every_touch(store: Store) -> None:
    ints = store.by_name["ints"]
    for i in range(4):
        ints.insert(i, i)
    store.changes()
    store.apply()
    ints.get(2)
    ints.send_all_away([2])
    ints.send_all_away([99])  # absent keys can be away too
    by_key: list[Callable[[], Any]] = [
        lambda: ints.get(2), lambda: ints.insert(2, 0), lambda: ints.upsert(2, 0), lambda: ints.update(2, n=0),
        lambda: ints.delete(2), lambda: ints.where(id=2),
    ]  # fmt: skip
    for touch in by_key:
        with pytest.raises(NotHere):
            touch()
    assert set(store.misses) == {(ints.number, 2)}
    assert len(store.undo_log) == len(by_key)  # each of them poisons
    store.undo_to(0)
    store.misses.clear()
    with pytest.raises(NotHere):
        ints.insert(99, 1)
    assert store.misses == [(ints.number, 99)]
    store.misses.clear()
    for touch in (
        ints.count, lambda: list(ints.scan()), lambda: ints.where(n=1), lambda: list(ints.range(0, 2)),
        lambda: ints.where(),
    ):  # fmt: skip
        with pytest.raises(NotHere):
            touch()
        assert store.misses == [(ints.number, WHOLE_TABLE)]
        store.misses.clear()
    assert ints.get(1).n == 1
    store.undo_to(0)
    ints.bring_all_back([2])
    ints.bring_all_back([99])
    assert (ints.get(2).n, ints.get(99), ints.count()) == (2, None, 4)
    store.check()


def test_a_changed_key_may_leave_and_return_within_a_batch(store: Store) -> None:
    ints = store.by_name["ints"]
    ints.insert(1, 1)
    store.changes()
    store.apply()
    ints.update(1, n=2)
    ints.insert(5, 5)
    ints.send_all_away([1])
    ints.send_all_away([5])
    with pytest.raises(NotHere):
        ints.get(5)
    ints.bring_all_back([1])
    assert ints.get(1).n == 2
    store.undo_batch()  # with 5 still away
    store.misses.clear()
    with pytest.raises(NotHere):
        ints.get(5)
    store.undo_to(0)
    store.misses.clear()
    ints.bring_all_back([5])
    assert (ints.get(1).n, ints.get(5), ints.count()) == (1, None, 1)
    store.check()


# ---------------------------------------------------------------------------------------------------- no room


def filled(frames: int) -> tuple[Store, int]:
    """A store of so many pages, filled until it refuses; the number of rows."""
    store = store_of(memory_bytes=frames * PAGE_BYTES)
    ints = store.by_name["ints"]
    for i in range(100_000):
        ints.insert(i, i, "x" * 900)
        try:
            store.changes()
        except ReadOnly:
            store.undo_batch()
            return store, i
        store.apply()
    raise AssertionError("it is never full")


def test_a_row_that_is_new_in_the_batch_may_leave_within_it(store: Store) -> None:
    ints = store.by_name["ints"]
    ints.insert(1, 10)
    assert ints.get(2) is None
    ints.send_all_away([1])
    ints.send_all_away([2])
    for write, key in ((ints.upsert, 1), (ints.insert, 1), (ints.upsert, 2)):
        with pytest.raises(NotHere):
            write(key, 11)
    store.undo_to(1)
    store.misses.clear()
    ints.bring_all_back([1, 2])
    assert (ints.get(1).n, ints.get(2)) == (10, None)


@pytest.mark.parametrize("name", ["ints", "strings"])
@pytest.mark.parametrize("is_read_before", [False, True])
@pytest.mark.parametrize("method", ["update", "upsert"])
def test_the_first_change_of_a_stored_row_is_undone_without_a_trace(
    name: str, is_read_before: bool, method: str, store: Store
) -> None:
    table = store.by_name[name]
    keys = [KEYS[name](i)[0] for i in range(4)]
    for key in keys:
        table.insert(key, 1)
    store.apply()

    def change(key: Any, n: int) -> None:
        if is_read_before:
            assert table.get(key) is not None
        if method == "update":
            table.update(key, n=n)
        else:
            table.upsert(key, n)

    change(keys[0], 2)
    change(keys[0], 3)
    assert table.get(keys[0]).n == 3
    store.undo_to(0)
    assert table.get(keys[0]).n == 1
    assert store.changes() == []
    # What one transaction of a batch has done stays when the next one is undone.
    change(keys[1], 4)
    mark = len(store.undo_log)
    change(keys[1], 5)
    assert table.delete(keys[2])
    change(keys[3], 6)
    store.undo_to(mark)
    assert [table.get(key).n for key in keys] == [1, 4, 1, 1]
    store.changes()
    store.apply()
    store.check()
    assert [table.get(key).n for key in keys] == [1, 4, 1, 1]


def test_a_row_that_was_read_last_is_not_believed_after_others_have_changed_it(store: Store) -> None:
    ints = store.by_name["ints"]
    ints.insert(1, 10)
    store.apply()
    assert ints.get(1).n == 10
    ints.put([1], [b"\x93\x01\x14\xc0"], [])
    store.apply()
    assert ints.update(1, city="Oslo").n == 20
    store.undo_batch()
    assert ints.get(1).n == 20


def test_a_row_that_moves_to_another_page_is_found_there_by_its_next_change(store: Store) -> None:
    ints = store.by_name["ints"]
    for i in range(60):
        ints.insert(i, i, "x" * 120)
    store.apply()
    for length in (1000, 3000, 10, 20_000, 5):
        ints.update(7, city="y" * length)
        store.changes()
        store.apply()
        store.check()
        assert ints.get(7).city == "y" * length
    assert ints.delete(7)
    store.apply()
    store.check()
    assert 7 not in ints._places


def test_pages_to_keep_are_counted_anew_when_a_change_was_undone(store: Store) -> None:
    ints = store.by_name["ints"]
    ints.insert(1, 1)
    ints.insert(2, 2)
    store.apply()
    seen = set()
    for key in (1, 2):
        ints.update(key, n=9)
        seen.add(ints.changed_rows)
        store.undo_to(0)
    assert len(seen) == 2
    store.undo_batch()
    assert ints.changed_rows == 0


def test_full_memory_is_read_only_and_leaves_nothing_half_done() -> None:
    store, rows = filled(40)
    ints, strings = store.by_name["ints"], store.by_name["strings"]
    assert rows > 200
    for _ in range(3):
        for i in range(rows):
            ints.update(i, city="y" * 5000)  # each would have to move
        strings.insert("a", 1, "z" * 100_000)
        with pytest.raises(ReadOnly, match=r"memory is full .*--memory"):
            store.changes()
        store.undo_batch()
        store.check()
        assert ints.count() == rows
        assert strings.get("a") is None
        assert {row.city for row in ints.scan()} == {"x" * 900}


def test_rows_can_be_deleted_when_memory_is_full() -> None:
    store, rows = filled(40)
    ints = store.by_name["ints"]
    for i in range(0, rows, 2):
        ints.delete(i)
    assert len(store.changes()[0].deleted) == (rows + 1) // 2
    store.apply()
    store.check()
    for i in range(rows // 2, rows):
        ints.delete(i)
    store.changes()
    store.apply()
    store.check()
    ints.insert(1_000_000, 1, "there is room again")
    store.changes()
    store.apply()
    store.check()


@pytest.mark.parametrize("seed", range(4))
def test_what_changes_admits_always_fits(seed: int) -> None:
    """Near the limit, with rows of all sizes that grow, shrink and move: `apply` never lacks a page."""
    rng = random.Random(seed)
    store = store_of(memory_bytes=60 * PAGE_BYTES)
    ints = store.by_name["ints"]
    rows: dict[int, str] = {}
    refused = 0
    for _ in range(250):
        before = dict(rows)
        for _ in range(rng.randrange(1, 12)):
            key, city = (
                rng.randrange(200),
                "x" * rng.choice([0, 10, 900, 4070, 4075, 8100, 8150, 20_000, rng.randrange(9000)]),
            )
            if rng.random() < 0.3 and key in rows:
                ints.delete(key)
                del rows[key]
            else:
                ints.upsert(key, 1, city)
                rows[key] = city
        try:
            store.changes()
        except ReadOnly:
            refused += 1
            store.undo_batch()
            rows = before
            for key in rng.sample(list(rows), len(rows) // 4):
                ints.delete(key)
                del rows[key]
            store.changes()
        store.apply()
        store.check()
        assert {row.id: row.city for row in ints.scan()} == rows
    assert refused > 3


# ---------------------------------------------------------------------------------------------------- check, replay


def test_check_sees_what_does_not_agree(store: Store) -> None:
    ints = store.by_name["ints"]
    for i in range(5):
        ints.insert(i, i)
        keep_decoded(ints, i)
    store.apply()
    store.check()
    ints._rows[3] = ints._rows[4]
    with pytest.raises(Corruption, match="key 3 is cached as"):
        store.check()
    ints._rows.clear()
    ints._places[4] = ints._index.find(3, -1)
    with pytest.raises(Corruption, match="key 4 is remembered at another place"):
        store.check()
    ints._places.clear()
    store.check()
    row_id = ints._index.find(4, -1)
    ints._index.remove(4, row_id)
    with pytest.raises(Corruption, match="4 index entries, 5 stored rows"):
        store.check()
    ints._index.extend([44], [row_id])
    with pytest.raises(Corruption, match="indexed under another key"):
        store.check()


def test_not_a_number_is_no_corruption(store: Store) -> None:
    store.by_name["sums"].insert(1, float("nan"))
    store.apply()
    store.check()


def test_replay_twice_is_replay_once(store: Store) -> None:
    model = Model(store, "ints", random.Random(9))
    batches = []
    for _ in range(40):
        for _ in range(6):
            model.step()
        batches.append(model.seal())
    copy = store_of()
    for at in (*range(40), *range(20, 40), *range(40)):
        copy.replay(Record(b"\x90", batches[at]), at)  # type: ignore[arg-type]  # Raw only on the wire
        if at % 7 == 0:
            copy.apply_turn()
            copy.check()
    copy.apply_turn()
    copy.check()
    assert sorted(map(as_tuple, copy.by_name["ints"].scan())) == sorted(model.rows.values())


def test_replay_refuses_what_is_not_of_this_schema(store: Store) -> None:
    for number in (len(store.tables), -1, 1 << 40):
        with pytest.raises(Corruption, match=f"WAL record 12 changes table number {number}"):
            store.replay(Record(b"\x90", [TableChanges(number, [], [])]), 12)  # type: ignore[arg-type]  # Raw on the wire
    for images, deleted in (
        ([b"\x90"], []),
        ([], [b"\xa1x"]),
        ([], [b""]),
        ([], [b"\xc3"]),
    ):
        with pytest.raises(Corruption, match=r"WAL record 13: table ints: a stored (row|key) does not decode"):
            store.replay(Record(b"\x90", [TableChanges(0, images, deleted)]), 13)  # type: ignore[arg-type]  # Raw
    # What is behind the key is looked at when the row is written.
    changes = [TableChanges(0, [b"\x93\x05\x02\xa0", b"\x93\x07\x02\xc3"], [])]
    store.replay(Record(b"\x90", changes), 14)  # type: ignore[arg-type]  # Raw only on the wire
    with pytest.raises(Corruption, match=r"table ints, key 7: a stored row does not decode"):
        store.apply_turn()
