"""Key → hash slot → partition.

A key's hash slot is CRC16 (XMODEM: polynomial 0x1021, initial value 0) of its text, modulo 16384, as in Redis Cluster
(its specification, "Key distribution model"): an integer's text is its decimal digits, a string's its UTF-8 bytes. So
42 and "42" share a slot, and `CLUSTER KEYSLOT 42` agrees. Hash slots are dealt out to partitions in equal runs.
"""

from __future__ import annotations

from binascii import crc_hqx
from itertools import chain, repeat

HASH_SLOTS = 16384

Key = int | str


def hash_slot(key: Key) -> int:
    """The hash slot of a partition key, 0 to 16383. Raises TypeError for a key that is neither int nor str."""
    if type(key) is int:
        return crc_hqx(b"%d" % key, 0) & 16383
    if type(key) is str:
        return crc_hqx(key.encode(), 0) & 16383
    raise TypeError(f"a partition key is an int or a str, not {type(key).__name__}")


def slots_in(partition: int, partitions: int) -> range:
    """The hash slots that live in one partition: those whose slot * partitions // HASH_SLOTS is its number."""
    return range(-(-partition * HASH_SLOTS // partitions), -(-(partition + 1) * HASH_SLOTS // partitions))


def slot_owners(partitions: int) -> list[int]:
    """The partition of each hash slot: 16384 numbers, in `partitions` runs whose lengths differ by one at most."""
    runs = (repeat(partition, len(slots_in(partition, partitions))) for partition in range(partitions))
    return list(chain.from_iterable(runs))
