"""What a record log gives back after a clean stop, a crash at any byte, damage at any bit, and a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.overwrite import overwrite
from voltpy import record_log
from voltpy.errors import ClusterError, Corruption
from voltpy.record_log import DiskFull, RecordLog

HEADER_BYTES = 40
FRAME_BYTES = 40
SECTOR_BYTES = 512


def opened(directory: Path, segment_bytes: int = 4096) -> RecordLog:
    return RecordLog.open(directory, "wal", 3, segment_bytes=segment_bytes)


def begun(directory: Path, segment_bytes: int = 4096) -> RecordLog:
    log = opened(directory, segment_bytes)
    log.begin()
    return log


def records_in(directory: Path) -> list[tuple[int, bytes]]:
    log = opened(directory)
    try:
        return list(log.replay())
    finally:
        log.abandon()


def segments_in(directory: Path) -> list[Path]:
    return sorted(directory.glob("wal-*.log"))


def numbered(payloads: list[bytes]) -> list[tuple[int, bytes]]:
    return list(enumerate(payloads, 1))


# ---------------------------------------------------------------------------------------------------- what is written


def test_records_come_back_in_order_after_a_clean_stop(tmp_path: Path) -> None:
    payloads = [b"", b"a", b"1234567", b"12345678", bytes(300), os.urandom(2000)]
    log = begun(tmp_path / "log")
    assert [log.append(payload) for payload in payloads] == [1, 2, 3, 4, 5, 6]
    assert (log.written_lsn, log.flushed_lsn) == (6, 0)
    log.flush()
    assert log.flushed_lsn == 6
    log.close()
    assert records_in(tmp_path / "log") == numbered(payloads)


def test_the_bytes_are_those_of_the_docstring(tmp_path: Path) -> None:
    log = begun(tmp_path)
    log.append(b"first")
    log.flush()
    log.append(b"second")
    log.close()
    data = (tmp_path / "wal-0000000000000001.log").read_bytes()
    assert data[:8] == b"voltpyRL"
    assert [int.from_bytes(data[at : at + 4], "little") for at in (8, 12, 16)] == [1, 3, 1]
    tag = data[28:32]
    assert 0 not in tag
    expected = [(40, 5, 1, 0), (88, 6, 2, 1), (136, 0xFFFFFFFF, 2, 2)]
    for at, length, lsn, flushed_lsn in expected:
        assert data[at : at + 4] == tag
        assert int.from_bytes(data[at + 12 : at + 16], "little") == length
        assert int.from_bytes(data[at + 16 : at + 24], "little") == lsn
        assert int.from_bytes(data[at + 24 : at + 32], "little") == flushed_lsn
        assert data[at + 32 : at + 40] == b"\1\0\0\0\3\0\0\0"
    assert data[80:88] == b"first\0\0\0"
    assert len(data) == 176  # cut to its length when it was stopped


def test_appending_goes_on_after_a_restart(tmp_path: Path) -> None:
    expected = []
    for round_number in range(5):
        log = begun(tmp_path)
        for index in range(3):
            expected.append(b"%d-%d" % (round_number, index))
            assert log.append(expected[-1]) == len(expected)
        if round_number % 2:
            log.close()
        else:
            log.abandon()
    assert records_in(tmp_path) == numbered(expected)


def test_the_next_segment_is_begun_when_a_record_does_not_fit(tmp_path: Path) -> None:
    payloads = [bytes([index]) * 100 for index in range(20)]
    log = begun(tmp_path, 512)
    for payload in payloads:
        log.append(payload)
    log.abandon()
    assert [path.name for path in segments_in(tmp_path)][:3] == [
        "wal-0000000000000001.log",
        "wal-0000000000000004.log",
        "wal-0000000000000007.log",
    ]
    assert [path.stat().st_size for path in segments_in(tmp_path)] == [40 + 3 * 144] * 6 + [512]
    assert records_in(tmp_path) == numbered(payloads)


def test_everything_before_a_segment_is_flushed_before_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begun(tmp_path, 512)
    for _ in range(3):
        log.append(bytes(100))
    steps: list[str] = []

    def spy(owner: object, name: str, real: Callable[..., object]) -> None:
        def step(subject: int | Path, *arguments: object) -> object:
            path = subject if isinstance(subject, Path) else Path(os.readlink(f"/proc/self/fd/{subject}"))
            steps.append(f"{name} {path.name}")
            return real(subject, *arguments)

        monkeypatch.setattr(owner, name, step)

    spy(os, "fdatasync", os.fdatasync)
    spy(os, "fsync", os.fsync)
    spy(os, "pwrite", os.pwrite)
    spy(Path, "rename", os.rename)
    log.append(bytes(100))
    assert steps == [
        "fdatasync wal-0000000000000001.log",
        "pwrite wal.new",
        "fsync wal.new",
        "rename wal.new",
        f"fsync {tmp_path.name}",
        "pwrite wal-0000000000000004.log",
    ]
    assert (log.written_lsn, log.flushed_lsn) == (4, 3)
    log.abandon()


def test_a_record_larger_than_a_segment_gets_one_of_its_own(tmp_path: Path) -> None:
    payloads = [b"small", os.urandom(3 << 20), b"small again"]
    log = begun(tmp_path, 512)
    for payload in payloads:
        log.append(payload)
    log.close()
    assert segments_in(tmp_path)[1].stat().st_size == HEADER_BYTES + FRAME_BYTES + (3 << 20)
    assert records_in(tmp_path) == numbered(payloads)


def test_a_record_beyond_the_limit_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_log, "MAX_RECORD_BYTES", 10_000)
    log = begun(tmp_path)
    with pytest.raises(ValueError, match="a record of 10001 bytes; the limit is 10000"):
        log.append(bytes(10_001))
    assert log.append(bytes(10_000)) == 1
    log.abandon()


def test_replaying_holds_a_chunk_in_memory_not_the_file(tmp_path: Path) -> None:
    log = begun(tmp_path, 16 << 20)
    for _ in range(1500):
        log.append(bytes(8192))
    log.abandon()
    log = opened(tmp_path)
    tracemalloc.start()
    count = sum(1 for _ in log.replay())
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    log.abandon()
    assert count == 1500
    assert peak_bytes < 4 << 20


# ---------------------------------------------------------------------------------------------------- lock and epoch


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    log = begun(tmp_path)
    program = f"""
