"""Which thread polls a client's sockets: one at a time, for all. How the role passes on, without sockets or threads.

    NOBODY      nobody waits for anything
    CALLER      a thread that waits for its own call, alone with the connection: the shortest way
    YIELDING    the same, but somebody else waits too: it starts the I/O thread as soon as it looks
    IO          the I/O thread, which sends what all have queued, and wakes each when its answer is there

    event                                  NOBODY      CALLER            YIELDING          IO
    ──────────────────────────────────────────────────────────────────────────────────────────────────────
    take     a thread has a call           CALLER      refused           refused           refused
    need_io  one waits that doesn't poll   START       YIELDING, WAKE    WAKE              WAKE
    leave    the caller's call has ended,
             and others are under way      —           START             START             —
             and nothing is                —           NOBODY            START             —
    started  START is carried out          IO          IO                IO                —
    begin    the I/O thread runs           refused     refused           refused           IO; a second: refused
    end      it has had nothing to do      —           —                 —                 NOBODY
    close    the client is closed          DISPOSE     YIELDING, WAKE    WAKE              WAKE
    leave    … and after that              —           NOBODY, DISPOSE   NOBODY, DISPOSE   —
    end      … and after that              —           —                 —                 NOBODY, DISPOSE

START changes nothing before `started`. A thread whose start was interrupted may run all the same: it is refused to
begin, and ends. Who is refused `take` leaves its call to the poller, and waits. A thread that polls must not come
again: it would wait for itself (`Reentered`).
"""

from __future__ import annotations

from enum import Enum


class Role(Enum):
    NOBODY = 0
    CALLER = 1
    YIELDING = 2
    IO = 3


class Duty(Enum):
    """What an event leaves to the client: to start the I/O thread, to wake the poller, to close the sockets."""

    NOTHING = 0
    START = 1
    WAKE = 2
    DISPOSE = 3


NOBODY, CALLER, YIELDING, IO = Role
NOTHING, START, WAKE, DISPOSE = Duty


class Poller:
    """Events come under the client's mutex. Threads are idents, as of threading.get_ident.

    `thread`: who polls; 0: nobody, or an I/O thread that has not begun. `asleep`: it has to be woken to look; set by
    itself before it sleeps, and unset after it.
    """

    __slots__ = ("asleep", "closed", "role", "thread")

    def __init__(self) -> None:
        self.role = NOBODY
        self.thread = 0
        self.asleep = False
        self.closed = False

    def take(self, thread: int) -> bool:
        """A thread that does not poll has a call. True: it polls from now on."""
        if self.role is not NOBODY:
            return False
        self.role = CALLER
        self.thread = thread
        return True

    def need_io(self) -> Duty:
        """Something is queued by a thread that does not poll for it."""
        if self.role is NOBODY:
            return START
        if self.role is CALLER:
            self.role = YIELDING
        if not self.asleep:
            return NOTHING  # it looks anyway
        self.asleep = False
        return WAKE

    def leave(self, thread: int, busy: bool) -> Duty:
        """A thread ends its call, or pauses. `busy`: something is under way that has to be polled for."""
        role = self.role
        if self.thread != thread or role is IO:
            return NOTHING
        if (busy or role is YIELDING) and not self.closed:
            return START
        self.role = NOBODY
        self.thread = 0
        self.asleep = False
        return DISPOSE if self.closed else NOTHING

    def started(self) -> None:
        """The I/O thread was started, by whoever had the role until now."""
        self.role = IO
        self.thread = 0
        self.asleep = False

    def begin(self, thread: int) -> bool:
        """An I/O thread runs. False: it is not wanted."""
        if self.role is not IO or self.thread:
            return False
        self.thread = thread
        return True

    def end(self) -> Duty:
        """The I/O thread ends."""
        self.role = NOBODY
        self.thread = 0
        self.asleep = False
        return DISPOSE if self.closed else NOTHING

    def close(self) -> Duty:
        """The client is closed, and what is under way has ended by that."""
        self.closed = True
        if self.role is NOBODY:
            return DISPOSE
        return self.need_io()
