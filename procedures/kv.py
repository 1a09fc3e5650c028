"""kv: get, put, delete, incr."""

from voltpy import procedure


@procedure(partition_by="key", read_only=True)
def get(tx, key: str) -> str | None:
    """The value, or None."""
    row = tx.kv.get(key)
    return None if row is None else row.value


@procedure(partition_by="key")
def put(tx, key: str, value: str) -> None:
    """Sets the value, whether there was one or not."""
    tx.kv.upsert(key, value)


@procedure(partition_by="key")
def delete(tx, key: str) -> bool:
    """Removes the key; False when there was none."""
    return tx.kv.delete(key)


@procedure(partition_by="key")
def incr(tx, key: str, by: int = 1) -> int:
    """Adds to a value that is an integer in decimal digits, 0 when absent; returns the sum."""
    row = tx.kv.get(key)
    try:
        value = by if row is None else int(row.value) + by
    except ValueError:
        tx.abort(f"the value of {key!r} is not an integer")
    tx.kv.upsert(key, str(value))
    return value
