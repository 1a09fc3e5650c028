"""Transactions that cross partitions, for tests.campaigns.workload: what is called, and how its ledger is checked.

Each is one more kind of entry of a (worker, sequence). Its partners are other workers, which live in its partition or
in another one: so each kind runs in a partition at times, and in the coordinator at others, on the same rows.

    far_append    an order here, its lines at one or two partners        half applied: other lines than ordered
    far_count     a token here, the partner's counter                    applied twice: Aborted, or counter ≠ tokens
    far_bump      a counter here and one at the partner, nothing else    applied twice: a value past the calls made
    far_transfer  from here to the partner, and a journal                half applied: purses ≠ journal
    far_give_up   writes like far_append, then aborts                    not undone: it is there
    look          reads the partner's counter, writes here alone         a value that somebody has seen surpassed
    sweep         reads all purses, writes here                          half seen: purses ≠ what was put into them
    post          a copied board and notice, begun in a partition        copies differ; a board that goes back
    far_post      the same, and a counter at the partner                 the same; half applied: counter ≠ notices
    stamp         a copied row, by a joint directed call                 copies differ

Between them anybody reads, at any time: an order and its lines (both or none), the sum of all purses (always the same),
boards, notices and counters in any partition or from several (never less than what anybody was told before: `Known`),
boards and notices together (as many).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any, Protocol

SCHEMA = """
CREATE TABLE far_orders (worker INT, sequence INT, lines INT NOT NULL, PRIMARY KEY (worker, sequence));
PARTITION TABLE far_orders ON COLUMN worker;
CREATE TABLE far_lines (worker INT, owner INT, sequence INT, line INT, PRIMARY KEY (worker, owner, sequence, line));
PARTITION TABLE far_lines ON COLUMN worker;
CREATE TABLE far_tokens (worker INT, sequence INT, partner INT NOT NULL, PRIMARY KEY (worker, sequence));
PARTITION TABLE far_tokens ON COLUMN worker;
CREATE TABLE far_counters (worker INT PRIMARY KEY, met INT NOT NULL DEFAULT 0, gave INT NOT NULL DEFAULT 0,
    got INT NOT NULL DEFAULT 0, looked INT NOT NULL DEFAULT 0, posted INT NOT NULL DEFAULT 0);
