"""The command line, as a user runs it: as a process."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from rich.console import Console

from voltpy.cli.call import argument_value, argument_values, signature
from voltpy.cli.demo import AREA_CODES, VOTERS, _phone_numbers, shipped
from voltpy.cli.options import size, size_text
from voltpy.cli.procedures import where_it_runs
from voltpy.cli.status import _summary, rendered
from voltpy.errors import BadArguments
from voltpy.messages import Parameter, ProcedureInfo
from voltpy.supervision import Supervision

LIMIT_S = 30.0


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "voltpy.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={**os.environ, **environment},
        check=False,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_help_and_version_of_every_command() -> None:
    assert run("--version").stdout.startswith("voltpy, version 0.")
    listed = run("--help").stdout
    assert "..." not in listed.partition("Commands:")[2]  # each sentence fits its line
    for command in ("start", "status", "stop", "call", "sql", "procedures", "load", "demo", "bench"):
        assert f"\n  {command} " in listed
        if command != "bench":  # a program of its own
            shown = run(command, "--help")
            assert (shown.returncode, shown.stderr) == (0, "")
            assert shown.stdout.startswith(f"Usage: voltpy {command}")


def test_a_url_that_is_none_is_refused_in_a_line() -> None:
    asked = run("call", "--url", "localhost:21212", "deposit", "42", "100")
    assert (asked.returncode, asked.stdout) == (2, "")
    assert asked.stderr.splitlines()[-1] == (
        "Error: Invalid value for '--url' (env var: 'VOLTPY_URL'): 'localhost:21212' does not begin with voltpy://;"
        " expected voltpy://HOST[:PORT][?affinity=on|off]"
    )
    inherited = run("sql", "-c", "SELECT 1", VOLTPY_URL="voltpy://127.0.0.1:99999")
    assert inherited.returncode == 2
    assert "VOLTPY_URL" in inherited.stderr
    assert "'voltpy://127.0.0.1:99999' is no address: Port out of range" in inherited.stderr


def test_a_schema_that_is_wrong_is_named_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "shop.sql"
    file.write_text("CREATE TABLE orders (\n  id INT PRIMARY KEY,\n  price NUMERIC(10, 2)\n);")
    refused = run("start", "--schema", str(file), "--data", str(tmp_path / "data"), "--port", "0")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f'voltpy: SchemaError: {file}: line 3, column 9: found "NUMERIC"')
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("option", ["--schema", "--procedures"])
def test_of_two_files_none_is_taken_in_silence(option: str, tmp_path: Path) -> None:
    refused = run("start", option, "a.py", option, "b.py", "--data", str(tmp_path / "data"))
    assert refused.returncode == 2
    assert f"Invalid value for '{option}': give one file, not 2" in refused.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::"])
def test_an_address_that_others_could_reach_is_refused_before_anything_is_made(tmp_path: Path, host: str) -> None:
    refused = run("start", "--host", host, "--data", str(tmp_path / "data"))
    assert refused.returncode == 2
    assert "no authentication" in refused.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--schema", "none.sql"], "none.sql: No such file or directory"),
        (["--procedures", "none.py"], "none.py: No such file or directory"),
        ([], "takes a schema"),
        (["--schema", "bad.sql"], "line 1"),
        (["--memory", "1K", "--schema", "good.sql"], "--memory 1.0 KiB: 1 partition needs at least 16 MiB"),
    ],
)
def test_a_start_that_cannot_be_says_why(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "bad.sql").write_text("CREATE TABEL t (id INT PRIMARY KEY);")
    (tmp_path / "good.sql").write_text("CREATE TABLE t (id INT PRIMARY KEY);")
    arguments = [str(tmp_path / a) if a.endswith((".sql", ".py")) else a for a in arguments]
    refused = run("start", "--data", str(tmp_path / "data"), "--partitions", "1", *arguments)
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr.startswith("voltpy: ")
    assert "Traceback" not in refused.stderr
    assert words in refused.stderr.splitlines()[0]
    assert refused.stderr.count("none.") <= 1


@pytest.mark.parametrize(
    "command",
    [["status"], ["stop"], ["status", "--json"], ["call", "vote"], ["load", "t", __file__], ["sql", "-c", "SELECT 1"]],
)
def test_a_cluster_that_is_not_there_is_one_clear_line(command: list[str]) -> None:
    port = free_port()
    failed = run(command[0], "--timeout", "0.2", *command[1:], VOLTPY_URL=f"voltpy://127.0.0.1:{port}")
    assert (failed.returncode, failed.stdout) == (1, "")
    [line] = failed.stderr.splitlines()
    assert line.startswith("voltpy: Unavailable: ")
    assert str(port) in line


@pytest.mark.parametrize(
    ("text", "type_text", "value"),
    [
        ("42", "int", 42),
        ("42", "str", "42"),
        ("null", "str", "null"),
        ("null", "str | None", None),
        ("null", "Optional[int]", None),
        ("1.5", "float", 1.5),
        ("true", "bool", True),
        ("[1, 2]", "list[int]", [1, 2]),
        ('{"a": null}', "dict[str, int | None]", {"a": None}),
        ("Oslo", "Any", "Oslo"),
        ("7", "Any", 7),
        ("Oslo", "int | str", "Oslo"),
        ("7", "int | str", 7),
        ("2013-01-01T10:00:00+01:00", "datetime", datetime(2013, 1, 1, 9, tzinfo=UTC)),
        ("2013-01-01", "datetime.datetime | None", datetime(2013, 1, 1, tzinfo=UTC)),
    ],
)
def test_arguments_take_the_type_of_their_parameter(text: str, type_text: str, value: Any) -> None:
    assert argument_value(text, "x", type_text) == value


@pytest.mark.parametrize(("text", "type_text"), [("x", "int"), ("[1", "list[int]"), ("soon", "datetime")])
def test_arguments_that_are_none_are_refused_by_name(text: str, type_text: str) -> None:
    with pytest.raises(BadArguments, match=f"amount: '{text.replace('[', '.')}'"):
        argument_value(text, "amount", type_text)


DEPOSIT = ProcedureInfo(
    "deposit",
    [0],
    False,
    False,
    [Parameter("account", "int", True), Parameter("amount", "int", False, "100")],
    "Pays in.",
)


def test_a_signature_is_shown_and_bounds_the_arguments() -> None:
    assert signature(DEPOSIT) == "deposit(account: int, amount: int = 100)"
    assert where_it_runs(DEPOSIT) == "by account"
    assert argument_values(DEPOSIT, ("1",)) == [1]
    with pytest.raises(BadArguments, match="takes 2 arguments, 3 were given"):
        argument_values(DEPOSIT, ("1", "2", "3"))


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (
            ProcedureInfo("transfer", [0, 1], False, False, DEPOSIT.parameters, ""),
            "by account and amount, across partitions",
        ),
        (
            ProcedureInfo("sum", [0], False, True, [Parameter("keys", "list[int]", True)], ""),
            "by keys, across partitions, read only",
        ),
        (ProcedureInfo("richest", [], False, True, [], ""), "across partitions, read only"),
        (ProcedureInfo("count", [], True, True, [], ""), "everywhere, read only"),
        (ProcedureInfo("set_all", [], True, False, [], "", joint=True), "everywhere, in one transaction"),
    ],
)
def test_where_a_procedure_runs_is_shown(info: ProcedureInfo, words: str) -> None:
    assert where_it_runs(info) == words


def test_a_status_shows_every_process() -> None:
    core = Supervision(2, cluster_id="c", runtime="/run/v", catalog_version=1, procedure_timeout_s=5.0)
    core.begin(0.0)
    core.exited(2, 1, "the decision log is gone", 1.0)
    core.exited(2, 1, "the decision log is gone", 1.0)
    report = {"url": "voltpy://x", "uptime_s": 61, "fsync": "always", "data": "/d", **core.status({}, 1.0)}
    console = Console(width=200, file=io.StringIO())
    console.print(rendered(report, console))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for name in ("router", "coordinator", "partition 0", "partition 1"):
        assert f"\n{name}" in shown
    assert "coordinator: exit status 1: the decision log is gone" in shown
    assert "router starting, coordinator backoff, 0 of 2 partitions serving" in _summary(report)


def test_a_status_takes_a_line_a_process_on_a_narrow_terminal() -> None:
    figures = {"state": "serving", "pid": 4194303, "restarts": 12, "rss_bytes": 1000 << 20, "cpu_s": 12345.6}
    figures |= {"calls_per_s": 123456.0, "incarnation": 12, "lsn": 1234567890}
    metrics = {"calls": 1234567890, "flush_us": 12345.6}
    partitions = [
        {"partition": number, **figures, "metrics": {**metrics, "read_only": number == 1}} for number in range(12)
    ]
    report = {"url": "voltpy://x", "uptime_s": 61, "fsync": "always", "data": "/d", "catalog_version": 1}
    report |= {"router": figures, "coordinator": {**figures, "metrics": metrics}, "partitions": partitions}
    shown = {}
    for width in (80, 200):
        console = Console(width=width, file=io.StringIO())
        console.print(rendered(report, console))
        assert isinstance(console.file, io.StringIO)
        shown[width] = console.file.getvalue().splitlines()
    for width, names in (
        (80, ["router", "coord", "p0", "p1"]),
        (200, ["router", "coordinator", "partition", "partition"]),
    ):
        _, titles, *rows = shown[width]
        assert [row.split()[0] for row in rows][:4] == names
        assert len(rows) == 14
        assert "…" not in "".join(rows)
        assert "read only" in rows[3]
        assert all("1,234,567,890" in row for row in rows[1:])
        assert ("LSN" in titles) == ("flush" in titles) == ("CPU" in titles) == (width == 200)


def test_sizes_are_read_and_shown() -> None:
    context, option = click.Context(click.Command("x")), click.Option(["--memory"])
    texts = ["2G", "512MB", "1.5 GiB", "4096", "64k", "10b"]
    assert [size(context, option, text) for text in texts] == [2 << 30, 512 << 20, 3 << 29, 4096, 65536, 10]
    assert size(context, option, None) is None
    for text in ("", "G", "2X", "-1", "1e9", "2GG"):
        with pytest.raises(click.BadParameter):
            size(context, option, text)
    assert [size_text(n) for n in (10, 1536, 3 << 29, 5 << 40)] == ["10 B", "1.5 KiB", "1.5 GiB", "5.0 TiB"]


def test_shipped_files_come_from_beside_voltpy_and_not_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "procedures").mkdir()
    (tmp_path / "procedures" / "voter.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    assert shipped("voter.py").parent != tmp_path / "procedures"
    assert "def vote(" in shipped("voter.py").read_text()


def test_the_voters_of_the_demo_never_share_a_phone_number() -> None:
    seen: set[int] = set()
    for voter in range(VOTERS + 1):
        numbers = _phone_numbers(voter)
        first = {next(numbers) for _ in range(1000)}
        assert len(first) == 1000
        assert not first & seen
        assert {number // 10_000_000 for number in first} == set(AREA_CODES)
        seen |= first
