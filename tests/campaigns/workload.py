"""What campaigns run while processes die, and the ledger by which they tell afterwards what must be there.

Every call is one *entry* of a (worker, sequence), used once and never again:

    append     an order and its lines, in two tables                    half applied: an order without all its lines
    count      the worker's counter and a token that must be new        applied twice: Aborted, or counter ≠ tokens
    bump       a counter and nothing else; returns its value            applied twice: a value past the calls made
    transfer   between two accounts of the worker, and its journal      half applied: balances ≠ journal
    give_up    writes like append, then aborts                          not undone: it is there
    weigh      adds to one of the worker's loads, and to their sum   half applied: the loads ≠ their sum
    weigh_all  adds to all of them, which lie in many pages          the same
    loads      reads all of them, at any time                        the same
    find       reads an entry that was answered before                  lost: it is not there

Those that cross partitions are in tests.campaigns.crossing.

An entry ends as one of these, by what its caller was told:

    DONE       it returned: its effect must be there, once
    ABSENT     Aborted by itself, Unavailable, Overloaded, ReadOnly for want of memory: no effect may be there
    EITHER     Indeterminate: there once and whole, or not at all

Anything else that a caller is told is a violation in itself, like everything in the lists above.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

import voltpy
from tests.campaigns import crossing
from voltpy.aio import AsyncClient
from voltpy.client import Client
from voltpy.errors import Aborted, Error, Indeterminate, Overloaded, ReadOnly, Unavailable

SCHEMA = """
CREATE TABLE orders (worker INT, sequence INT, lines INT NOT NULL, PRIMARY KEY (worker, sequence));
PARTITION TABLE orders ON COLUMN worker;
CREATE TABLE order_lines (worker INT, sequence INT, line INT, text STRING, PRIMARY KEY (worker, sequence, line));
PARTITION TABLE order_lines ON COLUMN worker;
CREATE TABLE counters (worker INT PRIMARY KEY, counted INT NOT NULL DEFAULT 0, bumped INT NOT NULL DEFAULT 0,
    weighed INT NOT NULL DEFAULT 0);
