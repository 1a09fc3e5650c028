"""The engine for users' own tests: the same calls, the same errors, and the original exception at hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.readme_commands import code_blocks
from voltpy import procedure
from voltpy.errors import (
    Aborted,
    BadArguments,
    DuplicateKey,
    ProcedureError,
    ReadOnly,
    SchemaError,
    SqlError,
    Unavailable,
    UnknownProcedure,
)
from voltpy.testing import Engine

SCHEMA = """
CREATE TABLE accounts (id INT PRIMARY KEY, owner STRING NOT NULL, balance INT NOT NULL DEFAULT 0, opened TIMESTAMP);
PARTITION TABLE accounts ON COLUMN id;
CREATE TABLE branches (code STRING PRIMARY KEY, name STRING);
"""


@procedure(partition_by="account")
def open_account(tx: Any, account: int, owner: str) -> Any:
    tx.accounts.insert(account, owner, opened=tx.now())


@procedure(partition_by="account")
def deposit(tx: Any, account: int, amount: int, times: int = 1) -> Any:
    row = tx.accounts.get(account)
    if row is None:
        tx.abort("no such account")
    return tx.accounts.update(account, balance=row.balance + amount * times).balance


@procedure(partition_by="account")
def show(tx: Any, account: int) -> Any:
    return tx.accounts.get(account)


@procedure(partition_by="account")
def fail(tx: Any, account: int, how: str) -> Any:
    tx.accounts.update(account, balance=-1)
    raise {
        "exit": SystemExit(3),
        "value": ValueError("bad"),
        "ctrl-c": KeyboardInterrupt(),
        "assert": AssertionError("not so"),
    }[how]


@procedure(partition_by="account")
def fill(tx: Any, account: int, rows: int) -> Any:
    for i in range(rows):
        tx.accounts.insert(account + i, "x" * 4000)


@procedure(everywhere=True)
def add_branch(tx: Any, code: str) -> Any:
    return tx.branches.insert(code, tx.now().isoformat()).name


PROCEDURES: list[Callable[..., Any]] = [open_account, deposit, show, fail, fill, add_branch]


@pytest.fixture
def db(voltpy_engine: Callable[..., Engine]) -> Engine:
    return voltpy_engine(SCHEMA, PROCEDURES, clock=lambda: datetime(2024, 5, 1, tzinfo=UTC))


def test_a_deposit_raises_the_balance(db: Engine) -> None:
    db.call("open_account", 42, "Kari")
    assert db.call("deposit", 42, 100) == 100
    assert db.call("deposit", 42, 1, 5) == 105
    assert db.call("show", 42) == [42, "Kari", 105, datetime(2024, 5, 1, tzinfo=UTC)]
    assert db.call("show", 43, timeout=1.0) is None
    db.check()


def test_errors_are_those_of_a_client(db: Engine) -> None:
    db.call("open_account", 1, "Ola")
    with pytest.raises(Aborted, match="no such account"):
        db.call("deposit", 2, 100)
    with pytest.raises(DuplicateKey):
        db.call("open_account", 1, "Ola")
    with pytest.raises(UnknownProcedure, match=r"no procedure deposits; did you mean deposit\?"):
        db.call("deposits", 1)
    with pytest.raises(BadArguments, match="add_branch runs in every partition: use call_everywhere"):
        db.call("add_branch", "OSL")
    with pytest.raises(BadArguments, match="deposit, argument 1: a partition key is an int or a str, not NoneType"):
        db.call("deposit", None, 5)
    for arguments in (
        (1, "x"),
        (1,),
        ("1", 5),
        (None, 5),
        (1.5, 5),
        ([1], 5),
        (object(), 5),
        (1, 1 << 70),
        ("\ud800", 5),
        (),
    ):
        with pytest.raises(BadArguments, match="deposit"):
            db.call("deposit", *arguments)
    with pytest.raises(BadArguments, match="nope"):
        db.call("nope", object())


def test_a_procedure_error_has_the_original_as_its_cause_and_leaves_nothing(db: Engine) -> None:
    db.call("open_account", 1, "Ola")
    with pytest.raises(ProcedureError, match="fail: ValueError: bad") as raised:
        db.call("fail", 1, "value")
    assert isinstance(raised.value.__cause__, ValueError)
    trace = raised.value.__cause__.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    assert trace.tb_frame.f_code is fail.__code__  # what a debugger opens
    assert raised.value.type_name == "ValueError"
    assert db.call("show", 1)[2] == 0
    db.check()


def test_ctrl_c_ends_the_test_and_leaves_nothing(db: Engine) -> None:
    db.call("open_account", 1, "Ola")
    with pytest.raises(KeyboardInterrupt):
        db.call("fail", 1, "ctrl-c")
    assert db.call("show", 1)[2] == 0
    with pytest.raises(ProcedureError):
        db.call("fail", 1, "assert")
    db.check()


def test_an_exit_in_a_procedure_ends_the_call_alone(db: Engine) -> None:
    db.call("open_account", 1, "Ola")
    with pytest.raises(ProcedureError, match="fail: SystemExit: 3") as raised:
        db.call("fail", 1, "exit")
    assert isinstance(raised.value.__cause__, SystemExit)
    assert db.call("show", 1)[2] == 0


def test_a_module_of_procedures_is_taken_as_it_is(voltpy_engine: Callable[..., Engine]) -> None:
    module = ModuleType("bank")
    module.__dict__.update(
        open_account=open_account, also=open_account, deposit=deposit, number=5, ValueError=ValueError
    )
    db = voltpy_engine(SCHEMA, module)
    assert [info.name for info in db.procedures()] == ["deposit", "open_account"]
    db.call("open_account", 1, "Ola")
    assert db.call("deposit", 1, 100) == 100
    with pytest.raises(SchemaError, match="module empty declares no procedure"):
        voltpy_engine(SCHEMA, ModuleType("empty"))
    with pytest.raises(TypeError, match="the path of a file, a module, or a list of functions, not 5"):
        voltpy_engine(SCHEMA, 5)


def test_call_many_keeps_the_order_and_may_return_errors(db: Engine) -> None:
    assert db.call_many("open_account", [(1, "a"), (2, "b")]) == [None, None]
    results = db.call_many("deposit", [(1, 5), (9, 5), (2, 6)], return_exceptions=True)
    assert [str(result) for result in results] == ["5", "no such account", "6"]
    with pytest.raises(Aborted):
        db.call_many("deposit", [(1, 5), (9, 5), (2, 6)])
    assert db.call("show", 1)[2] == 10
    assert db.call("show", 2)[2] == 6


def test_submit_gives_a_future_that_is_done(db: Engine) -> None:
    assert db.submit("open_account", 1, "a").result(timeout=0) is None
    future = db.submit("open_account", 1, "a")
    assert isinstance(future.exception(timeout=0), DuplicateKey)


def test_call_everywhere_gives_one_result_for_the_one_partition(db: Engine) -> None:
    assert db.call_everywhere("add_branch", "OSL") == ["2024-05-01T00:00:00+00:00"]
    with pytest.raises(DuplicateKey):
        db.call_everywhere("add_branch", "OSL")
    with pytest.raises(BadArguments, match="deposit does not run in every partition: use call"):
        db.call_everywhere("deposit", 1, 1)
    with pytest.raises(UnknownProcedure):
        db.call_everywhere("nope", return_exceptions=True)
    assert [type(error) for error in db.call_everywhere("add_branch", "OSL", return_exceptions=True)] == [DuplicateKey]
    with pytest.raises(BadArguments):
        db.call_everywhere("add_branch", object())


def test_without_room_a_call_leaves_nothing(voltpy_engine: Callable[..., Engine]) -> None:
    db = voltpy_engine(SCHEMA, PROCEDURES, memory_bytes=20 * 8192)
    db.call("open_account", 1, "Ola")
    with pytest.raises(ReadOnly):
        db.call("fill", 100, 100)
    db.check()
    assert db.call("show", 100) is None
    db.call("fill", 100, 5)
    assert db.call("show", 104)[0] == 104


def test_files_are_read_by_their_paths(tmp_path: Path, voltpy_engine: Callable[..., Engine]) -> None:
    (tmp_path / "s.sql").write_text(SCHEMA)
    (tmp_path / "p.py").write_text(
        "from voltpy import procedure\n\n"
        "@procedure(partition_by='account')\ndef twice(tx, account: int):\n    return 2 * account\n"
    )
    for schema, procedures in (
        (str(tmp_path / "s.sql"), str(tmp_path / "p.py")),
        (tmp_path / "s.sql", tmp_path / "p.py"),
    ):
        db = voltpy_engine(schema, procedures)
        assert db.call("twice", 21) == 42
        assert [info.name for info in db.procedures()] == ["twice"]
    with pytest.raises(SchemaError, match="can't be read"):
        voltpy_engine(SCHEMA, tmp_path / "absent.py")
    (tmp_path / "s.sql").write_text("CREATE TABLE t (id SERIAL PRIMARY KEY);")
    with pytest.raises(SchemaError) as raised:
        voltpy_engine(tmp_path / "s.sql")
    assert str(raised.value).startswith(f'{tmp_path}/s.sql: line 1, column 20: found "SERIAL"')


def test_a_closed_engine_is_unavailable() -> None:
    with Engine(SCHEMA, PROCEDURES) as db:
        db.call("open_account", 1, "a")
    calls: list[Callable[[], Any]] = [lambda: db.call("show", 1), lambda: db.call_everywhere("add_branch", "OSL")]
    for call in calls:
        with pytest.raises(Unavailable, match="closed"):
            call()


def test_engines_are_separate(voltpy_engine: Callable[..., Engine]) -> None:
    one, other = voltpy_engine(SCHEMA, PROCEDURES), voltpy_engine(SCHEMA, PROCEDURES)
    one.call("open_account", 1, "a")
    assert other.call("show", 1) is None


# ── changing the schema ─────────────────────────────────────────────────────────────────────────────────────────────


def test_statements_change_the_schema_of_an_engine() -> None:
    with Engine("CREATE TABLE h (x INT NOT NULL); CREATE TABLE t (id INT PRIMARY KEY, a STRING)") as db:
        db.execute("INSERT INTO h VALUES (1), (2)")
        db.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
        assert db.execute("CREATE INDEX t_a ON t (a)").kind == "create index"
        assert any("t_a" in line for (line,) in db.execute("EXPLAIN SELECT * FROM t WHERE a = 'b'"))
        db.execute("INSERT INTO t VALUES (3, 'a')")
        with pytest.raises(DuplicateKey, match="index u"):
            db.execute("CREATE UNIQUE INDEX u ON t (a)")
        db.execute("CREATE TABLE h2 (k INT PRIMARY KEY); DROP TABLE t; CREATE TABLE t (other FLOAT PRIMARY KEY)")
        db.execute("INSERT INTO t VALUES (0.5)")
        assert db.execute("SELECT * FROM t").rows == [(0.5,)]
        assert db.execute("SELECT table_id, table_name, row_count FROM db_tables ORDER BY table_id").rows == [
            (0, "h", 2), (2, "h2", 0), (3, "t", 1)
        ]  # fmt: skip
        assert db.execute("SELECT * FROM db_indexes").rows == []
        db.check()


def test_columns_are_added_behind_a_hidden_key() -> None:
    with Engine("CREATE TABLE h (x INT NOT NULL)") as db:
        db.execute("INSERT INTO h VALUES (1), (2)")
        db.execute("ALTER TABLE h ADD y STRING DEFAULT 'old', ADD z INT")
        assert db.execute("SELECT * FROM h ORDER BY x").rows == [(1, "old", None), (2, "old", None)]
        db.execute("INSERT INTO h VALUES (3, 'new', 5), (4, DEFAULT, 6)")
        db.execute("INSERT INTO h (z, x) VALUES (7, 5)")
        assert db.execute("INSERT INTO h VALUES (6) RETURNING *").rows == [(6, "old", None)]
        assert db.execute("UPDATE h SET z = x * 10 WHERE y = 'old' RETURNING x, z").rowcount == 5
        db.execute("CREATE TABLE again (x INT NOT NULL, y STRING, z INT)")
        db.execute("INSERT INTO again SELECT * FROM h")
        assert db.execute("SELECT x, y, z FROM again ORDER BY x").rows == [
            (1, "old", 10), (2, "old", 20), (3, "new", 5), (4, "old", 40), (5, "old", 50), (6, "old", 60)
        ]  # fmt: skip
        assert db.execute("SELECT h.*, a.z FROM h JOIN again a USING (x) WHERE h.x = 3").rows == [(3, "new", 5, 5)]
        columns = "SELECT column_idx, column_name FROM db_columns WHERE table_name = 'h' ORDER BY column_idx"
        assert db.execute(columns).rows == [(0, "x"), (1, "y"), (2, "z")]
        assert db.execute("SELECT column_count, pk_column_idx FROM db_tables WHERE table_name = 'h'").rows == [
            (3, None)
        ]
        db.check()


def test_what_a_procedure_finds_where_a_table_was_dropped() -> None:
    @procedure
    def counted(tx: Any, name: str) -> int:
        return int(getattr(tx, name).count())

    @procedure
    def made(tx: Any) -> None:
        tx.execute("CREATE TABLE u (id INT)")

    with Engine("CREATE TABLE t (id INT PRIMARY KEY)", [counted, made]) as db:
        assert db.call("counted", "t") == 0
        db.execute("DROP TABLE t")
        with pytest.raises(SchemaError, match="there is no table t: it was dropped"):
            db.call("counted", "t")
        with pytest.raises(SqlError, match="CREATE"):
            db.call("made")
        db.execute("CREATE TABLE t (id STRING PRIMARY KEY)")
        db.execute("INSERT INTO t VALUES ('a')")
        assert db.call("counted", "t") == 1


def test_views_follow_their_table_through_changes_of_the_schema() -> None:
    with Engine(
        "CREATE TABLE sales (id INT PRIMARY KEY, shop STRING NOT NULL, cents INT);"
        "CREATE VIEW by_shop AS SELECT shop, COUNT(*) AS n, SUM(cents) AS cents, MAX(cents) AS most FROM sales"
        " GROUP BY shop"
    ) as db:
        db.execute("INSERT INTO sales VALUES (1, 'a', 10), (2, 'a', 20), (3, 'b', 5)")
        db.execute("ALTER TABLE sales ADD note STRING DEFAULT 'x'")
        db.execute("CREATE INDEX best ON sales USING BTREE (shop, cents); CREATE TABLE other (id INT)")
        db.execute("INSERT INTO sales VALUES (4, 'b', 7, 'y')")
        db.execute("DELETE FROM sales WHERE id = 2")
        db.execute("UPDATE sales SET note = 'z', cents = cents + 1 WHERE id = 3")
        db.execute("DROP TABLE other; DROP INDEX best")
        db.execute("UPDATE sales SET cents = 2 WHERE id = 4")
        assert db.execute("SELECT * FROM by_shop ORDER BY shop").rows == [("a", 1, 10, 10), ("b", 2, 8, 6)]
        db.check()


def test_the_first_procedures_of_the_readme_do_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [schema], [procedures, client, test] = code_blocks("sql"), code_blocks("python")
    (tmp_path / "bank.sql").write_text(schema)
    (tmp_path / "bank.py").write_text(procedures)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(test, names)
    names["test_a_deposit_raises_the_balance"]()
    with Engine("bank.sql", "bank.py") as db:
        said: list[Any] = []
        monkeypatch.setattr("voltpy.connect", lambda url, timeout: db)
        exec(client, {"print": said.append})
        assert said == [100, [101, 103], 108, [("Kari", 108)]]
        assert all(f"  # {value}" in client for value in said)
    with Engine("bank.sql", "bank.py") as db:
        db.call("open_account", 42, "Kari")
        db.call("open_account", 43, "Ola")
        db.call("deposit", 42, 108)
        db.call("transfer", 42, 43, 8)
        with pytest.raises(Aborted, match="not enough"):
            db.call("transfer", 42, 43, 101)
        assert db.execute("SELECT id, balance FROM accounts ORDER BY id").rows == [(42, 100), (43, 8)]
