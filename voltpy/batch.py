"""Many calls of one procedure (`call_many`), which are not objects: they travel as columns.

    rows ──deal──► open groups, one a lane ──full, or pushed──► the lane ──► sent, as one frame

A `Group` is up to 128 calls with consecutive numbers. Its calls become `Pending` objects only when something goes wrong
with them.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from math import inf
from typing import Any, Final

from voltpy import wire
from voltpy.calls import MAX_CALL_BYTES, UNENCODABLE, Pending, too_large, unencodable
from voltpy.errors import BadArguments, Error, Unavailable
from voltpy.hash_slot import hash_slot
from voltpy.lane import ROUTER, Lane, Lanes
from voltpy.messages import CALLS_A_FRAME, ProcedureInfo
from voltpy.routing import SLOT_MASK, route

OTHER_ROW_FAILED: Final = "not sent, since another row failed"

_INT_KEYS = {int}
_ROW_TYPES = {tuple, list}

_encode = wire.encode


class _Unsettled:
    """The one value in a batch's results that no procedure can return."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<unsettled>"


UNSETTLED: Final = _Unsettled()


class Batch:
    """The calls of one `call_many`. `results[i]` is row i's result, its Error, or UNSETTLED; `left` counts the last.

    `finished`: no more rows will come. `open` are the groups that are being filled.
    """

    __slots__ = ("failed", "finished", "info", "left", "open", "procedure", "results", "timeout")

    def __init__(self, info: ProcedureInfo, timeout: float) -> None:
        self.procedure = info.name
        self.info = info
        self.timeout = timeout
        self.results: list[Any] = []
        self.left = 0
        self.failed = False
        self.finished = False
        self.open: dict[Lane, Group] = {}

    def place(self, position: int, outcome: Any) -> None:
        if self.results[position] is UNSETTLED:
            self.results[position] = outcome
            self.left -= 1
            if isinstance(outcome, Error):
                self.failed = True

    def first_error(self) -> Error | None:
        return next((result for result in self.results if isinstance(result, Error)), None)

    def deal(self, rows: list[Any], lanes: Lanes) -> list[Group]:
        """Deals rows out to the lanes of their keys, and returns the groups that are full.

        A row that can't be routed fails.
        """
        if len(self.info.key_positions) == 1:
            return self._deal_by_key(rows, lanes)
        if len(self.info.key_positions) == 2:
            return self._deal_by_two_keys(rows, lanes)
        self._deal_singly(rows, self._awaited(rows), lanes)
        return self._take_full()

    def _deal_by_key(self, rows: list[Any], lanes: Lanes) -> list[Group]:
        position = self._awaited(rows)
        key_position = self.info.key_positions[0]
        try:
            rows = _tuples(rows)
            keys = [row[key_position] for row in rows]
            if set(map(type, keys)) == _INT_KEYS:
                slots = [crc_hqx(b"%d" % key, 0) & SLOT_MASK for key in keys]
            else:
                slots = list(map(hash_slot, keys))
        except (TypeError, IndexError, UnicodeEncodeError):
            self._deal_singly(rows, position, lanes)
            return self._take_full()
        self.reopen(lanes)
        owners = lanes.owners
        columns = {lane: (group.slots, group.rows, group.positions) for lane, group in self.open.items()}
        for row, slot in zip(rows, slots, strict=True):
            group_slots, group_rows, group_positions = columns[owners[slot]]
            group_slots.append(slot)
            group_rows.append(row)
            group_positions.append(position)
            position += 1
        return self._take_full()

    def _deal_by_two_keys(self, rows: list[Any], lanes: Lanes) -> list[Group]:
        """The same for what moves something from one key to another, where both are integers."""
        position = self._awaited(rows)
        first, second = self.info.key_positions
        try:
            rows = _tuples(rows)
            keys, others = [row[first] for row in rows], [row[second] for row in rows]
            if not set(map(type, keys)) == set(map(type, others)) == _INT_KEYS:
                raise TypeError
        except (TypeError, IndexError):
            self._deal_singly(rows, position, lanes)
            return self._take_full()
        self.reopen(lanes)
        owners, coordinator = lanes.owners, lanes.coordinator
        columns = {lane: (group.slots, group.rows, group.positions) for lane, group in self.open.items()}
        for row, key, other in zip(rows, keys, others, strict=True):
            slot = crc_hqx(b"%d" % key, 0) & SLOT_MASK
            lane = owners[slot]
            if owners[crc_hqx(b"%d" % other, 0) & SLOT_MASK] is not lane:
                lane = coordinator
            group_slots, group_rows, group_positions = columns[lane]
            group_slots.append(slot)
            group_rows.append(row)
            group_positions.append(position)
            position += 1
        return self._take_full()

    def _awaited(self, rows: list[Any]) -> int:
        """Makes place for the rows' results; the first one's position."""
        position = len(self.results)
        self.results.extend([UNSETTLED] * len(rows))
        self.left += len(rows)
        return position

    def reopen(self, lanes: Lanes) -> None:
        """Has one open group for each of these lanes; what is dealt out already moves to them."""
        if list(self.open) == lanes:
            return
        former = self.open
        self.open = {lane: Group(self, self.info, lane, [], [], []) for lane in lanes}
        for group in former.values():
            for row, position in zip(group.rows, group.positions, strict=True):
                lane, slot = route(group.info, row, lanes.owners, lanes.coordinator)
                self.open[lane].append(slot, row, position)

    def take(self, lane: Lane) -> Group:
        """The lane's open group, which is replaced by an empty one."""
        group = self.open[lane]
        self.open[lane] = Group(self, self.info, lane, [], [], [])
        return group

    def change(self, info: ProcedureInfo, lanes: Lanes) -> list[Group]:
        """The procedure was replaced: what is dealt out already leaves by the old signature, and is checked there."""
        self.reopen(lanes)
        self.info = info
        return [group for group in map(self.take, list(self.open)) if group.rows]

    def abandon(self) -> None:
        """No more rows will come, and what is dealt out will not be sent."""
        self.finished = True
        for group in self.open.values():
            group.fail(OTHER_ROW_FAILED)
        self.open = {}

    def _deal_singly(self, rows: list[Any], position: int, lanes: Lanes) -> None:
        self.reopen(lanes)
        for place, row in enumerate(rows, position):
            try:
                if not isinstance(row, tuple | list):
                    raise BadArguments(f"{self.procedure}: a row is a tuple of arguments, not {type(row).__name__}")
                args = tuple(row)
                lane, slot = route(self.info, args, lanes.owners, lanes.coordinator)
            except BadArguments as error:
                self.place(place, error)
                continue
            self.open[lane].append(slot, args, place)

    def _take_full(self) -> list[Group]:
        taken = []
        for lane, group in self.open.items():
            count = len(group.rows)
            if count < CALLS_A_FRAME:
                continue
            full = count - count % CALLS_A_FRAME
            for start in range(0, full, CALLS_A_FRAME):
                end = start + CALLS_A_FRAME
                slots, rows, positions = group.slots[start:end], group.rows[start:end], group.positions[start:end]
                taken.append(Group(self, group.info, lane, slots, rows, positions))
            del group.slots[:full], group.rows[:full], group.positions[:full]
        return taken


