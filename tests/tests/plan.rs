//! Plans over warm tables: what they give is what the heap twin gives, for many shapes of query, with each part of the
//! planner's work switched on and off; and the plans are the ones that are meant to be chosen.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use postgres::Client;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use strata_tests::cluster::Options;
use strata_tests::script::{self, Outcome};
use strata_tests::{Cluster, checks, twin};

#[path = "plan/semantics.rs"]
mod semantics;

/// A server whose autovacuum is at work all the time: statistics and dead rows change between queries, and plans with them.
fn cluster() -> Cluster {
    let mut options = Options::new().set("autovacuum_naptime", "1");
    for what in ["vacuum", "vacuum_insert", "analyze"] {
        options = options
            .set(&format!("autovacuum_{what}_threshold"), "20")
            .set(&format!("autovacuum_{what}_scale_factor"), "0");
    }
    Cluster::with(options).unwrap()
}

/// Settings under which every query must give the same.
const MODES: [&str; 6] = [
    "SELECT 1",
    "SET strata.enable_aggregate_pushdown = off",
    "SET strata.enable_warm_scan = off",
    "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off",
    "SET enable_hashagg = off; SET enable_nestloop = off",
    "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET max_parallel_workers_per_gather = 2",
];

/// A table with a column of each kind; `r` rows, every value with a tenth of nulls.
fn rows(r: u32) -> String {
    format!(
        "SELECT i, nullif(i % 10, 3) + 0, CASE WHEN i % 7 > 0 THEN i % 50 - 25 END::smallint,
                CASE WHEN i % 11 > 0 THEN i * 1000000007::bigint END,
                CASE WHEN i % 13 = 0 THEN 'NaN' WHEN i % 17 = 0 THEN '-0' WHEN i % 5 > 0 THEN i / 8.0 - 50 END::float8,
                CASE WHEN i % 9 > 0 THEN i / 4.0 END::float4,
                CASE WHEN i % 8 > 0 THEN (i % 1000) * 0.25 - 10 END::numeric(12, 2),
                CASE WHEN i % 6 > 0 THEN i * 1.5 END::numeric,
                CASE WHEN i % 10 > 0 THEN 'text ' || i % 40 END,
                CASE WHEN i % 4 > 0 THEN md5(i::text) END,
                date '2001-01-01' + i % 300,
                CASE WHEN i % 19 = 0 THEN 'infinity' WHEN i % 12 > 0 THEN timestamp '2001-01-01' + i * interval '3 hours' END,
                timestamptz '2001-01-01 00:00+00' + i * interval '1 minute',
                i % 3 = 0 AND i % 5 > 0, decode(md5((i % 100)::text), 'hex'),
                CASE i % 3 WHEN 0 THEN 'low' WHEN 1 THEN 'high' END::mood
         FROM generate_series(1, {r}) i"
    )
}

const COLUMNS: &str =
    "(id int PRIMARY KEY, a int, b smallint, c bigint, f float8, g float4, n numeric(12,2), m numeric,
     s text, u varchar(40), d date, ts timestamp, tz timestamptz, x bool, y bytea, e mood)";

fn create(c: &mut Client, count: u32) {
    c.batch_execute("CREATE TYPE mood AS ENUM ('low', 'high')").unwrap();
    for t in ["h", "w"] {
        c.batch_execute(&format!(
            "CREATE TABLE {t} {COLUMNS}; CREATE INDEX ON {t} (a); CREATE UNIQUE INDEX ON {t} (tz, id);
             CREATE INDEX ON {t} ((a + 1)); INSERT INTO {t} {}; ANALYZE {t}",
            rows(count)
        ))
        .unwrap();
    }
    checks::rewarm(c, "w").unwrap();
    c.batch_execute("ANALYZE w").unwrap();
}

/// The first row in which two results differ.
fn first_difference(heap: &Outcome, warm: &Outcome) -> String {
    let (Outcome::Done(h, _), Outcome::Done(w, _)) = (heap, warm) else { return String::new() };
    let at = h.iter().zip(w).position(|(a, b)| a != b).unwrap_or(h.len().min(w.len()));
    format!("{} and {} rows, first different: {:?} and {:?}", h.len(), w.len(), h.get(at), w.get(at))
}

