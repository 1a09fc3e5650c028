"""`voltpy sql`: scripts, pipes, and a person at a terminal."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click import UsageError
from click.testing import CliRunner
from click.testing import Result as Run

from tests.readable import readable
from tests.voltpy.sql_shell_process import WAIT, engine
from voltpy.cli import commands
from voltpy.cli.sql_prompt import completions, history, is_complete
from voltpy.cli.sql_results import MAX_PADDED, json_line, table
from voltpy.cli.sql_results import csv as as_csv
from voltpy.result import Result

LIMIT_S = 30.0


@pytest.fixture
def sql(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `voltpy sql` in this process: (exit status, what it printed, what it said of errors)."""
    monkeypatch.setattr("voltpy.cli.sql.connect", engine)

    def run(*arguments: str, typed: str | bytes = "") -> tuple[int, str, str]:
        done: Run = CliRunner().invoke(commands, ["sql", *arguments], input=typed, standalone_mode=False)
        if done.exception is not None:
            raise done.exception
        return done.return_value, done.stdout, done.stderr

    return run


# ── scripts ────────────────────────────────────────────────────────────────────────────────────────────────────────

ACCOUNTS = """\
id | owner | city | balance
---+-------+------+--------
 1 | Kari  | Oslo |     100
 2 | Kåre  | NULL |      -5
(2 rows)
"""


def test_a_script_shows_results_and_what_else_was_done_unless_it_is_to_be_quiet(sql: Any, tmp_path: Path) -> None:
    script = "SELECT * FROM accounts;\nUPDATE accounts SET balance = 7\nWHERE id = 1;\nSELECT balance FROM accounts"
    balances = "\nbalance\n-------\n      7\n     -5\n(2 rows)\n"
    shown = ACCOUNTS + "UPDATE 1\n" + balances
    (tmp_path / "script.sql").write_text("\ufeff" + script)
    assert sql(typed=script) == (0, shown, "")
    assert sql("-", typed=script) == (0, shown, "")
    assert sql(str(tmp_path / "script.sql")) == (0, shown, "")
    assert sql("-c", script) == (0, shown, "")
    for quiet in ("-q", "--quiet"):
        assert sql(quiet, typed=script) == (0, ACCOUNTS + balances, "")
        assert sql(quiet, "-c", script) == (0, ACCOUNTS + balances, "")


def test_statements_of_the_command_line_say_what_they_changed(sql: Any) -> None:
    update = "UPDATE accounts SET balance = 1; DELETE FROM notes"
    insert = "INSERT INTO notes VALUES ('a'), ('b') RETURNING text"
    assert sql("-c", update, "-c", insert) == (
        0,
        "UPDATE 2\nDELETE 0\ntext\n----\na\nb\n(2 rows)\nINSERT 2\n",
        "",
    )


def test_a_script_ends_at_its_first_error_naming_the_line(sql: Any, tmp_path: Path) -> None:
    path = tmp_path / "script.sql"
    path.write_text("SELECT 1 AS one;\n\nSELECT 2;  SELECT owner,\n  nope FROM accounts;\nSELECT 3 AS three;\n")
    status, shown, said = sql(str(path))
    assert (status, "one" in shown, "three" in shown) == (1, True, False)
    line, text, caret = said.splitlines()
    assert line.startswith(f"voltpy: {path}:3: SqlError: line 4, column 3: there is no column nope")
    assert text[caret.index("^") :].startswith("nope")

    status, shown, said = sql("--keep-going", str(path))
    assert (status, "three" in shown, said.count("voltpy: ")) == (1, True, 1)


def test_an_error_without_a_place_in_the_statement_has_the_statements(sql: Any) -> None:
    status, shown, said = sql(typed="SELECT 1;\n\n INSERT INTO accounts (id, owner) VALUES (1, 'x');")
    assert (status, shown.count("(1 row)")) == (1, 1)
    assert said.startswith("voltpy: <stdin>:3: DuplicateKey: table accounts")
    assert sql("-c", "SELECT 1 / 0", "-c", "SELECT 1") == (1, "", "voltpy: DataError: division by zero\n")
    assert sql("--keep-going", "-c", "SELECT 1 / 0", "-c", "DELETE FROM notes")[:2] == (1, "DELETE 0\n")


