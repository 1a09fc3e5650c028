-- TPC-C, revision 5.11: a company with warehouses, ten districts each, and the orders of their customers. Column names are
-- those of the specification. Money is in cents, taxes and discounts are in hundredths of a percent.
--
-- Everything belongs to a warehouse and lives where that is, apart from the catalogue of items, which never changes and is
-- copied to every partition. So an order crosses partitions only when an item comes from another warehouse, a payment
-- when its customer lives in another one.
CREATE TABLE warehouse (
    w_id INT PRIMARY KEY,
    w_name STRING NOT NULL,
    w_street_1 STRING NOT NULL,
    w_street_2 STRING NOT NULL,
    w_city STRING NOT NULL,
    w_state STRING NOT NULL,
    w_zip STRING NOT NULL,
    w_tax INT NOT NULL,
    w_ytd INT NOT NULL
);
PARTITION TABLE warehouse ON COLUMN w_id;

CREATE TABLE district (
    d_w_id INT NOT NULL,
    d_id INT NOT NULL,
    d_name STRING NOT NULL,
    d_street_1 STRING NOT NULL,
    d_street_2 STRING NOT NULL,
    d_city STRING NOT NULL,
    d_state STRING NOT NULL,
    d_zip STRING NOT NULL,
    d_tax INT NOT NULL,
    d_ytd INT NOT NULL,
    d_next_o_id INT NOT NULL,
    PRIMARY KEY (d_w_id, d_id)
);
PARTITION TABLE district ON COLUMN d_w_id;

CREATE TABLE customer (
    c_w_id INT NOT NULL,
    c_d_id INT NOT NULL,
    c_id INT NOT NULL,
    c_first STRING NOT NULL,
    c_middle STRING NOT NULL,
    c_last STRING NOT NULL,
    c_street_1 STRING NOT NULL,
    c_street_2 STRING NOT NULL,
    c_city STRING NOT NULL,
    c_state STRING NOT NULL,
    c_zip STRING NOT NULL,
    c_phone STRING NOT NULL,
    c_since TIMESTAMP NOT NULL,
    c_credit STRING NOT NULL,         -- GC, good, or BC, bad
    c_credit_lim INT NOT NULL,
    c_discount INT NOT NULL,
    c_balance INT NOT NULL,
    c_ytd_payment INT NOT NULL,
    c_payment_cnt INT NOT NULL,
    c_delivery_cnt INT NOT NULL,
    c_data STRING NOT NULL,
    PRIMARY KEY (c_w_id, c_d_id, c_id)
);
PARTITION TABLE customer ON COLUMN c_w_id;

-- A payment is recorded at the warehouse that took it (h_w_id), which may not be the customer's (h_c_w_id).
CREATE TABLE history (
    h_c_id INT NOT NULL,
    h_c_d_id INT NOT NULL,
    h_c_w_id INT NOT NULL,
    h_d_id INT NOT NULL,
    h_w_id INT NOT NULL,
    h_date TIMESTAMP NOT NULL,
    h_amount INT NOT NULL,
    h_data STRING NOT NULL
);
PARTITION TABLE history ON COLUMN h_w_id;

-- The orders that are not delivered yet.
CREATE TABLE new_order (
    no_w_id INT NOT NULL,
    no_d_id INT NOT NULL,
    no_o_id INT NOT NULL,
    PRIMARY KEY (no_w_id, no_d_id, no_o_id)
);
PARTITION TABLE new_order ON COLUMN no_w_id;

CREATE TABLE orders (
    o_w_id INT NOT NULL,
    o_d_id INT NOT NULL,
    o_id INT NOT NULL,
    o_c_id INT NOT NULL,
    o_entry_d TIMESTAMP NOT NULL,
    o_carrier_id INT,                 -- NULL until it is delivered
    o_ol_cnt INT NOT NULL,
    o_all_local BOOL NOT NULL,
    PRIMARY KEY (o_w_id, o_d_id, o_id)
);
PARTITION TABLE orders ON COLUMN o_w_id;

CREATE TABLE order_line (
    ol_w_id INT NOT NULL,
    ol_d_id INT NOT NULL,
    ol_o_id INT NOT NULL,
    ol_number INT NOT NULL,
    ol_i_id INT NOT NULL,
    ol_supply_w_id INT NOT NULL,
    ol_delivery_d TIMESTAMP,
    ol_quantity INT NOT NULL,
    ol_amount INT NOT NULL,
    ol_dist_info STRING NOT NULL,
    PRIMARY KEY (ol_w_id, ol_d_id, ol_o_id, ol_number)
);
PARTITION TABLE order_line ON COLUMN ol_w_id;

CREATE TABLE item (
    i_id INT PRIMARY KEY,
    i_im_id INT NOT NULL,
    i_name STRING NOT NULL,
    i_price INT NOT NULL,
    i_data STRING NOT NULL
);

CREATE TABLE stock (
    s_w_id INT NOT NULL,
    s_i_id INT NOT NULL,
    s_quantity INT NOT NULL,
    s_dist_01 STRING NOT NULL, s_dist_02 STRING NOT NULL, s_dist_03 STRING NOT NULL, s_dist_04 STRING NOT NULL,
    s_dist_05 STRING NOT NULL, s_dist_06 STRING NOT NULL, s_dist_07 STRING NOT NULL, s_dist_08 STRING NOT NULL,
    s_dist_09 STRING NOT NULL, s_dist_10 STRING NOT NULL,
    s_ytd INT NOT NULL,
    s_order_cnt INT NOT NULL,
    s_remote_cnt INT NOT NULL,
    s_data STRING NOT NULL,
    PRIMARY KEY (s_w_id, s_i_id)
);
PARTITION TABLE stock ON COLUMN s_w_id;

-- Three questions of the specification are not about a primary key. Until indexes are served, these tables answer them, at the
-- cost of a write where an index would have one.

-- Who in this district has this last name? `ids` are the numbers of the customers, by first name, with spaces between.
CREATE TABLE customer_by_last (
    w_id INT NOT NULL,
    d_id INT NOT NULL,
    c_last STRING NOT NULL,
    ids STRING NOT NULL,
    PRIMARY KEY (w_id, d_id, c_last)
);
PARTITION TABLE customer_by_last ON COLUMN w_id;

-- Which order of this customer is the latest?
CREATE TABLE last_order (
    w_id INT NOT NULL,
    d_id INT NOT NULL,
    c_id INT NOT NULL,
    o_id INT NOT NULL,
    PRIMARY KEY (w_id, d_id, c_id)
);
PARTITION TABLE last_order ON COLUMN w_id;

-- Which order of this district is to be delivered next? The one with this number, as soon as there is one.
CREATE TABLE next_delivery (
    w_id INT NOT NULL,
    d_id INT NOT NULL,
    o_id INT NOT NULL,
    PRIMARY KEY (w_id, d_id)
);
PARTITION TABLE next_delivery ON COLUMN w_id;
