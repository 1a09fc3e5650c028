-- Durable counters: one row read and written a call.
CREATE TABLE counters (counter INT PRIMARY KEY, value INT NOT NULL DEFAULT 0);
PARTITION TABLE counters ON COLUMN counter;
