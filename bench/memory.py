"""`python -m bench memory`: what rows take in memory beyond their own bytes, for rows of several shapes.

Each shape is loaded into the engine of a process of its own, and a tenth of the rows is deleted again, one as likely as
another, so that the pages are about nine tenths full. Then, with nothing decoded, the system is asked how much of the
pages is resident. Last, all rows are read, each twice so that it is kept decoded, and the most that the process grew
meanwhile is compared with what decoded rows may take.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import multiprocessing
import random
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click

from bench import machine
from bench.engine import BATCH
from partitions.page import PAGE_BYTES, SLOT_BYTES
from partitions.store import Store
from voltpy.resident import resident_bytes
from voltpy.sql.ddl import parse_schema

WANTED_RESIDENT, WANTED_FILL = 1.25, 0.9
DELETED = 0.1
BUDGET_ROWS = 2  # --memory, in the bytes of all rows
DECODED_OF_BUDGET = 8

Row = tuple[Any, ...]


class Shape(NamedTuple):
    name: str
    columns: str
    row: Callable[[int], Row]


def _mixed(key: int) -> Row:
    return (key, *(value for n in range(10) for value in (key + n, key * 0.5, f"text-{key % 10**6:06d}", n % 2 == 0)))


SHAPES = (
    Shape("one string of 480", "s STRING", lambda key: (key, f"{key:08d}" * 60)),
    Shape("the same with one emoji", "s STRING", lambda key: (key, f"{key:08d}" * 59 + "1234\N{GRINNING FACE}")),
    Shape(
        "10 strings of 48",
        ", ".join(f"f{n} STRING" for n in range(10)),
        lambda key: (key, *(f"{key:08d}{n}" + "x" * 39 for n in range(10))),
    ),
    Shape(
        "41 mixed columns",
        ", ".join(f"i{n} INT, f{n} FLOAT, s{n} STRING, b{n} BOOL" for n in range(10)),
        _mixed,
    ),
    Shape(
        "6 small columns",
        "a INT, name STRING, price FLOAT, open BOOL, city STRING",
        lambda key: (key, key * 7, f"name-{key:08d}", key * 0.5, True, f"city-{key % 1000:04d}-xxxxxxxx"),
    ),
)


class Measured(NamedTuple):
    """Bytes, but for `rows`. `decoded_bytes`: the most that the process grew while rows were decoded."""

    rows: int
    encoded_bytes: int
    page_bytes: int
    resident_bytes: int
    decoded_bytes: int
    decoded_may_bytes: int

    @property
    def fill(self) -> float:
        return (self.encoded_bytes + self.rows * SLOT_BYTES) / self.page_bytes

    @property
    def resident(self) -> float:
        return self.resident_bytes / self.encoded_bytes


@click.command("memory")
@click.option("--megabytes", default=256, show_default=True, type=click.IntRange(4), help="Of rows, of each shape.")
def main(megabytes: int) -> None:
    """Resident bytes of pages ÷ bytes of their rows, and what decoded rows take."""
    here = machine.describe(Path(tempfile.gettempdir()))
    click.echo(f"{here.cpu}, {here.cores} cores, {here.kernel}, {here.python}; {megabytes} MB of rows of each shape\n")
    click.echo("| rows | bytes a row | pages full | resident ÷ rows' bytes | | decoded rows, MB | of MB | |")
    click.echo("| --- | ---: | ---: | ---: | --- | ---: | ---: | --- |")
    for place, shape in enumerate(SHAPES):
        found = measured(place, megabytes * 10**6)
        click.echo(
            f"| {shape.name} | {found.encoded_bytes / found.rows:.0f} | {found.fill:.2f} | {found.resident:.2f} | "
            f"{_verdict(found.resident <= WANTED_RESIDENT)} | {found.decoded_bytes / 1e6:.1f} | "
            f"{found.decoded_may_bytes / 1e6:.1f} | {_verdict(found.decoded_bytes <= found.decoded_may_bytes)} |"
        )
    click.echo(
        f"\nWanted: at most {WANTED_RESIDENT} at {WANTED_FILL:.0%} full; decoded rows within what they may take."
    )


def _verdict(is_held: bool) -> str:
    return "held" if is_held else "SHORT"


def measured(place: int, rows_bytes: int) -> Measured:
    """One shape, in a process that has held nothing before: what was freed there would be taken again, unseen."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_measure, place, rows_bytes).result()


def _measure(place: int, rows_bytes: int) -> Measured:
    shape = SHAPES[place]
    schema = parse_schema(f"CREATE TABLE t (id INT PRIMARY KEY, {shape.columns}); PARTITION TABLE t ON COLUMN id;")
    budget_bytes = BUDGET_ROWS * rows_bytes
    store = Store(schema, 0, 1, budget_bytes)
    table = store.tables[0]
    rng = random.Random(1)
    key = 0
    while table.image_bytes < rows_bytes:
        first, key = key + 1, key + BATCH
        for each in range(first, key + 1):
            table.insert(*shape.row(each))
        _end_batch(store)
    gone = set(rng.sample(range(1, key + 1), int(key * DELETED)))
    for number, each in enumerate(gone):
        table.delete(each)
        if number % BATCH == 0:
            _end_batch(store)
    _end_batch(store)
    gc.collect()
    gc.freeze()
    encoded_bytes, page_bytes, of_pages = table.image_bytes, table.pages * PAGE_BYTES, _resident_of(store.arena.memory)
    keys = [each for each in range(1, key + 1) if each not in gone]
    rng.shuffle(keys)
    return Measured(
        len(keys), encoded_bytes, page_bytes, of_pages, _decode(store, keys), budget_bytes // DECODED_OF_BUDGET
    )


def _decode(store: Store, keys: list[int]) -> int:
    """Reads all rows, so that they are decoded and kept. The most that the process grew meanwhile, in bytes."""
    get, before, most = store.tables[0].get, resident_bytes(), 0
    for start in range(0, len(keys), BATCH):
        several = keys[start : start + BATCH]
        for key in (*several, *several):  # a row is kept when it is asked for the second time
            get(key)
        _end_batch(store)
        most = max(most, resident_bytes() - before)
    return most


def _end_batch(store: Store) -> None:
    store.changes()
    store.apply()


def _resident_of(memory: mmap.mmap) -> int:
    """Resident bytes of a mapping, as the system has it."""
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    resident, is_within = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if found:
            is_within = first <= int(found[1], 16) and int(found[2], 16) <= first + len(memory)
        elif is_within and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
    return resident
