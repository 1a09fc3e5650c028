"""Runs procedure bodies on borrowed rows: the procedure boundary of the coordinator.

returned                    its result is kept; what it wrote stays in the cache
raised                      what it wrote is undone; the error is its answer, once the batch is over
missed something            undone; it runs again when that has been borrowed. Whatever it raised meanwhile
ran too long, or the        undone; ProcedureTimeout or ConstraintViolation is its answer. On stand-ins: it runs
process got too large       again, and never on stand-ins any more
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from types import CodeType
from typing import Any

from msgspec import Raw, Struct

from coordinator.borrowed import Table, Tables, Wish
from coordinator.habits import Habit
from voltpy import arguments as argument_lists
from voltpy.answers import LARGE_RESULT_BYTES, LARGE_RESULTS_A_BATCH_BYTES, MAX_RESULT_BYTES
from voltpy.builtin import builtins
from voltpy.call_error import BELIEVED, ResultsWait, call_error, described_error, let_go
from voltpy.errors import BadArguments, ConstraintViolation, Error, ProcedureTimeout, ProtocolError
from voltpy.hash_slot import hash_slot
from voltpy.heartbeat import CALL_NUMBER, CLIENT_ID, PROCEDURE, Words
from voltpy.messages import CallError, CallGroup, ProcedureInfo
from voltpy.not_here import NotHere
from voltpy.procedure import Procedure, Registry
from voltpy.row import encode
from voltpy.schema import Schema
from voltpy.transaction import CallContext, Generated, ReadOnlyTable, Transaction

VERIFIED_KEYS = 1024  # of one call, that are kept with it

Origin = Any  # whoever gets the replies: the shell knows who that is

# What only reads: stopping it anywhere leaves nothing half done.
_READERS: frozenset[CodeType] = frozenset(
    method.__code__ for method in (Table.scan, Table.range, Table.where, Table.count, Table._read, Table._all)
)


class Call(Struct, eq=False, gc=True):
    """A call from its arrival to its answer.

    `allowed`: the partitions that it may use; `verified`: its declared keys, with their partitions. `wants`: everything
    that its runs have missed so far; None before the first. `raw`: its arguments, where a run could change them.
    Its last run came to `result` or to `error`; `changed` is where in the undo log its changes are.
    """

    origin: Origin
    client_id: int
    number: int
    procedure: Procedure
    arguments: tuple[Any, ...]
    raw: bytes | None
    allowed: frozenset[int]
    verified: dict[Any, int]
    wants: dict[Wish, None] | None = None
    until_s: float = 0.0  # how long it waits for its partitions, once it does
    generated: Generated | None = None
    stand_ins: bool = True
    guessed: bool = False  # its first wishes are its procedure's habit
    attempts: int = 0  # batches that were aborted with it
    unfinished: int = 0  # batches that were over before it had all that it wants
    tries: int = 0  # read rounds that came to nothing
    borrows: bool = False  # though it only reads
    needs_all: bool = False  # it has written a table of which every partition has a copy
    result: bytes = b""
    error: CallError | None = None
    changed: tuple[int, int] = (0, 0)

    @property
    def wrote(self) -> bool:
        return self.changed[0] != self.changed[1]


class Bodies:
    """`counts` of runs by what became of them. `failed` is told of every exception, once its run is undone."""

    def __init__(
        self,
        schema: Schema,
        partitions: int,
        registry: Registry,
        running: Words,
        ids: Callable[[], int],
        clock: Callable[[], datetime],
    ) -> None:
        self.interrupted: Error | None = None  # with which the running call is being ended
        self.failed: Callable[[BaseException], None] = let_go
        self.counts = {"returned": 0, "raised": 0, "missed": 0, "timed_out": 0}
        self._running = running
        self._context = CallContext(running, ids, clock)
        self.tables = Tables(schema, partitions, self._context.next_id)
        self._large_bytes = 0
        self._habits: dict[Procedure, Habit] = {}
        self._without_stand_ins: set[Procedure] = set()  # bodies that loop on them
        tables = self.tables.by_name
        read_only = {
            name: ReadOnlyTable(table, "the procedure is declared read_only") for name, table in tables.items()
        }
        self._views = {False: Transaction(tables, self._context), True: Transaction(read_only, self._context)}
        self.use(registry)

    def use(self, registry: Registry) -> None:
        """From the next call on, these procedures."""
        self.registry = registry
        self._habits.clear()
        self.procedures = {**builtins(), **registry.procedures}
        self._places = {name: place for place, name in enumerate(sorted(self.procedures))}

    def infos(self, registry: Registry) -> list[ProcedureInfo]:
        """What clients may call once these procedures are in use, by name."""
        return [procedure.info for _, procedure in sorted((builtins() | registry.procedures).items())]

    def may_be_interrupted(self, code: CodeType) -> bool:
        """Whether an Interruption may be raised in a frame of this code: the user's, or a read of ours."""
        return code in _READERS or self.registry.is_user_code(code)

    def interrupt(self, error: Error) -> None:
        """Ends the running call with this error, whatever it catches."""
        self.interrupted = error
        self.tables.undo.append((None, None, None, False))

    def begin_batch(self) -> None:
        self._large_bytes = 0

    # Arguments.

    def calls_of(self, origin: Origin, group: CallGroup, procedure: Procedure) -> tuple[list[Call], list[CallError]]:
        """The calls of a group, and the errors of those whose arguments don't fit."""
        client_id = group.client_id
        calls: list[Call] = []
        errors: list[CallError] = []
        mark = len(self.tables.undo)
        try:
            raws = argument_lists.split(group) if not procedure.arguments_are_immutable else None
            decoded = procedure.decode_many(group.args, len(group.numbers))
        except BaseException:  # noqa: BLE001 — the procedure boundary: an argument's type may be the user's
            self._forget_interruption(mark)
            return self._calls_one_by_one(origin, group, procedure)
        self._forget_interruption(mark)
        for position, number in enumerate(group.numbers):
            raw = None if raws is None else bytes(raws[position][1])
            made = self._call(origin, client_id, number, procedure, decoded[position], raw)
            if isinstance(made, Call):
                calls.append(made)
            else:
                errors.append(made)
        return calls, errors

    def _calls_one_by_one(
        self, origin: Origin, group: CallGroup, procedure: Procedure
    ) -> tuple[list[Call], list[CallError]]:
        calls: list[Call] = []
        errors: list[CallError] = []
        try:
            split = argument_lists.split(group)
        except ProtocolError as error:
            return [], [call_error(group.client_id, number, error) for number in group.numbers]
        for number, raw in split:
            decoded = self._decoded(procedure, group.client_id, number, raw)
            if isinstance(decoded, Error):
                errors.append(call_error(group.client_id, number, decoded))
                continue
            kept = None if procedure.arguments_are_immutable else bytes(raw)
            made = self._call(origin, group.client_id, number, procedure, decoded, kept)
            if isinstance(made, Call):
                calls.append(made)
            else:
                errors.append(made)
        return calls, errors

    def _decoded(self, procedure: Procedure, client_id: int, number: int, raw: Raw) -> tuple[Any, ...] | Error:
        self._runs(client_id, number, procedure)
        mark = len(self.tables.undo)
        try:
            return procedure.decode_one(raw)
        except BadArguments as error:
            return error
        except BaseException as error:  # noqa: BLE001 — as in calls_of
            if self.interrupted:
                return ProcedureTimeout(f"{procedure.name}: its arguments took longer than the procedure timeout")
            return BadArguments(f"{procedure.name}: an argument's type raised {type(error).__name__}")
        finally:
            self._forget_interruption(mark)

    def _forget_interruption(self, mark: int) -> None:
        """Of decoding, which may be the user's code: it must not end the next run."""
        if self.interrupted:
            self.interrupted = None
            self.tables.undo_to(mark)

    def _call(
        self,
        origin: Origin,
        client_id: int,
        number: int,
        procedure: Procedure,
        arguments: tuple[Any, ...],
        raw: bytes | None,
    ) -> Call | CallError:
        """The call, with the partitions that its keys name; all of them where it declares no key."""
        owners = self.tables.owners
        verified: dict[Any, int] = {}
        allowed = self.tables.everywhere
        if procedure.key_positions:
            try:
                for position in procedure.key_positions:
                    key = arguments[position]
                    for each in key if type(key) in (list, tuple) else (key,):
                        verified[each] = owners[hash_slot(each)]
            except (TypeError, UnicodeEncodeError) as error:
                text = f"{procedure.name}, argument {position + 1}: {error}"
                return call_error(client_id, number, BadArguments(text))
            allowed = frozenset(verified.values())
            if len(verified) > VERIFIED_KEYS:
                verified = {}  # a call may wait for long; its run finds out again what it needs
        stand_ins = procedure not in self._without_stand_ins
        return Call(origin, client_id, number, procedure, arguments, raw, allowed, verified, stand_ins=stand_ins)

    # Runs.

    def discover(self, calls: Iterable[Call]) -> None:
        """Finds out what calls that never ran want: by habit, or by a run on stand-ins that leaves nothing else."""
        tables, habits = self.tables, self._habits
        for call in calls:
            if call.wants is not None:
                continue
            habit = habits.get(call.procedure)
            if habit is None:
                habit = habits[call.procedure] = Habit()
            elif habit.is_firm:
                call.wants = habit.wishes(call.arguments, call.verified, tables.tables)
                call.guessed = call.wants is not None
                if call.guessed:
                    continue
            call.wants = {}
            self.run([call])
            tables.undo_to(call.changed[0])
            call.error = None
            if call.stand_ins:
                habit.saw(call.arguments, call.wants)

    def run(self, calls: Iterable[Call]) -> list[Call]:
        """Runs them one after another, on what is in the cache. Returns those that missed something."""
        tables, context, running, views = self.tables, self._context, self._running, self._views
        undo, wants, places = tables.undo, tables.wants, self._places
        missed: list[Call] = []
        for call in calls:
            procedure = call.procedure
            running[CLIENT_ID], running[CALL_NUMBER] = call.client_id, call.number
            running[PROCEDURE] = places.get(procedure.name, 0)  # it may outlive a reload
            tables.begin(call.allowed, call.verified, stand_ins=call.stand_ins)
            context.resume(call.generated)
            call.error = None
            mark = len(undo)
            try:
                arguments = call.arguments if call.raw is None else procedure.decode_one(call.raw)
                result = encode(procedure.body(views[procedure.read_only], *arguments))
                if len(result) > LARGE_RESULT_BYTES:
                    self._admit_large(len(result))
                if wants or self.interrupted:
                    raise NotHere
            except BaseException as error:  # noqa: BLE001 — the procedure boundary: whatever the user's code raised
                tables.undo_to(mark)
                call.generated = context.set_aside()
                call.changed = (mark, mark)
                if not self._ended_badly(call, error):
                    missed.append(call)
                if len(undo) != mark or wants or self.interrupted:  # the exception's own __str__ did something
                    tables.undo_to(mark)
                    wants.clear()
                    self.interrupted = None
                continue
            call.generated = context.set_aside()
            call.result = result
            call.changed = (mark, len(undo))
            self.counts["returned"] += 1
        return missed

    def _ended_badly(self, call: Call, raised: BaseException) -> bool:
        """The run was undone. Whether that is its end, with `error`; otherwise it is to run again."""
        wants = self.tables.wants
        interrupted, self.interrupted = self.interrupted, None
        if wants:
            call.wants = call.wants | wants if call.wants else dict(wants)
            wants.clear()
            if call.guessed:
                self._habits[call.procedure].broken()
                call.guessed = False
            if interrupted and call.stand_ins:
                call.stand_ins = False
                self._without_stand_ins.add(call.procedure)
                interrupted = None
            if not interrupted:
                self.counts["missed"] += 1
                self.failed(raised)
                return False
        error: BaseException = raised
        if interrupted:
            self.counts["timed_out"] += 1
            error = type(interrupted)(f"{call.procedure.name} {interrupted}")
        elif not isinstance(error, BELIEVED):
            error = described_error(error, call.procedure.name, Bodies.run.__code__)
        self.counts["raised"] += not interrupted
        call.error = call_error(call.client_id, call.number, error)
        self.failed(raised)
        return True

    def _runs(self, client_id: int, number: int, procedure: Procedure) -> None:
        running = self._running
        running[CLIENT_ID], running[CALL_NUMBER] = client_id, number
        running[PROCEDURE] = self._places.get(procedure.name, 0)

    def _admit_large(self, result_bytes: int) -> None:
        """Bounds what a client can make this process hold in results."""
        if result_bytes > MAX_RESULT_BYTES:
            raise ConstraintViolation(f"a result of {result_bytes:,} bytes; the limit is {MAX_RESULT_BYTES:,}")
        self._large_bytes += result_bytes
        if self._large_bytes > LARGE_RESULTS_A_BATCH_BYTES:
            raise ResultsWait(
                f"more than {LARGE_RESULTS_A_BATCH_BYTES:,} bytes of large results are under way; retry later"
            )
