"""What a procedure's signature says about where its calls run: the hash slot of a call's key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from voltpy.errors import BadArguments, UnknownProcedure
from voltpy.hash_slot import HASH_SLOTS, hash_slot
from voltpy.messages import ProcedureInfo

SLOT_MASK: Final = HASH_SLOTS - 1


def slot_of(info: ProcedureInfo, args: Sequence[Any]) -> int:
    """The hash slot of a call's key. Raises BadArguments where there is none."""
    if not info.key_positions:
        hint = "use call_everywhere" if info.everywhere else "it can't be called yet"
        raise BadArguments(f"{info.name} has no partition key: {hint}")
    position = info.key_positions[0]
    if position >= len(args):
        name = info.parameters[position].name if position < len(info.parameters) else "its key"
        raise BadArguments(f"{info.name} needs {name}, argument {position + 1}; {len(args)} were given")
    try:
        return hash_slot(args[position])
    except (TypeError, UnicodeEncodeError) as error:
        raise BadArguments(f"{info.name}, argument {position + 1}: {error}") from None


def routes_alike(one: ProcedureInfo, other: ProcedureInfo | None) -> bool:
    return other is not None and (one.key_positions, one.everywhere) == (other.key_positions, other.everywhere)


def no_such(procedure: str) -> UnknownProcedure:
    return UnknownProcedure(f"there is no procedure {procedure}")
