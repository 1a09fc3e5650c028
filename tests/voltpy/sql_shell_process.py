"""`voltpy sql` on an engine in its own process: `python -m tests.voltpy.sql_shell_process ARGUMENT…`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any

import voltpy.cli.sql
from voltpy.cli import main
from voltpy.result import Result
from voltpy.testing import Engine

SCHEMA = """
CREATE TABLE accounts (id INT PRIMARY KEY, owner STRING NOT NULL, city STRING, balance INT NOT NULL DEFAULT 0);
PARTITION TABLE accounts ON COLUMN id;
CREATE TABLE "Visits" (day INT, account INT, pages FLOAT, PRIMARY KEY (account, day));
PARTITION TABLE "Visits" ON COLUMN account;
CREATE TABLE notes (text STRING);
CREATE INDEX accounts_city ON accounts USING INVERTED (city);
"""
ROWS = "INSERT INTO accounts VALUES (1, 'Kari', 'Oslo', 100), (2, 'Kåre', NULL, -5)"


WAIT = "SELECT 'for ever'"


class Waiting(Engine):
    """One statement is never answered."""

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Result:
        if sql == WAIT:
            print("waiting", flush=True)
            threading.Event().wait()
        return super().execute(sql, parameters)


def engine(url: str = "", **_options: Any) -> Engine:
    made = Waiting(SCHEMA)
    made.execute(ROWS)
    return made


if __name__ == "__main__":
    voltpy.cli.sql.connect = engine  # type: ignore[assignment]
    main(["sql", *sys.argv[1:]])
