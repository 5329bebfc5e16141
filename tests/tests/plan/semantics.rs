//! Comparisons, nulls, order and equality as PostgreSQL has them, in filters that fragments answer, in look-ups and in
//! aggregates over decoded blocks: types with values at the edge of their range, on a heap twin.

use super::{MODES, change, cluster, in_all_modes, in_modes, same};
use postgres::Client;
use strata_tests::{checks, script, twin};

/// Columns whose types compare in ways of their own.
const COLUMNS: &str =
    "(id int PRIMARY KEY, gone int, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric, nn numeric(10,2),
     dm posint, dn money2, dt word, bp char(5), vc varchar(20), en text COLLATE \"en-x-icu\", ci text COLLATE nocase,
     cc text COLLATE \"C\", nm name, ts timestamp, tz timestamptz, d date, tm time, tt timetz, iv interval,
     o oid, ch \"char\", x bool, y bytea, u uuid, e size, arr int[], rec pair, js jsonb,
     gen int GENERATED ALWAYS AS (i4 % 10 * 2) STORED)";

const ROWS: &str = "SELECT i, 0,
     CASE i % 7 WHEN 0 THEN 32767 WHEN 1 THEN -32768 WHEN 2 THEN NULL ELSE i % 11 END,
     CASE i % 9 WHEN 0 THEN 2147483647 WHEN 1 THEN -2147483648 WHEN 2 THEN NULL ELSE i % 13 - 6 END,
     CASE i % 8 WHEN 0 THEN 9223372036854775807 WHEN 1 THEN (-9223372036854775807)::bigint - 1 WHEN 2 THEN NULL ELSE i % 13 - 6 END,
     (ARRAY['NaN','-0','0','Infinity','-Infinity','1.5','-1.5',NULL,'1e-45','3.4e38'])[i % 10 + 1]::float4,
     (ARRAY['-0','NaN','0','Infinity','-Infinity','0.1',NULL,'4.9e-324','-0.1','1.7e308','1'])[i % 11 + 1]::float8,
     (ARRAY['NaN','Infinity','-Infinity','0','0.00','1.0','1.00','-1e-50','1e60',NULL,'0.1','12345678901234567890.5'])[i % 12 + 1]::numeric,
     CASE i % 10 WHEN 0 THEN 'NaN' WHEN 1 THEN NULL WHEN 2 THEN -99999999.99 ELSE i % 7 - 3.25 END,
     i % 5 + 1, i % 6 - 2.50, 'w' || i % 4,
     (ARRAY['a','a  ','ab','B','',NULL])[i % 6 + 1],
     (ARRAY['a','a ','A','b','',NULL])[i % 6 + 1],
     (ARRAY['a','A','b','B','ä','z','',NULL])[i % 8 + 1],
     (ARRAY['a','A','b','B','ä','Ä','',NULL])[i % 8 + 1],
     (ARRAY['a','A','b','B','ä','z','',NULL,repeat('z', 200) || i, 'a' || chr(1)])[i % 10 + 1],
     'n' || i % 4,
     (ARRAY['-infinity','infinity','2000-01-01','1999-12-31 23:59:59.999999','4714-11-24 00:00 BC','294276-12-31 23:59:59',NULL,'2001-03-25 02:30'])[i % 8 + 1]::timestamp,
     (ARRAY['-infinity','infinity','2000-01-01 00:00+00','2001-03-25 02:30+00','2001-10-28 01:30+00',NULL,'4714-11-24 00:00+00 BC'])[i % 7 + 1]::timestamptz,
     (ARRAY['-infinity','infinity','2000-01-01','2001-03-25','4714-11-24 BC','5874897-12-31',NULL])[i % 7 + 1]::date,
     (ARRAY['00:00','24:00','12:30:00.000001',NULL])[i % 4 + 1]::time,
     (ARRAY['00:00+00','01:00+01','12:30-08',NULL])[i % 4 + 1]::timetz,
     (ARRAY['1 month','30 days','720 hours','-1 day',NULL])[i % 5 + 1]::interval,
     (ARRAY[0, 1, 4294967295, 3000000000, NULL])[i % 5 + 1]::oid,
     (ARRAY['a','', E'b', NULL])[i % 4 + 1]::\"char\",
     (ARRAY[true, false, NULL])[i % 3 + 1],
     (ARRAY['','\\x00','\\x0000','\\xff',NULL])[i % 5 + 1]::bytea,
     CASE WHEN i % 4 > 0 THEN md5((i % 9)::text)::uuid END,
     (ARRAY['small','large','middle',NULL])[i % 4 + 1]::size,
     CASE i % 4 WHEN 0 THEN NULL WHEN 1 THEN '{}' WHEN 2 THEN ARRAY[i % 3, NULL] ELSE ARRAY[i % 5] END,
     CASE i % 4 WHEN 0 THEN NULL WHEN 1 THEN ROW(NULL, NULL)::pair WHEN 2 THEN ROW(i % 3, NULL)::pair ELSE ROW(1, 'b')::pair END,
     CASE WHEN i % 3 > 0 THEN jsonb_build_object('k', i % 5) END
     FROM generate_series(1, 600) i";

