-- System columns as far as they mean the same: tableoid, ctid as a handle, xmin and xmax of this transaction's changes.
CREATE TABLE t (id int PRIMARY KEY, v text);
INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 100) i;
\warm t
INSERT INTO t VALUES (101, 'delta');
SELECT tableoid::regclass, count(*) FROM t GROUP BY 1;
SELECT count(DISTINCT ctid) FROM t;
SELECT t.id FROM t, t u WHERE t.ctid = u.ctid AND u.id IN (3, 101) ORDER BY 1;
SELECT id FROM t WHERE ctid = (SELECT ctid FROM t WHERE id = 7);
SELECT id FROM t WHERE ctid = ANY (ARRAY(SELECT ctid FROM t WHERE id IN (8, 9, 101))) ORDER BY id;
UPDATE t SET v = 'by ctid' WHERE ctid = (SELECT ctid FROM t WHERE id = 10) RETURNING id, v;
DELETE FROM t WHERE ctid = (SELECT ctid FROM t WHERE id = 11) RETURNING id, v;
DELETE FROM t WHERE id = 12 RETURNING id, tableoid::regclass, xmax = pg_current_xact_id()::xid AS xmax;
DELETE FROM t WHERE id BETWEEN 13 AND 15 RETURNING id, xmax = pg_current_xact_id()::xid AS xmax;
DELETE FROM t WHERE id = 101 RETURNING id, xmax = pg_current_xact_id()::xid AS xmax;
UPDATE t SET v = 'x' WHERE id = 20 RETURNING id, xmin = pg_current_xact_id()::xid AS xmin, xmax;
INSERT INTO t VALUES (102, 'n') RETURNING id, xmin = pg_current_xact_id()::xid AS xmin, xmax;
BEGIN;
SELECT id FROM t WHERE id = 21 FOR UPDATE;
SELECT id, xmax = pg_current_xact_id_if_assigned()::xid AS locked FROM t WHERE id = 21;
DELETE FROM t WHERE id = 21 RETURNING id, xmax = pg_current_xact_id()::xid AS xmax;
UPDATE t SET v = 'y' WHERE id = 22;
DELETE FROM t WHERE id = 22 RETURNING id, v, xmax = pg_current_xact_id()::xid AS xmax;
ROLLBACK;
CREATE TABLE seen (id int, x boolean);
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO seen VALUES (OLD.id, true);
  RETURN NULL;
END
$$;
CREATE TRIGGER see AFTER DELETE ON t FOR EACH ROW EXECUTE FUNCTION see();
DELETE FROM t WHERE id IN (30, 31, 102);
SELECT * FROM seen ORDER BY id;
SELECT xmin IS NULL, cmin IS NULL, xmax, cmax IS NULL FROM t WHERE id = 1;
SELECT count(*) FROM t WHERE xmax <> 0 AND id NOT IN (21, 22);
