"""What becomes of calls: every way to end, misses and reruns, retries, batches that find no room."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import voltpy.errors as errors
from partitions.executor import MAX_RESULT_BYTES
from partitions.page import PAGE_BYTES
from partitions.set_aside import CALLS_WAIT_FOR_LENT
from tests.partitions.one_partition import CLIENT, ORIGIN, Clock, OnePartition
from voltpy.answers import Answers
from voltpy.errors import (
    Aborted,
    BadArguments,
    ConstraintViolation,
    DuplicateKey,
    Error,
    Indeterminate,
    Overloaded,
    ProcedureError,
    ProcedureTimeout,
    ProtocolError,
    ReadOnly,
    SchemaError,
    UnknownProcedure,
    WrongPartition,
)
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.messages import ELSEWHERE, CallGroup, EverywhereCall
from voltpy.procedure import procedure
from voltpy.registry import from_functions
from voltpy.sql.ddl import parse_schema
from voltpy.timeout import Interruption
from voltpy.wire import encode as encode_message

SCHEMA = parse_schema(
    """
    CREATE TABLE items (id INT PRIMARY KEY, n INT NOT NULL DEFAULT 0, text STRING);
    PARTITION TABLE items ON COLUMN id;
    CREATE TABLE notes (owner INT NOT NULL, text STRING);
    PARTITION TABLE notes ON COLUMN owner;
    CREATE TABLE rates (code STRING PRIMARY KEY, rate FLOAT);
    """
)
ITEMS = 0

runs: list[Any] = []  # what procedures want the test to see


@procedure(partition_by="key")
def put(tx: Any, key: int, n: int) -> Any:
    return tx.items.upsert(key, n).n


@procedure(partition_by="key")
def add(tx: Any, key: int, n: int) -> Any:
    row = tx.items.get(key)
    if row is None:
        tx.abort(f"no item {key}")
    return tx.items.update(key, n=row.n + n).n


@procedure(partition_by="key")
def get(tx: Any, key: int) -> Any:
    row = tx.items.get(key)
    return None if row is None else row.n


@procedure(partition_by="key")
def insert_once(tx: Any, key: int) -> Any:
    """Says what it found, and writes only where there was nothing."""
    if tx.items.get(key) is not None:
        return "there"
    tx.items.insert(key)
    return "new"


@procedure(partition_by="key")
def delete_one(tx: Any, key: int) -> Any:
    return tx.items.delete(key)


@procedure(partition_by="key")
def insert(tx: Any, key: int) -> Any:
    tx.items.insert(key)


@procedure(partition_by="key", read_only=True)
def write_in_read_only(tx: Any, key: int, how: str) -> Any:
    getattr(tx.items, how)(key)


@procedure(partition_by="key")
def write_then(tx: Any, key: int, how: str) -> Any:
    """Changes rows in every way there is, and then ends as it was told."""
    tx.items.upsert(key, 100)
    tx.items.upsert(key + 1, 101, "x" * 10_000)
    tx.items.delete(key + 2)
    tx.notes.insert(key, "note")
    return ENDINGS[how](tx)


class BrokenText(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class WritingText(Exception):
    def __init__(self, tx: Any) -> None:
        self.tx = tx

    def __str__(self) -> str:
        self.tx.items.upsert(999, 999)
        return "I wrote"


class BrokenAbort(Aborted):
    def __str__(self) -> str:
        raise KeyError("no text")


class Overloaded_(Aborted):  # noqa: N801 takes the name of one of ours below
    pass


Overloaded_.__name__ = "Overloaded"


def raising(error: Any) -> Callable[[Any], Any]:
    def end(tx: Any) -> Any:
        raise error

    return end


def raising_writer(tx: Any) -> Any:
    raise WritingText(tx)


def endless(tx: Any) -> Any:
    return endless(tx)


def cyclic(tx: Any) -> Any:
    result: list[Any] = []
    result.append(result)
    return result


ENDINGS: dict[str, Callable[[Any], Any]] = {
    "abort": lambda tx: tx.abort("no"),
    "abort without reason": lambda tx: tx.abort(),
    "abort with what is no text": lambda tx: tx.abort(5),
    "abort with a surrogate": lambda tx: tx.abort("\ud800"),
    "abort at length": lambda tx: tx.abort("é" * 100_000),
    "abort brokenly": raising(BrokenAbort()),
    "abort under our name": raising(Overloaded_("claims that it never ran")),
    "raise": raising(ValueError("bad value")),
    "raise our root": raising(Error("mine")),
    "raise unavailable": raising(errors.Unavailable("claims that it never ran")),
    "raise with a surrogate": raising(ValueError("\udcff")),
    "raise at length": raising(ValueError("x" * 1_000_000)),
    "raise brokenly": raising(BrokenText()),
    "raise and write": raising_writer,
    "raise a group": raising(ExceptionGroup("several", [ValueError("one"), KeyError("two")])),
    "exit": raising(SystemExit(1)),
    "ctrl-c": raising(KeyboardInterrupt()),
    "generator exit": raising(GeneratorExit()),
    "stop": raising(StopIteration("s")),
    "out of memory": raising(MemoryError()),
    "recursion": endless,
    "duplicate": lambda tx: tx.items.insert(1),
    "constraint": lambda tx: tx.items.update(1, n="one"),
    "unknown table": lambda tx: tx.nothing.get(1),
    "unknown column": lambda tx: tx.items.update(1, nope=2),
    "absent row": lambda tx: tx.items.update(12345, n=2),
    "an object": lambda tx: object(),
    "a function": lambda tx: print,
    "a generator": lambda tx: tx.items.scan(),
    "text that is none": lambda tx: "\ud800",
    "a huge number": lambda tx: 1 << 64,
    "a cycle": cyclic,
    "a huge result": lambda tx: "x" * (MAX_RESULT_BYTES + 1),
    "set an attribute": lambda tx: setattr(tx, "items", None),
    "set a new attribute": lambda tx: setattr(tx, "memory", 1),
    "change a row": lambda tx: setattr(tx.items.get(1), "n", 7),
}


@procedure(partition_by="key")
def swallow(tx: Any, key: int, other: int, then: str) -> Any:
    """Touches a key and goes on, whatever that raised."""
    runs.append(("swallow", then))
    tx.items.upsert(key, 50)
    with contextlib.suppress(BaseException):
        tx.items.get(other)
    if then == "abort":
        tx.abort("swallowed")
    if then == "raise":
        raise ValueError("swallowed")
    tx.items.upsert(key + 1, 51)
    return "done"


@procedure(partition_by="key")
def generated(tx: Any, key: int, other: int) -> Any:
    """Everything that is generated, then a touch of the other key."""
    values = [
        tx.now().isoformat(), tx.random.random(), tx.random.randrange(1000), str(tx.uuid()), tx.unique_id(),
        tx.unique_id(),
    ]  # fmt: skip
    runs.append(values)
    row = tx.items.get(other)
    later = [tx.now().isoformat(), tx.random.random(), tx.unique_id()]
    tx.items.upsert(key, 1, repr(values + later))
    return [values + later, None if row is None else row.n]


@procedure(partition_by="key")
def consume(tx: Any, key: int, keys: list[int]) -> Any:
    total = 0
    runs.append(list(keys))
    while keys:
        total += tx.items.get(keys.pop(0)).n
    tx.items.upsert(key, total)
    return total


@procedure(partition_by="key")
def touch_all(tx: Any, key: int, keys: list[int]) -> Any:
    """Misses as many of the keys as are away, in one run."""
    runs.append("touch_all")
    found = []
    for each in keys:
        with contextlib.suppress(BaseException):
            found.append(tx.items.get(each).n)
    return found


@procedure(partition_by="key", read_only=True)
def look(tx: Any, key: int, how: str) -> Any:
    runs.append(how)
    items = tx.items
    looks: dict[str, Callable[[], Any]] = {
        "scan": lambda: sorted(row.id for row in items.scan()),
        "where": lambda: sorted(row.id for row in items.where(n=1)),
        "range": lambda: [row.id for row in items.range(0, 100)],
        "count": lambda: items.count(),
    }
    return looks[how]()


@procedure(partition_by="key")
def note(tx: Any, key: int, text: str) -> Any:
    runs.append(tx.notes.insert(key, text).rowid)


@procedure(partition_by="key")
def size(tx: Any, key: int, length: int) -> Any:
    return "x" * length


@procedure(partition_by="key")
def put_and_size(tx: Any, key: int, length: int) -> Any:
    tx.items.upsert(key, 0)
    return "x" * length


@procedure(everywhere=True)
def set_rate(tx: Any, code: str, rate: float) -> Any:
    tx.rates.upsert(code, rate)
    return [tx.now().isoformat(), tx.random.random(), str(tx.uuid()), tx.unique_id(), tx.unique_id()]


@procedure(everywhere=True)
def rate_with_item(tx: Any, code: str, key: int) -> Any:
    row = tx.items.get(key)
    tx.rates.upsert(code, float(row.n) if row is not None else None)
    return [tx.now().isoformat(), tx.unique_id()]


@procedure(everywhere=True, read_only=True)
def rate_of(tx: Any, code: str) -> Any:
    row = tx.rates.get(code)
    return None if row is None else row.rate


PROCEDURES: list[Callable[..., Any]] = [
    put, insert_once, delete_one, add, get, insert, write_in_read_only, write_then, swallow, generated,
    consume, touch_all, look, note, size, put_and_size, set_rate, rate_with_item, rate_of,
]  # fmt: skip


@pytest.fixture
def partition() -> OnePartition:
    runs.clear()
    return OnePartition(SCHEMA, PROCEDURES)


def contents(partition: OnePartition) -> Any:
    return {table.name: sorted(map(repr, table.scan())) for table in partition.store.tables}


# ---------------------------------------------------------------------------------------------------- endings


def test_a_result_comes_back_and_changes_stay(partition: OnePartition) -> None:
    assert partition.call("put", 1, 5) == 5
    assert partition.call("add", 1, 2) == 7
    assert partition.call("get", 1) == 7
    assert partition.call("get", 2) is None
    partition.store.check()
    assert partition.executor.counts["returned"] == 4


@pytest.mark.parametrize("how", ENDINGS)
def test_whatever_a_call_ends_with_nothing_of_it_remains(how: str, partition: OnePartition) -> None:
    for key in (1, 2, 3, 12):
        partition.call("put", key, key)
    before = contents(partition)
    number = partition.run("write_then", 10, how)
    partition.run("add", 1, 1)
    partition.seal()
    answer = partition.answers[number]
    assert isinstance(answer, Error), answer
    encode_message(msgspec.convert([7, number, "Aborted", str(answer)], errors_as_sent()))  # it can travel
    assert partition.answers[number + 1] == 2  # the next call is not touched by it
    partition.call("put", 1, 1)
    assert contents(partition) == before
    partition.store.check()
    assert not partition.executor.has_ready
    assert partition.executor.waiting == 0


def errors_as_sent() -> Any:
    from voltpy.messages import CallError

    return CallError


EXPECTED: dict[str, tuple[type[Error], str]] = {
    "abort": (Aborted, "no"),
    "abort without reason": (Aborted, "aborted"),
    "abort with what is no text": (Aborted, "5"),
    "abort with a surrogate": (Aborted, r"\\ud800"),
    "abort brokenly": (Aborted, "its __str__ raised KeyError"),
    "abort under our name": (Aborted, "claims that it never ran"),
    "raise": (ProcedureError, "^write_then: ValueError: bad value$"),
    "raise our root": (ProcedureError, "Error: mine"),
    "raise unavailable": (ProcedureError, "Unavailable: claims"),
    "raise with a surrogate": (ProcedureError, r"ValueError: \\udcff"),
    "raise brokenly": (ProcedureError, "BrokenText: .its __str__ raised SystemExit."),
    "raise and write": (ProcedureError, "WritingText: I wrote"),
    "exit": (ProcedureError, "SystemExit: 1"),
    "ctrl-c": (ProcedureError, "^write_then: KeyboardInterrupt$"),
    "recursion": (ProcedureError, "RecursionError"),
    "duplicate": (DuplicateKey, "table items: a row with key 1 exists"),
    "constraint": (ConstraintViolation, "table items, column n"),
    "unknown table": (ProcedureError, "AttributeError: tx has no table or method 'nothing'"),
    "absent row": (ProcedureError, "KeyError: .*table items has no row with key 12345"),
    "an object": (ProcedureError, "^write_then: the result can't be sent: an object$"),
    "a generator": (ProcedureError, "^write_then: the result can't be sent: a generator; return a list$"),
    "a huge number": (ProcedureError, "the result can't be sent: can't serialize ints"),
    "a huge result": (ConstraintViolation, "a result of 1,048,582 bytes"),
    "set an attribute": (ProcedureError, "AttributeError: tx.items can't be set"),
}


@pytest.mark.parametrize("how", EXPECTED)
def test_the_caller_is_told_what_happened(how: str, partition: OnePartition) -> None:
    partition.call("put", 1, 1)
    error, text = EXPECTED[how]
    with pytest.raises(error, match=text) as raised:
        partition.call("write_then", 10, how)
    assert type(raised.value) is error


def test_a_procedure_error_carries_type_message_and_the_users_own_lines(partition: OnePartition) -> None:
    with pytest.raises(ProcedureError) as raised:
        partition.call("write_then", 10, "raise")
    assert raised.value.type_name == "ValueError"
    text = raised.value.traceback_text
    assert text.startswith("Traceback (most recent call last)")
    assert "return ENDINGS[how](tx)" in text
    assert "_run_each" not in text
    assert text.rstrip().endswith("ValueError: bad value")


@pytest.mark.parametrize("how", ["abort at length", "raise at length", "recursion", "raise a group"])
def test_what_an_error_says_is_bounded(how: str, partition: OnePartition) -> None:
    with pytest.raises(Error) as raised:
        partition.call("write_then", 10, how)
    assert len(str(raised.value)) < 2100
    assert len(getattr(raised.value, "traceback_text", "")) < 8100


@pytest.mark.parametrize("how", ["insert", "upsert", "update", "delete"])
def test_a_read_only_procedure_cannot_write(how: str, partition: OnePartition) -> None:
    with pytest.raises(SchemaError, match="table items: the procedure is declared read_only"):
        partition.call("write_in_read_only", 1, how)


def test_in_a_group_each_call_has_its_own_ending(partition: OnePartition) -> None:
    numbers = partition.run_group("add", [(1, 1)])
    numbers += partition.run_group("put", [(1, 1), (2, 2)])
    numbers += partition.run_group("add", [(9, 1), (1, 1), (8, 1), (2, 1), (7, 1)])
    partition.seal()
    answers = [partition.answers[number] for number in numbers]
    assert [str(a) if isinstance(a, Error) else a for a in answers] == [
        "no item 1", 1, 2, "no item 9", 2, "no item 8", 3, "no item 7",
    ]  # fmt: skip


def test_arguments_that_do_not_fit_fail_only_their_own_call(partition: OnePartition) -> None:
    numbers = partition.run_group("put", [(1, 1), ("one", 1), (2, None), (3, 3), (4,), (5, 5, 5)])
    partition.seal()
    answers = [partition.answers[number] for number in numbers]
    assert [type(answer) for answer in answers] == [int, BadArguments, BadArguments, int, BadArguments, BadArguments]
    assert '"key"' in str(answers[1])
    assert sorted(partition.rows("items")) == [1, 3]


@pytest.mark.parametrize(
    "args", [b"\x90", b"\x91\x92\x01\x01", b"\xc0", b"\x92\x92\x01\x01", b"\xdd\xff\xff\xff\xff", b"\x91" * 3000]
)
def test_argument_lists_that_are_not_one_a_call_are_refused(args: bytes, partition: OnePartition) -> None:
    group = CallGroup(CLIENT, "put", 0, 1, [1, 2], [0, 0], msgspec.Raw(args))
    for floor in (-1, 0):
        group.retry_floor = floor
        partition.executor.run(ORIGIN, group)
        partition.seal()
        assert [type(partition.answers.pop(number)) for number in (1, 2)] == [ProtocolError, ProtocolError]


def test_a_number_that_occurs_twice_does_not_mix_up_results(partition: OnePartition) -> None:
    partition.call("put", 1, 1)
    partition.run_group("add", [(9, 1), (1, 1), (1, 1), (1, 1)], [5, 5, 6, 7])
    _, outcomes = partition.executor.seal()
    assert [group.numbers for group in outcomes] == [[5, 6, 7]]
    assert msgspec.msgpack.decode(outcomes[0].results) == [2, 3, 4]
    partition.seal()
    assert partition.call("get", 1, number=6, floor=0) == 3


def test_unknown_and_wrongly_called_procedures(partition: OnePartition) -> None:
    with pytest.raises(UnknownProcedure, match=r"^there is no procedure nope; did you mean note\?$"):
        partition.call("nope", 1)
    with pytest.raises(UnknownProcedure, match="set_rate is declared everywhere=True: use call_everywhere"):
        partition.call("set_rate", "EUR", 1.0)
    with pytest.raises(UnknownProcedure, match="get is not declared everywhere=True: call it with its key"):
        partition.call_everywhere("get", 1)
    with pytest.raises(BadArguments, match="code"):
        partition.call_everywhere("set_rate", 1, 1.0)
    for now_us in (1 << 62, -(1 << 62), 1 << 200):
        with pytest.raises(ProtocolError, match="are no time"):
            partition.call_everywhere("set_rate", "EUR", 1.0, now_us=now_us)


def test_a_key_of_another_partition_undoes_the_call() -> None:
    partition = OnePartition(SCHEMA, PROCEDURES, partitions=2)
    owners = slot_owners(2)
    there = next(key for key in range(100) if owners[hash_slot(key)] == 1)
    here = next(key for key in range(100) if owners[hash_slot(key)] == 0)
    for name in ("get", "put"):
        with pytest.raises(WrongPartition, match=f"key {there} .* does not live in partition 0"):
            partition.call(name, there, *([] if name == "get" else [1]))
    with pytest.raises(WrongPartition):
        partition.call("swallow", there, here, "return")
    assert contents(partition) == {"items": [], "notes": [], "rates": []}


def test_calls_whose_large_results_find_no_room_are_undone_and_may_be_retried(partition: OnePartition) -> None:
    numbers = partition.run_group("size", [(1, 1_000_000)] * 70)
    partition.seal()
    answers = [partition.answers[number] for number in numbers]
    given = [answer for answer in answers if isinstance(answer, str)]
    assert len(given) == 67
    assert all(isinstance(answer, Overloaded) for answer in answers if not isinstance(answer, str))
    assert partition.call("size", 1, 1_000_000) == "x" * 1_000_000  # the next batch may again
    numbers = partition.run_group("put_and_size", [(key, 1_000_000) for key in range(70)])
    partition.seal()
    answers = [partition.answers[number] for number in numbers]
    assert [row.id for row in partition.table("items").scan()] == [
        key for key, answer in enumerate(answers) if isinstance(answer, str)
    ]
    assert isinstance(answers[69], Overloaded)
    assert "retry later" in str(answers[69])
    assert partition.call("put_and_size", 69, 1_000_000) == "x" * 1_000_000


# ---------------------------------------------------------------------------------------------------- everywhere


def test_directed_calls_generate_the_same_values_in_every_partition() -> None:
    partitions = [OnePartition(SCHEMA, PROCEDURES, partition=i, partitions=3) for i in range(3)]
    partitions[1].call("generated", *of(1, 3))  # what went before must not matter
    values = [p.call_joint(5, "set_rate", "EUR", 1.5, number=77, now_us=1_700_000_000_123_456) for p in partitions]
    assert values[0] == values[1] == values[2]
    assert values[0][0] == "2023-11-14T22:13:20.123456+00:00"
    assert values[0][3] != values[0][4]
    assert min(values[0][3:]) >= 1 << 62
    assert [p.call_everywhere("rate_of", "EUR") for p in partitions] == [1.5] * 3
    other = [p.call_joint(6, "set_rate", "EUR", 2.5, number=78, now_us=1_700_000_000_123_456) for p in partitions]
    assert other[0] == other[1] != values[0]


def of(partition: int, partitions: int) -> tuple[int, int]:
    owners = slot_owners(partitions)
    keys = (key for key in range(10_000) if owners[hash_slot(key)] == partition)
    return next(keys), next(keys)


def test_a_call_between_directed_ones_has_its_own_time(partition: OnePartition) -> None:
    partition.run_everywhere("set_rate", "EUR", 1.0, now_us=0)
    number = partition.run("generated", 1, 2)
    partition.seal()
    assert partition.answer(number)[0][0].startswith("2024-")
    assert partition.answer(number - 1)[0].startswith("1970-")


def test_unique_ids_are_unique_over_partitions_epochs_and_calls(tmp_path: Path) -> None:
    seen: list[int] = []
    for index in range(2):
        for _ in range(2):
            partition = OnePartition(SCHEMA, PROCEDURES, tmp_path / str(index), partition=index, partitions=2)
            for _ in range(3):
                values = partition.call("generated", *of(index, 2))[0]
                seen += [values[4], values[5], values[8]]
            partition.checkpointer.close()
            partition.wal.abandon()  # type: ignore[union-attr]  # there is one
    assert len(set(seen)) == len(seen) == 36
    assert all(0 < value < 1 << 63 for value in seen)


# ---------------------------------------------------------------------------------------------------- misses


def with_items(partition: OnePartition, *keys: int) -> None:
    for key in keys:
        partition.call("put", key, key)
    runs.clear()


def test_a_call_that_misses_a_key_is_set_aside_and_rerun(partition: OnePartition) -> None:
    with_items(partition, 1, 2)
    partition.table("items").send_all_away([2])
    first = partition.run("add", 2, 10)
    second = partition.run("add", 1, 10)
    partition.seal()
    assert partition.answers == {second: 11}  # others run meanwhile
    assert partition.executor.waiting == 1
    partition.arrive("items", 2)
    assert partition.executor.has_ready
    partition.run_ready()
    assert partition.answer(first) == 12
    assert partition.executor.waiting == 0
    assert partition.executor.counts == {
        "returned": 4,
        "raised": 0,
        "set_aside": 1,
        "timed_out": 0,
        "reruns": 1,
        "elsewhere": 0,
    }
    partition.store.check()


@pytest.mark.parametrize("then", ["return", "abort", "raise"])
def test_a_swallowed_miss_is_rerun_whatever_the_body_does_next(then: str, partition: OnePartition) -> None:
    """PROTOCOL rule 25."""
    with_items(partition, 1, 2, 3)
    partition.table("items").send_all_away([3])
    number = partition.run("swallow", 1, 3, then)
    partition.seal()
    assert number not in partition.answers
    assert {key: row.n for key, row in rows_here(partition).items()} == {1: 1, 2: 2}
    partition.arrive("items", 3)
    partition.run_ready()
    assert runs == [("swallow", then)] * 2
    answer = partition.answers[number]
    if then == "return":
        assert answer == "done"
        assert partition.call("get", 1) == 50
    else:
        assert isinstance(answer, Aborted if then == "abort" else ProcedureError)
        assert partition.call("get", 1) == 1


def rows_here(partition: OnePartition) -> dict[int, Any]:
    table = partition.table("items")
    return {key: table.get(key) for key in (1, 2)}


def test_a_rerun_gets_the_same_generated_values(partition: OnePartition) -> None:
    with_items(partition, 2)
    partition.table("items").send_all_away([2])
    number = partition.run("generated", 1, 2)
    partition.run("generated", 5, 1)  # another call's values in between
    partition.seal()
    partition.call("generated", 5, 1)
    partition.arrive("items", 2)
    partition.run_ready()
    values, n = partition.answer(number)
    assert n == 2
    assert runs[0] == runs[3] == values[:6]
    assert values[6] == values[0]
    assert len(set(values[4:6] + values[8:])) == 3
    assert runs[0] != runs[1] != runs[2]


def test_a_rerun_of_a_directed_call_gets_the_routers_time(partition: OnePartition) -> None:
    with_items(partition, 2)
    other = OnePartition(SCHEMA, PROCEDURES)
    partition.table("items").send_all_away([2])
    number = partition.run_everywhere("rate_with_item", "EUR", 2, now_us=5_000_000)
    partition.seal()
    partition.arrive("items", 2)
    partition.run_ready()
    assert partition.answer(number) == other.call_everywhere(
        "rate_with_item", "EUR", 2, number=number, now_us=5_000_000
    )
    assert partition.call_everywhere("rate_of", "EUR") == 2.0


def test_mutable_arguments_are_fresh_in_the_rerun(partition: OnePartition) -> None:
    with_items(partition, 1, 2, 3)
    partition.table("items").send_all_away([3])
    number = partition.run("consume", 9, [1, 2, 3])
    partition.seal()
    partition.arrive("items", 3)
    partition.run_ready()
    assert partition.answer(number) == 6
    assert runs == [[1, 2, 3]] * 2


def test_calls_rerun_in_the_order_in_which_they_arrived(partition: OnePartition) -> None:
    with_items(partition, 1, 2, 3)
    for key in (1, 2, 3):
        partition.table("items").send_all_away([key])
    first = partition.run("consume", 9, [1, 2, 3])  # will miss one key after the other
    second = partition.run("add", 3, 10)
    third = partition.run("consume", 9, [3, 2])
    partition.seal()
    partition.arrive("items", 1)
    partition.run_ready()
    partition.arrive("items", 2)
    partition.run_ready()
    assert partition.answers == {}
    partition.arrive("items", 3)
    partition.run_ready()
    assert [partition.answer(number) for number in (first, second, third)] == [6, 13, 15]


def test_a_call_waits_for_all_the_keys_that_it_missed(partition: OnePartition) -> None:
    with_items(partition, 1, 2, 3)
    for key in (1, 2, 3):
        partition.table("items").send_all_away([key])
    number = partition.run("touch_all", 1, [1, 2, 3])
    partition.seal()
    for key in (2, 3):
        partition.arrive("items", key)
        assert not partition.executor.has_ready
    partition.arrive("items", 1)
    partition.run_ready()
    assert partition.answer(number) == [1, 2, 3]
    assert len(runs) == 2


def test_a_key_that_leaves_again_before_the_rerun_is_missed_again(partition: OnePartition) -> None:
    with_items(partition, 1)
    partition.table("items").send_all_away([1])
    number = partition.run("add", 1, 1)
    partition.seal()
    for _ in range(3):
        partition.arrive("items", 1)
        partition.table("items").send_all_away([1])
        partition.run_ready()
        assert number not in partition.answers
    partition.arrive("items", 1)
    partition.run_ready()
    assert partition.answer(number) == 2


@pytest.mark.parametrize(("how", "result"), [("scan", [1, 2]), ("where", [1]), ("range", [1, 2]), ("count", 2)])
def test_a_read_that_is_not_by_key_waits_until_the_whole_table_is_here(
    how: str, result: Any, partition: OnePartition
) -> None:
    with_items(partition, 1, 2)
    partition.table("items").send_all_away([2])
    partition.table("items").send_all_away([77])
    number = partition.run("look", 1, how)
    partition.seal()
    partition.arrive("items", 77)
    assert not partition.executor.has_ready
    partition.arrive("items", 2)
    partition.run_ready()
    assert partition.answer(number) == result
    assert runs == [how] * 2


def test_what_is_missed_is_bounded(partition: OnePartition) -> None:
    partition.table("items").send_all_away([1])
    numbers: list[int] = []
    for _ in range(3):
        numbers += partition.run_group("get", [(1,)] * 4096)
    partition.seal()
    assert partition.executor.waiting == partition.executor.waiting_for_lent == CALLS_WAIT_FOR_LENT
    assert isinstance(partition.answers[numbers[-1]], Overloaded)
    partition.arrive("items", 1)
    partition.run_ready()
    assert all(partition.answers[number] is None for number in numbers[:CALLS_WAIT_FOR_LENT])
    assert partition.executor.waiting == partition.executor.waiting_for_lent == 0


def test_a_call_set_aside_outlives_a_reload(partition: OnePartition) -> None:
    with_items(partition, 2)
    partition.table("items").send_all_away([2])
    number = partition.run("add", 2, 10)
    partition.seal()
    partition.executor.use(from_functions([get]))
    partition.arrive("items", 2)
    partition.run_ready()
    assert partition.answer(number) == 12
    with pytest.raises(UnknownProcedure):
        partition.call("add", 2, 10)


def test_a_reload_takes_effect_with_the_next_call(partition: OnePartition) -> None:
    def version_of(n: int) -> Any:
        @procedure(partition_by="key")
        def get(tx: Any, key: int) -> Any:
            return n

        return get

    for n in range(3):
        partition.executor.use(from_functions([version_of(n)], n + 1))
        assert partition.call("get", 1) == n
        assert partition.executor.registry.catalog_version == n + 1


def test_random_misses_change_no_result(partition: OnePartition) -> None:
    """Against a copy that never misses: calls on different keys commute, those on one key keep their order."""
    rng = random.Random(8)
    copy = OnePartition(SCHEMA, PROCEDURES)
    items = partition.table("items")
    with_items(partition, *range(6))
    with_items(copy, *range(6))
    away: set[int] = set()
    expected = {}
    for _ in range(300):
        what = rng.random()
        if what < 0.25:
            key = rng.randrange(6)
            if key not in away and not partition.executor.is_awaited((items.number, key)):
                items.send_all_away([key])
                away.add(key)
        elif what < 0.5 and away:
            key = rng.choice(sorted(away))
            away.discard(key)
            partition.arrive("items", key)
            partition.run_ready()
        else:
            key, n = rng.randrange(8), rng.randrange(10)
            number = partition.run("add", key, n)
            assert copy.run("add", key, n) == number
            expected[number] = key
            if rng.random() < 0.5:
                partition.seal()
                copy.seal()
    for key in sorted(away):
        partition.arrive("items", key)
        partition.run_ready()
    partition.seal()
    copy.seal()
    for number in expected:
        assert repr(partition.answers[number]) == repr(copy.answers[number])
    assert contents(partition) == contents(copy)
    assert partition.executor.counts["reruns"] > 20


# ---------------------------------------------------------------------------------------------------- retries


def test_a_retry_in_the_same_batch_answers_the_first_result(partition: OnePartition) -> None:
    number = partition.run("put", 1, 5)
    partition.run("add", 1, 1)
    partition.run("put", 1, 5, number=number, floor=0, origin=b"again")
    partition.seal()
    assert partition.answers[number] == 5
    assert partition.origins[number] == b"again"
    assert partition.call("get", 1) == 6


def test_a_retry_in_a_later_batch_answers_the_first_result(partition: OnePartition) -> None:
    partition.call("put", 1, 5)
    assert partition.call("add", 1, 1, number=50) == 6
    for _ in range(3):
        assert partition.call("add", 1, 1, number=50, floor=1) == 6
    assert partition.call("get", 1) == 6
    assert partition.call("add", 1, 1, number=50, client=8) == 7  # another client's 50


def test_a_retry_after_recovery_answers_the_first_result(tmp_path: Path) -> None:
    partition = OnePartition(SCHEMA, PROCEDURES, tmp_path)
    partition.call("put", 1, 5)
    partition.run_group("add", [(1, 1), (9, 1), (1, 1)], [50, 51, 52])
    partition.seal()
    partition.checkpointer.close()
    partition.wal.abandon()  # type: ignore[union-attr]  # there is one
    partition = OnePartition(SCHEMA, PROCEDURES, tmp_path)
    assert partition.call("add", 1, 1, number=50, floor=1) == 6
    assert partition.call("add", 1, 1, number=52, floor=1) == 7
    with pytest.raises(Aborted):  # it left nothing, so it may run again
        partition.call("add", 9, 1, number=51, floor=1)
    assert partition.call("get", 1) == 7


def test_a_retry_of_a_call_that_never_ran_runs_it_once(partition: OnePartition) -> None:
    partition.call("put", 1, 5)
    for _ in range(3):
        assert partition.call("add", 1, 1, number=50, floor=1) == 6


@pytest.mark.parametrize("same_batch", [True, False])
def test_a_retry_does_not_do_what_the_first_attempt_did_not(same_batch: bool, partition: OnePartition) -> None:
    """The client may still be told of the first attempt's end."""
    partition.run("add", 1, 1, number=50)
    partition.run("get", 1, number=51)
    partition.run("insert_once", 1, number=52)
    partition.run("put", 1, 5)
    partition.run("delete_one", 1, number=53)
    partition.run("put", 1, 5)
    if not same_batch:
        partition.seal()
        partition.answers.clear()
    numbers = [("add", (1, 1), 50), ("get", (1,), 51), ("insert_once", (1,), 52), ("delete_one", (1,), 53)]
    for name, arguments, number in numbers:
        for _ in range(2):
            partition.run(name, *arguments, number=number, floor=0)
    partition.seal()
    assert str(partition.answers[50]) == "no item 1"
    assert partition.answers[51] is None
    assert partition.answers[52] == "new"
    assert partition.answers[53] is True
    assert partition.call("get", 1) == 5


