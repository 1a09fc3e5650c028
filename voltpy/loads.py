"""What the supervisor decides about procedures and schema: which the cluster has, and the load that replaces them.

Loading procedures is a commit in two phases: all who run them, the partitions and the coordinator, compile the new ones
beside the old ones (PrepareLoad); when all of them did, and say the same about them, the new ones are made durable
(Persist), and that is the decision: a process that dies from here on starts with them. Then all switch, and clients
learn the new catalog version.

A change of the schema is such a load, of the procedures that there are for a schema that is new:

    preparing   all compile, check their rows, build indexes: calls go on, for as long as it takes
    quieting    the coordinator ends its batches and begins no more (HoldBatches): none will see half of the change.
                First of all, where the rows must not change between the check and the switch (`cuts_first`)
    Persist     schema.json has the new schema: it happens
    switching   each switches between two calls; calls by the old catalog version are answered stale from then on
    done        all have switched, a process that died meanwhile by starting anew: only now clients learn the new
                version, so nobody can hear of the change and then meet a partition where it has not happened
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct, field
from msgspec.structs import replace

from voltpy.actions import Actions, Kill, Persist
from voltpy.child import Child
from voltpy.cut import CUT_LIMIT_S, Cut
from voltpy.messages import (
    BatchesHeld,
    DiscardLoad,
    LoadPrepared,
    PrepareLoad,
    ProcedureInfo,
    StatusReply,
    SwitchLoad,
)
from voltpy.schema import Schema, to_json

LOAD_LIMIT_S = 30.0


class Load(Struct, eq=False):
    """A load of procedures between its first message and its decision; a change of the schema until all have switched.

    `schema`: the new one; None: procedures alone are loaded. `kind`: of the statement. `cut`: for
    a new schema, unless there is nothing that crosses partitions. `is_being_stored`: from when that is asked for, so
    nothing but its failure can stop it any more. `unswitched`: who has still to switch, once it is decided.
    """

    admin_number: int
    catalog_version: int
    path: str
    source: str
    deadline_s: float
    schema: Schema | None = None
    kind: str = ""
    cut: Cut | None = None
    is_cut: bool = False
    is_being_stored: bool = False
    prepared: dict[int, list[ProcedureInfo]] = field(default_factory=dict)
    unswitched: set[int] | None = None

    @property
    def what(self) -> str:
        return "procedures" if self.schema is None else "schema"


class Loads:
    """One at a time. `refusal`, where it is taken: why none can begin now; empty: one can.

    `version` is the catalog version that every worker must have, `announced` the one that clients route by, with
    `procedures`, once these are `known`. `publish` tells clients of them.
    """

    def __init__(
        self,
        partitions: list[Child],
        coordinator: Child,
        actions: Actions,
        version: int,
        new_number: Callable[[], int],
        publish: Callable[[], None],
    ) -> None:
        self.version = version
        self.announced = version
        self.procedures: list[ProcedureInfo] = []
        self.known = False  # the first partition that serves tells them
        self._coordinator = coordinator
        self._workers = [*partitions, coordinator]
        self._actions = actions
        self._versions_used = version
        self._new_number = new_number
        self._publish = publish
        self._load: Load | None = None

    @property
    def is_loading(self) -> bool:
        return self._load is not None

    @property
    def is_changing_schema(self) -> bool:
        return self._load is not None and self._load.schema is not None

    def load_procedures(self, admin_number: int, source: str, path: str, refusal: str, now_s: float) -> None:
        if refusal:
            return self._actions.refuse(admin_number, "Unavailable", refusal)
        load = self._load = Load(admin_number, self._next_version(), path, source, now_s + LOAD_LIMIT_S)
        self._ask_to_prepare(load)

    def change_schema(
        self, admin_number: int, schema: Schema, kind: str, source: str, path: str, refusal: str, now_s: float, *,
        cuts_first: bool,
    ) -> None:  # fmt: skip
        if refusal:
            return self._actions.refuse(admin_number, "Unavailable", refusal)
        version = self._next_version()
        schema = replace(schema, catalog_version=version)
        load = self._load = Load(admin_number, version, path, source, now_s + LOAD_LIMIT_S, schema, kind)
        if len(self._workers) > 2:
            load.cut = Cut(self._new_number(), self._coordinator, self._actions)
        self._actions.report("schema_change_begun", kind=kind, catalog_version=version)
        if cuts_first and load.cut is not None:
            load.cut.hold(now_s)
        else:
            self._ask_to_prepare(load)

    def tick(self, now_s: float) -> None:
        load = self._load
        if load is None or load.is_being_stored:
            return
        if load.cut is not None and now_s >= load.cut.until_s:
            why = f"transactions across partitions were not over within {CUT_LIMIT_S:.0f} s; nothing changed"
            return self._give_up(load, "Unavailable", why)
        if now_s >= load.deadline_s:
            late = [child for child in self._workers if child.number not in load.prepared]
            if load.schema is not None:  # an index may take its time, as long as the process can say so
                late = [child for child in late if now_s - child.heard_at_s > LOAD_LIMIT_S]
                if not late:
                    return
            names = ", ".join(child.name for child in late)
            self._give_up(load, "Unavailable", f"no answer from {names} within {LOAD_LIMIT_S:.0f} s")
            # The file may never end when it is executed: started again, they have the old one.
            for child in late:
                self._actions.warn("killed_in_load", child=child.name)
                self._actions.add(Kill(child.number))

    def worker_died(self, child: Child) -> None:
        load = self._load
        if load is not None and not load.is_being_stored:
            why = f"{child.name} died while the new {load.what} was being prepared; nothing changed"
            self._give_up(load, "Unavailable", why)

    def prepared(self, child: Child, message: LoadPrepared, now_s: float) -> None:
        load = self._load
        if load is None or message.catalog_version != load.catalog_version or load.is_being_stored:
            return
        if message.error:
            return self._give_up(load, message.code, message.error)
        load.prepared[child.number] = message.procedures
        if len(load.prepared) < len(self._workers):
            return
        if any(_of_users(infos) != _of_users(load.prepared[0]) for infos in load.prepared.values()):
            why = "the partitions read different procedures out of the same file"
            return self._give_up(load, "SchemaError", why)
        if load.cut is None:
            self._persist(load)
        elif not load.is_cut:
            load.cut.hold(now_s)
        elif load.cut.is_good(now_s):
            self._persist(load)  # else the next tick gives it up

    def batches_held(self, message: BatchesHeld, now_s: float) -> None:
        """Nothing crosses partitions any more, until the change is over."""
        load = self._load
        if load is None or load.cut is None or load.is_cut or not load.cut.is_held(message, now_s):
            return
        load.is_cut = True
        if load.prepared:
            self._persist(load)
        else:
            self._ask_to_prepare(load)

    def persisted(self, error: str) -> None:
        """The answer to Persist; `error` is empty when the new procedures, or the new schema, are durable."""
        load = self._load
        if load is None:
            return
        if error:
            return self._give_up(load, "ClusterError", f"the {load.what} could not be stored: {error}")
        self.version = load.catalog_version
        for child in self._workers:
            child.switch_asked = child.asked
            child.procedures = _names(load.prepared[child.number])
            self._actions.tell(child, SwitchLoad(load.catalog_version))
        if load.schema is not None:
            load.unswitched = {child.number for child in self._workers}
        else:
            self._end(load)

    def check(self, child: Child, reply: StatusReply) -> None:
        """Every worker must use the stored procedures; one that doesn't gets them by starting again."""
        if reply.catalog_version == self.version:
            child.procedures = _names(reply.procedures)
            if not self.known and child is not self._coordinator:
                self.known = True
                self.procedures = reply.procedures
                self._publish()
            self.switched(child)
        elif reply.number > child.switch_asked:
            # Asked after it was told to switch, and messages keep their order: it will not switch any more.
            self._actions.warn("wrong_procedures", child=child.name, catalog_version=reply.catalog_version)
            self._actions.add(Kill(child.number))

    def switched(self, child: Child) -> None:
        """The child has the new schema, or will not come back. The change is over when that is true of all."""
        load = self._load
        if load is None or load.unswitched is None:
            return
        load.unswitched.discard(child.number)
        if not load.unswitched:
            self._end(load)

    def _next_version(self) -> int:
        """A number of its own for every attempt: a late answer to an attempt that was given up names that one."""
        self._versions_used += 1
        return self._versions_used

    def _ask_to_prepare(self, load: Load) -> None:
        encoded = b"" if load.schema is None else to_json(load.schema)
        for child in self._workers:
            self._actions.tell(child, PrepareLoad(load.catalog_version, load.source, load.path, encoded))

    def _persist(self, load: Load) -> None:
        load.is_being_stored = True
        self._actions.add(Persist(load.catalog_version, load.path, load.source, load.schema))

    def _end(self, load: Load) -> None:
        self._load = None
        self.announced = load.catalog_version
        self.procedures = load.prepared[0]
        if load.cut is not None:
            load.cut.resume()
        # Before the answer: its reader's next call shall already be routed by the new procedures.
        self._publish()
        version, names = load.catalog_version, _names(self.procedures)
        if load.schema is not None:
            self._actions.report("schema_changed", kind=load.kind, catalog_version=version)
            self._actions.answer(load.admin_number, {"catalog_version": version, "kind": load.kind})
        else:
            self._actions.report("procedures_switched", catalog_version=version, path=load.path)
            self._actions.answer(load.admin_number, {"catalog_version": version, "procedures": names})

    def _give_up(self, load: Load, code: str, message: str) -> None:
        self._load = None
        for child in self._workers:
            if child.state == "serving":
                self._actions.tell(child, DiscardLoad(load.catalog_version))
        if load.cut is not None:
            load.cut.resume()
        self._actions.refuse(load.admin_number, code, message)


def _names(infos: list[ProcedureInfo]) -> list[str]:
    return sorted(info.name for info in infos)


def _of_users(infos: list[ProcedureInfo]) -> list[ProcedureInfo]:
    """Without the engine's own, which have a dot in their names: only partitions have those."""
    return [info for info in infos if "." not in info.name]
