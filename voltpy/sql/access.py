"""In which order a block's sources are joined, and how the rows of each are found: its access path.

A path uses up conditions that it makes true; the rest are tested as soon as all that they need is there. Paths, the
best first:

    get            the primary key is bound: one row at most
    index          indexes whose columns are all bound (several, of INVERTED indexes: their postings are intersected)
    gets           the primary key is one of a list
    hash           a join on equal columns: the source's rows in a dictionary by them, made once a statement
    key_range      an INT primary key between bounds
    index_range    a BTREE index whose first columns are bound, and the next one between bounds
    scan           every row
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from voltpy.schema import Index
from voltpy.sql.bound import Block, Column, Expr, Op, Source, Subquery, all_parts, sources_of
from voltpy.sql.catalogue import Catalogue

_KEY_TYPES = ("INT", "STRING", "BOOL", "TIMESTAMP")
_MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}


class Bound(Struct, frozen=True):
    """One end of a range. `open`: the value itself is outside."""

    value: Expr
    open: bool


class Path(Struct, eq=False):
    """`keys` are values for: the primary key's columns; the list of keys; `columns` of a hash; an index's columns.

    `local` are conditions on the source alone, tested when a hash is made.
    """

    kind: str
    keys: list[Expr] = []
    columns: list[int] = []
    local: list[Expr] = []
    lows: list[Bound] = []
    highs: list[Bound] = []
    indexes: list[tuple[Index, list[Expr]]] = []
    used: list[Expr] = []

    @property
    def single(self) -> bool:
        return self.kind == "get"


class Step(Struct, eq=False):
    """The next source. `on`: what is left of a LEFT JOIN's condition; `filters`: what can be tested behind it."""

    source: Source
    path: Path
    on: list[Expr]
    filters: list[Expr]


_RANK = {"get": 0, "index": 1, "gets": 2, "hash": 3, "key_range": 4, "index_range": 5, "scan": 6}


def steps_of(block: Block, catalogue: Catalogue, correlated: bool) -> tuple[list[Expr], list[Step]]:
    """(conditions that need no source, the steps). `correlated`: the block runs often, so that a hash pays at once."""
    own = {source.number for source in block.sources}
    needs = [(condition, sources_of(condition) & own) for condition in block.where]
    first = [condition for condition, needed in needs if not needed]
    pool = [(condition, needed) for condition, needed in needs if needed]
    waiting = [source for source in block.sources if not source.left]
    lefts = [source for source in block.sources if source.left]
    available: set[int] = set()
    steps: list[Step] = []
    looped = correlated
    while waiting:
        candidates = [
            (_rank(path, source, pool, waiting, own), place, path)
            for place, source in enumerate(waiting)
            for path in [_path(source, [c for c, _ in pool], own, available, catalogue, looped)]
        ]
        _, place, path = min(candidates, key=lambda each: each[:2])
        source = waiting.pop(place)
        available.add(source.number)
        looped = looped or not path.single
        steps.append(Step(source, path, [], _taken(pool, available, path)))
    while lefts:
        ready = [left for left in lefts if _needed(left, own) <= available | {left.number}]
        source = (ready or lefts)[0]
        lefts.remove(source)
        path = _path(source, source.on, own, available, catalogue, looped)
        available.add(source.number)
        looped = looped or not path.single
        on = [condition for condition in source.on if not _among(condition, path.used + path.local)]
        steps.append(Step(source, path, on, _taken(pool, available, Path("scan"))))
    return first, steps


def _needed(source: Source, own: set[int]) -> set[int]:
    needed: set[int] = set()
    for condition in source.on:
        needed |= sources_of(condition) & own
    return needed


def _taken(pool: list[tuple[Expr, set[int]]], available: set[int], path: Path) -> list[Expr]:
    """The conditions that can be tested now and that the path has not seen to; the pool loses them."""
    ready = [condition for condition, needed in pool if needed <= available]
    pool[:] = [each for each in pool if not each[1] <= available]
    return [condition for condition in ready if not _among(condition, path.used + path.local)]


