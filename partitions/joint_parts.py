"""This partition's part of what runs in all of them at once, for the coordinator: of a joint call, and of a statement.

    part_of        a call of a procedure that is declared everywhere=True and may change copies: its body runs, is
                   undone, and what it changed is to be prepared
    fragments_of   what a SELECT reads here, for each statement of a read round

    what the body touches     a joint call's part         a statement's
    is here                   its result, and changes     its streams
    is on disk, or unplanned  NotHere: it waits           NotHere: it waits
    is lent or in doubt       an error for the caller     None: the round is asked again

Nothing stays of either; nothing here knows of batches.
"""

from __future__ import annotations

from msgspec import Raw

from partitions.executor import Executor, Part
from partitions.order_queue import may_be_awaited
from partitions.order_session import REPORT_BYTES, bytes_of_changes
from partitions.store import Store
from voltpy.call_error import call_error
from voltpy.errors import ConstraintViolation, Error, ReadOnly, Unavailable
from voltpy.messages import EverywhereCall, Fragment, FragmentAnswer, RunDirected, TableChanges
from voltpy.not_here import NotHere


def part_of(
    order: RunDirected, store: Store, executor: Executor
) -> tuple[Part, list[TableChanges], list[TableChanges]]:
    """What became of it, all that it changes here, and what of that it must change in the same way in every copy.

    Raises NotHere when pages or plans are to come, Unavailable when it touches what is lent or in doubt,
    ConstraintViolation for changes that are too large, ReadOnly.
    """
    call = EverywhereCall(0, order.client_id, order.procedure, order.number, order.args, order.now_us)
    try:
        part, changes = executor.run_part(call)
    except ReadOnly:
        store.wait_for_left()
        raise
    if part.missed:
        if not all(map(may_be_awaited, part.missed)):
            raise Unavailable("a key is lent to another batch, or in doubt")
        store.misses.extend(part.missed)
        raise NotHere
    copies = [_sorted(change) for change in changes if store.is_copied(store.tables[change.table])]
    if sum(map(bytes_of_changes, copies)) > REPORT_BYTES:
        raise ConstraintViolation(f"{order.procedure} changes more than {REPORT_BYTES:,} bytes of copied rows")
    return part, changes, copies


def fragments_of(fragments: list[Fragment], store: Store, executor: Executor) -> list[FragmentAnswer] | None:
    """What these say; None where something that they touch is lent or in doubt. Raises NotHere for pages and plans.

    Together they are as large as a frame of reports may be: what finds no room is told so.
    """
    answers: list[FragmentAnswer] = []
    left = REPORT_BYTES
    for fragment in fragments:
        try:
            streams = executor.run_fragment(fragment)
            if len(streams) > left:
                raise ConstraintViolation(
                    f"a partition's part of the answer has {len(streams):,} bytes; the limit is {REPORT_BYTES:,}"
                )
            left -= len(streams)
            answers.append(FragmentAnswer(Raw(streams)))
        except NotHere:
            if all(map(may_be_awaited, store.misses)):
                raise
            store.misses.clear()
            store.undo_batch()
            return None
        except Error as error:
            answer = call_error(1, 1, error)
            answers.append(FragmentAnswer(Raw(b"\x90"), answer.code, answer.message))
        store.undo_batch()  # it may have been poisoned
    return answers


def _sorted(changes: TableChanges) -> TableChanges:
    """In an order that is the same in every copy."""
    return TableChanges(changes.table, sorted(changes.images), sorted(changes.deleted))