def test_a_thousand_retries_in_one_batch_take_no_time(partition: OnePartition) -> None:
    numbers = partition.run_group("add", [(9, 1)] * 2000)
    numbers += partition.run_group("put", [(9, 1)] * 2000)
    began_s = time.monotonic()
    partition.run_group("add", [(9, 1)] * 2000, numbers[:2000], floor=0)
    partition.run_group("put", [(9, 1)] * 2000, numbers[2000:], floor=0)
    partition.run_group("put", [(9, 1)] * 2000, list(range(10_001, 12_001)), floor=0)
    partition.seal()
    assert time.monotonic() - began_s < 3
    assert all(isinstance(partition.answers[number], Aborted) for number in numbers[:2000])
    assert {partition.answers[number] for number in numbers[2000:]} == {1}


@pytest.mark.parametrize("how", ["get", "abort"])
def test_every_retry_of_a_call_that_leaves_nothing_is_answered(how: str, partition: OnePartition) -> None:
    for _ in range(3):
        if how == "get":
            assert partition.call("get", 1, number=50, floor=0) is None
        else:
            with pytest.raises(Aborted):
                partition.call("add", 1, 1, number=50, floor=0)


def test_past_the_window_a_retry_is_indeterminate() -> None:
    partition = OnePartition(SCHEMA, PROCEDURES, window_bytes=3000)
    floor = partition.lsn
    partition.call("put", 1, 0, number=50)
    for _ in range(100):
        partition.call("add", 1, 1)
    with pytest.raises(Indeterminate, match="no longer remembered"):
        partition.call("put", 1, 0, number=50, floor=floor)
    assert partition.call("get", 1) == 100
    # A call that began within the window surely did not run.
    assert partition.call("add", 1, 1, number=51, floor=partition.lsn) == 101


