"""TPC-C for PostgreSQL: the same transactions in PL/pgSQL, with the indexes that they want, and the conditions in SQL.

An order is written with one statement a table, whatever its number of lines; only one that names the same stock twice
goes line by line, since an UPDATE touches a row once. A customer is text here: digits are a number.
"""

from __future__ import annotations

from typing import Any

SCHEMA = """
CREATE TABLE warehouse (
  w_id bigint PRIMARY KEY, w_name text NOT NULL, w_street_1 text NOT NULL, w_street_2 text NOT NULL,
  w_city text NOT NULL, w_state text NOT NULL, w_zip text NOT NULL, w_tax bigint NOT NULL, w_ytd bigint NOT NULL
) WITH (fillfactor = 10);
CREATE TABLE district (
  d_w_id bigint, d_id bigint, d_name text NOT NULL, d_street_1 text NOT NULL, d_street_2 text NOT NULL,
  d_city text NOT NULL, d_state text NOT NULL, d_zip text NOT NULL, d_tax bigint NOT NULL, d_ytd bigint NOT NULL,
  d_next_o_id bigint NOT NULL, PRIMARY KEY (d_w_id, d_id)
) WITH (fillfactor = 10);
CREATE TABLE customer (
  c_w_id bigint, c_d_id bigint, c_id bigint, c_first text NOT NULL, c_middle text NOT NULL, c_last text NOT NULL,
  c_street_1 text NOT NULL, c_street_2 text NOT NULL, c_city text NOT NULL, c_state text NOT NULL, c_zip text NOT NULL,
  c_phone text NOT NULL, c_since timestamptz NOT NULL, c_credit text NOT NULL, c_credit_lim bigint NOT NULL,
  c_discount bigint NOT NULL, c_balance bigint NOT NULL, c_ytd_payment bigint NOT NULL, c_payment_cnt bigint NOT NULL,
  c_delivery_cnt bigint NOT NULL, c_data text NOT NULL, PRIMARY KEY (c_w_id, c_d_id, c_id)
) WITH (fillfactor = 50);
CREATE TABLE history (
  h_c_id bigint NOT NULL, h_c_d_id bigint NOT NULL, h_c_w_id bigint NOT NULL, h_d_id bigint NOT NULL,
  h_w_id bigint NOT NULL, h_date timestamptz NOT NULL, h_amount bigint NOT NULL, h_data text NOT NULL
);
CREATE TABLE new_order (no_w_id bigint, no_d_id bigint, no_o_id bigint, PRIMARY KEY (no_w_id, no_d_id, no_o_id));
CREATE TABLE orders (
  o_w_id bigint, o_d_id bigint, o_id bigint, o_c_id bigint NOT NULL, o_entry_d timestamptz NOT NULL,
  o_carrier_id bigint, o_ol_cnt bigint NOT NULL, o_all_local boolean NOT NULL, PRIMARY KEY (o_w_id, o_d_id, o_id)
) WITH (fillfactor = 50);
CREATE TABLE order_line (
  ol_w_id bigint, ol_d_id bigint, ol_o_id bigint, ol_number bigint, ol_i_id bigint NOT NULL,
  ol_supply_w_id bigint NOT NULL, ol_delivery_d timestamptz, ol_quantity bigint NOT NULL, ol_amount bigint NOT NULL,
  ol_dist_info text NOT NULL, PRIMARY KEY (ol_w_id, ol_d_id, ol_o_id, ol_number)
) WITH (fillfactor = 50);
CREATE TABLE item (
  i_id bigint PRIMARY KEY, i_im_id bigint NOT NULL, i_name text NOT NULL, i_price bigint NOT NULL, i_data text NOT NULL
);
CREATE TABLE stock (
  s_w_id bigint, s_i_id bigint, s_quantity bigint NOT NULL,
  s_dist_01 text NOT NULL, s_dist_02 text NOT NULL, s_dist_03 text NOT NULL, s_dist_04 text NOT NULL,
  s_dist_05 text NOT NULL, s_dist_06 text NOT NULL, s_dist_07 text NOT NULL, s_dist_08 text NOT NULL,
  s_dist_09 text NOT NULL, s_dist_10 text NOT NULL, s_ytd bigint NOT NULL, s_order_cnt bigint NOT NULL,
  s_remote_cnt bigint NOT NULL, s_data text NOT NULL, PRIMARY KEY (s_w_id, s_i_id)
) WITH (fillfactor = 50);
"""

