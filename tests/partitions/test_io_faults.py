"""Every call that reaches the disk fails in turn: nothing acknowledged is lost, nothing refused is there.

One scenario with fixed seeds, whose data are larger than its pool, runs again and again, each time with another call
failing, or with the power cut there: see tests.partitions.faulty_disk. Then the partition starts again, must be what it
was at some LSN that it can have come to, works on, loses its power, and starts again.

The suite takes a sample of the calls; VOLTPY_FAULTS=all in the environment takes every one.
"""

from __future__ import annotations

import errno
import gc
import os
import random
import re
import shutil
import traceback
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from partitions import checkpointer as checkpointer_module
from partitions import redo
from partitions.page import PAGE_BYTES, check_sealed
from partitions.wal import Wal
from tests.partitions.faulty_disk import CUT, EIO, ENOSPC, SHORT, FaultyDisk, PowerCut, may_meet
from tests.partitions.one_partition import OnePartition
from tests.partitions.test_buffer_pool import LARGE, PROCEDURES, SCHEMA, checkpointed, closed
from voltpy.errors import Corruption, ReadOnly
from voltpy.record_log import DiskFull
from voltpy.schema import Schema

ALL = os.environ.get("VOLTPY_FAULTS") == "all"
STRIDES = {EIO: 13, ENOSPC: 11, SHORT: 13, CUT: 9}
REDO_STRIDES = {EIO: 41, ENOSPC: 11, CUT: 41}
SEGMENT_BYTES = 65536
KEYS = 120

# What fails without the partition's doing anything wrong when it goes on: it reads the same page once more.
READ_AGAIN = ("submit pages", "probe pages")
# Secondary indexes are built from the rows where their image can't be read.
DONE_WITHOUT = ("open image", "read image")
# Where want of room ends the process: a flush of the WAL, or a name in the directory, after which nobody knows what is
# on disk; and a start without room for even a header.
ENDS_FOR_ROOM = ("fsync wal", "fdatasync wal", "flush.start wal", "flush.done wal", "fsync directory")
GOES_ON_AT_A_START = ("create wal", "fallocate wal")

State = tuple[dict[int, list[int]], dict[str, int]]


class Partition(OnePartition):
    """`witness` hears of every answer in the batch that it belongs to."""

    witness: Witness
    closes_files = False  # the disk does

    def gather(self) -> None:
        super().gather()
        self.witness.answered(self)

    def run_ready(self) -> None:
        self.executor.run_ready()
        self.seal_or_refuse(lambda: None)


class Witness:
    """What must be there: the state after each LSN, and the LSN that somebody has been told of."""

    def __init__(self) -> None:
        self.items: dict[int, list[int]] = {}
        self.names: dict[str, int] = {}
        self.states: dict[int, State] = {0: ({}, {})}
        self.acknowledged_lsn = 0
        self.refused = 0
        self.calls: dict[int, tuple[Any, ...]] = {}

    def answered(self, partition: OnePartition) -> None:
        while partition.answers:
            number, answer = partition.answers.popitem()
            kind, *arguments = call = self.calls.pop(number)
            if isinstance(answer, ReadOnly):
                assert kind != "get", call
                self.refused += 1
            else:
                expected = getattr(self, kind)(*arguments)
                assert answer == expected, call
        self.states[partition.lsn] = {key: row.copy() for key, row in self.items.items()}, self.names.copy()

    def get(self, key: int) -> Any:
        return self.items.get(key)

    def put(self, key: int, n: int, size: int) -> None:
        self.items[key] = [n, size]

    def add(self, key: int, n: int) -> Any:
        if key not in self.items:
            return None
        self.items[key] = [self.items[key][0] + n, self.items[key][1]]
        return self.items[key][0]

    def delete(self, key: int) -> bool:
        return self.items.pop(key, None) is not None

    def name(self, name: str, n: int, _: int) -> Any:
        before = self.names.get(name)
        self.names[name] = n
        return before

    def unname(self, name: str) -> bool:
        return self.names.pop(name, None) is not None

    def verify(self, partition: OnePartition) -> None:
        """The partition, just recovered, is as it was at its LSN, and nothing that was acknowledged came after it."""
        self.go_back(partition)
        self.compare(partition)
        partition.store.check()

    def go_back(self, partition: OnePartition) -> None:
        """What must be there now, by the LSN that the partition has recovered."""
        assert partition.lsn in self.states
        assert partition.lsn >= self.acknowledged_lsn
        self.items, self.names = self.states[partition.lsn]
        self.states = {partition.lsn: ({key: row.copy() for key, row in self.items.items()}, self.names.copy())}
        self.acknowledged_lsn = partition.lsn
        self.calls.clear()

    def compare(self, partition: OnePartition) -> None:
        items, names = partition.table("items"), partition.table("names")
        assert {row.id: [row.n, len(row.pad)] for row in items.scan()} == self.items
        assert {row.name: row.n for row in names.scan()} == self.names
        assert (items.count(), names.count()) == (len(self.items), len(self.names))


