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

The words of `running` say which call is running, for whoever watches from outside: see voltpy.heartbeat.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from datetime import UTC, datetime, timedelta
from types import CodeType
from typing import Any, NoReturn, TypeAlias

import msgspec
from msgspec import Raw, Struct

from partitions.heap import Heap
from partitions.lookups import Lookups
from partitions.plans import Plans
from partitions.secondary_index import SecondaryIndex
from partitions.store import Store
from partitions.table import Table
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
    ReadOnly,
    Unavailable,
    UnknownProcedure,
)
from voltpy.hash_slot import hash_slot
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
from voltpy.not_here import COORDINATOR, PLAN, WHOLE_TABLE, Miss, Misses, NotHere
from voltpy.outcome_window import OutcomeWindow, Unlogged
from voltpy.procedure import Procedure, Registry
from voltpy.routing import no_such
from voltpy.row import encode
from voltpy.sql.plan import FILE
from voltpy.sql.statements import Statements
from voltpy.transaction import CallContext, Generated, ReadOnlyTable, Transaction
from voltpy.wire import joined

Origin: TypeAlias = Hashable  # whoever gets the replies: the shell knows who that is

CALLS_SET_ASIDE = 8192  # for pages from disk
CALLS_WAIT_FOR_LENT = 4096  # fewer than a client may have in flight
LENT_WAIT_S = 3.0  # in all its runs, after which a call that waits for what is lent is told so
CALLS_A_RERUN = 128
TIMES_SET_ASIDE = 4  # then a call waits for each page that it needs, and all others with it

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INTS = {int}
_SEVERAL_KEYS = (list, tuple)
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


