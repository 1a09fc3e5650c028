"""Changes of the schema while everything else goes on: what is asked for, what becomes of it, and what must be so then.

One client asks for one change after another. Each name is made once, and dropped at most once more: so what has been
answered says whether the thing must be there, must not, or may be (`Thing`). Where that is open, and now and then where
it is not, the client asks again, with IF NOT EXISTS or IF EXISTS. The others read by what is made: by indexes, whether
there is one or not; by views; they append to tables that are made. Some of these have a copy in every partition first,
and are partitioned then, while the first rows come. Columns that are added are a list that transactions read (the key
COLUMNS of the history): so the checker tells whether a call saw the schema of its time.

What is asked for, and who reads by it, comes out of a source of chance of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from math import inf
from random import Random
from typing import Any

from tests.simulation.history import Append, Outcome, Read, Transaction
from tests.simulation.workload import CHANGE, Call, Ledger, Operation
from tests.simulation.world import choose
from voltpy.builtin import QUERY_ALL
from voltpy.errors import (
    ClusterError,
    DuplicateKey,
    Error,
    Indeterminate,
    Overloaded,
    ProcedureError,
    ReadOnly,
    SchemaError,
    SqlError,
    Unavailable,
)
from voltpy.schema import Schema

COLUMNS = "columns"
# Statements, by what they are about; and how many of that may be there before one is dropped.
INDEX, VIEW, TABLE, COLUMN = "INDEX", "VIEW", "TABLE", "COLUMN"
KINDS = {INDEX: 6.0, VIEW: 5.0, TABLE: 2.0, COLUMN: 3.0}
MOST = {INDEX: 4, VIEW: 3, TABLE: 2}
MOST_COLUMNS = 8
PARTITION = "PARTITION TABLE"
LETTERS = {INDEX: "i", VIEW: "v", TABLE: "t", COLUMN: "c"}

INDEXES = (
    "elements USING INVERTED (list)", "elements USING HASH (list, value)", "elements USING BTREE (list, position)",
    "elements (value)", "accounts USING BTREE (balance)", "lists USING HASH (items)", "copies (items)",
    "places USING BTREE (list, place)",
)  # fmt: skip
UNIQUE_INDEXES = ("elements USING BTREE (list, value)", "places USING HASH (list, id)", "accounts (id)")
UNFIT_INDEX = "elements USING HASH (list)"  # rows are equal in it
VIEW_OF_ELEMENTS = (
    "SELECT list, COUNT(*) AS n, SUM(value) AS total, MIN(value) AS least, MAX(value) AS most "
    "FROM elements GROUP BY list"
)
VIEW_OF_ACCOUNTS = (
    "SELECT balance % 3 AS third, COUNT(*) AS n, SUM(balance) AS total, MIN(balance) AS least, MAX(id) AS most "
    "FROM accounts GROUP BY balance % 3"
)
VIEW_OF_LISTS = "SELECT items, COUNT(*) AS n, MIN(id) AS least FROM lists GROUP BY items"
OTHER_VIEWS = (
    "SELECT items, COUNT(*) AS n FROM copies WHERE id > 0 GROUP BY items",
    "SELECT list % 2 AS parity, COUNT(*) AS n, SUM(place) AS total, MAX(place) AS most FROM places GROUP BY list % 2",
)
NOT_NOW = (Unavailable, Overloaded, ReadOnly, ClusterError)
STATEMENTS = {"ALTER TABLE": "ADD COLUMN", "PARTITION TABLE": "CREATE TABLE"}  # as the supervisor calls them
BALLAST_LIST, BALLAST_ELEMENTS, BALLASTS = 1000, 400, 4


class Thing:
    """What a statement makes. `may_be`: whether it is there, by what has been answered; both where that is open."""

    def __init__(self, of: str, name: str, about: str) -> None:
        self.of = of
        self.name = name
        self.about = about  # what an index or a view is on
        self.is_unfit = False  # rows don't allow it
        self.may_be = {False}
        self.there_since_s = inf  # acknowledged
        self.is_to_go = False
        self.is_under_way = False  # a statement about it is
        self.kind = self.text = ""  # of the statement that makes it; {} in the text: IF NOT EXISTS
        self.attempts: list[tuple[float, float, Outcome]] = []  # of a column: when it was asked for, and answered
        # Whether it has a copy in every partition, of a table that begins so.
        self.may_be_copied: set[bool] = set()
        self.is_to_be_parted = False

    def was_there(self, call: Call) -> bool:
        """All the time while the call was under way, which is over now."""
        return self.there_since_s < call.invoked_s and not self.is_to_go


class Changes:
    """`counts`: of each kind of statement, how many were asked for and what became of them; and phase of death."""

    def __init__(self, seed: int, ledger: Ledger) -> None:
        self.rng = Random(f"changes of the schema {seed}")
        self.kinds = {**KINDS, TABLE: 24.0} if seed % 4 == 1 else KINDS
        self.things: dict[str, Thing] = {}
        self.counts: Counter[tuple[str, str]] = Counter()
        self.violations: list[str] = []
        self._ledger = ledger
        # By transaction, the kind of statement, what it is about, and whether that had been asked for before.
        self._under_way: dict[int, tuple[str, Thing, bool]] = {}
        self._to_be_parted: list[Thing] = []
        self._number = 0
        self._ballast = 0
        # What views and columns said, and where in the history that is.
        self._sums: list[tuple[int, int, str, list[int]]] = []
        self._unwritten: list[tuple[int, int, int]] = []  # (who read, last item, column that it is not in)

    # ── what is asked for ──────────────────────────────────────────────────────────────────────────────────────────

    def next_call(self) -> Call:
        rng = self.rng
        while self._to_be_parted:
            thing = self._to_be_parted.pop()
            if not thing.is_to_go and not thing.is_under_way:
                return self._part(thing)
        open_ = [thing for thing in self.things.values() if not thing.is_under_way and len(thing.may_be) > 1]
        known = [thing for thing in self.things.values() if not thing.is_under_way and len(thing.may_be) == 1]
        if open_ and rng.random() < 0.6:
            return self._again(rng.choice(open_))
        if known and rng.random() < 0.08:
            return self._again(rng.choice(known[-6:]))
        of = choose(rng, self.kinds)
        there = [thing for thing in self.things.values() if thing.of == of and not thing.is_to_go]
        there = [thing for thing in there if True in thing.may_be]
        if of == COLUMN and len(there) >= MOST_COLUMNS:
            of, there = INDEX, []
        if of in MOST and rng.random() < len(there) / MOST[of]:
            idle = [thing for thing in there if not thing.is_under_way]
            if idle:
                thing = rng.choice(idle)
                thing.is_to_go = True
                return self._call(f"DROP {of}", thing, f"DROP {of} {thing.name}")
        self._number += 1
        thing = Thing(of, f"{LETTERS[of]}{self._number}", "")
        self.things[thing.name] = thing
        thing.kind, thing.text = self._made(thing)
        return self._call(thing.kind, thing, thing.text.format("IF NOT EXISTS " if rng.random() < 0.2 else ""))

    def _made(self, thing: Thing) -> tuple[str, str]:
        """The kind of the statement that makes it, and its text."""
        rng, name = self.rng, thing.name
        if thing.of == INDEX:
            if rng.random() < 0.3:
                thing.is_unfit = rng.random() < 0.5
                thing.about = UNFIT_INDEX if thing.is_unfit else rng.choice(UNIQUE_INDEXES)
                return "CREATE UNIQUE INDEX", f"CREATE UNIQUE INDEX {{}}{name} ON {thing.about}"
            columns = [f"lists USING BTREE ({other.name})" for other in self._surely(COLUMN)]
            thing.about = rng.choice((*INDEXES, *columns[-2:]))
            return "CREATE INDEX", f"CREATE INDEX {{}}{name} ON {thing.about}"
        if thing.of == VIEW:
            thing.about = rng.choice(
                (
                    VIEW_OF_ELEMENTS,
                    VIEW_OF_ELEMENTS,
                    VIEW_OF_ACCOUNTS,
                    VIEW_OF_LISTS,
                    VIEW_OF_LISTS,
                    rng.choice(OTHER_VIEWS),
                )
            )
            return "CREATE VIEW", f"CREATE VIEW {{}}{name} AS {thing.about}"
        if thing.of == COLUMN:
            return "ADD COLUMN", f"ALTER TABLE lists ADD COLUMN {{}}{name} INT DEFAULT -{name[1:]}"
        text = f"CREATE TABLE {{}}{name} (id INT PRIMARY KEY, items STRING NOT NULL)"
        if rng.random() < 0.6:
            thing.may_be_copied = {True}
            return "CREATE TABLE", text
        return "CREATE TABLE", f"{text}; PARTITION TABLE {name} ON COLUMN id"

    def _again(self, thing: Thing) -> Call:
        """As one asks who was not told what became of it."""
        if thing.is_to_go:
            return self._call(f"DROP {thing.of}", thing, f"DROP {thing.of} IF EXISTS {thing.name}", is_again=True)
        return self._call(thing.kind, thing, thing.text.format("IF NOT EXISTS "), is_again=True)

    def _part(self, thing: Thing) -> Call:
        """The table, which has had no rows so far; the same change builds an index, so that some come meanwhile."""
        thing.is_to_be_parted = True
        text = f"PARTITION TABLE {thing.name} ON COLUMN id"
        if self.rng.random() < 0.8:
            self._number += 1
            built = f"b{self._number}"  # nobody asks for that one
            text += f"; CREATE INDEX {built} ON elements (value)"
        return self._call(PARTITION, thing, text)

    def _call(self, kind: str, thing: Thing, text: str, *, is_again: bool = False) -> Call:
        number = self._ledger.next_number()
        self._under_way[number] = kind, thing, is_again
        thing.is_under_way = True
        return Call(self._ledger, number, CHANGE, (text,), [])

    def _surely(self, of: str) -> list[Thing]:
        return [thing for thing in self.things.values() if thing.of == of and thing.may_be == {True}]

    def settled(self, call: Call, now_s: float) -> None:
        """Of a change."""
        kind, thing, is_again = self._under_way.pop(call.transaction)
        thing.is_under_way = False
        error = call.error
        drops = kind.startswith("DROP")
        outcome = Outcome.ABORTED
        self.counts[kind, "asked again" if is_again else "asked"] += 1
        if error is None:
            self.counts[kind, "made"] += 1
            outcome = Outcome.OK
            if kind == PARTITION:
                thing.may_be_copied = {False}
                return
            if (drops and True not in thing.may_be and not is_again) or thing.is_unfit:
                self.violations.append(f"T{call.transaction}: {kind} {thing.name} is said to have worked")
            thing.may_be = {not drops}
            if not drops:
                thing.there_since_s = min(thing.there_since_s, now_s)
                if thing.may_be_copied == {True} and not is_again:
                    self._to_be_parted.append(thing)
        elif isinstance(error, Indeterminate):
            self.counts[kind, "unknown"] += 1
            outcome = Outcome.UNKNOWN
            if kind == PARTITION:
                thing.may_be_copied = {True, False}
            elif not thing.is_unfit:
                thing.may_be = thing.may_be | {not drops}
        elif isinstance(error, NOT_NOW):
            self.counts[kind, "not now"] += 1
        elif (isinstance(error, DuplicateKey) and thing.is_unfit) or (
            isinstance(error, SchemaError) and kind == PARTITION and "has rows" in str(error)
        ):
            self.counts[kind, "refused"] += 1
        elif isinstance(error, SchemaError) and drops and False in thing.may_be and not is_again:
            self.counts[kind, "refused"] += 1
            thing.may_be = {False}
        else:
            self.violations.append(f"T{call.transaction}, {kind} {thing.name}, ended with {error!r}")
        thing.attempts.append((call.invoked_s, now_s, outcome))

    def _tell_columns(self) -> None:
        """The history: a column came while it was asked for the last time before that was known to have worked, or in
        an attempt before of which that is not known."""
        for thing in self.things.values():
            attempts = [attempt for attempt in thing.attempts if attempt[2] is not Outcome.ABORTED]
            if thing.of != COLUMN or not attempts:
                continue
            worked = [completed_s for _, completed_s, outcome in attempts if outcome is Outcome.OK]
            outcome, completed_s = (Outcome.OK, worked[0]) if worked else (Outcome.UNKNOWN, inf)
            append = (Append(COLUMNS, int(thing.name[1:])),)
            self._ledger.transactions.append(
                Transaction(self._ledger.next_number(), append, outcome, attempts[0][0], completed_s)
            )

    def interrupted(self, kind: str, phase: str) -> None:
        """A process died while such a statement was under way."""
        self.counts[STATEMENTS.get(kind, kind), phase] += 1

    def judge(self, schema: Schema) -> list[str]:
        """What is wrong with the schema that there is in the end."""
        there = {index.name for index in schema.indexes} | {table.name for table in schema.live}
        there |= set(schema.table("lists").positions)
        wrong = [
            f"{thing.of} {thing.name} is {'' if thing.name in there else 'not '}there"
            for thing in self.things.values()
            if (thing.name in there) not in thing.may_be
        ]
        for thing in self.things.values():
            if thing.may_be_copied and thing.name in schema.numbers:
                is_copied = schema.table(thing.name).partition_column is None
                if is_copied not in thing.may_be_copied:
                    wrong.append(f"{thing.name} has {'a copy' if is_copied else 'its rows'} in each partition")
        return [*self.violations, *wrong]

    # ── what others read by it ─────────────────────────────────────────────────────────────────────────────────────

    def fill(self) -> list[Call]:
        """Rows that make more than one step of a build; in every partition, most likely."""
        calls = []
        for _ in range(BALLASTS // 2):
            self._ballast += 1
            arguments = (BALLAST_LIST + self._ballast, BALLAST_ELEMENTS)
            calls.append(Call(self._ledger, self._ledger.next_number(), "fill", arguments, []))
        return calls

    def varied(self, operations: list[Operation], numbers: list[int], *, writes: bool) -> list[Operation]:
        """Some of the lists in elements are read in another way; columns are looked at, and tables that were made."""
        rng = self.rng
        varied: list[Operation] = []
        for storage, number, value in operations:
            if storage == "elements" and not value and rng.random() < 0.7:
                storage = rng.choice(("where", "select", *self._views_of_elements(), *self._views_of_elements()))
            varied.append((storage, number, value))
        for number in numbers:
            if rng.random() < 0.5:
                varied.append((COLUMNS, number, 0))
        tables = [thing for thing in self.things.values() if thing.of == TABLE and True in thing.may_be]
        tables = [thing for thing in tables if thing.is_to_be_parted or not thing.may_be_copied]
        parted = [thing for thing in tables if True in thing.may_be_copied]
        if tables and rng.random() < (0.9 if parted else 0.3):
            value = self._ledger.next_value() if writes and rng.random() < 0.7 else 0
            varied.append((rng.choice(parted or tables[-3:]).name, rng.choice(numbers), value))
        return varied

    def _views_of_elements(self) -> list[str]:
        """As storages, those made last."""
        views = [thing for thing in self.things.values() if thing.about is VIEW_OF_ELEMENTS and True in thing.may_be]
        return [f"view{thing.name[1:]}" for thing in views[-3:]]

    def read_all(self, number: int) -> list[Operation]:
        views = [f"view{thing.name[1:]}" for thing in self._surely(VIEW) if thing.about is VIEW_OF_ELEMENTS]
        tables = [thing.name for thing in self._surely(TABLE)]
        return [(storage, number, 0) for storage in ("where", "select", COLUMNS, *views, *tables)]

    def total_by_view(self, number: int) -> Call:
        """The bank's total by a view, or by itself where there is none."""
        views = [thing for thing in self.things.values() if thing.about is VIEW_OF_ACCOUNTS and True in thing.may_be]
        if not views:
            return Call(self._ledger, number, "total", (list(range(self._ledger.accounts)),), [])
        text = f"SELECT SUM(total) FROM {self.rng.choice(views[-2:]).name}"
        return Call(self._ledger, number, QUERY_ALL, (text, []), [])

    def may_be_copied(self, storage: str) -> bool:
        """Whether that is a table that has, or has had, a copy in every partition."""
        return storage in self.things and bool(self.things[storage].may_be_copied)

    def is_varied(self, storage: str) -> bool:
        return storage in ("where", "select", COLUMNS) or storage.startswith("view")

    def read(self, call: Call, place: tuple[int, int], storage: str, number: int, result: Any) -> list[Append | Read]:
        """What the history is told of one such read; `place`: where it will be there."""
        key = f"elements.{number}"
        if result is None:
            if storage.startswith("view") and call.error is None:
                view = self.things[f"v{storage[4:]}"]
                if view.was_there(call):
                    self.violations.append(f"T{call.transaction}: {view.name} was not there")
            return []
        if storage == COLUMNS:
            last, items, *columns = result
            for column, value in columns:
                if value == -column and items > 1:
                    self._unwritten.append((call.transaction, last, column))
                elif value not in (-column, last):
                    self.violations.append(f"T{call.transaction}: c{column} is {value} beside the last item {last}")
            return [Read(COLUMNS, tuple(column for column, _ in columns))]
        if storage.startswith("view"):
            self._ledger.told_length(*place, result[0])
            self._sums.append((*place, storage, result))
            return [Read(key, None)]
        return [Read(key, tuple(result))]

    def explains(self, call: Call, error: Error) -> bool:
        """Whether a call may fail so because of what is changed; then it has done nothing."""
        text = str(error)
        if isinstance(error, DuplicateKey):
            return any(thing.is_unfit and f" {thing.name} " in f"{text} " for thing in self.things.values())
        if not isinstance(error, SchemaError | SqlError | ProcedureError):
            return False
        return any(
            not thing.was_there(call)
            for thing in self.things.values()
            if thing.of in (TABLE, VIEW) and re.search(rf"\b{thing.name}\b", text)
        )

    def judge_reads(self) -> list[str]:
        """When the history is complete: whether views have said what was in the lists, and writers filled columns."""
        wrong = []
        self._tell_columns()
        history = self._ledger.transactions
        for place, position, view, (n, *rest) in self._sums:
            read = history[place].operations[position]
            assert isinstance(read, Read)
            values = read.values or ()
            expected = [sum(values), min(values), max(values)] if values else [0, 0, 0]
            if len(values) == n and rest != expected:
                wrong.append(f"T{history[place].number}: {view} has {rest} of {values}")
        made = {
            operation.value: transaction
            for transaction in history
            for operation in transaction.operations
            if isinstance(operation, Append) and operation.key == COLUMNS
        }
        writers = {
            operation.value: transaction
            for transaction in history
            for operation in transaction.operations
            if isinstance(operation, Append) and operation.key != COLUMNS
        }
        for reader, last, column in self._unwritten:
            if writers[last].invoked_s > made[column].completed_s:
                wrong.append(f"T{reader}: T{writers[last].number} did not write c{column}, which was there before")
        return wrong