def _among(expr: Expr, exprs: Iterable[Expr]) -> bool:
    return any(expr is each for each in exprs)


def _rank(
    path: Path, source: Source, pool: Sequence[tuple[Expr, set[int]]], waiting: Sequence[Source], own: set[int]
) -> tuple[int, int]:
    """Lower is sooner. Among scans: first what is filtered; last what another source's rows could look up."""
    rank = _RANK[path.kind]
    if path.kind != "scan":
        return rank, 0
    filtered = any(needed == {source.number} for _, needed in pool)
    lookup = (
        len(waiting) > 1
        and source.table is not None
        and _key(source, _equalities(source, [condition for condition, _ in pool], own - {source.number}, own))
    )
    return rank, (0 if filtered else 1) + (2 if lookup else 0)


def _path(
    source: Source, conditions: Sequence[Expr], own: set[int], available: set[int], catalogue: Catalogue, looped: bool
) -> Path:
    """The best way to the source's rows, when those of `available` (and of outer queries) are there."""
    equalities = _equalities(source, conditions, available, own)
    if source.table is not None:
        path = (
            _key(source, equalities)
            or _index(source, equalities, catalogue)
            or _keys(source, conditions, available, own)
        )
        if path is not None:
            return path
    joined = [(column, value, condition) for column, value, condition in equalities if _moves(value)]
    if joined and looped:
        local = [c for c in conditions if sources_of(c) == {source.number} and not _has_query(c)]
        columns = list(dict.fromkeys(column for column, _, _ in joined))
        chosen = [next(each for each in joined if each[0] == column) for column in columns]
        return Path(
            "hash", [value for _, value, _ in chosen], columns, local, used=[condition for _, _, condition in chosen]
        )
    if source.table is not None:
        path = _key_range(source, conditions, available, own) or _index_range(
            source, equalities, conditions, available, own, catalogue
        )
        if path is not None:
            return path
    return Path("scan")


def _moves(value: Expr) -> bool:
    """Whether the value comes from rows, and so changes."""
    return any(isinstance(part, Column) for part in all_parts(value))


def _has_query(condition: Expr) -> bool:
    return any(isinstance(part, Subquery) for part in all_parts(condition))


def _sides(condition: Expr, source: Source, available: set[int], own: set[int]) -> list[tuple[int, Expr, str]]:
    """(column, value, operator) for a comparison of a bare column of the source with what is known without it."""
    if not isinstance(condition, Op) or condition.name not in ("eq", "lt", "le", "gt", "ge"):
        return []
    found = []
    left, right = condition.args
    for column, value, name in (
        (left, right, condition.name),
        (right, left, _MIRRORED.get(condition.name, condition.name)),
    ):
        if (
            isinstance(column, Column)
            and column.source == source.number
            and sources_of(value) & own <= available
            and not any(isinstance(part, Column) and part.source == source.number for part in all_parts(value))
        ):
            found.append((column.column, value, name))
    return found


def _equalities(
    source: Source, conditions: Sequence[Expr], available: set[int], own: set[int]
) -> list[tuple[int, Expr, Expr]]:
    """(column, value, condition)"""
    return [
        (column, value, condition)
        for condition in conditions
        for column, value, name in _sides(condition, source, available, own)
        if name == "eq"
    ]


def _key(source: Source, equalities: Sequence[tuple[int, Expr, Expr]]) -> Path | None:
    table = source.table
    if table is None:
        return None
    by_column = {column: (value, condition) for column, value, condition in reversed(equalities)}
    positions = table.key_positions
    if not all(position in by_column and table.columns[position].type in _KEY_TYPES for position in positions):
        return None
    return Path(
        "get",
        [by_column[position][0] for position in positions],
        list(positions),
        used=[by_column[position][1] for position in positions],
    )


