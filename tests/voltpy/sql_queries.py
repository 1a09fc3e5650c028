"""Random tables, rows and queries that SQLite and PostgreSQL agree about; a hypothesis strategy.

What they disagree about is left out here, and listed in docs/sql.md: division by zero, overflow, casts that fail or
round, the text of FLOATs, NULLs' place in ORDER BY where it is not said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")
COLUMNS = {"INT": ("a", "b"), "FLOAT": ("f",), "STRING": ("s", "u")}
_STRINGS = ("", "a", "b", "ab", "A", "b_%", "zz")


@dataclass
class Case:
    """`schema`: CREATE TABLE … ;, then `indexes`; `rows` by table, of which the first `settled` come before the others;
    `queries` are texts.
    """

    schema: str
    indexes: str
    rows: dict[str, list[tuple[Any, ...]]]
    settled: int
    queries: list[str]


@dataclass
class Source:
    """A table or query in FROM: alias, and columns by type."""

    alias: str
    columns: dict[str, list[str]]


@dataclass
class Generator:
    """Makes one query by drawing. `names` numbers aliases."""

    draw: Callable[[st.SearchStrategy[Any]], Any]
    tables: dict[str, dict[str, list[str]]]
    names: int = 0
    outer: list[Source] = field(default_factory=list)
    nesting: int = 0

    def pick(self, options: Sequence[T]) -> T:
        return options[self.draw(st.integers(0, len(options) - 1))]

    def chance(self, percent: int) -> bool:
        return bool(self.draw(st.integers(0, 99)) < percent)

    # Queries

    def query(self) -> str:
        kind = self.pick(["plain", "plain", "grouped", "grouped", "set", "with", "looked up", "looked up"])
        if kind == "set":
            return self.set_operation()
        if kind == "looked up":
            return self.looked_up()
        if kind == "with":
            self.names += 1
            name = f"w{self.names}"
            inner, columns = self.select_with_types(1)
            self.tables = {**self.tables, name: columns}
            return f"WITH {name} AS ({inner}) {self.plain(2) if self.chance(60) else self.grouped()}"
        return self.plain(2) if kind == "plain" else self.grouped()

    def looked_up(self) -> str:
        """Conditions as indexes answer them, orders as they have them."""
        sources, text = self.sources(self.pick([1, 1, 1, 2]))
        conditions = [self.plain_condition(sources) for _ in range(self.pick([0, 1, 2, 2, 3, 4]))]
        where = " WHERE " + " AND ".join(conditions) if conditions else ""
        if self.chance(40):
            return f"SELECT COUNT(*) FROM {text}{where}"
        columns = [self.pick(found) for kind in COLUMNS if (found := self.columns(kind, sources))]
        items = [self.pick(columns) for _ in range(self.pick([1, 2]))] if columns else ["1"]
        text = f"SELECT {', '.join(items)} FROM {text}{where}"
        if columns and self.chance(60):
            way = self.pick([" ASC NULLS LAST", " DESC NULLS FIRST"])
            text += " ORDER BY " + ", ".join(f"{at + 1}{way}" for at in range(len(items)))
            text += self.pick(["", " LIMIT 1", " LIMIT 3", " LIMIT 2 OFFSET 1", " LIMIT 0"])
        return text

    def plain_condition(self, sources: list[Source]) -> str:
        """A column beside constants, or another column."""
        kind = self.pick(["INT", "INT", "FLOAT", "STRING", "STRING"])
        columns = self.columns(kind, sources)
        if not columns:
            return "1 = 1"
        column = self.pick(columns)

        def value() -> str:
            if kind == "STRING":
                return "'" + self.pick(_STRINGS) + "'"
            if self.chance(20):
                return self.pick(["2.5", "-0.5", "9007199254740993", "2.0"])
            return str(self.draw(st.integers(-3, 6)))

        shapes = [
            lambda: f"{column} = {value()}",
            lambda: f"{column} = {value()}",
            lambda: f"{column} IN ({value()}, {value()}, {value()})",
            lambda: f"{column} IS NULL",
            lambda: f"{column} {self.pick(['<', '<=', '>', '>='])} {value()}",
            lambda: f"{column} BETWEEN {value()} AND {value()}",
            lambda: f"{value()} < {column}",
            lambda: f"{column} = {self.pick(self.columns(kind, [*sources, *self.outer]))}",
        ]
        if kind == "STRING":
            shapes += [lambda: f"{column} LIKE '{self.pick(['a%', 'ab', 'b%_', 'a_', '%', 'z%'])}'"] * 3
        return self.pick(shapes)()

    def set_operation(self) -> str:
        types = [self.pick(["INT", "STRING"]) for _ in range(self.pick([1, 2]))]
        parts = [self.typed_select(types)]
        for _ in range(self.pick([1, 1, 2])):
            parts += [self.pick(["UNION", "UNION ALL", "EXCEPT", "INTERSECT"]), self.typed_select(types)]
            if len(parts) == 5 and "INTERSECT" in parts:  # it binds tighter in PostgreSQL, and not in SQLite
                parts = parts[:3]
        return " ".join(parts) + self.order(len(types))

    def typed_select(self, types: Sequence[str]) -> str:
        sources, from_text = self.sources(1)
        items = [self.expression(kind, sources, 1) for kind in types]
        return f"SELECT {', '.join(items)} FROM {from_text}{self.where(sources, 1)}"

    def select_with_types(self, depth: int) -> tuple[str, dict[str, list[str]]]:
        """A query with named outputs, for FROM."""
        sources, from_text = self.sources(1)
        columns: dict[str, list[str]] = {"INT": [], "FLOAT": [], "STRING": []}
        items = []
        for number in range(self.pick([1, 2, 3])):
            kind = self.pick(["INT", "INT", "STRING", "FLOAT"])
            items.append(f"{self.expression(kind, sources, depth)} AS c{number}")
            columns[kind].append(f"c{number}")
        distinct = "DISTINCT " if self.chance(20) else ""
        return f"SELECT {distinct}{', '.join(items)} FROM {from_text}{self.where(sources, depth)}", columns

    def plain(self, depth: int) -> str:
        sources, from_text = self.sources(3)
        count = self.pick([1, 2, 3])
        items = [
            self.expression(self.pick(["INT", "INT", "STRING", "FLOAT", "BOOL"]), sources, depth) for _ in range(count)
        ]
        distinct = "DISTINCT " if self.chance(20) else ""
        text = f"SELECT {distinct}{', '.join(items)} FROM {from_text}{self.where(sources, depth)}"
        return text + self.order(count)

    def grouped(self) -> str:
        sources, from_text = self.sources(2)
        keys = [self.expression(self.pick(["INT", "STRING"]), sources, 1) for _ in range(self.pick([0, 1, 1, 2]))]
        keys = [key for key in dict.fromkeys(keys) if "x" in key]
        aggregates = [self.aggregate(sources) for _ in range(self.pick([1, 2]))]
        items = [*keys, *aggregates]
        text = f"SELECT {', '.join(items)} FROM {from_text}{self.where(sources, 1)}"
        if keys:
            text += " GROUP BY " + ", ".join(keys)
        if self.chance(30):
            text += (
                f" HAVING {self.aggregate(sources, numeric=True)} {self.pick(['>', '<=', '<>'])} {self.pick([0, 1, 2])}"
            )
        return text + self.order(len(items))

    def order(self, count: int) -> str:
        """By all outputs, so that the rows have one order; sometimes with a limit."""
        if self.chance(50):
            return ""
        keys = [f"{at + 1}{self.pick([' ASC', ' DESC'])} NULLS {self.pick(['FIRST', 'LAST'])}" for at in range(count)]
        text = " ORDER BY " + ", ".join(keys)
        if self.chance(40):
            text += f" LIMIT {self.pick([0, 1, 3])}" + (f" OFFSET {self.pick([0, 1, 2])}" if self.chance(50) else "")
        return text

    def sources(self, most: int) -> tuple[list[Source], str]:
        sources: list[Source] = []
        text = joints = ""
        for number in range(self.draw(st.integers(1, most))):
            source, one = self.source()
            if not number:
                text = one
            else:
                # A condition behind a comma would see what is behind the comma only.
                kind = "," if ", " in joints else self.pick(["JOIN", "JOIN", "LEFT JOIN", "CROSS JOIN", ","])
                joints += kind + " "
                text += f", {one}" if kind == "," else f" {kind} {one}"
                if kind.endswith("JOIN") and not kind.startswith("CROSS"):
                    text += f" ON {self.join_condition(sources, source)}"
            sources.append(source)
        return sources, text

    def source(self) -> tuple[Source, str]:
        self.names += 1
        alias = f"x{self.names}"
        if self.nesting < 2 and self.chance(15):
            self.nesting += 1
            inner, columns = self.select_with_types(1)
            self.nesting -= 1
            return Source(alias, columns), f"({inner}) AS {alias}"
        table = self.pick(list(self.tables))
        return Source(alias, self.tables[table]), f"{table} AS {alias}"

    def join_condition(self, left: list[Source], right: Source) -> str:
        kind = self.pick(["INT", "INT", "STRING"])
        mine, other = self.columns(kind, [right]), self.columns(kind, left)
        if not mine or not other:
            return self.condition([*left, right], 1)
        text = f"{self.pick(other)} {self.pick(['=', '=', '=', '<'])} {self.pick(mine)}"
        return text + (f" AND {self.condition([*left, right], 1)}" if self.chance(25) else "")

    def where(self, sources: list[Source], depth: int) -> str:
        return f" WHERE {self.condition(sources, depth)}" if self.chance(70) else ""

    # Expressions

    def columns(self, kind: str, sources: list[Source]) -> list[str]:
        return [f"{source.alias}.{name}" for source in sources for name in source.columns.get(kind, ())]

    def leaf(self, kind: str, sources: list[Source]) -> str:
        columns = self.columns(kind, [*sources, *self.outer])
        if columns and self.chance(75):
            return self.pick(columns)
        if self.chance(10):
            return f"CAST(NULL AS {kind if kind != 'STRING' else 'TEXT'})"
        if kind == "INT":
            return str(self.draw(st.integers(-3, 6)))
        if kind == "FLOAT":
            return str(self.draw(st.integers(-4, 8)) / 2)
        return "'" + self.pick(_STRINGS) + "'"

    def expression(self, kind: str, sources: list[Source], depth: int) -> str:
        if kind == "BOOL":
            return f"({self.condition(sources, depth)})"
        if depth <= 0 or self.chance(40):
            return self.leaf(kind, sources)

        def inner(of: str = kind) -> str:
            return self.expression(of, sources, depth - 1)

        shapes: dict[str, list[Callable[[], str]]] = {
            "INT": [
                lambda: f"({inner()} {self.pick(['+', '-', '*'])} {inner()})",
                lambda: f"({inner()} {self.pick(['/', '%'])} {self.pick([-3, -2, 2, 3])})",
                lambda: f"(- {inner()})",
                lambda: f"abs({inner()})",
                lambda: f"length({inner('STRING')})",
                lambda: self.scalar_query("INT", sources),
            ],
            "FLOAT": [
                lambda: f"({inner()} {self.pick(['+', '-', '*'])} {inner(self.pick(['INT', 'FLOAT']))})",
                lambda: f"({inner()} / {self.pick(['2.0', '-4.0'])})",
                lambda: f"(- {inner()})",
            ],
            "STRING": [
                lambda: f"({inner()} || {inner()})",
                lambda: f"{self.pick(['upper', 'lower', 'trim'])}({inner()})",
                lambda: f"substr({inner()}, {self.pick([1, 2])}, {self.pick([0, 1, 2])})",
                lambda: f"replace({inner()}, 'a', 'b')",
                lambda: self.scalar_query("STRING", sources),
            ],
        }
        common: list[Callable[[], str]] = [
            lambda: f"COALESCE({inner()}, {inner()})",
            lambda: f"NULLIF({inner()}, {inner()})",
            lambda: f"CASE WHEN {self.condition(sources, depth - 1)} THEN {inner()} ELSE {inner()} END",
            lambda: f"CASE {inner('INT')} WHEN {inner('INT')} THEN {inner()} WHEN 1 THEN {inner()} END",
        ]
        return self.pick([*shapes[kind], *common])()

    def condition(self, sources: list[Source], depth: int) -> str:
        kind = self.pick(["INT", "INT", "FLOAT", "STRING"])

        def value(of: str = kind) -> str:
            return self.expression(of, sources, depth - 1)

        def inner() -> str:
            return self.condition(sources, depth - 1)

        def items() -> str:
            return ", ".join(self.leaf(kind, sources) for _ in range(self.pick([1, 2, 3])))

        negated = self.pick(["", "NOT "])
        shapes: list[Callable[[], str]] = [
            lambda: f"{value()} {self.pick(['=', '<>', '<', '<=', '>', '>='])} {value()}",
            lambda: f"{value()} {self.pick(['=', '<', '>='])} {value()}",
            lambda: f"{value('INT')} {self.pick(['=', '<', '>'])} {value('FLOAT')}",
            lambda: f"{value()} IS {negated}NULL",
            lambda: f"{value()} {negated}IN ({items()})",
            lambda: f"{value()} {negated}BETWEEN {value()} AND {value()}",
            lambda: f"{value('STRING')} {negated}LIKE '{self.pick(['a%', '%b', '_', '%', 'a_', '%b%', ''])}'",
        ]
        if depth > 0:
            shapes += [
                lambda: f"({inner()} {self.pick(['AND', 'OR'])} {inner()})",
                lambda: f"({inner()} {self.pick(['AND', 'OR'])} {inner()})",
                lambda: f"NOT ({inner()})",
            ]
        if depth > 0 and self.nesting < 2:
            shapes += [
                lambda: f"{negated}EXISTS ({self.subquery(self.pick(['INT', 'STRING']), sources)})",
                lambda: f"{value(kind)} {negated}IN ({self.subquery(kind, sources)})",
            ]
        return self.pick(shapes)()

    def subquery(self, kind: str, sources: list[Source]) -> str:
        inner = Generator(
            self.draw,
            self.tables,
            self.names + 100,
            [*self.outer, *sources] if self.chance(60) else [],
            self.nesting + 1,
        )
        found, text = inner.sources(2)
        made = f"SELECT {inner.expression(kind, found, 1)} FROM {text}{inner.where(found, 1)}"
        self.names = inner.names
        return made

    def scalar_query(self, kind: str, sources: list[Source]) -> str:
        if self.nesting >= 2:
            return self.leaf(kind, sources)
        inner = Generator(
            self.draw,
            self.tables,
            self.names + 100,
            [*self.outer, *sources] if self.chance(60) else [],
            self.nesting + 1,
        )
        found, text = inner.sources(1)
        own = inner.columns(kind, found)
        function = "max" if not own else inner.pick(["max", "min", "count"] if kind == "INT" else ["max", "min"])
        arg = inner.pick(own) if own else None
        if arg is None:
            return inner.leaf(kind, sources)
        made = f"(SELECT {function}({arg}) FROM {text}{inner.where(found, 1)})"
        self.names = inner.names
        return made

    def aggregate(self, sources: list[Source], numeric: bool = False) -> str:
        columns = {kind: self.columns(kind, sources) for kind in COLUMNS}
        choices = ["COUNT(*)"]
        for kind, names in columns.items():
            if names:
                distinct = self.pick(["", "DISTINCT "])
                choices.append(f"COUNT({distinct}{self.pick(names)})")
                if kind != "STRING":
                    choices.append(f"SUM({distinct}{self.pick(names)})")
                    choices.append(f"AVG({self.pick(names)})")
                if not numeric or kind != "STRING":
                    choices.append(f"{self.pick(['MIN', 'MAX'])}({self.pick(names)})")
        return self.pick(choices)


_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "INT": st.integers(-3, 6),
    "FLOAT": st.integers(-4, 8).map(lambda half: half / 2),
    "STRING": st.sampled_from(_STRINGS),
}


@st.composite
def cases(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Case:
    """Up to three tables (one key, two keys, none; divided or not) with up to three indexes and eight rows each, and
    some queries.
    """
    schema, indexes, rows, tables = "", "", {}, {}
    for number in range(draw(st.integers(1, 3))):
        name = f"t{number}"
        key = draw(st.sampled_from(["id", "id, b", ""]))
        kinds = {"id": "INT", "a": "INT", "b": "INT", "f": "FLOAT", "s": "STRING", "u": "STRING"}
        not_null = {*key.split(", "), *draw(st.sets(st.sampled_from(["a", "f", "s", "id"])))} | {"id"}
        lines = [f"{column} {kind}{' NOT NULL' if column in not_null else ''}" for column, kind in kinds.items()]
        schema += f"CREATE TABLE {name} ({', '.join(lines)}{f', PRIMARY KEY ({key})' if key else ''});\n"
        if draw(st.booleans()):
            schema += f"PARTITION TABLE {name} ON COLUMN id;\n"
        for at in range(draw(st.integers(0, 3))):
            using = draw(st.sampled_from(["INVERTED", "HASH", "BTREE", "BTREE"]))
            indexed = draw(st.lists(st.sampled_from(list(kinds)), min_size=1, max_size=3, unique=True))
            indexes += f"CREATE INDEX {name}_{at} ON {name} USING {using} ({', '.join(indexed)});\n"
        made: dict[Any, tuple[Any, ...]] = {}
        for at in range(draw(st.integers(0, 8))):
            row = tuple(
                draw(_VALUES[kind] if column in not_null else st.none() | _VALUES[kind])
                for column, kind in kinds.items()
            )
            made[row[0] if key == "id" else (row[0], row[2]) if key else at] = row
        rows[name] = list(made.values())
        tables[name] = {kind: [c for c, k in kinds.items() if k == kind] for kind in COLUMNS}
    queries = [Generator(draw, tables).query() for _ in range(draw(st.integers(1, 4)))]
    return Case(schema, indexes, rows, draw(st.integers(0, 8)), queries)


@st.composite
def looked_up_cases(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Case:
    """One table with more rows, of few values, and more indexes; queries as indexes answer them."""
    kinds = {"id": "INT", "a": "INT", "b": "INT", "f": "FLOAT", "s": "STRING", "u": "STRING"}
    schema = f"CREATE TABLE t0 ({', '.join(f'{column} {kind}' for column, kind in kinds.items())}, PRIMARY KEY (id));\n"
    indexes = ""
    for at in range(draw(st.integers(1, 5))):
        using = draw(st.sampled_from(["INVERTED", "HASH", "BTREE", "BTREE", "BTREE"]))
        indexed = draw(st.lists(st.sampled_from(["a", "b", "f", "s", "u"]), min_size=1, max_size=2, unique=True))
        indexes += f"CREATE INDEX t0_{at} ON t0 USING {using} ({', '.join(indexed)});\n"
    random = Random(draw(st.integers(0, 1 << 32)))
    values: dict[str, Callable[[], Any]] = {
        "INT": lambda: random.randint(-3, 6),
        "FLOAT": lambda: random.randint(-4, 8) / 2,
        "STRING": lambda: random.choice(_STRINGS),
    }
    rows = [
        (key, *(None if random.random() < 0.15 else values[kind]() for kind in list(kinds.values())[1:]))
        for key in range(random.randint(0, 40))
    ]
    tables = {"t0": {kind: [c for c, k in kinds.items() if k == kind] for kind in COLUMNS}}
    queries = [Generator(draw, tables).looked_up() for _ in range(10)]
    return Case(schema, indexes, {"t0": rows}, random.randint(0, 40), queries)
