"""When a batch counts as durable in each mode, and what is there after a crash at every named point."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from partitions import wal as wal_module
from partitions.wal import Batch, Wal, decode_batch, encode_batch
from voltpy.crash_point import CRASH_POINTS, VARIABLE
from voltpy.errors import ClusterError, Corruption
from voltpy.messages import ReplyGroup, TableChanges


def begun(directory: Path, fsync: str = "always", segment_bytes: int = 1 << 16) -> Wal:
    wal = Wal.open(directory, 1, fsync, segment_bytes)
    wal.begin()
    return wal


def records_in(directory: Path) -> list[tuple[int, bytes]]:
    wal = Wal.open(directory, 1, "always")
    try:
        return list(wal.replay())
    finally:
        wal.abandon()


def poll_until_done(wal: Wal) -> None:
    deadline = time.monotonic() + 10
    while not wal.poll_flush():
        assert time.monotonic() < deadline


# ---------------------------------------------------------------------------------------------------- batches


def outcomes(*groups: ReplyGroup) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(groups))


def test_a_batch_comes_back_as_it_was() -> None:
    batch = Batch(
        outcomes(ReplyGroup(7, [1, 2], msgspec.Raw(msgspec.msgpack.encode([10, "b"])))),
        [TableChanges(0, [msgspec.msgpack.encode([1, "Oslo", None])], [msgspec.msgpack.encode(5)])],
    )
    decoded = decode_batch(encode_batch(batch))
    assert decoded.changes == batch.changes
    assert msgspec.msgpack.decode(decoded.outcomes) == [[7, [1, 2], [10, "b"]]]


def test_the_bytes_of_a_batch_are_those_of_the_docstring() -> None:
    batch = Batch(outcomes(ReplyGroup(7, [1], msgspec.Raw(b"\x91\x2a"))), [TableChanges(3, [b"\x91\x01"], [b"\x02"])])
    assert msgspec.msgpack.decode(encode_batch(batch)) == [[[7, [1], [42]]], [[3, [b"\x91\x01"], [b"\x02"]]]]


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", b"\x90", b"\x92\x90", b"\x92\x91\xc1\x90", b"\x93\x90\x90\x90", b"\x92\x90\x91\x93\x00\x91\xa1x\x90",
     b"\xdd\xff\xff\xff\xff", b"\x92\xdd\xff\xff\xff\xff\x90", b"\x91" * 5000, b"\x92\x90\x90\x00"],
)  # fmt: skip
def test_a_record_that_is_not_a_batch_is_refused(payload: bytes) -> None:
    with pytest.raises(Corruption, match="WAL record 12: not a batch"):
        decode_batch(payload, 12)


def test_every_cut_and_flipped_byte_of_a_batch_is_decoded_or_refused() -> None:
    batch = Batch(
        outcomes(ReplyGroup(7, [1, 2], msgspec.Raw(b"\x92\x01\x02"))), [TableChanges(0, [b"image"], [b"key"])]
    )
    payload = encode_batch(batch)
    for cut in range(len(payload)):
        with pytest.raises(Corruption):
            decode_batch(payload[:cut])
    for at in range(len(payload)):
        for byte in range(256):
            try:
                decoded = decode_batch(payload[:at] + bytes([byte]) + payload[at + 1 :])
            except Corruption:
                continue
            assert isinstance(decoded, Batch)


# ---------------------------------------------------------------------------------------------------- durability


def test_always_counts_what_is_flushed(tmp_path: Path) -> None:
    wal = begun(tmp_path)
    assert (wal.append(b"1"), wal.append(b"2")) == (1, 2)
    assert (wal.written_lsn, wal.flushed_lsn, wal.durable_lsn) == (2, 0, 0)
    wal.flush()
    assert (wal.flushed_lsn, wal.durable_lsn) == (2, 2)
    wal.close()
    assert records_in(tmp_path) == [(1, b"1"), (2, b"2")]


def test_a_flush_in_the_background_covers_what_was_written_when_it_began(tmp_path: Path) -> None:
    wal = begun(tmp_path)
    wal.append(b"1")
    wal.start_flush()
    assert wal.flush_running
    wal.append(b"2")
    wal.start_flush()  # one is running: the next one will cover it
    poll_until_done(wal)
    assert (wal.flush_running, wal.durable_lsn) == (False, 1)
    wal.start_flush()
    wal.wait_flush()
    assert wal.durable_lsn == 2
    wal.start_flush()  # nothing to flush
    assert not wal.flush_running
    wal.close()


def test_an_inline_flush_waits_for_the_one_in_the_background(tmp_path: Path) -> None:
    wal = begun(tmp_path)
    wal.append(b"1")
    wal.start_flush()
    wal.append(b"2")
    wal.flush()
    assert (wal.flush_running, wal.durable_lsn) == (False, 2)
    wal.close()


def test_a_segment_that_is_full_while_it_is_flushed_in_the_background(tmp_path: Path) -> None:
    wal = begun(tmp_path, segment_bytes=256)
    for index in range(50):
        assert wal.append(b"record %d" % index) == index + 1
        wal.start_flush()
    wal.close()
    assert records_in(tmp_path) == [(index + 1, b"record %d" % index) for index in range(50)]


def test_everysec_replies_at_once_and_flushes_when_a_second_is_over(tmp_path: Path) -> None:
    wal = begun(tmp_path, "everysec")
    wal.tick(99.0)
    wal.append(b"1")
    assert (wal.durable_lsn, wal.flushed_lsn) == (1, 0)
    wal.tick(100.0)
    wal.append(b"2")
    wal.tick(100.9)
    assert (wal.flush_running, wal.flushed_lsn) == (False, 0)
    wal.tick(101.0)
    poll_until_done(wal)
    assert wal.flushed_lsn == 2
    wal.append(b"3")
    wal.tick(101.9)
    assert not wal.flush_running
    wal.tick(102.0)
    wal.wait_flush()
    assert wal.flushed_lsn == 3
    wal.tick(103.0)
    wal.tick(105.0)
    assert not wal.flush_running  # nothing to flush
    wal.append(b"4")
    wal.tick(106.0)
    assert not wal.flush_running  # a new second begins
    wal.abandon()


def test_never_replies_at_once_and_flushes_at_the_end(tmp_path: Path) -> None:
    wal = begun(tmp_path, "never")
    wal.append(b"1")
    wal.tick(1.0)
    wal.tick(100.0)
    assert (wal.durable_lsn, wal.flushed_lsn, wal.flush_running) == (1, 0, False)
    wal.close()
    assert records_in(tmp_path) == [(1, b"1")]


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="--fsync sometimes: one of always, everysec, never was expected"):
        Wal.open(tmp_path, 0, "sometimes")


def test_a_flush_that_fails_in_the_background_ends_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = begun(tmp_path)
    wal.append(b"1")
    wal.start_flush()
    wal.wait_flush()
    wal.append(b"2")
    reader, writer = os.pipe()
    os.close(wal._log.fd)
    monkeypatch.setattr(wal._log, "fd", writer)  # it can't be flushed: EINVAL, from the kernel

    def flush() -> None:
        wal.start_flush()
        wal.wait_flush()

    with pytest.raises(OSError, match="Invalid argument"):
        flush()
    assert wal.durable_lsn == 1
    for refused in (lambda: wal.append(b"3"), wal.flush, wal.start_flush):
        with pytest.raises(OSError, match="an earlier write or flush failed") as error:
            refused()
        assert error.value.errno == errno.EIO
    wal.close()  # closes the writer too
    os.close(reader)


# ---------------------------------------------------------------------------------------------------- crashes

# Every path of the WAL, with a word on stdout for each promise that it makes. The first run has nothing to settle, the
# next one has a tail to settle; inline flushes, flushes in the background, rotations and a clean stop occur in each.
PROGRAM = """
import sys
from pathlib import Path
from partitions.wal import Wal
wal = Wal.open(Path(sys.argv[1]), 1, "always", 1024)
for lsn, payload in wal.replay():
    assert payload == b"record %d" % lsn * 20, (lsn, payload)
