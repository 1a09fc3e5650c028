-- Voter with views, as VoltDB's workload of that name has it: the vote is the only row that a vote writes; how often a
-- number has called, and the totals by contestant and state, follow it in the same transaction.
CREATE TABLE contestants (contestant_number INT PRIMARY KEY, contestant_name STRING NOT NULL);
CREATE TABLE area_code_state (area_code INT PRIMARY KEY, state STRING NOT NULL);

CREATE TABLE votes (phone_number INT NOT NULL, state STRING NOT NULL, contestant_number INT NOT NULL);
PARTITION TABLE votes ON COLUMN phone_number;

-- Where the votes of this number are: the limit is checked against it.
CREATE VIEW votes_by_phone AS
    SELECT phone_number, COUNT(*) AS num_votes FROM votes GROUP BY phone_number;

-- In each partition a part of every total; a query puts them together.
CREATE VIEW votes_by_contestant AS
    SELECT contestant_number, state, COUNT(*) AS num_votes FROM votes GROUP BY contestant_number, state;
