"""What a call in the coordinator needs of the partitions, and has not."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from msgspec import Raw

from coordinator.entries import EntryWish
from voltpy.messages import Scan

ANY = -1  # in the place of a partition: whichever one has a copy of the table


class KeyWish(NamedTuple):
    """A row that a call needs."""

    partition: int
    table: int
    key: Any


class ScanWish(NamedTuple):
    """A read that is not by key; `arguments` are encoded."""

    partition: int
    table: int
    kind: str
    arguments: bytes


class FragmentWish(NamedTuple):
    """What a partition sends for a SELECT: see voltpy.messages.Fragment, whose fields these are."""

    partition: int
    text: str
    parameters: bytes
    sends_copies: bool
    call: tuple[int, int, datetime] | None


Wish: TypeAlias = KeyWish | EntryWish | ScanWish | FragmentWish


def scan_of(wish: ScanWish) -> Scan:
    return Scan(wish.table, wish.kind, Raw(wish.arguments))