from pathlib import Path
from voltpy.record_log import RecordLog
RecordLog.open(Path({str(tmp_path)!r}), "wal", 3)
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert f"ClusterError: {tmp_path} is in use by another process" in process.stderr
    log.close()
    opened(tmp_path).abandon()


def test_the_epoch_rises_at_each_start_with_and_without_records_and_a_clean_stop(tmp_path: Path) -> None:
    written = 0
    for expected in range(1, 13):
        log = opened(tmp_path)
        assert log.begin() == expected
        assert log.epoch == expected
        if expected % 3 == 0:
            log.append(b"record")
            written += 1
        if expected % 2:
            log.close()
        else:
            log.abandon()
    assert len(records_in(tmp_path)) == written


def test_a_start_that_was_cut_short_leaves_nothing(tmp_path: Path) -> None:
    begun(tmp_path).close()
    (tmp_path / "wal.new").write_bytes(os.urandom(4096))
    log = opened(tmp_path)
    assert log.begin() == 2
    log.abandon()
    assert not (tmp_path / "wal.new").exists()


def test_a_log_is_used_in_its_order(tmp_path: Path) -> None:
    log = opened(tmp_path)
    with pytest.raises(RuntimeError, match="not begun"):
        log.append(b"early")
    log.begin()
    with pytest.raises(RuntimeError, match="begun already"):
        log.begin()
    with pytest.raises(RuntimeError, match="replayed before it is begun"):
        next(log.replay())
    log.close()
    with pytest.raises(RuntimeError, match="closed"):
        log.append(b"late")
    log.close()


def test_starting_writes_again_what_may_be_in_the_page_cache_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begun(tmp_path)
    log.append(b"never flushed")
    log.abandon()
    steps: list[tuple[str, bytes]] = []
    real_write, real_sync = os.pwrite, os.fsync

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        steps.append((Path(os.readlink(f"/proc/self/fd/{fd}")).name, data))
        return real_write(fd, data, offset)

    def fsync(fd: int) -> None:
        steps.append((Path(os.readlink(f"/proc/self/fd/{fd}")).name, b"fsync"))
        real_sync(fd)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fsync", fsync)
    log = begun(tmp_path)
    (name, data), (synced, _) = steps[:2]
    assert name == synced == "wal-0000000000000001.log"
    assert data[FRAME_BYTES:].rstrip(b"\0") == b"never flushed"
    assert steps[2][0] == "wal.new"
    log.abandon()


