"""`python -m bench engine` and `python -m bench replay`: one partition's engine in this process, without sockets.

Reads and updates go through the tables themselves, in batches that are applied as a partition applies them; only the
loop around the calls is subtracted. Memory is the process's resident size, measured before and after loading.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import click
from msgspec import Raw

from bench import machine
from bench.zipf import Zipf, uniform
from partitions.buffer_pool import BufferPool
from partitions.checkpoint import load, read_checkpoint
from partitions.checkpointer import Checkpointer
from partitions.page_reader import PageReader
from partitions.recovery import recover
from partitions.store import Store
from partitions.wal import Batch, Wal, encode_batch
from voltpy.outcome_window import OutcomeWindow
from voltpy.schema import Schema
from voltpy.sql.ddl import parse_schema

BATCH = 1000
MEMORY_BYTES = 6 << 30  # what `voltpy start` gives each of two partitions on a machine with 24 GB

SMALL = """
CREATE TABLE t (id INT PRIMARY KEY, a INT, name STRING, price FLOAT, open BOOL, city STRING);
PARTITION TABLE t ON COLUMN id;
"""
WIDE = f"""
CREATE TABLE t (id INT PRIMARY KEY, {", ".join(f"f{i} STRING" for i in range(10))});
PARTITION TABLE t ON COLUMN id;
"""


def _small_row(key: int) -> tuple[Any, ...]:
    return (key, key * 7, f"name-{key:08d}", key * 0.5, True, f"city-{key % 1000:04d}-xxxxxxxx")


def _wide_row(key: int) -> tuple[Any, ...]:
    return (key, *(f"{key:08d}{i}" + "x" * 39 for i in range(10)))


@click.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--operations", default=400_000, show_default=True, help="Of each kind.")
@click.option("--repeat", default=3, show_default=True)
def engine(rows: int, operations: int, repeat: int) -> None:
    """Point reads and updates, and memory a row, in process."""
    click.echo(_conditions(tempfile.gettempdir()))
    click.echo("\n| what | µs, lowest of the repetitions (median) | resident bytes a row |")
    click.echo("| --- | ---: | ---: |")
    for name, schema, row_of in (("6 small columns", SMALL, _small_row), ("500 bytes", WIDE, _wide_row)):
        _measure(name, parse_schema(schema), row_of, rows, operations, repeat)


def _measure(
    name: str, schema: Schema, row_of: Callable[[int], tuple[Any, ...]], rows: int, operations: int, repeat: int
) -> None:
    before = _resident_bytes()
    store = Store(schema, 0, 1, MEMORY_BYTES)
    table = store.tables[0]
    for _ in _batches(store, uniform_order(rows)):
        for key in _:
            table.insert(*row_of(key))
    gc.collect()
    gc.freeze()
    click.echo(f"| {name}: {rows:,} rows loaded | | {(_resident_bytes() - before) / rows:.0f} |")
    for distribution, keys in (
        ("zipf 0.99", Zipf(rows, 0.99, seed=1).draw(operations)),
        ("uniform", uniform(rows, operations, seed=2)),
    ):
        reads, updates = [], []
        for _ in range(repeat):
            reads.append(_timed(store, keys, lambda key: table.get(key)))
            updates.append(_timed(store, keys, lambda key: _update(table, name, key)))
        for what, times in (("read", reads), ("update", updates)):
            times.sort()
            click.echo(f"| {name}: {what}, {distribution} | {times[0]:.2f} ({times[len(times) // 2]:.2f}) | |")
    store.check()
    click.echo(f"| {name}: after all that | | {(_resident_bytes() - before) / rows:.0f} |")


def _update(table: Any, name: str, key: int) -> None:
    if name == "500 bytes":
        table.update(key, f1="y" * 48)
    else:
        table.update(key, a=key)


def _timed(store: Store, keys: list[int], operation: Callable[[int], Any]) -> float:
    """Microseconds an operation, less what the same loop costs with nothing in it."""
    began = perf_counter()
    for batch in _batches(store, keys):
        for key in batch:
            operation(key)
    took = perf_counter() - began
    began = perf_counter()
    for start in range(0, len(keys), BATCH):
        for key in keys[start : start + BATCH]:
            _nothing(key)
    return (took - (perf_counter() - began)) / len(keys) * 1e6


def _nothing(key: int) -> None:
    return None


def _batches(store: Store, keys: list[int]) -> Iterator[list[int]]:
    """The keys in batches; after each, what a partition does at a batch's end, short of the WAL."""
    for start in range(0, len(keys), BATCH):
        yield keys[start : start + BATCH]
        store.changes()
        store.apply()


