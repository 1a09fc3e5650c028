"""Streams of keys, from a seed: uniform, and Zipf as YCSB means it.

Zipf(s) over n keys: the k-th most popular key has a share proportional to 1 / k**s. Ranks are scattered over the key
space, so that popular keys do not share pages just because their numbers are close.
"""

from __future__ import annotations

from itertools import accumulate
from random import Random


class Zipf:
    """Draws keys 0 … n - 1 with Zipf exponent `s`. About half a microsecond a draw over a million keys."""

    def __init__(self, n: int, s: float = 0.99, seed: int = 1) -> None:
        if n < 1:
            raise ValueError(f"n is {n}; there must be at least one key")
        self._random = Random(seed)
        self._key_of_rank = list(range(n))
        self._random.shuffle(self._key_of_rank)
        self._cumulative: list[float] = list(accumulate(float(rank) ** -s for rank in range(1, n + 1)))

    def draw(self, count: int) -> list[int]:
        """The next `count` keys of this stream."""
        return self._random.choices(self._key_of_rank, cum_weights=self._cumulative, k=count)

    def reseed(self, seed: int) -> None:
        """From here on draws come from this seed. Which keys are popular stays, so several clients can share them."""
        self._random.seed(seed)

    def key_of_rank(self, rank: int) -> int:
        """The key with this popularity; 0 is the most popular."""
        return self._key_of_rank[rank]

    def share(self, ranks: int) -> float:
        """The part of all draws that goes to the `ranks` most popular keys."""
        return self._cumulative[ranks - 1] / self._cumulative[-1]


def uniform(n: int, count: int, seed: int = 1) -> list[int]:
    """`count` keys of 0 … n - 1, each as likely as the other."""
    return Random(seed).choices(range(n), k=count)
