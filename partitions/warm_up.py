"""The warm-up of one partition: pages come into memory before anybody asks for them.

    heat       after a start, the pages that were in memory before it, the hottest first; then the others in the order
               of the file, as long as there is room
    keys       after a start, the pages of the keys that were used most: rows that were decoded and hot are served
               without their pages, so the heat of pages does not know them
    prefetch   what tends to follow the pages that are being read
    schedule   tables at times of the day

What is read, and how fast, partitions.warming decides; here it meets the pool, the files and the wall clock.

    partition directory:
      heat         written at a clean stop, and every DUMP_S with the hottest pages      partitions.heat
      heat-keys    written with it                                                       partitions.access_log
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any

from partitions.access_log import AccessLog, read_access_log, write_access_log
from partitions.buffer_pool import BufferPool
from partitions.heat import read_heat, write_heat
from partitions.page import PAGE_NUMBERS, TABLE_SHIFT, page_id
from partitions.prefetch import Prefetch
from partitions.store import Store
from partitions.warming import Progress, Warming, pages_per_second
from voltpy.warm_schedule import WARM_SOURCES, Entry, due

HEAT, KEYS = "heat", "heat-keys"
DUMP_S = 60.0
PAGES_A_DUMP = 1 << 16  # at intervals, when calls wait for it: 10 ms
KEYS_A_DUMP = 4096
KEYS_NOTED = 256  # of a generation of decoded rows
SCHEDULE_S = 1.0  # between two looks at the schedule
# Learning what follows what costs 8 µs a read: after so many reads for which nothing was suggested it pauses.
LEARNED_READS, SKIPPED_READS = 1024, 15 * 1024


class WarmUp:
    """`begin` once, `step` between batches, `dump` at the end. `failed` is told what went wrong, all of it harmless."""

    def __init__(
        self,
        directory: Path,
        partition: int,
        store: Store,
        pool: BufferPool,
        *,
        sources: Collection[str] = WARM_SOURCES,
        bytes_per_s: int,
        schedule: list[Entry],
    ) -> None:
        self.failed: Callable[[str], None] = lambda _: None
        self._directory = directory
        self._partition = partition
        self._store = store
        self._pool = pool
        self._schedule = schedule
        self._warming = Warming(pages_per_second(bytes_per_s))
        self._keys = AccessLog()
        self._prefetch = Prefetch(pool.capacity, max(pool.capacity // 64, 4), self._is_cold)
        self._reads = 0
        self._read_ahead = 0
        self._dumped_s = self._looked_s = 0.0
        self._looked_at = datetime.now()
        for source in WARM_SOURCES:
            self._warming.switch(source, source in sources)
        if "prefetch" in sources:
            pool.prefetch = self._prefetch
            pool.missed = self._missed
        if "keys" in sources:
            store.note_with(self._note)

    def begin(self) -> None:
        """Reads what the process before has left."""
        heat, reason = read_heat(self._directory / HEAT, self._partition)
        entries, other_reason = read_access_log(self._directory / KEYS, self._partition)
        for wrong in (reason, other_reason):
            if wrong is not None:
                self.failed(wrong)
        self._keys.load(entries)
        tables = self._store.tables
        keys = [(tables[table], key) for table, key, _ in entries if table < len(tables)]
        found = (page_id(table.number, page) for table, key in keys for page in table.pages_of(key))
        self._warming.begin("keys", array("Q", found))
        self._warming.begin("heat", heat + array("Q", self._in_place_order(range(len(tables)))))

    def step(self, now_s: float) -> None:
        """Reads a little, if it is time to."""
        pool = self._pool
        if now_s >= self._looked_s + SCHEDULE_S:
            self._looked_s = now_s
            self._look_at_schedule()
            self._dumped_s = self._dumped_s or now_s
            if now_s >= self._dumped_s + DUMP_S:
                self._dumped_s = now_s
                self.dump(flush=False)
        pages = self._warming.next_pages(now_s, pool.room_ahead, self._is_here, full=pool.is_full)
        if pages:
            pool.read_ahead(pages)
        for page in self._prefetch.excess():
            pool.drop(page)

    def due_s(self, now_s: float) -> float | None:
        """How long until `step` has something to read. None: nothing is left."""
        return self._warming.due_s(now_s)

    def dump(self, *, flush: bool) -> None:
        """Writes down what is in memory. Without `flush` a power failure may leave a torn file, which is noticed."""
        pages: Iterator[int] = self._pool.hottest()
        for table in self._store.tables:
            table.note_decoded()
        try:
            write_heat(
                self._directory / HEAT, self._partition, pages if flush else islice(pages, PAGES_A_DUMP), flush=flush
            )
            write_access_log(self._directory / KEYS, self._partition, self._keys.top(KEYS_A_DUMP), flush=flush)
        except OSError as error:  # a hint less
            self.failed(str(error))

    def progress(self, now_s: float) -> list[Progress]:
        return self._warming.progress(now_s)

    def _look_at_schedule(self) -> None:
        now = datetime.now()
        if now <= self._looked_at:
            return  # the clock was set back: what has come due once must not come again
        entries = due(self._schedule, self._looked_at, now)
        self._looked_at = now
        for entry in entries:
            names = entry.tables or tuple(self._store.by_name)
            numbers = [self._store.by_name[name].number for name in names if name in self._store.by_name]
            rate = None if entry.bytes_per_s is None else pages_per_second(entry.bytes_per_s)
            self._warming.begin("schedule", array("Q", self._in_place_order(numbers)), rate)

    def _in_place_order(self, tables: Collection[int]) -> Iterator[int]:
        """The cold pages of these tables, as they follow one another in the page file."""
        heaps = self._store.heaps
        return chain.from_iterable(
            (page_id(table, page) for page in heaps[table].cold_in_place_order()) for table in tables
        )

    def _missed(self, page: int) -> None:
        """The page has to be read, or would have had to, had it not been prefetched."""
        if page in self._prefetch:
            self._ahead(self._prefetch.used(page))
            return
        self._reads += 1
        at = self._reads % (LEARNED_READS + SKIPPED_READS)
        if at == 0:
            self._read_ahead = 0
        if at >= LEARNED_READS and not self._read_ahead:
            return
        self._ahead(self._prefetch.after(page))

    def _ahead(self, pages: list[int]) -> None:
        if pages:
            self._read_ahead += len(pages)
            overtaken = self._warming.offer(pages)
            self._prefetch.forget(overtaken)
            self._pool.adopt(overtaken)  # those that have been read for another reason meanwhile

    def _note(self, table: int, keys: Collection[Any]) -> None:
        self._keys.note_some(table, keys, KEYS_NOTED)

    def _is_here(self, page: int) -> bool:
        return not self._is_cold(page)

    def _is_cold(self, page: int) -> bool:
        heaps = self._store.heaps
        return (
            page >> TABLE_SHIFT < len(heaps)
            and heaps[page >> TABLE_SHIFT].is_on_disk_only(page & PAGE_NUMBERS)
            and not self._pool.is_coming(page)
        )