def test_a_first_attempt_that_comes_after_its_retry_does_not_run(partition: OnePartition) -> None:
    partition.call("put", 1, 5)
    assert partition.call("add", 1, 1, number=50, floor=1) == 6
    partition.run_group("add", [(1, 1), (1, 1)], [50, 53])
    partition.seal()
    assert partition.answers.pop(53) == 7
    assert 50 not in partition.answers
    assert partition.dropped[ORIGIN] == 1
    assert partition.call("get", 1) == 7


def test_a_retry_of_a_call_that_waits_joins_it(partition: OnePartition) -> None:
    with_items(partition, 1)
    partition.table("items").send_all_away([1])
    partition.run("add", 1, 1, number=50, origin=b"first")
    partition.seal()
    for origin in (b"second", b"third"):
        partition.run("add", 1, 1, number=50, floor=0, origin=origin)
        partition.seal()
    assert partition.executor.waiting == 1
    assert partition.dropped == {ORIGIN: 0, b"first": 1, b"second": 1}
    partition.arrive("items", 1)
    partition.run_ready()
    assert (partition.answers[50], partition.origins[50]) == (2, b"third")
    assert partition.call("get", 1) == 2


def test_a_retry_whose_batch_is_undone_finds_the_connection_that_waited_before(partition: OnePartition) -> None:
    with_items(partition, 1)
    partition.table("items").send_all_away([1])
    partition.run("add", 1, 1, number=50, origin=b"first")
    partition.seal()
    for undone in (True, False):
        partition.run("add", 1, 1, number=50, floor=0, origin=b"second")
        partition.run("add", 1, 1, number=50, floor=0, origin=b"third")
        if undone:
            partition.executor.undo_batch()
    partition.seal()
    assert partition.dropped == {ORIGIN: 0, b"first": 1, b"second": 1}
    partition.arrive("items", 1)
    partition.run_ready()
    assert partition.origins[50] == b"third"


