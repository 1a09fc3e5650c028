"""The loop of a partition: drain, execute, append, flush, reply.

    drain     what has arrived: frames of clients and of the router, the same at both doors
    execute   a batch of it, the calls first whose client has had least (partitions.call_queue), one after another
    append    the batch's changes and outcomes to the WAL, as one record
    flush     inline when nothing else waits; otherwise in the background, while the next batch executes
    reply     whatever rests on flushed records, replies to reads included: they may have seen an unflushed write

If the order of the last three changed, a crash could take back what a client has been told.

A message that is no call ends what is drained, and is obeyed after the next batch. Procedures are replaced when all
calls have run that were let in under the old ones: nothing is drained until then. Orders of the coordinator come so
too (partitions.participant). What is reported to it waits for its flush whatever --fsync says, and for nothing else;
replies wait, besides, for the read rounds that were opened before their batch ran.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any

from msgspec import Raw, Struct

from partitions.buffer_pool import BufferPool
from partitions.call_queue import BATCH_BYTES, BATCH_S, CALL_COST_BYTES, CallQueue
from partitions.checkpointer import Checkpointer
from partitions.executor import Executor
from partitions.hold import Hold
from partitions.participant import Participant
from partitions.rates import Rates
from partitions.redo import Redo
from partitions.schema_change import SchemaChange
from partitions.store import Store
from partitions.wal import Batch, Wal, encode_batch
from partitions.warm_up import WarmUp
from voltpy.answers import Answers
from voltpy.builtin import infos
from voltpy.crash_point import crash_point
from voltpy.door import CLIENT, ROUTER, Account, Door
from voltpy.door_sockets import Sockets
from voltpy.errors import ConstraintViolation, DataError, ReadOnly, SchemaError, Unavailable
from voltpy.messages import (
    PROTOCOL_VERSION,
    Attach,
    Attached,
    CallGroup,
    Calls,
    CheckpointBegun,
    CheckpointHeld,
    CheckpointReleased,
    Closing,
    Detach,
    DiscardLoad,
    Dropped,
    EverywhereCall,
    HoldCheckpoint,
    LoadPrepared,
    Message,
    Orders,
    PlanReply,
    PlanRequest,
    PrepareLoad,
    ReleaseCheckpoint,
    RenewHold,
    Reports,
    StatusReply,
    StatusRequest,
    SwitchLoad,
    Welcome,
)
from voltpy.record_log import MAX_RECORD_BYTES, DiskFull
from voltpy.registry import Registry
from voltpy.resident import resident_bytes
from voltpy.row import encode
from voltpy.schema import Schema, from_json
from voltpy.timeout import Timeout
from voltpy.wire import encode as encode_message

# While somebody with a few calls waits beside others: he waits for the batch that is under way and for his own.
SHORT_BATCH_BYTES = BATCH_BYTES // 4
SHORT_BATCHES_S = 0.1  # from then on
FEW_CALLS = 8
RESULTS_A_BATCH_BYTES = 16 << 20  # of large results; what would run after them is left to the next batch
# More is not read. Whoever comes now and then is found as long as all others together have no more than this.
QUEUED_CALLS = 32768
QUEUED_BYTES = 64 << 20
CALLS_A_DRAIN = 4096  # are read in one turn
IDLE_WAIT_S = 0.2
WARM_UP_WAIT_S = 0.001  # at least, between two reads that nobody waits for
READ_WAIT_S = 0.001  # for a page, while nothing else is to be done; then the sockets are looked at again
PLANS_WANTED = 4096  # of the coordinator at a time
BUILD_S = 0.001  # of a turn go into building indexes, and the rest of the step that is under way then
GIVE_UP_S = 0.1  # between two looks at whether calls have waited too long for what is lent
STEER_S = 0.1  # between two looks at the size of the process
CHECKPOINT_WAIT_S = 0.001  # between two looks at whether its last chunk is on disk
UPKEEP_S = 0.001  # between two looks, while calls come one after another, at what is due by time or by size

Request = tuple[Callable[[Any, Any], None], Account[Hashable], CallGroup | EverywhereCall]  # what runs it, for whom
Control = tuple[Hashable, Message]


class Unsent(Struct, frozen=True):
    """A batch's replies, the LSN that they rest on, and how many read rounds had been opened before it ran."""

    lsn: int
    replies: dict[Any, Answers]
    rounds: int


