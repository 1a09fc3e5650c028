"""All tables of one partition, with the undo log that they share.

A transaction's changes are undone from the log's end back to where it began. The log of a whole batch is kept until the
batch is in the WAL: when that fails for want of room, everything is undone and nothing has happened.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Any

from partitions.buffer_pool import LEAST_PAGES, BufferPool
from partitions.heap import Heap
from partitions.index import INDEX_BYTES
from partitions.lookups import Lookups
from partitions.ownership import Ownership
from partitions.page import PAGE_BYTES, Arena, page_id
from partitions.table import Table, UndoLog
from partitions.view_build import MOST_SUM_EVER
from partitions.view_reader import ViewReader
from partitions.view_source import MOST_SUM
from partitions.viewed_table import MOST_PREPARED, ViewedTable
from partitions.wal import ABORT, DECIDE, PREPARE, Record
from voltpy.errors import Corruption, Error, ProtocolError, ReadOnly, Unavailable
from voltpy.messages import TableChanges
from voltpy.not_here import Misses
from voltpy.resident import resident_bytes
from voltpy.schema import Index, Schema
from voltpy.schema import Table as TableSchema
from voltpy.view import own_key

# What a generation of decoded rows may take; there are two.
DECODED_SHARE = 16  # at most 1/16 of the memory budget …
DECODED_FRACTION = 8  # … and at most 1/8 of what the images take, so that they never outweigh the data …
DECODED_FLOOR_BYTES = 48 << 20  # … but so much in any case
# Of a turn of the recovery: what it gathers takes a third of its room at most, since new rows need pages too; a page
# counts a third more than it is, as in partitions.redo (FINISH_AT); it is over when seven eighths are taken.
GATHERED_SHARE, CHANGED_PAGE_BYTES, FULL_AT = 3, PAGE_BYTES * 4 // 3, 7
TRIM_SHARE, TRIM_ROWS = 4, 100_000  # a quarter of the rows have gone, and so many at least
BUILD_ROWS = 1024  # of a turn at building views, at most
BESIDE_PAGES = 4  # of a step at building them beside calls
AHEAD_SHARE = 4  # the pages of views that are ahead: a quarter of those that there may be
TRIM_S = 10.0  # at most so often while pages are squeezed


class Store:
    """`tables` in the order of their numbers. `undo_log` entries: see partitions.table.

    `bases` are the tables that views are over. A view is at one of three stages; those before the last one are the work
    of a ViewBuild (partitions.view_build):

        stage   means                                            begins with           ends with
        ahead   no schema has it yet: it is built beside         build_views_ahead     add_table: it is live;
                calls, then follows as if it were live                                 forget_views_ahead: it is gone
        behind  the schema has it, the last checkpoint has       the checkpoint's      build_views: it is live
                not: its rows are missing, replay leaves them    load
        live    it follows its base, and is read                                       drop_table: it is gone
    """

    __slots__ = (
        "_empty_bytes",
        "_memory_bytes",
        "_most_rows",
        "_note",
        "_own_key",
        "_pages_before",
        "_trimmed_s",
        "_turn_bytes",
        "_turn_keys",
        "_turn_pages",
        "_unlimited_until",
        "arena",
        "bases",
        "by_name",
        "condemned",
        "gathered_bytes",
        "gathered_keys",
        "is_behind",
        "left_out_images",
        "lookups",
        "lost_images",
        "misses",
        "owner",
        "partitions",
        "pool",
        "prepared",
        "readers",
        "schema",
        "tables",
        "undo_log",
        "views_ahead",
        "views_behind",
    )

    def __init__(self, schema: Schema, partition: int, partitions: int, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._empty_bytes = resident_bytes()
        self.arena = Arena(memory_bytes, spare_bytes=memory_bytes // 2)
        self.schema = schema
        self.undo_log: UndoLog = []
        self.misses = Misses(self.undo_log)
        self.pool: BufferPool | None = None  # without one, everything stays in memory
        self.partitions = partitions
        self.owner = Ownership(partition, partitions)
        self._own_key = own_key(self.owner.owned)
        # What batches of the coordinator's have prepared here, and nobody has decided yet; by batch.
        self.prepared: dict[int, list[TableChanges]] = {}
        self.tables: list[Table] = [self._made(schema, number) for number in range(len(schema.tables))]
        self.by_name = {
            table.name: self.tables[number] for number, table in enumerate(schema.tables) if not table.dropped
        }
        self.bases: list[ViewedTable] = []  # with views that follow: live, or ahead and built
        self.readers: dict[str, ViewReader] = {}  # of views, by name
        self.views_behind: set[int] = set()  # their numbers
        self.views_ahead: list[Table] = []
        self.is_behind = False  # tables lack what the last turn of the recovery has left: see partitions.redo
        self.gathered_keys = self.gathered_bytes = 0  # by a turn of the recovery, and what that takes
        self._turn_bytes = 0  # what it may take, with the pages that it changes; 0: it has not begun
        self._turn_pages = self._turn_keys = 0  # pages that it changes, of so many keys; the others may change one each
        self._pages_before = 0  # more it can't change
        self.condemned: set[int] = set()  # numbers of tables that are dropped, and whose pages are still there
        self._note: Callable[[int, Collection[Any]], None] | None = None
        self.lost_images: list[str] = []  # why indexes had to be built from rows, where an image was of no use
        self.left_out_images: list[str] = []  # tables whose image is not there: snapshots are made without
        self.follow()
        self.lookups: list[Lookups] = []  # of the tables that have indexes
        self._list_lookups()
        self._unlimited_until = 0
        self._trimmed_s = 0.0
        self._most_rows = 0  # since the last `trim` that did something

    @property
    def free_bytes(self) -> int:
        """What new pages may take."""
        return self.arena.frames_left * PAGE_BYTES

    @property
    def heaps(self) -> list[Heap]:
        return [table.storage[0] for table in self.tables]

    @property
    def dirty_pages(self) -> int:
        """That a checkpoint would have to write."""
        return sum(heap.pinned_pages for heap in self.heaps)

    @property
    def needs_cleaning(self) -> bool:
        """A checkpoint is due, for the buffer pool's sake."""
        return self.pool is not None and self.pool.needs_cleaning

    @property
    def is_pressed(self) -> bool:
        """Calls will soon have to wait until pages are written."""
        return self.pool is not None and self.pool.is_pressed

    @property
    def index_bytes(self) -> int:
        return INDEX_BYTES * sum(table.row_count for table in self.tables) + sum(each.bytes for each in self.lookups)

    def table_of(self, number: int) -> Table:
        """The table with this number, dropped or not. Raises ProtocolError where there is none."""
        if not 0 <= number < len(self.tables):
            raise ProtocolError(f"there is no table number {number}")
        return self.tables[number]

    def is_copied(self, table: Table) -> bool:
        """Whether other partitions have one too: then nobody but the coordinator changes it."""
        return table.schema.partition_column is None and self.partitions > 1

    def use(self, pool: BufferPool) -> None:
        """From now on pages may leave memory, and come back."""
        self.pool = pool
        pool.pages_to_write = lambda: [table.pages_to_write() for table in self.tables]
        pool.changed_rows = lambda: sum(table.changed_rows for table in self.tables)

    def raise_if_failed(self) -> None:
        """Raises OSError or Corruption when a page could not be read for a transaction."""
        if self.pool is not None and self.pool.failed is not None:
            raise self.pool.failed

    def undo_to(self, mark: int) -> None:
        """Undoes everything after the first `mark` entries of the undo log, newest first."""
        log = self.undo_log
        while len(log) > mark:
            table, key, old = log.pop()
            if table is not None:
                table.restore(key, old)
        for lookups in self.lookups:
            lookups.undone_to(mark)

    def undo_batch(self) -> None:
        """Undoes everything since the last `apply`."""
        self.undo_to(0)
        for table in (*self.tables, *self.views_ahead):
            table.forget_changes()

    def changes(self) -> list[TableChanges]:
        """What the batch changed in tables. Raises ReadOnly when the pages that it needs would not fit into memory."""
        changed = []
        pages_needed = 0
        for table in self.tables:
            if table.changed:
                images, deleted = table.changes()
                if images or deleted:
                    changed.append(TableChanges(table.number, images, deleted))
                pages_needed += table.pages_needed(images)
                if table.lookups is not None:
                    table.lookups.make_sure_of_row_ids(pages_needed)
        if self.views_ahead:
            pages_needed += self._pages_of_views_ahead()
        self.make_room(pages_needed)  # for none, too: the pool may have become smaller
        return changed

    def make_room(self, pages_needed: int) -> None:
        """Sees to it that so many new pages fit into memory. Raises ReadOnly when they don't."""
        if self.pool is not None:
            if pages_needed:
                self._refuse_index_bytes("")
            self.pool.make_room(pages_needed)
        elif pages_needed > self.arena.frames_left:
            mebibytes = self.arena.frames * 8 >> 10
            raise ReadOnly(f"the partition's memory is full ({mebibytes:,} MiB of pages; see --memory)")

    def _refuse_index_bytes(self, of: str) -> None:
        """Raises ReadOnly when indexes take nearly all of the memory; `of`: the one that is being built, or nothing."""
        if self.pool is not None and self.index_bytes > self._memory_bytes - self._memory_bytes // LEAST_PAGES:
            there = f"with {of}, which is being built, the" if of else "the"
            raise ReadOnly(
                f"{there} indexes take {self.index_bytes >> 20:,} MiB, nearly all of the memory: delete rows, "
                "or start with a larger --memory"
            )

    def derived_changes(self) -> list[TableChanges]:
        """What the batch changed in views. Raises ReadOnly as `changes` does."""
        changed = []
        pages_needed = 0
        for base in self.bases:
            for view in base.views:
                if view.changed and view not in self.views_ahead:
                    images, deleted = view.changes()
                    pages_needed += view.pages_needed(images)
                    changed.append(TableChanges(view.number, images, deleted))
        pages_needed += self._pages_of_views_ahead()
        if pages_needed:
            self.make_room(pages_needed)
        return changed

    def _pages_of_views_ahead(self) -> int:
        """What the batch needs for views that are ahead: nobody hears of those changes, the WAL neither."""
        return sum(view.pages_needed(view.changes()[0]) for view in self.views_ahead if view.changed)

    def apply(self) -> None:
        """The batch is in the WAL: its images go into the pages, and nothing can be undone any more."""
        self.undo_log.clear()
        if self.views_ahead:
            self._apply_beside()
        else:
            self._apply_tables()
        if self.arena.frames_in_use > self._unlimited_until:
            self._limit_decoded()

    def _apply_tables(self) -> None:
        for table in self.tables:
            table.apply()
            if self.pool is None:
                table.storage[0].forget_uses()

    def _apply_beside(self) -> None:
        """The same while views are built, which can't keep the batch from being applied, and fail where they could."""
        with self.bringing_at_once():
            self._apply_tables()
        if any(base.build is not None for base in self._possible_bases()):
            try:
                self.make_room(self._pages_of_views_ahead())
            except ReadOnly as error:
                self.forget_views_ahead(error)
        self._apply_views_ahead()

    def _apply_views_ahead(self) -> None:
        for view in self.views_ahead:
            view.apply()
            view.storage[0].forget_uses()  # the buffer pool does not know of these pages: they stay
        self.undo_log.clear()
        for lookups in self.lookups:
            lookups.undone_to(0)

    def take_prepared(self, prepared: list[tuple[int, list[TableChanges]]]) -> None:
        """What a checkpoint knew to be undecided. Raises Corruption."""
        for number, changes in prepared:
            self.prepared[number] = self._of_live_tables(changes, f"the prepared batch {number}")

    def replay(self, record: Record, lsn: int) -> int:
        """Takes one WAL batch during recovery; how many changes. `apply_turn`, from time to time, writes them.

        Raises Corruption for what can't have been written by a partition with this schema.
        """
        replayed = 0
        changes = self._of_live_tables(record.changes, f"WAL record {lsn}")
        step = record.step
        if step is not None:
            if step.kind == PREPARE:
                self.prepared[step.number] = changes
                return 0
            if step.kind == DECIDE:
                if step.number not in self.prepared:
                    raise Corruption(f"WAL record {lsn} decides batch {step.number}, which was not prepared")
                changes = self.prepared.pop(step.number) + changes  # those are of views
            elif step.kind == ABORT:
                self.prepared.pop(step.number, None)
        for change in changes:
            if change.table in self.views_behind:
                continue
            try:
                keys, size = self.tables[change.table].redo.gather(change.images, change.deleted)
            except Corruption as error:
                raise Corruption(f"WAL record {lsn}: {error}") from None
            self.gathered_keys += keys
            self.gathered_bytes += size
            replayed += len(change.images) + len(change.deleted)
        return replayed

    def _of_live_tables(self, changes: list[TableChanges], what: str) -> list[TableChanges]:
        """Without those of tables that have been dropped since. Raises Corruption for a table that never was."""
        tables = self.schema.tables
        for change in changes:
            if not 0 <= change.table < len(tables):
                raise Corruption(f"{what} changes table number {change.table}; the schema has no such table")
        return [change for change in changes if not tables[change.table].dropped]

    def apply_turn(self, *, leaves_cold: bool = False) -> None:
        """Writes what `replay` has gathered; pages of changed rows may be cold. Raises ReadOnly when they don't fit.

        `leaves_cold`: what is about rows on cold pages is left to partitions.redo, where nothing else needs it.
        """
        # What is prepared counts as it was prepared: see partitions.in_doubt.
        prepared = {change.table for changes in self.prepared.values() for change in changes}
        with nullcontext() if self.pool is None else self.pool.beside(self.gathered_bytes):
            for table in self.tables:
                is_plain = not self.views_behind and table.number not in prepared and not table.is_followed
                table.redo.write(self.pool, leaves_cold=leaves_cold and is_plain)
        self.is_behind = any(table.redo.left_pages for table in self.tables)
        self.apply()
        self.gathered_keys = self.gathered_bytes = self._turn_bytes = 0

    @property
    def turn_is_full(self) -> bool:
        """Whether a recovery has gathered so much that it must write it to the pages before it goes on.

        What is gathered and the pages that this changes must be in memory together, beside those that have changed
        before, and calls must have room to change more: then the last turn can leave it (Redo.is_pressed).
        """
        if self.pool is None:
            # With no room left every batch is written at once: in a longer turn rows that came would stand beside rows
            # that went.
            return self.gathered_bytes > self.free_bytes // 16
        if not self._turn_bytes:
            self._begin_turn(self.pool)
        if self.gathered_bytes > self._turn_bytes // GATHERED_SHARE:
            return True
        pages = min(self._turn_pages + self.gathered_keys - self._turn_keys, self._pages_before)
        if self.gathered_bytes + pages * CHANGED_PAGE_BYTES <= self._turn_bytes:
            return False
        self._turn_pages, self._turn_keys = sum(table.redo.count_pages() for table in self.tables), self.gathered_keys
        return 8 * (self.gathered_bytes + self._turn_pages * CHANGED_PAGE_BYTES) > FULL_AT * self._turn_bytes

    def _begin_turn(self, pool: BufferPool) -> None:
        left_bytes = self.arena.frames * PAGE_BYTES - pool.pinned_pages * CHANGED_PAGE_BYTES
        self._turn_bytes = max(left_bytes, pool.capacity * PAGE_BYTES // 8)
        self._pages_before = sum(table.pages for table in self.tables)
        self._turn_pages = self._turn_keys = 0

    def wait_for_left(self) -> None:
        """Raises NotHere, for pages, when a recovery has left something: before, no page can be cleaned."""
        for table in self.tables:
            table.redo.wait_for()

    def trim(self, now_s: float) -> None:
        """Gives back to the system what malloc keeps: many rows have gone, or pages are squeezed by other things."""
        rows = sum(table.row_count for table in self.tables)
        self._most_rows = max(self._most_rows, rows)
        squeezed = self.pool is not None and 4 * self.pool.capacity < 3 * self.arena.frames
        if self._most_rows - rows > max(self._most_rows // TRIM_SHARE, TRIM_ROWS) or (
            squeezed and now_s > self._trimmed_s + TRIM_S
        ):
            self._most_rows, self._trimmed_s = rows, now_s
            if _malloc_trim is not None:
                _malloc_trim(0)

    def add_index(self, index: Index) -> Iterator[None]:
        """Builds another index, in steps between batches: see `Table.add_index`."""
        table = self.by_name[index.table]

        def may_end() -> bool:
            """Of a prepared row a unique index would know nothing: it stands on no page yet."""
            return not index.unique or not any(
                change.table == table.number for changes in self.prepared.values() for change in changes
            )

        try:
            with closing(table.add_index(index, may_end)) as steps:
                for _ in steps:
                    self._list_lookups()
                    self._refuse_index_bytes(f"index {index.name}")
                    yield
        finally:
            self._list_lookups()

    def add_table(self, schema: Schema, number: int) -> None:
        """Between batches: a table that the schema has behind all that there are."""
        made = schema.tables[number]
        ahead = [view for view in self.views_ahead if view.number == number]
        table = ahead[0] if ahead else self._made(schema, number)
        self.views_ahead = [view for view in self.views_ahead if view is not table]
        self.tables.append(table)
        self.by_name[made.name] = table
        if self._note is not None:
            table.note = self._note
        if self.pool is not None:
            self.pool.add_heap(table.storage[0])
        self._list_lookups()
        self._limit_decoded()

    def drop_table(self, number: int) -> None:
        """Between batches: nobody sees the table any more. Its pages go with `bury`."""
        table = self.tables[number]
        del self.by_name[table.name]
        self.condemned.add(number)
        if isinstance(table, ViewedTable):
            table.follow_with([], self.schema, self.undo_to, self._own_key)

    def bury(self) -> None:
        """Gives back what dropped tables take. Between batches, while no checkpoint writes their pages."""
        for number in list(self.condemned):
            if self.pool is None or not self.pool.is_any_coming(number):
                self.tables[number].bury()
                self.condemned.discard(number)
        self._list_lookups()

    def note_with(self, note: Callable[[int, Collection[Any]], None]) -> None:
        """Who is told of keys that are used often, in these tables and those to come."""
        self._note = note
        for table in self.tables:
            table.note = note

    def drop_index(self, table: str, name: str) -> None:
        """Between batches."""
        self.by_name[table].drop_index(name)
        self._list_lookups()

    def catch_up_indexes(self) -> None:
        """Before a recovery's replay: secondary indexes come from their images. What has none is built at its end."""
        for lookups in self.lookups:
            try:
                lookups.catch_up(self.owner.partition, self._bring_pages(lookups.table_number))
            except FileNotFoundError:
                self.left_out_images.append(self.tables[lookups.table_number].name)
                lookups.fall_behind()
            except Corruption as error:
                self.lost_images.append(str(error))
                lookups.fall_behind()
            if self.pool is not None:
                self.pool.end_batch()

    def _bring_pages(self, table: int) -> Callable[[list[int]], None]:
        pool = self.pool

        def bring(pages: list[int]) -> None:
            if pool is not None:
                pool.end_batch()
                pool.bring_all([page_id(table, page) for page in pages])

        return bring

    def rebuild_indexes(self) -> None:
        """At the end of a recovery: secondary indexes that know nothing of the pages are built from them."""
        for lookups in self.lookups:
            for _ in lookups.rebuild():
                pass

    def build_views(self) -> Iterator[None]:
        """At the end of a recovery: fills the views that are behind, from their tables, so that they are live.

        In turns, applied each, and not logged: until the next checkpoint has them, a recovery builds them again. Raises
        DataError or ConstraintViolation for rows that a view can't follow.
        """
        for base in self.bases:
            behind = [view for view in base.views if view.number in self.views_behind]
            if behind:
                # The pages of the groups that a turn changes must be in memory together.
                pages = BUILD_ROWS if self.pool is None else self.pool.capacity // (4 * len(behind))
                # Some of them may have followed their table for long, and were in no checkpoint yet.
                build = base.new_build(behind, self.schema, self.undo_to, self._own_key, MOST_SUM_EVER)
                for _ in build.read_all(min(max(pages, 1), BUILD_ROWS)):
                    self.changes()
                    self.apply()
                    if self.pool is not None:
                        self.pool.end_batch()
                    yield
                self.views_behind.difference_update(view.number for view in behind)

    def try_prepared(self) -> None:
        """At the end of a recovery: what is prepared must be taken when it is decided, also by new views and indexes.

        Raises DuplicateKey, DataError or ConstraintViolation where it could not be.
        """
        for changes in self.prepared.values():
            for change in changes:
                table, images = self.tables[change.table], change.images
                if table.lookups is not None:
                    keys, gone = table.keys_of_images(images), table.keys_of(change.deleted)
                    table.lookups.unique.check_changes(keys, images, gone, {*keys, *gone})
                self._try_on_views(change)

    def _try_on_views(self, change: TableChanges) -> None:
        table = self.tables[change.table]
        if not isinstance(table, ViewedTable) or not table.views:
            return
        # Since it was prepared calls may have filled a sum: there is room for both.
        table.is_decided = True
        try:
            table.check_changes(table.keys_of_images(change.images), change.images, table.keys_of(change.deleted))
        finally:
            table.is_decided = False
            self.undo_batch()

    def build_views_ahead(self, schema: Schema, base_name: str, views: list[TableSchema]) -> Iterator[None]:
        """Builds views that the schema has beside this store's, in steps between batches.

        They are ahead until their tables are added. Raises DataError or ConstraintViolation for what they can't
        hold, ReadOnly without room, Unavailable; then, or if nothing comes of it, `forget_views_ahead`.
        """
        base = self.by_name[base_name]
        assert isinstance(base, ViewedTable)
        made = [self._made(schema, schema.numbers[view.name]) for view in views]
        self.views_ahead += made
        build = base.build = base.new_build(made, schema, self.undo_to, self._own_key, MOST_SUM)
        while build.failed is None and build.read_pages(BESIDE_PAGES):
            self._keep_views_ahead()
            yield
        if build.failed is not None:
            raise build.failed
        with self.bringing_at_once():
            build.end()
            self._keep_views_ahead()
            # From here on they follow calls, and refuse what they can't hold, though they may still come to nothing.
            base.build = None
            base.follow_with([*base.views, *made], schema, self.undo_to, self._own_key)
            self._list_bases()
            undecided = [each for changes in self.prepared.values() for each in changes if each.table == base.number]
            if undecided and len(self.prepared) > MOST_PREPARED:
                raise Unavailable(f"{len(self.prepared)} batches are prepared and undecided")
            for change in undecided:
                self._try_on_views(change)

    @contextmanager
    def bringing_at_once(self) -> Iterator[None]:
        """While it lasts, pages that are cold are waited for: what is done can't be set aside and run again."""
        bring, self.misses.bring = self.misses.bring, None if self.pool is None else self.pool.bring
        try:
            yield
        finally:
            self.misses.bring = bring

    def forget_views_ahead(self, error: Error | None = None) -> None:
        """Nothing comes of the views that are ahead. Between batches."""
        if not self.views_ahead:
            return
        self.undo_batch()
        for base in self._possible_bases():
            if base.build is not None and error is not None:
                base.build.failed = error
            base.build = None
            if not set(self.views_ahead).isdisjoint(base.views):
                kept = [view for view in base.views if view not in self.views_ahead]
                base.follow_with(kept, self.schema, self.undo_to, self._own_key)
        for view in self.views_ahead:
            view.bury()
        self.views_ahead = []
        self._list_bases()

    def _keep_views_ahead(self) -> None:
        """What has been built goes into pages, which can't leave memory: no checkpoint writes them. Raises ReadOnly."""
        self.make_room(self._pages_of_views_ahead())
        self._apply_views_ahead()
        limit = (self.arena.frames if self.pool is None else self.pool.capacity) // AHEAD_SHARE
        pages = sum(view.pages for view in self.views_ahead)
        if pages > max(limit, 2 * len(self.views_ahead)):
            raise ReadOnly(
                f"view {self.views_ahead[-1].name}, which is being made, needs more than a quarter of the memory "
                f"({limit * PAGE_BYTES >> 20:,} MiB): start with a larger --memory, or with a schema that has it"
            )

    def check(self) -> None:
        """Raises Corruption unless every invariant of every table holds. Between batches only."""
        for table in (*self.tables, *self.views_ahead):
            table.check()

    def metrics(self) -> dict[str, object]:
        return {
            "rows": {name: table.row_count for name, table in self.by_name.items()},
            "image_bytes": sum(table.image_bytes for table in self.tables),
            "page_bytes": self.arena.frames_in_use * PAGE_BYTES,
            "decoded_rows": sum(table.decoded_rows for table in self.tables),
        }

    def read_latency_us(self) -> dict[str, float | None]:
        """What reading a row costs in here, on a sample: decoded and hot; on a page in memory. None: there is none."""
        samples = [table.read_latency_us() for table in self.tables]
        hot = [each for each, _ in samples if each is not None]
        resident = [each for _, each in samples if each is not None]
        return {"hot": min(hot, default=None), "resident": min(resident, default=None)}

    @property
    def accounted_bytes(self) -> int:
        """What pages, indexes and decoded rows should take, and the process without them."""
        decoded = sum(table.decoded_bytes for table in self.tables)
        return self._empty_bytes + self.arena.frames_in_use * PAGE_BYTES + self.index_bytes + decoded

    def follow(self) -> None:
        """From now on the views of the schema, and no others, follow their tables. Between batches."""
        views: dict[str, list[Table]] = {}
        for table in self.schema.live:
            if table.view is not None:
                views.setdefault(table.view.base, []).append(self.by_name[table.name])
        self.readers.clear()
        for base in self._possible_bases():
            of_base = views.get(base.name, [])
            if of_base != base.views:
                base.follow_with(of_base, self.schema, self.undo_to, self._own_key)
            for view in of_base:
                self.readers[view.name] = ViewReader(view, base, self.misses, self._own_key)
        self._list_bases()

    def _list_bases(self) -> None:
        self.bases = [table for table in self._possible_bases() if table.views]

    def _possible_bases(self) -> list[ViewedTable]:
        """All tables that views may be over."""
        return [table for table in self.by_name.values() if isinstance(table, ViewedTable)]

    def _made(self, schema: Schema, number: int) -> Table:
        """An empty table."""
        table = schema.tables[number]
        kind = ViewedTable if table.view is None else Table
        indexes = schema.indexes_at(number)
        return kind(table, number, self.arena, self.owner, self.undo_log, self.misses, indexes)

    def _list_lookups(self) -> None:
        self.lookups = [table.lookups for table in self.tables if table.lookups is not None]

    def _limit_decoded(self) -> None:
        """Divides the decoded rows' share evenly over the tables; once more when the data has grown by an eighth."""
        self._unlimited_until = self.arena.frames_in_use * 9 // 8 + 64
        floor = DECODED_FLOOR_BYTES // max(len(self.tables), 1)
        budget = self._memory_bytes // DECODED_SHARE // max(len(self.tables), 1)
        for table in self.tables:
            table.limit_decoded(min(max(table.image_bytes // DECODED_FRACTION, floor), budget))


def _glibc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim


_malloc_trim = _glibc_trim()
