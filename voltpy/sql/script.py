"""A script, line by line → its statements and commands, each with its place.

    script  = { statement ";" | command | ";" } [ statement ]
    command = "\\" and the rest of the line, where no statement has begun

Semicolons in '…', "…", -- comments and /* comments, which nest */ end nothing. What a statement means is not looked at:
the parser does that, and says what is wrong with it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_BLANKS = re.compile(r"(?:\s|--[^\r\n]*)*")
_MARK = re.compile(r"--[^\r\n]*|/\*|[;'\"]")
_COMMENT_MARK = re.compile(r"/\*|\*/")
_PLACE = re.compile(r"line (\d+), column (\d+): ")


class Piece(NamedTuple):
    """A statement without its semicolon, or a command that begins with a backslash. It begins at `line`, `column`."""

    text: str
    line: int
    column: int

    @property
    def is_command(self) -> bool:
        return self.text.startswith("\\")

    def placed(self, message: str) -> str:
        """An error about the statement, with its place counted from the script's beginning."""
        place = _PLACE.match(message)
        if place is None:
            return message
        line, column = int(place[1]), int(place[2])
        if line == 1:
            column += self.column - 1
        return f"line {line + self.line - 1}, column {column}: {message[place.end() :]}"


class ScriptReader:
    """Feed it lines, each with its "\\n"; it gives what they complete."""

    def __init__(self) -> None:
        self.line = 0  # how many it has been fed
        self._parts: list[str] = []  # of the statement that has begun
        self._began: tuple[int, int] | None = None  # where it did
        self._quote = ""  # the one that is open
        self._comments: list[tuple[int, int]] = []  # where those began that are open

    @property
    def is_open(self) -> bool:
        """Whether a statement or a comment has begun, and waits for its end."""
        return self._began is not None or bool(self._comments)

    def feed(self, line: str) -> list[Piece]:
        """What ends on this line."""
        self.line += 1
        pieces: list[Piece] = []
        at = start = 0  # where we are, and where on this line the statement is from
        while at < len(line):
            if self._quote:
                end = line.find(self._quote, at)
                if end < 0:
                    break
                self._quote = ""
                at = end + 1
            elif self._comments:
                at = self._inside_comment(line, at)
            elif self._began is None:
                at = _BLANKS.match(line, at).end()  # type: ignore[union-attr]  # it matches nothing, too
                if line.startswith("\\", at):
                    pieces.append(Piece(line[at:].rstrip(), self.line, at + 1))
                    break
                if line.startswith(";", at):
                    at += 1
                elif line.startswith("/*", at):
                    self._comments.append((self.line, at + 1))
                    at += 2
                elif at < len(line):
                    self._began = self.line, at + 1
                    start = at
            else:
                mark = _MARK.search(line, at)
                if mark is None:
                    break
                at = mark.end()
                if mark[0] == ";":
                    self._parts.append(line[start : mark.start()])
                    pieces.append(self._ended())
                elif mark[0] == "/*":
                    self._comments.append((self.line, mark.start() + 1))
                elif mark[0] in ("'", '"'):
                    self._quote = mark[0]
        if self._began is not None:
            self._parts.append(line[start:])
        return pieces

    def rest(self) -> Piece | None:
        """At the end: the statement that no semicolon has ended, or a comment that nothing has."""
        if self._began is not None:
            return self._ended()
        return Piece("/*", *self._comments[0]) if self._comments else None

    def _inside_comment(self, line: str, at: int) -> int:
        mark = _COMMENT_MARK.search(line, at)
        if mark is None:
            return len(line)
        if mark[0] == "/*":
            self._comments.append((self.line, mark.start() + 1))
        else:
            self._comments.pop()
        return mark.end()

    def _ended(self) -> Piece:
        assert self._began is not None
        piece = Piece("".join(self._parts).rstrip(), *self._began)
        self._parts = []
        self._began = None
        return piece
