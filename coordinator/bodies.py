"""Runs procedure bodies on borrowed rows: the procedure boundary of the coordinator.

returned                    its result is kept; what it wrote stays in the cache
raised                      what it wrote is undone; the error is its answer, once the batch is over
missed something            undone; it runs again when that has been borrowed. Whatever it raised meanwhile
ran too long, or the        undone; ProcedureTimeout or ConstraintViolation is its answer. On stand-ins: it runs
process got too large       again, without them

On borrowed rows "too long" is BORROWING_S: partitions take back what they have lent for LEASE_S, so what a body makes
of it any later would never be committed.
"""

from __future__ import annotations

import os
from binascii import crc_hqx
from collections.abc import Callable, Iterable
from datetime import datetime
from importlib.util import find_spec
from types import CodeType
from typing import Any, NoReturn

from msgspec import Raw, Struct

from coordinator.across import StatementsAcross
from coordinator.borrowed import Table, Tables, Wish
from coordinator.habits import Habit
from voltpy import arguments as argument_lists
from voltpy.answers import LARGE_RESULT_BYTES, LARGE_RESULTS_A_BATCH_BYTES, MAX_RESULT_BYTES
from voltpy.builtin import PLAN, QUERY_ALL, QUERY_KEYS, builtins, planning
from voltpy.call_error import BELIEVED, ResultsWait, call_error, described_error, let_go
from voltpy.errors import BadArguments, ConstraintViolation, Error, ProcedureTimeout, ProtocolError, SchemaError
from voltpy.hash_slot import hash_slot
from voltpy.heartbeat import CALL_NUMBER, CLIENT_ID, PROCEDURE, Words
from voltpy.messages import LEASE_S, CallError, CallGroup
from voltpy.not_here import NotHere
from voltpy.procedure import Procedure, Registry
from voltpy.routing import SLOT_MASK
from voltpy.row import encode
from voltpy.schema import Schema
from voltpy.sql.plan import FILE, Plan
from voltpy.transaction import CallContext, Generated, ReadOnlyTable, Transaction

ALLOWED_KEPT = 4096  # sets of partitions
STAND_INS_S = 0.3  # of a run that will be repeated anyway
CALLS_WITHOUT_STAND_INS = 256  # of a procedure whose body looped on them; after each further time, four times as many
BORROWING_S = 0.6 * LEASE_S  # beside the messages before and after a run, and the calls that run before it
VERIFIED_KEYS = 1024  # of one call, that are kept with it

# The builtin procedures that run a SELECT here, EXPLAIN too; their last arguments are the statement and its parameters.
SELECTS = (QUERY_KEYS, QUERY_ALL)

Origin = Any  # whoever gets the replies: the shell knows who that is

# Where the planner's code is, and what runs statements. It keeps nothing before it is whole.
_PLANNER = tuple(
    f"{os.path.dirname(spec.origin)}{os.sep}"
    for spec in map(find_spec, ("voltpy.sql", "sqlglot"))  # found, not loaded: the router does without it
    if spec is not None and spec.origin is not None
)

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
    needs_all: bool = False  # it begins when every partition is attached: it may need any, or writes what all copy
    result: bytes = b""
    error: CallError | None = None
    changed: tuple[int, int] = (0, 0)

    @property
    def wrote(self) -> bool:
        return self.changed[0] != self.changed[1]