fn create(c: &mut Client) {
    c.batch_execute(
        "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE DOMAIN posint AS int CHECK (VALUE > 0); CREATE DOMAIN money2 AS numeric(8,2); CREATE DOMAIN word AS text;
         CREATE TYPE size AS ENUM ('small', 'middle', 'large'); CREATE TYPE pair AS (a int, b text)",
    )
    .unwrap();
    for t in ["h", "w"] {
        c.batch_execute(&format!(
            "CREATE TABLE {t} {COLUMNS}; INSERT INTO {t} {ROWS}; CREATE INDEX ON {t} (ci); CREATE INDEX ON {t} (i8, i4);
             CREATE UNIQUE INDEX ON {t} (id, id); ALTER TABLE {t} DROP COLUMN gone; ANALYZE {t}"
        ))
        .unwrap();
    }
    checks::rewarm(c, "w").unwrap();
    // Delta rows beside the fragments.
    change(c, "UPDATE {t} SET f8 = f8, x = NOT x WHERE id % 29 = 0; DELETE FROM {t} WHERE id % 31 = 0");
}

/// Conditions on one column each, and some on two.
const CONDITIONS: &[&str] = &[
    "f8 = 'NaN'",
    "f8 <> 'NaN'",
    "f8 > 'Infinity'",
    "f8 >= 'NaN'",
    "f8 < 'NaN'",
    "f8 = 0",
    "f8 = '-0'",
    "f8 < 0",
    "f8 <= '-0'",
    "f8 = 0.1::float4",
    "f4 = 0.1",
    "f4 = 1.5::float8",
    "f4 < '1e-45'",
    "f4 >= 3.4e38",
    "f8 IN ('NaN', 0)",
    "f8 NOT IN ('NaN', 0)",
    "f8 NOT IN (0, NULL)",
    "f8 = ANY (ARRAY['-0', NULL]::float8[])",
    "f8 <> ALL (ARRAY['-0', NULL]::float8[])",
    "f8 <> ANY (ARRAY['-0', 'NaN']::float8[])",
    "f8 = ALL ('{}'::float8[])",
    "f8 = ANY ('{}'::float8[])",
    "i2 = 32767",
    "i2 = 32767::bigint",
    "i2 > 32767",
    "i2 < 100000",
    "i2 < -32768::bigint",
    "i4 = 2147483648",
    "i4 < 2147483648::bigint",
    "i4 >= -2147483648",
    "i4 <> 99999999999",
    "i8 = 9223372036854775807",
    "i8 > 9223372036854775806",
    "i8 >= -9223372036854775808",
    "i8 = 3::smallint",
    "i4 = i2",
    "i8 > i4",
    "3 > i4",
    "i4 NOT IN (1, 2, NULL)",
    "i4 IN (1, NULL)",
    "i4 = ANY (NULL::int[])",
    "i4 > ALL (ARRAY[-5, NULL])",
    "i4 < ANY (ARRAY[-5, NULL])",
    "i4 IN (1, 99999999999)",
    "i4 = NULL",
    "i4 IS DISTINCT FROM NULL",
    "i4 IS NOT DISTINCT FROM 3",
    "i4 IS DISTINCT FROM 3",
    "(i4, i8) < (1, 2)",
    "(i4, i8) = (1, 2)",
    "(i4, i8) IN ((1, 2), (3, 3))",
    "i4 = 3.0",
    "i4 = 3.5",
    "i4 < 3.5::float8",
    "i4 BETWEEN SYMMETRIC 3 AND -3",
    "NOT (i4 = 3)",
    "NOT (i4 <> 3 OR i8 IS NULL)",
    "n = 'NaN'",
    "n > 'Infinity'",
    "n = 0",
    "n = 1",
    "n < -1e-60",
    "n >= 1e60",
    "nn = 'NaN'",
    "nn > 'Infinity'",
    "nn < 'NaN'",
    "nn = 0.75",
    "nn = 0.7500",
    "nn = 0.7501",
    "nn <> 0.7501",
    "nn > -0.2501",
    "nn >= -99999999.991",
    "nn <= -99999999.99",
    "nn < 1e38",
    "nn > -1e200",
    "nn IN (0.75, 'NaN', 0.001)",
    "nn NOT IN (0.75, 0.001)",
    "nn = 1",
    "nn = 0.75::float8",
    "nn > 'infinity'::float8",
    "dm = 3",
    "dm > 3::bigint",
    "dn = 0.5",
    "dn < 0.501",
    "dt = 'w1'",
    "dt <> 'w1'",
    "bp = 'a'",
    "bp = 'a '",
    "bp = 'a'::text",
    "bp::text = 'a'",
    "bp < 'b'",
    "bp LIKE 'a%'",
    "bp IN ('a    ', 'B')",
    "vc = 'a'",
    "vc = 'a '",
    "vc = 'a'::char(3)",
    "vc <> ''",
    "vc = 'a'::text",
    "vc > 'A'",
    "en = 'a'",
    "en < 'b'",
    "en > 'B' COLLATE \"C\"",
    "en = 'A' COLLATE nocase",
    "en LIKE 'a%'",
    "en ILIKE 'A'",
    "en IN ('a', 'ä')",
    "ci = 'a'",
    "ci <> 'A'",
    "ci IN ('A', 'ä')",
    "ci = 'a' COLLATE \"C\"",
    "ci < 'b'",
    "ci NOT IN ('a', 'b')",
    "ci = en COLLATE nocase",
    "cc < 'a'",
    "cc >= 'a'",
    "cc > repeat('z', 199)",
    "cc <= 'a' || chr(1)",
    "cc = ''",
    "cc COLLATE \"en-x-icu\" < 'B'",
    "nm = 'n1'",
    "nm = 'n1'::text",
    "cc BETWEEN 'A' AND 'a'",
    "ts = 'infinity'",
    "ts < 'infinity'",
    "ts > '-infinity'",
    "ts < '2000-01-01'::date",
    "ts = '2000-01-01'::date",
    "ts <= 'infinity'::date",
    "ts > '5874897-12-31'::date",
    "ts >= '4714-11-24 BC'::date",
    "ts < '294277-01-01'::date",
    "ts >= '2000-01-01 00:00+00'::timestamptz",
    "ts = '2001-03-25 00:30+00'::timestamptz",
    "ts::date = '2000-01-01'",
    "tz = '2001-03-25 02:30'",
    "tz < '2001-03-25'::date",
    "tz >= '2001-03-25 02:30'::timestamp",
    "tz = 'infinity'::timestamp",
    "tz IN ('infinity', '2000-01-01')",
    "tz > now()",
    "d = 'infinity'",
    "d > '2001-01-01'",
    "d < '2001-03-25'::timestamp",
    "d = '2001-03-25'::timestamptz",
    "d >= '5874897-12-31'",
    "d < 'infinity'::timestamp",
    "tm = '24:00'",
    "tm < '24:00'",
    "tm > '12:30'",
    "tm = '12:30:00.000001'",
    "tt = '01:00+01'",
    "tt < '12:30-08'",
    "iv = '1 month'",
    "iv < '30 days'",
    "tm = '24:00'::interval",
    "o = 4294967295",
    "o > 2147483648",
    "o < 5",
    "o IN (3000000000, 1)",
    "o <> 3000000000",
    "o = 1::bigint",
    "ch = 'a'",
    "ch < 'b'",
    "ch = ''",
    "x",
    "NOT x",
    "x IS TRUE",
    "x IS NOT TRUE",
    "x IS FALSE",
    "x IS NOT FALSE",
    "x IS UNKNOWN",
    "x = true",
    "x <> true",
    "x < true",
    "x = NULL",
    "x IN (true, NULL)",
    "y = ''",
    "y < '\\x00'",
    "y > '\\x00'",
    "y = '\\x0000'",
    "u = md5('3')::uuid",
    "u > md5('3')::uuid",
    "u IN (md5('3')::uuid, NULL)",
    "e = 'small'",
    "e < 'middle'",
    "e >= 'middle'",
    "e <> 'large'",
    "e IN ('small', 'large')",
    "arr = '{}'",
    "arr = ARRAY[1, NULL]",
    "arr IS NULL",
    "arr @> ARRAY[2]",
    "2 = ANY (arr)",
    "2 <> ALL (arr)",
    "rec IS NULL",
    "rec IS NOT NULL",
    "NOT (rec IS NULL)",
    "rec = ROW(1, 'b')::pair",
    "(rec).a = 1",
    "js @> '{\"k\": 3}'",
    "js->>'k' = '2'",
    "gen = 6",
    "gen < -6",
    "t IS NULL",
    "t IS NOT NULL",
    "tableoid = 't'::regclass OR ctid IS NULL",
    "id = 7 AND id = 7::bigint",
    "id IN (7, 8, NULL)",
    "id = 7.0",
    "(id, i4) = (7, 0)",
    "id = (SELECT 7)",
    "id = (SELECT NULL::int)",
    "f8 = (SELECT 'NaN'::float8)",
    "random() >= 0 AND i4 = 3",
    "i4 = CASE WHEN random() < 2 THEN 3 END",
    "i4 = length(current_setting('search_path')) * 0 + 3",
    "coalesce(i4, 0) = 0",
    "i4 + 0 = 3",
    "1 / (i4 - i4 + 1) = 1",
    "false",
    "NULL",
    "true",
];

