"""The shipped procedures, called as a client would call them: once on plain dicts, once on the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import procedures
from bench.plain_dicts import Transaction
from voltpy.registry import load_path
from voltpy.sql.ddl import parse_schema
from voltpy.testing import Engine

FOLDER = Path(procedures.__file__).parent


class OnPlainDicts:
    """`tx` shows the tables as they are."""

    def __init__(self, workload: str) -> None:
        self.schema = parse_schema((FOLDER / f"{workload}.sql").read_text())
        self.registry = load_path(FOLDER / f"{workload}.py", self.schema)
        self.tx: Any = Transaction(self.schema)

    def call(self, name: str, *arguments: Any) -> Any:
        procedure = self.registry.procedures[name]
        result = procedure.body(self.tx, *procedure.check_python(arguments))
        return msgspec.msgpack.decode(msgspec.msgpack.encode(result))

    def load(self, table: str, rows: list[list[Any]]) -> None:
        for row in rows:
            getattr(self.tx, table).insert(*row)


class OnTheEngine:
    def __init__(self, workload: str) -> None:
        self.schema = parse_schema((FOLDER / f"{workload}.sql").read_text())
        self.engine = Engine(self.schema, FOLDER / f"{workload}.py")
        self.directed = {info.name for info in self.engine.procedures() if info.everywhere}
        self.tx: Any = SimpleNamespace(**self.engine._store.by_name)

    def call(self, name: str, *arguments: Any) -> Any:
        if name in self.directed:
            return self.engine.call_everywhere(name, *arguments)[0]
        return self.engine.call(name, *arguments)

    def load(self, table: str, rows: list[list[Any]]) -> None:
        if self.schema.table(table).partition_column is None:
            assert self.engine.call_everywhere("voltpy.load_everywhere", table, rows) == [[]]
        else:
            assert self.engine.call("voltpy.load", 0, table, rows) == []


Database = OnPlainDicts | OnTheEngine


@pytest.fixture(params=[OnPlainDicts, OnTheEngine])
def open_database(request: pytest.FixtureRequest) -> Callable[[str], Database]:
    opener: Callable[[str], Database] = request.param
    return opener
