"""The coordinator's conversation with one partition: Attach, then numbered Orders and Reports. Pure.

    state       means                                          left when
    down        the partition is not there                     a topology has an incarnation of it → attaching
    attaching   Attach was sent                                Attached → attached; too long → attaching, anew
    attached    orders go, reports come                        a report is missing or overdue, it refuses → attaching;
                                                               another incarnation → attaching; none → down

Each attempt is a session with a number of its own, and a connection of its own: frames that were queued for an earlier
one reach nobody. Orders of a session are carried out in their order or not at all; when a session ends, whatever was
not reported in it is unknown.
"""

from __future__ import annotations

from voltpy.messages import Attach, Attached, Order, Orders, PartitionAddress, Release, Report, Reports

ATTACH_DUE_S = 2.0
REPORTS_DUE_S = 5.0  # at least
BESIDE_A_CALL_S = 2.0  # that reports may take beside the one call that a partition may be running
FRAME_BYTES = 4 << 20  # of Orders: then another frame begins

DOWN, ATTACHING, ATTACHED = "down", "attaching", "attached"


def reports_due_s(procedure_timeout_s: float) -> float:
    """How long a partition that lives may take to report: it runs one call for as long as it is allowed to."""
    return max(REPORTS_DUE_S, procedure_timeout_s + BESIDE_A_CALL_S)


class Session:
    """`connection` grows whenever the shell must connect anew, to `address`."""

    __slots__ = (
        "_frames",
        "_number_in",
        "_number_out",
        "_orders",
        "_orders_bytes",
        "_reports_due_s",
        "_since_s",
        "_unreported",
        "address",
        "connection",
        "epoch",
        "number",
        "partition",
        "state",
    )

    def __init__(self, partition: int, epoch: int, reports_due_s: float = REPORTS_DUE_S) -> None:
        self.partition = partition
        self._reports_due_s = reports_due_s
        self.epoch = epoch
        self.address: PartitionAddress | None = None
        self.state = DOWN
        self.number = 0
        self.connection = 0
        self._orders: list[Order] = []
        self._orders_bytes = 0
        self._frames: list[Attach | Orders] = []
        self._number_out = self._number_in = 0
        self._unreported = 0  # orders that have been given and not been reported on
        self._since_s = 0.0  # when the last report came, or the first order went out

    def adopt(self, address: PartitionAddress, now_s: float) -> bool:
        """What a topology says of the partition. True: the session that there was is over."""
        before, self.address = self.address, address
        if not address.incarnation:
            was_up = self.state != DOWN
            self.state = DOWN
            self._forget()
            return was_up
        if self.state != DOWN and before is not None and before.incarnation == address.incarnation:
            return False
        was_up = self.state != DOWN
        self.begin(now_s)
        return was_up

    def begin(self, now_s: float) -> None:
        """A new session: everything of the one before is void."""
        self._forget()
        self.number += 1
        self.connection += 1
        self.state = ATTACHING
        self._since_s = now_s
        self._frames.append(Attach(self.epoch, self.number))

    def attached(self, message: Attached) -> bool:
        """Whether the partition has accepted this session just now."""
        if self.state != ATTACHING or (message.epoch, message.session) != (self.epoch, self.number):
            return False
        self.state = ATTACHED
        return True

    def reports(self, message: Reports, now_s: float) -> list[Report] | None:
        """What came, in order; None: a frame is missing, so the session is over."""
        if self.state != ATTACHED or (message.epoch, message.session) != (self.epoch, self.number):
            return []
        if message.number != self._number_in + 1:
            return None
        self._number_in += 1
        self._unreported = max(self._unreported - len(message.reports), 0)
        self._since_s = now_s
        return message.reports

    def order(self, order: Order, order_bytes: int, now_s: float, takes_s: float = 0.0) -> None:
        """Gives an order. Each but Release is answered by one report; this one may take `takes_s` of itself."""
        if not self._unreported:
            self._since_s = now_s
        self._since_s = max(self._since_s, now_s + takes_s) if takes_s else self._since_s
        if self._orders and self._orders_bytes + order_bytes > FRAME_BYTES:
            self._close_frame()
        self._orders.append(order)
        self._orders_bytes += order_bytes
        self._unreported += type(order) is not Release

    def is_overdue(self, now_s: float) -> bool:
        if self.state == ATTACHING:
            return now_s - self._since_s > ATTACH_DUE_S
        return self.state == ATTACHED and self._unreported > 0 and now_s - self._since_s > self._reports_due_s

    def take_frames(self) -> list[Attach | Orders]:
        """What is to be sent."""
        if self._orders:
            self._close_frame()
        frames, self._frames = self._frames, []
        return frames

    def _close_frame(self) -> None:
        self._number_out += 1
        self._frames.append(Orders(self.epoch, self.number, self._number_out, self._orders))
        self._orders, self._orders_bytes = [], 0

    def _forget(self) -> None:
        self._orders, self._orders_bytes, self._frames = [], 0, []
        self._number_out = self._number_in = self._unreported = 0
