-- Every kind of index, built before the move, after it, and again; each is used and must find every row.
CREATE EXTENSION IF NOT EXISTS btree_gist;
CREATE TABLE t (id int PRIMARY KEY, a int, b text, c text COLLATE "C", arr int[], p point, tsv tsvector, r int4range, j jsonb);
CREATE INDEX t_a ON t (a);
CREATE INDEX t_ab ON t (a, b DESC NULLS FIRST) INCLUDE (c);
CREATE INDEX t_hash ON t USING hash (b);
CREATE INDEX t_gin ON t USING gin (arr);
CREATE INDEX t_gist ON t USING gist (p);
CREATE INDEX t_expr ON t (lower(b));
CREATE INDEX t_part ON t (c) WHERE a > 50;
INSERT INTO t SELECT i, i % 100, 'B' || i % 250, 'c' || i, array[i % 7, i % 11, i], point(i, i), to_tsvector('simple', 'w' || i % 20), int4range(i, i + 3), jsonb_build_object('k', i % 30) FROM generate_series(1, 2000) i;
INSERT INTO t (id) VALUES (2001), (2002);
\warm t
CREATE INDEX t_tsv ON t USING gin (tsv);
CREATE INDEX t_r ON t USING gist (r);
CREATE INDEX t_j ON t USING gin (j);
CREATE INDEX t_sp ON t USING spgist (p);
CREATE UNIQUE INDEX t_c ON t (c);
CREATE INDEX CONCURRENTLY t_cic ON t (b, a);
INSERT INTO t SELECT i, i % 100, 'B' || i % 250, 'c' || i, array[i % 7, i % 11, i], point(i, i), to_tsvector('simple', 'w' || i % 20), int4range(i, i + 3), jsonb_build_object('k', i % 30) FROM generate_series(3000, 3100) i;
UPDATE t SET a = a + 1 WHERE id % 50 = 0;
UPDATE t SET b = 'B7' WHERE id % 60 = 1;
DELETE FROM t WHERE id % 70 = 2;
SET enable_seqscan = off;
SELECT id FROM t WHERE a = 51 ORDER BY id;
SELECT a, count(*) FROM t WHERE a > 90 GROUP BY a ORDER BY a;
SELECT id, b FROM t WHERE a = 5 ORDER BY b DESC NULLS FIRST, id LIMIT 7;
SELECT a, b, c FROM t WHERE a = 6 AND b > 'B2' ORDER BY a, b DESC, c LIMIT 7;
SELECT id FROM t WHERE a IS NULL ORDER BY id;
SELECT id FROM t WHERE a BETWEEN 20 AND 21 AND b = 'B20' ORDER BY id;
SELECT id FROM t WHERE a IN (1, 99) AND id < 400 ORDER BY id;
SELECT id FROM t WHERE b = 'B7' ORDER BY id;
SELECT id FROM t WHERE lower(b) = 'b7' ORDER BY id;
SELECT id FROM t WHERE c > 'c19' AND a > 50 ORDER BY c LIMIT 10;
SELECT id FROM t WHERE c = 'c1234';
SELECT id FROM t WHERE arr @> array[3, 5] ORDER BY id LIMIT 20;
SELECT id FROM t WHERE p <@ box(point(10, 10), point(20, 20)) ORDER BY id;
SELECT id FROM t ORDER BY p <-> point(100.2, 100.2), id LIMIT 5;
SELECT id FROM t WHERE tsv @@ 'w3'::tsquery ORDER BY id LIMIT 20;
SELECT id FROM t WHERE r && int4range(55, 57) ORDER BY id;
SELECT id FROM t WHERE j @> '{"k": 4}' ORDER BY id LIMIT 20;
SELECT id FROM t ORDER BY id DESC LIMIT 5;
SELECT max(a), min(c) FROM t;
SELECT id FROM t WHERE id BETWEEN 1990 AND 3005 ORDER BY id;
SELECT id FROM t WHERE a = 30 AND arr @> array[2] ORDER BY id;
SELECT id FROM t WHERE a = 30 OR arr @> array[1000] ORDER BY id;
SET enable_indexscan = off;
SELECT id FROM t WHERE a = 51 ORDER BY id;
SELECT id FROM t WHERE b = 'B7' ORDER BY id;
SELECT id FROM t WHERE a = 30 OR arr @> array[1000] ORDER BY id;
SELECT id FROM t WHERE p <@ box(point(10, 10), point(20, 20)) ORDER BY id;
RESET enable_indexscan;
REINDEX TABLE t;
SELECT id FROM t WHERE a = 51 ORDER BY id;
SELECT id FROM t WHERE b = 'B7' ORDER BY id;
SELECT id FROM t WHERE arr @> array[3, 5] ORDER BY id LIMIT 20;
VACUUM t;
SELECT id FROM t WHERE a = 51 ORDER BY id;
SELECT id FROM t WHERE b = 'B7' ORDER BY id;
SELECT id FROM t WHERE arr @> array[3, 5] ORDER BY id LIMIT 20;
SELECT id FROM t WHERE lower(b) = 'b7' ORDER BY id;
DROP INDEX t_cic;
REINDEX INDEX CONCURRENTLY t_a;
SELECT id FROM t WHERE a = 51 ORDER BY id;
\warm t
SELECT id FROM t WHERE a = 51 ORDER BY id;
SELECT id FROM t WHERE b = 'B7' ORDER BY id;
SELECT id FROM t WHERE arr @> array[3, 5] ORDER BY id LIMIT 20;
SELECT id FROM t WHERE p <@ box(point(10, 10), point(20, 20)) ORDER BY id;
INSERT INTO t (id, c) VALUES (9000, 'c1234');
INSERT INTO t (id, c) VALUES (9000, 'c2') RETURNING id;
CREATE UNIQUE INDEX t_dup ON t (b);
VACUUM FULL t;
SELECT id FROM t WHERE a = 51 ORDER BY id;
SELECT count(*) FROM t;
CLUSTER t USING t_a;
SELECT id FROM t WHERE b = 'B7' ORDER BY id;
SELECT count(*) FROM t;
-- What goes wrong inside an index expression says where.
CREATE TABLE e (id int, v text);
INSERT INTO e SELECT i, 'v' || i FROM generate_series(-50, 50) i;
CREATE FUNCTION inverse(x int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
  RETURN 1 / x;
END
$$;
CREATE FUNCTION inner_query(x int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
  RETURN (SELECT no_such_column FROM pg_class LIMIT 1);
END
$$;
CREATE INDEX e_inverse ON e (inverse(id));
CREATE INDEX e_inner ON e (inner_query(id));
\warm e
CREATE INDEX e_inverse ON e (inverse(id));
CREATE INDEX e_inner ON e (inner_query(id));
CREATE INDEX e_inverse ON e (id) WHERE inverse(id) = 1;
DELETE FROM e WHERE id = 0;
-- An index has rows that some snapshot of another session may still see.
DO $$ BEGIN FOR i IN 1..6000 LOOP PERFORM pg_stat_clear_snapshot(); EXIT WHEN NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL); PERFORM pg_sleep(0.01); END LOOP; END $$;
CREATE INDEX e_inverse ON e (inverse(id));
INSERT INTO e VALUES (0, 'zero');
UPDATE e SET id = 0 WHERE id = 7;
INSERT INTO e VALUES (-1, 'twice');
CREATE UNIQUE INDEX e_unique ON e (id);
CREATE UNIQUE INDEX e_unique ON e (inverse(id));
-- Exclusion constraints in a btree, also deferred ones.
CREATE TABLE x (a int, b text, CONSTRAINT x_a EXCLUDE (a WITH =) INITIALLY DEFERRED);
ALTER TABLE x ADD CONSTRAINT x_b EXCLUDE (b WITH =);
INSERT INTO x SELECT i, 'b' || i FROM generate_series(1, 10) i;
\warm x
INSERT INTO x VALUES (1, 'new');
INSERT INTO x VALUES (11, 'b2');
INSERT INTO x VALUES (12, 'b3') ON CONFLICT DO NOTHING;
INSERT INTO x VALUES (12, 'b3') ON CONFLICT ON CONSTRAINT x_b DO NOTHING;
BEGIN;
INSERT INTO x VALUES (4, 'for now');
DELETE FROM x WHERE b = 'b4';
COMMIT;
BEGIN;
UPDATE x SET a = 5 WHERE a = 6;
COMMIT;
ALTER TABLE x DROP CONSTRAINT x_a;
UPDATE x SET a = 3;
ALTER TABLE x ADD EXCLUDE (a WITH =);
SELECT * FROM x ORDER BY b;
-- An index whose unique build has failed is left alone by VACUUM FULL.
CREATE UNIQUE INDEX CONCURRENTLY x_invalid ON x (a);
\warm x
VACUUM FULL x;
SELECT indisvalid FROM pg_index WHERE indexrelid = 'x_invalid'::regclass;
REINDEX INDEX x_invalid;
CREATE TABLE late (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, a int UNIQUE DEFERRABLE, v text);
INSERT INTO late SELECT i, i, 'v' || i FROM generate_series(1, 200) i;
\warm late
SET enable_seqscan = off;
SELECT count(*) FROM late WHERE id = 50;
SELECT count(*) FROM late WHERE a = 50;
INSERT INTO late VALUES (50, 1000, 'twice');
INSERT INTO late VALUES (1000, 50, 'twice');
UPDATE late SET id = id + 1, a = a - 1;
\warm late
SELECT id, a FROM late WHERE id IN (2, 51, 201) OR a IN (0, 7) ORDER BY id;
INSERT INTO late VALUES (51, 1000, 'twice');
RESET enable_seqscan;
-- Rows that a btree cannot hold, in fragments too; what compression makes small enough is held.
CREATE TABLE big (id int PRIMARY KEY, v text, w text);
INSERT INTO big SELECT i, 'v' || i, repeat('x', 20000) || i FROM generate_series(1, 50) i;
INSERT INTO big SELECT 51, string_agg(md5(i::text), ''), 'w' FROM generate_series(1, 100) i;
\warm big
CREATE INDEX big_w ON big (w);
CREATE INDEX big_v ON big (v);
CREATE INDEX big_wv ON big (w) INCLUDE (id, v);
CREATE UNIQUE INDEX big_u ON big (v);
CREATE INDEX CONCURRENTLY big_c ON big (v);
DROP INDEX big_c;
CREATE INDEX big_h ON big USING hash (v);
UPDATE big SET w = w || 'y' WHERE id IN (1, 51);
SELECT count(*), min(id) FROM big WHERE w = repeat('x', 20000) || '17';
DELETE FROM big WHERE id = 51;
\warm big
CREATE INDEX big_v ON big (v);
UPDATE big SET id = id + 100;
SELECT id FROM big WHERE v = 'v17';