@pytest.mark.parametrize("script", ["SELECT 'open", "SELECT 1; /* open", 'SELECT "open'])
def test_what_is_never_closed_is_an_error_and_not_dropped(sql: Any, script: str) -> None:
    status, _, said = sql(typed=script)
    assert status == 1
    assert "never closed" in said


def test_a_script_in_another_encoding_is_refused_where_it_is(sql: Any) -> None:
    status, _, said = sql(typed=b"SELECT 1;\nSELECT 'K\xe5re';\n")
    assert status == 1
    assert said.startswith("voltpy: <stdin>:")
    assert "not UTF-8" in said


def test_json_has_a_line_for_each_statement(sql: Any) -> None:
    script = "SELECT id, owner FROM accounts; SELECT nope; \\timing on\nDELETE FROM accounts; EXPLAIN SELECT 1;"
    status, shown, said = sql("--json", "--keep-going", typed=script)
    selected, failed, deleted, explained = map(json.loads, shown.splitlines())
    assert status == 1
    assert selected == {
        "statement": "select", "columns": ["id", "owner"], "rows": [[1, "Kari"], [2, "Kåre"]], "rowcount": 2,
    }  # fmt: skip
    assert (failed["error"], failed["line"]) == ("SqlError", 1)
    assert said == f"voltpy: <stdin>:1: SqlError: {failed['message']}\n"
    assert 0 < deleted.pop("seconds") < LIMIT_S
    assert deleted == {"statement": "delete", "columns": [], "rows": [], "rowcount": 2}
    assert (explained["statement"], explained["columns"]) == ("explain", ["plan"])


def test_csv_tells_null_from_an_empty_text(sql: Any) -> None:
    script = "UPDATE accounts SET owner = 'a \"b\", c' WHERE id = 1; SELECT id, owner, city, '' AS e FROM accounts"
    status, shown, said = sql("--csv", typed=script)
    assert (status, shown, said) == (0, 'id,owner,city,e\n1,"a ""b"", c",Oslo,""\n2,Kåre,,""\n', "")
    assert list(csv.reader(shown.splitlines()))[1] == ["1", 'a "b", c', "Oslo", ""]
    status, shown, said = sql("--csv", typed="\\timing\nSELECT 1 AS n;")
    assert (status, shown) == (0, "n\n1\n")
    assert re.fullmatch(r"Time: \d+\.\d{3} ms\n", said)


@pytest.mark.parametrize("explain", ["EXPLAIN SELECT *", "EXPLAIN ANALYZE DELETE"])
def test_an_explanation_is_shown_as_text(sql: Any, explain: str) -> None:
    _, shown, said = sql("-c", f"{explain} FROM accounts WHERE id = 1")
    assert "Partitions: " in shown
    assert "EXPLAIN" not in shown + said
    assert "|" not in shown
    assert re.search(r"\(\d+ rows?\)", shown) is None


@pytest.mark.parametrize("arguments", [["--json", "--csv"], ["-c", "SELECT 1", __file__], ["no such file"]])
def test_commands_that_mean_nothing_are_refused(sql: Any, arguments: list[str]) -> None:
    with pytest.raises(UsageError, match=r"both|does not exist"):
        sql(*arguments)


# ── commands ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_tables_are_listed_and_described(sql: Any) -> None:
    _, shown, _ = sql("-c", "\\d")
    assert [line.split(" | ")[0].strip() for line in shown.splitlines()[2:]] == [
        "Visits", "accounts", "notes", "(3 rows)",
    ]  # fmt: skip
    status, shown, said = sql("-c", "\\d ACCOUNTS")
    assert (status, said) == (0, "")
    for words in (
        "Table accounts: 2 rows, partitioned on id\nPrimary key: (id)\n", "owner       | STRING      | false ",
        "accounts_city | INVERTED   | city    |           2",
    ):  # fmt: skip
        assert words in shown
    shown = sql("-c", '\\d "Visits";')[1]
    assert "Primary key: (account, day)\n" in shown
    assert "index_name" not in shown
    shown = sql("-c", "\\d notes")[1]
    assert "Table notes: 0 rows, a full copy in every partition\nPrimary key: hidden\n" in shown
    assert "entry_count" in sql("-c", "\\d db_indexes")[1]
    columns, indexes = map(json.loads, sql("--json", "-c", "\\d accounts")[1].splitlines())
    assert columns["rows"][0] == ["id", "INT", False, True]
    assert indexes["rows"] == [["accounts_city", "INVERTED", "city", 2, False]]
    sql_script = "CREATE UNIQUE INDEX one_name ON accounts USING HASH (id, owner);\n\\d accounts"
    assert re.search(r"one_name +\| HASH +\| id, owner \| +2 \| true\n", sql("-c", sql_script)[1])


