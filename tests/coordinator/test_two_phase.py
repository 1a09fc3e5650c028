"""The commit protocol: every state with every message."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coordinator.two_phase import Ask, State, TwoPhase

READER, WRITER, OTHER, STRANGER = 1, 2, 3, 9


def validating() -> TwoPhase:
    return TwoPhase([READER], [WRITER])


def validating_readers() -> TwoPhase:
    return TwoPhase([READER], [])


def preparing() -> TwoPhase:
    """One yes is still to come: the reader's."""
    commit = TwoPhase([READER], [WRITER, OTHER])
    commit.voted(WRITER, yes=True)
    commit.voted(OTHER, yes=True)
    return commit


def committing() -> TwoPhase:
    return TwoPhase([], [WRITER])


def logging() -> TwoPhase:
    commit = preparing()
    commit.voted(READER, yes=True)
    return commit


def unknown() -> TwoPhase:
    commit = committing()
    commit.lost(WRITER)
    return commit


def committed() -> TwoPhase:
    commit = logging()
    commit.logged(was_room=True)
    return commit


def aborted() -> TwoPhase:
    commit = preparing()
    commit.voted(READER, yes=False)
    return commit


EVENTS: dict[str, Callable[[TwoPhase], None]] = {
    "yes of the reader": lambda commit: commit.voted(READER, yes=True),
    "no of the reader": lambda commit: commit.voted(READER, yes=False),
    "yes of the writer": lambda commit: commit.voted(WRITER, yes=True),
    "no of the writer": lambda commit: commit.voted(WRITER, yes=False),
    "vote of a stranger": lambda commit: commit.voted(STRANGER, yes=False),
    "reader lost": lambda commit: commit.lost(READER),
    "writer lost": lambda commit: commit.lost(WRITER),
    "stranger lost": lambda commit: commit.lost(STRANGER),
    "logged": lambda commit: commit.logged(was_room=True),
    "not logged": lambda commit: commit.logged(was_room=False),
}

# The state after each event, in the order of EVENTS; None: as before.
_ = None
C, A, L, U, D = State.COMMITTED, State.ABORTED, State.LOGGING, State.UNKNOWN, State.COMMITTING
TABLE: dict[Callable[[], TwoPhase], list[State | None]] = {
    # votes: reader's, writer's, a stranger's; losses; logged, not logged
    validating: [D, A, _, _, _, A, A, _, _, _],
    validating_readers: [C, A, _, _, _, A, _, _, _, _],
    preparing: [L, A, _, _, _, A, _, _, _, _],
    committing: [_, _, C, A, _, _, U, _, _, _],
    logging: [_, _, _, _, _, _, _, _, C, A],
    unknown: [_] * 10,
    committed: [_] * 10,
    aborted: [_] * 10,
}


@pytest.mark.parametrize("made", TABLE, ids=lambda made: made.__name__)
def test_each_state_takes_each_event(made: Callable[[], TwoPhase]) -> None:
    for (name, event), expected in zip(EVENTS.items(), TABLE[made], strict=True):
        commit = made()
        before = commit.state
        event(commit)
        assert commit.state is (expected or before), name


def test_readers_are_asked_first_and_the_only_writer_decides() -> None:
    commit = TwoPhase([1, 3, 2], [2])
    assert commit.take_asks() == [(1, Ask.PREPARE), (3, Ask.PREPARE)]
    commit.voted(3, yes=True)
    assert commit.take_asks() == []
    commit.voted(1, yes=True)
    assert commit.take_asks() == [(2, Ask.COMMIT)]


def test_several_writers_are_prepared_together_with_the_readers() -> None:
    commit = TwoPhase([1], [2, 3])
    assert commit.take_asks() == [(1, Ask.PREPARE), (2, Ask.PREPARE), (3, Ask.PREPARE)]
    for partition in (3, 1, 2):
        assert commit.state is State.PREPARING
        commit.voted(partition, yes=True)
    assert commit.state is State.LOGGING
    assert commit.take_asks() == []


def test_nothing_to_ask_is_committed_at_once() -> None:
    assert TwoPhase([], []).state is State.COMMITTED


def test_the_parts_of_a_joint_call_are_prepared_even_if_there_is_only_one() -> None:
    commit = TwoPhase([], [0], is_joint=True)
    assert commit.take_asks() == [(0, Ask.PREPARE)]
    commit.voted(0, yes=True)
    assert commit.state is State.LOGGING


def test_the_loss_of_a_writer_that_voted_yes_changes_nothing() -> None:
    commit = TwoPhase([], [1, 2])
    commit.voted(1, yes=True)
    commit.lost(1)
    assert commit.state is State.PREPARING
    commit.voted(2, yes=True)
    commit.lost(2)
    assert commit.state is State.LOGGING


def test_a_no_names_its_partition() -> None:
    commit = TwoPhase([], [1, 2])
    commit.voted(2, yes=False)
    assert (commit.state, commit.refused_by) == (State.ABORTED, 2)
