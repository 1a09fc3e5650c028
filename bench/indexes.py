"""`python -m bench indexes`: secondary indexes in this process: what they take, what they cost, what they save.

Each table is loaded into a process's engine as a partition applies it. Sizes are resident sizes, measured before and
after; times are CPU times. What goes to disk is counted in files that a checkpoint wrote.
"""

from __future__ import annotations

import gc
import random
import shutil
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from time import process_time
from typing import Any

import click
from msgspec import Raw

from bench.engine import BATCH, MEMORY_BYTES, _resident_bytes
from partitions.checkpoint import load, read_checkpoint
from partitions.checkpointer import Checkpointer
from partitions.recovery import recover
from partitions.secondary_index import SecondaryIndex
from partitions.store import Store
from partitions.wal import Batch, Wal, encode_batch
from voltpy.outcome_window import OutcomeWindow
from voltpy.row import RowFormat
from voltpy.schema import Index, IndexKind, Schema
from voltpy.sql.ddl import parse_schema

TABLE = """
CREATE TABLE t (id INT PRIMARY KEY, city STRING, plan STRING, open BOOL, name STRING, score INT, note STRING);
PARTITION TABLE t ON COLUMN id;
"""
TWO = """
CREATE INDEX cities ON t USING INVERTED (city);
CREATE INDEX names ON t USING HASH (name);
"""
THREE = TWO + "CREATE INDEX scores ON t USING BTREE (score);"
PREFIX = "customer-of-the-company-"
UNIQUE = "CREATE UNIQUE INDEX ids ON t USING HASH (id, name);"
SETS = "CREATE INDEX cities ON t (city); CREATE INDEX plans ON t (plan); CREATE INDEX open ON t (open);"
IN_ORDER = [
    ("STRING of 12", "CREATE INDEX sorted ON t USING BTREE (name);", ""),
    ("STRING of 36, 24 the same", "CREATE INDEX sorted ON t USING BTREE (name);", PREFIX),
    ("STRING, INT", "CREATE INDEX sorted ON t USING BTREE (city, score);", ""),
]
SIZES: list[tuple[str, IndexKind, tuple[str, ...], int, str]] = [
    ("5 distinct INT", "INVERTED", ("score",), 5, ""),
    ("5 distinct STRING of 12", "INVERTED", ("name",), 5, ""),
    ("1,000 distinct STRING of 12", "INVERTED", ("name",), 1000, ""),
    ("all distinct INT", "HASH", ("score",), 0, ""),
    ("all distinct INT", "BTREE", ("score",), 0, ""),
    ("all distinct STRING of 12", "HASH", ("name",), 0, ""),
    ("all distinct STRING of 12", "BTREE", ("name",), 0, ""),
    ("all distinct STRING of 36, 24 the same", "BTREE", ("name",), 0, PREFIX),
    ("all distinct STRING, INT", "BTREE", ("city", "score"), 0, ""),
    ("all distinct STRING of 36, INT", "BTREE", ("name", "score"), 0, PREFIX),
]
CITIES = ["Oslo", "Bergen", "Paris", "Rome", "Lima"]


def _rows(count: int) -> list[tuple[Any, ...]]:
    rng = random.Random(1)
    scores = rng.sample(range(1 << 40), count)
    return [
        (i, CITIES[score % 5], f"plan {score % 7}", score % 3 == 0, f"{score % 10**12:012d}", score, "x" * 20)
        for i, score in enumerate(scores)
    ]


