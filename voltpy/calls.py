"""Single calls on their way, and what is said of one that ends without an answer.

Of a call that was never sent, or turned away, we know that it never ran: Unavailable. Of one that was sent we don't:
Indeterminate. An attempt that never ran says nothing about the attempts before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from voltpy.errors import BadArguments, Error, Indeterminate, ProtocolError, Unavailable
from voltpy.messages import MAX_FRAME_BYTES, NEVER_SENT

if TYPE_CHECKING:
    from voltpy.batch import Batch
    from voltpy.lane import Lane

MAX_CALL_BYTES = MAX_FRAME_BYTES - 4096  # leaves room for what surrounds the arguments in a frame
# What msgspec raises for values that MessagePack can't carry: foreign types, lone surrogates, large ints, deep nesting.
UNENCODABLE: Final = (TypeError, ValueError, OverflowError, RecursionError, AttributeError)


class Pending:
    """One call on its way. When `done`, `value` or `error` is its outcome.

    A shell derives from it to wake whoever waits. `args` is the encoded argument array; `lsn` the partition's last LSN
    that was known before the first attempt; `floor` that LSN once an attempt was lost, else NEVER_SENT.
    """

    __slots__ = (
        "args",
        "batch",
        "catalog_version",
        "deadline",
        "done",
        "error",
        "floor",
        "incarnation",
        "lane",
        "lsn",
        "number",
        "position",
        "procedure",
        "retry_until",
        "slot",
        "timeout",
        "value",
        "via",
    )

    # Known when it is submitted:
    procedure: str
    args: bytes
    timeout: float
    deadline: float
    retry_until: float
    # … when it is routed:
    slot: int
    lane: Lane
    # … when it is sent:
    lsn: int
    incarnation: int
    catalog_version: int
    via: int
    # … of a batch:
    position: int

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.error: Error | None = None
        self.number = 0
        self.floor = NEVER_SENT
        self.batch: Batch | None = None

    @property
    def is_submitted(self) -> bool:
        """Whether a connection counts it; an interrupt may have come before."""
        return hasattr(self, "deadline")

    def begin(self) -> bool:
        """Called just before the first attempt leaves. False: its caller has cancelled it."""
        return True

    def lose(self) -> None:
        """An attempt was sent, and its answer will not come."""
        if self.floor == NEVER_SENT:
            self.floor = self.lsn

    def never_ran(self, error: Error) -> Error:
        """The error for an attempt that did not run: of a retried call, an earlier one may have."""
        if self.floor == NEVER_SENT:
            return error
        return Indeterminate(f"{self.procedure}: an earlier attempt was lost and may have run; then: {error}")

    def timed_out(self) -> Error:
        """The error at its deadline, of a call that was sent."""
        return Indeterminate(f"{self.procedure}: timed out after {self.timeout:g} s; it may have run")

    def never_left(self) -> Error:
        """The error at its deadline, of a call that is waiting to be sent."""
        late = f"{self.procedure}: timed out after {self.timeout:g} s; it was not sent, or turned away"
        return self.never_ran(Unavailable(late))


class Lookup(Pending):
    """Settles with a ProcedureInfo once the router has been asked, or with UnknownProcedure."""

    __slots__ = ()


class Everywhere(Pending):
    """A directed call. `values[p]` or `errors[p]` is partition p's outcome; `missing` are those to come.

    Where some failed, `error` is the first one's, with its partition named; with `returns_errors`, `value` has each of
    them in its place.

    The parts of a joint one commit together: the coordinator answers for all of them, with the list of their results.
    """

    __slots__ = ("errors", "incarnations", "missing", "parts", "returns_errors", "values")

    def __init__(self, *, returns_errors: bool = False) -> None:
        super().__init__()
        self.returns_errors = returns_errors
        self.values: dict[int, Any] = {}
        self.errors: dict[int, Error] = {}
        self.incarnations: dict[int, int] = {}
        self.missing: set[int] = set()
        self.parts = 0

    def expect(self, incarnations: dict[int, int], parts: int) -> None:
        """It is about to be sent, to processes of these incarnations; so many parts of it will run."""
        self.incarnations = incarnations
        self.missing = set(incarnations)
        self.parts = parts

    @property
    def is_joint(self) -> bool:
        return len(self.incarnations) < self.parts

    def take(self, partition: int, value: Any, error: Error | None) -> bool:
        """Takes in one partition's outcome. True: none is missing any more, `value` or `error` is the whole's."""
        if partition not in self.missing:
            return False
        if self.is_joint and error is None and (type(value) is not list or len(value) != self.parts):
            raise ProtocolError(f"a joint call has {self.parts} results, and others were sent")
        self.missing.remove(partition)
        if error is None:
            self.values[partition] = value
        else:
            self.errors[partition] = error
        if self.missing:
            return False
        if self.is_joint:
            self.value, self.error = value, error
            return True
        if self.parts > 1:
            for number, failed in self.errors.items():
                _name_partition(failed, number)
        if self.errors and not self.returns_errors:
            self.error = self.errors[min(self.errors)]
        else:
            outcomes = {**self.values, **self.errors}
            self.value = [outcomes[number] for number in sorted(outcomes)]
        return True


class Command(Pending):
    """Something for the supervisor: settles with the body of its answer."""

    __slots__ = ("body",)
    body: dict[str, Any]


def _name_partition(error: Error, partition: int) -> None:
    where = f"partition {partition}"
    if where not in str(error):
        error.args = (f"{where}: {error}", *error.args[1:])


def unencodable(procedure: str, error: Exception) -> BadArguments:
    return BadArguments(f"{procedure}: the arguments can't be sent: {error}")


def too_large(procedure: str, size: int) -> BadArguments:
    return BadArguments(f"{procedure}: arguments of {size:,} bytes; the limit is {MAX_CALL_BYTES:,}")
