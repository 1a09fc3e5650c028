"""The serial core of a partition: calls go in, one after another; a batch of changes and replies comes out. No I/O.

A batch is what its caller makes of it: `run` any number of call groups, then

    changes, outcomes = seal()      what must be in the WAL before anyone hears of it
    committed(lsn, outcomes)        it is: images go into the pages            — or, when there is no room —
    undo_batch()                    nothing has happened, and nobody hears of it; run the same groups again, in
                                    smaller batches or after `refuse_writes`
    replies()                       of the batches that are over, to send once the WAL is flushed that far

A call ends in one of these ways (each undoes what it must):

    returned                    its result is a reply; if it wrote, the result is an outcome for the WAL too
    raised                      its changes are undone; the error is a reply
    needs a key that isn't here its changes are undone, it is set aside, and run again when all that it missed is here;
                                where that was lent for too long, or too many wait for such keys, an error is a reply
    needs the coordinator       its changes are undone, or it never ran; ELSEWHERE is a reply
    ran too long, or took too   its changes are undone; ProcedureTimeout or ConstraintViolation is a reply
    much memory

Beside it: set_aside, the calls that wait; first_results, for retried calls; transaction_kinds, what `tx` is.

The words of `running` say which call is running, for whoever watches from outside: see voltpy.heartbeat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from types import CodeType
from typing import Any

import msgspec
from msgspec import Raw, Struct

from partitions.first_results import FirstResults
from partitions.heap import Heap
from partitions.lookups import Lookups
from partitions.ownership import SEVERAL_KEYS
from partitions.plans import Plans
from partitions.secondary_index import SecondaryIndex
from partitions.set_aside import (
    CALLS_SET_ASIDE,
    CALLS_WAIT_FOR_LENT,
    TIMES_SET_ASIDE,
    CallsSetAside,
    Origin,
    SetAside,
)
from partitions.store import Store
from partitions.table import Table
from partitions.transaction_kinds import TransactionKinds
from partitions.unique_indexes import Entry
from voltpy import arguments as argument_lists
from voltpy.answers import LARGE_RESULT_BYTES, LARGE_RESULTS_A_BATCH_BYTES, MAX_RESULT_BYTES, Answers
from voltpy.builtin import QUERY_ALL, builtins
from voltpy.call_error import BELIEVED, ResultsWait, call_error, described_error, let_go
from voltpy.errors import (
    BadArguments,
    ConstraintViolation,
    DataError,
    Error,
    Indeterminate,
    Overloaded,
    ProcedureTimeout,
    ProtocolError,
    Unavailable,
    UnknownProcedure,
)
from voltpy.heartbeat import CALL_NUMBER, CLIENT_ID, PROCEDURE, Words
from voltpy.messages import (
    ELSEWHERE,
    NEVER_SENT,
    CallError,
    CallGroup,
    EverywhereCall,
    Fragment,
    PlanReply,
    ReplyGroup,
    TableChanges,
)
from voltpy.not_here import COORDINATOR, PLAN, WHOLE_TABLE, Miss, NotHere
from voltpy.outcome_window import OutcomeWindow, Unlogged
from voltpy.procedure import Procedure, Registry
from voltpy.routing import no_such
from voltpy.row import encode
from voltpy.sql.plan import FILE
from voltpy.sql.statements import Statements
from voltpy.transaction import CallContext
from voltpy.wire import joined

LENT_WAIT_S = 3.0  # in all its runs, after which a call that waits for what is lent is told so

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PART: Origin = object()  # who gets the answer of one partition's part of a joint call: see `run_part`
_decode_raws = msgspec.msgpack.Decoder(list[Raw]).decode
_decode_values = msgspec.msgpack.Decoder(list[Any]).decode


# What only reads: stopping it anywhere leaves nothing half done.
_READERS: frozenset[CodeType] = frozenset(
    method.__code__
    for method in (
        *(Table.scan, Table.range, Table.where, Table._find_row, Heap.scan),
        *(Lookups._read, Lookups._read_some, Lookups._merged, Lookups._unchanged, SecondaryIndex.postings),
    )
)


class Part(Struct):
    """What became of one partition's part of a joint call. `missed`: it must run again when that is here."""

    result: bytes = b""
    error: CallError | None = None
    missed: tuple[Miss, ...] = ()


