"""Feeds everything that decodes bytes of others with frames that are almost right, by the million.

    python -m tests.campaigns.fuzz [--frames 10000000] [--seed N] [--parallel 2] [--targets NAME,…]

    target              takes                               may end in
    wire                frames of every message             ProtocolError
    stream              a byte stream, in pieces            ProtocolError
    router_client       what a client sends the router      an answer; what the router then sends on, partitions take
    router_supervisor   what its supervisor sends it        an answer
    router_partition    what a partition sends it           nothing
    partition_client    what a client sends a partition     an answer
    partition_router    what the router sends it            an answer
    partition_others    what the supervisor sends it, and   an answer
                        strangers who say no Hello
    client              what router and partitions answer   all its calls settled
    batch               the payload of a WAL record         Corruption
    record_log          a log directory                     a prefix of its records, or Corruption

Any other exception is a failure, as are a case that takes longer than CASE_LIMIT_S, memory past MEMORY_BYTES, and a
target that does not do its ordinary work any more, which is tried every CASES_A_CHECK cases.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from coordinator.router import Router
from partitions.store import Store
from partitions.wal import ABORT, COMMIT, DECIDE, PREPARE, Batch, Record, Step, decode_batch, encode_batch
from tests.campaigns.mutation import Mutation
from tests.partitions.one_partition import OnePartition
from voltpy import lane, wire
from voltpy.calls import Pending
from voltpy.connection import Connection
from voltpy.door import CLIENT, ROUTER, SUPERVISOR, Account, Door
from voltpy.errors import Corruption, Indeterminate, ProtocolError
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.messages import (
    ELSEWHERE,
    NEVER_SENT,
    PROTOCOL_VERSION,
    Admin,
    AdminReply,
    CallError,
    CallGroup,
    Calls,
    DiscardLoad,
    EverywhereCall,
    Hello,
    HoldCheckpoint,
    LoadPrepared,
    Message,
    Parameter,
    PartitionAddress,
    PrepareLoad,
    ProcedureInfo,
    Refusal,
    Replies,
    ReplyGroup,
    Runaway,
    StatusReply,
    StatusRequest,
    SwitchLoad,
    TableChanges,
    Topology,
    Welcome,
)
from voltpy.outcome_window import OutcomeWindow
from voltpy.procedure import procedure
from voltpy.record_log import RecordLog
from voltpy.sql.ddl import parse_schema
from voltpy.stream import FrameReader, packed

CASE_LIMIT_S = 2.0
MEMORY_BYTES = 1 << 30  # that a target may take beyond what it began with
CASES_A_CHECK = 1000
TOKEN = "t" * 32
CLIENT_ID = 5
CATALOG = 1
INCARNATION = 3
PARTITIONS = 2
ME = b"me"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode

# ── a small world ──────────────────────────────────────────────────────────────────────────────────────────────────

SCHEMA = parse_schema(
    """
    CREATE TABLE items (id INT PRIMARY KEY, n INT NOT NULL DEFAULT 0, f FLOAT, text STRING, at TIMESTAMP, ok BOOL);
    PARTITION TABLE items ON COLUMN id;
    CREATE TABLE pairs (code STRING, n INT, PRIMARY KEY (code, n));
    PARTITION TABLE pairs ON COLUMN code;
    CREATE TABLE notes (owner INT NOT NULL, text STRING);
    PARTITION TABLE notes ON COLUMN owner;
    """
)


@procedure(partition_by="key")
def put(tx: Any, key: int, n: int, text: str | None = None) -> Any:
    tx.items.upsert(key % 512, n, None, None if text is None else text[:100])
    return [key, n, text]


@procedure(partition_by="key")
def get(tx: Any, key: int) -> Any:
    row = tx.items.get(key % 512)
    return None if row is None else row.n


@procedure(partition_by="code")
def pair(tx: Any, code: str, numbers: list[int], options: dict[str, float] | None = None) -> Any:
    for number in numbers[:4]:
        tx.pairs.upsert(code[:1], number % 8)
    return [tx.pairs.get((code[:1], number % 8)) is not None for number in numbers[:4]] + [len(options or ())]


@procedure(partition_by="key")
def echo(tx: Any, key: int, anything: Any) -> Any:
    return anything


@procedure(partition_by="key")
def explode(tx: Any, key: int, anything: Any) -> Any:
    tx.items.upsert(key % 512, 1)
    raise ValueError(anything)


@procedure(partition_by=None, everywhere=True)
def everywhere(tx: Any, anything: Any, n: int = 0) -> Any:
    tx.now()
    return [tx.items.count(), n, anything]


PROCEDURES = (put, get, pair, echo, explode, everywhere)


COORDINATOR = PARTITIONS  # as a number of a lane


def info(name: str, *key_positions: int) -> ProcedureInfo:
    return ProcedureInfo(name, list(key_positions), not key_positions, False, [Parameter("key", "int", True)], "A doc.")


def topology(version: int = 7, incarnation: int = INCARNATION) -> Topology:
    addresses = [
        PartitionAddress(number, incarnation, f"/run/v/p{number}", 3000 + number, 17) for number in range(PARTITIONS)
    ]
    infos = [info("put", 0), info("get", 0), info("echo", 0), info("everywhere")]
    infos.append(ProcedureInfo("joint", [], True, False, [], "", joint=True))
    coordinator = PartitionAddress(COORDINATOR, incarnation, f"/run/v/p{COORDINATOR}", 3000 + COORDINATOR, 17)
    runaways = [Runaway(CLIENT_ID, 99, "put")]
    return Topology(version, CATALOG, "c" * 32, "/run/v", addresses, infos, runaways, coordinator)


OWNERS = slot_owners(PARTITIONS)
KEYS = [next(key for key in range(1, 100) if OWNERS[hash_slot(key)] == number) for number in range(PARTITIONS)]


def group(
    name: str, rows: list[tuple[Any, ...]], partition: int = 0, floor: int = NEVER_SENT, first: int = 1
) -> CallGroup:
    numbers = list(range(first, first + len(rows)))
    args = wire.joined([_encode(row) for row in rows])
    slots = [hash_slot(KEYS[partition % PARTITIONS])] * len(rows)
    return CallGroup(CLIENT_ID, name, partition, INCARNATION, numbers, slots, args, floor)


def calls(*groups: CallGroup) -> bytes:
    return wire.encode(Calls(CATALOG, list(groups)))


def everywhere_call(*arguments: Any, number: int = 70) -> bytes:
    return wire.encode(EverywhereCall(CATALOG, CLIENT_ID, "everywhere", number, Raw(_encode(arguments)), 10**15))


HELLO = {
    CLIENT: wire.encode(Hello(PROTOCOL_VERSION, CLIENT_ID)),
    ROUTER: wire.encode(Hello(PROTOCOL_VERSION, 0, ROUTER, TOKEN)),
    SUPERVISOR: wire.encode(Hello(PROTOCOL_VERSION, 1, SUPERVISOR, TOKEN)),
}
KEY = KEYS[0]
ARGUMENT_ROWS: list[list[Any]] = [
    [KEY, 1, "text"], [KEY, -1], [KEY], [KEY, {"a": [1, 2.5, None]}], ["code", [1, 2, 3], {"x": 1.5}], ["c", []],
    [KEY, [[[]]]], [KEY, b"bytes"], [KEY, datetime(2024, 1, 1, tzinfo=UTC)],
]  # fmt: skip
FROM_CLIENT = [
    HELLO[CLIENT],
    calls(group("put", [(KEY, number, "text") for number in range(5)])),
    calls(group("get", [(KEY,)] * 3, first=40), group("echo", [(KEY, {"a": [1, 2.5, None]})], first=50)),
    calls(group("pair", [("a", [1, 2, 3], {"x": 1.5}), ("b", [])], first=60)),
    calls(group("explode", [(KEY, "text"), (KEY, ["\x00", 1])], first=80)),
    calls(group("put", [(KEY, 1)], floor=3, first=90), group("put", [(KEYS[1], 1)], partition=1, first=91)),
    everywhere_call({"x": 1}),
    calls(group("put", [(KEY, 1), (KEYS[1], 2)], partition=COORDINATOR, floor=4, first=95)),
    wire.encode(EverywhereCall(CATALOG, CLIENT_ID, "joint", 71, Raw(b"\x90"), 10**15)),
]
FROM_SUPERVISOR = [
    HELLO[SUPERVISOR],
    wire.encode(topology()),
    wire.encode(AdminReply(1, "", {"partitions": [{"pid": 1}], "x": 1.5})),
    wire.encode(AdminReply(1, "Unavailable", {"message": "no"})),
    *(
        wire.encode(message)
        for message in (
            StatusRequest(4),
            PrepareLoad(2, "x = 1", "p.py"),
            SwitchLoad(2),
            DiscardLoad(2),
            HoldCheckpoint(2, 1.0),
        )
    ),
]
FROM_PARTITION = [
    wire.encode(Welcome(PROTOCOL_VERSION, INCARNATION, None)),
    wire.encode(
        Replies(
            0, INCARNATION, 20, [ReplyGroup(CLIENT_ID, [1, 2, 3], wire.joined([_encode(1), b"\xc0", _encode("x")]))], []
        )
    ),
    wire.encode(
        Replies(
            1,
            INCARNATION,
            21,
            [ReplyGroup(CLIENT_ID, [4], Raw(b"\x91\xc3"))],
            [CallError(CLIENT_ID, 5, "Aborted", "no")],
        )
    ),
    wire.encode(
        Replies(0, INCARNATION, 22, [], [CallError(CLIENT_ID, 6, "ProcedureError", "m", "ValueError", "Traceback …")])
    ),
    wire.encode(
        Replies(
            0, INCARNATION, 22, [], [CallError(CLIENT_ID, 2, "stale", ""), CallError(CLIENT_ID, 3, "Indeterminate", "")]
        )
    ),
    wire.encode(Replies(0, INCARNATION, 22, [], [CallError(CLIENT_ID, 2, ELSEWHERE, "")])),
    wire.encode(Replies(COORDINATOR, INCARNATION, 5, [ReplyGroup(CLIENT_ID, [7], wire.joined([_encode([1, 2])]))], [])),
    wire.encode(Refusal("ProtocolError", "not a frame")),
    wire.encode(StatusReply(4, INCARNATION, 20, CATALOG, 3000, [info("put", 0)], {"pid": 1, "rows": {"items": 3}})),
    wire.encode(LoadPrepared(2, "", [info("put", 0)])),
]
FROM_ROUTER = [
    wire.encode(Welcome(PROTOCOL_VERSION, 0, topology())),
    wire.encode(topology(8)),
    wire.encode(topology(9, INCARNATION + 1)),
    wire.encode(
        Replies(-1, 0, 0, [], [CallError(CLIENT_ID, 1, "Unavailable", "down"), CallError(CLIENT_ID, 7, "stale", "")])
    ),
    wire.encode(AdminReply(8, "", {"x": [1, 2]})),
]
ARGUMENTS = [_encode([row]) for row in ARGUMENT_ROWS] + [_encode(ARGUMENT_ROWS)]
EVERYTHING = [
    *FROM_CLIENT,
    *FROM_SUPERVISOR,
    *FROM_PARTITION,
    *FROM_ROUTER,
    HELLO[ROUTER],
    wire.encode(Admin(3, "status", {"a": [1]})),
]


class Wrong(Exception):
    """A target did what it must not do, without raising anything."""


def must(condition: object, text: str) -> None:
    if not condition:
        raise Wrong(text)


# ── targets ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Target(ABC):
    """`case` takes one mutated frame, and says whether it was taken for a good one; `check` does ordinary work."""

    corpus: Sequence[bytes]

    def __init__(self, rng: Random, directory: Path) -> None:
        self.rng = rng

    @abstractmethod
    def case(self, frame: bytes) -> bool: ...

    @abstractmethod
    def check(self) -> None: ...


class Wire(Target):
    corpus = EVERYTHING

    def case(self, frame: bytes) -> bool:
        try:
            message = wire.decode(frame)
        except ProtocolError:
            return False
        wire.decode(wire.encode(message))
        return True

    def check(self) -> None:
        for frame in EVERYTHING:
            must(wire.encode(wire.decode(frame)) == frame, "a message does not survive")


class Stream(Target):
    corpus = tuple(packed(frame) for frame in EVERYTHING)

    def case(self, frame: bytes) -> bool:
        reader = FrameReader()
        data = packed(EVERYTHING[1]) + frame
        frames: list[bytes] = []
        try:
            while data:
                piece = self.rng.randrange(1, len(data) + 1)
                frames += reader.feed(data[:piece])
                data = data[piece:]
        except ProtocolError:
            return False
        must(frames and frames[0] == EVERYTHING[1], "a frame is not what was sent")
        return len(frames) > 1

    def check(self) -> None:
        reader = FrameReader()
        stream = b"".join(map(packed, EVERYTHING))
        found = [frame for at in range(0, len(stream), 7) for frame in reader.feed(stream[at : at + 7])]
        must(found == EVERYTHING, "a stream does not survive")


class AtDoor(Target):
    """One who has said Hello in a role; said again when the door has closed the account, or knows another by it."""

    role = CLIENT
    client_id = -1
    at_partition: int | None = 0

    def __init__(self, rng: Random, directory: Path) -> None:
        super().__init__(rng, directory)
        self.door: Door[bytes] = Door(
            TOKEN, at_partition=self.at_partition, partitions=0 if self.at_partition is None else PARTITIONS
        )
        self.door.catalog_version = CATALOG
        self.welcome = Welcome(PROTOCOL_VERSION, 0 if self.at_partition is None else INCARNATION, None)

    def account(self) -> Account[bytes]:
        account = self.door.accounts.get(ME)
        if account is None or account.closed or account.role != self.role or account.client_id != self.client_id:
            self.door.close(ME)
            must(self.door.receive(ME, HELLO[self.role], self.welcome) is None, "a Hello came through")
            account = self.door.accounts[ME]
            must(not account.closed, "a Hello is refused")
            self.client_id = account.client_id
        return account

    def received(self, frame: bytes) -> Message | None:
        self.account()
        message = self.door.receive(ME, frame, self.welcome)
        self.deliver()
        return message

    def deliver(self) -> None:
        for _, message in self.door.outbox:
            wire.decode(wire.encode(message))
        self.door.outbox.clear()
        must(len(self.door.accounts) <= 65536 + 1, "more accounts than there may be")


class RouterClient(AtDoor):
    """Behind the router are the doors of its partitions: they must take what it makes of anything."""

    corpus = (*FROM_CLIENT, wire.encode(Admin(3, "status", {"a": [1]})))
    at_partition = None

    def __init__(self, rng: Random, directory: Path) -> None:
        super().__init__(rng, directory)
        self.router = Router(self.door, 1)
        self.door.receive(b"supervisor", HELLO[SUPERVISOR], self.welcome)
        self.router.supervisor_message(self.door.accounts[b"supervisor"], topology())
        self.router.flush()
        self.welcome = self.router.welcome
        self.partitions: list[Door[bytes]] = []
        for number in range(PARTITIONS + 1):
            # The coordinator takes calls of any hash slot.
            slots = PARTITIONS if number != COORDINATOR else 0
            door: Door[bytes] = Door(TOKEN, at_partition=number, partitions=slots)
            door.catalog_version = CATALOG
            door.receive(b"router", HELLO[ROUTER], Welcome(PROTOCOL_VERSION, INCARNATION, None))
            door.outbox.clear()
            self.partitions.append(door)

    def case(self, frame: bytes) -> bool:
        message = self.received(frame)
        if message is None:
            return False
        self.router.client_message(self.account(), message, 10**15)
        self._run()
        return True

    def _run(self) -> list[Message]:
        """Everything goes to where it belongs, until nobody has anything to say; what the client gets."""
        to_client: list[Message] = []
        while outbox := self.router.flush():
            for destination, message in outbox:
                again = wire.decode(wire.encode(message))
                if isinstance(destination, int):
                    self._at_partition(destination, wire.encode(message))
                elif destination == ME:
                    to_client.append(again)
                elif isinstance(message, Admin):
                    self.router.supervisor_message(
                        self.door.accounts[b"supervisor"], AdminReply(message.number, "", {})
                    )
        must(
            all(lane.in_flight == 0 and lane.bytes_in_flight == 0 for lane in self.router.lanes),
            "calls are left in a lane",
        )
        must(self.door.in_flight == 0, "calls are left at the door")
        return to_client

    def _at_partition(self, number: int, frame: bytes) -> None:
        door = self.partitions[number]
        message = door.receive(b"router", frame, Welcome(PROTOCOL_VERSION, INCARNATION, None))
        replies: list[Message] = [answer for _, answer in door.outbox]
        door.outbox.clear()
        must(not any(isinstance(reply, Refusal) for reply in replies), f"the partition refuses the router: {replies}")
        account = door.accounts[b"router"]
        if isinstance(message, Calls):
            groups = [
                ReplyGroup(g.client_id, g.numbers, wire.joined([b"\xc0"] * len(g.numbers))) for g in message.groups
            ]
            replies.append(Replies(number, INCARNATION, 1, groups, []))
            door.answered(account, sum(len(g.numbers) for g in message.groups))
        elif isinstance(message, EverywhereCall):
            replies.append(
                Replies(number, INCARNATION, 1, [ReplyGroup(message.client_id, [message.number], Raw(b"\x91\xc0"))], [])
            )
            door.answered(account, 1)
        for reply in replies:
            self.router.partition_message(number, wire.decode(wire.encode(reply)))

    def check(self) -> None:
        message = self.received(FROM_CLIENT[1])
        must(isinstance(message, Calls), "a good frame does not pass")
        assert message is not None
        self.router.client_message(self.account(), message, 0)
        [reply] = [message for message in self._run() if isinstance(message, Replies)]
        must(reply.groups[0].numbers == [1, 2, 3, 4, 5], "a call is not answered")


class RouterSupervisor(AtDoor):
    corpus = FROM_SUPERVISOR
    at_partition = None
    role = SUPERVISOR

    def __init__(self, rng: Random, directory: Path) -> None:
        super().__init__(rng, directory)
        self.router = Router(self.door, 1)

    def case(self, frame: bytes) -> bool:
        message = self.received(frame)
        if message is None or isinstance(message, StatusRequest):
            return False
        self.router.supervisor_message(self.account(), message)
        for _, sent in self.router.flush():
            wire.decode(wire.encode(sent))
        return True

    def check(self) -> None:
        """A topology is believed, so what has been told before would be in the way."""
        AtDoor.__init__(self, self.rng, Path())
        self.router = Router(self.door, 1)
        self.router.supervisor_message(self.account(), topology())
        must(len(self.router.lanes) == PARTITIONS + 1, "a topology is not taken in")


class RouterPartition(RouterClient):
    corpus = tuple(FROM_PARTITION)

    def case(self, frame: bytes) -> bool:
        try:
            message = wire.decode(frame)
        except ProtocolError:
            return False
        self.router.partition_message(self.rng.randrange(PARTITIONS), message)
        for _, sent in self.router.flush():
            wire.decode(wire.encode(sent))
        return True

    def check(self) -> None:
        # A partition that refused the router is given up until the next topology.
        self.router.supervisor_message(self.door.accounts[b"supervisor"], topology())
        self.router.flush()
        super().check()


class PartitionClient(AtDoor):
    """With an executor behind the door, and batches as the server makes them."""

    corpus = FROM_CLIENT

    def __init__(self, rng: Random, directory: Path) -> None:
        super().__init__(rng, directory)
        self.partition = OnePartition(SCHEMA, PROCEDURES, partitions=PARTITIONS, window_bytes=1 << 20)
        self._cases = self._lsn = self._charged = 0
        self._accounts: set[Account[bytes]] = set()  # all that were charged: some are closed by now
        self._arguments = Mutation(ARGUMENTS, rng)

    def case(self, frame: bytes) -> bool:
        taken = self._take(self._call() if self.rng.random() < 0.4 else frame)
        self._cases += 1
        if self._cases % 16 == 0:
            self._end_batch()
        return taken

    def _take(self, frame: bytes) -> bool:
        message = self.received(frame)
        executor = self.partition.executor
        if message is not None:
            self._accounts.add(self.door.accounts[ME])
        if isinstance(message, Calls):
            for calls_of_one in message.groups:
                executor.run(ME, calls_of_one)
                self._charged += len(calls_of_one.numbers)
        elif isinstance(message, EverywhereCall):
            executor.run_everywhere(ME, message)
            self._charged += 1
        return message is not None

    def _call(self) -> bytes:
        """A call in which only the arguments are wrong."""
        name = self.rng.choice(PROCEDURES).__name__
        arguments = self._arguments.frame()
        try:
            rows = len(_decode(arguments))
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError, RecursionError):
            rows = 1
        numbers = [self.rng.randrange(1, 1000) for _ in range(min(rows, 100) or 1)]
        floor = self.rng.choice((NEVER_SENT, NEVER_SENT, 0, 5, 2**40))
        slots = [hash_slot(KEY)] * len(numbers)
        return calls(CallGroup(CLIENT_ID, name, 0, INCARNATION, numbers, slots, Raw(arguments), floor))

    def _end_batch(self) -> list[Replies]:
        executor = self.partition.executor
        changes, outcomes = executor.seal()
        encoded = _encode(outcomes)
        if changes or outcomes:
            self._lsn += 1
            decode_batch(encode_batch(Batch(Raw(encoded), changes)))
            executor.committed(self._lsn, encoded)
        else:
            executor.finished()
        replies: list[Replies] = []
        answered = 0
        for answers in executor.replies().values():
            message = wire.decode(wire.encode(Replies(0, INCARNATION, self._lsn, answers.groups, answers.errors)))
            assert isinstance(message, Replies)
            replies.append(message)
            answered += len(answers.errors) + sum(len(g.numbers) for g in answers.groups)
            answered += sum(answers.dropped.values())
        must(answered == self._charged, f"{self._charged} calls have {answered} answers")
        self._charged = 0
        for account in self._accounts:
            self.door.answered(account, account.in_flight)
        self._accounts.clear()
        must(self.door.in_flight == 0, f"{self.door.in_flight} calls are left at the door")
        must(executor.waiting == 0, "calls wait for nothing")
        return replies

    def check(self) -> None:
        self._end_batch()
        self.partition.store.check()
        self._take(calls(group("put", [(KEY, 77)], first=2**40), group("get", [(KEY,)], first=2**41)))
        replies = self._end_batch()
        results = [_decode(bytes(g.results)) for reply in replies for g in reply.groups]
        must(results == [[[KEY, 77, None]], [77]], f"a good call is answered {replies}")


class PartitionRouter(PartitionClient):
    role = ROUTER


class PartitionOthers(AtDoor):
    corpus = (*FROM_SUPERVISOR, HELLO[CLIENT], HELLO[ROUTER], *FROM_CLIENT)
    role = SUPERVISOR

    def case(self, frame: bytes) -> bool:
        if self.rng.random() < 0.5:
            return self.received(frame) is not None
        stranger = self.rng.randbytes(3)
        message = self.door.receive(stranger, frame, self.welcome)
        must(message is None or stranger in self.door.accounts, "a stranger came through")
        self.deliver()
        return message is not None

    def check(self) -> None:
        must(isinstance(self.received(FROM_SUPERVISOR[4]), StatusRequest), "a good frame does not pass")


class Client(Target):
    """A connection with calls under way, which connects again when it was told to close."""

    corpus = (*FROM_PARTITION, *FROM_ROUTER)
    SOURCES = (lane.ROUTER, 0, 1, COORDINATOR)
    UNDER_WAY = 8

    def __init__(self, rng: Random, directory: Path) -> None:
        super().__init__(rng, directory)
        self.now = 1000.0
        self._begin()

    def _begin(self) -> None:
        self.connection = Connection(CLIENT_ID, retry_s=self.rng.choice((0.0, 5.0)))
        self.pending: list[Pending] = []
        for source in self.SOURCES:
            self._welcome(source)
        self._submit()

    def _welcome(self, source: int) -> None:
        if source == lane.ROUTER:
            self.connection.opening_router(self.now)
            self.connection.hello()
        frame = FROM_ROUTER[0] if source == lane.ROUTER else FROM_PARTITION[0]
        must(self.connection.receive(source, frame, self.now), "a good Welcome is refused")

    def _submit(self) -> None:
        self.pending = [call for call in self.pending if not call.done]
        while len(self.pending) < self.UNDER_WAY:
            call = Pending()
            self.connection.submit(call, "put", (self.rng.choice(KEYS), 1), self.now, 10.0)
            self.pending.append(call)
        self.connection.frames(self.now)
        self.connection.outcomes.take()

    def case(self, frame: bytes) -> bool:
        self.now += 0.01
        source = self.rng.choice(self.SOURCES)
        taken = self.connection.receive(source, frame, self.now)
        if not taken:
            self.connection.lost(source, self.now)
            self._welcome(source)
        self.connection.expire(self.now)
        self._submit()
        return taken

    def check(self) -> None:
        for source in self.SOURCES:
            self.connection.lost(source, self.now)
        self.connection.expire(self.now + 100.0)
        self.connection.close("the end")
        must(all(call.done for call in self.pending), "a call was never settled")
        must(self.connection.outcomes.outstanding == 0, "calls are counted that are over")
        self._begin()
        call = self.pending[0]
        reply = Replies(
            call.lane.partition, INCARNATION, 30, [ReplyGroup(CLIENT_ID, [call.number], Raw(b"\x91\x07"))], []
        )
        must(self.connection.receive(call.lane.partition, wire.encode(reply), self.now), "a good reply is refused")
        must(call.done and call.value == 7, "a call has not got its answer")


def _row(*columns: Any) -> bytes:
    return bytes(_encode(columns))


NO_OUTCOMES = Raw(b"\x90")
BATCHES = [
    Batch(Raw(_encode([])), []),
    Batch(Raw(_encode([[CLIENT_ID, [1, 2], ["a", 5]]])), [TableChanges(0, [_row(7, 1, 2.5, "x", None, True)], [])]),
    Batch(
        Raw(_encode([[CLIENT_ID, [3], [None]], [9, [1], [{"a": 1}]]])),
        [
            TableChanges(0, [_row(8, 1, None, None, datetime(2024, 1, 1, tzinfo=UTC), False)], [_encode(7)]),
            TableChanges(1, [_row("a", 1)], [_encode(["b", 2])]),
        ],
    ),
    Record(NO_OUTCOMES, [TableChanges(1, [_row("a", 2)], [])], Step(PREPARE, 5)),
    Record(NO_OUTCOMES, [], Step(DECIDE, 5)),
    Record(NO_OUTCOMES, [TableChanges(1, [], [_encode(["a", 2])])], Step(PREPARE, 6)),
    Record(NO_OUTCOMES, [], Step(ABORT, 6)),
    Record(Raw(_encode([[CLIENT_ID, [4], [None]]])), [TableChanges(1, [_row("c", 1)], [])], Step(COMMIT, 7)),
]


class WalBatch(Target):
    corpus = tuple(encode_batch(batch) for batch in BATCHES)

    def __init__(self, rng: Random, directory: Path) -> None:
        super().__init__(rng, directory)
        self._begin()

    def _begin(self) -> None:
        self.store = Store(SCHEMA, 0, 1, 16 << 20)
        self.window = OutcomeWindow(0, 1 << 20)
        self.lsn = 0

    def case(self, frame: bytes) -> bool:
        self.lsn += 1
        try:
            batch = decode_batch(frame, self.lsn)
            self.store.replay(batch, self.lsn)
            self.store.apply_turn()
        except Corruption:  # the partition would not start
            return False
        # Outcomes are kept as they are; only a retry looks inside.
        window = OutcomeWindow(0)
        window.add(self.lsn, bytes(batch.outcomes))
        with contextlib.suppress(Corruption, Indeterminate):
            window.first_result(CLIENT_ID, 3, 0)
        return True

    def check(self) -> None:
        self._begin()
        gc.collect()  # the former store's memory
        for frame in self.corpus:
            must(self.case(frame), "a good batch is refused")
        self.store.check()
        must(self.store.by_name["items"].row_count == 1, "rows are missing")


class Log(Target):
    """Two segments, of which any bytes may be others: what is read is a beginning of what was written, or nothing."""

    corpus = (b"",)  # its cases are bytes of the files

    def __init__(self, rng: Random, directory: Path) -> None:
        super().__init__(rng, directory)
        self.directory = directory / "log"
        log = RecordLog.open(self.directory, "wal", 0, segment_bytes=2048)
        log.begin()
        self.records = [bytes([number]) * (number * 11 % 160) for number in range(1, 30)]
        for number, record in enumerate(self.records):
            log.append(record)
            if number % 3 == 0:
                log.flush()
        log.flush()
        log.abandon()
        self.files = {path.name: path.read_bytes() for path in self.directory.glob("wal-*")}
        self.mutation = Mutation([b"\xc0"], rng)

    def case(self, frame: bytes) -> bool:
        for name, content in self.files.items():
            (self.directory / name).write_bytes(content)
        name = self.rng.choice(list(self.files))
        content = self.files[name]
        used = content.rstrip(b"\0")
        for _ in range(self.rng.choice((1, 1, 2, 5))):
            used = self.mutation.bytes_of(used)
        (self.directory / name).write_bytes(used + content[len(used) :] if self.rng.random() < 0.8 else used)
        found: list[bytes] = []
        try:
            log = RecordLog.open(self.directory, "wal", 0, segment_bytes=2048)
        except Corruption:
            return False
        try:
            found.extend(record for _, record in log.replay())
            if self.rng.random() < 0.02:
                log.begin()
                log.append(b"next")
                log.flush()
                log.abandon()
                log = RecordLog.open(self.directory, "wal", 0, segment_bytes=2048)
                must([record for _, record in log.replay()] == [*found, b"next"], "what was appended is not read")
        except Corruption:
            return False
        finally:
            log.abandon()
            must(found == self.records[: len(found)], "a record was read that was never written")
            for path in self.directory.glob("wal-*"):
                if path.name not in self.files:
                    path.unlink()
        return True

    def check(self) -> None:
        for name, content in self.files.items():
            (self.directory / name).write_bytes(content)
        log = RecordLog.open(self.directory, "wal", 0, segment_bytes=2048)
        must([record for _, record in log.replay()] == self.records, "records are missing")
        log.abandon()


TARGETS: dict[str, tuple[type[Target], float]] = {
    "wire": (Wire, 0.30),
    "stream": (Stream, 0.05),
    "router_client": (RouterClient, 0.13),
    "router_supervisor": (RouterSupervisor, 0.03),
    "router_partition": (RouterPartition, 0.05),
    "partition_client": (PartitionClient, 0.14),
    "partition_router": (PartitionRouter, 0.06),
    "partition_others": (PartitionOthers, 0.04),
    "client": (Client, 0.10),
    "batch": (WalBatch, 0.08),
    "record_log": (Log, 0.02),
}

# ── running them ───────────────────────────────────────────────────────────────────────────────────────────────────


class Hang(BaseException):
    """A case takes too long. Not an Exception: what is under test must not catch it."""


class Outcome(NamedTuple):
    """What one target came to. `failure` is empty when nothing was wrong."""

    target: str
    cases: int
    taken: int
    seconds: float
    slowest_s: float
    grown_bytes: int
    failure: str


def fuzz(name: str, cases: int, seed: int) -> Outcome:
    """Gives so many cases to one target."""
    directory = Path(tempfile.mkdtemp(prefix="voltpy-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    rng = Random(f"{name}:{seed}")
    began_s = time.perf_counter()
    before_bytes = _resident_bytes()
    slowest_s = 0.0
    taken = number = 0
    frame = b""
    failure = ""
    last_tick = [-1]

    def tick(*_: object) -> None:
        if last_tick[0] == number:
            raise Hang(f"longer than {CASE_LIMIT_S} s")
        last_tick[0] = number

    handler = signal.signal(signal.SIGALRM, tick)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space_bytes() + 2 * MEMORY_BYTES, limits[1]))
    try:
        target = TARGETS[name][0](rng, directory)
        mutation = Mutation(target.corpus, rng)
        target.check()
        signal.setitimer(signal.ITIMER_REAL, CASE_LIMIT_S, CASE_LIMIT_S)
        clock = time.perf_counter
        for number in range(cases):
            frame = mutation.frame()
            case_began_s = clock()
            taken += target.case(frame)
            slowest_s = max(slowest_s, clock() - case_began_s)
            if number % CASES_A_CHECK == CASES_A_CHECK - 1:
                target.check()
                must(
                    _resident_bytes() - before_bytes < MEMORY_BYTES,
                    f"{_resident_bytes() - before_bytes} bytes more in memory",
                )
        target.check()
    except (Exception, Hang) as error:  # noqa: BLE001 — any exception at all is what is looked for
        text = "".join(traceback.format_exception(error))
        failure = f"case {number} of seed {seed}, frame {frame[:400].hex()} ({len(frame)} bytes):\n{text}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        shutil.rmtree(directory, ignore_errors=True)
    grown_bytes = _resident_bytes() - before_bytes
    return Outcome(name, number + 1, taken, time.perf_counter() - began_s, slowest_s, grown_bytes, failure)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--targets", default=",".join(TARGETS))
    arguments = parser.parse_args()
    names = arguments.targets.split(",")
    whole = sum(TARGETS[name][1] for name in names)
    outcomes: list[Outcome] = []
    began_s = time.monotonic()
    print(f"{'target':<18} {'cases':>10} {'taken':>9} {'µs a case':>9} {'slowest ms':>10} {'grown MiB':>9}", flush=True)
    with ProcessPoolExecutor(arguments.parallel, get_context("spawn"), max_tasks_per_child=1) as pool:
        submit: Callable[..., Any] = pool.submit
        waiting = {
            name: [
                submit(
                    fuzz,
                    name,
                    round(arguments.frames * TARGETS[name][1] / whole / arguments.parallel),
                    arguments.seed + part,
                )
                for part in range(arguments.parallel)
            ]
            for name in names
        }
        for name, parts in waiting.items():
            done = [part.result() for part in parts]
            outcomes += done
            cases, taken = sum(one.cases for one in done), sum(one.taken for one in done)
            us_a_case = sum(one.seconds for one in done) / cases * 1e6
            slowest_ms = max(one.slowest_s for one in done) * 1000
            grown_mib = max(one.grown_bytes for one in done) / 2**20
            print(
                f"{name:<18} {cases:>10,} {taken:>9,} {us_a_case:>9.1f} {slowest_ms:>10.1f} {grown_mib:>9.1f}",
                flush=True,
            )
            for one in done:
                if one.failure:
                    print(one.failure, flush=True)
    failures = sum(bool(one.failure) for one in outcomes)
    cases = sum(one.cases for one in outcomes)
    print(f"{cases:,} cases, {failures} failures, {time.monotonic() - began_s:.0f} s, seed {arguments.seed}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
