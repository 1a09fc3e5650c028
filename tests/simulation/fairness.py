"""Nobody waits for longer, and nobody fails for more, than the rules of lending say. What is looked at in every run:

    overtaken   a call waits in its partition for a key that is lent, and when that is here again, another batch has it
                before the call has run; or it waits for a table, and more than MOST_OVERTAKEN batches have
    rounds      calls that have run to their end wait while their batch borrows for more than MOST_ROUNDS times
    waited      a call is not told, although it has waited in its partition for what is lent for as long as it may
    told        who is told that something is lent needs just that, and has waited for it for as long as he may; nobody
                is refused for want of room among those who wait for the disk, of whom there are always few
    no room     ReadOnly is for those alone who write where, meanwhile, there was no room
    crowd       where nothing fails, nobody does, and all are answered soon; no batch is aborted, but for those with
                a call that must be refused, MOST_ABORTED times each

Histories can't show this: a call that is told to try again later has done nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import partitions.executor
from tests.simulation.conditions import CROWD, LITTLE_MEMORY
from tests.simulation.workload import Call
from tests.simulation.world import Process
from voltpy.errors import Aborted, ConstraintViolation, ReadOnly
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.messages import BATCH_BITS
from voltpy.not_here import WHOLE_TABLE

if TYPE_CHECKING:
    from tests.simulation.run import Run

MOST_OVERTAKEN = 9  # batches that overlap, now and then one that waits for all of them
MOST_ROUNDS = 8
MOST_ABORTED = 12  # batches, until a call that must be refused is alone
LOOK_S = 0.05  # between two looks at who has waited for too long
LATE_S = 0.5  # what a partition that does not stand still may take to tell him
ASLEEP_S = 0.25  # one that has had no turn for so long stands still

_TABLES = {"row": "lists"}  # of storages that are not called as their table
_LENT = re.compile(r"(\w+)(?: (\(.*\)|-?\d+))?(?:, (?:or a key of it|a value of its index \w+),)? is lent")
CallRun = tuple[int, int, int]  # of a call: client, number, and how often it has been set aside


class Fairness:
    """Looks on from the moment it is made."""

    def __init__(self, run: Run) -> None:
        self.violations: list[str] = []
        self._run = run
        self._owners = slot_owners(run.options.partitions)
        self._borrowers: defaultdict[Process, dict[CallRun, set[int]]] = defaultdict(dict)
        self._asleep_s: dict[Process, float] = {}
        points = run.world.ambushes
        points["participant.lent"].append(self._lent)
        points["coordinator.borrow.sent"].append(self._borrows)
        run.world.after(LOOK_S, self._look)

    # In partitions.

    def _lent(self, partition: Process) -> None:
        participant = partition.server._participant
        loans, stuck = participant._loans._loans, _stuck(participant)
        known, waiting = self._borrowers[partition], {}
        for call_id, call in partition.server._executor._set_aside._calls.items():
            if not call.waits_for_lent:
                continue
            run = *call_id, call.times
            borrowers = waiting[run] = known.get(run, set())
            most = MOST_OVERTAKEN
            for miss in call.missed:
                if type(miss) is tuple and not _is_among(stuck[miss[0]], miss[1]):
                    borrowers.update(batch for batch, loan in loans.items() if _has(loan, *miss))
                    if len(call.missed) == 1 and miss[1] is not WHOLE_TABLE:
                        most = 0
            if len(borrowers) > most + 1:
                self._violated(f"{call.procedure.name} waits in {partition.name} while {len(borrowers)} batches borrow")
        self._borrowers[partition] = waiting

    def _look(self) -> None:
        world = self._run.world
        if not self._run.is_over:
            world.after(LOOK_S, self._look)
        for number in range(self._run.options.partitions):
            process = self._run.processes.get(f"p{number}")
            if process is None or not process.is_alive or process.server is None:
                continue
            if world.now_s - process.ran_s > ASLEEP_S:
                self._asleep_s[process] = world.now_s
            if world.now_s - self._asleep_s.get(process, 0.0) < LATE_S:
                continue
            since_s = world.now_s - partitions.executor.LENT_WAIT_S - LATE_S
            for call in process.server._executor._set_aside.overdue(since_s):
                self._violated(
                    f"{call.procedure.name} has waited in {process.name} since {world.now_s - call.lent_since_s:.1f} s"
                    f" for what is lent: {call.missed}"
                )

    # In the coordinator.

    def _borrows(self, coordinator: Process) -> None:
        core = coordinator.server.core
        batch, aborted, refused = core.batches.borrowing, core.counts["aborted_batches"], self._run.ledger.overfills
        if CROWD in self._run.conditions and aborted > MOST_ABORTED * refused:
            self._violated(f"{aborted} batches were aborted for {refused} calls, though nothing fails")
        if batch is None:
            return
        if batch.rounds == MOST_ROUNDS:
            self._run.world.faults["rounds are used up"] += 1
        if batch.rounds > MOST_ROUNDS and batch.done:
            self._violated(f"{len(batch.done)} calls wait while their batch borrows {batch.rounds} times")

    # What clients are told.

    def told(self, call: Call, now_s: float) -> None:
        """How a call has ended."""
        error, run = call.error, self._run
        where = f"T{call.transaction}, {call.procedure_name}"
        if CROWD in run.conditions:
            refused = isinstance(error, ConstraintViolation) and call.procedure_name == "overfill"
            if error is not None and not isinstance(error, Aborted) and not refused:
                self._violated(f"{where}, after {now_s - call.invoked_s:.3f} s: {error!r}, though nothing fails")
        if error is None:
            return
        text = str(error)
        if "to an undecided" in text or "that are lent" in text:
            named = _LENT.search(text)
            if named is None or not _needs(call, named[1], named[2]):
                self._violated(f"{where}, does not need what it is told is lent: {error!r}")
            elif "calls wait" not in text and now_s - call.invoked_s < partitions.executor.LENT_WAIT_S:
                self._violated(f"{where}: after {now_s - call.invoked_s:.3f} s: {error!r}")
        elif "from disk already" in text:
            self._violated(f"{where}: {error!r}")
        elif isinstance(error, ReadOnly) and not (LITTLE_MEMORY in run.conditions and "in memory" in text):
            full = {name for name, disk in run.disks.items() if disk.was_full(call.invoked_s)}
            if not full & self._written_in(call):
                self._violated(f"{where}, writes only where there is room: {error!r}")

    def _written_in(self, call: Call) -> set[str]:
        """The processes whose disks must have room for it."""
        written: set[int] = set()
        everywhere = range(self._run.options.partitions)
        name = call.procedure_name
        if name in ("look", "look_along", "look_anywhere", "look_at_one"):
            return set()
        if name in ("transfer", "open_account", "fill"):
            keys = call.arguments[:2] if name == "transfer" else call.arguments[:1]
            written.update(self._owners[hash_slot(key)] for key in keys)
        elif name == "append_copies":
            written.update(everywhere)
        changes = self._run.changes
        for storage, number, value in call.operations:
            if value and (storage == "copies" or (changes is not None and changes.may_be_copied(storage))):
                written.update(everywhere)
            elif value or storage.startswith("places"):
                written.add(self._owners[hash_slot(number)])
        # Where several partitions write, the coordinator decides, and needs room for that.
        return {f"p{partition}" for partition in written} | ({f"p{len(everywhere)}"} if written else set())

    def _violated(self, text: str) -> None:
        if len(self.violations) < 20:
            self.violations.append(text)


def _stuck(participant: Any) -> defaultdict[int, set[Any]]:
    """By table, the keys that stay away whatever batches borrow: their batch's decision has found no room, or they are
    in doubt since another life of the coordinator's."""
    stuck: defaultdict[int, set[Any]] = defaultdict(set)
    for batch, prepared in participant._in_doubt._batches.items():
        if batch in participant._in_doubt._without_room or batch >> BATCH_BITS != participant._session.last[0]:
            for table, keys, _, deleted in prepared:
                stuck[table.number].update(keys, deleted)
    return stuck


def _has(loan: Any, table: Any, key: Any) -> bool:
    """Whether a loan has the key, or something of the table where all of it is missed."""
    return table in loan.tables or _is_among(loan.keys.get(table, set()), key)


def _is_among(keys: set[Any], key: Any) -> bool:
    return bool(keys) if key is WHOLE_TABLE else key in keys


def _needs(call: Call, table: str, key: str | None) -> bool:
    """Whether the call touches the key of this table, or the table where none is named."""
    if call.procedure_name in ("transfer", "total", "total_of_all", "open_account", "total_here"):
        return table == "accounts" and (key is None or int(key) in call.arguments)
    operations = [
        (_TABLES.get(storage, "places" if storage.startswith("place") else storage), number)
        for storage, number, _ in call.operations
    ]
    if not operations:
        return True
    numbers = {number for of, number in operations if of == table}
    first = None if key is None else re.search(r"-?\d+", key)
    return bool(numbers) and (first is None or int(first[0]) in numbers)
