-- Lists that transactions append to and read, kept in each of the ways in which a cluster keeps rows; and a bank.
CREATE TABLE lists (id INT PRIMARY KEY, items STRING NOT NULL);  -- a list in one row
PARTITION TABLE lists ON COLUMN id;
CREATE TABLE elements (list INT, position INT, value INT NOT NULL, PRIMARY KEY (list, position));  -- a row an element
PARTITION TABLE elements ON COLUMN list;
CREATE TABLE copies (id INT PRIMARY KEY, items STRING NOT NULL);  -- a list in one row, in every partition
CREATE TABLE accounts (id INT PRIMARY KEY, balance INT NOT NULL);
PARTITION TABLE accounts ON COLUMN id;
CREATE TABLE places (list INT, id INT, place INT NOT NULL, PRIMARY KEY (list, id));  -- a row an element, each in a place
PARTITION TABLE places ON COLUMN list;
CREATE UNIQUE INDEX one_a_place ON places USING HASH (list, place);
