"""The judge is judged: histories with one planted anomaly each, and histories without any."""

from __future__ import annotations

import re
from random import Random

import pytest

from tests.simulation.checker import (
    DUPLICATE_ELEMENT,
    G0,
    G1A,
    G1B,
    G1C,
    G2,
    G_SINGLE,
    INCOMPATIBLE_ORDER,
    INTERNAL,
    LOST_ELEMENT,
    PHANTOM_ELEMENT,
    REAL_TIME,
    Anomaly,
    check,
)
from tests.simulation.history import Append, Outcome, Read, Transaction
from tests.simulation.random_history import random_history

_OUTCOMES = {"ok": Outcome.OK, "aborted": Outcome.ABORTED, "unknown": Outcome.UNKNOWN}


def history(text: str) -> list[Transaction]:
    """A line a transaction: `number outcome begin-end: x+1 y=1,2 z=? …` (append 1 to x, y read as [1, 2], z unread)."""
    transactions = []
    for line in text.strip().splitlines():
        head, _, body = line.partition(":")
        number, outcome, times = head.split()
        begin, _, end = times.partition("-")
        operations: list[Append | Read] = []
        for word in body.split():
            matched = re.fullmatch(r"(\w+)([+=])([\d,?]*)", word)
            assert matched, word
            key, sign, values = matched.groups()
            if sign == "+":
                operations.append(Append(key, int(values)))
            else:
                seen = None if values == "?" else tuple(int(value) for value in values.split(",") if value)
                operations.append(Read(key, seen))
        completed_s = float(end) if end else float("inf")
        transactions.append(Transaction(int(number), tuple(operations), _OUTCOMES[outcome], float(begin), completed_s))
    return transactions


