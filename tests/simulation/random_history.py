"""Histories as a correct cluster would make them: transactions run one after another, and seem to overlap."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from tests.simulation.history import Append, Outcome, Read, Transaction


def random_history(
    rng: Random, transactions: int, *, clients: int = 8, keys: int = 8, reads_last: bool = True
) -> list[Transaction]:
    """Each transaction takes effect at one moment between its beginning and its end, in the order of these moments.

    A few are aborted, or of unknown outcome; of these some happened, and some of those after their client gave up.
    """
    lists: dict[str, tuple[int, ...]] = {}
    free_at_s = [rng.random() for _ in range(clients)]
    planned: list[tuple[float, int, float, float, Outcome]] = []
    for number in range(1, transactions + 1):
        client = rng.randrange(clients)
        invoked_s = free_at_s[client] + rng.expovariate(10.0)
        completed_s = free_at_s[client] = invoked_s + rng.expovariate(1.0)
        outcome = rng.choices((Outcome.OK, Outcome.ABORTED, Outcome.UNKNOWN), (90, 5, 5))[0]
        late_s = rng.choice((0.0, 3.0)) if outcome is Outcome.UNKNOWN else 0.0
        effective_s = rng.uniform(invoked_s, completed_s + late_s)
        planned.append((effective_s, number, invoked_s, completed_s, outcome))
    made: list[Transaction] = []
    for _, number, invoked_s, completed_s, outcome in sorted(planned):
        seen = dict(lists)
        operations: list[Append | Read] = []
        for position in range(rng.choice((1, 1, 2, 3, 5))):
            key = f"k{rng.randrange(keys)}"
            if rng.random() < 0.5:
                value = number * 10 + position
                seen[key] = (*seen.get(key, ()), value)
                operations.append(Append(key, value))
            else:
                operations.append(Read(key, seen.get(key, ())))
        if outcome is Outcome.OK or (outcome is Outcome.UNKNOWN and rng.random() < 0.5):
            lists = seen
        if outcome is Outcome.UNKNOWN or (outcome is Outcome.ABORTED and rng.random() < 0.5):
            operations = _unheard(operations)
        made.append(Transaction(number, tuple(operations), outcome, invoked_s, completed_s))
    if reads_last:
        after_s = max(free_at_s) + 10.0
        reads = tuple(Read(key, values) for key, values in sorted(lists.items()))
        made.append(Transaction(transactions + 1, reads, Outcome.OK, after_s, after_s + 1.0))
    return made


def _unheard(operations: Iterable[Append | Read]) -> list[Append | Read]:
    return [operation if isinstance(operation, Append) else Read(operation.key, None) for operation in operations]