def test_files_include_files(sql: Any, tmp_path: Path) -> None:
    inner, outer, loop = (tmp_path / name for name in ("inner.sql", "outer.sql", "loop.sql"))
    inner.write_text("SELECT 'inner' AS a;\nSELECT nope;\nSELECT 'left out' AS b;")
    outer.write_text(f"\\i {inner}\nSELECT 'outer' AS c;")
    loop.write_text(f"\\i {loop}\n")
    status, shown, said = sql(str(outer))
    assert (status, "inner" in shown, "outer" in shown) == (1, True, False)
    assert said.startswith(f"voltpy: {inner}:2: SqlError: line 2, ")
    status, shown, _ = sql("--keep-going", str(outer))
    assert (status, "left out" in shown, "outer" in shown) == (1, True, True)
    assert "include each other" in sql(str(loop))[2]
    status, _, said = sql("-c", f"\\i {tmp_path / 'none.sql'}")
    assert (status, "No such file" in said) == (1, True)


def test_quit_leaves_at_once_with_the_status_so_far(sql: Any, tmp_path: Path) -> None:
    quitter = tmp_path / "quit.sql"
    quitter.write_text("SELECT 1;\n\\q\nSELECT nope;")
    status, shown, said = sql("-c", f"\\i {quitter}", "-c", "SELECT nope")
    assert (status, shown.count("(1 row)"), said) == (0, 1, "")
    assert sql("--keep-going", typed="SELECT nope; \\q")[0] == 1


def test_a_command_that_is_none_is_an_error(sql: Any) -> None:
    status, _, said = sql("-c", "\\dance")
    assert (status, said) == (1, "voltpy: SqlError: there is no command \\dance; \\? lists them\n")
    assert sql("-c", "\\timing perhaps")[0] == 1
    assert sql("-c", "\\i")[0] == 1


def test_an_expanded_row_is_a_line_for_each_column(sql: Any) -> None:
    record = """\
-[ row 1 ]+-
id        | 1
owner     | Kari
city      | Oslo
the notes | NULL
(1 row)
"""
    select = 'SELECT id, owner, city, NULL AS "the notes" FROM accounts WHERE id = 1;'
    assert sql(typed=f"\\x\n{select}\n\\x off\nSELECT 1 AS n;") == (0, f"{record}\nn\n-\n1\n(1 row)\n", "")
    assert sql("--csv", typed=f"\\x on\n{select}")[1].startswith("id,owner")
    assert sql("-c", "\\x maybe")[2] == "voltpy: SqlError: \\x takes on or off, not maybe\n"
    assert sql(typed="\\x\nEXPLAIN SELECT 1")[1] == sql("-c", "EXPLAIN SELECT 1")[1]


def test_indexes_and_procedures_are_listed(sql: Any) -> None:
    status, shown, said = sql("-c", "\\di")
    assert (status, said) == (0, "")
    assert "accounts_city | accounts   | INVERTED   | city    |" in shown
    assert sql("-c", "\\df")[1].startswith("procedure | runs\n")
    assert sql("-c", "\\dt") == sql("-c", "\\d")
    assert "`voltpy load` reads a file" in sql("-c", "\\copy accounts to 'x'")[2]


