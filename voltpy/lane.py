"""A lane to each partition, and to the coordinator: calls wait there until its window has room, WINDOW_CALLS of them.

Calls are counted, not frames: replies coalesce. Bytes are counted too, so that large calls don't pile up in sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Final

from voltpy.calls import Pending
from voltpy.hash_slot import slot_owners
from voltpy.messages import CALLS_A_FRAME, CALLS_IN_FLIGHT_A_CLIENT, FRAMES_IN_FLIGHT, PartitionAddress

if TYPE_CHECKING:
    from voltpy.batch import Group

ROUTER: Final = -1  # a destination; the others are partition numbers, and the next one for the coordinator
FRAME_BYTES = 1 << 20  # where a frame of large calls is cut
WINDOW_CALLS = CALLS_A_FRAME * FRAMES_IN_FLIGHT
# The coordinator gathers what waits into one batch: the next one's calls should be there while that one is flushed.
COORDINATOR_WINDOW_CALLS = 2 * WINDOW_CALLS
WINDOW_BYTES = FRAME_BYTES * FRAMES_IN_FLIGHT


class Lane:
    """What waits for one partition, or for the coordinator, and how much of what was sent is unanswered.

    `window` bounds the unanswered calls: at the router all lanes share one limit, `routed_window` is this one's part.
    `limbo_until`: when its direct connection was lost, until then the router may still say what became of it.
    """

    __slots__ = (
        "address",
        "direct",
        "direct_window",
        "incarnation",
        "limbo_until",
        "lsn",
        "name",
        "partition",
        "queue",
        "ready",
        "routed_window",
        "unanswered",
        "unanswered_bytes",
    )

    def __init__(self, partition: int, routed_window: int, name: str = "", direct_window: int = WINDOW_CALLS) -> None:
        self.partition = partition
        self.name = name or f"partition {partition}"
        self.direct_window = direct_window
        self.address = PartitionAddress(partition, 0, "", 0, 0)
        self.routed_window = routed_window
        self.incarnation = 0
        self.lsn = 0
        self.direct = False
        self.limbo_until = inf
        self.queue: deque[Pending] = deque()
        self.ready: deque[Group] = deque()
        self.unanswered = 0
        self.unanswered_bytes = 0

    @property
    def window(self) -> int:
        return self.direct_window if self.direct else self.routed_window

    def has_room(self) -> bool:
        window = self.direct_window if self.direct else self.routed_window
        return self.unanswered < window and self.unanswered_bytes < WINDOW_BYTES

    def take_calls(self, withdraw: Callable[[Pending], None]) -> list[Pending]:
        """Takes the next frame's calls out of the queue, and counts them as unanswered; none when none is left.

        `withdraw` is told of those that their callers have cancelled.
        """
        queue = self.queue
        calls: list[Pending] = []
        size = 0
        limit = min(CALLS_A_FRAME, self.window - self.unanswered)
        while queue and len(calls) < limit:
            call = queue[0]
            if size + len(call.args) > FRAME_BYTES and calls:
                break
            queue.popleft()
            if call.done:
                continue
            if call.number == 0 and not call.begin():
                withdraw(call)
                continue
            size += len(call.args)
            calls.append(call)
        self.unanswered += len(calls)
        self.unanswered_bytes += size
        return calls

    def take_expired(self, now: float) -> list[Pending]:
        """The calls that have waited until their deadline, those of groups too: they wait no longer."""
        expired = [call for call in self.queue if call.deadline <= now]
        if expired:
            self.queue = deque(call for call in self.queue if call.deadline > now)
        for group in [group for group in self.ready if group.deadline <= now]:
            self.ready.remove(group)
            expired += group.singly()
        return expired

    def deadlines(self) -> list[float]:
        """When something has to be done about what waits here."""
        return [self.limbo_until, *(call.deadline for call in self.queue), *(group.deadline for group in self.ready)]


class Lanes(list[Lane]):
    """A cluster's lanes: one to each partition, in the order of their numbers, then the coordinator's.

    `owners` has the lane of each hash slot; `coordinator` is the lane of calls that belong to no one partition. One
    partition is its own coordinator. Before the first topology there is no lane, and `coordinator` leads nowhere.
    """

    __slots__ = ("coordinator", "owners", "partitions")

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        super().__init__()
        if partitions == 1:
            self.append(Lane(0, WINDOW_CALLS))
        elif partitions > 1:
            window = max(min(WINDOW_CALLS, (CALLS_IN_FLIGHT_A_CLIENT - WINDOW_CALLS) // partitions), 1)
            self.extend(Lane(partition, window) for partition in range(partitions))
            self.append(Lane(partitions, WINDOW_CALLS, "the coordinator", COORDINATOR_WINDOW_CALLS))
        self.owners = [self[partition] for partition in slot_owners(partitions)] if partitions else []
        self.coordinator = self[-1] if partitions else Lane(0, 1)

    @property
    def of_partitions(self) -> list[Lane]:
        return self[: self.partitions]