class Scenario:
    """Lives of one partition, with fewer frames than its data have pages, and then with fewer still."""

    schema = SCHEMA
    fsync = "always"

    def __init__(self, directory: Path, disk: FaultyDisk) -> None:
        self.directory = directory
        self.disk = disk
        self.witness = Witness()
        self.put_off: list[DiskFull] = []
        self.is_starting = False
        self.ended: BaseException | None = None
        self.started_without_room = self.is_at_an_end = False
        self.times_put_off = 0
        self.made = self.made_by_recovery = self.evictions = self.faults = 0
        self.now_s = 0.0
        self.partition: Partition

    def run(self) -> None:
        rng = random.Random(0)
        self.open(32)
        for turn in range(12):
            self.batch(rng, 16, late=turn == 2)
            if turn == 4:
                self.partition.checkpointer.request()
            self.checkpoint_steps(rng.randrange(6))
        self.close()
        self.open(20)  # what has changed since the checkpoint is more than this: the recovery makes one
        for turn in range(9):
            self.batch(rng, 7)
            if turn == 2:
                self.partition.checkpointer.request()
            self.checkpoint_steps(3)
        self.kill()
        self.open(24)
        for kept in (60, 20):  # a file that grows shorter
            for _ in range(3):
                self.batch(rng, 20, kept)
            self.partition.checkpointer.request()
            self.checkpoint_steps(40)
        self.close()

    def open(self, frames: int, *, leaves_cold: bool = False) -> None:
        self.is_starting, self.disk.stays_full = True, False
        made, fired = self.disk.calls.count("rename root"), self.disk.fired
        self.partition = Partition(
            self.schema,
            PROCEDURES,
            self.directory,
            memory_bytes=frames * PAGE_BYTES,
            frames=frames,
            segment_bytes=SEGMENT_BYTES,
            fsync=self.fsync,
            leaves_cold=leaves_cold,
        )
        self.is_starting, self.disk.stays_full = False, True
        self.made_by_recovery += self.disk.calls.count("rename root") - made
        self.started_without_room |= self.disk.fired != fired
        self.partition.witness = self.witness
        self.partition.checkpointer.failed = self.put_off.append
        if leaves_cold:
            self.witness.go_back(self.partition)  # a look at the tables would wait until nothing is left
        else:
            self.witness.verify(self.partition)

    def run_with_fault(self, fault: str, rng: random.Random) -> None:
        """The scenario, as far as it goes; then the partition starts, works, loses its power and starts once more."""
        try:
            self.run()
        except (OSError, Corruption, DiskFull, ReadOnly, PowerCut) as error:
            if self.disk.fired is None:
                raise
            self.ended = error.with_traceback(None)
        fired = self.disk.fired
        if fired is None:
            return
        self.judge(fault, fired)
        self.end_process()
        if fault == CUT:
            self.disk.cut(rng)
        self.open(32)
        for _ in range(2):
            self.batch(rng, 10)
        self.partition.checkpointer.request()
        self.checkpoint_steps(rng.randrange(50))
        self.end_process()
        self.disk.cut(rng)
        self.open(32)
        self.close()

    def judge(self, fault: str, fired: str) -> None:
        """Whether the process had to end there, and did."""
        call = fired.split()[0]
        if fault == CUT:
            must_end = True
        elif fault == EIO:
            must_end = fired not in (*READ_AGAIN, *DONE_WITHOUT)
        elif fault == SHORT:
            must_end = call in ("preadv", "event")
        else:
            at_a_start = self.is_starting or self.started_without_room
            must_end = fired in ENDS_FOR_ROOM or (at_a_start and fired not in GOES_ON_AT_A_START)
        assert (self.ended is not None) == must_end, f"{fired} ended with {self.ended!r}"
        if fault == CUT:
            assert isinstance(self.ended, PowerCut)
        elif fault == ENOSPC and not must_end and not at_a_start and not self.is_at_an_end:
            assert self.witness.refused + self.times_put_off + len(self.put_off) > 0

    def end_process(self) -> None:
        """As a kill ends it."""
        partition = self.__dict__.pop("partition", None)
        if partition is not None:
            close = getattr(partition.checkpointer._steps, "close", None)
            if close is not None:
                close()  # or it closes a descriptor when it is collected, which is another file's by then
        gc.collect()
        self.disk.crashed()

    def close(self) -> None:
        fired = self.disk.fired
        self.count()
        self.partition.reader.close()
        self.partition.checkpointer.close()
        assert self.partition.wal is not None
        self.partition.wal.close()
        self.is_at_an_end |= self.disk.fired != fired  # what has no room then is not needed

    def kill(self) -> None:
        self.count()
        self.end_process()

    def count(self) -> None:
        self.made = self.partition.checkpointer.last.number
        self.evictions += self.partition.pool.evictions
        self.faults += self.partition.pool.faults

    def batch(self, rng: random.Random, calls: int, kept: int = KEYS, *, late: bool = False) -> None:
        """Calls, their record, its flush: inline or beside what comes next; pages that they miss; dirty ones, out."""
        partition, witness = self.partition, self.witness
        assert partition.wal is not None
        keys = rng.sample(range(KEYS), calls)
        made = [self.call_of(rng, key) if key < kept else ("delete", key) for key in keys]
        numbers: list[int] = []

        def run() -> None:
            for at, call in enumerate(made):
                number = partition.run(*call, number=numbers[at] if at < len(numbers) else None)
                if at == len(numbers):
                    numbers.append(number)
                    witness.calls[number] = call

        run()
        is_refused = not partition.seal_or_refuse(run)
        if late:  # a checkpoint of what is not flushed
            partition.checkpointer.request()
            self.checkpoint_steps(60)
        if rng.random() < 0.5:
            partition.wal.start_flush()
            partition.turn_pages()
            partition.wal.wait_flush()
        else:
            partition.turn_pages()
        if self.fsync == "always":
            partition.wal.flush()
        witness.acknowledged_lsn = max(witness.acknowledged_lsn, partition.wal.flushed_lsn)
        while partition.pool.must_clean and partition.checkpointer.clean_some():
            pass
        if is_refused or self.put_off:
            witness.compare(partition)  # while there is no room
            self.disk.make_room()
            self.times_put_off += len(self.put_off)
            self.put_off.clear()
            self.now_s += 100.0
            partition.checkpointer.step(self.now_s)

    def batches(self, rng: random.Random, number: int) -> None:
        for _ in range(number):
            self.batch(rng, 16)

    def call_of(self, rng: random.Random, key: int) -> tuple[Any, ...]:
        kind, n = rng.random(), rng.randrange(1000)
        size = rng.choice([10, 500, 900, 900, 1500, 1500, 1500, 5000, LARGE if key < 10 else 3000])
        name = f"name {key}" * 3
        if kind < 0.45:
            return "put", key, n, size
        if kind < 0.7:
            return "get", key
        if kind < 0.8:
            return "add", key, n
        if kind < 0.87:
            return "delete", key
        if kind < 0.95:
            return "name", name, n, min(size, 900)
        return "unname", name

    def checkpoint_steps(self, steps: int) -> None:
        for _ in range(steps):
            if not self.partition.checkpointer.step(self.now_s):
                return