/// Compares a query, in which `{t}` stands for the table, under the current settings.
fn same(c: &mut Client, context: &str, sql: &str) {
    let mut run = |t: &str| script::outcome(c, &sql.replace("{t}", t)).unwrap();
    let (heap, warm) = (run("h"), run("w"));
    if heap != warm {
        let plan = twin::plan(c, &sql.replace("{t}", "w")).unwrap_or_default();
        panic!(
            "{context}: {sql}\n{}\nheap: {}\nwarm: {}\n{plan}",
            first_difference(&heap, &warm),
            short(&heap),
            short(&warm)
        );
    }
}

fn short(outcome: &Outcome) -> String {
    let mut text = format!("{outcome:?}");
    if let Some((i, _)) = text.char_indices().nth(1500) {
        text.truncate(i);
    }
    text
}

fn in_all_modes(c: &mut Client, context: &str, queries: &[String]) {
    in_modes(c, context, &MODES, queries);
}

fn in_modes(c: &mut Client, context: &str, modes: &[&str], queries: &[String]) {
    for mode in modes {
        c.batch_execute("RESET ALL; SET extra_float_digits = 0").unwrap();
        c.batch_execute(mode).unwrap();
        for sql in queries {
            same(c, &format!("{context}, {mode}"), sql);
        }
    }
    c.batch_execute("RESET ALL").unwrap();
}

