"""A process that the supervisor watches: the router, a partition, or the coordinator. It is always in one state:

state      means                                   left when
starting   its process runs, it has not answered   it answers a StatusRequest → serving; it exits
serving    it answered                             it exits
backoff    it exited, or no process could be had;  the time comes → starting
           its next start has a time
failed     it refused to go on (exit 3, 4 or 6)    never: an operator looks at it, the others go on
stopped    the cluster is being stopped            never
"""

from __future__ import annotations

from typing import Any, NamedTuple

from voltpy.heartbeat import Watch
from voltpy.messages import Runaway, StatusReply

ROUTER = -1  # the router's place among the children; partitions have their own numbers, the coordinator the next one

BACKOFF_FIRST_S = 0.1
BACKOFF_MOST_S = 5.0


class ProcessFigures(NamedTuple):
    """What the operating system says about a child's process."""

    rss_bytes: int
    cpu_s: float


class Child:
    """See the table of states above."""

    __slots__ = (
        "answered", "asked", "asked_at_s", "backoff_until_s", "exit_status", "failures", "heard_at_s", "heard_before_s",
        "incarnation", "last_words", "name", "noticed_at_s", "number", "pid", "procedures", "reply", "reply_before",
        "restarts", "runaway", "since_s", "state", "switch_asked", "tcp_port", "watch",
    )  # fmt: skip

    def __init__(self, number: int, name: str, runaway_limit_s: float) -> None:
        self.number = number
        self.name = name
        self.state = "stopped"
        self.pid = 0
        self.since_s = 0.0  # when it took on its state
        self.noticed_at_s = 0.0
        self.failures = 0  # exits since it last served for STABLE_S
        self.restarts = -1
        self.backoff_until_s = 0.0
        self.exit_status: int | None = None
        self.last_words = ""
        self.incarnation = 0
        self.tcp_port = 0
        self.asked = 0  # the number of the last StatusRequest that it was sent
        self.answered = 0  # the number of the last one that it answered
        self.asked_at_s = 0.0
        self.switch_asked = 0  # the same, when it was last told to switch procedures
        self.reply: StatusReply | None = None
        self.reply_before: StatusReply | None = None
        self.heard_at_s = 0.0
        self.heard_before_s = 0.0
        self.procedures: list[str] = []  # names, in the order in which its heartbeat counts them
        self.runaway: Runaway | None = None
        self.watch = Watch(runaway_limit_s)

    @property
    def runs(self) -> bool:
        return self.state in ("starting", "serving")

    def enter(self, state: str, now_s: float) -> None:
        self.state = state
        self.since_s = self.noticed_at_s = now_s

    def backoff_s(self) -> float:
        """The wait before the next start: 0, 0.1, 0.2, 0.4 … 5 s."""
        if self.failures <= 1:
            return 0.0
        return min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** min(self.failures - 2, 16))

    def rate_a_second(self, metric: str) -> float:
        """How fast a counter grew between the last two answers."""
        if self.reply is None or self.reply_before is None or self.heard_at_s <= self.heard_before_s:
            return 0.0
        newer, older = self.reply.metrics.get(metric, 0), self.reply_before.metrics.get(metric, 0)
        if not isinstance(newer, int | float) or not isinstance(older, int | float):
            return 0.0
        return max(0.0, (newer - older) / (self.heard_at_s - self.heard_before_s))

    def status(self, figures: dict[int, ProcessFigures], now_s: float) -> dict[str, Any]:
        """As plain values; `figures` by child number, where there is a process."""
        status: dict[str, Any] = {
            "state": self.state,
            "pid": self.pid,
            "restarts": max(0, self.restarts),
            "state_s": round(now_s - self.since_s, 3),
            "tcp_port": self.tcp_port,
        }
        if self.number != ROUTER:
            status["incarnation"] = self.incarnation
        if self.number in figures:
            status.update(figures[self.number]._asdict())
        if self.reply is not None:
            status["lsn"] = self.reply.lsn
            status["silent_s"] = round(now_s - self.heard_at_s, 3)
            status["calls_per_s"] = round(self.rate_a_second("calls"), 1)
            status["metrics"] = self.reply.metrics
        if self.state in ("failed", "backoff"):
            status["exit_status"] = self.exit_status
            status["last_words"] = self.last_words
        return status