# name, the kinds that must be found (all of them, and no others), transactions that one of them names, the history
PLANTED = [
    (
        "own append is not seen",
        {INTERNAL},
        {1},
        """
        1 ok 0-1: x+1 x=
        """,
    ),
    (
        "own append is not seen behind those of others",
        {INTERNAL},
        {2},
        """
        1 ok 0-1: x+1
        2 ok 2-3: x+2 x=1
        3 ok 4-5: x=1,2
        """,
    ),
    (
        "two reads of one transaction differ",
        {INTERNAL},
        {2},
        """
        1 ok 0-5: x+1
        2 ok 0-5: x= x=1
        """,
    ),
    (
        "a read after an append misses what was read before",
        {INTERNAL},
        {2},
        """
        1 ok 0-1: x+1
        2 ok 2-3: x=1 x+2 x=2
        """,
    ),
    (
        "another's append lies between two own ones",
        {INTERNAL, G0},
        {1, 2},
        """
        1 ok 0-5: x+1 x+3 x=1,2,3
        2 ok 0-5: x+2
        3 ok 6-7: x=1,2,3
        """,
    ),
    (
        "an element that nobody appended",
        {PHANTOM_ELEMENT},
        {1},
        """
        1 ok 0-1: x=7
        """,
    ),
    (
        "an element of another key",
        {PHANTOM_ELEMENT, LOST_ELEMENT},
        {2},
        """
        1 ok 0-1: x+7
        2 ok 2-3: y=7 x=
        """,
    ),
    (
        "one append, two elements",
        {DUPLICATE_ELEMENT},
        {2},
        """
        1 ok 0-1: x+1
        2 ok 2-3: x=1,1
        """,
    ),
    (
        "a retry that ran twice, others between",
        {DUPLICATE_ELEMENT},
        {3},
        """
        1 ok 0-3: x+1
        2 ok 1-3: x+2
        3 ok 4-5: x=1,2,1
        """,
    ),
    (
        "two reads in different orders",
        {INCOMPATIBLE_ORDER},
        {3, 4},
        """
        1 ok 0-9: x+1
        2 ok 0-9: x+2
        3 ok 0-9: x=1,2
        4 ok 0-9: x=2,1
        """,
    ),
    (
        "two branches of which each misses the other's append",
        {INCOMPATIBLE_ORDER},
        {3, 4},
        """
        1 ok 0-9: x+1
        2 ok 0-9: x+2
        3 ok 0-9: x=1
        4 ok 0-9: x=2
        """,
    ),
    (
        "an element in the middle vanishes",
        {INCOMPATIBLE_ORDER},
        {4, 5},
        """
        1 ok 0-1: x+1
        2 ok 0-1: x+2
        3 ok 0-1: x+3
        4 ok 2-9: x=1,2,3
        5 ok 2-9: x=1,3
        """,
    ),
    (
        "an acknowledged append is gone",
        {LOST_ELEMENT},
        {1, 2},
        """
        1 ok 0-1: x+1
        2 ok 2-3: x=
        """,
    ),
    (
        "an acknowledged append is gone after a restart, others are there",
        {LOST_ELEMENT},
        {2, 3},
        """
        1 ok 0-1: x+1
        2 ok 2-3: x+2
        3 ok 4-5: x=1
        """,
    ),
    (
        "one half of an acknowledged transaction is gone",
        {LOST_ELEMENT},
        {1, 3},
        """
        1 ok 0-1: x+1 y+1
        2 ok 2-3: x=1
        3 ok 2-3: y=
        """,
    ),
    (
        "an aborted append is read",
        {G1A},
        {1, 2},
        """
        1 aborted 0-1: x+1
        2 ok 0-1: x=1
        """,
    ),
    (
        "an aborted append is read by one who was aborted too, and told",
        {G1A},
        {1, 2},
        """
        1 aborted 0-1: x+1
        2 aborted 0-1: x=1 y+3
        """,
    ),
    (
        "an aborted append is buried under a committed one",
        {G1A},
        {1, 3},
        """
        1 aborted 0-1: x+1
        2 ok 2-3: x+2
        3 ok 4-5: x=1,2
        """,
    ),
    (
        "one participant commits what the other aborts",
        {G1A},
        {1, 2},
        """
        1 aborted 0-1: x+1 y+1
        2 ok 2-3: x=1 y=
        """,
    ),
    (
        "a list is read between two appends of one transaction",
        {G1B, G_SINGLE},
        {1, 2},
        """
        1 ok 0-9: x+1 x+2
        2 ok 0-9: x=1
        3 ok 10-11: x=1,2
        """,
    ),
    (
        "a list is read between two appends of a transaction that got lost",
        {G1B, G_SINGLE},
        {1, 2},
        """
        1 unknown 0-: x+1 x+2
        2 ok 1-2: x=1
        """,
    ),
    (
        "two writers in opposite orders",
        {G0},
        {1, 2},
        """
        1 ok 0-9: x+1 y+1
        2 ok 0-9: x+2 y+2
        3 ok 10-11: x=1,2
        4 ok 10-11: y=2,1
        """,
    ),
    (
        "three writers in a ring",
        {G0},
        {1, 2, 3},
        """
        1 ok 0-9: x+1 z+1
        2 ok 0-9: x+2 y+2
        3 ok 0-9: y+3 z+3
        4 ok 10-11: x=1,2
        5 ok 10-11: y=2,3
        6 ok 10-11: z=3,1
        """,
    ),
    (
        "a writer of an unknown outcome interleaves with another",
        {G0},
        {1, 2},
        """
        1 ok 0-9: x+1 y+1
        2 unknown 0-: x+2 y+2
        3 ok 10-11: x=1,2 y=2,1
        """,
    ),
    (
        "two transactions read each other's appends",
        {G1C},
        {1, 2},
        """
        1 ok 0-9: x+1 y=2
        2 ok 0-9: y+2 x=1
        """,
    ),
    (
        "information flows in a ring of three",
        {G1C},
        {1, 2, 3},
        """
        1 ok 0-9: x+1 z=3
        2 ok 0-9: y+2 x=1
        3 ok 0-9: z+3 y=2
        """,
    ),
    (
        "one reads of another whom it precedes in another list",
        {G1C},
        {1, 2},
        """
        1 ok 0-9: x+1 y=2
        2 ok 0-9: x+2 y+2
        3 ok 10-11: x=1,2
        """,
    ),
    (
        "a lost update: two appends to the same version",
        {G_SINGLE},
        {1, 2},
        """
        1 ok 0-9: x= x+1
        2 ok 0-9: x= x+2
        3 ok 10-11: x=1,2
        """,
    ),
    (
        "a torn read over two partitions",
        {G_SINGLE},
        {1, 2},
        """
        1 ok 0-9: x+1 y+1
        2 ok 0-9: x=1 y=
        3 ok 10-11: y=1
        """,
    ),
    (
        "a torn read of a transaction whose outcome nobody knows",
        {G_SINGLE},
        {1, 2},
        """
        1 unknown 0-: x+1 y+1
        2 ok 1-9: x=1 y=
        """,
    ),
    (
        "a torn read, told by one who was aborted",
        {G_SINGLE},
        {1, 2},
        """
        1 ok 0-9: x+1 y+1
        2 aborted 0-9: x=1 y=
        3 ok 10-11: x=1 y=1
        """,
    ),
    (
        "a torn read, with a step between",
        {G_SINGLE},
        {1, 2, 3},
        """
        1 ok 0-9: x+1
        2 ok 0-9: x=1 y+2
        3 ok 0-9: y=2 x=
        """,
    ),
    (
        "read skew: the first list before, the second after another's appends",
        {G_SINGLE},
        {2, 3},
        """
        1 ok 0-1: x+1 y+1
        2 ok 2-9: x+2 y+2
        3 ok 2-9: x=1 y=1,2
        4 ok 10-11: x=1,2 y=1,2
        """,
    ),
    (
        "two readers see two appends in different orders",
        {G2},
        {1, 2, 3, 4},
        """
        1 ok 0-9: x+1
        2 ok 0-9: y+2
        3 ok 0-9: x=1 y=
        4 ok 0-9: x= y=2
        """,
    ),
    (
        "write skew",
        {G2},
        {1, 2},
        """
        1 ok 0-9: x= y+1
        2 ok 0-9: y= x+2
        3 ok 10-11: x=2 y=1
        """,
    ),
    (
        "write skew, never read again",
        {G2},
        {1, 2},
        """
        1 ok 0-9: x= y+1
        2 ok 0-9: y= x+2
        """,
    ),
    (
        "write skew of three",
        {G2},
        {1, 2, 3},
        """
        1 ok 0-9: x= y+1
        2 ok 0-9: y= z+2
        3 ok 0-9: z= x+3
        """,
    ),
    (
        "write skew beside a lost update",
        {G2, G_SINGLE},
        {1, 2},
        """
        1 ok 0-9: x= y+1
        2 ok 0-9: y= x+2
        3 ok 0-9: z= z+3
        4 ok 0-9: z= z+4
        5 ok 10-11: z=3,4
        """,
    ),
    (
        "a stale read: an append is over, and a later read misses it",
        {REAL_TIME},
        {1, 2},
        """
        1 ok 0-1: x+1
        2 ok 2-3: x=
        3 ok 4-5: x=1
        """,
    ),
    (
        "a stale read told by one who was aborted",
        {REAL_TIME},
        {1, 2},
        """
        1 ok 0-1: x+1
        2 aborted 2-3: x= x+2
        3 ok 4-5: x=1
        """,
    ),
    (
        "a read sees what began later",
        {REAL_TIME},
        {1, 2},
        """
        1 ok 0-1: x=1
        2 ok 2-3: x+1
        """,
    ),
    (
        "a later append precedes an earlier one",
        {REAL_TIME},
        {1, 2},
        """
        1 ok 0-1: x+1
        2 ok 2-3: x+2
        3 ok 4-5: x=2,1
        """,
    ),
    (
        "a second read of a growing list goes back",
        {REAL_TIME},
        {1, 2, 3},
        """
        1 ok 0-9: x+1
        2 ok 1-2: x=1
        3 ok 3-4: x=
        """,
    ),
    (
        "an append of an unknown outcome is seen and then not",
        {REAL_TIME},
        {1, 2, 3},
        """
        1 unknown 0-: x+1
        2 ok 1-2: x=1
        3 ok 3-4: x=
        """,
    ),
    (
        "a client hears of one write and then writes; a slow reader sees the second alone",
        {REAL_TIME},
        {1, 2, 3},
        """
        1 ok 1-2: x+1
        2 ok 3-4: y+2
        3 ok 0-9: x= y=2
        4 ok 10-11: x=1 y=2
        """,
    ),
    (
        "two old reads of what two clients know",
        {REAL_TIME},
        {1, 2},
        """
        1 ok 0-1: x+1
        2 ok 2-9: x= y+2
        3 ok 2-9: y=2
        4 ok 10-11: x=1
        """,
    ),
]


