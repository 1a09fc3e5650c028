"""What the router has told a connection of its cluster: where the processes are, and which procedures there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from voltpy.calls import Pending
from voltpy.errors import ProtocolError
from voltpy.lane import Lane, Lanes
from voltpy.messages import PartitionAddress, ProcedureInfo, Topology
from voltpy.routing import no_such, route, routes_alike


class KnownCluster:
    """The newest `topology`, and what follows from it; None before the first one.

    `topologies` counts those that were taken in: a shell compares it to see that something has changed.
    `catalog_version` names the set of `procedures` that calls are routed by. `lanes`: one to each process.
    """

    __slots__ = ("_client_id", "_runaways", "catalog_version", "lanes", "procedures", "topologies", "topology")

    def __init__(self, client_id: int) -> None:
        self.topology: Topology | None = None
        self.topologies = 0
        self.procedures: dict[str, ProcedureInfo] = {}
        self.catalog_version = 0
        self.lanes = Lanes(0)
        self._client_id = client_id
        self._runaways: set[int] = set()

    def route(self, procedure: str, args: Sequence[Any]) -> tuple[Lane, int]:
        """Where a call runs, and its hash slot. Raises UnknownProcedure, and BadArguments where it has no place."""
        info = self.procedures.get(procedure)
        if info is None:
            raise no_such(procedure, self.procedures)
        return route(info, args, self.lanes.owners, self.lanes.coordinator)

    def ran_away(self, call: Pending) -> bool:
        """Whether the call was ended together with its process."""
        return call.number in self._runaways

    def name_of(self, destination: int) -> str:
        return self.lanes[destination].name if 0 <= destination < len(self.lanes) else "the router"

    def is_another(self, topology: Topology) -> bool:
        """Whether it is of another cluster, as far as calls go, than this one: no process is the same."""
        known = self.topology
        return self.lanes.partitions != len(topology.partitions) or (
            known is not None and known.cluster_id != topology.cluster_id
        )

    def learn(self, topology: Topology) -> list[PartitionAddress]:
        """Takes in a newer topology, but for `lanes` and `procedures`, whose changes concern calls on their way.

        Returns the addresses in the order of the lanes that there are to be. Raises ProtocolError.
        """
        addresses = _addresses_in(topology)
        self.topology = topology
        self.topologies += 1
        self._runaways = {runaway.call_number for runaway in topology.runaways if runaway.client_id == self._client_id}
        return addresses

    def learn_procedures(self, topology: Topology) -> set[str]:
        """Takes in its procedures. Returns the names of those whose calls are routed in another way now."""
        former = self.procedures
        self.procedures = {info.name: info for info in topology.procedures}
        self.catalog_version = topology.catalog_version
        return {name for name, info in former.items() if not routes_alike(info, self.procedures.get(name))}


def _addresses_in(topology: Topology) -> list[PartitionAddress]:
    """Where the partitions are, in order, and then the coordinator where there is one. Raises ProtocolError."""
    addresses = sorted(topology.partitions, key=lambda address: address.partition)
    partitions = len(addresses)
    if not addresses or [address.partition for address in addresses] != list(range(partitions)):
        raise ProtocolError("a topology without partitions 0, 1, …")
    if partitions > 1:
        addresses.append(topology.coordinator or PartitionAddress(partitions, 0, "", 0, 0))
        if addresses[-1].partition != partitions:
            raise ProtocolError("a topology whose coordinator has not the number after the last partition's")
    return addresses
