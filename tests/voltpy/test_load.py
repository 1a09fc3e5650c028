"""CSV files → rows → batches, without a cluster."""

from __future__ import annotations

import gzip
import os
import random
import re
import threading
import zipfile
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from voltpy.cli.load import Rejects
from voltpy.cli.load import _remove as removed
from voltpy.csv_load import (
    BATCH_CHARACTERS,
    BATCHES_IN_FLIGHT,
    LOAD,
    LOAD_EVERYWHERE,
    READERS,
    Loader,
    Rejected,
    RowReader,
    Source,
)
from voltpy.errors import ClusterError, Overloaded, ReadOnly, SchemaError
from voltpy.hash_slot import hash_slot, slot_owners
from voltpy.schema import HIDDEN_KEY, Column, Table

FLIGHTS = Table(
    "flights",
    (
        Column("id", "INT", False),
        Column("dest", "STRING", True),
        Column("distance", "FLOAT", True),
        Column("cancelled", "BOOL", False, True, False),
        Column("at", "TIMESTAMP", True),
    ),
    ("id",),
    False,
    "id",
)
AIRLINES = Table(
    "airlines", (Column("carrier", "STRING", False), Column("name", "STRING", False)), ("carrier",), False, None
)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("INT", "42", 42),
        ("INT", " -7 ", -7),
        ("INT", "517.0", 517),
        ("INT", "9223372036854775807", 2**63 - 1),
        ("FLOAT", "1e3", 1000.0),
        ("FLOAT", "10.357019999999999", 10.357019999999999),
        ("STRING", "", ""),
        ("STRING", "Tromsø ✈", "Tromsø ✈"),
        ("BOOL", "TRUE", True),
        ("BOOL", "f", False),
        ("BOOL", "1", True),
        ("TIMESTAMP", "2013-01-01T10:00:00Z", datetime(2013, 1, 1, 10, tzinfo=UTC)),
        ("TIMESTAMP", "2013-01-01 12:00:00+02:00", datetime(2013, 1, 1, 10, tzinfo=UTC)),
        ("TIMESTAMP", "2013-01-01", datetime(2013, 1, 1, tzinfo=UTC)),
    ],
)
def test_text_is_read_by_the_type_of_its_column(kind: Any, text: str, value: object) -> None:
    assert READERS[kind](text) == value
    assert type(READERS[kind](text)) is type(value)


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("INT", "12a", "'12a' is not an INT"),
        ("INT", "1.5", "'1.5' is not an INT"),
        ("INT", "1_000", "'1_000' is not an INT of 64 bits"),
        ("INT", "9223372036854775808", "'9223372036854775808' is not an INT of 64 bits"),
        ("INT", "9" * 5000, f"'{'9' * 40}…' is not an INT"),
        ("FLOAT", "x", "'x' is not a FLOAT"),
        ("FLOAT", "NaN", "'NaN' is not a finite number; if it means NULL, give --null NaN"),
        ("BOOL", "maybe", "'maybe' is not a BOOL (true or false)"),
        ("STRING", b"caf\xe9".decode(errors="surrogateescape"), "not UTF-8 text"),
        ("TIMESTAMP", "yesterday", "'yesterday' is not a TIMESTAMP (ISO 8601: 2013-01-01T10:00:00Z)"),
        ("TIMESTAMP", "0001-01-01T00:00:00+05:00", None),
    ],
)
def test_text_that_is_no_value_is_refused_with_the_reason(kind: Any, text: str, reason: str | None) -> None:
    with pytest.raises(ValueError, match="not") as caught:
        READERS[kind](text)
    assert reason is None or str(caught.value) == reason


def test_a_row_has_the_tables_columns_in_the_tables_order() -> None:
    reader = RowReader(FLIGHTS, ["dest", "at", "id"], frozenset({"NA"}))
    assert reader.read(["Oslo", "2013-01-01", "7"]) == [7, "Oslo", None, False, datetime(2013, 1, 1, tzinfo=UTC)]
    assert reader.read(["NA", "", "8"]) == [8, None, None, False, None]


def test_a_row_that_breaks_a_rule_is_refused_with_the_column() -> None:
    reader = RowReader(FLIGHTS, ["id", "distance", "cancelled"], frozenset({"NA"}))
    for fields, reason in (
        (["7", "far", "no"], "distance: 'far' is not a FLOAT"),
        (["NA", "1", "no"], "id: NULL ('NA') in a NOT NULL column"),
        (["7", "1", ""], "cancelled: NULL ('') in a NOT NULL column"),
        (["7", "1"], "2 fields where 3 are expected"),
    ):
        with pytest.raises(ValueError, match=re.escape(reason)):
            reader.read(fields)


