"""Secondary indexes against a dict: in and between batches, with undo, moved rows, and indexes that come late."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from partitions import lookups as lookups_module
from partitions.index_key import UnfitValue
from partitions.lookups import Lookups
from partitions.store import Store
from tests.partitions.test_model import EXAMPLES
from voltpy.errors import Corruption, DuplicateKey, ReadOnly, SchemaError, Unavailable
from voltpy.not_here import WHOLE_TABLE, NotHere
from voltpy.row import encode
from voltpy.schema import Index
from voltpy.sql.ddl import parse_schema

SCHEMA = parse_schema(
    """
    CREATE TABLE people (code STRING PRIMARY KEY, n INT, city STRING, badge INT, pad STRING);
    CREATE INDEX by_n ON people (n);
    CREATE INDEX by_city ON people (city);
    CREATE INDEX by_both ON people USING HASH (n, city);
    CREATE INDEX n_in_order ON people USING BTREE (n);
    CREATE INDEX cities ON people USING BTREE (city, n);
    CREATE UNIQUE INDEX badges ON people USING HASH (badge);
    CREATE UNIQUE INDEX city_badges ON people USING BTREE (city, badge);
    CREATE TABLE other (id INT PRIMARY KEY, n INT);
    CREATE INDEX other_n ON other (n);
    """
)
LATE = [Index("late", "people", "BTREE", ("city",)), Index("late", "people", "INVERTED", ("pad",))]


class Person(NamedTuple):
    code: str
    n: int | None
    city: str | None
    badge: int | None
    pad: str | None


def store_of() -> Store:
    return Store(SCHEMA, 0, 1, 64 << 20)


def seal(store: Store) -> None:
    store.changes()
    store.apply()


CODES = st.integers(0, 9).map("c{}".format)
NUMBERS = st.none() | st.integers(0, 3)
CITIES = st.none() | st.sampled_from(["", "Oslo", "Os", "Bergen", "B\0", "Ünne"])
BADGES = st.none() | st.none() | st.integers(0, 5)
PADS = st.none() | st.sampled_from([0, 1, 10, 700, 3000, 9000]).map("x".__mul__)
PEOPLE = st.builds(Person, CODES, NUMBERS, CITIES, BADGES, PADS)


def last(value: Any) -> tuple[bool, Any]:
    """NULL is behind all values."""
    return value is None, 0 if value is None else value


class LookupsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = store_of()
        self.people: dict[str, Person] = {}
        self.stored: dict[str, Person] = {}
        self.before: dict[str, Person] = {}  # the transaction
        self.mark = 0
        self.build: Iterator[None] | None = None
        self.has_late = False

    @property
    def table(self) -> Any:
        return self.store.by_name["people"]

    @property
    def lookups(self) -> Lookups:
        return self.table.lookups  # type: ignore[no-any-return]

    # Writing.

    def write(self, person: Person, act: Callable[[], Any]) -> None:
        others = [other for code, other in self.people.items() if code != person.code]
        taken = person.badge is not None and any(
            other.badge == person.badge or (person.city is not None and other[2:4] == person[2:4]) for other in others
        )
        if taken:
            with pytest.raises(DuplicateKey, match="badges is unique"):
                act()
        else:
            act()
            self.people[person.code] = person

    @rule(person=PEOPLE)
    def insert(self, person: Person) -> None:
        if person.code in self.people:
            with pytest.raises(DuplicateKey, match=f"a row with key '{person.code}' exists"):
                self.table.insert(*person)
        else:
            self.write(person, lambda: self.table.insert(*person))

    @rule(person=PEOPLE)
    def upsert(self, person: Person) -> None:
        self.write(person, lambda: self.table.upsert(*person))

    @rule(code=CODES, person=PEOPLE, columns=st.sets(st.sampled_from(["n", "city", "badge", "pad"]), min_size=1))
    def update(self, code: str, person: Person, columns: set[str]) -> None:
        changes = {column: getattr(person, column) for column in columns}
        if code in self.people:
            self.write(self.people[code]._replace(**changes), lambda: self.table.update(code, **changes))

    @rule(code=CODES)
    def delete(self, code: str) -> None:
        assert self.table.delete(code) == (self.people.pop(code, None) is not None)

    @rule(n=NUMBERS)
    def write_another_table(self, n: int | None) -> None:
        self.store.by_name["other"].upsert(1, n)

    # Transactions and batches.

    @rule()
    def begin(self) -> None:
        self.mark, self.before = len(self.store.undo_log), dict(self.people)

    @rule()
    def abort(self) -> None:
        self.store.undo_to(self.mark)
        self.people = dict(self.before)

    @rule()
    def seal(self) -> None:
        seal(self.store)
        self.stored = dict(self.people)
        self.begin()
        self.between_batches()

    @rule()
    def undo_batch(self) -> None:
        self.store.undo_batch()
        self.people = dict(self.stored)
        self.begin()
        self.between_batches()

    def between_batches(self) -> None:
        if self.build is not None and next(self.build, self) is self:
            self.build, self.has_late = None, True
        self.store.check()

    @precondition(lambda self: not self.store.undo_log and not self.table.changed and self.build is None)
    @rule(index=st.sampled_from(LATE))
    def add_or_drop_an_index(self, index: Index) -> None:
        if "late" in self.lookups.indexes:
            self.store.drop_index("people", "late")
            self.has_late = False
        else:
            self.build = self.store.add_index(index)
        self.between_batches()

    # Reading.

    def where(self, test: Callable[[Person], bool]) -> list[Person]:
        return sorted(filter(test, self.people.values()))

    def of(self, rows: Any) -> list[Person]:
        return sorted((Person(row.code, row.n, row.city, row.badge, row.pad) for row in rows), key=lambda p: p.code)

    @rule(n=NUMBERS, city=CITIES, badge=BADGES)
    def find(self, n: int | None, city: str | None, badge: int | None) -> None:
        lookups = self.lookups
        for index, values, test in [
            ("by_n", (n,), lambda p: p.n == n),
            ("n_in_order", (n,), lambda p: p.n == n),
            ("by_city", (city,), lambda p: p.city == city),
            ("by_both", (n, city), lambda p: p.n == n and p.city == city),
            ("cities", (city, n), lambda p: p.n == n and p.city == city),
            ("badges", (badge,), lambda p: p.badge == badge),
        ]:
            expected = sorted(filter(test, self.people.values()))
            assert self.of(lookups.find(index, values)) == expected
            assert lookups.count(index, values) == len(expected)
            found = lookups.found(index, values)
            assert self.of(found.rows()) == self.of(found.some()) == expected
            assert len(found) == len(expected)
        expected = self.where(lambda p: p.n == n and p.city == city)
        conditions = [("by_n", (n,)), ("by_city", (city,))]
        assert self.of(lookups.matching(conditions).rows()) == expected  # type: ignore[arg-type]
        assert lookups.matching_count(conditions) == len(expected)  # type: ignore[arg-type]
        assert self.of(self.table.where(n=n, city=city)) == expected
        assert self.of(self.table.where(n=n, badge=badge)) == self.where(lambda p: p.n == n and p.badge == badge)
        by_n, by_city = lookups.found("by_n", (n,)), lookups.found("by_city", (city,))
        assert self.of((by_n | by_city).rows()) == self.where(lambda p: p.n == n or p.city == city)
        assert self.of((by_n & by_city).rows()) == expected
        assert self.of((by_n - by_city).rows()) == self.where(lambda p: p.n == n and p.city != city)

    @rule(pad=PADS, city=CITIES)
    def find_with_the_index_that_came_late(self, pad: str | None, city: str | None) -> None:
        if not self.has_late:
            with pytest.raises(SchemaError, match=r"late (does not exist|is still being built)"):
                self.lookups.find("late", (city,))
        elif self.lookups.indexes["late"].ordered:
            assert self.of(self.lookups.find("late", (city,))) == self.where(lambda p: p.city == city)
        else:
            assert self.of(self.lookups.find("late", (pad,))) == self.where(lambda p: p.pad == pad)

    @rule(low=NUMBERS, high=NUMBERS, low_included=st.booleans(), high_included=st.booleans(), reverse=st.booleans())
    def range(self, low: Any, high: Any, low_included: bool, high_included: bool, reverse: bool) -> None:
        def is_between(n: int | None) -> bool:
            if n is None:
                return low is None and high is None
            return (low is None or n > low or (n == low and low_included)) and (
                high is None or n < high or (n == high and high_included)
            )

        options = {"low_included": low_included, "high_included": high_included}
        rows = list(self.lookups.range("n_in_order", low, high, reverse=reverse, **options))
        expected = self.where(lambda p: is_between(p.n))
        assert self.of(rows) == expected
        assert [last(row.n) for row in rows] == sorted((last(p.n) for p in expected), reverse=reverse)
        found = self.lookups.found_between("n_in_order", low, high, **options)
        assert (len(found), self.of(found.rows())) == (len(expected), expected)
        for city in (None, "Oslo"):
            rows = list(self.lookups.range("cities", low, high, prefix=(city,), reverse=reverse, **options))
            of_city = [p for p in self.people.values() if p.city == city]
            expected = sorted(
                p for p in of_city if is_between(p.n) and (p.n is not None or (low is None and high is None))
            )
            assert self.of(rows) == expected
            assert [last(row.n) for row in rows] == sorted((last(p.n) for p in expected), reverse=reverse)

    @rule(low=CITIES, text=st.sampled_from(["", "O", "Os", "Oslo", "B", "Ü", "x"]), reverse=st.booleans())
    def texts(self, low: str | None, text: str, reverse: bool) -> None:
        rows = list(self.lookups.range("cities", begins=text, reverse=reverse))
        expected = self.where(lambda p: p.city is not None and p.city.startswith(text))
        assert self.of(rows) == expected
        order = [(last(row.city), last(row.n)) for row in rows]
        assert order == sorted(order, reverse=reverse)
        rows = list(self.lookups.range("cities", low, reverse=reverse))
        expected = self.where(lambda p: low is None or (p.city is not None and p.city >= low))
        assert self.of(rows) == expected
        order = [(last(row.city), last(row.n)) for row in rows]
        assert order == sorted(order, reverse=reverse)
        for city in (text, None):
            rows = list(self.lookups.range("cities", prefix=(city,)))
            assert self.of(rows) == self.where(lambda p: p.city == city)  # noqa: B023


def test_lookups_against_a_dict() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        LookupsMachine,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_an_index_that_comes_late_follows_rows_on_pages_that_it_has_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups_module, "BESIDE_PAGES", 1)
    store = store_of()
    table = store.by_name["people"]
    for i in range(400):
        table.insert(f"c{i}", i % 7, f"city {i % 50}", None, "x" * 100)
    seal(store)
    steps = 0
    for _ in store.add_index(LATE[0]):
        steps += 1
        for i in range(steps, 400, 13):
            table.upsert(f"c{i}", i % 5, f"town {i % 9}", None, "x" * (i * 37 % 900))  # some move
        for i in range(steps, 400, 31):
            table.delete(f"c{i}")
        for i in range(5):
            table.upsert(f"new {steps} {i}", 1, "new", None, None)
        seal(store)
        store.check()
    assert steps > 5
    store.check()
    assert len(table.lookups.find("late", ("new",))) == 5 * steps
    expected = sorted(row.city for row in table.scan())
    assert [row.city for row in table.lookups.range("late")] == expected


def test_a_unique_index_on_rows_that_are_not_is_refused_and_leaves_nothing() -> None:
    store = store_of()
    other = store.by_name["other"]
    for i in range(5):
        other.insert(i, i % 4)
    seal(store)
    with pytest.raises(DuplicateKey, match="a row with n = 0 exists, and index one is unique"):
        list(store.add_index(Index("one", "other", "HASH", ("n",), unique=True)))
    assert list(other.lookups.indexes) == ["other_n"]
    store.drop_index("other", "other_n")
    assert other.lookups is None
    assert store.lookups == [store.by_name["people"].lookups]
    other.update(4, n=None)
    other.insert(5, None)
    seal(store)
    list(store.add_index(Index("one", "other", "HASH", ("n",), unique=True)))
    with pytest.raises(DuplicateKey, match="n = 3"):
        other.update(0, n=3)
    assert other.insert(6, None).n is None
    seal(store)
    store.check()


def test_a_unique_value_moves_from_row_to_row_within_a_batch() -> None:
    store = store_of()
    people = store.by_name["people"]
    for i in range(3):
        people.insert(f"c{i}", None, None, i, None)
    seal(store)
    people.update("c0", badge=None)
    people.update("c1", badge=0)
    people.update("c2", badge=1)
    people.update("c0", badge=2)
    people.delete("c1")
    people.insert("c9", None, None, 0, "x" * 5000)
    seal(store)
    store.check()
    assert [people.lookups.find("badges", (i,))[0].code for i in range(3)] == ["c9", "c2", "c0"]


def test_changes_after_an_undo_are_seen_though_the_log_is_no_longer_than_before() -> None:
    store = store_of()
    people, other = store.by_name["people"], store.by_name["other"]
    people.insert("a", 1, None, None, None)
    other.insert(1, 1)
    other.insert(2, 1)
    assert people.lookups.count("by_n", (1,)) == 1
    store.undo_to(1)  # nothing of this table
    people.insert("b", 1, None, None, None)
    assert people.lookups.count("by_n", (1,)) == 2
    store.undo_to(1)
    people.insert("c", 1, None, None, None)
    assert [row.code for row in people.lookups.find("by_n", (1,))] == ["a", "c"]


def test_a_row_that_is_changed_while_a_range_is_read_is_seen_as_it_was() -> None:
    store = store_of()
    people = store.by_name["people"]
    for i in range(300):
        people.insert(f"c{i}", i, None, None, None)
    for _ in range(2):  # of this batch, then committed
        seen = []
        for row in people.lookups.range("n_in_order", 0, 299):
            seen.append(row.n)
            people.update(row.code, n=row.n + 1000)
        assert seen == list(range(300))
        assert people.lookups.count("n_in_order", (1299,)) == 1
        for row in people.lookups.range("n_in_order", 1000):
            people.update(row.code, n=row.n - 1000)
        seal(store)
        store.check()


def test_rows_are_looked_up_by_every_type() -> None:
    schema = parse_schema(
        """
        CREATE TABLE t (id INT PRIMARY KEY, f FLOAT, b BOOL, at TIMESTAMP);
        CREATE INDEX f ON t USING BTREE (f);
        CREATE INDEX b ON t (b);
        CREATE INDEX at ON t USING BTREE (at);
        """
    )
    store = Store(schema, 0, 1, 64 << 20)
    t = store.by_name["t"]
    moments = [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 3)]
    values = [
        (0, -1.5, True, moments[2]),
        (1, 0.0, False, moments[0]),
        (2, math.inf, None, moments[1]),
        (3, -0.0, True, None),
    ]
    for row in values:
        t.insert(*row)
    seal(store)
    assert [row.id for row in t.where(f=0)] == [1, 3]
    assert [row.id for row in t.where(b=True)] == [0, 3]
    assert [row.id for row in t.where(b=1)] == [0, 3]  # the long way: Python finds them equal
    assert [row.id for row in t.where(at=moments[0])] == [1]
    assert [row.id for row in t.where(at=None)] == [3]
    assert [row.id for row in t.lookups.range("at")] == [1, 2, 0, 3]
    assert [row.id for row in t.lookups.range("f", high=0, high_included=False)] == [0]
    assert [row.id for row in t.lookups.range("f", reverse=True)] == [2, 1, 3, 0]
    with pytest.raises(UnfitValue, match="column b is BOOL, and 1 is no such value"):
        t.lookups.find("b", (1,))
    with pytest.raises(SchemaError, match="index b has no order"):
        t.lookups.range("b")


def test_keys_that_are_away_keep_look_ups_waiting() -> None:
    store = store_of()
    people = store.by_name["people"]
    people.insert("a", 1, "Oslo", 7, None)
    people.insert("b", 2, "Oslo", 8, None)
    seal(store)
    people.send_all_away(["a"])
    lookups = people.lookups
    for look in (
        lambda: lookups.find("by_n", (2,)),
        lambda: lookups.count("by_n", (2,)),
        lambda: lookups.range("n_in_order"),
        lambda: lookups.matching([("by_n", (2,))]),
        lambda: people.where(n=2),
    ):
        with pytest.raises(NotHere):
            look()
        assert list(store.misses) == [(people.number, WHOLE_TABLE)]
        store.misses.clear()
        store.undo_to(0)
    people.insert("c", 3, None, 9, None)  # others may be written
    mark = len(store.undo_log)
    with pytest.raises(DuplicateKey):
        people.insert("d", 3, None, 8, None)
    with pytest.raises(NotHere):  # it may come back with another badge
        people.insert("d", 3, None, 7, None)
    assert list(store.misses) == [(people.number, "a")]
    store.misses.clear()
    store.undo_to(mark)
    people.bring_all_back(["a"])
    seal(store)
    assert [row.code for row in lookups.find("by_city", ("Oslo",))] == ["a", "b"]


def test_changes_that_come_from_elsewhere_are_checked_and_their_unique_values_reserved() -> None:
    store = store_of()
    people = store.by_name["people"]
    for i in range(3):
        people.insert(f"c{i}", None, None, i, None)
    seal(store)
    lookups = people.lookups

    def image(code: str, badge: int | None, city: str | None = None) -> bytes:
        return encode(people._format.struct(code, None, city, badge, None))

    def check(changes: dict[str, int | None], *deleted: str) -> None:
        images = [image(*pair) for pair in changes.items()]
        lookups.unique.check_changes(list(changes), images, list(deleted), {"c1"})

    check({"c0": 1, "c1": 0})
    check({"c9": 2, "c8": None}, "c2")
    check({"c9": 5, "c8": 6})
    for changes in ({"c9": 2}, {"c0": 1}, {"c8": 5, "c9": 5}):
        with pytest.raises(DuplicateKey, match="index badges is unique"):
            check(changes)
    people.send_all_away(["c0"])
    people.send_all_away(["c9"])
    lookups.unique.reserve(["c0", "c9"], [image("c0", 7), image("c9", 8)])
    for badge in (7, 0):  # what another may take, and what it may give up
        with pytest.raises(Unavailable, match="in doubt"):
            check({"c8": badge})
    people.send_all_away(["c1"])
    with pytest.raises(DuplicateKey):  # of a row that whoever asks has borrowed, and does not change
        check({"c8": 1})
    check({"c8": 1, "c1": 11})
    people.bring_all_back(["c1"])
    for badge, awaited in ((7, "c0"), (8, "c9"), (0, "c0")):  # what it may take, and what it may give up
        with pytest.raises(NotHere):
            people.insert("d", None, None, badge, None)
        assert list(store.misses) == [(people.number, awaited)]
        store.misses.clear()
        store.undo_to(0)
    people.insert("d", None, None, 9, None)
    seal(store)
    lookups.unique.release(["c0", "c9"])
    people.bring_all_back(["c0"])
    people.bring_all_back(["c9"])
    people.insert("e", None, None, 7, None)
    with pytest.raises(DuplicateKey):
        people.insert("f", None, None, 0, None)
    seal(store)
    store.check()


def test_a_table_with_too_many_pages_for_32_bits_is_full() -> None:
    lookups = store_of().by_name["people"].lookups
    lookups.make_sure_of_row_ids(1 << 20)
    with pytest.raises(ReadOnly, match="with indexes it can't have more than"):
        lookups.make_sure_of_row_ids(1 << 31)


@pytest.mark.parametrize("damage", ["lacks a row", "another value", "another row"])
def test_check_finds_an_index_that_is_wrong(damage: str) -> None:
    store = store_of()
    other = store.by_name["other"]
    for i in range(4):
        other.insert(i, i)
    seal(store)
    store.check()
    index = other.lookups.indexes["other_n"]
    row_id = index.posting(2)
    index.remove([2], [row_id])
    if damage == "another value":
        index.add([3], [row_id])
    elif damage == "another row":
        index.add([2], [row_id + 77])
    with pytest.raises(Corruption, match="table other, index other_n"):
        store.check()


def test_ranges_of_keys_that_are_not_integers_use_an_index() -> None:
    schema = parse_schema(
        """
        CREATE TABLE t (a STRING, b INT, PRIMARY KEY (a, b));
        CREATE INDEX keys ON t USING BTREE (a, b);
        """
    )
    store = Store(schema, 0, 1, 64 << 20)
    t = store.by_name["t"]
    for a in "cab":
        for b in (3, -1, 2):
            t.insert(a, b)
    seal(store)
    t.insert("b", 0)
    t.delete(("a", 3))
    expected = [("a", 2), ("b", -1), ("b", 0), ("b", 2)]
    calls = []
    scan = lookups_module.Lookups.between
    lookups_module.Lookups.between = lambda self, *a: (calls.append(a), scan(self, *a))[1]  # type: ignore
    try:
        assert [(row.a, row.b) for row in t.range(("a", 0), ("b", 3))] == expected
    finally:
        lookups_module.Lookups.between = scan  # type: ignore[method-assign]
    assert len(calls) == 1
    assert list(t.range(("b", 3), ("a", 0))) == []
