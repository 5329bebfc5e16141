-- Visibility inside and across transactions: rollback, savepoints, snapshots of other sessions, prepared transactions.
CREATE TABLE t (id int PRIMARY KEY, v text);
INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 300) i;
\warm t
BEGIN;
UPDATE t SET v = 'x' WHERE id = 1;
DELETE FROM t WHERE id = 2;
INSERT INTO t VALUES (301, 'new');
SELECT * FROM t WHERE id IN (1, 2, 3, 301) ORDER BY id;
ROLLBACK;
SELECT * FROM t WHERE id IN (1, 2, 3, 301) ORDER BY id;
BEGIN;
UPDATE t SET v = 'a' WHERE id = 1;
SAVEPOINT s1;
UPDATE t SET v = 'b' WHERE id = 1;
DELETE FROM t WHERE id = 3;
SAVEPOINT s2;
DELETE FROM t WHERE id = 1;
INSERT INTO t VALUES (1, 'reborn');
SELECT * FROM t WHERE id <= 4 ORDER BY id;
ROLLBACK TO s2;
SELECT * FROM t WHERE id <= 4 ORDER BY id;
ROLLBACK TO s1;
SELECT * FROM t WHERE id <= 4 ORDER BY id;
UPDATE t SET v = 'c' WHERE id = 3;
RELEASE s1;
COMMIT;
SELECT * FROM t WHERE id <= 4 ORDER BY id;
BEGIN;
SAVEPOINT a;
UPDATE t SET v = 'promoted and rolled back' WHERE id BETWEEN 10 AND 20;
ROLLBACK TO a;
UPDATE t SET v = 'second' WHERE id BETWEEN 15 AND 25 RETURNING id;
SELECT 1 / 0;
SELECT 1;
COMMIT;
SELECT * FROM t WHERE id BETWEEN 9 AND 26 ORDER BY id;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM t;
\session 2
UPDATE t SET v = 'other' WHERE id = 100;
DELETE FROM t WHERE id = 101;
INSERT INTO t VALUES (400, 'other');
SELECT count(*) FROM t;
\session 1
SELECT count(*) FROM t;
SELECT * FROM t WHERE id IN (100, 101, 400) ORDER BY id;
UPDATE t SET v = 'mine' WHERE id = 100;
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM t;
\session 2
DELETE FROM t WHERE id = 102;
\session 1
DELETE FROM t WHERE id = 102;
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM t;
\session 2
UPDATE t SET v = 'locked out' WHERE id = 103;
\session 1
SELECT * FROM t WHERE id = 103 FOR UPDATE;
ROLLBACK;
BEGIN;
SELECT * FROM t WHERE id = 110 FOR UPDATE;
SELECT * FROM t WHERE id = 111 FOR SHARE;
\session 2
SELECT * FROM t WHERE id = 110 FOR UPDATE NOWAIT;
SELECT * FROM t WHERE id = 111 FOR SHARE NOWAIT;
SELECT * FROM t WHERE id = 111 FOR UPDATE NOWAIT;
SELECT id FROM t WHERE id BETWEEN 109 AND 112 ORDER BY id FOR UPDATE SKIP LOCKED;
SELECT * FROM t WHERE id = 110;
\session 1
COMMIT;
\session 2
SELECT * FROM t WHERE id = 110 FOR UPDATE NOWAIT;
BEGIN;
UPDATE t SET v = 'prepared' WHERE id = 120;
DELETE FROM t WHERE id = 121;
PREPARE TRANSACTION '{side}_a';
SELECT * FROM t WHERE id IN (120, 121) ORDER BY id;
ROLLBACK PREPARED '{side}_a';
SELECT * FROM t WHERE id IN (120, 121) ORDER BY id;
BEGIN;
UPDATE t SET v = 'one' WHERE id = 130;
UPDATE t SET v = v || ' two' WHERE id = 130;
DELETE FROM t WHERE id = 130;
INSERT INTO t VALUES (130, 'three');
UPDATE t SET v = v || ' four' WHERE id = 130 RETURNING *;
COMMIT;
SELECT * FROM t WHERE id = 130;
SELECT md5(string_agg(t::text, '|' ORDER BY id)), count(*) FROM t;
\warm t
SELECT md5(string_agg(t::text, '|' ORDER BY id)), count(*) FROM t;
\session 1
SELECT md5(string_agg(t::text, '|' ORDER BY id)), count(*) FROM t;