/// Queries of every shape.
fn shapes() -> Vec<String> {
    [
        "SELECT * FROM {t} ORDER BY id",
        "SELECT t FROM {t} t WHERE id < 20 ORDER BY id",
        "SELECT id, s FROM {t} WHERE id = 77",
        "SELECT id, s FROM {t} WHERE id = 77::bigint AND s = 'text 37'",
        "SELECT id FROM {t} WHERE id = 77 AND id = 78",
        "SELECT id FROM {t} WHERE id IN (5, 6, 100000, NULL) ORDER BY id",
        "SELECT count(*) FROM {t} WHERE ctid IS NOT NULL AND tableoid = '{t}'::regclass",
        "SELECT count(*), count(xmin) FROM {t} WHERE id < 50",
        "SELECT count(*), count(a), count(s), sum(a), sum(b), sum(c), avg(a), avg(b), avg(c) FROM {t}",
        "SELECT sum(n), avg(n), min(n), max(n), count(n) FROM {t}",
        "SELECT sum(m), avg(m) FROM {t}",
        "SELECT min(a), max(b), min(c), max(c), min(f), max(f), min(g), max(g) FROM {t}",
        "SELECT min(d), max(d), min(ts), max(ts), min(tz), max(tz), max(e), min(s) FROM {t}",
        "SELECT sum(a), min(d) FROM {t} WHERE false",
        "SELECT sum(c), sum(n), avg(a), max(f), count(*) FROM {t} WHERE id < 0",
        "SELECT a, count(*), sum(n), avg(c), max(ts) FROM {t} GROUP BY a",
        "SELECT s, u IS NULL, count(*) FROM {t} GROUP BY 1, 2",
        "SELECT s, a, count(*), sum(b) FROM {t} GROUP BY 1, 2",
        "SELECT e, x, d, count(*) FROM {t} GROUP BY 1, 2, 3",
        "SELECT f, count(*), sum(a) FROM {t} GROUP BY f",
        "SELECT n, count(*), max(id) FROM {t} GROUP BY n",
        "SELECT m, y, count(*) FROM {t} WHERE id < 200 GROUP BY 1, 2",
        "SELECT id, count(*), sum(c) FROM {t} GROUP BY id",
        "SELECT id, s, count(*) FROM {t} GROUP BY id",
        "SELECT date_trunc('month', ts), count(*), sum(a) FROM {t} GROUP BY 1",
        "SELECT date_trunc('week', ts), date_trunc('hour', ts), s, count(*), avg(n) FROM {t} GROUP BY 1, 2, 3",
        "SELECT date_trunc('quarter', ts), date_trunc('year', ts), date_trunc('day', ts), count(*) FROM {t} GROUP BY 1, 2, 3",
        "SELECT a, count(*) FROM {t} GROUP BY a HAVING sum(b) > 10 AND max(n) > 5 ORDER BY count(*) DESC, a",
        "SELECT a + 1, count(*) FROM {t} GROUP BY a + 1",
        "SELECT a, count(DISTINCT s), count(*) FILTER (WHERE x) FROM {t} GROUP BY a",
        "SELECT a, sum(b + 1), sum(n * 2) FROM {t} GROUP BY a",
        "SELECT sum(n * (1 - n)), sum((n + a) * n * 2.50 - c), avg(n * a), sum(-1.5 * n), sum(n - n) FROM {t}",
        "SELECT a, sum(n * c * c), avg(c * c * c * n), sum(c * 10000000000000000000::numeric) FROM {t} GROUP BY a",
        "SELECT sum(n * a), avg(n + n) FROM {t} WHERE id < 0",
        "SELECT sum(f), avg(f), sum(g), avg(g) FROM {t} WHERE f <> 'NaN'",
        "SELECT sum(f), avg(f) FROM {t}",
        "SELECT a, avg(f), sum(g), max(f) FROM {t} GROUP BY a",
        "SELECT date_trunc('month', d)::date, extract(dow FROM d), count(*), sum(n) FROM {t} GROUP BY 1, 2",
        "SELECT to_char(d, 'YYYY Q'), d + 1, count(*) FROM {t} GROUP BY 1, 2",
        "SELECT 100 / (d - date '2001-01-05'), count(*) FROM {t} GROUP BY 1",
        "SELECT count(*) FROM {t} WHERE d < timestamp '2001-03-01 12:00' AND d >= timestamp '2001-01-15'",
        "SELECT count(*) FROM {t} WHERE d <= timestamp '2001-03-01' AND timestamp '1999-12-31 23:59' < d",
        "SELECT count(*) FROM {t} WHERE d = timestamp '2001-03-01' OR d = timestamp '2001-03-02 00:01'",
        "SELECT count(*) FROM {t} WHERE d = timestamp '2001-03-02 00:01'",
        "SELECT count(*) FROM {t} WHERE d <> timestamp '2001-03-02 00:01' AND d <> timestamp '2001-03-03'",
        "SELECT count(*) FROM {t} WHERE d < timestamp 'infinity' AND d > timestamp '-infinity'",
        "SELECT DISTINCT ON (y) y, tz, id FROM {t} WHERE id > 10 ORDER BY y, tz DESC, id",
        "SELECT DISTINCT ON (d) d, id, s FROM {t} ORDER BY d, id",
        "SELECT DISTINCT ON (d) d, id, s FROM {t} WHERE length(s) = 6 ORDER BY d, id DESC",
        "SELECT DISTINCT ON (y) y, c FROM {t} ORDER BY y, c DESC",
        "SELECT DISTINCT ON (y) y, x, id FROM {t} ORDER BY y, x DESC, id",
        "SELECT DISTINCT ON (s) s, id FROM {t} ORDER BY s, id DESC LIMIT 5",
        "SELECT a, s, count(*) FROM {t} GROUP BY GROUPING SETS ((a), (s), ())",
        "SELECT DISTINCT a, x FROM {t}",
        "SELECT sum(n) + count(*) FROM {t} WHERE length(s) = 6 AND a > 2",
        "SELECT a, count(*) FROM {t} WHERE s LIKE 'text 1%' AND b < 10 GROUP BY a",
        "SELECT a, sum(s2.c) FROM {t} JOIN (SELECT c, id FROM {t} WHERE x) s2 USING (id) GROUP BY a",
        "SELECT count(*) FROM {t} p JOIN {t} q ON p.id = q.id + 1 WHERE p.a = 4",
        "SELECT p.id, q.s FROM {t} p LEFT JOIN {t} q ON q.id = p.a * 7 WHERE p.id < 60",
        "SELECT p.id, q.s FROM {t} p LEFT JOIN {t} q ON q.id = p.a AND q.s = p.s WHERE p.id < 60",
        "SELECT p.id, q.id FROM {t} p JOIN {t} q ON q.tz = p.tz AND q.id = p.id WHERE p.id < 60",
        "SELECT v.k, q.s FROM (VALUES (3::bigint), (5), (900000000000)) v (k) LEFT JOIN {t} q ON q.id = v.k",
        "SELECT p.id, l.n FROM {t} p, LATERAL (SELECT sum(n) n FROM {t} q WHERE q.a = p.a AND q.id <= p.id) l WHERE p.id < 30",
        "SELECT id, (SELECT s FROM {t} q WHERE q.id = p.a) FROM {t} p WHERE id < 40",
        "SELECT id FROM {t} p WHERE EXISTS (SELECT 1 FROM {t} q WHERE q.id = p.id + 5 AND q.x) AND id < 90",
        "SELECT id FROM {t} p WHERE a = (SELECT max(a) FROM {t} q WHERE q.s = p.s) AND id < 300",
        "SELECT count(*) FROM {t} WHERE id = ANY (ARRAY(SELECT a * 3 FROM {t} WHERE id < 30))",
        "SELECT count(*) FROM {t} WHERE tz > timestamptz '2001-01-01 01:00+00' - interval '1 day' AND d < current_date",
        "SELECT id, row_number() OVER (PARTITION BY a ORDER BY id) FROM {t} WHERE id < 50 ORDER BY id",
        "SELECT id FROM {t} ORDER BY n NULLS FIRST, id LIMIT 7",
        "SELECT count(*) FROM {t} WHERE n = 12.5 OR n > 100.001",
        "SELECT count(*) FROM {t} WHERE n < 'NaN' AND n <> 7.000 AND n > -5.005",
        "SELECT count(*) FROM {t} WHERE x",
        "SELECT count(*) FROM {t} WHERE NOT x AND x IS FALSE",
        "SELECT count(*) FROM {t} WHERE x IS NOT TRUE",
        "SELECT count(*) FROM {t} WHERE ts >= date '2001-02-01' AND ts < date 'infinity'",
        "SELECT count(*) FROM {t} WHERE ts > date '5000000-01-01'",
        "SELECT count(*) FROM {t} WHERE s COLLATE \"C\" BETWEEN 'text 2' AND 'text 3'",
        "SELECT count(*) FROM {t} WHERE s > 'text 2' AND u <> 'x'",
        "SELECT count(*) FROM {t} WHERE g = 10.25 OR f = 1e300",
        "SELECT count(*), sum(id) FROM {t} WHERE f = 'NaN' ",
        "SELECT count(*), sum(id) FROM {t} WHERE f > 100 AND f < 'NaN' AND g >= 3.3::float8",
        "SELECT count(*) FROM {t} WHERE f = 0",
        "SELECT sum(c * 1000000000) FROM {t} WHERE id > 990",
        "SELECT id / (id - 5) FROM {t} WHERE id = 5",
        "SELECT count(*) FROM {t} TABLESAMPLE BERNOULLI (100)",
        "SELECT * FROM {t} WHERE id BETWEEN 3 AND 6 ORDER BY id FOR UPDATE",
        "WITH RECURSIVE r AS (SELECT 1 AS id UNION ALL SELECT t.id FROM r JOIN {t} t ON t.id = r.id * 3) SELECT * FROM r",
    ]
    .map(str::to_owned)
    .into()
}

