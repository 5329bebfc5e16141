-- Bulk paths: COPY FROM and TO through files, INSERT SELECT, sequences, SELECT INTO, toast, large rows.
CREATE TABLE t (id bigserial PRIMARY KEY, v text, big text);
INSERT INTO t (v, big) SELECT 'v' || i, CASE WHEN i % 50 = 0 THEN repeat(md5(i::text), 2000) END FROM generate_series(1, 500) i;
\warm t
COPY (SELECT * FROM t ORDER BY id) TO '/dev/null';
COPY t (v) FROM PROGRAM 'seq 1 2000';
SELECT count(*), max(id), sum(length(v)), sum(length(big)) FROM t;
COPY t FROM PROGRAM 'echo 7,dup,x' WITH (FORMAT csv);
COPY t FROM PROGRAM 'echo bad,dup,x' WITH (FORMAT csv);
SELECT count(*) FROM t;
INSERT INTO t (v, big) SELECT v, big FROM t WHERE big IS NOT NULL;
SELECT count(*), sum(length(big)), md5(string_agg(big, '|' ORDER BY id)) FROM t;
UPDATE t SET v = 'toast stays' WHERE id = 50 RETURNING md5(big);
UPDATE t SET big = big || 'x' WHERE id = 100 RETURNING length(big);
DELETE FROM t WHERE id = 150 RETURNING length(big);
SELECT id, substr(big, 31990, 20) FROM t WHERE big IS NOT NULL AND id < 300 ORDER BY id;
\warm t
SELECT id, substr(big, 31990, 20) FROM t WHERE big IS NOT NULL AND id < 300 ORDER BY id;
SELECT count(*), sum(length(big)), md5(string_agg(big, '|' ORDER BY id)) FROM t;
SELECT * INTO t2 FROM t WHERE id < 20;
SELECT count(*) FROM t2;
CREATE TABLE wide AS SELECT i AS id, repeat('w', i * 100) AS a, repeat('x', i * 37) AS b FROM generate_series(1, 100) i;
\warm wide
SELECT sum(length(a)), sum(length(b)) FROM wide;
UPDATE wide SET a = b, b = a WHERE id > 90 RETURNING length(a), length(b);
SELECT md5(string_agg(wide::text, '|' ORDER BY id)) FROM wide;
CREATE TABLE none ();
INSERT INTO none DEFAULT VALUES;
INSERT INTO none DEFAULT VALUES;
\warm none
SELECT count(*) FROM none;
DELETE FROM none;
SELECT count(*) FROM none;
CREATE TABLE empty (id int PRIMARY KEY);
\warm empty
SELECT * FROM empty;
INSERT INTO empty VALUES (1);
SELECT * FROM empty;
\warm empty
\warm empty
SELECT * FROM empty;
