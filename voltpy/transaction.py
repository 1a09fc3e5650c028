"""`tx`, what a procedure sees: its tables, `abort`, and generated values.

Generated values (`now`, `random`, `uuid`, `unique_id`) belong to the call, not to the run: a call that is set aside and
rerun gets the same ones, and a directed call gets the same ones in every partition, since copies must be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any, NoReturn, Protocol
from uuid import UUID

from xxhash import xxh3_64_intdigest

from voltpy.errors import Aborted, Error, SchemaError, SqlError

if TYPE_CHECKING:
    from voltpy.result import Result
    from voltpy.sql.statements import Statements

# unique_id, 63 bits: 0 | partition, 9 bits | epoch, 17 bits | counter, 36 bits. The epoch is raised at every start, so
# neither a clock nor a stored counter is needed. In directed calls: 1 | 62 bits of a hash of the call id.
PARTITION_BITS, EPOCH_BITS, COUNTER_BITS = 9, 17, 36


def unique_ids(partition: int, epoch: int) -> Callable[[], int]:
    """A source of numbers that no partition hands out twice, over restarts too. Ends with StopIteration, after 2^36."""
    if partition >> PARTITION_BITS or epoch >> EPOCH_BITS:
        raise Error(f"unique ids are used up: partition {partition}, epoch {epoch}")
    first = (partition << EPOCH_BITS | epoch) << COUNTER_BITS
    return iter(range(first + 1, first + (1 << COUNTER_BITS))).__next__


class Generated:
    """The generated values of one call."""

    __slots__ = ("_clock", "_ids", "_issued", "_now", "_random", "call_id", "directed")

    def __init__(
        self, call_id: tuple[int, int], directed: bool, clock: Callable[[], datetime], ids: Callable[[], int]
    ) -> None:
        self.call_id = call_id
        self.directed = directed
        self._clock = clock
        self._ids = ids
        self._now: datetime | None = None
        self._random: Random | None = None
        self._issued: list[int] = []

    def now(self) -> datetime:
        if self._now is None:
            self._now = self._clock()
        return self._now

    def random(self) -> Random:
        """Seeded by the call id, and from its beginning again in every run."""
        if self._random is None:
            self._random = Random(f"{self.call_id[0]}:{self.call_id[1]}")
        return self._random

    def nth_id(self, n: int) -> int:
        """The n-th unique id that this call asked for."""
        while len(self._issued) <= n:
            if self.directed:
                digest = xxh3_64_intdigest(f"{self.call_id[0]}:{self.call_id[1]}:{len(self._issued)}".encode())
                self._issued.append(1 << 62 | digest >> 2)
            else:
                self._issued.append(self._ids())
        return self._issued[n]

    def restart(self) -> None:
        """A rerun begins: random numbers come from their beginning."""
        self._random = None


class CallContext:
    """Which call is running, and its generated values, made when they are first asked for."""

    __slots__ = ("_clock", "_generated", "_ids", "_issued", "_running", "directed_now", "dropped", "statements")

    def __init__(self, running: Any, ids: Callable[[], int], clock: Callable[[], datetime]) -> None:
        self._running = running  # words 0 and 1: client id and number of the running call
        self._ids = ids
        self._clock = clock
        self._generated: Generated | None = None
        self._issued = 0
        self.directed_now: datetime | None = None  # set while a directed call runs
        self.statements: Statements | None = None  # what `tx.execute` runs
        self.dropped: frozenset[str] = frozenset()  # names of tables that there were

    def generated(self) -> Generated:
        call_id = (self._running[0], self._running[1])
        generated = self._generated
        if generated is None or generated.call_id != call_id:
            now = self.directed_now
            clock = self._clock if now is None else lambda: now
            generated = self._generated = Generated(call_id, now is not None, clock, self._ids)
            self._issued = 0
        return generated

    def next_id(self) -> int:
        generated = self.generated()
        self._issued += 1
        return generated.nth_id(self._issued - 1)

    @property
    def has_generated(self) -> bool:
        """Whether some value may have been generated since the last `set_aside`."""
        return self._generated is not None

    def set_aside(self) -> Generated | None:
        """The running call's values, to be given back to `resume` when it runs again."""
        generated, call_id = self._generated, (self._running[0], self._running[1])
        self._generated = None
        return generated if generated is not None and generated.call_id == call_id else None

    def resume(self, generated: Generated | None) -> None:
        self._generated = generated
        self._issued = 0
        if generated is not None:
            generated.restart()


class Readable(Protocol):
    """What procedures may always do with a table."""

    schema: Any
    name: str
    get: Callable[[Any], Any]

    def where(self, /, **equalities: Any) -> list[Any]: ...
    def range(self, low: Any, high: Any) -> Iterator[Any]: ...
    def scan(self) -> Iterator[Any]: ...
    def count(self) -> int: ...


class ReadOnlyTable:
    """A table whose writes are refused, with the reason: read-only procedures, and copies outside directed ones."""

    __slots__ = ("_of", "_reason", "count", "get", "range", "scan", "schema", "where")

    def __init__(self, table: Readable, reason: str) -> None:
        self._of = table
        self._reason = f"table {table.name}: {reason}"
        self.schema = table.schema
        self.get: Callable[[Any], Any] = table.get
        self.where: Callable[..., list[Any]] = table.where
        self.range: Callable[[Any, Any], Iterator[Any]] = table.range
        self.scan: Callable[[], Iterator[Any]] = table.scan
        self.count: Callable[[], int] = table.count

    @property
    def lookups(self) -> Any:
        """The table's secondary indexes; None where it has none."""
        return getattr(self._of, "lookups", None)

    @property
    def partition(self) -> int | None:
        """Where this is read; None in the coordinator."""
        return getattr(self._of, "partition", None)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise SchemaError(self._reason)

    insert = update = upsert = delete = _refuse


class Transaction:
    """`tx`. Tables are attributes; a table's name never collides with a method (the schema sees to it)."""

    _context: CallContext

    def __init__(self, tables: Mapping[str, Any], context: CallContext) -> None:
        statements = context.statements
        self.__dict__.update(tables, _context=context, _prepared={} if statements is None else statements.prepared)
        if statements is not None:
            self.__dict__["execute"] = statements.on(self)  # found sooner than the method

    def abort(self, reason: str = "aborted") -> NoReturn:
        """Ends the call: every change is undone, the caller gets `Aborted(reason)`."""
        raise Aborted(str(reason))

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Result:
        """Runs a statement on the rows that live here; `?` stand for the parameters. Raises SqlError, DataError."""
        raise SqlError("tx.execute: nothing here knows how to plan statements")

    def now(self) -> datetime:
        """The time of this call, in UTC, to the microsecond: always the same within a call."""
        return self._context.generated().now()

    @property
    def random(self) -> Random:
        """A random generator of this call's own."""
        return self._context.generated().random()

    def uuid(self) -> UUID:
        """A random UUID (version 4)."""
        return UUID(int=self.random.getrandbits(128), version=4)

    def unique_id(self) -> int:
        """A positive 63-bit number that no call gets twice, in any partition."""
        return self._context.next_id()

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"tx.{name} can't be set: nothing but rows outlives a call")

    def __getattr__(self, name: str) -> Any:  # as if it returned: to a type checker tables are attributes of any type
        if name in self._context.dropped:
            raise SchemaError(f"there is no table {name}: it was dropped")
        raise AttributeError(f"tx has no table or method {name!r}")


def utc_now() -> datetime:
    return datetime.now(UTC)
