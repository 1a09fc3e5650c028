"""The role of the thread that polls for all, state by state: the table of voltpy.poller."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from voltpy.poller import (
    CALLER,
    DISPOSE,
    IO,
    NOBODY,
    NOTHING,
    START,
    WAKE,
    YIELDING,
    Duty,
    Poller,
    Role,
)

MINE, OTHERS, IO_THREAD = 1, 2, 3


def poller_in(role: Role) -> Poller:
    """Where a caller polls it is thread MINE. Nobody is asleep."""
    poller = Poller()
    if role is IO:
        assert poller.need_io() is START
        poller.started()
        assert poller.begin(IO_THREAD)
    elif role is not NOBODY:
        assert poller.take(MINE)
        if role is YIELDING:
            poller.need_io()
    assert (poller.role, poller.asleep, poller.closed) == (role, False, False)
    return poller


THREADS = {NOBODY: 0, CALLER: MINE, YIELDING: MINE, IO: IO_THREAD}


@pytest.mark.parametrize(
    ("role", "taken", "after"),
    [(NOBODY, True, CALLER), (CALLER, False, CALLER), (YIELDING, False, YIELDING), (IO, False, IO)],
)
def test_a_thread_with_a_call_polls_if_nobody_does(role: Role, taken: bool, after: Role) -> None:
    poller = poller_in(role)
    assert poller.take(OTHERS) is taken
    assert (poller.role, poller.thread) == (after, OTHERS if taken else THREADS[role])


@pytest.mark.parametrize(
    ("role", "duty", "after"),
    [(NOBODY, START, NOBODY), (CALLER, WAKE, YIELDING), (YIELDING, WAKE, YIELDING), (IO, WAKE, IO)],
)
def test_who_waits_without_polling_has_the_io_thread_poll(role: Role, duty: Duty, after: Role) -> None:
    poller = poller_in(role)
    poller.asleep = role is not NOBODY
    assert poller.need_io() is duty
    assert (poller.role, poller.thread, poller.asleep) == (after, THREADS[role], False)
    if role is not NOBODY:
        assert poller.need_io() is NOTHING  # it is awake


@pytest.mark.parametrize(
    ("role", "busy", "duty", "after"),
    [
        (NOBODY, True, NOTHING, NOBODY),
        (NOBODY, False, NOTHING, NOBODY),
        (CALLER, True, START, CALLER),
        (CALLER, False, NOTHING, NOBODY),
        (YIELDING, True, START, YIELDING),
        (YIELDING, False, START, YIELDING),
        (IO, True, NOTHING, IO),
        (IO, False, NOTHING, IO),
    ],
)
def test_a_caller_that_leaves_passes_the_role_on_if_it_is_needed(
    role: Role, busy: bool, duty: Duty, after: Role
) -> None:
    poller = poller_in(role)
    assert poller.leave(THREADS[role] or MINE, busy=busy) is duty
    assert (poller.role, poller.thread) == (after, THREADS[after])


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("closed", [False, True])
def test_a_thread_that_does_not_poll_leaves_nothing(role: Role, closed: bool) -> None:
    poller = poller_in(role)
    if closed:
        poller.close()
    before = poller.role
    assert poller.leave(OTHERS, busy=True) is NOTHING
    assert (poller.role, poller.thread) == (before, THREADS[role])


@pytest.mark.parametrize("role", [NOBODY, CALLER, YIELDING])
def test_the_io_thread_polls_once_it_is_started_and_runs(role: Role) -> None:
    poller = poller_in(role)
    poller.asleep = role is not NOBODY  # where an interrupt has ended the sleep
    poller.started()
    assert (poller.role, poller.thread, poller.asleep) == (IO, 0, False)
    assert not poller.take(OTHERS)
    assert poller.need_io() is NOTHING  # it will look before it sleeps
    assert poller.begin(IO_THREAD)
    assert poller.thread == IO_THREAD


@pytest.mark.parametrize("role", Role)
def test_an_io_thread_that_is_not_wanted_does_not_begin(role: Role) -> None:
    poller = poller_in(role)
    assert not poller.begin(OTHERS)
    assert (poller.role, poller.thread) == (role, THREADS[role])


def test_an_io_thread_with_nothing_to_do_ends() -> None:
    poller = poller_in(IO)
    assert poller.end() is NOTHING
    assert (poller.role, poller.thread) == (NOBODY, 0)
    assert poller.take(MINE)


@pytest.mark.parametrize(
    ("role", "duty", "after"),
    [(NOBODY, DISPOSE, NOBODY), (CALLER, WAKE, YIELDING), (YIELDING, WAKE, YIELDING), (IO, WAKE, IO)],
)
def test_a_closed_client_is_disposed_of_by_whoever_polls(role: Role, duty: Duty, after: Role) -> None:
    poller = poller_in(role)
    poller.asleep = role is not NOBODY
    assert poller.close() is duty
    assert (poller.role, poller.closed, poller.asleep) == (after, True, False)
    ends: dict[Role, Callable[[], Duty]] = {
        CALLER: lambda: poller.leave(MINE, busy=False),
        YIELDING: lambda: poller.leave(MINE, busy=True),
        IO: poller.end,
    }
    if role in ends:
        assert ends[role]() is DISPOSE
    assert (poller.role, poller.thread) == (NOBODY, 0)


def test_an_io_thread_that_is_closed_before_it_runs_disposes() -> None:
    poller = poller_in(CALLER)
    poller.started()
    assert poller.close() is NOTHING
    assert poller.begin(IO_THREAD)
    assert poller.end() is DISPOSE