# ── what results look like ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_table_is_aligned_whatever_stands_in_it() -> None:
    long = "x" * (MAX_PADDED + 1)
    result = Result(
        ("n", "text", "b"),
        [(1, "漢字", True), (-22, "a\x1b[31m\nb", None), (None, long, False)],
        3,
        ("INT", "STRING", "BOOL"),
        "select",
    )
    assert "".join(table(result)).splitlines() == [
        "   n | text         | b",
        "-----+--------------+------",
        "   1 | 漢字         | true",
        " -22 | a\\x1b[31m\\nb | NULL",
        f"NULL | {long} | false",
        "(3 rows)",
    ]
    assert "\x1b[2mNULL\x1b[0m" in "".join(table(result, styled=True))
    assert "".join(table(Result(("n",), [], 0, ("INT",), "select"))) == "n\n-\n(0 rows)\n"


def test_many_rows_come_in_pieces() -> None:
    result = Result(("n",), [(n,) for n in range(2000)], 2000, ("INT",), "select")
    for pieces in (list(table(result)), list(as_csv(result))):
        assert len(pieces) > 4
        assert [int(line) for line in "".join(pieces).splitlines() if line.strip().isdigit()] == list(range(2000))
    assert len(json.loads(json_line(result, None))["rows"]) == 2000


# ── completion ─────────────────────────────────────────────────────────────────────────────────────────────────────

TABLES = {"accounts": ["id", "owner", "city"], "Visits": ["day", "account"], "db_tables": ["table_id"]}


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("sel", "", ["select"]),
        ("SELECT * FR", "", ["FROM"]),
        ("SELECT * FROM ", "", ["accounts", '"Visits"', "db_tables"]),
        ("SELECT * FROM acc", "", ["accounts"]),
        ('SELECT * FROM "V', "", ['"Visits"']),
        ("select * from accounts a, db", "", ["db_tables"]),
        ("INSERT INTO a", "", ["accounts"]),
        ("UPDATE ", "", ["accounts", '"Visits"', "db_tables"]),
        ("SELECT ow", " FROM accounts", ["owner"]),
        ("SELECT ", " FROM accounts", ["id", "owner", "city", "accounts", '"Visits"', "db_tables"]),
        ("SELECT a.", " FROM accounts a", ["id", "owner", "city"]),
        ("SELECT a.c", " FROM db_tables, accounts AS a", ["city"]),
        ("SELECT accounts.i", "", ["id"]),
        ('SELECT v.d', ' FROM "Visits" v', ["day"]),
        ("SELECT x.", "", []),
        ("select cou", "", ["count("]),
        ("SELECT id FROM accounts WHERE city = 'O' ORDER BY ow", "", ["owner"]),
        ("\\d a", "", ["accounts"]),
    ],
)  # fmt: skip
def test_what_is_typed_is_completed(before: str, after: str, found: list[str]) -> None:
    assert completions(before, before + after, TABLES)[1] == found


def test_enter_runs_what_is_whole() -> None:
    assert all(map(is_complete, ("", "  ", "\\d", "SELECT 1;", "SELECT ';';", "-- nothing", "SELECT 1; -- done")))
    assert not any(map(is_complete, ("SELECT 1", "SELECT 1; SELECT", "SELECT ';", "/* ;", "SELECT 1\n\\d")))


def test_a_lone_word_at_the_prompt_is_the_command_that_it_means(terminal: Terminal) -> None:
    assert all(map(is_complete, ("exit", " Quit ", "help;")))
    assert not any(map(is_complete, ("exit now", "SELECT 1\nexit")))
    assert "runs the statements in FILE" in terminal.ask("help\r")
    terminal.type("exit\r")
    assert terminal.process.wait(LIMIT_S) == 0


def test_the_history_is_its_owners_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("VOLTPY_HISTORY", raising=False)
    history().append_string("SELECT 1;")
    file = tmp_path / "voltpy" / "sql_history"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(history().load_history_strings()) == ["SELECT 1;"]
    monkeypatch.setenv("VOLTPY_HISTORY", "")
    assert list(history().load_history_strings()) == []
    monkeypatch.setenv("VOLTPY_HISTORY", "/proc/nowhere/history")
    history().append_string("SELECT 2;")


# ── processes ──────────────────────────────────────────────────────────────────────────────────────────────────────

COMMAND = [sys.executable, "-m", "tests.voltpy.sql_shell_process"]


