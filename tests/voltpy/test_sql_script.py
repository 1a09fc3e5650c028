"""Scripts cut into statements, and never within a string, a name or a comment."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from voltpy.sql.script import Piece, ScriptReader


def cut(text: str) -> tuple[list[str], str | None]:
    """(the pieces, what was left at the end)"""
    reader = ScriptReader()
    pieces = [piece.text for line in io.StringIO(text) for piece in reader.feed(line)]
    rest = reader.rest()
    return pieces, None if rest is None else rest.text


@pytest.mark.parametrize(
    ("text", "pieces", "rest"),
    [
        ("", [], None),
        (" \n;;\n ; -- ;\n /* ; */\n", [], None),
        ("SELECT 1", [], "SELECT 1"),
        ("SELECT 1;", ["SELECT 1"], None),
        ("SELECT 1; SELECT 2 ;SELECT\n3", ["SELECT 1", "SELECT 2"], "SELECT\n3"),
        ("SELECT ';' ; x", ["SELECT ';'"], "x"),
        ("SELECT 'it''s;' ; x", ["SELECT 'it''s;'"], "x"),
        ("SELECT '\n;\n--' ; x", ["SELECT '\n;\n--'"], "x"),
        ('SELECT ";""/*" ; x', ['SELECT ";""/*"'], "x"),
        ("SELECT '\\' ; x", ["SELECT '\\'"], "x"),  # a backslash is no escape
        ("SELECT 1 -- ; '\n; x", ["SELECT 1 -- ; '"], "x"),
        ("SELECT 1 - -2; x", ["SELECT 1 - -2"], "x"),
        ("SELECT 4 / 2 * 1; x", ["SELECT 4 / 2 * 1"], "x"),
        ("SELECT /* ; /* ; */\n ; ' */ 1; x", ["SELECT /* ; /* ; */\n ; ' */ 1"], "x"),
        ("-- a\n/* b */ SELECT 1; -- c\n-- d", ["SELECT 1"], None),
        ("SELECT 1;\r\n\r\nSELECT 2;\r\n", ["SELECT 1", "SELECT 2"], None),
        ("\\d x; y\nSELECT\n\\d\n;", ["\\d x; y", "SELECT\n\\d"], None),
        ("SELECT 1; \\q", ["SELECT 1", "\\q"], None),
        ("SELECT 1; /* /* */\n;", ["SELECT 1"], "/*"),
        ("SELECT 'a;\n", [], "SELECT 'a;"),
    ],
)
def test_statements_end_with_a_semicolon_that_is_one(text: str, pieces: list[str], rest: str | None) -> None:
    assert cut(text) == (pieces, rest)


def test_pieces_know_where_they_begin_and_errors_are_placed_from_there() -> None:
    reader = ScriptReader()
    lines = ["-- one\n", "  SELECT 1; SELECT\n", "2;\n", "/* open\n"]
    first, second = [piece for line in lines for piece in reader.feed(line)]
    assert (first, second) == (Piece("SELECT 1", 2, 3), Piece("SELECT\n2", 2, 13))
    assert reader.is_open
    assert reader.rest() == Piece("/*", 4, 1)
    assert second.placed("line 1, column 8: found x\ncaret") == "line 2, column 20: found x\ncaret"
    assert second.placed("line 2, column 1: found x") == "line 3, column 1: found x"
    assert second.placed("division by zero") == "division by zero"


_TEXTS = some.text(alphabet=";'\"-/*\\ \n$ax", max_size=8)
_PARTS = some.one_of(
    some.sampled_from(["SELECT", "x", "1", "-", "/", "*", "(", ",", " "]),
    _TEXTS.map(lambda text: "'" + text.replace("'", "''") + "'"),
    _TEXTS.map(lambda text: '"' + text.replace('"', '""') + '"'),
    _TEXTS.map(lambda text: f"--{text}".replace("\n", " ") + "\n"),
    _TEXTS.map(lambda text: "/*" + text.replace("*", " ").replace("/", " ") + "*/"),
)


@settings(max_examples=300, deadline=None)
@given(some.lists(some.lists(_PARTS, max_size=6).map(lambda parts: " ".join(["SELECT", *parts])), max_size=4))
def test_what_was_put_together_comes_apart_again(statements: list[str]) -> None:
    assert cut(" ; ".join([*statements, ""])) == ([statement.rstrip() for statement in statements], None)