PARTITION TABLE counters ON COLUMN worker;
CREATE TABLE tokens (worker INT, sequence INT, PRIMARY KEY (worker, sequence));
PARTITION TABLE tokens ON COLUMN worker;
CREATE TABLE accounts (worker INT, account INT, balance INT NOT NULL, PRIMARY KEY (worker, account));
PARTITION TABLE accounts ON COLUMN worker;
CREATE TABLE journal (worker INT, sequence INT, source INT, target INT, amount INT, PRIMARY KEY (worker, sequence));
PARTITION TABLE journal ON COLUMN worker;
CREATE TABLE loads (worker INT, load INT, weight INT NOT NULL, ballast STRING, PRIMARY KEY (worker, load));
PARTITION TABLE loads ON COLUMN worker;
CREATE INDEX lines_in_order ON order_lines USING BTREE (worker, text);
CREATE INDEX balances ON accounts (balance);
CREATE UNIQUE INDEX sequences ON orders USING HASH (sequence, worker);
"""

PROCEDURES = '''
from voltpy import procedure


@procedure(partition_by="worker")
def open_worker(tx, worker: int) -> None:
    tx.counters.upsert(worker=worker)
    for account in range(4):
        tx.accounts.upsert(worker=worker, account=account, balance=1000)


@procedure(partition_by="worker")
def load(tx, worker: int, loads: int, ballast: int) -> None:
    for number in range(loads):
        tx.loads.upsert(worker, number, 0, chr(97 + number % 26) * ballast)


@procedure(partition_by="worker")
def weigh(tx, worker: int, sequence: int, number: int, weight: int) -> list:
    tx.loads.update((worker, number), weight=tx.loads.get((worker, number)).weight + weight)
    tx.counters.update(worker, weighed=tx.counters.get(worker).weighed + weight)
    return [worker, sequence]


@procedure(partition_by="worker")
def weigh_all(tx, worker: int, sequence: int, highest: int, weight: int) -> list:
    for number in range(highest):
        tx.loads.update((worker, number), weight=tx.loads.get((worker, number)).weight + weight)
    tx.counters.update(worker, weighed=tx.counters.get(worker).weighed + weight * highest)
    return [worker, sequence]


@procedure(partition_by="worker", read_only=True)
def loads(tx, worker: int, highest: int) -> list:
    """What was weighed, and the weights of all loads; -1 for one that is not as it was loaded."""
    found = [tx.loads.get((worker, number)) for number in range(highest)]
    weights = [
        -1 if row is None or set(row.ballast) != {chr(97 + number % 26)} else row.weight
        for number, row in enumerate(found)
    ]
    return [tx.counters.get(worker).weighed, weights]


@procedure(partition_by="worker")
def append(tx, worker: int, sequence: int, lines: int) -> list:
    tx.orders.insert(worker=worker, sequence=sequence, lines=lines)
    for line in range(lines):
        tx.order_lines.insert(worker=worker, sequence=sequence, line=line, text="x" * (line * 10))
    return [worker, sequence]


@procedure(partition_by="worker")
def give_up(tx, worker: int, sequence: int, lines: int) -> list:
    append(tx, worker, sequence, lines)
    tx.counters.update(worker, counted=tx.counters.get(worker).counted + 1)
    tx.abort("given up")


@procedure(partition_by="worker")
def count(tx, worker: int, sequence: int) -> list:
    if tx.tokens.get((worker, sequence)) is not None:
        tx.abort("counted before")
    tx.tokens.insert(worker=worker, sequence=sequence)
    tx.counters.update(worker, counted=tx.counters.get(worker).counted + 1)
    return [worker, sequence]


@procedure(partition_by="worker")
def bump(tx, worker: int, sequence: int) -> list:
    return [worker, sequence, tx.counters.update(worker, bumped=tx.counters.get(worker).bumped + 1).bumped]


@procedure(partition_by="worker")
def transfer(tx, worker: int, sequence: int, source: int, target: int, amount: int) -> list:
    for account, change in ((source, -amount), (target, amount)):
        balance = tx.accounts.get((worker, account)).balance
        tx.accounts.update((worker, account), balance=balance + change)
    tx.journal.insert(worker, sequence, source, target, amount)
    return [worker, sequence]


@procedure(partition_by="worker", read_only=True)
def find(tx, worker: int, kind: str, sequence: int) -> bool:
    table = {"append": tx.orders, "count": tx.tokens, "transfer": tx.journal}[kind]
    return table.get((worker, sequence)) is not None


@procedure(partition_by="worker", read_only=True)
def state(tx, worker: int, highest: int, lowest: int = 1) -> list:
    """The worker's counters and balances, and per sequence: lines ordered (-1: no order), lines, token, journal."""
    counter = tx.counters.get(worker)
    entries = []
    for sequence in range(lowest, highest + 1):
        order = tx.orders.get((worker, sequence))
        lines = sum(tx.order_lines.get((worker, sequence, line)) is not None for line in range(8))
        moved = tx.journal.get((worker, sequence))
        entries.append([
            -1 if order is None else order.lines,
            lines,
            tx.tokens.get((worker, sequence)) is not None,
            None if moved is None else [moved.source, moved.target, moved.amount],
        ])
    balances = [tx.accounts.get((worker, account)).balance for account in range(4)]
    return [counter.counted, counter.bumped, balances, entries]


@procedure(partition_by=None, read_only=True, everywhere=True)
def row_counts(tx) -> list:
    return [table.count() for table in (tx.orders, tx.order_lines, tx.tokens, tx.journal)]
