"""What statements run on: a voltpy cluster, a PostgreSQL server, and SQLite in this process, with the same tables.

Each peer `load`s a schema, given as voltpy's own, and rows by table; `asker` prepares a statement, with `?` for
parameters, and returns what runs it. All tables have the same primary keys and indexes; PostgreSQL and SQLite have
B-trees, and have looked at their data (ANALYZE) before they are asked.
"""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from time import process_time
from typing import Any, Protocol, Self

import voltpy
from bench import measure
from bench.peers.server import Server, free_port
from bench.peers.voltpy import START
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.schema import Schema, Table, TypeName, describe

Row = Sequence[Any]
Ask = Callable[[Sequence[Any]], list[tuple[Any, ...]]]

LOAD_BATCH = 500
TIMEOUT_S = 120.0
LONG_BUSY_POLL_US = 1000.0


class Asked(Protocol):
    """`cpu_s`: processor time by role, the client's own left out; SQLite has none of its own."""

    def asker(self, sql: str) -> Ask: ...
    def cpu_s(self) -> dict[str, float]: ...


class Peer(Asked, Protocol):
    """Used as a context."""

    @property
    def settings(self) -> str: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def load(self, schema: Schema, rows: Mapping[str, Iterable[Row]]) -> None: ...


class Voltpy:
    """`procedures`: the text of a procedure file; empty: there are none."""

    def __init__(self, directory: Path, *, partitions: int, procedures: str) -> None:
        self._directory = directory
        self._partitions = partitions
        self._procedures = procedures
        self._port = free_port()

    @property
    def settings(self) -> str:
        return f"--partitions {self._partitions}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "client"):
            self.client.close()
            self.awake.close()
        if hasattr(self, "_server"):
            self._server.stop()

    def load(self, schema: Schema, rows: Mapping[str, Iterable[Row]]) -> None:
        (self._directory / "schema.sql").write_text(describe(schema))
        command: list[str | Path] = [sys.executable, "-c", START, "start", "--port", str(self._port)]
        command += ["--schema", self._directory / "schema.sql", "--data", self._directory / "data"]
        command += ["--partitions", str(self._partitions), "--procedure-timeout", str(TIMEOUT_S)]
        if self._procedures:
            (self._directory / "procedures.py").write_text(self._procedures)
            command += ["--procedures", self._directory / "procedures.py"]
        self._server = Server(command, self._directory)
        self._server.wait_until(lambda: re.search(r"voltpy://\S+", self._server.output()) is not None)
        url = f"voltpy://127.0.0.1:{self._port}"
        self.client = voltpy.connect(url, timeout=TIMEOUT_S)
        self.awake = voltpy.connect(url, timeout=TIMEOUT_S, busy_poll_us=LONG_BUSY_POLL_US)
        for name, each in rows.items():
            table = schema.table(name)
            if table.partition_column is None:
                for some in _batches(each):
                    self.client.call_everywhere("voltpy.load_everywhere", name, some)
            else:
                self.client.call_many("voltpy.load", self._by_partition(table, each))

    def _by_partition(self, table: Table, rows: Iterable[Row]) -> Iterator[tuple[Any, str, list[Row]]]:
        owners, position = slot_owners(self._partitions), table.partition_position
        assert position is not None
        waiting: list[list[Row]] = [[] for _ in range(self._partitions)]
        for row in rows:
            own = waiting[owners[hash_slot(row[position])]]
            own.append(row)
            if len(own) == LOAD_BATCH:
                yield own[0][position], table.name, list(own)
                own.clear()
        for own in waiting:
            if own:
                yield own[0][position], table.name, own

    def asker(self, sql: str) -> Ask:
        return lambda parameters: self.client.execute(sql, parameters).rows

    def cpu_s(self) -> dict[str, float]:
        seconds = {"partitions": 0.0, "coordinator": 0.0}
        _, *children = measure.process_tree(self._server.pid)
        for pid in children:
            role = "coordinator" if "coordinator" in measure.command_line(pid) else "partitions"
            seconds[role] += measure.cpu_s([pid])
        return seconds


