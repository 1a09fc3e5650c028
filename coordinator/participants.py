"""What is said to the partitions about batches, and what they have still to say about them. Pure.

A decision stays *unacknowledged* until every writer has it on disk, an abort until whoever was told of it says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from coordinator.batch import batch_number
from coordinator.decision_log import Decision
from coordinator.session import ATTACHED, REPORTS_DUE_S, Session
from voltpy.errors import Corruption
from voltpy.messages import Decide, Order

ORDER_BYTES = 32  # of one without keys, changes or arguments


class Participants:
    """`sessions` by partition. `now_s` is set by whoever drives the core. `acknowledged` gathers batches that the
    decision log need not keep for the partitions' sake.
    """

    def __init__(
        self, partitions: int, epoch: int, decisions: Iterable[Decision], reports_due_s: float = REPORTS_DUE_S
    ) -> None:
        self.now_s = 0.0
        self.epoch = epoch
        self.everywhere = frozenset(range(partitions))
        self.sessions = [Session(partition, epoch, reports_due_s) for partition in range(partitions)]
        self.last_begun = self.last_over = batch_number(epoch, 0)
        self.unacknowledged = {decision.batch: set(decision.participants) for decision in decisions}
        self.acknowledged: list[int] = []
        self._aborts: list[set[int]] = [set() for _ in self.sessions]

    def next_batch(self) -> int:
        self.last_begun += 1
        return self.last_begun

    def is_over(self, batch: int) -> None:
        self.last_over = max(self.last_over, batch)

    # Who is there.

    def order(self, partition: int, order: Order, order_bytes: int = ORDER_BYTES, takes_s: float = 0.0) -> None:
        """Orders for a partition that is not attached are void: it is told what it needs when it is attached."""
        session = self.sessions[partition]
        if session.state == ATTACHED:
            session.order(order, order_bytes, self.now_s, takes_s)

    def are_attached(self, partitions: Iterable[int]) -> bool:
        return all(self.sessions[partition].state == ATTACHED for partition in partitions)

    @property
    def all_attached(self) -> bool:
        return all(session.state == ATTACHED for session in self.sessions)

    @property
    def any_attached(self) -> bool:
        return any(session.state == ATTACHED for session in self.sessions)

    def one_attached(self) -> int:
        return next((session.partition for session in self.sessions if session.state == ATTACHED), 0)

    # What they are told about batches.

    def commit(self, batch: int, writers: Iterable[int]) -> None:
        """The decision is on disk. Those who can't be told now ask when they are attached again."""
        self.unacknowledged[batch] = set(writers)
        for partition in sorted(writers):
            self.order(partition, Decide(batch, True))
        self.is_over(batch)

    def abort(self, batch: int, told: Iterable[int]) -> None:
        """Nothing of it happened, and what they have lent is theirs again."""
        for partition in sorted(told):
            self._tell_abort(partition, batch)
        self.is_over(batch)

    def _tell_abort(self, partition: int, batch: int) -> None:
        self.order(partition, Decide(batch, False))
        if self.sessions[partition].state == ATTACHED:
            self._aborts[partition].add(batch)

    def attached(self, partition: int, in_doubt: list[int], live: Collection[int]) -> None:
        """A session has begun. What is in doubt there is decided, but for batches that are under way.

        Raises Corruption for a batch that comes after all that was ever begun by this decision log: whatever became of
        it stands in another one.
        """
        if in_doubt and max(in_doubt) > self.last_begun:
            raise Corruption(
                f"partition {partition} is in doubt of batch {max(in_doubt)}, and the coordinator has begun none after "
                f"{self.last_begun}: its decision log has been lost, or is an older one"
            )
        for batch in in_doubt:
            if batch in self.unacknowledged:
                self.order(partition, Decide(batch, True))
            elif batch not in live:
                self._tell_abort(partition, batch)
        for batch in [batch for batch, waited_for in self.unacknowledged.items() if partition in waited_for]:
            if batch not in in_doubt:
                self.decided(partition, batch)  # it is on disk there; only the word of it was lost

    def lost(self, partition: int) -> None:
        """Whatever the last session had not reported is unknown."""
        self._aborts[partition].clear()

    # What they say.

    def decided(self, partition: int, batch: int) -> None:
        """The partition has the decision on disk."""
        self._aborts[partition].discard(batch)
        waited_for = self.unacknowledged.get(batch)
        if waited_for is not None:
            waited_for.discard(partition)
            if not waited_for:
                del self.unacknowledged[batch]
                self.acknowledged.append(batch)

    @property
    def have_decided_all(self) -> bool:
        """Whether no partition is in doubt: nothing that was decided is still to be acknowledged.

        What one that is not attached may have prepared, perhaps for an earlier coordinator, is not known here.
        """
        return self.all_attached and not self.unacknowledged and not any(self._aborts)
