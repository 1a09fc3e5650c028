"""The heap of one table: row images in pages, found by row id.

A row id is `page number << slot_bits | slot`. `slot_bits` is fitted to the table, so that ids are dense: index bitmaps
over dense ids are several times smaller and faster (ENGINE finding 10). New rows go into the fill page until it is
full. A row that grows moves within its page when there is room, otherwise to another page, and its id changes. Pages
with much free space are filled again, their free slots first, before new ones are taken; a page that becomes empty
gives its frame back.

A page is in a frame of the arena, or COLD: then its place in the page file is known, and whoever needs it calls
`bring`, which brings it into a frame or raises. Only pages that are as their place has them can become cold: `evict`.
Which ones do is not decided here (partitions.buffer_pool).

Nothing here knows about transactions: the heap holds only what is committed.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from math import inf
from operator import sub
from typing import NoReturn

from partitions.page import (
    ALL_ONES,
    DEAD,
    FLAGS,
    FLOOR,
    HEADER_BYTES,
    HEADER_WORDS,
    LENGTH_MASK,
    MAX_INLINE_BYTES,
    OVERFLOW_BYTES,
    OVERFLOW_PAGE,
    OVERFLOWS,
    PAGE_BYTES,
    PAGE_WORDS,
    ROWS,
    SLOT_BYTES,
    SLOTS,
    STUB_BYTES,
    Arena,
    check_page,
    compact,
    free_bytes,
    page_id,
)
from voltpy.errors import Corruption
from voltpy.schema import Table

NO_PAGE = -1  # in `_frames`: this page number is not in use
COLD = -2  # in `_frames`: the page is in the page file only
USES_REMEMBERED = 1 << 16  # remembered between two batches
PAST_PAGES = 64  # kept by `read_past`
ROOMY_BYTES = PAGE_BYTES // 4  # a page with so much free space is worth filling again
ROOMY_TRIES = 4  # so many roomy pages are looked at for a large row before it gets a new page
_TYPICAL_BYTES = {"INT": 5, "FLOAT": 9, "STRING": 12, "BOOL": 1, "TIMESTAMP": 7}


def slot_bits(table: Table) -> int:
    """Bits for the slots of a page, by a low guess at the size of a row."""
    row_bytes = (1 + sum(_TYPICAL_BYTES[column.type] for column in table.columns)) * 2 // 3
    return max((PAGE_BYTES // (row_bytes + SLOT_BYTES)).bit_length(), 4)


class Heap:
    """Row ids in, images out. `image_bytes` counts what rows occupy, without headers and free space."""

    __slots__ = (
        "_arena",
        "_before",
        "_dirty",
        "_fill",
        "_flushing",
        "_frames",
        "_freed",
        "_holes",
        "_memory",
        "_name",
        "_note_use",
        "_roomy",
        "_slot_bits",
        "_slot_mask",
        "_table",
        "_unused",
        "_unwritten",
        "_words",
        "bring",
        "cold",
        "entries",
        "gone",
        "image_bytes",
        "image_of",
        "needed",
        "rows",
        "touched",
    )

    def __init__(self, table: Table, arena: Arena, number: int = 0) -> None:
        self._name = table.name
        self._table = number
        self._arena = arena
        self._memory = arena.memory
        self._words = arena.words
        self._slot_bits = slot_bits(table)
        self._slot_mask = (1 << self._slot_bits) - 1
        self._frames = array("q")  # page number → frame, NO_PAGE where the number is free
        self._unused: list[int] = []  # page numbers that are free
        self._roomy: set[int] = set()  # pages with at least ROOMY_BYTES free, the fill page aside
        self._fill = NO_PAGE
        self._holes: list[int] = []  # free slots in the directory of the fill page
        # Page numbers. What has changed since the last checkpoint began; what that one still has to write; and the
        # images, as they were when it began, of those that have changed since.
        self._dirty: set[int] = set()
        self._freed: set[int] = set()  # no pages any more; one that is used again is dirty instead
        self._unwritten: set[int] = set()
        self._before: dict[int, bytes] = {}
        self._flushing: set[int] = set()  # written by the checkpoint, and perhaps not on disk yet
        self.entries = array("Q")  # page number → where the page file has it: see partitions.checkpoint
        self.cold = 0  # pages
        self.bring: Callable[[int], None] = _no_file
        self.image_of: Callable[[int], bytes] = _no_file  # a cold page, read past the frames
        # Page numbers, for the buffer pool, which clears them between batches: of rows that were read, with
        # repetitions, and of pages that were freed.
        self.touched: deque[int] = deque(maxlen=USES_REMEMBERED)
        self.gone: list[int] = []
        self.needed: set[int] = set()  # pages that must stay until the batch is over
        self._note_use = self.touched.append
        self.rows = 0
        self.image_bytes = 0

    @property
    def slot_bits(self) -> int:
        return self._slot_bits

    @property
    def page_numbers(self) -> int:
        """Page numbers that were ever given away, free ones included."""
        return len(self._frames)

    @property
    def pages(self) -> int:
        return len(self._frames) - len(self._unused)

    def read(self, row_id: int) -> bytes:
        """The image of a row."""
        page = row_id >> self._slot_bits
        frame = self._frames[page]
        if frame < 0:
            self.bring(page)
            frame = self._frames[page]
        self._note_use(page)
        at = frame * PAGE_WORDS + HEADER_WORDS + 2 * (row_id & self._slot_mask)
        words = self._words
        start = frame * PAGE_BYTES + words[at]
        length = words[at + 1]
        if length & OVERFLOWS:
            return self._read_overflow(start)
        return self._memory[start : start + length]

    def read_all(self, row_ids: list[int]) -> list[bytes]:
        """`read` for many rows, at half of what each costs."""
        frames, words, memory, note = self._frames, self._words, self._memory, self._note_use
        slot_bits, slot_mask = self._slot_bits, self._slot_mask
        images = []
        for row_id in row_ids:
            page = row_id >> slot_bits
            frame = frames[page]
            if frame < 0:
                self.bring(page)
                frame = frames[page]
            note(page)
            at = frame * PAGE_WORDS + HEADER_WORDS + 2 * (row_id & slot_mask)
            start = frame * PAGE_BYTES + words[at]
            length = words[at + 1]
            images.append(self._read_overflow(start) if length & OVERFLOWS else memory[start : start + length])
        return images

    def need(self, row_id: int) -> None:
        """Makes sure that a row can be changed at the end of the batch: every page of it is in a frame, and stays."""
        page = row_id >> self._slot_bits
        self.needed.add(page)
        if self._frames[page] < 0:
            self.bring(page)
        self._note_use(page)
        stub = self._stub(row_id)
        if stub:
            following = int.from_bytes(self._memory[stub : stub + 8], "little")
            while following != ALL_ONES:
                self.needed.add(following)
                if self._frames[following] < 0:
                    self.bring(following)
                following = self._next_piece(following)

    def need_all(self, row_ids: list[int], overflow_pages: float = inf) -> int:
        """The same for many rows: each page is seen to once. How many of the rows it is true of now.

        Those behind are for later: with them, what continues rows would be on more than so many pages. It is true of
        one row at least.
        """
        frames, words, slot_bits, slot_mask = self._frames, self._words, self._slot_bits, self._slot_mask
        pages = {row_id >> slot_bits for row_id in row_ids}
        self.needed |= pages
        for page in pages:
            if frames[page] < 0:
                self.bring(page)
            self._note_use(page)
        left = overflow_pages
        for position, row_id in enumerate(row_ids):
            at = frames[row_id >> slot_bits] * PAGE_WORDS + HEADER_WORDS + 2 * (row_id & slot_mask)
            if words[at + 1] & OVERFLOWS:
                stub = self._stub(row_id)
                left -= -(-int.from_bytes(self._memory[stub + 8 : stub + 12], "little") // OVERFLOW_BYTES)
                if left < 0 and position:
                    return position
                self.need(row_id)
        return len(row_ids)

    def pages_of(self, row_id: int) -> Iterator[int]:
        """Every page of a row, as far as they are in frames."""
        page = row_id >> self._slot_bits
        yield page
        stub = self._stub(row_id) if self._frames[page] >= 0 else 0
        if stub:
            following = int.from_bytes(self._memory[stub : stub + 8], "little")
            while following != ALL_ONES and self._frames[following] >= 0:
                yield following
                following = self._next_piece(following)

    def _stub(self, row_id: int) -> int:
        """Where the stub of a row that is larger than a page is in the arena; 0 for any other row."""
        frame = self._frames[row_id >> self._slot_bits]
        at = frame * PAGE_WORDS + HEADER_WORDS + 2 * (row_id & self._slot_mask)
        return frame * PAGE_BYTES + self._words[at] if self._words[at + 1] & OVERFLOWS else 0

    def _next_piece(self, page: int) -> int:
        start = self._frames[page] * PAGE_BYTES + HEADER_BYTES
        return int.from_bytes(self._memory[start : start + 8], "little")

    def read_past(self, row_id: int, images: dict[int, bytes]) -> bytes:
        """The image of a row; what is cold stays cold. `images` keeps the last pages that were read so."""
        number = row_id >> self._slot_bits
        page = images.get(number)
        if page is None:
            if len(images) == PAST_PAGES:
                del images[next(iter(images))]
            page = images[number] = self._image(number)
        at = HEADER_BYTES + SLOT_BYTES * (row_id & self._slot_mask)
        offset, length = int.from_bytes(page[at : at + 2], "little"), int.from_bytes(page[at + 2 : at + 4], "little")
        if length & OVERFLOWS:
            return b"".join(self._overflow_pieces(page[offset : offset + STUB_BYTES]))
        return page[offset : offset + length]

    def some_row_ids(self, most: int) -> list[int]:
        """Rows on different pages in memory, from all over the heap."""
        frames, words, found = self._frames, self._words, list[int]()
        for page in range(0, len(frames), max(len(frames) // most, 1)):
            base = frames[page] * PAGE_WORDS
            if base < 0 or words[base + FLAGS] & OVERFLOW_PAGE or not words[base + SLOTS]:
                continue
            if words[base + HEADER_WORDS] and not words[base + HEADER_WORDS + 1] & OVERFLOWS:
                found.append(page << self._slot_bits)
        return found[:most]

    def is_cold(self, row_id: int) -> bool:
        return self._frames[row_id >> self._slot_bits] == COLD

    def page_of(self, row_id: int) -> int:
        return row_id >> self._slot_bits

    def extend(self, images: list[bytes]) -> list[int]:
        """Adds rows; their ids, in order. The caller has made sure that the arena has room.

        As many as fit are joined and written at once, and so are their slots: a row at a time costs four times as much.
        """
        lengths = list(map(len, images))
        self.rows += len(images)
        self.image_bytes += sum(lengths)
        flagged = lengths
        if max(lengths, default=0) > MAX_INLINE_BYTES:
            images = [i if len(i) <= MAX_INLINE_BYTES else self._write_overflow(i) for i in images]
            flagged = [n if n <= MAX_INLINE_BYTES else STUB_BYTES | OVERFLOWS for n in lengths]
            lengths = list(map(len, images))
        row_ids: list[int] = []
        words, memory, slot_limit = self._words, self._memory, self._slot_mask + 1
        ends = list(accumulate(lengths, initial=0))  # where each row would end, were they in one piece
        done = 0
        while done < len(images):
            page, frame, slots, floor, room = self._fill_page(lengths[done])
            if self._holes:
                row_ids.append(self._put_into_hole(page, frame, floor, images[done], flagged[done]))
                done += 1
                continue
            slots_end = ends[done] + room + SLOT_BYTES * done
            fitting = bisect_right(range(done, len(ends)), slots_end, key=lambda k: ends[k] + SLOT_BYTES * k)
            until = min(done + fitting - 1, done + slot_limit - slots)
            if page not in self._dirty:
                self._before_change(page)
            count = until - done
            written = images[done:until]
            written.reverse()
            offsets = list(accumulate(lengths[done:until], sub, initial=floor))
            directory = array("H", bytes(count * SLOT_BYTES))
            directory[0::2] = array("H", offsets[1:])
            directory[1::2] = array("H", flagged[done:until])
            start, base = frame * PAGE_BYTES, frame * PAGE_WORDS
            memory[start + offsets[-1] : start + floor] = b"".join(written)
            at = base + HEADER_WORDS + 2 * slots
            words[at : at + 2 * count] = directory
            words[base + SLOTS] = slots + count
            words[base + FLOOR] = offsets[-1]
            words[base + ROWS] += count
            first = page << self._slot_bits | slots
            row_ids.extend(range(first, first + count))
            done = until
        return row_ids

    def update(self, row_ids: list[int], images: list[bytes]) -> list[int]:
        """Replaces rows; their ids, which change for those that had to move to another page.

        Those that grow wait for the others of their page: to move its rows together costs as much for all as for one.
        """
        frames, words, memory = self._frames, self._words, self._memory
        slot_bits, slot_mask, dirty = self._slot_bits, self._slot_mask, self._dirty
        shrunk = 0
        moved: list[int] = []  # positions
        growing: dict[int, list[int]] = {}  # positions by page
        for position, (row_id, image) in enumerate(zip(row_ids, images, strict=True)):
            page = row_id >> slot_bits
            frame = frames[page]
            if page not in dirty:
                self._before_change(page)
            base = frame * PAGE_WORDS
            at = base + HEADER_WORDS + 2 * (row_id & slot_mask)
            old_length = words[at + 1]
            length = len(image)
            if (old_length | length) > LENGTH_MASK or length > MAX_INLINE_BYTES:
                moved.append(position)
            elif length > old_length:
                if page in growing:
                    growing[page].append(position)
                else:
                    growing[page] = [position]
            else:
                start = frame * PAGE_BYTES + words[at]
                memory[start : start + length] = image
                if length < old_length:
                    words[at + 1] = length
                    shrunk += old_length - length
                    dead = words[base + DEAD] = words[base + DEAD] + old_length - length
                    if dead >= ROOMY_BYTES // 2:
                        self._mark_if_roomy(page, frame)
        self.image_bytes -= shrunk
        for position in moved:
            self.delete(row_ids[position])
        for page, positions in growing.items():
            moved += self._grow_in_page(page, positions, row_ids, images)
        if moved:
            row_ids = row_ids.copy()
            for position, row_id in zip(moved, self.extend([images[position] for position in moved]), strict=True):
                row_ids[position] = row_id
        return row_ids

    def delete(self, row_id: int) -> None:
        """Removes a row; a page without rows gives its frame back."""
        page = row_id >> self._slot_bits
        slot = row_id & self._slot_mask
        frame = self._frames[page]
        if page not in self._dirty:
            self._before_change(page)
        words = self._words
        base = frame * PAGE_WORDS
        at = base + HEADER_WORDS + 2 * slot
        length = words[at + 1]
        if length & OVERFLOWS:
            self.image_bytes -= self._free_overflow(frame * PAGE_BYTES + words[at])
            length = STUB_BYTES
        else:
            self.image_bytes -= length
        words[at] = words[at + 1] = 0
        words[base + DEAD] += length
        words[base + ROWS] -= 1
        self.rows -= 1
        if words[base + ROWS] == 0:
            self._release(page)
            return
        if page == self._fill:
            self._holes.append(slot)
            return
        if slot == words[base + SLOTS] - 1:
            while words[base + HEADER_WORDS + 2 * (words[base + SLOTS] - 1)] == 0:
                words[base + SLOTS] -= 1
        self._mark_if_roomy(page, frame)

    def scan(self) -> Iterator[bytes]:
        """The images of all rows, page by page. The heap must not change meanwhile.

        Cold pages are read past the frames, so that a scan displaces nothing; nor does it count as a use of a page.
        """
        for _, page in self._images():
            directory = memoryview(page).cast("H")
            if directory[FLAGS] & OVERFLOW_PAGE:
                continue
            for at in range(HEADER_WORDS, HEADER_WORDS + 2 * directory[SLOTS], 2):
                offset, length = directory[at], directory[at + 1]
                if length & OVERFLOWS:
                    yield b"".join(self._overflow_pieces(page[offset : offset + STUB_BYTES]))
                elif offset:
                    yield page[offset : offset + length]

    def rows_of_page(self, page: int) -> list[tuple[int, bytes]]:
        """(row id, image) of the rows on one page; none where there is no such page. What is cold stays cold."""
        if self._frames[page] == NO_PAGE:
            return []
        image = self._image(page)
        words = memoryview(image).cast("H")
        if words[FLAGS] & OVERFLOW_PAGE:
            return []
        rows = []
        first = page << self._slot_bits
        for slot in range(words[SLOTS]):
            at = HEADER_WORDS + 2 * slot
            offset, length = words[at], words[at + 1]
            if length & OVERFLOWS:
                rows.append((first | slot, b"".join(self._overflow_pieces(image[offset : offset + STUB_BYTES]))))
            elif offset:
                rows.append((first | slot, image[offset : offset + length]))
        return rows

    def row_ids(self) -> Iterator[int]:
        """The ids of all rows, for `check`."""
        for number, page in self._images():
            words = memoryview(page).cast("H")
            if words[FLAGS] & OVERFLOW_PAGE:
                continue
            for slot in range(words[SLOTS]):
                if words[HEADER_WORDS + 2 * slot]:
                    yield number << self._slot_bits | slot

    def _images(self) -> Iterator[tuple[int, bytes]]:
        """(page number, page) of all pages, overflow pages among them, in the order of their numbers."""
        for page, frame in enumerate(self._frames):
            if frame != NO_PAGE:
                yield page, self._image(page)

    def _image(self, page: int) -> bytes:
        frame = self._frames[page]
        return self.image_of(page) if frame < 0 else self._memory[frame * PAGE_BYTES : (frame + 1) * PAGE_BYTES]

    def pages_needed(self, images: int, image_bytes: int) -> int:
        """An upper bound on the frames that writing so many images could take.

        A page is left because the next image does not fit: together with it, what was put into the page is larger than
        a page. So the images counted twice are more than the pages that are left. Or its slots are used up.
        """
        if not images:
            return 0
        inline = 2 * (image_bytes + images * SLOT_BYTES) // (PAGE_BYTES - HEADER_BYTES) + images // self._slot_mask
        overflow = image_bytes // OVERFLOW_BYTES + image_bytes // MAX_INLINE_BYTES
        return inline + overflow + 2

    def check(self) -> None:
        """Raises Corruption unless every invariant of every page, and of the heap's own books, holds."""
        rows = image_bytes = 0
        for page, image in self._images():
            check_page(image, page_id(self._table, page), f"table {self._name}, page {page}")
            rows += int.from_bytes(image[2 * ROWS : 2 * ROWS + 2], "little")
        for image in self.scan():
            image_bytes += len(image)
        if (rows, image_bytes) != (self.rows, self.image_bytes):
            raise Corruption(
                f"table {self._name}: pages hold {rows} rows of {image_bytes} bytes, "
                f"the heap counts {self.rows} of {self.image_bytes}"
            )
        if self._fill != NO_PAGE:
            words, base = self._words, self._frames[self._fill] * PAGE_WORDS
            free = [slot for slot in range(words[base + SLOTS]) if not words[base + HEADER_WORDS + 2 * slot]]
            if sorted(self._holes) != free or self._fill in self._roomy:
                raise Corruption(f"table {self._name}: the free slots of page {self._fill} are not those remembered")
        if sorted(self._unused) != [page for page, frame in enumerate(self._frames) if frame == NO_PAGE]:
            raise Corruption(f"table {self._name}: the list of free page numbers is wrong")
        if self.cold != self._frames.count(COLD):
            raise Corruption(f"table {self._name}: {self._frames.count(COLD)} pages are cold, {self.cold} are counted")
        for page, frame in enumerate(self._frames):
            if frame == COLD and (self.is_pinned(page) or not self.entries[page]):
                raise Corruption(f"table {self._name}: page {page} is cold, and the page file does not have it")

    # The buffer pool.

    def is_pinned(self, page: int) -> bool:
        """Whether the page must stay in its frame: the page file does not have it as it is, or it is being filled."""
        return page in self._dirty or page in self._unwritten or page in self._flushing or page == self._fill

    def evict(self, page: int) -> None:
        """The page is only in the page file from now on. It must not be pinned."""
        if self._frames[page] < 0:
            raise Corruption(f"table {self._name}: page {page} was to leave memory, and is not there")
        self._arena.free(self._frames[page])
        self._frames[page] = COLD
        self._roomy.discard(page)
        self.cold += 1

    def admit(self, page: int, frame: int) -> None:
        """The page, which was cold, is in this frame from now on."""
        self.admit_all((page,), (frame,))

    def admit_all(self, pages: Iterable[int], frames: Iterable[int]) -> None:
        """`admit` for many pages."""
        of_page, words = self._frames, self._words
        count = 0
        for page, frame in zip(pages, frames, strict=True):
            of_page[page] = frame
            count += 1
            base = frame * PAGE_WORDS
            # Most are full: the dead bytes and the gap in the middle say so without a closer look.
            if words[base + DEAD] + words[base + FLOOR] >= ROOMY_BYTES and not words[base + FLAGS] & OVERFLOW_PAGE:
                self._mark_if_roomy(page, frame)
        self.cold -= count

    def forget_uses(self) -> None:
        """Where there is no buffer pool to tell."""
        self.touched.clear()
        self.gone.clear()
        self.needed.clear()

    def next_of_row(self, page: int) -> int:
        """The page that continues what is in this overflow page, if it is cold: whoever reads one needs all. Or -1."""
        frame = self._frames[page]
        if not self._words[frame * PAGE_WORDS + FLAGS] & OVERFLOW_PAGE:
            return NO_PAGE
        following = self._next_piece(page)
        return following if following != ALL_ONES and self._frames[following] == COLD else NO_PAGE

    def is_resident(self, page: int) -> bool:
        return page < len(self._frames) and self._frames[page] >= 0

    def is_on_disk_only(self, page: int) -> bool:
        return page < len(self._frames) and self._frames[page] == COLD

    def cold_in_place_order(self, pages: Iterable[int] | None = None) -> list[int]:
        """Those of the pages that are cold, as they follow one another in the page file; None: of all there are.

        NO_PAGE is none of them.
        """
        frames = self._frames
        if pages is None:
            pages = range(len(frames))
        return sorted(
            [page for page in pages if page >= 0 and frames[page] == COLD],
            key=self.entries.__getitem__,
        )

    @property
    def pinned(self) -> set[int]:
        """The pages that must stay in their frames, but for the one that is being filled."""
        return self._dirty | self._unwritten | self._flushing

    @property
    def pinned_pages(self) -> int:
        """About how many."""
        return len(self._dirty) + len(self._unwritten) + len(self._flushing)

    # Checkpoints.

    @property
    def changed_pages(self) -> set[int]:
        """The pages that have changed, come or gone since the last checkpoint began."""
        return self._dirty | self._freed

    def begin_checkpoint(self) -> tuple[int, list[int]]:
        """From here on the heap remembers how it is now. (How many pages have changed since the last time, pages gone.)

        `take_changed` hands the changed pages out.
        """
        gone, self._freed = list(self._freed), set()
        self._unwritten, self._dirty = self._dirty, set()
        return len(self._unwritten), gone

    def take_changed(self, least: int) -> list[tuple[int, bytes]]:
        """Some changed pages, each as it was when the checkpoint began: `least`, or what is left; empty at the end.

        First those that have changed again, since their images take memory; the more of them, the more at once. They
        stay pinned until `written` says that they are on disk.
        """
        count = max(least, len(self._before) // 4)
        taken = [self._before.popitem() for _ in range(min(count, len(self._before)))]
        memory, frames, unwritten = self._memory, self._frames, self._unwritten
        for _ in range(min(count - len(taken), len(unwritten))):
            page = unwritten.pop()
            start = frames[page] * PAGE_BYTES
            taken.append((page, memory[start : start + PAGE_BYTES]))
            self._flushing.add(page)
        return taken

    def written(self) -> list[int]:
        """What was taken is on disk. The pages that may be evicted now."""
        clean = [page for page in self._flushing if page not in self._dirty and page not in self._freed]
        self._flushing.clear()
        return clean

    def abandon_checkpoint(self, gone: Iterable[int]) -> None:
        """The checkpoint came to nothing: what it has not written, or not for sure, is for the next one to write.

        What it has written stays where it is: the page may be cold by now.
        """
        self._freed.update(page for page in gone if self._frames[page] == NO_PAGE)
        self._dirty |= {*self._flushing, *self._unwritten, *self._before} - self._freed
        self._flushing.clear()
        self._unwritten.clear()
        self._before.clear()

    def load(self, entries: array[int], slot_bits: int, rows: int, image_bytes: int) -> None:
        """Takes the pages of a checkpoint into an empty heap; they are cold."""
        self._slot_bits, self._slot_mask = slot_bits, (1 << slot_bits) - 1
        self.entries = entries
        self._frames = array("q", [COLD if entry else NO_PAGE for entry in entries])
        self._unused = [page for page, entry in enumerate(entries) if not entry]
        self.cold = len(entries) - len(self._unused)
        self.rows, self.image_bytes = rows, image_bytes

    def discard(self) -> None:
        """Lets go of every page: the table is dropped. Not while a checkpoint runs, or one of them is coming."""
        frames = self._frames
        for frame in frames:
            if frame >= 0:
                self._arena.free(frame)
        pages = range(len(frames))
        self.gone.extend(page for page, frame in enumerate(frames) if frame != NO_PAGE)
        self._freed.update(page for page in pages if self.entries[page])
        self._frames = array("q", [NO_PAGE]) * len(frames)
        self._unused = list(pages)
        for remembered in (self._roomy, self._dirty, self.needed, self.touched):
            remembered.clear()
        self._fill, self._holes = NO_PAGE, []
        self.cold = self.rows = self.image_bytes = 0

    def _before_change(self, page: int) -> None:
        """To be called before a page changes: a checkpoint that has still to write it needs it as it is."""
        if self._frames[page] < 0:
            raise Corruption(f"table {self._name}: page {page} was to be changed, and is not in memory")
        if page in self._unwritten:
            self._unwritten.remove(page)
            start = self._frames[page] * PAGE_BYTES
            self._before[page] = self._memory[start : start + PAGE_BYTES]
        self._dirty.add(page)

    def _fill_page(self, length: int) -> tuple[int, int, int, int, int]:
        """(page, frame, slots, floor, contiguous room) of a page into which a row of `length` fits."""
        words = self._words
        while True:
            if self._fill == NO_PAGE:
                self._fill = self._next_fill_page(length)
            frame = self._frames[self._fill]
            base = frame * PAGE_WORDS
            slots, floor = words[base + SLOTS], words[base + FLOOR]
            room = floor - HEADER_BYTES - slots * SLOT_BYTES
            if room >= length + SLOT_BYTES and (slots <= self._slot_mask or self._holes):
                return self._fill, frame, slots, floor, room
            left, self._fill, self._holes = self._fill, NO_PAGE, []
            self._mark_if_roomy(left, frame)  # rows may have left it since it was opened

    def _next_fill_page(self, length: int) -> int:
        """A roomy page, compacted, or a new one."""
        words = self._words
        too_small: list[int] = []
        page = NO_PAGE
        while self._roomy and len(too_small) < ROOMY_TRIES:
            page = self._roomy.pop()
            frame = self._frames[page]
            if free_bytes(words, frame) >= length + SLOT_BYTES:
                self._before_change(page)
                compact(self._arena, frame)
                base = frame * PAGE_WORDS
                slots = range(words[base + SLOTS])
                if words[base + ROWS] < len(slots):
                    self._holes = [slot for slot in slots if not words[base + HEADER_WORDS + 2 * slot]]
                break
            too_small.append(page)
        else:
            page = self._new_page(0)
        self._roomy.update(too_small)
        return page

    def _mark_if_roomy(self, page: int, frame: int) -> None:
        words = self._words
        if page != self._fill and free_bytes(words, frame) >= ROOMY_BYTES:
            slots = words[frame * PAGE_WORDS + SLOTS]
            if slots <= self._slot_mask or words[frame * PAGE_WORDS + ROWS] < slots:
                self._roomy.add(page)

    def _put_into_hole(self, page: int, frame: int, floor: int, image: bytes, flagged: int) -> int:
        """Writes a row into a free slot of the fill page, which has room for it."""
        self._before_change(page)
        slot = self._holes.pop()
        floor -= len(image)
        start = frame * PAGE_BYTES + floor
        self._memory[start : start + len(image)] = image
        words, base = self._words, frame * PAGE_WORDS
        at = base + HEADER_WORDS + 2 * slot
        words[at] = words[base + FLOOR] = floor
        words[at + 1] = flagged
        words[base + ROWS] += 1
        return page << self._slot_bits | slot

    def _new_page(self, flags: int) -> int:
        page = self._unused.pop() if self._unused else len(self._frames)
        frame = self._arena.allocate(page_id(self._table, page), flags)
        self._freed.discard(page)
        self._dirty.add(page)
        if page == len(self._frames):
            self._frames.append(frame)
            self.entries.append(0)
        else:
            self._frames[page] = frame
        return page

    def _release(self, page: int) -> None:
        self._before_change(page)
        self._dirty.discard(page)
        self._freed.add(page)
        self._arena.free(self._frames[page])
        self._frames[page] = NO_PAGE
        self.gone.append(page)
        self._unused.append(page)
        self._roomy.discard(page)
        if page == self._fill:
            self._fill, self._holes = NO_PAGE, []

    def _grow_in_page(self, page: int, positions: list[int], row_ids: list[int], images: list[bytes]) -> list[int]:
        """Puts longer images of rows into their page. Those that don't fit are deleted; their positions."""
        frame, words, slot_mask = self._frames[page], self._words, self._slot_mask
        base = frame * PAGE_WORDS
        directory = base + HEADER_WORDS
        replaced, olds = dict[int, bytes](), dict[int, int]()
        for position in positions:
            slot = row_ids[position] & slot_mask
            replaced[slot] = images[position]
            olds[slot] = words[directory + 2 * slot + 1]
        length, old_length = sum(map(len, replaced.values())), sum(olds.values())
        staying = len(positions)
        while free_bytes(words, frame) + old_length < length:
            staying -= 1
            slot, image = replaced.popitem()
            length -= len(image)
            old_length -= olds.pop(slot)
            self.delete(row_ids[positions[staying]])
        if not staying:
            return positions
        if words[base + FLOOR] - HEADER_BYTES - words[base + SLOTS] * SLOT_BYTES < length:
            compact(self._arena, frame, replaced)
        else:
            words[base + DEAD] += old_length
            floor = words[base + FLOOR]
            for slot, image in replaced.items():
                at = directory + 2 * slot
                floor = words[at] = floor - len(image)
                words[at + 1] = len(image)
            words[base + FLOOR] = floor
            start = frame * PAGE_BYTES + floor
            self._memory[start : start + length] = b"".join(reversed(replaced.values()))
        self.image_bytes += length - old_length
        return positions[staying:]

    def _write_overflow(self, image: bytes) -> bytes:
        """Spreads an image over overflow pages, last piece first; the stub that stands for it."""
        following = ALL_ONES
        pieces = range(0, len(image), OVERFLOW_BYTES)
        for begin in reversed(pieces):
            piece = image[begin : begin + OVERFLOW_BYTES]
            page = self._new_page(OVERFLOW_PAGE)
            start = self._frames[page] * PAGE_BYTES + HEADER_BYTES
            self._memory[start : start + 8 + len(piece)] = following.to_bytes(8, "little") + piece
            self._words[self._frames[page] * PAGE_WORDS + DEAD] = len(piece)
            following = page
        return following.to_bytes(8, "little") + len(image).to_bytes(4, "little")

    def _overflow_pages(self, stub: int) -> Iterator[int]:
        """The pages of the row whose stub is at this offset of the arena; each is in a frame when it is yielded."""
        page = int.from_bytes(self._memory[stub : stub + 8], "little")
        while page != ALL_ONES:
            if self._frames[page] < 0:
                self.bring(page)
            self._note_use(page)
            following = self._next_piece(page)
            yield page
            page = following

    def _read_overflow(self, stub: int) -> bytes:
        pieces = []
        for page in self._overflow_pages(stub):
            frame = self._frames[page]
            start = frame * PAGE_BYTES + HEADER_BYTES + 8
            pieces.append(self._memory[start : start + self._words[frame * PAGE_WORDS + DEAD]])
        return b"".join(pieces)

    def _overflow_pieces(self, stub: bytes) -> Iterator[bytes]:
        """The row of a stub, piece by piece; what is cold is read past the frames."""
        page = int.from_bytes(stub[:8], "little")
        while page != ALL_ONES:
            image = self._image(page)
            length = int.from_bytes(image[2 * DEAD : 2 * DEAD + 2], "little")
            page = int.from_bytes(image[HEADER_BYTES : HEADER_BYTES + 8], "little")
            yield image[HEADER_BYTES + 8 : HEADER_BYTES + 8 + length]

    def _free_overflow(self, stub: int) -> int:
        """Frees a stub's overflow pages; the length of the row that they held."""
        length = int.from_bytes(self._memory[stub + 8 : stub + 12], "little")
        for page in list(self._overflow_pages(stub)):
            self._release(page)
        return length


def _no_file(page: int) -> NoReturn:
    raise Corruption(f"page {page} is not in memory, and this heap has no page file")
