-- SERIALIZABLE: two sessions, read-write conflicts that must abort one of them, with and without indexes.
CREATE TABLE t (id int PRIMARY KEY, v int);
INSERT INTO t SELECT i, i FROM generate_series(1, 100) i;
\warm t
ANALYZE t;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT sum(v) FROM t WHERE id <= 10;
\session 2
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT sum(v) FROM t WHERE id <= 10;
UPDATE t SET v = v + 1 WHERE id = 1;
\session 1
UPDATE t SET v = v + 1 WHERE id = 2;
COMMIT;
\session 2
COMMIT;
ROLLBACK;
SELECT * FROM t WHERE id <= 3 ORDER BY id;
\session 1
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT sum(v) FROM t;
\session 2
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT sum(v) FROM t;
INSERT INTO t VALUES (201, 1);
\session 1
INSERT INTO t VALUES (202, 1);
COMMIT;
\session 2
COMMIT;
ROLLBACK;
SELECT count(*) FROM t;
\session 1
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT sum(v) FROM t;
\session 2
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT sum(v) FROM t;
DELETE FROM t WHERE id = 50;
\session 1
DELETE FROM t WHERE id = 60;
COMMIT;
\session 2
COMMIT;
ROLLBACK;
SELECT count(*), sum(v) FROM t;
\session 1
BEGIN ISOLATION LEVEL SERIALIZABLE;
UPDATE t SET v = 0 WHERE id = 70;
COMMIT;
SELECT count(*), sum(v) FROM t;