'''

STATE_ENTRIES = 100
LINES = 8  # an order has fewer
OPENING_BALANCE = 1000
LOADS, BALLAST = 32, 2500  # of each worker: together more than the memory of a campaign's partition
KINDS = ("append", "append", "count", "count", "bump", "transfer", "transfer", "give_up")
KINDS_LOADED = (*KINDS * 2, "weigh", "weigh", "weigh", "weigh_all")
GIVEN_UP = ("give_up", "far_give_up")
FOUND_BY = ("append", "count", "transfer")  # the kinds that `find` knows
TIMEOUT_S = 20.0
RETRY_S = 15.0
PAUSE_S = 0.004  # between bursts: a campaign is after kills, not after load

PENDING, DONE, ABSENT, EITHER = "pending", "done", "absent", "either"


class Entry:
    """One call of a workload: `value` is what it returned. What it counts had got to `least` before it was called."""

    __slots__ = ("arguments", "kind", "least", "outcome", "sequence", "value", "worker")

    def __init__(self, worker: int, sequence: int, kind: str, arguments: tuple[Any, ...]) -> None:
        self.worker = worker
        self.sequence = sequence
        self.kind = kind
        self.arguments = arguments
        self.outcome = PENDING
        self.least = 0
        self.value: Any = None

    def __repr__(self) -> str:
        return f"{self.kind}{(self.worker, self.sequence, *self.arguments)}, {self.outcome}"


class Clients:
    """The connections of a campaign, which live as long as its cluster: every kind that there is."""

    def __init__(self, url: str) -> None:
        self.retrying = voltpy.connect(url, timeout=TIMEOUT_S, retry_s=RETRY_S)
        self.retrying_by_router = voltpy.connect(f"{url}?affinity=off", timeout=TIMEOUT_S, retry_s=RETRY_S)
        self.unsure = voltpy.connect(url, timeout=TIMEOUT_S)
        self.unsure_by_router = voltpy.connect(f"{url}?affinity=off", timeout=TIMEOUT_S)

    def close(self) -> None:
        for client in (self.retrying, self.retrying_by_router, self.unsure, self.unsure_by_router):
            client.close()


class Totals(NamedTuple):
    """What a workload came to."""

    done: int
    absent: int
    either: int
    undecided_by_retries: int  # EITHER although the client was to try again: no violation, and should be 0


class Workload:
    """Runs from `start` to `finish`, in threads of its own; `check` compares the database with the ledger.

    `worker` is the first of WORKERS numbers that no other workload on this cluster uses. `loaded`: its workers have
    loads, which are more than a small partition has memory for; without them nothing weighs or looks at any.
    `crosses`: many of its calls cross partitions, for which the cluster has the tables of tests.campaigns.crossing.
    `sparsely`: only a few do, so that a batch is often one call's alone, and most of those write in one partition.
    """

    WORKERS = 24

    def __init__(
        self,
        clients: Clients,
        url: str,
        worker: int,
        seed: str,
        *,
        loaded: bool = False,
        crosses: bool = False,
        sparsely: bool = False,
    ) -> None:
        self.violations: list[str] = []
        self._clients = clients
        self._url = url
        self._seed = seed
        self._kinds: tuple[str, ...] = KINDS_LOADED if loaded else KINDS
        if crosses:
            self._kinds = (*KINDS * 4, *crossing.SPARSE_KINDS) if sparsely else (*KINDS, *crossing.KINDS)
        self._directs = crosses and not sparsely
        self._crosses = crosses
        self._known = crossing.Known()
        self._loads = LOADS if loaded else 0
        self._workers = range(worker, worker + self.WORKERS)
        self._entries: dict[int, list[Entry]] = {number: [] for number in self._workers}
        self._stopping = threading.Event()
        self._answered = threading.Condition()
        self._done: deque[Entry] = deque(maxlen=4096)
        self._undecided_by_retries = 0
        self._threads: list[threading.Thread] = []
        self._ended: set[threading.Thread] = set()  # those that nothing has broken off
        self._final: dict[int, Any] = {}  # the state of each worker, as `check` found it first
        self._final_loads: dict[int, Any] = {}
        self._final_crossed: Any = None

    def start(self) -> None:
        clients = self._clients
        clients.retrying.call_many("open_worker", [(worker,) for worker in self._workers])
        if self._crosses:
            clients.retrying.call_many("open_far", [(worker,) for worker in self._workers])
        if self._loads:
            for worker in self._workers:  # one after another: together they would be too much for a batch
                clients.retrying.call("load", worker, self._loads, BALLAST)
        owned = iter([self._workers[first : first + 3] for first in range(0, self.WORKERS, 3)])
        for target, arguments in (
            (self._submit, (clients.retrying, True)),
            (self._submit, (clients.retrying_by_router, True)),
            (self._submit, (clients.unsure, False)),
            (self._submit, (clients.unsure_by_router, False)),
            (self._call, (clients.retrying, True)),
            (self._call, (clients.retrying, True)),
            (self._call_many, (clients.unsure, False)),
            (self._run_tasks, ()),
        ):
            workers = next(owned)
            rng = Random(f"{self._seed}:{workers[0] - self._workers[0]}")
            thread = threading.Thread(target=self._watched, args=(target, workers, rng, *arguments), daemon=True)
            thread.start()
            self._threads.append(thread)

    def wait_for(self, done: int, limit_s: float = TIMEOUT_S) -> bool:
        """Whether so many more calls have returned, within the limit."""
        with self._answered:
            goal = self._count(DONE) + done
            return self._answered.wait_for(lambda: self._count(DONE) >= goal, limit_s)

    def finish(self) -> None:
        """Returns when every call has been answered."""
        self._stopping.set()
        deadline_s = time.monotonic() + 6 * TIMEOUT_S  # a driver may have several calls to make, one after another
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
            if thread.is_alive():
                self.violations.append("a client hangs: its calls have not been answered long after their timeouts")
            elif thread not in self._ended:
                self.violations.append("a client broke: its traceback is on stderr")

    def totals(self) -> Totals:
        return Totals(self._count(DONE), self._count(ABSENT), self._count(EITHER), self._undecided_by_retries)

    # ── what is there ──────────────────────────────────────────────────────────────────────────────────────────────

    def check(self) -> list[int]:
        """Adds to `violations`. Returns how many orders, lines, tokens and journal entries are there.

        May be called again later: then everything must still be as it was.
        """
        highest = [(worker, len(entries)) for worker, entries in self._entries.items()]
        counts = [0, 0, 0, 0]
        for worker in self._workers if self._loads else ():
            loads = self._clients.retrying.call("loads", worker, self._loads)
            if self._final_loads.setdefault(worker, loads) != loads:
                self.violations.append(f"worker {worker}'s loads changed after everything was over")
            self._check_loads(worker, *loads)
        if self._crosses:
            self._check_crossed()
        for worker, last in highest:
            found = self._state(worker, last)
            if self._final.setdefault(worker, found) != found:
                self.violations.append(f"worker {worker} changed after everything was over")
            self._check_worker(worker, *found)
            for ordered, lines, token, moved in found[3]:
                counts[0] += ordered >= 0
                counts[1] += lines
                counts[2] += token
                counts[3] += moved is not None
        return counts

    def _check_crossed(self) -> None:
        limits_s = time.monotonic() + TIMEOUT_S
        while True:
            try:  # nobody tries a directed call again
                parts = self._clients.retrying.call_everywhere("crossed", self._workers[0], self._workers[-1])
                break
            except Unavailable:
                if time.monotonic() > limits_s:
                    raise
                time.sleep(0.01)
        entries = [entry for entries in self._entries.values() for entry in entries]
        self.violations += crossing.check(entries, parts)
        own = [{name: part[name] for name in part if name not in ("boards", "by_board")} for part in parts]
        self._final_crossed = self._final_crossed or own
        if own != self._final_crossed:
            self.violations.append("what crossed partitions has changed after everything was over")

    def _state(self, worker: int, highest: int) -> Any:
        """By pieces, one after another: what a batch reads must be in memory together."""
        found: Any = None
        for lowest in range(1, max(highest, 1) + 1, STATE_ENTRIES):
            until = min(lowest + STATE_ENTRIES - 1, highest)
            piece = self._clients.retrying.call("state", worker, until, lowest)
            found = piece if found is None else [*piece[:3], found[3] + piece[3]]
        return found

    def _check_loads(self, worker: int, weighed: int, weights: list[int]) -> None:
        wrong = self.violations.append
        if -1 in weights:
            wrong(f"lost: load {weights.index(-1)} of worker {worker}")
        elif sum(weights) != weighed:
            wrong(f"half applied: worker {worker} weighed {weighed}, its loads make {sum(weights)}")
        for number, weight in enumerate(weights):
            of_load = [
                entry
                for entry in self._entries[worker]
                if entry.kind == "weigh_all" or (entry.kind == "weigh" and entry.arguments[0] == number)
            ]
            least = sum(entry.arguments[1] for entry in of_load if entry.outcome == DONE)
            most = least + sum(entry.arguments[1] for entry in of_load if entry.outcome == EITHER)
            if not least <= weight <= most:
                wrong(f"lost or doubled: load {number} of worker {worker} is {weight}, not {least} to {most}")

    def _check_worker(self, worker: int, counted: int, bumped: int, balances: list[int], found: list[Any]) -> None:
        wrong = self.violations.append
        expected_balances = [OPENING_BALANCE] * 4
        least_bumped = most_bumped = tokens = 0
        bump_values: set[int] = set()
        for entry, (ordered, lines, token, moved) in zip(self._entries[worker], found, strict=True):
            tokens += token
            found_any = ordered >= 0 or token or moved is not None
            if moved is not None:
                source, target, amount = moved
                expected_balances[source] -= amount
                expected_balances[target] += amount
            if lines != max(ordered, 0):
                wrong(f"half applied: {entry}: {lines} lines of {ordered}")
            if entry.outcome == PENDING:
                wrong(f"never answered: {entry}")
            if entry.kind in ("weigh", "weigh_all") or entry.kind in crossing.ALL_KINDS:
                expected: tuple[Any, ...] = (-1, 0, False, None)
            elif entry.kind == "bump":
                least_bumped += entry.outcome == DONE
                most_bumped += entry.outcome in (DONE, EITHER)
                if entry.outcome == DONE:
                    if entry.value[2] in bump_values:
                        wrong(f"lost update: two calls counted up to the same value: {entry}, {entry.value}")
                    bump_values.add(entry.value[2])
                expected = (-1, 0, False, None)
            else:
                there = entry.outcome == DONE or (entry.outcome == EITHER and found_any)
                expected = (
                    entry.arguments[0] if there and entry.kind == "append" else -1,
                    entry.arguments[0] if there and entry.kind == "append" else 0,
                    there and entry.kind == "count",
                    list(entry.arguments) if there and entry.kind == "transfer" else None,
                )
            if (ordered, lines, token, moved) != expected:
                missing = entry.outcome == DONE
                wrong(f"{'lost' if missing else 'there, though it must not be'}: {entry}: {found[entry.sequence - 1]}")
        if balances != expected_balances:
            wrong(f"half applied: worker {worker} has {balances}, its journal makes {expected_balances}")
        if counted != tokens:
            wrong(f"worker {worker} counted to {counted} with {tokens} tokens")
        if not least_bumped <= bumped <= most_bumped or any(not 0 < value <= bumped for value in bump_values):
            wrong(f"worker {worker} was bumped {bumped} times by {least_bumped} to {most_bumped} calls")

    # ── what is called ─────────────────────────────────────────────────────────────────────────────────────────────

    def _watched(self, target: Callable[..., None], *arguments: Any) -> None:
        target(*arguments)
        self._ended.add(threading.current_thread())

    def _submit(self, workers: range, rng: Random, client: Client, retrying: bool) -> None:
        """Many calls in flight, of one thread."""
        for burst in self._bursts(workers, rng):
            calls = [
                (entry, client.submit(entry.kind, entry.worker, entry.sequence, *entry.arguments)) for entry in burst
            ]
            for entry, future in calls:
                try:
                    self._settle(entry, retrying, future.result(2 * TIMEOUT_S))
                except (Error, TimeoutError) as error:
                    self._settle(entry, retrying, error)

    def _call(self, workers: range, rng: Random, client: Client, retrying: bool) -> None:
        """One call after another, in a thread that shares its client with others."""
        for burst in self._bursts(workers, rng, may_direct=self._directs):
            for entry in burst[:4]:
                self._settle(entry, retrying, _outcome_of(client, entry))
            for entry in burst[4:]:
                entry.outcome = ABSENT  # not even called

    def _call_many(self, workers: range, rng: Random, client: Client, retrying: bool) -> None:
        for burst in self._bursts(workers, rng):
            kinds: dict[str, list[Entry]] = {}
            for entry in burst:
                kinds.setdefault(entry.kind, []).append(entry)
            for kind, entries in kinds.items():
                rows = [(entry.worker, entry.sequence, *entry.arguments) for entry in entries]
                for entry, outcome in zip(entries, client.call_many(kind, rows, return_exceptions=True), strict=True):
                    self._settle(entry, retrying, outcome)

    def _run_tasks(self, workers: range, rng: Random) -> None:
        asyncio.run(self._tasks(workers, rng))

    async def _tasks(self, workers: range, rng: Random) -> None:
        async def call(client: AsyncClient, entry: Entry) -> None:
            try:
                call = client.call_everywhere if entry.kind == crossing.DIRECTED else client.call
                value = await call(entry.kind, entry.worker, entry.sequence, *entry.arguments)
                self._settle(entry, True, value)
            except Error as error:
                self._settle(entry, True, error)

        async with await self._connected() as client:
            for burst in self._bursts(workers, rng, may_direct=self._directs):
                await asyncio.gather(*(call(client, entry) for entry in burst))

    async def _connected(self) -> AsyncClient:
        """The router may be dead just now, and who connects is told so at once."""
        while True:
            try:
                return await voltpy.connect_async(self._url, timeout=TIMEOUT_S, retry_s=RETRY_S)
            except Unavailable:
                if self._stopping.wait(PAUSE_S):
                    raise

    def _bursts(self, workers: range, rng: Random, *, may_direct: bool = False) -> Iterator[list[Entry]]:
        kinds = (*self._kinds, crossing.DIRECTED) if may_direct else self._kinds
        while not self._stopping.is_set():
            yield [
                self._entry(rng.choice(workers), rng.choice(kinds), rng) for _ in range(rng.choice((1, 4, 8, 16, 32)))
            ]
            self._look_back(rng)
            self._stopping.wait(PAUSE_S)

    def _entry(self, worker: int, kind: str, rng: Random) -> Entry:
        entries = self._entries[worker]
        arguments: tuple[Any, ...] = ()
        if kind in ("append", "give_up"):
            arguments = (rng.randrange(LINES),)
        elif kind == "transfer":
            source, target = rng.sample(range(4), 2)
            arguments = (source, target, rng.randrange(1, 100))
        elif kind == "weigh":
            arguments = (rng.randrange(LOADS), rng.randrange(1, 100))
        elif kind == "weigh_all":
            arguments = (LOADS, rng.randrange(1, 100))
        elif kind in crossing.ALL_KINDS:
            arguments = crossing.arguments_of(kind, worker, self._workers, rng)
        entry = Entry(worker, len(entries) + 1, kind, arguments)
        counter = crossing.counter_of(entry)
        if counter is not None:
            entry.least = self._known[counter]
        entries.append(entry)
        return entry

    def _look_back(self, rng: Random) -> None:
        """Reads something that was answered before, perhaps by another client than the one that wrote it."""
        if not self._done:
            return
        if self._loads and rng.random() < 0.2:
            self._look_at_loads(rng)
            return
        if self._crosses and rng.random() < (0.7 if self._directs else 0.2):
            self._look_across(rng)
            return
        entry = self._done[rng.randrange(len(self._done))]
        client = rng.choice((self._clients.unsure, self._clients.unsure_by_router))
        found = _outcome(client, "find", entry.worker, entry.kind, entry.sequence)
        if found is not True and not isinstance(found, Unavailable | Indeterminate | Overloaded):
            self.violations.append(f"lost: {entry}: find says {found!r}")

    def _look_at_loads(self, rng: Random) -> None:
        found = _outcome(self._clients.unsure, "loads", rng.choice(self._workers), self._loads)
        if isinstance(found, Unavailable | Indeterminate | Overloaded | ReadOnly):
            return
        if isinstance(found, Error) or -1 in found[1] or sum(found[1]) != found[0]:
            self.violations.append(f"half applied, or lost: loads says {found!r}")

    def _look_across(self, rng: Random) -> None:
        """Reads what others are just writing, in several partitions or in any of them."""
        client = rng.choice((self._clients.unsure, self._clients.unsure_by_router))
        worker, partner = rng.sample(self._workers, 2)
        board = rng.randrange(crossing.BOARDS)
        of_board, of_worker, of_partner = ("board", board), ("met", worker), ("met", partner)
        what = rng.choice(
            ("order", "order", "purses", "boards", "beside", "beside", "between", "notices", "met", "both")
        )
        if what == "order":
            self._look_at_order(client, worker, rng)
        elif what == "purses":
            self._see(client, "purses_total", (), (), lambda found: found == 0)
        elif what == "boards":
            self._see(
                client, "boards_and_notices", (), (("boards", 0), ("notices", 0)), lambda found: found[0] == found[1]
            )
        elif what == "beside":
            self._see(client, "board_beside", (worker, board), (of_board,))
        elif what == "between":
            self._see(client, "board_between", (worker, partner, board), (of_board,))
        elif what == "notices":
            self._see(client, "notices_beside", (worker,), (("notices", 0),))
        elif what == "met":
            self._see(client, "met", (worker,), (of_worker,))
        else:
            self._see(client, "met_between", (worker, partner), (of_worker, of_partner))

    def _look_at_order(self, client: Client, worker: int, rng: Random) -> None:
        """One of the last, which may be under way."""
        entries = [entry for entry in self._entries[worker][-40:] if entry.kind in ("far_append", "far_give_up")]
        if not entries:
            return
        entry = rng.choice(entries)
        was_done = entry.outcome == DONE
        partners, lines = entry.arguments

        def is_right(found: list[int]) -> bool:
            whole = found == [lines, lines] and entry.kind == "far_append"
            return whole or (found == [-1, 0] and not was_done)

        self._see(client, "far_find", (worker, partners, entry.sequence, lines), (), is_right)

    def _see(
        self,
        client: Client,
        name: str,
        arguments: tuple[Any, ...],
        counters: tuple[tuple[str, int], ...],
        is_right: Callable[[Any], bool] = lambda found: True,
    ) -> None:
        """A read: its result is right, and the values of these counters are not less than what anybody was told."""
        least = [self._known[counter] for counter in counters]
        found = _outcome(client, name, *arguments)
        if isinstance(found, Unavailable | Indeterminate | Overloaded):
            return
        if isinstance(found, Error) or not is_right(found):
            self.violations.append(f"half seen, or lost: {name}{arguments} says {found!r}")
            return
        values = found if isinstance(found, list) else [found]
        if any(value < known for value, known in zip(values, least, strict=False)):
            self.violations.append(f"seen and missed again: {name}{arguments} says {found}, after {least}")
        for counter, value in zip(counters, values, strict=False):
            self._known.told(counter, value)

    def _settle(self, entry: Entry, retrying: bool, outcome: Any) -> None:
        if isinstance(outcome, Indeterminate):
            entry.outcome = EITHER
            self._undecided_by_retries += retrying and entry.kind != crossing.DIRECTED
        elif isinstance(outcome, Unavailable | Overloaded | ReadOnly) or (entry.kind in GIVEN_UP and _gave_up(outcome)):
            entry.outcome = ABSENT
        elif isinstance(outcome, Exception):
            entry.outcome = EITHER
            self.violations.append(f"not an answer to this call: {entry}: {type(outcome).__name__}: {outcome}")
        else:
            if entry.kind == crossing.DIRECTED and all(part == outcome[0] for part in outcome):
                outcome = outcome[0]
            entry.value = outcome
            entry.outcome = DONE
            if outcome[:2] != [entry.worker, entry.sequence] or entry.kind in GIVEN_UP:
                self.violations.append(f"another call's answer: {entry}: {outcome!r}")
            if entry.kind in FOUND_BY:
                self._done.append(entry)
            self._tell(entry)
        with self._answered:
            self._answered.notify_all()

    def _tell(self, entry: Entry) -> None:
        counter = crossing.counter_of(entry)
        if counter is not None:
            if entry.value[2] < entry.least:
                self.violations.append(f"seen and missed again: {entry}: {entry.value}, after {entry.least}")
            self._known.told(counter, entry.value[2])

    def _count(self, outcome: str) -> int:
        return sum(entry.outcome == outcome for entries in self._entries.values() for entry in entries)


def _gave_up(outcome: Any) -> bool:
    return isinstance(outcome, Aborted) and str(outcome) == "given up"


def _outcome_of(client: Client, entry: Entry) -> Any:
    """What the entry's call returned, or the error that it raised."""
    if entry.kind != crossing.DIRECTED:
        return _outcome(client, entry.kind, entry.worker, entry.sequence, *entry.arguments)
    try:
        return client.call_everywhere(entry.kind, entry.worker, entry.sequence)
    except Error as error:
        return error


def _outcome(client: Client, name: str, *arguments: Any) -> Any:
    """What the call returned, or the error that it raised."""
    try:
        return client.call(name, *arguments)
    except Error as error:
        return error
