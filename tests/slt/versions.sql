-- What newer versions of PostgreSQL added and what touches warm tables, version by version.

\since 16
CREATE TABLE t (id int PRIMARY KEY, v text STORAGE EXTERNAL, n numeric);
INSERT INTO t SELECT i, repeat('v' || i, 500), i / 7.0 FROM generate_series(1, 3_000) i;
\warm t
SELECT any_value(v) IS NOT NULL, any_value(n) FILTER (WHERE id = 7) FROM t;
SELECT count(*) FROM t a FULL JOIN t b ON a.id = b.id + 1_000;
SELECT count(*) FROM t a WHERE NOT EXISTS (SELECT FROM t b WHERE b.id = a.id + 1_000);
SELECT json_object('id': id, 'n': n), json_array(id, n NULL ON NULL) FROM t WHERE id < 4 ORDER BY id;
SELECT json_arrayagg(id ORDER BY id) FROM t WHERE id <= 5;
CREATE TABLE d (id int, v text DEFAULT 'of the table', n int DEFAULT 7);
INSERT INTO d SELECT i FROM generate_series(1, 100) i;
\warm d
COPY d FROM PROGRAM 'printf "1000,D,D\n1001,x,8\n"' WITH (FORMAT csv, DEFAULT 'D');
SELECT * FROM d WHERE id >= 1000 ORDER BY id;
CREATE INDEX t_brin ON t USING brin (n);
UPDATE t SET n = n + 1 WHERE id % 100 = 0;
SELECT sum(n), count(*) FROM t WHERE n BETWEEN 10 AND 20;