def _keys(source: Source, conditions: Sequence[Expr], available: set[int], own: set[int]) -> Path | None:
    """The primary key IN (…)."""
    table = source.table
    if (
        table is None
        or len(table.key_positions) > 1
        or table.columns[table.key_positions[0]].type not in ("INT", "STRING")
    ):
        return None
    for condition in conditions:
        if isinstance(condition, Op) and condition.name == "in":
            column, *items = condition.args
            if (
                isinstance(column, Column)
                and (column.source, column.column) == (source.number, table.key_positions[0])
                and all(not sources_of(item) & own and not isinstance(item, Subquery) for item in items)
            ):
                return Path("gets", list(items), [column.column], used=[condition])
    return None


def _index(source: Source, equalities: Sequence[tuple[int, Expr, Expr]], catalogue: Catalogue) -> Path | None:
    """Indexes all of whose columns are bound: one of several columns, or INVERTED ones that are intersected."""
    table = source.table
    if table is None:
        return None
    by_column = {table.columns[column].name: (value, condition) for column, value, condition in reversed(equalities)}
    fitting = [index for index in catalogue.indexes(table.name) if all(name in by_column for name in index.columns)]
    if not fitting:
        return None
    fitting.sort(key=lambda index: -len(index.columns))
    chosen: list[Index] = []
    covered: set[str] = set()
    for index in fitting:
        if not chosen or (
            index.kind == "INVERTED" and chosen[0].kind == "INVERTED" and not covered & set(index.columns)
        ):
            chosen.append(index)
            covered |= set(index.columns)
    return Path(
        "index",
        indexes=[(index, [by_column[name][0] for name in index.columns]) for index in chosen],
        used=[by_column[name][1] for name in covered],
    )


def _bounds(
    source: Source, column: int, conditions: Sequence[Expr], available: set[int], own: set[int]
) -> tuple[list[Bound], list[Bound], list[Expr]]:
    lows: list[Bound] = []
    highs: list[Bound] = []
    used: list[Expr] = []
    for condition in conditions:
        for position, value, name in _sides(condition, source, available, own):
            if position == column and name != "eq":
                (lows if name in ("gt", "ge") else highs).append(Bound(value, name in ("gt", "lt")))
                used.append(condition)
                break
    return lows, highs, used


def _key_range(source: Source, conditions: Sequence[Expr], available: set[int], own: set[int]) -> Path | None:
    table = source.table
    if table is None or len(table.key_positions) > 1 or table.columns[table.key_positions[0]].type != "INT":
        return None
    lows, highs, used = _bounds(source, table.key_positions[0], conditions, available, own)
    return Path("key_range", lows=lows, highs=highs, used=used) if used else None


def _index_range(
    source: Source,
    equalities: Sequence[tuple[int, Expr, Expr]],
    conditions: Sequence[Expr],
    available: set[int],
    own: set[int],
    catalogue: Catalogue,
) -> Path | None:
    """A BTREE index with its first columns bound, and bounds (perhaps none) for the next."""
    table = source.table
    if table is None:
        return None
    by_column = {table.columns[column].name: (value, condition) for column, value, condition in reversed(equalities)}
    best: Path | None = None
    for index in catalogue.indexes(table.name):
        if index.kind != "BTREE":
            continue
        prefix = []
        for name in index.columns:
            if name not in by_column:
                break
            prefix.append(name)
        lows: list[Bound] = []
        highs: list[Bound] = []
        used = [by_column[name][1] for name in prefix]
        if len(prefix) < len(index.columns):
            column = table.positions[index.columns[len(prefix)]]
            lows, highs, more = _bounds(source, column, conditions, available, own)
            # One bound a side is handed over; further ones are tested.
            lows, highs = lows[:1], highs[:1]
            used += [c for c in more if any(_is_bound(c, bound) for bound in (*lows, *highs))]
        if used and (best is None or len(used) > len(best.used)):
            best = Path(
                "index_range", [by_column[name][0] for name in prefix], lows=lows, highs=highs,
                indexes=[(index, [])], used=used,
            )  # fmt: skip
    return best


def _is_bound(condition: Expr, bound: Bound) -> bool:
    return isinstance(condition, Op) and any(arg is bound.value for arg in condition.args)
