-- A key-value store: the smallest procedures there are, and the yardstick against Redis GET and SET.
CREATE TABLE kv (key STRING PRIMARY KEY, value STRING NOT NULL);
PARTITION TABLE kv ON COLUMN key;
