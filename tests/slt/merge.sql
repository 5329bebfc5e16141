-- MERGE with a warm target and with a warm source.
CREATE TABLE t (id int PRIMARY KEY, v text, n int);
CREATE TABLE s (id int PRIMARY KEY, v text, n int);
INSERT INTO t SELECT i, 't' || i, i FROM generate_series(1, 200) i;
INSERT INTO s SELECT i, 's' || i, i FROM generate_series(150, 250) i;
\warm t s
MERGE INTO t USING s ON s.id = t.id WHEN MATCHED AND s.id % 3 = 0 THEN DELETE WHEN MATCHED AND s.id % 3 = 1 THEN UPDATE SET v = s.v, n = t.n + s.n WHEN NOT MATCHED AND s.id % 2 = 0 THEN INSERT VALUES (s.id, s.v, s.n);
SELECT count(*), sum(n), md5(string_agg(t::text, '|' ORDER BY id)) FROM t;
MERGE INTO t USING s ON s.id = t.id WHEN MATCHED THEN UPDATE SET n = 0 WHEN NOT MATCHED THEN DO NOTHING;
SELECT count(*), sum(n) FROM t;
MERGE INTO t USING (SELECT 1 AS id FROM generate_series(1, 2)) d ON d.id = t.id WHEN MATCHED THEN UPDATE SET n = -1;
MERGE INTO t USING (SELECT i AS id FROM generate_series(1, 5) i) d ON d.id = t.id WHEN MATCHED THEN DELETE;
SELECT min(id), count(*) FROM t;
BEGIN;
MERGE INTO t USING s ON s.id = t.id WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'back', 1);
SELECT count(*), sum(n) FROM t;
ROLLBACK;
SELECT count(*), sum(n), md5(string_agg(t::text, '|' ORDER BY id)) FROM t;
