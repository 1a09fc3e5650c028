"""Workloads: their calls come from a seed, and their verification notices what was lost, made up or changed."""

import pytest

from bench.experiment import lines_of
from bench.workload import BenchError, CallStream, batches
from bench.workloads import increment, kv, smallbank, voter

LINES = {
    f"{line.workload}/{line.name}": line for workload in ("all", "transfer", "tpcc") for line in lines_of(workload, 2)
}


@pytest.mark.parametrize("name", LINES)
def test_the_same_seed_makes_the_same_calls(name):
    line = LINES[name]
    calls = line.calls(7, 300)
    assert len(calls) == 300
    assert line.calls(7, 300) == calls
    assert line.calls(8, 300) != calls
    assert {procedure for procedure, _ in calls} <= set(line.procedures)


def test_a_stream_that_cycles_never_ends():
    stream = CallStream([("a", (1,)), ("a", (2,)), ("a", (3,))], cycles=True)
    assert [args[0] for _ in range(4) for _, args in stream.take(2)] == [1, 2, 3, 1, 2, 3]


def test_a_stream_that_does_not_cycle_ends_with_nothing():
    stream = CallStream([("a", (1,)), ("a", (2,)), ("a", (3,))], cycles=False)
    assert [len(stream.take(2)) for _ in range(4)] == [2, 1, 0, 0]


def test_batches_keep_order_and_leave_nothing_out():
    assert list(batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_votes_that_are_not_in_the_table_are_noticed():
    calls = voter.calls(1, 3)
    voter.verify(calls, [0, b"0", 2], 2)
    with pytest.raises(BenchError, match="votes"):
        voter.verify(calls, [0, 0, 2], 1)
    with pytest.raises(BenchError, match="answers"):
        voter.verify(calls, [0, 0], 2)


def test_values_that_nobody_put_are_noticed():
    calls = kv.puts(1, 50)
    state = dict(kv.FIRST_ROWS) | {name: value for _, (name, value) in calls}
    kv.verify_puts(calls, [None] * 50, state)
    with pytest.raises(BenchError, match="key"):
        kv.verify_puts(calls, [None] * 50, state | {calls[-1][1][0]: "made up"})
    with pytest.raises(BenchError, match="key"):
        kv.verify_puts(calls, [None] * 50, dict(kv.FIRST_ROWS))


def test_a_wrong_value_among_the_answers_is_noticed():
    calls = kv.gets(1, 50)
    first = dict(kv.FIRST_ROWS)
    answers = [first[args[0]] for _, args in calls]
    kv.verify_gets(calls, answers, first)
    with pytest.raises(BenchError, match="answered"):
        kv.verify_gets(calls, [*answers[:-1], kv.value(99)], first)
    with pytest.raises(BenchError, match="length"):
        kv.verify_gets(calls, [*answers[:-1], "short"], first)


def test_an_increment_that_was_lost_is_noticed():
    with pytest.raises(BenchError, match="sum"):
        increment.verify(increment.calls(1, 5), [1, 1, 2, 1, 1], 4)


def test_money_that_was_lost_is_noticed():
    calls = smallbank.calls(1, 100)
    moved = sum(smallbank.MOVED[name] * args[-1] for name, args in calls if name != "balance")
    total = 2 * smallbank.OPENING_BALANCE * smallbank.CUSTOMERS + moved
    smallbank.verify(calls, [1] * 100, total)
    with pytest.raises(BenchError, match="money"):
        smallbank.verify(calls, [1] * 100, total - 1)


def test_kv_values_have_the_size_that_the_line_promises():
    assert {len(value) for _, value in kv.FIRST_ROWS} == {kv.VALUE_BYTES}
