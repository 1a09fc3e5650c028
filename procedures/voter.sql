-- Voter: a television audience votes by telephone. After the workload of that name that VoltDB ships.
--
-- The phone number decides everything about a vote, so it is the partition column of all that a vote writes. What every
-- vote reads and none writes, the contestants and the area codes, is copied to every partition.
CREATE TABLE contestants (contestant_number INT PRIMARY KEY, contestant_name STRING NOT NULL);
CREATE TABLE area_code_state (area_code INT PRIMARY KEY, state STRING NOT NULL);

CREATE TABLE votes (phone_number INT NOT NULL, state STRING NOT NULL, contestant_number INT NOT NULL);
PARTITION TABLE votes ON COLUMN phone_number;

-- How often this number has called: the limit is checked against it.
CREATE TABLE votes_by_phone (phone_number INT PRIMARY KEY, num_votes INT NOT NULL);
PARTITION TABLE votes_by_phone ON COLUMN phone_number;

-- The caller as last heard of. VoltDB's third write keeps a total by contestant and state, as a view that is sharded by
-- partition. A row here lives where its partition column says, so a total that is not keyed by phone number would have one home
-- for all votes; the totals are counted by `results` instead, and a vote's third write is about its caller.
CREATE TABLE callers (phone_number INT PRIMARY KEY, state STRING NOT NULL, last_contestant INT NOT NULL);
PARTITION TABLE callers ON COLUMN phone_number;
