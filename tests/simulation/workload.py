"""What the clients of a simulated cluster do, and the history of what they saw.

Each client is the real one's core (voltpy.connection and voltpy.links). It has a few callers, each of which has one
call under way: transactions of appends and reads on few lists, transfers between few accounts, and the bank's total.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from tests.simulation.history import Append, Key, Outcome, Read, Transaction
from tests.simulation.stage import ROUTER_PORT
from tests.simulation.world import Process, World, choose
from voltpy.address import Address
from voltpy.builtin import QUERY_ALL
from voltpy.calls import Command, Everywhere, Pending
from voltpy.connection import Connection
from voltpy.errors import (
    Aborted,
    ConstraintViolation,
    Indeterminate,
    Overloaded,
    ProcedureTimeout,
    ReadOnly,
    Unavailable,
)
from voltpy.links import Links

if TYPE_CHECKING:
    from tests.simulation.lives import Lives
    from tests.simulation.schema_changes import Changes

OPENING_BALANCE = 100
PAUSE_S = 0.05  # after an error
WANDERS = 24  # from row to row
FIRST_BALLAST, BALLAST_ELEMENTS = 2000, 250  # lists that nobody asks for
APPENDS_A_CHAPTER = 6  # then another list in places is appended to
IN_ONE_PARTITION = {"transact_one": 5.0, "look_at_one": 3.0}
NEVER_RAN = (Unavailable, Overloaded, ReadOnly)
CHANGE = "change_schema"

Operation = tuple[str, int, int]


class Ledger:
    """What all clients saw together. `kinds`: how likely each kind of call is. `changes`: where the schema changes."""

    changes: Changes | None = None
    lives: Lives | None = None

    def __init__(self, rng: Random, *, kinds: dict[str, float], lists: int, accounts: int) -> None:
        self.rng = rng
        self.kinds = kinds
        self.lists = lists
        self.accounts = accounts
        self.transactions: list[Transaction] = []
        self.outcomes: dict[str, int] = {}
        self.done: dict[str, int] = {}  # calls that returned, by procedure
        self.violations: list[str] = []
        self.overfills = 0  # calls that must be refused
        self.told: Callable[[Call, float], None] = lambda call, now_s: None
        self._numbers = 0
        self._value = 0
        self._ballast = 0
        self._placed: dict[int, int] = {}  # appends to places, by list
        # Where in the history it is known only how long a list was: (transaction, operation, length).
        self._lengths: list[tuple[int, int, int]] = []

    @property
    def total(self) -> int:
        return self.accounts * OPENING_BALANCE

    def next_call(self) -> Call:
        return self._call(choose(self.rng, self.kinds))

    def next_call_in_one_partition(self) -> Call:
        """Whoever calls nothing else sees something of the others all the time: he waits for nobody else's batch."""
        return self._call(choose(self.rng, IN_ONE_PARTITION))

    def _call(self, kind: str) -> Call:
        rng = self.rng
        self._numbers += 1
        if self.lives is not None and kind in self.lives.calls:
            return self.lives.next_call(kind, self._numbers)
        if kind in ("transact_one", "look_at_one"):
            number = rng.randrange(self.lists)
            operations = self.operations([number], writes=kind == "transact_one")
            return Call(self, self._numbers, kind, (number, operations), operations)
        if kind in ("transact", "transact_and_give_up", "look"):
            numbers = rng.sample(range(self.lists), min(self.lists, rng.choice((1, 2, 2, 3))))
            writes = kind != "look"
            operations = self.operations(numbers, writes=writes, writes_copies=writes)
            return Call(self, self._numbers, kind, (numbers, operations), operations)
        if kind == "look_along":
            numbers = rng.sample(range(self.lists), min(self.lists, rng.choice((2, 2, 3))))
            operations = [(storage, number, 0) for number in numbers for storage in ("row", "elements")]
            return Call(self, self._numbers, kind, (numbers,), operations)
        if kind in ("transact_anywhere", "look_anywhere"):
            numbers = rng.sample(range(self.lists), 2)
            operations = self.operations(
                numbers, writes=kind == "transact_anywhere", writes_copies=kind == "transact_anywhere"
            )
            return Call(self, self._numbers, kind, (operations,), operations)
        if kind == "append_copies":
            number = rng.randrange(2)
            self._value += 1
            operations = [("copies", number, 0), ("copies", number, self._value)]
            operations += [("row", each, 0) for each in range(self.lists)]
            return Call(self, self._numbers, kind, (number, self._value), operations)
        if kind == "transfer":
            source, target = rng.randrange(self.accounts), rng.randrange(self.accounts)
            return Call(self, self._numbers, kind, (source, target, rng.randrange(1, 40)), [])
        if kind == "fill":
            return self.fill(self._numbers)
        if kind in ("total_here", "wander"):
            number = rng.randrange(self.accounts)
            return Call(self, self._numbers, kind, (number,) if kind == "total_here" else (number, WANDERS), [])
        if kind == "total_by_view" and self.changes is not None:
            return self.changes.total_by_view(self._numbers)
        if kind == "total":
            return Call(self, self._numbers, kind, (list(range(self.accounts)),), [])
        self.overfills += kind == "overfill"
        return Call(self, self._numbers, kind, (), [])

    def fill(self, transaction: int) -> Call:
        """Adds rows that nobody asks for."""
        self._ballast += 1
        return Call(self, transaction, "fill", (FIRST_BALLAST + self._ballast, BALLAST_ELEMENTS), [])

    def begin_lists(self) -> list[Call]:
        """All of them, in rows and in elements."""
        calls = []
        for number in range(self.lists):
            operations: list[Operation] = [(storage, number, self.next_value()) for storage in ("row", "elements")]
            calls.append(Call(self, self.next_number(), "transact_one", (number, operations), operations))
        return calls

    def open_accounts(self) -> list[Call]:
        calls = []
        for account in range(self.accounts):
            self._numbers += 1
            calls.append(Call(self, self._numbers, "open_account", (account, OPENING_BALANCE), []))
        return calls

    def read_all(self, *, with_total: bool) -> list[Call]:
        """What is looked at when everything is over."""
        calls = []
        if with_total:
            self._numbers += 1
            calls.append(Call(self, self._numbers, "total", (list(range(self.accounts)),), []))
        for number in range(self.lists):
            self._numbers += 1
            operations: list[Operation] = [("row", number, 0), ("elements", number, 0), ("copies", number % 2, 0)]
            operations += [(f"placed{chapter}", number, 0) for chapter in range(self._chapter(number) + 1)]
            if self.changes is not None:
                operations += self.changes.read_all(number)
            calls.append(Call(self, self._numbers, "look_at_one", (number, operations), operations))
        return calls

    def _chapter(self, number: int) -> int:
        """Which of the lists in places is appended to now."""
        return self._placed.get(number, 0) // APPENDS_A_CHAPTER

    def operations(self, numbers: list[int], *, writes: bool, writes_copies: bool = False) -> list[Operation]:
        rng = self.rng
        operations: list[Operation] = []
        for number in numbers:
            for _ in range(rng.choice((1, 1, 2, 3))):
                storage = rng.choice(("row", "row", "elements", "elements", "places" if writes else "placed", "placed"))
                appends = writes and storage != "placed" and rng.random() < 0.6
                if storage in ("places", "placed"):
                    storage += str(self._chapter(number))
                    self._placed[number] = self._placed.get(number, 0) + appends
                if appends:
                    self._value += 1
                    operations.append((storage, number, self._value))
                else:
                    operations.append((storage, number, 0))
        if rng.random() < 0.25:
            value = 0
            if writes_copies and rng.random() < 0.5:
                self._value += 1
                value = self._value
            operations.append(("copies", rng.randrange(2), value))
        if self.changes is not None:
            operations = self.changes.varied(operations, numbers, writes=writes)
        return operations

    def next_number(self) -> int:
        """Of a transaction."""
        self._numbers += 1
        return self._numbers

    def next_value(self) -> int:
        self._value += 1
        return self._value

    def settled(self, call: Call, now_s: float) -> None:
        error = call.error
        name = "ok" if error is None else type(error).__name__
        self.outcomes[name] = self.outcomes.get(name, 0) + 1
        if error is None:
            self.done[call.procedure_name] = self.done.get(call.procedure_name, 0) + 1
        if self.lives is not None:
            self.lives.settled(call)
        if call.procedure_name == QUERY_ALL and error is None and call.value != [[self.total]]:
            self.violations.append(f"T{call.transaction}: by a view the bank's total is {call.value}, not {self.total}")
        if call.procedure_name in ("total", "total_of_all") and error is None and call.value != self.total:
            self.violations.append(f"T{call.transaction}: the bank's total is {call.value}, not {self.total}")
        if call.procedure_name == "overfill" and error is None:
            self.violations.append(f"T{call.transaction}: more was changed at once than may be")
        self.told(call, now_s)
        results: list[Any] | None = None
        if error is None:
            outcome = Outcome.OK
            results = call.results()
        elif isinstance(error, Indeterminate):
            outcome = Outcome.UNKNOWN
        elif isinstance(error, NEVER_RAN) or (isinstance(error, Aborted) and str(error) == "full"):
            outcome = Outcome.ABORTED
        elif isinstance(error, Aborted) and call.procedure_name == "transact_and_give_up":
            outcome = Outcome.ABORTED
            if not str(error).endswith("…"):  # a long reason is cut: what such a call has read is not known
                results = json.loads(str(error))
        elif self.lives is not None and isinstance(error, ProcedureTimeout):
            outcome = Outcome.ABORTED  # nothing of it remains
        elif (
            (isinstance(error, Aborted) and call.procedure_name == "transfer")
            or (isinstance(error, ConstraintViolation) and call.procedure_name == "overfill")
            or (self.changes is not None and self.changes.explains(call, error))
        ):
            outcome = Outcome.ABORTED
        else:
            outcome = Outcome.UNKNOWN
            self.violations.append(f"T{call.transaction}, {call.procedure_name}, ended with {name}: {error}")
        operations: list[Append | Read] = []
        for position, (storage, number, value) in enumerate(call.operations):
            if self.changes is not None and self.changes.is_varied(storage):
                result = None if results is None else results[position]
                operations += self.changes.read(
                    call, (len(self.transactions), len(operations)), storage, number, result
                )
                continue
            key = f"{storage}.{number}".replace("placed", "places")
            if storage.startswith("places") and results is not None:
                self._lengths.append((len(self.transactions), len(operations), results[position]))
                operations.append(Read(key, None))
                if not value:
                    continue
            if value:
                operations.append(Append(key, value))
            else:
                values = None if results is None else results[position]
                operations.append(Read(key, None if values is None else tuple(values)))
        if operations:
            completed_s = now_s if outcome is not Outcome.UNKNOWN else float("inf")
            self.transactions.append(
                Transaction(call.transaction, tuple(operations), outcome, call.invoked_s, completed_s)
            )

    def of_parts(self, call: Call, parts: list[Any]) -> list[Any]:
        """The results of the operations of `append_copies`, of what its parts told."""
        before = parts[0][0]
        if any(other != before for other, _ in parts):
            self.violations.append(f"T{call.transaction}: copies differ: {parts}")
        rows = {number: values for _, rows in parts for number, values in rows}
        return [before, None, *(rows.get(number, []) for number in range(self.lists))]

    def told_length(self, transaction: int, operation: int, length: int) -> None:
        """Of what is read there in the history, only how long it was is known."""
        self._lengths.append((transaction, operation, length))

    def look_up_lengths(self) -> None:
        """Says what was in the lists of which only the length was told, by what was ever read of them."""
        longest: dict[Key, tuple[int, ...]] = {}
        for transaction in self.transactions:
            for each in transaction.operations if transaction.outcome is Outcome.OK else ():
                if isinstance(each, Read) and len(each.values or ()) > len(longest.get(each.key, ())):
                    longest[each.key] = each.values or ()
        for place, position, length in self._lengths:
            transaction = self.transactions[place]
            operations = list(transaction.operations)
            key = operations[position].key
            own = tuple(each.value for each in operations[:position] if isinstance(each, Append) and each.key == key)
            before = longest.get(key, ())[: length - len(own)]
            if len(before) + len(own) != length:
                self.violations.append(
                    f"T{transaction.number}: {length} elements of {key} were counted, and not all are there now"
                )
            operations[position] = Read(key, before + own)
            self.transactions[place] = transaction._replace(operations=tuple(operations))