def test_a_first_attempt_does_not_run_beside_its_waiting_retry(partition: OnePartition) -> None:
    with_items(partition, 1)
    partition.table("items").send_all_away([1])
    partition.run("add", 1, 1, number=50, floor=1)
    partition.seal()
    partition.run("add", 1, 1, number=50)
    partition.seal()
    partition.arrive("items", 1)
    partition.run_ready()
    assert partition.answer(50) == 2
    assert partition.call("get", 1) == 2


def test_a_retry_of_a_call_that_killed_the_process_is_not_run(partition: OnePartition) -> None:
    partition.executor.runaways.add((CLIENT, 50))
    with pytest.raises(ProcedureTimeout):
        partition.call("put", 1, 1, number=50, floor=0)
    assert partition.call("get", 1) is None
    assert partition.call("put", 1, 1, number=51, floor=0) == 1


# ---------------------------------------------------------------------------------------------------- no room


def test_without_room_everything_is_undone_and_reads_go_on() -> None:
    partition = OnePartition(SCHEMA, PROCEDURES, memory_bytes=8 * PAGE_BYTES)
    partition.call("put", 1, 1)
    before = contents(partition)
    numbers: list[int] = []

    def batch() -> None:
        numbers[:] = [
            *partition.run_group("put", [(1, 2), (2, 2)], [100, 101]),
            *partition.run_group("get", [(1,), (2,)], [102, 103]),
            *partition.run_group("write_then", [(k, "abort") for k in range(10, 20)], list(range(104, 114))),
            *partition.run_group("insert", [(k,) for k in range(1000, 9000)], list(range(200, 8200))),
        ]

    batch()
    assert not partition.seal_or_refuse(batch)
    partition.store.check()
    assert contents(partition) == before
    assert isinstance(partition.answers[100], ReadOnly)
    assert isinstance(partition.answers[8199], ReadOnly)
    assert (partition.answers[102], partition.answers[103]) == (1, None)
    assert partition.call("put", 1, 3) == 3  # a batch that fits
    with pytest.raises(ReadOnly):
        partition.call("put", 1, 2, number=100, floor=0)  # that is what this call was told


