"""The heat dump, and the hint file under it: what comes back, and that no damage stops a start."""

from __future__ import annotations

import errno
import os
import random
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions import hint_file
from partitions.classic_policies import Lru
from partitions.heat import MAX_PAGES, read_heat, write_heat
from partitions.hint_file import HEADER_BYTES, read_hint, write_hint
from partitions.page import page_id


@settings(max_examples=50, deadline=None)
@given(pages=st.lists(st.integers(0, 2**63 - 1), unique=True, max_size=200), partition=st.integers(0, 499))
def test_what_was_written_comes_back_in_order(tmp_path_factory: Any, pages: list[int], partition: int) -> None:
    path = tmp_path_factory.mktemp("heat") / "heat"
    write_heat(path, partition, iter(pages))
    assert read_heat(path, partition) == (array("Q", pages), None)
    assert path.stat().st_size == HEADER_BYTES + 8 * len(pages)
    assert list(path.parent.iterdir()) == [path]


def test_a_policy_is_dumped_hottest_first(tmp_path: Path) -> None:
    policy = Lru(3)
    for page in (page_id(1, 5), page_id(0, 7), page_id(2, 9)):
        policy.admit(page)
    policy.touch([page_id(1, 5)])
    write_heat(tmp_path / "heat", 0, reversed(list(policy)))
    pages, _ = read_heat(tmp_path / "heat", 0)
    assert list(pages) == [page_id(1, 5), page_id(2, 9), page_id(0, 7)]


def test_the_bytes_are_those_of_the_drawing(tmp_path: Path) -> None:
    write_heat(tmp_path / "heat", 3, [page_id(1, 2)])
    data = (tmp_path / "heat").read_bytes()
    assert data[:8] == b"voltpyHT"
    assert [int.from_bytes(data[at : at + 4], "little") for at in (8, 12)] == [1, 3]
    assert [int.from_bytes(data[at : at + 8], "little") for at in (16, 24)] == [1, 8]
    assert data[40:] == (1 << 48 | 2).to_bytes(8, "little")


def test_no_file_is_no_pages_and_no_reason(tmp_path: Path) -> None:
    assert read_heat(tmp_path / "heat", 0) == (array("Q"), None)


def test_every_flipped_bit_and_every_cut_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "heat"
    write_heat(path, 3, [4, 5])
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(len(whole))] + [whole + b"\0"]
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for data in damaged:
        path.write_bytes(data)
        pages, reason = read_heat(path, 3)
        assert not pages
        assert reason is not None
        assert reason.startswith(str(path))


@pytest.mark.parametrize("seed", range(3))
def test_random_bytes_say_nothing(tmp_path: Path, seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(200):
        (tmp_path / "heat").write_bytes(rng.randbytes(rng.randrange(200)))
        pages, reason = read_heat(tmp_path / "heat", 0)
        assert not pages
        assert reason


def with_header(path: Path, **changes: int) -> None:
    """A file that is whole but for a field of its header."""
    fields: dict[str, Any] = {"version": 1, "owner": 3, "count": 1, "length": 8} | changes
    payload = (9).to_bytes(8, "little")
    header = hint_file._HEADER.pack(b"voltpyHT", *fields.values(), hint_file.crc32c(payload), 0)[:-4]
    path.write_bytes(header + hint_file.crc32c(header).to_bytes(4, "little") + payload)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "offset 8: version 2; this program reads 1"),
        ({"owner": 4}, "offset 12: belongs to partition 4, not to 3"),
        ({"length": 9}, "offset 40: damaged"),
        ({"count": 2}, "8 bytes for 2 pages"),
        ({"count": 0}, "8 bytes for 0 pages"),
    ],
)
def test_a_file_that_is_not_ours_says_why(tmp_path: Path, changes: dict[str, int], reason: str) -> None:
    path = tmp_path / "heat"
    with_header(path)
    assert read_heat(path, 3) == (array("Q", [9]), None)
    with_header(path, **changes)
    pages, found = read_heat(path, 3)
    assert not pages
    assert found is not None
    assert reason in found


def test_another_kind_of_hint_is_no_heat(tmp_path: Path) -> None:
    write_hint(tmp_path / "heat", b"voltpyAL", 0, 0, b"")
    assert read_heat(tmp_path / "heat", 0)[1] == f"{tmp_path / 'heat'} offset 0: no voltpyHT file"


def test_page_ids_that_can_be_none_are_damage(tmp_path: Path) -> None:
    write_heat(tmp_path / "heat", 0, [1, 2**63])
    pages, reason = read_heat(tmp_path / "heat", 0)
    assert not pages
    assert reason is not None
    assert "page id 9223372036854775808 is none" in reason


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "heat"
    write_heat(path, 0, range(11))
    assert len(read_heat(path, 0, most=11)[0]) == 11
    pages, reason = read_heat(path, 0, most=10)
    assert not pages
    assert reason == f"{path}: 128 bytes, more than the 120 that it may have"
    os.truncate(path, 1 << 40)  # sparse
    assert "more than" in str(read_heat(path, 0)[1])


def test_beyond_the_limit_the_coldest_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_PAGES == 1 << 24
    monkeypatch.setattr("partitions.heat.MAX_PAGES", 3)
    write_heat(tmp_path / "heat", 0, range(10))
    assert list(read_heat(tmp_path / "heat", 0)[0]) == [0, 1, 2]


def make_directory(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_dangling_link(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [make_directory, make_pipe, make_dangling_link])
def test_a_name_that_is_no_file_stops_nobody(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "heat")
    pages, reason = read_heat(tmp_path / "heat", 0)
    assert not pages
    assert reason


def no_room(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("fails", ["write_all", "os.fsync"])
def test_a_full_disk_leaves_the_old_dump_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    path = tmp_path / "heat"
    write_heat(path, 0, [1, 2, 3])
    with monkeypatch.context() as patched:
        patched.setattr(f"partitions.hint_file.{fails}", no_room)
        with pytest.raises(OSError, match="No space left"):
            write_heat(path, 0, [4])
    assert read_heat(path, 0) == (array("Q", [1, 2, 3]), None)
    assert list(tmp_path.iterdir()) == [path]


def test_a_dump_that_need_not_last_is_not_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partitions.hint_file.os.fsync", no_room)
    write_heat(tmp_path / "heat", 0, [1], flush=False)
    assert list(read_heat(tmp_path / "heat", 0)[0]) == [1]


def test_an_unfinished_dump_is_passed_over(tmp_path: Path) -> None:
    write_heat(tmp_path / "heat", 0, [1])
    (tmp_path / "heat.new").write_bytes(b"half")
    assert list(read_heat(tmp_path / "heat", 0)[0]) == [1]
    write_heat(tmp_path / "heat", 0, [2])
    assert read_hint(tmp_path / "heat", b"voltpyHT", 0, 8) == (1, (2).to_bytes(8, "little"), None)
    assert list(tmp_path.iterdir()) == [tmp_path / "heat"]