def _tuples(rows: list[Any]) -> list[Any]:
    """Raises TypeError where a row is neither tuple nor list."""
    kinds = set(map(type, rows))
    if not kinds <= _ROW_TYPES:
        raise TypeError
    return list(map(tuple, rows)) if list in kinds else rows  # a generator may use one list for all its rows


class Group:
    """Columns of a batch's calls for one lane. Sent, they are the calls `first` to `first + count - 1`.

    `positions[i]` is the call's place in the batch's results, -1 when the call has left the group. `info` is the
    signature that it was routed by.
    """

    __slots__ = (
        "batch",
        "bytes",
        "catalog_version",
        "count",
        "deadline",
        "first",
        "incarnation",
        "info",
        "lane",
        "left",
        "lsn",
        "numbers",
        "positions",
        "retry_until",
        "rows",
        "slots",
        "via",
    )

    numbers: list[int]

    def __init__(
        self,
        batch: Batch,
        info: ProcedureInfo,
        lane: Lane,
        slots: list[int],
        rows: list[Sequence[Any]],
        positions: list[int],
    ) -> None:
        self.batch = batch
        self.info = info
        self.lane = lane
        self.slots = slots
        self.rows = rows
        self.positions = positions
        self.first = 0
        self.count = 0
        self.left = 0
        self.bytes = 0
        self.lsn = 0
        self.incarnation = 0
        self.catalog_version = 0
        self.via = ROUTER
        self.deadline = inf
        self.retry_until = 0.0

    def append(self, slot: int, row: Sequence[Any], position: int) -> None:
        self.slots.append(slot)
        self.rows.append(row)
        self.positions.append(position)

    def part(self, indices: Iterable[int]) -> Group:
        """An unsent group of some of an unsent group's calls."""
        wanted = list(indices)
        part = Group(
            self.batch,
            self.info,
            self.lane,
            [self.slots[index] for index in wanted],
            [self.rows[index] for index in wanted],
            [self.positions[index] for index in wanted],
        )
        part.count = part.left = len(wanted)
        part.deadline = self.deadline
        part.retry_until = self.retry_until
        return part

    def cut(self, size: int) -> bool:
        """Puts the halves of a group that makes too large a frame back in line. False: it must go as it is."""
        if self.count == 1:
            if size <= MAX_CALL_BYTES:
                return False
            self.batch.place(self.positions[0], too_large(self.batch.procedure, size))
            return True
        middle = self.count // 2
        self.lane.ready.appendleft(self.part(range(middle, self.count)))
        self.lane.ready.appendleft(self.part(range(middle)))
        return True

    def encodable(self, reason: Exception) -> Group | None:
        """Fails the rows of an unsent group that can't be encoded; a group of the others, if there are any."""
        kept: list[int] = []
        for index, row in enumerate(self.rows):
            try:
                _encode(row)
            except UNENCODABLE as error:
                self.batch.place(self.positions[index], unencodable(self.batch.procedure, error))
            else:
                kept.append(index)
        if len(kept) == self.count:  # one is nested so deeply that it encodes only alone
            for position in self.positions:
                self.batch.place(position, unencodable(self.batch.procedure, reason))
            return None
        return self.part(kept) if kept else None

    def fail(self, why: str) -> None:
        """It will not be sent."""
        for position in self.positions:
            self.batch.place(position, Unavailable(f"{self.batch.procedure}: {why}"))

    def single(self, offset: int) -> Pending:
        """One of its calls, to stand alone."""
        call = Pending()
        call.procedure = self.batch.procedure
        call.args = _encode(self.rows[offset])
        call.slot = self.slots[offset]
        call.lane = self.lane
        call.timeout = self.batch.timeout
        call.deadline = self.deadline
        call.retry_until = self.retry_until
        call.batch = self.batch
        call.position = self.positions[offset]
        return call

    def singly(self) -> list[Pending]:
        """The calls of an unsent group, one by one; rows that can't be encoded are settled."""
        calls = []
        for offset in range(len(self.rows)):
            try:
                calls.append(self.single(offset))
            except UNENCODABLE as error:
                self.batch.place(self.positions[offset], unencodable(self.batch.procedure, error))
        return calls
