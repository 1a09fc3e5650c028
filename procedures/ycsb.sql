-- YCSB's one table: rows of ten columns, read whole and updated a column at a time. For tables larger than memory.
CREATE TABLE usertable (
    id INT PRIMARY KEY,
    field0 STRING NOT NULL, field1 STRING NOT NULL, field2 STRING NOT NULL, field3 STRING NOT NULL,
    field4 STRING NOT NULL, field5 STRING NOT NULL, field6 STRING NOT NULL, field7 STRING NOT NULL,
    field8 STRING NOT NULL, field9 STRING NOT NULL
);
PARTITION TABLE usertable ON COLUMN id;