PARTITION TABLE far_counters ON COLUMN worker;
CREATE TABLE purses (worker INT PRIMARY KEY, balance INT NOT NULL);
PARTITION TABLE purses ON COLUMN worker;
CREATE TABLE far_journal (worker INT, sequence INT, partner INT, amount INT, PRIMARY KEY (worker, sequence));
PARTITION TABLE far_journal ON COLUMN worker;
CREATE TABLE looks (worker INT, sequence INT, seen INT NOT NULL, PRIMARY KEY (worker, sequence));
PARTITION TABLE looks ON COLUMN worker;
CREATE TABLE boards (board INT PRIMARY KEY, notices INT NOT NULL);
CREATE TABLE notices (worker INT, sequence INT, board INT NOT NULL, partner INT, PRIMARY KEY (worker, sequence));
CREATE TABLE stamps (worker INT, sequence INT, PRIMARY KEY (worker, sequence));
"""

PROCEDURES = '''

@procedure(partition_by="worker")
def open_far(tx, worker: int) -> None:
    tx.far_counters.upsert(worker=worker)
    tx.purses.upsert(worker, 1000)


@procedure(partition_by=("worker", "partners"))
def far_append(tx, worker: int, sequence: int, partners: list[int], lines: int) -> list:
    tx.far_orders.insert(worker, sequence, lines)
    for line in range(lines):
        tx.far_lines.insert(partners[line % len(partners)], worker, sequence, line)
    return [worker, sequence]


@procedure(partition_by=("worker", "partners"))
def far_give_up(tx, worker: int, sequence: int, partners: list[int], lines: int) -> list:
    far_append(tx, worker, sequence, partners, lines)
    tx.abort("given up")


@procedure(partition_by=("worker", "partner"))
def far_count(tx, worker: int, sequence: int, partner: int) -> list:
    if tx.far_tokens.get((worker, sequence)) is not None:
        tx.abort("counted before")
    tx.far_tokens.insert(worker, sequence, partner)
    return [worker, sequence, tx.far_counters.update(partner, met=tx.far_counters.get(partner).met + 1).met]


@procedure(partition_by=("worker", "partner"))
def far_bump(tx, worker: int, sequence: int, partner: int) -> list:
    tx.far_counters.update(worker, gave=tx.far_counters.get(worker).gave + 1)
    return [worker, sequence, tx.far_counters.update(partner, got=tx.far_counters.get(partner).got + 1).got]


@procedure(partition_by=("worker", "partner"))
def far_transfer(tx, worker: int, sequence: int, partner: int, amount: int) -> list:
    tx.purses.update(worker, balance=tx.purses.get(worker).balance - amount)
    tx.purses.update(partner, balance=tx.purses.get(partner).balance + amount)
    tx.far_journal.insert(worker, sequence, partner, amount)
    return [worker, sequence]


@procedure(partition_by=("worker", "partner"))
def look(tx, worker: int, sequence: int, partner: int) -> list:
    seen = tx.far_counters.get(partner).met
    tx.looks.insert(worker, sequence, seen)
    tx.far_counters.update(worker, looked=tx.far_counters.get(worker).looked + 1)
    return [worker, sequence, seen]


@procedure
def sweep(tx, worker: int, sequence: int) -> list:
    seen = sum(row.balance - 1000 for row in tx.purses.scan())
    tx.looks.insert(worker, sequence, seen)
    tx.far_counters.update(worker, looked=tx.far_counters.get(worker).looked + 1)
    return [worker, sequence, seen]


def put_up(tx, worker, sequence, board, partner):
    tx.notices.insert(worker, sequence, board, partner)
    row = tx.boards.get(board)
    notices = 1 if row is None else row.notices + 1
    tx.boards.upsert(board, notices)
    return [worker, sequence, notices]


@procedure(partition_by="worker")
def post(tx, worker: int, sequence: int, board: int) -> list:
    return put_up(tx, worker, sequence, board, None)


@procedure(partition_by=("worker", "partner"))
def far_post(tx, worker: int, sequence: int, partner: int, board: int) -> list:
    tx.far_counters.update(partner, posted=tx.far_counters.get(partner).posted + 1)
    return put_up(tx, worker, sequence, board, partner)


@procedure(everywhere=True)
def stamp(tx, worker: int, sequence: int) -> list:
    tx.stamps.insert(worker, sequence)
    return [worker, sequence]


@procedure(partition_by=("worker", "partners"), read_only=True)
def far_find(tx, worker: int, partners: list[int], sequence: int, lines: int) -> list:
    """How many lines were ordered, -1: there is no order; and how many are there."""
    order = tx.far_orders.get((worker, sequence))
    found = [tx.far_lines.get((partners[line % len(partners)], worker, sequence, line)) for line in range(lines)]
    return [-1 if order is None else order.lines, sum(line is not None for line in found)]


@procedure(read_only=True)
def purses_total(tx) -> int:
    return sum(row.balance - 1000 for row in tx.purses.scan())


@procedure(read_only=True)
def boards_and_notices(tx) -> list:
    return [sum(row.notices for row in tx.boards.scan()), tx.notices.count()]


@procedure(partition_by="worker", read_only=True)
def board_beside(tx, worker: int, board: int) -> int:
    """The board as the worker's partition has it."""
    row = tx.boards.get(board)
    return 0 if row is None else row.notices


@procedure(partition_by=("worker", "partner"), read_only=True)
def board_between(tx, worker: int, partner: int, board: int) -> int:
    """The board as a transaction over both partitions sees it."""
    tx.far_counters.get(worker), tx.far_counters.get(partner)
    row = tx.boards.get(board)
    return 0 if row is None else row.notices


@procedure(partition_by="worker", read_only=True)
def notices_beside(tx, worker: int) -> int:
    return tx.notices.count()


@procedure(partition_by=("worker", "partner"), read_only=True)
def met_between(tx, worker: int, partner: int) -> list:
    return [tx.far_counters.get(worker).met, tx.far_counters.get(partner).met]


@procedure(partition_by="worker", read_only=True)
def met(tx, worker: int) -> int:
    return tx.far_counters.get(worker).met


@procedure(partition_by=None, read_only=True, everywhere=True)
def crossed(tx, first: int, last: int) -> dict:
    """What this partition holds of these workers, and all boards."""
    columns = {
        "far_orders": ("worker", "sequence", "lines"),
        "far_lines": ("worker", "owner", "sequence", "line"),
        "far_tokens": ("worker", "sequence", "partner"),
        "far_counters": ("worker", "met", "gave", "got", "looked", "posted"),
        "purses": ("worker", "balance"),
        "far_journal": ("worker", "sequence", "partner", "amount"),
        "looks": ("worker", "sequence", "seen"),
        "notices": ("worker", "sequence", "board", "partner"),
        "stamps": ("worker", "sequence"),
    }
    found = {
        table: sorted(
            [getattr(row, name) for name in names] for row in getattr(tx, table).scan() if first <= row.worker <= last
        )
        for table, names in columns.items()
    }
    by_board = {}
    for row in tx.notices.scan():
        by_board[row.board] = by_board.get(row.board, 0) + 1
    boards = sorted((row.board, row.notices) for row in tx.boards.scan())
    return {**found, "boards": boards, "by_board": sorted(by_board.items())}
