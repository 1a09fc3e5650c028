"""The prompt of `voltpy sql`: lines of a statement until its semicolon, history, and completion."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, completion_is_selected
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from voltpy.schema import RESERVED_WORDS
from voltpy.sql.functions import AGGREGATES, FUNCTIONS, GENERATED
from voltpy.sql.script import ScriptReader

KEYWORDS = (
    "ADD", "ALL", "ALTER", "ANALYZE", "AND", "AS", "ASC", "BETWEEN", "BTREE", "BY", "CASE", "CAST", "COALESCE",
    "COLUMN", "CONFLICT", "CREATE", "CROSS", "DEFAULT", "DELETE", "DESC", "DISTINCT", "DO", "DROP", "ELSE", "END",
    "EXCEPT", "EXISTS", "EXPLAIN", "EXTRACT", "FALSE", "FIRST", "FROM", "GROUP", "HASH", "HAVING", "IF", "ILIKE",
    "IN", "INDEX", "INNER", "INSERT", "INTERSECT", "INTO", "INVERTED", "IS", "JOIN", "KEY", "LAST", "LEFT", "LIKE",
    "LIMIT", "NOT", "NOTHING", "NULL", "NULLIF", "NULLS", "OFFSET", "ON", "OR", "ORDER", "PARTITION", "PRIMARY",
    "RETURNING", "RIGHT", "SELECT", "SET", "TABLE", "THEN", "TRUE", "UNION", "UNIQUE", "UPDATE", "USING", "VALUES",
    "VIEW", "WHEN", "WHERE", "WITH",
)  # fmt: skip
_FUNCTIONS = sorted({*AGGREGATES, *FUNCTIONS, *GENERATED})

WORDS = {"exit": "\\q", "quit": "\\q", "help": "\\?"}

_NAME = r'(?:\w+|"[^"]*")'
_TABLE_NEXT = re.compile(
    rf"(?:\b(?:FROM|JOIN|INTO|UPDATE|TABLE)\s+(?:{_NAME}(?:\s+(?:AS\s+)?{_NAME})?\s*,\s*)*|^\s*\\dt?\s+)$",
    re.IGNORECASE,
)
_ALIASES = re.compile(rf"(?:\b(?:FROM|JOIN|INTO|UPDATE)|,)\s+({_NAME})\s+(?:AS\s+)?({_NAME})", re.IGNORECASE)
_LAST_WORD = re.compile(r'"?\w*$')
_QUALIFIER = re.compile(rf"({_NAME})\.$")
_PATH_NEXT = re.compile(r"^\s*\\i\s+")


def completions(before: str, whole: str, tables: Mapping[str, list[str]]) -> tuple[str, list[str]]:
    """(the word that is being typed, what it may become). `before`: the text in front of the cursor."""
    match = _LAST_WORD.search(before)
    word = match[0] if match else ""
    head = before[: len(before) - len(word)]
    qualifier = _QUALIFIER.search(head)
    if qualifier is not None:
        found = list(map(_written, tables.get(_table_of(qualifier[1], whole), ())))
    elif _TABLE_NEXT.search(head):
        found = list(map(_written, tables))
    else:
        mentioned = {_stored(name) for name in re.findall(_NAME, whole)}
        columns = [column for table, columns in tables.items() if table in mentioned for column in columns]
        found = [*map(_written, dict.fromkeys(columns)), *map(_written, tables)]
        if word:
            lower = word == word.lower()
            found += [keyword.lower() if lower else keyword for keyword in KEYWORDS]
            found += [f"{function if lower else function.upper()}(" for function in _FUNCTIONS]
    typed = word.lower()
    return word, [name for name in dict.fromkeys(found) if name.lower().startswith(typed) and name != word]


def _table_of(name: str, whole: str) -> str:
    """The table that has this name or alias."""
    stored = _stored(name)
    for table, alias in _ALIASES.findall(whole):
        if _stored(alias) == stored:
            return _stored(table)
    return stored


def _stored(name: str) -> str:
    return name[1:-1] if name.startswith('"') else name.lower()


def _written(name: str) -> str:
    """As a statement must write it."""
    return name if name == name.lower() and name.upper() not in RESERVED_WORDS else f'"{name}"'


def meant(text: str) -> str:
    """What was typed, with the command in the place of a lone word that asks for one in other shells."""
    return WORDS.get(text.strip().rstrip(";").rstrip().lower(), text)


def is_complete(text: str) -> bool:
    """Whether Enter runs it: nothing in it waits for its end."""
    text = meant(text)
    reader = ScriptReader()
    for line in io.StringIO(text):
        reader.feed(line)
    return not reader.is_open


class _Completer(Completer):
    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        before = document.text_before_cursor
        path = _PATH_NEXT.match(before)
        if path is not None:
            return self._paths.get_completions(Document(before[path.end() :]), complete_event)
        return self._names(before, document.text)

    def _names(self, before: str, whole: str) -> Iterator[Completion]:
        word, found = completions(before, whole, self._prompt.tables)
        for name in found:
            yield Completion(name, start_position=-len(word))


class Prompt:
    """`tables`: the columns of each, for completion."""

    def __init__(self, tables: Mapping[str, list[str]]) -> None:
        self.tables = tables
        self._session: PromptSession[str] = PromptSession(
            "voltpy> ",
            multiline=True,
            prompt_continuation=lambda width, line, wrapped: "... ".rjust(width),
            completer=_Completer(self),
            complete_while_typing=False,
            history=history(),
            key_bindings=_bindings(),
        )

    def ask(self) -> str:
        """One or more whole statements. Raises EOFError after Ctrl-D, KeyboardInterrupt after Ctrl-C."""
        return meant(self._session.prompt())


def _bindings() -> KeyBindings:
    """Enter takes the completion that is selected, runs what is complete, and begins a new line otherwise."""
    bindings = KeyBindings()
    is_whole = Condition(lambda: is_complete(get_app().current_buffer.text))

    @bindings.add("enter", filter=completion_is_selected)
    def take(event: KeyPressEvent) -> None:
        event.current_buffer.complete_state = None

    @bindings.add("enter", filter=~completion_is_selected & is_whole)
    def run(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    return bindings


def history() -> History:
    """In the file that VOLTPY_HISTORY names (empty: in memory), else where a user's state is kept.

    Statements hold data, so the file is its owner's alone.
    """
    given = os.environ.get("VOLTPY_HISTORY")
    if given == "":
        return InMemoryHistory()
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    path = Path(given) if given else state / "voltpy" / "sql_history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
