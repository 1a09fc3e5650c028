"""Addresses as users write them: what is one, and what is said of one that isn't."""

from __future__ import annotations

import pytest

import voltpy
from voltpy.address import Address


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://localhost", "voltpy://"),
        ("localhost:21212", "voltpy://"),
        ("voltpy://", "no host"),
        ("voltpy://h:99999", "Port"),
        ("voltpy://h:x", "Port"),
        ("voltpy://h/db", "mean nothing"),
        ("voltpy://u:p@h", "mean nothing"),
        ("voltpy://h?affinity=maybe", "on or off"),
        ("voltpy://h?speed=high", "unknown option 'speed'"),
    ],
)
def test_a_wrong_url_is_named(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("?", r"\?")) as caught:
        voltpy.connect(url)
    assert url in str(caught.value)


def test_a_url_is_taken_apart() -> None:
    address = Address("voltpy://db.example?affinity=off")
    assert (address.host, address.port, address.affinity) == ("db.example", 21212, False)
    assert Address("voltpy://[::1]:5").tcp(7) == "tcp://[::1]:7"
