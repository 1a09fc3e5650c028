"""Texts for tests.campaigns.sql_fuzz: statements by a grammar, the same with damage, and shapes at the limits."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

COLUMNS = {
    "orders": {
        "id": "INT", "customer": "INT", "total": "INT", "price": "FLOAT", "note": "STRING", "paid": "BOOL",
        "placed": "TIMESTAMP",
    },
    "lines": {"order_id": "INT", "n": "INT", "item": "STRING"},
    "items": {"code": "STRING", "kind": "STRING", "weight": "FLOAT"},
}  # fmt: skip
KEYS = {"orders": "id", "lines": "order_id, n", "items": "code"}
SCHEMA = """
CREATE TABLE orders (id INT PRIMARY KEY, customer INT, total INT NOT NULL, price FLOAT, note STRING, paid BOOL,
                     placed TIMESTAMP);
PARTITION TABLE orders ON COLUMN id;
CREATE TABLE lines (order_id INT, n INT, item STRING, PRIMARY KEY (order_id, n));
PARTITION TABLE lines ON COLUMN order_id;
CREATE TABLE items (code STRING PRIMARY KEY, kind STRING, weight FLOAT);
CREATE INDEX orders_customer ON orders USING INVERTED (customer);
CREATE INDEX orders_total ON orders USING BTREE (total);
CREATE INDEX orders_note ON orders USING BTREE (note, total);
CREATE INDEX lines_item ON lines USING HASH (item);
"""
STRINGS = (
    "", "a", "%", "_", "a%", "%b_", "\\", "''", "2024-02-29", "2024-05-17T08:30:00Z", "year", "epoch", "nan",
    "Infinity",
    "ß", "İ", "\u0301", "\U0001f600", "\u202e", "\ufeff", "x" * 300, "\t\n", "{}{0}", "%s%n", "1e5", "true",
)  # fmt: skip
LITERALS = {
    "INT": ("0", "1", "2", "7", "-1", "100", "9223372036854775807", "-9223372036854775808"),
    "FLOAT": ("0.0", "1.5", "-2.5", "1e308", "1e-320", ".5"),
    "BOOL": ("TRUE", "FALSE"),
    "STRING": STRINGS,
    "TIMESTAMP": ("CURRENT_TIMESTAMP", "TIMESTAMP '2024-02-29'", "TO_TIMESTAMP(1e9)"),
}
ODD = (
    "\0", "\x1a", "\x7f", "\xa0", "\u2028", "\ufeff", "\u200b", "\ud800", "\uffff", "\U0001f600", "ﬁ", "K",
    "ſ", "İ", "'",
    '"', "`", "$$", "$1", ":x", "@", "\\", ";", "--", "/*", "*/", "(", ")", "[", "]", "{", "}", "?", "??",
    "?||", "::", "..",
    "E'\\n'", "x'00'", "b'1'", "U&'x'", "N'x'", "1a", "１", "٣", "-- \n", "#", "~", "!", "&", "|", "->", "->>",
    "<=>", "**",
)  # fmt: skip
_TOKEN = re.compile(r"\w+|'(?:[^']|'')*'|\s+|.", re.DOTALL)


class Grammar:
    """Statements that are mostly right: of the types that are wanted, from columns that are there."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.depth = 0
        self.scopes: list[list[tuple[str, str]]] = []  # of each query around: (column, type)
        self.aliases = 0

    def statement(self) -> str:
        self.depth, self.aliases, self.scopes = self.rng.choice((2, 3, 4, 6)), 0, []
        kind = self.rng.randrange(20)
        if kind < 13:
            return self.query()
        if kind == 13:
            statement = self.rng.choice((self.query, self.query, self.insert, self.update, self.delete))
            return f"EXPLAIN {self.rng.choice(('', 'ANALYZE '))}{statement()}"
        return self.rng.choice((self.insert, self.update, self.delete))()

    # Queries.

    def query(self, kinds: list[str] | None = None) -> str:
        """`kinds`: the types of its columns; None: any."""
        rng = self.rng
        kinds = kinds or [self.kind() for _ in range(rng.choice((1, 1, 2, 4)))]
        if not self.deeper():
            return f"SELECT {', '.join(map(self.literal, kinds))}"
        self.scopes.append([])
        try:
            sources = self.sources() if rng.random() < 0.9 else ""
            where = f" WHERE {self.of('BOOL')}" if rng.random() < 0.6 else ""
            text = self.grouped(kinds, sources, where) if rng.random() < 0.25 else self.plain(kinds, sources, where)
            if rng.random() < 0.15:
                operator = rng.choice(("UNION", "UNION ALL", "EXCEPT", "INTERSECT", "EXCEPT ALL"))
                text += f" {operator} {self.query(kinds)}"
            elif rng.random() < 0.5:
                text += self.ending(len(kinds))
            return text
        finally:
            self.scopes.pop()
            self.depth += 1

    def ending(self, columns: int) -> str:
        rng = self.rng
        text = f" ORDER BY {rng.randrange(1, columns + 1)}{rng.choice(('', ' DESC', ' NULLS FIRST'))}"
        if rng.random() < 0.6:
            text += f" LIMIT {rng.choice(('0', '1', '5', '?', 'NULL', '9223372036854775807'))}"
            if rng.random() < 0.4:
                text += f" OFFSET {rng.choice(('0', '1', '3', '9223372036854775807'))}"
        return text

    def plain(self, kinds: list[str], sources: str, where: str) -> str:
        items = ", ".join(self.of(kind) + self.rng.choice(("", "", ' AS "select"')) for kind in kinds)
        return f"SELECT {self.rng.choice(('', '', 'DISTINCT ', 'ALL '))}{items}{sources}{where}"

    def grouped(self, kinds: list[str], sources: str, where: str) -> str:
        rng = self.rng
        keys = [self.of(self.kind()) for _ in range(rng.choice((0, 1, 2)))]
        having = f" HAVING {self.aggregate('INT')} > {rng.choice(('0', '1', '?'))}" if rng.random() < 0.4 else ""
        group = f" GROUP BY {', '.join(keys)}" if keys else ""
        return f"SELECT {', '.join(map(self.aggregate, kinds))}{sources}{where}{group}{having}"

    def sources(self) -> str:
        rng = self.rng
        text = f" FROM {self.source()}"
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
            kind = rng.choice((", ", " JOIN ", " LEFT JOIN ", " CROSS JOIN "))
            text += kind + self.source()
            if kind in (" JOIN ", " LEFT JOIN "):
                text += f" ON {self.of('BOOL')}"
        return text

    def source(self) -> str:
        rng = self.rng
        self.aliases += 1
        alias = f"t{self.aliases}"
        if rng.random() < 0.15 and self.depth:
            kinds = [self.kind() for _ in range(2)]
            mine = self.scopes.pop()  # what stands beside it in FROM it can't see
            text = f"({self.query(kinds)}) AS {alias} (c0, c1)"
            self.scopes.append(mine)
            self.scopes[-1] += [(f"{alias}.c{number}", kind) for number, kind in enumerate(kinds)]
            return text
        table = rng.choice(list(COLUMNS))
        self.scopes[-1] += [(f"{alias}.{column}", kind) for column, kind in COLUMNS[table].items()]
        return f"{table} {alias}"

    # Expressions.

    def kind(self) -> str:
        return self.rng.choice(("INT", "INT", "FLOAT", "STRING", "STRING", "BOOL", "TIMESTAMP"))

    def of(self, kind: str) -> str:
        """An expression of this type; once in a while of another one."""
        rng = self.rng
        if rng.random() < 0.01:
            kind = self.kind()
        if not self.deeper():
            return self.leaf(kind)
        try:
            if rng.random() < 0.3:
                return self.leaf(kind)
            if rng.random() < 0.25:
                return self.of_any(kind)
            return rng.choice(SHAPES[kind])(self)
        finally:
            self.depth += 1

    def of_any(self, kind: str) -> str:
        one = self.of
        shapes = (
            lambda: f"CASE WHEN {one('BOOL')} THEN {one(kind)} ELSE {one(kind)} END",
            lambda: f"CASE {one('INT')} WHEN {one('INT')} THEN {one(kind)} END",
            lambda: f"COALESCE({one(kind)}, {one(kind)})",
            lambda: f"NULLIF({one(kind)}, {one(kind)})",
            lambda: f"GREATEST({one(kind)}, {one(kind)}, {one(kind)})",
            lambda: f"LEAST({one(kind)}, {one(kind)})",
            lambda: f"CAST({one('STRING')} AS {kind})",
            lambda: self.scalar_query(kind),
        )
        return self.rng.choice(shapes)()

    def scalar_query(self, kind: str) -> str:
        self.scopes.append([])
        sources = f" FROM {self.source()}"
        text = f"(SELECT {self.aggregate(kind)}{sources} WHERE {self.of('BOOL')})"
        self.scopes.pop()
        return text

    def aggregate(self, kind: str) -> str:
        rng = self.rng
        distinct = rng.choice(("", "", "DISTINCT "))
        only = f" FILTER (WHERE {self.of('BOOL')})" if rng.random() < 0.1 else ""
        if kind == "STRING" and rng.random() < 0.4:
            return f"STRING_AGG({distinct}{self.of(kind)}, ','){only}"
        name = rng.choice(AGGREGATES[kind])
        return f"{name}({distinct}{self.of(kind)}){only}"

    def leaf(self, kind: str) -> str:
        rng = self.rng
        scope = rng.choice(self.scopes) if self.scopes and rng.random() < 0.2 else (self.scopes or [[]])[-1]
        columns = [column for column, own in scope if own == kind]
        if columns and rng.random() < 0.75:
            return rng.choice(columns)
        return rng.choice(("NULL", "?")) if rng.random() < 0.06 else self.literal(kind)

    def literal(self, kind: str) -> str:
        text = self.rng.choice(LITERALS[kind])
        return "'" + text.replace("'", "''") + "'" if kind == "STRING" else text

    # Statements that write.

    def insert(self) -> str:
        rng = self.rng
        table = rng.choice(list(COLUMNS))
        columns = rng.sample(list(COLUMNS[table]), rng.randrange(1, len(COLUMNS[table]) + 1))
        kinds = [COLUMNS[table][column] for column in columns]
        if rng.random() < 0.2:
            values = self.query(kinds)
        else:
            rows = [f"({', '.join(map(self.of, kinds))})" for _ in range(rng.choice((1, 1, 2, 4)))]
            values = f"VALUES {', '.join(rows)}"
        updated = f" DO UPDATE SET {columns[-1]} = EXCLUDED.{columns[-1]}"
        conflict = rng.choice(("", " ON CONFLICT DO NOTHING", f" ON CONFLICT ({KEYS[table]}){updated}"))
        return f"INSERT INTO {table} ({', '.join(columns)}) {values}{conflict}{self.returning(table)}"

    def update(self) -> str:
        table = self.rng.choice(list(COLUMNS))
        self.scopes = [list(COLUMNS[table].items())]
        column, kind = self.rng.choice(list(COLUMNS[table].items()))
        return f"UPDATE {table} SET {column} = {self.of(kind)} WHERE {self.of('BOOL')}{self.returning(table)}"

    def delete(self) -> str:
        table = self.rng.choice(list(COLUMNS))
        self.scopes = [list(COLUMNS[table].items())]
        return f"DELETE FROM {table} WHERE {self.of('BOOL')} AND ({self.of('BOOL')}){self.returning(table)}"

    def returning(self, table: str) -> str:
        self.scopes = [list(COLUMNS[table].items())]
        return self.rng.choice(("", "", " RETURNING *", f" RETURNING {self.of(self.kind())}"))

    def deeper(self) -> bool:
        if self.depth == 0:
            return False
        self.depth -= 1
        return True