'''

BOARDS = 3
LINES = 8  # an order has fewer
COPIED = ("notices", "stamps", "boards", "by_board")
# Those that any client can call, and those that only `call_everywhere` reaches.
KINDS = (
    *("far_append", "far_append", "far_append", "far_count", "far_count", "far_bump", "far_bump"),
    *("far_transfer", "far_transfer", "far_transfer", "far_give_up", "look", "look", "post", "far_post", "sweep"),
)
SPARSE_KINDS = ("look", "look", "look", "far_count")  # of which there are to be few
DIRECTED = "stamp"
ALL_KINDS = frozenset((*KINDS, DIRECTED))


class Entry(Protocol):
    """As tests.campaigns.workload has it."""

    worker: int
    sequence: int
    kind: str
    arguments: tuple[Any, ...]
    outcome: str
    value: Any


def arguments_of(kind: str, worker: int, workers: Sequence[int], rng: Random) -> tuple[Any, ...]:
    """What a call of this kind takes, after worker and sequence."""
    partners = rng.sample([other for other in workers if other != worker], 2)
    if kind in ("far_append", "far_give_up"):
        return partners[: rng.randrange(1, 3)], rng.randrange(LINES)
    if kind in ("far_count", "far_bump", "look"):
        return (partners[0],)
    if kind == "far_transfer":
        return partners[0], rng.randrange(1, 100)
    if kind == "post":
        return (rng.randrange(BOARDS),)
    if kind == "far_post":
        return partners[0], rng.randrange(BOARDS)
    return ()


class Known:
    """Counters that only grow, by name: the most that anybody was told of each."""

    def __init__(self) -> None:
        self._most: Counter[tuple[str, int]] = Counter()
        self._lock = threading.Lock()

    def __getitem__(self, counter: tuple[str, int]) -> int:
        return self._most[counter]

    def told(self, counter: tuple[str, int], value: int) -> None:
        with self._lock:
            self._most[counter] = max(self._most[counter], value)


def counter_of(entry: Entry) -> tuple[str, int] | None:
    """Which counter the third part of the entry's result is a value of."""
    if entry.kind in ("far_count", "look"):
        return "met", entry.arguments[0]
    if entry.kind in ("post", "far_post"):
        return "board", entry.arguments[-1]
    return None


def check(entries: Iterable[Entry], parts: Sequence[dict[str, Any]]) -> list[str]:
    """What is wrong with what `crossed` found in each partition, by the ledger of its workers."""
    wrong: list[str] = []
    for number, part in enumerate(parts):
        for name in COPIED:
            if part[name] != parts[0][name]:
                wrong.append(f"copies differ: {name} of partition {number} and 0: {_difference(part, parts[0], name)}")
        if part["boards"] != part["by_board"]:
            wrong.append(f"half applied: boards {part['boards']}, notices {part['by_board']} in partition {number}")
    found = {
        name: parts[0][name] if name in COPIED else [row for part in parts for row in part[name]] for name in parts[0]
    }
    traces = _traces(found)
    of_kind: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.kind in ALL_KINDS:
            of_kind.setdefault(entry.kind, []).append(entry)
            wrong += _check_entry(entry, traces.pop((entry.worker, entry.sequence), []))
    wrong += [f"nobody has written {trace} of {key}" for key, trace in traces.items()]
    return wrong + _check_counters(found, of_kind) + _check_values(found, of_kind)


def _traces(found: dict[str, Any]) -> dict[tuple[int, int], list[Any]]:
    """By worker and sequence, everything that an entry left behind, but counters."""
    traces: dict[tuple[int, int], list[Any]] = {}
    for worker, sequence, lines in found["far_orders"]:
        traces.setdefault((worker, sequence), []).append(("order", lines))
    for partner, worker, sequence, line in found["far_lines"]:
        traces.setdefault((worker, sequence), []).append(("line", partner, line))
    for worker, sequence, partner in found["far_tokens"]:
        traces.setdefault((worker, sequence), []).append(("token", partner))
    for worker, sequence, partner, amount in found["far_journal"]:
        traces.setdefault((worker, sequence), []).append(("journal", partner, amount))
    for worker, sequence, _ in found["looks"]:
        traces.setdefault((worker, sequence), []).append(("look",))
    for worker, sequence, board, partner in found["notices"]:
        traces.setdefault((worker, sequence), []).append(("notice", board, partner))
    for worker, sequence in found["stamps"]:
        traces.setdefault((worker, sequence), []).append(("stamp",))
    return traces


def _expected(entry: Entry) -> list[Any]:
    """What an entry that happened has left behind, but counters."""
    kind, arguments = entry.kind, entry.arguments
    if kind == "far_append":
        partners, lines = arguments
        return [("order", lines), *(("line", partners[line % len(partners)], line) for line in range(lines))]
    if kind == "far_count":
        return [("token", arguments[0])]
    if kind == "far_transfer":
        return [("journal", *arguments)]
    if kind in ("look", "sweep"):
        return [("look",)]
    if kind == "post":
        return [("notice", arguments[0], None)]
    if kind == "far_post":
        return [("notice", arguments[1], arguments[0])]
    return [("stamp",)] if kind == DIRECTED else []


def _check_entry(entry: Entry, trace: list[Any]) -> list[str]:
    expected = [] if entry.outcome == "absent" or entry.kind == "far_give_up" else _expected(entry)
    if sorted(trace, key=repr) == sorted(expected, key=repr) or (entry.outcome == "either" and not trace):
        return []
    if entry.outcome == "absent":
        return [f"there, though it must not be: {entry}: {trace}"]
    return [f"{'half applied' if trace else 'lost'}: {entry}: {trace}"]


def _check_counters(found: dict[str, Any], of_kind: dict[str, list[Entry]]) -> list[str]:
    wrong: list[str] = []
    met = Counter(partner for _, _, partner in found["far_tokens"])
    looked = Counter(worker for worker, _, _ in found["looks"])
    posted = Counter(partner for _, _, _, partner in found["notices"])
    purses: Counter[int] = Counter()
    for worker, _, partner, amount in found["far_journal"]:
        purses[worker] -= amount
        purses[partner] += amount
    for worker, balance in found["purses"]:
        if balance != 1000 + purses[worker]:
            wrong.append(f"half applied: purse {worker} has {balance}, its journal makes {1000 + purses[worker]}")
    bumps = of_kind.get("far_bump", [])
    gave = [(entry.worker, entry.outcome) for entry in bumps]
    got = [(entry.arguments[0], entry.outcome) for entry in bumps]
    for worker, *counts in found["far_counters"]:
        for name, count, expected in (
            ("met", counts[0], met),
            ("looked", counts[3], looked),
            ("posted", counts[4], posted),
        ):
            if count != expected[worker]:
                wrong.append(f"half applied: worker {worker} has {name} {count} with {expected[worker]} rows of that")
        for name, count, calls in (("gave", counts[1], gave), ("got", counts[2], got)):
            least = sum(call == (worker, "done") for call in calls)
            most = least + sum(call == (worker, "either") for call in calls)
            if not least <= count <= most:
                wrong.append(f"lost or doubled: worker {worker} has {name} {count}, not {least} to {most}")
    all_gave, all_got = (sum(row[place] for row in found["far_counters"]) for place in (2, 3))
    if all_gave != all_got:
        wrong.append(f"half applied: {all_gave} were given, and {all_got} were got")
    return wrong


def _check_values(found: dict[str, Any], of_kind: dict[str, list[Entry]]) -> list[str]:
    """What calls returned: counters that only they raise have each value once; what is stored is what was told."""
    wrong: list[str] = []
    seen = {(worker, sequence): value for worker, sequence, value in found["looks"]}
    told: set[tuple[str, int, int]] = set()
    for kind, place in (("far_count", "met"), ("far_bump", "got"), ("post", "board"), ("far_post", "board")):
        for entry in of_kind.get(kind, []):
            if entry.outcome == "done":
                value = place, entry.arguments[1 if kind == "far_post" else 0], entry.value[2]
                if value in told:
                    wrong.append(f"lost update: two calls counted up to the same value: {entry}, {entry.value}")
                told.add(value)
    for kind in ("look", "sweep"):
        for entry in of_kind.get(kind, []):
            if entry.outcome == "done" and seen.get((entry.worker, entry.sequence)) != entry.value[2]:
                wrong.append(f"another result than what was written: {entry}: {entry.value}")
    wrong += [
        f"half seen: {entry}: the purses are off by {entry.value[2]}"
        for entry in of_kind.get("sweep", [])
        if entry.outcome == "done" and entry.value[2]
    ]
    return wrong


def _difference(one: dict[str, Any], other: dict[str, Any], name: str) -> str:
    rows, others = set(map(tuple, one[name])), set(map(tuple, other[name]))
    return f"{sorted(rows - others, key=repr)[:5]} and {sorted(others - rows, key=repr)[:5]}"
