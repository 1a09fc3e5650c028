"""How the rows of one table are found by its secondary indexes: decided at each run, by what is there.

The planner says which conditions an index might answer, the *terms*; it knows nothing of how many rows there are. Here
each run asks the table's indexes (partitions.lookups) how many rows each of them would give, takes the one with the
fewest, and makes them fewer by the others while that is cheaper than to read them. Whoever gets the rows tests all
conditions again, so it does not matter which were used; a count is given only where indexes answer all of them.

    term                                    its value at a run
    equal   a = 5, a IS NULL, a, NOT a      the value; nothing for IS NULL
    in      a IN (1, 2)                     the items
    range   a > 1 AND a <= 5                (the lower bounds, the upper bounds)
    like    a LIKE 'x%'                     the pattern

A *probe* is an index with the terms that it answers:

    kind     index    its columns
    equal    any      an equal term each
    in       any      the same, and one of them an in term
    range    BTREE    equal terms for the first ones; a range term, or none, for the next
    begins   BTREE    equal terms for the first ones, and a like term for the next

Tables without indexes, as the coordinator borrows them, are scanned.

`foreseen` and its like say what a run would do, and read nothing: for EXPLAIN, where a value may be UNKNOWN. Then

    equal, in            as many rows as a value of the index has on average
    range, like          a share of the rows, the one that PostgreSQL takes too: a third behind or before a bound; a
                         200th between two, or for a pattern. The same for a BTREE whose first columns are unknown
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import takewhile
from typing import Any, Literal, NamedTuple, TypeAlias

from voltpy.schema import INT_MAX, INT_MIN, Index, TypeName

Values: TypeAlias = "tuple[Any, ...]"
Ends: TypeAlias = "tuple[tuple[Any, bool], ...]"  # (value, is it outside itself?)

FEW_ROWS = 32  # so many are read and looked through rather than made fewer
MANY_ROWS = 1024  # more are read in the order of their pages
# What a row costs, in tenths of a microsecond: to be read and tested; to be taken from a range into a set.
READ_COST, RANGE_COST = 15, 2
SCANNED_SHARE = 0.75  # of a table's rows: to find more of them takes longer than to scan it
HALF_OPEN_SHARE, NARROW_SHARE = 1 / 3, 1 / 200  # of the rows, where a range's bounds are unknown


class Term(NamedTuple):
    """`open`: of each lower and upper bound of a range, whether it is outside itself. `escape`: of LIKE."""

    kind: Literal["equal", "null", "in", "range", "like"]
    column: str
    type: TypeName
    open: tuple[tuple[bool, ...], tuple[bool, ...]] = ((), ())
    escape: str = ""


class _Range(NamedTuple):
    low: Any = None
    high: Any = None
    low_included: bool = True
    high_included: bool = True


class _Beginning(NamedTuple):
    text: str
    is_all: bool  # what is behind it may be anything


class _Probe(NamedTuple):
    """`terms` are places among the search's: of equal terms, one an in term if `last` says so; `last` is the other."""

    name: str
    kind: Literal["equal", "in", "range", "begins"]
    terms: tuple[int, ...]
    last: int

    @property
    def all_terms(self) -> set[int]:
        return {*self.terms, self.last} - {-1}


# What a step of a plan may use beside indexes, none of which has such a name.
PRIMARY_KEY, SCAN, HASH = "the primary key", "a sequential scan", "a hash"


def told(used: Iterable[str]) -> str:
    """Of a step for which indexes may be used, what is, in words."""
    names = [name for name in used if name not in (SCAN, HASH)]
    instead = [name for name in used if name in (SCAN, HASH)]
    return ", ".join([f"using {', '.join(names)}"] * bool(names) + [f"{name} instead" for name in instead])


class _Share(NamedTuple):
    """The key of a range that is unknown: about this share of the rows."""

    share: float


class _PatternShare(_Share):
    """The same of a pattern: see _Beginning."""

    is_all = False


class _Unknown:
    """A value that only a run knows."""


class Foreseen(NamedTuple):
    """What a run would do: read about so many rows, and use these indexes, or SCAN."""

    rows: int
    used: tuple[str, ...]


_PATTERNS = (_Beginning, _PatternShare)
UNKNOWN: Any = _Unknown()
_NOTHING: Any = object()  # no row can meet the term
_USELESS: Any = object()  # the term's value says nothing that an index could use


