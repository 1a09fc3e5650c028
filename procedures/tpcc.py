"""tpcc: the five transactions of TPC-C, revision 5.11, clauses 2.4 to 2.8, and a check of its consistency conditions.

A customer is named by number or, where an `int | str` is asked for, by last name. new_order and payment may reach over
to other warehouses, and so to other partitions; the others stay in one. They ask early for what does not depend on
anything else.
"""

from collections import Counter
from typing import Any

from voltpy import procedure

DISTRICTS = 10
ORIGINAL = "ORIGINAL"
BAD_CREDIT = "BC"
C_DATA_CHARACTERS = 500
RECENT_ORDERS = 20  # that stock_level looks at
# The text that goes onto an order line of district n, at n.
S_DIST = ["", *(f"s_dist_{district:02}" for district in range(1, DISTRICTS + 1))]


@procedure(partition_by=("warehouse", "supply_warehouses"))
def new_order(
    tx,
    warehouse: int,
    district: int,
    customer: int,
    items: list[int],
    supply_warehouses: list[int],
    quantities: list[int],
) -> dict:
    """Enters an order of `quantities[n]` pieces of `items[n]` from `supply_warehouses[n]`; what the clerk sees of it.

    An item that there is none of aborts the order after everything before it was done, as clause 2.4.2.3 wants it.
    """
    w = tx.warehouse.get(warehouse)
    d = tx.district.get((warehouse, district))
    c = tx.customer.get((warehouse, district, customer))
    if w is None or d is None or c is None:
        tx.abort(f"there is no customer {customer} in district {district} of warehouse {warehouse}")
    order = d.d_next_o_id
    entered = tx.now()
    all_local = all(supply == warehouse for supply in supply_warehouses)
    tx.district.update((warehouse, district), d_next_o_id=order + 1)
    tx.orders.insert(warehouse, district, order, customer, entered, None, len(items), all_local)
    tx.new_order.insert(warehouse, district, order)
    tx.last_order.upsert(warehouse, district, customer, order)

    lines, total = [], 0
    wanted = zip(items, supply_warehouses, quantities, strict=True)
    for number, (item, supply, quantity) in enumerate(wanted, start=1):
        i = tx.item.get(item)
        if i is None:
            tx.abort("Item number is not valid")
        s = tx.stock.get((supply, item))
        if s is None:
            tx.abort(f"there is no warehouse {supply}")
        left = s.s_quantity - quantity
        if left < 10:
            left += 91
        tx.stock.update(
            (supply, item),
            s_quantity=left,
            s_ytd=s.s_ytd + quantity,
            s_order_cnt=s.s_order_cnt + 1,
            s_remote_cnt=s.s_remote_cnt + (supply != warehouse),
        )
        amount = quantity * i.i_price
        tx.order_line.insert(
            warehouse, district, order, number, item, supply, None, quantity, amount, getattr(s, S_DIST[district])
        )
        total += amount
        brand = "B" if ORIGINAL in i.i_data and ORIGINAL in s.s_data else "G"
        lines.append((i.i_name, left, brand, i.i_price, amount))
    return {
        "o_id": order,
        "o_entry_d": entered,
        "c_last": c.c_last,
        "c_credit": c.c_credit,
        "c_discount": c.c_discount,
        "w_tax": w.w_tax,
        "d_tax": d.d_tax,
        "total": total * (10_000 - c.c_discount) * (10_000 + w.w_tax + d.d_tax) // 100_000_000,
        "lines": lines,
    }


@procedure(partition_by=("warehouse", "customer_warehouse"))
def payment(
    tx,
    warehouse: int,
    district: int,
    customer_warehouse: int,
    customer_district: int,
    customer: int | str,
    amount: int,
) -> dict:
    """Takes a payment at one warehouse from a customer of this or another one; returns the customer."""
    w = tx.warehouse.get(warehouse)
    d = tx.district.get((warehouse, district))
    c = _customer(tx, customer_warehouse, customer_district, customer)
    if w is None or d is None:
        tx.abort(f"there is no district {district} of warehouse {warehouse}")
    tx.warehouse.update(warehouse, w_ytd=w.w_ytd + amount)
    tx.district.update((warehouse, district), d_ytd=d.d_ytd + amount)
    paid = {
        "c_balance": c.c_balance - amount,
        "c_ytd_payment": c.c_ytd_payment + amount,
        "c_payment_cnt": c.c_payment_cnt + 1,
    }
    if c.c_credit == BAD_CREDIT:
        about = f"{c.c_id} {customer_district} {customer_warehouse} {district} {warehouse} {amount} "
        paid["c_data"] = (about + c.c_data)[:C_DATA_CHARACTERS]
    c = tx.customer.update((customer_warehouse, customer_district, c.c_id), **paid)
    tx.history.insert(
        c.c_id,
        customer_district,
        customer_warehouse,
        district,
        warehouse,
        tx.now(),
        amount,
        f"{w.w_name}    {d.d_name}",
    )
    return {
        "c_id": c.c_id,
        "c_first": c.c_first,
        "c_last": c.c_last,
        "c_since": c.c_since,
        "c_credit": c.c_credit,
        "c_discount": c.c_discount,
        "c_balance": c.c_balance,
        "c_data": c.c_data[:200] if c.c_credit == BAD_CREDIT else "",
    }


