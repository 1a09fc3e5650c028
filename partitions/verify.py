"""Checks the files of one partition's checkpoint, in a snapshot: every byte that a start would rely on.

    python -I -m partitions.verify SNAPSHOT --partition I

    root     its header, its CRC, that it decodes, that its tables are the schema's, that no batch is undecided
    run      that it is there, whole, and not longer; every chunk's CRC
    page     that it is there; checksum, number, table, generation, layout; no two in one place
    count    rows, bytes of rows and index entries, as the root counts them; that the index names the rows there are

Of each kind the first damage is told, with how many there are. On stdout, a JSON object a line:

    {"checked": bytes, "total": bytes}                                                         from time to time
    {"partition": i, "lsn": n, "pages": n, "rows": {table: n}, "damage": [{"kind", "file", "offset", "text", "count"}]}

Exit status 0 when it is whole, 3 when it is not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from partitions.checkpoint import (
    CHUNK_HEADER_BYTES,
    RUN_HEADER_BYTES,
    Checkpoint,
    Run,
    TableRoot,
    page_table,
    read_root,
    read_run,
)
from partitions.index import PrimaryIndex
from partitions.page import (
    DEAD,
    FLAGS,
    HEADER_WORDS,
    OVERFLOW_PAGE,
    OVERFLOWS,
    PAGE_BYTES,
    SLOTS,
    STUB_BYTES,
    check_page,
    check_sealed,
    page_id,
)
from partitions.page_file import generation_of, place_of
from voltpy.data_directory import partition_directory, read_schema
from voltpy.errors import Corruption, Error
from voltpy.parent_death import SUPERVISOR, die_with_parent
from voltpy.schema import Table

EXIT_DAMAGED = 3
REPORT_S = 0.1
_MASK = (1 << 64) - 1
_PLACE = re.compile(r"(.*?) offset (\d+): (.*)", re.DOTALL)


class Damage(NamedTuple):
    """Something that is not as it was written. `offset` None: it is not at one place."""

    kind: str
    file: str
    offset: int | None
    text: str


class _RowIds:
    """Tells two sets of row ids apart without keeping them."""

    __slots__ = ("count", "squares", "sum")

    def __init__(self) -> None:
        self.count = self.sum = self.squares = 0

    def add(self, row_id: int) -> None:
        self.count += 1
        self.sum += row_id
        self.squares = self.squares + row_id * row_id & _MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _RowIds) and (self.count, self.sum, self.squares) == (
            other.count,
            other.sum,
            other.squares,
        )

    __hash__ = None  # type: ignore[assignment]


class Verification:
    """Checks one partition; `damage` has what it found, `rows` and `pages` count what is there."""

    def __init__(self, directory: Path, partition: int, progress: Callable[[int, int], None]) -> None:
        self.damage: list[Damage] = []
        self.rows: dict[str, int] = {}
        self.pages = self.lsn = 0
        self._directory = directory
        self._partition = partition
        self._progress = progress
        self._checked = self._total = 0

    def run(self, schema: tuple[Table, ...]) -> None:
        """`schema`: the tables that the snapshot says there are."""
        root_path = self._directory / "checkpoint"
        checkpoint = self._root(root_path)
        if checkpoint is None:
            return
        self.lsn = checkpoint.lsn
        if checkpoint.root.prepared:
            batches = ", ".join(str(batch) for batch, _ in checkpoint.root.prepared[:5])
            self._add("root", root_path, None, f"undecided batches ({batches}): who decides them is in no snapshot")
        roots = checkpoint.root.tables
        if [root.name for root in roots] != [table.name for table in schema[: len(roots)]]:
            return self._add("root", root_path, None, "its tables are not those of the schema")
        try:
            page_tables = [page_table(root, self._directory) for root in roots]
        except Corruption as error:
            return self._add("root", root_path, None, str(error))
        entries = sum(run.entries for root in roots for run in root.runs)
        self._total = 16 * entries + PAGE_BYTES * sum(1 for entries in page_tables for entry in entries if entry)
        try:
            fd = os.open(self._directory / "pages", os.O_RDONLY)
        except OSError as error:
            return self._add("page", self._directory / "pages", None, error.strerror or str(error))
        try:
            seen = bytearray(os.fstat(fd).st_size // PAGE_BYTES)  # a byte a place
            for number, (root, pages) in enumerate(zip(roots, page_tables, strict=True)):
                self._table(fd, number, root, pages, schema[number], seen)
        finally:
            os.close(fd)

    def _root(self, path: Path) -> Checkpoint | None:
        try:
            return read_root(path, self._partition)
        except Corruption as error:
            self._add_error("root", path, error)
        except OSError as error:
            self._add("root", path, None, error.strerror or str(error))
        return None

    def _table(self, fd: int, number: int, root: TableRoot, pages: array[int], schema: Table, seen: bytearray) -> None:
        found = len(self.damage)
        on_pages, image_bytes = self._pages(fd, number, root, pages, seen)
        if schema.dropped:
            return  # what is left of it is nobody's
        index = self._index(number, root, schema)
        self.rows[root.name] = on_pages.count
        if len(self.damage) > found or index is None:
            return  # what is damaged can't add up
        in_index = _RowIds()
        for row_id in index.row_ids():
            in_index.add(row_id)
        if (on_pages.count, image_bytes) != (root.rows, root.image_bytes):
            text = (
                f"table {root.name}: the pages hold {on_pages.count} rows of {image_bytes} bytes, "
                f"the root counts {root.rows} of {root.image_bytes}"
            )
            self._add("count", self._directory / "pages", None, text)
        elif in_index.count != root.rows:
            text = f"table {root.name}: {in_index.count} index entries, {root.rows} rows"
            self._add("count", self._directory / "checkpoint", None, text)
        elif in_index != on_pages:
            text = f"table {root.name}: the index names other rows than the pages hold"
            self._add("count", self._directory / "checkpoint", None, text)

    def _pages(self, fd: int, number: int, root: TableRoot, pages: array[int], seen: bytearray) -> tuple[_RowIds, int]:
        """(the rows on the table's pages, their bytes). A row that is larger than a page counts where its stub is."""
        rows, image_bytes, pieces, stubs = _RowIds(), 0, 0, 0
        found = len(self.damage)
        path = self._directory / "pages"
        for page, entry in enumerate(pages):
            if not entry:
                continue
            place = place_of(entry)
            offset = place * PAGE_BYTES
            where = f"{path} offset {offset}"
            self._advance(PAGE_BYTES)
            try:
                if place < len(seen) and seen[place]:
                    raise Corruption(f"{where}: two pages in one place")
                image = os.pread(fd, PAGE_BYTES, offset)
                check_sealed(image, page_id(number, page), generation_of(entry), where)
                check_page(image, page_id(number, page), where)
            except (Corruption, OSError) as error:
                self._add_error("page", path, error, offset)
                continue
            seen[place] = 1
            self.pages += 1
            words = array("H", image)
            if words[FLAGS] & OVERFLOW_PAGE:
                pieces += words[DEAD]
                continue
            for slot in range(words[SLOTS]):
                at = HEADER_WORDS + 2 * slot
                start, length = words[at], words[at + 1]
                if not start:
                    continue
                rows.add(page << root.slot_bits | slot)
                if length & OVERFLOWS:
                    length = int.from_bytes(image[start + 8 : start + STUB_BYTES], "little")
                    stubs += length
                image_bytes += length
        if pieces != stubs and len(self.damage) == found:
            text = f"table {root.name}: rows of {stubs} bytes in overflow pages, which hold {pieces}"
            self._add("count", path, None, text)
        return rows, image_bytes

    def _index(self, number: int, root: TableRoot, schema: Table) -> PrimaryIndex | None:
        """The index that the runs make, None where they are damaged."""
        index = PrimaryIndex(schema)
        found = len(self.damage)
        for run in root.runs:
            path = self._directory / run.name
            try:
                # One at a time: after damage in one the next one is looked at too.
                index.load(self._chunks(path, number, run), root.collisions)
            except (Corruption, OSError) as error:
                self._add_error("run", path, error)
            self._advance(16 * run.entries)
        if len(self.damage) > found:
            return None
        try:
            index.check(root.name)
        except (Corruption, AssertionError) as error:
            self._add("count", self._directory / "checkpoint", None, str(error))
            return None
        return index

    def _chunks(self, path: Path, table: int, run: Run) -> Iterator[tuple[array[int], array[int]]]:
        """The chunks of a run. Raises Corruption, at its end too if more follows."""
        end = RUN_HEADER_BYTES
        for numbers, row_ids in read_run(self._directory, self._partition, table, run):
            end += CHUNK_HEADER_BYTES + 16 * len(numbers)
            yield numbers, row_ids
        if path.stat().st_size != end:
            raise Corruption(f"{path} offset {end}: {path.stat().st_size - end} bytes too many")

    def _add_error(self, kind: str, path: Path, error: Exception, offset: int | None = None) -> None:
        """An error that names file and offset in its text."""
        text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        match = _PLACE.fullmatch(text)
        if match is None:
            self._add(kind, path, offset, text)
        else:
            self._add(kind, Path(match[1]), int(match[2]), match[3])

    def _add(self, kind: str, path: Path, offset: int | None, text: str) -> None:
        self.damage.append(Damage(kind, str(path), offset, text))

    def _advance(self, checked: int) -> None:
        self._checked += checked
        self._progress(self._checked, self._total)


def firsts(damage: list[Damage]) -> list[dict[str, Any]]:
    """The first damage of each kind, as plain values, with how many there are."""
    kinds: dict[str, dict[str, Any]] = {}
    for one in damage:
        kinds.setdefault(one.kind, {**one._asdict(), "count": 0})["count"] += 1
    return list(kinds.values())


class _Progress:
    """Prints how far it is, now and then."""

    def __init__(self) -> None:
        self._printed_s = 0.0

    def __call__(self, checked: int, total: int) -> None:
        now_s = time.monotonic()
        if now_s - self._printed_s >= REPORT_S:
            self._printed_s = now_s
            print(json.dumps({"checked": checked, "total": total}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m partitions.verify", description=__doc__)
    parser.add_argument("snapshot", type=Path)
    parser.add_argument("--partition", type=int, required=True)
    arguments = parser.parse_args()
    die_with_parent(int(os.environ.get(SUPERVISOR, "0")))
    directory = partition_directory(arguments.snapshot, arguments.partition)
    verification = Verification(directory, arguments.partition, _Progress())
    try:
        verification.run(read_schema(arguments.snapshot).tables)
    except Error as error:  # the schema; without one nothing can be said about the tables
        verification.damage.append(Damage("schema", str(arguments.snapshot / "schema.json"), None, str(error)))
    result = {"partition": arguments.partition, "lsn": verification.lsn, "pages": verification.pages}
    print(json.dumps({**result, "rows": verification.rows, "damage": firsts(verification.damage)}), flush=True)
    return EXIT_DAMAGED if verification.damage else 0


if __name__ == "__main__":
    sys.exit(main())
