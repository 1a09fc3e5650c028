"""A view as every process sees it: which rows of its base table it groups, by what, and what it keeps of each group.

A view is stored as a table (`voltpy.schema.Table`) of one row a group. Its columns are, in this order, those of the
SELECT that declares it, and hidden ones, which only keep it up to date:

    a count of rows                  where no column is COUNT(*): a group without rows is deleted
    a count of values                of each x that can be NULL and is summed: SUM of none is NULL
    the partition's own key          where the partition column of the base is no key of the view: see `own_key`

Its primary key are the group's keys, in the order of GROUP BY, behind the partition's own key where there is one. They
may be NULL, which no other primary key may: NULLs are one group.
"""

from __future__ import annotations

from msgspec import Struct

from voltpy.hash_slot import hash_slot


class Expression(Struct, frozen=True, array_like=True):
    """A piece of the SELECT that declares the view: see voltpy.sql.stored_expression, which reads and writes it.

    `kind` column (`extra` is its name), constant, slot, or an operator's name; `extra` is JSON, of what else it means.
    """

    kind: str
    type: str
    nullable: bool
    extra: str = ""
    arguments: tuple[Expression, ...] = ()


class Kept(Struct, frozen=True):
    """One column that is kept up to date: rows, count, sum, min or max of `argument`, which rows has not.

    `count` of a sum: the column that counts the values which are not NULL; "" where none can be.
    """

    column: str
    kind: str
    argument: Expression | None = None
    count: str = ""


class View(Struct, frozen=True):
    """`query`: the SELECT, with single spaces; `keys` make the group's columns, in the order of the primary key.

    `own_key`: the hidden column for the partition's own key, "" where there is none. `hidden`: how many of the table's
    columns are hidden, the last ones.
    """

    base: str
    query: str
    where: tuple[Expression, ...]
    keys: tuple[Expression, ...]
    kept: tuple[Kept, ...]
    hidden: int
    own_key: str = ""

    @property
    def arguments(self) -> list[Expression]:
        """Those of the aggregates, each once: a row's contribution to its group is the values of these."""
        return list(dict.fromkeys(each.argument for each in self.kept if each.argument is not None))

    @property
    def is_partial(self) -> bool:
        """Whether several partitions may each have a part of a group."""
        return bool(self.own_key)


def own_key(owned: bytes) -> int:
    """The smallest number that lives in the partition that owns these hash slots: its parts of groups are under it.

    So to everything else such a view is a table that is partitioned like others, whose rows are where they belong.
    """
    key = 0
    while not owned[hash_slot(key)]:
        key += 1
    return key
