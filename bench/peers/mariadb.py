"""MariaDB with InnoDB: one table in a buffer pool of as many bytes as voltpy's --memory, over a Unix socket.

It serves what is about memory (`python -m bench larger-than-memory`), not the lines of the other workloads.

A connection runs one statement at a time, so it takes several to keep the server and its disk busy. One client process
keeps them all going: it sends a statement to each, and reads answers as they come, without a thread a connection.
Measured are, each with several numbers of connections:

    a statement a call    SELECT or UPDATE by primary key, committed by itself; client and server meet once a call
    calls of procedures   the same through CALL read_row(…): the statement is parsed once, in the procedure
    16 statements sent    the same statements, 16 in one message, each still committed by itself: fewer messages

The client is mysqlclient, which is libmariadb in C, and PyMySQL where that is not installed. mysqlclient's own answers,
tuples of bytes, are taken as they come: no column is decoded, in MariaDB's favour. It prepares no statements.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pwd
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, Protocol, Self

from bench import pool
from bench.clients import Tally, Way, kept
from bench.peers.server import Server
from bench.workload import BenchError, Fsync, NotInstalled, batches
from bench.workloads.ycsb import FIELDS, Chunk, Read, Rows, Update

DATABASE = "bench"
STATEMENTS_SENT = 16
INSERT_ROWS = 200
STOPS_WITHIN_S = 120.0  # with pages to write
FLUSH_AT_COMMIT = {"always": "1", "everysec": "2", "never": "0"}
# Capabilities of the protocol: several statements a message and several results, and an update is answered with how
# many rows it found, whether it changed them or not.
CAPABILITIES = 1 << 16 | 1 << 17 | 1 << 1

PROCEDURES = (
    "CREATE PROCEDURE read_row(k BIGINT) SELECT * FROM usertable WHERE id = k",
    "CREATE PROCEDURE update_row(k BIGINT, f INT, v TEXT CHARACTER SET latin1) CASE f "
    + " ".join(f"WHEN {field} THEN UPDATE usertable SET field{field} = v WHERE id = k;" for field in range(FIELDS))
    + " END CASE",
)


class Traffic(NamedTuple):
    """How a client's connections are used; `connections` are those of all client processes."""

    connections: int
    processes: int
    statements: int = 1  # in one message
    by_procedure: bool = False

    @property
    def name(self) -> str:
        parts = [f"{self.connections} connection{'s' if self.connections > 1 else ''}"]
        if self.processes > 1:
            parts.append(f"{self.processes} client processes")
        if self.by_procedure:
            parts.append("procedures")
        if self.statements > 1:
            parts.append(f"{self.statements} statements sent at a time")
        return ", ".join(parts)


TRAFFIC = (
    Traffic(1, 1),
    Traffic(4, 1),
    Traffic(16, 1),
    Traffic(32, 1),
    Traffic(16, 2),
    Traffic(16, 1, by_procedure=True),
    Traffic(4, 1, STATEMENTS_SENT),
    Traffic(16, 1, STATEMENTS_SENT),
    Traffic(32, 2, STATEMENTS_SENT),
)


