"""One batch: the calls that commit together, what they borrowed, what they changed. Pure.

    borrow → Lent of all → run → missed something? borrow again, at most ROUNDS times
           → changed what it has not borrowed? lock that → two-phase commit → over

Calls that are set aside when the rounds are used up go into the next batch, with everything that they have wished for
so far as its first borrowing. The order of `done` is the order in which the calls take effect.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from coordinator.bodies import Call, Origin
from coordinator.borrowed_table import Undo
from coordinator.fetch import Fetch
from coordinator.two_phase import TwoPhase
from coordinator.wishes import ANY, KeyWish, Wish
from voltpy.messages import (
    BATCH_BITS,
    LEASE_S,
    MAX_FRAME_BYTES,
    MAX_HOLD_S,
    EverywhereCall,
    Ran,
    ReplyGroup,
    TableChanges,
)
from voltpy.wire import joined

ROUNDS = 8
PARTS_HOLD_S = 1.0
RENEW_S = 0.25 * LEASE_S
RENEWED_S = 1.5 * LEASE_S  # then a batch that is still borrowing loses it: others have waited for long enough
CALLS_A_BATCH = 2048
CHANGES_BYTES = MAX_FRAME_BYTES - (2 << 20)  # that one partition may be asked to prepare: they travel in one frame

NO_OUTCOMES = b"\x90"

_encode = msgspec.msgpack.Encoder().encode


def batch_number(epoch: int, count: int) -> int:
    return epoch << BATCH_BITS | count


class Batch:
    """`waiting` have not run to their end, `done` have. `participants` lent something that must be held to the end."""

    __slots__ = (
        "awaited",
        "changes",
        "changes_bytes",
        "changes_copies",
        "commit",
        "done",
        "groups",
        "held",
        "is_alone",
        "is_closed",
        "joins",
        "number",
        "outcomes",
        "participants",
        "refusal",
        "renew_s",
        "renewed_until_s",
        "rounds",
        "undo",
        "waiting",
    )

    def __init__(self, number: int, calls: list[Call], now_s: float = 0.0) -> None:
        self.number = number
        self.renew_s = now_s + RENEW_S  # when leases are renewed: what was lent longest ago must not be lost
        self.renewed_until_s = now_s + RENEWED_S
        self.waiting = calls
        self.done: list[Call] = []
        self.rounds = 0
        self.awaited: dict[int, deque[Fetch]] = {}  # what has been asked for and not been lent yet
        self.held: list[set[Any]] = []  # while it commits: keys that the next batch can't have yet, by table
        self.is_alone = False  # while it commits no other one borrows: it holds tables, or changes copies
        self.participants: set[int] = set()
        self.commit: TwoPhase | None = None
        self.changes: dict[int, list[TableChanges]] = {}  # by partition
        self.changes_bytes: dict[int, int] = {}
        self.changes_copies = False  # of tables that every partition has a copy of
        self.undo: list[Undo] = []
        self.groups: dict[tuple[Origin, int, bool], ReplyGroup] = {}
        self.joins = 0  # calls that had been joined by a retry when `groups` was made
        self.outcomes: bytes = NO_OUTCOMES
        self.is_closed = False  # no call runs any more
        self.refusal: tuple[str, str] = ("", "")

    @property
    def calls(self) -> Iterator[Call]:
        yield from self.done
        yield from self.waiting

    def renews(self, now_s: float) -> list[int]:
        """The partitions of which it borrows once more what it has, so that their leases don't end while it waits."""
        if not self.renew_s <= now_s < self.renewed_until_s:
            return []
        self.renew_s = now_s + RENEW_S
        return sorted(self.participants - self.awaited.keys())

    def ran(self, missed: list[Call]) -> None:
        """All that were waiting have run; these have to run again."""
        if missed:
            again = set(map(id, missed))
            self.done.extend(call for call in self.waiting if id(call) not in again)
        else:
            self.done.extend(self.waiting)
        self.waiting = missed

    def close(self, changes: dict[int, dict[int, TableChanges]], everywhere: Iterable[int]) -> None:
        """No call runs any more. `changes` by partition and table; ANY: in each partition."""
        self.is_closed = True
        in_all = list(changes.pop(ANY, {}).values())
        self.changes_copies = bool(in_all)
        self.is_alone |= self.changes_copies
        writers = set(everywhere) if in_all else set(changes)
        for partition in writers:
            self.changes[partition] = [*changes.get(partition, {}).values(), *in_all]
            self.changes_bytes[partition] = sum(
                64 + sum(map(len, change.images)) + sum(map(len, change.deleted))
                + 5 * (len(change.images) + len(change.deleted))
                for change in self.changes[partition]
            )  # fmt: skip

    def close_groups(self, joins: int) -> None:
        """The results of its calls are put together; so many calls have been joined by a retry until now."""
        self.joins = joins
        self.groups = groups_of(self.done)
        self.outcomes = _encode([group for (_, _, wrote), group in self.groups.items() if wrote])

    def begin_commit(self, held: list[set[Any]]) -> None:
        self.commit = TwoPhase(self.participants, self.changes)
        self.held = held

    def lets(self, calls: Iterable[Call]) -> bool:
        """Whether another batch may borrow what these calls want while this one commits."""
        return all(wants_keys_only(call.wants or ()) and not self._holds_some(call.wants) for call in calls)

    def _holds_some(self, wants: Any) -> bool:
        return any(key in self.held[table] for _, table, key in wants or ())

    def first_writer(self) -> Call | None:
        return next((call for call in self.done if call.wrote), None)

    def reply_groups(self, joins: int) -> dict[tuple[Origin, int, bool], ReplyGroup]:
        """By who is to be answered: retries may have come since from elsewhere."""
        return self.groups if joins == self.joins else groups_of(self.done)