def test_a_pipe_that_fails_says_so_in_a_line_without_a_traceback() -> None:
    done = subprocess.run(
        COMMAND, input="SELECT 1 AS n;\nSELECT nope;\n", capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert (done.returncode, done.stdout) == (1, "n\n-\n1\n(1 row)\n")
    assert done.stderr.startswith("voltpy: <stdin>:2: SqlError: line 2, column 8: ")
    assert "Traceback" not in done.stderr


def test_a_reader_who_has_seen_enough_is_no_error_message() -> None:
    query = "SELECT a.table_name, b.* FROM " + ", ".join(f"db_columns {name}" for name in "abcd")
    shell = subprocess.Popen([*COMMAND, "-c", query], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert shell.stdout is not None
    assert shell.stderr is not None
    assert shell.stdout.readline().startswith(b"table_name | ")
    shell.stdout.close()
    assert shell.wait(LIMIT_S) == 1
    assert shell.stderr.read() == b""
    shell.stderr.close()


class Terminal:
    """The shell at a terminal of 24 lines."""

    def __init__(self, **environment: str) -> None:
        self.file, end = pty.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.process = subprocess.Popen(
            COMMAND, stdin=end, stdout=end, stderr=end, start_new_session=True,
            env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **environment},
        )  # fmt: skip
        os.close(end)
        self.expect("voltpy> ")

    def type(self, keys: str) -> None:
        os.write(self.file, keys.encode())

    def ask(self, keys: str) -> str:
        """What is shown until the next prompt."""
        self.type(keys)
        return self.expect("\r\n[^\n]*voltpy> ")

    def expect(self, pattern: str) -> str:
        """What is shown, without its control sequences, up to a match of the pattern."""
        end_s = time.monotonic() + LIMIT_S
        shown = b""
        while True:
            text = re.sub(
                r"\x1b\[[0-9;?]*[a-zA-Z]", lambda m: " " if m[0] == "\x1b[8C" else "", shown.decode(errors="replace")
            )
            if re.search(pattern, text):
                return text
            if not readable(self.file, max(0.0, end_s - time.monotonic())):
                raise AssertionError(f"{pattern!r} is not in {text!r}")
            shown += os.read(self.file, 1 << 16)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.file)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(VOLTPY_HISTORY=str(tmp_path / "history"), PAGER="sed s/^/paged:/")
    yield terminal
    terminal.close()


def test_a_person_at_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type("SELECT id,\r")
    terminal.expect(r"\.\.\. ")
    terminal.type("owner FROM acc\t")
    terminal.expect("ounts")
    assert " 2 | Kåre\r\n(2 rows)" in terminal.ask(";\r")

    failed = terminal.ask("SELECT nope;\r")
    assert "SqlError: line 1, column 8: there is no column nope" in failed
    assert "\r\n       ^" in failed
    assert "Traceback" not in failed

    terminal.type("SELECT what I did not mean")
    terminal.expect("mean")
    assert "Error" not in terminal.ask("\x03")
    assert "Timing is on." in terminal.ask("\\timing\r")
    assert re.search(r"UPDATE 2\r\nTime: \d+\.\d+ ms", terminal.ask("UPDATE accounts SET balance = 0;\r"))
    assert "paged:accounts_city" not in terminal.ask("\\d accounts\r")

    long = terminal.ask("SELECT a.column_name FROM db_columns a, db_columns b;\r")
    assert "paged:(64 rows)" in long

    # From the history: the one before the last.
    assert "UPDATE 2" in terminal.ask("\x10\x10\x10\r")
    assert "column_count" in terminal.ask("\\d\r")
    terminal.type("\x04")
    assert terminal.process.wait(LIMIT_S) == 0
    assert "+SELECT id,\n+owner FROM accounts;\n" in (tmp_path / "history").read_text()


def test_ctrl_c_ends_the_waiting_and_not_the_shell(terminal: Terminal) -> None:
    terminal.type(f"{WAIT};\r")
    terminal.expect("waiting\r\n")
    terminal.process.send_signal(signal.SIGINT)
    shown = terminal.expect("voltpy> $")
    assert "may have run" in shown
    assert "(1 row)" in terminal.ask("SELECT 1;\r")
    terminal.type("\\q\r")
    assert terminal.process.wait(LIMIT_S) == 0