print("replayed", wal._log.written_lsn, flush=True)
print("epoch", wal.begin(), flush=True)
for index in range(24):
    lsn = wal.written_lsn + 1
    assert wal.append(b"record %d" % lsn * 20) == lsn
    if index % 4 == 1:
        wal.flush()
    elif index % 4 == 3:
        wal.start_flush()
        wal.wait_flush()
    print("durable", wal.durable_lsn, flush=True)
wal.append(b"record %d" % (wal.written_lsn + 1) * 20)
if sys.argv[2] == "stop":
    wal.close()
"""


def run_program(directory: Path, ending: str, armed: str | None = None) -> tuple[int, dict[str, int]]:
    """Exit status, and the last number that was printed behind each word."""
    environment = {name: text for name, text in os.environ.items() if name != VARIABLE}
    if armed is not None:
        environment[VARIABLE] = armed
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(directory), ending],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert process.returncode in (0, -signal.SIGKILL), process.stderr
    words = (line.split() for line in process.stdout.splitlines())
    return process.returncode, {word: int(number) for word, number in words}


@pytest.mark.parametrize("point", [name for name in CRASH_POINTS if name.startswith(("record_log.", "wal."))])
def test_a_crash_at_each_point_loses_nothing_that_was_promised(tmp_path: Path, point: str) -> None:
    status, first = run_program(tmp_path, "end")
    assert status == 0
    status, second = run_program(tmp_path, "stop", point)
    assert status == -signal.SIGKILL, f"{point} was never passed"
    assert second["replayed"] == 25
    wal = Wal.open(tmp_path, 1, "always")
    records = list(wal.replay())
    assert records == [(lsn, b"record %d" % lsn * 20) for lsn in range(1, len(records) + 1)]
    assert len(records) >= max(first["durable"], second.get("durable", 0))
    assert wal.begin() > second.get("epoch", first["epoch"])
    wal.close()


def test_every_crash_point_of_the_wal_is_in_its_source() -> None:
    sources = "".join(
        Path(module.__file__ or "").read_text() for module in (wal_module, sys.modules["voltpy.record_log"])
    )
    for name in CRASH_POINTS:
        if name.startswith(("record_log.", "wal.")):
            assert sources.count(f'("{name}")') == 1, name
