"""How a process ended, in words."""

from __future__ import annotations

import pytest

from voltpy.ending import ending, last_words_of


@pytest.mark.parametrize(
    ("exit_status", "last_words", "words"),
    [
        (-9, "a procedure printed this", "killed by SIGKILL"),
        (-6, "Fatal Python error: Aborted", "killed by SIGABRT: Fatal Python error: Aborted"),
        (-11, "", "killed by SIGSEGV"),
        (-63, "", "killed by signal 63"),
        (1, "", "exit status 1"),
        (1, "MemoryError", "MemoryError"),
        (None, "no process can be started: no memory", "no process can be started: no memory"),
    ],
)
def test_an_end_is_told_in_words(exit_status: int | None, last_words: str, words: str) -> None:
    assert ending(exit_status, last_words) == words


def test_the_last_words_of_a_process_are_no_event() -> None:
    event = b'{"partition": 1, "event": "recovered", "level": "info"}\n'
    assert last_words_of(b"MemoryError\n\n" + event + event) == "MemoryError"
    assert last_words_of(event) == ""
    assert last_words_of(b"") == ""
    for line in (b'{"votes": 3}', b"{'event': 1}", b"{"):
        assert last_words_of(event + line + b"\n" + event) == line.decode()