#[test]
fn every_comparison_gives_what_the_heap_gives() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    create(&mut c);
    let with = |select: &str, conditions: &[&str]| -> Vec<String> {
        let sql = |q: &&str| select.replace("{q}", &q.replace("'t'::regclass", "'{t}'::regclass"));
        conditions.iter().map(sql).collect()
    };
    let rows = "SELECT id FROM {t} t WHERE {q}";
    in_modes(&mut c, "rows", &[MODES[0], MODES[2], MODES[3]], &with(rows, CONDITIONS));
    let some: Vec<&str> = CONDITIONS.iter().step_by(6).copied().collect();
    in_modes(&mut c, "in parallel", &[MODES[5]], &with(rows, &some));
    let aggregates = [
        "SELECT count(*), sum(id), min(ts), max(nn) FROM {t} t WHERE ({q}) IS NOT TRUE",
        "SELECT count(*), avg(i4), max(i8), min(d) FROM {t} t WHERE ({q}) AND id > 100",
    ];
    for select in aggregates {
        in_modes(&mut c, "aggregates", &[MODES[0]], &with(select, CONDITIONS));
    }
    let timed: Vec<&str> =
        CONDITIONS.iter().filter(|q| ["ts", "tz", "d "].iter().any(|p| q.starts_with(p))).copied().collect();
    for zone in ["America/New_York", "Asia/Kathmandu"] {
        in_modes(&mut c, zone, &[&format!("SET timezone = '{zone}'")], &with(rows, &timed));
    }
}

