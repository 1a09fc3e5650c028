"""A connection that threads share.

Sockets and connection are touched under one mutex, by whichever thread has something to send. Sleeping is done outside
of it, on the sockets' file descriptors, and by one thread at a time: `voltpy.poller` has the states of that role, and
how it passes on. A caller that is alone with the connection sends its call, sleeps, and takes the answer itself. A
second one wakes it through a pipe; that one starts the I/O thread, and waits like the rest. So does `submit`. The I/O
thread ends when for IO_IDLE_S no two calls were outstanding together.

Whoever sends also takes in what has arrived on the same socket, for everyone.

An interrupt (KeyboardInterrupt, or whatever a signal handler raises) may come anywhere. What a thread does for others
is then done once more on the way out: it leaves the role of the poller (`_give_up`), and wakes those whose calls have
ended (`deliver`).
"""

from __future__ import annotations

import os
import secrets
import select
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from itertools import islice
from math import inf
from threading import get_ident
from time import monotonic
from typing import Any

from voltpy.address import LISTENS_AGAIN_S, Address
from voltpy.batch import Batch
from voltpy.busy_poll import BusyPoll
from voltpy.calls import Pending
from voltpy.connection import Connection
from voltpy.errors import Reentered, Unavailable
from voltpy.link import Link, StreamLink
from voltpy.links import DIRECT_WAIT_S, Links
from voltpy.messages import CALLS_A_FRAME
from voltpy.poller import CALLER, DISPOSE, NOTHING, START, YIELDING, Duty, Poller
from voltpy.waiting import SubmittedCall, Waiting, WaitingCall, deliver, locked, wake

IO_IDLE_S = 0.2
SLICE_S = 0.2  # the longest sleep: what is due by time is looked after at least as often
FRESH_S = 0.001  # sockets that were looked at this recently hold no news worth a look before a call
ROWS_A_TURN = 256
SUBMITTED_CALLS = 16384  # past it `submit` waits until half of them are settled