# Made once the rows are there.
INDEXES = """
CREATE INDEX customer_by_last ON customer (c_w_id, c_d_id, c_last, c_first);
CREATE INDEX orders_of_customer ON orders (o_w_id, o_d_id, o_c_id, o_id);
ANALYZE;
"""

FUNCTIONS = """
CREATE FUNCTION customer_number(w bigint, d bigint, called text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE ids bigint[];
BEGIN
  IF called ~ '^[0-9]' THEN RETURN called::bigint; END IF;
  SELECT array_agg(c_id ORDER BY c_first, c_id) INTO ids
    FROM customer WHERE c_w_id = w AND c_d_id = d AND c_last = called;
  IF ids IS NULL THEN RAISE 'nobody in district % of warehouse % is called %', d, w, called; END IF;
  RETURN ids[(cardinality(ids) + 1) / 2];
END $$;

CREATE FUNCTION dist_info(s stock, d bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE d WHEN 1 THEN s.s_dist_01 WHEN 2 THEN s.s_dist_02 WHEN 3 THEN s.s_dist_03 WHEN 4 THEN s.s_dist_04
    WHEN 5 THEN s.s_dist_05 WHEN 6 THEN s.s_dist_06 WHEN 7 THEN s.s_dist_07 WHEN 8 THEN s.s_dist_08
    WHEN 9 THEN s.s_dist_09 ELSE s.s_dist_10 END
$$;

CREATE FUNCTION new_order(
  w bigint, d bigint, c bigint, items bigint[], supplies bigint[], quantities bigint[],
  OUT o bigint, OUT entered timestamptz, OUT last text, OUT credit text, OUT discount bigint,
  OUT tax_w bigint, OUT tax_d bigint, OUT total bigint,
  OUT names text[], OUT lefts bigint[], OUT brands text[], OUT prices bigint[], OUT amounts bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
  lines integer := cardinality(items);
  unused boolean := false;
  known integer;
BEGIN
  entered := now();
  SELECT w_tax INTO STRICT tax_w FROM warehouse WHERE w_id = w;
  SELECT c_last, c_credit, c_discount INTO STRICT last, credit, discount
    FROM customer WHERE c_w_id = w AND c_d_id = d AND c_id = c;
  UPDATE district SET d_next_o_id = d_next_o_id + 1 WHERE d_w_id = w AND d_id = d
    RETURNING d_next_o_id - 1, d_tax INTO STRICT o, tax_d;
  INSERT INTO orders VALUES (w, d, o, c, entered, NULL, lines, w = ALL (supplies));
  INSERT INTO new_order VALUES (w, d, o);

  IF lines = (SELECT count(DISTINCT (t.i, t.s)) FROM unnest(items, supplies) AS t (i, s)) THEN
    WITH wanted AS (
      SELECT * FROM unnest(items, supplies, quantities) WITH ORDINALITY AS t (i, s, quantity, number)
    ), taken AS (
      UPDATE stock AS old SET
        s_quantity = s_quantity - quantity + CASE WHEN s_quantity - quantity < 10 THEN 91 ELSE 0 END,
        s_ytd = s_ytd + quantity, s_order_cnt = s_order_cnt + 1, s_remote_cnt = s_remote_cnt + (s <> w)::int
      FROM wanted JOIN item ON i_id = i WHERE s_w_id = s AND s_i_id = i
      RETURNING number, i, s, quantity, i_name, i_price, s_quantity AS remaining, dist_info(old, d) AS info,
        CASE WHEN i_data LIKE '%ORIGINAL%' AND s_data LIKE '%ORIGINAL%' THEN 'B' ELSE 'G' END AS brand
    ), written AS (
      INSERT INTO order_line SELECT w, d, o, number, i, s, NULL, quantity, quantity * i_price, info FROM taken
    )
    SELECT count(*), sum(quantity * i_price), array_agg(i_name ORDER BY number), array_agg(remaining ORDER BY number),
        array_agg(brand ORDER BY number), array_agg(i_price ORDER BY number),
        array_agg(quantity * i_price ORDER BY number)
      INTO known, total, names, lefts, brands, prices, amounts FROM taken;
    unused := known < lines;
  ELSE
    total := 0;
    FOR n IN 1 .. lines LOOP
      DECLARE
        the_item item;
        the_stock stock;
      BEGIN
        SELECT * INTO the_item FROM item WHERE i_id = items[n];
        unused := NOT FOUND;
        EXIT WHEN unused;
        UPDATE stock SET
          s_quantity = s_quantity - quantities[n] + CASE WHEN s_quantity - quantities[n] < 10 THEN 91 ELSE 0 END,
          s_ytd = s_ytd + quantities[n], s_order_cnt = s_order_cnt + 1,
          s_remote_cnt = s_remote_cnt + (supplies[n] <> w)::int
          WHERE s_w_id = supplies[n] AND s_i_id = items[n] RETURNING * INTO STRICT the_stock;
        names[n] := the_item.i_name;
        lefts[n] := the_stock.s_quantity;
        brands[n] := CASE WHEN the_item.i_data LIKE '%ORIGINAL%' AND the_stock.s_data LIKE '%ORIGINAL%'
          THEN 'B' ELSE 'G' END;
        prices[n] := the_item.i_price;
        amounts[n] := quantities[n] * the_item.i_price;
        total := total + amounts[n];
        INSERT INTO order_line VALUES
          (w, d, o, n, items[n], supplies[n], NULL, quantities[n], amounts[n], dist_info(the_stock, d));
      END;
    END LOOP;
  END IF;
  IF unused THEN RAISE 'Item number is not valid'; END IF;
  total := total * (10000 - discount) * (10000 + tax_w + tax_d) / 100000000;
END $$;

CREATE FUNCTION payment(
  w bigint, d bigint, cw bigint, cd bigint, called text, amount bigint,
  OUT c bigint, OUT first text, OUT last text, OUT since timestamptz, OUT credit text, OUT discount bigint,
  OUT balance bigint, OUT data text
) LANGUAGE plpgsql AS $$
DECLARE
  warehouse_name text;
  district_name text;
BEGIN
  c := customer_number(cw, cd, called);
  UPDATE district SET d_ytd = d_ytd + amount WHERE d_w_id = w AND d_id = d
    RETURNING d_name INTO STRICT district_name;
  UPDATE customer SET c_balance = c_balance - amount, c_ytd_payment = c_ytd_payment + amount,
    c_payment_cnt = c_payment_cnt + 1,
    c_data = CASE WHEN c_credit = 'BC'
      THEN left(format('%s %s %s %s %s %s %s', c_id, cd, cw, d, w, amount, c_data), 500) ELSE c_data END
    WHERE c_w_id = cw AND c_d_id = cd AND c_id = c
    RETURNING c_first, c_last, c_since, c_credit, c_discount, c_balance,
      CASE WHEN c_credit = 'BC' THEN left(c_data, 200) ELSE '' END
    INTO STRICT first, last, since, credit, discount, balance, data;
  -- Last: everybody wants this row, and has it until the end of the transaction.
  UPDATE warehouse SET w_ytd = w_ytd + amount WHERE w_id = w RETURNING w_name INTO STRICT warehouse_name;
  INSERT INTO history VALUES (c, cd, cw, d, w, now(), amount, warehouse_name || '    ' || district_name);
END $$;

CREATE FUNCTION order_status(
  w bigint, d bigint, called text,
  OUT c bigint, OUT first text, OUT last text, OUT balance bigint, OUT o bigint, OUT entered timestamptz,
  OUT carrier bigint, OUT supplies bigint[], OUT items bigint[], OUT quantities bigint[], OUT amounts bigint[],
  OUT deliveries timestamptz[]
) LANGUAGE plpgsql AS $$
BEGIN
  c := customer_number(w, d, called);
  SELECT c_first, c_last, c_balance INTO STRICT first, last, balance
    FROM customer WHERE c_w_id = w AND c_d_id = d AND c_id = c;
  SELECT o_id, o_entry_d, o_carrier_id INTO o, entered, carrier
    FROM orders WHERE o_w_id = w AND o_d_id = d AND o_c_id = c ORDER BY o_id DESC LIMIT 1;
  SELECT array_agg(ol_supply_w_id ORDER BY ol_number), array_agg(ol_i_id ORDER BY ol_number),
      array_agg(ol_quantity ORDER BY ol_number), array_agg(ol_amount ORDER BY ol_number),
      array_agg(ol_delivery_d ORDER BY ol_number)
    INTO supplies, items, quantities, amounts, deliveries
    FROM order_line WHERE ol_w_id = w AND ol_d_id = d AND ol_o_id = o;
END $$;

CREATE FUNCTION delivery(w bigint, carrier bigint) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
  delivered bigint[];
  o bigint;
  c bigint;
  amount bigint;
BEGIN
  FOR d IN 1 .. 10 LOOP
    DELETE FROM new_order WHERE no_w_id = w AND no_d_id = d AND no_o_id = (
      SELECT no_o_id FROM new_order WHERE no_w_id = w AND no_d_id = d ORDER BY no_o_id LIMIT 1
    ) RETURNING no_o_id INTO o;
    IF FOUND THEN
      UPDATE orders SET o_carrier_id = carrier WHERE o_w_id = w AND o_d_id = d AND o_id = o RETURNING o_c_id INTO c;
      WITH arrived AS (
        UPDATE order_line SET ol_delivery_d = now() WHERE ol_w_id = w AND ol_d_id = d AND ol_o_id = o
          RETURNING ol_amount
      ) SELECT sum(ol_amount) INTO amount FROM arrived;
      UPDATE customer SET c_balance = c_balance + amount, c_delivery_cnt = c_delivery_cnt + 1
        WHERE c_w_id = w AND c_d_id = d AND c_id = c;
    ELSE
      o := NULL;
    END IF;
    delivered[d] := o;
  END LOOP;
  RETURN delivered;
END $$;

CREATE FUNCTION stock_level(w bigint, d bigint, threshold bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  next_order bigint;
  low bigint;
BEGIN
  SELECT d_next_o_id INTO STRICT next_order FROM district WHERE d_w_id = w AND d_id = d;
  SELECT count(DISTINCT s_i_id) INTO low
    FROM order_line JOIN stock ON s_w_id = w AND s_i_id = ol_i_id AND s_quantity < threshold
    WHERE ol_w_id = w AND ol_d_id = d AND ol_o_id >= next_order - 20 AND ol_o_id < next_order;
  RETURN low;
END $$;
"""

