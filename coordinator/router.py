"""The router's core: client frames → partition frames by hash slot, and the way back. No sockets, no clocks.

    from a client        Calls           sorted by partition; all that one round brings for one leaves in one frame
                         EverywhereCall  stamped with the time, to every partition or to none; a joint one goes to the
                                         coordinator alone
                         Admin           to the supervisor, under a number of our own
    from a partition     Replies         sorted by client; each client's part of a frame leaves in one frame
                         Dropped         so many calls of a client are over without a reply
                         Refusal         the connection is of no use: a new one, or none until the topology changes
    from the supervisor  Topology        adopted, and sent on to every client (in a Welcome, the first time)
                         AdminReply      back to the client that asked

The coordinator has the lane behind those of the partitions, where there are several: it owns no hash slots, and what is
addressed to it goes there whatever its slots. Arguments and results pass as they are, except where the calls of a group
belong to several partitions.

Every call that the door lets through is answered once, by its partition or here (then it never ran), unless a retry was
answered in its place, which the partition tells, or the partition is lost: clients learn that from the topology, or by
Lost where only the connection was.
`Lane.owed` knows how many calls of each client a partition has still to answer, so that all counts come back to zero
when it never does.

Large calls and calls with large results go a few at a time: past WINDOW_BYTES of arguments and of results, as large as
those that the client has had of late, its further calls for that partition are held here until some are answered; past
LANE_BYTES, those of all such clients, who have their turns then. The frames between router and partition are one queue
in either direction, in which everybody waits for everybody.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from voltpy import arguments as argument_lists
from voltpy.door import BYTES_IN_FLIGHT_A_PARTITION, FEW_CALLS, RESERVED_CALLS, Account, Door, refuse
from voltpy.errors import ProtocolError
from voltpy.hash_slot import slot_owners
from voltpy.messages import (
    CALLS_IN_FLIGHT_A_PARTITION,
    MAX_FRAME_BYTES,
    NEVER_SENT,
    NO_HELLO,
    PROTOCOL_VERSION,
    Admin,
    AdminReply,
    CallError,
    CallGroup,
    Calls,
    Closing,
    Dropped,
    EverywhereCall,
    Lost,
    Message,
    PartitionAddress,
    Refusal,
    Replies,
    Topology,
    Welcome,
)
from voltpy.wire import joined

Destination = int | bytes  # a partition's number, or the identity of a client or the supervisor

FRAME_CALLS = 2048  # as many as a partition takes at a time
FRAME_BYTES = MAX_FRAME_BYTES // 2
LARGE_CALL_BYTES = 4096  # of arguments and result: for clients whose calls are smaller there is no window
WINDOW_BYTES = 4 << 20  # a client and partition
LANE_BYTES = 64 << 20  # a partition
COMMANDS = 1024  # admin commands under way, of all clients
COMMANDS_A_CLIENT = 16


class Window:
    """A client's calls in one lane: what those that have left cost, in bytes, and those that are held back."""

    __slots__ = ("cost_bytes", "held", "held_calls")

    def __init__(self) -> None:
        self.cost_bytes = 0
        self.held: deque[tuple[CallGroup, int, int]] = deque()  # with its size and its cost
        self.held_calls = 0


class Lane:
    """One partition, or the coordinator, as the router sees it.

    `connection` counts: a new number means that whatever is queued on the old connection must reach nobody.
    `owed`: calls that the partition has still to answer, by client id; `in_flight` is their sum. Those that are held
    back are among them. `windows` has only clients whose calls, or results, are large; `windows_bytes` is what those of
    their calls cost that have left.
    """

    __slots__ = (
        "address", "bytes_in_flight", "connection", "everywhere", "groups", "in_flight", "incarnation", "is_crowded",
        "name", "owed", "partition", "sealed", "waiting_bytes", "waiting_calls", "windows", "windows_bytes",
    )  # fmt: skip

    def __init__(self, address: PartitionAddress, name: str = "") -> None:
        self.partition = address.partition
        self.name = name or f"partition {address.partition}"
        self.address = address
        self.incarnation = 0
        self.connection = 0
        self.in_flight = 0
        self.bytes_in_flight = 0
        self.owed: dict[int, int] = {}
        self.windows: dict[int, Window] = {}
        self.windows_bytes = 0
        self.is_crowded = False  # some calls are held back for what other clients have at the partition
        self.groups: list[CallGroup] = []
        self.waiting_calls = 0
        self.waiting_bytes = 0
        self.sealed: list[Calls | EverywhereCall] = []

    @property
    def is_up(self) -> bool:
        return self.incarnation != 0


