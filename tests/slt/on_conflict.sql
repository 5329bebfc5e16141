-- ON CONFLICT and uniqueness against fragment rows, delta rows and both; deferrable and multi-column keys.
CREATE TABLE t (a int, b int, v text, n int DEFAULT 0, PRIMARY KEY (a, b));
CREATE UNIQUE INDEX t_v ON t (v);
INSERT INTO t SELECT i / 10, i % 10, 'v' || i FROM generate_series(0, 499) i;
\warm t
INSERT INTO t VALUES (1, 1, 'dup') ON CONFLICT DO NOTHING;
INSERT INTO t VALUES (1, 1, 'dup') ON CONFLICT (a, b) DO NOTHING RETURNING *;
INSERT INTO t VALUES (1, 1, 'dup') ON CONFLICT (a, b) DO UPDATE SET n = t.n + 1, v = excluded.v RETURNING *;
INSERT INTO t VALUES (1, 1, 'dup2') ON CONFLICT (a, b) DO UPDATE SET n = t.n + 1 RETURNING *;
INSERT INTO t VALUES (1, 2, 'x') ON CONFLICT (a, b) DO UPDATE SET n = 9 WHERE t.n > 100 RETURNING *;
INSERT INTO t VALUES (90, 1, 'v33') ON CONFLICT (v) DO UPDATE SET n = 77 RETURNING *;
INSERT INTO t VALUES (90, 1, 'v34') ON CONFLICT (a, b) DO NOTHING;
INSERT INTO t VALUES (90, 1, 'v34');
INSERT INTO t VALUES (2, 5, 'fresh');
INSERT INTO t VALUES (100, 1, 'p'), (100, 1, 'q') ON CONFLICT (a, b) DO UPDATE SET n = 1;
INSERT INTO t VALUES (100, 1, 'p'), (100, 1, 'q') ON CONFLICT (a, b) DO NOTHING RETURNING *;
INSERT INTO t SELECT a, b, v || '!', 1 FROM t WHERE a < 3 ON CONFLICT (a, b) DO UPDATE SET v = excluded.v, n = t.n + 1 RETURNING a, b, v, n;
SELECT count(*), sum(n) FROM t;
INSERT INTO t VALUES (NULL, 1, 'null key');
INSERT INTO t VALUES (101, 1, NULL), (101, 2, NULL) RETURNING *;
DELETE FROM t WHERE a = 7 AND b = 7 RETURNING v;
INSERT INTO t VALUES (7, 7, 'v77') ON CONFLICT DO NOTHING RETURNING *;
BEGIN;
DELETE FROM t WHERE a = 8;
INSERT INTO t SELECT 8, b, 'again' || b FROM generate_series(0, 9) b ON CONFLICT DO NOTHING RETURNING *;
ROLLBACK;
INSERT INTO t VALUES (8, 1, 'dup 8');
SELECT * FROM t WHERE a IN (1, 2, 7, 8) ORDER BY a, b;
CREATE TABLE d (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text);
INSERT INTO d SELECT i, 'v' || i FROM generate_series(1, 100) i;
\warm d
UPDATE d SET id = id + 1;
SELECT min(id), max(id), count(*) FROM d;
\warm d
BEGIN;
INSERT INTO d VALUES (50, 'twice');
SELECT count(*) FROM d WHERE id = 50;
COMMIT;
BEGIN;
INSERT INTO d VALUES (50, 'twice');
DELETE FROM d WHERE id = 50 AND v <> 'twice';
COMMIT;
SELECT * FROM d WHERE id BETWEEN 49 AND 51 ORDER BY id;
CREATE TABLE e (id int PRIMARY KEY, r int4range, EXCLUDE USING gist (r WITH &&));
INSERT INTO e SELECT i, int4range(i * 10, i * 10 + 5) FROM generate_series(1, 100) i;
\warm e
INSERT INTO e VALUES (200, int4range(52, 53));
INSERT INTO e VALUES (200, int4range(57, 58)) RETURNING *;
UPDATE e SET r = int4range(60, 62) WHERE id = 5;
CREATE TABLE p (id int, active boolean, v text);
CREATE UNIQUE INDEX p_active ON p (id) WHERE active;
CREATE UNIQUE INDEX p_lower ON p (lower(v));
INSERT INTO p SELECT i / 2, i % 2 = 0, 'Value' || i FROM generate_series(1, 100) i;
\warm p
INSERT INTO p VALUES (10, false, 'other');
INSERT INTO p VALUES (10, true, 'another');
INSERT INTO p VALUES (1000, true, 'VALUE7');
INSERT INTO p VALUES (10, true, 'another') ON CONFLICT (id) WHERE active DO UPDATE SET v = 'merged' RETURNING *;
INSERT INTO p VALUES (1000, true, 'VALUE9') ON CONFLICT (lower(v)) DO UPDATE SET v = 'merged 9' RETURNING *;
CREATE TABLE nn (a int, b int, UNIQUE NULLS NOT DISTINCT (a, b));
INSERT INTO nn VALUES (1, NULL), (2, 2), (NULL, NULL);
\warm nn
INSERT INTO nn VALUES (1, NULL);
INSERT INTO nn VALUES (NULL, NULL);
INSERT INTO nn VALUES (NULL, 1) RETURNING *;
INSERT INTO nn VALUES (2, 2) ON CONFLICT DO NOTHING;
SELECT * FROM nn ORDER BY a, b;
-- The arbiter decides before another unique index that comes first, which is violated as well.
CREATE TABLE two (key int, fruit text);
CREATE UNIQUE INDEX two_key ON two (key);
CREATE UNIQUE INDEX two_fruit ON two (fruit);
INSERT INTO two SELECT i, 'fruit' || i FROM generate_series(1, 20) i;
\warm two
INSERT INTO two VALUES (1, 'fruit1') ON CONFLICT (fruit) DO UPDATE SET fruit = excluded.fruit || '!' RETURNING *;
INSERT INTO two VALUES (2, 'fruit3') ON CONFLICT (fruit) DO UPDATE SET fruit = excluded.fruit || '!' RETURNING *;
INSERT INTO two VALUES (4, 'fruit5') ON CONFLICT (fruit) DO NOTHING RETURNING *;
INSERT INTO two VALUES (6, 'new') ON CONFLICT (fruit) DO NOTHING;
INSERT INTO two VALUES (30, 'fruit7') ON CONFLICT (key) DO NOTHING;
INSERT INTO two VALUES (8, 'fruit9') ON CONFLICT DO NOTHING RETURNING *;
BEGIN;
LOCK TABLE two IN SHARE MODE;
INSERT INTO two VALUES (10, 'fruit11') ON CONFLICT (fruit) DO UPDATE SET fruit = 'locked' RETURNING *;
INSERT INTO two VALUES (12, 'other') ON CONFLICT (fruit) DO NOTHING;
ROLLBACK;
BEGIN;
DELETE FROM two WHERE key = 13;
INSERT INTO two VALUES (13, 'fruit14') ON CONFLICT (fruit) DO UPDATE SET key = 99 RETURNING *;
INSERT INTO two VALUES (13, 'fruit13') ON CONFLICT (fruit) DO UPDATE SET key = 98 RETURNING *;
COMMIT;
SELECT * FROM two ORDER BY key;
-- A subquery of the same statement reads the table again after the row was found.
\warm two
BEGIN;
LOCK TABLE two IN SHARE MODE;
INSERT INTO two VALUES (1, 'a'), (3, 'b'), (5, 'c') ON CONFLICT (key) DO UPDATE SET (fruit, key) = (SELECT fruit || ' found', key FROM two i WHERE i.key = two.key) RETURNING *;
INSERT INTO two VALUES (16, 'a'), (18, 'b') ON CONFLICT (key) DO UPDATE SET fruit = (SELECT count(*) || min(fruit) FROM two i WHERE i.fruit > two.fruit) RETURNING *;
COMMIT;
SELECT * FROM two ORDER BY key;
CREATE TABLE more (a int PRIMARY KEY, b text);
INSERT INTO more VALUES (1, 'Boo'), (3, 'Zoo');
WITH aaa AS (SELECT 1 AS a, 'Foo' AS b) INSERT INTO more VALUES (1, 'Bar') ON CONFLICT (a) DO UPDATE SET (b, a) = (SELECT b, a FROM aaa) RETURNING *;
INSERT INTO more VALUES (1, 'Baz'), (3, 'Zaz') ON CONFLICT (a) DO UPDATE SET (b, a) = (SELECT b || ', Correlated', a FROM more i WHERE i.a = more.a) RETURNING *;
INSERT INTO more VALUES (1, 'Bat'), (3, 'Zot') ON CONFLICT (a) DO UPDATE SET (b, a) = (SELECT b || ', Excluded', a FROM more i WHERE i.a = excluded.a) RETURNING *;
-- The conflict is found before anything else of the new row is looked at.
CREATE TABLE strict (id int PRIMARY KEY, v text, n int, EXCLUDE USING btree (n WITH =));
CREATE INDEX strict_v ON strict (v);
CREATE INDEX strict_n ON strict ((100 / n));
CREATE UNIQUE INDEX strict_u ON strict (lower(v));
INSERT INTO strict SELECT i, 'v' || i, i FROM generate_series(1, 60) i;
\warm strict
INSERT INTO strict SELECT 7, string_agg(md5(i::text), ''), 0 FROM generate_series(1, 400) i ON CONFLICT (id) DO UPDATE SET n = strict.n + 1000 RETURNING id, n;
INSERT INTO strict SELECT 8, string_agg(md5(i::text), ''), 0 FROM generate_series(1, 400) i ON CONFLICT DO NOTHING;
INSERT INTO strict SELECT 61, string_agg(md5(i::text), ''), 61 FROM generate_series(1, 400) i ON CONFLICT (id) DO NOTHING;
INSERT INTO strict VALUES (9, 'v10', 9) ON CONFLICT (id) DO UPDATE SET n = 2000 RETURNING *;
INSERT INTO strict VALUES (62, 'v10', 62) ON CONFLICT (id) DO UPDATE SET n = 2000 RETURNING *;
INSERT INTO strict VALUES (62, 'w', 11) ON CONFLICT (id) DO UPDATE SET n = 2000 RETURNING *;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM strict;
INSERT INTO strict VALUES (20, 'x', 20), (21, 'y', 21) ON CONFLICT DO NOTHING RETURNING *;
INSERT INTO strict VALUES (20, 'x', 20), (63, 'y', 63) ON CONFLICT (id) DO UPDATE SET v = 'z' || excluded.id RETURNING *;
DELETE FROM strict WHERE id = 22;
INSERT INTO strict VALUES (22, 'back', 22) ON CONFLICT (id) DO UPDATE SET v = 'no' RETURNING *;
INSERT INTO strict VALUES (22, 'back', 22), (22, 'back', 22) ON CONFLICT (id) DO UPDATE SET v = 'twice' RETURNING *;
COMMIT;
INSERT INTO strict SELECT i, 'p' || i, i FROM generate_series(30, 70) i ON CONFLICT (id) DO UPDATE SET v = excluded.v WHERE strict.n % 2 = 0 RETURNING *;
SELECT * FROM strict ORDER BY id;
-- Values that are equal and have other bytes.
CREATE TABLE blank (c bpchar PRIMARY KEY, d char(5) UNIQUE);
INSERT INTO blank VALUES ('a', 'a'), ('b ', 'b ');
\warm blank
INSERT INTO blank VALUES ('a ', 'x');
INSERT INTO blank VALUES ('x', 'b');
INSERT INTO blank VALUES ('b', 'y') ON CONFLICT (c) DO UPDATE SET d = 'found' RETURNING *;
SELECT c, d, octet_length(c) FROM blank WHERE c = 'a  ' OR d = 'found';
-- An index that becomes a deferrable constraint.
CREATE TABLE later (id int, k int, v text);
INSERT INTO later SELECT i, i, 'v' || i FROM generate_series(1, 300) i;
CREATE UNIQUE INDEX later_k ON later (k);
CREATE UNIQUE INDEX later_id ON later (id);
\warm later
ALTER TABLE later ADD CONSTRAINT later_c UNIQUE USING INDEX later_k DEFERRABLE, ADD CONSTRAINT later_p PRIMARY KEY USING INDEX later_id;
SET enable_seqscan = off;
SELECT * FROM later WHERE k = 50;
SELECT * FROM later WHERE id = 50;
INSERT INTO later VALUES (301, 50, 'twice');
UPDATE later SET k = k + 1;
SELECT * FROM later WHERE k = 50;
RESET enable_seqscan;
