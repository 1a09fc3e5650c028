-- SmallBank (Alomari, Cahill, Fekete, Röhm: "The cost of serializability on platforms that use snapshot isolation", 2008).
-- Everything about a customer lives in one partition. Balances are in cents.
CREATE TABLE accounts (customer INT PRIMARY KEY, name STRING NOT NULL);
PARTITION TABLE accounts ON COLUMN customer;

CREATE TABLE savings (customer INT PRIMARY KEY, balance INT NOT NULL);
PARTITION TABLE savings ON COLUMN customer;

CREATE TABLE checking (customer INT PRIMARY KEY, balance INT NOT NULL);
PARTITION TABLE checking ON COLUMN customer;
