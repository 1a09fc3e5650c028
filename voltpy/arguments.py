"""The arguments of a group of calls, as they came: one MessagePack array of argument arrays."""

from __future__ import annotations

import msgspec
from msgspec import Raw

from voltpy.errors import ProtocolError
from voltpy.messages import CallGroup
from voltpy.procedure import announced_length

_decode_raws = msgspec.msgpack.Decoder(list[Raw]).decode


def split(group: CallGroup) -> list[tuple[int, Raw]]:
    """Each call's number with its argument array, encoded. Raises ProtocolError where there is not one for each."""
    announced = announced_length(group.args)
    if announced not in (-1, len(group.numbers)):  # before memory is spent on it
        raise ProtocolError(f"{len(group.numbers)} calls with {announced} argument lists")
    try:
        raws = _decode_raws(group.args)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ProtocolError(f"not a list of argument lists: {error}") from None
    if len(raws) != len(group.numbers):
        raise ProtocolError(f"{len(group.numbers)} calls with {len(raws)} argument lists")
    return list(zip(group.numbers, raws, strict=True))
