-- Who may do what.
\set SHOW_CONTEXT never
\set VERBOSITY terse
CREATE ROLE reader LOGIN IN ROLE strata_read;
CREATE ROLE alice LOGIN IN ROLE strata_operate;
CREATE ROLE bob LOGIN IN ROLE strata_operate;
CREATE ROLE anybody LOGIN;
CREATE SCHEMA works;
GRANT ALL ON SCHEMA works TO alice, bob, anybody, reader;

-- Nothing is granted to everybody.
SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'strata'::regnamespace AND has_function_privilege('anybody', p.oid, 'EXECUTE');
SELECT c.oid::regclass FROM pg_class c WHERE c.relnamespace = 'strata'::regnamespace AND c.relkind IN ('r', 'v')
   AND has_table_privilege('anybody', c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE');

-- An owner with strata_operate manages her tables, and moves them, by policy and by hand.
SET ROLE alice;
CREATE TABLE works.log (at date, id int, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
CREATE TABLE works.log_2001_01 PARTITION OF works.log FOR VALUES FROM ('2001-01-01') TO ('2001-02-01');
CREATE TABLE works.log_2001_02 PARTITION OF works.log FOR VALUES FROM ('2001-02-01') TO ('2001-03-01');
CREATE TABLE works.log_others PARTITION OF works.log DEFAULT;
INSERT INTO works.log SELECT date '2001-01-01' + i % 59, i FROM generate_series(1, 1000) i;
SELECT strata.manage('works.log', '1 day', ahead => 1);
SELECT strata.to_warm('works.log_2001_01') > 0 AS moved;
CALL strata.run_policies();
SELECT tier, count(*) FROM strata.partitions GROUP BY 1 ORDER BY 1;
SELECT object, state, requested_by FROM strata.jobs;
SELECT count(*), sum(id) FROM works.log;

-- Another one, with the same role, does not.
SET ROLE bob;
SELECT strata.manage('works.log', '1 day');
SELECT strata.unmanage('works.log');
SELECT strata.to_warm('works.log_others');
SELECT strata.to_hot('works.log_2001_01');
CALL strata.run_policies('works.log');
CALL strata.run_policies();
-- Nor by the tables themselves.
UPDATE strata.policy SET hot_for = '1 second';
DELETE FROM strata.policy;
INSERT INTO strata.policy (relid, hot_for) VALUES ('works.log_others', '1 day');
INSERT INTO strata.job (kind) VALUES ('backup');
SELECT hot_for FROM strata.policies;
SELECT strata.agent_call('{"op": "ping"}');
SELECT * FROM strata.deletion;
-- A member of the owning role does.
RESET ROLE;
GRANT alice TO bob;
SET ROLE bob;
SELECT strata.unmanage('works.log');
SELECT strata.manage('works.log', '1 day', ahead => 0);

-- A reader sees names and sizes.
SET ROLE reader;
SELECT tier, count(*) FROM strata.partitions GROUP BY 1 ORDER BY 1;
SELECT count(*) FROM strata.fragments;
SELECT count(*) FROM strata.policies;
SELECT state FROM strata.jobs;
SELECT count(*) FROM strata.backups;
SELECT count(*) FROM strata.log_backups;
SELECT count(*) FROM strata.fragment;
SELECT strata.manage('works.log', '1 day');
CALL strata.run_policies();
SELECT strata.backup();
SELECT strata.recovery_plan();
SELECT strata.recover('latest', '/nowhere');
SELECT strata.sweep();

-- Everybody else sees nothing.
SET ROLE anybody;
SELECT * FROM strata.partitions;
SELECT strata.to_warm('works.log_others');

-- Whoever runs a policy, the new partitions belong to the owner of the table.
RESET ROLE;
UPDATE strata.policy SET ahead = 3;
CALL strata.run_policies();
SELECT pg_get_userbyid(c.relowner) AS owner, count(*) FROM pg_partition_tree('works.log') t JOIN pg_class c ON c.oid = t.relid GROUP BY 1;

-- An owner without any role of Strata drops a table that somebody managed for him.
SET ROLE anybody;
CREATE TABLE works.mine (at date) PARTITION BY RANGE (at);
RESET ROLE;
SELECT strata.manage('works.mine', '1 day', '1 day');
SET ROLE anybody;
DROP TABLE works.mine;
RESET ROLE;
SELECT "table" FROM strata.policies;

-- The agent's role records jobs and backups, and changes nothing else.
SET ROLE strata_agent;
SELECT count(*) > 0 AS fragments FROM strata.fragment;
INSERT INTO strata.job (kind, object) VALUES ('backup', 'x') RETURNING state, requested_by;
UPDATE strata.job SET phase = 'data', done = 1, total = 2 WHERE kind = 'backup';
INSERT INTO strata.backup (backup_id, system, member, repository, state, started_at) VALUES ('20010101T000000Z', 's', 'm', '/r', 'running', now());
UPDATE strata.backup SET state = 'complete';
INSERT INTO strata.log_backup VALUES ('s', 'm', 'wal', '000000010000000000000001', 1, '0/1000000', '0/2000000', 16777216, 1000, 'abc', now());
DELETE FROM strata.fragment;
UPDATE strata.policy SET hot_for = '1 second';
SELECT current_setting('data_directory') <> '' AS data_directory;
RESET ROLE;
SELECT backup_id, state FROM strata.backups;
SELECT name, bytes FROM strata.log_backups;
SELECT state, phase, done, total, duration > '0' AS runs FROM strata.jobs WHERE kind = 'backup';

DELETE FROM strata.backup;
DELETE FROM strata.log_backup;
DELETE FROM strata.job;
DROP SCHEMA works CASCADE;
SELECT count(*) FROM strata.policy;
DROP ROLE reader, alice, bob, anybody;