class RedoScenario(Scenario):
    """Lives with frames for all pages, in which a recovery leaves what is about cold ones, and calls need some."""

    schema = Schema(SCHEMA.tables, ())  # a table with an index leaves nothing
    behind = 0  # batches that ended with something left
    flushed_lsn = 0  # by the process that was killed last

    def run(self) -> None:
        rng = random.Random(1)
        self.until_killed(rng)
        for _ in range(2):  # the first dies while something is left
            self.open(400, leaves_cold=True)
            for _ in range(3):
                self.batch(rng, 2)
                self.partition.checkpointer.request()
                self.checkpoint_steps(2)
                self.behind += self.partition.store.is_behind
            self.kill()
        self.open(400, leaves_cold=True)
        self.batch(rng, 2)
        self.witness.compare(self.partition)
        self.partition.checkpointer.request()
        self.checkpoint_steps(1000)
        self.batch(rng, 2)
        self.close()

    def until_killed(self, rng: random.Random) -> None:
        self.open(400)
        for _ in range(6):
            self.batch(rng, 16)
        self.partition.checkpointer.request()
        self.checkpoint_steps(1000)
        for _ in range(3):
            self.batch(rng, 16)
        self.kill()

    def kill(self) -> None:
        wal = self.partition.wal
        assert wal is not None
        self.flushed_lsn = wal.flushed_lsn
        self.witness.acknowledged_lsn = wal.written_lsn  # the system has it, unless its power goes
        super().kill()

    def judge(self, fault: str, fired: str) -> None:
        super().judge(fault, fired)
        if fault == CUT and self.is_starting:
            self.witness.acknowledged_lsn = min(self.witness.acknowledged_lsn, self.flushed_lsn)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    gc.collect()
    gc.freeze()  # each process that ends is collected, and nothing else need be looked at
    monkeypatch.setattr(checkpointer_module, "CHUNK_PAGES", 6)
    monkeypatch.setattr(checkpointer_module, "HURRIED_PAGES", 6)
    monkeypatch.setattr(checkpointer_module, "RUN_ENTRIES", 50)
    monkeypatch.setattr(checkpointer_module, "FEW_ENTRIES", 0)
    yield
    gc.unfreeze()


