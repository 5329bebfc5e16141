-- The views, for partitions and for a table that is none.
\set SHOW_CONTEXT never
SELECT count(*) FROM strata.partitions;
SET strata.fragment_rows = 3000;
CREATE TABLE alone (id int PRIMARY KEY, v text);
INSERT INTO alone SELECT i, 'row ' || i FROM generate_series(1, 10000) i;
SELECT strata.to_warm('alone');
SELECT "table", partition, tier, rows, range_from, range_to, heap_bytes > 0 AS heap, index_bytes > 0 AS index,
       warm_bytes > 0 AS warm, compression > 2 AS compressed, deleted_rows, fragments
  FROM strata.partitions;
SELECT "table", first_row_id, rows, deleted_rows, bytes > 0 AS bytes, length(hash) AS hash,
       path LIKE '/%/' || (SELECT oid FROM pg_database WHERE datname = current_database()) || '/' || left(hash, 2) || '/' || hash || '.frag' AS path
  FROM strata.fragments ORDER BY first_row_id;
SELECT p.warm_bytes = sum(f.bytes) AS bytes, p.fragments = count(*) AS fragments, sum((pg_stat_file(f.path)).size) = sum(f.bytes) AS on_disk
  FROM strata.partitions p JOIN strata.fragments f ON f."table" = p.partition GROUP BY p.warm_bytes, p.fragments;
-- Changes.
DELETE FROM alone WHERE id <= 10;
UPDATE alone SET v = 'changed' WHERE id BETWEEN 9991 AND 10000;
SELECT rows, deleted_rows FROM strata.fragments ORDER BY first_row_id;
SELECT deleted_rows, abs(rows - 9990) < 500 AS about FROM strata.partitions;
SELECT count(*) FROM alone;
-- Fragments of a file that the table does not have any more are not shown.
BEGIN;
TRUNCATE alone;
SELECT count(*) FROM strata.fragments;
ROLLBACK;
SELECT count(*) FROM strata.fragments;
SELECT strata.to_hot('alone');
SELECT count(*) FROM strata.partitions;
-- A partitioned table is shown as soon as one of its partitions is warm, or it is managed.
CREATE TABLE parted (k text, n int) PARTITION BY LIST (k);
CREATE TABLE parted_a PARTITION OF parted FOR VALUES IN ('a');
CREATE TABLE parted_b PARTITION OF parted FOR VALUES IN ('b') PARTITION BY RANGE (n);
CREATE TABLE parted_b_1 PARTITION OF parted_b FOR VALUES FROM (0) TO (100);
SELECT count(*) FROM strata.partitions;
SELECT strata.to_warm('parted_b_1');
SELECT "table", partition, tier, rows, range_from, range_to, warm_bytes, compression, fragments FROM strata.partitions ORDER BY partition::text;
DROP TABLE alone, parted;
SELECT count(*) FROM strata.partitions;
-- Everything is described.
SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'strata'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL;
SELECT c.oid::regclass FROM pg_class c WHERE c.relnamespace = 'strata'::regnamespace AND c.relkind IN ('r', 'v') AND obj_description(c.oid, 'pg_class') IS NULL;
-- Functions with their owner's rights pin their search_path.
SELECT p.oid::regprocedure FROM pg_proc p
 WHERE p.pronamespace = 'strata'::regnamespace AND p.prosecdef AND NOT 'search_path=pg_catalog, pg_temp' = ANY (COALESCE(p.proconfig, '{}'));