STATEMENTS = {
    "new_order": ("SELECT new_order(%s::bigint, %s::bigint, %s::bigint, %s::bigint[], %s::bigint[], %s::bigint[])"),
    "payment": "SELECT payment(%s::bigint, %s::bigint, %s::bigint, %s::bigint, %s::text, %s::bigint)",
    "order_status": "SELECT order_status(%s::bigint, %s::bigint, %s::text)",
    "delivery": "SELECT delivery(%s::bigint, %s::bigint)",
    "stock_level": "SELECT stock_level(%s::bigint, %s::bigint, %s::bigint)",
}

# Each counts what contradicts the condition of clause 3.3.2 with this number.
CONDITIONS = {
    1: """SELECT count(*) FROM warehouse
        WHERE w_ytd <> (SELECT sum(d_ytd) FROM district WHERE d_w_id = w_id)""",
    2: """SELECT count(*) FROM district
        LEFT JOIN (SELECT o_w_id, o_d_id, max(o_id) AS newest FROM orders GROUP BY 1, 2) AS o
          ON o_w_id = d_w_id AND o_d_id = d_id
        LEFT JOIN (SELECT no_w_id, no_d_id, max(no_o_id) AS waiting FROM new_order GROUP BY 1, 2) AS n
          ON no_w_id = d_w_id AND no_d_id = d_id
        WHERE d_next_o_id - 1 <> newest OR d_next_o_id - 1 <> coalesce(waiting, newest)""",
    3: """SELECT count(*) FROM (SELECT FROM new_order GROUP BY no_w_id, no_d_id
        HAVING max(no_o_id) - min(no_o_id) + 1 <> count(*)) AS wrong""",
    4: """SELECT count(*) FROM (SELECT o_w_id, o_d_id, sum(o_ol_cnt) AS said FROM orders GROUP BY 1, 2) AS o
        FULL JOIN (SELECT ol_w_id, ol_d_id, count(*) AS there FROM order_line GROUP BY 1, 2) AS l
          ON ol_w_id = o_w_id AND ol_d_id = o_d_id WHERE said IS DISTINCT FROM there""",
    5: """SELECT count(*) FROM orders FULL JOIN new_order ON no_w_id = o_w_id AND no_d_id = o_d_id AND no_o_id = o_id
        WHERE o_id IS NULL OR (o_carrier_id IS NULL) <> (no_o_id IS NOT NULL)""",
    6: """SELECT count(*) FROM orders
        FULL JOIN (SELECT ol_w_id, ol_d_id, ol_o_id, count(*) AS there FROM order_line GROUP BY 1, 2, 3) AS l
          ON ol_w_id = o_w_id AND ol_d_id = o_d_id AND ol_o_id = o_id WHERE o_ol_cnt IS DISTINCT FROM there""",
    7: """SELECT count(*) FROM order_line JOIN orders ON o_w_id = ol_w_id AND o_d_id = ol_d_id AND o_id = ol_o_id
        WHERE (ol_delivery_d IS NULL) <> (o_carrier_id IS NULL)""",
    8: """SELECT count(*) FROM warehouse
        WHERE w_ytd <> (SELECT sum(h_amount) FROM history WHERE h_w_id = w_id)""",
    9: """SELECT count(*) FROM district
        LEFT JOIN (SELECT h_w_id, h_d_id, sum(h_amount) AS taken FROM history GROUP BY 1, 2) AS h
          ON h_w_id = d_w_id AND h_d_id = d_id WHERE d_ytd IS DISTINCT FROM taken""",
    10: """SELECT count(*) FROM customer
        LEFT JOIN (SELECT o_w_id, o_d_id, o_c_id, sum(ol_amount) AS owed
          FROM orders JOIN order_line ON ol_w_id = o_w_id AND ol_d_id = o_d_id AND ol_o_id = o_id
          WHERE ol_delivery_d IS NOT NULL GROUP BY 1, 2, 3) AS o
          ON o_w_id = c_w_id AND o_d_id = c_d_id AND o_c_id = c_id
        LEFT JOIN (SELECT h_c_w_id, h_c_d_id, h_c_id, sum(h_amount) AS paid FROM history GROUP BY 1, 2, 3) AS h
          ON h_c_w_id = c_w_id AND h_c_d_id = c_d_id AND h_c_id = c_id
        WHERE c_balance <> coalesce(owed, 0) - coalesce(paid, 0)
          OR c_balance + c_ytd_payment <> coalesce(owed, 0)""",
}


def state(connection: Any) -> dict[str, Any]:
    """What bench.workloads.tpcc verifies: inconsistencies, and how many rows there are. Condition 12 is in the 10th."""

    def number(query: str) -> int:
        return int(connection.execute(query).fetchone()[0])

    wrong = {condition: number(query) for condition, query in CONDITIONS.items()}
    return {
        "inconsistencies": [f"condition {condition}: {count} rows" for condition, count in wrong.items() if count],
        "orders": number("SELECT count(*) FROM orders"),
        "waiting": number("SELECT count(*) FROM new_order"),
        "payments": number("SELECT count(*) FROM history"),
    }
