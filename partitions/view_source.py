"""Python that keeps the views of one table up to date: generated, as statements are, for their columns and conditions.

For each view a function that says what a row is to it, and for all of them together one that a change of a row calls:

    def of_0(row): …                    (the key of its group, (the aggregates' arguments)); None: WHERE leaves it out
    def maintain(key, old, row, batch=None):
        mark = len(undo)
        try:
            g = h = none                the groups that the old row leaves and the new one enters; for each view in turn
            if old is not None and …:   WHERE, of the old row
                g = (old.city, …)
            if row is not None and …:
                h = (row.city, …)
            …                           reads the rows of these groups and writes them anew
        except Exception:               then nothing has changed
            undo_to(mark)
            raise

Old and new are None where there was or will be no row. A view's row is written through the view table's own accessors,
so it is undone, logged and evicted as any row is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn

from voltpy.errors import ConstraintViolation, Corruption, DataError
from voltpy.row import MAX_ROW_BYTES
from voltpy.schema import Schema
from voltpy.schema import Table as TableSchema
from voltpy.sql.bound import BoundQuery
from voltpy.sql.catalogue import Catalogue
from voltpy.sql.expression import Expressions
from voltpy.sql.program import Program, tuple_text
from voltpy.sql.runtime import NAMES
from voltpy.sql.stored_expression import bound
from voltpy.view import Expression, Kept

FILE = "<views>"  # that the code says to come from

# What a sum may come to by calls. Decided batches may bring it beyond: see partitions.viewed_table.
MOST_SUM = 1 << 62

Contribution = Callable[[Any], "tuple[Any, tuple[Any, ...]] | None"]


class Maintenance(NamedTuple):
    """`contributions`: `of_0`, … of each view."""

    maintain: Callable[..., None]
    contributions: list[Contribution]


class Maintained(NamedTuple):
    """One view with what its code calls: the accessors of its table, and the partition's own key."""

    schema: TableSchema
    own_key: int
    get: Callable[[Any], Any]
    follow: Callable[..., None]
    delete: Callable[[Any], bool]


def string_limit(view: TableSchema) -> int:
    """So many characters may a STRING in this view have, that a row of the view never becomes too large.

    It is checked when a row of the base is written: what a batch has prepared must not fail when it is decided.
    """
    strings = sum(column.type == "STRING" for column in view.columns)
    return (MAX_ROW_BYTES - 32 * len(view.columns)) // 4 // max(strings, 1)


def maintenance(
    schema: Schema,
    base: TableSchema,
    views: list[Maintained],
    undo: list[Any],
    undo_to: Callable[[int], None],
    extreme: Callable[..., Any],
    beyond: Callable[[TableSchema, str, Any, int, int], int],
) -> Maintenance:
    """`extreme(view, argument, group, is_max, key, row, batch, without)` looks for what is the least or largest now.

    `beyond(view, column, group, before, total)` is asked about a sum beyond MOST_SUM: it says what is written instead,
    or raises.
    """
    program = Program((), Catalogue(schema), fragment=False)
    writer = _Writer(program, base)
    namespace: dict[str, Any] = {**NAMES, "undo": undo, "undo_to": undo_to, "extreme": extreme, "none": object()}
    for number, view in enumerate(views):
        writer.view(number, view)
        namespace |= {
            f"get_{number}": view.get, f"follow_{number}": view.follow, f"delete_{number}": view.delete,
            f"lost_{number}": _lost(view.schema), f"unfit_{number}": _unfit(view.schema),
            f"beyond_{number}": partial(beyond, view.schema),
        }  # fmt: skip
    constants = [f"{name} = {expression}" for expression, name in program.constants.items()]
    source = "\n".join([*constants, *writer.functions, *_AROUND[0], *writer.lines, *_AROUND[1]])
    exec(compile(source, FILE, "exec", dont_inherit=True), namespace)
    return Maintenance(namespace["maintain"], [namespace[f"of_{number}"] for number in range(len(views))])