def uniform_order(rows: int) -> list[int]:
    """All keys, each once, in random order."""
    return sorted(range(rows), key=lambda key: key * 0x9E3779B97F4A7C15 & 0xFFFF_FFFF)


@click.command()
@click.option("--records", default=1_000_000, show_default=True, help="Changes in the WAL, a third of them updates.")
@click.option("--directory", default=tempfile.gettempdir(), type=click.Path(path_type=Path), show_default=True)
def replay(records: int, directory: Path) -> None:
    """WAL replay: a partition's recovery of so many changes."""
    schema = parse_schema(SMALL)
    data = Path(tempfile.mkdtemp(dir=directory, prefix="voltpy-replay-"))
    try:
        _write(schema, data, records)
        store = Store(schema, 0, 1, MEMORY_BYTES)
        wal = Wal.open(data, 0, "always")
        gc.disable()
        began = perf_counter()
        window, nothing = OutcomeWindow(0), read_checkpoint(data, 0)
        file = load(data, 0, nothing, store)
        replayed = recover(wal, store, nothing, window, Checkpointer(data, 0, store, window, wal, file, nothing))
        took = perf_counter() - began
        gc.enable()
        store.check()
        wal.abandon()
        wal_bytes = sum(file.stat().st_size for file in data.glob("*.log"))
    finally:
        shutil.rmtree(data)
    click.echo(_conditions(str(directory)))
    click.echo(
        f"\n{replayed:,} changes from {wal_bytes / 1e6:.0f} MB of WAL in {took:.2f} s: {replayed / took:,.0f} a second"
    )


@click.command()
@click.option("--rows", default=1_000_000, show_default=True, help="Of 500 bytes.")
@click.option("--directory", default=tempfile.gettempdir(), type=click.Path(path_type=Path), show_default=True)
def load_checkpoint(rows: int, directory: Path) -> None:
    """A partition's checkpoint, made, and loaded from disk again."""
    schema = parse_schema(WIDE)
    data = Path(tempfile.mkdtemp(dir=directory, prefix="voltpy-checkpoint-"))
    try:
        store = Store(schema, 0, 1, MEMORY_BYTES)
        for batch in _batches(store, uniform_order(rows)):
            for key in batch:
                store.tables[0].insert(*_wide_row(key))
        wal = Wal.open(data, 0, "never")
        list(wal.replay())
        wal.begin()
        file = load(data, 0, read_checkpoint(data, 0), store)
        checkpointer = Checkpointer(data, 0, store, OutcomeWindow(0), wal, file, read_checkpoint(data, 0))
        checkpointer.begin()
        checkpointer.request()
        began = perf_counter()
        while checkpointer.step(0.0):
            pass
        made_s = perf_counter() - began
        checkpointer.close()
        wal.close()
        del store
        gc.collect()
        for path in data.iterdir():
            with path.open("rb") as written:
                os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        fresh = Store(schema, 0, 1, MEMORY_BYTES)
        gc.disable()
        began = perf_counter()
        path = load(data, 0, read_checkpoint(data, 0), fresh).path
        reader = PageReader(path, fresh.arena.memory)
        pool = BufferPool(fresh.heaps, fresh.arena, reader, path, MEMORY_BYTES)
        fresh.use(pool)
        served_s = perf_counter() - began
        pool.bring_all(range(fresh.heaps[0].page_numbers))
        took = perf_counter() - began
        gc.enable()
        fresh.check()
        reader.close()
        size = sum(path.stat().st_size for path in data.iterdir())
    finally:
        shutil.rmtree(data)
    click.echo(_conditions(str(directory)))
    click.echo(
        f"\n{rows:,} rows in {size / 1e6:.0f} MB: made in {made_s:.2f} s, "
        f"could be served after {served_s:.2f} s ({rows / served_s:,.0f} rows a second), "
        f"all in memory after {took:.2f} s ({rows / took:,.0f} rows a second)"
    )


def _write(schema: Schema, data: Path, records: int) -> None:
    store = Store(schema, 0, 1, MEMORY_BYTES)
    table = store.tables[0]
    wal = Wal.open(data, 0, "never")
    list(wal.replay())
    wal.begin()
    fresh = uniform_order(records * 2 // 3)
    for start in range(0, records, 300):
        for n in range(start, min(start + 300, records)):
            if n % 3 < 2 and n * 2 // 3 < len(fresh):
                table.upsert(*_small_row(fresh[n * 2 // 3]))
            else:
                table.upsert(*_small_row(fresh[n // 3]))
        wal.append(encode_batch(Batch(Raw(b"\x90"), store.changes())))
        store.apply()
    wal.close()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _conditions(directory: str) -> str:
    here = machine.describe(Path(directory))
    return f"{here.cpu}, {here.cores} cores, {here.kernel}, {here.python}"