/// Aggregates and groups. Groups of values that are equal but not the same are shown by what is the same for all of them.
const AGGREGATES: &[&str] = &[
    "count(f8), min(f8), max(f8), min(f4), max(f4) FROM {t} WHERE f8 <> 0 AND f4 <> 0",
    "min(f8), max(f8) FROM {t} WHERE f8 IN ('NaN', 'Infinity')",
    "min(f4), max(f8) FROM {t} WHERE f8 > 'Infinity'",
    "sum(i2), sum(i4), avg(i2), avg(i4), min(i2), max(i4), sum(i8), avg(i8), min(i8), max(i8) FROM {t}",
    "sum(i8) FROM {t} WHERE i8 > 100",
    "sum(i8) + 0 FROM {t} WHERE i8 < -100",
    "sum(nn), avg(nn), min(nn), max(nn) FROM {t}",
    "sum(nn), avg(nn), min(nn), max(nn), count(nn) FROM {t} WHERE nn < 'NaN'",
    "sum(nn), avg(nn), max(nn) FROM {t} WHERE nn = 'NaN'",
    "sum(dn), avg(dn), max(dn), sum(dm), avg(dm), min(dm) FROM {t}",
    "sum(n), min(n), max(n), count(n) FROM {t}",
    "sum(n) FROM {t} WHERE n IN ('Infinity', 1)",
    "sum(n), avg(n) FROM {t} WHERE n IN ('Infinity', '-Infinity')",
    "avg(n), sum(n) FROM {t} WHERE n > -1 AND n < 2",
    "stddev(i4), variance(nn), var_pop(i2), stddev_samp(n) FROM {t} WHERE nn < 5 AND n < 5",
    "min(en), max(en), min(cc), max(cc), min(bp), max(vc), min(ci) IS NULL FROM {t}",
    "min(ts), max(ts), min(tz), max(tz), min(d), max(d) FROM {t}",
    "min(tm), max(tm), min(tt), max(iv) = '30 days', min(o), max(o), min(e), max(e), min(ch) IS NULL FROM {t}",
    "bool_and(x), bool_or(x), every(x) FROM {t}",
    "count(DISTINCT f8), count(DISTINCT ci), count(DISTINCT n), count(DISTINCT bp), sum(DISTINCT i4) FROM {t}",
    "count(*) FILTER (WHERE x), sum(i4) FILTER (WHERE f8 = 0) FROM {t}",
    "string_agg(vc, ',' ORDER BY id DESC), array_agg(i4 ORDER BY id) FROM {t}",
    "sum(i4), count(arr), count(rec), count(js), count(gen), count(t) FROM {t} t",
    "sum(i4), avg(nn), max(f8), count(*) FROM {t} WHERE id < 0",
    "max(i4) FROM {t} WHERE i4 IS NULL",
    "regr_count(i4, i2), corr(i2, i2) > 0 FROM {t} WHERE i2 < 100",
    "count(*), sum(id) FROM {t} GROUP BY f8",
    "count(*), sum(id), f8 > 0 FROM {t} GROUP BY f8, f4",
    "count(*), min(id) FROM {t} GROUP BY n",
    "nn, count(*), sum(i4) FROM {t} GROUP BY nn",
    "count(*), min(i4) FROM {t} GROUP BY ci",
    "count(*), lower(ci) FROM {t} GROUP BY ci, lower(ci)",
    "en, count(*) FROM {t} GROUP BY en HAVING count(*) > 3 AND max(nn) > 1",
    "bp, length(bp), count(*) FROM {t} GROUP BY bp",
    "vc, count(*) FROM {t} GROUP BY vc",
    "cc, dt, count(*) FROM {t} GROUP BY 1, 2",
    "nm, o, ch, count(*) FROM {t} GROUP BY 1, 2, 3",
    "x, e, u, count(*) FROM {t} GROUP BY 1, 2, 3",
    "y, i2, count(*) FROM {t} GROUP BY 1, 2",
    "ts, tz, d, count(*) FROM {t} GROUP BY 1, 2, 3",
    "tm, count(*) FROM {t} GROUP BY tm",
    "count(*) FROM {t} GROUP BY tt",
    "count(*), sum(id) FROM {t} GROUP BY iv",
    "arr, rec, count(*) FROM {t} GROUP BY 1, 2",
    "js, count(*) FROM {t} GROUP BY js",
    "dm, dn, sum(dn) FROM {t} GROUP BY 1, 2",
    "date_trunc('year', ts), count(*) FROM {t} WHERE ts > '2000-01-01' GROUP BY 1",
    "date_trunc('month', ts), count(*) FROM {t} GROUP BY 1",
    "date_trunc('month', ts), count(*) FROM {t} WHERE ts > '0001-01-01' OR ts = '-infinity' GROUP BY 1",
    "date_trunc('week', ts), date_trunc('Month', ts), count(*) FROM {t} WHERE ts >= '1999-01-01' GROUP BY 1, 2",
    "date_trunc('day', tz), count(*) FROM {t} WHERE tz > '1999-01-01' GROUP BY 1",
    "date_trunc('hour', d), count(*) FROM {t} WHERE d BETWEEN '1999-01-01' AND '2002-01-01' GROUP BY 1",
    "grouping(i4, x), i4, x, count(*) FROM {t} GROUP BY CUBE (i4, x)",
    "i4, count(*) OVER (), sum(count(*)) OVER (ORDER BY i4) FROM {t} GROUP BY i4 ORDER BY i4",
    "DISTINCT i4, x FROM {t}",
    "DISTINCT ON (i4) i4, id FROM {t} ORDER BY i4, id",
    "i4, 1 / (i4 % 7 - 3), count(*) FROM {t} GROUP BY i4",
    "i4, 1 / (i4 % 7 - 33), count(*) FROM {t} GROUP BY i4",
    "id, t.i4, count(*) FROM {t} t GROUP BY id",
    "1 FROM {t} HAVING count(*) > 10000",
    "count(*) FROM {t} HAVING max(nn) = 'NaN'",
    "i4, sum(nn) FROM {t} GROUP BY i4 ORDER BY sum(nn) DESC, i4 LIMIT 3",
    "i2, max(e) FROM {t} GROUP BY i2 HAVING max(e) > 'small'",
];

