"""The access log: which keys were used most lately, in bounded memory, so that a start can bring in their pages first.

    file     = a hint file (partitions.hint_file) with magic b"voltpyAL"; count = entries
    payload  = MessagePack array of entries, the heaviest first
    entry    = MessagePack array: [table number, key, weight]; a key of several columns is an array
               key: at most KEY_BYTES encoded; weight: int > 0

Page heat alone does not see these: a row that is decoded and hot (partitions.table) is served without a touch of its
page, so the pages of the very hottest rows look cold.

**What is fed, off the hot path.** A hit in a table's young generation leaves no trace, and recording one would cost a
third of the hit. What can be had for nothing lies in dictionaries that are there anyway, between two batches:

    the young generation, when it becomes the old one     keys used twice or more in that generation

A key that stays hot is in one generation after the other, and so counts again and again; the weight of a key is how
many samples it was in. A generation is large, so `note_some` takes a few keys of it. Where everything fits into the
young generation it never ages: then it is noted before a dump.

Counts are kept by the Space-Saving algorithm (Metwally, Agrawal and El Abbadi, "Efficient Computation of Frequent and
Top-k Elements in Data Streams", ICDT 2005): a fixed number of counters; a key that has none takes over the smallest,
its count included, and remembers that count as its error. So a count is never too small, never too large by more than
its error, and every key that was noted more than once in `counters` times has a counter. All are halved now and then,
so that what was hot last week gives way.

Costs, CPython 3.11: a key that has a counter 0.18 µs, one that takes over another's 1.4 µs; 4,096 counters with
integer keys take 1.2 MB, and a halving of them 1.2 ms, once in 65,536 keys.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable, Iterable
from datetime import datetime
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from partitions.hint_file import read_hint, write_hint

COUNTERS = 4096
HALVE_AFTER = 16  # notes a counter
KEY_BYTES = 256  # a key that is longer, encoded, is not counted
MAX_ENTRIES = 1 << 16

Entry = tuple[int, Any, int]  # (table number, key, weight)

_MAGIC = b"voltpyAL"
_ENTRY_BYTES = KEY_BYTES + 1 + 9 + 9
_SCALARS = frozenset((int, float, str, bool, datetime))
_encode = msgspec.msgpack.Encoder().encode
_decode_entries = msgspec.msgpack.Decoder(list[tuple[int, Any, int]]).decode


class AccessLog:
    """Counts keys: `note` samples, ask for the `top`."""

    __slots__ = ("_counts", "_errors", "_smallest", "_some", "_turn", "_until_halving", "counters")

    def __init__(self, counters: int = COUNTERS) -> None:
        if counters < 1:
            raise ValueError(f"at least one counter, not {counters}")
        self.counters = counters
        self._counts: dict[tuple[int, Hashable], int] = {}
        self._errors: dict[tuple[int, Hashable], int] = {}  # where it is not 0
        # A heap of (count, turn, key), one a key. A count here may be behind: it is mended when it comes to the top,
        # so that a hit costs no more than an addition. The turn says who was first, and saves comparing keys.
        self._smallest: list[tuple[int, int, tuple[int, Hashable]]] = []
        self._turn = 0
        self._some = 0
        self._until_halving = HALVE_AFTER * counters

    def __len__(self) -> int:
        return len(self._counts)

    def note(self, table: int, keys: Iterable[Hashable]) -> None:
        """Counts these keys of a table once each (again, those that come again)."""
        counts = self._counts
        noted = 0
        for key in keys:
            noted += 1
            named = (table, key)
            if named in counts:
                counts[named] += 1
            else:
                self._admit(named, 1)
        self._until_halving -= noted
        if self._until_halving <= 0:
            self._until_halving = HALVE_AFTER * self.counters
            self._halve()

    def note_some(self, table: int, keys: Collection[Hashable], most: int) -> None:
        """Counts about `most` of these keys, evenly spread; each time others, until all have had their turn.

        For a dictionary of 16,000, of which 256 are taken: 0.4 ms.
        """
        if keys and most > 0:
            stride = -(-len(keys) // most)
            self._some += 1
            self.note(table, islice(keys, self._some % stride, None, stride))

    def top(self, most: int) -> list[Entry]:
        """The heaviest keys, the heaviest first. A weight is how often a key was counted at least: count less error.

        2 ms with 4,096 counters.
        """
        errors = self._errors
        weights = ((named, count - errors.get(named, 0)) for named, count in self._counts.items())
        entries = [(*named, weight) for named, weight in weights if weight > 0]  # halving may leave none
        entries.sort(key=itemgetter(2), reverse=True)
        return entries[:most]

    def load(self, entries: Iterable[Entry]) -> None:
        """Goes on from what `read_access_log` found: adds weights to counts."""
        for table, key, weight in entries:
            named = (table, key)
            if named in self._counts:
                self._counts[named] += weight
            else:
                self._admit(named, weight)

    def _admit(self, named: tuple[int, Hashable], weight: int) -> None:
        if not _fits(named[1]):
            return
        error = 0
        if len(self._counts) >= self.counters:
            error = self._give_up_smallest()
            self._errors[named] = error
        self._counts[named] = error + weight
        self._turn += 1
        heapq.heappush(self._smallest, (error + weight, self._turn, named))

    def _give_up_smallest(self) -> int:
        """Takes out the key with the smallest count, the oldest of several; that count."""
        smallest, counts = self._smallest, self._counts
        while True:
            count, turn, named = smallest[0]
            actual = counts[named]
            if actual == count:
                break
            heapq.heapreplace(smallest, (actual, turn, named))
        heapq.heappop(smallest)
        del counts[named]
        self._errors.pop(named, None)
        return count

    def _halve(self) -> None:
        """Keys whose count comes to nothing go."""
        self._counts = {named: count // 2 for named, count in self._counts.items() if count > 1}
        self._errors = {named: error // 2 for named, error in self._errors.items() if error > 1}
        counts = self._counts
        self._smallest = [(counts[named], turn, named) for _, turn, named in self._smallest if named in counts]
        heapq.heapify(self._smallest)

    def check(self) -> None:
        """Verifies every invariant, for tests."""
        assert len(self._counts) <= self.counters
        assert {named for _, _, named in self._smallest} == self._counts.keys()
        assert len(self._smallest) == len(self._counts)
        assert all(count <= self._counts[named] for count, _, named in self._smallest)
        assert all(0 < error <= self._counts[named] for named, error in self._errors.items())
        assert all(at == 0 or self._smallest[(at - 1) // 2] <= self._smallest[at] for at in range(len(self._smallest)))
        assert 0 < self._until_halving <= HALVE_AFTER * self.counters


def _fits(key: Hashable) -> bool:
    """Whether a key can be dumped. One that is none at all may be in a sample: a look-up that failed left it."""
    if type(key) not in _SCALARS and not (type(key) is tuple and all(type(part) in _SCALARS for part in key)):
        return False
    try:
        return len(_encode(key)) <= KEY_BYTES
    except (ValueError, OverflowError):  # half of a surrogate pair; more than 64 bits
        return False


def write_access_log(path: Path, partition: int, entries: list[Entry], *, flush: bool = True) -> None:
    """Replaces the dump with `AccessLog.top(n)`, of which MAX_ENTRIES are kept.

    Takes about 0.2 µs an entry, and the flush. Raises OSError: then the dump before is still there, whole.
    """
    kept = entries[:MAX_ENTRIES]
    write_hint(path, _MAGIC, partition, len(kept), _encode(kept), flush=flush)


def read_access_log(path: Path, partition: int) -> tuple[list[Entry], str | None]:
    """(entries, the heaviest first; why there are none). Raises nothing. No file is no reason: ([], None).

    The tables of the schema may be others by now, so a key's type need not be its table's: whoever looks it up asks
    `RowFormat.checked_key` first.
    """
    count, payload, reason = read_hint(path, _MAGIC, partition, MAX_ENTRIES * _ENTRY_BYTES + 5)
    if reason is not None or not payload:
        return [], reason
    try:
        entries = _decode_entries(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return [], f"{path}: no access log: {error}"
    if len(entries) != count or count > MAX_ENTRIES:
        return [], f"{path}: {len(entries)} keys where {count} are due"
    found = [(table, tuple(key) if type(key) is list else key, weight) for table, key, weight in entries]
    for table, key, weight in found:
        if table < 0 or weight < 1 or not _fits(key):
            return [], f"{path}: key {key!r:.100} of table {table} with weight {weight} is none"
    return found, None
