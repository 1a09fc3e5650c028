"""What the supervisor decides about snapshots.

A snapshot is copied by somebody else, who says every now and then that he is still there. Until he says that he is
done, every partition holds a checkpoint for him. All of these are cut between two batches of the coordinator's: it
begins none (HoldBatches) from before the first checkpoint begins until all have begun (CheckpointBegun), so that no
transaction is in one and not in the other.

    state      means                                      left when
    quieting   the coordinator ends its batches           none is under way, or undecided → asked
    asked      the partitions make their checkpoints      all hold one → held
    held       he copies                                  he is done → releasing
    releasing  the partitions are asked whether they      all held theirs all the time → released
               held them to the end
    released   what he has is a snapshot                  the next one begins
    failed     it is not: a partition died, or let go,    the next one begins
               or he was not heard of for `lease_s`, or
               there was no cut within CUT_LIMIT_S
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from voltpy.actions import Actions
from voltpy.child import Child
from voltpy.cut import CUT_LIMIT_S, Cut
from voltpy.messages import (
    MAX_LEASE_S,
    BatchesHeld,
    CheckpointBegun,
    CheckpointHeld,
    CheckpointReleased,
    HoldCheckpoint,
    ReleaseCheckpoint,
    RenewHold,
)


class Snapshot:
    """The snapshot under way, or the last one. `directory` and `pid`: where to, and who copies; for people.

    `begun`: the partitions whose state is fixed. Once all have begun, the coordinator goes on (`cut`).
    """

    __slots__ = (
        "begun", "coordinator_epoch", "cut", "directory", "held", "lease_s", "pid", "reason", "released", "state",
        "until_s",
    )  # fmt: skip

    def __init__(
        self, cut: Cut, directory: str, pid: int, lease_s: float, coordinator_epoch: int, now_s: float
    ) -> None:
        self.cut = cut
        self.coordinator_epoch = coordinator_epoch
        self.directory = directory
        self.pid = pid
        self.lease_s = lease_s
        self.until_s = now_s + lease_s
        self.state = "asked"
        self.reason = ""  # why it failed
        self.begun: set[int] = set()
        self.held: dict[int, CheckpointHeld] = {}
        self.released: set[int] = set()

    @property
    def number(self) -> int:
        return self.cut.number

    @property
    def is_under_way(self) -> bool:
        return self.state in ("quieting", "asked", "held", "releasing")

    def described(self) -> dict[str, Any]:
        """As plain values, for whoever copies."""
        return {
            "snapshot": self.number,
            "state": self.state,
            "reason": self.reason,
            "coordinator_epoch": self.coordinator_epoch,
            "partitions": [
                {"partition": number, "checkpoint": held.checkpoint, "lsn": held.lsn, "epoch": held.epoch}
                for number, held in sorted(self.held.items())
            ],
        }


class Snapshots:
    """One at a time. `refusal`, where it is taken: why none can begin now; empty: one can."""

    def __init__(
        self, partitions: list[Child], coordinator: Child, actions: Actions, new_number: Callable[[], int]
    ) -> None:
        self._partitions = partitions
        self._coordinator = coordinator
        self._actions = actions
        self._new_number = new_number
        self._last: Snapshot | None = None

    @property
    def under_way(self) -> Snapshot | None:
        return self._last if self._last is not None and self._last.is_under_way else None

    def begin(self, admin_number: int, body: dict[str, Any], refusal: str, now_s: float) -> None:
        """Let every partition hold a checkpoint of now. The answer comes at once, `renew` tells how it goes.

        With one partition nothing crosses partitions, and the coordinator has no batches to hold.
        """
        refuse = self._actions.refuse
        directory, pid, lease_s = body.get("directory"), body.get("pid"), body.get("lease_s")
        if not (isinstance(directory, str) and isinstance(pid, int) and isinstance(lease_s, int | float)):
            return refuse(admin_number, "BadArguments", "begin_snapshot takes a directory, a pid and a lease_s")
        if not 0 < lease_s <= MAX_LEASE_S:
            return refuse(admin_number, "BadArguments", f"a lease is of at most {MAX_LEASE_S:g} s")
        other = self.under_way
        if other is not None:
            return refuse(
                admin_number,
                "ClusterError",
                f"a snapshot into {other.directory} is under way (process {other.pid}); where that has died, the "
                f"cluster forgets it after {other.lease_s:g} s",
            )
        if refusal:
            return refuse(admin_number, "Unavailable", refusal)
        cut = Cut(self._new_number(), self._coordinator, self._actions)
        snapshot = self._last = Snapshot(cut, directory, pid, float(lease_s), self._coordinator.incarnation, now_s)
        if len(self._partitions) > 1:
            snapshot.state = "quieting"
            cut.hold(now_s)
        else:
            self._ask_for_checkpoints(snapshot)
        self._actions.report("snapshot_begun", directory=directory, pid=pid)
        self._actions.answer(admin_number, snapshot.described())

    def renew(self, admin_number: int, body: dict[str, Any], now_s: float) -> None:
        """Whoever copies is still there, and asks how it goes."""
        snapshot = self._named(admin_number, body)
        if snapshot is None:
            return
        if snapshot.is_under_way:
            snapshot.until_s = now_s + snapshot.lease_s
            for child in self._partitions if snapshot.state != "quieting" else ():
                self._actions.tell(child, RenewHold(snapshot.number, snapshot.lease_s))
        self._actions.answer(admin_number, snapshot.described())

    def end(self, admin_number: int, body: dict[str, Any]) -> None:
        """Everything is copied, or it has come to nothing: then `body` has a reason."""
        snapshot = self._named(admin_number, body)
        if snapshot is None:
            return
        reason = body.get("reason")
        if isinstance(reason, str) and reason:
            self.fail(reason)
        elif snapshot.state == "held":
            snapshot.state = "releasing"
            for child in self._partitions:
                self._actions.tell(child, ReleaseCheckpoint(snapshot.number))
        elif snapshot.state in ("quieting", "asked"):
            self.fail("it was ended before there was anything to copy")
        self._actions.answer(admin_number, snapshot.described())

    def tick(self, now_s: float) -> None:
        snapshot = self.under_way
        if snapshot is None:
            return
        if now_s >= snapshot.until_s:
            self.fail(f"nothing was heard of who copies it for {snapshot.lease_s:g} s")
        elif now_s >= snapshot.cut.until_s:
            self.fail(f"not all partitions began their checkpoints within {CUT_LIMIT_S:g} s")

    def coordinator_died(self) -> None:
        if self._last is not None and self._last.cut.until_s < inf:
            self.fail("the coordinator died")

    def batches_held(self, message: BatchesHeld, now_s: float) -> None:
        snapshot = self._last
        if snapshot is not None and snapshot.state == "quieting" and snapshot.cut.is_held(message, now_s):
            snapshot.state = "asked"
            self._ask_for_checkpoints(snapshot)

    def checkpoint_begun(self, child: Child, message: CheckpointBegun, now_s: float) -> None:
        snapshot = self._last
        if snapshot is None or message.snapshot != snapshot.number or snapshot.state not in ("asked", "held"):
            return
        if snapshot.cut.is_good(now_s):
            snapshot.begun.add(child.number)
            if len(snapshot.begun) == len(self._partitions):
                snapshot.cut.resume()
                self._hold_if_complete(snapshot)

    def checkpoint_held(self, child: Child, message: CheckpointHeld) -> None:
        snapshot = self._last
        if snapshot is None or message.snapshot != snapshot.number or snapshot.state != "asked":
            return
        if message.error:
            return self.fail(f"{child.name}: {message.error}")
        snapshot.held[child.number] = message
        self._hold_if_complete(snapshot)

    def checkpoint_released(self, child: Child, message: CheckpointReleased) -> None:
        snapshot = self._last
        if snapshot is None or message.snapshot != snapshot.number or snapshot.state != "releasing":
            return
        if not message.was_held:
            return self.fail(f"{child.name} did not hold its checkpoint to the end")
        snapshot.released.add(child.number)
        if len(snapshot.released) == len(self._partitions):
            snapshot.state = "released"
            self._actions.report("snapshot_made", directory=snapshot.directory)

    def fail(self, reason: str) -> None:
        snapshot = self.under_way
        if snapshot is None:
            return
        asked = snapshot.state != "quieting"
        snapshot.state, snapshot.reason = "failed", reason
        snapshot.cut.resume()
        for child in self._partitions:
            if child.state == "serving" and asked:
                self._actions.tell(child, ReleaseCheckpoint(snapshot.number))
        self._actions.warn("snapshot_failed", directory=snapshot.directory, reason=reason)

    def _named(self, admin_number: int, body: dict[str, Any]) -> Snapshot | None:
        snapshot = self._last
        if snapshot is None or snapshot.number != body.get("snapshot"):
            why = "the cluster knows nothing of this snapshot (any more)"
            self._actions.refuse(admin_number, "ClusterError", why)
            return None
        return snapshot

    def _ask_for_checkpoints(self, snapshot: Snapshot) -> None:
        for child in self._partitions:
            self._actions.tell(child, HoldCheckpoint(snapshot.number, snapshot.lease_s))

    def _hold_if_complete(self, snapshot: Snapshot) -> None:
        if len(snapshot.held) == len(self._partitions) and snapshot.cut.until_s == inf:
            snapshot.state = "held"
