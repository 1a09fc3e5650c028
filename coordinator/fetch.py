"""What is asked of each partition for what calls wish for, and how its answer gets into the cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from coordinator.borrowed import ANY, ScanWish, Tables, Wish, scan_of
from voltpy.errors import ProtocolError
from voltpy.messages import Scan, ScanAnswer, TableKeys
from voltpy.row import encode

KEYS_AN_ORDER = 4096
BYTES_AN_ORDER = 1 << 20  # of keys; then another order begins. Keys may be as long as a call's arguments


class Fetch:
    """The keys and scans for one partition. `takes`: some of it is borrowed, and not only read."""

    __slots__ = ("_of_table", "bytes", "keys", "scans", "takes", "wished_keys", "wished_scans")

    def __init__(self) -> None:
        self.keys: list[TableKeys] = []
        self.scans: list[Scan] = []
        self.wished_keys: list[list[Any]] = []  # as in `keys`, not encoded
        self.wished_scans: list[ScanWish] = []
        self.takes = False
        self.bytes = 64
        self._of_table: dict[int, int] = {}  # table → place in `keys`

    def add(self, wish: Wish) -> None:
        self.takes |= wish.partition != ANY
        if isinstance(wish, ScanWish):
            self.scans.append(scan_of(wish))
            self.wished_scans.append(wish)
            self.bytes += len(wish.arguments) + 16
            return
        place = self._of_table.get(wish.table)
        if place is None:
            place = self._of_table[wish.table] = len(self.keys)
            self.keys.append(TableKeys(wish.table, []))
            self.wished_keys.append([])
        encoded = encode(wish.key)
        self.keys[place].keys.append(encoded)
        self.wished_keys[place].append(wish.key)
        self.bytes += len(encoded) + 5

    def learn(self, tables: Tables, images: list[list[bytes | None]], scans: list[ScanAnswer]) -> None:
        """Takes the answer into the cache. Raises ProtocolError when it is none to these questions."""
        if list(map(len, images)) != list(map(len, self.wished_keys)) or len(scans) != len(self.scans):
            raise ProtocolError("a partition answered other questions than it was asked")
        for asked, keys, found in zip(self.keys, self.wished_keys, images, strict=True):
            learn = tables.tables[asked.table].learn
            for key, image in zip(keys, found, strict=True):
                learn(key, image)
        for wish, scan, answer in zip(self.wished_scans, self.scans, scans, strict=True):
            tables.tables[wish.table].learn_answer(wish.partition, scan, answer)


def fetches(wishes: Iterable[Wish], copies_from: int) -> dict[int, list[Fetch]]:
    """By partition, in pieces whose answers are likely to fit into a frame each.

    What every partition has a copy of is asked of one that is asked anyway, else of `copies_from`.
    """
    by_partition: dict[int, list[Fetch]] = {}
    for partition, of_partition in _sorted_out(wishes, copies_from).items():
        pieces = by_partition[partition] = []
        piece = Fetch()
        left = KEYS_AN_ORDER
        for wish in of_partition:
            if isinstance(wish, ScanWish):
                alone = Fetch()
                alone.add(wish)
                pieces.append(alone)
                continue
            if not left or piece.bytes > BYTES_AN_ORDER:
                pieces.append(piece)
                piece, left = Fetch(), KEYS_AN_ORDER
            piece.add(wish)
            left -= 1
        if left < KEYS_AN_ORDER:
            pieces.append(piece)
    return by_partition


def one_fetch_each(wishes: Iterable[Wish], copies_from: int) -> dict[int, Fetch]:
    """By partition, in one piece."""
    by_partition: dict[int, Fetch] = {}
    for partition, of_partition in _sorted_out(wishes, copies_from).items():
        fetch = by_partition[partition] = Fetch()
        for wish in of_partition:
            fetch.add(wish)
    return by_partition


def _sorted_out(wishes: Iterable[Wish], copies_from: int) -> dict[int, list[Wish]]:
    by_partition: dict[int, list[Wish]] = {}
    for wish in wishes:
        of_partition = by_partition.get(wish.partition)
        if of_partition is None:
            by_partition[wish.partition] = [wish]
        else:
            of_partition.append(wish)
    of_any = by_partition.pop(ANY, [])
    if of_any:
        by_partition.setdefault(min(by_partition, default=copies_from), []).extend(of_any)
    return by_partition
