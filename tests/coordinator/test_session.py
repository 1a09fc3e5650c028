"""The numbering of a session with one partition."""

from __future__ import annotations

from coordinator.session import ATTACH_DUE_S, BESIDE_A_CALL_S, FRAME_BYTES, REPORTS_DUE_S, Session, reports_due_s
from voltpy.messages import Attach, Attached, Decide, Decided, Orders, PartitionAddress, Reports

EPOCH = 5


def address(incarnation: int) -> PartitionAddress:
    return PartitionAddress(0, incarnation, "p0", 0, 0)


def attached_session() -> Session:
    session = Session(0, EPOCH)
    session.adopt(address(1), 0.0)
    session.take_frames()
    assert session.attached(Attached(EPOCH, 1, 1, []))
    return session


def test_a_topology_with_an_incarnation_begins_a_session() -> None:
    session = Session(0, EPOCH)
    assert not session.adopt(address(0), 0.0)
    assert session.take_frames() == []
    assert not session.adopt(address(1), 0.0)
    assert session.take_frames() == [Attach(EPOCH, 1)]
    assert session.connection == 1
    assert not session.adopt(address(1), 1.0)  # nothing new
    assert session.take_frames() == []


def test_another_incarnation_ends_the_session_and_begins_one_on_a_new_connection() -> None:
    session = attached_session()
    session.order(Decide(1, True), 32, 0.0)
    assert session.adopt(address(2), 1.0)
    assert session.take_frames() == [Attach(EPOCH, 2)]  # the order went with the session
    assert session.connection == 2


def test_a_partition_that_is_down_ends_the_session() -> None:
    session = attached_session()
    assert session.adopt(address(0), 1.0)
    assert session.take_frames() == []
    assert not session.is_overdue(100.0)


def test_an_attached_of_an_earlier_session_is_none() -> None:
    session = Session(0, EPOCH)
    session.adopt(address(1), 0.0)
    session.begin(1.0)
    assert not session.attached(Attached(EPOCH, 1, 1, []))
    assert not session.attached(Attached(EPOCH - 1, 2, 1, []))
    assert session.attached(Attached(EPOCH, 2, 1, []))


def test_orders_are_numbered_and_split_by_size() -> None:
    session = attached_session()
    session.order(Decide(1, True), 32, 0.0)
    session.order(Decide(2, True), 32, 0.0)
    session.order(Decide(3, True), FRAME_BYTES, 0.0)
    first, second = session.take_frames()
    assert first == Orders(EPOCH, 1, 1, [Decide(1, True), Decide(2, True)])
    assert second == Orders(EPOCH, 1, 2, [Decide(3, True)])


def test_a_gap_in_the_reports_is_noticed_and_other_sessions_are_dropped() -> None:
    session = attached_session()
    assert session.reports(Reports(EPOCH, 1, 1, [Decided(1)]), 0.0) == [Decided(1)]
    assert session.reports(Reports(EPOCH, 9, 2, [Decided(2)]), 0.0) == []
    assert session.reports(Reports(EPOCH, 1, 3, [Decided(3)]), 0.0) is None


def test_a_report_that_does_not_come_is_overdue_and_silence_without_orders_is_not() -> None:
    session = attached_session()
    assert not session.is_overdue(1000.0)
    session.order(Decide(1, True), 32, 1000.0)
    assert not session.is_overdue(1000.0 + REPORTS_DUE_S)
    assert session.is_overdue(1000.1 + REPORTS_DUE_S)
    session.reports(Reports(EPOCH, 1, 1, [Decided(1)]), 1004.0)
    assert not session.is_overdue(2000.0)


def test_a_partition_may_take_as_long_as_its_longest_call_to_report() -> None:
    assert reports_due_s(0.5) == REPORTS_DUE_S
    assert reports_due_s(60.0) == 60.0 + BESIDE_A_CALL_S
    session = Session(0, EPOCH, reports_due_s(60.0))
    session.adopt(address(1), 0.0)
    session.attached(Attached(EPOCH, 1, 1, []))
    session.order(Decide(1, True), 32, 1000.0)
    assert not session.is_overdue(1060.0 + BESIDE_A_CALL_S)
    assert session.is_overdue(1060.1 + BESIDE_A_CALL_S)


def test_an_attach_that_is_not_answered_is_overdue() -> None:
    session = Session(0, EPOCH)
    session.adopt(address(1), 0.0)
    assert not session.is_overdue(ATTACH_DUE_S)
    assert session.is_overdue(ATTACH_DUE_S + 0.1)
