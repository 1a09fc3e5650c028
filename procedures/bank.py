"""bank: accounts that never go below zero. Amounts are in cents."""

from voltpy import procedure


@procedure(partition_by="account")
def open_account(tx, account: int, owner: str, city: str | None = None) -> None:
    """Opens an account with nothing on it; a number that is taken is a DuplicateKey."""
    tx.accounts.insert(id=account, owner=owner, city=city)


@procedure(partition_by="account")
def deposit(tx, account: int, amount: int) -> int:
    """Adds to the account; returns the new balance."""
    if amount <= 0:
        tx.abort("a deposit is more than nothing")
    row = tx.accounts.get(account)
    if row is None:
        tx.abort(f"there is no account {account}")
    return tx.accounts.update(account, balance=row.balance + amount).balance


@procedure(partition_by="account")
def withdraw(tx, account: int, amount: int) -> int:
    """Takes from the account what is on it; returns the new balance."""
    if amount <= 0:
        tx.abort("a withdrawal is more than nothing")
    row = tx.accounts.get(account)
    if row is None:
        tx.abort(f"there is no account {account}")
    if row.balance < amount:
        tx.abort(f"account {account} holds {row.balance}, which is less than {amount}")
    return tx.accounts.update(account, balance=row.balance - amount).balance


@procedure(partition_by="account", read_only=True)
def balance(tx, account: int) -> int:
    """What is on the account."""
    row = tx.accounts.get(account)
    if row is None:
        tx.abort(f"there is no account {account}")
    return row.balance


@procedure(partition_by=None, read_only=True, everywhere=True)
def total_deposits(tx) -> int:
    """What is on this partition's accounts together; the caller adds up the partitions."""
    return sum(row.balance for row in tx.accounts.scan())


@procedure(partition_by=("source", "target"))
def transfer(tx, source: int, target: int, amount: int) -> None:
    """Moves money from one account to another, wherever they live."""
    if amount <= 0:
        tx.abort("a transfer is more than nothing")
    if source == target:
        tx.abort(f"account {source} can't pay itself")
    payer, payee = tx.accounts.get(source), tx.accounts.get(target)
    if payer is None or payee is None:
        tx.abort(f"there is no account {source if payer is None else target}")
    if payer.balance < amount:
        tx.abort(f"account {source} holds {payer.balance}, which is less than {amount}")
    tx.accounts.update(source, balance=payer.balance - amount)
    tx.accounts.update(target, balance=payee.balance + amount)


@procedure(read_only=True)
def total(tx) -> int:
    """What is on all accounts of all partitions together, at one moment: transfers never change it."""
    return sum(row.balance for row in tx.accounts.scan())
