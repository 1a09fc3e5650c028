-- Bank accounts: the example of the README. A balance is in cents.
CREATE TABLE accounts (
    id INT PRIMARY KEY,
    owner STRING NOT NULL,
    city STRING,
    balance INT NOT NULL DEFAULT 0
);
PARTITION TABLE accounts ON COLUMN id;
CREATE INDEX accounts_city ON accounts USING INVERTED (city);