def test_only_what_no_frame_says_was_flushed_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = begun(tmp_path, 8 << 20)
    frame_bytes = 4096
    for lsn in range(1, 1501):
        log.append(bytes(frame_bytes - FRAME_BYTES))
        if lsn == 900:
            log.flush()
    log.abandon()
    written: list[tuple[int, int]] = []
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        written.append((offset, len(data)))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    begun(tmp_path).abandon()
    first_doubtful = HEADER_BYTES + 900 * frame_bytes
    rewritten = written[:-1]  # the last one is the new segment's header
    assert first_doubtful - record_log._CHUNK_BYTES < rewritten[0][0] <= first_doubtful
    assert all(offset + size == after for (offset, size), (after, _) in pairwise(rewritten))
    assert sum(rewritten[-1]) == HEADER_BYTES + 1500 * frame_bytes


# ---------------------------------------------------------------------------------------------------- torn tails


PAYLOADS = [b"the first record", b"2", b"the third, of which nobody was told that it is durable"]


@pytest.fixture
def torn(tmp_path: Path) -> tuple[Path, bytes, int]:
    """A log whose last record is not known to be flushed, its bytes, and the offset of that record."""
    log = begun(tmp_path / "origin")
    for payload in PAYLOADS[:-1]:
        log.append(payload)
    log.flush()
    log.append(PAYLOADS[-1])
    log.abandon()
    path = segments_in(tmp_path / "origin")[0]
    return path, path.read_bytes(), 40 + 56 + 48


def check_cut_and_writable(path: Path) -> None:
    """Exactly the earlier records come back, and what is appended then stays."""
    directory = path.parent
    log = opened(directory)
    assert list(log.replay()) == numbered(PAYLOADS[:-1])
    log.begin()
    assert log.append(b"another third") == 3
    log.abandon()
    assert records_in(directory) == numbered([*PAYLOADS[:-1], b"another third"])
    segments_in(directory)[1].unlink()


def test_a_tail_torn_at_any_byte_is_cut_off(torn: tuple[Path, bytes, int]) -> None:
    path, data, offset = torn
    record_bytes = FRAME_BYTES + len(PAYLOADS[-1])
    for kept in range(record_bytes):
        overwrite(path, data[: offset + kept])
        check_cut_and_writable(path)
        overwrite(path, data[: offset + kept] + bytes(len(data) - offset - kept))
        check_cut_and_writable(path)


def test_a_tail_of_garbage_is_cut_off(torn: tuple[Path, bytes, int]) -> None:
    path, data, offset = torn
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    for _ in range(200):
        overwrite(path, data[:offset] + source.randbytes(source.randrange(1, 3000)))
        check_cut_and_writable(path)


def test_records_behind_a_torn_one_are_cut_off_when_none_was_flushed(tmp_path: Path) -> None:
    log = begun(tmp_path)
    for index in range(5):
        log.append(b"%d" % index)
    log.abandon()
    path = segments_in(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[40 + 48 + 40] ^= 1  # the payload of record 2
    overwrite(path, data)
    log = opened(tmp_path)
    assert list(log.replay()) == [(1, b"0")]
    assert log.torn_tail == (path, 88)
    log.begin()
    log.append(b"new")
    log.abandon()
    assert records_in(tmp_path) == [(1, b"0"), (2, b"new")]


def test_bytes_that_look_like_a_frame_in_a_torn_payload_are_not_believed(tmp_path: Path) -> None:
    """Frames of another segment that claim to be flushed, stored by a user as a value."""
    log = begun(tmp_path / "other")
    for index in range(20):
        log.append(b"%d" % index)
        log.flush()
    log.abandon()
    frames = segments_in(tmp_path / "other")[0].read_bytes()[HEADER_BYTES:1000]
    log = begun(tmp_path / "log")
    log.append(frames)
    log.abandon()
    path = segments_in(tmp_path / "log")[0]
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES] ^= 1
    overwrite(path, data)
    assert records_in(tmp_path / "log") == []


# ---------------------------------------------------------------------------------------------------- damage


def each_flip(path: Path) -> Iterator[int]:
    """The file with each of its bits flipped in turn; yields the offset of the byte."""
    data = bytearray(path.read_bytes())
    for offset in range(len(data)):
        for bit in range(8):
            data[offset] ^= 1 << bit
            overwrite(path, data)
            yield offset
            data[offset] ^= 1 << bit
    overwrite(path, data)


