"""smallbank: a bank customer's savings and checking accounts. Amounts are in cents.

Five transactions are those of the paper that smallbank.sql names; send_payment, from one customer to another, came with
later versions of the benchmark. Two of the six touch two customers, who may live in different partitions.
"""

from voltpy import procedure

OVERDRAFT_FEE = 100


@procedure(partition_by="customer")
def open_customer(tx, customer: int, name: str, savings: int, checking: int) -> None:
    """Loads one customer; one that exists is a DuplicateKey."""
    tx.accounts.insert(customer, name)
    tx.savings.insert(customer, savings)
    tx.checking.insert(customer, checking)


@procedure(partition_by="customer", read_only=True)
def balance(tx, customer: int) -> int:
    """Savings and checking together."""
    if tx.accounts.get(customer) is None:
        tx.abort(f"there is no customer {customer}")
    return tx.savings.get(customer).balance + tx.checking.get(customer).balance


@procedure(partition_by="customer")
def deposit_checking(tx, customer: int, amount: int) -> int:
    """Adds to checking; returns its new balance."""
    if amount < 0:
        tx.abort("a deposit is not negative")
    if tx.accounts.get(customer) is None:
        tx.abort(f"there is no customer {customer}")
    checking = tx.checking.get(customer)
    return tx.checking.update(customer, balance=checking.balance + amount).balance


@procedure(partition_by="customer")
def transact_savings(tx, customer: int, amount: int) -> int:
    """Adds to savings, or takes from them what is there; returns their new balance."""
    if tx.accounts.get(customer) is None:
        tx.abort(f"there is no customer {customer}")
    savings = tx.savings.get(customer)
    if savings.balance + amount < 0:
        tx.abort(f"the savings of customer {customer} do not cover it")
    return tx.savings.update(customer, balance=savings.balance + amount).balance


@procedure(partition_by="customer")
def write_check(tx, customer: int, amount: int) -> int:
    """Takes from checking, into debt if need be, which costs a fee when savings don't cover it either; new balance."""
    if tx.accounts.get(customer) is None:
        tx.abort(f"there is no customer {customer}")
    checking = tx.checking.get(customer)
    if tx.savings.get(customer).balance + checking.balance < amount:
        amount += OVERDRAFT_FEE
    return tx.checking.update(customer, balance=checking.balance - amount).balance


@procedure(partition_by=("source", "target"))
def amalgamate(tx, source: int, target: int) -> int:
    """Moves everything that one customer has to another's checking, debts too; returns the latter's new balance."""
    if source == target:
        tx.abort(f"customer {source} has that already")
    _check_both(tx, source, target)
    savings, checking = tx.savings.get(source), tx.checking.get(source)
    receiving = tx.checking.get(target)
    tx.savings.update(source, balance=0)
    tx.checking.update(source, balance=0)
    return tx.checking.update(target, balance=receiving.balance + savings.balance + checking.balance).balance


@procedure(partition_by=("source", "target"))
def send_payment(tx, source: int, target: int, amount: int) -> int:
    """Pays from one customer's checking, as far as that goes, into another's; returns the payer's new balance."""
    if amount < 0:
        tx.abort("a payment is not negative")
    if source == target:
        tx.abort(f"customer {source} can't pay themself")
    _check_both(tx, source, target)
    paying, receiving = tx.checking.get(source), tx.checking.get(target)
    if paying.balance < amount:
        tx.abort(f"the checking of customer {source} does not cover it")
    tx.checking.update(target, balance=receiving.balance + amount)
    return tx.checking.update(source, balance=paying.balance - amount).balance


def _check_both(tx, source, target):
    for customer in (source, target):
        if tx.accounts.get(customer) is None:
            tx.abort(f"there is no customer {customer}")
