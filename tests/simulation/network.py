"""The network between simulated processes: connections that are slow, break, and come back.

Frames of one connection keep their order, as those of any stream socket do; those of different ones overtake each
other. A *door* is where a process listens, under a name. Three kinds of connections lead there:

    Line    made once, and broken for good when either end dies or the network breaks it: what clients have
    Stream  a Line of which what was under way when its caller closed it arrives: what the coordinator has
    Dealer  as a ZeroMQ DEALER: waits until somebody listens, and connects again, as somebody new, when the door's
            process has died; what was under way then is lost, what was not sent yet reaches whoever listens next.
            What was under way when its caller closed it arrives, perhaps after what the next one brings

Where two machines or processes can't reach each other for a while ("cut"), frames wait; a Line that waits for longer
than `BREAK_S` breaks. A Dealer joins processes of one machine, whose connections don't break while both live.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable

from tests.simulation.world import Process, World

RECONNECT_S = 0.05
BREAK_S = 0.6


class Network:
    """`slowness` multiplies delays. `doors` by name."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.doors: dict[str, Door] = {}
        self.connections: list[Line] = []
        self.slowness = 1.0
        self.outcasts: set[Process] = set()  # whose supervisor is gone: what they have is what they keep
        self.delivers_what_the_dead_sent = False  # over streams, as the kernel does
        self._cut_until_s: dict[frozenset[str], float] = {}
        self._counted = 0

    def cut(self, one: str, other: str, time_s: float) -> None:
        """Between these two, nothing arrives for so long."""
        self._cut_until_s[frozenset((one, other))] = self.world.now_s + time_s

    def heal(self) -> None:
        self._cut_until_s.clear()
        self.slowness = 1.0

    def reachable_at_s(self, one: str, other: str) -> float:
        return self._cut_until_s.get(frozenset((one, other)), 0.0)

    def delay_s(self, slowness: float = 1.0) -> float:
        rng = self.world.rng
        if rng.random() < 0.02:
            return self.slowness * rng.uniform(1e-4, 5e-3)
        return self.slowness * slowness * rng.uniform(5e-6, 1e-4)

    def number(self) -> int:
        self._counted += 1
        return self._counted

    def process_died(self, process: Process) -> None:
        """Every connection of the process breaks, at both ends; what it had received and not taken is gone."""
        self.outcasts.discard(process)
        door = self.doors.get(process.name)
        was_reached = door is None or door.process is process
        if was_reached:
            self.doors.pop(process.name, None)
        for line in list(self.connections):
            is_its_own = line.caller_name == process.name and not line.caller.is_alive
            if is_its_own and isinstance(line, Stream) and self.delivers_what_the_dead_sent:
                line.close()
            elif is_its_own or line.leads_to(process, is_reached=was_reached):
                line.break_()

    def cast_out(self, process: Process) -> None:
        """Nobody reaches it any more by a new connection, nor does it reach anybody; those that it has stay."""
        self.outcasts.add(process)
        self.doors.pop(process.name, None)


class _Everything:
    """Whatever is watched may have stirred."""

    def __contains__(self, fd: int) -> bool:
        return True

    def clear(self) -> None:
        pass


class Peer:
    """One end of a connection as the door sees it: the identity of whoever is there."""

    __slots__ = ("identity", "line")

    def __init__(self, line: Line, number: int) -> None:
        self.line = line
        self.identity = number.to_bytes(5, "big")


class Door:
    """Where a process listens. It has the interface of voltpy.door_sockets.Sockets, and can find a peer by identity."""

    def __init__(self, network: Network, process: Process, name: str) -> None:
        self.ended: list[Hashable] = []
        self.stirred = _Everything()
        self.held_bytes = 0
        self.process = process
        self._network = network
        self._arrived: deque[tuple[Peer, bytes]] = deque()
        self._peers: dict[bytes, Peer] = {}
        network.doors[name] = self

    def watch(self, fd: int, *, to_write: bool = False) -> None:
        pass

    unwatch = watch

    def wait(self, timeout_s: float) -> None:
        if self._arrived:
            # Even a process that never runs out of work takes its time over it.
            self.process.work(self._network.world.rng.uniform(1e-5, 1e-4))
        else:
            self.process.wait(max(timeout_s, 2e-5))

    def receive(self) -> tuple[Hashable, bytes | None] | None:
        if not self._arrived:
            return None
        self.process.step("receive")
        return self._arrived.popleft()

    def has_input(self) -> bool:
        return bool(self._arrived)

    def admit(self, identity: Hashable, *, first: bool = False) -> None:
        pass

    def send(self, identity: Hashable, frame: bytes) -> bool:
        self.process.step("send")
        peer = self._peers.get(identity) if isinstance(identity, bytes) else identity
        if not isinstance(peer, Peer) or peer.line.peer is not peer:
            return False
        peer.line.send_down(frame)
        return True

    def hang_up(self, identity: Hashable) -> None:
        pass  # no process ends by itself

    def close(self, linger_ms: int) -> None:
        pass

    # The network's side.

    def connected(self, peer: Peer) -> None:
        self._peers[peer.identity] = peer

    def take(self, peer: Peer, frame: bytes) -> None:
        self._arrived.append((peer, frame))
        self.process.wake()

    def lost(self, peer: Peer) -> None:
        self._peers.pop(peer.identity, None)
        self.ended.append(peer)


