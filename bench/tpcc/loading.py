"""Puts TPC-C's first rows into a database. Each way raises BenchError where a row is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.tpcc.population import Population
from bench.workload import BenchError, batches

ROWS_A_CALL = 500
PLPGSQL_HAS_INDEXES_FOR = ("customer_by_last", "last_order", "next_delivery")


def into_voltpy(database: Any, population: Population) -> None:
    """`database`: a voltpy.Client, or a voltpy.testing.Engine."""
    for rows in batches(population.items(), ROWS_A_CALL):
        for rejected in database.call_everywhere("voltpy.load_everywhere", "item", rows):
            _expect_none("item", rejected)
    for warehouse in population.scale.warehouses:
        for table, batch, rejected in _loaded(database, population, warehouse):
            _expect_none(f"{table}, {len(batch)} rows", rejected)


def _loaded(database: Any, population: Population, warehouse: int) -> Iterator[tuple[str, list[Any], Any]]:
    for table, rows in population.tables(warehouse):
        calls = [(warehouse, table, batch) for batch in batches(rows, ROWS_A_CALL)]
        for call, rejected in zip(calls, database.call_many("voltpy.load", calls), strict=True):
            yield table, call[2], rejected


def _expect_none(what: str, rejected: Any) -> None:
    if rejected:
        raise BenchError(f"tpcc: {what}: not loaded: {rejected[0]}")


def into_dicts(tx: Any, population: Population) -> None:
    """`tx`: a bench.plain_dicts.Transaction."""
    for row in population.items():
        tx.item.insert(*row)
    for warehouse in population.scale.warehouses:
        for table, rows in population.tables(warehouse):
            insert = getattr(tx, table).insert
            for row in rows:
                insert(*row)


def into_postgres(connection: Any, population: Population) -> None:
    """`connection`: a psycopg connection to a database with the schema of bench.tpcc.plpgsql."""
    cursor = connection.cursor()
    with cursor.copy("COPY item FROM STDIN") as copy:
        for row in population.items():
            copy.write_row(row)
    for warehouse in population.scale.warehouses:
        for table, rows in population.tables(warehouse):
            if table not in PLPGSQL_HAS_INDEXES_FOR:
                with cursor.copy(f"COPY {table} FROM STDIN") as copy:
                    for row in rows:
                        copy.write_row(row)