class Call(Pending):
    """One call of a ledger."""

    __slots__ = ("arguments", "invoked_s", "ledger", "operations", "procedure_name", "transaction")

    def __init__(
        self,
        ledger: Ledger,
        transaction: int,
        procedure_name: str,
        arguments: tuple[Any, ...],
        operations: list[Operation],
    ) -> None:
        super().__init__()
        self.ledger = ledger
        self.transaction = transaction
        self.procedure_name = procedure_name
        self.arguments = arguments
        self.operations = operations
        self.invoked_s = 0.0

    def results(self) -> list[Any]:
        return list(self.value) if self.operations else []


class DirectedCall(Everywhere):
    """`append_copies`, in every partition: each says what the list was before, all the same, and its lists in rows."""

    __slots__ = ("call",)

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


class CommandCall(Command):
    """A change of the schema; its statement is the call's argument."""

    __slots__ = ("call",)

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


class Client:
    """One client process. `is_done` when it has stopped and nothing is under way."""

    def __init__(self, world: World, ledger: Ledger, client_id: int, *, affinity: bool, retry_s: float, callers: int):
        self.connection = Connection(client_id, affinity=affinity, retry_s=retry_s)
        self.links = Links(Address(f"voltpy://simulated:{ROUTER_PORT}"), self.connection)
        self.world = world
        self.ledger = ledger
        self.timeout_s = world.rng.choice((2.0, 5.0))
        self.calling = False  # its callers call; else only what is queued is called
        self.under_way = 0
        self.think_s = world.rng.choice((0.001, 0.005, 0.03))
        self.queued: list[Call] = []  # to be made now, beside what the callers do
        self.answered: Callable[[Call], None] = lambda call: None
        self.next_call, self.settled = ledger.next_call, ledger.settled
        self._call_at_s = [world.rng.uniform(0.0, 0.05) for _ in range(callers)]
        self._callers: dict[int, int] = {}  # by transaction

    @property
    def is_done(self) -> bool:
        return not self.calling and not self.under_way and not self.queued

    def run(self, process: Process) -> None:
        connection, links, world = self.connection, self.links, self.world
        while True:
            now_s = world.now_s
            links.pump(now_s)
            self._deliver(now_s)
            self._call(now_s)
            links.flush(now_s)
            self._deliver(now_s)
            links.bury()
            due_s = min(connection.alarm.time, links.next_time, now_s + 1.0)
            if self.calling:
                due_s = min(due_s, *self._call_at_s)
            process.wait(max(due_s - now_s, 1e-5))

    def _call(self, now_s: float) -> None:
        while self.queued:
            self._submit(self.queued.pop(0), -1, now_s)
        if not self.calling:
            return
        for caller, when_s in enumerate(self._call_at_s):
            if when_s <= now_s:
                self._call_at_s[caller] = float("inf")
                self._submit(self.next_call(), caller, now_s)

    def _submit(self, call: Call, caller: int, now_s: float) -> None:
        self.under_way += 1
        self._callers[call.transaction] = caller
        call.invoked_s = now_s
        if self.world.trace is not None:
            self.world.tell(f"T{call.transaction} {call.procedure_name}{call.arguments}")
        if call.procedure_name == "append_copies":
            self.connection.everywhere(DirectedCall(call), "append_copies", call.arguments, now_s, self.timeout_s)
        elif call.procedure_name == CHANGE:
            self.connection.admin(CommandCall(call), CHANGE, {"text": call.arguments[0]}, now_s, self.timeout_s)
        else:
            self.connection.submit(call, call.procedure_name, call.arguments, now_s, self.timeout_s)

    def _deliver(self, now_s: float) -> None:
        for pending in self.connection.outcomes.take():
            call = pending
            if isinstance(pending, DirectedCall):
                call = pending.call
                call.error = pending.error
                if pending.error is None:
                    call.value = self.ledger.of_parts(call, pending.value)
            elif isinstance(pending, CommandCall):
                call = pending.call
                call.value, call.error = pending.value, pending.error
            assert isinstance(call, Call)
            if self.world.trace is not None:
                self.world.tell(f"T{call.transaction} {call.value if call.error is None else repr(call.error)}")
            self.under_way -= 1
            self.settled(call, now_s)
            caller = self._callers.pop(call.transaction)
            if caller >= 0:
                self._call_at_s[caller] = now_s + self.world.rng.expovariate(
                    1 / (self.think_s if call.error is None or isinstance(call.error, Aborted) else PAUSE_S)
                )
            self.answered(call)