# It catches what a procedure's body may catch, to go on: that must find no view changed whose table is not. It is more
# than DataError and the like: deep in calls it may be a RecursionError. But what is no Exception (NotHere, an
# interruption) ends the run, which is undone as a whole; until then the undo log is poisoned, and must stay so.
_AROUND = (
    ("def maintain(key, old, row, batch=None):", "    mark = len(undo)", "    try:"),
    ("    except Exception:", "        undo_to(mark)", "        raise", ""),
)


class _Writer:
    def __init__(self, program: Program, base: TableSchema) -> None:
        self.program = program
        self.base = base
        self.functions: list[str] = []
        self.lines: list[str] = []
        self.expressions = Expressions(program, lambda _: None, _no_query)

    def view(self, number: int, view: Maintained) -> None:
        code = _ViewCode(self, number, view)
        self.functions += code.contribution()
        self.lines += _indented(_indented(code.maintained()))

    def of_row(self, variable: str) -> None:
        """From now on expressions are about the row in this variable."""
        for position, column in enumerate(self.base.columns):
            self.program.texts[0, position] = (f"{variable}.{column.name}", variable)

    def value(self, expression: Expression) -> str:
        return self.expressions.value(bound(expression, self.base))

    def condition(self, where: tuple[Expression, ...]) -> str:
        """Beginning with " and ", if there is any."""
        return "".join(f" and {self.expressions.true(bound(each, self.base))}" for each in where)


