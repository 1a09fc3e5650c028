"""Messages ↔ frames. No sockets here.

A frame is one MessagePack array, `[tag, field, …]`, of at most MAX_FRAME_BYTES. It is valid when it decodes into
exactly one message of `voltpy.messages`, types and all; anything else is a ProtocolError. Values inside `Raw` fields
(arguments, results) are only known to be well-formed: whoever reads them decodes them against what they should be.
"""

from __future__ import annotations

from typing import cast

import msgspec
from msgspec import Raw

from voltpy.errors import ProtocolError
from voltpy.messages import MAX_FRAME_BYTES, Message

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


def decode(frame: bytes | memoryview) -> Message:
    """The message in a frame. Raises ProtocolError for bytes that are none."""
    if len(frame) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {len(frame)} bytes; the limit is {MAX_FRAME_BYTES}")
    try:
        return cast(Message, _decode(frame))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a frame: {error}") from None


def joined(encoded: list[bytes]) -> Raw:
    """One MessagePack array out of values that are encoded already (array 32: 0xdd, length, elements)."""
    return Raw(b"\xdd" + len(encoded).to_bytes(4, "big") + b"".join(encoded))
