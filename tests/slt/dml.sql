-- INSERT, UPDATE and DELETE of warm rows, each alone and mixed, with everything that RETURNING and sub-selects can see.
CREATE TABLE t (id int PRIMARY KEY, k int, v text, w numeric DEFAULT 1.5, g int GENERATED ALWAYS AS (k * 2) STORED);
CREATE INDEX t_k ON t (k);
INSERT INTO t (id, k, v) SELECT i, i % 10, 'v' || i FROM generate_series(1, 1000) i;
\warm t
SELECT count(*), sum(id), sum(g) FROM t;
INSERT INTO t (id, k, v) VALUES (1001, 1, 'late') RETURNING *;
INSERT INTO t (id, k, v) VALUES (500, 1, 'twice');
INSERT INTO t (id, k, v) VALUES (1001, 1, 'twice');
UPDATE t SET v = 'u' WHERE id = 500 RETURNING *;
UPDATE t SET v = 'u2' WHERE id = 500 RETURNING *;
UPDATE t SET v = v || 'x', k = k + 1 WHERE k = 3 AND id < 100 RETURNING id, k, v, g;
UPDATE t SET id = id + 10000 WHERE id BETWEEN 20 AND 25 RETURNING id;
SELECT id FROM t WHERE id BETWEEN 15 AND 30 ORDER BY id;
UPDATE t SET id = 30 WHERE id = 31;
UPDATE t SET id = 31 WHERE id = 31 RETURNING id;
DELETE FROM t WHERE id = 600 RETURNING *;
DELETE FROM t WHERE id = 600 RETURNING *;
INSERT INTO t (id, k, v) VALUES (600, 6, 'back') RETURNING *;
DELETE FROM t WHERE k = 7 AND id > 900 RETURNING id;
SELECT * FROM t WHERE id BETWEEN 495 AND 505 ORDER BY id;
SELECT k, count(*), min(v), max(v) FROM t GROUP BY k ORDER BY k;
SELECT * FROM t WHERE k = 4 ORDER BY id LIMIT 10;
UPDATE t SET k = s.k FROM (SELECT id, k + 100 AS k FROM t WHERE id BETWEEN 40 AND 50) s WHERE s.id = t.id RETURNING t.id, t.k;
DELETE FROM t USING t o WHERE t.id = o.id + 1 AND o.k = 100 RETURNING t.id;
WITH d AS (DELETE FROM t WHERE id BETWEEN 700 AND 705 RETURNING *) INSERT INTO t (id, k, v) SELECT id + 5000, k, 'moved' FROM d RETURNING id, k, v;
WITH u AS (UPDATE t SET v = 'cte' WHERE id = 710 RETURNING id) SELECT t.v FROM t JOIN u USING (id);
UPDATE t SET v = 'same' WHERE id IN (SELECT id FROM t WHERE id BETWEEN 720 AND 722) RETURNING id;
UPDATE t SET (k, v) = (SELECT max(k), 'sub' FROM t) WHERE id = 730 RETURNING *;
UPDATE t SET w = DEFAULT, v = NULL WHERE id = 731 RETURNING *;
UPDATE t SET g = 1 WHERE id = 731;
UPDATE t SET k = 1 / (id - 733) WHERE id BETWEEN 732 AND 734;
SELECT * FROM t WHERE id BETWEEN 730 AND 735 ORDER BY id;
DELETE FROM t WHERE id = (SELECT min(id) FROM t) RETURNING id;
SELECT count(*), sum(id), sum(k), sum(length(v)) FROM t;
INSERT INTO t (id, k, v) SELECT i, i % 10, 'n' || i FROM generate_series(2001, 2100) i;
\warm t
SELECT count(*), sum(id), sum(k), sum(length(v)) FROM t;
INSERT INTO t (id, k, v) VALUES (2050, 1, 'twice');
INSERT INTO t (id, k, v) VALUES (702, 1, 'free again') RETURNING id;
UPDATE t SET k = -k WHERE id % 7 = 0;
DELETE FROM t WHERE id % 11 = 0;
SELECT md5(string_agg(t::text, '|' ORDER BY id)), count(*) FROM t;
UPDATE t SET v = 'all';
SELECT count(*), min(v), max(v) FROM t;
DELETE FROM t;
SELECT count(*) FROM t;
INSERT INTO t (id, k, v) SELECT i, 0, 'again' FROM generate_series(1, 10) i;
SELECT * FROM t ORDER BY id;
VACUUM t;
SELECT * FROM t ORDER BY id;
ANALYZE t;
\warm t
SELECT * FROM t ORDER BY id;
\hot t
SELECT * FROM t ORDER BY id;
-- Large values of rows that this transaction itself promotes, and changes in the same command.
CREATE TABLE big (id int, n int DEFAULT 0, v text, w text);
ALTER TABLE big ALTER v SET STORAGE EXTERNAL, ALTER w SET STORAGE EXTERNAL;
INSERT INTO big SELECT i, 0, repeat('v' || i, 5000), CASE WHEN i % 3 > 0 THEN repeat('w' || i, 3000) END FROM generate_series(1, 9) i;
\warm big
BEGIN;
LOCK TABLE big IN SHARE MODE;
SELECT id FROM big ORDER BY id FOR UPDATE;
UPDATE big SET n = n + 1, v = v || '.' RETURNING id, n, md5(v), md5(w);
UPDATE big SET n = n + 1 RETURNING id, n, md5(v), md5(w);
COMMIT;
\warm big
BEGIN;
LOCK TABLE big IN SHARE MODE;
UPDATE big SET n = n + 1, v = v || '.', w = 'short' RETURNING id, n, md5(v), md5(w);
DELETE FROM big WHERE id < 4 RETURNING id;
COMMIT;
SELECT id, n, md5(v), md5(w) FROM big ORDER BY id;
