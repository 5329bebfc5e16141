-- Moves by policies: what is moved, what is recorded, what one failure does to the rest.
\set SHOW_CONTEXT never
CREATE TABLE log (at date, id int, v text, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
CREATE TABLE log_old PARTITION OF log FOR VALUES FROM (MINVALUE) TO ('2001-01-01');
CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM ('2001-01-01') TO ('2001-02-01') PARTITION BY HASH (id);
CREATE TABLE log_1_0 PARTITION OF log_1 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE log_1_1 PARTITION OF log_1 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE log_2 PARTITION OF log FOR VALUES FROM ('2001-02-01') TO ('2001-03-01');
CREATE TABLE log_new PARTITION OF log FOR VALUES FROM ('2001-03-01') TO ('2300-01-01');
CREATE UNLOGGED TABLE log_unlogged PARTITION OF log FOR VALUES FROM ('2300-01-01') TO ('2300-02-01');
CREATE TABLE log_rest PARTITION OF log DEFAULT;
INSERT INTO log SELECT date '2000-12-01' + i % 120, i, 'row ' || i FROM generate_series(1, 6000) i;
CREATE TABLE twin AS TABLE log;
SELECT strata.manage('log', hot_for => '1 day', ahead => 0);

-- It commits by itself.
BEGIN;
CALL strata.run_policies();
ROLLBACK;
SELECT 'in one string' AS called \; CALL strata.run_policies();
CREATE FUNCTION from_function() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CALL strata.run_policies(); END $$;
SELECT from_function();
DROP FUNCTION from_function();
CALL strata.run_policies('twin');
SELECT strata.unmanage('log');
CALL strata.run_policies('log');
SELECT strata.manage('log', hot_for => '1 day', ahead => 0);

-- Each move fails; nothing has moved, and each partition has one row for it, however often it is tried.
SET strata.failpoint = 'move:before_swap=error';
SET client_min_messages = error;
CALL strata.run_policies();
CALL strata.run_policies();
RESET client_min_messages;
RESET strata.failpoint;
SELECT kind, object, state, done, total, error IS NOT NULL AS error, result ->> 'attempts' AS attempts, requested_by, finished_at >= started_at AS ended
  FROM strata.jobs ORDER BY object;
SELECT partition, tier FROM strata.partitions WHERE "table" = 'log'::regclass ORDER BY partition::text;

-- One partition is locked: it fails, the others go on.
BEGIN;
LOCK TABLE log_1_1 IN ROW EXCLUSIVE MODE;
PREPARE TRANSACTION 'writer';
SET strata.swap_timeout = 1;
\set VERBOSITY terse
CALL strata.run_policies();
\set VERBOSITY default
ROLLBACK PREPARED 'writer';
RESET strata.swap_timeout;
SELECT partition, tier, range_from, range_to FROM strata.partitions WHERE "table" = 'log'::regclass ORDER BY partition::text;
SELECT object, state, done FROM strata.jobs WHERE job_id > (SELECT max(job_id) FROM strata.jobs WHERE result ->> 'attempts' = '2') ORDER BY job_id;

-- A policy that is not enabled is left out, unless its table is named.
UPDATE strata.policy SET enabled = false;
CALL strata.run_policies();
SELECT tier FROM strata.partitions WHERE partition = 'log_1_1'::regclass;
CALL strata.run_policies('log');
SELECT tier FROM strata.partitions WHERE partition = 'log_1_1'::regclass;
SELECT object, state, done = (result ->> 'rows')::bigint AS rows, (result ->> 'bytes_before')::bigint > (result ->> 'bytes_after')::bigint AS smaller
  FROM strata.jobs WHERE state = 'done' ORDER BY object;
SELECT count(*) AS jobs FROM strata.jobs \gset
CALL strata.run_policies('log');
SELECT count(*) - :jobs AS more FROM strata.jobs;
(TABLE log EXCEPT ALL TABLE twin) UNION ALL (TABLE twin EXCEPT ALL TABLE log);

-- What another session left behind as running was interrupted.
INSERT INTO strata.job (kind, object) VALUES ('move', 'public.log_2');
CALL strata.run_policies('log');
SELECT object, state, error FROM strata.jobs ORDER BY job_id DESC LIMIT 1;
SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory';

-- A canceled run says so in the job, and ends.
SELECT strata.to_hot('log_old') > 0 AS hot, strata.to_hot('log_2') > 0 AS hot;
SET strata.failpoint = 'move:before_swap=sleep:20000';
SET statement_timeout = '300ms';
CALL strata.run_policies('log');
RESET statement_timeout;
RESET strata.failpoint;
SELECT object, state, result FROM strata.jobs ORDER BY job_id DESC LIMIT 1;
SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory';
CALL strata.run_policies('log');
SELECT partition, tier FROM strata.partitions WHERE partition IN ('log_old'::regclass, 'log_2'::regclass) ORDER BY partition::text;

-- Back to hot, and moved again.
SELECT strata.to_hot('log_2') = (SELECT count(*) FROM twin WHERE at >= '2001-02-01' AND at < '2001-03-01') AS rows;
CALL strata.run_policies('log');
SELECT tier FROM strata.partitions WHERE partition = 'log_2'::regclass;
(TABLE log EXCEPT ALL TABLE twin) UNION ALL (TABLE twin EXCEPT ALL TABLE log);
DROP TABLE log, twin;
DELETE FROM strata.job;
