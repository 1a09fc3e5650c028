"""Answers that come in: each finds its call by number, and ends it, or has it go again (voltpy.attempts)."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from voltpy.attempts import Attempts
from voltpy.calls import Everywhere
from voltpy.errors import ProtocolError, Unavailable, from_wire
from voltpy.in_flight import InFlight
from voltpy.known_cluster import KnownCluster
from voltpy.messages import STALE, AdminReply, CallError, Replies
from voltpy.outcomes import Outcomes
from voltpy.unsent import Unsent

_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_decode_value = msgspec.msgpack.Decoder().decode
_decode_results = msgspec.msgpack.Decoder(list[Any]).decode


class Arrivals:
    """Of one client. What is for nobody who waits is dropped. Times are seconds of the connection's clock."""

    __slots__ = ("_attempts", "_calls", "_client_id", "_cluster", "_in_flight", "_outcomes", "_unsent")

    def __init__(
        self,
        client_id: int,
        cluster: KnownCluster,
        unsent: Unsent,
        in_flight: InFlight,
        outcomes: Outcomes,
        attempts: Attempts,
    ) -> None:
        self._client_id = client_id
        self._cluster = cluster
        self._unsent = unsent
        self._in_flight = in_flight
        self._calls = in_flight.calls  # at hand, for lone calls
        self._outcomes = outcomes
        self._attempts = attempts

    def reply_alone(self, replies: Replies) -> bool:
        """Takes in the usual answer to a lone call. False: it is another, for `replies`."""
        groups = replies.groups
        if replies.errors or len(groups) != 1 or len(groups[0].numbers) != 1:
            return False
        group = groups[0]
        call = self._calls.get(group.numbers[0])
        if call is None or call.batch is not None or call.done or group.client_id != self._client_id:
            return False
        lane = call.lane
        if replies.partition != lane.partition or not replies.incarnation == lane.incarnation == call.incarnation:
            return False
        try:
            (call.value,) = _decode_results(group.results)
        except (*_UNDECODABLE, ValueError):
            return False
        del self._calls[call.number]
        if replies.lsn > lane.lsn:
            lane.lsn = replies.lsn
        lane.unanswered -= 1
        lane.unanswered_bytes -= len(call.args)
        call.done = True
        outcomes = self._outcomes
        outcomes.outstanding -= 1
        outcomes.settled.append(call)
        return True

    def replies(self, replies: Replies, now: float) -> None:
        """Takes in a partition's answers, or the router's of partition -1. Raises ProtocolError."""
        partition = replies.partition
        lanes = self._cluster.lanes
        if partition >= len(lanes):
            raise ProtocolError(f"replies of partition {partition}, of {lanes.partitions}")
        if partition >= 0:
            lane = lanes[partition]
            if replies.incarnation == lane.incarnation and replies.lsn > lane.lsn:
                lane.lsn = replies.lsn
        settle = self._outcomes.settle
        for group in replies.groups:
            if group.client_id != self._client_id:
                continue
            try:
                values = _decode_value(group.results)
            except _UNDECODABLE as error:
                raise ProtocolError(f"results that don't decode: {error}") from None
            if type(values) is not list or len(values) != len(group.numbers):
                raise ProtocolError("results that don't match their calls")
            for call in self._in_flight.answer(partition, replies.incarnation, group.numbers, values):
                settle(call, call.value, call.error)
        for error_reply in replies.errors:
            if error_reply.client_id == self._client_id:
                self._call_error(partition, replies.incarnation, error_reply, now)

    def admin_reply(self, reply: AdminReply) -> None:
        """Takes in the answer to a command."""
        call = self._in_flight.others.pop(reply.number, None)
        if call is None:
            return
        if reply.error:
            self._outcomes.fail(call, from_wire(reply.error, str(reply.body.get("message", ""))))
        else:
            self._outcomes.settle(call, reply.body, None)

    def _call_error(self, partition: int, incarnation: int, reply: CallError, now: float) -> None:
        if reply.number in self._in_flight.others:
            self._other_error(partition, reply)
            return
        call = self._in_flight.take(partition, incarnation, reply.number)
        if call is not None:
            self._attempts.answer(call, partition, reply, now)

    def _other_error(self, partition: int, reply: CallError) -> None:
        call = self._in_flight.others.get(reply.number)
        if not isinstance(call, Everywhere):
            return
        error = from_wire(reply.code, reply.message, reply.type_name, reply.traceback_text)
        if reply.code == STALE:
            # Not sent again: another partition may have run it.
            error = Unavailable(f"{call.procedure}: the procedures or the schema changed meanwhile")
            self._unsent.ask_router()
        if partition < 0:
            del self._in_flight.others[reply.number]
            self._outcomes.fail(call, error)
        elif self._in_flight.answer_everywhere(call, partition, None, error):
            self._outcomes.settle(call, call.value, call.error)