class SetAside(Struct, eq=False):
    """A call that waits. `missing` of what it missed are still to come; `times` counts how often it has been set aside.

    Its arguments are kept encoded: the run that was undone may have changed a list among them.
    """

    origin: Origin
    client_id: int
    number: int
    procedure: Procedure
    arguments: bytes
    directed_now: datetime | None
    generated: Generated | None
    missed: tuple[Miss, ...]
    missing: int
    arrival: int
    times: int
    lent_since_s: float | None  # since when it has waited for what is lent, on `Executor.now_s`; None: for pages only


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
        self._owned = store.owner.owned
        self._lent_tables: set[int] = set()  # which are lent whole
        self._full: str | None = None  # why nothing may be written
        self.window = window
        self._running = running
        self._context = CallContext(running, ids, clock)
        self._ids = ids
        self._outcomes: list[ReplyGroup] = []
        self._unlogged: list[Unlogged] = []  # answers of this batch that are no outcomes: see outcome_window
        self._batch_index: dict[tuple[int, int], bytes | CallError] = {}  # both of them, for retries
        self._batch_looked_at = (0, 0)
        self._answers: dict[Origin, Answers] = {}  # of this batch, which may still be undone
        self._settled: dict[Origin, Answers] = {}  # of those before it
        self._views: dict[tuple[bool, bool], Transaction] = {}
        self._large_bytes = 0  # of results that `replies` has not handed out
        self._large_bytes_before = 0  # this batch
        self.runaways: set[tuple[int, int]] = set()  # ids of calls for which an earlier process had to be killed
        self._waiting: dict[tuple[int, int], SetAside] = {}  # by call id
        self.waiting_for_lent = 0  # of those
        self._ready: deque[SetAside] = deque()  # in order of arrival
        # Calls that this batch set aside or ran again: as they waited when it began, None if they did not.
        self._waited: dict[tuple[int, int], SetAside | None] = {}
        self._joined: list[tuple[SetAside, Origin]] = []  # whose retry this batch has seen, and who waited before
        self._rerunning: dict[int, SetAside] = {}  # by call number; all of one client
        self._awaiting: dict[Miss, list[SetAside]] = {}  # who waits for what is still to come
        self._awaited: dict[Miss, int] = {}  # by how many calls that have not run again, come or not
        self._missed_pages: list[int] = []  # since `missed_pages` was asked
        self._missed_plans: list[str] = []  # since `missed_plans` was asked
        self._arrivals = 0
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
            if len(positions) > 1 or type(arguments[0][positions[0]]) in _SEVERAL_KEYS:
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
        owned, are_here = self._owned, True
        for position in procedure.key_positions:
            keys = [values[position] for values in arguments]
            if set(map(type, keys)) == _INTS:
                slots: Iterable[int] = [crc_hqx(b"%d" % key, 0) & 16383 for key in keys]
            else:
                slots = (hash_slot(key) for keys_of_call in map(_each_key, keys) for key in keys_of_call)
            are_here &= all(map(owned.__getitem__, slots))
        if are_here:
            return numbers, arguments
        calls = [
            all(owned[hash_slot(key)] for position in procedure.key_positions for key in _each_key(values[position]))
            for values in arguments
        ]
        foreign = [number for number, is_here in zip(numbers, calls, strict=True) if not is_here]
        self._send_elsewhere(origin, group, foreign, f"{procedure.name}: not all of its keys live in one partition")
        here = [(n, a) for n, a, is_here in zip(numbers, arguments, calls, strict=True) if is_here]
        return [n for n, _ in here], [a for _, a in here]

    def _send_elsewhere(self, origin: Origin, group: CallGroup, numbers: list[int], reason: str) -> None:
        errors = self._answers_to(origin).errors
        errors.extend([CallError(group.client_id, number, ELSEWHERE, reason) for number in numbers])
        self.counts["elsewhere"] += len(numbers)

    def run_part(self, call: EverywhereCall) -> tuple[Part, list[TableChanges]]:
        """Runs this partition's part of a joint call, and what it changes; nothing of it stays.

        Between two batches. Raises ReadOnly when memory has no room for its changes, and as `seal` does.
        """
        views = self._views
        self._views = self._joint_views
        try:
            if (call.client_id, call.number) in self.runaways:
                error = ProcedureTimeout(f"{call.procedure} could only be ended with its partition")
                return Part(error=call_error(call.client_id, call.number, error)), []
            self.run_everywhere(_PART, call)
            set_aside = self._waiting.get((call.client_id, call.number))
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
            self._views = views
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
        tx = self._views[procedure.everywhere, procedure.read_only]
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
        is_taken = (group.client_id, number) in self._waiting  # the client's fault: its numbers are its call ids
        if missed and not interrupted and not is_taken and self._may_wait(is_lent):
            arguments = self._encoded_arguments(group, number)
            self.counts["set_aside"] += 1
            self._arrivals += 1
            again = self._rerunning.get(number)
            call = SetAside(
                origin, group.client_id, number, procedure, arguments, directed_now, self._context.set_aside(),
                missed, len(missed),
                self._arrivals if again is None else again.arrival, 1 if again is None else again.times + 1,
                self.now_s if is_lent and (again is None or again.lent_since_s is None) else
                None if again is None else again.lent_since_s,
            )  # fmt: skip
            self._put_waiting(call)
            self._await(call)
            self._waited.setdefault((group.client_id, number), None)
            self.failed(raised)
            return
        if interrupted:
            self.counts["timed_out"] += 1
            error = type(interrupted)(f"{procedure.name} {interrupted}")
        elif missed and is_taken:
            error = ProtocolError(f"call {number} of this client waits already")
        elif missed:
            error = Overloaded(
                f"{CALLS_WAIT_FOR_LENT:,} calls wait for rows that are lent already; retry later"
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

    def _may_wait(self, is_lent: bool) -> bool:
        """Whether one more may wait. One key that is in doubt must not keep out whoever waits for disk."""
        if is_lent:
            return self.waiting_for_lent < CALLS_WAIT_FOR_LENT
        return len(self._waiting) - self.waiting_for_lent < CALLS_SET_ASIDE

    def _put_waiting(self, call: SetAside) -> None:
        self._waiting[call.client_id, call.number] = call
        self.waiting_for_lent += call.lent_since_s is not None

    def _take_waiting(self, call_id: tuple[int, int]) -> SetAside | None:
        call = self._waiting.pop(call_id, None)
        self.waiting_for_lent -= call is not None and call.lent_since_s is not None
        return call

    def _encoded_arguments(self, group: CallGroup, number: int) -> bytes:
        """The arguments of one call. All calls of a group may miss the same key, so it is split once."""
        if self._split_group is not group:
            self._split_group = group
            self._split_arguments = dict(zip(group.numbers, _decode_raws(group.args), strict=True))
        return bytes(self._split_arguments[number])

    # What is not here.

    def keys_arrived(self, table: int, keys: Iterable[Any]) -> None:
        """These keys are here again: calls that waited only for them may run, in the order in which they came."""
        self._store.tables[table].bring_all_back(keys)
        if self._awaiting:
            for key in keys:
                self._here((table, key))
            if self._store.tables[table].all_here and table not in self._lent_tables:
                self._here((table, WHOLE_TABLE))
            self._put_in_order()

    def lend_table(self, table: int) -> None:
        """From now on whatever touches this table is set aside, until `table_arrived`. Between batches only."""
        self._lent_tables.add(table)
        self._make_views()

    def table_arrived(self, table: int) -> None:
        """The table is here again, but for keys that are away."""
        self._lent_tables.remove(table)
        self._make_views()
        self._here((table, WHOLE_TABLE))
        self._put_in_order()

    def give_up(self) -> bool:
        """Answers the calls that have waited for too long, at `now_s`, for what is lent. Whether there were any.

        Between batches only; the answers are among the next `replies`.
        """
        overdue_s = self.now_s - LENT_WAIT_S
        overdue = [
            call
            for call in self._waiting.values()
            if call.lent_since_s is not None and call.lent_since_s <= overdue_s and call.missing
        ]
        for call in overdue:
            self._take_waiting((call.client_id, call.number))
            self._stop_waiting(call)
            error = Unavailable(f"{call.procedure.name}: {self._what_it_lacks(call)}")
            answer = call_error(call.client_id, call.number, error)
            self.window.remember([answer])
            answers = self._settled.get(call.origin)
            if answers is None:
                answers = self._settled[call.origin] = Answers([], [])
            answers.errors.append(answer)
        self.counts["raised"] += len(overdue)
        return bool(overdue)

    def _what_it_lacks(self, call: SetAside) -> str:
        for miss in call.missed:
            if type(miss) is tuple:
                table, key = miss
                if table == PLAN:
                    return "the coordinator, which plans its statement, does not answer"
                name = self._store.tables[table].name
                lent = f"{name}, or a key of it, is lent" if key is WHOLE_TABLE else f"{name} {key!r:.100} is lent"
                return f"{lent} to an undecided transaction"
        return "a key was lent to an undecided transaction"

    def pages_arrived(self, pages: list[int]) -> None:
        """These pages are in memory: calls that waited only for them may run, in the order in which they came."""
        for page in pages:
            self._here(page)
        self._put_in_order()

    def missed_pages(self) -> list[int]:
        """The pages that calls have been set aside for since the last time."""
        missed, self._missed_pages = self._missed_pages, []
        return missed

    def missed_plans(self) -> list[str]:
        """The statements that calls have been set aside for, since the last time: their plans are needed."""
        missed, self._missed_plans = self._missed_plans, []
        return missed

    def plan_arrived(self, reply: PlanReply) -> None:
        """This is how a statement is run, or what is wrong with it: calls that waited for it run again."""
        self._plans.arrived(reply)
        self._here((PLAN, reply.text))
        self._put_in_order()

    def is_awaited(self, miss: Miss) -> bool:
        """Whether a call that is set aside, and has not run again, has missed this."""
        return miss in self._awaited

    def _await(self, call: SetAside) -> None:
        awaiting, awaited = self._awaiting, self._awaited
        for miss in call.missed:
            awaited[miss] = awaited.get(miss, 0) + 1
            if miss in awaiting:
                awaiting[miss].append(call)
            else:
                awaiting[miss] = [call]
                if isinstance(miss, int):
                    self._missed_pages.append(miss)
                elif miss[0] == PLAN:
                    self._missed_plans.append(miss[1])

    def _here(self, miss: Miss) -> None:
        for call in self._awaiting.pop(miss, ()):
            call.missing -= 1
            if not call.missing:
                self._ready.append(call)

    def _put_in_order(self) -> None:
        if len(self._ready) > 1:
            self._ready = deque(sorted(self._ready, key=lambda call: call.arrival))

    def _forget_misses(self, call: SetAside) -> None:
        """The call runs again."""
        awaited = self._awaited
        for miss in call.missed:
            calls = awaited[miss]
            if calls == 1:
                del awaited[miss]
            else:
                awaited[miss] = calls - 1

    def _stop_waiting(self, call: SetAside) -> None:
        """The call was never set aside."""
        for miss in call.missed:
            calls = self._awaiting.get(miss, [])
            if call in calls:
                calls.remove(call)
        self._forget_misses(call)

    @property
    def has_ready(self) -> bool:
        return bool(self._ready)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def run_ready(self) -> None:
        """Reruns the calls that have what they missed. One that misses something else is set aside again."""
        while self._ready:
            self.run_next_ready()

    def run_next_ready(self) -> None:
        """Reruns the first of them, and with it those that follow and may be in one group with it: that costs half."""
        first = self._ready.popleft()
        calls = [first]
        if _may_be_grouped(first):
            while self._ready and len(calls) < CALLS_A_RERUN and _belong_together(first, self._ready[0]):
                calls.append(self._ready.popleft())
        rerunning, waited = self._rerunning, self._waited
        for call in calls:
            call_id = call.client_id, call.number
            self._take_waiting(call_id)
            self._forget_misses(call)
            waited.setdefault(call_id, call)
            rerunning[call.number] = call
        self.counts["reruns"] += len(calls)
        self._running[CLIENT_ID], self._running[CALL_NUMBER] = first.client_id, first.number
        self._context.resume(first.generated)
        args = joined([call.arguments for call in calls])
        group = CallGroup(first.client_id, first.procedure.name, 0, 0, list(rerunning), [0] * len(calls), args)
        numbers, arguments = self._decoded_group(first.origin, group, first.procedure)
        misses, pool = self._store.misses, self._store.pool
        bring = misses.bring
        if first.times >= TIMES_SET_ASIDE and pool is not None:
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
        tx = self._views[False, True]
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
            pending = self._waiting.get((group.client_id, number))
            if pending is not None:
                self._answers_to(pending.origin).drop(group.client_id, 1)
                self._joined.append((pending, pending.origin))
                pending.origin = origin
                continue
            if (group.client_id, number) in self.runaways:
                self._refuse(origin, one, ProcedureTimeout(f"{procedure.name} could only be ended with its partition"))
                continue
            try:
                first = self._first_result(group.client_id, number, group.retry_floor)
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

    def _first_result(self, client_id: int, number: int, floor: int) -> bytes | CallError | None:
        first = self._answered_in_batch().get((client_id, number))
        return self.window.first_result(client_id, number, floor) if first is None else first

    def _answered_in_batch(self) -> dict[tuple[int, int], bytes | CallError]:
        """By call id. What was added since the last look is indexed now: a client may retry thousands at once."""
        index, looked_at = self._batch_index, self._batch_looked_at
        for group in self._outcomes[looked_at[0] :]:
            results = map(bytes, _decode_raws(group.results))
            index.update(zip([(group.client_id, number) for number in group.numbers], results, strict=True))
        for answer in self._unlogged[looked_at[1] :]:
            if isinstance(answer, CallError):
                index[answer.client_id, answer.number] = answer
            else:
                results = map(bytes, _decode_raws(answer.results))
                index.update(zip([(answer.client_id, number) for number in answer.numbers], results, strict=True))
        self._batch_looked_at = (len(self._outcomes), len(self._unlogged))
        return index

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
        self._large_bytes = self._large_bytes_before
        for call_id, waited in self._waited.items():
            set_aside = self._take_waiting(call_id)
            if set_aside is not None:
                self._stop_waiting(set_aside)
            if waited is not None:
                self._put_waiting(waited)
                for miss in waited.missed:
                    self._awaited[miss] = self._awaited.get(miss, 0) + 1
        # Run again, the retry must find who waited before it, or that one's calls would never be told as dropped.
        for waited, origin in reversed(self._joined):
            waited.origin = origin
        self._ready = deque(call for call in self._waiting.values() if not call.missing)
        self._put_in_order()
        self._begin_batch()

    def _begin_batch(self) -> None:
        self._outcomes = []
        self._unlogged = []
        if self._batch_index:
            self._batch_index = {}
        self._batch_looked_at = (0, 0)
        self._large_bytes_before = self._large_bytes
        self._waited = {}
        self._joined = []
        self._split_group, self._split_arguments = None, {}

    def replies(self) -> dict[Origin, Answers]:
        """By origin, the replies of the batches that are over, gathered since the last time."""
        settled, self._settled = self._settled, {}
        self._large_bytes = self._large_bytes_before = 0
        return settled

    def refuse_writes(self, reason: str) -> None:
        """Until `accept_writes`, a procedure that writes gets ReadOnly."""
        self._full = reason
        self._make_views()

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
        self._full = None
        self._make_views()

    def _make_views(self) -> None:
        """What `tx` is, for each kind of procedure."""
        misses, lent, full = self._store.misses, self._lent_tables, self._full
        read_only: dict[str, Table | ReadOnlyTable] = {}
        local: dict[str, Table | ReadOnlyTable] = {}
        joint: dict[str, Table | ReadOnlyTable] = {}
        for name, table in self._store.by_name.items():
            if table.number in lent:
                read_only[name] = local[name] = joint[name] = _Lent(table, misses)
                continue
            view = table.schema.view
            if view is not None:
                base = self._store.by_name[view.base]
                reader = _Lent(base, misses) if base.number in lent else self._store.readers[name]
                read_only[name] = local[name] = joint[name] = reader
                continue
            read_only[name] = ReadOnlyTable(table, "the procedure is declared read_only")
            if full is not None:
                local[name] = joint[name] = read_only[name] = _Full(table, full)
                continue
            local[name] = joint[name] = table
            if table.schema.partition_column is None and not self._is_alone:
                local[name] = _Copy(table, misses)
        reading = Transaction(read_only, self._context)
        # By (everywhere, read_only). What a directed call writes to copies, it must write to all or none of them.
        self._views = dict.fromkeys(((True, True), (False, True)), reading)
        self._views[True, False] = self._views[False, False] = Transaction(local, self._context)
        self._joint_views = {**self._views, (True, False): Transaction(joint, self._context)}

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
            raise ConstraintViolation(f"a result of {result_bytes:,} bytes; the limit is {MAX_RESULT_BYTES:,}")
        self._large_bytes += result_bytes
        if self._large_bytes > LARGE_RESULTS_A_BATCH_BYTES:
            raise ResultsWait(
                f"more than {LARGE_RESULTS_A_BATCH_BYTES:,} bytes of large results are under way; retry later"
            )


class _Full(ReadOnlyTable):
    """A table while there is no room: reads work, writes raise ReadOnly."""

    __slots__ = ()

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise ReadOnly(self._reason)

    insert = update = upsert = delete = _refuse


class _Copy(ReadOnlyTable):
    """A table that other partitions have copies of: reads work; a call that writes needs the coordinator."""

    __slots__ = ("_misses",)

    def __init__(self, table: Table, misses: Misses) -> None:
        super().__init__(table, "every partition has a copy")
        self._misses = misses

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        self._misses.raise_for(COORDINATOR)

    insert = update = upsert = delete = _refuse


class _Lent(ReadOnlyTable):
    """A table that is lent whole: whoever touches it is set aside."""

    __slots__ = ("_misses", "_number")
    lookups = None  # a statement scans it, and is set aside

    def __init__(self, table: Table, misses: Misses) -> None:
        super().__init__(table, "it is lent")
        self._misses = misses
        self._number = table.number
        self.get = self.where = self.range = self.scan = self.count = self._refuse

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        self._misses.raise_for((self._number, WHOLE_TABLE))

    insert = update = upsert = delete = _refuse


def _each_key(keys: Any) -> Iterable[Any]:
    """The keys of an argument: itself, or the elements of a list."""
    return keys if type(keys) in _SEVERAL_KEYS else (keys,)


def _may_be_grouped(call: SetAside) -> bool:
    return call.directed_now is None and call.generated is None and call.times < TIMES_SET_ASIDE


def _belong_together(first: SetAside, call: SetAside) -> bool:
    return (
        call.procedure is first.procedure
        and call.client_id == first.client_id
        and call.origin == first.origin
        and _may_be_grouped(call)
    )


def _not_callable(
    name: str, procedure: Procedure | None, known: Iterable[str], *, directed: bool = False
) -> UnknownProcedure:
    if procedure is None:
        return no_such(name, known)
    if directed:
        return UnknownProcedure(f"{name} is not declared everywhere=True: call it with its key")
    return UnknownProcedure(f"{name} is declared everywhere=True: use call_everywhere")
