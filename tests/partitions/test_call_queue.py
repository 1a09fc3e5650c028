"""Whose calls are in the next batch."""

from __future__ import annotations

from msgspec import Raw

from partitions.call_queue import BATCH_BYTES, BATCH_S, CALL_COST_BYTES, CallQueue
from voltpy.messages import CallGroup
from voltpy.row import encode
from voltpy.wire import joined

FLOODER, OTHER, LONE = 1, 2, 3


def group_of(client_id: int, numbers: list[int]) -> CallGroup:
    args = joined([encode([number]) for number in numbers])
    return CallGroup(client_id, "fetch", 0, 5, numbers, [0] * len(numbers), args)


def test_a_client_that_comes_last_and_wants_little_goes_first() -> None:
    queue = CallQueue[str]()
    for number in range(4):
        queue.add(FLOODER, "put", f"flood {number}", 512, 0)
        queue.add(OTHER, "put", f"other {number}", 512, 0)
    assert list(queue.take(1024 * CALL_COST_BYTES)) == ["flood 0", "other 0"]
    queue.add(LONE, "put", "lone", 1, 0)
    assert list(queue.take(513 * CALL_COST_BYTES)) == ["lone", "flood 1"]
    queue.add(LONE, "put", "lone again", 1, 0)
    assert list(queue.take(513 * CALL_COST_BYTES)) == ["other 1", "lone again"]  # its turn was due
    assert (queue.calls, bool(queue)) == (4 * 512, True)
    assert list(queue.take(float("inf"))) == ["flood 2", "other 2", "flood 3", "other 3"]
    assert (queue.calls, queue.held_bytes, bool(queue)) == (0, 0, False)


def test_large_arguments_cost_as_much_as_many_calls() -> None:
    queue = CallQueue[str]()
    for number in range(3):
        queue.add(FLOODER, "put", f"large {number}", 1, 1 << 20)
        queue.add(OTHER, "put", f"many {number}", 128, 0)
    assert queue.held_bytes == 3 << 20
    assert list(queue.take(2 << 20)) == ["large 0", "many 0", "many 1"]
    assert queue.held_bytes == 2 << 20
    assert list(queue.take(1)) == ["many 2"]


def test_whose_results_were_large_has_fewer_calls_in_a_batch() -> None:
    queue = CallQueue[int]()
    group = group_of(FLOODER, list(range(8)))
    assert queue.pieces(group, 2 << 20) == [group]
    queue.ran(group, 8 << 20, 0.0)
    pieces = queue.pieces(group, 2 << 20)
    assert [piece.numbers for piece in pieces] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [bytes(piece.args) for piece in pieces] == [bytes(group_of(FLOODER, piece.numbers).args) for piece in pieces]
    assert queue.pieces(group_of(OTHER, [1]), 1) == [group_of(OTHER, [1])]
    for piece in pieces:
        queue.add(FLOODER, "fetch", piece.numbers[0], 2, 0)
    assert list(queue.take(4 << 20)) == [0, 2]
    # Results that are small again are believed in the end.
    while queue.heavy_bytes:
        queue.ran(group, 0, 0.0)
    queue.add(FLOODER, "fetch", 8, 8, 0)
    assert list(queue.take(4 << 20)) == [4, 6]
    assert queue.pieces(group, 2 << 20) == [group]


def test_whose_calls_ran_for_long_has_fewer_in_a_batch() -> None:
    queue = CallQueue[int]()
    group = group_of(FLOODER, list(range(8)))
    queue.ran(group, 0, BATCH_S)
    assert queue.pieces(group, BATCH_BYTES // 4) == [group]  # as long as a batch may run
    queue.ran(group, 0, 8 * BATCH_S)
    pieces = queue.pieces(group, BATCH_BYTES // 4)
    assert [piece.numbers for piece in pieces] == [[number] for number in range(8)]
    queue.ran(pieces[0], 0, BATCH_S)  # one at a time they are as slow
    assert len(queue.pieces(group, BATCH_BYTES // 4)) == 8
    for piece in pieces:
        queue.add(FLOODER, "fetch", piece.numbers[0], 1, 0)
    assert list(queue.take(BATCH_BYTES)) == [0]
    while queue.heavy_bytes:
        queue.ran(group, 0, 0.0)
    assert queue.pieces(group, BATCH_BYTES // 4) == [group]


def test_a_group_that_does_not_split_stays_as_it_is() -> None:
    queue = CallQueue[int]()
    group = group_of(FLOODER, [1, 2, 3])
    queue.ran(group, 3 << 20, 0.0)
    group.args = Raw(b"\x92\xc0\xc0")
    assert queue.pieces(group, 1 << 20) == [group]


def test_a_client_gains_nothing_by_an_empty_queue() -> None:
    """It has more calls each time the others' are just being run."""
    queue = CallQueue[str]()
    queue.add(OTHER, "put", "first", 128, 0)
    queue.add(OTHER, "put", "second", 128, 0)
    queue.add(FLOODER, "put", "large", 512, 0)
    assert list(queue.take(129 * CALL_COST_BYTES)) == ["first", "large"]
    queue.add(FLOODER, "put", "large again", 512, 0)
    assert list(queue.take(1)) == ["second"]
    assert list(queue.take(1)) == ["large again"]


def test_what_is_not_run_any_more_has_not_been_taken() -> None:
    """A batch that ends early leaves the rest where it was, at its cost, in its turn."""
    queue = CallQueue[str]()
    for number in range(3):
        queue.add(FLOODER, "put", f"flood {number}", 512, 5)
    queue.add(OTHER, "put", "other", 2, 7)
    batch = queue.take(float("inf"))
    assert next(batch) == "flood 0"
    del batch
    assert (queue.calls, queue.held_bytes, queue.has(OTHER)) == (1026, 17, True)
    queue.add(LONE, "put", "lone", 1, 0)
    assert list(queue.take(516 * CALL_COST_BYTES)) == ["other", "lone", "flood 1", "flood 2"]
    assert (queue.calls, queue.held_bytes, bool(queue)) == (0, 0, False)