class Mariadb:
    name = "mariadb"

    def __init__(self, directory: Path, *, memory_bytes: int, page_size: str = "8k", fsync: Fsync) -> None:
        self._program = _program("mariadbd", "mysqld")
        self._install = _program("mariadb-install-db", "mysql_install_db")
        self._package = client_package()
        self._directory = directory
        self._socket = directory / "mariadb.sock"
        # It refuses to run as root.
        self._user = "mysql" if os.geteuid() == 0 else None
        self._options = {
            "innodb_buffer_pool_size": str(memory_bytes),
            # With its default, 16k, more of what the pool holds is rows that nobody asks for.
            "innodb_page_size": page_size,
            "innodb_flush_log_at_trx_commit": FLUSH_AT_COMMIT[fsync],
            "innodb_flush_method": "O_DIRECT",
            "innodb_log_file_size": "512M",
            # For a disk without a moving head, whose throughput it would leave unused by default.
            "innodb_io_capacity": "2000",
            "innodb_flush_neighbors": "0",
            # So many pages are kept free. The default, 1536, would be most of a small pool.
            "innodb_lru_scan_depth": "128",
            "innodb_buffer_pool_dump_at_shutdown": "0",
            "innodb_buffer_pool_load_at_startup": "0",
            "character_set_server": "latin1",
            "max_connections": "200",
        }
        self._server: Server | None = None

    @property
    def data(self) -> Path:
        return self._directory / "data"

    @property
    def settings(self) -> str:
        words = ", ".join(f"{name} {value}" for name, value in self._options.items())
        return f"{words}, skip-log-bin; client {self._package}"

    def __enter__(self) -> Self:
        if self._user is not None:
            try:
                owner = pwd.getpwnam(self._user)
            except KeyError:
                raise NotInstalled("MariaDB does not run as root, and there is no user mysql") from None
            os.chown(self._directory, owner.pw_uid, owner.pw_gid)
        made = subprocess.run(
            [
                self._install,
                *("--no-defaults", f"--datadir={self.data}", "--auth-root-authentication-method=normal"),
                *("--skip-test-db", "--skip-name-resolve", f"--innodb-page-size={self._options['innodb_page_size']}"),
            ],
            cwd=self._directory,
            capture_output=True,
            text=True,
            user=self._user,
            extra_groups=None if self._user is None else [],
        )
        if made.returncode:
            raise BenchError(f"mariadb-install-db failed:\n{made.stdout[-2000:]}{made.stderr[-2000:]}")
        command: list[str | Path] = [self._program, "--no-defaults", f"--datadir={self.data}"]
        command += [f"--socket={self._socket}", "--skip-networking", "--skip-log-bin", "--skip-name-resolve"]
        command += [f"--{name}={value}" for name, value in self._options.items()]
        server = self._server = Server(command, self._directory, user=self._user)
        server.wait_until(self._answers)
        self._connection = connect(str(self._socket), "")
        for sql in (f"CREATE DATABASE {DATABASE}", f"USE {DATABASE}"):
            self._ask(sql)
        return self

    def _answers(self) -> bool:
        try:
            connect(str(self._socket), "").close()
        except BenchError:
            return False
        return True

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_connection"):
            self._connection.close()
        if self._server is not None:
            self._server.stop(STOPS_WITHIN_S)

    def _ask(self, sql: str) -> list[Any]:
        self._connection.send(sql)
        answers: list[Any] = self._connection.receive()[0]
        return answers

    def load(self, rows: Rows, tell: Callable[[int], None]) -> None:
        width = rows.row_bytes // FIELDS
        columns = ", ".join(f"field{field} VARCHAR({width}) NOT NULL" for field in range(FIELDS))
        self._ask(f"CREATE TABLE usertable (id BIGINT PRIMARY KEY, {columns}) ENGINE=InnoDB")
        for sql in PROCEDURES:
            self._ask(sql)
        done = 0
        self._ask("SET autocommit = 0")
        for keys in batches(range(rows.count), INSERT_ROWS):
            values = ",".join(f"({key},'" + "','".join(rows.fields(key)) + "')" for key in keys)
            self._ask(f"INSERT INTO usertable VALUES {values}")
            done += len(keys)
            if done % (10 * INSERT_ROWS) == 0:
                self._ask("COMMIT")
                tell(done)
        self._ask("COMMIT")
        self._ask("SET autocommit = 1")
        tell(done)

    def ways(self) -> list[Way]:
        return [
            Way(traffic.name, traffic.processes, partial(Connections, str(self._socket), traffic))
            for traffic in TRAFFIC
        ]

    @contextmanager
    def reader(self) -> Iterator[Callable[[int], Any]]:
        """For one call at a time."""
        connection = connect(str(self._socket), DATABASE)

        def read(key: int) -> Any:
            connection.send(f"SELECT * FROM usertable WHERE id={key}")
            (found,) = connection.receive()[0]
            return found

        yield read
        connection.close()

    def column(self, key: int, field: int) -> str:
        ((value,),) = self._ask(f"SELECT field{field} FROM usertable WHERE id={key}")
        return value.decode() if isinstance(value, bytes) else str(value)

    def pids(self) -> dict[str, int]:
        return {} if self._server is None else {"mariadbd": self._server.pid}

    def pool(self) -> pool.Pool:
        """A look-up is any use of a page, those of inner pages of the index included: they are hits, nearly always."""
        found = {_text(name): int(_text(value)) for name, value in self._ask(
            "SHOW GLOBAL STATUS WHERE Variable_name IN ('Innodb_buffer_pool_read_requests', "
            "'Innodb_buffer_pool_reads', 'Innodb_buffer_pool_pages_data', 'Innodb_buffer_pool_pages_dirty')"
        )}  # fmt: skip
        misses = found["Innodb_buffer_pool_reads"]
        pages = found["Innodb_buffer_pool_pages_data"]
        figures = {
            "resident_pages": float(pages),
            "buffer_pool_dirty_pages_ratio": found["Innodb_buffer_pool_pages_dirty"] / max(pages, 1),
        }
        return pool.Pool(found["Innodb_buffer_pool_read_requests"] - misses, misses, None, figures, [])


class Connection(Protocol):
    """One statement, or several in one message, under way at a time: `send`, then `receive`."""

    def send(self, sql: str) -> None: ...
    def receive(self) -> list[Any]: ...  # for each result: its rows, or how many rows it changed
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class _InC:
    """mysqlclient, through the module that its cursors are made of."""

    def __init__(self, socket: str, database: str) -> None:
        module = importlib.import_module("MySQLdb._mysql")
        self._error: type[Exception] = module.MySQLError
        try:
            self._connection = module.connect(
                unix_socket=socket, user="root", database=database, client_flag=CAPABILITIES
            )
        except self._error as error:
            raise BenchError(f"mariadb: {error}") from None
        self.send = self._send
        self.fileno: Callable[[], int] = self._connection.fileno
        self.close: Callable[[], None] = self._connection.close

    def _send(self, sql: str) -> None:
        self._connection.send_query(sql.encode("latin1"))

    def receive(self) -> list[Any]:
        connection = self._connection
        try:
            connection.read_query_result()
            answers = []
            while True:
                result = connection.store_result()
                answers.append(connection.affected_rows() if result is None else result.fetch_row(0))
                if connection.next_result() != 0:
                    return answers
        except self._error as error:
            raise BenchError(f"mariadb: {error}") from None