#[test]
fn every_aggregate_gives_what_the_heap_gives() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    create(&mut c);
    let queries: Vec<String> = AGGREGATES.iter().map(|q| format!("SELECT {q}")).collect();
    in_all_modes(&mut c, "aggregates", &queries);
    // Of zeros of both signs the heap gives the one that comes last: one process, in the order of the rows.
    c.batch_execute("SET max_parallel_workers_per_gather = 0").unwrap();
    change(&mut c, "DELETE FROM {t} WHERE id % 29 = 0");
    for q in ["f8 = 0", "f8 = 0 AND id < 300", "f8 = 0 AND id > 30 AND id < 38"] {
        same(&mut c, "zeros", &format!("SELECT min(f8), max(f8), min(f4), max(f4) FROM {{t}} WHERE {q}"));
    }
    change(
        &mut c,
        "ALTER TABLE {t} ADD COLUMN an numeric(6,2) DEFAULT 'NaN', ADD COLUMN at text DEFAULT 'as it was', ADD COLUMN aa int[] DEFAULT '{1,2}',
         ADD COLUMN af float8 DEFAULT '-0', ADD COLUMN ad posint DEFAULT 4, ADD COLUMN ats timestamp DEFAULT 'infinity', ADD COLUMN az int",
    );
    change(&mut c, "UPDATE {t} SET an = 1, at = 'changed', az = id WHERE id % 40 = 0");
    let added = [
        "SELECT sum(an), min(an), max(an), count(an), min(ats), max(ats), sum(ad), count(az), sum(az), min(af) = 0 FROM {t}",
        "SELECT an, at, aa, ad, date_trunc('month', ats), count(*), sum(an), count(az) FROM {t} GROUP BY 1, 2, 3, 4, 5",
        "SELECT id FROM {t} WHERE an = 'NaN' AND at = 'as it was' AND ad = 4",
        "SELECT id FROM {t} WHERE an < 2", "SELECT id FROM {t} WHERE an IN (1, 'NaN') AND az IS NOT NULL",
        "SELECT count(*) FROM {t} WHERE af = 0 AND aa = '{1,2}'", "SELECT count(*) FROM {t} WHERE ats = 'infinity'::date AND az IS NULL",
        "SELECT * FROM {t} WHERE id < 50",
    ]
    .map(str::to_owned);
    in_all_modes(&mut c, "added", &added);
}

