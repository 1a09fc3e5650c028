"""counters: a durable increment, the least that a transaction can do."""

from voltpy import procedure


@procedure(partition_by="counter")
def increment(tx, counter: int, by: int = 1) -> int:
    """Adds to the counter, which begins at 0; returns its new value."""
    row = tx.counters.get(counter)
    if row is None:
        return tx.counters.insert(counter, by).value
    return tx.counters.update(counter, value=row.value + by).value


@procedure(partition_by="counter", read_only=True)
def value_of(tx, counter: int) -> int:
    """The counter's value; 0 when it was never incremented."""
    row = tx.counters.get(counter)
    return 0 if row is None else row.value


@procedure(partition_by=None, read_only=True, everywhere=True)
def total(tx) -> int:
    """The sum of this partition's counters; the caller adds up the partitions."""
    return sum(row.value for row in tx.counters.scan())
