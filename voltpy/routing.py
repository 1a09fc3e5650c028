"""What a procedure's signature says about where its calls run: in the partition of all their keys, or across several.

    keys of a call            it runs                     its hash slot
    all of one partition      there                       the first key's
    of several partitions     in the coordinator          the first key's
    none is declared          in the coordinator          0

In a cluster of one partition everything runs there.
"""

from __future__ import annotations

import difflib
from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

from voltpy.errors import BadArguments, UnknownProcedure
from voltpy.hash_slot import HASH_SLOTS, hash_slot
from voltpy.messages import ProcedureInfo

SLOT_MASK: Final = HASH_SLOTS - 1
MOST_CHARACTERS: Final = 100  # of a name that others are compared with

Place = TypeVar("Place")  # a partition as its caller knows it: a number, or a lane


def route(info: ProcedureInfo, args: Sequence[Any], owners: Sequence[Place], coordinator: Place) -> tuple[Place, int]:
    """Where a call runs, and its hash slot. `owners` has the place of each hash slot. Raises BadArguments."""
    positions = info.key_positions
    if len(positions) == 1 and positions[0] < len(args):
        key = args[positions[0]]
        if type(key) is int:
            slot = crc_hqx(b"%d" % key, 0) & SLOT_MASK  # hash_slot, spelled out: nearly every call passes here
            return owners[slot], slot
    slots = slots_of(info, args)
    if not slots:
        return coordinator, 0
    place = owners[slots[0]]
    if all(owners[slot] == place for slot in slots):
        return place, slots[0]
    return coordinator, slots[0]


def slots_of(info: ProcedureInfo, args: Sequence[Any]) -> list[int]:
    """The hash slots of all of a call's keys; none where none is declared. Raises BadArguments for keys that are none,
    and for a directed procedure, whose calls don't run in one place."""
    if info.everywhere:
        raise BadArguments(f"{info.name} runs in every partition: use call_everywhere")
    slots: list[int] = []
    for position in info.key_positions:
        if position >= len(args):
            name = info.parameters[position].name if position < len(info.parameters) else "its key"
            raise BadArguments(f"{info.name} needs {name}, argument {position + 1}; {len(args)} were given")
        value = args[position]
        try:
            if isinstance(value, list | tuple):
                slots.extend(map(hash_slot, value))
            else:
                slots.append(hash_slot(value))
        except (TypeError, UnicodeEncodeError) as error:
            raise BadArguments(f"{info.name}, argument {position + 1}: {error}") from None
    if info.key_positions and not slots:
        places = " and ".join(str(position + 1) for position in info.key_positions)
        raise BadArguments(f"{info.name}: there is no key in argument {places}, so nothing says where it runs")
    return slots


def routes_alike(one: ProcedureInfo, other: ProcedureInfo | None) -> bool:
    return other is not None and (one.key_positions, one.everywhere) == (other.key_positions, other.everywhere)


def not_everywhere(procedure: str) -> BadArguments:
    return BadArguments(f"{procedure} does not run in every partition: use call")


def no_such(procedure: str, known: Iterable[str]) -> UnknownProcedure:
    """The error of a call of `procedure`, where there are those that are known."""
    # To compare a long name with others takes time in its square.
    hint = _hint(procedure, frozenset(known)) if len(procedure) <= MOST_CHARACTERS else ""
    return UnknownProcedure(f"there is no procedure {procedure}{hint}")


@lru_cache(maxsize=64)  # of many calls under one wrong name, one looks for a better one
def _hint(procedure: str, known: frozenset[str]) -> str:
    names = sorted(name for name in known if "." not in name)  # those with a dot are the engine's own
    close = difflib.get_close_matches(procedure, names, 1)
    return f"; did you mean {close[0]}?" if close else ""
