-- Prepared statements with custom and generic plans; parameters in pruning; plans that outlive moves of the table.
CREATE TABLE t (id int PRIMARY KEY, k int, d date, v text);
INSERT INTO t SELECT i, i % 10, date '2001-01-01' + i / 10, 'v' || i FROM generate_series(1, 2000) i;
PREPARE by_id (int) AS SELECT * FROM t WHERE id = $1;
PREPARE by_d (date, date) AS SELECT count(*), sum(k), min(v) FROM t WHERE d BETWEEN $1 AND $2;
PREPARE up (int, text) AS UPDATE t SET v = $2 WHERE id = $1 RETURNING *;
PREPARE del (int) AS DELETE FROM t WHERE id = $1 RETURNING *;
PREPARE many (int[]) AS SELECT id, v FROM t WHERE id = ANY ($1) ORDER BY id;
EXECUTE by_id(5);
EXECUTE by_d('2001-01-05', '2001-01-10');
\warm t
EXECUTE by_id(5);
EXECUTE by_d('2001-01-05', '2001-01-10');
EXECUTE by_d('2001-03-01', '2001-02-01');
EXECUTE by_d(NULL, '2001-02-01');
SET plan_cache_mode = force_generic_plan;
EXECUTE by_id(6);
EXECUTE by_id(NULL);
EXECUTE by_id(100000);
EXECUTE by_d('2001-01-05', '2001-01-10');
EXECUTE by_d('2001-06-05', '2001-06-10');
EXECUTE by_d(NULL, '2001-02-01');
EXECUTE up(7, 'generic');
EXECUTE up(7, 'generic again');
EXECUTE del(8);
EXECUTE del(8);
EXECUTE many('{1,2,3,7,8,9,2000,2001,NULL}');
SET plan_cache_mode = force_custom_plan;
EXECUTE many('{1,2,3,7,8,9,2000,2001,NULL}');
EXECUTE up(10, 'custom');
\hot t
EXECUTE by_id(7);
EXECUTE by_id(8);
EXECUTE up(11, 'hot');
\warm t
EXECUTE by_id(11);
EXECUTE many('{10,11,12}');
ALTER TABLE t ADD COLUMN extra int DEFAULT 3;
EXECUTE by_id(12);
DEALLOCATE by_id;
PREPARE by_id (int) AS SELECT * FROM t WHERE id = $1;
EXECUTE by_id(12);
