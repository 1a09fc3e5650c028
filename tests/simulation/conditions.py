"""Conditions that are not the usual ones, under which some runs are made: those that rules about batches are there for.

    crowd            nothing fails, but many call at once, for the same rows; some bodies go from row to row for a long
                     time, some write more than may be written at once
    little memory    a partition has room for few pages, and now and then for next to none: pages leave, and come back
    little patience  few calls may wait for what is lent, and not for long
    short holds      where the schema changes: the coordinator holds its batches for a moment only, not for a minute
    full disks       the disk of a partition is full just as it is to prepare a batch

A seed decides which of them there are. What must hold then, and at all times: tests.simulation.fairness.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from unittest import mock

import coordinator.batches
import partitions.executor
import partitions.set_aside
import voltpy.cut

CROWD, LITTLE_MEMORY, LITTLE_PATIENCE, FULL_DISKS = "crowd", "little memory", "little patience", "full disks"
SHORT_HOLDS = "short holds"
CONDITIONS = (CROWD, LITTLE_MEMORY, LITTLE_PATIENCE, FULL_DISKS)

# Ambushes (tests.simulation.ambush) that belong to them.
AMBUSHES = {
    LITTLE_MEMORY: "in doubt, and on disk",
    LITTLE_PATIENCE: "in doubt for long",
    FULL_DISKS: "no room to prepare",
}

MANY_CALLERS = 8  # of each client, where some are to wait while others call
LITTLE_MEMORY_BYTES = 32 * 8192
FILL = 0.5  # how likely rows are added that nobody asks for, so that others are not in the last page
SHORT_EVERY_S = 0.05  # memory is, about
LENT_WAIT_S = 0.3
CALLS_WAIT_FOR_LENT = 3
HOLD_LIMIT_S, HOLD_LEASE_S = 0.25, 0.4
CHANGES_BYTES = 14_000  # of one batch in one partition

COMBINATIONS = (
    (), (LITTLE_MEMORY,), (), (LITTLE_PATIENCE, LITTLE_MEMORY), (), (FULL_DISKS,), (), (LITTLE_PATIENCE,),
)  # fmt: skip


class Crowd(NamedTuple):
    """What it calls, and how often; in how many accounts; how many calls return until it is over."""

    kinds: dict[str, float]
    accounts: int
    calls: int


CROWD_ANSWER_S = 0.8  # in which all are answered
CROWDS = (
    # Whole lists, which lends tables; and what is refused.
    Crowd(
        {
            "transact": 20.0, "transact_one": 8.0, "look_at_one": 3.0, "transfer": 8.0, "total_here": 3.0,
            "wander": 0.5, "overfill": 1.0,
        },
        accounts=24, calls=240,
    ),
    # The same few rows.
    Crowd({"transfer": 30.0, "total_here": 1.0, "wander": 0.5}, accounts=3, calls=250),
    # Other rows each, so that batches overlap; and a table, in one partition.
    Crowd({"transfer": 40.0, "total_here": 4.0, "transact_one": 1.0}, accounts=40, calls=500),
)  # fmt: skip


def conditions_of_changes(seed: int) -> frozenset[str]:
    """The same where the schema changes."""
    return frozenset((SHORT_HOLDS,) if seed % 8 in (1, 7) else ())


def conditions_of(seed: int, partitions: int) -> frozenset[str]:
    """Those of the run with this seed."""
    if partitions == 1:
        return frozenset()
    return frozenset((CROWD,) if seed % 10 == 4 else COMBINATIONS[seed % len(COMBINATIONS)])


def crowd_of(seed: int) -> Crowd:
    return CROWDS[seed // 10 % len(CROWDS)]


@contextmanager
def in_place(conditions: frozenset[str]) -> Iterator[None]:
    """The limits of the engine are as these conditions say, until the end of the block."""
    with ExitStack() as stack:
        if CROWD in conditions:
            stack.enter_context(mock.patch.object(coordinator.batches, "CHANGES_BYTES", CHANGES_BYTES))
        if SHORT_HOLDS in conditions:
            stack.enter_context(mock.patch.object(voltpy.cut, "CUT_LIMIT_S", HOLD_LIMIT_S))
            stack.enter_context(mock.patch.object(voltpy.cut, "CUT_LEASE_S", HOLD_LEASE_S))
        if LITTLE_PATIENCE in conditions:
            stack.enter_context(mock.patch.object(partitions.executor, "LENT_WAIT_S", LENT_WAIT_S))
            for module in (partitions.executor, partitions.set_aside):
                stack.enter_context(mock.patch.object(module, "CALLS_WAIT_FOR_LENT", CALLS_WAIT_FOR_LENT))
        yield
