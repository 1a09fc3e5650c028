"""Meaning → Python source: one function `run`, made for the tables, columns and types of one statement.

    def run(tx, p, shipped):
        p0, = p                                     parameters, checked for their types
        t0 = tx.accounts                            tables
        def q3(r1): …                               a subquery; outer rows that it needs are its parameters
        q3 = once(q3)                               an uncorrelated one runs once at most
        out = []
        for r0 in t0.scan():                        a loop for each source, in the order that voltpy.sql.access chose
            if r0.balance > 10 and …:
                out.append((r0.id, …))
        return out

SELECT returns its rows, a list of tuples; a statement that writes returns (rows changed, rows of RETURNING).

Truth has three values, and most conditions are asked only whether they are true. So each expression can be written in
three ways: `value` (None is NULL), `true` (is it true?) and `false` (is it false?). NOT swaps the last two, AND and OR
become Python's own, and a comparison of columns that are NOT NULL is a comparison and no more.

What is written comes from names that voltpy.schema has checked, and from repr() of values; text of the statement never
becomes code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from voltpy.schema import PYTHON_TYPES, Table, TypeName
from voltpy.sql.access import Path, Step, ordering, steps_of
from voltpy.sql.bound import (
    Aggregate,
    Block,
    BoundChange,
    BoundInsert,
    BoundQuery,
    BoundStatement,
    Column,
    Const,
    Expr,
    Gather,
    Group,
    Op,
    Param,
    Rows,
    SetOp,
    Slot,
    Source,
    SqlType,
    Subquery,
    all_parts,
    outer_sources,
)
from voltpy.sql.catalogue import Catalogue
from voltpy.sql.expression import Expressions, is_atom
from voltpy.sql.program import Program, tuple_text

_MANY = ("index", "key_range", "index_range", "scan")  # paths whose rows a loop runs over
LOOPS = 8  # in each other, before their rows are put into a list: Python allows 20

_SET_OPERATIONS = {
    ("UNION", False): "union", ("EXCEPT", False): "except_rows", ("INTERSECT", False): "intersect_rows",
    ("EXCEPT", True): "except_all", ("INTERSECT", True): "intersect_all",
}  # fmt: skip


def emit(
    statement: BoundStatement | Gather,
    parameters: Sequence[SqlType],
    catalogue: Catalogue,
    *,
    fragment: bool = False,
    analyze: Analyze | None = None,
) -> tuple[str, list[str]]:
    """(the source, what the plan does in words). `fragment`: keys that it looks up may live in other partitions."""
    program = Program(parameters, catalogue, fragment, analyze is not None)
    if analyze is not None:
        return _observed(program, statement, analyze), program.notes
    body = _Function(program, 1)
    body.statement(statement)
    return program.source(body.lines), program.notes


def emit_estimates(
    statement: BoundStatement | Gather,
    parameters: Sequence[SqlType],
    catalogue: Catalogue,
    *,
    routed: str | None = None,
    borrowed: bool = False,
) -> tuple[str, list[str]]:
    """(a program that estimates what the statement would find: see voltpy.sql.estimates; the plan in words)

    `routed` is the plan's first line, of a program that answers with all of them; without, its answer is to be merged.
    `borrowed`: the statement would run on borrowed rows, wherever it is that they are counted.
    """
    program = Program(parameters, catalogue, False, estimating=True, borrowed=borrowed)
    _Function(program, 1).statement(statement)
    result = "seen.sent()" if routed is None else f"seen.alone({(routed, *program.notes)!r})"
    return program.estimates_source(result), program.notes


class Analyze(NamedTuple):
    """How EXPLAIN ANALYZE begins, and the lines of the fragments that a merge is of."""

    routed: str = ""
    parts: tuple[str, ...] | None = None


def _observed(program: Program, statement: BoundStatement | Gather, analyze: Analyze) -> str:
    """A program that runs the statement and answers what it met: see voltpy.sql.observed."""
    body = _Function(program, 2)
    body.statement(statement)
    if isinstance(statement, Gather):
        result = "seen.sent(answer)"
    else:
        notes = repr((analyze.routed, *program.notes))
        result = f"seen.{'alone' if isinstance(statement, BoundQuery) else 'changed'}(answer, {notes})"
        if analyze.parts is not None:
            result = f"seen.merged(answer, shipped[-1], {notes}, {analyze.parts!r})"
    return program.source(["    def answer():", *body.lines, f"    return {result}"])


class _Function:
    """One Python function while it is written."""

    def __init__(self, program: Program, indent: int) -> None:
        self.program = program
        self.indent = indent
        self.lines: list[str] = []
        self.own: set[str] = set()  # variables for rows, that this function sets
        self.wanted: dict[str, None] = {}  # those that it takes from outside
        self.loops = 0
        self.depth = 0  # for the plan in words
        self.title = "Subquery, once:"  # above queries inside
        self.correlated = False  # it runs for each row of another query
        self.gathers = False  # rows go into the list `out`
        self.enough = ""  # rows of the only source, behind which no more may be wanted
        self.watched = 0  # where the program observes itself: the line of the plan whose rows are being found
        self.foreseen: int | None = None  # the line of what would give the rows first
        self.walked = ""  # the variable for rows that an index gives in the order of the query, or for None
        expressions = Expressions(program, self.use, self.rows_of)
        self.value, self.true, self.conditions = expressions.value, expressions.true, expressions.conditions
        self.all_true, self.reused_unless_atom = expressions.all_true, expressions.reused_unless_atom

    def line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def open(self, text: str) -> None:
        self.line(text)
        self.indent += 1

    def note(self, text: str) -> int:
        return self.program.note(self.depth, text)

    def statement(self, statement: BoundStatement | Gather) -> None:
        if isinstance(statement, BoundQuery):
            self.query(statement)
        elif isinstance(statement, BoundInsert):
            self.insert(statement)
        elif isinstance(statement, Gather):
            self.gather(statement)
        else:
            self.change(statement)

    # Queries

    def gather(self, statement: Gather) -> None:
        """A fragment: `shipped` says whether this partition is the one that sends copies."""
        self.title = "Send:"
        rows = []
        for query, is_copy in zip(statement.queries, statement.copies, strict=True):
            text = self.rows_of(query)
            rows.append(f"{text} if shipped else []" if is_copy else text)
        self.line(f"return [{', '.join(rows)}]")

    def query(self, query: BoundQuery, *, exists: bool = False) -> None:
        """Writes statements that return the query's rows, or whether there are any."""
        limit, offset = self.limit(query.limit, "LIMIT"), self.limit(query.offset, "OFFSET")
        body = query.body
        if isinstance(body, Block):
            self.block(body, query, limit, offset, exists)
            return
        if isinstance(body, Rows):
            rows = "[" + ", ".join(tuple_text([self.value(each) for each in row]) for row in body.rows) + "]"
            self.note(f"Values: {len(body.rows)}")
        else:
            rows = self.set_operation(body)
        self.finished(rows, query, limit, offset, len(query.fields), exists)

    def limit(self, expr: Expr | None, what: str) -> str:
        """The name of the limit's number; "" for none."""
        if expr is None:
            return ""
        if isinstance(expr, Const) and type(expr.value) is int and expr.value >= 0:
            return str(expr.value)
        name = self.program.new("n")
        self.line(f"{name} = row_limit({self.value(expr)}, {what!r})")
        return name

    def finished(self, rows: str, query: BoundQuery, limit: str, offset: str, width: int, exists: bool) -> None:
        """Orders and cuts rows that are all there, and returns them."""
        if not query.order and not limit and not offset and width == len(query.fields):
            self.line(f"return bool({rows})" if exists else f"return {rows}")
            return
        if rows != "out":
            self.line(f"out = {rows}")
        if query.order:
            orders = tuple((o.position, o.descending, o.nulls_first, o.nullable) for o in query.order)
            most = ""
            if limit:
                most = f", {limit} + ({offset} or 0)" if offset and offset != "0" else f", {limit}"
                if not limit.isdigit():
                    most = f", None if {limit} is None else {most[2:]}"
            unless = f"if {self.walked} is None: " if self.walked else ""
            self.line(f"{unless}out = ordered(out, {self.program.constant(repr(orders))}{most})")
            self.note("Sort" + (", and keep the first" if limit else ""))
        if limit or offset:
            self.line(f"out = sliced(out, {limit or None}, {offset or None})")
        if width != len(query.fields):
            kept = "(row[0],)" if len(query.fields) == 1 else f"row[:{len(query.fields)}]"
            self.line(f"out = [{kept} for row in out]")
        self.line("return bool(out)" if exists else "return out")

    def set_operation(self, body: SetOp) -> str:
        self.note(f"{body.operator}{' ALL' if body.all else ''}")
        self.depth += 1
        left, right = self.rows_of(body.left), self.rows_of(body.right)
        self.depth -= 1
        if (body.operator, body.all) == ("UNION", True):
            return f"[*{left}, *{right}]"
        return f"{_SET_OPERATIONS[body.operator, body.all]}({left}, {right})"

    def rows_of(self, query: BoundQuery, make: str = "") -> str:
        """An expression for the rows of a query; of what `make` makes of them (single, value_set, exists)."""
        outer = outer_sources(query)
        name, wanted = self.function_of(query, make == "exists", bool(outer))
        if wanted:
            for variable in wanted:
                self.use(variable)
            call = f"{name}({', '.join(wanted)})"
            return f"{make}({call})" if make in ("single", "value_set") else call
        shared = f"{name}_{make or 'rows'}"
        line = f"    {shared} = once(lambda: {make}({name}()))" if make in ("single", "value_set") else (
            f"    {shared} = once({name})"
        )  # fmt: skip
        if line not in self.program.functions:
            self.program.functions.append(line)
        return f"{shared}()"

    def function_of(self, query: BoundQuery, exists: bool, correlated: bool) -> tuple[str, tuple[str, ...]]:
        """The function that gives the query's rows, and the variables that it wants."""
        key = query.number * 2 + exists
        known = self.program.queries.get(key)
        if known is not None:
            return known
        function = _Function(self.program, 2)
        function.depth = self.depth + (self.title != "Send:")
        name = f"{'e' if exists else 'q'}{query.number}"
        if correlated:
            function.note("Subquery, for each row:")
            function.correlated = True
        else:
            function.note(self.title)
        function.depth += 1
        function.query(query, exists=exists)
        wanted = tuple(function.wanted)
        self.program.functions += [f"    def {name}({', '.join(wanted)}):", *function.lines]
        self.program.queries[key] = (name, wanted)
        return name, wanted

    def use(self, variable: str) -> None:
        """The variable holds what this function's code needs: it is its own, or must be handed in."""
        if variable not in self.own:
            self.wanted[variable] = None

    # SELECT

    def block(self, block: Block, query: BoundQuery, limit: str, offset: str, exists: bool) -> None:
        width = len(block.outputs)
        simple = not query.order and not block.distinct
        if exists and block.group is None and not limit and not offset:
            self.exists(block)
            return
        base = self.indent
        if simple and limit:
            self.line(f"if {limit} == 0: return {'False' if exists else '[]'}")
            if len(block.sources) == 1 and block.group is None:
                self.enough = limit
        elif limit and not exists:
            self.walk(block, query, limit, offset)
        if self.count_in_index(
            block, simple and not exists and not limit and not offset and width == len(query.fields)
        ):
            return
        start = len(self.lines)
        self.rows_into(block, simple, limit, offset, exists)
        self.indent = base
        if not self.gathers:  # one row at most, which has been returned where it was found
            self.line("return False" if exists else "return []")
            return
        self.lines.insert(start, "    " * base + "out = []")
        rows = "out"
        if block.distinct:
            rows = "distinct(out)"
            self.note("Distinct")
        if simple and not offset and width == len(query.fields):
            self.line("return bool(out)" if exists else "return out")
        else:
            self.finished(rows, query, "" if simple and not offset else limit, offset, width, exists)

    def rows_into(self, block: Block, simple: bool, limit: str, offset: str, exists: bool) -> None:
        """Writes what appends the block's rows to `out`, or returns the one that there can be."""

        def row() -> None:
            outputs = tuple_text([self.value(expr) for expr in block.outputs])
            if simple and not self.loops and not limit and not offset and not exists:
                self.line(f"return [{outputs}]")
                return
            self.gathers = True
            self.line(f"out.append({outputs})")
            if simple and limit:
                most = f"{limit} + ({offset} or 0)" if offset else limit
                test = f"len(out) >= {most}" if limit.isdigit() else f"{limit} is not None and len(out) >= {most}"
                self.line(f"if {test}: return {f'sliced(out, {limit}, {offset})' if offset else 'out'}")
            elif self.walked:
                self.line(f"if {self.walked} is not None and len(out) >= most: break")

        if block.group is None:
            self.pipeline(block, row)
        else:
            self.grouped(block, block.group, row)

    def exists(self, block: Block) -> None:
        base = self.indent
        self.enough = "1" if len(block.sources) == 1 else ""
        self.pipeline(block, lambda: self.line("return True"))
        self.indent = base
        self.line("return False")

    def count_in_index(self, block: Block, plain: bool) -> bool:
        """COUNT(*) of a whole table, or of what indexes find: nothing is fetched."""
        group = block.group
        if (
            group is None
            or group.keys
            or block.having
            or len(block.sources) != 1
            or block.sources[0].table is None
            or any(a != Aggregate("count", None) for a in group.aggregates)
            or not group.aggregates
            or not plain
        ):
            return False
        first, steps = self.steps(block)
        source, path = steps[0].source, steps[0].path
        rest = [condition for condition in steps[0].filters if not any(condition is each for each in path.answered)]
        if first or rest or path.kind not in ("scan", "index", "index_range"):
            return False
        table = self.program.table(_table(source).name)
        names = self.program.place_variables(group.results_source, "a", len(group.aggregates))
        self.own.update(names)
        if path.kind == "scan":
            number = self.note(f"Count of {_table(source).name}")
            count = f"seen.table_count({number}, {table})" if self.program.observed else f"{table}.count()"
            self.estimate(number, source, f"count({number}, {table})")
            self.line(f"{' = '.join(names)} = {count}")
        else:
            number = self.note(f"Count in {', '.join(path.indexes)}, or else:")
            search, values = self.search(source, path), self.search_values(path)
            count = f"{search}.count({table}, {values})"
            if self.program.observed:
                count = f"seen.index_count({number}, {search}, {table}, {values})"
            known = self.search_values(path, self.known)
            self.estimate(number, source, f"index_count({number}, {search}, {table}, {known})")
            self.foreseen = number
            self.line(f"{' = '.join(names)} = {count}")
            self.open(f"if {names[0]} is not None:")
        self.line(f"return [{tuple_text([self.value(expr) for expr in block.outputs])}]")
        if path.kind == "scan":
            return True
        self.indent -= 1
        return False

    def walk(self, block: Block, query: BoundQuery, limit: str, offset: str) -> None:
        """Where an index has the order that is wanted: asks it for the first rows, if that costs less than to sort."""
        source = block.sources[0] if block.sources else None
        orders, outputs = query.order, block.outputs
        if source is None or len(block.sources) > 1 or block.group is not None or block.distinct:
            return
        if self.program.borrowed:
            return
        columns = [expr for order in orders if isinstance(expr := outputs[order.position], Column)]
        if (
            not columns
            or len(columns) < len(orders)
            or any(column.source != source.number for column in columns)
            or any(order.descending != orders[0].descending for order in orders)
            or any(order.nullable and order.nulls_first != order.descending for order in orders)
        ):
            return
        if self.steps(block)[1][0].path.kind not in _MANY:
            return
        names = tuple(source.fields[column.column].name for column in columns)
        path = ordering(source, block.where, names, self.program.catalogue)
        if path is None:
            return
        filtered = any(not any(condition is each for each in path.answered) for condition in block.where)
        search = self.search(source, path, names, orders[0].descending, filtered)
        table = self.program.table(_table(source).name)
        most = f"{limit} + ({offset} or 0)" if offset else limit
        self.line(f"most = {most if limit.isdigit() else f'None if {limit} is None else {most}'}")
        self.walked = self.program.new("w")
        number = self.note(f"The first rows by {', '.join(path.indexes)}, or else:")
        found = f"{search}.in_order({table}, {self.search_values(path)}, most)"
        if self.program.observed:
            found = f"seen.in_order({number}, {search}, {table}, {self.search_values(path)}, most)"
        self.line(f"{self.walked} = {found}")
        most = f"{self.known(query.limit)}, {self.known(query.offset)}"
        known = self.search_values(path, self.known)
        self.estimate(number, source, f"in_order({number}, {search}, {table}, {known}, {most})")
        self.foreseen = number

    def pipeline(self, block: Block, sink: Callable[[], None]) -> None:
        """Loops over the block's sources, and what `sink` writes for each row that the conditions let through."""
        first, steps = self.steps(block)
        if first:
            self.open(f"if {self.all_true(first)}:")
        start, indent = len(self.lines), self.indent
        variables: list[str] = []
        for step in steps:
            if self.loops == LOOPS:
                start, indent = self.gathered(variables, start, indent)
            variables.append(self.step(step))
        sink()

    def steps(self, block: Block) -> tuple[list[Expr], list[Step]]:
        first, steps = steps_of(block, self.program.catalogue, self.correlated)
        if self.program.borrowed:
            steps = [replace(step, path=step.path.without_indexes) for step in steps]
        return first, steps

    def gathered(self, variables: list[str], start: int, indent: int) -> tuple[int, int]:
        """Puts the rows so far into a list, and goes on in a loop over it: Python's blocks nest only so deep."""
        name = self.program.new("b")
        self.line(f"{name}.append({tuple_text(variables)})")
        self.indent = indent
        self.lines.insert(start, "    " * indent + f"{name} = []")
        start = len(self.lines)
        self.open(f"for {', '.join(variables)}{',' if len(variables) == 1 else ''} in {name}:")
        self.loops = 1
        return start, indent

    def step(self, step: Step) -> str:
        """Finds the rows of one source. Returns the variable that holds one."""
        source = step.source
        variable = self.program.place(source)
        self.own.add(variable)
        filters = list(step.filters)
        number = self.watched = self.note(_described(step))
        if self.program.estimating:
            self.estimate_step(number, step)
        self.found_rows(step, variable, filters)
        if self.program.observed:
            self.line(f"seen.kept({number})")
        return variable

    # What EXPLAIN asks instead.

    def known(self, expr: Expr | None) -> str:
        """The value, or UNKNOWN where only a run can tell it."""
        if expr is None:
            return "None"
        if not self.program.estimating or any(map(_is_of_a_run, all_parts(expr))):
            return "UNKNOWN"
        given = any(isinstance(part, Param) for part in all_parts(expr))
        return f"({self.value(expr)} if known else UNKNOWN)" if given else self.value(expr)

    def estimate(self, number: int, source: Source, asked: str, *, once: bool = False) -> None:
        """Asks `seen`, unless what it has foreseen makes this needless. `once`: also where the rows are asked often."""
        if not self.program.estimating:
            return
        if (self.correlated or self.loops) and not once:
            self.program.each_time.add(number)
        if _table(source).partition_column is None:
            self.program.copies.add(number)
        unless = "" if self.foreseen is None else f"if not seen.has({self.foreseen}): "
        self.program.estimates.append(f"    {unless}seen.{asked}")

    def estimate_step(self, number: int, step: Step) -> None:
        source, path = step.source, step.path
        if source.table is None:
            return
        table = self.program.table(source.table.name)
        match path.kind:
            case "get":
                asked = f"key({number})"
            case "gets":
                asked = f"keys({number}, {table}, {tuple_text([self.known(each) for each in path.keys])})"
            case "key_range":
                asked = f"key_range({number}, {table}, {self.ends(path, self.known)})"
            case "index" | "index_range":
                asked = f"search({number}, {self.search(source, path)}, {table}, {self.search_values(path, self.known)}"
                if self.enough.isdigit():
                    asked += f", first={self.enough}"
                if path.ranged is not None:
                    asked += f", ranged=({self.ends(path.ranged, self.known)})"
                asked += f", hashed={path.otherwise is not None})"
            case _:
                asked = f"scan({number}, {table})"
        self.estimate(number, source, asked, once=path.kind == "hash")

    def found_rows(self, step: Step, variable: str, filters: list[Expr]) -> None:
        """Opens the blocks in which the variable holds a row of the step."""
        source, path = step.source, step.path
        if source.left:
            self.left_step(step, variable)
        elif path.kind == "get":
            found = self.get(path, source, variable)
            self.open(f"if {' and '.join([found, *self.conditions(step.filters)])}:")
            return
        else:
            self.loops += 1
            candidates = self.candidates(source, path)
            if self.walked:  # it has not seen to what the path has used
                candidates = f"({candidates} if {self.walked} is None else {self.walked})"
                filters += path.used
            self.open(f"for {variable} in {candidates}:")
            if path.kind == "gets":
                key = variable
                self.line(f"{variable} = {self.getter(source)}{key})")
                self.open(f"if {' and '.join([f'{variable} is not None', *self.conditions(step.filters)])}:")
                return
        if filters:
            self.open(f"if {' and '.join(self.conditions(filters))}:")

    def left_step(self, step: Step, variable: str) -> None:
        source, path = step.source, step.path
        if source.table is not None:
            null = self.program.constant(f"null_row({tuple(column.name for column in source.table.columns)!r})")
        else:
            null = self.program.constant(repr((None,) * len(source.fields)))
        if path.kind == "get":
            found = self.get(path, source, variable)
            matched = " and ".join([found, *self.conditions(step.on)])
            self.line(f"if not ({matched}): {variable} = {null}")
            return
        matches = self.program.new("m")
        self.line(f"{matches} = []")
        indent = self.indent
        self.open(f"for {variable} in {self.candidates(source, path)}:")
        if path.kind == "gets":
            self.line(f"{variable} = {self.getter(source)}{variable})")
            self.open(f"if {variable} is not None:")
        if step.on:
            self.open(f"if {' and '.join(self.conditions(step.on))}:")
        self.line(f"{matches}.append({variable})")
        self.indent = indent
        self.loops += 1
        self.open(f"for {variable} in {matches} or ({null},):")

    def getter(self, source: Source) -> str:
        table = self.program.table(_table(source).name)
        if self.program.observed:
            get = f"lambda key: get_row({table}, key)" if self.program.fragment else f"{table}.get"
            return f"seen.get({self.watched}, {get}, "
        return f"get_row({table}, " if self.program.fragment else f"{table}.get("

    def get(self, path: Path, source: Source, variable: str) -> str:
        """Looks a row up by its primary key. Returns the condition under which there is one."""
        table = _table(source)
        keys, checks = [], []
        for column, expr in zip(path.columns, path.keys, strict=True):
            text = self.key_value(expr, table.columns[column].type)
            if expr.nullable or text != self.value(expr):
                name = self.program.new("x")
                checks.append(f"({name} := {text}) is not None")
                keys.append(name)
            else:
                keys.append(text)
        key = keys[0] if len(keys) == 1 else f"({', '.join(keys)})"
        call = f"({variable} := {self.getter(source)}{key}))"
        return " and ".join([*checks, f"{call} is not None"])

    def key_value(self, expr: Expr, kind: TypeName) -> str:
        """The value as a key of this type, or None where it can't be one."""
        text = self.value(expr)
        if expr.type == kind:
            return text
        first, again = self.reused_unless_atom(expr, text)
        if kind == "INT":
            return f"({again} if type({first}) is int else key_of_int({again}))"
        return f"({again} if type({first}) is {PYTHON_TYPES[kind].__name__} else None)"

    def candidates(self, source: Source, path: Path) -> str:
        """What the loop over the source runs over: a list, a generator, or the keys of an IN."""
        text = self.unwatched(source, path)
        return f"seen.rows({self.watched}, {text})" if self.program.observed and path.kind != "gets" else text

    def unwatched(self, source: Source, path: Path) -> str:
        if path.kind == "hash":
            name, wanted = self.hashed(source, path)
            for variable in wanted:
                self.use(variable)
            key = (
                tuple_text([self.value(each) for each in path.keys]) if len(path.keys) > 1 else self.value(path.keys[0])
            )
            call = f"{name}({', '.join(wanted)})" if wanted else f"{name}()"
            if self.program.observed:
                call = f"seen.timed({self.watched}, lambda: {call})"
            return f"{call}.get({key}, NONE)"
        if source.kind == "query":
            return self.rows_of(_query(source))
        if source.kind == "shipped":
            number, _, catalog = source.origin.partition(" ")
            return f"catalog_merged({catalog!r}, SCHEMA, shipped[{number}])" if catalog else f"shipped[{number}]"
        if source.kind == "catalog":
            return f"catalog_rows({source.origin!r}, SCHEMA, vars(tx))"
        table = self.program.table(_table(source).name)
        match path.kind:
            case "gets":
                whole = _table(source).columns[path.columns[0]].type == "INT"
                return f"keys_of({tuple_text([self.value(each) for each in path.keys])}, {whole})"
            case "key_range":
                ends = self.ends(path)
                rows = f"key_range({table}, {ends})"
                return (
                    f"seen.estimated({self.watched}, keys_between({ends}), {table}, {rows})"
                    if self.program.observed
                    else rows
                )
            case "index" | "index_range":
                search = self.search(source, path)
                enough = f", {self.enough}" if self.enough else ""
                rows = f"{search}.rows({table}, {self.search_values(path)}{enough})"
                if self.program.observed:
                    rows = f"seen.searched({self.watched}, {search}, {table}, {self.search_values(path)}{enough})"
                if path.ranged is not None:
                    ends = self.ends(path.ranged)
                    more = f"{search}.gives_more({table}, {self.search_values(path)}, keys_between({ends}))"
                    ranged = (
                        self.unwatched(source, path.ranged) if self.program.observed else f"key_range({table}, {ends})"
                    )
                    rows = f"({ranged} if {more} else {rows})"
                if path.otherwise is None:
                    return rows
                return f"({rows} if {search}.helps({table}) else {self.unwatched(source, path.otherwise)})"
        return f"seen.scanned({self.watched}, {table})" if self.program.observed else f"{table}.scan()"

    def ends(self, path: Path, value: Callable[[Expr], str] | None = None) -> str:
        """The lower and the upper bounds of a key range."""
        value = value or self.value
        return ", ".join(
            tuple_text([f"({value(bound.value)}, {bound.open})" for bound in bounds])
            for bounds in (path.lows, path.highs)
        )

    def search(
        self, source: Source, path: Path, order: tuple[str, ...] = (), descending: bool = False, filtered: bool = False
    ) -> str:
        """The constant that finds the rows of an index path."""
        columns = _table(source).columns
        terms = []
        for term in path.terms:
            is_open = tuple(tuple(bound.open for bound in bounds) for bounds in (term.lows, term.highs))
            column = columns[term.column]
            terms.append((term.kind, column.name, column.type, is_open, term.escape))
        return self.program.constant(f"Search({terms!r}, {order!r}, {descending}, {filtered})")

    def search_values(self, path: Path, value: Callable[[Expr], str] | None = None) -> str:
        value = value or self.value
        values = []
        for term in path.terms:
            if term.kind == "range":
                bounds = (tuple_text([value(each.value) for each in ends]) for ends in (term.lows, term.highs))
                values.append(tuple_text(list(bounds)))
            elif term.kind == "in":
                values.append(tuple_text([value(each) for each in term.keys]))
            else:
                values.append(value(term.keys[0]) if term.keys else "None")
        return tuple_text(values)

    def hashed(self, source: Source, path: Path) -> tuple[str, tuple[str, ...]]:
        """A function that gives the source's rows by the values of these columns, made once a statement."""
        name = f"h{source.number}"
        function = _Function(self.program, 2)
        function.depth = self.depth + 2
        function.watched = self.watched
        variable = self.program.place(source)
        function.own.add(variable)
        function.line("found = {}")
        function.open(f"for {variable} in {function.unwatched(source, Path('scan'))}:")
        texts = [self.program.texts[source.number, column][0] for column in path.columns]
        nullable = [text for text, column in zip(texts, path.columns, strict=True) if source.fields[column].nullable]
        tests = [f"{text} is not None" for text in nullable] + function.conditions(path.local)
        if tests:
            function.open(f"if {' and '.join(tests)}:")
        key = function.program.new("k")
        function.line(f"{key} = {texts[0] if len(texts) == 1 else tuple_text(texts)}")
        function.line(f"if {key} in found: found[{key}].append({variable})")
        function.line(f"else: found[{key}] = [{variable}]")
        function.indent = 2
        function.line("return found")
        wanted = tuple(function.wanted)
        self.program.functions += [f"    def {name}({', '.join(wanted)}):", *function.lines]
        if not wanted:
            self.program.functions.append(f"    {name} = once({name})")
        return name, wanted

    # GROUP BY

    def grouped(self, block: Block, group: Group, row: Callable[[], None]) -> None:
        keys = self.program.place_variables(group.keys_source, "k", len(group.keys))
        results = self.program.place_variables(group.results_source, "a", len(group.aggregates))
        base, loops = self.indent, self.loops
        states: list[list[str]] = []  # of each aggregate, what its states begin as
        for aggregate in group.aggregates:
            states.append(_initial(aggregate))
        count = sum(map(len, states))
        if group.keys:
            self.line("groups = {}")
            names = [f"g[{position}]" for position in range(count)]
        else:
            names = [self.program.new("s") for _ in range(count)]
            for name, initial in zip(names, (each for state in states for each in state), strict=True):
                self.line(f"{name} = {initial}")
        self.note(
            f"Group by {_counted(len(group.keys), 'key') if group.keys else 'nothing'},"
            f" {_counted(len(results), 'aggregate')}"
        )
        self.depth += 1

        def update() -> None:
            if group.keys:
                key = (
                    tuple_text([self.value(each) for each in group.keys])
                    if len(group.keys) > 1
                    else self.value(group.keys[0])
                )
                initial = ", ".join(each for state in states for each in state)
                self.line(f"k = {key}")
                self.line("g = groups.get(k)")
                self.line(f"if g is None: g = groups[k] = [{initial}]")
            at = 0
            for aggregate, state in zip(group.aggregates, states, strict=True):
                self.update(aggregate, names[at : at + len(state)])
                at += len(state)
            if not group.keys and not group.aggregates:
                self.line("pass")

        self.pipeline(block, update)
        self.depth -= 1
        self.indent, self.loops = base, loops
        self.own.update(keys, results)
        if group.keys:
            self.loops += 1
            pattern = keys[0] if len(keys) == 1 else f"({', '.join(keys)})"
            self.open(f"for {pattern}, g in groups.items():")
        at = 0
        for aggregate, state, result in zip(group.aggregates, states, results, strict=True):
            self.line(f"{result} = {self.result(aggregate, names[at : at + len(state)])}")
            at += len(state)
        if block.having:
            self.open(f"if {self.all_true(block.having)}:")
        row()

    def update(self, aggregate: Aggregate, states: list[str]) -> None:
        """Takes one row into the aggregate's states."""
        indent = self.indent
        if aggregate.condition is not None:
            self.open(f"if {self.true(aggregate.condition)}:")
        arg = aggregate.arg
        state = states[0]
        if arg is None:
            self.line(f"{state} += 1")
            self.indent = indent
            return
        text = self.value(arg)
        if aggregate.name == "count" and not aggregate.distinct and not arg.nullable:
            self.line(f"{state} += 1")
            self.indent = indent
            return
        if not is_atom(arg):
            self.line(f"v = {text}")
            text = "v"
        if arg.nullable:
            self.open(f"if {text} is not None:")
        match aggregate.name:
            case "values_merged":
                self.line(f"{state}.update(dict.fromkeys({text}))")
            case "list_merged":
                self.line(f"{state}.extend({text})")
            case "avg_merged":
                assert aggregate.second is not None
                self.line(f"{state} += narrow({text})")
                self.line(f"{states[1]} += {self.value(aggregate.second)}")
            case _ if aggregate.distinct:
                self.line(f"{state}[{text}] = None")
            case "count":
                self.line(f"{state} += 1")
            case "count_merged":
                self.line(f"{state} += {text}")
            case "sum" | "sum_partial":
                self.line(f"{state} = {text} if {state} is None else {state} + {text}")
            case "sum_merged":
                self.line(f"{state} = narrow({text}) if {state} is None else {state} + narrow({text})")
            case "avg":
                self.line(f"{state} += {text}")
                self.line(f"{states[1]} += 1")
            case "min" | "max":
                sign = "<" if aggregate.name == "min" else ">"
                self.line(f"if {state} is None or {text} {sign} {state}: {state} = {text}")
            case "bool_and":
                self.line(f"{state} = {text} if {state} is None else {state} and {text}")
            case "bool_or":
                self.line(f"{state} = {text} if {state} is None else {state} or {text}")
            case "string_agg" | "list":
                self.line(f"{state}.append({text})")
            case name:
                raise AssertionError(name)
        self.indent = indent

    def result(self, aggregate: Aggregate, states: list[str]) -> str:
        state = states[0]
        name = aggregate.name
        if name in ("values_merged", "list_merged"):
            name = aggregate.merges
        if name in ("values", "list"):
            return f"tuple({state})"
        if name == "string_agg":
            assert aggregate.second is not None
            return f"(bounded(({self.value(aggregate.second)} or '').join({state})) if {state} else None)"
        if aggregate.distinct or aggregate.merges:
            return {
                "count": f"len({state})",
                "sum": f"number_sum(sum_of({state}))",
                "avg": f"average(sum_of({state}) or 0, len({state}))",
            }[name]
        if name in ("avg", "avg_merged"):
            return f"average({state}, {states[1]})"
        return f"number_sum({state})" if name in ("sum", "sum_merged") else state

    # Statements that write

    def insert(self, statement: BoundInsert) -> None:
        table = statement.table
        name = self.program.table(table.name)
        given = f"r{statement.given_source}"
        old, excluded = f"r{statement.old}", f"r{statement.excluded}"
        width = len(statement.row)
        self.note(f"Insert into {table.name}")
        for position, column in enumerate(table.columns):
            self.program.texts[statement.old, position] = (f"{old}.{column.name}", old)
        for position in range(width):
            self.program.texts[statement.excluded, position] = (f"{excluded}[{position}]", excluded)
        self.own.update((given, old, excluded))
        self.line("count = 0")
        if statement.returning is not None:
            self.line("out = []")
        if statement.given is None:
            self.line(f"rows = [{tuple_text([self.value(each) for each in statement.row])}]")
        else:
            for position in range(len(statement.given.fields)):
                self.program.texts[statement.given_source, position] = (f"{given}[{position}]", given)
            rows = self.rows_of(statement.given)
            same = all(
                isinstance(each, Column) and each.source == statement.given_source and each.column == position
                for position, each in enumerate(statement.row)
            ) and width == len(statement.given.fields)  # fmt: skip
            if same:
                self.line(f"rows = {rows}")
            else:
                self.line("rows = []")
                self.open(f"for {given} in {rows}:")
                self.line(f"rows.append({tuple_text([self.value(each) for each in statement.row])})")
                self.indent -= 1
        if statement.on_conflict == "update":
            self.line("touched = set()")
        self.open(f"for {excluded} in rows:")
        self.insert_row(statement, name, old, excluded)
        if statement.returning is not None:
            self.line(f"out.append({tuple_text([self.value(each) for each in statement.returning])})")
        self.line("count += 1")
        self.indent -= 1
        self.line(f"return count, {'out' if statement.returning is not None else '[]'}")

    def insert_row(self, statement: BoundInsert, name: str, old: str, excluded: str) -> None:
        table = statement.table
        insert = f"{name}.insert(*{excluded})"
        if statement.on_conflict is None:
            self.line(f"{old} = {insert}")
            return
        if statement.on_conflict == "nothing":
            self.line(f"try: {old} = {insert}")
            if statement.conflict_key:
                self.open("except DuplicateKey:")
                self.line(f"if {name}.get({_key_text(table, excluded)}) is None: raise")
                self.line("continue")
                self.indent -= 1
            else:
                self.line("except DuplicateKey: continue")
            return
        key = _key_text(table, excluded)
        self.line(f"key = {key}")
        parts = [key] if len(table.key_positions) == 1 else [f"{excluded}[{at}]" for at in table.key_positions]
        known = " or ".join(f"{part} is None" for part in parts)
        self.line(f"{old} = None if {known} else {name}.get(key)")
        self.open(f"if {old} is None:")
        self.line(f"{old} = {insert}")
        self.line(f"touched.add({_key_of(table, old)})")
        self.indent -= 1
        self.open("else:")
        self.line(f"key = {_key_of(table, old)}")
        self.line(f"if key in touched: second_time({table.name!r}, key)")
        if statement.where:
            self.line(f"if not ({self.all_true(statement.where)}): continue")
        values = [(each.position, self.value(each.value)) for each in statement.assignments]
        self.line("touched.add(key)")
        self.apply_update(table, name, old, values)
        self.line(f"touched.add({_key_of(table, old)})")
        self.indent -= 1

    def apply_update(self, table: Table, name: str, old: str, values: list[tuple[int, str]]) -> None:
        """Changes one row, whose variable then holds the new one."""
        fixed = {*table.key_positions, table.partition_position}
        if not any(position in fixed for position, _ in values):
            changes = ", ".join(f"{table.columns[position].name}={text}" for position, text in values)
            self.line(f"{old} = {name}.update({_key_of(table, old)}, {changes})")
            return
        new = dict(values)
        row = [new.get(at, f"{old}.{table.columns[at].name}") for at in table.declared_positions]
        self.line(f"new = {tuple_text(row)}")
        self.line(f"{name}.delete({_key_of(table, old)})")
        self.line(f"{old} = {name}.insert(*new)")

    def change(self, statement: BoundChange) -> None:
        """UPDATE or DELETE: first all rows are found and the new values computed, then they change."""
        table = statement.table
        name = self.program.table(table.name)
        self.note(f"{'Delete from' if statement.assignments is None else 'Update of'} {table.name}")
        self.depth += 1
        source = statement.query.sources[0]
        variable = self.program.place(source)
        assignments = statement.assignments or []
        base = self.indent
        self.line("found = []")

        def row() -> None:
            values = [self.value(each.value) for each in assignments]
            self.line(f"found.append({tuple_text([variable, *values])})")

        self.pipeline(statement.query, row)
        self.indent = base
        self.loops = 0
        if statement.returning is not None:
            self.line("out = []")
        new = [f"v{position}" for position in range(len(assignments))]
        fixed = {*table.key_positions, table.partition_position}
        moves = any(each.position in fixed for each in assignments)
        if moves:
            # Keys may pass from one row to another, so all rows go before the first comes back.
            self.open(f"for {_targets([variable, *new])} in found:")
            self.line(f"{name}.delete({_key_of(table, variable)})")
            self.indent -= 1
        self.open(f"for {_targets([variable, *new])} in found:")
        if statement.assignments is None:
            self.line(f"{name}.delete({_key_of(table, variable)})")
        elif moves:
            changed = dict(zip((each.position for each in assignments), new, strict=True))
            row_texts = [changed.get(at, f"{variable}.{table.columns[at].name}") for at in table.declared_positions]
            self.line(f"{variable} = {name}.insert({', '.join(row_texts)})")
        else:
            values = list(zip((each.position for each in assignments), new, strict=True))
            self.apply_update(table, name, variable, values)
        if statement.returning is not None:
            self.line(f"out.append({tuple_text([self.value(each) for each in statement.returning])})")
        self.indent -= 1
        self.line(f"return len(found), {'out' if statement.returning is not None else '[]'}")


