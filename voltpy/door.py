"""The door: where client frames come in, at the router and at each partition. No sockets here.

A frame passes the door when its sender said Hello before, its bytes are one message that this role may send here, its
calls carry the sender's own client id, and there is room for them. Everything else is answered by the door itself:

    what arrives                                  what goes back                        the account
    Hello                                         Welcome; at the router with the       opened
                                                  topology, and not before there is one
    anything before a Hello                       Refusal(NO_HELLO), once               closed
    bytes that are no frame, a forbidden message  Refusal("ProtocolError"), once        closed
    more frames of a closed account               nothing                               closed until a Hello
    calls by another catalog version              CallError(STALE) for each             open
    calls of another partition (at a partition)   CallError("WrongPartition") for each  open
    … of another incarnation (at a partition)     CallError("Unavailable") for each     open
    calls past a limit                            CallError("Overloaded") for each      open

None of the calls answered so ever ran. Calls that passed count as in flight until the owner of the door reports them
`answered`. An account belongs to a client id, a connection (its identity at the ROUTER socket) only carries it: a
client that comes back on a new connection finds its account with what is still in flight, and loses the old connection.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from voltpy.errors import ProtocolError
from voltpy.hash_slot import slots_in
from voltpy.messages import (
    CALLS_IN_FLIGHT_A_CLIENT,
    CALLS_IN_FLIGHT_A_PARTITION,
    NO_HELLO,
    PROTOCOL_VERSION,
    STALE,
    Admin,
    AdminReply,
    Attach,
    CallError,
    CallGroup,
    Calls,
    Detach,
    DiscardLoad,
    EverywhereCall,
    Hello,
    HoldBatches,
    HoldCheckpoint,
    Message,
    Orders,
    PlanReply,
    PrepareLoad,
    Refusal,
    ReleaseCheckpoint,
    RenewHold,
    Replies,
    ResumeBatches,
    StatusRequest,
    SwitchLoad,
    Topology,
    Welcome,
)
from voltpy.wire import decode

CLIENT, ROUTER, SUPERVISOR, COORDINATOR = "client", "router", "supervisor", "coordinator"

ACCOUNTS = 65536
BYTES_IN_FLIGHT_A_CLIENT = 256 << 20
BYTES_IN_FLIGHT_A_PARTITION = 1 << 30
BYTES_IN_FLIGHT_AT_COORDINATOR = (
    256 << 20
)  # calls wait there, with their arguments decoded: that takes several times this
# Of the calls in flight at a partition, these are for clients that have no more than a few there.
RESERVED_CALLS = 4096
FEW_CALLS = 64
HELLO_BYTES = 1024  # a stranger's longer frame is not even decoded
FRAME_CALLS = CALLS_IN_FLIGHT_A_CLIENT
# Free values take up to 64 times their bytes once decoded, arguments that pass as they are do not: only a frame that
# begins as Calls or EverywhereCall (an array of up to 15, then the tag) may be longer than this.
COMMAND_BYTES = 1 << 20
LONG_TAGS = frozenset({4, 5})

AT_ROUTER: dict[str, frozenset[type]] = {
    CLIENT: frozenset({Calls, EverywhereCall, Admin}),
    SUPERVISOR: frozenset({Topology, AdminReply, StatusRequest}),
}
AT_PARTITION: dict[str, frozenset[type]] = {
    CLIENT: frozenset({Calls}),
    ROUTER: frozenset({Calls, EverywhereCall}),
    SUPERVISOR: frozenset(
        {StatusRequest, PrepareLoad, SwitchLoad, DiscardLoad, HoldCheckpoint, RenewHold, ReleaseCheckpoint, Detach}
    ),
    COORDINATOR: frozenset({Attach, Orders, PlanReply}),
}
AT_COORDINATOR: dict[str, frozenset[type]] = {
    CLIENT: frozenset({Calls}),
    ROUTER: frozenset({Calls, EverywhereCall}),
    SUPERVISOR: frozenset({StatusRequest, PrepareLoad, SwitchLoad, DiscardLoad, Topology, HoldBatches, ResumeBatches}),
}


# How the shell names a connection: the routing id of a ROUTER socket, or whatever else it can be found by.
Identity = TypeVar("Identity", bound=Hashable)


class Account(Generic[Identity]):
    """One who said Hello. `in_flight` calls and about `bytes_in_flight` passed the door and are not answered yet.

    `bytes_a_reply`, where the owner of the door keeps it: how large the results of this client have been of late.
    """

    __slots__ = ("bytes_a_reply", "bytes_in_flight", "client_id", "closed", "identity", "in_flight", "role")

    def __init__(self, identity: Identity, client_id: int, role: str) -> None:
        self.identity = identity
        self.client_id = client_id
        self.role = role
        self.in_flight = 0
        self.bytes_in_flight = 0
        self.bytes_a_reply = 0
        self.closed = False


class Door(Generic[Identity]):
    """`at_partition` is the partition's number, None at the router; with `partitions`, hash slots are checked too.

    The coordinator's door is that of one more partition, at which other messages may be sent.

    The shell sends what it finds in `outbox`, and sets `catalog_version` whenever the procedures change (0: none yet,
    not checked). `in_flight` and `bytes_in_flight` are the sums over all accounts.
    """

    def __init__(
        self, token: str, *, at_partition: int | None, partitions: int = 0, is_coordinator: bool = False
    ) -> None:
        self.at_partition = at_partition
        self.catalog_version = 0
        self.outbox: list[tuple[Identity, Message]] = []
        self.accounts: OrderedDict[Identity, Account[Identity]] = OrderedDict()  # by identity, the longest silent first
        self.by_client: dict[int, Account[Identity]] = {}
        self.in_flight = 0
        self.bytes_in_flight = 0
        self._most_bytes = BYTES_IN_FLIGHT_AT_COORDINATOR if is_coordinator else BYTES_IN_FLIGHT_A_PARTITION
        self._token = token.encode()
        self._may_send = AT_ROUTER if at_partition is None else AT_COORDINATOR if is_coordinator else AT_PARTITION
        self._hash_slots: frozenset[int] | None = None
        if at_partition is not None and partitions:
            self._hash_slots = frozenset(slots_in(at_partition, partitions))

    def receive(self, identity: Identity, frame: bytes | memoryview, welcome: Welcome) -> Message | None:
        """The message, if it passes: then it is from `accounts[identity]`. None when the door has dealt with it.

        `welcome` answers a Hello; its `incarnation` is the one that calls must name here.
        """
        account = self.accounts.get(identity)
        if account is None or account.closed:
            self._greet(identity, frame, welcome)
            return None
        self.accounts.move_to_end(identity)
        length = len(frame)
        if length > COMMAND_BYTES and account.role == CLIENT and not (frame[0] >> 4 == 9 and frame[1] in LONG_TAGS):
            self._expel(identity, "ProtocolError", f"{length} bytes that are no calls; the limit is {COMMAND_BYTES}")
            return None
        try:
            message = decode(frame)
        except ProtocolError as error:
            self._expel(identity, "ProtocolError", str(error))
            return None
        kind = type(message)
        if kind not in self._may_send[account.role]:
            if isinstance(message, Hello):
                self._open(identity, message, welcome)
            else:
                self._expel(identity, "ProtocolError", f"a {account.role} may not send {kind.__name__} here")
            return None
        if isinstance(message, Calls):
            return self._admit_calls(account, message, length, welcome.incarnation)
        if isinstance(message, EverywhereCall):
            return self._admit_everywhere(account, message, length, welcome.incarnation)
        return message

    def garbage(self, identity: Identity, reason: str) -> None:
        """What came from `identity` is not even a frame (the socket delivered several parts, say)."""
        self._expel(identity, "ProtocolError", reason)

    def charge(self, account: Account[Identity], calls: int) -> None:
        """Counts `calls` more as in flight: one that passed the door has become several."""
        account.in_flight += calls
        self.in_flight += calls

    def answered(self, account: Account[Identity], calls: int) -> None:
        """`calls` of those in flight are over. The bytes go in proportion: which call had how many is not kept."""
        in_flight = account.in_flight
        if calls < in_flight:
            bytes_answered = account.bytes_in_flight * calls // in_flight
            account.bytes_in_flight -= bytes_answered
            account.in_flight = in_flight - calls
            self.in_flight -= calls
            self.bytes_in_flight -= bytes_answered
            return
        self.bytes_in_flight -= account.bytes_in_flight
        account.bytes_in_flight = 0
        account.in_flight = 0
        self.in_flight -= in_flight
        if account.closed and self.accounts.get(account.identity) is not account:
            self._forget_client(account)

    def close(self, identity: Identity) -> None:
        """The connection is lost, or its reader does not read. If it speaks again, it is asked for a Hello."""
        account = self.accounts.pop(identity, None)
        if account is None:
            return
        account.closed = True
        if account.in_flight == 0:
            self._forget_client(account)

    def _greet(self, identity: Identity, frame: bytes | memoryview, welcome: Welcome) -> None:
        """A frame of somebody without an open account: a Hello opens one, anything else is refused, once."""
        message: Message | None = None
        code, reason = NO_HELLO, "no Hello came before this frame"
        if len(frame) <= HELLO_BYTES:
            try:
                message = decode(frame)
            except ProtocolError as error:
                code, reason = "ProtocolError", str(error)
        if isinstance(message, Hello):
            self._open(identity, message, welcome)
        elif identity not in self.accounts:
            self._expel(identity, code, reason)

    def _open(self, identity: Identity, hello: Hello, welcome: Welcome) -> None:
        before = self.accounts.get(identity)
        objection = self._objection(hello, before)
        if objection:
            self._expel(identity, "ProtocolError", objection)
            return
        if hello.role == CLIENT:
            account = self.by_client.get(hello.client_id)
        else:
            account = before if before is not None and before.role == hello.role else None
        if account is None:
            account = Account(identity, hello.client_id, hello.role)
        if before is not None and before is not account:
            self.close(identity)
        if account.identity != identity:
            if self.accounts.get(account.identity) is account:
                del self.accounts[account.identity]
            account.identity = identity
        account.closed = False
        if hello.role == CLIENT:
            self.by_client[hello.client_id] = account
        self._seat(account)
        if hello.role == CLIENT and self.at_partition is None and welcome.topology is None:
            return  # a client can do nothing before there is a topology: it is welcomed with the first one
        self.outbox.append((identity, welcome))

    def _objection(self, hello: Hello, before: Account[Identity] | None) -> str:
        """Why this Hello is not accepted on a connection that had the account `before`; empty when it is."""
        if hello.version != PROTOCOL_VERSION:
            return f"this cluster speaks version {PROTOCOL_VERSION} of the protocol, not {hello.version}"
        if hello.role not in self._may_send:
            return f"nobody says Hello here as {hello.role[:40]!r}"
        # Answers find their account by the connection that the calls came by.
        if before is not None and before.in_flight and (before.role, before.client_id) != (hello.role, hello.client_id):
            return "calls are in flight here under another client id"
        if hello.role == CLIENT:
            return "" if 0 < hello.client_id < 1 << 63 else "a client id is a number from 1 to 2**63 - 1"
        # An empty token would let everybody in where none was set.
        if not self._token or not hmac.compare_digest(self._token, hello.token.encode()):
            return f"the token of this {hello.role} is not this cluster's"
        return ""

    def _seat(self, account: Account[Identity]) -> None:
        """Puts the account in its place; where there are too many, the client that has been idle longest goes."""
        self.accounts[account.identity] = account
        self.accounts.move_to_end(account.identity)
        if len(self.accounts) > ACCOUNTS:
            idle = (
                identity for identity, other in self.accounts.items() if other.role == CLIENT and not other.in_flight
            )
            self.close(next(idle, account.identity))

    def _expel(self, identity: Identity, code: str, reason: str) -> None:
        """One Refusal; the closed account stays in its place, so that the frames behind it are met with silence."""
        account = self.accounts.get(identity)
        if account is None:
            account = Account(identity, 0, CLIENT)
            self._seat(account)
        elif account.closed:
            return
        account.closed = True
        self.outbox.append((identity, Refusal(code, reason)))

    def _forget_client(self, account: Account[Identity]) -> None:
        if self.by_client.get(account.client_id) is account:
            del self.by_client[account.client_id]

    def _admit_calls(
        self, account: Account[Identity], calls: Calls, frame_bytes: int, incarnation: int
    ) -> Message | None:
        groups = calls.groups
        client_id = account.client_id
        stranger = account.role == CLIENT
        number_of_calls = 0
        # All of the frame is checked before any of it counts: of a frame that is refused nothing runs.
        for group in groups:
            length = len(group.numbers)
            if length != len(group.slots):
                text = f"{length} numbers and {len(group.slots)} hash slots in a group"
                self._expel(account.identity, "ProtocolError", text)
                return None
            if stranger and group.client_id != client_id:
                self._expel(account.identity, "ProtocolError", "calls under another client's id")
                return None
            number_of_calls += length
        if stranger and number_of_calls > FRAME_CALLS:
            text = f"{number_of_calls} calls in a frame; the limit is {FRAME_CALLS}"
            self._expel(account.identity, "ProtocolError", text)
            return None
        errors: list[CallError] = []
        if calls.catalog_version != self.catalog_version and self.catalog_version:
            text = f"the procedures are at version {self.catalog_version}"
            for group in groups:
                refuse(group, STALE, text, errors)
            groups = []
        elif self.at_partition is not None:
            groups = self._at_home(groups, incarnation, errors)
            number_of_calls -= len(errors)
        if groups and self._is_full(account, number_of_calls, number_of_calls, frame_bytes):
            groups, number_of_calls = self._fitting(account, groups, frame_bytes, errors)
        if errors:
            self._answer(account.identity, incarnation, errors)
        if not groups:
            return None
        account.in_flight += number_of_calls
        account.bytes_in_flight += frame_bytes
        self.in_flight += number_of_calls
        self.bytes_in_flight += frame_bytes
        calls.groups = groups
        return calls

    def _admit_everywhere(
        self, account: Account[Identity], call: EverywhereCall, frame_bytes: int, incarnation: int
    ) -> Message | None:
        if account.role == CLIENT and call.client_id != account.client_id:
            self._expel(account.identity, "ProtocolError", "a call under another client's id")
            return None
        if call.catalog_version != self.catalog_version and self.catalog_version:
            code, text = STALE, f"the procedures are at version {self.catalog_version}"
        elif self._is_full(account, 1, 1, frame_bytes):
            code, text = "Overloaded", self._too_much(account)
        else:
            account.bytes_in_flight += frame_bytes
            self.bytes_in_flight += frame_bytes
            self.charge(account, 1)
            return call
        self._answer(account.identity, incarnation, [CallError(call.client_id, call.number, code, text)])
        return None

    def _at_home(self, groups: list[CallGroup], incarnation: int, errors: list[CallError]) -> list[CallGroup]:
        """The groups that name this partition, its present incarnation, and no foreign hash slot."""
        hash_slots = self._hash_slots
        at_home = []
        for group in groups:
            if group.partition != self.at_partition:
                text = f"this is partition {self.at_partition}, not {group.partition}"
                refuse(group, "WrongPartition", text, errors)
            elif group.incarnation != incarnation:
                text = f"partition {self.at_partition} has started again since (now {incarnation})"
                refuse(group, "Unavailable", text, errors)
            elif hash_slots is not None and not hash_slots.issuperset(group.slots):
                text = f"not every hash slot of these calls belongs to partition {self.at_partition}"
                refuse(group, "WrongPartition", text, errors)
            else:
                at_home.append(group)
        return at_home

    def _is_full(self, account: Account[Identity], calls: int, group_calls: int, frame_bytes: int) -> bool:
        """Whether so many calls are too many, the last `group_calls` of them one client's."""
        # The router's account carries many clients: each had its limits there.
        is_client = account.role == CLIENT
        if self.at_partition is not None:
            has_few = (account.in_flight + calls if is_client else group_calls) <= FEW_CALLS
            most_calls = CALLS_IN_FLIGHT_A_PARTITION if has_few else CALLS_IN_FLIGHT_A_PARTITION - RESERVED_CALLS
            if self.in_flight + calls > most_calls or self.bytes_in_flight + frame_bytes > self._most_bytes:
                return True
        return is_client and (
            account.in_flight + calls > CALLS_IN_FLIGHT_A_CLIENT
            or account.bytes_in_flight + frame_bytes > BYTES_IN_FLIGHT_A_CLIENT
        )

    def _fitting(
        self, account: Account[Identity], groups: list[CallGroup], frame_bytes: int, errors: list[CallError]
    ) -> tuple[list[CallGroup], int]:
        """The first groups for which there is room, and their calls."""
        fitting: list[CallGroup] = []
        calls = 0
        for group in groups:
            length = len(group.numbers)
            if self._is_full(account, calls + length, length, frame_bytes):
                refuse(group, "Overloaded", self._too_much(account), errors)
            else:
                fitting.append(group)
                calls += length
        return fitting, calls

    def _too_much(self, account: Account[Identity]) -> str:
        return (
            f"{account.in_flight} calls ({account.bytes_in_flight} bytes) of this connection are in flight,"
            f" {self.in_flight} ({self.bytes_in_flight} bytes) of all; try again later"
        )

    def _answer(self, identity: Identity, incarnation: int, errors: list[CallError]) -> None:
        partition = -1 if self.at_partition is None else self.at_partition
        self.outbox.append((identity, Replies(partition, incarnation, 0, [], errors)))


def refuse(group: CallGroup, code: str, text: str, errors: list[CallError]) -> None:
    """Adds one error for each call of the group."""
    client_id = group.client_id
    errors.extend([CallError(client_id, number, code, text) for number in group.numbers])
