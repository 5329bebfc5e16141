-- Partitions that policies create ahead.
\set SHOW_CONTEXT never
\set VERBOSITY terse
-- Whether the partitions from the present one on are `n`, without a hole, each `width` long in `zone`, and named by `format`.
CREATE FUNCTION ahead("table" regclass, width interval, zone text, format text,
                      OUT partitions bigint, OUT contiguous boolean, OUT wide boolean, OUT named boolean)
BEGIN ATOMIC
    SELECT count(*), bool_and(n IS NULL OR n = u), bool_and((l AT TIME ZONE zone) + width = u AT TIME ZONE zone),
           bool_and(name = to_char(l AT TIME ZONE zone, format))
      FROM (SELECT name, l, u, lead(l) OVER (ORDER BY l) AS n
              FROM (SELECT p.partition::text AS name, p.range_from::timestamptz AS l, p.range_to::timestamptz AS u
                      FROM strata.partitions p
                     WHERE p."table" = $1 AND p.range_from <> 'MINVALUE' AND p.range_to <> 'MAXVALUE') b
             WHERE u > now()) p;
END;

-- The newest partition is long ago: the hole after it is left alone. Zone and names are taken from what is there.
SET timezone = 'Europe/Berlin';
CREATE TABLE berlin (a timestamptz, id int DEFAULT 7, v text CHECK (v <> ''), PRIMARY KEY (a, id)) PARTITION BY RANGE (a);
CREATE TABLE berlin_2001_03 PARTITION OF berlin FOR VALUES FROM ('2001-03-01') TO ('2001-04-01');
CREATE TABLE berlin_2001_04 PARTITION OF berlin FOR VALUES FROM ('2001-04-01') TO ('2001-05-01');
CREATE INDEX berlin_v ON berlin (v);
RESET timezone;
SELECT strata.manage('berlin', '100 years', ahead => 8);
CALL strata.run_policies();
SELECT * FROM ahead('berlin', '1 month', 'Europe/Berlin', '"berlin_"YYYY_MM');
CALL strata.run_policies();
SELECT * FROM ahead('berlin', '1 month', 'Europe/Berlin', '"berlin_"YYYY_MM');
UPDATE strata.policy SET ahead = 10;
CALL strata.run_policies('berlin');
SELECT * FROM ahead('berlin', '1 month', 'Europe/Berlin', '"berlin_"YYYY_MM');
INSERT INTO berlin (a, v) VALUES (now(), 'present');
INSERT INTO berlin (a, v) VALUES (now(), '');
SELECT id, v FROM berlin;
-- They are partitions like the others: indexes and constraints are inherited, and go with those of the parent.
ALTER TABLE berlin DROP CONSTRAINT berlin_v_check;
SELECT count(*) FROM pg_constraint WHERE conname = 'berlin_v_check';
SELECT count(DISTINCT i.n) AS kinds, min(i.n) AS indexes
  FROM (SELECT count(*) AS n FROM pg_partition_tree('berlin') t JOIN pg_index x ON x.indrelid = t.relid WHERE t.isleaf GROUP BY t.relid) i;
DROP TABLE berlin;

-- No partition at all: days from the present one on; a name of its own style.
CREATE TABLE days (a date) PARTITION BY RANGE (a);
SELECT strata.manage('days', '1 day', '1 day', ahead => 3);
CALL strata.run_policies('days');
SELECT * FROM ahead('days', '1 day', current_setting('TimeZone'), '"days_p"YYYYMMDD');
DROP TABLE days;
CREATE TABLE weeks (a date) PARTITION BY RANGE (a);
SELECT strata.manage('weeks', '1 day', '7 days', ahead => 3);
CALL strata.run_policies('weeks');
SELECT bool_and(extract(isodow FROM range_from::date) = 1) AS mondays, count(*) FROM strata.partitions WHERE "table" = 'weeks'::regclass;
DROP TABLE weeks;
CREATE TABLE hours (a timestamptz) PARTITION BY RANGE (a);
SELECT strata.manage('hours', '1 hour', '6 hours', ahead => 3);
CALL strata.run_policies('hours');
SELECT * FROM ahead('hours', '6 hours', 'UTC', '"hours_p"YYYYMMDD_HH24MISS');
DROP TABLE hours;

-- Partitions that exist later on are kept; new ones fill the hole before them exactly.
CREATE TABLE filled (a date) PARTITION BY RANGE (a);
DO $$
BEGIN
    EXECUTE format('CREATE TABLE later PARTITION OF filled FOR VALUES FROM (%L) TO (MAXVALUE)', (date_trunc('month', now()) + '2 months 10 days')::date);
END $$;
SELECT strata.manage('filled', '1 day', '1 month', ahead => 12);
CALL strata.run_policies('filled');
SELECT count(*), bool_and(n IS NULL OR n = u) AS contiguous
  FROM (SELECT range_to AS u, lead(range_from) OVER (ORDER BY range_from::date) AS n FROM strata.partitions WHERE "table" = 'filled'::regclass) p;
DROP TABLE filled;

-- Rows in the default partition forbid a partition for them, with a warning; the others are created.
CREATE TABLE rest (a date) PARTITION BY RANGE (a);
CREATE TABLE rest_others PARTITION OF rest DEFAULT;
INSERT INTO rest VALUES ('2001-01-01'), (date_trunc('month', now()) + '1 month 3 days');
SELECT strata.manage('rest', '100 years', '1 month', ahead => 2);
SET client_min_messages = error;
CALL strata.run_policies('rest');
RESET client_min_messages;
SELECT count(*) FROM pg_partition_tree('rest') WHERE isleaf;
DELETE FROM rest_others WHERE a > '2001-01-01';
CALL strata.run_policies('rest');
SELECT * FROM ahead('rest', '1 month', current_setting('TimeZone'), '"rest_p"YYYYMMDD');
SELECT a FROM rest_others;
DROP TABLE rest;
DROP FUNCTION ahead;
