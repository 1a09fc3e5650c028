"""Schema and procedures of the campaigns that look at how long calls take, whatever they do."""

SCHEMA = (
    "CREATE TABLE counters (counter INT PRIMARY KEY, value INT NOT NULL); PARTITION TABLE counters ON COLUMN counter;"
)
PROCEDURES = """
from voltpy import procedure


@procedure(partition_by="counter")
def increment(tx, counter: int) -> int:
    row = tx.counters.get(counter)
    if row is None:
        return tx.counters.insert(counter, 1).value
    return tx.counters.update(counter, value=row.value + 1).value


@procedure(partition_by="counter", read_only=True)
def measure(tx, counter: int, text: str) -> int:
    return len(text)


@procedure(partition_by="counter", read_only=True)
def fetch(tx, counter: int, size: int) -> str:
    return "x" * size
"""