def calls_of(directory: Path, kind: type[Scenario] = Scenario) -> list[str]:
    """Those of a run in which nothing fails."""
    directory.mkdir()
    with FaultyDisk(directory) as disk:
        scenario = kind(directory, disk)
        scenario.run()
        scenario.end_process()
    return disk.calls


def endings(
    directory: Path, fault: str, kind: type[Scenario], stride: int
) -> Iterator[tuple[int, str, BaseException | None]]:
    """Each call that the fault can meet, by number and name, and what was wrong then, if anything."""
    met = [n for n, call in enumerate(calls_of(directory, kind), start=1) if may_meet(fault, call)]
    for n in met if ALL else met[::stride]:
        shutil.rmtree(directory)
        directory.mkdir()
        with FaultyDisk(directory) as disk:
            scenario = kind(directory, disk)
            disk.fail(n, fault)
            wrong: BaseException | None = None
            try:
                scenario.run_with_fault(fault, random.Random(n))
            except Exception as error:  # noqa: BLE001 — the test names it, with all others
                wrong = error
            fired = disk.fired
            scenario.end_process()
        assert fired is not None, f"{fault} at call {n} was never met"
        yield n, fired, wrong


def told(fault: str, directory: Path, kind: type[Scenario] = Scenario, stride: int = 0) -> Counter[str]:
    fired = Counter[str]()
    wrong = []
    for n, call, error in endings(directory, fault, kind, stride or STRIDES[fault]):
        fired[call] += 1
        if error is not None:
            wrong.append(f"{fault} at call {n}, {call}: " + "".join(traceback.format_exception(error)[-12:]))
    print(fault, fired.total(), dict(sorted(fired.items())))
    assert not wrong, f"{len(wrong)} of {fired.total()}, the first being\n" + "\n".join(wrong[:4])
    return fired


@pytest.mark.parametrize("fault", STRIDES)
def test_nothing_acknowledged_is_lost_whichever_call_fails(fault: str, tmp_path: Path) -> None:
    fired = told(fault, tmp_path / "partition")
    assert fired.total() >= 20


