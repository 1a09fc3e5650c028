"""As tests.simulation.broken, where the schema changes: builds by which a change is no longer all or nothing.

`python -m tests.simulation --broken NAME` runs such a build with `--schema`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from coordinator.router import Router
from coordinator.server import Server as Coordinator
from coordinator.transactions import Transactions
from partitions.lookups import Lookups
from partitions.schema_change import SchemaChange
from partitions.view_build import ViewBuild
from tests.simulation import processes
from voltpy import data_directory, schema_queue
from voltpy.data_directory import DataDirectory
from voltpy.door import Door
from voltpy.errors import ClusterError
from voltpy.loads import Loads
from voltpy.messages import SwitchLoad

Put = Callable[[Any, str, Any], None]


def _schema_is_not_flushed(put: Put) -> None:
    real = DataDirectory.write_schema

    def write_schema(directory: Any, schema: Any) -> None:
        with mock.patch.object(os, "fsync"):
            real(directory, schema)

    put(DataDirectory, "write_schema", write_schema)


def _unflushed_schema_is_refused(put: Put) -> None:
    """What is in place already is said to have come to nothing."""
    put(data_directory, "Unflushed", ClusterError)


def _schema_is_stored_last(put: Put) -> None:
    """All switch, and hear of it, before it is on disk."""
    real = Loads._persist

    def persist(loans: Any, load: Any) -> None:
        for child in loans._workers:
            loans._actions.tell(child, SwitchLoad(load.catalog_version))
        real(loans, load)

    put(Loads, "_persist", persist)


def _clients_hear_before_all_have_switched(put: Put) -> None:
    real = Loads.persisted

    def persisted(loads: Any, error: str) -> None:
        load = loads._load
        real(loads, error)
        if load is not None and loads._load is load:
            loads._end(load)

    put(Loads, "persisted", persisted)


def _stale_calls_run(put: Put) -> None:
    """By the old catalog version in a partition that has switched, and by the new one where that has not happened."""
    for name in ("_admit_calls", "_admit_everywhere"):
        real = getattr(Door, name)

        def admit(door: Any, account: Any, call: Any, *arguments: Any, real: Any = real) -> Any:
            if door.at_partition is not None:
                call.catalog_version = door.catalog_version
            return real(door, account, call, *arguments)

        put(Door, name, admit)


def _batches_go_on_while_partitions_switch(put: Put) -> None:
    real = Loads.change_schema

    def change_schema(loads: Any, *arguments: Any, **options: Any) -> None:
        with mock.patch("voltpy.loads.Cut", return_value=None):
            real(loads, *arguments, **options)

    put(Loads, "change_schema", change_schema)
    put(Transactions, "is_holding", property(lambda core: True))


def _tables_are_parted_before_batches_end(put: Put) -> None:
    """Rows come after a partition has found that there are none."""
    put(schema_queue, "repartitioned", lambda *_: [])


def _a_start_believes_an_unflushed_schema(put: Put) -> None:
    """What a start has read, others hear of, and a power failure takes it back."""
    real = DataDirectory._load

    def load(directory: Any, partitions: Any) -> None:
        with mock.patch.object(data_directory, "_flush_directory"):
            real(directory, partitions)

    put(DataDirectory, "_load", load)


def _coordinators_go_on_when_a_hold_is_over(put: Put) -> None:
    """Though they have prepared a schema that may be stored by now."""
    put(Coordinator, "_is_in_doubt_of_schema", lambda *_: False)


def _half_a_change_is_stored(put: Put) -> None:
    """A partition that could not prepare does not keep the others from it."""
    real = Loads.prepared

    def prepared(loads: Any, child: Any, message: Any, now_s: float) -> None:
        if message.error and message.code == "DuplicateKey":
            message.error, message.procedures = "", next(iter(loads._load.prepared.values()), []) if loads._load else []
        real(loads, child, message, now_s)

    put(Loads, "prepared", prepared)


def _changes_given_up_stay(put: Put) -> None:
    put(SchemaChange, "abandon", lambda change: None)


def _built_indexes_miss_changes(put: Put) -> None:
    put(Lookups, "_seen_pages", lambda *_: ([], []))


def _built_views_miss_changes(put: Put) -> None:
    put(ViewBuild, "changed", lambda *_: None)


def _built_views_count_what_comes_later_twice(put: Put) -> None:
    real = ViewBuild.changed

    def changed(build: Any, key: Any, old: Any, was_at: int, row: Any, is_at: int) -> None:
        real(build, key, old, 0, row, 0)

    put(ViewBuild, "changed", changed)


def _commands_of_each_router_count_from_one(put: Put) -> None:
    real = Router.__init__
    put(Router, "__init__", lambda router, door, first_command: real(router, door, 1))


def _a_process_starts_with_the_first_schema(put: Put) -> None:
    real = processes._stored
    first: dict[Path, Any] = {}
    put(processes, "_stored", lambda data: first.setdefault(data, real(data)))


SCHEMA_BROKEN: dict[str, Callable[[Put], None]] = {
    name[1:]: function
    for name, function in list(globals().items())
    if name.startswith("_") and callable(function) and getattr(function, "__module__", "") == __name__
}