def test_without_room_calls_that_were_rerun_are_not_lost() -> None:
    partition = OnePartition(SCHEMA, PROCEDURES, memory_bytes=8 * PAGE_BYTES)
    with_items(partition, 1, 2, 3)
    for key in (1, 2, 3):
        partition.table("items").send_all_away([key])
    waiting = [partition.run("add", 1, 1), partition.run("get", 2), partition.run("consume", 9, [1, 3])]
    partition.seal()
    partition.arrive("items", 1)
    partition.arrive("items", 2)
    partition.executor.run_ready()  # the third one misses 3 now

    def batch() -> None:
        partition.run_group("insert", [(k,) for k in range(1000, 9000)], list(range(200, 8200)))
        partition.run_group("add", [(3, 1)], [100])  # set aside in this batch

    batch()
    assert not partition.seal_or_refuse(batch)
    assert isinstance(partition.answers.pop(waiting[0]), ReadOnly)
    assert partition.answers.pop(waiting[1]) == 2
    assert isinstance(partition.answers[200], ReadOnly)
    assert partition.executor.waiting == 2
    partition.arrive("items", 3)
    partition.run_ready()
    assert partition.answer(waiting[2]) == 4
    assert partition.answer(100) == 4
    assert partition.executor.waiting == 0
    partition.store.check()


