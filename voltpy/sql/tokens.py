"""SQL text → tokens, and errors that show their place in it. For DDL and for statements.

sqlglot cuts the text (its PostgreSQL dialect, so comments and quotes are PostgreSQL's); what it would skip or join
without a word is found here. Every error is `line L, column C: found …, expected …`, counted from 1, then the line and
a caret.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, cast

from sqlglot import TokenType
from sqlglot.dialects.postgres import Postgres
from sqlglot.errors import TokenError

from voltpy.errors import SchemaError
from voltpy.schema import TypeName

# Words that name a type.
TYPES: dict[str, TypeName] = {
    "INT": "INT", "INTEGER": "INT", "BIGINT": "INT", "SMALLINT": "INT", "TINYINT": "INT",
    "INT2": "INT", "INT4": "INT", "INT8": "INT",
    "FLOAT": "FLOAT", "FLOAT4": "FLOAT", "FLOAT8": "FLOAT", "REAL": "FLOAT", "DOUBLE": "FLOAT",
    "STRING": "STRING", "TEXT": "STRING", "VARCHAR": "STRING", "CHAR": "STRING", "CHARACTER": "STRING",
    "BOOL": "BOOL", "BOOLEAN": "BOOL",
    "TIMESTAMP": "TIMESTAMP", "TIMESTAMPTZ": "TIMESTAMP", "DATETIME": "TIMESTAMP",
}  # fmt: skip
A_TYPE = "a type (INT, FLOAT, STRING, BOOL or TIMESTAMP)"

# -- Errors


def error_at(text: str, offset: int, found: str, expected: str, hint: str = "") -> SchemaError:
    return SchemaError(placed(text, offset, f"found {found}, expected {expected}{'; ' + hint if hint else ''}"))


def placed(text: str, offset: int, message: str) -> str:
    """The message with its place in front, and behind it the line with a caret under the place."""
    line_start = text.rfind("\n", 0, offset) + 1
    line_end = text.find("\n", offset)
    line = text[line_start : line_end if line_end >= 0 else len(text)].rstrip("\r")
    column = offset - line_start
    # A window of the line: a text generated on one line has no end.
    first = max(0, column - 60)
    shown = printable(line[first : first + 120])
    indent = "".join("\t" if character == "\t" else " " for character in shown[: column - first])
    return f"line {text.count(chr(10), 0, offset) + 1}, column {column + 1}: {message}\n{shown}\n{indent}^"


def printable(text: str) -> str:
    """Of the same length, so that the caret stays in place, and harmless to a terminal."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


# -- Tokens


class Token(NamedTuple):
    """`text[start:end]` of the whole text. `value`: a word in upper case, a name or string without its quotes."""

    kind: Literal["word", "name", "string", "number", "symbol", "end"]
    value: str
    start: int
    end: int


def tokens_of(text: str, first: int = 0) -> list[Token]:
    """All tokens of the text from `first` on, an end token last.

    Raises SchemaError for quotes and comments that are never closed.
    """
    try:
        raw_tokens = Postgres().tokenize(" " * first + text[first:])
    except TokenError:
        raise _unreadable(text) from None
    tokens: list[Token] = []
    end = skipped = first
    for raw_token in raw_tokens:
        start = raw_token.start
        if start < skipped:
            continue
        _check_gap(text, end, start)
        end = raw_token.end + 1
        raw = text[start:end]
        if raw_token.token_type == TokenType.STRING and raw[0] == "'":
            tokens.append(Token("string", raw[1:-1].replace("''", "'"), start, end))
        elif raw_token.token_type == TokenType.IDENTIFIER and raw[0] == '"':
            tokens.append(Token("name", raw[1:-1].replace('""', '"'), start, end))
        elif raw_token.token_type == TokenType.NUMBER:
            if (
                tokens
                and tokens[-1].value == "."
                and tokens[-1].end == start
                and (len(tokens) < 2 or tokens[-2].end < tokens[-1].start or tokens[-2].kind == "symbol")
            ):
                start = tokens.pop().start  # ".5"
                raw = text[start:end]
            tokens.append(Token("number", raw, start, end))
        elif all(word.isidentifier() for word in raw.split()):
            # One token may be several words: sqlglot joins PRIMARY KEY, DOUBLE PRECISION and others, by version.
            for word in re.finditer(r"\S+", raw):
                tokens.append(Token("word", word[0].upper(), start + word.start(), start + word.end()))
        elif raw[0] == "?" and len(raw) > 1:
            # A parameter and the operator behind it, which sqlglot takes for one of JSON's: "?||" is "?", "||".
            tokens.append(Token("symbol", "?", start, start + 1))
            if text[start + 1 : start + 3] == "||" and len(raw) == 2:
                tokens.append(Token("symbol", "||", start + 1, start + 3))
                end = skipped = start + 3
            else:
                tokens.append(Token("symbol", raw[1:], start + 1, end))
        else:
            tokens.append(Token("symbol", raw, start, end))
    _check_gap(text, end, len(text))
    tokens.append(Token("end", "", end, end))
    return tokens


def _check_gap(text: str, start: int, end: int) -> None:
    """Between tokens stand blanks and comments only: sqlglot skips some other things too, and unclosed comments."""
    blanks = re.compile(r"\s*")
    at = start
    while blank := blanks.match(text, at, end):
        at = blank.end()
        if at == end:
            return
        if text.startswith("--", at):
            newline = re.compile(r"[\r\n]").search(text, at, end)
            at = newline.end() if newline else end
        elif text.startswith("/*", at):
            at = _comment_end(text, at)
        else:
            raise error_at(text, at, f'"{printable(text[at : at + 2])}"', "SQL")
    # sqlglot has read on inside of a comment.
    raise error_at(text, start, "comments in each other that end in an odd way", "blanks between their signs")


def _comment_end(text: str, start: int) -> int:
    """Where the comment ends that begins at `start`; comments nest."""
    depth = 0
    for mark in re.compile(r"/\*|\*/").finditer(text, start):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    raise error_at(text, start, "a comment that is never closed", "*/ at its end")


def _unreadable(text: str) -> SchemaError:
    """Why sqlglot could not cut the text into tokens: its message does not say where."""
    at = 0
    piece = re.compile(r"--[^\r\n]*|/\*|'|\"|[^-/'\"]+|.", re.DOTALL)
    while at < len(text):
        match = cast("re.Match[str]", piece.match(text, at))  # the last branch takes any character
        end = match.end()
        if match[0] == "/*":
            try:
                end = _comment_end(text, at)
            except SchemaError as error:
                return error
        elif match[0] in ("'", '"'):
            end = text.find(match[0], at + 1) + 1
            if end == 0:
                return error_at(text, at, "a quote that is never closed", f"{match[0]} at its end")
        at = end
    return error_at(text, len(text), "the end of the text", "the end of a quote, or SQL without $ quotes and prefixes")


def found_as(text: str, token: Token) -> str:
    if token.kind == "end":
        return "the end of the text"
    raw = text[token.start : token.end]
    short = printable(raw if len(raw) <= 40 else raw[:39] + "…").replace("\t", " ")
    return short if token.kind in ("name", "string") else f'"{short}"'


def folded(text: str, token: Token) -> str:
    return token.value if token.kind == "name" else text[token.start : token.end].lower()
