-- Every kind of type keeps its values, its order and its comparisons, nulls included.
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE t (
  id bigint PRIMARY KEY, b boolean, i2 smallint, i4 integer, i8 bigint, f4 real, f8 double precision,
  n numeric, n2 numeric(12,4), tx text, vc varchar(20), ch char(6), "C" text COLLATE "C", by bytea,
  d date, ti time, tz timetz, ts timestamp, tsz timestamptz, iv interval, u uuid, j json, jb jsonb,
  arr int[], tarr text[], inet inet, cidr cidr, mac macaddr, bits bit(5), vb varbit, r int4range, mr int4multirange,
  p point, bx box, m mood, c pair, dom positive, x xml, tsv tsvector, o oid, nm name, money money, lsn pg_lsn
);
INSERT INTO t (id) VALUES (0);
INSERT INTO t SELECT g, g % 3 = 0, g % 30000, -g, g * 10000000000, g / 7.0, g / 11.0,
  g / 13.0, g * 0.0001, 'text ' || g, 'v' || g, 'c' || g % 10, 'C' || g, decode(md5(g::text), 'hex'),
  date '2001-01-01' + g, time '00:00' + g * interval '1 second', timetz '00:00+02' + g * interval '1 second',
  timestamp '2001-01-01' + g * interval '1 hour', timestamptz '2001-01-01 00:00+01' + g * interval '1 day', g * interval '1 minute 1 month',
  md5(g::text)::uuid, json_build_object('a', g), jsonb_build_object('a', g, 'b', array[g]),
  array[g, null, g + 1], array['x', null, g::text], inet '10.0.0.0' + g, cidr '10.1.0.0/16', macaddr '08:00:2b:01:02:03',
  (g % 32)::bit(5), B'101', int4range(g, g + 5), int4multirange(int4range(g, g + 2), int4range(g + 9, g + 10)),
  point(g, -g), box(point(0, 0), point(g, g)), (array['sad', 'ok', 'happy'])[1 + g % 3]::mood, (g, 'p' || g)::pair, g,
  ('<a>' || g || '</a>')::xml, to_tsvector('simple', 'word' || g), g, 'n' || g, g::money, ('0/' || to_hex(g))::pg_lsn
FROM generate_series(1, 2000) g;
INSERT INTO t (id, f4, f8, n, d, ts, tsz, tx, by) VALUES
  (5001, 'NaN', 'NaN', 'NaN', 'infinity', 'infinity', 'infinity', '', ''),
  (5002, 'Infinity', 'Infinity', 'Infinity', '-infinity', '-infinity', '-infinity', E'\t\n\\', '\x00ff00'),
  (5003, '-Infinity', '-Infinity', '-Infinity', '4713-01-01 BC', '4713-01-01 00:00 BC', '4713-01-02 00:00+00 BC', 'ü€😀', '\x00'),
  (5004, '-0', '-0', '0.000', '5874897-12-31', '294276-12-31 23:59:59.999999', '294276-12-31 23:59:59.999999+00', repeat('long', 20000), decode(repeat('ab', 40000), 'hex')),
  (5005, 1e-40, 5e-324, 1e-300, '1582-10-15', '1970-01-01', '1970-01-01 00:00+00', 'A', 'A');
INSERT INTO t (id, f4, f8, n, d, tx, by) VALUES
  (5006, 3.4e38, 1.7e308, 1e1000, '0001-01-01', 'a', 'a'), (5007, 1, 1, 1.10, '2000-01-01', ' ', ' '), (5008, 1, 1, 1.1, '2000-01-01', 'a ', 'a ');