@click.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--directory", default=tempfile.gettempdir(), type=click.Path(path_type=Path), show_default=True)
def indexes(rows: int, directory: Path) -> None:
    """Secondary indexes: bytes a row, cost of a write, look-ups, start."""
    click.echo(f"| {rows:,} rows | MB | CPU µs to add one |\n| --- | ---: | ---: |")
    _size(1000, "INVERTED", ("score",), 2, "")  # what comes with the first one is not counted
    for name, kind, columns, distinct, prefix in SIZES:
        size_bytes, add_us = _size(rows, kind, columns, distinct, prefix)
        click.echo(f"| {kind}, {name} | {size_bytes / 1e6:.2f} | {add_us:.2f} |")
    data = _rows(rows)
    click.echo("\n| what | CPU µs |\n| --- | ---: |")
    for name, text in (("none", ""), ("3", THREE), ("3 and a unique one", THREE + UNIQUE)):
        store = Store(parse_schema(TABLE + text), 0, 1, MEMORY_BYTES)
        click.echo(f"| insert, indexes: {name} | {_loaded(store, data):.2f} |")
        if name == "3":
            _look_up(store, data)
        del store
        gc.collect()
    for name, text, prefix in IN_ORDER:
        store = Store(parse_schema(TABLE + TWO + text), 0, 1, MEMORY_BYTES)
        named = [(*row[:4], prefix + row[4], *row[5:]) for row in data] if prefix else data
        click.echo(f"| insert, indexes: 3, one a BTREE of {name} | {_loaded(store, named):.2f} |")
        _in_order(store, name, named)
        del store, named
        gc.collect()
    store = Store(parse_schema(TABLE + SETS), 0, 1, MEMORY_BYTES)
    _loaded(store, data)
    _three_columns(store, data)
    del store
    gc.collect()
    for text in ("", THREE):
        _start(text, data, directory)


