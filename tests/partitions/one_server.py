"""One partition's server in this process, on sockets that are lists, with a clock that stands still."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
from msgspec import Raw

from partitions.batch_steps import DECIDED_S
from partitions.server import Server
from partitions.warm_up import WarmUp
from tests.partitions.one_partition import OnePartition
from voltpy.door import CLIENT, COORDINATOR, SUPERVISOR, Door
from voltpy.door_sockets import Sockets
from voltpy.messages import (
    PROTOCOL_VERSION,
    Attach,
    Attached,
    CallGroup,
    Calls,
    Decide,
    Hello,
    Message,
    Order,
    Orders,
    Replies,
    Report,
    Reports,
)
from voltpy.schema import Schema
from voltpy.timeout import Timeout
from voltpy.wire import decode, encode, joined

TOKEN = "0123456789abcdef"
COORDINATOR_AT, SUPERVISOR_AT = "coordinator", "supervisor"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode

M = TypeVar("M")


class ListSockets:
    """What was sent to the server, and what it sent, by whom it is for."""

    def __init__(self) -> None:
        self.ended: list[Hashable] = []
        self.hung_up: list[tuple[Hashable, int]] = []  # on whom, and how many frames had been sent by then
        self.held_bytes = 0
        self.arriving: deque[tuple[Hashable, bytes]] = deque()
        self.sent: dict[Hashable, list[Message]] = {}
        self.waited_s = 0.0  # as long it was ready to wait the last time
        self.sending: Callable[[Message], None] = lambda _: None

    def wait(self, timeout_s: float) -> None:
        self.waited_s = timeout_s

    def receive(self) -> tuple[Hashable, bytes | None] | None:
        return self.arriving.popleft() if self.arriving else None

    def has_input(self) -> bool:
        return bool(self.arriving)

    def admit(self, identity: Hashable, *, first: bool = False) -> None:
        pass

    def hang_up(self, identity: Hashable) -> None:
        self.hung_up.append((identity, sum(map(len, self.sent.values()))))

    def send(self, identity: Hashable, frame: bytes) -> bool:
        message = decode(frame)
        self.sending(message)
        self.sent.setdefault(identity, []).append(message)
        return True


class OneServer:
    """`say` and `call`, then `turn`, then see what was `heard`."""

    def __init__(
        self, schema: Schema, procedures: Iterable[Callable[..., Any]], directory: Path, **options: Any
    ) -> None:
        made = self.partition = OnePartition(schema, procedures, directory, **options)
        assert made.wal is not None
        self.wal = made.wal
        self.sockets = ListSockets()
        self.now_s = 0.0
        self.door = Door[Hashable](TOKEN, at_partition=0, partitions=options.get("partitions", 1))
        warm_up = WarmUp(directory, 0, made.store, made.pool, sources=(), bytes_per_s=1, schedule=[])
        self.server = Server(
            cast(Sockets, self.sockets),
            0,
            0,
            self.door,
            made.executor,
            made.store,
            made.pool,
            warm_up,
            made.wal,
            made.checkpointer,
            Timeout(made.executor.interrupt, made.executor.may_be_interrupted, made.running, 5.0),
            lambda _, __: made.executor.registry,
            clock=lambda: self.now_s,
        )
        self.participant = self.server._participant
        self.number = 0
        self._frames = self.session = 0
        self.say(SUPERVISOR_AT, Hello(PROTOCOL_VERSION, 0, SUPERVISOR, TOKEN))
        self.say(COORDINATOR_AT, Hello(PROTOCOL_VERSION, 0, COORDINATOR, TOKEN))
        self.turn()
        self.sockets.sent.clear()

    def say(self, identity: Hashable, message: Message) -> None:
        self.sockets.arriving.append((identity, encode(message)))

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.server.turn()

    def heard(self, identity: Hashable, kind: type[M]) -> list[M]:
        """What it was sent of this kind, since the last time."""
        sent = self.sockets.sent.get(identity, [])
        found = [message for message in sent if isinstance(message, kind)]
        self.sockets.sent[identity] = [message for message in sent if not isinstance(message, kind)]
        return found

    def call(self, client: int, name: str, *arguments: Any) -> int:
        """Sends a call; its number."""
        if client not in self.door.accounts:
            self.say(client, Hello(PROTOCOL_VERSION, client, CLIENT))
        self.number += 1
        group = CallGroup(client, name, 0, self.wal.epoch, [self.number], [0], joined([_encode(arguments)]))
        self.say(client, Calls(0, [group]))
        return self.number

    def answers(self, client: int) -> dict[int, Any]:
        """What this client's calls have been told since the last time, by number."""
        answers: dict[int, Any] = {}
        for replies in self.heard(client, Replies):
            for group in replies.groups:
                answers.update(zip(group.numbers, _decode(bytes(group.results)), strict=True))
            answers.update({error.number: error.code for error in replies.errors})
        return answers

    def attach(self, epoch: int = 1) -> Attached:
        self.session += 1
        self._frames = 0
        self.say(COORDINATOR_AT, Attach(epoch, self.session))
        self.turn()
        (attached,) = self.heard(COORDINATOR_AT, Attached)
        return attached

    def order(self, *orders: Order, epoch: int = 1) -> None:
        self._frames += 1
        self.say(COORDINATOR_AT, Orders(epoch, self.session, self._frames, list(orders)))

    def reports(self) -> list[Report]:
        return [report for frame in self.heard(COORDINATOR_AT, Reports) for report in frame.reports]

    def ordered(self, *orders: Order) -> list[Report]:
        """What is reported of these orders in the same turn; of a decision, when it is due."""
        self.order(*orders)
        self.turn()
        reports = self.reports()
        if any(isinstance(order, Decide) for order in orders):
            self.now_s += DECIDED_S
            self.turn()
        return reports + self.reports()

    def kill(self) -> None:
        """As kill -9 does."""
        self.partition.reader.close()
        self.partition.checkpointer.close()
        self.wal.abandon()


def raw(value: Any) -> Raw:
    return Raw(_encode(value))