/// A random condition on one column.
fn condition(r: &mut StdRng) -> String {
    let k = r.random_range(-5..1100);
    let op = ["=", "<", "<=", ">", ">=", "<>"][r.random_range(0..6)];
    let (column, value) = match r.random_range(0..15) {
        0 => ("id", k.to_string()),
        1 => ("a", (k % 12).to_string()),
        2 => ("b", format!("{}::{}", k % 30, ["int", "bigint", "smallint"][r.random_range(0..3)])),
        3 => ("c", format!("{k} * 1000000007::bigint")),
        4 => ("f", ["'NaN'".to_owned(), "'-0'".to_owned(), format!("{k} / 8.0 - 50")][r.random_range(0..3)].clone()),
        5 => ("g", format!("{k} / 4.0")),
        6 => ("n", format!("{k} * 0.{}", ["25", "125", "0001"][r.random_range(0..3)])),
        7 => ("m", format!("{k} * 1.5")),
        8 => ("s", format!("'text {}'", k % 40)),
        9 => ("u", format!("md5('{k}')")),
        10 => ("d", format!("date '2001-01-01' + {}", k % 310)),
        11 => ("ts", format!("timestamp '2001-01-01' + {k} * interval '3 hours'")),
        12 => ("tz", format!("timestamptz '2001-01-01 00:00+00' + {k} * interval '1 minute'")),
        13 => ("y", format!("decode(md5('{}'), 'hex')", k % 100)),
        _ => ("e", "'high'".to_owned()),
    };
    match r.random_range(0..8) {
        0 => format!("{column} IS NULL"),
        1 => format!("{column} IS NOT NULL"),
        2 => format!("{column} IN ({value}, NULL, {value})"),
        3 => format!("{value} {op} {column}"),
        4 => format!("NOT ({column} {op} {value})"),
        _ => format!("{column} {op} {value}"),
    }
}