def test_columns_can_be_left_out_and_skipped() -> None:
    reader = RowReader(FLIGHTS, ["-", "id", "-"], frozenset())
    assert reader.read(["x", "1", "y"]) == [1, None, None, False, None]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["id", "colour"], "table flights has no column 'colour'; it has id, dest, distance, cancelled, at"),
        (
            ["id;dest"],
            "table flights has no column 'id;dest'; it has id, dest, distance, cancelled, at."
            " Are its fields apart by --delimiter ';'?",
        ),
        (["id", "id"], "column id occurs twice in the file"),
        (["dest"], "column id of flights must be given and is not in the file"),
    ],
)
def test_a_file_whose_columns_do_not_fit_the_table_is_refused(names: list[str], reason: str) -> None:
    with pytest.raises(SchemaError) as caught:
        RowReader(FLIGHTS, names, frozenset())
    assert str(caught.value) == reason


def test_a_hidden_key_is_no_column_of_the_file() -> None:
    table = Table(
        "votes", (Column("phone", "INT", False), Column(HIDDEN_KEY, "INT", False)), (HIDDEN_KEY,), True, "phone"
    )
    assert RowReader(table, ["phone"], frozenset()).read(["5"]) == [5]
    with pytest.raises(SchemaError):
        RowReader(table, ["phone", HIDDEN_KEY], frozenset())


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────

TEXT = 'id,dest\n1,Oslo\n\n2,"Bergen,\nNorway"\n3,x\n'
RECORDS = [(1, ["id", "dest"], ""), (2, ["1", "Oslo"], ""), (4, ["2", "Bergen,\nNorway"], ""), (6, ["3", "x"], "")]


def records(path: Path, delimiter: str = ",") -> list[tuple[int, list[str], str]]:
    source = Source(path, delimiter)
    found = list(source.records())
    assert source.bytes_read <= source.bytes_total == path.stat().st_size
    source.close()
    return found


def test_records_know_the_line_on_which_they_begin(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(TEXT)
    assert records(path) == RECORDS
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())  # as a spreadsheet writes it
    assert [line for line, _, _ in records(path)] == [1, 2, 4, 6]
    assert records(path)[0][1] == ["id", "dest"]


def test_compressed_files_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert records(tmp_path / "a.csv.gz") == RECORDS
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.csv", TEXT)
    assert records(tmp_path / "a.zip") == RECORDS


def test_a_pipe_is_read_as_it_comes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=[TEXT])
    writer.start()
    source = Source(tmp_path / "pipe", ",")
    assert (list(source.records()), source.bytes_total, source.bytes_read) == (RECORDS, 0, 0)
    source.close()
    writer.join()
    with pytest.raises(ClusterError, match="none: No such file"):
        Source(tmp_path / "none", ",")


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK no")
    with pytest.raises(ClusterError, match="not a zip archive"):
        Source(tmp_path / "a.zip", ",")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a.csv", "")
        archive.writestr("b.csv", "")
    with pytest.raises(ClusterError, match="holds 2 files"):
        Source(tmp_path / "b.zip", ",")
    (tmp_path / "c.gz").write_bytes(gzip.compress(TEXT.encode() * 1000)[:-20])
    with pytest.raises(ClusterError, match="damaged behind line"):
        records(tmp_path / "c.gz")
    (tmp_path / "d.gz").write_bytes(b"not gzip")
    with pytest.raises(ClusterError, match="damaged behind line 0"):
        records(tmp_path / "d.gz")
    data = bytearray(gzip.compress(TEXT.encode() * 1000))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "e.gz").write_bytes(data)
    with pytest.raises(ClusterError, match="damaged behind line"):
        records(tmp_path / "e.gz")


def test_text_that_is_not_csv_costs_its_record_only(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('1,a\n2,"b"x\n3,c\n')
    assert [(line, problem != "") for line, _, problem in records(path)] == [(1, False), (2, True), (3, False)]
    assert records(path)[1][1] == ['2,"b"x']


def test_other_delimiters_and_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b"1\tcaf\xe9\n")
    [(_, fields, _)] = records(path, "\t")
    assert fields[1].encode(errors="surrogateescape") == b"caf\xe9"


# ── batches ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Cluster:
    """A client whose partitions keep what they get, refuse keys that they have, and answer when they are asked to."""

    def __init__(self, partitions: int, *, answer_late: bool = False) -> None:
        self.owners = slot_owners(partitions)
        self.rows: list[dict[Any, list[Any]]] = [{} for _ in range(partitions)]
        self.calls: list[tuple[Any, ...]] = []
        self.unanswered: list[tuple[Future[Any], tuple[Any, ...]]] = []
        self.most_unanswered = 0
        self.answer_late = answer_late
        self.errors: list[Exception] = []

    def submit(self, name: str, *arguments: Any) -> Future[Any]:
        self.calls.append((name, *arguments))
        future: Future[Any] = Future()
        self.unanswered.append((future, arguments))
        self.most_unanswered = max(self.most_unanswered, len(self.unanswered))
        if not self.answer_late or len(self.unanswered) >= BATCHES_IN_FLIGHT * len(self.rows):
            self.answer()
        return future

    def answer(self) -> None:
        for future, (key, _, rows) in self.unanswered:
            if self.errors:
                future.set_exception(self.errors.pop())
            else:
                partition = self.owners[hash_slot(key)]
                assert {self.owners[hash_slot(row[0])] for row in rows} == {partition}
                future.set_result(self.insert(partition, rows))
        self.unanswered.clear()

    def insert(self, partition: int, rows: list[list[Any]]) -> list[list[Any]]:
        rejected = []
        for index, row in enumerate(rows):
            if row[0] in self.rows[partition]:
                rejected.append([index, "DuplicateKey", f"{row[0]} exists"])
            else:
                self.rows[partition][row[0]] = row
        return rejected

    def call_everywhere(self, name: str, *arguments: Any) -> list[Any]:
        self.calls.append((name, *arguments))
        return [self.insert(partition, arguments[1]) for partition in range(len(self.rows))]


