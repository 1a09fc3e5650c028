"""A partition in memory that obeys the coordinator's protocol, and a cluster of them around the real core.

What is on disk outlives `restart`: rows, prepares, and outcomes of batches that were committed in it alone. Everything
else does not. Frames travel in queues, and are delivered when the test says so.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from operator import attrgetter
from random import Random
from typing import Any

import msgspec
from msgspec import Raw

from coordinator.bodies import Bodies
from coordinator.decision_log import Decision
from coordinator.transactions import Transactions
from voltpy import wire
from voltpy.errors import Error, from_wire
from voltpy.messages import (
    BATCH_BITS,
    MAX_FRAME_BYTES,
    NEVER_SENT,
    Attach,
    Attached,
    Borrow,
    CallError,
    CallGroup,
    Commit,
    Decide,
    Decided,
    EverywhereCall,
    Lent,
    Orders,
    PartitionAddress,
    Prepare,
    Ran,
    Read,
    ReadAnswer,
    Recall,
    Recalled,
    Release,
    ReplyGroup,
    Reports,
    RunDirected,
    Scan,
    ScanAnswer,
    TableChanges,
    TableKeys,
    Topology,
    UniqueValues,
    Vote,
)
from voltpy.outcome_window import OutcomeWindow
from voltpy.registry import from_functions
from voltpy.row import RowFormat, encode
from voltpy.schema import Schema
from voltpy.transaction import unique_ids
from voltpy.wire import joined

CLIENT = 7
decode = msgspec.msgpack.Decoder().decode
decode_groups = msgspec.msgpack.Decoder(list[ReplyGroup]).decode
Key = tuple[int, bytes]


class FakePartition:
    """`refuses`: what the next votes say, by batch or, under None, all of them."""

    def __init__(self, number: int, schema: Schema) -> None:
        self.number = number
        self.formats = [RowFormat(table) for table in schema.tables]
        self.unique = {index.name: attrgetter(*index.columns) for index in schema.indexes if index.unique}
        self.replicated = {n for n, table in enumerate(schema.tables) if table.partition_column is None}
        self.rows: dict[Key, bytes] = {}
        self.prepared: dict[int, list[TableChanges]] = {}
        self.alone: dict[tuple[int, int], bytes] = {}  # results of calls that were committed in this partition alone
        self.reaches = 0
        self.incarnation = 1
        self.directed: Callable[[FakePartition, RunDirected], Ran] = lambda partition, order: Ran(
            order.batch, Raw(encode(partition.number)), []
        )
        self.refuses: dict[int | None, Vote] = {}
        self.is_too_large = False  # to be scanned at once
        self.log: list[Any] = []  # every order that it has carried out
        self._begin()

    def _begin(self) -> None:
        self.session = (0, 0)
        self.number_in = self.number_out = 0
        self.lent: dict[Key, int] = {}
        self.lent_tables: dict[int, int] = {}
        self.borrowed_by: set[int] = set()  # batches that hold everything that they borrowed here
        self.broken: set[int] = set()  # batches that have lost something
        self.held_round: int | None = None

    def restart(self) -> None:
        self.incarnation += 1
        self._begin()

    def expire_leases(self) -> None:
        self.broken |= self.borrowed_by
        self._take_back()

    def is_free(self, key: Key) -> bool:
        return key not in self.lent and key[0] not in self.lent_tables and not self.is_locked(key)

    def is_locked(self, key: Key) -> bool:
        return any(key in self._keys(changes) for changes in self.prepared.values())

    def receive(self, frame: Attach | Orders) -> Attached | Reports | None:
        if isinstance(frame, Attach):
            if frame.epoch < self.session[0]:
                return None
            self._take_back()
            self.broken.clear()
            self.held_round = None
            self.session = (frame.epoch, frame.session)
            self.number_in = self.number_out = 0
            return Attached(frame.epoch, frame.session, self.incarnation, sorted(self.prepared))
        if (frame.epoch, frame.session) != self.session:
            return None
        if frame.number != self.number_in + 1:
            self.session = (frame.epoch, -1)
            return None
        self.number_in += 1
        self.number_out += 1
        reports = [report for order in frame.orders if (report := self._carry_out(order)) is not None]
        return Reports(frame.epoch, frame.session, self.number_out, reports)

    def _take_back(self) -> None:
        self.lent.clear()
        self.lent_tables.clear()
        self.borrowed_by.clear()

    def _carry_out(self, order: Any) -> Any:
        self.log.append(order)
        if isinstance(order, Borrow):
            return self._lend(order)
        if isinstance(order, Prepare | Commit):
            return self._vote(order)
        if isinstance(order, Decide):
            changes = self.prepared.pop(order.batch, None)
            if changes is not None and order.commits:
                self._apply(changes)
            self._give_back(order.batch)
            return Decided(order.batch)
        if isinstance(order, Read):
            return self._read(order)
        if isinstance(order, Release):
            self.held_round = None
            return None
        if isinstance(order, Recall):
            found = {n: self.alone[order.client_id, n] for n in order.numbers if (order.client_id, n) in self.alone}
            return Recalled(order.client_id, found, self.reaches)
        assert isinstance(order, RunDirected)
        ran = self.directed(self, order)
        if ran.error is None:
            self.prepared[order.batch] = ran.copies
            self.held_round = order.batch
        return ran

    def _lend(self, order: Borrow) -> Lent:
        if order.batch in self.broken:
            return Lent(order.batch, [], [], "Unavailable: the batch has lost what it borrowed")
        if order.scans and self.is_too_large:
            return Lent(order.batch, [], [], "ConstraintViolation: 9 bytes of rows at once")
        for of_table in order.keys:
            for key in of_table.keys:
                place = of_table.table, key
                assert not self.is_locked(place), "a key that is prepared can't be borrowed"
                assert self.lent.get(place, order.batch) == order.batch, "one batch borrows at a time"
                if of_table.table not in self.replicated:
                    self.lent[place] = order.batch
                    self.borrowed_by.add(order.batch)
        for of_table in order.locks:
            for key in of_table.keys:
                place = of_table.table, key
                assert not self.is_locked(place), "a key that is prepared can't be locked"
                assert self.lent.get(place, order.batch) == order.batch, "one batch borrows at a time"
                self.lent[place] = order.batch
                self.borrowed_by.add(order.batch)
        for scan in order.scans:
            if scan.table not in self.replicated:
                self.lent_tables[scan.table] = order.batch
                self.borrowed_by.add(order.batch)
        entries = [[self._lend_entry(order.batch, each, value) for value in each.values] for each in order.entries]
        images = self._images(order.keys)
        return Lent(order.batch, images, [self.scan(scan) for scan in order.scans], "", entries)

    def _lend_entry(self, batch: int, of_index: UniqueValues, value: bytes) -> bytes | None:
        """The value of a unique index, and the row that has it."""
        values_of, wanted = self.unique[of_index.index], repr(decode(value))
        places: list[Key] = [(of_index.table, of_index.index.encode() + value)]
        image = None
        for place, of_row in self.rows.items():
            if place[0] == of_index.table:
                values = values_of(self.formats[place[0]].decode(of_row))
                values = list(values) if isinstance(values, tuple) else [values]
                if repr([each + 0.0 if isinstance(each, float) else each for each in values]) == wanted:  # -0.0 is 0.0
                    places.append(place)
                    image = of_row
        for place in places:
            assert not self.is_locked(place), "an entry that is prepared can't be borrowed"
            assert self.lent.get(place, batch) == batch, "one batch borrows at a time"
            if of_index.table not in self.replicated:
                self.lent[place] = batch
                self.borrowed_by.add(batch)
        return image

    def _images(self, keys: list[TableKeys]) -> list[list[bytes | None]]:
        return [[self.rows.get((each.table, key)) for key in each.keys] for each in keys]

    def scan(self, scan: Scan) -> ScanAnswer:
        format = self.formats[scan.table]
        rows = [(format.decode(image), image) for (table, _), image in self.rows.items() if table == scan.table]
        arguments = decode(scan.arguments)
        if scan.kind == "count":
            return ScanAnswer([], len(rows))
        if scan.kind == "where":
            rows = [each for each in rows if all(getattr(each[0], name) == arguments[name] for name in arguments)]
        elif scan.kind == "range":
            low, high = arguments
            if isinstance(low, list):
                low, high = tuple(low), tuple(high)
            rows = sorted((each for each in rows if low <= format.key_of(each[0]) < high), key=lambda r: r[1])
        return ScanAnswer([image for _, image in rows], len(rows))

    def _vote(self, order: Prepare | Commit) -> Vote:
        refused = self.refuses.pop(order.batch, None) or self.refuses.get(None)
        if refused is not None:
            return Vote(order.batch, refused.error, refused.message)
        if order.batch in self.broken:
            return Vote(order.batch, "Unavailable", "a lease has ended")
        keys = self._keys(order.changes)
        assert not any(self.is_locked(key) for key in keys), "prepared twice"
        self._give_back(order.batch)
        if isinstance(order, Commit):
            self._apply(order.changes)
            for group in decode_groups(order.outcomes):
                for number, result in zip(group.numbers, decode(group.results), strict=True):
                    assert (group.client_id, number) not in self.alone, "committed twice"
                    self.alone[group.client_id, number] = encode(result)
        elif order.changes:
            self.prepared[order.batch] = order.changes
        return Vote(order.batch, "")

    def _read(self, order: Read) -> ReadAnswer:
        wanted = [(of_table.table, key) for of_table in order.keys for key in of_table.keys]
        locked = {table for changes in self.prepared.values() for table, _ in self._keys(changes)}
        tables = {scan.table for scan in order.scans}
        lent = {table for table, _ in self.lent} | set(self.lent_tables)
        is_too_large = bool(tables) and self.is_too_large
        if not all(map(self.is_free, wanted)) or tables & (locked | lent) or is_too_large:
            return ReadAnswer(order.round, [], [], False)
        self.held_round = order.round
        return ReadAnswer(order.round, self._images(order.keys), [self.scan(scan) for scan in order.scans])

    def _give_back(self, batch: int) -> None:
        self.lent = {key: of for key, of in self.lent.items() if of != batch}
        self.lent_tables = {table: of for table, of in self.lent_tables.items() if of != batch}
        self.borrowed_by.discard(batch)
        self.broken.discard(batch)

    def _keys(self, changes: list[TableChanges]) -> set[Key]:
        keys = {(change.table, key) for change in changes for key in change.deleted}
        for change in changes:
            format = self.formats[change.table]
            keys.update((change.table, encode(format.key_of(format.decode(image)))) for image in change.images)
        return keys

    def _apply(self, changes: list[TableChanges]) -> None:
        for change in changes:
            format = self.formats[change.table]
            for image in change.images:
                self.rows[change.table, encode(format.key_of(format.decode(image)))] = image
            for key in change.deleted:
                self.rows.pop((change.table, key), None)


class FakeCluster:
    """The core between fake partitions. `answers`: what calls were told, by number; a second answer is an error."""

    def __init__(self, schema: Schema, procedures: Iterable[Callable[..., Any]], partitions: int = 2) -> None:
        self.schema = schema
        self.procedures = list(procedures)
        self.partitions = [FakePartition(number, schema) for number in range(partitions)]
        self.now = 100.0
        self.decisions: list[Decision] = []
        self.number = 0
        self.answers: dict[int, Any] = {}
        self.dropped = 0
        self.epoch = 0
        self.has_room = True
        self.down: set[int] = set()
        self.version = 0
        self.start()

    def start(self) -> None:
        """A coordinator begins, with what the decision log holds."""
        self.epoch += 1
        schema, count = self.schema, len(self.partitions)
        self.running = array("Q", bytes(64))
        self.bodies = Bodies(
            schema, count, from_functions(self.procedures), self.running, unique_ids(count, self.epoch),
            lambda: datetime(2026, 1, 1, tzinfo=UTC),
        )  # fmt: skip
        window = OutcomeWindow(0)
        for decision in self.decisions:
            window.add(decision.batch, bytes(decision.outcomes))
        self.core = Transactions(count, self.epoch, self.bodies, self.decisions, window)
        self.to_partition: list[deque[tuple[int, Any]]] = [deque() for _ in self.partitions]
        self.to_core: list[deque[tuple[int, Any]]] = [deque() for _ in self.partitions]
        self.publish()

    def publish(self) -> None:
        addresses = [
            PartitionAddress(p.number, 0 if p.number in self.down else p.incarnation, "", 0, 0) for p in self.partitions
        ]
        self.version += 1
        self.core.topology(Topology(self.version, 1, "", "", addresses, [], []), self.now)
        self.collect()

    def put(self, name: str, *values: Any, partition: int | None = None) -> None:
        """Stores a row, in its partition or, of a copied table, in all."""
        number = self.schema.numbers[name]
        format = self.partitions[0].formats[number]
        row = format.struct(*values)
        table = self.schema.tables[number]
        homes = self.partitions
        if table.partition_column is not None:
            homes = [self.partitions[self.bodies.tables.tables[number]._home(format.key_of(row), row)]]
        for home in homes:
            home.rows[number, encode(format.key_of(row))] = encode(row)

    def row(self, name: str, key: Any, partition: int | None = None) -> Any:
        """The stored row: the one there is, or that in a partition."""
        number = self.schema.numbers[name]
        for each in self.partitions if partition is None else [self.partitions[partition]]:
            image = each.rows.get((number, encode(key)))
            if image is not None:
                return each.formats[number].decode(image)
        return None

    def send(
        self, name: str, *arguments: Any, number: int | None = None, floor: int = NEVER_SENT, origin: str = "a"
    ) -> int:
        if number is None:
            self.number += 1
            number = self.number
        group = CallGroup(CLIENT, name, 0, 0, [number], [0], joined([encode(arguments)]), floor)
        self.core.calls(origin, group, self.now)
        self.collect()
        return number

    def send_everywhere(self, name: str, *arguments: Any) -> int:
        self.number += 1
        self.core.everywhere("a", EverywhereCall(1, CLIENT, name, self.number, Raw(encode(arguments)), 5), self.now)
        return self.number

    def call(self, name: str, *arguments: Any) -> Any:
        """One call, to its end."""
        number = self.send(name, *arguments)
        self.settle()
        return self.answer(number)

    def answer(self, number: int) -> Any:
        answer = self.answers.pop(number)
        if isinstance(answer, Error):
            raise answer
        return answer

    # What happens, one thing at a time.

    def step(self) -> None:
        if self.core.is_answered:
            self.core.believe(self.now)
        self.core.step(self.now)
        decision = self.core.take_decision()
        if decision is not None:
            if self.has_room:
                self.decisions.append(decision)
            self.core.decided(self.now, was_room=self.has_room, reason="disk full")
        self.collect()

    def collect(self) -> None:
        """Frames on their way to the partitions, and answers to the clients."""
        for session in self.core.sessions:
            for frame in session.take_frames():
                # Through bytes: what can't travel must not pass here either.
                data = wire.encode(frame)
                assert len(data) <= MAX_FRAME_BYTES, "a socket would end the connection"
                self.to_partition[session.partition].append((session.connection, wire.decode(data)))
        for answers in self.core.replies().values():
            self.dropped += sum(answers.dropped.values())
            for group in answers.groups:
                for number, result in zip(group.numbers, decode(group.results), strict=True):
                    self._answered(number, result)
            for error in answers.errors:
                self._answered(error.number, from_wire(error.code, error.message, error.type_name))

    def _answered(self, number: int, answer: Any) -> None:
        assert number not in self.answers, f"call {number} was answered twice"
        self.answers[number] = answer

    def deliver(self, partition: int) -> bool:
        """One frame reaches a partition; what it answers is on its way back."""
        queue = self.to_partition[partition]
        if not queue:
            return False
        connection, frame = queue.popleft()
        # Frames of an earlier connection went with it.
        if connection == self.core.sessions[partition].connection and partition not in self.down:
            reports = self.partitions[partition].receive(frame)
            if reports is not None:
                self.to_core[partition].append((connection, wire.decode(wire.encode(reports))))
        return True

    def report(self, partition: int) -> bool:
        """One frame of a partition reaches the core."""
        queue = self.to_core[partition]
        if not queue:
            return False
        connection, frame = queue.popleft()
        if connection == self.core.sessions[partition].connection:
            self.core.receive(partition, frame, self.now)
            self.collect()
        return True

    def exchange(self) -> None:
        """Everything that is on its way arrives."""
        moved = True
        while moved:
            moved = False
            for partition in range(len(self.partitions)):
                while self.deliver(partition) or self.report(partition):
                    moved = True

    def settle_without(self, silent: int) -> None:
        """The same, while nothing reaches one partition."""
        for _ in range(100):
            for partition in range(len(self.partitions)):
                while partition != silent and (self.deliver(partition) or self.report(partition)):
                    pass
            self.step()

    def settle(self) -> None:
        """Until nothing happens any more."""
        for _ in range(1000):
            self.exchange()
            self.step()
            if not any(self.to_partition) and not any(self.to_core) and not self.core.has_work:
                return
        raise AssertionError("it does not end")

    def restart(self, partition: int) -> None:
        """The process of a partition dies and comes back: frames on their way are lost."""
        self.partitions[partition].restart()
        self.to_partition[partition].clear()
        self.to_core[partition].clear()
        self.publish()

    def crash(self) -> None:
        """The coordinator dies; another one begins."""
        self.start()

    def take_down(self, partition: int) -> None:
        self.down.add(partition)
        self.publish()

    def bring_up(self, partition: int) -> None:
        self.down.discard(partition)
        self.restart(partition)

    def random_event(self, random: Random) -> None:
        """Something that is possible happens."""
        partition = random.randrange(len(self.partitions))
        random.choice((lambda: self.deliver(partition), lambda: self.report(partition), self.step))()


def first_batch(epoch: int) -> int:
    return epoch << BATCH_BITS | 1


__all__ = ["CLIENT", "CallError", "FakeCluster", "FakePartition", "first_batch"]
