-- What is done to whole tables: extended statistics, tablespaces, unlogged and temporary tables, FREEZE, CREATE TABLE AS, DETACH
-- CONCURRENTLY; with rows in fragments, in the delta store and in both.
CREATE TABLE t (id int PRIMARY KEY, a int, b int, v text);
INSERT INTO t SELECT i, i % 10, i % 10, 'v' || i FROM generate_series(1, 3000) i;
\warm t
CREATE STATISTICS t_stat (dependencies, ndistinct, mcv) ON a, b FROM t;
CREATE STATISTICS t_expr ON (a + b), (a * 2) FROM t;
ANALYZE t;
SELECT stxname, stxdndistinct, stxddependencies FROM pg_statistic_ext e JOIN pg_statistic_ext_data d ON d.stxoid = e.oid ORDER BY 1;
SELECT m.* FROM pg_statistic_ext e JOIN pg_statistic_ext_data d ON d.stxoid = e.oid, pg_mcv_list_items(stxdmcv) m WHERE stxname = 't_stat' ORDER BY m.values;
INSERT INTO t SELECT i, i % 10, i % 7, 'w' || i FROM generate_series(3001, 3300) i;
DELETE FROM t WHERE id % 10 = 3;
ANALYZE t;
SELECT stxname, stxdndistinct, stxddependencies FROM pg_statistic_ext e JOIN pg_statistic_ext_data d ON d.stxoid = e.oid ORDER BY 1;
SELECT attname, null_frac, n_distinct, most_common_vals, most_common_freqs FROM pg_stats WHERE tablename = 't' AND attname IN ('a', 'b') ORDER BY 1;
SELECT reltuples FROM pg_class WHERE oid = 't'::regclass;
VACUUM (FREEZE) t;
SELECT age(relfrozenxid) < 1000 FROM pg_class WHERE oid = 't'::regclass;
SELECT count(*), sum(a), sum(b) FROM t;
VACUUM (FREEZE, ANALYZE, INDEX_CLEANUP on, TRUNCATE off) t;
SELECT count(*), sum(a), sum(b) FROM t;
CREATE TABLE copied USING {method} AS SELECT * FROM t WHERE a < 5;
SELECT count(*), sum(id) FROM copied;
SELECT * INTO chosen FROM t WHERE id < 50;
SELECT count(*), sum(id) FROM chosen;
CREATE TABLE empty USING {method} AS SELECT * FROM t WITH NO DATA;
SELECT count(*) FROM empty;
EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) CREATE TABLE never AS SELECT * FROM empty;
CREATE TABLE liked (LIKE t INCLUDING ALL) USING {method};
INSERT INTO liked SELECT * FROM t;
\warm liked
INSERT INTO liked SELECT id + 10000, a, b, v FROM t WHERE id < 20;
SELECT count(*), sum(id) FROM liked;
-- Tablespaces.
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE other_{side} LOCATION '';
ALTER TABLE t SET TABLESPACE other_{side};
SELECT count(*), sum(a), sum(id) FROM t;
SELECT * FROM t WHERE id IN (5, 3100) ORDER BY id;
UPDATE t SET v = 'moved' WHERE id IN (5, 3100);
SELECT * FROM t WHERE id IN (5, 3100) ORDER BY id;
ALTER INDEX t_pkey SET TABLESPACE other_{side};
INSERT INTO t VALUES (6, 0, 0, 'dup');
INSERT INTO t VALUES (3101, 0, 0, 'dup');
\warm t
SELECT spcname = 'other_{side}' FROM pg_class c JOIN pg_tablespace s ON s.oid = c.reltablespace WHERE c.oid = 't'::regclass;
SELECT count(*), sum(a), sum(id) FROM t;
BEGIN;
ALTER TABLE t SET TABLESPACE pg_default;
SELECT count(*), sum(a), sum(id) FROM t;
ROLLBACK;
SELECT count(*), sum(a), sum(id) FROM t;
ALTER TABLE t SET TABLESPACE pg_default;
ALTER INDEX t_pkey SET TABLESPACE pg_default;
SELECT count(*), sum(a), sum(id) FROM t;
CREATE TABLE placed (id int PRIMARY KEY) USING {method} TABLESPACE other_{side};
INSERT INTO placed SELECT generate_series(1, 100);
\warm placed
INSERT INTO placed VALUES (101), (50);
INSERT INTO placed VALUES (101);
SELECT count(*), sum(id) FROM placed;
DROP TABLE placed;
DROP TABLESPACE other_{side};
-- Unlogged and temporary tables: their rows stay in the delta store.
CREATE UNLOGGED TABLE u (id int PRIMARY KEY, v text) USING {method};
INSERT INTO u SELECT i, 'u' || i FROM generate_series(1, 200) i;
UPDATE u SET v = 'x' WHERE id = 1;
DELETE FROM u WHERE id = 2;
INSERT INTO u VALUES (3, 'dup');
SELECT count(*), sum(id), min(v) FROM u;
ALTER TABLE u SET LOGGED;
SELECT count(*), sum(id), min(v) FROM u;
\warm u
INSERT INTO u VALUES (201, 'late');
SELECT count(*), sum(id), min(v) FROM u;
ALTER TABLE u SET UNLOGGED;
SELECT count(*), sum(id), min(v) FROM u;
UPDATE u SET v = 'y' WHERE id IN (10, 201) RETURNING *;
INSERT INTO u VALUES (11, 'dup');
ALTER TABLE u SET LOGGED;
SELECT count(*), sum(id), min(v) FROM u;
CREATE TEMP TABLE tmp (id int PRIMARY KEY, v text) USING {method} ON COMMIT DELETE ROWS;
BEGIN;
INSERT INTO tmp SELECT id, v FROM t WHERE id < 100;
UPDATE tmp SET v = 'z' WHERE id = 5 RETURNING *;
SELECT count(*), sum(id) FROM tmp;
COMMIT;
SELECT count(*) FROM tmp;
CREATE TEMP TABLE joined USING {method} AS SELECT * FROM t WHERE id <= 40;
SELECT count(*), sum(x.id) FROM joined x JOIN t USING (id);
-- DETACH CONCURRENTLY, with rows in fragments, in both, and in the delta store.
CREATE TABLE p (k int, v text) PARTITION BY RANGE (k);
CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100) USING {method};
CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200) USING {method};
CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (200) TO (300) USING {method};
INSERT INTO p SELECT i, 'p' || i FROM generate_series(0, 249) i;
\warm p1 p2
INSERT INTO p SELECT i, 'late' || i FROM generate_series(150, 199) i;
ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY;
SELECT count(*), sum(k) FROM p;
SELECT count(*), sum(k) FROM p1;
ALTER TABLE p DETACH PARTITION p2 CONCURRENTLY;
ALTER TABLE p DETACH PARTITION p3 CONCURRENTLY;
SELECT (SELECT count(*) FROM p), (SELECT sum(k) FROM p2), (SELECT sum(k) FROM p3);
INSERT INTO p1 VALUES (500, 'out');
ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (0) TO (100);
DELETE FROM p1 WHERE k = 500;
ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (0) TO (100);
ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (100) TO (200);
SELECT tableoid::regclass, count(*), sum(k) FROM p GROUP BY 1 ORDER BY 1;
