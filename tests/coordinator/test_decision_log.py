"""What the decision log holds after restarts, torn tails, and when it forgets."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec import Raw

from coordinator.decision_log import Decision, DecisionLog
from voltpy.errors import ClusterError, Corruption
from voltpy.messages import BATCH_BITS, ReplyGroup
from voltpy.record_log import RecordLog
from voltpy.row import encode
from voltpy.wire import joined

LANE = 2


def decision(epoch: int, count: int, size: int = 1) -> Decision:
    outcomes = [ReplyGroup(7, [count], joined([encode("x" * size)]))]
    return Decision(epoch << BATCH_BITS | count, [0, 1], Raw(encode(outcomes)))


def opened(directory: Path, **options: int) -> tuple[DecisionLog, list[Decision], int]:
    with ExitStack() as unless_opened:
        log = DecisionLog.open(directory, LANE, **options)
        unless_opened.callback(log.abandon)
        decisions, epoch = log.replay(), log.begin()
        unless_opened.pop_all()
    return log, decisions, epoch


def test_decisions_are_there_after_a_crash_and_the_epoch_is_raised(tmp_path: Path) -> None:
    log, decisions, epoch = opened(tmp_path / "c")
    assert (decisions, epoch, log.reaches) == ([], 1, 0)
    written = [decision(1, count) for count in (1, 2, 5)]
    for each in written:
        log.write(each)
    log.abandon()
    log, decisions, epoch = opened(tmp_path / "c")
    assert (decisions, epoch, log.reaches) == (written, 2, 0)
    log.write(decision(2, 1))
    log.close()
    log, decisions, epoch = opened(tmp_path / "c")
    assert (decisions, epoch) == ([*written, decision(2, 1)], 3)
    log.abandon()


def test_a_torn_tail_is_no_decision(tmp_path: Path) -> None:
    log, _, _ = opened(tmp_path / "c")
    log.write(decision(1, 1))
    log.write(decision(1, 2))
    log.abandon()
    (segment,) = (tmp_path / "c").glob("decisions-*.log")
    data = segment.read_bytes()
    at = data.rindex(encode(decision(1, 2).batch))
    segment.write_bytes(data[: at + 3] + bytes(len(data) - at - 3))
    log, decisions, epoch = opened(tmp_path / "c")
    assert (decisions, epoch) == ([decision(1, 1)], 2)
    log.abandon()


def test_damage_in_front_of_a_flushed_decision_is_refused(tmp_path: Path) -> None:
    log, _, _ = opened(tmp_path / "c")
    for count in (1, 2, 3):
        log.write(decision(1, count))
    log.abandon()
    (segment,) = (tmp_path / "c").glob("decisions-*.log")
    data = bytearray(segment.read_bytes())
    data[data.index(encode(decision(1, 1).batch)) + 2] ^= 1
    segment.write_bytes(data)
    log = DecisionLog.open(tmp_path / "c", LANE)
    with pytest.raises(Corruption):
        log.replay()
    log.abandon()


@pytest.mark.parametrize(
    "payload",
    [
        b"\x93\x01",
        encode([1, [0], []]),
        encode([1, [0], None, 0]),
        encode([1, [0], [[1]], 0]),
        encode([1, ["0"], [], 0]),
        encode([1, [0], [], 0, 0]),
    ],
)
def test_a_record_that_is_no_decision_is_refused(tmp_path: Path, payload: bytes) -> None:
    log = RecordLog.open(tmp_path / "c", "decisions", LANE)
    log.begin()
    log.append(payload)
    log.close()
    with pytest.raises(Corruption):
        opened(tmp_path / "c")


def test_decisions_must_be_about_later_and_later_batches(tmp_path: Path) -> None:
    log, _, _ = opened(tmp_path / "c")
    log.write(decision(1, 2))
    log.write(decision(1, 1))
    log.abandon()
    with pytest.raises(Corruption, match="after"):
        opened(tmp_path / "c")


def test_a_decision_of_a_later_epoch_than_the_log_s_is_refused(tmp_path: Path) -> None:
    log, _, _ = opened(tmp_path / "c")
    log.write(decision(9, 2))
    log.abandon()
    log = DecisionLog.open(tmp_path / "c", LANE)
    log.replay()
    with pytest.raises(Corruption, match="before epoch"):
        log.begin()
    log.abandon()


def test_two_processes_can_t_have_it(tmp_path: Path) -> None:
    log, _, _ = opened(tmp_path / "c")
    with pytest.raises(ClusterError, match="in use"):
        DecisionLog.open(tmp_path / "c", LANE)
    log.close()


def test_what_is_acknowledged_and_older_than_the_window_is_forgotten_by_segments(tmp_path: Path) -> None:
    sizes = {"segment_bytes": 4096, "window_bytes": 8192}
    log, _, _ = opened(tmp_path / "c", **sizes)
    for count in range(1, 41):
        log.write(decision(1, count, 1000))
        if count != 3:
            log.acknowledged(decision(1, count).batch)
    assert (tmp_path / "c" / "decisions-0000000000000001.log").exists()  # the third is in it
    log.acknowledged(decision(1, 3).batch)
    log.write(decision(1, 41, 1000))
    log.abandon()
    assert not (tmp_path / "c" / "decisions-0000000000000001.log").exists()
    log, decisions, _ = opened(tmp_path / "c", **sizes)
    counts = [each.batch & ((1 << BATCH_BITS) - 1) for each in decisions]
    assert counts == list(range(counts[0], 42))
    assert 8 <= len(counts) < 16
    assert log.reaches == decisions[0].batch - 1
    log.abandon()


def test_decisions_that_nobody_forgot_are_missed(tmp_path: Path) -> None:
    log, _, _ = opened(tmp_path / "c", segment_bytes=4096)
    for count in range(1, 20):
        log.write(decision(1, count, 1000))
    log.abandon()
    (tmp_path / "c" / "decisions-0000000000000001.log").unlink()
    with pytest.raises(Corruption, match="are missing"):
        opened(tmp_path / "c")
