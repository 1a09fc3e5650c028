"""Plans of statements, as this partition gets them: it has no planner, so one that it lacks is a miss.

a call meets a text without a plan       it is set aside, for (PLAN, text)
the server asks the coordinator          which answers with a plan, or with what is wrong
`arrived`                                the call runs again, and finds one or the other
"""

from __future__ import annotations

import msgspec

from voltpy.errors import CODES, Error, ProtocolError, SqlError
from voltpy.messages import PlanReply
from voltpy.not_here import PLAN, Misses
from voltpy.sql.plan import Plan

KEPT = 1024  # that have arrived and nobody has taken yet; and texts that are wrong
MAX_TEXT_CHARACTERS = 1 << 20  # the planner takes no longer ones

_decode = msgspec.msgpack.Decoder(Plan).decode


class Plans:
    """`plan_of` is where Statements get theirs."""

    def __init__(self, misses: Misses) -> None:
        self._misses = misses
        self._arrived: dict[str, Plan] = {}
        self._wrong: dict[str, Error] = {}

    def plan_of(self, text: str) -> Plan:
        """Raises NotHere, or what the planner said of the text."""
        plan = self._arrived.pop(text, None)
        if plan is not None:
            return plan
        wrong = self._wrong.get(text)
        if wrong is not None:
            raise type(wrong)(str(wrong))
        if len(text) > MAX_TEXT_CHARACTERS:
            raise SqlError(f"a statement of {len(text):,} characters; the limit is {MAX_TEXT_CHARACTERS:,}")
        self._misses.raise_for((PLAN, text))

    def forget(self) -> None:
        """All of them were made for another schema."""
        self._arrived.clear()
        self._wrong.clear()

    def arrived(self, reply: PlanReply) -> None:
        """Takes what the coordinator says of one text."""
        for kept in (self._arrived, self._wrong):
            if len(kept) >= KEPT:
                kept.clear()
        if reply.error:
            self._wrong[reply.text] = CODES.get(reply.error, ProtocolError)(reply.message)
            return
        try:
            self._arrived[reply.text] = _decode(reply.plan)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._wrong[reply.text] = ProtocolError(f"what came is no plan: {error}")