@procedure(partition_by="warehouse", read_only=True)
def order_status(tx, warehouse: int, district: int, customer: int | str) -> dict:
    """A customer, and the latest of their orders with its lines; o_id is None where they never ordered."""
    c = _customer(tx, warehouse, district, customer)
    status = {"c_id": c.c_id, "c_first": c.c_first, "c_last": c.c_last, "c_balance": c.c_balance, "o_id": None}
    last = tx.last_order.get((warehouse, district, c.c_id))
    if last is None:
        return status
    o = tx.orders.get((warehouse, district, last.o_id))
    lines = [tx.order_line.get((warehouse, district, o.o_id, number)) for number in range(1, o.o_ol_cnt + 1)]
    return status | {
        "o_id": o.o_id,
        "o_entry_d": o.o_entry_d,
        "o_carrier_id": o.o_carrier_id,
        "lines": [
            (line.ol_supply_w_id, line.ol_i_id, line.ol_quantity, line.ol_amount, line.ol_delivery_d) for line in lines
        ],
    }


@procedure(partition_by="warehouse")
def delivery(tx, warehouse: int, carrier: int) -> list[int | None]:
    """Delivers the oldest waiting order of each district; returns their numbers, None for a district without one."""
    return [_deliver(tx, warehouse, district, carrier) for district in range(1, DISTRICTS + 1)]


@procedure(partition_by="warehouse", read_only=True)
def stock_level(tx, warehouse: int, district: int, threshold: int) -> int:
    """How many of the items that the district's last orders are about are short of stock: fewer than `threshold`."""
    next_order = tx.district.get((warehouse, district)).d_next_o_id
    items = set()
    for order in range(max(1, next_order - RECENT_ORDERS), next_order):
        for number in range(1, tx.orders.get((warehouse, district, order)).o_ol_cnt + 1):
            items.add(tx.order_line.get((warehouse, district, order, number)).ol_i_id)
    return sum(tx.stock.get((warehouse, item)).s_quantity < threshold for item in items)