def _is_of_a_run(part: Expr) -> bool:
    """Whether only a run gives it a value, and often another one. The time is that of the call, in EXPLAIN too."""
    if isinstance(part, Op):
        return part.name == "fresh_key" or (part.name == "generated" and part.extra != "tx.now()")
    return isinstance(part, Column | Slot | Subquery)


def _targets(names: Sequence[str]) -> str:
    return f"{names[0]}," if len(names) == 1 else ", ".join(names)


def _table(source: Source) -> Table:
    assert source.table is not None
    return source.table


def _query(source: Source) -> BoundQuery:
    assert source.query is not None
    return source.query


def _key_of(table: Table, variable: str) -> str:
    texts = [f"{variable}.{name}" for name in table.primary_key]
    return texts[0] if len(texts) == 1 else tuple_text(texts)


def _key_text(table: Table, row: str) -> str:
    texts = [f"{row}[{position}]" for position in table.key_positions]
    return texts[0] if len(texts) == 1 else tuple_text(texts)


def _initial(aggregate: Aggregate) -> list[str]:
    """What an aggregate's states begin as."""
    if aggregate.distinct or aggregate.name in ("values", "values_merged"):
        return ["{}"]
    match aggregate.name:
        case "count" | "count_merged":
            return ["0"]
        case "avg" | "avg_merged":
            return ["0", "0"]
        case "string_agg" | "list" | "list_merged":
            return ["[]"]
    return ["None"]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _described(step: Step) -> str:
    source, path = step.source, step.path
    if source.table is not None:
        name = source.table.name if source.name == source.table.name else f"{source.table.name} as {source.name}"
    elif source.kind == "shipped":
        name = f"what was sent of {source.name}" if source.name else "what was sent"
    else:
        name = f"{'query' if source.kind == 'query' else 'catalog'} {source.name}"
    columns = ", ".join(source.fields[column].name for column in path.columns)
    indexes = ", ".join(path.indexes)
    how = {
        "get": f"Get by key ({columns})",
        "gets": f"Get by a list of keys ({columns})",
        "hash": f"Hash join on ({columns})",
        "key_range": "Range of the primary key",
        "index": f"Index {indexes}" + (", or range of the primary key," if path.ranged else ""),
        "index_range": f"Index range {indexes}",
        "scan": "Scan",
    }[path.kind]
    filters = len(step.filters) + len(step.on) + len(path.local)
    left = ", left join" if source.left else ""
    return f"{how} of {name}{left}" + (f", {_counted(filters, 'filter')}" if filters else "")
