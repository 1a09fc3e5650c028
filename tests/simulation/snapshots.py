"""Somebody takes snapshots of the simulated cluster while it works, and looks at what is in them.

The code is that of `voltpy snapshot` (voltpy.snapshot_taking), with the copier (partitions.copier) in the same process.
What must be so of each that is complete:

    nothing in it is damaged, and nothing undecided                                              partitions.verify
    each partition's part is the partition at one moment: a transaction that reads all of it     the history's checker
    no transaction is in one part and not in another; copies are equal; the bank's total is right
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from unittest import mock

from partitions import copier
from partitions.buffer_pool import BufferPool
from partitions.checkpoint import load, read_checkpoint
from partitions.page_reader import PageReader
from partitions.store import Store
from partitions.verify import Verification
from tests.simulation.history import Append, Outcome, Read, Transaction
from tests.simulation.list_append import MOST_PLACES
from tests.simulation.stage import ROUTER_PORT
from tests.simulation.world import Process
from voltpy import snapshot_taking
from voltpy.address import Address
from voltpy.calls import Command
from voltpy.connection import Connection
from voltpy.data_directory import partition_directory, read_schema
from voltpy.errors import ClusterError, Corruption, Indeterminate, Unavailable
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.links import Links

if TYPE_CHECKING:
    from tests.simulation.run import Run

CLIENT_ID = 98
TIMEOUT_S = 2.0
MEMORY_BYTES = 2 << 20
MOST = 4  # in a run

Lists = dict[str, tuple[int, ...]]  # by key, as in the history


class Part(NamedTuple):
    """What of one partition is in a snapshot."""

    lists: Lists
    copies: Lists
    balance: int


class Taker:
    """A process that takes snapshots as long as there is trouble, and one more in peace."""

    def __init__(self, run: Run, rng: Random) -> None:
        self.is_done = False
        self.violations: list[str] = []
        self.taken: list[list[Part]] = []
        self._run = run
        self._rng = rng
        self.world = run.world

    def run(self, process: Process) -> None:
        db, world = Supervised(process), self.world
        while self._run.is_troubled and len(self.taken) < MOST:
            process.wait(self._rng.uniform(0.0, 0.15))
            if self._run.is_ready:
                self._take(db)
        while self._run.is_troubled:
            process.wait(0.05)
        until_s = world.now_s + 20.0
        while not self._take(db):
            if world.now_s > until_s:
                self.violations.append("no snapshot can be taken long after peace")
                break
            process.wait(0.2)
        self.is_done = True
        while True:
            process.wait(1.0)

    def _take(self, db: Supervised) -> bool:
        world, began_s = self.world, self.world.now_s
        data = self._run.options.data
        directory = data.parent / f"snapshot-{world.now_s:.6f}"
        rate = self._rng.choice((None, 1 << 20, 1 << 22))
        try:
            with mock.patch.multiple(snapshot_taking, ReportingChild=Copying, wait_for=lambda *_: None):
                snapshot_taking.take(db, directory, rate=rate, lease_s=1.0, progress=lambda *_: None)  # type: ignore[arg-type]
        except (ClusterError, Indeterminate, Unavailable) as error:
            world.fault("a snapshot fails", str(error).replace(str(data.parent), ""))
            return False
        world.fault("a snapshot is taken")
        schema, partitions = read_schema(directory), self._run.options.partitions
        parts: list[Part] = []
        for number in range(partitions):
            of_it = partition_directory(directory, number)
            verification = Verification(of_it, number, lambda *_: None)
            verification.run(schema.tables)
            if verification.damage:
                self.violations += [
                    f"the snapshot's part of p{number}: {damage.text}" for damage in verification.damage
                ]
                return True
            parts.append(_part(of_it, number, partitions, schema, self._run.ledger.lists))
        self._look_at(parts, began_s)
        return True

    def _look_at(self, parts: list[Part], began_s: float) -> None:
        ledger = self._run.ledger
        self.taken.append(parts)
        total = sum(part.balance for part in parts)
        if total != ledger.total:
            self.violations.append(f"in a snapshot the bank's total is {total}, not {ledger.total}")
        if any(part.copies != parts[0].copies for part in parts):
            self.violations.append(f"in a snapshot copies differ: {[part.copies for part in parts]}")
        for part in parts:
            reads = tuple(Read(key, values) for key, values in (part.lists | part.copies).items())
            number = ledger.next_number()
            ledger.transactions.append(Transaction(number, reads, Outcome.OK, began_s, self.world.now_s))

    def judge(self, transactions: list[Transaction]) -> Iterator[str]:
        """What is in a snapshot in part only."""
        for parts in self.taken:
            there = {(key, value) for part in parts for key, values in part.lists.items() for value in values}
            there |= {(key, value) for key, values in parts[0].copies.items() for value in values}
            for transaction in transactions:
                appended = [(each.key, each.value) for each in transaction.operations if isinstance(each, Append)]
                if len({each in there for each in appended}) > 1:
                    yield f"of T{transaction.number} a snapshot has a part only: {transaction}"


def _part(directory: Path, number: int, partitions: int, schema: Any, lists: int) -> Part:
    store = Store(schema, number, partitions, MEMORY_BYTES)
    with closing(load(directory, number, read_checkpoint(directory, number), store)) as pages:
        reader = PageReader(pages.path, store.arena.memory)
        pool = BufferPool(store.heaps, store.arena, reader, pages.path, MEMORY_BYTES + (64 << 20))
        store.use(pool)
        store.misses.bring = pool.bring
        rows = {table.name: list(table.scan()) for table in store.tables}
        reader.close()
    owners = slot_owners(partitions)
    here = [each for each in range(lists) if owners[hash_slot(each)] == number]
    found: Lists = {f"{storage}.{each}": () for storage in ("row", "elements") for each in here}
    for row in rows["lists"]:
        found[f"row.{row.id}"] = tuple(map(int, row.items.split()))
    for row in sorted(rows["elements"], key=lambda row: (row.list, row.position)):
        found[f"elements.{row.list}"] += (row.value,)
    for row in sorted(rows["places"], key=lambda row: (row.list, row.place)):
        key = f"places{row.place // MOST_PLACES}.{row.list}"
        found[key] = (*found.get(key, ()), row.id)
    copies = {f"copies.{each}": () for each in range(2)} | {
        f"copies.{row.id}": tuple(map(int, row.items.split())) for row in rows["copies"]
    }
    return Part(found, copies, sum(row.balance for row in rows["accounts"]))


class Supervised:
    """What `voltpy snapshot` asks of a client (voltpy.client), whose time and sockets are simulated."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._connection = Connection(CLIENT_ID, affinity=False, retry_s=0.0)
        self._links = Links(Address(f"voltpy://simulated:{ROUTER_PORT}"), self._connection)

    def status(self) -> dict[str, Any]:
        return self._admin("status", {})

    def begin_snapshot(self, directory: str, pid: int, lease_s: float) -> dict[str, Any]:
        return self._admin("begin_snapshot", {"directory": directory, "pid": pid, "lease_s": lease_s})

    def renew_snapshot(self, snapshot: int) -> dict[str, Any]:
        return self._admin("renew_snapshot", {"snapshot": snapshot})

    def end_snapshot(self, snapshot: int, reason: str = "") -> dict[str, Any]:
        return self._admin("end_snapshot", {"snapshot": snapshot, "reason": reason})

    def _admin(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        connection, links, process = self._connection, self._links, self._process
        command = Command()
        connection.admin(command, name, body, process.world.now_s, TIMEOUT_S)
        while not command.done:
            now_s = process.world.now_s
            links.pump(now_s)
            links.flush(now_s)
            links.bury()
            if not command.done:
                due_s = min(connection.alarm.time, links.next_time, now_s + 1.0)
                process.wait(max(due_s - now_s, 1e-5))
        connection.outcomes.take()
        if command.error is not None:
            raise command.error
        answer: dict[str, Any] = command.value
        return answer


class Copying:
    """As voltpy.reporting_child.ReportingChild: the copier, run to its end by whoever waits for it."""

    def __init__(self, command: list[str | Path]) -> None:
        options = dict(zip(command[4::2], command[5::2], strict=True))
        self.has_ended = False
        self._said: list[str] = []
        self._error = ""
        data, to = Path(options["--data"]), Path(options["--to"])
        rate = int(options["--rate"]) if "--rate" in options else None
        numbers = range(int(options["--partitions"]))
        with mock.patch.object(copier, "print", lambda text, **_: self._said.append(text), create=True):
            try:
                copier.Copier(rate).copy([copier.plan(data, to, number) for number in numbers])
            except (Corruption, OSError) as error:
                self._error = str(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def reports(self) -> list[dict[str, Any]]:
        self.has_ended = True
        return [json.loads(text) for text in self._said]

    def exit_status(self) -> int:
        return bool(self._error)

    def last_words(self) -> str:
        return self._error