fn random_query(r: &mut StdRng) -> String {
    let conditions: Vec<String> = (0..r.random_range(0..4)).map(|_| condition(r)).collect();
    let mut filter = conditions.join(if r.random_bool(0.8) { " AND " } else { " OR " });
    if !filter.is_empty() {
        filter = format!("WHERE {filter}");
    }
    let aggregates = [
        "count(*)", "count(s)", "count(n)", "sum(a)", "sum(b)", "sum(c)", "sum(n)", "avg(a)", "avg(c)", "avg(n)",
        "min(f)", "max(g)", "max(c)", "min(b)", "max(ts)", "min(d)", "min(n)", "max(tz)",
    ];
    let keys =
        ["a", "s", "u", "d", "e", "x", "b", "y", "n", "g", "date_trunc('month', ts)", "date_trunc('day', ts)", "a % 3"];
    let pick = |r: &mut StdRng, from: &[&str], n: usize| -> Vec<String> {
        (0..n).map(|_| from[r.random_range(0..from.len())].to_owned()).collect()
    };
    match r.random_range(0..3) {
        0 => format!("SELECT * FROM {{t}} {filter}"),
        1 => {
            let n = r.random_range(1..5);
            format!("SELECT {} FROM {{t}} {filter}", pick(r, &aggregates, n).join(", "))
        }
        _ => {
            let k = r.random_range(1..3);
            let keys = pick(r, &keys, k);
            let n = r.random_range(1..4);
            let positions: Vec<String> = (1..=keys.len()).map(|i| i.to_string()).collect();
            format!(
                "SELECT {}, {} FROM {{t}} {filter} GROUP BY {}",
                keys.join(", "),
                pick(r, &aggregates, n).join(", "),
                positions.join(", ")
            )
        }
    }
}

/// Changes both tables in the same way.
fn change(c: &mut Client, sql: &str) {
    for t in ["h", "w"] {
        c.batch_execute(&sql.replace("{t}", t)).unwrap();
    }
}

#[test]
fn every_shape_of_query_gives_what_the_heap_gives() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    create(&mut c, 1000);
    in_all_modes(&mut c, "fresh", &shapes());
    change(&mut c, "UPDATE {t} SET s = 'changed', n = n + 1, a = a + 1 WHERE id % 10 = 0");
    change(&mut c, "DELETE FROM {t} WHERE id % 13 = 5");
    change(
        &mut c,
        "INSERT INTO {t} (id, a, n, s, tz) SELECT i, i % 7, i, 'late', timestamptz '2001-06-01 00:00+00' FROM generate_series(2000, 2400) i",
    );
    in_all_modes(&mut c, "changed", &shapes());
    change(
        &mut c,
        "ALTER TABLE {t} ADD COLUMN z int DEFAULT 7, ADD COLUMN zn numeric(8,3) DEFAULT 1.5, ADD COLUMN zt text",
    );
    change(&mut c, "UPDATE {t} SET z = 8, zn = 2.25, zt = 'here' WHERE id % 50 = 1");
    let added = [
        "SELECT z, zn, zt, count(*), sum(z), sum(zn), max(zn), count(zt) FROM {t} GROUP BY 1, 2, 3",
        "SELECT count(*), sum(z), avg(zn), min(z) FROM {t} WHERE z = 7",
        "SELECT id FROM {t} WHERE zn > 2 OR zt IS NOT NULL",
        "SELECT * FROM {t} WHERE zt IS NULL AND z < 8 AND id < 30",
    ]
    .map(str::to_owned);
    in_all_modes(&mut c, "columns added", &added);
    change(&mut c, "ALTER TABLE {t} DROP COLUMN b, ALTER COLUMN n TYPE numeric(14,2), ALTER COLUMN u TYPE text");
    let rest = [
        "SELECT * FROM {t}",
        "SELECT u, n, count(*), sum(n), max(n) FROM {t} WHERE n > 3.5 GROUP BY 1, 2",
        "SELECT count(*) FROM {t} WHERE u = md5('77')",
    ]
    .map(str::to_owned);
    in_all_modes(&mut c, "types changed", &rest);
    change(&mut c, "DELETE FROM {t}");
    in_all_modes(&mut c, "all deleted", &rest);
}