class Search:
    """`terms`: the fields of Terms. `order`: columns in which the first rows are wanted, perhaps `descending`.
    `filtered`: there are conditions that are no terms.

    Compiled once with its statement; what it knows of the indexes is looked at again when they are others.
    """

    __slots__ = (
        "_cover", "_descending", "_filtered", "_key_makers", "_may_be_indefinite", "_order", "_probes", "_ready",
        "_terms", "_walk",
    )  # fmt: skip

    def __init__(
        self,
        terms: Sequence[tuple[Any, ...]],
        order: tuple[str, ...] = (),
        descending: bool = False,
        filtered: bool = False,
    ) -> None:
        self._terms = [Term(*term) for term in terms]
        self._key_makers = list(map(_key_maker, self._terms))
        self._may_be_indefinite = any(term.kind in ("range", "like") for term in self._terms)
        self._order = order
        self._descending = descending
        self._filtered = filtered
        self._ready: Any = None  # the indexes for which these are:
        self._probes: list[_Probe] = []
        self._cover: list[_Probe] | None = None  # probes that together answer all terms
        self._walk: _Probe | None = None  # one that gives rows in the wanted order

    def helps(self, table: Any) -> bool:
        """Whether the table has an index for `rows`."""
        return self._lookups(table) is not None and bool(self._probes)

    def gives_more(self, table: Any, values: Values, rows: int) -> bool:
        """Whether `rows` gives about more than so many."""
        lookups = self._lookups(table)
        if lookups is None or not self._probes:
            return True
        keys = self._keys(values)
        return keys is not None and not any(_estimate(lookups, probe, keys) <= rows for probe in self._useful(keys))

    def rows(self, table: Any, values: Values, first: int | None = None) -> Iterable[Any]:
        """Rows among which are all that meet the terms. `first`: so many may be enough."""
        lookups = self._lookups(table)
        if lookups is None or not self._probes:
            return table.scan()  # type: ignore[no-any-return]
        keys = self._keys(values)
        if keys is None:
            return ()
        ranked = [(_estimate(lookups, probe, keys), probe) for probe in self._useful(keys)]
        if not ranked:
            return table.scan()  # type: ignore[no-any-return]
        if len(ranked) > 1:
            ranked.sort(key=_first)
        way = _way(lookups, ranked, first)
        if way == "find":
            return lookups.find(ranked[0][1].name, _values(ranked[0][1], keys))  # type: ignore[no-any-return]
        if way == "in order":
            return _in_order(lookups, ranked[0][1], keys)
        if way == "scan":
            return table.scan()  # type: ignore[no-any-return]
        found = _common(lookups, ranked, keys)
        if len(found) > MANY_ROWS or (first is not None and first < len(found)):
            return found.some(MANY_ROWS if first is None else min(max(first, 1), MANY_ROWS))  # type: ignore[no-any-return]
        return found.rows()  # type: ignore[no-any-return]

    def count(self, table: Any, values: Values) -> int | None:
        """How many rows meet the terms; None where indexes can't tell."""
        covered = self._covered(table, values, self._keys)
        if covered is None:
            return None
        lookups, cover, keys = covered
        if keys is None:
            return 0
        if all(probe.kind == "equal" for probe in cover):
            if len(cover) == 1:
                return lookups.count(cover[0].name, _values(cover[0], keys))  # type: ignore[no-any-return]
            conditions = [(probe.name, _values(probe, keys)) for probe in cover]
            return lookups.matching_count(conditions)  # type: ignore[no-any-return]
        found = _found(lookups, cover[0], keys)
        for probe in cover[1:]:
            found &= _found(lookups, probe, keys)
        return len(found)

    def _covered(
        self, table: Any, values: Values, keys_of: Callable[[Values], list[Any] | None]
    ) -> tuple[Any, list[_Probe], list[Any] | None] | None:
        """(the table's indexes, probes of them for all terms, the keys); keys None: no row can meet the terms.

        None where indexes can't tell how many do.
        """
        lookups = self._lookups(table)
        cover = self._cover
        if lookups is None or cover is None:
            return None
        keys = keys_of(values)
        if self._may_be_indefinite and keys is not None and any(map(_is_indefinite, keys)):
            return None
        return lookups, cover, keys

    def in_order(self, table: Any, values: Values, limit: int | None) -> Iterable[Any] | None:
        """Rows in the wanted order, the first `limit` that meet all conditions among them; None where it costs less
        to find and sort them.
        """
        lookups = self._lookups(table)
        walk = self._walk
        if limit is None or lookups is None or walk is None:
            return None
        keys = self._keys(values)
        if keys is None:
            return ()
        if _is_useless(walk, keys):
            return None
        if self._is_all(walk):
            return _in_order(lookups, walk, keys, self._descending, limit)
        if self._passed(lookups, walk, keys, limit) is None:
            return None
        return _in_order(lookups, walk, keys, self._descending)

    def _is_all(self, walk: _Probe) -> bool:
        """Whether the rows that it gives need no more tests."""
        return not self._filtered and len(walk.all_terms) == len(self._terms)

    def _passed(self, lookups: Any, walk: _Probe, keys: list[Any], limit: int) -> int | None:
        """About how many rows are read to come upon `limit` of those wanted; None where it costs less to sort them."""
        passed = _estimate(lookups, walk, keys)
        least = min([passed, *(_estimate(lookups, probe, keys) for probe in self._useful(keys))])
        # `least` rows are spread over those that are passed.
        if limit * passed > least * max(least, FEW_ROWS):
            return None
        return min(passed, limit * passed // max(least, 1))

    # What a run would do.

    def foreseen(self, table: Any, values: Values, first: int | None = None) -> Foreseen:
        """What `rows` would. Where several indexes make the rows fewer, as many as the one with the fewest gives."""
        lookups = self._lookups(table)
        if lookups is None or not self._probes:
            return Foreseen(table.count(), (SCAN,))
        keys = self._keys_known(values)
        if keys is None:
            return Foreseen(0, ())
        lookups = _Guesses(lookups)
        ranked = sorted([(_estimate(lookups, probe, keys), probe) for probe in self._useful(keys)], key=_first)
        way = _way(lookups, ranked, first) if ranked else "scan"
        if way == "scan":
            return Foreseen(table.count(), (SCAN,))
        estimate, best = ranked[0]
        if way != "common":
            return Foreseen(estimate, (best.name,))
        used = [best, *(probe for rows, probe in ranked[1:] if _is_worth(best, estimate, probe, rows))]
        return Foreseen(estimate, tuple(dict.fromkeys(probe.name for probe in used)))

    def foreseen_count(self, table: Any, values: Values) -> Foreseen | None:
        """What `count` would; None where indexes can't tell."""
        covered = self._covered(table, values, self._keys_known)
        if covered is None:
            return None
        lookups, cover, keys = covered
        if keys is None:
            return Foreseen(0, ())
        rows = min(_estimate(_Guesses(lookups), probe, keys) for probe in cover)
        return Foreseen(rows, tuple(dict.fromkeys(probe.name for probe in cover)))

    def foreseen_in_order(self, table: Any, values: Values, limit: int | None) -> Foreseen | None:
        """What `in_order` would; None where it costs less to find and sort the rows."""
        lookups = self._lookups(table)
        walk = self._walk
        if limit is None or lookups is None or walk is None:
            return None
        keys = self._keys_known(values)
        if keys is None:
            return Foreseen(0, ())
        if _is_useless(walk, keys):
            return None
        lookups = _Guesses(lookups)
        if self._is_all(walk):
            return Foreseen(min(limit, _estimate(lookups, walk, keys)), (walk.name,))
        rows = self._passed(lookups, walk, keys, limit)
        return None if rows is None else Foreseen(rows, (walk.name,))

    def _lookups(self, table: Any) -> Any:
        lookups = getattr(table, "lookups", None)
        if lookups is not None and lookups.ready is not self._ready:
            self._look_at(lookups.ready)
        return lookups

    def _keys(self, values: Values) -> list[Any] | None:
        """What the indexes are asked for, for each term; None when no row can meet them all."""
        keys = [make(value) for make, value in zip(self._key_makers, values, strict=True)]
        return None if any(key is _NOTHING for key in keys) else keys

    def _keys_known(self, values: Values) -> list[Any] | None:
        """`_keys` where values may be UNKNOWN."""
        keys = [
            _unknown_key(term, value) or make(value)
            for term, make, value in zip(self._terms, self._key_makers, values, strict=True)
        ]
        return None if any(key is _NOTHING for key in keys) else keys

    def _useful(self, keys: list[Any]) -> list[_Probe]:
        if any(key is _USELESS for key in keys):
            return [probe for probe in self._probes if not _is_useless(probe, keys)]
        return self._probes

    # Which indexes answer which terms.

    def _look_at(self, ready: Sequence[Index]) -> None:
        """Finds the probes, now that these indexes can be asked."""
        places: dict[str, dict[str, int]] = {kind: {} for kind in ("equal", "in", "range", "like")}
        for place, term in enumerate(self._terms):
            places["equal" if term.kind == "null" else term.kind].setdefault(term.column, place)
        equal, listed, ranges, beginnings = places.values()
        wanted = tuple(column for column in self._order if column not in equal)
        probes: list[_Probe] = []
        walks: list[_Probe] = []
        for index in ready:
            columns = index.columns
            missing = [column for column in columns if column not in equal]
            if not missing:
                probes.append(_Probe(index.name, "equal", tuple(equal[column] for column in columns), -1))
                continue
            if len(missing) == 1 and missing[0] in listed:
                terms = tuple(equal.get(column, listed[missing[0]]) for column in columns)
                probes.append(_Probe(index.name, "in", terms, listed[missing[0]]))
            if index.kind != "BTREE":
                continue
            prefix = tuple(equal[column] for column in takewhile(equal.__contains__, columns))
            following = columns[len(prefix)]
            range_ = _Probe(index.name, "range", prefix, ranges.get(following, -1))
            if range_.all_terms:
                probes.append(range_)
            if following in beginnings:
                probes.append(_Probe(index.name, "begins", prefix, beginnings[following]))
            if wanted and columns[len(prefix) : len(prefix) + len(wanted)] == wanted:
                walks.append(range_)
        self._probes = [
            probe for at, probe in enumerate(probes) if not any(_is_less(probe, probes[:at], each) for each in probes)
        ]
        self._walk = max(walks, key=lambda walk: len(walk.all_terms), default=None)
        self._cover = self._covering()
        self._ready = ready

    def _covering(self) -> list[_Probe] | None:
        """Probes that together answer all terms, if there are any."""
        left = set(range(len(self._terms)))
        chosen = []
        for probe in sorted(self._probes, key=lambda probe: -len(probe.all_terms)):
            if probe.all_terms & left:
                left -= probe.all_terms
                chosen.append(probe)
        return chosen if chosen and not left else None


# Asking an index


def _way(
    lookups: Any, ranked: list[tuple[int, _Probe]], first: int | None
) -> Literal["find", "in order", "scan", "common"]:
    """How the rows are read, by what each probe says it would give, the fewest first."""
    estimate, best = ranked[0]
    if estimate <= FEW_ROWS or len(ranked) == 1:
        if best.kind == "equal" and estimate <= (MANY_ROWS if first is None else first):
            return "find"
        if best.kind in ("range", "begins") and (estimate <= MANY_ROWS or first is not None):
            return "in order"
    return "scan" if estimate > FEW_ROWS and estimate > SCANNED_SHARE * lookups.estimate(best.name) else "common"


def _is_worth(best: _Probe, left: int, probe: _Probe, rows: int) -> bool:
    """Whether a probe that gives so many rows is used to make those of the best one fewer."""
    if best.kind == probe.kind == "equal":
        return True
    return left > FEW_ROWS and (probe.kind == "equal" or rows * RANGE_COST < left * READ_COST)


def _estimate(lookups: Any, probe: _Probe, keys: list[Any]) -> int:
    if probe.kind == "equal":
        return lookups.estimate(probe.name, _values(probe, keys))  # type: ignore[no-any-return]
    if probe.kind == "in":
        return sum(lookups.estimate(probe.name, values) for values in _each_values(probe, keys))
    return lookups.estimate_between(probe.name, **_range_of(probe, keys))  # type: ignore[no-any-return]


class _Guesses:
    """What indexes say of themselves, also of values that are unknown."""

    def __init__(self, lookups: Any) -> None:
        self._lookups = lookups

    def estimate(self, index: str, values: Values | None = None) -> int:
        if values is not None and _has_unknown(values):
            return self._lookups.average(index)  # type: ignore[no-any-return]
        return self._lookups.estimate(index, values)  # type: ignore[no-any-return]

    def estimate_between(self, index: str, *, prefix: Values = (), share: float = 1.0, **range_: Any) -> int:
        if _has_unknown(prefix):
            rows: int = self._lookups.estimate(index)
            return round(rows * NARROW_SHARE * share)
        rows = self._lookups.estimate_between(index, prefix=prefix, **range_)
        return round(rows * share)


def _has_unknown(values: Values) -> bool:
    return any(type(value) is _Unknown for value in values)


def _found(lookups: Any, probe: _Probe, keys: list[Any]) -> Any:
    if probe.kind == "equal":
        return lookups.found(probe.name, _values(probe, keys))
    if probe.kind == "in":
        return lookups.found_any(probe.name, _each_values(probe, keys))
    return lookups.found_between(probe.name, **_range_of(probe, keys))


def _common(lookups: Any, ranked: list[tuple[int, _Probe]], keys: list[Any]) -> Any:
    """The rows that the best probe gives, made fewer by others as long as that pays."""
    best = ranked[0][1]
    equal = [probe for _, probe in ranked if probe.kind == "equal"] if len(ranked) > 1 else []
    if best.kind == "equal" and len(equal) > 1:
        found = lookups.matching([(probe.name, _values(probe, keys)) for probe in equal])
    else:
        found = _found(lookups, best, keys)
    for estimate, probe in ranked[1:]:
        left = len(found)
        if left <= FEW_ROWS:
            break
        if not best.kind == probe.kind == "equal" and _is_worth(best, left, probe, estimate):
            found &= _found(lookups, probe, keys)
    return found


def _in_order(
    lookups: Any, probe: _Probe, keys: list[Any], reverse: bool = False, limit: int | None = None
) -> Iterator[Any]:
    return lookups.range(probe.name, **_range_of(probe, keys), reverse=reverse, limit=limit)  # type: ignore[no-any-return]


def _values(probe: _Probe, keys: list[Any]) -> Values:
    return tuple([keys[place] for place in probe.terms])


def _each_values(probe: _Probe, keys: list[Any]) -> list[Values]:
    """The values for each item of the in term."""
    last = probe.last
    return [
        tuple([item if place == last else keys[place] for place in probe.terms]) for item in dict.fromkeys(keys[last])
    ]


def _range_of(probe: _Probe, keys: list[Any]) -> dict[str, Any]:
    range_: dict[str, Any] = {"prefix": _values(probe, keys)}
    if probe.last >= 0:
        key = keys[probe.last]
        range_ |= {"begins": key.text} if type(key) is _Beginning else key._asdict()
    return range_


def _is_less(probe: _Probe, before: list[_Probe], other: _Probe) -> bool:
    """Whether the other, by values for all its columns, answers all that this one does."""
    if other.kind != "equal" or probe.kind not in ("equal", "range") or not probe.all_terms <= other.all_terms:
        return False
    return probe.all_terms != other.all_terms or probe.kind != "equal" or other in before


def _is_useless(probe: _Probe, keys: list[Any]) -> bool:
    return any(keys[place] is _USELESS for place in probe.all_terms)


def _is_indefinite(key: Any) -> bool:
    """Whether an index that is asked for the key gives other rows too."""
    return key is _USELESS or (type(key) in _PATTERNS and not key.is_all)


def _first(ranked: tuple[int, _Probe]) -> int:
    return ranked[0]


# Values of terms → keys


def _key_maker(term: Term) -> Callable[[Any], Any]:
    to_key = _TO_KEY[term.type]
    match term.kind:
        case "equal":
            return to_key
        case "in":
            return lambda items: [k for item in items if (k := to_key(item)) is not _NOTHING] or _NOTHING
        case "range":
            return lambda bounds: _range_key(term, *bounds)
        case "like":
            return lambda pattern: _beginning(pattern, term.escape)
    return lambda _: None


def _unknown_key(term: Term, value: Any) -> Any:
    """What stands for the key of a value that is UNKNOWN, or has parts that are; None: all is known."""
    match term.kind:
        case "equal":
            return UNKNOWN if value is UNKNOWN else None
        case "in" if _has_unknown(value):
            to_key = _TO_KEY[term.type]
            keys = [_Unknown() if item is UNKNOWN else to_key(item) for item in value]  # not the same one twice
            return [key for key in keys if key is not _NOTHING]
        case "range" if any(map(_has_unknown, value)):
            return _Share(NARROW_SHARE if all(value) else HALF_OPEN_SHARE)
        case "like" if value is UNKNOWN:
            return _PatternShare(NARROW_SHARE)
    return None


def _int_key(value: Any) -> Any:
    """The INT that equals a number: `id = 2.0` finds 2."""
    if type(value) is int:
        return value
    whole = type(value) is float and value.is_integer() and INT_MIN <= value <= INT_MAX
    return int(value) if whole else _NOTHING


def _float_key(value: Any) -> Any:
    if type(value) is float:
        return value if value == value else _NOTHING
    return float(value) if type(value) is int and float(value) == value else _NOTHING


def _string_key(value: Any) -> Any:
    if type(value) is not str:
        return _NOTHING
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # no text that a row could have
            return _NOTHING
    return value


def _bool_key(value: Any) -> Any:
    return value if type(value) is bool else _NOTHING


def _moment_key(value: Any) -> Any:
    return value if type(value) is datetime and value.tzinfo is not None else _NOTHING


_TO_KEY: dict[TypeName, Callable[[Any], Any]] = {
    "INT": _int_key, "FLOAT": _float_key, "STRING": _string_key, "BOOL": _bool_key, "TIMESTAMP": _moment_key,
}  # fmt: skip


def _range_key(term: Term, lows: Values, highs: Values) -> Any:
    """The narrowest range within all bounds."""
    if term.type == "INT":
        least, greatest = ints_within(tuple(zip(lows, term.open[0], strict=True)),
                                      tuple(zip(highs, term.open[1], strict=True)))  # fmt: skip
        return _Range(least, greatest) if least <= greatest else _NOTHING
    if any(value is None or value != value for value in (*lows, *highs)):
        return _NOTHING
    if term.type == "FLOAT":
        # NaN is behind all numbers in the index, and within no bounds.
        low = max([_float_bound(value, is_open, True) for value, is_open in zip(lows, term.open[0], strict=True)]
                  or [(-math.inf, False)])  # fmt: skip
        high = min([_float_bound(value, is_open, False) for value, is_open in zip(highs, term.open[1], strict=True)]
                   or [(math.inf, True)])  # fmt: skip
        return _Range(low[0], high[0], not low[1], high[1])
    to_key = _TO_KEY[term.type]
    if any(to_key(value) is _NOTHING for value in (*lows, *highs)):
        return _USELESS
    low_ends = list(zip(lows, term.open[0], strict=True))
    high_ends = [(value, not is_open) for value, is_open in zip(highs, term.open[1], strict=True)]
    low_value, low_open = max(low_ends) if low_ends else (None, False)
    high_value, high_included = min(high_ends) if high_ends else (None, True)
    return _Range(low_value, high_value, not low_open, high_included)


def ints_within(lows: Ends, highs: Ends) -> tuple[int, int]:
    """The least and the greatest INT within all bounds, which may be floats; (1, 0) for none. None keeps all out."""
    low, high = INT_MIN, INT_MAX
    for value, is_open in lows:
        if value is None or value != value or value == math.inf:
            return 1, 0
        if value != -math.inf:
            low = max(low, math.floor(value) + 1 if is_open else math.ceil(value))
    for value, is_open in highs:
        if value is None or value != value or value == -math.inf:
            return 1, 0
        if value != math.inf:
            high = min(high, math.ceil(value) - 1 if is_open else math.floor(value))
    return low, high


def _float_bound(value: Any, is_open: bool, is_low: bool) -> tuple[float, bool]:
    """(the FLOAT, whether it is outside for a low bound, inside for a high one) that keeps the same FLOATs out."""
    nearest = float(value)
    if nearest != value:  # an INT between two FLOATs
        is_open = (nearest < value) == is_low
    return nearest, is_open == is_low


def _beginning(pattern: Any, escape: str) -> Any:
    """What all matches of a LIKE pattern begin with."""
    if pattern is None:
        return _NOTHING
    if type(pattern) is not str:
        return _USELESS
    length = next((at for at, one in enumerate(pattern) if one in ("%", "_", escape)), len(pattern))
    if length == 0 or _string_key(pattern[:length]) is _NOTHING:
        return _USELESS
    return _Beginning(pattern[:length], pattern[length:] == "%")
