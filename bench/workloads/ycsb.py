"""ycsb: reads of whole rows and updates of one column, of a table that may be larger than memory. Pure.

As in YCSB's workload B keys are drawn by Zipf 0.99 and 95 % of the operations are reads, unless told otherwise.
Popular keys are scattered over the table (`bench.zipf`): were they neighbours, they would share pages, and a pool of
pages would look better than it is. A value begins with its key and with a serial number, which is 0 in the rows that
are loaded: that tells an answer of another row, and an update that was lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from random import Random

from msgspec import Struct

from bench.workload import expect
from bench.zipf import Zipf, uniform

FIELDS = 10
DIGITS = 8  # of the key, and of the serial number
LEAST_ROW_BYTES = FIELDS * 2 * DIGITS
MOST_ROW_BYTES = 8000  # beyond, InnoDB would put columns into pages of their own
ZIPF_EXPONENT = 0.99
POPULARITY_SEED = 1  # the same keys are popular in every run and in every client process
CALLS_A_CHUNK = 1024
# Not one letter again and again: nobody is to gain from data that shrinks to nothing.
_FILLER = "".join(Random(0).choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-", k=2 * 8192))

Read = tuple[int]  # the key
Update = tuple[int, int, str]  # key, number of the column, new value


class Rows(Struct, frozen=True):
    """The table: keys 0 … count - 1, with columns of `row_bytes` together."""

    count: int
    row_bytes: int

    def value(self, key: int, field: int, serial: int = 0) -> str:
        start = (key * 131 + field * 17 + serial) % 8192
        filler = _FILLER[start : start + self.row_bytes // FIELDS - 2 * DIGITS]
        return f"{key:0{DIGITS}d}{serial:0{DIGITS}d}{filler}"

    def fields(self, key: int) -> list[str]:
        return [self.value(key, field) for field in range(FIELDS)]


class Chunk(Struct):
    """Operations that are sent together, in order and by kind: each peer takes what suits it."""

    operations: list[Read | Update]
    reads: list[Read]
    updates: list[Update]


class Operations:
    """An endless stream of chunks. Streams of different seeds agree on which keys are popular."""

    def __init__(self, rows: Rows, seed: int, update_percent: float = 5.0) -> None:
        self._rows = rows
        self._zipf = Zipf(rows.count, ZIPF_EXPONENT, POPULARITY_SEED)
        self._zipf.reseed(seed)
        self._random = Random(seed)
        self._update_share = update_percent / 100
        # Streams of other seeds, as other client processes have them, write other values.
        self._serials = count(1 + seed % 50 * 2_000_000)

    def chunk(self, size: int = CALLS_A_CHUNK) -> Chunk:
        random, rows, share = self._random, self._rows, self._update_share
        chunk = Chunk([], [], [])
        for key in self._zipf.draw(size):
            if random.random() < share:
                field = random.randrange(FIELDS)
                update = (key, field, rows.value(key, field, next(self._serials) % 10**DIGITS or 1))
                chunk.updates.append(update)
                chunk.operations.append(update)
            else:
                read = (key,)
                chunk.reads.append(read)
                chunk.operations.append(read)
        return chunk

    def chunks(self, prepared: int) -> Iterator[Chunk]:
        """Without end. `prepared` chunks are made now, before a clock starts; further ones when they are asked for."""
        ready = [self.chunk() for _ in range(prepared)]
        ready.reverse()
        return iter(lambda: ready.pop() if ready else self.chunk(), None)


def cold_keys(rows: Rows, number: int, seed: int) -> list[int]:
    """Keys for a reader that meets mostly rows that nobody has read lately: each as likely as the other."""
    return uniform(rows.count, number, seed)


def verify_updated(key: int, field: int, value: str) -> None:
    """An updated column holds a value of its own row, and not the one that was loaded. Raises BenchError."""
    expect(f"key of column {field} of row {key}", value[:DIGITS], f"{key:0{DIGITS}d}")
    if int(value[DIGITS : 2 * DIGITS]) == 0:
        expect(f"column {field} of row {key}", value, "an update")