class SharedConnection:
    """A connection to a cluster, for any number of threads of one process.

    The wait of a thread that is alone with its call is `busy_poll_s` awake, at most. `open` comes first, then calls.
    """

    def __init__(self, address: Address, *, retry_s: float, busy_poll_s: float) -> None:
        self.connection = Connection(secrets.randbits(63) | 1, affinity=address.affinity, retry_s=retry_s)
        self._links = Links(address, self.connection)
        self.mutex = threading.RLock()
        # Whether this thread holds it, as a signal handler may find; threading.Condition asks in the same way.
        self._is_inside: Callable[[], bool] = self.mutex._is_owned  # type: ignore[attr-defined]
        self._room = threading.Condition(self.mutex)
        self._submitters = 0  # threads that wait for room
        self._poller = Poller()
        self._thread: threading.Thread | None = None  # the I/O thread
        self._contended_at = 0.0
        self._looked_at = 0.0
        self._batches: list[tuple[Batch, threading.Lock]] = []
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self._poll = select.poll()
        self._busy_poll = BusyPoll(busy_poll_s)
        self._by_fd: dict[int, Link | StreamLink] = {}
        self._generation = -1

    @property
    def url(self) -> str:
        return self._links.address.url

    @property
    def is_closed(self) -> bool:
        return self._poller.closed

    # ── opening and closing ────────────────────────────────────────────────────────────────────────────────────────

    def open(self, timeout_s: float) -> None:
        """Raises Unavailable when nobody answers, and what the cluster refuses us with. It is closed then."""
        try:
            self._await_topology(timeout_s)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Calls under way fail, later ones raise Unavailable. May be called again."""
        if self._links.orphaned:
            return
        self._refuse_inside()
        self._end("the client was closed")
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _await_topology(self, timeout_s: float) -> None:
        began = monotonic()
        connection = self.connection
        links = self._links
        while not links.address.listens():
            if monotonic() >= began + connection.retry_s:
                raise links.address.silent()
            time.sleep(LISTENS_AGAIN_S)
        limit = max(timeout_s, connection.retry_s)
        direct_until = inf
        while True:
            with self.mutex:
                now = monotonic()
                links.pump(now)
                if connection.cluster.topology is not None:
                    direct_until = min(direct_until, now + DIRECT_WAIT_S)
                    if now >= direct_until or not links.undecided():
                        return
                if connection.rejected is not None:
                    raise connection.rejected
                if now - began >= limit:
                    raise Unavailable(f"no answer from {links.address.url} within {limit:g} s")
                poll, wait_ms = self._prepare_sleep(now)
                self._poller.asleep = False
                left_ms = (min(began + limit, direct_until) - now) * 1000.0
            poll.poll(max(0.0, min(wait_ms, left_ms)))

    def _end(self, why: str) -> None:
        """Ends all calls; the poller closes the sockets, if there is one."""
        settled: list[Pending] = []
        try:
            with self.mutex:
                if self._poller.closed:
                    return
                duty = self._poller.close()
                self.connection.close(why)
                self._take_settled(settled)
                self._release_batches()
                self._room.notify_all()
                self._carry_out(duty)
        finally:
            deliver(settled)

    def _dispose(self) -> None:
        self._links.close()
        os.close(self._wake_in)
        os.close(self._wake_out)

    def check_open(self) -> None:
        """Not under the mutex: in a forked child it may be locked for ever."""
        if self._links.orphaned:
            raise Unavailable("this client was made by the parent process: after a fork, connect again")
        if self._poller.closed:
            raise Unavailable("the client is closed")

    def _refuse_inside(self) -> None:
        """Amid the client's own work in this thread: nothing is as it should be then."""
        if self._is_inside():
            raise Reentered("a signal handler, or a finalizer, uses the client amid a call of the same thread")

    def _refuse_to_wait(self) -> None:
        """Nor may a thread wait while others, or a call of its own, wait for it to poll."""
        self._refuse_inside()
        if self._poller.thread == get_ident():
            raise Reentered(
                "a signal handler can't call amid a call of the same client in the same thread, nor can a future's "
                "callback: use submit there, or another client"
            )

    # ── calls ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def call(self, name: str, args: tuple[Any, ...], limit_s: float) -> Any:
        """A call, which is waited for. Here every step is spelled out: a lone caller waits for it."""
        call = WaitingCall()
        if self._links.orphaned:
            self.check_open()
        poller = self._poller
        me = get_ident()
        if poller.thread == me or self._is_inside():
            self._refuse_to_wait()
        try:
            with self.mutex:
                if poller.closed:
                    self.check_open()
                now = monotonic()
                alone, sleep = poller.take(me), None
                if alone:
                    if now - self._looked_at > FRESH_S:
                        self._look(now)
                    frame = self.connection.submit_alone(call, name, args, now, limit_s)
                    if frame is not None:
                        self._links.send_alone(frame, now)
                    else:
                        self.connection.submit(call, name, args, now, limit_s)
                        self._links.flush(now)
                    if not call.done:
                        sleep = self._prepare_sleep(now)
                else:
                    self.connection.submit(call, name, args, now, limit_s)
                    self._hand_over(now)
                    call.lock = locked() if not call.done else None
            if alone:
                self._poll_for(call, sleep)
            if call.lock is not None:
                call.lock.acquire()
        except BaseException:
            self._give_up(call)
            raise
        if call.error is not None:
            raise call.error
        return call.value

    def submit(self, name: str, args: tuple[Any, ...], limit_s: float) -> Future[Any]:
        """Starts a call. Waits while SUBMITTED_CALLS calls are under way, except in a future's callback."""
        call = SubmittedCall()
        self.check_open()
        self._refuse_inside()
        settled: list[Pending] = []
        try:
            with self.mutex:
                if self.connection.outcomes.outstanding >= SUBMITTED_CALLS:
                    self._wait_for_room()
                self.check_open()
                now = monotonic()
                self.connection.submit(call, name, args, now, limit_s)
                self._hand_over(now)
                self._take_settled(settled)
            deliver(settled)
        except BaseException:
            deliver(settled)
            self._give_up(call)
            raise
        return call.future

    def run(self, call: Waiting, start: Callable[[float], None]) -> Any:
        """Any call, which is waited for. `start(now)` hands it to the connection."""
        self.check_open()
        self._refuse_to_wait()
        try:
            with self.mutex:
                self.check_open()
                now = monotonic()
                alone = self._poller.take(get_ident())
                if alone:
                    self._look(now)
                    start(now)
                    self._links.flush(now)
                else:
                    start(now)
                    self._hand_over(now)
                    call.lock = locked() if not call.done else None
            if alone:
                self._poll_for(call)
            if call.lock is not None:
                call.lock.acquire()
        except BaseException:
            self._give_up(call)
            raise
        if call.error is not None:
            raise call.error
        return call.value

    def run_many(self, batch: Batch, rows: Iterable[Any], *, stop_at_error: bool) -> None:
        """Reads the rows as their calls go out. Returns when all that were sent are settled, in the batch.

        `stop_at_error`: after the first call that fails nothing more is sent.
        """
        self.check_open()
        self._refuse_to_wait()
        source = iter(rows)
        settled: list[Pending] = []
        try:
            while self._advance(batch, source, settled, stop_at_error=stop_at_error):
                settled.clear()
        except BaseException:
            deliver(settled)
            self._give_up(batch)
            raise

    # ── waiting, and giving up ─────────────────────────────────────────────────────────────────────────────────────

    def _advance(self, batch: Batch, source: Any, settled: list[Pending], *, stop_at_error: bool) -> bool:
        """Reads some rows, sends what makes a frame, waits where there is no room for more. False: all is settled.

        The other calls that this settles are added to `settled`, and delivered.
        """
        connection = self.connection
        room = connection.room(batch)
        # Without the mutex, and without being the poller: the iterable is the user's, and may take its time.
        rows = [] if batch.finished or room <= 0 else list(islice(source, min(room, ROWS_A_TURN)))
        lock: threading.Lock | None = None
        with self.mutex:
            self.check_open()
            now = monotonic()
            alone = self._poller.take(get_ident())
            if alone and now - self._looked_at > FRESH_S:
                self._look(now)
            if rows:
                connection.fill(batch, rows, now)
            elif room > 0:
                batch.finished = True
            if batch.failed and stop_at_error and not batch.finished:
                connection.drop_unsent(batch)
            if batch.finished or connection.room(batch) <= 0:
                connection.push(batch, now)
            self._links.flush(now)
            over = batch.finished and batch.left == 0
            wait = not over and (batch.finished or connection.room(batch) <= 0)
            self._take_settled(settled)
            sleep: tuple[select.poll, float] | None = None
            if not alone:
                if wait:
                    lock = locked()
                    self._batches.append((batch, lock))
                # The flush may have taken in what the poller waits for, or have opened what it does not watch.
                if wait or self._poller.role is CALLER or self._links.generation != self._generation:
                    self._carry_out(self._poller.need_io())
            elif wait and not settled:  # a callback of what has settled may call, which the poller can't
                sleep = self._prepare_sleep(now)
            else:
                self._pause()
        deliver(settled)
        if lock is not None:
            lock.acquire()
        elif sleep is not None:
            poll, wait_ms = sleep
            events = poll.poll(wait_ms)
            with self.mutex:
                self._wake_up(events, monotonic())
                self._pause()
                self._take_settled(settled)
            deliver(settled)
        return not over

    def _poll_for(self, call: Waiting, sleep: tuple[select.poll, float] | None = None) -> None:
        """Polls until the call is settled, or until the I/O thread has to take over.

        `sleep`: that of `_prepare_sleep`, if it was asked already.
        """
        events: list[tuple[int, int]] | None = None
        if sleep is not None:
            events = self._busy_poll.wait(*sleep)
        settled: list[Pending] = []
        try:
            while True:
                with self.mutex:
                    if events is not None:
                        self._wake_up(events, monotonic())
                    if call.done or self._poller.role is YIELDING:
                        if not call.done:
                            call.lock = locked()
                        self._leave(self.connection.busy())
                        self._take_settled(settled)
                        break
                    sleep = self._prepare_sleep(monotonic())
                events = self._busy_poll.wait(*sleep)
            deliver(settled)
        except BaseException:
            deliver(settled)
            raise

    def _look(self, now: float) -> None:
        """While nobody polled, a partition may have died, or the procedures may have changed."""
        self._refresh_poll()
        if self._poll.poll(0) or now >= self._links.next_time:
            self._links.pump(now)
        self._looked_at = now

    def _hand_over(self, now: float) -> None:
        """Leaves what is queued to the poller, but for full frames."""
        if self.connection.unsent.urgent:
            self._links.flush(now)
        self._carry_out(self._poller.need_io())

    def _leave(self, busy: bool) -> None:
        """Stops being the poller, if we are; somebody else has to poll if the client is `busy`."""
        duty = self._poller.leave(get_ident(), busy)
        if duty is not NOTHING:
            self._carry_out(duty)

    def _carry_out(self, duty: Duty) -> None:
        if duty is START:
            self._start_io()
        elif duty is DISPOSE:
            self._dispose()
        elif duty is not NOTHING:
            os.write(self._wake_out, b"\0")

    def _pause(self) -> None:
        """Stops being the poller for as long as the user's iterable is read; whoever comes meanwhile may take over."""
        self._leave(self.connection.outcomes.outstanding > 0)

    def _give_up(self, given_up: Pending | Batch) -> None:
        """An interrupt, or another error: nobody waits for that any more. What others wait for goes on."""
        settled: list[Pending] = []
        try:
            with self.mutex:
                if isinstance(given_up, Batch):
                    self.connection.abandon(given_up)
                    self._batches = [(batch, lock) for batch, lock in self._batches if batch is not given_up]
                else:
                    self.connection.withdraw(given_up)
                self._leave(self.connection.busy())
                self._take_settled(settled)
            deliver(settled)
        except BaseException:  # no thread can be started, or there was a second interrupt
            if self._poller.thread == get_ident():
                with self.mutex:
                    self._poller.end()
                self._end("no thread could be started for it")
            raise

    # ── sleeping ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _refresh_poll(self) -> None:
        links = self._links
        if self._generation != links.generation:
            self._generation = links.generation
            self._poll = poll = select.poll()
            poll.register(self._wake_in, select.POLLIN)
            self._by_fd = links.fds()
            for fd, link in self._by_fd.items():
                poll.register(fd, select.POLLIN | select.POLLOUT if link.wants_to_write else select.POLLIN)
            links.bury()

    def _prepare_sleep(self, now: float) -> tuple[select.poll, float]:
        links = self._links
        if self._generation != links.generation:
            self._refresh_poll()
        self._poller.asleep = True
        # As min and max have it, at a third of their price.
        until, alarm = now + SLICE_S, self.connection.alarm.time
        if alarm < until:
            until = alarm
        if links.next_time < until:
            until = links.next_time
        return self._poll, (until - now) * 1000.0 if until > now else 0.0

    def _wake_up(self, events: list[tuple[int, int]], now: float) -> None:
        self._poller.asleep = False
        self._looked_at = now
        links = self._links
        for fd, _mask in events:
            link = self._by_fd.get(fd)
            if link is not None:
                links.arrived(link, fd, now)
            elif fd == self._wake_in:
                os.read(self._wake_in, 4096)
        if not events:
            links.pump(now)  # a slice is over
        elif now >= self.connection.alarm.time or now >= links.next_time:
            links.step(now)
        if self.connection.unsent.due:
            links.flush(now)

    # ── the I/O thread ─────────────────────────────────────────────────────────────────────────────────────────────

    def _start_io(self) -> None:
        self._contended_at = monotonic()
        thread = threading.Thread(target=self._serve, name="voltpy-io", daemon=True)
        thread.start()
        self._poller.started()
        self._thread = thread

    def _serve(self) -> None:
        with self.mutex:
            if not self._poller.begin(get_ident()):
                return
            self._thread = threading.current_thread()
        events: list[tuple[int, int]] = []
        idle = False
        try:
            while True:
                settled: list[Pending] = []
                with self.mutex:
                    now = monotonic()
                    self._wake_up(events, now)
                    idle = self._is_idle(now)
                    if idle:
                        self._thread = None
                        self._carry_out(self._poller.end())
                    else:
                        poll, wait_ms = self._prepare_sleep(now)
                    self._take_settled(settled)
                deliver(settled)
                if idle:
                    return
                events = poll.poll(wait_ms)
        finally:
            if not idle:  # a defect: nobody may be left waiting for a thread that is gone
                with self.mutex:
                    duty = self._poller.end()
                self._end("the client's I/O thread failed")
                self._carry_out(duty)

    def _is_idle(self, now: float) -> bool:
        if self._poller.closed:
            return True
        connection = self.connection
        if connection.outcomes.outstanding > 1 or self._batches:
            self._contended_at = now
        return not connection.busy() and not self._batches and now - self._contended_at > IO_IDLE_S

    def _take_settled(self, settled: list[Pending]) -> None:
        """Adds what has settled to the list, for `deliver`."""
        if self._batches:
            waiting = []
            for batch, lock in self._batches:
                ready = batch.left == 0 if batch.finished else self.connection.room(batch) >= CALLS_A_FRAME
                if ready:
                    wake(lock)
                else:
                    waiting.append((batch, lock))
            self._batches = waiting
        if self._submitters and self.connection.outcomes.outstanding <= SUBMITTED_CALLS // 2:
            self._room.notify_all()
        settled += self.connection.outcomes.take()

    def _release_batches(self) -> None:
        """The client is closed: their threads look, and raise."""
        for _batch, lock in self._batches:
            wake(lock)
        self._batches.clear()

    def _wait_for_room(self) -> None:
        if self._poller.thread == get_ident():
            return  # a callback: it would wait for itself
        self._submitters += 1
        try:
            self._room.wait_for(
                lambda: self._poller.closed or self.connection.outcomes.outstanding <= SUBMITTED_CALLS // 2
            )
        finally:
            self._submitters -= 1
