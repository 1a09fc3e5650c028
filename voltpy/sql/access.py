"""In which order a block's sources are joined, and how the rows of each are found: its access path.

A path uses up conditions that it makes true; the rest are tested as soon as all that they need is there. Paths, the
best first:

    get            the primary key is bound: one row at most
    gets           the primary key is one of a list: of a short one; a long one comes behind `index`
    index          an index all of whose columns are bound, or one of them one of a list
    hash           a join on equal columns: the source's rows in a dictionary by them, made once a statement
    key_range      an INT primary key between bounds
    index_range    a BTREE index whose first columns are bound, or the first one is between bounds or begins with a text
    scan           every row

Which indexes are used, and whether any, is decided at each run, by how many rows each would give (voltpy.sql.search).
So the paths `index` and `index_range` name all conditions that some index might answer, their terms, and use up none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from voltpy.sql.bound import Block, Column, Const, Expr, Op, Source, Subquery, all_parts, sources_of
from voltpy.sql.catalogue import Catalogue

FEW_KEYS = 32  # in a list; more of them may be more rows than an index gives
_KEY_TYPES = ("INT", "STRING", "BOOL", "TIMESTAMP")
_MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}


PathKind = Literal["get", "gets", "index", "hash", "key_range", "index_range", "scan"]


class Bound(Struct, frozen=True):
    """One end of a range. `open`: the value itself is outside."""

    value: Expr
    open: bool


class Term(Struct, eq=False):
    """A condition, or several bounds of one column, as voltpy.sql.search knows it. `keys` are what is not a bound."""

    kind: Literal["equal", "null", "in", "range", "like"]
    column: int
    keys: list[Expr] = []
    lows: list[Bound] = []
    highs: list[Bound] = []
    escape: str = ""


class Path(Struct, eq=False):
    """`keys` are values for: the primary key's columns; the list of keys; `columns` of a hash. `lows` and `highs` are
    those of a key range. `used` are the conditions that it makes true.

    `local` are conditions on the source alone, tested when a hash is made. `indexes` may be used, for the `terms`,
    which say the same as the conditions `answered`. Where a table turns out to have none, the path is `otherwise`;
    where the key range `ranged` has fewer keys than they give rows, it is that.
    """

    kind: PathKind
    keys: list[Expr] = []
    columns: list[int] = []
    local: list[Expr] = []
    lows: list[Bound] = []
    highs: list[Bound] = []
    used: list[Expr] = []
    indexes: list[str] = []
    terms: list[Term] = []
    answered: list[Expr] = []
    otherwise: Path | None = None
    ranged: Path | None = None

    @property
    def single(self) -> bool:
        return self.kind == "get"

    @property
    def without_indexes(self) -> Path:
        """What is done instead where the table has none, as borrowed rows have; all conditions are tested behind it."""
        if not self.indexes:
            return self
        return replace(self.otherwise or self.ranged or Path("scan"), local=[])


class Step(Struct, eq=False):
    """The next source. `on`: what is left of a LEFT JOIN's condition; `filters`: what can be tested behind it."""

    source: Source
    path: Path
    on: list[Expr]
    filters: list[Expr]


_RANK: dict[PathKind, int] = {"get": 0, "gets": 1, "index": 2, "hash": 3, "key_range": 4, "index_range": 5, "scan": 6}


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
    """The block's sources that the condition of a LEFT JOIN is about."""
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
    is_filtered = any(needed == {source.number} for _, needed in pool)
    others = own - {source.number}
    can_be_looked_up = (
        len(waiting) > 1 and _key(source, _equalities(source, [each for each, _ in pool], others, own)) is not None
    )
    return rank, (0 if is_filtered else 1) + (2 if can_be_looked_up else 0)


def _path(
    source: Source, conditions: Sequence[Expr], own: set[int], available: set[int], catalogue: Catalogue, looped: bool
) -> Path:
    """The best way to the source's rows, when those of `available` (and of outer queries) are there."""
    equalities = _equalities(source, conditions, available, own)
    hashed = _hash(source, conditions, equalities) if looped else None
    if source.table is not None:
        path = _key(source, equalities)
        if path is not None:
            return path
        listed = _keys(source, conditions, available, own)
        if listed is not None and len(listed.keys) <= FEW_KEYS:
            return listed
        indexed = _indexes(source, conditions, available, own, catalogue)
        ranged = _key_range(source, conditions, available, own)
        if indexed is not None and indexed.kind == "index":
            indexed.otherwise, indexed.ranged = hashed, ranged
            return indexed
        path = listed or hashed or ranged or indexed
        if path is not None:
            return path
    return hashed or Path("scan")


def _hash(source: Source, conditions: Sequence[Expr], equalities: Sequence[tuple[int, Expr, Expr]]) -> Path | None:
    """By a dictionary of all rows, where columns are equal to what comes from other sources' rows."""
    joined = [(column, value, condition) for column, value, condition in equalities if _moves(value)]
    if not joined:
        return None
    local = [c for c in conditions if sources_of(c) == {source.number} and not _has_query(c)]
    columns = list(dict.fromkeys(column for column, _, _ in joined))
    chosen = [next(each for each in joined if each[0] == column) for column in columns]
    return Path(
        "hash", [value for _, value, _ in chosen], columns, local, used=[condition for _, _, condition in chosen]
    )


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
            and not _is_in(source, value)
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
    """By the primary key, where all its columns have values."""
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


