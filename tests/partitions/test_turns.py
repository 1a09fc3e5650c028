"""The server's turns: what is sent when, to whom. Orders of the coordinator among calls, held replies, crashes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from partitions.batch_steps import DECIDED_S
from partitions.call_queue import BATCH_S
from partitions.executor import LENT_WAIT_S
from partitions.server import CHECKPOINT_WAIT_S, IDLE_WAIT_S, RESULTS_A_BATCH_BYTES, UPKEEP_S
from tests.partitions.one_server import COORDINATOR_AT, SUPERVISOR_AT, OneServer
from tests.partitions.test_lending import (
    ITEMS,
    NONE,
    PROCEDURES,
    SCHEMA,
    borrow,
    changes,
    item,
    items_stored,
)
from voltpy.answers import MAX_RESULT_BYTES
from voltpy.crash_point import CRASH_POINTS
from voltpy.door import COORDINATOR
from voltpy.messages import (
    HOLD_S,
    LEASE_S,
    PROTOCOL_VERSION,
    Attach,
    Attached,
    CallGroup,
    Calls,
    CheckpointBegun,
    CheckpointHeld,
    Closing,
    Commit,
    Decide,
    Decided,
    Detach,
    Hello,
    HoldCheckpoint,
    Lent,
    Message,
    Order,
    Orders,
    Prepare,
    Read,
    ReadAnswer,
    Refusal,
    Release,
    Replies,
    Reports,
    StatusReply,
    StatusRequest,
    SwitchLoad,
    TableKeys,
    Vote,
)
from voltpy.procedure import procedure
from voltpy.row import encode
from voltpy.wire import joined

ONE, OTHER, LATE = 11, 12, 13  # clients


running: list[OneServer] = []


def served(directory: Path, **options: Any) -> OneServer:
    running.append(OneServer(SCHEMA, PROCEDURES, directory, **options))
    return running[-1]


@pytest.fixture(autouse=True)
def _none_runs_on() -> Iterator[None]:
    """Not even the last one, which the signal of its timeout knows."""
    yield
    while running:
        running.pop().kill()


@pytest.fixture
def server(tmp_path: Path) -> OneServer:
    made = served(tmp_path)
    for key in range(1, 6):
        made.call(ONE, "put", key, key * 10)
    made.turn()
    made.answers(ONE)
    made.attach()
    return made


def read(round_: int, *keys: int) -> Read:
    return Read(round_, [TableKeys(ITEMS, [encode(key) for key in keys])], [])


# ---------------------------------------------------------------------------------------------------- held replies


def test_a_reply_waits_behind_each_round_that_was_opened_before_it(server: OneServer) -> None:
    """PROTOCOL rule 3: R has run at P1, not at P2; W runs at P1; a client that had heard of W would see R miss it."""
    before = server.call(ONE, "add", 1, 1)
    server.order(read(1, 1))
    after, failed = server.call(ONE, "add", 1, 1), server.call(OTHER, "add", 99, 1)
    server.turn(3)
    assert server.reports() == [ReadAnswer(1, [[item(1, 11)]], [])]
    assert server.answers(ONE) == {before: 11}
    assert server.answers(OTHER) == {}  # errors too
    assert server.ordered(read(2, 2), Release(1)) == [ReadAnswer(2, [[item(2, 20)]], [])]
    assert server.answers(ONE) == {after: 12}
    assert server.answers(OTHER) == {failed: "Aborted"}
    last = server.call(ONE, "get", 2)
    server.turn(2)
    assert server.answers(ONE) == {}
    assert server.ordered(Release(2)) == []
    assert server.answers(ONE) == {last: 20}


def test_lends_votes_and_acks_are_never_held_back(server: OneServer) -> None:
    server.ordered(read(1, 5))
    image = changes((1, 11))
    assert server.ordered(borrow(7, 1)) == [Lent(7, [[item(1, 10)]], [])]
    assert server.ordered(Prepare(7, image)) == [Vote(7, "")]
    assert server.ordered(Decide(7, True)) == [Decided(7)]


def test_nobody_waits_for_the_flush_of_a_decision(server: OneServer) -> None:
    """What the coordinator knows to be decided it may be told of at once; that it is on disk here, when it is."""
    server.ordered(borrow(7, 1))
    server.ordered(Prepare(7, changes((1, 11))))
    prepared_lsn = server.wal.flushed_lsn
    server.order(Decide(7, True))
    server.order(borrow(8, 1))
    server.turn(2)
    assert server.reports() == [Lent(8, [[item(1, 11)]], [])]
    assert server.wal.flushed_lsn == prepared_lsn
    server.turn()
    assert 0 < server.sockets.waited_s <= DECIDED_S  # and not busily
    server.order(Prepare(8, changes((1, 12))))
    server.turn()
    assert server.reports() == [Decided(7), Vote(8, "")]
    assert server.wal.flushed_lsn == prepared_lsn + 2
    server.order(Decide(8, True))
    server.turn(2)
    assert server.reports() == []
    server.now_s += DECIDED_S
    server.turn()
    assert server.reports() == [Decided(8)]
    assert server.wal.flushed_lsn == prepared_lsn + 3


def test_replies_to_what_ran_after_a_decision_wait_for_it_to_be_on_disk(server: OneServer) -> None:
    server.ordered(borrow(7, 1))
    server.ordered(Prepare(7, changes((1, 11))))
    number = server.call(ONE, "get", 1)
    server.turn()
    assert server.answers(ONE) == {}
    server.order(Decide(7, True))
    server.turn(2)
    assert server.answers(ONE) == {number: 11}
    assert server.wal.flushed_lsn == server.wal.written_lsn


def test_replies_are_let_go_when_nobody_ends_the_round(server: OneServer) -> None:
    server.ordered(read(1, 1))
    number = server.call(ONE, "add", 1, 1)
    server.turn(2)
    assert server.answers(ONE) == {}
    assert 0 < server.sockets.waited_s <= HOLD_S  # and not busily
    server.now_s += HOLD_S
    server.turn(2)
    assert server.answers(ONE) == {number: 11}


def test_replies_stay_held_across_flushes_in_the_background(server: OneServer) -> None:
    server.ordered(read(1, 1))
    for _ in range(5):
        server.call(ONE, "add", 1, 1)
        server.order(borrow(9, 99))  # ends what is drained, so that there is more behind each flush
    server.turn(12)
    assert len(server.reports()) == 5
    assert server.wal.flushed_lsn == server.wal.written_lsn
    assert server.answers(ONE) == {}
    server.ordered(Release(1))
    assert len(server.answers(ONE)) == 5


def test_a_partition_that_stops_hangs_up_on_the_coordinator_before_held_replies_leave(server: OneServer) -> None:
    """It may have all answers, and would believe that this one had been held back."""
    server.ordered(read(1, 1))
    number = server.call(ONE, "add", 1, 1)
    server.turn()
    sent = sum(map(len, server.sockets.sent.values()))
    server.server.end()
    assert server.sockets.hung_up == [(COORDINATOR_AT, sent)]
    assert server.answers(ONE) == {number: 11}


def test_a_partition_that_stops_says_of_every_call_that_did_not_run_that_it_never_will(server: OneServer) -> None:
    server.ordered(borrow(7, 1))
    waits = server.call(OTHER, "add", 1, 1)
    server.say(LATE, Hello(PROTOCOL_VERSION, LATE))
    flooded = flood(server, ONE, 10)
    server.turn()
    server.call(LATE, "get", 1)  # is still in the socket
    server.server.stop()
    server.server.serve()
    answers = server.answers(ONE)
    assert list(answers) == flooded[: len(answers)]  # the others are still in the socket
    codes = list(answers.values())
    ran = codes.index("Unavailable")
    assert 0 < ran < len(codes)
    assert set(codes[:ran]) == {20}
    assert set(codes[ran:]) == {"Unavailable"}
    assert server.answers(OTHER) == {waits: "Unavailable"}
    assert server.answers(LATE) == {}
    assert server.door.in_flight == 0
    for client in (ONE, OTHER, LATE):
        assert server.sockets.sent[client][-1] == Closing("partition 0 is stopping")
    assert server.heard(SUPERVISOR_AT, Closing) == server.heard(COORDINATOR_AT, Closing) == []


def test_replies_are_held_for_as_long_as_the_order_says_from_when_it_came(server: OneServer) -> None:
    """However long the turn has taken until then: the coordinator counts from when it sent the order."""
    passing = server.server._executor.run

    def slow(*arguments: object) -> None:
        passing(*arguments)  # type: ignore[arg-type]
        server.now_s += 3 * HOLD_S

    server.server._executor.run = slow  # type: ignore[method-assign,assignment]
    number = server.call(ONE, "add", 1, 1)
    server.order(read(1, 2))
    server.turn()
    server.server._executor.run = passing  # type: ignore[method-assign]
    after = server.call(ONE, "add", 1, 1)
    server.now_s += 0.999 * HOLD_S
    server.turn(2)
    assert server.answers(ONE) == {number: 11}
    server.now_s += 0.001 * HOLD_S
    server.turn(2)
    assert server.answers(ONE) == {after: 12}


def test_replies_of_what_ran_before_a_read_that_was_refused_go_on(server: OneServer) -> None:
    server.ordered(borrow(7, 1))
    assert server.ordered(read(1, 1)) == [ReadAnswer(1, [], [], is_here=False)]
    number = server.call(ONE, "add", 2, 1)
    server.turn(2)
    assert server.answers(ONE) == {number: 21}


# ------------------------------------------------------------------------------------------- reports and their flush


@pytest.mark.parametrize("fsync", ["always", "everysec", "never"])
def test_no_report_leaves_before_what_it_rests_on_is_flushed(fsync: str, tmp_path: Path) -> None:
    """PROTOCOL rules 5, 16 and 19: L writes a, unflushed; T reads a and commits elsewhere; P1 dies."""
    server = served(tmp_path, fsync=fsync)
    server.attach()
    reported = 0

    def sending(message: Message) -> None:
        nonlocal reported
        if isinstance(message, Reports):
            reported += len(message.reports)
            assert server.wal.flushed_lsn == server.wal.written_lsn

    server.sockets.sending = sending
    server.call(ONE, "put", 1, 10)
    (lent,) = server.ordered(borrow(7, 1))
    assert lent == Lent(7, [[item(1, 10)]], [])
    server.ordered(Prepare(7, changes((1, 11))))
    server.ordered(Decide(7, True))
    server.call(ONE, "add", 1, 1)
    server.ordered(borrow(8, 1))
    server.ordered(Commit(8, changes((1, 13)), NONE))
    server.call(ONE, "add", 1, 1)
    server.ordered(read(1, 1), Release(1))
    assert reported == 6


def test_a_report_may_wait_for_a_flush_beside_the_next_batch(server: OneServer) -> None:
    server.order(borrow(7, 1))
    numbers = [server.call(ONE, "add", 2, 1)]
    server.order(Prepare(7, changes((1, 11))))
    numbers.append(server.call(ONE, "add", 3, 1))
    server.turn(6)
    assert server.reports() == [Lent(7, [[item(1, 10)]], []), Vote(7, "")]
    assert server.answers(ONE) == dict(zip(numbers, (21, 31), strict=True))


# -------------------------------------------------------------------------------------------------- orders and calls


def test_orders_come_in_their_place_among_calls(server: OneServer) -> None:
    before = server.call(ONE, "add", 1, 1)
    server.order(borrow(7, 1))
    after = server.call(ONE, "add", 1, 1)
    server.turn(3)
    assert server.reports() == [Lent(7, [[item(1, 11)]], [])]
    assert server.answers(ONE) == {before: 11}
    server.order(Decide(7, False))
    server.turn(3)
    assert server.answers(ONE) == {after: 12}


def test_a_decision_lets_those_who_waited_run_before_the_next_borrow(server: OneServer) -> None:
    """PROTOCOL rule 12."""
    server.ordered(borrow(7, 1), Prepare(7, changes((1, 11))))
    number = server.call(ONE, "add", 1, 1)
    server.turn()
    assert server.ordered(Decide(7, True), borrow(8, 1)) == [Decided(7), Lent(8, [[item(1, 12)]], [])]
    assert server.answers(ONE) == {number: 12}


def test_what_was_lent_for_too_long_is_here_again(server: OneServer) -> None:
    server.ordered(borrow(7, 1))
    number = server.call(ONE, "add", 1, 1)
    server.turn(3)
    assert server.sockets.waited_s == IDLE_WAIT_S
    server.now_s += LEASE_S
    server.turn(2)
    assert server.answers(ONE) == {number: 11}
    (vote,) = server.ordered(Prepare(7, changes((1, 0))))
    assert isinstance(vote, Vote)
    assert vote.error == "Unavailable"


def test_a_call_that_waits_for_what_is_in_doubt_is_answered_in_the_end(server: OneServer) -> None:
    server.ordered(borrow(7, 1), Prepare(7, changes((1, 11))))
    number = server.call(ONE, "add", 1, 1)
    server.turn(2)
    in_flight = server.door.in_flight
    server.now_s += LENT_WAIT_S
    server.turn(2)
    assert server.answers(ONE) == {number: "Unavailable"}
    assert server.door.in_flight == in_flight - 1


def test_orders_that_wait_for_pages_stop_nobody(tmp_path: Path) -> None:
    server = served(tmp_path)
    for key in range(1, 30):
        server.call(ONE, "fill", key, 3000)
    server.turn()
    server.partition.checkpointer.request()
    while server.partition.checkpointer.step(0.0):
        pass
    server.kill()
    server = served(tmp_path)
    server.attach()
    server.order(borrow(7, *range(1, 30)), borrow(7, 100))
    number = server.call(ONE, "put", 50, 1)
    server.turn()
    assert server.reports() == []
    for _ in range(1000):
        server.turn()
        if len(server.sockets.sent.get(COORDINATOR_AT, [])) > 0:
            break
    first, second = server.reports()
    assert isinstance(first, Lent)
    assert None not in first.images[0]
    assert second == Lent(7, [[None]], [])
    assert server.answers(ONE) == {number: None}


# ----------------------------------------------------------------------------------------------------- who may what


def test_only_the_coordinator_gives_orders_and_only_the_last_that_attached(server: OneServer) -> None:
    server.say(ONE, Orders(1, server.session, 1, [borrow(7, 1)]))
    server.turn()
    (refusal,) = server.heard(ONE, Refusal)
    assert "a client may not send Orders here" in refusal.message
    server.say("another", Hello(PROTOCOL_VERSION, 0, COORDINATOR, "wrong"))
    server.say("next", Hello(PROTOCOL_VERSION, 0, COORDINATOR, "0123456789abcdef"))
    server.turn()
    assert "token" in server.heard("another", Refusal)[0].message
    server.say("next", Orders(1, server.session, 1, [borrow(7, 1)]))  # it has not attached
    server.turn(2)
    assert server.heard("next", Reports) == []
    server.say("next", Attach(2, 1))
    server.turn(2)
    assert server.heard("next", Attached) == [Attached(2, 1, server.wal.epoch, [])]
    server.order(borrow(7, 1))
    server.turn(2)
    assert server.reports() == []


def test_the_supervisor_says_that_the_coordinator_is_dead(server: OneServer) -> None:
    server.ordered(borrow(7, 1))
    number = server.call(ONE, "add", 1, 1)
    server.turn()
    server.say(SUPERVISOR_AT, Detach(1))
    server.turn(2)
    assert server.answers(ONE) == {number: 11}


def test_a_snapshot_hears_when_the_state_is_fixed(server: OneServer) -> None:
    server.say(SUPERVISOR_AT, HoldCheckpoint(5, 100.0))
    server.turn()
    assert server.heard(SUPERVISOR_AT, CheckpointBegun) == [CheckpointBegun(5)]
    lsn = server.wal.written_lsn
    server.call(ONE, "add", 1, 1)
    held: list[CheckpointHeld] = []
    while not held:
        server.now_s += CHECKPOINT_WAIT_S
        server.turn()
        held = server.heard(SUPERVISOR_AT, CheckpointHeld)
    assert (held[0].error, held[0].lsn) == ("", lsn)
    assert server.heard(SUPERVISOR_AT, CheckpointBegun) == []


def test_what_a_batch_put_off_is_looked_after_soon_when_no_other_batch_follows(server: OneServer) -> None:
    server.turn()
    server.now_s += UPKEEP_S / 2
    server.call(ONE, "add", 1, 1)
    server.say(SUPERVISOR_AT, HoldCheckpoint(5, 100.0))
    server.turn()
    assert server.heard(SUPERVISOR_AT, CheckpointBegun) == []
    server.turn()
    assert server.sockets.waited_s <= UPKEEP_S
    assert server.heard(SUPERVISOR_AT, CheckpointBegun) == [CheckpointBegun(5)]


def test_the_status_counts_what_is_lent_and_held(server: OneServer) -> None:
    server.ordered(borrow(7, 1, 2), Prepare(7, changes((1, 0))), borrow(8, 3), read(1, 4))
    server.call(ONE, "add", 1, 1)
    server.call(ONE, "add", 4, 1)
    server.say(SUPERVISOR_AT, StatusRequest(3))
    server.turn(2)
    (status,) = server.heard(SUPERVISOR_AT, StatusReply)
    expected = {
        "lent_keys": 1, "lent_tables": 0, "prepared_batches": 1, "read_rounds": 1, "held_replies": 1,
        "waiting_for_lent": 1, "waiting": 1,
    }  # fmt: skip
    assert {name: status.metrics[name] for name in expected} == expected


# ---------------------------------------------------------------------------------------------------------- crashes


class Crash(BaseException):
    """The process is gone."""


def crash_at(name: str, passage: int) -> Callable[[str], None]:
    passed = 0

    def crash_point(point: str) -> None:
        nonlocal passed
        passed += point == name
        if point == name and passed == passage:
            raise Crash

    return crash_point


POINTS = [point for point in CRASH_POINTS if point.startswith(("participant.", "server.report."))]


@pytest.mark.parametrize("passage", [1, 3])
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_every_step_loses_nothing_that_was_told(
    point: str, passage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that decides by what it was told, over a partition that dies at this step."""
    server = served(tmp_path)
    server.call(ONE, "put", 1, 0)
    server.call(ONE, "put", 2, 0)
    server.turn()
    crash = crash_at(point, passage)  # one for all of them: it counts the passages
    for module in ("in_doubt", "loans", "participant", "server"):
        monkeypatch.setattr(f"partitions.{module}.crash_point", crash)
    told: dict[int, str] = {}  # batch → what it can rely on
    died = False
    epoch = 1
    batch = 0

    def ask(*orders: Order) -> list[Any]:
        reports = server.ordered(*orders)
        assert len(reports) == sum(not isinstance(order, Release) for order in orders)
        return list(reports)

    def attach() -> None:
        for in_doubt in server.attach(epoch).in_doubt:
            commits = told.get(in_doubt) in ("decided", "done")
            assert told.get(in_doubt) != "done"
            if not commits:
                told[in_doubt] = "aborted"
            ask(Decide(in_doubt, commits))

    try:
        attach()
        for _ in range(4):
            batch += 1
            ask(borrow(batch, 1), Read(batch, [TableKeys(ITEMS, [encode(9)])], []), Release(batch))
            assert ask(Prepare(batch, changes((1, batch)))) == [Vote(batch, "")]
            told[batch] = "decided"
            ask(Decide(batch, True))
            told[batch] = "done"
            batch += 1
            ask(borrow(batch, 2))
            told[batch] = "asked"
            assert ask(Commit(batch, changes((2, batch)), NONE)) == [Vote(batch, "")]
            told[batch] = "done"
            batch += 1
            ask(borrow(batch, 1), Prepare(batch, changes((1, -1))))
            told[batch] = "aborted"
            ask(Decide(batch, False))
            batch += 1
            ask(borrow(batch, 3))
            server.now_s += LEASE_S
            server.turn()
            assert ask(Prepare(batch, changes((3, 3))))[0].error == "Unavailable"
            attach()
    except Crash:
        died = True
    assert died
    monkeypatch.undo()
    server.kill()
    server = served(tmp_path)
    attach()
    state = items_stored(server.partition)
    two_phase = [number for number, what in told.items() if what in ("decided", "done") and number % 4 == 1]
    one_phase = [number for number, what in told.items() if what == "done" and number % 4 == 2]
    assert state[1] == max(two_phase, default=0)
    assert state[2] >= max(one_phase, default=0)
    assert told.get(state[2], "done") in ("done", "asked")
    assert 3 not in state
    server.partition.store.check()
    number = server.call(ONE, "add", 1, 1)
    server.turn(2)
    assert server.answers(ONE) == {number: state[1] + 1}
    server.kill()


