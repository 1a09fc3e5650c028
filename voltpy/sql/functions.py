"""Which functions SQL has here: what they take, what they give, and what does the work.

A code letter an argument: N number, I INT, F FLOAT (or another number), S STRING, B BOOL, T TIMESTAMP. `code` is the
name of a function in voltpy.sql.runtime, or a Python expression with {0}, {1}. A function is strict: NULL in, NULL out;
those that are not, such as COALESCE, are made in voltpy.sql.bind.
"""

from __future__ import annotations

from msgspec import Struct


class Function(Struct, frozen=True):
    """`takes` the longest list of arguments; at least `least` of them. `gives` a type, or "same" as the first."""

    takes: str
    gives: str
    code: str
    least: int = -1

    @property
    def fewest(self) -> int:
        return len(self.takes) if self.least < 0 else self.least


FUNCTIONS: dict[str, Function] = {
    # Numbers
    "abs": Function("N", "same", "absolute"),
    "ceil": Function("N", "same", "ceiling"),
    "ceiling": Function("N", "same", "ceiling"),
    "floor": Function("N", "same", "floor"),
    "round": Function("NI", "same", "rounded", 1),
    "trunc": Function("NI", "same", "truncated", 1),
    "sign": Function("N", "same", "sign"),
    "mod": Function("II", "INT", "mod_int"),
    "div": Function("II", "INT", "div_int"),
    "sqrt": Function("F", "FLOAT", "square_root"),
    "exp": Function("F", "FLOAT", "exponential"),
    "ln": Function("F", "FLOAT", "natural_log"),
    "log": Function("FF", "FLOAT", "log", 1),
    "log10": Function("F", "FLOAT", "log"),
    "power": Function("FF", "FLOAT", "power"),
    "pow": Function("FF", "FLOAT", "power"),
    "pi": Function("", "FLOAT", "pi"),
    # Strings
    "length": Function("S", "INT", "len({0})"),
    "char_length": Function("S", "INT", "len({0})"),
    "character_length": Function("S", "INT", "len({0})"),
    "octet_length": Function("S", "INT", "len({0}.encode())"),
    "lower": Function("S", "STRING", "{0}.lower()"),
    "upper": Function("S", "STRING", "{0}.upper()"),
    "initcap": Function("S", "STRING", "initcap"),
    "reverse": Function("S", "STRING", "{0}[::-1]"),
    "btrim": Function("SS", "STRING", "trimmed", 1),
    "ltrim": Function("SS", "STRING", "left_trimmed", 1),
    "rtrim": Function("SS", "STRING", "right_trimmed", 1),
    "substr": Function("SII", "STRING", "substring", 2),
    "substring": Function("SII", "STRING", "substring", 2),
    "left": Function("SI", "STRING", "left"),
    "right": Function("SI", "STRING", "right"),
    "lpad": Function("SIS", "STRING", "left_padded", 2),
    "rpad": Function("SIS", "STRING", "right_padded", 2),
    "repeat": Function("SI", "STRING", "repeated"),
    "replace": Function("SSS", "STRING", "replaced"),
    "strpos": Function("SS", "INT", "({0}.find({1}) + 1)"),
    "starts_with": Function("SS", "BOOL", "{0}.startswith({1})"),
    "split_part": Function("SSI", "STRING", "split_part"),
    "ascii": Function("S", "INT", "ascii_code"),
    "chr": Function("I", "STRING", "character"),
    # Time
    "date_part": Function("ST", "FLOAT", "date_part"),
    "date_trunc": Function("ST", "TIMESTAMP", "date_trunc"),
    "to_timestamp": Function("N", "TIMESTAMP", "to_timestamp"),
}

# Of the call itself: the same in every rerun. Python expressions.
GENERATED: dict[str, tuple[str, str]] = {
    "now": ("TIMESTAMP", "tx.now()"),
    "transaction_timestamp": ("TIMESTAMP", "tx.now()"),
    "statement_timestamp": ("TIMESTAMP", "tx.now()"),
    "random": ("FLOAT", "tx.random.random()"),
    "gen_random_uuid": ("STRING", "str(tx.uuid())"),
    "unique_id": ("INT", "tx.unique_id()"),
}

AGGREGATES = frozenset({"count", "sum", "avg", "min", "max", "bool_and", "bool_or", "every", "string_agg"})