AGGREGATES = {
    "INT": ("COUNT", "SUM", "MIN", "MAX"), "FLOAT": ("AVG", "SUM", "MIN", "MAX"), "STRING": ("MIN", "MAX"),
    "BOOL": ("BOOL_AND", "BOOL_OR", "EVERY"), "TIMESTAMP": ("MIN", "MAX"),
}  # fmt: skip


def _shape(pattern: str) -> Callable[[Grammar], str]:
    """`i f s b t` in braces stand for an expression of that type."""
    kinds = {"i": "INT", "f": "FLOAT", "s": "STRING", "b": "BOOL", "t": "TIMESTAMP"}
    return lambda grammar: re.sub(r"\{(\w)\}", lambda found: f"({grammar.of(kinds[found[1]])})", pattern)


_PATTERNS = {
    "INT": (
        "{i} + {i}", "{i} - {i}", "{i} * {i}", "{i} / {i}", "{i} % {i}", "- {i}", "ABS({i})", "SIGN({i})",
        "MOD({i}, {i})",
        "DIV({i}, {i})", "LENGTH({s})", "OCTET_LENGTH({s})", "STRPOS({s}, {s})", "POSITION({s} IN {s})", "ASCII({s})",
        "ROUND({i}, {i})", "{f}::INT", "{b}::INT", "TRUNC({i}, {i})",
    ),
    "FLOAT": (
        "{f} + {i}", "{f} * {f}", "{f} / {f}", "{f} - {f}", "{f} % {f}", "{f} ^ {f}", "SQRT({f})", "EXP({f})",
        "LN({f})",
        "LOG({f})", "LOG({f}, {f})", "POWER({f}, {f})", "ROUND({f}, {i})", "TRUNC({f}, {i})", "CEIL({f})", "FLOOR({f})",
        "EXTRACT(EPOCH FROM {t})", "DATE_PART('year', {t})", "{i}::FLOAT", "ABS({f})", "RANDOM()",
    ),
    "STRING": (
        "{s} || {s}", "LOWER({s})", "UPPER({s})", "INITCAP({s})", "REVERSE({s})", "TRIM({s})", "LTRIM({s}, {s})",
        "RTRIM({s}, {s})", "TRIM(BOTH {s} FROM {s})", "SUBSTR({s}, {i})", "SUBSTRING({s} FROM {i} FOR {i})",
        "LEFT({s}, {i})", "RIGHT({s}, {i})", "LPAD({s}, {i}, {s})", "RPAD({s}, {i})", "REPEAT({s}, {i})",
        "REPLACE({s}, {s}, {s})", "SPLIT_PART({s}, {s}, {i})", "CONCAT({s}, {i}, {b}, {f})", "CONCAT_WS({s}, {i}, {t})",
        "CHR({i})", "{i}::STRING", "{f}::STRING", "{t}::STRING", "{b}::STRING",
    ),
    "BOOL": (
        "{i} = {i}", "{i} < {f}", "{s} >= {s}", "{s} <> {s}", "{t} <= {t}", "{b} = {b}", "{b} AND {b}", "{b} OR {b}",
        "NOT {b}", "{s} LIKE {s}", "{s} ILIKE {s} ESCAPE '!'", "{s} NOT LIKE {s}", "{i} IN ({i}, {i}, {i})",
        "{s} NOT IN ({s}, {s})", "{i} BETWEEN {i} AND {f}", "{t} NOT BETWEEN {t} AND {t}", "{i} IS NULL", "{b} IS TRUE",
        "{b} IS NOT UNKNOWN", "{s} IS DISTINCT FROM {s}", "{i} IS NOT DISTINCT FROM {i}", "STARTS_WITH({s}, {s})",
        "EXISTS (SELECT 1 FROM orders WHERE {b})", "{i} IN (SELECT total FROM orders WHERE {b})",
        "{s} NOT IN (SELECT item FROM lines WHERE {b})",
    ),
    "TIMESTAMP": ("TO_TIMESTAMP({f})", "DATE_TRUNC('month', {t})", "DATE_TRUNC({s}, {t})", "{s}::TIMESTAMP"),
}  # fmt: skip
SHAPES = {kind: [_shape(pattern) for pattern in patterns] for kind, patterns in _PATTERNS.items()}


