"""The buffer pool of one partition: which pages are in memory, and how the others come back.

    heap       knows of each of its pages whether it is in a frame, and which must stay there (`is_pinned`)
    policy     decides which page leaves when there is no room (partitions.eviction)
    reader     reads pages into frames, beside what the partition does (partitions.page_reader)

A page leaves only when the page file has it as it is: nothing is written in order to evict (a checkpoint does the
writing, and is asked for when too many pages have changed). So a page is one of

    dirty      changed since its last image was taken; stays
    clean      may leave; the policy knows it
    cold       in the page file only
    coming     a frame has been given to it, and the reader has it

A transaction that needs a cold page is set aside by the executor, and `fetch` is told the page; `step`, between
batches, hands out the pages that have come. Until the calls that wait for it have run, a page stays if it can
(`is_wanted`); one with rows that the batch has changed must stay until these are written to it (`pages_to_write`).

The capacity is in frames, and follows the resident size of the process: `steer`. Only a recovery goes beyond it, since
all pages that have changed since the last checkpoint must be in memory at its end: three quarters of the capacity at
most (`needs_cleaning` when the last one began, `must_clean` since), and what it is about to write. So does what it has
left (partitions.redo), while that is written: `goes_beyond`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

from partitions.eviction import Policy
from partitions.heap import Heap
from partitions.page import PAGE_BYTES, PAGE_NUMBERS, TABLE_SHIFT, Arena, check_sealed, page_id, seal_fault
from partitions.page_file import generation_of, place_of, runs_across_gaps
from partitions.page_reader import NO_FRAME, RUN_PAGES
from partitions.prefetch import Prefetch
from partitions.tiny_lfu import WTinyLfu
from voltpy.crash_point import crash_point
from voltpy.errors import Corruption, ReadOnly

LEAST_PAGES = 16  # the pages have at least a sixteenth of the frames, whatever else takes memory
SIZES_REMEMBERED = 8  # of the process
FREE_FRAMES = 256  # that keep their memory, besides an eighth of those in use
READS = 64  # at a time
# In runs: so many pages are under way at a time, about; so many that nobody wants are read along, where they lie
# between two that are wanted: that takes less time than one more read does.
PAGES_AHEAD, GAP_PAGES = 1024, 4
TOUCHES_TOLD = 256  # of a batch that the policy is told, about: each costs it as much as the read itself
LEAST_SHARE = 16  # the policy's capacity is at least a sixteenth of the pool's, however many pages are dirty
CAPACITY_STEPS = 64  # the policy's capacity changes by so small a part, and no smaller
# Eighths of the frames that have changed: a checkpoint is due; it hurries; calls wait for it.
CHECKPOINT_AT, HURRY_AT, STOP_AT = 2, 3, 4


class Reader(Protocol):
    """What the pool asks of partitions.page_reader.PageReader."""

    @property
    def in_flight(self) -> int: ...
    @property
    def room(self) -> int: ...
    def start(self, reads: list[tuple[int, int, int]]) -> None: ...
    def start_runs(self, runs: list[tuple[int, int, Sequence[int]]]) -> None: ...
    def finished(self) -> list[int]: ...
    def wait(self, timeout_s: float, least: int = 1) -> list[int]: ...
    def read(self, place: int, frame: int) -> None: ...
    def image(self, place: int) -> bytes: ...


class BufferPool:
    """`budget_bytes`: what the process may take. `path`: of the page file, for errors."""

    def __init__(self, heaps: list[Heap], arena: Arena, reader: Reader, path: Path, budget_bytes: int) -> None:
        self.capacity = arena.frames + arena.frames // 2  # frames that may be in use; until the first `steer`, more
        # The disk failed, or a page is damaged, in the middle of a transaction: the process must end.
        self.failed: OSError | Corruption | None = None
        self._budget_bytes = budget_bytes
        self._others_bytes: deque[int] = deque(maxlen=SIZES_REMEMBERED)  # resident and not pages, of late
        self.is_wanted: Callable[[int], bool] = lambda _: False
        self.pages_to_write: Callable[[], list[set[int]]] = list  # by table, page numbers that the batch will change
        self.changed_rows: Callable[[], int] = lambda: 0  # by the batch; they grow when `pages_to_write` does
        self.clean_some: Callable[[], bool] = lambda: False  # lets a checkpoint write some dirty pages, here and now
        self.goes_beyond = False  # the capacity, while nothing can leave
        self.missed: Callable[[int], None] = lambda _: None  # told of every page that is asked for and has to be read
        self.prefetch: Prefetch | None = None
        self.touches = self.faults = self.evictions = 0
        self._heaps = heaps
        self._arena = arena
        self._reader = reader
        self._path = path
        self._policy: Policy = WTinyLfu(self.capacity)
        self._queue: deque[int] = deque()  # pages that are to be read
        self.disk_read_us: float | None = None  # from the miss of a page to its coming, on average of late
        self._timed, self._timed_since_s = -1, 0.0  # the read that is timed
        self._coming: dict[int, int] = {}  # page id → frame; those in the queue have none yet: -1
        self._arrived: list[int] = []
        self._runs: dict[int, list[int]] = {}  # pages that are read in one run, by the first of them
        # The rest of a row that is larger than a page: page id → the page for whose sake it is read.
        self._on_behalf_of: dict[int, int] = {}
        self._pinned = _Pinned(heaps, self)
        self._changed = 0, 0  # for how many changed rows and needed pages that knows what must stay
        for number, heap in enumerate(heaps):
            heap.image_of = self._image_of(number, heap)

    def add_heap(self, heap: Heap) -> None:
        """One more table has pages, none of which is in the page file yet."""
        heap.image_of = self._image_of(len(self._heaps), heap)
        self._heaps.append(heap)

    # What is needed.

    def fetch(self, pages: Iterable[int]) -> None:
        """These pages are waited for. Those that are in memory by now are among the next that `step` hands out."""
        for page in pages:
            if page in self._coming:
                continue
            heap = self._heaps[page >> TABLE_SHIFT]
            if heap.is_on_disk_only(page & PAGE_NUMBERS):
                self.faults += 1
                self._coming[page] = -1
                self._queue.append(page)
                self.missed(page)
            else:
                self._arrived.append(page)

    @property
    def is_reading(self) -> bool:
        return bool(self._coming or self._arrived)

    def is_any_coming(self, table: int) -> bool:
        """Whether any page of the table with this number is."""
        return any(page >> TABLE_SHIFT == table for page in self._coming)

    def is_coming(self, page: int) -> bool:
        return page in self._coming

    def step(self, now_s: float, wait_s: float = 0.0) -> list[int]:
        """Makes room, takes in what was read, starts further reads. Pages that have come since the last time.

        Between batches only. With `wait_s` it waits for the reader as long, if pages are coming.
        """
        self.end_batch()
        # Before new pages come: those that came last time have had their calls by now, and may leave.
        if self._arena.frames_in_use + self._reserve > self.capacity:
            self._evict(self._reserve)
        if self._coming:
            reader = self._reader
            # Half of what is under way: to run a batch for every page or two would cost more than the calls themselves.
            wanted = (reader.in_flight + 1) // 2
            self._take_in(reader.wait(wait_s, wanted) if wait_s and wanted else reader.finished())
            if self._timed not in self._coming:
                self._time_a_read(now_s)
        if self._queue:
            self._start_reads()
        arrived, self._arrived = self._arrived, []
        return arrived

    # What is not needed yet.

    @property
    def room_ahead(self) -> int:
        """Pages that may be read without anybody waiting for them.

        Until the pool is full, none leaves for them; then they may take half of what is kept free for those who wait.
        """
        return min(self._reader.room, self._frames_ahead)

    @property
    def _frames_ahead(self) -> int:
        spare = self.capacity - self._arena.frames_in_use - self._reserve
        return max(0, spare if spare > 0 else spare + self._reserve // 2)

    @property
    def is_full(self) -> bool:
        return self._arena.frames_in_use + self._reserve >= self.capacity

    def read_ahead(self, pages: list[int]) -> None:
        """Starts to read these cold pages, for which there is `room_ahead`."""
        for page in pages:
            self._coming[page] = -1
            self._queue.append(page)
        self._start_reads()

    def read_ahead_in_runs(self, table: int, pages: list[int]) -> int:
        """Starts to read these cold pages of one table, by number, in the order of their places. How many of them.

        As many as there is room for, half of the reads at most. The policy does not know of them: whoever has asked
        changes them when `step` hands them out, or adopts them.
        """
        entries, base = self._heaps[table].entries, page_id(table, 0)
        places = [place_of(entries[page]) for page in pages[: self._frames_ahead]]
        started = 0
        for first, length in runs_across_gaps(places, GAP_PAGES, RUN_PAGES // 2):
            if self._reader.room <= READS // 2:
                break
            run = [base | page for page in pages[first : first + length]]
            self._runs[run[0]] = run
            self._coming.update(zip(run, self._start_run(places[first : first + length], run[0]), strict=True))
            started += length
        return started

    def drop(self, page: int) -> None:
        """A page that was prefetched is not wanted any more."""
        heap, number = self._heaps[page >> TABLE_SHIFT], page & PAGE_NUMBERS
        if heap.is_pinned(number) or self.is_wanted(page) or number in heap.touched or number in heap.needed:
            self.adopt((page,))
        elif heap.is_resident(number) and page not in self._policy:
            heap.evict(number)

    def adopt(self, pages: Iterable[int]) -> None:
        """These were brought in ahead, and are now like any other: the policy may name them."""
        for page in pages:
            heap, number = self._heaps[page >> TABLE_SHIFT], page & PAGE_NUMBERS
            if heap.is_resident(number) and page not in self._policy:
                self._policy.admit(page)

    def hottest(self) -> Iterator[int]:
        """The pages in memory, roughly the hottest first: those that have changed lately, then as the policy has it."""
        dirty = [
            page_id(number, page)
            for number, heap in enumerate(self._heaps)
            for page in heap.pinned
            if heap.is_resident(page)
        ]
        known = set(dirty)
        return chain(dirty, (page for page in reversed(self._policy) if page not in known))

    # In the middle of a batch.

    def bring(self, page: int) -> None:
        """Brings one page into memory here and now, in the middle of a transaction.

        A procedure may swallow what it raises, so `failed` remembers it: the batch must not be answered.
        """
        try:
            self._bring(page)
        except (OSError, Corruption) as error:
            self.failed = error
            raise

    def _bring(self, page: int) -> None:
        if self.failed is not None:
            raise self.failed
        while self._coming.get(page, -1) >= 0:
            self._take_in(self._reader.wait(1.0))
        heap, number = self._heaps[page >> TABLE_SHIFT], page & PAGE_NUMBERS
        if heap.is_resident(number):
            return
        self.make_room(1)
        frame = self._arena.take()
        place = place_of(heap.entries[number])
        self._reader.read(place, frame)
        self.faults += page not in self._coming
        if self._coming.pop(page, None) is not None:
            self._queue.remove(page)
            self._arrived.append(self._on_behalf_of.pop(page, page))
        self._admit(page, frame)
        crash_point("buffer_pool.bring")

    # Between batches, while nothing else is read: recovery.

    def bring_all(self, pages: Iterable[int]) -> None:
        """Brings many pages, with the rest of their rows; they stay until `end_batch`."""
        by_table: dict[int, list[int]] = {}
        for page in pages:
            by_table.setdefault(page >> TABLE_SHIFT, []).append(page & PAGE_NUMBERS)
        for table, wanted in by_table.items():
            heap = self._heaps[table]
            heap.needed.update(wanted)
            while wanted:
                following = []
                for come in self.bring_in_runs(table, wanted):
                    following += [page for page in map(heap.next_of_row, come) if page >= 0]
                heap.needed.update(following)
                wanted = following

    def bring_in_runs(self, table: int, pages: Iterable[int]) -> Iterator[list[int]]:
        """Brings pages of one table, by number, in the order of their places, and hands them out as they come.

        Those that are in memory already come first. The next runs are read while the caller works on the last; until
        then the policy does not know of them, and will only hear of those that the caller has not changed. Raises
        Corruption, OSError; ReadOnly without room: then the process must end, since reads may be under way.
        """
        heap = self._heaps[table]
        cold: list[int] = []
        there: list[int] = []
        for page in pages:
            (cold if heap.is_on_disk_only(page) else there).append(page)
        # The frames of what is read ahead must be there beside those of what the caller changes.
        ahead = max(min(PAGES_AHEAD, self.capacity // 16), 1)
        most = min(RUN_PAGES, (ahead + 1) // 2)
        for at in range(0, len(there), most):
            yield there[at : at + most]
        entries = heap.entries
        cold.sort(key=entries.__getitem__)
        places = [place_of(entries[page]) for page in cold]
        runs = runs_across_gaps(places, GAP_PAGES, most)
        flying: dict[int, tuple[list[int], list[int]]] = {}  # by tag, the index of the first: pages, frames
        landed: deque[int] = deque()
        count = 0  # of pages in flying
        while True:
            while count < ahead and self._reader.room and (run := next(runs, None)):
                first, length = run
                frames = self._start_run(places[first : first + length], first)
                flying[first] = cold[first : first + length], frames
                count += length
            if not flying:
                return
            if not landed:
                landed.extend(self._reader.wait(1.0))
                continue
            came, frames = flying[landed[0]]
            self._check_all(table, came, frames)
            del flying[landed.popleft()]
            count -= len(came)
            heap.admit_all(came, frames)
            self.faults += len(came)
            crash_point("buffer_pool.run.taken_in")
            yield came
            self.adopt(page_id(table, page) for page in came if not heap.is_pinned(page))

    @contextmanager
    def beside(self, bytes_taken: int) -> Iterator[None]:
        """While it lasts something else takes so much of the memory: pages leave for it, if they can."""
        frames = min(bytes_taken // PAGE_BYTES, self.capacity // 2)
        self.capacity -= frames
        self.goes_beyond = True
        try:
            yield
        finally:
            self.goes_beyond = False
            self.capacity += frames

    def _start_run(self, places: list[int], tag: int) -> list[int]:
        """Begins to read the pages in these places, which are close together, into frames, which it returns."""
        self.make_room(len(places))
        taken = [self._arena.take() for _ in places]
        frames = [NO_FRAME] * (places[-1] - places[0] + 1)
        for place, frame in zip(places, taken, strict=True):
            frames[place - places[0]] = frame
        self._reader.start_runs([(tag, places[0], frames)])
        return taken

    def _check_all(self, table: int, pages: list[int], frames: list[int]) -> None:
        """Raises Corruption for the first of the pages that is not what the page file should have."""
        memory, entries, base = self._arena.memory, self._heaps[table].entries, page_id(table, 0)
        for page, frame in zip(pages, frames, strict=True):
            entry = entries[page]
            fault = seal_fault(memory, frame * PAGE_BYTES, base | page, generation_of(entry))
            if fault is not None:
                raise Corruption(f"{self._where(entry)}: {fault}")

    def make_room(self, frames: int) -> None:
        """Sees to it that so many frames are free, in the middle of a batch. Raises ReadOnly when nothing can leave."""
        if self._arena.frames_in_use + frames <= self.capacity:
            return
        changed = self.changed_rows(), sum(len(heap.needed) for heap in self._heaps)
        if changed != self._changed:  # else the same as for the page before
            self._changed, self._pinned.in_batch = changed, self.pages_to_write()
        while self._arena.frames_in_use + frames > self.capacity:
            if not self._evict(frames) and not self.clean_some():
                if self.goes_beyond:
                    return
                mebibytes = self.capacity * PAGE_BYTES / (1 << 20)
                raise ReadOnly(
                    f"more pages must be in memory at once than there is room for ({mebibytes:,.1f} MiB): "
                    "send fewer or smaller calls together, or start with a larger --memory"
                )

    def cleaned(self, table: int, pages: Iterable[int]) -> None:
        """These pages are in the page file as they are: they may leave."""
        policy, base = self._policy, page_id(table, 0)
        for page in pages:
            if base | page not in policy:
                policy.admit(base | page)

    # How large it is.

    @property
    def pinned_pages(self) -> int:
        return sum(heap.pinned_pages for heap in self._heaps)

    @property
    def needs_cleaning(self) -> bool:
        """So many pages have changed that a checkpoint is due."""
        return 8 * self.pinned_pages > CHECKPOINT_AT * self.capacity or self.is_starved

    @property
    def is_pressed(self) -> bool:
        """It will soon come to `must_clean`, or has."""
        return 8 * self.pinned_pages > HURRY_AT * self.capacity or self.is_starved

    @property
    def is_starved(self) -> bool:
        """Pages are waited for, and there is no frame for them."""
        return bool(self._queue) and self._arena.frames_in_use >= self.capacity

    @property
    def must_clean(self) -> bool:
        """So many pages have changed that no more may, until some are written."""
        return 8 * self.pinned_pages > STOP_AT * self.capacity

    def steer(self, resident_bytes: int) -> None:
        """Fits the capacity to the resident size of the process (without what clients have not read), and gives back.

        A batch takes memory and leaves it again, so the least of the last few sizes counts.
        """
        arena = self._arena
        self._others_bytes.append(resident_bytes - arena.resident_bytes)
        capacity = (self._budget_bytes - min(self._others_bytes)) // PAGE_BYTES
        self.capacity = min(max(capacity, arena.frames // LEAST_PAGES, 1), arena.frames)
        # What is free is taken again soon, but for what is left behind when many rows have gone.
        arena.give_back(min(max(self.capacity - arena.frames_in_use, 0), arena.frames_in_use // 8 + FREE_FRAMES))

    def metrics(self) -> dict[str, object]:
        dirty = self.pinned_pages
        in_use = max(self._arena.frames_in_use, 1)
        return {
            "pages": sum(heap.pages for heap in self._heaps),
            "resident_pages": self._arena.frames_in_use,
            "capacity_pages": self.capacity,
            "buffer_pool_hits": max(self.touches - self.faults, 0),
            "buffer_pool_misses": self.faults,
            "buffer_pool_dirty_pages_ratio": round(dirty / in_use, 4),
            "evictions": self.evictions,
        }

    @property
    def _reserve(self) -> int:
        """Frames that are kept free, for reads and for new pages."""
        return min(READS, self.capacity // 8)

    # Inside.

    def _take_in(self, pages: list[int]) -> None:
        for page in pages:
            if page in self._runs:
                self._take_in_run(self._runs.pop(page))
                continue
            self._admit(page, self._coming.pop(page))
            crash_point("buffer_pool.read.taken_in")
            awaited = self._on_behalf_of.pop(page, page)
            following = self._heaps[page >> TABLE_SHIFT].next_of_row(page & PAGE_NUMBERS)
            if following >= 0 and (continued := page & ~PAGE_NUMBERS | following) not in self._coming:
                self._coming[continued] = -1
                self._on_behalf_of[continued] = awaited
                self._queue.appendleft(continued)
            else:
                self._arrived.append(awaited)

    def _take_in_run(self, run: list[int]) -> None:
        table = run[0] >> TABLE_SHIFT
        numbers, frames = [page & PAGE_NUMBERS for page in run], [self._coming.pop(page) for page in run]
        self._check_all(table, numbers, frames)
        self._heaps[table].admit_all(numbers, frames)
        self._arrived += run
        crash_point("buffer_pool.ahead.taken_in")

    def _admit(self, page: int, frame: int) -> None:
        heap, number = self._heaps[page >> TABLE_SHIFT], page & PAGE_NUMBERS
        self._check_all(page >> TABLE_SHIFT, [number], [frame])
        heap.admit(number, frame)
        # A page that was prefetched does not count as used before it is.
        if self.prefetch is None or page not in self.prefetch:
            self._policy.admit(page)

    def _where(self, entry: int) -> str:
        return f"{self._path} offset {place_of(entry) * PAGE_BYTES}"

    def _start_reads(self) -> None:
        room = min(self._reader.room, self.capacity - self._arena.frames_in_use)
        reads: list[tuple[int, int, int]] = []
        while self._queue and len(reads) < room:
            page = self._queue.popleft()
            frame = self._arena.take()
            self._coming[page] = frame
            reads.append((page, place_of(self._heaps[page >> TABLE_SHIFT].entries[page & PAGE_NUMBERS]), frame))
        if reads:
            self._reader.start(reads)
            crash_point("buffer_pool.read.started")

    def end_batch(self) -> None:
        """What the batch read counts as used, on a sample, and may leave; pages that were freed are forgotten."""
        self._changed, self._pinned.in_batch = (0, 0), []
        is_full = self._arena.frames_in_use * 8 > self.capacity * 7
        policy = self._policy
        for number, heap in enumerate(self._heaps):
            heap.needed.clear()
            touched = heap.touched
            if touched:
                self.touches += len(touched)
                if self.prefetch:
                    self._used(number, touched)
                if is_full:
                    base = page_id(number, 0)
                    policy.touch([base | page for page in islice(touched, 0, None, 1 + len(touched) // TOUCHES_TOLD)])
                touched.clear()
            if heap.gone:
                base = page_id(number, 0)
                for page in heap.gone:
                    policy.remove(base | page)
                heap.gone.clear()

    def _time_a_read(self, now_s: float) -> None:
        """Times one read at a time, from one step to another."""
        if self._timed >= 0:
            took_us = (now_s - self._timed_since_s) * 1e6
            self.disk_read_us = round(
                took_us if self.disk_read_us is None else 0.9 * self.disk_read_us + 0.1 * took_us, 1
            )
        self._timed = next(reversed(self._coming), -1)
        self._timed_since_s = now_s

    def _used(self, table: int, touched: Iterable[int]) -> None:
        prefetch, base = self.prefetch, page_id(table, 0)
        assert prefetch is not None
        for page in dict.fromkeys(touched):
            if base | page in prefetch:
                self.adopt((base | page,))
                self.missed(base | page)

    def _evict(self, frames: int) -> int:
        """Makes room for so many frames, if it can. How many pages left."""
        policy, step = self._policy, max(self.capacity // CAPACITY_STEPS, 1)
        managed = len(policy)
        target = managed + self.capacity - self._arena.frames_in_use - frames
        target = max(target // step * step, self.capacity // LEAST_SHARE, 1)
        if target != policy.capacity:
            policy.resize(target)
        if managed <= target:
            return 0
        evicted = policy.evict(self._pinned)
        if not evicted:  # that pages stay for those who wait saves work; that others can come is a must
            self._pinned.wanted_too = False
            evicted = policy.evict(self._pinned)
            self._pinned.wanted_too = True
        for page in evicted:
            heap = self._heaps[page >> TABLE_SHIFT]
            if heap.is_resident(page & PAGE_NUMBERS):  # else it was freed in this batch
                heap.evict(page & PAGE_NUMBERS)
        self.evictions += len(evicted)
        crash_point("buffer_pool.evict")
        return len(evicted)

    def _image_of(self, table: int, heap: Heap) -> Callable[[int], bytes]:
        def image_of(page: int) -> bytes:
            entry = heap.entries[page]
            try:
                image = self._reader.image(place_of(entry))
                check_sealed(image, page_id(table, page), generation_of(entry), self._where(entry))
            except (OSError, Corruption) as error:
                self.failed = error
                raise
            return image

        return image_of


class _Pinned:
    """The pages that the policy may not name, for now."""

    def __init__(self, heaps: list[Heap], pool: BufferPool) -> None:
        self.in_batch: list[set[int]] = []  # page numbers that the batch under way will change, by table
        self.wanted_too = True
        self._heaps = heaps
        self._pool = pool

    def __contains__(self, page: int) -> bool:
        table, number = page >> TABLE_SHIFT, page & PAGE_NUMBERS
        if self._heaps[table].is_pinned(number) or (self.in_batch and number in self.in_batch[table]):
            return True
        return self.wanted_too and self._pool.is_wanted(page)
