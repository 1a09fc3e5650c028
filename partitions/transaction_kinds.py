"""What `tx` is, for each kind of procedure: the tables as it may use them just now.

    a table that is             for read_only       for one that writes        … in a joint call
    partitioned                 reads               reads, writes              reads, writes
    copied in every partition   reads               reads; else COORDINATOR    reads, writes
    lent as a whole             misses              misses                     misses
    a view                      reads               reads                      reads
    any, with no room left      reads               reads; else ReadOnly       reads; else ReadOnly

A call that misses a table is set aside until that is back. One that meets COORDINATOR is sent there: what is written to
one copy must be written to all of them or none, and a joint call is how the coordinator has that done. In a cluster of
one partition a table without a partition column is like a partitioned one.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeAlias

from partitions.store import Store
from partitions.table import Table
from voltpy.errors import ReadOnly
from voltpy.not_here import COORDINATOR, WHOLE_TABLE, Misses
from voltpy.transaction import CallContext, ReadOnlyTable, Transaction

Kind: TypeAlias = tuple[bool, bool]  # (everywhere, read_only), as the procedure is declared


class TransactionKinds:
    """`local` and `joint` have the `tx` of each kind: of all calls but joint ones, and of these.

    They stay the same two dicts, so that the executor may keep hold of one.
    """

    def __init__(self, store: Store, context: CallContext) -> None:
        self.local: dict[Kind, Transaction] = {}
        self.joint: dict[Kind, Transaction] = {}
        self.lent: set[int] = set()  # the numbers of the tables that are lent whole
        self._store = store
        self._context = context
        self._no_room: str | None = None  # why nothing may be written

    def lend(self, table: int) -> None:
        """From now on this table is not here."""
        self.lent.add(table)
        self.make()

    def take_back(self, table: int) -> None:
        """The table, which was lent, is here again."""
        self.lent.remove(table)
        self.make()

    def refuse_writes(self, reason: str) -> None:
        """Until `accept_writes`, a write raises ReadOnly with this reason."""
        self._no_room = reason
        self.make()

    def accept_writes(self) -> None:
        """Procedures may write what their declarations allow."""
        self._no_room = None
        self.make()

    def make(self) -> None:
        """Makes each `tx` anew: tables, their accessors or `tx.execute` have changed. Between two calls only."""
        misses, no_room = self._store.misses, self._no_room
        reading: dict[str, Any] = {}
        local: dict[str, Any] = {}
        joint: dict[str, Any] = {}
        for name, table in self._store.by_name.items():
            view = table.schema.view
            if table.number in self.lent:
                reading[name] = local[name] = joint[name] = LentTable(table, misses)
            elif view is not None:
                base = self._store.by_name[view.base]
                reader = LentTable(base, misses) if base.number in self.lent else self._store.readers[name]
                reading[name] = local[name] = joint[name] = reader
            elif no_room is not None:
                reading[name] = local[name] = joint[name] = FullTable(table, no_room)
            else:
                reading[name] = ReadOnlyTable(table, "the procedure is declared read_only")
                local[name] = joint[name] = table
                if self._store.is_copied(table):
                    local[name] = CopiedTable(table, misses)
        tx = Transaction(reading, self._context)
        self.local[False, True] = self.local[True, True] = tx
        tx = Transaction(local, self._context)
        self.local[False, False] = self.local[True, False] = tx
        self.joint.update(self.local)
        self.joint[True, False] = Transaction(joint, self._context)


class FullTable(ReadOnlyTable):
    """A table while there is no room: reads work, writes raise ReadOnly."""

    __slots__ = ()

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise ReadOnly(self._reason)

    insert = update = upsert = delete = _refuse


class CopiedTable(ReadOnlyTable):
    """A table that other partitions have copies of: reads work; a call that writes needs the coordinator."""

    __slots__ = ("_misses",)

    def __init__(self, table: Table, misses: Misses) -> None:
        super().__init__(table, "every partition has a copy")
        self._misses = misses

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        self._misses.raise_for(COORDINATOR)

    insert = update = upsert = delete = _refuse


class LentTable(ReadOnlyTable):
    """A table that is lent whole: whoever touches it is set aside."""

    __slots__ = ("_misses", "_number")
    lookups = None  # so a statement scans it instead, and is set aside by that

    def __init__(self, table: Table, misses: Misses) -> None:
        super().__init__(table, "it is lent")
        self._misses = misses
        self._number = table.number
        self.get = self.where = self.range = self.scan = self.count = self._refuse

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        self._misses.raise_for((self._number, WHOLE_TABLE))

    insert = update = upsert = delete = _refuse