#[test]
fn changed_types_read_what_was_written() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    for t in ["h", "w"] {
        c.batch_execute(&format!(
            "CREATE TABLE {t} (id int PRIMARY KEY, n numeric(10,2), m numeric(10,2), v varchar(30), s text, i int, ts timestamp, k numeric(10,2));
             CREATE INDEX ON {t} (n); CREATE UNIQUE INDEX ON {t} (k, id);
             INSERT INTO {t} SELECT i, i * 0.25 - 30, CASE WHEN i % 50 = 0 THEN 'NaN' WHEN i % 9 > 0 THEN i * 1.01 END, 'v' || i % 20, 's' || i % 30, i % 40 - 20,
                 timestamp '2001-01-01' + i * interval '7 hours', i % 25 FROM generate_series(1, 500) i"
        ))
        .unwrap();
    }
    checks::rewarm(&mut c, "w").unwrap();
    let queries = [
        "SELECT * FROM {t}",
        "SELECT id FROM {t} WHERE n = 0.25",
        "SELECT id FROM {t} WHERE n = 0.250 OR n = 1.75",
        "SELECT id FROM {t} WHERE n > 50.001 AND m < 400",
        "SELECT id FROM {t} WHERE m = 'NaN'",
        "SELECT id FROM {t} WHERE m <> 5.05",
        "SELECT id FROM {t} WHERE n IN (0.25, 1.75, 0.333)",
        "SELECT sum(n), avg(n), min(n), max(n), sum(m), max(m), count(m) FROM {t}",
        "SELECT sum(n), avg(m) FROM {t} WHERE m < 100",
        "SELECT n, count(*), sum(m) FROM {t} GROUP BY n",
        "SELECT m, count(*) FROM {t} GROUP BY m",
        "SELECT v, s, i, count(*) FROM {t} GROUP BY 1, 2, 3",
        "SELECT id FROM {t} WHERE v = 'v3' AND s = 's3'",
        "SELECT id FROM {t} WHERE i = 3",
        "SELECT id FROM {t} WHERE ts >= '2001-02-01' AND ts < '2001-02-02'",
        "SELECT max(ts), min(ts) FROM {t}",
        "SELECT id, k FROM {t} WHERE k = 7",
        "SELECT p.id, q.id FROM {t} p JOIN {t} q ON q.k = p.k AND q.id = p.id WHERE p.n < -20",
        "SELECT id FROM {t} WHERE n + m > 500 ORDER BY id",
    ]
    .map(str::to_owned);
    in_all_modes(&mut c, "as written", &queries);
    for alter in [
        "ALTER TABLE {t} ALTER COLUMN n TYPE numeric(12,2), ALTER COLUMN v TYPE text",
        "ALTER TABLE {t} ALTER COLUMN m TYPE numeric(38,2), ALTER COLUMN v TYPE varchar",
        "ALTER TABLE {t} ALTER COLUMN n TYPE numeric, ALTER COLUMN s TYPE varchar",
        "ALTER TABLE {t} ALTER COLUMN m TYPE numeric(40,2), ALTER COLUMN ts TYPE timestamptz",
        "ALTER TABLE {t} ALTER COLUMN i TYPE oid, ALTER COLUMN k TYPE numeric(14,2)",
        "ALTER TABLE {t} ALTER COLUMN k TYPE numeric",
    ] {
        let file = twin::value(&mut c, "SELECT pg_relation_filenode('w')").unwrap();
        change(&mut c, alter);
        assert_eq!(
            file,
            twin::value(&mut c, "SELECT pg_relation_filenode('w')").unwrap(),
            "{alter} rewrites the table"
        );
        in_all_modes(&mut c, alter, &queries);
        change(&mut c, "UPDATE {t} SET n = n + 0.123, m = 1.005 WHERE id % 60 = 7");
        in_all_modes(&mut c, &format!("{alter}, updated"), &queries[..12]);
    }
    // These write the table again.
    for alter in [
        "ALTER TABLE {t} ALTER COLUMN n TYPE numeric(10,1)",
        "ALTER TABLE {t} ALTER COLUMN n TYPE float8, ALTER COLUMN k TYPE int",
    ] {
        change(&mut c, alter);
        in_all_modes(&mut c, alter, &queries);
    }
}

