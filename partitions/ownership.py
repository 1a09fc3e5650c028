"""Which partition keys live in this partition."""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from typing import Any

from voltpy.errors import WrongPartition
from voltpy.hash_slot import HASH_SLOTS, hash_slot, slots_in

_INTS = {int}
SEVERAL_KEYS = (list, tuple)  # the types of an argument that is routed by and is several keys


class Ownership:
    """`owned` has a byte for each hash slot, 1 where its keys live here.

    `verified` is the last key that `verify` found to live here. A transaction mostly asks for one key again and again:
    whoever compares with it first is spared the hash.
    """

    __slots__ = ("owned", "partition", "verified")

    def __init__(self, partition: int, partitions: int) -> None:
        self.partition = partition
        slots = slots_in(partition, partitions)
        self.owned = bytes(slots.start) + b"\1" * len(slots) + bytes(HASH_SLOTS - slots.stop)
        self.verified: Any = None

    def verify(self, key: Any, table: str) -> None:
        """Raises WrongPartition unless the key's hash slot belongs to this partition."""
        # hash_slot, spelled out for integers: nearly every transaction passes here once.
        slot = crc_hqx(b"%d" % key, 0) & 16383 if type(key) is int else hash_slot(key)
        if not self.owned[slot]:
            raise WrongPartition(
                f"table {table}: key {key!r:.100} (hash slot {slot}) does not live in partition {self.partition}, "
                "where this procedure was routed by its partition_by argument"
            )
        self.verified = key

    def foreign(self, positions: Sequence[int], calls: list[tuple[Any, ...]]) -> set[int]:
        """Which of the calls, by their index, have a key that does not live here.

        `positions` says which arguments are keys; a list or tuple there is several keys.
        """
        owned = self.owned
        if all(all(map(owned.__getitem__, _slots([values[position] for values in calls]))) for position in positions):
            return set()  # the usual case, for which whole columns are hashed at once
        return {
            index
            for index, values in enumerate(calls)
            if not all(owned[hash_slot(key)] for position in positions for key in _each_key(values[position]))
        }


def _slots(keys: list[Any]) -> Iterable[int]:
    if set(map(type, keys)) == _INTS:
        return [crc_hqx(b"%d" % key, 0) & 16383 for key in keys]
    return (hash_slot(key) for keys_of_call in map(_each_key, keys) for key in keys_of_call)


def _each_key(keys: Any) -> Iterable[Any]:
    return keys if type(keys) in SEVERAL_KEYS else (keys,)