# ------------------------------------------------------------------------------------------------ whose turn it is


def flood(server: OneServer, client: int, groups: int) -> list[int]:
    """Sends so many groups of 512 calls; the numbers of all."""
    if client not in server.door.accounts:
        server.say(client, Hello(PROTOCOL_VERSION, client))
    sent = []
    for _ in range(groups):
        numbers = list(range(server.number + 1, server.number + 513))
        server.number += 512
        args = joined([encode([2])] * 512)
        server.say(client, Calls(0, [CallGroup(client, "get", 0, server.wal.epoch, numbers, [0] * 512, args)]))
        sent += numbers
    return sent


def test_a_call_of_its_own_does_not_wait_for_all_that_others_compute(tmp_path: Path) -> None:
    @procedure(partition_by="key", read_only=True)
    def compute(tx: Any, key: int) -> int:
        server.now_s += 0.02
        return key

    server = OneServer(SCHEMA, [*PROCEDURES, compute], tmp_path)
    running.append(server)
    server.call(ONE, "put", 1, 10)
    server.turn()
    server.answers(ONE)
    sent = [server.call(ONE, "compute", 1) for _ in range(100)]
    began_s = server.now_s
    server.turn()
    assert server.now_s - began_s < 2 * BATCH_S
    lone = server.call(OTHER, "get", 1)
    server.turn()
    assert server.answers(OTHER) == {lone: 10}
    assert server.now_s - began_s < 4 * BATCH_S
    server.turn(30)
    assert server.answers(ONE) == dict.fromkeys(sent, 1)