@pytest.mark.parametrize(("kinds", "named", "text"), [p[1:] for p in PLANTED], ids=[p[0] for p in PLANTED])
def test_a_planted_anomaly_is_found_and_classified(kinds: set[str], named: set[int], text: str) -> None:
    found = check(history(text))
    assert {anomaly.kind for anomaly in found} == kinds, "\n".join(map(str, found))
    assert any(set(anomaly.transactions) == named for anomaly in found), found
    for anomaly in found:
        assert all(f"T{number}" in anomaly.explanation for number in anomaly.transactions)


@pytest.mark.parametrize(("kinds", "named", "text"), [p[1:] for p in PLANTED], ids=[p[0] for p in PLANTED])
def test_a_planted_anomaly_is_found_in_a_crowd(kinds: set[str], named: set[int], text: str) -> None:
    """The same keys and numbers, among 300 transactions that are as they should be."""
    crowd = [transaction._replace(number=transaction.number + 100) for transaction in random_history(Random(text), 300)]
    found = check(history(text) + crowd)
    assert {anomaly.kind for anomaly in found} == kinds, "\n".join(map(str, found))
    assert any(set(anomaly.transactions) == named for anomaly in found), found


CLEAN = [
    ("nothing", "1 ok 0-1:"),
    (
        "an append that is under way may be seen or not",
        """
        1 ok 0-9: x+1
        2 ok 1-2: x=
        3 ok 3-4: x=1
        """,
    ),
    (
        "an append of an unknown outcome that nobody saw",
        """
        1 unknown 0-: x+1 y+1
        2 ok 1-2: x= y=
        """,
    ),
    (
        "an append of an unknown outcome that happened late",
        """
        1 unknown 0-: x+1 y+1
        2 ok 1-2: x= y=
        3 ok 3-4: x=1 y=1
        """,
    ),
    (
        "an aborted append that nobody saw",
        """
        1 aborted 0-1: x+1 x=1
        2 ok 2-3: x=
        """,
    ),
    (
        "reads that nobody heard of",
        """
        1 unknown 0-: x=? x+1
        2 ok 2-3: x=1
        """,
    ),
    (
        "what ends when another begins is concurrent with it",
        """
        1 ok 0-1: x+1
        2 ok 1-2: x=
        3 ok 3-4: x=1
        """,
    ),
    (
        "own appends in the middle of the order",
        """
        1 ok 0-1: x+1
        2 ok 2-3: x=1 x+2 x=1,2 x+3 x=1,2,3
        3 ok 4-5: x+4
        4 ok 6-7: x=1,2,3,4
        """,
    ),
]