def _size(rows: int, kind: IndexKind, columns: tuple[str, ...], distinct: int, prefix: str) -> tuple[int, float]:
    """(resident bytes of one index, with row ids as a table of such rows has them; CPU microseconds to add a row)"""
    table = parse_schema(TABLE).tables[0]
    make = RowFormat(table).struct
    row_ids = [page << 7 | slot for page in range(rows // 120 + 1) for slot in range(120)]
    rng = random.Random(1)
    scores = [rng.randrange(distinct) for _ in range(rows)] if distinct else rng.sample(range(rows * 10), rows)
    gc.collect()
    before, took_s = _resident_bytes(), 0.0
    index = SecondaryIndex(table, Index("i", "t", kind, columns))
    for start in range(0, rows, BATCH):
        some = scores[start : start + BATCH]
        made = [make(0, CITIES[score % 5], "", True, f"{prefix}{score:012d}", score, "") for score in some]
        began = process_time()
        index.add([index.of_row(row) for row in made], row_ids[start : start + len(made)])
        took_s += process_time() - began
    return max(_resident_bytes() - before, index.measured_bytes()), took_s / rows * 1e6


def _loaded(store: Store, data: list[tuple[Any, ...]]) -> float:
    """CPU microseconds an insert, with what a batch's end costs, short of the WAL."""
    insert = store.tables[0].insert
    gc.collect()
    gc.freeze()
    began = process_time()
    for start in range(0, len(data), BATCH):
        for row in data[start : start + BATCH]:
            insert(*row)
        store.changes()
        store.apply()
    return (process_time() - began) / len(data) * 1e6


def _look_up(store: Store, data: list[tuple[Any, ...]]) -> None:
    table, some = store.tables[0], random.Random(2).sample(data, min(5000, len(data)))
    lookups = table.lookups
    assert lookups is not None
    for name, look in [
        ("one row by HASH", lambda row: lookups.find("names", (row[4],))),
        ("one row by where()", lambda row: table.where(name=row[4])),
        ("count by INVERTED", lambda row: lookups.count("cities", (row[1],))),
        ("100 rows in order by BTREE", lambda row: list(lookups.range("scores", row[5], limit=100))),
        (
            "100 rows in reverse by BTREE",
            lambda row: list(lookups.range("scores", high=row[5], limit=100, reverse=True)),
        ),
    ]:
        click.echo(f"| {name} | {_timed(look, some):.2f} |")
    for name, column in (("no", "note"), ("an", "score")):
        began = process_time()
        for start in range(0, len(some), BATCH):
            for row in some[start : start + BATCH]:
                table.update(row[0], **{column: "y" * 20 if column == "note" else row[5] + 1})
            store.changes()
            store.apply()
        click.echo(f"| update of a column with {name} index | {(process_time() - began) / len(some) * 1e6:.2f} |")


def _in_order(store: Store, name: str, data: list[tuple[Any, ...]]) -> None:
    table, some = store.tables[0], random.Random(2).sample(data, min(5000, len(data)))
    lookups = table.lookups
    assert lookups is not None
    places = [table.schema.positions[column] for column in lookups.indexes["sorted"].format.columns]
    values = [tuple(row[place] for place in places) for row in some]

    def after(these: tuple[Any, ...]) -> list[Any]:
        return list(lookups.range("sorted", these[-1], prefix=these[:-1], limit=100))

    def before(these: tuple[Any, ...]) -> list[Any]:
        return list(lookups.range("sorted", high=these[-1], prefix=these[:-1], limit=100, reverse=True))

    for what, look in [
        ("one row", lambda these: lookups.find("sorted", these)),
        ("100 rows in order, the first time", after),
        ("100 rows in order", after),
        ("100 rows in reverse", before),
    ]:
        click.echo(f"| {what}, by BTREE of {name} | {_timed(look, values):.2f} |")


def _three_columns(store: Store, data: list[tuple[Any, ...]]) -> None:
    lookups = store.tables[0].lookups
    assert lookups is not None
    some = data[:200]

    def conditions(row: tuple[Any, ...]) -> list[tuple[str, tuple[Any, ...]]]:
        return [("cities", (row[1],)), ("plans", (row[2],)), ("open", (row[3],))]

    count = _timed(lambda row: lookups.matching_count(conditions(row)), some)
    fetch = _timed(lambda row: list(islice(lookups.matching(conditions(row)).some(100), 100)), some)
    click.echo(f"| three columns, count | {count:.0f} |\n| three columns, 100 rows | {fetch:.0f} |")


def _timed(look: Callable[[Any], Any], rows: list[tuple[Any, ...]]) -> float:
    began = process_time()
    for row in rows:
        look(row)
    return (process_time() - began) / len(rows) * 1e6


def _start(text: str, data: list[tuple[Any, ...]], directory: Path) -> None:
    """What a load and its checkpoint write, and what a start then takes."""
    schema = parse_schema(TABLE + text)
    where = Path(tempfile.mkdtemp(dir=directory, prefix="voltpy-indexes-"))
    try:
        store, wal, checkpointer = _open(schema, where)
        wal.begin()
        checkpointer.begin()
        insert = store.tables[0].insert
        for start in range(0, len(data), BATCH):
            for row in data[start : start + BATCH]:
                insert(*row)
            wal.append(encode_batch(Batch(Raw(b"\x90"), store.changes())))
            store.apply()
        wal.flush()
        row_bytes, written = store.tables[0].image_bytes, wal.appended_bytes
        checkpointer.request()
        while checkpointer.step(0.0):
            pass
        written += sum(path.stat().st_size for path in where.iterdir() if not path.name.startswith("wal-"))
        checkpointer.close()
        wal.close()
        del store, wal, checkpointer
        gc.collect()
        began = process_time()
        _, wal, checkpointer = _open(schema, where)
        took_s = process_time() - began
        checkpointer.close()
        wal.abandon()
    finally:
        shutil.rmtree(where)
    indexes = len(schema.indexes)
    click.echo(f"| bytes written a byte of rows, {indexes} indexes (a ratio) | {written / row_bytes:.2f} |")
    click.echo(f"| start from a checkpoint, {indexes} indexes, a row | {took_s / len(data) * 1e6:.2f} |")


def _open(schema: Schema, where: Path) -> tuple[Store, Wal, Checkpointer]:
    store = Store(schema, 0, 1, MEMORY_BYTES)
    wal = Wal.open(where, 0, "never")
    checkpoint = read_checkpoint(where, 0)
    file = load(where, 0, checkpoint, store)
    window = OutcomeWindow(checkpoint.root.outcomes_reach)
    checkpointer = Checkpointer(where, 0, store, window, wal, file, checkpoint)
    recover(wal, store, checkpoint, window, checkpointer)
    return store, wal, checkpointer
