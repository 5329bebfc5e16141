-- Cursors over warm rows: forward, backward, WITH HOLD, sensitive to nothing, WHERE CURRENT OF.
CREATE TABLE t (id int PRIMARY KEY, v text);
INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 500) i;
\warm t
INSERT INTO t SELECT i, 'v' || i FROM generate_series(501, 510) i;
BEGIN;
DECLARE c SCROLL CURSOR FOR SELECT * FROM t ORDER BY id;
FETCH 3 FROM c;
FETCH ABSOLUTE 400 FROM c;
FETCH BACKWARD 2 FROM c;
FETCH LAST FROM c;
FETCH PRIOR FROM c;
MOVE FIRST FROM c;
FETCH RELATIVE 10 FROM c;
DELETE FROM t WHERE id = 12;
FETCH NEXT FROM c;
FETCH NEXT FROM c;
COMMIT;
BEGIN;
DECLARE u CURSOR FOR SELECT * FROM t WHERE id = 77 FOR UPDATE;
FETCH NEXT FROM u;
UPDATE t SET v = 'current' WHERE CURRENT OF u RETURNING *;
COMMIT;
BEGIN;
DECLARE u CURSOR FOR SELECT * FROM t WHERE id = 78;
FETCH NEXT FROM u;
DELETE FROM t WHERE CURRENT OF u RETURNING *;
COMMIT;
SELECT * FROM t WHERE id IN (77, 78);
BEGIN;
DECLARE h CURSOR WITH HOLD FOR SELECT id FROM t WHERE id > 490 ORDER BY id;
FETCH 2 FROM h;
COMMIT;
DELETE FROM t WHERE id = 494;
FETCH ALL FROM h;
CLOSE h;
DO $$
DECLARE r record; s int := 0;
BEGIN
  FOR r IN SELECT * FROM t WHERE id BETWEEN 200 AND 220 ORDER BY id LOOP
    UPDATE t SET v = 'loop' WHERE id = r.id AND r.id % 2 = 0;
    s := s + r.id;
  END LOOP;
  RAISE NOTICE '%', s;
END
$$;
SELECT v, count(*) FROM t WHERE id BETWEEN 200 AND 220 GROUP BY v ORDER BY v;
BEGIN;
DECLARE b BINARY CURSOR FOR SELECT id FROM t WHERE id > 505 ORDER BY id;
CLOSE b;
DECLARE c NO SCROLL CURSOR FOR SELECT * FROM t ORDER BY id;
FETCH 1 FROM c;
FETCH PRIOR FROM c;
COMMIT;
-- Ranges of TIDs. A row is in one half or in the other, wherever it lies.
CREATE TABLE r (id int PRIMARY KEY, v text);
INSERT INTO r SELECT i, 'v' || i FROM generate_series(1, 1000) i;
\warm r
SET enable_seqscan = off;
SET strata.enable_warm_scan = off;
BEGIN;
DECLARE c SCROLL CURSOR FOR SELECT id FROM r WHERE ctid >= (SELECT ctid FROM r WHERE id = 600) AND ctid <= (SELECT ctid FROM r WHERE id = 620);
FETCH 5 FROM c;
FETCH ALL FROM c;
FETCH BACKWARD 30 FROM c;
FETCH 2 FROM c;
COMMIT;
INSERT INTO r SELECT i, 'v' || i FROM generate_series(1001, 1100) i;
UPDATE r SET v = 'moved' WHERE id BETWEEN 300 AND 310;
DELETE FROM r WHERE id BETWEEN 500 AND 510;
SELECT count(*), sum(id) FROM r WHERE ctid >= '(0,0)';
SELECT count(*) FROM r WHERE ctid < '(0,0)';
SELECT count(*) FROM r WHERE ctid > '(4294967294,1)';
SELECT sum(n) FROM (SELECT count(*) n FROM r WHERE ctid < (SELECT ctid FROM r WHERE id = 700)
  UNION ALL SELECT count(*) FROM r WHERE ctid >= (SELECT ctid FROM r WHERE id = 700)) halves;
SELECT sum(n) FROM (SELECT count(*) n FROM r WHERE ctid <= (SELECT ctid FROM r WHERE id = 1050)
  UNION ALL SELECT count(*) FROM r WHERE ctid > (SELECT ctid FROM r WHERE id = 1050)) halves;
SELECT id FROM r WHERE ctid > (SELECT min(ctid) FROM r WHERE id IN (620, 640)) AND ctid < (SELECT max(ctid) FROM r WHERE id IN (620, 640));
UPDATE r SET v = 'in range' WHERE ctid >= (SELECT ctid FROM r WHERE id = 800) AND ctid <= (SELECT ctid FROM r WHERE id = 805) RETURNING id;
DELETE FROM r WHERE ctid >= (SELECT ctid FROM r WHERE id = 900) AND ctid <= (SELECT ctid FROM r WHERE id = 905) RETURNING id;
SELECT count(*), sum(id) FROM r WHERE ctid >= '(0,0)';
RESET enable_seqscan;
RESET strata.enable_warm_scan;
SELECT count(*), sum(id) FROM r WHERE ctid >= '(0,0)';
