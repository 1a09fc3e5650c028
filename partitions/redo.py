"""What a recovery has left to be written, while calls are served already.

The last turn of a recovery knows what becomes of each row that changed since the checkpoint, but most of their pages
are cold. To bring them all would take most of the time that a start takes. So what is about cold pages is left
(partitions.table_redo), and written here, between two batches, as the pages come:

    by themselves      some at a time, in the order in which the page file has them
    for a call         its page is fetched before the others (partitions.buffer_pool), by whoever needs the row

Until then the keys are away, and a call that touches one misses the page. A read that is not by key misses pages of its
table until nothing is left of it. Other rows are read and changed as ever.

No checkpoint begins meanwhile (`Store.is_behind`), so pages that have changed stay in memory, and those that will have
must find room beside them: before there is none, calls wait (`is_pressed`), and so does what finds none all the same.
What is written here goes beyond the pool's capacity where nothing can leave, since nothing else can end this.

A partition that is to stop does not wait for it, though calls may: what is left is in the WAL, and the next start
leaves it again.
"""

from __future__ import annotations

from collections.abc import Callable

from partitions.buffer_pool import BufferPool
from partitions.page import PAGE_NUMBERS, TABLE_SHIFT, page_id
from partitions.store import Store
from partitions.table import Table
from voltpy.crash_point import crash_point

FINISH_AT = 6  # eighths of the frames that have changed, or will have
PAGES_AHEAD = 128  # that are read at a time, about
CAPACITY_SHARE = 16  # that is, at most a sixteenth of the frames
PAGES_THERE = 64  # of those that are in memory already, in one step


class Stopped(Exception):
    """The process is to end, and something is left."""


class Redo:
    """`step` with the pages that have come, between batches, until `is_over`. `done` is called then.

    After `stop` a step raises Stopped instead, as long as something is left.
    """

    def __init__(self, store: Store, pool: BufferPool) -> None:
        self.done: Callable[[], None] = lambda: None
        self._store = store
        self._pool = pool
        self._tables = {table.number: table for table in store.tables if table.redo.left_pages}
        self._pages = {number: list(table.redo.left_pages) for number, table in self._tables.items()}  # in order
        self._position = 0  # in the pages of the first table
        self._reading: set[int] = set()
        self._stops = False
        self.is_over = not store.is_behind

    @property
    def pages_left(self) -> int:
        return sum(len(table.redo.left_pages) for table in self._tables.values())

    @property
    def is_pressed(self) -> bool:
        """So many pages have changed, or will have, that no more may before this is over and a checkpoint can begin."""
        pool = self._pool
        return not self.is_over and 8 * (pool.pinned_pages + self.pages_left) > FINISH_AT * pool.capacity

    def stop(self) -> None:
        """Nobody waits for it any more. May be called from a signal handler."""
        self._stops = True

    def step(self, arrived: list[int]) -> None:
        """Writes what was left of the pages that have come, and has others read. Raises ReadOnly, OSError, Corruption.

        It goes beyond the pool's capacity where it must, as the recovery would have gone. ReadOnly says that even so
        there is no frame; then the process must end.
        """
        if self.is_over:
            return
        if self._stops:
            raise Stopped
        self._reading.difference_update(arrived)
        self._pool.goes_beyond = True
        try:
            self._write([*arrived, *self._bring()])
        finally:
            self._pool.goes_beyond = False
        if self.pages_left:
            return
        self._store.is_behind = False
        self.is_over = True
        crash_point("redo.over")
        self.done()

    def _write(self, pages: list[int]) -> None:
        by_table: dict[int, dict[int, None]] = {}
        for page in pages:
            by_table.setdefault(page >> TABLE_SHIFT, {})[page & PAGE_NUMBERS] = None
        for number, numbers in by_table.items():
            table = self._tables.get(number)
            if table is not None:
                left = [page for page in numbers if page in table.redo.left_pages]
                for first in range(0, len(left), self._pages_at_once):
                    self._write_some(table, left[first : first + self._pages_at_once])

    def _write_some(self, table: Table, pages: list[int]) -> None:
        with self._store.bringing_at_once():
            table.redo.write_left(pages, self._pool)
        heap = table.storage[0]
        self._pool.adopt(page_id(table.number, page) for page in pages if not heap.is_pinned(page))
        crash_point("redo.written")

    @property
    def _pages_at_once(self) -> int:
        """Rows that grow may take as many frames again."""
        return max(min(PAGES_AHEAD, self._pool.capacity // CAPACITY_SHARE), 1)

    def _bring(self) -> list[int]:
        """Has the next pages read, as many as there is room for. Those that are there already."""
        pool, there, cold = self._pool, list[int](), list[int]()
        ahead = min(PAGES_AHEAD, self._pages_at_once)
        if not self._pages:
            return self._bring_one() if pool.is_starved else there
        if len(self._reading) > ahead // 2:
            return there
        number, pages = next(iter(self._pages.items()))
        table, is_cold = self._tables[number], self._tables[number].storage[0].is_on_disk_only
        first = position = self._position
        while position < len(pages) and len(cold) < ahead - len(self._reading) and len(there) < PAGES_THERE:
            page = pages[position]
            position += 1
            if page in table.redo.left_pages and not pool.is_coming(page_id(number, page)):
                (cold if is_cold(page) else there).append(page)
        started = cold[: pool.read_ahead_in_runs(number, cold)]
        self._reading.update(page_id(number, page) for page in started)
        if cold and not self._reading:  # no frame is free, but one must be: everything waits for this
            started = cold[:1]
            there += started
            pool.bring(page_id(number, cold[0]))
        if len(started) < len(cold):
            position = pages.index(cold[len(started)], first)
        self._position = position
        if position == len(pages):
            del self._pages[number]
            self._position = 0
        return [page_id(number, page) for page in there]

    def _bring_one(self) -> list[int]:
        """Calls wait for the last pages, for which no frame will be free before this is over."""
        page = next(page_id(number, page) for number, table in self._tables.items() for page in table.redo.left_pages)
        self._pool.bring(page)
        return [page]
