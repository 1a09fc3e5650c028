"""What the supervisor wants done: to its children, to the disk, and told to people."""

from __future__ import annotations

from typing import Any, NamedTuple

from voltpy.child import ROUTER, Child
from voltpy.messages import AdminReply, Message, Runaway
from voltpy.schema import Schema


class Start(NamedTuple):
    """Start the child's process. `runaway`: the call that its predecessor had to be killed for."""

    child: int
    runaway: Runaway | None


class Terminate(NamedTuple):
    """SIGTERM: finish and exit."""

    child: int


class Kill(NamedTuple):
    """SIGKILL."""

    child: int


class Tell(NamedTuple):
    child: int
    message: Message


class Persist(NamedTuple):
    """Make new procedures durable, or the new schema if there is one, then call `persisted`."""

    catalog_version: int
    path: str
    source: str
    schema: Schema | None = None


class Ready(NamedTuple):
    """Everything serves; clients connect to `port`."""

    port: int


class Done(NamedTuple):
    """All processes have ended. `error`: why the start failed, empty after a stop."""

    error: str


class Report(NamedTuple):
    """Something that an operator may want to know. `level` is "info" or "warning"."""

    event: str
    fields: dict[str, Any]
    level: str = "info"


Action = Start | Terminate | Kill | Tell | Persist | Ready | Done | Report


class Actions:
    """Those that are decided, in their order."""

    def __init__(self) -> None:
        self._decided: list[Action] = []

    def take(self) -> list[Action]:
        """What was decided since the last call, to carry out in this order."""
        decided, self._decided = self._decided, []
        return decided

    def add(self, action: Action) -> None:
        self._decided.append(action)

    def tell(self, child: Child, message: Message) -> None:
        self._decided.append(Tell(child.number, message))

    def answer(self, admin_number: int, body: dict[str, Any]) -> None:
        self._decided.append(Tell(ROUTER, AdminReply(admin_number, "", body)))

    def refuse(self, admin_number: int, code: str, message: str) -> None:
        self._decided.append(Tell(ROUTER, AdminReply(admin_number, code, {"message": message})))

    def report(self, event: str, **fields: Any) -> None:
        self._decided.append(Report(event, fields))

    def warn(self, event: str, **fields: Any) -> None:
        self._decided.append(Report(event, fields, "warning"))
