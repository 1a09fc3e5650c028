"""What the functions of one generated program share: names for tables, constants, and columns of rows."""

from __future__ import annotations

from collections.abc import Sequence

from voltpy.schema import INT_MAX, INT_MIN
from voltpy.sql.bound import Source, SqlType
from voltpy.sql.catalogue import Catalogue

_NO_INT = f"type({{0}}) is not int or not {INT_MIN} <= {{0}} <= {INT_MAX}"

# By the type of its place: when a parameter is looked at more closely, and by what.
_PARAMETERS: dict[SqlType, tuple[str, str]] = {
    "INT": (_NO_INT, "int_parameter"), "NUMBER": (_NO_INT, "number_parameter"),
    "FLOAT": ("type({0}) is not float", "number_parameter"), "STRING": ("type({0}) is not str", "string_parameter"),
    "BOOL": ("type({0}) is not bool", "bool_parameter"), "TIMESTAMP": ("{0} is not None", "timestamp_parameter"),
    "ANY": ("type({0}) is not str", "any_parameter"), "NULL": ("type({0}) is not str", "any_parameter"),
}  # fmt: skip


class Program:
    """What the functions of one program share."""

    def __init__(
        self,
        parameters: Sequence[SqlType],
        catalogue: Catalogue,
        fragment: bool,
        observed: bool = False,
        estimating: bool = False,
        borrowed: bool = False,
    ) -> None:
        self.parameters = parameters
        self.catalogue = catalogue
        self.fragment = fragment
        self.observed = observed  # for EXPLAIN ANALYZE: `seen` counts what each step does
        self.estimating = estimating  # for EXPLAIN: only `estimates` are wanted …
        self.borrowed = borrowed  # for both: it runs, or would run, on borrowed rows, which no index finds
        self.estimates: list[str] = []  # lines that ask for counts
        self.each_time: set[int] = set()  # lines of the plan that run often
        self.copies: set[int] = set()  # … that read a table which every partition has whole
        self.constants: dict[str, str] = {}  # expression → name
        self.tables: dict[str, str] = {}  # table → variable
        self.functions: list[str] = []
        self.queries: dict[int, tuple[str, tuple[str, ...]]] = {}  # query number → its function, and what it wants
        self.texts: dict[tuple[int, int], tuple[str, str]] = {}  # (source, column) → (expression, variable in it)
        self.notes: list[str] = []
        self.numbers = 0

    def new(self, letter: str) -> str:
        self.numbers += 1
        return f"{letter}{self.numbers}"

    def constant(self, expression: str) -> str:
        return self.constants.setdefault(expression, f"K{len(self.constants)}")

    def table(self, name: str) -> str:
        if name not in self.tables:
            self.tables[name] = f"t{self.catalogue.number(name)}"
        return self.tables[name]

    def place(self, source: Source) -> str:
        """Says how the columns of a source's rows are read; the variable that holds such a row."""
        variable = f"r{source.number}"
        for position in range(len(source.fields)):
            if source.table is not None:
                text = f"{variable}.{source.table.columns[position].name}"
            else:
                text = f"{variable}[{position}]"
            self.texts[source.number, position] = (text, variable)
        return variable

    def place_variables(self, source: int, letter: str, count: int) -> list[str]:
        """The same for a source each of whose columns is a variable of its own."""
        names = [f"{letter}{source}_{position}" for position in range(count)]
        for position, name in enumerate(names):
            self.texts[source, position] = (name, name)
        return names

    def note(self, depth: int, text: str) -> int:
        """Adds a line to the plan in words; its number."""
        self.notes.append("  " * depth + text)
        return len(self.notes) - 1

    def source(self, body: Sequence[str]) -> str:
        """The whole program; `body` are the lines of `run` behind its functions."""
        lines = self._beginning()
        lines += self._parameters("    ")
        if self.observed:
            lines.append(f"    seen = Observed({len(self.notes)})")
            lines += [f"    {variable} = seen.table(tx.{name})" for name, variable in self.tables.items()]
        else:
            lines += [f"    {variable} = tx.{name}" for name, variable in self.tables.items()]
        return "\n".join([*lines, *self.functions, *body]) + "\n"

    def estimates_source(self, result: str) -> str:
        """The program that estimates. Its parameters may be left out."""
        lines = self._beginning()
        if self.parameters:
            lines += ["    known = bool(p)", "    if known:", *self._parameters("        ")]
        lines += [f"    {variable} = tx.{name}" for name, variable in self.tables.items()]
        lines.append(f"    seen = Estimates({_set_text(self.each_time)}, {_set_text(self.copies)})")
        return "\n".join([*lines, *self.estimates, f"    return {result}"]) + "\n"

    def _beginning(self) -> list[str]:
        lines = [f"{name} = {expression}" for expression, name in self.constants.items()]
        return [*lines, "def run(tx, p, shipped=()):"]

    def _parameters(self, indent: str) -> list[str]:
        """Takes them apart, checked for their types."""
        if not self.parameters:
            return []
        lines = [f"{indent}{', '.join(f'p{i}' for i in range(len(self.parameters)))}, = p"]
        for i, kind in enumerate(self.parameters):
            test, check = _PARAMETERS[kind]
            lines.append(f"{indent}if {test.format(f'p{i}')}: p{i} = {check}(p{i}, {i + 1})")
        return lines


def _set_text(numbers: set[int]) -> str:
    return f"{{{', '.join(map(str, sorted(numbers)))}}}" if numbers else "set()"


def tuple_text(texts: Sequence[str]) -> str:
    return f"({texts[0]},)" if len(texts) == 1 else f"({', '.join(texts)})"