def test_without_room_a_retry_is_still_answered() -> None:
    partition = OnePartition(SCHEMA, PROCEDURES, memory_bytes=8 * PAGE_BYTES)
    partition.call("put", 1, 1, number=50)

    def batch() -> None:
        partition.run("put", 1, 1, number=50, floor=0)
        partition.run("put", 2, 2, number=51, floor=0)
        partition.run_group("insert", [(k,) for k in range(1000, 9000)], list(range(200, 8200)))

    batch()
    assert not partition.seal_or_refuse(batch)
    assert partition.answer(50) == 1
    with pytest.raises(ReadOnly):
        partition.answer(51)
    assert partition.call("put", 2, 2, number=52, floor=0) == 2


def test_a_batch_that_is_undone_takes_no_reply_of_the_batches_before_it_along(partition: OnePartition) -> None:
    with_items(partition, 1)
    partition.table("items").send_all_away([1])
    waiting = partition.run("get", 1)
    partition.seal()
    executor = partition.executor
    for origin in (b"one", b"other", b"one"):
        put = partition.run("put", 7, 7, number=50 + partition.lsn, origin=origin)
        aborted = partition.run("write_then", 8, "abort", origin=origin)
        partition.run("get", 1, number=waiting, floor=0, origin=origin)
        changes, outcomes = executor.seal()
        assert changes
        executor.committed(partition.lsn + 1, encode_message(outcomes))
        partition._lsn += 1
        partition.run("put", 7, 8, origin=origin)
        partition.run("get", 1, number=waiting, floor=0, origin=b"undone")
        executor.undo_batch()
    replies = executor.replies()
    told = {
        origin: (len(answers.groups), [error.code for error in answers.errors], answers.dropped)
        for origin, answers in replies.items()
    }
    assert told == {
        ORIGIN: (0, [], {CLIENT: 1}),
        b"one": (2, ["Aborted", "Aborted"], {CLIENT: 1}),
        b"other": (1, ["Aborted"], {CLIENT: 1}),
    }
    assert replies[b"one"].groups[1].numbers == [put]
    assert replies[b"one"].errors[1].number == aborted
    assert executor.replies() == {}