class Command(NamedTuple):
    """An admin command under way: whose, and the number that its client gave it."""

    account: Account[bytes]
    number: int


class Router:
    """`client_message`, `supervisor_message` and `partition_message` take what came in; `flush` says what goes out.

    `welcome` is what a Hello is answered with. `lanes` are the partitions and the coordinator, known from the first
    topology on. Commands are passed on under numbers from `first_command` up. No former router of the cluster may have
    used them: what the supervisor answers to one of its commands must find nobody here.
    """

    def __init__(self, door: Door[bytes], first_command: int) -> None:
        self.door = door
        self.welcome = Welcome(PROTOCOL_VERSION, 0, None)
        self.lanes: list[Lane] = []
        self.supervisor: Account[bytes] | None = None
        self.calls_forwarded = 0
        self.calls_refused = 0
        self.calls_answered = 0
        self.frames_of_dead_partitions = 0
        self._owners: list[int] = []
        self._partitions = 0
        self._coordinator: int | None = None  # its number, in a cluster of several partitions
        self._joint: frozenset[str] = frozenset()  # procedures
        self._outbox: list[tuple[Destination, Message]] = []
        self._commands: dict[int, Command] = {}
        self._last_command = first_command - 1

    def client_message(self, account: Account[bytes], message: Message, now_us: int) -> None:
        """What a client's door let through. `now_us`: Unix time in microseconds, for what all copies must agree on."""
        if isinstance(message, Calls):
            self._route(account, message)
        elif isinstance(message, EverywhereCall):
            self._route_everywhere(account, message, now_us)
        elif isinstance(message, Admin):
            self._ask_supervisor(account, message)

    def supervisor_message(self, account: Account[bytes], message: Message) -> None:
        if self.supervisor is not account:
            self._drop_commands("the supervisor has been replaced; it may have happened")
            self.supervisor = account
        if isinstance(message, Topology):
            self._adopt(account, message)
        elif isinstance(message, AdminReply):
            command = self._commands.pop(message.number, None)
            if command is not None and not command.account.closed:
                message.number = command.number
                self._outbox.append((command.account.identity, message))

    def partition_message(self, partition: int, message: Message) -> None:
        lane = self.lanes[partition]
        if isinstance(message, Replies):
            self._return(lane, message)
        elif isinstance(message, Dropped):
            if message.incarnation == lane.incarnation:
                for client_id, calls in message.calls.items():
                    self._settle(lane, client_id, calls)
        elif isinstance(message, Refusal) and lane.is_up:
            why = f"{lane.name} has lost the router's connection"
            self._give_up(lane, why, tells=True)
            lane.connection += 1
            if message.code != NO_HELLO:
                # It does not want this router at all: asking again at once would never end.
                lane.incarnation = 0

    def lost(self, identity: bytes) -> None:
        """Nothing can be sent to this client, or supervisor, any more."""
        account = self.door.accounts.get(identity)
        self.door.close(identity)
        if account is None:
            return
        if account is self.supervisor:
            self.supervisor = None
            self._drop_commands("the supervisor was lost; it may have happened")
        elif self._commands:
            self._commands = {
                number: command for number, command in self._commands.items() if command.account is not account
            }

    def end(self) -> None:
        """Nobody is waited for any more: whatever is still owed is over without an answer."""
        for lane in self.lanes:
            self._give_up(lane, "the router has stopped", tells=True)
        self._drop_commands("the router has stopped; it may have happened")

    def close(self) -> None:
        """After `end`, when all of that was sent: to whom that worked, nothing that is not answered ever went on."""
        closing = Closing("the router is stopping")
        for account in self.door.by_client.values():
            if not account.closed:
                self._outbox.append((account.identity, closing))

    def flush(self) -> list[tuple[Destination, Message]]:
        """Everything that is to be sent now, in order."""
        outbox: list[tuple[Destination, Message]] = []
        if self.door.outbox:
            outbox.extend(self.door.outbox)
            self.door.outbox.clear()
        for lane in self.lanes:
            if lane.groups:
                self._seal(lane)
            if lane.sealed:
                partition = lane.partition
                outbox.extend([(partition, message) for message in lane.sealed])
                lane.sealed.clear()
        if self._outbox:
            outbox.extend(self._outbox)
            self._outbox.clear()
        return outbox

    def metrics(self) -> dict[str, int]:
        return {
            "clients": sum(1 for account in self.door.by_client.values() if not account.closed),
            "calls": self.calls_answered,
            "calls_in_flight": sum(lane.in_flight for lane in self.lanes),
            "bytes_in_flight": sum(lane.bytes_in_flight for lane in self.lanes),
            "calls_forwarded": self.calls_forwarded,
            "calls_refused": self.calls_refused,
            "frames_of_dead_partitions": self.frames_of_dead_partitions,
            "commands_in_flight": len(self._commands),
        }

    def _route(self, account: Account[bytes], calls: Calls) -> None:
        errors: list[CallError] = []
        if self.lanes:
            owner_of = self._owners.__getitem__
            for group in calls.groups:
                owners = set(map(owner_of, group.slots))
                if (len(owners) == 1 and group.partition in owners) or group.partition == self._coordinator:
                    self._forward(account, group, errors)
                else:
                    for part in self._split(group, errors):
                        self._forward(account, part, errors)
        else:
            for group in calls.groups:
                refuse(group, "Unavailable", "the router does not know the partitions yet", errors)
        if errors:
            self._answer(account, errors)

    def _forward(self, account: Account[bytes], group: CallGroup, errors: list[CallError]) -> None:
        """Puts a group whose calls all belong where it is addressed to on the way there."""
        lane = self.lanes[group.partition]
        incarnation = lane.incarnation
        if incarnation == 0:
            refuse(group, "Unavailable", f"{lane.name} is down", errors)
            return
        if group.incarnation == 0:  # whichever serves now
            group.incarnation = incarnation
        elif group.incarnation != incarnation:
            text = f"{lane.name} has started again since (now {incarnation})"
            refuse(group, "Unavailable", text, errors)
            return
        size = size_bytes(group)
        calls = len(group.numbers)
        client_id = group.client_id
        owed = lane.owed.get(client_id, 0)
        if _is_full(lane, account, owed + calls, size):
            waiting = f"{lane.in_flight} calls ({lane.bytes_in_flight} bytes), {owed} of them this client's,"
            text = f"{waiting} wait for {lane.name}"
            refuse(group, "Overloaded", text, errors)
            return
        if size > MAX_FRAME_BYTES:
            refuse(group, "BadArguments", f"too large: a group of about {size} bytes", errors)
            return
        lane.in_flight += calls
        lane.bytes_in_flight += size
        lane.owed[client_id] = owed + calls
        self.calls_forwarded += calls
        # No more than a window, or a large group would only go when nobody else has anything there.
        cost_bytes = min(size + calls * account.bytes_a_reply, WINDOW_BYTES)
        if cost_bytes > calls * LARGE_CALL_BYTES or client_id in lane.windows:
            window = lane.windows.get(client_id)
            if window is None:
                window = lane.windows[client_id] = Window()
            if window.held or lane.is_crowded or not self._has_room(lane, window, cost_bytes):
                window.held.append((group, size, cost_bytes))
                window.held_calls += calls
                return
            window.cost_bytes += cost_bytes
            lane.windows_bytes += cost_bytes
        lane.groups.append(group)
        lane.waiting_calls += calls
        lane.waiting_bytes += size

    def _has_room(self, lane: Lane, window: Window, cost_bytes: int) -> bool:
        if window.cost_bytes and window.cost_bytes + cost_bytes > WINDOW_BYTES:
            return False
        if lane.windows_bytes and lane.windows_bytes + cost_bytes > LANE_BYTES:
            lane.is_crowded = True
            return False
        return True

    def _release(self, lane: Lane, window: Window, *, everything: bool = False) -> None:
        """Puts what the window held back on its way, in order, as far as there is room."""
        held = window.held
        while held and (everything or self._has_room(lane, window, held[0][2])):
            group, size, cost_bytes = held.popleft()
            calls = len(group.numbers)
            window.held_calls -= calls
            window.cost_bytes += cost_bytes
            lane.windows_bytes += cost_bytes
            lane.groups.append(group)
            lane.waiting_calls += calls
            lane.waiting_bytes += size

    def _split(self, group: CallGroup, errors: list[CallError]) -> list[CallGroup]:
        """The same calls, in groups that each belong to one partition: for a client without a map of the hash slots."""
        if group.retry_floor != NEVER_SENT:
            # The floor is an LSN of the partition that the client believed in; it says nothing about another.
            refuse(group, "ProtocolError", "a retry must name the partition that it was first sent to", errors)
            return []
        try:
            arguments = argument_lists.split(group)
        except ProtocolError as error:
            refuse(group, "BadArguments", str(error), errors)
            return []
        members: dict[int, list[int]] = {}
        for position, hash_slot in enumerate(group.slots):
            members.setdefault(self._owners[hash_slot], []).append(position)
        # The incarnation that the client named was that of `partition`, if it named one of its own at all.
        return [
            CallGroup(
                group.client_id,
                group.procedure,
                partition,
                group.incarnation if partition == group.partition else 0,
                [group.numbers[position] for position in positions],
                [group.slots[position] for position in positions],
                joined([bytes(arguments[position][1]) for position in positions]),
            )
            for partition, positions in members.items()
        ]

    def _route_everywhere(self, account: Account[bytes], call: EverywhereCall, now_us: int) -> None:
        size = len(call.args) + 4 * len(call.procedure) + 64
        lanes = self.lanes[: self._partitions]
        if call.procedure in self._joint and self._coordinator is not None:
            lanes = self.lanes[self._coordinator :]
        down = [lane.name for lane in lanes if not lane.is_up]
        full = [lane.name for lane in lanes if _is_full(lane, account, lane.owed.get(call.client_id, 0) + 1, size)]
        if not self.lanes:
            code, text = "Unavailable", "the router does not know the partitions yet"
        elif down:
            code, text = "Unavailable", f"{down[0]} is down"
        elif full:
            code, text = "Overloaded", f"too many calls wait for {full[0]}"
        elif size > MAX_FRAME_BYTES:
            code, text = "BadArguments", f"too large: a call of about {size} bytes"
        else:
            call.now_us = now_us
            self.door.charge(account, len(lanes) - 1)
            for lane in lanes:
                lane.in_flight += 1
                lane.bytes_in_flight += size
                lane.owed[call.client_id] = lane.owed.get(call.client_id, 0) + 1
                lane.sealed.append(call)
            self.calls_forwarded += len(lanes)
            return
        self._answer(account, [CallError(call.client_id, call.number, code, text)])

    def _seal(self, lane: Lane) -> None:
        """Packs the waiting groups into frames, all of the catalog version that the door checked them against."""
        version = self.door.catalog_version
        if lane.waiting_calls <= FRAME_CALLS and lane.waiting_bytes <= FRAME_BYTES:
            lane.sealed.append(Calls(version, lane.groups))
        else:
            frame: list[CallGroup] = []
            calls = filled_bytes = 0
            for group in lane.groups:
                length, size = len(group.numbers), size_bytes(group)
                if frame and (calls + length > FRAME_CALLS or filled_bytes + size > FRAME_BYTES):
                    lane.sealed.append(Calls(version, frame))
                    frame, calls, filled_bytes = [], 0, 0
                frame.append(group)
                calls += length
                filled_bytes += size
            lane.sealed.append(Calls(version, frame))
        lane.groups = []
        lane.waiting_calls = lane.waiting_bytes = 0

    def _return(self, lane: Lane, message: Replies) -> None:
        """Replies of a partition, to the clients that wait for them."""
        if message.incarnation != lane.incarnation:
            self.frames_of_dead_partitions += 1
            return
        lane.address.lsn = max(lane.address.lsn, message.lsn)
        partition, incarnation, lsn = message.partition, message.incarnation, message.lsn
        parts: dict[int, Replies] = {}
        for group in message.groups:
            part = parts.get(group.client_id)
            if part is None:
                part = parts[group.client_id] = Replies(partition, incarnation, lsn, [], [])
            part.groups.append(group)
        for error in message.errors:
            part = parts.get(error.client_id)
            if part is None:
                part = parts[error.client_id] = Replies(partition, incarnation, lsn, [], [])
            part.errors.append(error)
        for client_id, part in parts.items():
            calls = len(part.errors)
            result_bytes = 0
            for group in part.groups:
                calls += len(group.numbers)
                result_bytes += memoryview(group.results).nbytes
            self.calls_answered += calls
            account = self._settle(lane, client_id, calls)
            if account is not None and calls:
                account.bytes_a_reply = max(result_bytes // calls, account.bytes_a_reply // 2)
            if account is not None and not account.closed:
                self._outbox.append((account.identity, part))

    def _settle(self, lane: Lane, client_id: int, calls: int) -> Account[bytes] | None:
        """`calls` of this client are over in this partition. Returns the account, closed or not."""
        owed = lane.owed.get(client_id, 0)
        window = lane.windows.get(client_id) if lane.windows else None
        if window is not None:
            left = owed - window.held_calls
            calls = min(calls, left)
            cost_bytes = window.cost_bytes if calls == left else window.cost_bytes * calls // left
            window.cost_bytes -= cost_bytes
            lane.windows_bytes -= cost_bytes
            del lane.windows[client_id]
            if calls < owed:
                lane.windows[client_id] = window  # the last one: others have their turn before it
            if lane.is_crowded:
                lane.is_crowded = False
                for waiting in lane.windows.values():
                    self._release(lane, waiting)
                    if lane.is_crowded:
                        break
            else:
                self._release(lane, window)
        if calls < owed:
            lane.owed[client_id] = owed - calls
        elif owed:
            calls = owed
            del lane.owed[client_id]
        else:
            calls = 0
        account = self.door.by_client.get(client_id)
        if calls:
            lane.bytes_in_flight -= lane.bytes_in_flight * calls // lane.in_flight
            lane.in_flight -= calls
            if account is not None:
                self.door.answered(account, calls)
        return account

    def _answer(self, account: Account[bytes], errors: list[CallError]) -> None:
        """Refuses calls that were counted by the door and went nowhere."""
        self.calls_refused += len(errors)
        self.door.answered(account, len(errors))
        if not account.closed:
            self._outbox.append((account.identity, Replies(-1, 0, 0, [], errors)))

    def _give_up(self, lane: Lane, reason: str, *, tells: bool = False) -> None:
        """Ends everything that this lane owes. What never left is answered Unavailable; nobody knows about the rest.

        `tells`: those who wait for it. No topology will: the partition lives.
        """
        parts: dict[int, list[CallError]] = {}
        for window in lane.windows.values():
            self._release(lane, window, everything=True)
        for message in [*lane.sealed, Calls(0, lane.groups)]:
            if isinstance(message, EverywhereCall):
                error = CallError(message.client_id, message.number, "Unavailable", reason)
                parts.setdefault(message.client_id, []).append(error)
                continue
            for group in message.groups:
                refuse(group, "Unavailable", reason, parts.setdefault(group.client_id, []))
        lane.sealed.clear()
        lane.groups = []
        lane.waiting_calls = lane.waiting_bytes = 0
        for client_id, errors in parts.items():
            self.calls_refused += len(errors)
            self.calls_forwarded -= len(errors)
            account = self.door.by_client.get(client_id)
            if account is not None and not account.closed:
                self._outbox.append((account.identity, Replies(lane.partition, lane.incarnation, 0, [], errors)))
        for client_id, calls in list(lane.owed.items()):
            account = self._settle(lane, client_id, calls)
            have_left = calls > len(parts.get(client_id, ()))
            if tells and have_left and account is not None and not account.closed:
                self._outbox.append((account.identity, Lost(lane.partition, lane.incarnation, reason)))

    def _adopt(self, account: Account[bytes], topology: Topology) -> None:
        known = self.welcome.topology
        if known is not None and topology.version < known.version:
            return
        addresses = list(topology.partitions)
        numbers = [address.partition for address in addresses]
        if topology.coordinator is not None:
            numbers.append(topology.coordinator.partition)
        if numbers != list(range(len(numbers))):
            self.door.garbage(account.identity, "the partitions of a topology are 0, 1, 2, …, then the coordinator")
            return
        if not self.lanes:
            self._partitions = len(addresses)
            self._owners = slot_owners(self._partitions)
            self.lanes = [Lane(address) for address in addresses]
            if self._partitions > 1:
                self._coordinator = self._partitions
                self.lanes.append(Lane(PartitionAddress(self._coordinator, 0, "", 0, 0), "the coordinator"))
        if len(addresses) != self._partitions:
            self.door.garbage(account.identity, "the number of partitions can't change")
            return
        if self._coordinator is not None:
            addresses.append(topology.coordinator or PartitionAddress(self._coordinator, 0, "", 0, 0))
        for lane, address in zip(self.lanes, addresses, strict=True):
            if address.incarnation != lane.incarnation or address.ipc_path != lane.address.ipc_path:
                self._give_up(lane, f"{lane.name} was lost before this call left")
                lane.incarnation = address.incarnation
                lane.connection += 1
            else:
                address.lsn = max(address.lsn, lane.address.lsn)
                if topology.catalog_version != self.door.catalog_version:
                    for window in lane.windows.values():
                        self._release(lane, window, everything=True)
                    if lane.groups:
                        self._seal(lane)
            lane.address = address
        self._joint = frozenset(info.name for info in topology.procedures if info.joint)
        self.door.catalog_version = topology.catalog_version
        self.welcome = Welcome(PROTOCOL_VERSION, 0, topology)
        news = topology if known is not None else self.welcome  # without a topology nobody has been welcomed
        for client in self.door.by_client.values():
            if not client.closed:
                self._outbox.append((client.identity, news))

    def _ask_supervisor(self, account: Account[bytes], admin: Admin) -> None:
        under_way = sum(1 for command in self._commands.values() if command.account is account)
        if self.supervisor is None or self.supervisor.closed:
            self._outbox.append((account.identity, failed(admin.number, "Unavailable", "the supervisor is not there")))
        elif under_way >= COMMANDS_A_CLIENT or len(self._commands) >= COMMANDS:
            self._outbox.append((account.identity, failed(admin.number, "Overloaded", "too many commands under way")))
        else:
            self._last_command += 1
            self._commands[self._last_command] = Command(account, admin.number)
            self._outbox.append((self.supervisor.identity, Admin(self._last_command, admin.command, admin.body)))

    def _drop_commands(self, reason: str) -> None:
        """They have been passed on, and may have worked."""
        for command in self._commands.values():
            if not command.account.closed:
                self._outbox.append((command.account.identity, failed(command.number, "Indeterminate", reason)))
        self._commands.clear()


def _is_full(lane: Lane, account: Account[bytes], owed: int, size: int) -> bool:
    """Whether there is no room for the last of `owed` calls of a client, of so many bytes.

    No client may have more here than it leaves free, and those that have more than a few leave some alone: they can't
    take the last place from one that makes a call now and then, however many they are.
    """
    most_calls = CALLS_IN_FLIGHT_A_PARTITION - (RESERVED_CALLS if owed > FEW_CALLS else 0)
    return (
        lane.in_flight + owed > most_calls
        or lane.bytes_in_flight + max(account.bytes_in_flight, size) > BYTES_IN_FLIGHT_A_PARTITION
    )


def size_bytes(group: CallGroup) -> int:
    """At least as many bytes as the group takes in a frame: numbers of 9 bytes, hash slots of 3, 4 a character."""
    return len(group.args) + 12 * len(group.numbers) + 4 * len(group.procedure) + 64


def failed(number: int, code: str, text: str) -> AdminReply:
    return AdminReply(number, code, {"message": text})