#[test]
fn numerics_with_nan_and_without_scale_stay_exact() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    for t in ["h", "w"] {
        c.batch_execute(&format!(
            "CREATE TABLE {t} (id int PRIMARY KEY, n numeric(10,3), p numeric(20,0), q numeric(38,10));
             INSERT INTO {t} SELECT i, CASE WHEN i % 100 = 0 THEN 'NaN' ELSE i / 7.0 - 50 END, -i * 99999999999999, i * 0.0000000001 FROM generate_series(1, 900) i"
        ))
        .unwrap();
    }
    c.execute("SELECT strata.to_warm('w')", &[]).unwrap();
    let queries = [
        "SELECT sum(n), avg(n), min(n), max(n), count(n) FROM {t}",
        "SELECT sum(n), avg(n), min(n), max(n), count(n) FROM {t} WHERE id % 100 > 0",
        "SELECT sum(n), avg(n), min(n), max(n) FROM {t} WHERE id = 100",
        "SELECT sum(p), avg(p), min(p), max(p), sum(q), avg(q), max(q) FROM {t}",
        "SELECT n, count(*), max(n) FROM {t} GROUP BY n",
        "SELECT id % 3, sum(n), sum(p) FROM {t} GROUP BY 1",
        "SELECT count(*) FROM {t} WHERE n = 'NaN'",
        "SELECT count(*) FROM {t} WHERE n > 10.0001 AND p < -5 AND q <> 0.0000000004",
        "SELECT id FROM {t} WHERE n <= -49.857",
        "SELECT count(*) FROM {t} WHERE p < 1e40 AND p > -1e400::numeric",
    ]
    .map(str::to_owned);
    in_all_modes(&mut c, "numerics", &queries);
    change(&mut c, "ALTER TABLE {t} ALTER COLUMN p TYPE numeric");
    in_all_modes(&mut c, "scale dropped", &queries);
}

#[test]
fn random_queries_give_what_the_heap_gives() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    create(&mut c, 1000);
    change(&mut c, "UPDATE {t} SET a = a + 1, n = n * 2 WHERE id % 17 = 0");
    change(&mut c, "DELETE FROM {t} WHERE id % 23 = 0");
    let seeds: u64 = std::env::var("STRATA_SEEDS").map_or(18, |s| s.parse().unwrap());
    for seed in 0..seeds {
        let mut r = StdRng::seed_from_u64(seed);
        c.batch_execute("RESET ALL; SET extra_float_digits = 0").unwrap();
        c.batch_execute(MODES[seed as usize % MODES.len()]).unwrap();
        for _ in 0..25 {
            same(&mut c, &format!("seed {seed}"), &random_query(&mut r));
        }
    }
}

#[test]
fn generic_plans_and_cursors_give_what_the_heap_gives() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    create(&mut c, 1000);
    c.batch_execute("SET plan_cache_mode = force_generic_plan").unwrap();
    for (i, (types, sql, calls)) in [
        ("int", "SELECT id, s FROM {t} WHERE id = $1", ["(5)", "(NULL)", "(1001)"]),
        (
            "text, int",
            "SELECT count(*), sum(c) FROM {t} WHERE s = $1 AND a < $2",
            ["('text 7', 9)", "(NULL, 1)", "('x', NULL)"],
        ),
        (
            "numeric, date",
            "SELECT a, count(*) FROM {t} WHERE n > $1 AND d >= $2 GROUP BY a",
            ["(3.333, '2001-03-01')", "('NaN', '2001-01-01')", "(-1e30, '-infinity')"],
        ),
        ("int[]", "SELECT id FROM {t} WHERE id = ANY ($1)", ["('{1,2,NULL,5000}')", "('{}')", "(NULL)"]),
        (
            "float8, bool",
            "SELECT count(*), max(f) FROM {t} WHERE f < $1 AND x = $2",
            ["('NaN', true)", "(0, false)", "('infinity', NULL)"],
        ),
    ]
    .iter()
    .enumerate()
    {
        for t in ["h", "w"] {
            c.batch_execute(&format!("PREPARE p{i}_{t} ({types}) AS {}", sql.replace("{t}", t))).unwrap();
        }
        for call in calls {
            same(&mut c, "generic plan", &format!("EXECUTE p{i}_{{t}}{call}"));
        }
        change(&mut c, "UPDATE {t} SET c = 0 WHERE id = 5");
        for call in calls {
            same(&mut c, "generic plan again", &format!("EXECUTE p{i}_{{t}}{call}"));
        }
    }
    for t in ["h", "w"] {
        c.batch_execute(&format!("BEGIN; DECLARE k SCROLL CURSOR FOR SELECT id, s FROM {t} WHERE a = 4 ORDER BY id"))
            .unwrap();
        let fetched: Vec<_> =
            ["FETCH 3 FROM k", "FETCH BACKWARD 2 FROM k", "FETCH ABSOLUTE 20 FROM k", "FETCH LAST FROM k"]
                .iter()
                .map(|f| twin::rows(&mut c, f).unwrap())
                .collect();
        c.batch_execute("COMMIT").unwrap();
        assert_eq!(fetched[0].len(), 3);
        assert_eq!(fetched[1][0][0].as_deref(), Some("14"));
    }
}

