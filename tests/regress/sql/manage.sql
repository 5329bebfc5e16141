-- strata.manage and strata.unmanage: what they accept, what they derive, what they say.
\set SHOW_CONTEXT never
CREATE TABLE plain (id int, at date);
CREATE TABLE listed (k text) PARTITION BY LIST (k);
CREATE TABLE two_keys (a date, b date) PARTITION BY RANGE (a, b);
CREATE TABLE by_expression (a timestamp) PARTITION BY RANGE (date(a));
CREATE TABLE by_number (a int) PARTITION BY RANGE (a);
CREATE TEMP TABLE temporary (a date) PARTITION BY RANGE (a);
CREATE VIEW some_view AS SELECT 1 AS a;
CREATE TABLE days (a date) PARTITION BY RANGE (a);

-- Tables that cannot be managed.
SELECT strata.manage('nowhere', '1 day');
SELECT strata.manage('plain', '1 day');
SELECT strata.manage('listed', '1 day');
SELECT strata.manage('two_keys', '1 day');
SELECT strata.manage('by_expression', '1 day');
SELECT strata.manage('by_number', '1 day');
SELECT strata.manage('temporary', '1 day');
SELECT strata.manage('some_view', '1 day');
SELECT strata.manage(NULL, '1 day');

-- Arguments that do not fit.
SELECT strata.manage('days', NULL);
SELECT strata.manage('days', '-1 day');
SELECT strata.manage('days', '0');
SELECT strata.manage('days', '1 day', '-1 day');
SELECT strata.manage('days', '1 day', '1 hour');
SELECT strata.manage('days', '1 day', '1 day', ahead => -1);
SELECT strata.manage('days', '1 day', '1 day', ahead => 1001);
SELECT strata.manage('days', '1 day');
SELECT strata.unmanage('days');
SELECT strata.unmanage('days', if_exists => true);
SELECT count(*) FROM strata.policies;

-- The width of the partitions is read off them.
CREATE TABLE months (a date) PARTITION BY RANGE (a);
CREATE TABLE months_1 PARTITION OF months FOR VALUES FROM ('2001-01-01') TO ('2001-02-01');
CREATE TABLE months_2 PARTITION OF months FOR VALUES FROM ('2001-02-01') TO ('2001-03-01');
CREATE TABLE quarters (a timestamp) PARTITION BY RANGE (a);
CREATE TABLE quarters_1 PARTITION OF quarters FOR VALUES FROM (MINVALUE) TO ('2001-01-01');
CREATE TABLE quarters_2 PARTITION OF quarters FOR VALUES FROM ('2001-01-01') TO ('2001-04-01');
CREATE TABLE quarters_3 PARTITION OF quarters FOR VALUES FROM ('2001-04-01') TO ('2001-07-01');
CREATE TABLE years (a date) PARTITION BY RANGE (a);
CREATE TABLE years_1 PARTITION OF years FOR VALUES FROM ('2000-01-01') TO ('2001-01-01');
CREATE TABLE weeks (a date) PARTITION BY RANGE (a);
CREATE TABLE weeks_1 PARTITION OF weeks FOR VALUES FROM ('2001-01-01') TO ('2001-01-08');
CREATE TABLE four_weeks (a date) PARTITION BY RANGE (a);
CREATE TABLE four_weeks_1 PARTITION OF four_weeks FOR VALUES FROM ('2001-02-01') TO ('2001-03-01');
CREATE TABLE four_weeks_2 PARTITION OF four_weeks FOR VALUES FROM ('2001-03-01') TO ('2001-03-29');
CREATE TABLE hours (a timestamptz) PARTITION BY RANGE (a);
CREATE TABLE hours_1 PARTITION OF hours FOR VALUES FROM ('2001-01-01 06:00+00') TO ('2001-01-01 12:00+00');
SET timezone = 'Europe/Berlin';
CREATE TABLE berlin (a timestamptz) PARTITION BY RANGE (a);
CREATE TABLE berlin_1 PARTITION OF berlin FOR VALUES FROM ('2001-03-01') TO ('2001-04-01');
CREATE TABLE berlin_2 PARTITION OF berlin FOR VALUES FROM ('2001-04-01') TO ('2001-05-01');
SET timezone = 'America/New_York';
SET datestyle = 'SQL, DMY';
SELECT strata.manage(t, '100 years', ahead => 1)
  FROM unnest('{months,quarters,years,weeks,four_weeks,hours,berlin}'::regclass[]) t;
SELECT "table", hot_for, partition_by, ahead, enabled, hot_partitions, warm_partitions FROM strata.policies ORDER BY "table"::text;
CREATE TABLE irregular (a date) PARTITION BY RANGE (a);
CREATE TABLE irregular_1 PARTITION OF irregular FOR VALUES FROM ('2001-01-01') TO ('2001-02-01');
CREATE TABLE irregular_2 PARTITION OF irregular FOR VALUES FROM ('2001-02-01') TO ('2001-02-13');
SELECT strata.manage('irregular', '1 day');
SELECT strata.manage('irregular', '1 day', ahead => 0);
SELECT "table", partition_by FROM strata.policies WHERE "table" = 'irregular'::regclass;

-- A table is managed once, and by one policy.
SELECT strata.manage('months', '1 day');
SELECT strata.manage('months', '1 day', if_not_exists => true);
SELECT hot_for FROM strata.policies WHERE "table" = 'months'::regclass;
CREATE TABLE outside (a date) PARTITION BY RANGE (a);
CREATE TABLE inside PARTITION OF outside FOR VALUES FROM ('2001-01-01') TO ('2002-01-01') PARTITION BY RANGE (a);
SELECT strata.manage('inside', '1 day', '1 month');
SELECT strata.manage('outside', '1 day', '1 year');
SELECT strata.unmanage('inside');
SELECT strata.manage('outside', '1 day', '1 year');
SELECT strata.manage('inside', '1 day', '1 month');

-- A dropped table takes its policy along; a rollback brings both back.
BEGIN;
DROP TABLE outside;
SELECT count(*) FROM strata.policy WHERE NOT EXISTS (SELECT FROM pg_class WHERE oid = relid);
SELECT count(*) FROM strata.policies WHERE "table"::text = 'outside';
ROLLBACK;
SELECT count(*) FROM strata.policies WHERE "table"::text = 'outside';
DROP TABLE outside, months, quarters, years, weeks, four_weeks, hours, berlin, irregular;
SELECT count(*) FROM strata.policy;
DROP TABLE plain, listed, two_keys, by_expression, by_number, days;
DROP VIEW some_view;
