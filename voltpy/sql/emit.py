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

from collections.abc import Sequence
from typing import NamedTuple

from voltpy.schema import Table
from voltpy.sql.bound import (
    BoundChange,
    BoundInsert,
    BoundQuery,
    BoundStatement,
    Column,
    Gather,
    SqlType,
)
from voltpy.sql.catalogue import Catalogue
from voltpy.sql.program import Program, tuple_text
from voltpy.sql.query_function import QueryFunction


def emit(
    statement: BoundStatement | Gather,
    parameters: Sequence[SqlType],
    catalogue: Catalogue,
    *,
    fragment: bool = False,
    analyze: Analyze | None = None,
) -> tuple[str, list[str]]:
    """(the source, what the plan does in words). `fragment`: keys that it looks up may live in other partitions."""
    borrowed = analyze is not None and analyze.borrowed
    program = Program(parameters, catalogue, fragment, analyze is not None, borrowed=borrowed)
    if analyze is not None:
        return _observed(program, statement, analyze), program.notes
    body = _StatementFunction(program, 1)
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
    _StatementFunction(program, 1).statement(statement)
    result = "seen.sent()" if routed is None else f"seen.alone({(routed, *program.notes)!r})"
    return program.estimates_source(result), program.notes


class Analyze(NamedTuple):
    """How EXPLAIN ANALYZE begins, and the lines of the fragments that a merge is of.

    `borrowed`: it runs on borrowed rows, which no index finds.
    """

    routed: str = ""
    parts: tuple[str, ...] | None = None
    borrowed: bool = False


def _observed(program: Program, statement: BoundStatement | Gather, analyze: Analyze) -> str:
    """A program that runs the statement and answers what it met: see voltpy.sql.observed."""
    body = _StatementFunction(program, 2)
    body.statement(statement)
    if isinstance(statement, Gather):
        result = "seen.sent(answer)"
    else:
        notes = repr((analyze.routed, *program.notes))
        result = f"seen.{'alone' if isinstance(statement, BoundQuery) else 'changed'}(answer, {notes})"
        if analyze.parts is not None:
            result = f"seen.merged(answer, shipped[-1], {notes}, {analyze.parts!r})"
    return program.source(["    def answer():", *body.lines, f"    return {result}"])


class _StatementFunction(QueryFunction):
    """The function of a whole statement, or of a fragment."""

    def statement(self, statement: BoundStatement | Gather) -> None:
        if isinstance(statement, BoundQuery):
            self.query(statement)
        elif isinstance(statement, BoundInsert):
            self.insert(statement)
        elif isinstance(statement, Gather):
            self.gather(statement)
        else:
            self.change(statement)

    def gather(self, statement: Gather) -> None:
        """A fragment: `shipped` says whether this partition is the one that sends copies."""
        self.title = "Send:"
        rows = []
        for query, is_copy in zip(statement.queries, statement.copies, strict=True):
            text = self.rows_of(query)
            rows.append(f"{text} if shipped else []" if is_copy else text)
        self.line(f"return [{', '.join(rows)}]")

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
            self.title = "Query:"
            rows = self.rows_of(statement.given)
            self.title = "Subquery, once:"
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
        if not _moves(table, [position for position, _ in values]):
            changes = ", ".join(f"{table.columns[position].name}={text}" for position, text in values)
            self.line(f"{old} = {name}.update({_key_of(table, old)}, {changes})")
            return
        self.line(f"new = {tuple_text(_row_text(table, old, values))}")
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
        values = list(zip((each.position for each in assignments), new, strict=True))
        moves = _moves(table, [each.position for each in assignments])
        if moves:
            # Keys may pass from one row to another, so all rows go before the first comes back.
            self.open(f"for {_targets([variable, *new])} in found:")
            self.line(f"{name}.delete({_key_of(table, variable)})")
            self.indent -= 1
        self.open(f"for {_targets([variable, *new])} in found:")
        if statement.assignments is None:
            self.line(f"{name}.delete({_key_of(table, variable)})")
        elif moves:
            self.line(f"{variable} = {name}.insert({', '.join(_row_text(table, variable, values))})")
        else:
            self.apply_update(table, name, variable, values)
        if statement.returning is not None:
            self.line(f"out.append({tuple_text([self.value(each) for each in statement.returning])})")
        self.indent -= 1
        self.line(f"return len(found), {'out' if statement.returning is not None else '[]'}")


def _moves(table: Table, changed: Sequence[int]) -> bool:
    """Whether a row that changes in these columns gets another key, or place: then it is deleted and inserted."""
    return not {*table.key_positions, table.partition_position}.isdisjoint(changed)


def _row_text(table: Table, variable: str, values: Sequence[tuple[int, str]]) -> list[str]:
    """The columns of the row in the variable, with new values by position."""
    new = dict(values)
    return [new.get(at, f"{variable}.{table.columns[at].name}") for at in table.declared_positions]


def _targets(names: Sequence[str]) -> str:
    return f"{names[0]}," if len(names) == 1 else ", ".join(names)


def _key_of(table: Table, variable: str) -> str:
    texts = [f"{variable}.{name}" for name in table.primary_key]
    return texts[0] if len(texts) == 1 else tuple_text(texts)


def _key_text(table: Table, row: str) -> str:
    """The key of a row that is a tuple; `_key_of`: of one with attributes."""
    texts = [f"{row}[{position}]" for position in table.key_positions]
    return texts[0] if len(texts) == 1 else tuple_text(texts)