def damaged(rng: Random, text: str, other: str) -> str:
    """Tokens or characters gone, doubled, swapped, replaced; the end of another statement instead of its own."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        pieces = _TOKEN.findall(text) or [""]
        at = rng.randrange(len(pieces))
        match rng.randrange(8):
            case 0:
                del pieces[at : at + rng.choice((1, 2, 5))]
            case 1:
                pieces[at:at] = pieces[at : at + rng.choice((1, 3))] * rng.choice((1, 1, 2, 50))
            case 2:
                to = rng.randrange(len(pieces))
                pieces[at], pieces[to] = pieces[to], pieces[at]
            case 3:
                pieces[at] = rng.choice(_TOKEN.findall(other) or [""])
            case 4:
                pieces.insert(at, rng.choice(ODD))
            case 5:
                pieces[at:] = _TOKEN.findall(other)[rng.randrange(20) :]
            case 6:
                pieces[at] = rng.choice(
                    (pieces[at].upper(), pieces[at][::-1], pieces[at] + pieces[at], f'"{pieces[at]}"')
                )
            case _:
                character = rng.randrange(len(text) + 1)
                pieces = [text[:character], rng.choice(ODD), text[character + rng.randrange(2) :]]
        text = "".join(pieces)[:20_000]
    return text


# Each takes how many, and gives a statement that has so many of something.
NESTED: dict[str, tuple[str, str, str]] = {
    "parentheses": ("(", "1", ")"),
    "NOT": ("NOT (", "TRUE", ")"),
    "minus": ("- (", "1", ")"),
    "sum": ("(1 + ", "total", ")"),
    "equality": ("(", "total = 1", ") = (total = 2)"),
    "distinct": ("(", "paid", ") IS DISTINCT FROM paid"),
    "BETWEEN": ("(", "paid", ") BETWEEN paid AND TRUE"),
    "BETWEEN, right": ("(paid BETWEEN ", "(paid)", " AND paid)"),
    "IN": ("(", "paid", ") IN (paid, NULL)"),
    "IS": ("(", "paid", ") IS TRUE"),
    "CASE": ("CASE WHEN paid THEN ", "total", " ELSE customer END"),
    "CASE, condition": ("CASE WHEN ", "paid", " THEN paid ELSE FALSE END"),
    "CASE, operand": ("CASE ", "total", " WHEN 1 THEN total ELSE 2 END"),
    "COALESCE": ("COALESCE(customer, ", "total", ", 1)"),
    "NULLIF": ("NULLIF(", "total", ", customer)"),
    "NULLIF, right": ("NULLIF(customer, ", "total", ")"),
    "GREATEST": ("GREATEST(customer, ", "total", ")"),
    "CONCAT": ("CONCAT(note, ", "note", ", note)"),
    "bars": ("(note || ", "note", " || note)"),
    "REPEAT": ("REPEAT(", "note", ", 100)"),
    "REPLACE": ("REPLACE(", "note", ", 'a', 'aaaaaaaaaa')"),
    "LPAD": ("LPAD(", "note", ", 1000000, note)"),
    "LIKE": ("(", "paid", ")::STRING LIKE '%a%' "),
    "CAST": ("CAST(", "total", " AS INT)"),
    "ABS": ("ABS(", "customer", ")"),
    "ROUND": ("ROUND(", "price", ", 2)"),
    "modulo": ("(", "total", ") % customer"),
    "power": ("(", "price", ") ^ 2.0"),
    "scalar query": ("(SELECT ", "1", ")"),
    "EXISTS": ("EXISTS (SELECT 1 FROM items WHERE ", "TRUE", ")"),
    "IN query": ("1 IN (SELECT total FROM orders WHERE ", "TRUE", ")"),
    "AND OR": ("(paid AND total = 1 OR ", "paid", ")"),
    "TRUNC": ("DATE_TRUNC('day', ", "placed", ")"),
}


def _listed(before: str, one: str, after: str = "", by: str = ", ", start: int = 0) -> Callable[[int], str]:
    """`one` again and again: `{i}` in it counts, and `{j}` is one less."""

    def make(count: int) -> str:
        if "{" not in one:
            return before + by.join([one] * count) + after
        return before + by.join(one.format(i=i, j=i - 1) for i in range(start, count)) + after

    return make


def _with(one: str) -> Callable[[int], str]:
    make = _listed("WITH w0 AS (SELECT 1 AS x)", one, by="", start=1)
    return lambda count: f"{make(count)} SELECT * FROM w{count - 1}"


_OF = " FROM orders"
_ORDERS = "SELECT id FROM orders WHERE "
CHAINS: dict[str, Callable[[int], str]] = {
    "plus": _listed("SELECT ", "total", _OF, " + "),
    "AND": _listed(_ORDERS, "total > 1", by=" AND "),
    "OR": _listed(_ORDERS, "total = {i}", by=" OR "),
    "AND of ORs": _listed(_ORDERS, "(id = {i} OR id = {j})", by=" AND "),
    "bars": _listed("SELECT ", "note", _OF, " || "),
    "casts": _listed("SELECT total", "::STRING::INT", _OF, ""),
    "signs": _listed("SELECT ", "- ", "1", ""),
    "NOTs": _listed("SELECT ", "NOT ", "TRUE", ""),
    "IN list": _listed(f"{_ORDERS}total IN (", "{i}", ")"),
    "IN keys": _listed(f"{_ORDERS}id IN (", "{i}", ")"),
    "IN strings": _listed(f"{_ORDERS}note IN (", "'n{i}'", ")"),
    "columns": _listed("SELECT ", "total", _OF),
    "stars": _listed("SELECT ", "*", _OF),
    "joins": _listed("SELECT 1 FROM items a0", " JOIN items a{i} ON a{i}.code = a{j}.code", by="", start=1),
    "left joins": _listed("SELECT 1 FROM items a0", " LEFT JOIN items a{i} ON a{i}.code = a{j}.code", by="", start=1),
    "commas": _listed("SELECT 1 FROM ", "items a{i}", " WHERE FALSE"),
    "UNIONs": _listed("", "SELECT {i}", by=" UNION "),
    "VALUES": _listed("VALUES ", "({i})"),
    "inserted rows": _listed("INSERT INTO items (code) VALUES ", "('new {i}')", " ON CONFLICT DO NOTHING"),
    "GROUP BY": _listed("SELECT 1 FROM orders GROUP BY ", "total + {i}"),
    "aggregates": _listed("SELECT ", "SUM(total + {i})", _OF),
    "ORDER BY": _listed("SELECT id FROM orders ORDER BY ", "total + {i}"),
    "WHENs": _listed("SELECT CASE ", "WHEN total = {i} THEN {i}", " END FROM orders", " "),
    "arguments": _listed("SELECT COALESCE(", "customer", ") FROM orders"),
    "subqueries": _listed("SELECT ", "(SELECT MAX(total) + {i} FROM orders)"),
    "WITH": _with(", w{i} AS (SELECT x FROM w{j})"),
    "WITH twice": _with(", w{i} AS (SELECT a.x FROM w{j} a, w{j} b)"),
    "parameters": _listed("SELECT ", "?"),
    "digits": _listed("SELECT ", "9", by=""),
    "fraction": _listed("SELECT 0.", "1", by=""),
    "exponent": _listed("SELECT 1e", "9", by=""),
    "string": _listed("SELECT '", "x", "' FROM orders", ""),
    "quotes": _listed("SELECT '", "''", "'", ""),
    "name": _listed('SELECT "', "n", '" FROM orders', ""),
    "blanks": _listed("SELECT", " ", "1", ""),
    "comments": _listed("SELECT", "/**/", " 1", ""),
    "comments in each other": lambda count: "SELECT " + "/*" * count + "*/" * count + " 1",
    "line comments": _listed("SELECT", "--\n", " 1", ""),
    "pattern": _listed("SELECT note FROM orders WHERE note LIKE '", "%a", "'", ""),
    "semicolons": _listed("SELECT 1", ";", by=""),
    "dots": _listed("SELECT ", "a", by="."),
    "SETs": _listed("UPDATE orders SET ", "total = 1"),
}


def nested(shape: str, depth: int) -> str:
    before, inside, after = NESTED[shape]
    return f"SELECT {before * depth}{inside}{after * depth} FROM orders"