def test_large_results_are_bounded_until_they_are_handed_out(partition: OnePartition) -> None:
    """The server divides a batch for which there is no room, and still holds all its results at once."""
    for _ in range(70):
        partition.run("size", 1, 1_000_000)
        partition.executor.undo_batch()  # what is undone is not held
        partition.run("size", 1, 1_000_000)
        partition.executor.finished()
    answers = partition.executor.replies()[ORIGIN]
    assert (len(answers.groups), [error.code for error in answers.errors]) == (67, ["Overloaded"] * 3)
    assert partition.call("size", 1, 1_000_000) == "x" * 1_000_000


def test_a_batch_that_only_failed_needs_no_record(partition: OnePartition) -> None:
    for how in ("abort", "raise", "exit"):
        number = partition.run("write_then", 10, how)
        changes, outcomes = partition.executor.seal()
        assert outcomes == []
        assert all(not change.deleted for change in changes)
        partition.seal()
        assert isinstance(partition.answers[number], Error)
    assert partition.rows("items") == {}


def test_answers_go_to_the_connections_that_asked(partition: OnePartition) -> None:
    partition.run("put", 1, 1, origin=b"a", client=1)
    partition.run("put", 2, 2, origin=b"b", client=2)
    partition.run("nope", 2, origin=b"c", client=3)
    partition.executor.seal()
    partition.executor.finished()
    replies = partition.executor.replies()
    assert {origin: (len(a.groups), len(a.errors)) for origin, a in replies.items()} == {
        b"a": (1, 0),
        b"b": (1, 0),
        b"c": (0, 1),
    }
    assert all(isinstance(answers, Answers) for answers in replies.values())
    assert partition.executor.replies() == {}


