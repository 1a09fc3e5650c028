"""What a recovery has for one table: what it gathers from the WAL, and what of that it leaves for later.

    gather        a WAL batch's changes, the last of each key; on no page yet, and nothing of the table knows of them
    write         what was gathered goes into the pages: what is about rows that exist page by page, as those come. What
                  is about cold pages may be left: then its keys are away
    wait_for      whoever needs what was left misses its pages …
    write_left    … and here they have come: what was left of them is written, and its keys are here again

Between batches only. Who gathers, and for how long, is partitions.recovery's; who brings the pages of what was left,
partitions.redo's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import chain, islice, repeat
from math import inf
from typing import Any

import msgspec

from partitions.buffer_pool import BufferPool
from partitions.heap import NO_PAGE
from partitions.index import COLLIDED, NOWHERE
from partitions.page import page_id
from voltpy.errors import Corruption

GATHERED_BYTES = 256  # that a change takes, besides its image: key, dict entry, row id, their lists
OVERFLOW_SHARE = 8  # of the frames, for what continues the rows that are changed at a time
LEFT_PAGES = 1024  # that a read which is not by key waits for at a time, where more are left


class TableRedo:
    """`table`: the partitions.table.Table."""

    __slots__ = ("_counted_keys", "_counted_pages", "_gathered", "_left", "_left_images", "_table")

    def __init__(self, table: Any) -> None:
        self._table = table
        # The last image of each key, None where its row went.
        self._gathered: dict[Any, bytes | None] = {}
        self._counted_keys, self._counted_pages = 0, set[int]()  # by `count_pages`: of how many of them, which
        # What is left: keys, by the page where their rows may be, and what becomes of them.
        self._left: dict[int, list[Any]] = {}
        self._left_images: dict[Any, bytes | None] = {}

    def gather(self, images: list[bytes], deleted: list[bytes]) -> tuple[int, int]:
        """Takes a WAL batch's changes. (keys, bytes): how much more it has gathered by that. Raises Corruption."""
        gathered, format_ = self._gathered, self._table._format
        keys = format_.stored_keys(images)
        try:
            gone = list(map(format_.decode_key, deleted))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Corruption(f"table {self._table.name}: a stored key does not decode: {error}") from None
        before = len(gathered)
        replaced = chain(map(gathered.get, keys), map(gathered.get, gone))
        image_bytes = sum(map(len, images)) - sum(map(len, filter(None, replaced)))
        gathered.update(zip(keys, images, strict=True))
        gathered.update(zip(gone, repeat(None)))
        more = len(gathered) - before
        return more, image_bytes + GATHERED_BYTES * more

    def count_pages(self) -> int:
        """In how many pages the rows are that something was gathered about; what is new is in none."""
        gathered, find = self._gathered, self._table._find
        added = islice(gathered, self._counted_keys, None)  # a key that comes again stays where it is
        page_of = self._table._heap.page_of
        self._counted_pages.update(page_of(row_id) for row_id in map(find, added, repeat(NOWHERE)) if row_id >= 0)
        self._counted_keys = len(gathered)
        return len(self._counted_pages)

    def write(self, pool: BufferPool | None, *, leaves_cold: bool = False) -> None:
        """Writes what was gathered. `leaves_cold`: what is about rows on cold pages is left for `write_left`.

        Raises Corruption, OSError, ReadOnly.
        """
        gathered, self._gathered = self._gathered, {}
        self._counted_keys, self._counted_pages = 0, set()
        if not gathered:
            return
        table = self._table
        of_page = self._by_page(sorted(gathered) if table._index.ordered else gathered)
        if leaves_cold:
            for page in table._heap.cold_in_place_order(of_page):
                self._left[page] = [key for _, key in of_page.pop(page)]
            written = [key for places in of_page.values() for _, key in places]
            images = {key: gathered.pop(key) for key in written}
            self._left_images = gathered
            table.send_all_away(gathered)
            gathered = images
        elsewhere = of_page.pop(NO_PAGE, [])
        come: Iterable[Iterable[int]] = (of_page,) if pool is None else pool.bring_in_runs(table.number, of_page)
        self._write(come, of_page, elsewhere, gathered, pool)

    def write_left(self, pages: Iterable[int], pool: BufferPool) -> None:
        """Writes what was left of these pages, which have come; rows may go to other pages.

        What else is needed is waited for: Misses.bring is set. Raises as `write` does.
        """
        keys = [key for page in pages for key in self._left.pop(page, ())]
        images = {key: self._left_images.pop(key) for key in keys}
        self._table.bring_all_back(keys)
        of_page = self._by_page(keys)
        elsewhere = of_page.pop(NO_PAGE, [])
        self._write((of_page,), of_page, elsewhere, images, pool)

    @property
    def left_pages(self) -> Collection[int]:
        """The pages for which `write_left` has something, in the order in which the page file has them."""
        return self._left.keys()

    def wait_for(self, keys: Collection[Any] | None = None) -> None:
        """Raises NotHere, for pages, when something is left of these keys; None: of any, for some pages."""
        left = self._left_images
        if not left:
            return
        if keys is None:
            pages = list(islice(self._left, LEFT_PAGES))
        else:
            pages = sorted({self._page_left(key) for key in keys if key in left})
        if pages:
            number = self._table.number
            self._table._misses.raise_for(*(page_id(number, page) for page in pages))

    # Inside.

    def _page_left(self, key: Any) -> int:
        """The page for which the key was left."""
        table = self._table
        try:
            page = table._heap.page_of(table._find(key, NOWHERE))
        except (TypeError, OverflowError):  # equal to a key, and none: 1.0
            page = NO_PAGE
        if key in self._left.get(page, ()):
            return int(page)
        # Or another key has had its hash, and that one's row has gone elsewhere since.
        return next(page for page, keys in self._left.items() if key in keys)

    def _by_page(self, keys: Iterable[Any]) -> dict[int, list[tuple[int, Any]]]:
        """(row id, key) of each key, by the page of the row; under NO_PAGE what has none, or one of several."""
        of_page: dict[int, list[tuple[int, Any]]] = {}
        page_of, find = self._table._heap.page_of, self._table._find
        for key in keys:
            row_id = find(key, NOWHERE)
            page = page_of(row_id) if row_id >= 0 else NO_PAGE
            if page in of_page:
                of_page[page].append((row_id, key))
            else:
                of_page[page] = [(row_id, key)]
        return of_page

    def _write(
        self,
        come: Iterable[Iterable[int]],
        of_page: dict[int, list[tuple[int, Any]]],
        elsewhere: list[tuple[int, Any]],
        images: dict[Any, bytes | None],
        pool: BufferPool | None,
    ) -> None:
        """Writes the images to the pages in `come`, as those come, and `elsewhere`: what is new, or shares its hash.

        What is under a hash may have been another key: only the page knows, and that key's row is new.
        """
        table = self._table
        table._format.verify(images)
        fresh = [key for row_id, key in elsewhere if row_id == NOWHERE]
        for pages in come:
            fresh += self._change_stored([place for page in pages for place in of_page[page]], images, pool)
        for row_id, key in elsewhere:
            if row_id == COLLIDED:
                row_id = table._locate(key, NOWHERE)
                fresh += [key] if row_id == NOWHERE else self._change_stored([(row_id, key)], images, pool)
        table._inserted.update((key, image) for key in fresh if (image := images[key]) is not None)
        if pool is not None:
            pool.make_room(table.pages_needed(table.changes()[0]))
        table.apply()
        table._places.clear()
        if pool is not None:
            pool.end_batch()

    def _change_stored(
        self, places: list[tuple[int, Any]], images: dict[Any, bytes | None], pool: BufferPool | None
    ) -> list[Any]:
        """Writes the images where rows are, by (row id, key). Keys that the rows there turn out not to have.

        Of rows that are larger than a page only some at a time are in memory, however small what they become is.
        """
        overflow_pages = inf if pool is None else pool.capacity // OVERFLOW_SHARE
        strangers = []
        while places:
            count = self._table._heap.need_all([row_id for row_id, _ in places], overflow_pages)
            strangers += self._change_needed(places[:count], images, pool)
            places = places[count:]
        return strangers

    def _change_needed(
        self, places: list[tuple[int, Any]], gathered: dict[Any, bytes | None], pool: BufferPool | None
    ) -> list[Any]:
        """The same, of rows that are in memory with all their pages."""
        table = self._table
        strangers = [] if table._index.ordered else self._strangers(places)
        if strangers:
            places = [place for place in places if place[1] not in strangers]
        images: list[Any] = [gathered[key] for _, key in places]
        if None in images:
            gone = [place for place, image in zip(places, images, strict=True) if image is None]
            table._delete_at([key for _, key in gone], [row_id for row_id, _ in gone])
            places = [place for place, image in zip(places, images, strict=True) if image is not None]
            images = [image for image in images if image is not None]
        keys = [key for _, key in places]
        if pool is not None:
            pool.make_room(table.pages_needed(images))
        table._replace_at(keys, [row_id for row_id, _ in places], images)
        if pool is not None:
            pool.end_batch()
        return strangers

    def _strangers(self, places: list[tuple[int, Any]]) -> list[Any]:
        """The keys, of (row id, key), that the rows there do not have."""
        found = self._table._format.stored_keys(self._table._heap.read_all([row_id for row_id, _ in places]))
        return [key for (_, key), there in zip(places, found, strict=True) if key != there]
