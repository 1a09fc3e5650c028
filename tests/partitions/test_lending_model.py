"""Lending against a plain model: random orders, calls, sessions, checkpoints, and crashes that lose unflushed sectors.

The model knows which keys are away and who waits for them, what each batch has prepared, and what each WAL record left
behind: after a crash the partition must be as after one of the records that may have survived, with all that was
prepared by then, and nothing that was only lent.

8 seeds in the suite; VOLTPY_LENDING_SEEDS=2000 in the environment makes it 2,000.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from msgspec import Raw

from tests.partitions.one_partition import OnePartition
from tests.partitions.test_lending import ITEMS, PROCEDURES, SCHEMA, borrow, item, items_stored
from voltpy.errors import Error
from voltpy.messages import (
    LEASE_S,
    Commit,
    Decide,
    Decided,
    Detach,
    Lent,
    Prepare,
    Read,
    ReadAnswer,
    Recall,
    Recalled,
    Release,
    ReplyGroup,
    Scan,
    TableChanges,
    TableKeys,
    Vote,
)
from voltpy.row import encode
from voltpy.wire import joined

SEEDS = int(os.environ.get("VOLTPY_LENDING_SEEDS", "8"))
STEPS = 150
KEYS = range(12)
SECTOR_BYTES = 512
COORDINATORS_CLIENT = 70
WHOLE = -1  # for whatever waits for all of the table


class Call(NamedTuple):
    number: int
    name: str
    arguments: tuple[int, ...]


class Moment(NamedTuple):
    """What a WAL record left behind."""

    rows: dict[int, int]
    prepared: dict[int, dict[int, int | None]]
    committed: dict[int, int]


class World:
    """The partition, and what is known of it."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self.directory = directory
        self.rng = rng
        self.rows: dict[int, int] = {}
        self.prepared: dict[int, dict[int, int | None]] = {}  # batch → key → new value, None: deleted
        self.committed: dict[int, int] = {}  # batch in one phase → what its call was told
        self.lent: dict[int, set[int]] = {}  # batch → keys
        self.whole: int | None = None  # the batch that has the table
        self.lost: set[int] = set()
        self.waiting: list[tuple[Call, int]] = []  # in order of arrival, with the key that was missed
        self.expected: dict[int, Any] = {}
        self.batch = 0
        self.round = 0
        self.epoch = 0
        self.moments: dict[int, Moment] = {}
        self.open()
        self.remember()

    # The partition's lives.

    def open(self) -> None:
        number = self.partition.number if self.epoch else 0
        self.partition = OnePartition(SCHEMA, PROCEDURES, self.directory, segment_bytes=8192, memory_bytes=32 << 20)
        self.partition.number = number
        self.partition.bring = self.partition.pool.bring  # which pages are cold the model does not know
        self.epoch += 1
        assert self.partition.attach(self.epoch).in_doubt == sorted(self.prepared)
        self.mark_flushed()

    @property
    def log(self) -> Any:
        assert self.partition.wal is not None
        return self.partition.wal._log

    def mark_flushed(self) -> None:
        self.flushed_at = self.log._path, self.log._offset

    def remember(self, lsn: int | None = None) -> None:
        """How it is now, after the last record, or after this one, behind which others have come already."""
        if self.log._path != self.flushed_at[0]:  # a new segment: everything before it was flushed
            self.flushed_at = self.log._path, 40
        prepared = {batch: changes.copy() for batch, changes in self.prepared.items()}
        self.moments[self.partition.lsn if lsn is None else lsn] = Moment(
            self.rows.copy(), prepared, self.committed.copy()
        )

    def flush(self) -> None:
        self.partition.wal.flush()  # type: ignore[union-attr]  # there is one
        self.mark_flushed()

    def crash(self) -> None:
        log, rng = self.log, self.rng
        flushed_lsn, written_lsn, path, offset = log.flushed_lsn, self.partition.lsn, log._path, log._offset
        self.partition.checkpointer.close()
        self.partition.wal.abandon()  # type: ignore[union-attr]  # there is one
        keeps = rng.choice([0.0, 0.5, 0.9, 1.0])
        data = bytearray(path.read_bytes())
        at = self.flushed_at[1]
        while at < offset:
            end = min(at // SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES, offset)
            if rng.random() > keeps:
                data[at:end] = bytes(end - at)
            at = end
        path.write_bytes(data)
        number = self.partition.number
        probe = OnePartition(SCHEMA, PROCEDURES, self.directory, segment_bytes=8192, memory_bytes=32 << 20)
        lsn = probe.lsn
        assert flushed_lsn <= lsn <= written_lsn
        self.rows, self.prepared, self.committed = self.moments[lsn]
        self.moments.clear()
        self.lent, self.whole, self.lost, self.waiting = {}, None, set(), []
        probe.checkpointer.close()
        probe.wal.abandon()  # type: ignore[union-attr]  # there is one
        self.partition.number = number
        self.open()
        self.remember()
        assert items_stored(self.partition) == self.rows
        self.partition.store.check()
        numbers = list(self.committed) or [1]
        (recalled,) = self.partition.order(Recall(COORDINATORS_CLIENT, numbers))
        assert isinstance(recalled, Recalled)
        assert recalled.reaches == 0
        assert {n: msgspec.msgpack.decode(r) for n, r in recalled.results.items()} == self.committed

    def checkpoint(self) -> None:
        if not self.partition.checkpointer.running:
            self.partition.checkpointer.request()
        for _ in range(self.rng.randrange(1, 15)):
            self.partition.checkpointer._flusher.wait()
            if not self.partition.checkpointer.step(0.0):
                break
        self.partition.wal.wait_flush()  # type: ignore[union-attr]  # what it began, before anything is appended
        if self.log.flushed_lsn == self.partition.lsn:
            self.mark_flushed()

    # Who has what.

    @property
    def away(self) -> set[int]:
        return {key for keys in self.lent.values() for key in keys} | self.in_doubt

    @property
    def in_doubt(self) -> set[int]:
        return {key for changes in self.prepared.values() for key in changes}

    def missed_by(self, call: Call) -> int | None:
        """The first that this call misses, None when all of it is here."""
        if self.whole is not None:
            return WHOLE
        if call.name == "count":
            return WHOLE if self.away else None
        for key in call.arguments if call.name == "transfer" else call.arguments[:1]:
            if key in self.away:
                return key
            if call.name == "transfer" and key not in self.rows:
                return None  # it fails before it comes to the other one
        return None

    # Calls.

    def call(self) -> None:
        name = self.rng.choice(["add", "put", "insert", "get", "count", "transfer"])
        a, b = self.rng.sample(KEYS, 2)
        arguments = {"get": (a,), "count": (a,), "transfer": (a, b)}.get(name, (a, self.rng.randrange(100)))
        call = Call(self.partition.run(name, *arguments), name, arguments)
        missed = self.missed_by(call)
        if missed is None:
            self.expect(call)
        else:
            self.waiting.append((call, missed))
        self.partition.seal()
        self.remember()

    def expect(self, call: Call) -> None:
        """It runs now."""
        rows, key = self.rows, call.arguments[0]
        answer: Any = None
        if call.name == "add":
            if key in rows:
                answer = rows[key] = rows[key] + call.arguments[1]
            else:
                answer = "error"
        elif call.name == "put":
            rows[key] = call.arguments[1]
        elif call.name == "insert":
            if key in rows:
                answer = "error"
            else:
                rows[key] = call.arguments[1]
        elif call.name == "get":
            answer = rows.get(key)
        elif call.name == "count":
            answer = len(rows)
        else:
            target = call.arguments[1]
            if key in rows and target in rows:
                rows[key] -= 1
                rows[target] += 1
                answer = "done"
            else:
                answer = "error"
        self.expected[call.number] = answer

    def came_back(self, *, table_came: bool = False) -> None:
        """Those who missed what is here now run again, in the order in which they came."""
        still: list[tuple[Call, int]] = []
        for call, missed in self.waiting:
            if missed == WHOLE:
                is_ready = table_came or (self.whole is None and not self.away)
            else:
                is_ready = missed not in self.away
            if not is_ready:
                still.append((call, missed))
                continue
            again = self.missed_by(call)
            if again is None:
                self.expect(call)
            else:
                still.append((call, again))
        if self.partition.executor.has_ready:
            self.partition.run_ready()
        self.waiting = sorted(still)
        self.remember()

    # Orders.

    def lend(self) -> None:
        if not self.lent and self.whole is None and self.rng.random() < 0.5:
            self.batch += 1
        batch = self.batch if self.rng.random() < 0.9 else self.batch + 1
        self.batch = max(self.batch, batch)
        keys = self.rng.sample(KEYS, self.rng.randrange(1, 5))
        takes_table = self.rng.random() < 0.15
        scans = [Scan(ITEMS, "scan")] if takes_table else []
        own = self.lent.get(batch, set())
        is_free = (
            batch not in self.lost
            and batch not in self.prepared
            and self.whole in (None, batch)
            and not (self.away - own).intersection(keys)
            and not (takes_table and self.away - own)
        )
        (answer,) = self.partition.order(borrow(batch, *keys, scans=scans))
        assert isinstance(answer, Lent)
        assert (not answer.refused) == is_free, answer.refused
        if not is_free:
            return
        assert answer.images == [[None if key not in self.rows else item(key, self.rows[key]) for key in keys]]
        if takes_table:
            assert sorted(answer.scans[0].images) == sorted(item(*row) for row in self.rows.items())
            self.whole = batch
        self.lent.setdefault(batch, set()).update(keys)

    def changes(self, batch: int) -> dict[int, int | None]:
        held = sorted(self.lent.get(batch, set())) if self.whole != batch else list(KEYS)
        if self.rng.random() < 0.1:
            held = list(KEYS)
        some = self.rng.sample(held, self.rng.randrange(len(held) + 1))
        return {key: self.rng.choice([None, self.rng.randrange(1000)]) for key in some}

    def holds(self, batch: int, changes: dict[int, int | None]) -> bool:
        if batch in self.lost or self.whole not in (None, batch):
            return batch not in self.lost and not changes
        return self.whole == batch or self.lent.get(batch, set()).issuperset(changes)

    def give_back(self, batch: int) -> None:
        """All that it has, but for what is prepared."""
        self.lent.pop(batch, None)
        table_came = self.whole == batch
        if table_came:
            self.whole = None
        self.came_back(table_came=table_came)

    def prepare(self) -> None:
        batch = self.batch
        if batch in self.prepared:
            return
        changes = self.changes(batch)
        says_yes = self.holds(batch, changes)
        lsn = self.partition.lsn
        (vote,) = self.partition.order(Prepare(batch, encoded(changes)))
        assert isinstance(vote, Vote)
        assert (not vote.error) == says_yes, vote
        if not says_yes:
            self.lost.add(batch)
        elif changes:
            self.prepared[batch] = changes
            self.remember(lsn + 1)
        self.give_back(batch)

    def commit(self) -> None:
        batch = self.batch
        if batch in self.prepared or batch in self.committed:
            return
        changes = self.changes(batch)
        says_yes = self.holds(batch, changes)
        lsn = self.partition.lsn
        outcomes = [ReplyGroup(COORDINATORS_CLIENT, [batch], joined([encode(batch * 2)]))]
        (vote,) = self.partition.order(Commit(batch, encoded(changes), Raw(encode(outcomes))))
        assert isinstance(vote, Vote)
        assert (not vote.error) == says_yes, vote
        if says_yes:
            self.apply(changes)
            self.committed[batch] = batch * 2
            self.remember(lsn + 1)
        else:
            self.lost.add(batch)
        self.give_back(batch)

    def apply(self, changes: dict[int, int | None]) -> None:
        for key, value in changes.items():
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value

    def decide(self) -> None:
        batch = self.rng.choice([*self.prepared, self.batch, self.batch + 5])
        commits = self.rng.random() < 0.6
        lsn = self.partition.lsn
        assert self.partition.order(Decide(batch, commits)) == [Decided(batch)]
        changes = self.prepared.pop(batch, None)
        if changes is not None:
            if commits:
                self.apply(changes)
            self.remember(lsn + 1)
        self.lost.discard(batch)
        self.give_back(batch)
        if batch == self.batch:
            self.batch += 1

    def read(self) -> None:
        self.round += 1
        keys = self.rng.sample(KEYS, 2)
        scans = [Scan(ITEMS, "count")] if self.rng.random() < 0.3 else []
        is_here = self.whole is None and not (self.away & set(keys)) and not (scans and self.away)
        order = Read(self.round, [TableKeys(ITEMS, [encode(key) for key in keys])], scans)
        (answer,) = self.partition.order(order)
        assert isinstance(answer, ReadAnswer)
        assert (self.partition.participant.rounds.first_open < float("inf")) == is_here
        assert self.partition.order(Release(self.round)) == []
        assert self.partition.participant.rounds.first_open == float("inf")
        assert answer.is_here == is_here
        if is_here:
            assert answer.images == [[None if key not in self.rows else item(key, self.rows[key]) for key in keys]]
            assert [scan.count for scan in answer.scans] == [len(self.rows)] * len(scans)

    def lose_all(self) -> None:
        """The lease ends, a new session begins, or the coordinator is dead."""
        how = self.rng.choice(["lease", "session", "coordinator"])
        batches = {*self.lent, *(() if self.whole is None else (self.whole,))}
        if how == "lease":
            self.partition.step(LEASE_S)
        elif how == "session":
            assert self.partition.attach(self.epoch).in_doubt == sorted(self.prepared)
        else:
            self.partition.participant.detach(Detach(self.epoch))
            self.epoch += 1
        self.lost |= batches
        table_came = self.whole is not None
        self.lent, self.whole = {}, None
        self.came_back(table_came=table_came)
        if how == "coordinator":
            assert self.partition.attach(self.epoch).in_doubt == sorted(self.prepared)
            self.lost.clear()
            self.batch += 1

    def check(self) -> None:
        answers = self.partition.answers
        told = {number: "error" if isinstance(answer, Error) else answer for number, answer in answers.items()}
        assert told == self.expected
        answers.clear()
        self.expected.clear()
        assert items_stored(self.partition) == self.rows
        assert self.partition.store.tables[ITEMS].away == self.away
        assert sorted(self.partition.store.prepared) == sorted(self.prepared)
        assert self.partition.executor.waiting == self.partition.executor.waiting_for_lent == len(self.waiting)


def encoded(changes: dict[int, int | None]) -> list[TableChanges]:
    images = [item(key, value) for key, value in changes.items() if value is not None]
    deleted = [encode(key) for key, value in changes.items() if value is None]
    return [TableChanges(ITEMS, images, deleted)] if changes else []


@pytest.mark.parametrize("seed", range(SEEDS))
def test_orders_calls_and_crashes_at_random(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    world = World(tmp_path, rng)
    steps = [
        (world.call, 10), (world.lend, 6), (world.prepare, 3), (world.commit, 2), (world.decide, 3), (world.read, 2),
        (world.lose_all, 1), (world.flush, 2), (world.checkpoint, 2), (world.crash, 1),
    ]  # fmt: skip
    chosen = rng.choices([step for step, _ in steps], [weight for _, weight in steps], k=STEPS)
    for step in chosen:
        step()
        world.check()
    for batch in list(world.prepared):
        world.partition.order(Decide(batch, True))
        world.apply(world.prepared.pop(batch))
        world.came_back()
    world.check()
    world.partition.store.check()
