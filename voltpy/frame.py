"""Frames of calls: what leaves for the router or a partition, and what has to be taken back if it can't."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Raw

from voltpy import wire
from voltpy.calls import Command, Everywhere, Pending
from voltpy.lane import ROUTER
from voltpy.messages import CallGroup, Calls

if TYPE_CHECKING:
    from voltpy.batch import Group

_encode = wire.encode


class Frame:
    """One frame to send, and what is in it: calls of lanes, those of a group, or other calls.

    `look`: other answers were due where it goes, so one may have arrived unnoticed while it was sent.
    """

    __slots__ = ("calls", "data", "destination", "group", "look", "others")

    def __init__(
        self,
        destination: int,
        data: bytes,
        calls: Sequence[Pending] = (),
        look: bool = True,
        group: Group | None = None,
        others: Sequence[Everywhere | Command] = (),
    ) -> None:
        self.destination = destination
        self.data = data
        self.calls = calls
        self.look = look
        self.group = group
        self.others = others


def frame_of_calls(client_id: int, catalog_version: int, destination: int, calls: list[Pending]) -> Frame:
    """Calls that are numbered and counted, as one frame; to a partition all of them are of its lane."""
    if len(calls) == 1:
        call = calls[0]
        groups = [
            CallGroup(
                client_id,
                call.procedure,
                call.lane.partition,
                call.incarnation,
                [call.number],
                [call.slot],
                Raw(b"\x91" + call.args),
                call.floor,
            )
        ]
    else:
        together: dict[tuple[str, int, int], list[Pending]] = {}
        for call in calls:
            key = (call.procedure, call.lane.partition, call.floor)
            if key in together:
                together[key].append(call)
            else:
                together[key] = [call]
        groups = [
            CallGroup(
                client_id,
                procedure,
                partition,
                members[0].incarnation,
                [call.number for call in members],
                [call.slot for call in members],
                wire.joined([call.args for call in members]),
                floor,
            )
            for (procedure, partition, floor), members in together.items()
        ]
    look = destination == ROUTER or calls[0].lane.unanswered > len(calls)
    return Frame(destination, _encode(Calls(catalog_version, groups)), calls, look)