\since 17
-- MERGE: RETURNING, WHEN NOT MATCHED BY SOURCE, views.
CREATE TABLE s (id int PRIMARY KEY, v text);
INSERT INTO s SELECT i, 's' || i FROM generate_series(2_990, 3_010) i;
\warm s
MERGE INTO t USING s ON s.id = t.id WHEN MATCHED AND t.id % 2 = 0 THEN UPDATE SET v = s.v WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.v, 0) WHEN NOT MATCHED BY SOURCE AND t.id <= 10 THEN DELETE WHEN NOT MATCHED BY SOURCE AND t.id <= 20 THEN UPDATE SET v = 'no source' RETURNING merge_action(), t.id, t.v, s.id;
SELECT count(*), sum(n), md5(string_agg(t.id || left(v, 20), '|' ORDER BY id)) FROM t;
\warm t
CREATE VIEW tv AS SELECT id, v, n FROM t WHERE id > 100 WITH CHECK OPTION;
MERGE INTO tv USING (VALUES (50, 'x'), (150, 'y'), (9_000, 'z')) x (id, v) ON x.id = tv.id WHEN MATCHED THEN UPDATE SET v = x.v WHEN NOT MATCHED AND x.id > 100 THEN INSERT VALUES (x.id, x.v, 1) RETURNING merge_action(), tv.*;
MERGE INTO tv USING (VALUES (151)) x (id) ON x.id = tv.id WHEN MATCHED THEN UPDATE SET id = 1;
WITH m AS (MERGE INTO t USING s ON s.id = t.id WHEN MATCHED THEN DELETE RETURNING t.id) SELECT count(*), min(id), max(id) FROM m;
SELECT count(*), sum(n) FROM t;
-- COPY that leaves out what is wrong.
\warm d
COPY d FROM PROGRAM 'printf "2000,a,1\nx,b,2\n2002,c,y\n2003,d,4\n"' WITH (FORMAT csv, ON_ERROR ignore);
SELECT * FROM d WHERE id >= 2000 ORDER BY id;
-- JSON_TABLE and its relatives over warm rows.
CREATE TABLE j (id int PRIMARY KEY, doc jsonb);
INSERT INTO j SELECT i, jsonb_build_object('a', i, 'list', jsonb_build_array(i, i + 1)) FROM generate_series(1, 500) i;
\warm j
SELECT count(*), sum(x.e) FROM j, JSON_TABLE(doc, '$.list[*]' COLUMNS (e int PATH '$')) x WHERE JSON_VALUE(doc, '$.a' RETURNING int) > 490;
SELECT id FROM j WHERE JSON_EXISTS(doc, '$.list[*] ? (@ == 77)') ORDER BY id;
-- Infinite intervals.
CREATE TABLE span (id int PRIMARY KEY, i interval);
INSERT INTO span SELECT i, i * interval '1 hour' FROM generate_series(1, 300) i;
INSERT INTO span VALUES (1001, 'infinity'), (1002, '-infinity'), (1003, NULL);
\warm span
SELECT min(i), max(i), count(i) FROM span;
SELECT max(i), sum(i), avg(i) FROM span WHERE id < 1001;
SELECT sum(i) FROM span WHERE id <> 1002;
SELECT sum(i) FROM span;
SELECT id FROM span WHERE i = 'infinity' OR i < '0' ORDER BY id;
SELECT id, i FROM span ORDER BY i DESC NULLS LAST LIMIT 2;
SELECT id, timestamp '2020-01-01' + i FROM span WHERE id > 1000 ORDER BY id;
-- A stored generated column gets another expression.
CREATE TABLE g (id int PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2) STORED);
INSERT INTO g SELECT i, i FROM generate_series(1, 200) i;
\warm g
ALTER TABLE g ALTER b SET EXPRESSION AS (a * 3);
SELECT sum(b), min(b), max(b) FROM g;
\warm g
UPDATE g SET a = 0 WHERE id <= 10 RETURNING *;
-- The access method and an identity column of a partitioned table; exclusion constraints.
CREATE TABLE p (k int NOT NULL, id int GENERATED ALWAYS AS IDENTITY, r int4range) PARTITION BY RANGE (k) USING {method};
CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200) USING heap;
SELECT relname, amname = '{method}' FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE relname IN ('p', 'p1') ORDER BY relname;
INSERT INTO p (k, r) SELECT i % 200, int4range(i, i + 1) FROM generate_series(1, 1_000) i;
\warm p1 p2
INSERT INTO p (k, r) VALUES (1, '[1,2)'), (101, '[1,2)') RETURNING *;
SELECT count(*), count(DISTINCT id), sum(id), sum(k) FROM p;
ALTER TABLE p SET ACCESS METHOD heap;
CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (200) TO (300);
UPDATE p SET k = k + 100 WHERE k >= 150;
SELECT tableoid::regclass, count(*), sum(id) FROM p GROUP BY 1 ORDER BY 1;
ALTER TABLE p3 SET ACCESS METHOD DEFAULT;
CREATE TABLE ex (k int4range, r int4range, EXCLUDE USING gist (k WITH =, r WITH &&)) PARTITION BY LIST (k);
CREATE TABLE ex1 PARTITION OF ex FOR VALUES IN ('[1,2)');
INSERT INTO ex SELECT '[1,2)', int4range(i * 10, i * 10 + 5) FROM generate_series(1, 100) i;
\warm ex1
INSERT INTO ex VALUES ('[1,2)', '[12,20)');
INSERT INTO ex VALUES ('[1,2)', '[16,20)');
-- Many constants, and tests for null that are known.
\warm t
SELECT count(*), sum(n) FROM t WHERE id IN (30, 31, 32, 500, 501, 77, 78, 2_000, 99_999) AND id IS NOT NULL;
SELECT count(*) FROM t WHERE id IS NULL;
SELECT count(*) FROM t WHERE id IN (SELECT s.id FROM s WHERE s.id < t.id + 5);
VACUUM (BUFFER_USAGE_LIMIT '512kB') t;
ANALYZE (BUFFER_USAGE_LIMIT '512kB') t;
SELECT reltuples > 2000 FROM pg_class WHERE relname = 't';