#[test]
fn prepared_statements_follow_the_time_zone_and_the_tier() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    create(&mut c);
    let statements = [
        ("timestamptz", "SELECT count(*), sum(id) FROM {t} WHERE ts >= $1", "('2000-01-01 02:00+00')"),
        ("timestamp", "SELECT count(*), sum(id) FROM {t} WHERE tz >= $1", "('2001-03-25 02:30')"),
        ("date", "SELECT count(*), sum(id) FROM {t} WHERE tz < $1 AND ts > $1", "('2001-03-25')"),
        ("text", "SELECT count(*) FROM {t} WHERE ts > $1::timestamptz::timestamp", "('2000-01-01 02:00+00')"),
        ("int", "SELECT id, i4 FROM {t} WHERE id = $1", "(77)"),
        ("int", "SELECT x, count(*), sum(nn) FROM {t} WHERE i4 > $1 GROUP BY x", "(2)"),
    ];
    for mode in ["force_generic_plan", "force_custom_plan", "auto"] {
        c.batch_execute(&format!("DEALLOCATE ALL; SET plan_cache_mode = {mode}; SET timezone = 'UTC'")).unwrap();
        for (i, (types, sql, _)) in statements.iter().enumerate() {
            for t in ["h", "w"] {
                c.batch_execute(&format!("PREPARE q{i}_{t} ({types}) AS {}", sql.replace("{t}", t))).unwrap();
            }
        }
        let all = |c: &mut Client, context: &str| {
            for (i, (_, _, call)) in statements.iter().enumerate() {
                same(c, &format!("{mode}, {context}"), &format!("EXECUTE q{i}_{{t}}{call}"));
            }
        };
        for zone in ["UTC", "America/New_York", "Asia/Kathmandu"] {
            c.batch_execute(&format!("SET timezone = '{zone}'")).unwrap();
            all(&mut c, zone);
        }
        c.execute("SELECT strata.to_hot('w')", &[]).unwrap();
        all(&mut c, "hot again");
        checks::rewarm(&mut c, "w").unwrap();
        all(&mut c, "warm again");
        change(&mut c, "INSERT INTO {t} (id, i4, nn) SELECT max(id) + 1, 5, 5 FROM {t}");
        all(&mut c, "inserted");
    }
}

