"""ycsb: rows of ten columns, read whole and updated a column at a time, as the Yahoo! Cloud Serving Benchmark does."""

from voltpy import procedure

FIELDS = tuple(f"field{number}" for number in range(10))


@procedure(partition_by="key")
def insert_row(tx, key: int, fields: list) -> None:
    """Adds a row; `fields` are its ten columns."""
    tx.usertable.insert(key, *fields)


@procedure(partition_by="key", read_only=True)
def read_row(tx, key: int) -> list | None:
    """The key and the ten columns, or None."""
    row = tx.usertable.get(key)
    if row is None:
        return None
    return [
        key, row.field0, row.field1, row.field2, row.field3, row.field4,
        row.field5, row.field6, row.field7, row.field8, row.field9,
    ]  # fmt: skip


@procedure(partition_by="key")
def update_row(tx, key: int, field: int, value: str) -> None:
    """Sets the column with this number."""
    tx.usertable.update(key, **{FIELDS[field]: value})


@procedure(partition_by=None, read_only=True, everywhere=True)
def scan_rows(tx) -> int:
    """How many rows this partition has, counted by reading each of them."""
    return sum(1 for _ in tx.usertable.scan())