def outcome_in(directory: Path) -> list[tuple[int, bytes]] | None:
    """The records, or None when the log is refused with its file and an offset."""
    try:
        return records_in(directory)
    except Corruption as error:
        message = str(error)
    assert str(directory / "wal-") in message
    assert "offset " in message
    return None


def test_every_flipped_bit_is_refused_or_cuts_only_what_nobody_was_told_of(tmp_path: Path) -> None:
    payloads = [b"record %d!" % index for index in range(7)]
    log = begun(tmp_path, 256)
    for payload in payloads[:-1]:
        log.append(payload)
        log.flush()
    log.append(payloads[-1])
    log.abandon()
    paths = segments_in(tmp_path)
    assert len(paths) == 3
    for number, path in enumerate(paths):
        is_last = number == len(paths) - 1
        for offset in each_flip(path):
            records = outcome_in(tmp_path)
            at = (offset - HEADER_BYTES) % 56
            frame = (offset - HEADER_BYTES) // 56
            if offset >= HEADER_BYTES + 56 * (1 if is_last else 3) or (offset >= HEADER_BYTES and at >= 49):
                assert records == numbered(payloads)  # padding, and what was never written
            elif is_last and offset >= HEADER_BYTES and frame == 0:
                assert records == numbered(payloads[:-1])
            else:
                assert records is None, (path, offset)


def test_after_a_clean_stop_every_flipped_bit_of_the_last_record_is_refused(tmp_path: Path) -> None:
    log = begun(tmp_path)
    log.append(b"first")
    log.append(b"the last one")
    log.close()
    path = segments_in(tmp_path)[0]
    for offset in each_flip(path):
        records = outcome_in(tmp_path)
        if offset < 80 + 5 or 88 <= offset < 88 + 40 + 12:
            assert records is None, offset
        else:  # padding, or the end marker itself
            assert records == [(1, b"first"), (2, b"the last one")]


def test_a_sector_of_flushed_records_that_reads_as_zeros_is_refused(tmp_path: Path) -> None:
    log = begun(tmp_path, 16384)
    for index in range(40):
        log.append(bytes([index + 1]) * 60)
        log.flush()
    log.abandon()
    path = segments_in(tmp_path)[0]
    data = path.read_bytes()
    for start in range(SECTOR_BYTES, 3584, SECTOR_BYTES):
        overwrite(path, data[:start] + bytes(SECTOR_BYTES) + data[start + SECTOR_BYTES :])
        assert outcome_in(tmp_path) is None


