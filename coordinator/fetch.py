"""What is asked of each partition for what calls wish for, and how its answer gets into the cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from coordinator.bodies import Call
from coordinator.borrowed import Tables
from coordinator.entries import EntryWish
from coordinator.wishes import ANY, FragmentWish, KeyWish, ScanWish, scan_of
from voltpy.errors import ProtocolError
from voltpy.messages import Fragment, FragmentAnswer, Scan, ScanAnswer, TableKeys, UniqueValues
from voltpy.row import encode

KEYS_AN_ORDER = 4096
BYTES_AN_ORDER = 1 << 20  # of keys; then another order begins. Keys may be as long as a call's arguments

_decode_streams = msgspec.msgpack.Decoder(list[list[list[Any]]]).decode


class Fetch:
    """The keys, entries of unique indexes, and scans for one partition.

    `takes`: some of it is borrowed, and not only read.
    """

    __slots__ = (
        "bytes", "entries", "fragments", "keys", "scans", "takes", "wished_fragments", "wished_keys", "wished_scans",
    )  # fmt: skip

    def __init__(self) -> None:
        self.keys: list[TableKeys] = []
        self.entries: list[UniqueValues] = []
        self.scans: list[Scan] = []
        self.fragments: list[Fragment] = []
        self.wished_fragments: list[FragmentWish] = []
        self.wished_keys: list[list[Any]] = []  # as in `keys`, not encoded
        self.wished_scans: list[ScanWish] = []
        self.takes = False
        self.bytes = 64

    @property
    def count(self) -> int:
        """Of keys and entries."""
        return sum(len(of_table.keys) for of_table in self.keys) + sum(len(each.values) for each in self.entries)

    def add_keys(self, table: int, keys: list[Any], encoded: list[bytes], *, takes: bool) -> None:
        self.keys.append(TableKeys(table, encoded))
        self.wished_keys.append(keys)
        self.takes |= takes
        self.bytes += sum(map(len, encoded)) + 5 * len(encoded)

    def add_entries(self, table: int, index: str, values: list[bytes], *, takes: bool) -> None:
        self.entries.append(UniqueValues(table, index, values))
        self.takes |= takes
        self.bytes += sum(map(len, values)) + 5 * len(values) + len(index)

    def add_fragment(self, wish: FragmentWish) -> None:
        self.fragments.append(Fragment(wish.text, Raw(wish.parameters), wish.sends_copies, wish.call))
        self.wished_fragments.append(wish)
        self.bytes += len(wish.text) + len(wish.parameters) + 64

    def add_scan(self, wish: ScanWish) -> None:
        self.scans.append(scan_of(wish))
        self.wished_scans.append(wish)
        self.takes |= wish.partition != ANY
        self.bytes += len(wish.arguments) + 16

    def learn_fragments(self, tables: Tables, answers: list[FragmentAnswer]) -> None:
        """Takes what the partition sent for SELECTs. Raises ProtocolError when it is none to these questions."""
        if len(answers) != len(self.wished_fragments):
            raise ProtocolError("a partition answered for other statements than it was asked")
        for wish, answer in zip(self.wished_fragments, answers, strict=True):
            if answer.error:
                tables.fragments[wish] = answer.error, answer.message
                continue
            try:
                tables.fragments[wish] = _decode_streams(answer.streams)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ProtocolError(f"a partition sent no rows for a statement: {error}") from None

    def learn(
        self,
        tables: Tables,
        images: list[list[bytes | None]],
        scans: list[ScanAnswer],
        entries: Sequence[list[bytes | None]] = (),
    ) -> None:
        """Takes the answer into the cache. Raises ProtocolError when it is none to these questions."""
        if (
            list(map(len, images)) != list(map(len, self.wished_keys))
            or len(scans) != len(self.scans)
            or list(map(len, entries)) != [len(asked.values) for asked in self.entries]
        ):
            raise ProtocolError("a partition answered other questions than it was asked")
        for asked, keys, found in zip(self.keys, self.wished_keys, images, strict=True):
            tables.tables[asked.table].learn(keys, found)
        for wish, scan, answer in zip(self.wished_scans, self.scans, scans, strict=True):
            tables.tables[wish.table].learn_answer(wish.partition, scan, answer)
        for of_index, found in zip(self.entries, entries, strict=True):
            tables.tables[of_index.table].learn_entries(of_index.index, of_index.values, found)


class Missing:
    """What the cache has not, of one partition: keys by table, entries by unique index, scans, and what it is to send
    for SELECTs."""

    __slots__ = ("entries", "fragments", "keys", "scans")

    def __init__(self) -> None:
        self.keys: dict[int, dict[Any, None]] = {}
        self.entries: dict[tuple[int, str], dict[bytes, None]] = {}
        self.scans: dict[ScanWish, None] = {}
        self.fragments: dict[FragmentWish, None] = {}

    def __bool__(self) -> bool:
        return bool(self.keys or self.entries or self.scans or self.fragments)


def fetches(calls: Iterable[Call], tables: Tables, copies_from: int) -> dict[int, list[Fetch]]:
    """For what these calls wish for and the cache has not, by partition, in pieces whose answers fit into a frame each.

    What every partition has a copy of is asked of one that is asked anyway, else of `copies_from`.
    """
    by_partition: dict[int, list[Fetch]] = {}
    for partition, missing in _missing(calls, tables, copies_from).items():
        pieces = by_partition[partition] = []
        for number, wanted in missing.keys.items():
            keys, takes = list(wanted), not tables.tables[number].replicated
            encoded = list(map(encode, keys))
            for piece, part in _parts(encoded, pieces):
                piece.add_keys(number, keys[part], encoded[part], takes=takes)
        for (number, index), values in missing.entries.items():
            encoded, takes = list(values), not tables.tables[number].replicated
            for piece, part in _parts(encoded, pieces):
                piece.add_entries(number, index, encoded[part], takes=takes)
        for wish in missing.scans:
            alone = Fetch()
            alone.add_scan(wish)
            pieces.append(alone)
    return by_partition


def _parts(encoded: list[bytes], pieces: list[Fetch]) -> Iterator[tuple[Fetch, slice]]:
    """Where each part of these goes: into the last piece while it has room, then into new ones. It is to be added
    before the next part is asked for.
    """
    done = 0
    while done < len(encoded):
        if not pieces or pieces[-1].count == KEYS_AN_ORDER or pieces[-1].bytes > BYTES_AN_ORDER:
            pieces.append(Fetch())
        piece = pieces[-1]
        until = _fitting(encoded, done, KEYS_AN_ORDER - piece.count, BYTES_AN_ORDER - piece.bytes)
        yield piece, slice(done, until)
        done = until


def _fitting(encoded: list[bytes], start: int, most: int, room_bytes: int) -> int:
    """Where the keys end that still fit, at least one."""
    until = min(start + most, len(encoded))
    if sum(map(len, encoded[start:until])) <= room_bytes:
        return until
    for place in range(start, until):
        room_bytes -= len(encoded[place])
        if room_bytes <= 0:
            return place + 1
    return until


def one_fetch_each(calls: Iterable[Call], tables: Tables, copies_from: int) -> dict[int, Fetch]:
    """The same, in one piece for each partition."""
    by_partition: dict[int, Fetch] = {}
    for partition, missing in _missing(calls, tables, copies_from).items():
        fetch = by_partition[partition] = Fetch()
        for number, wanted in missing.keys.items():
            keys = list(wanted)
            fetch.add_keys(number, keys, list(map(encode, keys)), takes=not tables.tables[number].replicated)
        for wish in missing.scans:
            fetch.add_scan(wish)
        for fragment in missing.fragments:
            fetch.add_fragment(fragment)
    return by_partition


def _missing(calls: Iterable[Call], tables: Tables, copies_from: int) -> dict[int, Missing]:
    rows = [table.rows for table in tables.tables]
    whole = [table.whole for table in tables.tables]
    knows = tables.knows
    by_partition: dict[int, Missing] = {}
    for call in calls:
        for wish in call.wants or ():
            partition = wish[0]
            of_partition = by_partition.get(partition)
            if of_partition is None:
                of_partition = by_partition[partition] = Missing()
            if type(wish) is KeyWish:
                number, key = wish.table, wish.key
                if key not in rows[number] and partition not in whole[number]:
                    of_table = of_partition.keys.get(number)
                    if of_table is None:
                        of_table = of_partition.keys[number] = {}
                    of_table[key] = None
            elif not knows(wish):
                if isinstance(wish, EntryWish):
                    of_partition.entries.setdefault((wish.table, wish.name), {})[wish.values] = None
                elif isinstance(wish, ScanWish):
                    of_partition.scans[wish] = None
                elif isinstance(wish, FragmentWish):
                    of_partition.fragments[wish] = None
    by_partition = {partition: missing for partition, missing in by_partition.items() if missing}
    copies = by_partition.pop(ANY, None)
    if copies is not None:
        asked = by_partition.setdefault(min(by_partition, default=copies_from), Missing())
        asked.keys |= copies.keys  # of other tables than those that are borrowed from
        asked.entries |= copies.entries
        asked.scans |= copies.scans
        asked.fragments |= copies.fragments
    return by_partition