@pytest.mark.parametrize("fsync", ["always", "never"])
@pytest.mark.parametrize("fault", [ENOSPC, CUT, EIO])
def test_nothing_is_lost_whichever_call_fails_while_what_a_recovery_left_is_written(
    fault: str, fsync: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redo, "PAGES_AHEAD", 0)
    monkeypatch.setattr(redo, "PAGES_THERE", 0)
    monkeypatch.setattr(RedoScenario, "fsync", fsync)
    assert told(fault, tmp_path / "partition", RedoScenario, REDO_STRIDES[fault]).total() >= 6


@pytest.mark.parametrize("fsync", ["always", "never"])
def test_the_scenario_of_a_redo_dies_while_something_is_left(
    fsync: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redo, "PAGES_AHEAD", 0)
    monkeypatch.setattr(redo, "PAGES_THERE", 0)
    monkeypatch.setattr(RedoScenario, "fsync", fsync)
    directory = tmp_path / "partition"
    directory.mkdir()
    with FaultyDisk(directory) as disk:
        scenario = RedoScenario(directory, disk)
        scenario.run()
    assert scenario.behind == 6
    assert scenario.made == 2  # one before, one when nothing was left: none in between


@pytest.mark.parametrize("fsync", ["always", "never"])
def test_what_a_recovery_left_is_written_on_a_full_disk_while_writes_are_refused(
    fsync: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redo, "PAGES_AHEAD", 0)
    monkeypatch.setattr(redo, "PAGES_THERE", 0)
    monkeypatch.setattr(RedoScenario, "fsync", fsync)
    directory = tmp_path / "partition"
    directory.mkdir()
    with FaultyDisk(directory) as disk:
        scenario, rng = RedoScenario(directory, disk), random.Random(1)
        scenario.until_killed(rng)
        scenario.open(400, leaves_cold=True)
        disk.is_full = True
        was_full: list[bool] = []
        scenario.partition.redo.done = lambda: was_full.append(disk.is_full)
        while not scenario.witness.refused:
            assert scenario.partition.store.is_behind
            scenario.batch(rng, 2)  # where it is refused, nothing is left before there is room again
        assert was_full == [True]
        scenario.partition.checkpointer.request()
        scenario.checkpoint_steps(1000)
        made = scenario.partition.checkpointer.last.number
        assert made == 2
        scenario.kill()
        scenario.open(400, leaves_cold=True)
        assert not scenario.partition.store.is_behind
        scenario.witness.compare(scenario.partition)
        scenario.close()


def test_the_scenario_goes_everywhere(tmp_path: Path) -> None:
    directory = tmp_path / "partition"
    directory.mkdir()
    with FaultyDisk(directory) as disk:
        scenario = Scenario(directory, disk)
        scenario.run()
    assert scenario.made >= 5
    assert scenario.made_by_recovery > 0
    assert min(scenario.evictions, scenario.faults) > 15
    assert scenario.witness.refused == 0
    assert {"ftruncate pages", "unlink run", "unlink wal", "event pages", "pread wal"} <= set(disk.calls)


def test_what_a_failed_flush_left_in_the_cache_is_written_again_before_a_root_knows_of_it(tmp_path: Path) -> None:
    """The WAL's flush fails; the next process reads what is not on disk, makes a checkpoint of it, and loses its power.

    Cut at every call of the recovery: no root may know of records that are gone.
    """
    directory = tmp_path / "partition"
    cuts = made = 0
    for n in count(1, 1 if ALL else 3):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        with FaultyDisk(directory) as disk:
            scenario = Scenario(directory, disk)
            rng = random.Random(0)
            scenario.open(48)
            scenario.batches(rng, 10)
            disk.fail_next("flush.done wal", EIO)
            with pytest.raises(OSError, match="Input/output error"):
                scenario.batches(rng, 9)
            scenario.end_process()
            disk.fail(n, CUT)
            is_cut = False
            try:
                scenario.open(12)
            except PowerCut:
                is_cut = True
            made = max(made, disk.calls.count("rename root"))
            disk.fail(0, "")
            scenario.end_process()
            if not is_cut:
                break
            cuts += 1
            disk.cut(random.Random(n), keeps=0.0)
            scenario.open(32)
            scenario.close()
    print("cuts", cuts)
    assert cuts > 20
    assert made > 0