def test_damage_is_named_with_file_and_offset(tmp_path: Path) -> None:
    log = begun(tmp_path)
    for _ in range(3):
        log.append(b"record")
        log.flush()
    log.abandon()
    path = segments_in(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[88 + 40] ^= 1
    overwrite(path, data)
    with pytest.raises(Corruption) as error:
        records_in(tmp_path)
    assert str(error.value) == (
        f"{path} offset 88: record 2 is damaged; record 3 at offset 136 says that it was flushed"
    )


def test_a_proof_far_behind_the_damage_is_found(tmp_path: Path) -> None:
    """The frame that proves it lies across a boundary of what is read at once."""
    chunk_bytes = record_log._CHUNK_BYTES
    for shift in range(0, FRAME_BYTES + 8, 8):
        directory = tmp_path / str(shift)
        log = begun(directory, 4 << 20)
        log.append(bytes(2 * chunk_bytes - FRAME_BYTES - shift))
        log.flush()
        log.append(b"proof")
        log.abandon()
        path = segments_in(directory)[0]
        with path.open("r+b") as file:
            file.seek(HEADER_BYTES)
            file.write(b"\0")
        assert outcome_in(directory) is None


def test_a_missing_segment_is_refused(tmp_path: Path) -> None:
    log = begun(tmp_path / "log", 256)
    for index in range(9):
        log.append(b"record %d!" % index)
    log.abandon()
    for number, expected in [
        (0, "the first segment begins at LSN 4; earlier ones are missing"),
        (1, "no valid record with LSN 4, but wal-0000000000000007.log begins at LSN 7"),
    ]:
        shutil.copytree(tmp_path / "log", tmp_path / str(number))
        segments_in(tmp_path / str(number))[number].unlink()
        with pytest.raises(Corruption, match=expected):
            records_in(tmp_path / str(number))


def test_a_segment_of_another_owner_is_refused(tmp_path: Path) -> None:
    log = begun(tmp_path)
    log.append(b"record")
    log.close()
    with pytest.raises(Corruption, match="belongs to 3, not to 4"):
        RecordLog.open(tmp_path, "wal", 4)
    assert records_in(tmp_path) == [(1, b"record")]  # the lock was let go


def test_a_segment_under_another_name_is_refused(tmp_path: Path) -> None:
    log = begun(tmp_path, 256)
    for index in range(4):
        log.append(b"record %d!" % index)
    log.abandon()
    segments_in(tmp_path)[1].rename(tmp_path / "wal-0000000000000005.log")
    with pytest.raises(Corruption, match="begins at LSN 4, not where its name says"):
        records_in(tmp_path)


def test_a_segment_that_is_too_short_for_its_header_is_refused(tmp_path: Path) -> None:
    begun(tmp_path).abandon()
    path = segments_in(tmp_path)[0]
    data = path.read_bytes()
    for size in range(HEADER_BYTES):
        overwrite(path, data[:size])
        with pytest.raises(Corruption, match=f"cut off after {size} bytes"):
            records_in(tmp_path)


def test_a_format_of_the_future_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(record_log, "FORMAT_VERSION", 2)
        begun(tmp_path).close()
    with pytest.raises(ClusterError, match="has format version 2; this program reads 1"):
        opened(tmp_path)


def test_valid_frames_in_a_place_that_is_not_theirs_are_refused(tmp_path: Path) -> None:
    log = begun(tmp_path)
    for index in range(3):
        log.append(b"record %d!" % index)
    log.abandon()
    path = segments_in(tmp_path)[0]
    data = path.read_bytes()
    overwrite(path, data[:40] + data[96:152] + data[96:])
    with pytest.raises(Corruption, match=r"offset 40: record 2 .* where record 1 "):
        records_in(tmp_path)


def test_mutated_segments_are_refused_or_give_back_a_prefix(tmp_path: Path) -> None:
    """Random cuts, copies, swaps and noise. Whatever comes back was written, in this order, from the beginning."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    payloads = [source.randbytes(source.choice((0, 5, 60, 700))) for _ in range(30)]
    log = begun(tmp_path)
    for payload in payloads:
        log.append(payload)
        if source.random() < 0.5:
            log.flush()
    log.abandon()
    paths = segments_in(tmp_path)
    for _ in range(1500):
        path = source.choice(paths)
        original = path.read_bytes()
        data = bytearray(original)
        for _ in range(source.randrange(1, 4)):
            at, other, size = (source.randrange(len(data) + 1) for _ in range(3))
            match source.randrange(4):
                case 0:
                    data[at : at + size] = source.randbytes(min(size, 50))
                case 1:
                    data[at : at + size] = b""
                case 2:
                    data[at:at] = data[other : other + size]
                case _:
                    data[at : at + 4] = source.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x3f"))
        overwrite(path, data)
        records = outcome_in(tmp_path)
        if records is not None:
            assert records == numbered(payloads)[: len(records)]
        overwrite(path, original)


# ---------------------------------------------------------------------------------------------------- errors


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(directory)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs can't be mounted here: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_full_disk_refuses_the_next_segment_until_there_is_room(small_disk: Path) -> None:
    directory = small_disk / "log"
    log = begun(directory, 64 << 10)
    fill(small_disk / "filler")
    payloads: list[bytes] = []
    with contextlib.suppress(DiskFull):
        while True:
            log.append(bytes([len(payloads)]) * 5000)
            payloads.append(bytes([len(payloads)]) * 5000)
    assert log.written_lsn == len(payloads) > 10
    with pytest.raises(DiskFull):
        log.append(bytes(5000))
    payloads.append(b"small ones still fit")
    assert log.append(payloads[-1]) == len(payloads)
    log.flush()
    (small_disk / "filler").unlink()
    payloads.append(bytes(5000))
    assert log.append(payloads[-1]) == len(payloads)
    log.close()
    assert records_in(directory) == numbered(payloads)


def test_a_log_starts_on_a_full_disk_and_takes_records_when_there_is_room(small_disk: Path) -> None:
    directory = small_disk / "log"
    log = begun(directory, 64 << 10)
    log.append(b"first")
    log.close()
    (small_disk / "room").write_bytes(bytes(8192))
    fill(small_disk / "filler")
    (small_disk / "room").unlink()
    log = opened(directory, 64 << 10)
    assert log.begin() == 2
    with pytest.raises(DiskFull):
        log.append(bytes(20_000))
    assert log.written_lsn == 1
    log.abandon()
    log = opened(directory, 64 << 10)
    assert log.begin() == 3
    (small_disk / "filler").unlink()
    assert log.append(bytes(20_000)) == 2
    log.close()
    assert records_in(directory) == [(1, b"first"), (2, bytes(20_000))]


def full_after(written_bytes: int, number: int) -> Callable[[int, bytes, int], int]:
    """An os.pwrite that writes so much of what it is given, and fails when it is called again."""
    real = os.pwrite
    calls = 0

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls > 1 or written_bytes == 0:
            raise OSError(number, os.strerror(number))
        return real(fd, data[:written_bytes], offset)

    return pwrite


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("written_bytes", [0, 1, 40, 90])
def test_a_record_that_was_written_in_part_leaves_the_log_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, written_bytes: int
) -> None:
    log = begun(tmp_path)
    log.append(b"before")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full_after(written_bytes, number))
        with pytest.raises(DiskFull, match=os.strerror(number)):
            log.append(b"x" * 100)
    assert (log.written_lsn, log.flushed_lsn) == (1, 0)
    assert records_in_copy(tmp_path) == [(1, b"before")]
    assert log.append(b"after") == 2
    log.abandon()
    log = opened(tmp_path)
    assert list(log.replay()) == [(1, b"before"), (2, b"after")]
    assert log.torn_tail is None  # nothing is left behind it
    log.abandon()


def records_in_copy(directory: Path) -> list[tuple[int, bytes]]:
    """What a crash at this moment would leave."""
    copy = directory.with_name(directory.name + "-copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(directory, copy)
    return records_in(copy)


def test_a_short_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = begun(tmp_path)
    real = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:7], offset))
        log.append(b"in many pieces")
    log.abandon()
    assert records_in(tmp_path) == [(1, b"in many pieces")]


@pytest.mark.parametrize("step", ["posix_fallocate", "pwrite", "rename"])
def test_a_rotation_that_finds_the_disk_full_leaves_the_log_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = begun(tmp_path, 256)
    for index in range(3):
        log.append(b"record %d!" % index)
    with monkeypatch.context() as patch:
        patch.setattr(Path if step == "rename" else os, step, full)
        for _ in range(2):
            with pytest.raises(DiskFull):
                log.append(b"record 3!")
    assert log.written_lsn == 3
    assert [path.name for path in segments_in(tmp_path)] == ["wal-0000000000000001.log"]
    assert not (tmp_path / "wal.new").exists()
    assert log.append(b"record 3!") == 4
    log.abandon()
    assert records_in(tmp_path) == numbered([b"record %d!" % index for index in range(4)])


def test_a_clean_stop_on_a_full_disk_does_without_the_end_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begun(tmp_path)
    log.append(b"record")
    log.flush()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full_after(20, errno.ENOSPC))
        log.close()
    assert records_in(tmp_path) == [(1, b"record")]


@pytest.mark.parametrize("step", ["pwrite", "fdatasync"])
def test_after_any_other_error_the_log_refuses_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def broken(*args: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    log = begun(tmp_path)
    log.append(b"before")

    def append_and_flush() -> None:
        log.append(b"x")
        log.flush()

    with monkeypatch.context() as patch:
        patch.setattr(os, step, broken)
        with pytest.raises(OSError, match="Input/output error"):
            append_and_flush()
    assert log.flushed_lsn == 0
    with pytest.raises(OSError, match="an earlier write or flush failed"):
        log.append(b"y")
    with pytest.raises(OSError, match="an earlier write or flush failed"):
        log.flush()
    log.close()  # claims nothing: no end marker
    assert log.flushed_lsn == 0
    assert records_in(tmp_path)[:1] == [(1, b"before")]
    assert int.from_bytes(segments_in(tmp_path)[0].read_bytes()[-4:], "little") == 0


def test_an_error_of_the_operating_system_that_is_not_a_full_disk_is_passed_on(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel itself refuse: EFBIG."""
    program = f"""
import errno, resource
from pathlib import Path
from voltpy.record_log import RecordLog
log = RecordLog.open(Path({str(tmp_path)!r}), "wal", 3, segment_bytes=8192)
log.begin()
log.append(b"before")
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    log.append(bytes(20_000))
except OSError as error:
    print(errno.errorcode[error.errno])
try:
    log.append(b"after")
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert process.stdout.split() == ["EFBIG", "EIO"], process.stderr
    assert records_in(tmp_path) == [(1, b"before")]


def test_a_segment_is_not_finished_under_a_flush_elsewhere(tmp_path: Path) -> None:
    log = begun(tmp_path, 256)
    for index in range(3):
        log.append(b"record %d!" % index)
    lsn = log.flush_started()
    assert not log.fits(9)
    with pytest.raises(RuntimeError, match="while it is being flushed elsewhere"):
        log.append(b"record 3!")
    log.mark_flushed(lsn)
    assert log.flushed_lsn == 3
    assert log.append(b"record 3!") == 4
    log.abandon()


# ---------------------------------------------------------------------------------------------------- against a model

STEPS = st.one_of(
    st.tuples(st.just("append"), st.binary(max_size=700)),
    st.tuples(st.just("append"), st.integers(1, 3000).map(lambda size: b"\xee" * size)),
    st.tuples(st.just("flush"), st.just(b"")),
    st.tuples(st.just("restart"), st.just(b"")),
    st.tuples(st.just("crash"), st.binary(min_size=16, max_size=16)),
)


def lose_power(directory: Path, flushed_bytes: int, choice: random.Random) -> None:
    """Of what was not flushed, some sectors reached the disk and others did not; the file was allocated with zeros."""
    path = segments_in(directory)[-1]
    data = bytearray(path.read_bytes())
    start = flushed_bytes
    while start < len(data):
        end = min(start - start % SECTOR_BYTES + SECTOR_BYTES, len(data))
        if choice.random() < 0.5:
            data[start:end] = bytes(end - start)
        start = end
    overwrite(path, data)


@settings(max_examples=120, deadline=None)
@given(steps=st.lists(STEPS, max_size=40))
def test_flushed_records_survive_crashes_and_nothing_is_invented(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, bytes]]
) -> None:
    directory = tmp_path_factory.mktemp("model")
    model: list[bytes] = []
    log = begun(directory, 2048)
    epoch = log.epoch
    flushed_bytes = log._offset
    for step, argument in steps:
        match step:
            case "append":
                fits = log.fits(len(argument))
                model.append(argument)
                assert log.append(argument) == len(model)
                if not fits:
                    flushed_bytes = HEADER_BYTES
                    assert log.flushed_lsn == len(model) - 1
            case "flush":
                log.flush()
                flushed_bytes = log._offset
                assert log.flushed_lsn == len(model)
            case _:
                flushed = log.flushed_lsn
                if step == "crash":
                    log.abandon()
                    lose_power(directory, flushed_bytes, random.Random(argument))
                else:
                    log.close()
                    flushed = len(model)
                log = opened(directory, 2048)
                records = list(log.replay())
                assert records == numbered(model)[: len(records)]
                assert len(records) >= flushed
                del model[len(records) :]
                assert log.begin() > epoch
                epoch = log.epoch
                assert (log.written_lsn, log.flushed_lsn) == (len(model), len(model))
                flushed_bytes = log._offset
    log.close()
    assert records_in(directory) == numbered(model)
    shutil.rmtree(directory)


def test_a_log_that_is_made_after_an_lsn_goes_on_there_and_in_the_next_epoch(tmp_path: Path) -> None:
    RecordLog.make_after(tmp_path, "wal", 3, 41, 7)
    with pytest.raises(ClusterError, match="has a log already"):
        RecordLog.make_after(tmp_path, "wal", 3, 41, 7)
    log = RecordLog.open(tmp_path, "wal", 3)
    assert list(log.replay(41)) == []
    assert log.begin() == 8
    assert log.append(b"the first") == 42
    log.close()
    log = RecordLog.open(tmp_path, "wal", 3)
    assert list(log.replay(41)) == [(42, b"the first")]
    log.abandon()
    log = RecordLog.open(tmp_path, "wal", 3)
    with pytest.raises(Corruption, match="the first segment begins at LSN 42; earlier ones are missing"):
        list(log.replay(40))
    log.abandon()
