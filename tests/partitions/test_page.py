"""The layout of a page: what compaction keeps, what a freed frame gives back, which damage is seen."""

from __future__ import annotations

import mmap
import os
import random
from pathlib import Path

import pytest

from partitions.page import (
    DEAD,
    FLOOR,
    HEADER_WORDS,
    OVERFLOW_BYTES,
    OVERFLOW_PAGE,
    OVERFLOWS,
    PAGE_BYTES,
    PAGE_WORDS,
    ROWS,
    SLOTS,
    Arena,
    check_page,
    compact,
    free_bytes,
)
from voltpy.errors import Corruption, ReadOnly


def image_of(arena: Arena, frame: int) -> bytearray:
    return bytearray(arena.memory[frame * PAGE_BYTES : (frame + 1) * PAGE_BYTES])


def put(arena: Arena, frame: int, row: bytes) -> int:
    """Appends a row; its slot."""
    words, base = arena.words, frame * PAGE_WORDS
    slot, floor = words[base + SLOTS], words[base + FLOOR] - len(row)
    start = frame * PAGE_BYTES + floor
    arena.memory[start : start + len(row)] = row
    words[base + HEADER_WORDS + 2 * slot] = floor
    words[base + HEADER_WORDS + 2 * slot + 1] = len(row)
    words[base + SLOTS] += 1
    words[base + ROWS] += 1
    words[base + FLOOR] = floor
    return slot


def drop(arena: Arena, frame: int, slot: int) -> None:
    words, base = arena.words, frame * PAGE_WORDS
    at = base + HEADER_WORDS + 2 * slot
    words[base + DEAD] += words[at + 1]
    words[base + ROWS] -= 1
    words[at] = words[at + 1] = 0


def row_in(arena: Arena, frame: int, slot: int) -> bytes:
    at = frame * PAGE_WORDS + HEADER_WORDS + 2 * slot
    start = frame * PAGE_BYTES + arena.words[at]
    return arena.memory[start : start + arena.words[at + 1]]


def test_an_empty_page_is_valid_and_says_which_one_it_is() -> None:
    arena = Arena(4 * PAGE_BYTES)
    frame = arena.allocate(77)
    check_page(bytes(image_of(arena, frame)), 77, "here")
    assert free_bytes(arena.words, frame) == PAGE_BYTES - 24
    with pytest.raises(Corruption, match="here: holds page 77 of table 0 instead of page 78 of table 0"):
        check_page(bytes(image_of(arena, frame)), 78, "here")
    with pytest.raises(Corruption, match="100 bytes instead of a page"):
        check_page(bytes(100), 0, "here")


def test_compaction_keeps_every_row_in_its_slot() -> None:
    rng = random.Random(1)
    for _ in range(30):
        arena = Arena(2 * PAGE_BYTES)
        arena.allocate(0)
        frame = arena.allocate(1)
        rows = {}
        while free_bytes(arena.words, frame) > 400:
            row = rng.randbytes(rng.randrange(1, 300))
            rows[put(arena, frame, row)] = row
        for slot in rng.sample(sorted(rows), rng.randrange(len(rows))):
            drop(arena, frame, slot)
            del rows[slot]
        free = free_bytes(arena.words, frame)
        check_page(bytes(image_of(arena, frame)), 1, "before")
        compact(arena, frame)
        check_page(bytes(image_of(arena, frame)), 1, "after")
        assert free_bytes(arena.words, frame) == free
        assert arena.words[frame * PAGE_WORDS + DEAD] == 0
        assert {slot: row_in(arena, frame, slot) for slot in rows} == rows


def test_compaction_puts_what_replaces_rows_in_their_places() -> None:
    rng = random.Random(2)
    for _ in range(30):
        arena = Arena(2 * PAGE_BYTES)
        frame = arena.allocate(1)
        rows = {}
        for _ in range(40):
            row = rng.randbytes(rng.randrange(1, 90))
            rows[put(arena, frame, row)] = row
        for slot in rng.sample(sorted(rows), rng.randrange(20)):
            drop(arena, frame, slot)
            del rows[slot]
        replaced = {slot: rng.randbytes(rng.randrange(1, 180)) for slot in rng.sample(sorted(rows), 10)}
        compact(arena, frame, replaced)
        rows.update(replaced)
        check_page(bytes(image_of(arena, frame)), 1, "after")
        assert {slot: row_in(arena, frame, slot) for slot in rows} == rows


def test_a_full_arena_raises_read_only_and_a_freed_frame_serves_again() -> None:
    arena = Arena(3 * PAGE_BYTES)
    frames = [arena.allocate(page) for page in range(3)]
    assert (arena.frames_left, arena.frames_in_use) == (0, 3)
    with pytest.raises(ReadOnly, match="--memory"):
        arena.allocate(3)
    put(arena, frames[1], b"old row")
    arena.free(frames[1])
    assert (arena.frames_left, arena.frames_in_use) == (1, 2)
    again = arena.allocate(9, OVERFLOW_PAGE)
    assert again == frames[1]
    image = image_of(arena, again)
    assert image[24:] == bytes(PAGE_BYTES - 24)
    assert arena.words[again * PAGE_WORDS + ROWS] == 0


def test_an_arena_smaller_than_a_page_has_one() -> None:
    assert Arena(1).frames == 1


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="Linux only")
def test_freed_frames_are_given_back_to_the_system() -> None:
    arena = Arena(64 << 20)
    frames = [arena.allocate(page) for page in range(arena.frames)]
    for frame in frames:
        arena.memory[frame * PAGE_BYTES + 24 : (frame + 1) * PAGE_BYTES] = b"x" * (PAGE_BYTES - 24)
    full = resident_bytes()
    for frame in frames:
        arena.free(frame)
    assert arena.give_back(100) == len(frames) - 100
    assert arena.resident_bytes == 100 * PAGE_BYTES
    assert full - resident_bytes() > 50 << 20


def damaged(arena: Arena, frame: int, word: int, value: int) -> bytes:
    image = image_of(arena, frame)
    image[2 * word : 2 * word + 2] = value.to_bytes(2, "little")
    return bytes(image)


def test_damage_to_the_layout_is_seen() -> None:
    arena = Arena(PAGE_BYTES)
    frame = arena.allocate(0)
    for _ in range(3):
        put(arena, frame, b"0123456789")
    first = HEADER_WORDS
    for word, value, seen in (
        (ROWS, 2, "3 slots in use, the header says 2"),
        (SLOTS, 3000, "floor"),
        (FLOOR, 20, "floor"),
        (FLOOR, PAGE_BYTES, "over another or outside"),
        (DEAD, 1, "do not add up"),
        (first, 0, "2 slots in use, the header says 3"),
        (first, PAGE_BYTES - 5, "over another or outside"),
        (first, PAGE_BYTES - 15, "over another or outside"),
        (first + 1, 11, "over another or outside"),
        (first + 1, 9, "do not add up"),
        (first + 1, OVERFLOWS | 10, "stub of 10 bytes"),
    ):
        with pytest.raises(Corruption, match=seen):
            check_page(damaged(arena, frame, word, value), 0, "page 0")


def test_an_overflow_page_that_claims_too_much_is_seen() -> None:
    arena = Arena(PAGE_BYTES)
    frame = arena.allocate(0, OVERFLOW_PAGE)
    check_page(damaged(arena, frame, DEAD, OVERFLOW_BYTES), 0, "page 0")
    with pytest.raises(Corruption, match="overflow page claims"):
        check_page(damaged(arena, frame, DEAD, OVERFLOW_BYTES + 1), 0, "page 0")
