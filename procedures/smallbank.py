"""smallbank: a bank customer's savings and checking accounts. Amounts are in cents.

These are the transactions of one customer. The two between customers (amalgamate, send_payment) cross partitions.
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