class Executor:
    """`counts` by what became of calls: see the table above."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        window: OutcomeWindow,
        ids: Callable[[], int],
        running: Words,
        clock: Callable[[], datetime],
    ) -> None:
        self.interrupted: Error | None = None  # with which the running call is being ended
        self.failed: Callable[[BaseException], None] = let_go  # told of every call that raised, once undone
        self.counts = {"returned": 0, "raised": 0, "set_aside": 0, "timed_out": 0, "reruns": 0, "elsewhere": 0}
        self.clock = clock
        self.now_s = 0.0  # of a clock that only goes forward, as of this batch: how long calls have waited
        self._store = store
        self._is_alone = store.partitions == 1  # then every key lives here, and of every table this is the only copy
        self.window = window
        self._running = running
        self._context = CallContext(running, ids, clock)
        self._kinds = TransactionKinds(store, self._context)
        self._tx_of = self._kinds.local  # by kind of procedure; the joint ones while a part of a joint call runs
        self._ids = ids
        self._outcomes: list[ReplyGroup] = []
        self._unlogged: list[Unlogged] = []  # answers of this batch that are no outcomes: see outcome_window
        self._first_results = FirstResults(window)
        self._answers: dict[Origin, Answers] = {}  # of this batch, which may still be undone
        self._settled: dict[Origin, Answers] = {}  # of those before it
        self.large_bytes = 0  # of results that `replies` has not handed out
        self._large_bytes_before = 0  # this batch
        self.runaways: set[tuple[int, int]] = set()  # ids of calls for which an earlier process had to be killed
        self._set_aside = set_aside = CallsSetAside()
        # Asked in every turn of the partition, so without a method of ours between.
        self.missed_pages = set_aside.missed_pages
        self.missed_plans = set_aside.missed_plans
        self.is_awaited = set_aside.is_awaited
        self._rerunning: dict[int, SetAside] = {}  # the calls that run again now, by number; all of one client
        self._split_group: CallGroup | None = None
        self._split_arguments: dict[int, Raw] = {}
        self._plans = Plans(store.misses)
        self.take_schema(registry)

    # Running calls.

    def run(self, origin: Origin, group: CallGroup) -> None:
        """Runs the calls of a group; their replies go to `origin`."""
        procedure = self._procedures.get(group.procedure)
        if procedure is None or procedure.everywhere:
            self._refuse(origin, group, _not_callable(group.procedure, procedure, self._procedures))
            return
        if not procedure.key_positions and not self._is_alone:
            self._send_elsewhere(origin, group, group.numbers, f"{procedure.name} has no key: all partitions take part")
            return
        if group.retry_floor != NEVER_SENT:
            self._retry(origin, group, procedure)
            return
        self._run_group(origin, group, procedure, self.window.overtaken(group.client_id, group.numbers))

    def _run_group(self, origin: Origin, group: CallGroup, procedure: Procedure, overtaken: set[int]) -> None:
        numbers, arguments = self._decoded_group(origin, group, procedure)
        if overtaken:
            kept = [(n, a) for n, a in zip(numbers, arguments, strict=True) if n not in overtaken]
            self._answers_to(origin).drop(group.client_id, len(numbers) - len(kept))
            numbers, arguments = [n for n, _ in kept], [a for _, a in kept]
        if not self._is_alone and arguments:
            positions = procedure.key_positions
            if len(positions) > 1 or type(arguments[0][positions[0]]) in SEVERAL_KEYS:
                numbers, arguments = self._at_home(origin, group, procedure, numbers, arguments)
        self._run_each(origin, group, procedure, numbers, arguments, None)

    def _at_home(
        self,
        origin: Origin,
        group: CallGroup,
        procedure: Procedure,
        numbers: list[int],
        arguments: list[tuple[Any, ...]],
    ) -> tuple[list[int], list[tuple[Any, ...]]]:
        """The calls all of whose keys live here; the others are answered ELSEWHERE."""
        foreign = self._store.owner.foreign(procedure.key_positions, arguments)
        if not foreign:
            return numbers, arguments
        reason = f"{procedure.name}: not all of its keys live in one partition"
        self._send_elsewhere(origin, group, [numbers[index] for index in sorted(foreign)], reason)
        here = [index for index in range(len(numbers)) if index not in foreign]
        return [numbers[index] for index in here], [arguments[index] for index in here]

    def _send_elsewhere(self, origin: Origin, group: CallGroup, numbers: list[int], reason: str) -> None:
        errors = self._answers_to(origin).errors
        errors.extend([CallError(group.client_id, number, ELSEWHERE, reason) for number in numbers])
        self.counts["elsewhere"] += len(numbers)

    def run_part(self, call: EverywhereCall) -> tuple[Part, list[TableChanges]]:
        """Runs this partition's part of a joint call, and what it changes; nothing of it stays.

        Between two batches. Raises ReadOnly when memory has no room for its changes, and as `seal` does.
        """
        self._tx_of = self._kinds.joint
        try:
            if (call.client_id, call.number) in self.runaways:
                error = ProcedureTimeout(f"{call.procedure} could only be ended with its partition")
                return Part(error=call_error(call.client_id, call.number, error)), []
            self.run_everywhere(_PART, call)
            set_aside = self._set_aside.get((call.client_id, call.number))
            if set_aside is not None:
                return Part(missed=set_aside.missed), []
            answers = self._answers_to(_PART)
            if answers.errors:
                return Part(error=answers.errors[0]), []
            changes, _ = self.seal()
            tables = self._store.tables  # views follow when it is decided
            changes = [change for change in changes if tables[change.table].schema.view is None]
            return Part(bytes(_decode_raws(answers.groups[0].results)[0])), changes
        finally:
            self._tx_of = self._kinds.local
            self.undo_batch()

    def run_everywhere(self, origin: Origin, call: EverywhereCall) -> None:
        """Runs this partition's part of a directed call."""
        group = CallGroup(call.client_id, call.procedure, 0, 0, [call.number], [0], joined([bytes(call.args)]))
        procedure = self._procedures.get(call.procedure)
        if procedure is None or not procedure.everywhere:
            self._refuse(origin, group, _not_callable(call.procedure, procedure, self._procedures, directed=True))
            return
        arguments = self._decoded(procedure, call.client_id, call.number, call.args)
        if isinstance(arguments, Error):
            self._refuse(origin, group, arguments)
            return
        try:
            now = _EPOCH + timedelta(microseconds=call.now_us)
        except OverflowError:
            self._refuse(origin, group, ProtocolError(f"{call.now_us} microseconds are no time"))
            return
        self._run_directed(origin, group, procedure, arguments, now)

    def _run_directed(
        self, origin: Origin, group: CallGroup, procedure: Procedure, arguments: tuple[Any, ...], now: datetime
    ) -> None:
        """A call that also runs elsewhere: its rows' hidden keys come from its call id, to be equal in all copies."""
        for table in self._store.tables:
            table.hide_keys_with(self._context.next_id)
        try:
            self._run_each(origin, group, procedure, group.numbers, [arguments], now)
        finally:
            for table in self._store.tables:
                table.hide_keys_with(self._ids)

    def _run_each(
        self,
        origin: Origin,
        group: CallGroup,
        procedure: Procedure,
        numbers: list[int],
        arguments: list[tuple[Any, ...]],
        directed_now: datetime | None,
    ) -> None:
        """The hot loop: everything that every call pays for is in here."""
        client_id = group.client_id
        body, running, undo, missed = procedure.body, self._running, self._store.undo_log, self._store.misses
        tx = self._tx_of[procedure.everywhere, procedure.read_only]
        results: list[bytes] = []
        returned = results.append
        unanswered: set[int] = set()  # positions
        self._context.directed_now = directed_now
        running[CLIENT_ID] = client_id
        running[PROCEDURE] = self._places.get(procedure.name, 0)  # set aside, it may outlive a reload
        first_mark = mark = len(undo)
        for number, values in zip(numbers, arguments, strict=True):
            running[CALL_NUMBER] = number
            try:
                result = encode(body(tx, *values))
                if len(result) > LARGE_RESULT_BYTES:
                    self._admit_large(len(result))
                if len(undo) != mark:
                    if missed or self.interrupted:
                        raise NotHere
                    mark = len(undo)
            except BaseException as error:  # noqa: BLE001 — the procedure boundary: whatever the user's code raised
                self._store.undo_to(mark)
                unanswered.add(len(results) + len(unanswered))
                self._ended_badly(origin, group, number, procedure, directed_now, error)
                if len(undo) != mark or self.interrupted:  # the exception's own __str__ wrote, or ran too long
                    self._store.undo_to(mark)
                    self._store.misses.clear()
                    self.interrupted = None
                continue
            returned(result)
        if unanswered:
            numbers = [number for position, number in enumerate(numbers) if position not in unanswered]
        if numbers:
            replies = ReplyGroup(client_id, numbers, joined(results))
            self._answers_to(origin).groups.append(replies)
            self.counts["returned"] += len(numbers)
            if mark != first_mark:
                self._outcomes.append(replies)
            elif not procedure.read_only:
                self._unlogged.append(replies)

    def _ended_badly(
        self,
        origin: Origin,
        group: CallGroup,
        number: int,
        procedure: Procedure,
        directed_now: datetime | None,
        error: BaseException,
    ) -> None:
        """The call was undone: what becomes of it?"""
        misses = self._store.misses
        missed: tuple[Miss, ...] = ()
        if misses:
            missed = tuple(set(misses)) if len(misses) > 1 else (misses[0],)
            misses.clear()
        interrupted, self.interrupted = self.interrupted, None
        raised = error
        if COORDINATOR in missed and not interrupted:
            # A retry must not run either, even if it would not do it again: the first attempt may be running there.
            sent_on = CallError(
                group.client_id, number, ELSEWHERE, f"{procedure.name} writes what every partition has a copy of"
            )
            self._answers_to(origin).errors.append(sent_on)
            self._unlogged.append(sent_on)
            self.counts["elsewhere"] += 1
            self.failed(raised)
            return
        is_lent = any(type(miss) is not int for miss in missed)
        # Two calls with one id would be their client's fault, which numbers them.
        is_taken = self._set_aside.get((group.client_id, number)) is not None
        if missed and not interrupted and not is_taken and self._set_aside.has_room(for_lent=is_lent):
            arguments, generated = self._encoded_arguments(group, number), self._context.set_aside()
            call = SetAside(origin, group.client_id, number, procedure, arguments, directed_now, generated, missed)
            self._set_aside.add(call, self._rerunning.get(number), self.now_s if is_lent else None)
            self.counts["set_aside"] += 1
            self.failed(raised)
            return
        if interrupted:
            self.counts["timed_out"] += 1
            error = type(interrupted)(f"{procedure.name} {interrupted}")
        elif missed and is_taken:
            error = ProtocolError(f"call {number} of this client waits already")
        elif missed:
            error = Overloaded(
                f"{CALLS_WAIT_FOR_LENT:,} calls wait for rows that are lent already, and {self._lacks(missed)}"
                if is_lent
                else f"{CALLS_SET_ASIDE:,} calls wait for rows from disk already; retry later"
            )
        elif not isinstance(error, BELIEVED):
            error = described_error(error, procedure.name, Executor._run_each.__code__)
        self.counts["raised"] += not interrupted
        answer = call_error(group.client_id, number, error)
        self._answers_to(origin).errors.append(answer)
        self._unlogged.append(answer)
        self.failed(raised)

    def _encoded_arguments(self, group: CallGroup, number: int) -> bytes:
        """The arguments of one call. All calls of a group may miss the same key, so it is split once."""
        if self._split_group is not group:
            self._split_group = group
            self._split_arguments = dict(zip(group.numbers, _decode_raws(group.args), strict=True))
        return bytes(self._split_arguments[number])

    # What is not here.

    def keys_arrived(self, table: int, keys: Iterable[Any]) -> None:
        """These keys are here again: calls that waited only for them may run, in the order in which they came."""
        known = self._store.tables[table]
        known.bring_all_back(keys)
        here: Iterable[Miss] = zip(repeat(table), keys)
        if known.all_here and table not in self._kinds.lent:
            here = chain(here, [(table, WHOLE_TABLE)])
        self._set_aside.arrived(here)

    def lend_table(self, table: int) -> None:
        """From now on whatever touches this table is set aside, until `table_arrived`. Between batches only."""
        self._kinds.lend(table)

    def table_arrived(self, table: int) -> None:
        """The table is here again, but for keys that are away."""
        self._kinds.take_back(table)
        self._set_aside.arrived([(table, WHOLE_TABLE)])

    def give_up(self) -> bool:
        """Answers the calls that have waited for too long, at `now_s`, for what is lent. Whether there were any.

        Between batches only; the answers are among the next `replies`.
        """
        overdue = self._set_aside.overdue(self.now_s - LENT_WAIT_S)
        for call in overdue:
            self._set_aside.drop(call)
            error = Unavailable(f"{call.procedure.name}: {self._lacks(call.missed)}")
            answer = call_error(call.client_id, call.number, error)
            self.window.remember([answer])
            answers = self._settled.get(call.origin)
            if answers is None:
                answers = self._settled[call.origin] = Answers([], [])
            answers.errors.append(answer)
        self.counts["raised"] += len(overdue)
        return bool(overdue)

    def _lacks(self, missed: Iterable[Miss]) -> str:
        """Says what is lent, of what a call has missed."""
        for miss in missed:
            if type(miss) is tuple:
                table, key = miss
                if table == PLAN:
                    return "the coordinator, which plans its statement, does not answer"
                name = self._store.tables[table].name
                if isinstance(key, Entry):
                    lent = f"{name}, a value of its index {key.index}, is lent"
                elif key is WHOLE_TABLE:
                    lent = f"{name}, or a key of it, is lent"
                else:
                    lent = f"{name} {key!r:.100} is lent"
                return f"{lent} to an undecided transaction"
        return "a key was lent to an undecided transaction"

    def pages_arrived(self, pages: list[int]) -> None:
        """These pages are in memory: calls that waited only for them may run, in the order in which they came."""
        self._set_aside.arrived(pages)

    def plan_arrived(self, reply: PlanReply) -> None:
        """This is how a statement is run, or what is wrong with it: calls that waited for it run again."""
        self._plans.arrived(reply)
        self._set_aside.arrived([(PLAN, reply.text)])

    @property
    def has_ready(self) -> bool:
        return bool(self._set_aside.ready)

    @property
    def waiting(self) -> int:
        """How many calls are set aside."""
        return len(self._set_aside)

    @property
    def waiting_for_lent(self) -> int:
        """How many of these wait, or have waited, for what is lent."""
        return self._set_aside.for_lent

    def run_ready(self) -> None:
        """Reruns the calls that have what they missed. One that misses something else is set aside again."""
        while self._set_aside.ready:
            self.run_next_ready()

    def run_next_ready(self) -> None:
        """Reruns the first of them, and with it those that follow and may run in one group with it."""
        calls = self._set_aside.next_group()
        first = calls[0]
        rerunning = self._rerunning
        rerunning.update((call.number, call) for call in calls)
        self.counts["reruns"] += len(calls)
        self._running[CLIENT_ID], self._running[CALL_NUMBER] = first.client_id, first.number
        self._context.resume(first.generated)
        args = joined([call.arguments for call in calls])
        group = CallGroup(first.client_id, first.procedure.name, 0, 0, list(rerunning), [0] * len(calls), args)
        numbers, arguments = self._decoded_group(first.origin, group, first.procedure)
        misses, pool = self._store.misses, self._store.pool
        bring = misses.bring
        if first.times >= TIMES_SET_ASIDE and pool is not None and not self._store.is_behind:
            misses.bring = pool.bring
        if first.directed_now is None:
            self._run_each(first.origin, group, first.procedure, numbers, arguments, None)
        else:
            for values in arguments:
                self._run_directed(first.origin, group, first.procedure, values, first.directed_now)
        misses.bring = bring
        rerunning.clear()

    # Statements' parts.

    def run_fragment(self, fragment: Fragment) -> bytes:
        """What this partition sends for a SELECT, encoded. Between two batches; the undo log may be left poisoned.

        Raises NotHere, with the misses; SqlError, DataError, ProcedureTimeout, ConstraintViolation for too much.
        """
        context, running = self._context, self._running
        tx = self._tx_of[False, True]
        running[CLIENT_ID], running[CALL_NUMBER], now = fragment.call or (0, 0, None)
        running[PROCEDURE] = self._places.get(QUERY_ALL, 0)
        context.resume(None)
        context.directed_now = now
        try:
            parameters = _decode_values(fragment.parameters)
            prepared = self._statements.prepare(fragment.text)
            prepared.check(parameters)
            rows = prepared.fragment(tx, parameters, fragment.sends_copies)
            if self._store.misses or self.interrupted:
                raise NotHere
            return encode(rows)
        except BaseException as error:
            interrupted, self.interrupted = self.interrupted, None
            if interrupted is not None:
                self._store.misses.clear()
                self.counts["timed_out"] += 1
                raise type(interrupted)(f"the statement {interrupted}") from None
            if isinstance(error, Error | NotHere):
                raise
            raise DataError(f"values of different types meet: {error}") from None
        finally:
            context.resume(None)

    # Retried calls.

    def _retry(self, origin: Origin, group: CallGroup, procedure: Procedure) -> None:
        """Answers retried calls with their first results; runs those that surely never ran."""
        for number, raw in self._split(origin, group):
            one = CallGroup(group.client_id, group.procedure, 0, 0, [number], [0], joined([bytes(raw)]))
            waiting = self._set_aside.get((group.client_id, number))
            if waiting is not None:
                self._answers_to(waiting.origin).drop(group.client_id, 1)
                self._set_aside.answer_to(waiting, origin)
                continue
            if (group.client_id, number) in self.runaways:
                self._refuse(origin, one, ProcedureTimeout(f"{procedure.name} could only be ended with its partition"))
                continue
            try:
                first = self._first_results.of(
                    group.client_id, number, group.retry_floor, self._outcomes, self._unlogged
                )
            except Indeterminate as error:
                self._refuse(origin, one, error)
                continue
            if first is None:
                self._run_group(origin, one, procedure, set())
            elif isinstance(first, CallError):
                self._answers_to(origin).errors.append(first)
            else:
                self._answers_to(origin).groups.append(ReplyGroup(group.client_id, [number], joined([first])))
            self.window.retried(group.client_id, number)

    # Batches.

    def seal(self) -> tuple[list[TableChanges], list[ReplyGroup]]:
        """The batch's changes and outcomes. Raises ReadOnly when memory has no room for them.

        Raises what failed while a page was read for a transaction, whatever that made of it: nobody may be answered.
        """
        self._store.raise_if_failed()
        return self._store.changes(), self._outcomes

    def committed(self, lsn: int, outcomes: bytes) -> None:
        """The batch is in the WAL as record `lsn`."""
        self.window.add(lsn, outcomes)
        self.finished()

    def finished(self) -> None:
        """The batch is over: what it changed goes into pages and index. Raises as `seal` does."""
        self._store.raise_if_failed()
        self._store.apply()
        if self._unlogged:
            self.window.remember(self._unlogged)
        if self._settled:
            for origin, answers in self._answers.items():
                settled = self._settled.setdefault(origin, answers)
                if settled is not answers:
                    settled.add(answers)
        else:
            self._settled = self._answers
        self._answers = {}
        self._begin_batch()

    def undo_batch(self) -> None:
        """Undoes every call of the batch; they may be run again, or refused. Those that were rerun are ready again."""
        self._store.undo_batch()
        self._context.resume(None)
        self._answers.clear()
        self.large_bytes = self._large_bytes_before
        self._set_aside.undo_batch()
        self._begin_batch()

    def _begin_batch(self) -> None:
        self._outcomes = []
        self._unlogged = []
        if self._first_results.index:
            self._first_results.begin_batch()
        if self._set_aside.is_changed:
            self._set_aside.begin_batch()
        self._large_bytes_before = self.large_bytes
        self._split_group, self._split_arguments = None, {}

    def replies(self) -> dict[Origin, Answers]:
        """By origin, the replies of the batches that are over, gathered since the last time."""
        settled, self._settled = self._settled, {}
        self.large_bytes = self._large_bytes_before = 0
        return settled

    def refuse_writes(self, reason: str) -> None:
        """Until `accept_writes`, a procedure that writes gets ReadOnly."""
        self._kinds.refuse_writes(reason)

    def may_be_interrupted(self, code: CodeType) -> bool:
        """Whether an Interruption may be raised in a frame of this code: the user's, a statement's, a read of ours."""
        return code in _READERS or code.co_filename == FILE or self.registry.is_user_code(code)

    def interrupt(self, error: Error) -> None:
        """Ends the running call with this error. Its undo log is poisoned: it can't commit, whatever it catches."""
        self.interrupted = error
        self._store.undo_log.append((None, None, None))

    def use(self, registry: Registry) -> None:
        """From the next call on, these procedures."""
        self.registry = registry
        self._procedures = {**builtins(), **registry.procedures}
        self._places = {name: place for place, name in enumerate(sorted(self._procedures))}

    def plan_with(self, statements: Statements) -> None:
        """From the next call on, `tx.execute` runs these."""
        self._context.statements = self._statements = statements
        statements.undo = self._store
        self.accept_writes()

    def take_schema(self, registry: Registry) -> None:
        """From the next call on these procedures run, on the schema that the store has by now.

        Between batches only. Calls that have been set aside run on the new schema.
        """
        schema = self._store.schema
        for table in self._store.tables:
            table.hide_keys_with(self._ids)
        self._context.dropped = schema.dropped_names
        self._plans.forget()
        self.plan_with(Statements(schema, self._plans.plan_of))
        self.use(registry)

    def accept_writes(self) -> None:
        """Procedures may write what their declarations allow."""
        self._kinds.accept_writes()

    # Replies.

    def _answers_to(self, origin: Origin) -> Answers:
        answers = self._answers.get(origin)
        if answers is None:
            answers = self._answers[origin] = Answers([], [])
        return answers

    def _refuse(self, origin: Origin, group: CallGroup, error: Error) -> None:
        errors = self._answers_to(origin).errors
        errors.extend(call_error(group.client_id, number, error) for number in group.numbers)

    def _decoded_group(
        self, origin: Origin, group: CallGroup, procedure: Procedure
    ) -> tuple[list[int], list[tuple[Any, ...]]]:
        """(numbers, arguments) of the calls whose arguments fit; the others are answered."""
        try:
            return group.numbers, procedure.decode_many(group.args, len(group.numbers))
        except BaseException:  # noqa: BLE001 — see _decoded
            return self._decode_one_by_one(origin, group, procedure)

    def _decode_one_by_one(
        self, origin: Origin, group: CallGroup, procedure: Procedure
    ) -> tuple[list[int], list[tuple[Any, ...]]]:
        """Some call's arguments don't fit: answers those, and returns the others."""
        numbers: list[int] = []
        arguments: list[tuple[Any, ...]] = []
        for number, raw in self._split(origin, group):
            decoded = self._decoded(procedure, group.client_id, number, raw)
            if isinstance(decoded, Error):
                self._answers_to(origin).errors.append(call_error(group.client_id, number, decoded))
            else:
                numbers.append(number)
                arguments.append(decoded)
        return numbers, arguments

    def _decoded(self, procedure: Procedure, client_id: int, number: int, raw: Raw) -> tuple[Any, ...] | Error:
        """One call's arguments, or why there are none. Their types may be the user's, with code that runs here."""
        running = self._running
        running[CLIENT_ID], running[CALL_NUMBER] = client_id, number
        running[PROCEDURE] = self._places.get(procedure.name, 0)
        self.interrupted = None  # decoding the whole group may have been; what that left in the undo log is harmless
        try:
            return procedure.decode_one(raw)
        except BadArguments as error:
            return error
        except BaseException as error:  # noqa: BLE001 — the procedure boundary, as in _run_each
            if self.interrupted:
                self.interrupted = None
                return ProcedureTimeout(f"{procedure.name}: its arguments took longer than the procedure timeout")
            return BadArguments(f"{procedure.name}: an argument's type raised {type(error).__name__}")

    def _split(self, origin: Origin, group: CallGroup) -> list[tuple[int, Raw]]:
        """Each call's number with its argument array. A group that does not split is refused."""
        try:
            return argument_lists.split(group)
        except ProtocolError as error:
            self._refuse(origin, group, error)
            return []

    def _admit_large(self, result_bytes: int) -> None:
        """Bounds what a client can make this process hold in results."""
        if result_bytes > MAX_RESULT_BYTES:
            raise ConstraintViolation(
                f"a result of {result_bytes:,} bytes; the limit is {MAX_RESULT_BYTES:,}: ask in parts"
            )
        self.large_bytes += result_bytes
        if self.large_bytes > LARGE_RESULTS_A_BATCH_BYTES:
            raise ResultsWait(
                f"more than {LARGE_RESULTS_A_BATCH_BYTES:,} bytes of large results are under way; retry later"
            )


def _not_callable(
    name: str, procedure: Procedure | None, known: Iterable[str], *, directed: bool = False
) -> UnknownProcedure:
    if procedure is None:
        return no_such(name, known)
    if directed:
        return UnknownProcedure(f"{name} is not declared everywhere=True: call it with its key")
    return UnknownProcedure(f"{name} is declared everywhere=True: use call_everywhere")
