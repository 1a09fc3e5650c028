"""One Python function that gives the rows of a query: see voltpy.sql.emit, which draws it.

What EXPLAIN wants is written by the same hand: where the program observes itself, lines that count what each step
meets; where it estimates, lines that ask for counts and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from voltpy.schema import PYTHON_TYPES, Table, TypeName
from voltpy.sql.access import Path, PathKind, Step, ordering, steps_of
from voltpy.sql.aggregate_states import final_value, first_states, taken_in
from voltpy.sql.bound import (
    Aggregate,
    Block,
    BoundQuery,
    Column,
    Const,
    Expr,
    Group,
    Op,
    Param,
    Rows,
    SetOp,
    Slot,
    Source,
    Subquery,
    all_parts,
    outer_sources,
)
from voltpy.sql.expression import Expressions, is_atom
from voltpy.sql.program import Program, tuple_text
from voltpy.sql.search import HASH, PRIMARY_KEY, SCAN

_MANY = ("index", "key_range", "index_range", "scan")  # paths whose rows a loop runs over
_INSTEAD: dict[PathKind, str] = {"key_range": PRIMARY_KEY, "hash": HASH, "scan": SCAN}
LOOPS = 8  # in each other, before their rows are put into a list: Python allows 20

_SET_OPERATIONS = {
    ("UNION", False): "union", ("EXCEPT", False): "except_rows", ("INTERSECT", False): "intersect_rows",
    ("EXCEPT", True): "except_all", ("INTERSECT", True): "intersect_all",
}  # fmt: skip


class QueryFunction:
    """One Python function while it is written. `indent` is that of its body."""

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

    # Queries

    def query(self, query: BoundQuery, *, exists: bool = False) -> None:
        """Writes statements that return the query's rows, or whether there are any."""
        limit, offset = self.limit(query.limit, "LIMIT"), self.limit(query.offset, "OFFSET")
        body = query.body
        if isinstance(body, Block):
            self.block(body, query, limit, offset, exists)
            return
        if isinstance(body, Rows):
            rows = "[" + ", ".join(tuple_text([self.value(each) for each in row]) for row in body.rows) + "]"
            self.note(f"{_counted(len(body.rows), 'row')} of VALUES")
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
            most = f", {_most(limit, offset)}" if limit else ""
            unless = f"if {self.walked} is None: " if self.walked else ""
            self.line(f"{unless}out = ordered(out, {self.program.constant(repr(orders))}{most})")
            self.note("Sort" + (", and keep the first rows" if limit else ""))
        if limit or offset:
            self.line(f"out = sliced(out, {limit or None}, {offset or None})")
        if width != len(query.fields):
            kept = "(row[0],)" if len(query.fields) == 1 else f"row[:{len(query.fields)}]"
            self.line(f"out = [{kept} for row in out]")
        self.line("return bool(out)" if exists else "return out")

    def set_operation(self, body: SetOp) -> str:
        """An expression for its rows."""
        self.note(f"{body.operator}{' ALL' if body.all else ''}")
        title, self.title = self.title, "Query:"
        left, right = self.rows_of(body.left), self.rows_of(body.right)
        self.title = title
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
        made = f"lambda: {make}({name}())" if make in ("single", "value_set") else name
        line = f"    {shared} = once({made})"
        if line not in self.program.functions:
            self.program.functions.append(line)
        return f"{shared}()"

    def function_of(self, query: BoundQuery, exists: bool, correlated: bool) -> tuple[str, tuple[str, ...]]:
        """The function that gives the query's rows, and the variables that it wants."""
        key = query.number * 2 + exists
        known = self.program.queries.get(key)
        if known is not None:
            return known
        function = QueryFunction(self.program, 2)
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
        """A SELECT: the loops over its sources, and before them what an index may answer without them."""
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
                test = f"len(out) >= {_end(limit, offset)}"
                test = test if limit.isdigit() else f"{limit} is not None and {test}"
                self.line(f"if {test}: return {f'sliced(out, {limit}, {offset})' if offset else 'out'}")
            elif self.walked:
                self.line(f"if {self.walked} is not None and len(out) >= most: break")

        if block.group is None:
            self.pipeline(block, row)
        else:
            self.grouped(block, block.group, row)

    def exists(self, block: Block) -> None:
        """Returns at the first row."""
        base = self.indent
        self.enough = "1" if len(block.sources) == 1 else ""
        self.pipeline(block, lambda: self.line("return True"))
        self.indent = base
        self.line("return False")

    def count_in_index(self, block: Block, plain: bool) -> bool:
        """COUNT(*) of a whole table, or of what indexes find: nothing is fetched. Whether it needs nothing else."""
        group = block.group
        if group is None or not plain or not _counts_all(block, group):
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
            number = self.note(f"Count of all rows of {_table(source).name}")
            count = f"seen.table_count({number}, {table})" if self.program.observed else f"{table}.count()"
            self.estimate(number, source, f"count({number}, {table})")
            self.line(f"{' = '.join(names)} = {count}")
        else:
            number = self.note(f"Count of {_table(source).name} using {', '.join(path.indexes)}, or else:")
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
        if self.program.borrowed:  # no index gives rows that are borrowed
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
        self.line(f"most = {_most(limit, offset)}")
        self.walked = self.program.new("w")
        number = self.note(f"First rows of {_table(source).name} in the order of {' or '.join(path.indexes)}, or else:")
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
        if not steps:
            self.note("Result, of no table")
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
        """As voltpy.sql.access has them; on borrowed rows, what they come to without indexes."""
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
        """Asks how many rows the step's path would give. What no table has, nobody counts."""
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
                    rows = f"({self.instead(source, path.ranged)} if {more} else {rows})"
                if path.otherwise is None:
                    return rows
                return f"({rows} if {search}.helps({table}) else {self.instead(source, path.otherwise)})"
        return f"seen.scanned({self.watched}, {table})" if self.program.observed else f"{table}.scan()"

    def instead(self, source: Source, path: Path) -> str:
        """What another path than that of indexes gives."""
        rows = self.unwatched(source, path)
        if not self.program.observed:
            return rows
        return f"seen.instead({self.watched}, {_INSTEAD[path.kind]!r}, {rows})"

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
        function = QueryFunction(self.program, 2)
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
            states.append(first_states(aggregate))
        count = sum(map(len, states))
        if group.keys:
            self.line("groups = {}")
            names = [f"g[{position}]" for position in range(count)]
        else:
            names = [self.program.new("s") for _ in range(count)]
            for name, initial in zip(names, (each for state in states for each in state), strict=True):
                self.line(f"{name} = {initial}")
        groups = f"Group by {_counted(len(group.keys), 'key')}" if group.keys else "One group of all rows"
        self.note(f"{groups}, {_counted(len(results), 'aggregate')}")
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
            self.line(f"{result} = {final_value(aggregate, names[at : at + len(state)], self.second(aggregate))}")
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
        if arg is None or (aggregate.name == "count" and not aggregate.distinct and not arg.nullable):
            self.line(f"{states[0]} += 1")
            self.indent = indent
            return
        text = self.value(arg)
        if not is_atom(arg):
            self.line(f"v = {text}")
            text = "v"
        if arg.nullable:
            self.open(f"if {text} is not None:")
        for line in taken_in(aggregate, states, text, self.second(aggregate)):
            self.line(line)
        self.indent = indent

    def second(self, aggregate: Aggregate) -> str:
        """The value of its second argument, "" for none."""
        return "" if aggregate.second is None else self.value(aggregate.second)


