"""Statements in a partition, which has no planner: what it does until the plan is there, and with fragments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from partitions.executor import LENT_WAIT_S
from tests.partitions.one_server import COORDINATOR_AT, TOKEN, OneServer, raw
from voltpy.door import COORDINATOR
from voltpy.messages import (
    PROTOCOL_VERSION,
    Attach,
    Borrow,
    Decide,
    Fragment,
    Hello,
    PlanReply,
    PlanRequest,
    Read,
    ReadAnswer,
    Release,
    Scan,
)
from voltpy.procedure import procedure
from voltpy.row import encode
from voltpy.sql.catalogue import Catalogue
from voltpy.sql.ddl import parse_schema
from voltpy.sql.planner import plan

SCHEMA = parse_schema(
    """
    CREATE TABLE accounts (id INT PRIMARY KEY, balance INT NOT NULL);
    PARTITION TABLE accounts ON COLUMN id;
    """
)
COUNT = "SELECT COUNT(*) FROM accounts"
BY_KEY = "SELECT balance FROM accounts WHERE id = ?"


@procedure(partition_by="key")
def put(tx: Any, key: int, balance: int) -> int:
    return int(tx.accounts.upsert(key, balance).balance)


@procedure(partition_by="key")
def put_and_read(tx: Any, key: int, balance: int) -> Any:
    """Runs twice when the plan is missing, and has written by then."""
    row = tx.accounts.get(key)
    tx.accounts.upsert(key, balance + (0 if row is None else row.balance))
    return tx.execute(BY_KEY, (key,)).rows


@procedure(partition_by="key")
def for_ever(tx: Any, key: int) -> None:
    tx.execute(COUNT)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OneServer]:
    made = OneServer(SCHEMA, (put, put_and_read, for_ever), tmp_path)
    yield made
    made.kill()


def planned(text: str) -> PlanReply:
    return PlanReply(text, Raw(encode(plan(text, Catalogue(SCHEMA)))))


def asked(server: OneServer) -> list[str]:
    return [text for request in server.heard(COORDINATOR_AT, PlanRequest) for text in request.texts]


def test_a_call_waits_for_the_plan_and_takes_effect_once(server: OneServer) -> None:
    server.attach()
    first, second = server.call(1, "put_and_read", 1, 10), server.call(1, "put_and_read", 1, 10)
    other = server.call(1, "put", 2, 5)
    server.turn(2)
    assert asked(server) == [BY_KEY]
    assert server.answers(1) == {other: 5}
    server.say(COORDINATOR_AT, planned(BY_KEY))
    server.turn(2)
    assert server.answers(1) == {first: [[10]], second: [[20]]}
    third = server.call(1, "put_and_read", 1, 1)
    server.turn()
    assert server.answers(1) == {third: [[21]]}
    assert asked(server) == []


def test_what_is_wrong_with_a_text_is_the_error_of_all_its_calls(server: OneServer) -> None:
    server.attach()
    text = "SELECT nonsense"
    first = server.call(1, "voltpy.query", 1, text, [])
    server.turn(2)
    assert asked(server) == [text]
    server.say(COORDINATOR_AT, PlanReply(text, Raw(b"\xc0"), "SqlError", "no"))
    server.turn(2)
    assert server.answers(1) == {first: "SqlError"}
    second = server.call(1, "voltpy.query", 1, text, [])
    server.turn()
    assert server.answers(1) == {second: "SqlError"}


def test_a_plan_that_was_made_for_another_schema_is_asked_for_again(server: OneServer) -> None:
    server.attach()
    number = server.call(1, "put_and_read", 1, 10)
    server.turn(2)
    assert asked(server) == [BY_KEY]
    server.door.catalog_version = 5
    old = planned(BY_KEY)
    old.catalog_version = 4
    server.say(COORDINATOR_AT, old)
    server.turn(2)
    assert asked(server) == [BY_KEY]
    assert server.answers(1) == {}
    server.say(COORDINATOR_AT, PlanReply(BY_KEY, Raw(b"\xc0"), "SqlError", "no such table", 6))
    server.turn(2)
    assert asked(server) == [BY_KEY]
    new = planned(BY_KEY)
    new.catalog_version = 5
    server.say(COORDINATOR_AT, new)
    server.turn(2)
    assert server.answers(1) == {number: [[10]]}


def test_a_coordinator_that_attaches_later_is_asked_then(server: OneServer) -> None:
    number = server.call(1, "voltpy.query_all", COUNT, [])
    server.turn(2)
    assert asked(server) == []
    server.attach()
    assert asked(server) == [COUNT]
    server.attach()  # a session later the answer may have been lost
    assert asked(server) == [COUNT]
    server.say(COORDINATOR_AT, planned(COUNT))
    server.turn(2)
    assert server.answers(1) == {number: [[0]]}


def test_a_plan_whose_request_was_lost_with_its_connection_is_asked_for_again(server: OneServer) -> None:
    attached = server.attach()
    number = server.call(1, "put_and_read", 1, 10)
    server.turn(2)
    assert asked(server) == [BY_KEY]
    server.sockets.ended.append(COORDINATOR_AT)  # both processes live, and the coordinator connects anew
    server.say("its next connection", Hello(PROTOCOL_VERSION, 0, COORDINATOR, TOKEN))
    server.turn()
    server.say("its next connection", Attach(attached.epoch, attached.session + 1))
    server.turn(2)
    (again,) = server.heard("its next connection", PlanRequest)
    assert again.texts == [BY_KEY]
    server.say("its next connection", planned(BY_KEY))
    server.turn(2)
    assert server.answers(1) == {number: [[10]]}


def test_without_a_coordinator_a_call_gives_up(server: OneServer) -> None:
    number = server.call(1, "voltpy.query_all", COUNT, [])
    server.turn(2)
    server.now_s += LENT_WAIT_S + 0.1
    server.turn(2)
    assert server.answers(1) == {number: "Unavailable"}
    # Its plan is wanted all the same.
    server.attach()
    assert asked(server) == [COUNT]


def test_a_read_waits_for_the_plan_of_its_fragment(server: OneServer) -> None:
    server.attach()
    for key in (1, 2, 3):
        server.call(1, "put", key, key)
    server.turn()
    assert server.ordered(Read(1, [], [], [Fragment(COUNT, raw([]), True)], 1.0)) == []
    server.turn()
    assert asked(server) == [COUNT]
    server.say(COORDINATOR_AT, planned(COUNT))
    server.turn(2)
    (answer,) = server.reports()
    assert isinstance(answer, ReadAnswer)
    assert answer.is_here
    assert [bytes(each.streams) for each in answer.fragments] == [encode([[[3]]])]
    held = server.call(1, "put", 4, 4)
    server.now_s += 0.9  # as long as the order says
    server.turn(2)
    assert held not in server.answers(1)
    server.ordered(Release(1))
    assert held in server.answers(1)


def test_a_fragment_does_not_read_what_is_lent(server: OneServer) -> None:
    server.attach()
    server.say(COORDINATOR_AT, planned(COUNT))
    server.turn()
    read = Read(1, [], [], [Fragment(COUNT, raw([]), True)])
    server.ordered(Borrow(1 << 40, [], [Scan(0, "scan")]))
    (answer,) = server.ordered(read)
    assert isinstance(answer, ReadAnswer)
    assert not answer.is_here
    server.ordered(Decide(1 << 40, False))
    read.round = 2
    (answer,) = server.ordered(read)
    assert isinstance(answer, ReadAnswer)
    assert answer.is_here


@pytest.mark.parametrize(
    ("text", "parameters", "error"),
    [
        (COUNT, [1], "SqlError"),
        ("SELECT SUM(1 / (balance - balance)) FROM accounts", [], "DataError"),
        ("SELECT balance FROM accounts WHERE balance < ?", ["x"], "DataError"),
        ("SELECT repeat('x', 1000000) FROM accounts", [], "ConstraintViolation"),
    ],
)
def test_what_a_fragment_raises_is_its_answer(server: OneServer, text: str, parameters: list[Any], error: str) -> None:
    server.attach()
    for key in range(10):
        server.call(1, "put", key, key)
    server.say(COORDINATOR_AT, planned(text))
    server.turn(2)
    good = Fragment(COUNT, raw([]), True)
    server.say(COORDINATOR_AT, planned(COUNT))
    server.turn()
    (answer,) = server.ordered(Read(1, [], [], [Fragment(text, raw(parameters), True), good]))
    assert isinstance(answer, ReadAnswer)
    assert answer.is_here
    assert [each.error for each in answer.fragments] == [error, ""]


def test_a_plan_that_is_none_is_an_error(server: OneServer) -> None:
    server.attach()
    number = server.call(1, "voltpy.query_all", COUNT, [])
    server.turn(2)
    server.say(COORDINATOR_AT, PlanReply(COUNT, raw(["no", "plan"])))
    server.turn(2)
    assert server.answers(1) == {number: "ProcedureError"}
