"""One partition against a dict: calls in batches, keys that are away, retries, crashes that lose unflushed sectors.

60 examples in the suite; VOLTPY_EXAMPLES=2000 in the environment makes it 2,000.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.partitions.one_partition import OnePartition
from voltpy.errors import Error
from voltpy.not_here import WHOLE_TABLE
from voltpy.procedure import procedure
from voltpy.sql.ddl import parse_schema

EXAMPLES = int(os.environ.get("VOLTPY_EXAMPLES", "60"))
SEGMENT_BYTES = 32_768
SECTOR_BYTES = 512
SCHEMA = parse_schema(
    """
    CREATE TABLE items (id INT PRIMARY KEY, n INT NOT NULL, pad STRING);
    PARTITION TABLE items ON COLUMN id;
    CREATE TABLE notes (owner INT NOT NULL, text STRING);
    PARTITION TABLE notes ON COLUMN owner;
    CREATE TABLE rates (code STRING PRIMARY KEY, n INT);
    CREATE INDEX items_n ON items USING BTREE (n);
    CREATE INDEX items_pad ON items USING HASH (pad, n);
    CREATE INDEX notes_owner ON notes (owner);
    CREATE UNIQUE INDEX rates_code ON rates USING BTREE (code);
    """
)


# ---------------------------------------------------------------------------------------------------- procedures


@procedure(partition_by="key")
def put(tx: Any, key: int, n: int) -> Any:
    return tx.items.upsert(key, n, pad(n)).n


@procedure(partition_by="key")
def add(tx: Any, key: int, n: int) -> Any:
    row = tx.items.get(key)
    if row is None:
        tx.abort("absent")
    return tx.items.update(key, n=row.n + n).n


@procedure(partition_by="key")
def delete(tx: Any, key: int, n: int) -> Any:
    return tx.items.delete(key)


@procedure(partition_by="key")
def transfer(tx: Any, key: int, n: int) -> Any:
    source, target = tx.items.get(key), tx.items.get(n)
    if source is None or target is None or key == n:
        tx.abort("impossible")
    tx.items.update(key, n=source.n - 1)
    tx.items.update(n, n=target.n + 1)
    return [source.n - 1, target.n + 1]


@procedure(partition_by="key")
def get(tx: Any, key: int, n: int) -> Any:
    row = tx.items.get(key)
    return None if row is None else [row.n, len(row.pad)]


@procedure(partition_by="key")
def total(tx: Any, key: int, n: int) -> Any:
    return [tx.items.count(), sum(row.n for row in tx.items.scan()), tx.notes.count()]


@procedure(partition_by="key")
def find(tx: Any, key: int, n: int) -> Any:
    return [sorted(row.id for row in tx.items.where(n=n)), len(tx.notes.where(owner=key))]


@procedure(partition_by="key")
def fail(tx: Any, key: int, n: int) -> Any:
    tx.notes.insert(key, "never seen")
    tx.items.upsert(key, n, pad(n))
    tx.items.delete(n)
    if n % 2:
        raise ValueError("as told")
    tx.abort("as told")


@procedure(partition_by="key")
def note(tx: Any, key: int, n: int) -> Any:
    tx.notes.insert(key, pad(n))


@procedure(partition_by="key")
def stubborn(tx: Any, key: int, n: int) -> Any:
    """Swallows whatever the touch of a key raises, then writes."""
    found = None
    try:
        found = tx.items.get(n)
    except BaseException:  # noqa: BLE001 as users do
        found = None
    tx.items.upsert(key, n, pad(n))
    return found is not None


@procedure(everywhere=True)
def set_rate(tx: Any, key: int, n: int) -> Any:
    tx.rates.upsert(f"r{key}", n)
    return n


PROCEDURES: list[Callable[..., Any]] = [put, add, delete, transfer, get, total, find, fail, note, stubborn, set_rate]
LOCAL = [p.__name__ for p in PROCEDURES if p is not set_rate]


def pad(n: int) -> str:
    return "x" * (n * 997 % 3000 if n % 7 else 20_000)


# ---------------------------------------------------------------------------------------------------- the model


class Call(NamedTuple):
    name: str
    key: int
    n: int


class State(NamedTuple):
    """What a batch leaves behind."""

    items: dict[int, tuple[int, int]]  # n, length of the padding
    notes: list[tuple[int, int]]
    rates: dict[str, int]
    outcomes: dict[int, Any]  # first results of calls that wrote, by number

    def copy(self) -> State:
        return State(dict(self.items), list(self.notes), dict(self.rates), dict(self.outcomes))


class Waiting(NamedTuple):
    number: int
    call: Call
    missing: frozenset[Any]
    arrival: int


class Missed(Exception):
    pass


def run_on(state: State, call: Call, away: frozenset[int]) -> tuple[Any, bool]:
    """(result or the error's class name, whether it wrote). Raises Missed(keys) where the partition sets it aside."""
    name, key, n = call
    items = state.items
    touched: list[Any] = {
        "transfer": [key, n], "stubborn": [n], "total": [WHOLE_TABLE] if away else [],
        "find": [WHOLE_TABLE] if away else [], "note": [], "set_rate": [],
    }.get(name, [key])  # fmt: skip
    missing = [each for each in touched if each is WHOLE_TABLE or each in away]
    if name == "stubborn":
        # It goes on after a miss; what it touches then may be missed as well.
        missing += [key] if key in away else []
    elif name == "fail":
        missing = [key] if key in away else [n] if n in away else []
    else:
        missing = missing[:1]
    if missing:
        raise Missed(frozenset(missing))
    if name == "put":
        items[key] = (n, len(pad(n)))
        return n, True
    if name == "add":
        if key not in items:
            return "Aborted", False
        items[key] = (items[key][0] + n, items[key][1])
        return items[key][0], True
    if name == "delete":
        return (True, True) if items.pop(key, None) is not None else (False, False)
    if name == "transfer":
        if key not in items or n not in items or key == n:
            return "Aborted", False
        items[key] = (items[key][0] - 1, items[key][1])
        items[n] = (items[n][0] + 1, items[n][1])
        return [items[key][0], items[n][0]], True
    if name == "get":
        return (list(items[key]) if key in items else None), False
    if name == "total":
        return [len(items), sum(n for n, _ in items.values()), len(state.notes)], False
    if name == "find":
        found = sorted(item for item, (value, _) in items.items() if value == n)
        return [found, sum(owner == key for owner, _ in state.notes)], False
    if name == "fail":
        return "ProcedureError" if n % 2 else "Aborted", False
    if name == "note":
        state.notes.append((key, len(pad(n))))
        return None, True
    if name == "stubborn":
        found = n in items
        items[key] = (n, len(pad(n)))
        return found, True
    state.rates[f"r{key}"] = n
    return n, True


KEYS = st.integers(0, 7)
NUMBERS = st.integers(0, 30)
CALLS = st.builds(Call, st.sampled_from(LOCAL), KEYS, NUMBERS.map(lambda n: n % 8) | NUMBERS)


class PartitionMachine(RuleBasedStateMachine):
    """`sealed` is the state after each LSN that a crash may leave; the last one is what the open batch began with."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="voltpy-model-"))
        self.partition: OnePartition = None  # type: ignore[assignment]  # opened by the first rule
        self.state = State({}, [], {}, {})
        self.sealed: dict[int, State] = {0: self.state.copy()}
        self.away: frozenset[int] = frozenset()
        self.waiting: list[Waiting] = []
        self.waiting_before: list[Waiting] = []  # as the batch began
        self.rerun: list[Waiting] = []
        self.expected: dict[int, Any] = {}  # answers of the open batch
        self.calls: dict[int, tuple[Call, int]] = {}  # all that were ever sent, with the LSN known before
        self.retried: set[int] = set()
        self.unlogged: dict[int, Any] = {}  # what calls that left nothing were told; in memory only
        self.unlogged_before: dict[int, Any] = {}
        self.arrivals = 0
        self.flushed_at: tuple[Path, int] = (self.directory, 0)

    @initialize(rows_limit=st.sampled_from([0, 2, 1000]))
    def begin(self, rows_limit: int) -> None:
        self.rows_limit = rows_limit
        self.open()

    def open(self) -> None:
        number = self.partition.number if self.partition is not None else 0
        self.partition = OnePartition(
            SCHEMA, PROCEDURES, self.directory, segment_bytes=SEGMENT_BYTES, memory_bytes=32 << 20, leaves_cold=True
        )
        self.partition.number = number
        assert self.partition.store.lost_images + self.partition.store.left_out_images == []
        # A miss depends on what is in memory, which the model does not know: see test_buffer_pool for those.
        self.partition.bring = self.partition.store.misses.bring = self.partition.pool.bring
        self.mark_flushed()

    @property
    def log(self) -> Any:
        assert self.partition.wal is not None
        return self.partition.wal._log

    def mark_flushed(self) -> None:
        self.flushed_at = (self.log._path, self.log._offset)

    # Calls.

    @rule(calls=st.lists(CALLS, min_size=1, max_size=6))
    def run(self, calls: list[Call]) -> None:
        for call in calls:
            number = self.partition.run(call.name, call.key, call.n)
            self.calls[number] = (call, self.partition.lsn)
            self.expect(number, call)

    @rule(name=st.sampled_from(LOCAL), arguments=st.lists(st.tuples(KEYS, NUMBERS), min_size=2, max_size=8))
    def run_group(self, name: str, arguments: list[tuple[int, int]]) -> None:
        """Calls in one group share an outcome record: the reads beside a write are remembered too."""
        numbers = self.partition.run_group(name, arguments)
        returned: dict[int, Any] = {}
        any_wrote = False
        for number, (key, n) in zip(numbers, arguments, strict=True):
            call = Call(name, key, n)
            self.calls[number] = (call, self.partition.lsn)
            try:
                result, wrote = run_on(self.state, call, self.away)
            except Missed as missed:
                self.set_aside(number, call, missed.args[0])
                continue
            self.expected[number] = result
            any_wrote |= wrote
            if result not in ("Aborted", "ProcedureError"):
                returned[number] = result
            else:
                self.unlogged[number] = result
        (self.state.outcomes if any_wrote else self.unlogged).update(returned)

    @rule(key=KEYS, n=NUMBERS)
    def run_everywhere(self, key: int, n: int) -> None:
        self.expect(self.partition.run_everywhere("set_rate", key, n), Call("set_rate", key, n))

    def expect(self, number: int, call: Call, arrival: int = 0) -> None:
        try:
            result, wrote = run_on(self.state, call, self.away)
        except Missed as missed:
            self.set_aside(number, call, missed.args[0], arrival)
            return
        self.expected[number] = result
        (self.state.outcomes if wrote else self.unlogged)[number] = result

    def set_aside(self, number: int, call: Call, missing: frozenset[Any], arrival: int = 0) -> None:
        self.arrivals += 1
        self.waiting.append(Waiting(number, call, missing, arrival or self.arrivals))

    # Keys that leave and come back.

    @rule(key=KEYS)
    def send_away(self, key: int) -> None:
        self.partition.table("items").send_all_away([key])
        self.away |= {key}

    @precondition(lambda self: self.away)
    @rule(data=st.data())
    def bring_back(self, data: st.DataObject) -> None:
        self.arrive(data.draw(st.sampled_from(sorted(self.away))))

    def arrive(self, key: int) -> None:
        self.partition.arrive("items", key)
        self.away -= {key}
        here: set[Any] = {key} if self.away else {key, WHOLE_TABLE}
        self.waiting = [call._replace(missing=call.missing - here) for call in self.waiting]
        assert self.partition.executor.has_ready == any(not call.missing for call in self.waiting)
        self.run_ready()

    def run_ready(self) -> None:
        self.partition.executor.run_ready()
        ready = sorted((call for call in self.waiting if not call.missing), key=lambda call: call.arrival)
        self.waiting = [call for call in self.waiting if call.missing]
        self.rerun += ready
        for call in ready:
            self.expect(call.number, call.call, call.arrival)

    # Retries.

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.calls)[-30:]))
        call, floor = self.calls[number]
        self.partition.run(call.name, call.key, call.n, number=number, floor=floor)
        if any(number == waiting.number for waiting in self.waiting):
            return  # it has joined it
        self.retried.add(number)
        if number in self.state.outcomes:
            self.expected[number] = self.state.outcomes[number]
        elif number in self.unlogged:
            self.expected[number] = self.unlogged[number]
        else:
            self.expect(number, call)

    @precondition(lambda self: self.retried)
    @rule(data=st.data())
    def first_attempt_after_its_retry(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.retried)))
        call, _ = self.calls[number]
        self.partition.run(call.name, call.key, call.n, number=number)

    # Batches.

    @rule()
    def seal(self) -> None:
        self.partition.answers.clear()
        self.partition.seal()
        answers = {
            number: type(answer).__name__ if isinstance(answer, Error) else answer
            for number, answer in self.partition.answers.items()
        }
        assert answers == self.expected
        if self.log._path != self.flushed_at[0]:  # a new segment: everything before it was flushed
            self.flushed_at = (self.log._path, 40)
            self.sealed = {lsn: state for lsn, state in self.sealed.items() if lsn >= self.log.flushed_lsn}
        self.sealed[self.partition.lsn] = self.state.copy()
        for table in self.partition.store.tables:
            table._rows_limit = self.rows_limit
        self.begin_batch()

    def begin_batch(self) -> None:
        self.expected = {}
        self.rerun = []
        self.waiting_before = list(self.waiting)
        self.unlogged_before = dict(self.unlogged)

    @rule()
    def undo_batch(self) -> None:
        """As for want of room, except that there is some: calls that were rerun in the batch run once more."""
        self.partition.executor.undo_batch()
        self.state = self.sealed[max(self.sealed)].copy()
        self.unlogged = dict(self.unlogged_before)
        rerun = {call.number: call for call in reversed(self.rerun)}
        before = {call.number: call for call in self.waiting_before}
        now = {call.number: call for call in self.waiting}
        # Calls that already waited wait for what is still missing of it.
        self.waiting = [rerun[number] if number in rerun else now.get(number, call) for number, call in before.items()]
        self.expected = {}
        self.rerun = []
        assert self.partition.executor.has_ready == bool([call for call in self.waiting if not call.missing])
        self.run_ready()

    @rule()
    def flush(self) -> None:
        assert self.partition.wal is not None
        self.partition.wal.flush()
        self.sealed = {lsn: state for lsn, state in self.sealed.items() if lsn >= self.log.flushed_lsn}
        self.mark_flushed()

    @precondition(lambda self: not self.expected and not self.partition.store.undo_log)
    @rule(slices=st.integers(1, 15))
    def checkpoint(self, slices: int) -> None:
        """Begins one, or goes on with the one under way, which a crash may cut off anywhere."""
        if not self.partition.checkpointer.running:
            self.partition.checkpointer.request()
        for _ in range(slices):
            self.partition.checkpointer._flusher.wait()
            if not self.partition.checkpointer.step(0.0):
                break
        if self.log.flushed_lsn == self.partition.lsn:
            self.sealed = {lsn: state for lsn, state in self.sealed.items() if lsn >= self.log.flushed_lsn}
            self.mark_flushed()

    @precondition(lambda self: not self.expected and not self.partition.store.undo_log)
    @rule(frames=st.integers(1, 4))
    def evict(self, frames: int) -> None:
        """Pages that the page file has leave memory, but for a few."""
        pool = self.partition.pool
        capacity, pool.capacity = pool.capacity, frames
        pool.step(0.0)
        pool.capacity = capacity

    # Ends and starts.

    @rule(seed=st.integers(0, 2**32))
    def crash(self, seed: int) -> None:
        """What was not flushed may be on disk or not, each sector for itself."""
        path, offset = self.log._path, self.log._offset
        flushed_lsn = self.log.flushed_lsn
        assert path == self.flushed_at[0]
        self.partition.reader.close()
        self.partition.checkpointer.close()
        self.partition.wal.abandon()  # type: ignore[union-attr]  # there is one
        rng = random.Random(seed)
        keeps = rng.choice([0.0, 0.5, 0.9, 1.0])
        data = bytearray(path.read_bytes())
        at = self.flushed_at[1]
        while at < offset:
            end = min(at // SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES, offset)
            if rng.random() > keeps:
                data[at:end] = bytes(end - at)
            at = end
        path.write_bytes(data)
        self.reopen(flushed_lsn)

    @rule()
    def stop(self) -> None:
        lsn = self.partition.lsn
        self.partition.reader.close()
        self.partition.checkpointer.close()
        self.partition.wal.close()  # type: ignore[union-attr]  # there is one
        self.reopen(lsn)

    def reopen(self, at_least_lsn: int) -> None:
        self.open()
        lsn = self.partition.lsn
        assert lsn >= at_least_lsn
        self.state = self.sealed[lsn].copy()
        self.sealed = {lsn: self.state.copy()}
        self.away, self.waiting, self.retried, self.unlogged = frozenset(), [], set(), {}
        self.begin_batch()
        self.compare()

    # What must hold.

    @invariant()
    def what_can_be_read_is_the_model(self) -> None:
        if self.partition is not None and not self.away:
            self.compare()

    def compare(self) -> None:
        items, notes, rates = (self.partition.table(name) for name in ("items", "notes", "rates"))
        assert {row.id: (row.n, len(row.pad)) for row in items.scan()} == self.state.items
        assert [row.id for row in items.range(0, 100)] == sorted(self.state.items)
        assert sorted((row.owner, len(row.text)) for row in notes.scan()) == sorted(self.state.notes)
        assert {row.code: row.n for row in rates.scan()} == self.state.rates
        assert [row.n for row in items.lookups.range("items_n")] == sorted(n for n, _ in self.state.items.values())
        assert (items.count(), notes.count(), rates.count()) == tuple(map(len, self.state[:3]))
        assert self.partition.executor.waiting == len(self.waiting)

    @invariant()
    def every_structure_is_sound(self) -> None:
        if self.partition is not None and not self.expected and not self.partition.store.undo_log:
            self.partition.store.apply()
            self.partition.store.check()

    def teardown(self) -> None:
        try:
            if self.partition is not None:
                for key in sorted(self.away):
                    self.arrive(key)
                assert self.waiting == []
                self.seal()
                self.compare()
                self.flush()
                self.crash(0)
        finally:
            if self.partition is not None:
                self.partition.reader.close()
                self.partition.checkpointer.close()
                self.partition.wal.abandon()  # type: ignore[union-attr]  # there is one
            shutil.rmtree(self.directory)


def test_the_partition_equals_the_model() -> None:
    run_state_machine_as_test(
        PartitionMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