def test_load_inserts_what_fits_and_names_what_does_not() -> None:
    partition = OnePartition(SCHEMA, PROCEDURES, partitions=2, clock=Clock())
    owners = slot_owners(2)
    here = [key for key in range(40) if owners[hash_slot(key)] == 0]
    there = next(key for key in range(40) if owners[hash_slot(key)] == 1)
    rows = [[here[0], 1, "a"], [here[0], 2, "b"], [there, 3], [here[1], "x"], [here[2], 4, None, 5], [here[3]]]
    rejected = partition.call("voltpy.load", here[0], "items", rows)
    assert [(position, code) for position, code, _ in rejected] == [
        (1, "DuplicateKey"), (2, "WrongPartition"), (3, "ConstraintViolation"), (4, "TypeError"),
    ]  # fmt: skip
    assert sorted(partition.rows("items")) == sorted([here[0], here[3]])
    with pytest.raises(SchemaError, match="there is no table nope"):
        partition.call("voltpy.load", here[0], "nope", [])
    with pytest.raises(SchemaError, match="there is no table _context"):
        partition.call("voltpy.load", here[0], "_context", [[1]])
    number = partition.run("voltpy.load", here[0], "rates", [["EUR", 1.0]])
    partition.seal()
    assert partition.answers.pop(number).code == ELSEWHERE
    rejected = partition.call_joint(1, "voltpy.load_everywhere", "rates", [["EUR", 1], ["EUR", 2]])
    assert rejected[0][:2] == [1, "DuplicateKey"]
    assert partition.call_everywhere("rate_of", "EUR") == 1.0


KEPT = ValueError("the same object each time")


@procedure(partition_by="key")
def raise_kept(tx: Any, key: int) -> Any:
    raise KEPT


def test_an_exception_that_is_kept_and_raised_again_does_not_grow() -> None:
    partition = OnePartition(SCHEMA, [raise_kept])
    texts = set()
    for _ in range(3):
        with pytest.raises(ProcedureError) as raised:
            partition.call("raise_kept", 1)
        texts.add(raised.value.traceback_text)
    assert len(texts) == 1
    assert texts.pop().count("raise KEPT") == 1
    assert KEPT.__traceback__ is None


def test_a_batch_that_is_undone_and_run_again_generates_afresh(partition: OnePartition) -> None:
    partition.run("generated", 1, 2, number=50)
    partition.executor.undo_batch()
    partition.run("generated", 1, 2, number=50)
    partition.seal()
    assert runs[0][1:4] == runs[1][1:4]
    assert partition.answer(50)[0][:6] == runs[1]
    assert runs[0][4] != runs[1][4]


@procedure(everywhere=True)
def set_rates_and_fail(tx: Any, how: str) -> Any:
    tx.rates.upsert("EUR", 9.0)
    tx.rates.insert("NOK", 1.0)
    tx.rates.delete("USD")
    return ENDINGS[how](tx)


@pytest.mark.parametrize("how", ["abort", "raise", "exit", "a huge number"])
def test_a_directed_call_that_fails_leaves_the_copies_as_they_were(how: str) -> None:
    partition = OnePartition(SCHEMA, [*PROCEDURES, set_rates_and_fail])
    for code in ("EUR", "USD"):
        partition.call_everywhere("set_rate", code, 1.0)
    before = contents(partition)
    with pytest.raises(Error):
        partition.call_everywhere("set_rates_and_fail", how)
    assert contents(partition) == before
    assert partition.table("rates").count() == 2
    partition.seal()
    partition.store.check()


class Unruly(msgspec.Struct):
    """An argument's type whose own code runs while it is decoded."""

    how: str

    def __post_init__(self) -> None:
        if self.how == "raise":
            raise KeyError("not of Exception's usual kinds")
        if self.how == "exit":
            raise SystemExit(1)
        if self.how == "late":
            unruly_partition.executor.interrupt(ProcedureTimeout())  # what a tick of the timeout does
            raise Interruption


@procedure(partition_by="key")
def take(tx: Any, key: int, what: Unruly) -> str:
    return what.how


@procedure(everywhere=True)
def take_everywhere(tx: Any, what: Unruly) -> str:
    return what.how


unruly_partition: OnePartition


def test_an_argument_whose_type_raises_fails_its_own_call_only() -> None:
    global unruly_partition
    partition = unruly_partition = OnePartition(SCHEMA, [take, take_everywhere, put])
    ways = ["well", "raise", "exit", "late", "well"]
    args = encode_message([(1, {"how": how}) for how in ways])
    group = CallGroup(CLIENT, "take", 0, 0, [1, 2, 3, 4, 5], [0] * 5, msgspec.Raw(args))
    partition.executor.run(ORIGIN, group)
    partition.executor.finished()
    answers = partition.executor.replies()[ORIGIN]
    assert [group.numbers for group in answers.groups] == [[1, 5]]
    assert {error.number: error.code for error in answers.errors} == {
        2: "BadArguments", 3: "BadArguments", 4: "ProcedureTimeout",
    }  # fmt: skip
    for how in ("raise", "exit", "late"):
        call = EverywhereCall(0, CLIENT, "take_everywhere", 6, msgspec.Raw(encode_message([{"how": how}])))
        partition.executor.run_everywhere(ORIGIN, call)
        partition.executor.finished()
        assert len(partition.executor.replies()[ORIGIN].errors) == 1
    partition.executor.seal()
    partition.executor.finished()
    partition.store.check()


def test_a_call_that_was_set_aside_and_rerun_in_one_batch_is_undone_with_it(partition: OnePartition) -> None:
    """Whoever runs the batch again brings it along again."""
    with_items(partition, 1, 2)
    for key in (1, 2):
        partition.table("items").send_all_away([key])
    waited = partition.run("consume", 9, [1, 2])
    partition.seal()
    number = partition.run("add", 1, 10)
    partition.arrive("items", 1)
    partition.executor.run_ready()  # `waited` misses 2 now
    assert partition.executor.waiting == 1
    partition.executor.undo_batch()
    assert partition.executor.waiting == 1
    partition.executor.run_ready()
    partition.run("add", 1, 10, number=number)
    partition.seal()
    assert partition.answer(number) == 11
    partition.arrive("items", 2)
    partition.run_ready()
    assert partition.answer(waited) == 13