def _indexes(
    source: Source, conditions: Sequence[Expr], available: set[int], own: set[int], catalogue: Catalogue
) -> Path | None:
    """The indexes that might help. `index`: with values for all their columns; else `index_range`."""
    table = source.table
    if table is None or not catalogue.indexes(table.name):
        return None
    terms, answered = _terms(source, conditions, available, own, catalogue)
    of_kind = _columns_of(terms, source)
    bound, listed = of_kind["equal"], of_kind["in"]
    whole, begun = [], []
    for index in catalogue.indexes(table.name):
        free = [name for name in index.columns if name not in bound]
        if not free or (len(free) == 1 and free[0] in listed):
            whole.append(index.name)
        elif index.kind == "BTREE" and (index.columns[0] in bound | of_kind["range"] | of_kind["like"]):
            begun.append(index.name)
    if not whole and not begun:
        return None
    return Path("index" if whole else "index_range", indexes=whole + begun, terms=terms, answered=answered)


def ordering(source: Source, conditions: Sequence[Expr], columns: Sequence[str], catalogue: Catalogue) -> Path | None:
    """The BTREE indexes that give the only source's rows in the order of these columns, beside the ones bound."""
    table = source.table
    if table is None:
        return None
    terms, answered = _terms(source, conditions, set(), {source.number}, catalogue)
    bound = _columns_of(terms, source)["equal"]
    wanted = tuple(name for name in columns if name not in bound)
    indexes = []
    for index in catalogue.indexes(table.name):
        first = next((at for at, name in enumerate(index.columns) if name not in bound), len(index.columns))
        if index.kind == "BTREE" and wanted and index.columns[first : first + len(wanted)] == wanted:
            indexes.append(index.name)
    return Path("index_range", indexes=indexes, terms=terms, answered=answered) if indexes else None


def _columns_of(terms: Sequence[Term], source: Source) -> dict[str, set[str]]:
    """The names of the columns that terms are about, by what they say."""
    found: dict[str, set[str]] = {kind: set() for kind in ("equal", "in", "range", "like")}
    for term in terms:
        found["equal" if term.kind == "null" else term.kind].add(source.fields[term.column].name)
    return found


def _terms(
    source: Source, conditions: Sequence[Expr], available: set[int], own: set[int], catalogue: Catalogue
) -> tuple[list[Term], list[Expr]]:
    """(what the conditions say about indexed columns, the conditions of which that is all)"""
    table = source.table
    if table is None:
        return [], []
    indexed = {table.positions[name] for index in catalogue.indexes(table.name) for name in index.columns}
    terms: list[Term] = []
    ranges: dict[int, Term] = {}
    answered = []
    for condition in conditions:
        term = _term(source, condition, available, own)
        if term is None or term.column not in indexed or _is_volatile(condition):
            continue
        answered.append(condition)
        if term.kind == "range":
            known = ranges.setdefault(term.column, term)
            if known is not term:
                known.lows += term.lows
                known.highs += term.highs
                continue
        terms.append(term)
    return terms, answered


def _term(source: Source, condition: Expr, available: set[int], own: set[int]) -> Term | None:
    """What one condition says about one column of the source, if it compares that with what is known without it."""
    if isinstance(condition, Column):
        return Term("equal", condition.column, [_TRUE]) if condition.source == source.number else None
    if not isinstance(condition, Op):
        return None
    name, args = condition.name, condition.args
    if name in ("eq", "lt", "le", "gt", "ge"):
        for column, value, way in _sides(condition, source, available, own):
            if way == "eq":
                return Term("equal", column, [value])
            bounds = [Bound(value, way in ("gt", "lt"))]
            return Term("range", column, lows=bounds) if way in ("gt", "ge") else Term("range", column, highs=bounds)
        return None
    first, others = args[0] if args else None, args[1:]
    if not isinstance(first, Column) or first.source != source.number:
        return None
    if any(sources_of(each) & own - available or _is_in(source, each) for each in others):
        return None
    position = first.column
    match name:
        case "is_null":
            return Term("null", position)
        case "not":
            return Term("equal", position, [_FALSE])
        case "in":
            return Term("in", position, list(others))
        case "like" if not condition.extra[1]:
            return Term("like", position, list(others), escape=condition.extra[0])
    return None


_TRUE, _FALSE = Const("BOOL", False, True), Const("BOOL", False, False)


def _is_in(source: Source, value: Expr) -> bool:
    """Whether the value depends on the source's own rows."""
    return any(isinstance(part, Column) and part.source == source.number for part in all_parts(value))


def _is_volatile(condition: Expr) -> bool:
    """Whether it may have another value for each row."""
    return any(
        isinstance(part, Op) and part.name in ("generated", "fresh_key") and part.extra != "tx.now()"
        for part in all_parts(condition)
    )


def _bounds(
    source: Source, column: int, conditions: Sequence[Expr], available: set[int], own: set[int]
) -> tuple[list[Bound], list[Bound], list[Expr]]:
    """(the column's lower bounds, the upper ones, the conditions that say so)"""
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
    """By an INT primary key between bounds."""
    table = source.table
    if table is None or len(table.key_positions) > 1 or table.columns[table.key_positions[0]].type != "INT":
        return None
    lows, highs, used = _bounds(source, table.key_positions[0], conditions, available, own)
    return Path("key_range", lows=lows, highs=highs, used=used) if used else None