class _ViewCode:
    """The code for one view. Variables begin with a and g for the group that is left, b and h for the one entered."""

    def __init__(self, writer: _Writer, number: int, maintained: Maintained) -> None:
        view = maintained.schema.view
        assert view is not None
        self.writer = writer
        self.number = number
        self.view = view
        self.schema = maintained.schema
        self.own = [str(maintained.own_key)] if view.own_key else []
        self.arguments = view.arguments
        self.row_count = next(each.column for each in view.kept if each.kind == "rows")
        self.key_columns = self.schema.primary_key[len(self.own) :]
        self.limit = string_limit(self.schema)
        self.extremes = [each for each in view.kept if each.kind in ("min", "max")]

    def contribution(self) -> list[str]:
        """The function that says what a row is to the view."""
        writer = self.writer
        writer.of_row("row")
        keys = [writer.value(each) for each in self.view.keys]
        arguments = [writer.value(each) for each in self.arguments]
        texts = tuple_text(arguments) if arguments else "()"
        where = writer.condition(self.view.where)
        return [
            f"def of_{self.number}(row):",
            *([f"    if not ({where.removeprefix(' and ')}): return None"] if where else []),
            f"    return {self.key_text(keys)}, {texts}",
        ]

    def maintained(self) -> list[str]:
        """What a change of a row does to its groups."""
        number = self.number
        entered = [
            f"v = get_{number}(h)",
            "if v is None:",
            *_indented(self.written(self.first, "h", ())),
            "else:",
            *_indented([*self.extreme_of(self.entered_extreme), *self.written(self.entered, "h")]),
        ]
        left = [
            f"v = get_{number}(g)",
            f"if v is None: lost_{number}(g)",
            f"if v.{self.row_count} == 1:",
            f"    delete_{number}(g)",
            "else:",
            *_indented([*self.extreme_of(self.left_extreme), *self.written(self.left, "g")]),
        ]
        changed = [
            f"if not ({' and '.join(f'a{i} == b{i}' for i in range(len(self.arguments)))}):",
            *_indented([
                f"v = get_{number}(g)",
                f"if v is None: lost_{number}(g)",
                *self.extreme_of(self.changed_extreme),
                *self.written(self.changed, "g"),
            ]),
        ]  # fmt: skip
        return [
            f"# {self.schema.name}",
            "g = h = none",
            *self.looked_at("old", "g", "a"),
            *self.looked_at("row", "h", "b"),
            "if g is none:",
            "    if h is not none:",
            *_indented(_indented(entered)),
            "elif g == h:",
            *_indented(changed if self.arguments else ["pass"]),
            "else:",
            *_indented(left),
            "    if h is not none:",
            *_indented(_indented(entered)),
        ]

    def looked_at(self, row: str, group: str, letter: str) -> list[str]:
        """The group of a row, and the arguments."""
        writer = self.writer
        writer.of_row(row)
        lines = [f"if {row} is not None{writer.condition(self.view.where)}:"]
        lines += [f"    {group}{i} = {writer.value(each)}" for i, each in enumerate(self.view.keys)]
        lines += [f"    {letter}{i} = {writer.value(each)}" for i, each in enumerate(self.arguments)]
        if row == "row":
            for column, i in zip(self.key_columns, range(len(self.view.keys)), strict=True):
                lines += self.fits(column, f"{group}{i}", self.schema.column(column).nullable)
            for each in self.extremes:
                nullable = self.schema.column(each.column).nullable
                lines += self.fits(each.column, f"{letter}{self.argument(each)}", nullable)
        key = self.key_text([f"{group}{i}" for i in range(len(self.view.keys))])
        return [*lines, f"    {group} = {key}"]

    def fits(self, column: str, text: str, nullable: bool) -> list[str]:
        """Refuses a value that the view's column can't hold, or order."""
        unless_null = f"{text} is not None and " if nullable else ""
        match self.schema.column(column).type:
            case "STRING":
                return [f"    if {unless_null}len({text}) > {self.limit}: unfit_{self.number}({column!r}, {text})"]
            case "FLOAT":
                return [f"    if {unless_null}{text} != {text}: unfit_{self.number}({column!r}, {text})"]
        return []

    def key_text(self, keys: list[str]) -> str:
        """The primary key of a group's row, in the view's table."""
        parts = [*self.own, *keys]
        return parts[0] if len(parts) == 1 else tuple_text(parts)

    def argument(self, kept: Kept) -> int:
        assert kept.argument is not None
        return self.arguments.index(kept.argument)

    def written(self, kept_text: Callable[[Kept], str], group: str, before: tuple[str, ...] = ("v",)) -> list[str]:
        """Writes the new row. `before`: where the old one is."""
        lines = []
        for each in self.view.kept:
            if each.kind == "sum":
                total = f"s_{each.column}"
                unless_null = f"{total} is not None and " if each.count else ""
                was = f"{before[0]}.{each.column}" if before else "0"
                lines += [
                    f"{total} = {kept_text(each)}",
                    f"if {unless_null}not -{MOST_SUM} <= {total} <= {MOST_SUM}: "
                    f"{total} = beyond_{self.number}({each.column!r}, {group}, {was}, {total})",
                ]
        return [*lines, f"follow_{self.number}({group}, {'v' if before else 'None'}, {self.row(kept_text, group)})"]

    def row(self, kept_text: Callable[[Kept], str], group: str) -> str:
        """The new row's columns, in order."""
        kept = {each.column: each for each in self.view.kept}
        texts = []
        for column in self.schema.columns:
            if column.name in kept:
                each = kept[column.name]
                texts.append(f"s_{column.name}" if each.kind == "sum" else kept_text(each))
            elif column.name == self.view.own_key:
                texts += self.own
            else:
                texts.append(f"{group}{self.key_columns.index(column.name)}")
        return ", ".join(texts)

    # What a column becomes. `v` is the row as it was, and m_… what was found to be the extreme.

    def first(self, kept: Kept) -> str:
        if kept.kind == "rows":
            return "1"
        value = f"b{self.argument(kept)}"
        return self.counted(value, kept) if kept.kind == "count" else value

    def entered(self, kept: Kept) -> str:
        return self.added(kept, has_left=False, has_entered=True)

    def left(self, kept: Kept) -> str:
        return self.added(kept, has_left=True, has_entered=False)

    def changed(self, kept: Kept) -> str:
        return self.added(kept, has_left=True, has_entered=True)

    def added(self, kept: Kept, *, has_left: bool, has_entered: bool) -> str:
        column = f"v.{kept.column}"
        if kept.kind == "rows":
            return column + ("" if has_left and has_entered else " + 1" if has_entered else " - 1")
        if kept.kind in ("min", "max"):
            return f"m_{kept.column}"
        i = self.argument(kept)
        nullable = kept.argument is not None and kept.argument.nullable
        if kept.kind == "count":
            plus = f" + {self.counted(f'b{i}', kept)}" if has_entered else ""
            minus = f" - {self.counted(f'a{i}', kept)}" if has_left else ""
            return f"{column}{plus}{minus}"
        if not nullable:
            return column + (f" + b{i}" if has_entered else "") + (f" - a{i}" if has_left else "")
        plus = f" + (b{i} or 0)" if has_entered else ""
        minus = f" - (a{i} or 0)" if has_left else ""
        count = next(each for each in self.view.kept if each.column == kept.count)
        left_over = self.added(count, has_left=has_left, has_entered=has_entered)
        return f"(({column} or 0){plus}{minus} if {left_over} else None)"

    def counted(self, value: str, kept: Kept) -> str:
        """How much a value adds to a count: NULL nothing."""
        return f"(0 if {value} is None else 1)" if kept.argument is not None and kept.argument.nullable else "1"

    def extreme_of(self, write: Callable[[Kept, str, str, str], list[str]]) -> list[str]:
        lines = []
        for each in self.extremes:
            i = self.argument(each)
            lines += [f"m = v.{each.column}", *write(each, f"a{i}", f"b{i}", "<" if each.kind == "min" else ">")]
            lines.append(f"m_{each.column} = m")
        return lines

    def entered_extreme(self, kept: Kept, a: str, b: str, sign: str) -> list[str]:
        return [f"if {b} is not None and (m is None or {b} {sign} m): m = {b}"]

    def left_extreme(self, kept: Kept, a: str, b: str, sign: str) -> list[str]:
        return [f"if {a} is not None and {a} == m: m = {self.looked_for(kept)}"]

    def changed_extreme(self, kept: Kept, a: str, b: str, sign: str) -> list[str]:
        return [
            f"if {b} is not None and (m is None or {b} {sign}= m): m = {b}",
            f"elif {a} is not None and {a} == m: m = {self.looked_for(kept)}",
        ]

    def looked_for(self, kept: Kept) -> str:
        # Without any value the group is about to be deleted, with the last row of the batch; until then it has this.
        without = "None" if self.schema.column(kept.column).nullable else "m"
        return f"extreme({self.number}, {self.argument(kept)}, g, {kept.kind == 'max'}, key, row, batch, {without})"


def _indented(lines: list[str]) -> list[str]:
    return ["    " + line for line in lines]


def _no_query(query: BoundQuery, make: str) -> str:
    raise AssertionError("a stored expression has no query")


def _lost(view: TableSchema) -> Callable[[Any], NoReturn]:
    def lost(group: Any) -> NoReturn:
        raise Corruption(f"view {view.name}: it has no group {group!r:.100}, and a row is in it")

    return lost


def too_large(view: TableSchema, column: str, total: int) -> ConstraintViolation:
    return ConstraintViolation(
        f"view {view.name}, column {column}: a sum of {total:,}; the limit in a view is {MOST_SUM:,}"
    )


def _unfit(view: TableSchema) -> Callable[[str, Any], NoReturn]:
    def unfit(column: str, value: Any) -> NoReturn:
        if isinstance(value, float):
            raise DataError(f"view {view.name}, column {column}: NaN is neither the least nor the largest of values")
        raise ConstraintViolation(
            f"view {view.name}, column {column}: a STRING of {len(value):,} characters; "
            f"the limit in this view is {string_limit(view):,}"
        )

    return unfit