def test_a_call_of_its_own_is_in_the_next_batch_however_much_others_have_sent(server: OneServer) -> None:
    flooded = flood(server, ONE, 10)
    server.turn()
    lone = server.call(OTHER, "get", 1)
    server.turn()
    assert server.answers(OTHER) == {lone: 10}
    assert len(server.answers(ONE)) < len(flooded)
    for _ in range(20):  # while such calls come, batches are short: somebody waits for them
        lone = server.call(OTHER, "get", 1)
        server.turn()
        assert server.answers(OTHER) == {lone: 10}
        assert len(server.answers(ONE)) <= 1024
    assert server.door.in_flight == 0


def test_a_flood_alone_has_batches_of_two_thousand_calls(server: OneServer) -> None:
    flood(server, ONE, 8)
    batches = []
    while server.door.in_flight or not batches:
        server.turn()
        batches.append(len(server.answers(ONE)))
    assert batches == [2048, 2048]


@procedure(partition_by="key", read_only=True)
def letters(tx: Any, key: int, length: int) -> Any:
    return "x" * length


def test_a_batch_ends_when_its_results_are_large_and_each_call_leaves_the_queue_once(tmp_path: Path) -> None:
    server = OneServer(SCHEMA, [*PROCEDURES, letters], tmp_path)
    running.append(server)
    taken = 0
    take = server.server._queue.take

    def counted(most_bytes: float) -> Iterator[Any]:
        nonlocal taken
        for request in take(most_bytes):
            taken += 1
            yield request

    server.server._queue.take = counted  # type: ignore[method-assign]
    numbers = [server.call(ONE, "letters", 1, MAX_RESULT_BYTES - 16) for _ in range(200)]
    lone = server.call(OTHER, "add", 1, 1)
    batches = []
    answered: list[int] = []
    while server.door.in_flight or not batches:
        server.turn()
        answers = server.answers(ONE)
        answered += answers
        batches.append(len(answers))
        if lone in server.answers(OTHER):
            lone_at = len(batches)
    assert answered == numbers
    assert max(batches) == RESULTS_A_BATCH_BYTES // MAX_RESULT_BYTES + 1
    assert lone_at <= 2
    assert taken == 201