\warm t
SELECT count(*) FROM t;
SELECT * FROM t WHERE id < 4 ORDER BY id;
SELECT id, f4, f8, n, d, ts, tsz, md5(tx), md5(by) FROM t WHERE id > 5000 ORDER BY id;
SELECT id FROM t WHERE f8 = 'NaN' ORDER BY id;
SELECT id FROM t WHERE f8 > 1e300 ORDER BY id;
SELECT id FROM t WHERE f4 >= 'Infinity' ORDER BY id;
SELECT id FROM t WHERE f8 = 0 ORDER BY id;
SELECT id FROM t WHERE f8 < 0 ORDER BY id;
SELECT id FROM t WHERE n = 1.1 ORDER BY id;
SELECT id FROM t WHERE n > 1e500 ORDER BY id;
SELECT id FROM t WHERE n < 0.2 AND n > 0 ORDER BY id;
SELECT id, n FROM t WHERE n2 = 0.1 ORDER BY id;
SELECT id FROM t WHERE d = 'infinity' OR d = '-infinity' OR d < '0001-01-02' ORDER BY id;
SELECT id FROM t WHERE ts > '9999-01-01' ORDER BY id;
SELECT id FROM t WHERE tx > 'text 999' AND tx < 'text 9990' ORDER BY id;
SELECT id FROM t WHERE tx = 'ü€😀' OR tx = '' OR tx = ' ' ORDER BY id;
SELECT id FROM t WHERE "C" > 'C98' ORDER BY id LIMIT 20;
SELECT id FROM t WHERE ch = 'c5' ORDER BY id LIMIT 5;
SELECT id FROM t WHERE ch = 'c5    ' ORDER BY id LIMIT 5;
SELECT id FROM t WHERE vc LIKE 'v19%' ORDER BY id;
SELECT id FROM t WHERE tx ILIKE 'TEXT 77%' ORDER BY id;
SELECT id FROM t WHERE b AND i4 < -1990 ORDER BY id;
SELECT id FROM t WHERE NOT b AND id < 12 ORDER BY id;
SELECT id FROM t WHERE b IS NULL ORDER BY id;
SELECT id FROM t WHERE i4 IN (-5, -7, -100000) ORDER BY id;
SELECT id FROM t WHERE i8 BETWEEN 30000000000 AND 70000000000 ORDER BY id;
SELECT id FROM t WHERE u = md5('77')::uuid;
SELECT id FROM t WHERE by = decode(md5('78'), 'hex');
SELECT id FROM t WHERE by = '\x00ff00';
SELECT id FROM t WHERE d = '2002-02-02';
SELECT id FROM t WHERE tsz = '2001-01-11 00:00+01';
SELECT id FROM t WHERE iv = interval '5 minutes 5 months';
SELECT id FROM t WHERE iv > interval '30 years' AND id < 400 ORDER BY id;
SELECT id FROM t WHERE jb @> '{"a": 99}';
SELECT id FROM t WHERE arr @> array[101] ORDER BY id;
SELECT id FROM t WHERE arr[1] = 55;
SELECT id FROM t WHERE r @> 100 ORDER BY id;
SELECT id FROM t WHERE m = 'happy' AND id < 20 ORDER BY id;
SELECT id FROM t WHERE m > 'sad' AND id < 9 ORDER BY id;
SELECT id, (c).b FROM t WHERE (c).a = 12;
SELECT id FROM t WHERE c = (13, 'p13')::pair;
SELECT id FROM t WHERE tsv @@ 'word14'::tsquery;
SELECT id FROM t WHERE inet << '10.0.0.8/29' ORDER BY id;
SELECT id FROM t WHERE money = '21'::money;
SELECT min(f8), max(f8), min(n), max(n), min(d), max(d), min(ts), max(ts), min(tx), max(m) FROM t WHERE id <> 5004;
SELECT sum(i2), sum(i4), sum(i8), sum(n2), count(b), count(DISTINCT m), count(x) FROM t;
SELECT m, b, count(*), sum(i4), avg(n2) FROM t GROUP BY m, b ORDER BY m, b;
SELECT id FROM t WHERE tx IS NULL ORDER BY id;
SELECT count(*) FROM t WHERE j IS NOT NULL;
SELECT row_to_json(t)::text FROM t WHERE id = 42;
SELECT t FROM t WHERE id = 43;
UPDATE t SET f8 = f8 + 1, tx = tx || '!', arr = arr || 1, c.b = 'changed', jb = jb || '{"z": 1}' WHERE id BETWEEN 100 AND 105 RETURNING id, f8, tx, arr, c, jb;
UPDATE t SET tx = tx || 'x' WHERE id = 5004 RETURNING md5(tx);
UPDATE t SET dom = 0 WHERE id = 5;
UPDATE t SET vc = repeat('x', 21) WHERE id = 5;
SELECT md5(string_agg(t::text, '|' ORDER BY id)) FROM t;
\warm t
SELECT md5(string_agg(t::text, '|' ORDER BY id)) FROM t;
\hot t
SELECT md5(string_agg(t::text, '|' ORDER BY id)) FROM t;