@pytest.mark.parametrize("text", [c[1] for c in CLEAN], ids=[c[0] for c in CLEAN])
def test_a_clean_history_is_found_clean(text: str) -> None:
    assert check(history(text)) == []


@pytest.mark.parametrize("seed", range(40))
def test_serial_executions_that_overlap_are_clean(seed: int) -> None:
    rng = Random(seed)
    clean = random_history(rng, rng.randrange(20, 400), clients=rng.randrange(1, 30), keys=rng.randrange(1, 20))
    assert check(clean) == []


@pytest.mark.parametrize("seed", range(40))
def test_a_read_of_a_serial_execution_that_misses_the_end_is_found(seed: int) -> None:
    """One read, of the many, is made older than it was: by elements whose appends were over before it began."""
    rng = Random(seed)
    clean = random_history(rng, 300, clients=8, keys=6)
    by_number = {transaction.number: transaction for transaction in clean}
    writers = {
        (operation.key, operation.value): transaction
        for transaction in clean
        for operation in transaction.operations
        if isinstance(operation, Append)
    }
    readers = [
        transaction
        for transaction in clean
        if len(transaction.operations) == 1
        and isinstance(read := transaction.operations[0], Read)
        and read.values
        and writers[read.key, read.values[-1]].completed_s < transaction.invoked_s
    ]
    victim = rng.choice(readers)
    read = victim.operations[0]
    assert isinstance(read, Read)
    assert read.values
    by_number[victim.number] = victim._replace(operations=(Read(read.key, read.values[:-1]),))
    found = check(by_number.values())
    assert found, f"seed {seed}: {victim}"
    assert all(isinstance(anomaly, Anomaly) for anomaly in found)


def test_what_is_no_history_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        check(history("1 ok 0-1: x+1\n2 ok 0-1: x+1"))
    with pytest.raises(ValueError, match="number"):
        check(history("1 ok 0-1: x+1\n1 ok 0-1: x+2"))
