"""What the calls of a procedure wish for, as far as their arguments tell: a guess that saves the run on stand-ins.

Most procedures get rows by their arguments: `tx.accounts.get(source)`. When some runs on stand-ins in a row have missed
the same (table, argument) pairs and nothing else, the wishes of the next calls are made of these. A guess costs nothing
but time: what it leaves out is missed and borrowed in another round, and ends the habit; what it has too much is
borrowed and given back.
"""

from __future__ import annotations

from typing import Any

from coordinator.borrowed_table import Table
from coordinator.wishes import KeyWish, Wish

_made = tuple.__new__  # KeyWish's own costs three times as much

FIRM = 8  # runs in a row
LOOSE = 256  # runs that were no habit, after which no more are looked at


class Habit:
    """Of one procedure. `places`: (table number, position among the arguments)."""

    __slots__ = ("_loose", "_runs", "places")

    def __init__(self) -> None:
        self.places: tuple[tuple[int, int], ...] = ()
        self._runs = 0
        self._loose = 0

    @property
    def is_firm(self) -> bool:
        return self._runs >= FIRM

    def saw(self, arguments: tuple[Any, ...], wants: dict[Wish, None]) -> None:
        """A run on stand-ins wished for these."""
        if self._loose >= LOOSE:
            return
        places = []
        for wish in wants:
            if not isinstance(wish, KeyWish):
                self.broken()
                return
            place = _place_of(wish.key, arguments)
            if place is None:
                self.broken()
                return
            places.append((wish.table, place))
        found = tuple(sorted(places))
        self._runs = self._runs + 1 if found == self.places else 1
        self.places = found

    def broken(self) -> None:
        """A run wished for something else."""
        self._runs = 0
        self._loose += 1

    def wishes(
        self, arguments: tuple[Any, ...], verified: dict[Any, int], tables: list[Table]
    ) -> dict[Wish, None] | None:
        """Those of a call with these arguments; None where they are not of the usual kind."""
        wishes: dict[Wish, None] = {}
        for number, place in self.places:
            key = arguments[place]
            home = tables[number].home_of_key(key, verified)
            if home is None:
                return None
            wishes[_made(KeyWish, (home, number, key))] = None
        return wishes


def _place_of(key: Any, arguments: tuple[Any, ...]) -> int | None:
    for place, value in enumerate(arguments):
        if value is key:  # as get(argument) leaves it; equal ones may be so by chance
            return place
    return None
