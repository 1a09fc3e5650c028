"""The heap against a dict: any mixture of rows, any order of changes, every invariant after each of them."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from partitions import heap as heap_module
from partitions.heap import Heap, slot_bits
from partitions.page import MAX_INLINE_BYTES, OVERFLOW_BYTES, OVERFLOWS, PAGE_BYTES, STUB_BYTES, Arena, compact
from voltpy.errors import ReadOnly
from voltpy.schema import Column, Table

NARROW = Table("narrow", (Column("id", "INT", False), Column("n", "INT", True)), ("id",), False, "id")
WIDE = Table("wide", tuple(Column(f"c{i}", "STRING", False) for i in range(60)), ("c0",), False, "c0")


class Modelled:
    """A heap beside the dict that it should equal."""

    def __init__(self, table: Table = NARROW, memory_bytes: int = 64 << 20) -> None:
        self.arena = Arena(memory_bytes)
        self.heap = Heap(table, self.arena)
        self.rows: dict[int, bytes] = {}

    def add(self, images: list[bytes]) -> list[int]:
        needed, before = self.heap.pages_needed(len(images), sum(map(len, images))), self.arena.frames_in_use
        row_ids = self.heap.extend(images)
        assert self.arena.frames_in_use - before <= needed
        assert len(set(row_ids)) == len(images)
        assert self.rows.keys().isdisjoint(row_ids)
        self.rows.update(zip(row_ids, images, strict=True))
        return row_ids

    def update(self, row_ids: list[int], images: list[bytes]) -> list[int]:
        for row_id in row_ids:
            del self.rows[row_id]
        moved_to = self.heap.update(row_ids, images)
        assert len(set(moved_to)) == len(images)
        assert self.rows.keys().isdisjoint(moved_to)
        self.rows.update(zip(moved_to, images, strict=True))
        return moved_to

    def delete(self, row_id: int) -> None:
        self.heap.delete(row_id)
        del self.rows[row_id]

    def check(self, sample: random.Random | None = None) -> None:
        self.heap.check()
        assert self.heap.rows == len(self.rows)
        assert self.heap.image_bytes == sum(map(len, self.rows.values()))
        assert self.heap.pages == self.arena.frames_in_use
        row_ids = sorted(self.rows) if sample is None else sample.sample(sorted(self.rows), min(len(self.rows), 40))
        for row_id in row_ids:
            assert self.heap.read(row_id) == self.rows[row_id]
        if sample is None:
            assert sorted(self.heap.scan()) == sorted(self.rows.values())
            assert sorted(self.heap.row_ids()) == row_ids


def small(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 200))


def middling(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, MAX_INLINE_BYTES + 1))


def any_size(rng: random.Random) -> bytes:
    return rng.randbytes(
        rng.choice(
            [1, 12, 13, 300, 4076, 4080, 4081, 8163, MAX_INLINE_BYTES, MAX_INLINE_BYTES + 1, OVERFLOW_BYTES,
             OVERFLOW_BYTES + 1, 2 * OVERFLOW_BYTES, 50_000, rng.randrange(1, 20_000)]
        )
    )  # fmt: skip


@pytest.mark.parametrize("image", [small, middling, any_size])
@pytest.mark.parametrize("table", [NARROW, WIDE])
@pytest.mark.parametrize("seed", range(2))
def test_random_changes_equal_the_dict(table: Table, image: Callable[[random.Random], bytes], seed: int) -> None:
    rng = random.Random(f"{seed} {table.name} {image.__name__}")
    heap = Modelled(table)
    for step in range(120):
        what = rng.random()
        if what < 0.3 or not heap.rows:
            heap.add([image(rng) for _ in range(rng.choice([1, 1, 2, 30]))])
        elif what < 0.6:
            row_ids = rng.sample(list(heap.rows), rng.randrange(1, min(len(heap.rows), 20) + 1))
            heap.update(row_ids, [image(rng) for _ in row_ids])
        elif what < 0.95 or step < 100:
            heap.delete(rng.choice(list(heap.rows)))
        else:
            for row_id in list(heap.rows):
                heap.delete(row_id)
        heap.check(rng)
    heap.check()
    for row_id in list(heap.rows):
        heap.delete(row_id)
    heap.check()
    assert heap.arena.frames_in_use == 0


def test_a_row_of_one_mebibyte_comes_back() -> None:
    heap = Modelled()
    image = random.Random(5).randbytes(1 << 20)
    (row_id,) = heap.add([image])
    heap.check()
    assert heap.heap.pages == 130  # 129 pieces and a stub
    (row_id,) = heap.update([row_id], [image[:-1]])
    heap.check()
    (row_id,) = heap.update([row_id], [b"small now"])
    heap.check()
    assert heap.heap.pages == 1
    (row_id,) = heap.update([row_id], [image])
    heap.delete(row_id)
    assert heap.arena.frames_in_use == 0


def test_a_row_that_grows_stays_in_its_page_while_there_is_room() -> None:
    heap = Modelled()
    first, second = heap.add([b"a" * 100, b"b" * 100])
    assert heap.update([first], [b"A" * 3000]) == [first]
    assert heap.update([second], [b"B" * 4900]) == [second]  # only together with the dead bytes
    heap.check()
    assert heap.update([first], [b"A" * 3300]) != [first]
    heap.check()


def test_rows_of_a_full_page_that_grow_in_one_batch_move_together_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compacted = []
    monkeypatch.setattr(
        heap_module, "compact", lambda arena, frame, *rows: compacted.append(frame) or compact(arena, frame, *rows)
    )
    modelled = Modelled()
    row_ids = modelled.add([bytes([i]) * 60 for i in range(127)] + [b"-" * 36])  # not a byte is left
    assert modelled.heap.pages == 1
    changed = modelled.update(row_ids[20:40], [bytes([i]) * 70 for i in range(20, 40)])
    # 200 bytes more: the last three leave 180 behind, and need 30 less.
    assert [old == new for old, new in zip(row_ids[20:40], changed, strict=True)] == [True] * 17 + [False] * 3
    assert len(compacted) == 1
    modelled.check()
    changed = modelled.update(changed[:5], [bytes([i]) * 71 for i in range(5)])
    assert changed == row_ids[20:25]
    modelled.check()


def test_all_rows_of_a_page_leave_it_when_none_can_grow_there() -> None:
    modelled = Modelled()
    row_ids = modelled.add([b"x" * 40] * 180)
    for row_id in row_ids[:179]:
        modelled.delete(row_id)
    (moved,) = modelled.update(row_ids[179:], [b"y" * MAX_INLINE_BYTES])
    assert moved != row_ids[179]
    assert modelled.heap.pages == 1
    modelled.check()


def test_a_row_as_long_as_a_stub_and_its_flag_replaces_one_with_overflow_pages() -> None:
    heap = Modelled()
    (row_id,) = heap.add([b"a" * 50_000])
    heap.update([row_id], [b"b" * (OVERFLOWS | STUB_BYTES)])
    heap.check()


def test_space_of_deleted_rows_is_used_again() -> None:
    """Churn at a constant number of rows must not take more and more pages, slots included."""
    rng = random.Random(3)
    for length in (3, 900):
        heap = Modelled()
        row_ids = heap.add([rng.randbytes(length)] * (100_000 // (length + 4)))
        pages = heap.heap.pages
        for _ in range(12):
            rng.shuffle(row_ids)
            gone, row_ids = row_ids[: len(row_ids) // 2], row_ids[len(row_ids) // 2 :]
            for row_id in gone:
                heap.delete(row_id)
            row_ids += heap.add([rng.randbytes(length)] * len(gone))
        heap.check()
        assert heap.heap.pages <= pages * 1.2, length


def test_pages_whose_rows_shrank_are_filled_again() -> None:
    heap = Modelled()
    row_ids = heap.add([b"x" * 1000] * 400)
    pages = heap.heap.pages
    heap.update(row_ids, [b"y" * 100] * 400)
    heap.add([b"z" * 500] * 400)
    heap.check()
    assert heap.heap.pages <= pages + 1


def test_a_large_row_does_not_make_roomy_pages_forgotten() -> None:
    heap = Modelled()
    row_ids = heap.add([b"x" * 400] * 2000)
    for row_id in row_ids[::2]:
        heap.delete(row_id)
    pages = heap.heap.pages
    for _ in range(30):
        heap.add([b"L" * 8000])
    heap.add([b"x" * 400] * 900)
    heap.check()
    assert heap.heap.pages <= pages + 31


def test_slots_do_not_pass_their_bits() -> None:
    bits = slot_bits(NARROW)
    heap = Modelled()
    row_ids = heap.add([b"\x90"] * 5000)
    heap.check()
    assert max(row_id & ((1 << bits) - 1) for row_id in row_ids) == (1 << bits) - 1
    heap = Modelled(WIDE)
    row_ids = heap.add([b"\x90"] * 500)
    heap.check()
    assert len({row_id >> slot_bits(WIDE) for row_id in row_ids}) == -(-500 // (1 << slot_bits(WIDE)))


@pytest.mark.parametrize("seed", range(40))
def test_pages_needed_is_enough(seed: int) -> None:
    """With exactly so many frames free, no mixture of inserts and updates asks for one more."""
    rng = random.Random(seed)
    images: list[Callable[[random.Random], bytes]] = [
        small, middling, any_size, lambda r: bytes(r.randrange(4080, 4090)), lambda r: b"x" * 4081,
    ]  # fmt: skip
    image = rng.choice(images)
    for table in (NARROW, WIDE):
        before = [image(rng) for _ in range(rng.randrange(60))]
        changed = [image(rng) for _ in range(rng.randrange(len(before) + 1))]
        fresh = [image(rng) for _ in range(rng.randrange(300))]
        heap = Modelled(table)
        row_ids = heap.add(before)
        needed = heap.heap.pages_needed(len(changed) + len(fresh), sum(map(len, changed + fresh)))
        in_use = heap.arena.frames_in_use
        heap = Modelled(table, (in_use + needed) * PAGE_BYTES)
        row_ids = heap.add(before)
        heap.heap.extend(fresh)
        heap.heap.update(row_ids[: len(changed)], changed)
        heap.heap.check()


def test_nothing_needs_no_page() -> None:
    heap = Modelled(memory_bytes=PAGE_BYTES)
    assert heap.heap.pages_needed(0, 0) == 0
    assert heap.heap.extend([]) == []
    assert heap.arena.frames_in_use == 0
    heap.add([b"x" * MAX_INLINE_BYTES])
    assert heap.heap.extend([]) == []
    with pytest.raises(ReadOnly):
        heap.heap.extend([b"y"])