def _end(limit: str, offset: str) -> str:
    """Behind how many rows no more are wanted, where there is a limit."""
    return f"{limit} + ({offset} or 0)" if offset and offset != "0" else limit


def _most(limit: str, offset: str) -> str:
    """The same, or None where the limit turns out to be NULL."""
    return _end(limit, offset) if limit.isdigit() else f"None if {limit} is None else {_end(limit, offset)}"


def _counts_all(block: Block, group: Group) -> bool:
    """Whether the block answers with COUNT(*) of one table, and nothing else."""
    return (
        len(block.sources) == 1
        and block.sources[0].table is not None
        and not group.keys
        and not block.having
        and bool(group.aggregates)
        and all(each == Aggregate("count", None) for each in group.aggregates)
    )


def _is_of_a_run(part: Expr) -> bool:
    """Whether only a run gives it a value, and often another one. The time is that of the call, in EXPLAIN too."""
    if isinstance(part, Op):
        return part.name == "fresh_key" or (part.name == "generated" and part.extra != "tx.now()")
    return isinstance(part, Column | Slot | Subquery)


def _table(source: Source) -> Table:
    assert source.table is not None
    return source.table


def _query(source: Source) -> BoundQuery:
    assert source.query is not None
    return source.query


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
    indexes = " or ".join([*path.indexes, PRIMARY_KEY] if path.ranged else path.indexes)
    found = {
        "get": f"Get by key ({columns}) of {name}",
        "gets": f"Get by a list of keys ({columns}) of {name}",
        "hash": f"Hash join on ({columns}) of {name}",
        "key_range": f"Range scan of {name} using {PRIMARY_KEY}",
        "index": f"Index scan of {name} using {indexes}",
        "index_range": f"Index range scan of {name} using {indexes}",
        "scan": f"{'Scan' if source.table is None else 'Sequential scan'} of {name}",
    }[path.kind]
    filters = len(step.filters) + len(step.on) + len(path.local)
    left = ", left join" if source.left else ""
    return f"{found}{left}" + (f", {_counted(filters, 'filter')}" if filters else "")