def test_small_calls_go_the_short_way_though_others_have_had_large_results(tmp_path: Path) -> None:
    server = OneServer(SCHEMA, [*PROCEDURES, letters], tmp_path)
    running.append(server)
    queued: list[int] = []
    add = server.server._queue.add

    def noted(client_id: int, *arguments: Any) -> None:
        queued.append(client_id)
        add(client_id, *arguments)

    server.server._queue.add = noted  # type: ignore[method-assign]
    server.call(ONE, "letters", 1, MAX_RESULT_BYTES - 16)
    server.turn()
    server.call(ONE, "add", 1, 1)
    server.call(OTHER, "letters", 1, 1)
    server.turn()
    assert queued == []
    server.call(ONE, "letters", 1, 1)
    server.call(OTHER, "letters", 1, 1)
    server.turn()
    assert queued == [ONE, OTHER]
    assert len(server.answers(ONE) | server.answers(OTHER)) == 5


def test_procedures_are_replaced_when_all_calls_have_run_that_were_let_in_before(server: OneServer) -> None:
    """In batches no larger than others; what comes behind waits for it."""
    flooded = flood(server, ONE, 7)
    server.say(SUPERVISOR_AT, SwitchLoad(7))
    behind = server.call(OTHER, "get", 1)
    batches = []
    while not server.sockets.sent.get(SUPERVISOR_AT):
        assert server.answers(OTHER) == {}
        server.turn()
        batches.append(server.answers(ONE))
    assert [number for answers in batches for number in answers] == flooded
    assert [len(answers) for answers in batches] == [2048, 1536]
    assert len(server.heard(SUPERVISOR_AT, StatusReply)) == 1
    server.turn()
    assert server.answers(OTHER) == {behind: 10}


def test_results_do_not_fail_for_their_size_because_procedures_are_replaced(tmp_path: Path) -> None:
    server = OneServer(SCHEMA, [*PROCEDURES, letters], tmp_path)
    running.append(server)
    for _ in range(100):
        server.call(ONE, "letters", 1, MAX_RESULT_BYTES - 16)
    server.say(SUPERVISOR_AT, SwitchLoad(7))
    while not server.sockets.sent.get(SUPERVISOR_AT):
        server.turn()
    assert {len(answer) for answer in server.answers(ONE).values()} == {MAX_RESULT_BYTES - 16}


def test_replies_that_one_flush_lets_go_leave_in_one_frame_a_client(server: OneServer) -> None:
    server.order(read(1, 1))
    server.turn()
    numbers = []
    for _ in range(100):
        numbers.append(server.call(ONE, "get", 1))
        server.turn()
    assert server.heard(ONE, Replies) == []
    server.order(Release(1))
    server.turn()
    (replies,) = server.heard(ONE, Replies)
    assert [number for group in replies.groups for number in group.numbers] == numbers