\since 18
-- Virtual generated columns.
CREATE TABLE v (id int PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2), c text, d text GENERATED ALWAYS AS (c || '!') VIRTUAL NOT NULL);
INSERT INTO v (id, a, c) SELECT i, i, 'c' || i FROM generate_series(1, 3_000) i;
\warm v
SELECT * FROM v WHERE id BETWEEN 10 AND 12 ORDER BY id;
SELECT sum(b), min(b), max(b), count(b), count(*), min(d) FROM v;
SELECT id, b FROM v WHERE b BETWEEN 100 AND 104 ORDER BY id;
SELECT id FROM v WHERE d = 'c77!';
SELECT count(*) FROM v WHERE b IS NULL OR d IS NULL;
SELECT b % 10, count(*), sum(b) FROM v GROUP BY 1 ORDER BY 1;
SELECT v FROM v WHERE id = 5;
UPDATE v SET a = 1000 WHERE b = 20 RETURNING *;
UPDATE v SET c = NULL WHERE id = 30;
DELETE FROM v WHERE b = 40 RETURNING id, b, d;
SELECT count(*), sum(b) FROM v;
ALTER TABLE v ADD COLUMN e int GENERATED ALWAYS AS (a + id);
SELECT sum(e), max(e) FROM v;
ALTER TABLE v ALTER b SET EXPRESSION AS (a * 5);
SELECT sum(b), max(b) FROM v;
\warm v
SELECT sum(b), max(b), sum(e), max(d) FROM v;
CREATE INDEX v_expression ON v ((a * 5));
SELECT id FROM v WHERE b = 5_000 ORDER BY id;
ALTER TABLE v DROP COLUMN b;
INSERT INTO v (id, a, c) VALUES (5_000, 1, 'new'), (1, 1, 'twice') ON CONFLICT (id) DO UPDATE SET a = v.e + excluded.e RETURNING *;
SELECT count(*), sum(a), sum(e) FROM v;
CREATE TABLE vo (a int, b int GENERATED ALWAYS AS (a + 1));
INSERT INTO vo (a) VALUES (1), (NULL);
\warm vo
SELECT * FROM vo ORDER BY a;
-- OLD and NEW in RETURNING.
CREATE TABLE r (id int PRIMARY KEY, k int UNIQUE, x text);
INSERT INTO r SELECT i, i * 10, 'x' || i FROM generate_series(1, 400) i;
\warm r
UPDATE r SET x = 'y', k = k + 1 WHERE id IN (3, 4) RETURNING old.*, new.*, old.x || new.x;
DELETE FROM r WHERE id = 5 RETURNING old.*, new.*;
INSERT INTO r VALUES (6, 1, 'again'), (1_000, 2, 'fresh') ON CONFLICT (id) DO UPDATE SET x = excluded.x RETURNING old.id, old.x, new.id, new.x;
MERGE INTO r USING (VALUES (7), (8), (2_000)) m (id) ON m.id = r.id WHEN MATCHED AND m.id = 7 THEN DELETE WHEN MATCHED THEN UPDATE SET x = 'merged' WHEN NOT MATCHED THEN INSERT VALUES (m.id, -m.id, 'inserted') RETURNING merge_action(), old, new;
UPDATE r SET x = new_x.x FROM (VALUES (9, 'nine')) new_x (id, x) WHERE r.id = new_x.id RETURNING WITH (OLD AS before, NEW AS after) before.x, after.x;
SELECT count(*), sum(k), md5(string_agg(x, '|' ORDER BY id)) FROM r;
-- Keys over time.
CREATE TABLE room (id int4range, during daterange, guest text, PRIMARY KEY (id, during WITHOUT OVERLAPS));
INSERT INTO room SELECT int4range(i, i + 1), daterange('2024-01-01', '2024-06-01'), 'g' || i FROM generate_series(1, 100) i;
\warm room
INSERT INTO room VALUES ('[5,6)', '[2024-05-01,2024-07-01)', 'overlaps');
INSERT INTO room VALUES ('[5,6)', '[2024-06-01,2024-07-01)', 'after');
INSERT INTO room VALUES ('[5,6)', 'empty', 'never');
INSERT INTO room VALUES ('[6,7)', '[2024-01-01,2024-02-01)', 'nothing') ON CONFLICT DO NOTHING;
UPDATE room SET during = '[2024-05-31,2024-07-01)' WHERE guest = 'after';
UPDATE room SET during = '[2024-03-01,2024-07-01)' WHERE guest = 'g7' RETURNING *;
SELECT * FROM room WHERE id = '[5,6)' ORDER BY during;
CREATE TABLE stay (id int, room int4range, during daterange, FOREIGN KEY (room, PERIOD during) REFERENCES room (id, PERIOD during));
INSERT INTO stay VALUES (1, '[5,6)', '[2024-05-15,2024-06-15)');
INSERT INTO stay VALUES (2, '[5,6)', '[2024-05-15,2024-08-15)');
\warm stay room
DELETE FROM room WHERE guest = 'after';
DELETE FROM room WHERE guest = 'g8';
UPDATE room SET during = '[2024-01-01,2024-05-20)' WHERE guest = 'g5';
UPDATE stay SET during = '[2024-05-16,2024-06-10)' WHERE id = 1;
SELECT count(*) FROM room;
CREATE TABLE booked (id int4range, during tstzmultirange, UNIQUE (id, during WITHOUT OVERLAPS));
INSERT INTO booked VALUES ('[1,2)', '{[2024-01-01,2024-02-01),[2024-03-01,2024-04-01)}');
\warm booked
INSERT INTO booked VALUES ('[1,2)', '{[2024-02-01,2024-03-01)}');
INSERT INTO booked VALUES ('[1,2)', '{[2024-03-05,2024-03-06)}');
-- NOT NULL constraints have names, may wait to be validated; constraints that are not enforced.
CREATE TABLE c (id int PRIMARY KEY, a int CONSTRAINT a_is_there NOT NULL, b int);
INSERT INTO c SELECT i, i, nullif(i % 50, 0) FROM generate_series(1, 300) i;
\warm c
INSERT INTO c VALUES (1_000, NULL, 1);
ALTER TABLE c ADD CONSTRAINT b_is_there NOT NULL b NOT VALID;
UPDATE c SET b = NULL WHERE id = 1;
UPDATE c SET a = 0 WHERE id = 50;
SELECT count(*) FROM c WHERE b IS NULL;
SELECT count(*) FROM c WHERE b IS NOT NULL;
ALTER TABLE c VALIDATE CONSTRAINT b_is_there;
UPDATE c SET b = 0 WHERE b IS NULL;
ALTER TABLE c VALIDATE CONSTRAINT b_is_there;
ALTER TABLE c ADD CONSTRAINT positive CHECK (b > 0) NOT ENFORCED;
INSERT INTO c VALUES (1_001, 1, -1);
SELECT count(*) FROM c WHERE b <= 0;
ALTER TABLE c ADD CONSTRAINT to_r FOREIGN KEY (id) REFERENCES r NOT ENFORCED;
ALTER TABLE c ALTER CONSTRAINT to_r ENFORCED;
ALTER TABLE c DROP CONSTRAINT a_is_there;
INSERT INTO c VALUES (1_002, NULL, 1);
SELECT conname, contype, convalidated FROM pg_constraint WHERE conrelid = 'c'::regclass ORDER BY conname;
-- min and max of bytes, arrays and rows; LIKE with a collation that is not deterministic.
CREATE TYPE pair AS (x int, y text);
CREATE TABLE m (id int PRIMARY KEY, b bytea, a int[], w pair);
INSERT INTO m SELECT i, decode(md5(i::text), 'hex'), ARRAY[i % 7, i], ROW (i % 3, 'y' || i)::pair FROM generate_series(1, 3_000) i;
\warm m
SELECT min(b), max(b), min(a), max(a), min(w), max(w) FROM m;
SELECT id % 2, min(b), max(a) FROM m GROUP BY 1 ORDER BY 1;
SELECT casefold(v) FROM t WHERE id = 25 AND length(v) < 100;
-- Leading columns that are skipped; parallel builds of GIN; COPY with a limit of errors.
CREATE TABLE k (a int, b int, c text[], PRIMARY KEY (a, b));
INSERT INTO k SELECT i % 5, i, ARRAY['w' || i % 20, 'z' || i] FROM generate_series(1, 20_000) i;
\warm k
SELECT * FROM k WHERE b = 7_777;
SET maintenance_work_mem = '64MB';
SET max_parallel_maintenance_workers = 2;
SET min_parallel_table_scan_size = 0;
ALTER TABLE k SET (parallel_workers = 2);
CREATE INDEX k_gin ON k USING gin (c);
SELECT count(*), sum(b) FROM k WHERE c @> '{w7}';
UPDATE k SET c = '{new}' WHERE b % 1_000 = 0;
SELECT count(*), sum(b) FROM k WHERE c @> '{new}';
CREATE INDEX k_brin ON k USING brin (b);
SELECT count(*) FROM k WHERE b BETWEEN 100 AND 200;
COPY d FROM PROGRAM 'printf "3000,a,1\nx,b,2\ny,c,3\n3003,d,4\n"' WITH (FORMAT csv, ON_ERROR ignore, REJECT_LIMIT 1);
SELECT count(*) FROM d WHERE id >= 3000;