#[test]
fn partitions_hot_and_warm_aggregate_together() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    for t in ["h", "w"] {
        c.batch_execute(&format!(
            "CREATE TABLE {t} (id bigint, ts timestamp, k int, s text, n numeric(10,2), PRIMARY KEY (ts, id)) PARTITION BY RANGE (ts);
             CREATE TABLE {t}1 PARTITION OF {t} FOR VALUES FROM ('2001-01-01') TO ('2001-02-01');
             CREATE TABLE {t}2 PARTITION OF {t} FOR VALUES FROM ('2001-02-01') TO ('2001-03-01') PARTITION BY HASH (id);
             CREATE TABLE {t}2a PARTITION OF {t}2 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
             CREATE TABLE {t}2b (s text, gone int, n numeric(10,2), k int, ts timestamp NOT NULL, id bigint NOT NULL);
             ALTER TABLE {t}2b DROP COLUMN gone;
             ALTER TABLE {t}2 ATTACH PARTITION {t}2b FOR VALUES WITH (MODULUS 2, REMAINDER 1);
             CREATE TABLE {t}3 PARTITION OF {t} FOR VALUES FROM ('2001-03-01') TO ('2001-04-01');
             CREATE TABLE {t}4 PARTITION OF {t} FOR VALUES FROM ('2001-04-01') TO ('2001-05-01');
             INSERT INTO {t} SELECT i, timestamp '2001-01-01' + i * interval '37 minutes', i % 9, 's' || i % 30, i * 0.01 FROM generate_series(1, 3400) i;
             ANALYZE {t}"
        ))
        .unwrap();
    }
    for leaf in ["w1", "w2a", "w2b"] {
        c.execute(&format!("SELECT strata.to_warm('{leaf}')"), &[]).unwrap();
    }
    change(&mut c, "UPDATE {t} SET k = 100 WHERE id % 97 = 0");
    change(&mut c, "DELETE FROM {t} WHERE id % 89 = 0");
    let queries = [
        "SELECT count(*), sum(k), avg(k), sum(id), avg(id), sum(n), avg(n), min(ts), max(n) FROM {t}",
        "SELECT s, count(*), sum(n) FROM {t} GROUP BY s",
        "SELECT date_trunc('month', ts), k, count(*), avg(n), max(id) FROM {t} GROUP BY 1, 2 ORDER BY 1, 2",
        "SELECT k, count(*) FROM {t} WHERE ts >= '2001-02-10' AND s <> 's3' GROUP BY k HAVING count(*) > 5",
        "SELECT sum(n) FROM {t} WHERE ts < '2001-01-20'",
        "SELECT count(*) FROM {t} WHERE ts = timestamp '2001-01-01' + 77 * interval '37 minutes' AND id = 77",
        "SELECT p.id, q.s FROM {t} p JOIN {t} q ON q.ts = p.ts AND q.id = p.id WHERE p.k = 100 ORDER BY p.id",
        "SELECT tableoid::regclass::text = 'x', count(*) FROM {t} GROUP BY 1",
        "SELECT ts, count(*) FROM {t} GROUP BY ts ORDER BY ts LIMIT 3",
    ]
    .map(str::to_owned);
    in_all_modes(&mut c, "partitions", &queries);
    c.batch_execute("SET enable_partitionwise_join = on; SET enable_partitionwise_aggregate = on").unwrap();
    for sql in &queries {
        same(&mut c, "partitionwise", sql);
    }
    let plan = twin::plan(&mut c, "SELECT s, count(*) FROM w GROUP BY s").unwrap();
    assert!(plan.contains("WarmAggregate"), "{plan}");
}