def load(cluster: Cluster, table: Table, rows: Sequence[list[Any]], **options: Any) -> tuple[Loader, list[Rejected]]:
    rejected: list[Rejected] = []
    loader = Loader(cluster, table, len(cluster.rows), rejected.append, **options)
    for line, row in enumerate(rows, start=2):
        loader.add(line, [str(value) for value in row], row)
    loader.finish()
    return loader, rejected


def test_every_row_reaches_its_partition_once() -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    rows = [[key, "x", None, False, None] for key in chance.sample(range(10**9), 5000)]
    cluster = Cluster(3, answer_late=False)
    loader, rejected = load(cluster, FLIGHTS, rows, batch_rows=70)
    assert (loader.loaded, loader.rejected, rejected) == (5000, 0, [])
    assert {key for part in cluster.rows for key in part} == {row[0] for row in rows}
    assert {len(call[3]) for call in cluster.calls[:-3]} == {70}
    assert all(call[0] == LOAD and call[2] == "flights" for call in cluster.calls)


def test_rows_that_exist_are_rejected_with_line_and_reason() -> None:
    cluster = Cluster(2)
    rows = [[key, "x", None, False, None] for key in range(100)]
    load(cluster, FLIGHTS, rows)
    loader, rejected = load(cluster, FLIGHTS, [*rows[:3], [200, "y", None, False, None]])
    assert (loader.loaded, loader.rejected) == (1, 3)
    assert sorted(rejected) == [
        Rejected(line, f"DuplicateKey: {line - 2} exists", [str(line - 2), "x", "None", "False", "None"])
        for line in (2, 3, 4)
    ]


def test_a_full_copy_is_loaded_everywhere() -> None:
    cluster = Cluster(2)
    loader, rejected = load(cluster, AIRLINES, [["UA", "United"], ["UA", "again"], ["AA", "American"]])
    assert (loader.loaded, [r.line for r in rejected]) == (2, [3])
    [call] = cluster.calls
    assert call[:2] == (LOAD_EVERYWHERE, "airlines")
    assert cluster.rows[0] == cluster.rows[1]


def test_only_a_few_batches_are_under_way_at_once() -> None:
    cluster = Cluster(2, answer_late=True)
    rejected: list[Rejected] = []
    loader = Loader(cluster, FLIGHTS, 2, rejected.append, batch_rows=10)
    for key in range(2000):
        loader.add(key, [], [key, "x", None, False, None])
    cluster.answer_late = False
    cluster.answer()
    loader.finish()
    assert loader.loaded == 2000
    assert cluster.most_unanswered <= BATCHES_IN_FLIGHT * 2


def test_long_rows_make_short_batches() -> None:
    cluster = Cluster(1)
    text = "x" * (BATCH_CHARACTERS // 4)
    load(cluster, FLIGHTS, [[key, text, None, False, None] for key in range(10)])
    assert max(len(call[3]) for call in cluster.calls) <= 4


def test_an_overloaded_partition_is_asked_again_and_a_full_disk_ends_the_load() -> None:
    cluster = Cluster(1)
    cluster.errors = [Overloaded("busy"), Overloaded("busy")]
    loader, _ = load(cluster, FLIGHTS, [[1, "x", None, False, None]])
    assert (loader.loaded, len(cluster.calls)) == (1, 3)
    cluster.errors = [ReadOnly("disk full")]
    with pytest.raises(ReadOnly, match="disk full"):
        load(cluster, FLIGHTS, [[2, "x", None, False, None]])


def test_rejected_rows_that_can_be_kept_nowhere_end_the_load(tmp_path: Path) -> None:
    rejects = Rejects(tmp_path / "none" / "rejected.csv", ["id"])
    with pytest.raises(
        ClusterError, match=r"line 3 can't be loaded \(bad\), nor kept in .*: No such file .*--rejects FILE"
    ):
        rejects.add(Rejected(3, "bad", ["x"]))


def test_rejected_rows_of_an_earlier_load_go_first(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("line,reason,id\n")
    removed(tmp_path / "old.csv")
    removed(tmp_path / "old.csv")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ClusterError, match=r"of an earlier load, can't be removed"):
        removed(tmp_path)