class Server:
    """Serves one partition until `stop`."""

    def __init__(
        self,
        sockets: Sockets,
        partition: int,
        tcp_port: int,
        door: Door[Hashable],
        executor: Executor,
        store: Store,
        pool: BufferPool,
        warm_up: WarmUp,
        wal: Wal,
        checkpointer: Checkpointer,
        timeout: Timeout,
        load: Callable[[PrepareLoad, Schema], Registry],
        clock: Callable[[], float] = time.monotonic,
        redo: Redo | None = None,
    ) -> None:
        """`redo`: of what the recovery has left. `clock`: in seconds, and never back."""
        self._sockets = sockets
        self._partition = partition
        self._tcp_port = tcp_port
        self._door = door
        self._executor = executor
        self._store = store
        self._pool = pool
        self._warm_up = warm_up
        self._redo = Redo(store, pool) if redo is None else redo
        self._rates = Rates()
        # The last word on what is in the WAL and where its room ends is here.
        self._participant = Participant(store, executor, executor.window, self._append_step)
        self._orders, self._rounds = self._participant.orders, self._participant.rounds
        self._coordinator: Hashable = None  # who attached last
        self._unreported: deque[tuple[int, Attached | Reports]] = deque()  # and the LSN that they rest on
        self._wanted_plans: dict[str, None] = {}  # texts that the coordinator is asked about
        self._clock = clock
        pool.is_wanted = self._is_wanted
        pool.clean_some = checkpointer.clean_some
        wal.flushed_in = lambda took_s: checkpointer.pace.flushed(took_s, beside_checkpoint=checkpointer.running)
        self._upkeep_s = 0.0  # when to look after what is no call again
        self._upkeep_waits = False  # it was put off until then
        self._steer_s = 0.0  # and at the size of the process
        self._give_up_s = 0.0
        self._queue = CallQueue[Request]()
        self._short_until_s = 0.0  # batches are short until then
        self._put_off: Control | None = None  # procedures are to be replaced when nothing waits any more
        self._wal = wal
        self._checkpointer = checkpointer
        self._timeout = timeout
        self._load = load
        self._prepared: Registry | None = None
        self._change: SchemaChange | None = None  # that comes with them
        self._asked_to_prepare: Hashable = None  # by whom; he is told when the change is prepared
        self._welcome = Welcome(PROTOCOL_VERSION, wal.epoch, None)
        self._unsent: deque[Unsent] = deque()
        self._stopping = False
        self._batches = self._calls = self._flushes = 0
        self._flush_s = 0.0
        self._read_only = False
        self._refused: tuple[int, str] | None = None  # the smallest record for which this batch found no disk, and why

    def stop(self) -> None:
        """Lets `serve` return after the batch that is under way. May be called from a signal handler."""
        self._stopping = True

    def serve(self) -> None:
        """Returns after `stop`, with every call that came answered. Any OSError ends the process."""
        while not self._stopping:
            self.turn()
        self.end()

    def turn(self) -> None:
        """Waits for something to do, not for long, and does it. Any OSError ends the process."""
        executor, participant, orders = self._executor, self._participant, self._orders
        missed_pages = executor.missed_pages() + orders.missed_pages()
        if missed_pages:
            self._pool.fetch(missed_pages)
        missed_plans = executor.missed_plans() + orders.missed_plans()
        if missed_plans:
            self._ask_for_plans(missed_plans)
        is_idle = not self._has_work
        is_reading = self._pool.is_reading
        self._sockets.wait(self._idle_wait_s() if is_idle and not is_reading else 0)
        if is_reading:
            self._turn_pages(READ_WAIT_S if is_idle and not self._sockets.has_input() else 0.0)
        if not self._redo.is_over and self._redo.is_pressed:
            self._finish_redo()  # no page is cleaned before
        now_s = executor.now_s = self._clock()
        requests, control = self._drain()
        if requests or executor.has_ready:
            crash_point("server.drain.received")
            self._execute(requests)
            self._flush_in_background()
        elif self._must_flush:
            self._flush()
        self._reply()
        if control is not None:
            if self._queue and type(control[1]) is SwitchLoad:
                self._put_off = control
            else:
                self._obey(*control)
        lends = orders.is_due or now_s >= participant.due_s
        if lends:
            self._lend()
        if self._unreported:
            crash_point("server.report.before_flush")
            self._flush_in_background()
        if lends or self._unreported:
            self._reply()
        if executor.waiting_for_lent and now_s >= self._give_up_s:
            self._give_up_s = now_s + GIVE_UP_S
            if executor.give_up():
                self._settle()
        # A lone call pays for every function that its turn runs through: after a sleep none of them is in the caches.
        # So what can wait comes after the reply, and what need not be looked at after every batch is not.
        if not is_reading:
            self._turn_pages(0.0)
        if not requests or now_s >= self._upkeep_s or self._checkpointer.running or self._change is not None:
            self._keep_up(busy=bool(requests))
        else:
            self._upkeep_waits = True

    def _keep_up(self, *, busy: bool) -> None:
        """What has to be done now and then, between two batches: a slice of each."""
        now_s = self._clock()
        self._upkeep_s = now_s + UPKEEP_S
        self._upkeep_waits = False
        self._checkpointer.step(now_s, busy=busy)
        if self._change is not None and not self._change.is_prepared:
            self._prepare_on(self._change)
        if self._store.condemned and not self._checkpointer.running:
            self._store.bury()
        self._wal.tick(now_s)
        self._warm_up.step(now_s)
        if now_s >= self._steer_s:
            self._steer_s = now_s + STEER_S
            pool = self._pool
            self._store.trim(now_s)
            pool.steer(resident_bytes() - self._sockets.held_bytes)
            self._rates.count(now_s, touches=pool.touches, faults=pool.faults, evictions=pool.evictions)

    def end(self) -> None:
        """The last turn is over: everything is flushed, and every reply sent. What has not run by now never will."""
        self._turn_away()
        self._flush()
        self._report()  # as long as it can be told
        self._sockets.hang_up(self._coordinator)
        self._rounds.end_all()  # the coordinator believes in none of one that has hung up
        self._reply()
        self._greet()  # those who could not be told are gone from the door
        closing = Closing(f"partition {self._partition} is stopping")
        for account in list(self._door.accounts.values()):
            if account.role == CLIENT and not account.closed and not account.in_flight:
                self._send(account.identity, closing)
        self._warm_up.dump(flush=True)

    def _turn_away(self) -> None:
        """Answers all calls that wait: they never ran. Those that are still in the sockets are told so by Closing."""
        error = Unavailable(f"partition {self._partition} is stopping")
        for _, account, request in self._queue.take(math.inf):
            numbers = request.numbers if isinstance(request, CallGroup) else [request.number]
            self._executor.turn_away(account, request.client_id, numbers, error)
        self._executor.turn_away_set_aside(error)
        self._settle()

    @property
    def _has_work(self) -> bool:
        """Whether there is something to do that waits for nobody else."""
        if self._queue or self._executor.has_ready or self._orders.is_due or self._must_flush:
            return True
        if self._change is not None and not self._change.is_prepared:
            return True
        unsent = self._unsent
        return bool(unsent) and unsent[0].rounds < self._rounds.first_open

    def _idle_wait_s(self) -> float:
        """How long to wait for calls, with what is due meanwhile: pages to bring in, loans and rounds to end."""
        now_s = self._clock()
        wait_s = CHECKPOINT_WAIT_S if self._checkpointer.running else IDLE_WAIT_S
        if not self._redo.is_over:
            wait_s = READ_WAIT_S
        if self._upkeep_waits:
            wait_s = min(wait_s, max(self._upkeep_s - now_s, 0.0))
        warm_up_s = self._warm_up.due_s(now_s)
        if warm_up_s is not None:
            wait_s = min(wait_s, max(warm_up_s, WARM_UP_WAIT_S))
        return min(wait_s, max(self._participant.due_s - now_s, 0.0))

    def _is_wanted(self, page: int) -> bool:
        return self._executor.is_awaited(page) or self._orders.is_awaited(page)

    def _turn_pages(self, wait_s: float) -> None:
        """Between two batches: pages that were fetched are read, those that came let their calls run again."""
        pool, executor = self._pool, self._executor
        arrived = pool.step(self._clock(), wait_s)
        if not self._redo.is_over:
            self._redo.step(arrived)
        if arrived:
            executor.pages_arrived(arrived)
            self._orders.pages_arrived(arrived)
        while pool.must_clean and self._checkpointer.clean_some():
            pass

    def _finish_redo(self) -> None:
        while not self._redo.is_over:
            self._turn_pages(READ_WAIT_S)

    def _drain(self) -> tuple[Iterable[Request], Control | None]:
        """The next batch, false where there is none; and what ended the drain, if it was a control message."""
        receive, door, welcome, executor = self._sockets.receive, self._door, self._welcome, self._executor
        queue = self._queue
        heavy_bytes = queue.heavy_bytes
        drained: list[Request] = []
        control, self._put_off = self._put_off, None
        calls = frames_bytes = 0
        few: set[int] = set()  # clients with a group of a few calls
        many: set[int] = set()  # … and with more
        is_heavy = False  # some of the calls may cost much
        most_calls = min(CALLS_A_DRAIN, QUEUED_CALLS - queue.calls)
        most_bytes = QUEUED_BYTES - queue.held_bytes
        while calls < most_calls and frames_bytes < most_bytes and control is None:
            arrived = receive()
            if arrived is None:
                break
            identity, frame = arrived
            calls += 1
            if frame is None:
                door.garbage(identity, "a message of several frames")
                continue
            frames_bytes += len(frame)
            message = door.receive(identity, frame, welcome)
            if type(message) is Calls:
                account = door.accounts[identity]
                for group in message.groups:
                    length = len(group.numbers)
                    calls += length
                    (few if length <= FEW_CALLS else many).add(group.client_id)
                    if heavy_bytes and (group.client_id, group.procedure) in heavy_bytes:
                        is_heavy = True
                        pieces = queue.pieces(group, SHORT_BATCH_BYTES)
                        drained.extend([(executor.run, account, piece) for piece in pieces])
                    else:
                        drained.append((executor.run, account, group))
            elif type(message) is EverywhereCall:
                drained.append((executor.run_everywhere, door.accounts[identity], message))
            elif message is not None:
                control = (identity, message)
        self._greet()
        is_cheap = calls * CALL_COST_BYTES + frames_bytes <= SHORT_BATCH_BYTES and not is_heavy
        if not queue and (is_cheap or len(drained) <= 1):
            return drained, control  # all of it, as it came
        if any(not queue.has(client_id) for client_id in few - many):
            self._short_until_s = executor.now_s + SHORT_BATCHES_S
        self._queue_up(drained)
        return queue.take(SHORT_BATCH_BYTES if executor.now_s < self._short_until_s else BATCH_BYTES), control

    def _greet(self) -> None:
        """Forgets the streams that have ended, and sends what the door has to say."""
        door = self._door
        while self._sockets.ended:
            door.close(self._sockets.ended.pop())
        if door.outbox:
            outbox, door.outbox = door.outbox, []
            for identity, answer in outbox:
                if type(answer) is Welcome:
                    # Whole batches wait for what the coordinator orders: it does not queue behind clients' frames.
                    welcomed = door.accounts.get(identity)
                    self._sockets.admit(identity, first=welcomed is not None and welcomed.role != CLIENT)
                self._send(identity, answer)

    def _execute(self, requests: Iterable[Request]) -> None:
        """Runs a batch and appends it to the WAL. Without room for it, each group of calls is a batch of its own.

        It ends early where its results are large, or its calls take long. What is left of it never left the queue, or
        goes there.
        """
        executor = self._executor
        if requests:
            self._read_only = False
        self._timeout.arm()
        if executor.has_ready:
            executor.run_ready()
        large_bytes = executor.large_bytes
        queue = self._queue
        heavy_bytes = queue.heavy_bytes
        clock = self._clock
        began_s = ended_s = clock()
        ran: list[Request] = []
        left = iter(requests)
        for one in left:
            ran.append(one)
            run, account, request = one
            run(account, request)
            started_s, ended_s = ended_s, clock()
            if executor.large_bytes != large_bytes or heavy_bytes or ended_s > began_s + BATCH_S:
                if isinstance(request, CallGroup):
                    queue.ran(request, executor.large_bytes - large_bytes, ended_s - started_s)
                large_bytes = executor.large_bytes
                if large_bytes > RESULTS_A_BATCH_BYTES or ended_s > began_s + BATCH_S:
                    if isinstance(requests, list):
                        self._queue_up(left)
                    break
        self._timeout.disarm()
        crash_point("server.execute.ran")
        try:
            self._append()
        except (DiskFull, ReadOnly) as error:
            executor.undo_batch()
            if isinstance(error, ReadOnly):
                self._finish_redo()  # then pages can be cleaned to make room
            while executor.has_ready:
                self._execute_alone(executor.run_next_ready)
            for run, account, request in ran:
                self._execute_alone(partial(run, account, request))
            self._refused = None
        self._settle()
        self._batches += 1

    def _queue_up(self, requests: Iterable[Request]) -> None:
        for one in requests:
            request = one[2]
            calls = len(request.numbers) if isinstance(request, CallGroup) else 1
            self._queue.add(request.client_id, request.procedure, one, calls, len(request.args))

    def _settle(self) -> None:
        """What calls are told waits from now on until it may leave."""
        self._unsent.append(Unsent(self._wal.written_lsn, self._executor.replies(), self._rounds.opened))

    def _execute_alone(self, run: Callable[[], None]) -> None:
        """One group of a batch that had no room as a whole: what does not fit runs again with writes refused.

        Were the whole batch refused, one client's large writes would cost all others theirs, deletes among them.
        """
        self._timeout.arm()
        run()
        self._timeout.disarm()
        try:
            self._append()
        except (DiskFull, ReadOnly) as error:
            self._read_only = True
            self._executor.undo_batch()
            self._executor.refuse_writes(f"no room for the write: {error}")
            self._timeout.arm()
            run()
            self._timeout.disarm()
            self._executor.finished()
            self._executor.accept_writes()

    def _append(self) -> None:
        changes, outcomes = self._executor.seal()
        if not changes and not outcomes:
            self._executor.finished()
            return
        encoded = encode(outcomes)
        record = encode_batch(Batch(Raw(encoded), changes))
        if len(record) > MAX_RECORD_BYTES:
            raise ReadOnly(
                f"the calls that came together write {len(record):,} bytes; {MAX_RECORD_BYTES:,} is the limit"
            )
        # On a full disk each attempt may cost a flush and an allocation, and a batch has up to 2,048 groups.
        if self._refused is not None and len(record) >= self._refused[0]:
            raise ReadOnly(self._refused[1])
        try:
            self._participant.record_aborts()
            lsn = self._wal.append(record)
        except DiskFull as error:
            self._refused = len(record), str(error)
            self._checkpointer.request()  # it may be the WAL that fills the disk
            raise
        crash_point("server.append.appended")
        self._executor.committed(lsn, encoded)
        crash_point("server.append.applied")

    def _flush_in_background(self) -> None:
        """With more to do already, the flush and the next batch share the time; else there is nothing to share."""
        wal = self._wal
        if not self._must_flush:
            return
        if wal.flush_running and not wal.poll_flush():
            return
        if self._queue or self._sockets.has_input():
            wal.start_flush()
            self._flushes += 1
        else:
            self._flush()

    @property
    def _must_flush(self) -> bool:
        """Whether somebody may be waiting for a flush."""
        wal = self._wal
        if self._unsent and wal.durable_lsn < self._unsent[-1].lsn:
            return True
        return bool(self._unreported) and wal.flushed_lsn < self._unreported[-1][0]

    def _flush(self) -> None:
        if self._must_flush:
            began_s = time.perf_counter()
            self._wal.flush()
            self._flush_s += time.perf_counter() - began_s
            self._flushes += 1

    def _reply(self) -> None:
        """Sends what rests on flushed records only, and what no read round holds back."""
        if self._unreported:
            self._report()
        unsent, durable_lsn = self._unsent, self._wal.durable_lsn
        if not unsent or unsent[0].lsn > durable_lsn:
            return
        first_open_round = self._rounds.first_open
        if unsent[0].rounds >= first_open_round:
            return
        crash_point("server.reply.before")
        over = unsent.popleft()
        lsn, replies = over.lsn, over.replies
        # Hundreds of batches may have waited for one slow flush. A frame for each would be more than the socket to the
        # router holds, and that is where all who call through it are.
        while unsent and unsent[0].lsn <= durable_lsn and unsent[0].rounds < first_open_round:
            over = unsent.popleft()
            lsn = over.lsn
            for account, answers in over.replies.items():
                earlier = replies.setdefault(account, answers)
                if earlier is not answers:
                    earlier.add(answers)
        for account, answers in replies.items():
            self._answer(account, lsn, answers)
            crash_point("server.reply.half_sent")
        crash_point("server.reply.after")

    def _report(self) -> None:
        """Tells the coordinator what rests on flushed records: it may tell others."""
        unreported, flushed_lsn = self._unreported, self._wal.flushed_lsn
        while unreported and unreported[0][0] <= flushed_lsn:
            _, message = unreported.popleft()
            crash_point("server.report.before")
            self._send(self._coordinator, message)
            crash_point("server.report.sent")

    def _answer(self, account: Account[Hashable], lsn: int, answers: Answers) -> None:
        """One client's replies of one batch, in as many frames as their size asks for, to where it is connected now."""
        answered = answers.calls
        self._calls += answered
        self._door.answered(account, answered + sum(answers.dropped.values()))
        if account.closed:
            return
        if answers.dropped and account.role == ROUTER:
            self._send(account.identity, Dropped(self._partition, self._wal.epoch, answers.dropped))
        for replies in answers.frames(self._partition, self._wal.epoch, lsn):
            self._send(account.identity, replies)

    def _send(self, identity: Hashable, message: Message) -> None:
        """A client that is gone, or does not read, loses its account; nobody waits for it."""
        if not self._sockets.send(identity, encode_message(message)):
            self._door.close(identity)

    # Messages that are no calls.

    def _obey(self, identity: Hashable, message: Message) -> None:
        if isinstance(message, StatusRequest):
            self._send(identity, self._status(message.number))
        elif isinstance(message, PrepareLoad):
            self._prepare(identity, message)
        elif isinstance(message, SwitchLoad):
            if self._prepared is not None and self._prepared.catalog_version == message.catalog_version:
                self._switch(self._prepared)
            self._send(identity, self._status(0))
        elif isinstance(message, DiscardLoad):
            self._discard()
        elif isinstance(message, HoldCheckpoint | RenewHold | ReleaseCheckpoint):
            self._hold(identity, message)
        elif isinstance(message, Orders):
            if identity == self._coordinator:
                self._participant.take(message)
        elif isinstance(message, Attach):
            attached = self._participant.attach(message)
            if attached is not None:
                attached.incarnation = self._wal.epoch
                self._coordinator = identity
                self._unreported.clear()
                self._unreported.append((self._wal.written_lsn, attached))
                if self._wanted_plans:
                    self._send(identity, PlanRequest(list(self._wanted_plans)))
        elif isinstance(message, PlanReply) and message.catalog_version not in (0, self._door.catalog_version):
            self._send(identity, PlanRequest([message.text]))  # one of us is about to switch
        elif isinstance(message, PlanReply):
            self._wanted_plans.pop(message.text, None)
            self._executor.plan_arrived(message)
            self._orders.plan_arrived(message.text)
        elif isinstance(message, Detach):
            self._participant.detach(message)

    # What the coordinator asks for.

    def _lend(self) -> None:
        """Obeys its orders, up to one that waits for pages, and takes back what is overdue.

        How long a round holds replies counts from a time that is later than its order's arrival.
        """
        executor, participant, orders, clock = self._executor, self._participant, self._orders, self._clock
        now_s = clock()
        if now_s >= participant.due_s:
            participant.step(now_s)
        while orders.is_due:
            if executor.has_ready and orders.yields:
                self._execute([])
            if orders.runs_a_body:
                self._timeout.arm()
                participant.obey(clock())
                self._timeout.disarm()
            else:
                participant.obey(clock())
        lsn = participant.rests_on(self._wal.written_lsn, now_s)
        self._unreported.extend((lsn, frame) for frame in participant.reports(lsn))

    def _ask_for_plans(self, texts: list[str]) -> None:
        """Of the coordinator; one that attaches later is asked then."""
        new = [text for text in dict.fromkeys(texts) if text not in self._wanted_plans]
        if len(self._wanted_plans) > PLANS_WANTED:
            self._wanted_plans.clear()  # whoever still waits gives up
        self._wanted_plans.update(dict.fromkeys(new))
        if new and self._coordinator is not None:
            self._send(self._coordinator, PlanRequest(new))

    def _append_step(self, record: bytes) -> int:
        """Appends a step of a batch of the coordinator's to the WAL. Raises ReadOnly, DiskFull."""
        if len(record) > MAX_RECORD_BYTES:
            raise ReadOnly(f"a batch of {len(record):,} bytes; {MAX_RECORD_BYTES:,} is the limit")
        try:
            return self._wal.append(record)
        except DiskFull:
            self._checkpointer.request()
            raise

    # What the supervisor asks for.

    def _hold(self, identity: Hashable, message: HoldCheckpoint | RenewHold | ReleaseCheckpoint) -> None:
        """For a snapshot: a checkpoint is made of the state between these two batches, or of a later one, and kept."""
        checkpointer, snapshot = self._checkpointer, message.snapshot
        if isinstance(message, ReleaseCheckpoint):
            self._send(identity, CheckpointReleased(snapshot, checkpointer.let_go(snapshot)))
        elif isinstance(message, RenewHold):
            checkpointer.keep_longer(snapshot, self._clock() + message.lease_s)
        else:
            checkpointer.begun = partial(self._checkpoint_begun, identity)
            checkpointer.held = lambda hold, error: self._send(
                identity, CheckpointHeld(hold.snapshot, error, hold.checkpoint, hold.lsn, self._wal.epoch)
            )
            checkpointer.keep(snapshot, self._clock() + message.lease_s)

    def _checkpoint_begun(self, identity: Hashable, hold: Hold) -> None:
        self._send(identity, CheckpointBegun(hold.snapshot))

    def _prepare(self, identity: Hashable, message: PrepareLoad) -> None:
        """Compiles the procedures; the answer waits for indexes that a new schema needs built."""
        self._discard()
        try:
            schema = from_json(message.schema) if message.schema else self._store.schema
            self._prepared = self._load(message, schema)
            if message.schema:
                self._finish_redo()
                self._change = SchemaChange(self._store, schema)
        except SchemaError as error:
            self._discard()
            self._send(identity, LoadPrepared(message.catalog_version, str(error), []))
            return
        self._asked_to_prepare = identity
        if self._change is None or self._change.is_prepared:
            self._tell_prepared(self._prepared)

    def _prepare_on(self, change: SchemaChange) -> None:
        """Between two batches: another part of an index is built."""
        registry = self._prepared
        if registry is None:
            return
        until_s = self._clock() + BUILD_S
        try:
            change.step()
            while not change.is_prepared and self._clock() < until_s:
                change.step()
        except (ConstraintViolation, DataError, ReadOnly, Unavailable) as error:
            self._discard()
            failed = LoadPrepared(registry.catalog_version, str(error), [], type(error).__name__)
            self._send(self._asked_to_prepare, failed)
            return
        if change.is_prepared:
            self._tell_prepared(registry)

    def _tell_prepared(self, registry: Registry) -> None:
        crash_point("server.load.prepared")
        prepared = LoadPrepared(registry.catalog_version, "", infos(registry))
        self._send(self._asked_to_prepare, prepared)

    def _switch(self, registry: Registry) -> None:
        """From the next call on the new procedures run, on the new schema."""
        change, self._prepared, self._change = self._change, None, None
        if change is None:
            self._executor.use(registry)
        else:
            change.switch()
            self._executor.take_schema(registry)
            if change.builds_views:  # until a checkpoint has them, a start builds them again
                self._checkpointer.request()
        self._door.catalog_version = registry.catalog_version
        crash_point("server.load.switched")

    def _discard(self) -> None:
        """What was prepared comes to nothing."""
        change, self._prepared, self._change = self._change, None, None
        if change is not None:
            change.abandon()

    def _status(self, number: int) -> StatusReply:
        executor, wal = self._executor, self._wal
        touches, faults, evictions = (self._rates.per_second(name) for name in ("touches", "faults", "evictions"))
        metrics: dict[str, object] = {
            "pid": os.getpid(),
            "calls": self._calls,
            "batches": self._batches,
            "flushes": self._flushes,
            "flush_us": round(self._flush_s / self._flushes * 1e6) if self._flushes else 0,
            "read_only": self._read_only,
            "waiting": executor.waiting,
            "waiting_for_lent": executor.waiting_for_lent,
            "held_replies": sum(unsent.rounds >= self._rounds.first_open for unsent in self._unsent),
            **self._participant.metrics(),
            "clients": len(self._door.accounts),
            "cpu_s": time.process_time(),
            "rss_bytes": resident_bytes(),
            **{f"calls_{name}": count for name, count in executor.counts.items()},
            "wal_appended_bytes": wal.appended_bytes,
            "checkpoint_lsn": self._checkpointer.last.lsn,
            "checkpoints": self._checkpointer.last.number,
            "checkpoint_held": self._checkpointer.hold is not None,
            "checkpoint_running": self._checkpointer.running,
            "redo_pages_left": self._redo.pages_left,
            **self._store.metrics(),
            **self._pool.metrics(),
            "page_faults_per_second": faults,
            "eviction_rate_per_sec": evictions,
            "buffer_pool_hit_ratio": round(1 - min(faults / touches, 1.0), 4) if touches else None,
            "read_latency_us": {**self._store.read_latency_us(), "disk": self._pool.disk_read_us},
            "memory_fragmentation_ratio": round(resident_bytes() / self._store.accounted_bytes, 3),
            "warming": [progress._asdict() for progress in self._warm_up.progress(self._clock())],
        }
        return StatusReply(
            number,
            wal.epoch,
            wal.durable_lsn,
            executor.registry.catalog_version,
            self._tcp_port,
            infos(executor.registry),
            metrics,
        )
