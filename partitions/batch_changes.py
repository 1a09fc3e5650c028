"""What a batch of the coordinator's changes in tables of this partition: images of rows, and keys of deleted ones.

    changes_of    decoded, with the keys that stand in the images
    put           they are the changes of the batch that the store has under way, and views follow
    make_room     there are pages for them
    try_views     put, looked at, and undone: so that views can follow them later, when they are decided

Whose they are, and whether they may count, is decided elsewhere (partitions.loans, partitions.in_doubt).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from partitions.store import Store
from partitions.table import Table
from partitions.viewed_table import MOST_PREPARED, ViewedTable
from voltpy.errors import Unavailable
from voltpy.messages import TableChanges


class Changes(NamedTuple):
    """What a batch changes in one table, with the keys that stand in its images."""

    table: Table
    keys: list[Any]
    images: list[bytes]
    deleted: list[Any]


def changes_of(store: Store, encoded: list[TableChanges]) -> list[Changes]:
    """Raises ProtocolError for what can't be changes of these tables."""
    return [
        Changes(table := store.table_of(each.table), table.keys_of_images(each.images), each.images,
                table.keys_of(each.deleted))
        for each in encoded
    ]  # fmt: skip


def put(store: Store, changes: list[Changes], *, is_decided: bool = False) -> list[TableChanges]:
    """Makes these the batch's changes. Raises ReadOnly, or NotHere, after either of which it must be undone.

    What they change in views.
    """
    for table, keys, images, deleted in changes:
        if isinstance(table, ViewedTable):
            table.is_decided = is_decided
            try:
                table.put(keys, images, deleted)
            finally:
                table.is_decided = False
        else:
            table.put(keys, images, deleted)
    make_room(store, changes)
    return store.derived_changes() if store.bases else []


def make_room(store: Store, changes: list[Changes]) -> None:
    """Raises ReadOnly when memory has no pages for them."""
    pages_needed = 0
    for table, _, images, _ in changes:
        of_table = table.pages_needed(images)
        if table.lookups is not None:
            table.lookups.make_sure_of_row_ids(of_table)
        pages_needed += of_table
    store.make_room(pages_needed)


def try_views(store: Store, changes: list[Changes], prepared: int) -> None:
    """Raises DataError or ConstraintViolation for changes that views could not follow when they are decided.

    `prepared`: how many batches are prepared already. Raises Unavailable when that are too many, NotHere.
    """
    viewed = [each for each in changes if isinstance(each.table, ViewedTable) and each.table.views]
    if not viewed:
        return
    if prepared >= MOST_PREPARED:
        raise Unavailable(f"{prepared} batches are prepared and undecided")
    try:
        for table, keys, images, deleted in viewed:
            assert isinstance(table, ViewedTable)
            table.check_changes(keys, images, deleted)
    finally:
        store.undo_batch()