class Joint(msgspec.Struct, eq=False):
    """A directed call whose parts commit together."""

    origin: Origin
    call: EverywhereCall
    until_s: float = 0.0  # how long it waits for the partitions, once it does
    attempts: int = 0

    @property
    def client_id(self) -> int:
        return self.call.client_id

    @property
    def number(self) -> int:
        return self.call.number


class JointBatch:
    """A batch of one directed call: its part runs in every partition.

    The parts read at moments of their own. So each partition holds back the replies of what runs after its part until
    all parts have run, and that they have is believed under the same conditions as in a read round (coordinator.reads).
    Then it is decided. Until then it `is_open`: nobody may be answered, since a part that has not run might see what
    somebody does who hears of it.
    """

    __slots__ = ("commit", "due_s", "is_open", "number", "of", "outcomes", "ran")

    def __init__(self, number: int, of: Joint, partitions: int, now_s: float) -> None:
        self.number = number
        self.of = of
        self.due_s = now_s + self.hold_s
        self.is_open = True
        self.commit = TwoPhase((), range(partitions), is_joint=True)
        self.ran: dict[int, Ran] = {}
        self.outcomes: bytes = NO_OUTCOMES

    @property
    def hold_s(self) -> float:
        """For how long a partition holds replies back."""
        return MAX_HOLD_S if self.of.attempts else PARTS_HOLD_S

    @property
    def is_answered(self) -> bool:
        """Whether all parts have run, and may be believed if all partitions are still there now."""
        return self.is_open and not self.commit.awaited

    @property
    def result_bytes(self) -> int:
        return sum(len(ran.result) for ran in self.ran.values())

    def close(self) -> ReplyGroup:
        """All have run: the call's result is the list of its parts' results."""
        results = joined([bytes(self.ran[partition].result) for partition in sorted(self.ran)])
        group = ReplyGroup(self.of.client_id, [self.of.number], joined([bytes(results)]))
        self.outcomes = _encode([group])
        return group

    def differing(self) -> int | None:
        """A partition whose copies were changed in another way than those of the first; None: all are equal."""
        first: object = None
        for partition in sorted(self.ran):
            copies = {
                change.table: (sorted(map(bytes, change.images)), sorted(map(bytes, change.deleted)))
                for change in self.ran[partition].copies
            }
            if first is None:
                first = copies
            elif copies != first:
                return partition
        return None


def groups_of(calls: Iterable[Call]) -> dict[tuple[Origin, int, bool], ReplyGroup]:
    """The results of the calls that have one, by origin, client, and whether they wrote."""
    numbers: dict[tuple[Origin, int, bool], tuple[list[int], list[bytes]]] = {}
    for call in calls:
        if call.error is None:
            key = (call.origin, call.client_id, call.changed[0] != call.changed[1])
            group = numbers.get(key)
            if group is None:
                numbers[key] = ([call.number], [call.result])
            else:
                group[0].append(call.number)
                group[1].append(call.result)
    return {key: ReplyGroup(key[1], many, joined(results)) for key, (many, results) in numbers.items()}


def wants_keys_only(wants: Iterable[Wish]) -> bool:
    """Whether nothing of a table is wanted but rows by their keys."""
    return all(type(wish) is KeyWish for wish in wants)