class ViewAcross:
    """A view where a procedure crosses partitions: what is stored of it knows nothing of what the batch has written."""

    def __init__(self, table: Table) -> None:
        self._name = table.name
        self.schema = table.schema
        self.catalog_count = table.count

    def __getattr__(self, name: str) -> NoReturn:
        raise SchemaError(f"tx.{self._name}: a procedure that crosses partitions reads a view by SQL, with tx.execute")


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
        self._schema = schema
        self._context = CallContext(running, ids, clock)
        self.tables = Tables(schema, partitions, self._context.next_id)
        self._statements: StatementsAcross | None = None
        self._large_bytes = 0
        self._allowed: dict[frozenset[int], frozenset[int]] = {}  # one object for all that are equal
        self._habits: dict[Procedure, Habit] = {}
        # Procedures whose bodies loop on stand-ins: calls to go without them, and how many the last time.
        self._without_stand_ins: dict[Procedure, tuple[int, int]] = {}
        self._views = self._made_views()
        self.use(registry)

    def take_schema(self, schema: Schema, plan_of: Callable[[str], Plan], registry: Registry) -> None:
        """From the next call on, this schema and these procedures. Between batches."""
        self._schema = schema
        self.tables.take_schema(schema)
        self.plan_with(plan_of)
        self.use(registry)

    def plan_with(self, plan_of: Callable[[str], Plan]) -> None:
        """From the next call on statements run, as they are planned so."""
        self._statements = StatementsAcross(self._schema, plan_of, self.tables, self._running)
        self._context.statements = self._statements
        self._views = self._made_views()

    def _made_views(self) -> dict[bool, Transaction]:
        """What `tx` is, by whether the procedure is read-only."""
        self._context.dropped = self._schema.dropped_names
        tables: dict[str, Any] = {
            name: table if table.schema.view is None else ViewAcross(table)
            for name, table in self.tables.by_name.items()
        }
        read_only: dict[str, Any] = {
            name: ReadOnlyTable(table, "the procedure is declared read_only") if isinstance(table, Table) else table
            for name, table in tables.items()
        }
        return {False: Transaction(tables, self._context), True: Transaction(read_only, self._context)}

    def use(self, registry: Registry) -> None:
        """From the next call on, these procedures."""
        self.registry = registry
        self._habits.clear()
        self._without_stand_ins.clear()
        self.procedures = {**builtins(), **registry.procedures}
        self._places = {name: place for place, name in enumerate(sorted(self.procedures))}

    def may_be_interrupted(self, code: CodeType) -> bool:
        """Whether an Interruption may be raised in a frame of this code: the user's, a statement's, a read of ours.

        And in the planner's: a statement that it can't be done with in time must not cost the process.
        """
        return (
            code in _READERS
            or code.co_filename == FILE
            or code.co_filename.startswith(_PLANNER)
            or self.registry.is_user_code(code)
        )

    def interrupt(self, error: Error) -> None:
        """Ends the running call with this error, whatever it catches."""
        self.interrupted = error
        self.tables.undo.append((None, None, None, False))

    def lease(self) -> tuple[float, str] | None:
        """How long a run on stand-ins, or on borrowed rows, may take, and what it is told when it is ended."""
        if self.tables.is_on_stand_ins:
            return STAND_INS_S, f"ran for {STAND_INS_S:g} s on stand-ins for rows"  # nobody hears of it: it runs again
        if not self.tables.has_borrowed:
            return None
        return BORROWING_S, f"ran for {BORROWING_S:g} s on rows that partitions lend for {LEASE_S:g} s, and was ended"

    def begin_batch(self) -> None:
        self._large_bytes = 0
        if len(self._allowed) > ALLOWED_KEPT:
            self._allowed.clear()

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
                    if type(key) is int:  # hash_slot, spelled out
                        verified[key] = owners[crc_hqx(b"%d" % key, 0) & SLOT_MASK]
                        continue
                    for each in key if type(key) in (list, tuple, set, frozenset) else (key,):
                        verified[each] = owners[hash_slot(each)]
            except (TypeError, UnicodeEncodeError) as error:
                text = f"{procedure.name}, argument {position + 1}: {error}"
                return call_error(client_id, number, BadArguments(text))
            allowed = frozenset(verified.values())
            allowed = self._allowed.setdefault(allowed, allowed)
            if len(verified) > VERIFIED_KEYS:
                verified = {}  # a call may wait for long; its run finds out again what it needs
        elif procedure.name == PLAN:
            allowed = frozenset()  # it reads nothing
        stand_ins = procedure not in self._without_stand_ins or self._tries_stand_ins(procedure)
        return Call(origin, client_id, number, procedure, arguments, raw, allowed, verified, stand_ins=stand_ins)

    def _tries_stand_ins(self, procedure: Procedure) -> bool:
        """Whether a body that has looped on stand-ins before gets some again: others may suit it better."""
        left, last = self._without_stand_ins[procedure]
        self._without_stand_ins[procedure] = left - 1, last
        return left <= 0

    # Runs.

    def plan(self, text: str) -> Raw | CallError:
        """How a statement is run, encoded, for a partition that lacks it: planned, and ended, as a call is."""
        call = Call(None, 0, 0, planning(), (text,), None, frozenset(), {}, stand_ins=False)
        self.run([call])
        return call.error or Raw(call.result)

    def guess(self, call: Call) -> bool:
        """Finds out what a call that never ran wants, if its procedure has a habit that tells."""
        habit = self._habits.get(call.procedure)
        if habit is not None and habit.is_firm:
            call.wants = habit.wishes(call.arguments, call.verified, self.tables.tables)
            call.guessed = call.wants is not None
        return call.wants is not None

    def _read_off(self, call: Call) -> bool:
        """Finds out what a call wants whose procedure does no more than to run its statement, if that can be told."""
        if self._statements is None or call.borrows:
            return False
        *_, text, parameters = call.arguments
        wishes = self._statements.wishes(text, parameters, call.allowed)
        if wishes is None:
            return False
        call.wants = dict.fromkeys(wishes)
        return True

    def discover(self, calls: Iterable[Call]) -> None:
        """Finds out what calls that never ran want: by habit, by what their statement is, or by a run on stand-ins that
        leaves nothing else."""
        tables, habits = self.tables, self._habits
        for call in calls:
            is_select = call.procedure.name in SELECTS
            if call.wants is not None or (self._read_off(call) if is_select else self.guess(call)):
                continue
            habit = habits.get(call.procedure)
            if habit is None:
                habit = habits[call.procedure] = Habit()
            call.wants = {}
            self.run([call])
            tables.undo_to(call.changed[0])
            call.error = None
            if call.stand_ins and not is_select:
                habit.saw(call.arguments, call.wants)

    def run(self, calls: Iterable[Call]) -> list[Call]:
        """Runs them one after another, on what is in the cache. Returns those that missed something."""
        tables, context, running, views = self.tables, self._context, self._running, self._views
        undo, wants, places, begin = tables.undo, tables.wants, self._places, tables.begin
        missed: list[Call] = []
        returned = 0
        procedure: Procedure | None = None
        for call in calls:
            if call.procedure is not procedure:
                procedure = call.procedure
                body, tx = procedure.body, views[procedure.read_only]
                running[PROCEDURE] = places.get(procedure.name, 0)  # it may outlive a reload
            running[CLIENT_ID] = call.client_id
            running[CALL_NUMBER] = call.number
            begin(call.allowed, call.verified, call.stand_ins, procedure.read_only and not call.borrows)
            if call.generated is not None or context.has_generated:
                context.resume(call.generated)
            call.error = None
            mark = len(undo)
            try:
                arguments = call.arguments if call.raw is None else procedure.decode_one(call.raw)
                result = encode(body(tx, *arguments))
                if len(result) > LARGE_RESULT_BYTES:
                    self._admit_large(len(result))
                if wants or self.interrupted:
                    raise NotHere
            except BaseException as error:  # noqa: BLE001 — the procedure boundary: whatever the user's code raised
                tables.undo_to(mark)
                if context.has_generated:
                    call.generated = context.set_aside()
                call.changed = (mark, mark)
                if not self._ended_badly(call, error):
                    missed.append(call)
                if len(undo) != mark or wants or self.interrupted:  # the exception's own __str__ did something
                    tables.undo_to(mark)
                    wants.clear()
                    self.interrupted = None
                continue
            if context.has_generated:
                call.generated = context.set_aside()
            call.result = result
            call.changed = (mark, len(undo))
            returned += 1
        self.counts["returned"] += returned
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
                left, last = self._without_stand_ins.get(call.procedure, (0, CALLS_WITHOUT_STAND_INS // 4))
                if left <= 0:
                    self._without_stand_ins[call.procedure] = 4 * last, 4 * last
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
            raise ConstraintViolation(
                f"a result of {result_bytes:,} bytes; the limit is {MAX_RESULT_BYTES:,}: ask in parts"
            )
        self._large_bytes += result_bytes
        if self._large_bytes > LARGE_RESULTS_A_BATCH_BYTES:
            raise ResultsWait(
                f"more than {LARGE_RESULTS_A_BATCH_BYTES:,} bytes of large results are under way; retry later"
            )
