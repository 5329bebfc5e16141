-- Row and statement triggers on warm rows see what they would see on heap; rules and transition tables as well.
CREATE TABLE t (id int PRIMARY KEY, v text, n int);
CREATE TABLE log (seq int GENERATED ALWAYS AS IDENTITY, what text, old text, new text);
INSERT INTO t SELECT i, 'v' || i, i FROM generate_series(1, 100) i;
\warm t
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO log (what, old, new) VALUES (TG_WHEN || ' ' || TG_OP || ' ' || TG_LEVEL, CASE WHEN TG_OP <> 'INSERT' THEN old::text END, CASE WHEN TG_OP <> 'DELETE' THEN new::text END);
  IF TG_OP = 'DELETE' THEN RETURN old; END IF;
  RETURN new;
END
$$;
CREATE FUNCTION skip_or_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF new.n = 13 THEN RETURN NULL; END IF;
  new.v := upper(new.v);
  RETURN new;
END
$$;
CREATE FUNCTION transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO log (what, old, new) SELECT 'statement', (SELECT string_agg(id::text, ',' ORDER BY id) FROM o), (SELECT string_agg(v, ',' ORDER BY id) FROM n);
  RETURN NULL;
END
$$;
CREATE TRIGGER b BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER c BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION skip_or_change();
CREATE TRIGGER a AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER s AFTER UPDATE ON t REFERENCING OLD TABLE AS o NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION transition();
UPDATE t SET v = 'changed' WHERE id IN (11, 12, 13) RETURNING *;
DELETE FROM t WHERE id = 14 RETURNING *;
INSERT INTO t VALUES (101, 'new', 13) RETURNING *;
UPDATE t SET v = 'again' WHERE id = 11 RETURNING *;
INSERT INTO t VALUES (15, 'conflict', 0) ON CONFLICT (id) DO UPDATE SET v = 'on conflict' RETURNING *;
SELECT what, old, new FROM log ORDER BY seq;
SELECT * FROM t WHERE id BETWEEN 10 AND 16 ORDER BY id;
DROP TRIGGER b ON t;
DROP TRIGGER a ON t;
CREATE CONSTRAINT TRIGGER k AFTER UPDATE ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note();
TRUNCATE log;
BEGIN;
UPDATE t SET n = n + 1 WHERE id = 20;
UPDATE t SET n = n + 1 WHERE id = 20;
SELECT count(*) FROM log;
COMMIT;
SELECT what, old, new FROM log ORDER BY seq;
CREATE FUNCTION touch_same_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  UPDATE t SET n = -1 WHERE id = old.id;
  RETURN new;
END
$$;
CREATE TRIGGER z BEFORE UPDATE ON t FOR EACH ROW WHEN (new.v = 'TOUCH') EXECUTE FUNCTION touch_same_row();
UPDATE t SET v = 'touch' WHERE id = 30;
SELECT * FROM t WHERE id = 30;
CREATE RULE r AS ON DELETE TO t WHERE old.id = 40 DO INSTEAD NOTHING;
DELETE FROM t WHERE id IN (40, 41) RETURNING id;
DELETE FROM t WHERE id IN (40, 41);
SELECT id FROM t WHERE id BETWEEN 39 AND 42 ORDER BY id;
CREATE TABLE large (id int, n int DEFAULT 0, v text);
ALTER TABLE large ALTER v SET STORAGE EXTERNAL;
CREATE FUNCTION change_large() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  new.v := new.v || '.';
  RETURN new;
END
$$;
CREATE TRIGGER change_large BEFORE UPDATE ON large FOR EACH ROW EXECUTE FUNCTION change_large();
INSERT INTO large SELECT i, 0, repeat('v' || i, 5000) FROM generate_series(1, 9) i;
\warm large
BEGIN;
LOCK TABLE large IN SHARE MODE;
UPDATE large SET n = n + 1 RETURNING id, n, md5(v);
COMMIT;
SELECT id, n, md5(v) FROM large ORDER BY id;