@pytest.mark.parametrize("at", ["all", "last"])
def test_a_sector_that_cannot_be_read_ends_the_start(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux returns what is in front of it, and an error only where the read begins at it: no end of the WAL."""
    witness = Witness()
    partition = Partition(SCHEMA, PROCEDURES, tmp_path, segment_bytes=SEGMENT_BYTES)
    partition.witness = witness
    for key in range(60):
        witness.calls[partition.run("put", key, key, 900)] = ("put", key, key, 900)
        partition.seal()
    assert partition.wal is not None
    partition.wal.flush()
    end = partition.wal._log._offset
    partition.reader.close()
    partition.checkpointer.close()
    partition.wal.abandon()
    (segment,) = tmp_path.glob("wal-*.log")
    pread, bad = os.pread, [0]

    def pread_past_none(fd: int, size: int, offset: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{fd}") != str(segment) or not offset - 512 < bad[0] < offset + size:
            return pread(fd, size, offset)
        if bad[0] <= offset:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, bad[0] - offset, offset)

    monkeypatch.setattr(os, "pread", pread_past_none)
    before = segment.read_bytes()
    sectors = range(0, end, 512)
    for bad[0] in sectors if at == "all" else sectors[-1:]:
        wal = Wal.open(tmp_path, 0, "always", SEGMENT_BYTES)
        with pytest.raises(OSError, match="Input/output error"):
            list(wal.replay())
        wal.abandon()
        assert segment.read_bytes() == before


def brought(partition: OnePartition, page: int, *, aside: bool) -> None:
    """In the middle of a transaction, or for one that was set aside."""
    if not aside:
        partition.pool.bring(page)
        return
    partition.pool.fetch([page])
    while not partition.pool.step(0.0, 1.0):
        pass


def test_every_flipped_bit_of_every_page_is_named(tmp_path: Path) -> None:
    partition = OnePartition(SCHEMA, PROCEDURES, tmp_path, memory_bytes=16 << 20)
    for key in range(8):
        partition.call("put", key, key, 900)
    partition.call("name", "somebody", 1, 500)
    checkpointed(partition)
    closed(partition)
    partition = OnePartition(SCHEMA, PROCEDURES, tmp_path, memory_bytes=16 << 20)  # all is cold
    path = tmp_path / "pages"
    whole = path.read_bytes()
    assert len(whole) // PAGE_BYTES in (2, 3)
    rng = random.Random(5)
    print("seed", 5)
    looked_at = read = 0
    arena = partition.store.arena
    for table, heap in enumerate(partition.store.heaps):
        for number, entry in enumerate(heap.entries):
            assert heap.is_on_disk_only(number)
            page, generation, offset = table << 48 | number, entry & 0xFFFF, ((entry >> 16) - 1) * PAGE_BYTES
            where = f"{path} offset {offset}"
            image = bytearray(whole[offset : offset + PAGE_BYTES])
            check_sealed(bytes(image), page, generation, where)
            for bit in range(PAGE_BYTES * 8):
                image[bit >> 3] ^= 1 << (bit & 7)
                try:
                    check_sealed(bytes(image), page, generation, where)
                except Corruption as error:
                    assert str(error).startswith(where)  # noqa: PT017 — 65,536 times `raises` would take a minute
                else:
                    pytest.fail(f"bit {bit} of the page at {where}")
                image[bit >> 3] ^= 1 << (bit & 7)
                looked_at += 1
            for bit in range(PAGE_BYTES * 8) if ALL else (*range(24 * 8), *rng.sample(range(PAGE_BYTES * 8), 200)):
                image[bit >> 3] ^= 1 << (bit & 7)
                with path.open("r+b") as file:
                    file.seek(offset)
                    file.write(image)
                image[bit >> 3] ^= 1 << (bit & 7)
                free, used = arena._free.copy(), arena._used
                with pytest.raises(Corruption, match=re.escape(where)):
                    brought(partition, page, aside=bool(read % 2))
                partition.pool._coming.clear()
                partition.pool.failed = None  # as a new process has it
                arena._free[:], arena._used = free, used
                read += 1
            path.write_bytes(whole)
            partition.pool.bring(page)
    assert looked_at == len(whole) * 8
    print("bits", looked_at, "read", read)
    partition.store.check()
    closed(partition)