/// A row that was changed meanwhile is checked again, with the sub-plans of the statement.
#[test]
fn subplans_see_warm_rows_when_a_row_is_checked_again() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    create(&mut c);
    let mut found = Vec::new();
    for t in ["h", "w"] {
        c.batch_execute(&format!(
            "CREATE TABLE o_{t} (id int PRIMARY KEY, k int, got text); INSERT INTO o_{t} VALUES (1, 1, ''), (2, 2, '')"
        ))
        .unwrap();
        for sub in [
            "(SELECT string_agg(vc, ',' ORDER BY id) FROM {t} t WHERE t.i4 = o.k AND t.x)",
            "(SELECT max(s.id)::text FROM (SELECT id FROM {t} t WHERE t.i4 = o.k AND t.nn > 0 OFFSET 0) s)",
            "CASE WHEN EXISTS (SELECT FROM {t} t WHERE t.i4 = o.k AND t.cc = 'a') OR o.k > 100 THEN 'there' ELSE 'not there' END",
            "(SELECT t.dt || t.e::text FROM {t} t WHERE t.id = o.k * 10)",
            "(SELECT sum(nn)::text FROM {t} t WHERE t.i4 = o.k)",
        ] {
            let mut first = cluster.connect().unwrap();
            let mut second = cluster.connect().unwrap();
            let pid = twin::value(&mut second, "SELECT pg_backend_pid()").unwrap();
            first.batch_execute(&format!("BEGIN; UPDATE o_{t} SET k = k % 5 + 1")).unwrap();
            let sql = format!("UPDATE o_{t} o SET got = {} WHERE id = 1 RETURNING k, got", sub.replace("{t}", t));
            let waiting = std::thread::spawn(move || script::outcome(&mut second, &sql).unwrap());
            let blocked =
                format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event_type = 'Lock'");
            for _ in 0..1000 {
                if twin::value(&mut c, &blocked).unwrap() == "1" {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            assert_eq!(twin::value(&mut c, &blocked).unwrap(), "1", "the second update waits");
            first.batch_execute("COMMIT").unwrap();
            found.push((sub, waiting.join().unwrap()));
        }
    }
    let (heap, warm) = found.split_at(found.len() / 2);
    for (h, w) in heap.iter().zip(warm) {
        assert_eq!(h, w);
    }
}
