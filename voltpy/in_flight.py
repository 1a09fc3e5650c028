"""What was sent and is not answered: whom an answer is for, and what is lost when a connection or a partition is.

Every call is found by its number. Answers for a whole group are the usual case, and cost one slice and one comparison.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from voltpy.batch import UNSETTLED, Group
from voltpy.calls import Command, Everywhere, Pending
from voltpy.errors import Error


class InFlight:
    """The sent calls: alone in `calls`, as columns in `groups` (by their first number), not of one lane in `others`.

    It keeps the lanes' counts of what is unanswered. It settles nothing but results of groups, which go straight into
    their batch; the other calls are given back to be settled or sent again. `last_number` is the last one given.
    """

    __slots__ = ("_firsts", "calls", "groups", "last_number", "others")

    def __init__(self) -> None:
        self.last_number = 0
        self.calls: dict[int, Pending] = {}
        self.groups: dict[int, Group] = {}
        self.others: dict[int, Everywhere | Command] = {}
        self._firsts: list[int] = []  # the keys of groups, ascending

    def add(self, call: Pending, via: int, catalog_version: int) -> None:
        """A call of a lane, which has counted it, is sent: it gets its number, unless an attempt before had it."""
        lane = call.lane
        if call.number == 0:
            self.last_number = call.number = self.last_number + 1
            call.lsn = lane.lsn
        call.via = via
        call.incarnation = lane.incarnation
        call.catalog_version = catalog_version
        self.calls[call.number] = call

    def add_group(self, group: Group) -> None:
        """A group is sent, under the numbers that follow the last one."""
        lane = group.lane
        group.first = first = self.last_number + 1
        group.incarnation = lane.incarnation
        group.lsn = lane.lsn
        self.last_number += group.count
        lane.unanswered += group.count
        lane.unanswered_bytes += group.bytes
        self.groups[first] = group
        self._firsts.append(first)

    def take_back(self, group: Group) -> None:
        """It turned out that it was not sent."""
        self._forget(group)
        group.lane.unanswered -= group.left

    def remove(self, call: Pending) -> None:
        """A call of a lane is answered, lost, or was not sent."""
        del self.calls[call.number]
        lane = call.lane
        lane.unanswered -= 1
        lane.unanswered_bytes -= len(call.args)

    def answer(self, partition: int, incarnation: int, numbers: list[int], values: list[Any]) -> list[Pending]:
        """Takes in a partition's results. Returns the calls whose `value` or `error` is their outcome by that."""
        calls = self.calls
        groups = self.groups
        answered: list[Pending] = []
        index = 0
        end = len(numbers)
        while index < end:
            number = numbers[index]
            call = calls.get(number)
            if call is not None:
                lane = call.lane
                if lane.partition == partition and incarnation >= call.incarnation:
                    del calls[number]
                    lane.unanswered -= 1
                    lane.unanswered_bytes -= len(call.args)
                    call.value = values[index]
                    answered.append(call)
                index += 1
                continue
            group = groups.get(number) or self._group_of(number)
            if group is None:
                other = self.others.get(number)
                if isinstance(other, Everywhere) and self.answer_everywhere(other, partition, values[index], None):
                    answered.append(other)
                index += 1
                continue
            if group.lane.partition != partition or incarnation < group.incarnation:
                index += 1
                continue
            count = group.count
            if group.left == count and numbers[index : index + count] == group.numbers:
                results = group.batch.results
                for position, value in zip(group.positions, values[index : index + count], strict=True):
                    results[position] = value
                group.batch.left -= count
                group.left = 0
                group.lane.unanswered -= count
                self._forget(group)
                index += count
            else:
                index = self._answer_some(group, numbers, values, index)
        return answered

    def answer_everywhere(self, call: Everywhere, partition: int, value: Any, error: Error | None) -> bool:
        """Takes in one partition's outcome. True: it was the last that was missing."""
        if not call.take(partition, value, error):
            return False
        del self.others[call.number]
        return True

    def take(self, partition: int, incarnation: int, number: int) -> Pending | None:
        """Takes out the call that an error is for; None when that is for no call of a lane, or too late.

        The router's errors are of no partition, -1.
        """
        call = self.calls.get(number)
        if call is None:
            group = self._group_of(number)
            if group is None or (
                partition >= 0 and (group.lane.partition != partition or incarnation < group.incarnation)
            ):
                return None
            call = self._leave(group, number - group.first)
            if call is None:
                return None
        elif partition >= 0 and (call.lane.partition != partition or incarnation < call.incarnation):
            return None
        self.remove(call)
        return call

    def single_out(self, wanted: Callable[[Pending | Group], bool]) -> list[Pending]:
        """The calls of lanes that are wanted, in the order of their numbers. Those in groups leave them."""
        for group in list(self.groups.values()):
            if wanted(group):
                self._dissolve(group)
        return [call for _number, call in sorted(self.calls.items()) if wanted(call)]

    def take_expired(self, now: float) -> list[Pending]:
        """Takes out the calls of lanes whose deadline has come."""
        for group in [group for group in self.groups.values() if group.deadline <= now]:
            self._dissolve(group)
        expired = [call for call in self.calls.values() if call.deadline <= now]
        for call in expired:
            self.remove(call)
        return expired

    def take_expired_others(self, now: float) -> list[Everywhere | Command]:
        expired = [other for other in self.others.values() if other.deadline <= now]
        for other in expired:
            del self.others[other.number]
        return expired

    def take_others(self) -> list[Everywhere | Command]:
        """Takes out all that are not of one lane."""
        others = list(self.others.values())
        self.others.clear()
        return others

    def directed(self) -> list[Everywhere]:
        return [other for other in self.others.values() if isinstance(other, Everywhere)]

    def deadlines(self) -> list[float]:
        times = [call.deadline for call in self.calls.values()]
        times += [other.deadline for other in self.others.values()]
        times += [group.deadline for group in self.groups.values()]
        return times

    def _group_of(self, number: int) -> Group | None:
        at = bisect_right(self._firsts, number) - 1
        if at < 0:
            return None
        group = self.groups[self._firsts[at]]
        return group if number < group.first + group.count else None

    def _answer_some(self, group: Group, numbers: list[int], values: list[Any], index: int) -> int:
        """Places the run of results from `index` on that belong to the group; returns where the run ends."""
        first = group.first
        count = group.count
        positions = group.positions
        results = group.batch.results
        placed = 0
        for number in numbers[index:]:
            offset = number - first
            if not 0 <= offset < count:
                break
            position = positions[offset]
            if position >= 0 and results[position] is UNSETTLED:
                results[position] = values[index]
                placed += 1
            index += 1
        group.batch.left -= placed
        group.left -= placed
        group.lane.unanswered -= placed
        if group.left == 0:
            self._forget(group)
        return index

    def _dissolve(self, group: Group) -> None:
        for offset in range(group.count):
            self._leave(group, offset)

    def _leave(self, group: Group, offset: int) -> Pending | None:
        """Makes a sent call of a group stand alone; None when it is settled already or has left before."""
        position = group.positions[offset]
        if position < 0 or group.batch.results[position] is not UNSETTLED:
            return None
        call = group.single(offset)
        call.number = group.first + offset
        call.lsn = group.lsn
        call.via = group.via
        call.incarnation = group.incarnation
        call.catalog_version = group.catalog_version
        self.calls[call.number] = call
        group.lane.unanswered_bytes += len(call.args)
        group.positions[offset] = -1
        group.left -= 1
        if group.left == 0:
            self._forget(group)
        return call

    def _forget(self, group: Group) -> None:
        at = bisect_right(self._firsts, group.first) - 1
        # Nothing is called in between: no interrupt comes there.
        del self.groups[group.first]
        del self._firsts[at]
        group.lane.unanswered_bytes -= group.bytes