class _InPython:
    """PyMySQL, through what its `query` is made of: it has no public way to send now and read later."""

    def __init__(self, socket: str, database: str) -> None:
        module = importlib.import_module("pymysql")
        self._error: type[Exception] = module.MySQLError
        try:
            self._connection = module.connect(
                unix_socket=socket, user="root", database=database, client_flag=CAPABILITIES, autocommit=True
            )
        except self._error as error:
            raise BenchError(f"mariadb: {error}") from None
        self._query = importlib.import_module("pymysql.constants.COMMAND").COM_QUERY
        self.close: Callable[[], None] = self._connection.close

    def fileno(self) -> int:
        number: int = self._connection._sock.fileno()
        return number

    def send(self, sql: str) -> None:
        self._connection._execute_command(self._query, sql.encode("latin1"))

    def receive(self) -> list[Any]:
        connection = self._connection
        try:
            answers = []
            while True:
                affected = connection._read_query_result()
                result = connection._result
                answers.append(affected if result.rows is None else result.rows)
                if not result.has_next:
                    return answers
        except self._error as error:
            raise BenchError(f"mariadb: {error}") from None


def client_package() -> str:
    for module, package in (("MySQLdb", "mysqlclient"), ("pymysql", "PyMySQL")):
        if importlib.util.find_spec(module) is not None:
            return package
    raise NotInstalled("neither mysqlclient nor PyMySQL is installed")


def connect(socket: str, database: str) -> Connection:
    return _InC(socket, database) if client_package() == "mysqlclient" else _InPython(socket, database)


class Connections:
    """A client: its connections in turn, each with one message under way."""

    def __init__(self, socket: str, traffic: Traffic) -> None:
        self._traffic = traffic
        self._connections = [connect(socket, DATABASE) for _ in range(traffic.connections // traffic.processes or 1)]
        self._statement = _call if traffic.by_procedure else _statement

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def run(self, chunks: Iterator[Chunk], seconds: float) -> Tally:
        tally = Tally(0, 0.0, [])
        operations = (operation for chunk in chunks for operation in chunk.operations)
        statement, at_once = self._statement, self._traffic.statements
        connections = {connection.fileno(): connection for connection in self._connections}
        under_way: dict[int, list[Read | Update]] = {}
        ready = select.epoll()

        def send(fileno: int) -> None:
            taken = under_way[fileno] = list(islice(operations, at_once))
            connections[fileno].send(";".join(map(statement, taken)))

        began_s = perf_counter()
        for fileno in connections:
            ready.register(fileno, select.EPOLLIN)
            send(fileno)
        while under_way:
            # With a single connection there is nothing to choose from: its `receive` waits.
            arrived = ready.poll() if len(connections) > 1 else [(fileno, 0) for fileno in under_way]
            at_end = perf_counter() - began_s >= seconds
            for fileno, _ in arrived:
                answers = connections[fileno].receive()
                done = under_way.pop(fileno)
                if not at_end:
                    send(fileno)  # before its answers are looked at: the server need not wait for that
                self._check(done, answers)
                tally.operations += len(done)
                tally.updated += [operation for operation in done if len(operation) == 3]
            if len(tally.updated) > 10_000:
                tally.updated = kept(tally.updated)
        ready.close()
        tally.elapsed_s = perf_counter() - began_s
        tally.updated = kept(tally.updated)
        return tally

    def _check(self, operations: Sequence[Read | Update], answers: Sequence[Any]) -> None:
        if self._traffic.by_procedure:
            # A procedure answers with what it selected, and then with how it went; an update only with the latter.
            answers = [answer for answer in answers if not isinstance(answer, int)]
            operations = [operation for operation in operations if len(operation) == 1]
        for operation, answer in zip(operations, answers, strict=True):
            if answer != 1 if len(operation) == 3 else int(answer[0][0]) != operation[0]:
                raise BenchError(f"mariadb answered {answer!r} to {operation}")


def _statement(operation: Read | Update) -> str:
    if len(operation) == 1:
        return f"SELECT * FROM usertable WHERE id={operation[0]}"
    key, field, value = operation
    return f"UPDATE usertable SET field{field}='{value}' WHERE id={key}"


def _call(operation: Read | Update) -> str:
    if len(operation) == 1:
        return f"CALL read_row({operation[0]})"
    key, field, value = operation
    return f"CALL update_row({key},{field},'{value}')"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _program(*names: str) -> Path:
    """Debian puts the server where only root's PATH leads."""
    for name in names:
        if program := shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/bin"):
            return Path(program)
    raise NotInstalled(f"{names[0]} is not installed")
