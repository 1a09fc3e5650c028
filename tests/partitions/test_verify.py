"""The checker of a snapshot's checkpoints finds what is not as it was written, and says where."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from google_crc32c import value as crc32c

from partitions.checkpoint import page_table, read_root
from partitions.page import FLAGS, HEADER_WORDS, OVERFLOW_PAGE, OVERFLOWS, PAGE_BYTES, SLOTS, sealed
from partitions.verify import Damage, Verification, firsts
from tests.overwrite import overwrite
from tests.partitions.one_snapshot import one_snapshot
from tests.partitions.test_checkpoint import flipped
from voltpy.data_directory import read_schema


class Files:
    """The files of a partition in a snapshot; `damage` looks for what is wrong with them."""

    def __init__(self, snapshot: Path, rows: dict[int, str]) -> None:
        self.directory = snapshot / "partition-0"
        self.rows = rows
        self.schema = read_schema(snapshot).tables
        self.verification = self.verify()

    def verify(self) -> Verification:
        verification = Verification(self.directory, 0, lambda checked, total: None)
        verification.run(self.schema)
        return verification

    def damage(self) -> list[Damage]:
        return self.verify().damage

    def only(self) -> Damage:
        (damage,) = self.damage()
        return damage

    def places(self) -> list[int]:
        """Of the pages that the root names."""
        roots = read_root(self.directory / "checkpoint", 0).root.tables
        return [(entry >> 16) - 1 for root in roots for entry in page_table(root, self.directory) if entry]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, str]]:
    return one_snapshot(tmp_path_factory.mktemp("verified"))


@pytest.fixture
def files(made: tuple[Path, dict[int, str]], tmp_path: Path) -> Files:
    snapshot, rows = made
    shutil.copytree(snapshot, tmp_path / "snapshot")
    return Files(tmp_path / "snapshot", rows)


def test_a_whole_snapshot_has_no_damage_and_its_rows_are_counted(files: Files) -> None:
    assert files.verification.damage == []
    assert files.verification.rows == {"numbers": len(files.rows), "names": len(files.rows)}
    assert files.verification.pages == len(files.places()) > 20
    assert len(list(files.directory.glob("*.run"))) > 2


def test_every_flipped_bit_and_every_cut_of_a_root_is_found(tmp_path: Path) -> None:
    snapshot, rows = one_snapshot(tmp_path, batches=1, checkpoints=1)
    files = Files(snapshot, rows)
    path = files.directory / "checkpoint"
    whole = path.read_bytes()
    for bit in range(len(whole) * 8):
        overwrite(path, flipped(whole, bit))
        damage = files.only()
        assert (damage.kind, damage.file) == ("root", str(path))
        assert damage.offset is not None
    for length in range(0, len(whole), 7):
        overwrite(path, whole[:length])
        assert files.only().kind == "root"
    path.unlink()
    assert files.only() == Damage("root", str(path), None, "No such file or directory")


def test_every_flipped_bit_and_every_cut_of_a_run_is_found_at_its_place(tmp_path: Path) -> None:
    files = Files(*one_snapshot(tmp_path, batches=1, checkpoints=1))
    path = min(files.directory.glob("*.run"), key=lambda path: path.stat().st_size)
    whole = path.read_bytes()
    for bit in range(len(whole) * 8):
        overwrite(path, flipped(whole, bit))
        damage = files.only()
        assert (damage.kind, damage.file) == ("run", str(path))
        assert damage.offset == (0 if bit < 24 * 8 else 24)
    for data in (b"", whole[:10], whole[:-1], whole + b"\0"):
        overwrite(path, data)
        damage = files.only()
        assert (damage.kind, damage.file) == ("run", str(path))
    assert damage.offset == len(whole)
    path.unlink()
    assert "missing" in files.only().text


def test_flipped_bits_of_pages_are_found_at_their_places(files: Files) -> None:
    path = files.directory / "pages"
    whole = path.read_bytes()
    rng = random.Random(11)
    bits = [rng.choice(files.places()) * PAGE_BYTES * 8 + rng.randrange(PAGE_BYTES * 8) for _ in range(120)]
    first = files.places()[0] * PAGE_BYTES * 8
    for bit in (*bits, *range(first, first + 24 * 8, 5)):
        overwrite(path, flipped(whole, bit))
        damage = files.only()
        assert (damage.kind, damage.file) == ("page", str(path))
        assert damage.offset == bit // 8 // PAGE_BYTES * PAGE_BYTES


def test_pages_in_wrong_places_of_old_checkpoints_and_missing_ones_are_found(files: Files) -> None:
    path = files.directory / "pages"
    whole = path.read_bytes()
    first, second = (place * PAGE_BYTES for place in files.places()[:2])

    def put(page: bytes, offset: int) -> None:
        overwrite(path, whole[:offset] + page + whole[offset + PAGE_BYTES :])

    put(whole[first : first + PAGE_BYTES], second)
    damage = files.only()
    assert (damage.offset, damage.kind) == (second, "page")
    assert "holds page" in damage.text
    page = whole[first : first + PAGE_BYTES]
    generation = int.from_bytes(page[22:24], "little")
    put(sealed(page, generation + 1), first)
    assert "of generation" in files.only().text
    put(bytes(PAGE_BYTES), first)
    assert (files.only().offset, files.only().kind) == (first, "page")
    overwrite(path, whole[:-1])
    assert "8191 bytes instead of a page" in files.only().text
    overwrite(path, whole[: len(whole) // 2])
    assert firsts(files.damage())[0]["count"] > 1
    path.unlink()
    assert files.only() == Damage("page", str(path), None, "No such file or directory")


def test_a_page_whose_checksum_is_right_and_whose_rows_overlap_is_found(files: Files) -> None:
    path = files.directory / "pages"
    whole = path.read_bytes()
    offset = files.places()[0] * PAGE_BYTES
    page = bytearray(whole[offset : offset + PAGE_BYTES])
    page[12] ^= 1  # how many rows there are
    page[8:12] = b"\0\0\0\0"
    page[8:12] = crc32c(bytes(page)).to_bytes(4, "little")
    overwrite(path, whole[:offset] + bytes(page) + whole[offset + PAGE_BYTES :])
    damage = files.only()
    assert (damage.kind, damage.offset) == ("page", offset)
    assert "slots in use" in damage.text


def test_a_row_that_is_longer_than_its_overflow_pages_hold_is_found(files: Files) -> None:
    path = files.directory / "pages"
    whole = path.read_bytes()
    for offset in (place * PAGE_BYTES for place in files.places()):
        page = bytearray(whole[offset : offset + PAGE_BYTES])
        words = memoryview(page).cast("H")
        slots = range(HEADER_WORDS, HEADER_WORDS + 2 * words[SLOTS], 2)
        stub = next((words[at] for at in slots if words[at] and words[at + 1] & OVERFLOWS), 0)
        if stub and not words[FLAGS] & OVERFLOW_PAGE:
            break
    page[stub + 8] ^= 1  # the row's length
    generation = int.from_bytes(page[22:24], "little")
    overwrite(path, whole[:offset] + sealed(bytes(page), generation) + whole[offset + PAGE_BYTES :])
    damage = files.only()
    assert damage.kind == "count"
    assert "in overflow pages, which hold" in damage.text


def test_an_index_that_names_other_rows_is_found(tmp_path: Path) -> None:
    """Its CRCs are right: a checkpoint of something else, or an error of ours."""
    files = Files(*one_snapshot(tmp_path, batches=1, checkpoints=1))
    (path,) = files.directory.glob("index-0-*.run")
    data = bytearray(path.read_bytes())
    count = int.from_bytes(data[24:28], "little")
    row_ids = 32 + 8 * count
    at = next(
        row_ids + 8 * entry
        for entry in reversed(range(count))
        if int.from_bytes(data[row_ids + 8 * entry : row_ids + 8 * entry + 8], "little", signed=True) >= 0
    )
    data[at] ^= 1
    data[28:32] = crc32c(bytes(data[32:])).to_bytes(4, "little")
    overwrite(path, data)
    damage = files.only()
    assert (damage.kind, damage.file) == ("count", str(files.directory / "checkpoint"))
    assert damage.text == "table numbers: the index names other rows than the pages hold"


def test_of_each_kind_the_first_damage_is_told_with_how_many_there_are() -> None:
    damage = [Damage("run", "a", 1, "x"), Damage("page", "p", 8192, "y"), Damage("run", "b", 2, "z")]
    assert firsts(damage) == [
        {"kind": "run", "file": "a", "offset": 1, "text": "x", "count": 2},
        {"kind": "page", "file": "p", "offset": 8192, "text": "y", "count": 1},
    ]


def test_tables_that_the_schema_does_not_have_are_found(files: Files) -> None:
    files.schema = files.schema[::-1]
    assert "not those of the schema" in files.only().text