#[test]
fn row_security_is_not_passed_by_pushed_filters() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    create(&mut c, 200);
    c.batch_execute(
        "CREATE ROLE reader; CREATE TABLE seen (v text); GRANT ALL ON seen TO reader;
         CREATE FUNCTION leak(v text) RETURNS bool LANGUAGE plpgsql COST 0.0001 AS 'BEGIN INSERT INTO seen VALUES (v); RETURN true; END';",
    )
    .unwrap();
    change(
        &mut c,
        "ALTER TABLE {t} ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON {t} USING (a = 4); GRANT SELECT ON {t} TO reader",
    );
    for t in ["h", "w"] {
        c.batch_execute("TRUNCATE seen; SET ROLE reader").unwrap();
        let rows = twin::rows(&mut c, &format!("SELECT id FROM {t} WHERE leak(s) AND id < 100 ORDER BY id")).unwrap();
        assert_eq!(rows.len(), 10, "{t}");
        c.batch_execute("RESET ROLE").unwrap();
        let wrong = twin::value(
            &mut c,
            &format!("SELECT count(*) FROM seen WHERE v NOT IN (SELECT s FROM {t} WHERE a = 4 AND s IS NOT NULL)"),
        )
        .unwrap();
        assert_eq!(wrong, "0", "{t}");
    }
}

#[test]
fn the_plans_are_those_that_are_meant() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    create(&mut c, 100_000);
    c.batch_execute("SET max_parallel_workers_per_gather = 0").unwrap();
    let mut plan = |sql: &str| twin::plan(&mut c, sql).unwrap();
    let by_key = plan("SELECT s FROM w WHERE id = 42");
    assert!(by_key.contains("Key Lookup: w_pkey"), "{by_key}");
    assert!(!by_key.contains("Index Scan"), "{by_key}");
    let joined = plan("SELECT w.s FROM (VALUES (1), (2)) v (k) JOIN w ON w.id = v.k");
    assert!(joined.contains("Nested Loop") && joined.contains("Key Lookup: w_pkey"), "{joined}");
    let many = plan("SELECT count(*) FROM w p JOIN h q ON p.id = q.id");
    assert!(many.contains("Hash Join") || many.contains("Merge Join"), "{many}");
    let range = plan("SELECT s FROM w WHERE a = 4");
    assert!(range.contains("WarmScan") && range.contains("Pushed Filter"), "{range}");
    let counted = plan("SELECT count(*) FROM w");
    assert!(counted.contains("WarmAggregate") && !counted.contains("Columns"), "{counted}");
    let grouped = plan("SELECT s, sum(a) FROM w WHERE b > 3 GROUP BY s");
    assert!(grouped.contains("WarmAggregate") && grouped.contains("Columns: s, a"), "{grouped}");
    let computed = plan("SELECT date_trunc('month', d)::date, sum(n * (1 - n)), avg(f) FROM w GROUP BY 1");
    assert!(computed.contains("WarmAggregate") && computed.contains("Columns: d, n, f"), "{computed}");
    let first = plan("SELECT DISTINCT ON (y) y, tz, id FROM w ORDER BY y, tz DESC");
    assert!(first.contains("First Of: y by tz DESC"), "{first}");
    let filtered = plan("SELECT DISTINCT ON (y) y, tz, id FROM w WHERE length(s) = 6 ORDER BY y, tz DESC");
    assert!(!filtered.contains("First Of"), "{filtered}");
    let dates = plan("SELECT s FROM w WHERE d < timestamp '2001-03-01 12:00'");
    assert!(dates.contains("Pushed Filter: (d <"), "{dates}");
    let system = plan("SELECT xmin FROM w WHERE a = 4");
    assert!(!system.contains("WarmScan"), "{system}");
    let expression = plan("SELECT id FROM w WHERE a + 1 = 100000");
    assert!(expression.contains("w_expr_idx"), "{expression}");

    let json =
        twin::value(&mut c, "EXPLAIN (ANALYZE, TIMING off, SUMMARY off, FORMAT json) SELECT s FROM w WHERE id < 10")
            .unwrap();
    for property in ["\"Blocks Pruned\": 3", "\"Fragments\": 1", "\"Fragments Pruned\": 0", "\"Pushed Filter\""] {
        assert!(json.contains(property), "{property} is not in {json}");
    }
    let pruned =
        twin::rows(&mut c, "EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) SELECT s FROM w WHERE id > 1000000")
            .unwrap();
    let pruned: Vec<String> = pruned.into_iter().filter_map(|r| r[0].clone()).collect();
    assert!(pruned.iter().any(|l| l.contains("Fragments: 1  pruned: 1")), "{pruned:?}");
    c.batch_execute("SET max_parallel_workers_per_gather = 2; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET strata.enable_aggregate_pushdown = off").unwrap();
    let parallel = twin::plan(&mut c, "SELECT s, count(f) FROM w WHERE a > 2 GROUP BY s").unwrap();
    assert!(parallel.contains("Parallel Custom Scan (WarmScan)"), "{parallel}");
}