class Line:
    """One connection, made once. `arrived` holds what has come down to the caller; `caller` is woken by it."""

    reconnects = False

    def __init__(self, network: Network, caller: Process, caller_name: str, door_name: str) -> None:
        self.network = network
        self.caller = caller
        self.caller_name = caller_name
        self.door_name = door_name
        self.arrived: deque[bytes] = deque()
        self.peer: Peer | None = None
        self.is_broken = False
        self.is_held = False  # what is sent up does not leave
        self.duplicates = 0.0  # how many of the frames arrive twice
        self._slowness = network.world.rng.choice((1.0, 1.0, 3.0, 30.0))
        self._door: Door | None = None
        self._up: deque[bytes] = deque()
        self._generation = 0  # grows when it breaks: what was under way arrives nowhere
        self._up_at_s = self._down_at_s = 0.0
        network.connections.append(self)
        self._later(self._connect)

    def send_up(self, frame: bytes) -> None:
        self._up.append(frame)
        if self._door is not None:
            self._let_go_up()

    def send_down(self, frame: bytes) -> None:
        self._down_at_s = self._travels(self._down_at_s, lambda: self._arrive_down(frame))

    def stall(self, time_s: float) -> None:
        """Nothing that is sent up from now on arrives before so long is over."""
        self._up_at_s = max(self._up_at_s, self.network.world.now_s + time_s)

    def hold(self) -> None:
        """Nothing that is sent up from now on arrives before it is let go; the caller may have died meanwhile."""
        self.is_held = True

    def let_go(self) -> None:
        self.is_held = False
        if self._door is not None:
            self._let_go_up()

    def leads_to(self, process: Process, *, is_reached: bool) -> bool:
        """Whether it is connected there, or would be, where new connections reach this process."""
        if self._door is None:
            return is_reached and self.door_name == process.name
        return self._door.process is process

    def close(self) -> None:
        """The caller hangs up."""
        self.is_broken = True
        self._disconnect()
        if self in self.network.connections:
            self.network.connections.remove(self)

    def break_(self) -> None:
        """The connection breaks: frames under way are lost, both ends hear of it."""
        if self.is_broken:
            return
        self._disconnect()
        if self.reconnects:
            self._later(self._connect, RECONNECT_S)
        else:
            self.is_broken = True
            self.network.connections.remove(self)
            self.network.world.after(self.network.delay_s(), self.caller.wake)

    def _disconnect(self) -> None:
        self._generation += 1
        peer, door = self.peer, self._door
        self.peer = self._door = None
        if peer is not None and door is not None and door.process.is_alive:
            door.lost(peer)

    def _connect(self) -> None:
        if self.is_broken or self._door is not None:
            return
        door = self.network.doors.get(self.door_name)
        if door is None or not door.process.is_alive or self._is_cut() or self.caller in self.network.outcasts:
            if self.reconnects:
                self._later(self._connect, RECONNECT_S)
            else:
                self.break_()
            return
        self._door = door
        self.peer = Peer(self, self.network.number())
        door.connected(self.peer)
        self._let_go_up()

    def _is_cut(self) -> bool:
        return self.network.reachable_at_s(self.caller_name, self.door_name) > self.network.world.now_s

    def _let_go_up(self) -> None:
        while self._up and not self.is_held:
            frame = self._up.popleft()
            self._up_at_s = self._travels(self._up_at_s, lambda frame=frame: self._arrive_up(frame))  # type: ignore[misc]

    def _travels(self, after_s: float, arrive: Callable[[], None]) -> float:
        """When a frame that leaves now arrives: not before the one in front of it."""
        network, generation = self.network, self._generation
        world = network.world
        reachable_s = network.reachable_at_s(self.caller_name, self.door_name)
        when_s = max(world.now_s + network.delay_s(self._slowness), after_s + 1e-9, reachable_s)
        if when_s > world.now_s + BREAK_S and not self.reconnects:
            world.after(BREAK_S, lambda: self.break_() if generation == self._generation else None)

        def arrive_unless_broken() -> None:
            if generation == self._generation:
                arrive()
                if self.duplicates and world.rng.random() < self.duplicates and generation == self._generation:
                    world.fault("duplicate frame", f"{self.caller_name} {self.door_name}")
                    arrive()

        world.at(when_s, arrive_unless_broken)
        return when_s

    def _arrive_up(self, frame: bytes) -> None:
        if self._door is not None and self.peer is not None:
            self._door.take(self.peer, frame)

    def _arrive_down(self, frame: bytes) -> None:
        self.arrived.append(frame)
        self.caller.wake()

    def _later(self, action: Callable[[], None], least_s: float = 0.0) -> None:
        self.network.world.after(least_s + self.network.delay_s(), action)


class Stream(Line):
    """A connection over a Unix socket: what was sent before the caller hung up arrives before the door hears of it."""

    def close(self) -> None:
        self.is_broken = True
        if self in self.network.connections:
            self.network.connections.remove(self)
        if not self.is_held:
            self.network.world.at(self._up_at_s, self._disconnect)

    def let_go(self) -> None:
        super().let_go()
        if self.is_broken:
            self.network.world.at(self._up_at_s, self._disconnect)


class Dealer(Stream):
    """A connection that is made again whenever it breaks."""

    reconnects = True
