"""What a transaction needs and is not here: a page that is on disk, or a key that is lent.

A transaction that touches it ends with NotHere, is undone, waits, and runs again (partitions.executor). What it waits
for is named by a *miss*:

    page id                   a page that is in the page file only (partitions.page.page_id)
    (table number, key)       a key that is away; WHOLE_TABLE for the key of a read that is not by key, and for any read
                              of a table that is lent whole
    COORDINATOR               nothing that will ever be here: the call is not run again, but sent there
    (PLAN, text)              how a statement is run, which the coordinator plans
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

Miss: TypeAlias = "int | tuple[int, Any]"

WHOLE_TABLE: Any = object()  # the key in the miss of a read that is not by key
# The miss of what only the coordinator may do: to write a row that every partition has a copy of.
COORDINATOR: Miss = (-1, None)
PLAN = -2  # in the place of a table


class NotHere(BaseException):
    """The transaction needs something that is not here. Not an Exception: `except Exception` must not eat it."""


class Misses(list["Miss"]):
    """What the running transaction has missed so far; the executor takes it when the transaction is undone."""

    __slots__ = ("_undo", "bring")

    def __init__(self, undo: list[Any]) -> None:
        self._undo = undo
        # Set while a transaction may not miss pages any more, but waits for each: (page id) → it is in memory.
        self.bring: Callable[[int], None] | None = None

    def raise_for(self, *missed: Miss) -> NoReturn:
        """Ends the transaction, whatever the procedure makes of the exception: the undo log is not empty after this."""
        self.extend(missed)
        self._undo.append((None, None, None))
        raise NotHere

    def pages(self, *page_ids: int) -> None:
        """The transaction needs these pages, which are on disk."""
        if self.bring is None:
            self.raise_for(*page_ids)
        for page_id in page_ids:
            self.bring(page_id)