def _customer(tx, warehouse, district, customer):
    """The customer with this number, or the one in the middle, by first name, of those with this last name."""
    number = customer
    if isinstance(customer, str):
        namesakes = tx.customer_by_last.get((warehouse, district, customer))
        if namesakes is None:
            tx.abort(f"nobody in district {district} of warehouse {warehouse} is called {customer}")
        ids = namesakes.ids.split()
        number = int(ids[(len(ids) - 1) // 2])
    found = tx.customer.get((warehouse, district, number))
    if found is None:
        tx.abort(f"there is no customer {customer} in district {district} of warehouse {warehouse}")
    return found


def _deliver(tx, warehouse, district, carrier):
    due = tx.next_delivery.get((warehouse, district))
    if due is None or not tx.new_order.delete((warehouse, district, due.o_id)):
        return None
    tx.next_delivery.update((warehouse, district), o_id=due.o_id + 1)
    o = tx.orders.update((warehouse, district, due.o_id), o_carrier_id=carrier)
    now = tx.now()
    amounts = [
        tx.order_line.update((warehouse, district, due.o_id, number), ol_delivery_d=now).ol_amount
        for number in range(1, o.o_ol_cnt + 1)
    ]
    c = tx.customer.get((warehouse, district, o.o_c_id))
    tx.customer.update(
        (warehouse, district, o.o_c_id), c_balance=c.c_balance + sum(amounts), c_delivery_cnt=c.c_delivery_cnt + 1
    )
    return due.o_id


# ---- the consistency conditions of clause 3.3.2 ----


@procedure(partition_by=None, read_only=True, everywhere=True)
def check_consistency(tx) -> dict:
    """What is inconsistent in this partition, how many rows there are, and what only all partitions together can say.

    The conditions 1 to 9 and 12 are about the rows of one warehouse, so about those of a partition. The 10th adds up
    all payments of a customer, wherever they were made: `unexplained` is what is missing here, `paid_elsewhere` what
    was paid here by customers of other partitions; `inconsistencies` puts them together. The 11th holds only before
    the first transaction.
    """
    found = []

    def compare(condition, what, left, right):
        """Both sides are numbers by key, and what is not there counts 0."""
        for key in left.keys() | right.keys():
            if left.get(key, 0) != right.get(key, 0):
                found.append(f"condition {condition}, {what} {key}: {left.get(key, 0)} and {right.get(key, 0)}")

    w_ytd = {row.w_id: row.w_ytd for row in tx.warehouse.scan()}
    d_ytd, last_given = {}, {}
    d_ytd_of_warehouse: Counter = Counter()
    for row in tx.district.scan():
        d_ytd[row.d_w_id, row.d_id] = row.d_ytd
        d_ytd_of_warehouse[row.d_w_id] += row.d_ytd
        last_given[row.d_w_id, row.d_id] = row.d_next_o_id - 1
    compare(1, "warehouse", w_ytd, d_ytd_of_warehouse)

    undelivered = set()
    waiting: Counter = Counter()
    oldest: dict = {}
    newest: dict = {}
    for row in tx.new_order.scan():
        district = (row.no_w_id, row.no_d_id)
        waiting[district] += 1
        oldest[district] = min(row.no_o_id, oldest.get(district, row.no_o_id))
        newest[district] = max(row.no_o_id, newest.get(district, 0))
        undelivered.add((*district, row.no_o_id))
    compare(3, "district", waiting, {district: newest[district] - oldest[district] + 1 for district in waiting})

    lines_said, carried, buyer = {}, set(), {}
    lines_said_of_district: Counter = Counter()
    last_order: dict = {}
    for row in tx.orders.scan():
        district, order = (row.o_w_id, row.o_d_id), (row.o_w_id, row.o_d_id, row.o_id)
        last_order[district] = max(row.o_id, last_order.get(district, 0))
        lines_said[order] = row.o_ol_cnt
        lines_said_of_district[district] += row.o_ol_cnt
        buyer[order] = row.o_c_id
        if row.o_carrier_id is not None:
            carried.add(order)
    compare(2, "district", last_given, last_order)
    # Where nothing waits there is no newest one to compare.
    compare(2, "new orders of district", newest, {district: last_given.get(district, 0) for district in newest})
    for order in (lines_said.keys() - carried) ^ undelivered:
        found.append(f"condition 5, order {order}: it has a carrier and waits, or neither")

    lines: Counter = Counter()
    lines_of_district: Counter = Counter()
    delivered: Counter = Counter()
    for row in tx.order_line.scan():
        district, order = (row.ol_w_id, row.ol_d_id), (row.ol_w_id, row.ol_d_id, row.ol_o_id)
        lines[order] += 1
        lines_of_district[district] += 1
        if (row.ol_delivery_d is None) == (order in carried):
            found.append(
                f"condition 7, order {order}, line {row.ol_number}: delivered without its order, or not with it"
            )
        if row.ol_delivery_d is not None and order in buyer:
            delivered[*district, buyer[order]] += row.ol_amount
    compare(4, "district", lines_said_of_district, lines_of_district)
    compare(6, "order", lines_said, lines)

    taken_at_warehouse: Counter = Counter()
    taken_at_district: Counter = Counter()
    paid: Counter = Counter()
    for row in tx.history.scan():
        taken_at_warehouse[row.h_w_id] += row.h_amount
        taken_at_district[row.h_w_id, row.h_d_id] += row.h_amount
        paid[row.h_c_w_id, row.h_c_d_id, row.h_c_id] += row.h_amount
    compare(8, "warehouse", w_ytd, taken_at_warehouse)
    compare(9, "district", d_ytd, taken_at_district)

    owed, unexplained = {}, {}
    for row in tx.customer.scan():
        customer = (row.c_w_id, row.c_d_id, row.c_id)
        owed[customer] = row.c_balance + row.c_ytd_payment
        unexplained[customer] = delivered[customer] - row.c_balance - paid.pop(customer, 0)
    compare(12, "customer", owed, delivered)
    return {
        "found": found,
        "unexplained": [[*customer, amount] for customer, amount in unexplained.items() if amount],
        "paid_elsewhere": [[*customer, amount] for customer, amount in paid.items()],
        "orders": len(lines_said),
        "waiting": len(undelivered),
        "payments": tx.history.count(),
    }


def inconsistencies(reports: list[dict[str, Any]]) -> list[str]:
    """Everything that `check_consistency` found in all partitions, none of which had a call under way; [] is good."""
    elsewhere: Counter = Counter()
    for report in reports:
        for *customer, amount in report["paid_elsewhere"]:
            elsewhere[*customer] += amount
    unexplained = {tuple(customer): amount for report in reports for *customer, amount in report["unexplained"]}
    return [what for report in reports for what in report["found"]] + [
        f"condition 10, customer {customer}: {unexplained.get(customer, 0)} and {elsewhere[customer]}"
        for customer in unexplained.keys() | elsewhere.keys()
        if unexplained.get(customer, 0) != elsewhere[customer]
    ]