class AwakeVoltpy:
    """The same cluster, asked by a client that waits awake for longer."""

    def __init__(self, cluster: Voltpy) -> None:
        self._cluster = cluster

    def asker(self, sql: str) -> Ask:
        return lambda parameters: self._cluster.awake.execute(sql, parameters).rows

    def cpu_s(self) -> dict[str, float]:
        return self._cluster.cpu_s()


class Postgres:
    def __init__(self, directory: Path) -> None:
        from bench.peers.postgres import Postgres as PostgresServer  # psycopg may not be installed

        self._server = PostgresServer(directory, "always", work_mem="64MB")

    @property
    def settings(self) -> str:
        return self._server.settings

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    def load(self, schema: Schema, rows: Mapping[str, Iterable[Row]]) -> None:
        connection = self._server.connection
        types: dict[TypeName, str] = {
            "INT": "bigint", "FLOAT": "double precision", "STRING": "text", "BOOL": "boolean",
            "TIMESTAMP": "timestamptz",
        }  # fmt: skip
        for table in schema.tables:
            connection.execute(_create(table, types))
            with connection.cursor() as cursor, cursor.copy(f"COPY {table.name} FROM STDIN") as copy:
                for row in rows.get(table.name, ()):
                    copy.write_row(row)
        for statement in _indexes(schema):
            connection.execute(statement)
        connection.execute("VACUUM ANALYZE")

    def asker(self, sql: str) -> Ask:
        cursor, text = self._server.connection.cursor(), sql.replace("?", "%s")
        return lambda parameters: cursor.execute(text, parameters, prepare=True).fetchall()

    def cpu_s(self) -> dict[str, float]:
        return self._server.cpu_s()


class Sqlite:
    """In this process, on a file that its page cache holds whole."""

    def __init__(self, directory: Path) -> None:
        self._connection = sqlite3.connect(directory / "data.db", isolation_level=None)

    @property
    def settings(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}, in the client's process, cache_size 1 GB"

    def __enter__(self) -> Self:
        self._connection.execute("PRAGMA cache_size = -1000000")
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def load(self, schema: Schema, rows: Mapping[str, Iterable[Row]]) -> None:
        types: dict[TypeName, str] = {
            "INT": "INTEGER", "FLOAT": "REAL", "STRING": "TEXT", "BOOL": "INTEGER", "TIMESTAMP": "TEXT",
        }  # fmt: skip
        self._connection.execute("BEGIN")
        for table in schema.tables:
            self._connection.execute(_create(table, types))
            places = ", ".join("?" * len(table.columns))
            given = (tuple(map(_plain, row)) for row in rows.get(table.name, ()))
            self._connection.executemany(f"INSERT INTO {table.name} VALUES ({places})", given)
        for statement in _indexes(schema):
            self._connection.execute(statement)
        self._connection.execute("COMMIT")
        self._connection.execute("ANALYZE")

    def asker(self, sql: str) -> Ask:
        return lambda parameters: self._connection.execute(sql, parameters).fetchall()

    def cpu_s(self) -> dict[str, float]:
        return {"in process": process_time()}


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    following = iter(rows)
    while batch := list(islice(following, LOAD_BATCH)):
        yield batch


def _create(table: Table, types: Mapping[TypeName, str]) -> str:
    columns = [
        f"{column.name} {types[column.type]}{'' if column.nullable else ' NOT NULL'}" for column in table.columns
    ]
    return f"CREATE TABLE {table.name} ({', '.join(columns)}, PRIMARY KEY ({', '.join(table.primary_key)}))"


def _indexes(schema: Schema) -> list[str]:
    return [f"CREATE INDEX {each.name} ON {each.table} ({', '.join(each.columns)})" for each in schema.indexes]
