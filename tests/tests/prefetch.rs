//! Prefetch ahead of index scans: the same rows in the same order as without it, whatever else happens to table and index; and it
//! is there where it should be and only there. The oracle is PostgreSQL's scan with `strata.index_prefetch_distance = 0`.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use postgres::Client;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use strata_tests::cluster::Options;
use strata_tests::script::{self, Outcome};
use strata_tests::{Cluster, checks, twin};

/// Few buffers, so that reads are seen, and prefetch as soon as a scan is sequential.
fn cluster() -> Cluster {
    Cluster::with(
        Options::new()
            .set("shared_buffers", "1MB")
            .set("autovacuum", "off")
            .set("strata.policy_interval", "0")
            .set("strata.snapshot_wait", "100ms")
            .set("strata.consolidate_on_vacuum", "off")
            .set("strata.index_prefetch_min_size", "0")
            .set("strata.index_prefetch_latency", "0"),
    )
    .unwrap()
}

const INDEX_ONLY: &str = "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off";

/// A table whose indexes have nothing to do with its order: `k` unique, `d` with many duplicates (lists of TIDs), `a, b` wide.
fn create(c: &mut Client, name: &str, rows: u32) {
    c.batch_execute(&format!(
        "CREATE TABLE {name} (id int, k bigint, d int, a text, b int, n int, pad text);
         INSERT INTO {name} SELECT i, hashint8(i)::bigint * 4096 + i, hashint4(i) % 40, 'a text of some length ' || hashint4(i) % 300,
             i % 7, CASE WHEN i % 3 > 0 THEN hashint4(i + 1) % 1000 END, repeat('x', 150) FROM generate_series(1, {rows}) i;
         CREATE INDEX {name}_k ON {name} (k);
         CREATE INDEX {name}_d ON {name} (d);
         CREATE INDEX {name}_ab ON {name} (a, b DESC) WITH (fillfactor = 50);
         CREATE INDEX {name}_n ON {name} (n NULLS FIRST) INCLUDE (b);
         CREATE INDEX {name}_nd ON {name} (n DESC NULLS LAST, k);
         ANALYZE {name}"
    ))
    .unwrap();
}

fn with(c: &mut Client, distance: u32, sql: &str) -> Outcome {
    c.batch_execute(&format!("SET strata.index_prefetch_distance = {distance}")).unwrap();
    script::outcome(c, sql).unwrap()
}

/// The same rows in the same order, for these distances.
fn same(c: &mut Client, context: &str, distances: &[u32], sql: &str) {
    let expected = with(c, 0, sql);
    if let Outcome::Done(rows, _) = &expected {
        assert!(!rows.is_empty(), "{context}: {sql} tests nothing");
    }
    for &distance in distances {
        let got = with(c, distance, sql);
        if got != expected {
            let at = match (&expected, &got) {
                (Outcome::Done(e, _), Outcome::Done(g, _)) => {
                    format!("{} and {} rows, {:?}", e.len(), g.len(), e.iter().zip(g).position(|(a, b)| a != b))
                }
                _ => format!("{expected:?} and {got:?}"),
            };
            panic!("{context}, distance {distance}: {sql}\n{at}\n{}", twin::plan(c, sql).unwrap());
        }
    }
}

/// What EXPLAIN ANALYZE counts, of all nodes: leaves, blocks; None where prefetch is not mentioned.
fn counted(c: &mut Client, sql: &str) -> Option<(u64, u64)> {
    fn collect(v: &Value, sum: &mut Option<(u64, u64)>) {
        match v {
            Value::Object(o) => {
                if let (Some(l), Some(b)) = (o.get("Prefetched Leaves"), o.get("Prefetched Blocks")) {
                    assert!(o["Prefetch Distance"].as_u64().unwrap() > 0);
                    let (leaves, blocks) = sum.unwrap_or_default();
                    *sum = Some((leaves + l.as_u64().unwrap(), blocks + b.as_u64().unwrap()));
                }
                o.values().for_each(|v| collect(v, sum));
            }
            Value::Array(a) => a.iter().for_each(|v| collect(v, sum)),
            _ => {}
        }
    }
    let row = c.query_one(&format!("EXPLAIN (ANALYZE, FORMAT JSON) {sql}"), &[]).unwrap();
    let mut sum = None;
    collect(&row.get::<_, Value>(0), &mut sum);
    sum
}

#[test]
fn scans_of_every_kind_give_the_same_rows() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    create(&mut c, "t", 30_000);
    c.batch_execute(
        "CREATE TABLE p (LIKE t) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10000);
         CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10000) TO (70000);
         INSERT INTO p SELECT * FROM t; CREATE INDEX ON p (k); CREATE INDEX ON p (d); ANALYZE p;
         CREATE TABLE w (LIKE t); INSERT INTO w SELECT * FROM t WHERE id <= 15000;
         CREATE INDEX w_e ON w ((k + 1)); CREATE INDEX w_k ON w (k);",
    )
    .unwrap();
    checks::rewarm(&mut c, "w").unwrap();
    c.batch_execute("INSERT INTO w SELECT * FROM t WHERE id > 15000; ANALYZE w").unwrap();
    c.batch_execute(INDEX_ONLY).unwrap();
    let queries = [
        "SELECT * FROM t WHERE k BETWEEN -3000000000000 AND 3000000000000 ORDER BY k",
        "SELECT * FROM t WHERE k BETWEEN -3000000000000 AND 3000000000000 ORDER BY k DESC",
        "SELECT k FROM t WHERE k > 0 ORDER BY k",
        "SELECT k FROM t WHERE k < 0 ORDER BY k DESC",
        "SELECT * FROM t ORDER BY k",
        "SELECT * FROM t ORDER BY k LIMIT 5000",
        "SELECT * FROM t ORDER BY k DESC OFFSET 4000 LIMIT 10",
        "SELECT id, d FROM t WHERE d >= 3 AND d < 30 ORDER BY d",
        "SELECT id, d FROM t WHERE d >= 3 AND d < 30 ORDER BY d DESC",
        "SELECT id, d FROM t WHERE d IN (3, 4, 17, 39, -5) ORDER BY d",
        "SELECT d FROM t WHERE d > -100 ORDER BY d",
        "SELECT * FROM t WHERE a > 'a text of some length 1' AND b = 3 ORDER BY a",
        "SELECT * FROM t WHERE a BETWEEN 'a text of some length 1' AND 'a text of some length 2' ORDER BY a, b DESC",
        "SELECT * FROM t WHERE a BETWEEN 'a text of some length 1' AND 'a text of some length 2' ORDER BY a DESC, b",
        "SELECT * FROM t WHERE (a, b) > ('a text of some length 150', 3) ORDER BY a",
        "SELECT * FROM t WHERE (k, id) < (1000000, 5) AND k > -2000000000000 ORDER BY k",
        "SELECT n, b FROM t WHERE n IS NULL ORDER BY n NULLS FIRST",
        "SELECT n, b FROM t WHERE n IS NOT NULL ORDER BY n NULLS FIRST",
        "SELECT n, b FROM t ORDER BY n DESC NULLS LAST",
        "SELECT n, k FROM t WHERE n < 100 ORDER BY n DESC NULLS LAST, k",
        "SELECT n, k, pad FROM t WHERE n < 100 AND k > 0 ORDER BY n NULLS FIRST, k DESC",
        "SELECT id FROM t WHERE k > 0 AND id % 50 = 7 ORDER BY k",
        "SELECT count(*), min(k), max(n) FROM t WHERE k > -99",
        "SELECT a.id, b.id FROM t a JOIN t b ON a.d = b.n WHERE a.k > 7000000000000 AND b.k > 7000000000000 ORDER BY 1, 2",
        "SELECT x, (SELECT min(id) FROM t WHERE d = x AND k > 0), (SELECT count(id) FROM t WHERE n = x) FROM generate_series(-39, 39) x",
        "SELECT x, i.* FROM generate_series(1, 20) x, LATERAL (SELECT id FROM t WHERE d = x ORDER BY k LIMIT 900) i",
        "SELECT * FROM p WHERE k > 0 ORDER BY k",
        "SELECT * FROM p WHERE k < 0 ORDER BY k DESC",
        "SELECT id, d FROM p WHERE d > 10",
        "SELECT id FROM w WHERE k + 1 > 0 ORDER BY k + 1",
        "SELECT id FROM w WHERE k + 1 < 0 ORDER BY k + 1 DESC",
        "SELECT id, k FROM w WHERE k > 0 AND k + 1 > 0 ORDER BY k + 1",
    ];
    let modes = ["SELECT 1", "SET enable_hashjoin = off; SET enable_nestloop = off", "SET enable_indexonlyscan = off"];
    for vacuumed in [false, true] {
        if vacuumed {
            c.batch_execute("DELETE FROM t WHERE id % 4 = 0 OR k BETWEEN 0 AND 400000000000").unwrap();
            c.batch_execute("VACUUM t, p, w").unwrap();
            c.batch_execute("UPDATE t SET n = n + 1 WHERE id % 9 = 0").unwrap();
        }
        for (i, mode) in modes.iter().enumerate().skip(usize::from(vacuumed)) {
            c.batch_execute(mode).unwrap();
            let distances: &[u32] = if i == 0 { &[1, 3, 64] } else { &[64] };
            for sql in queries {
                same(&mut c, &format!("{mode}, vacuumed {vacuumed}"), distances, sql);
            }
            c.batch_execute("RESET ALL").unwrap();
            c.batch_execute(INDEX_ONLY).unwrap();
        }
    }
    // It was at work, and on warm tables did not take virtual blocks for blocks.
    let looked = [
        "SELECT * FROM t WHERE k > 0 ORDER BY k",
        "SELECT * FROM t WHERE k > 0 ORDER BY k DESC",
        "SELECT * FROM p WHERE k > 0 ORDER BY k",
        "SELECT id FROM w WHERE k + 1 > 0 ORDER BY k + 1",
    ];
    for sql in looked {
        let (leaves, blocks) = counted(&mut c, sql).unwrap();
        assert!(leaves > 10 && blocks > 100, "{sql}: {leaves} leaves, {blocks} blocks");
    }
    let (leaves, blocks) =
        counted(&mut c, "SELECT k FROM t WHERE k BETWEEN 500000000000 AND 4000000000000 ORDER BY k").unwrap();
    assert!(leaves > 3, "an index-only scan asks for leaves: {leaves}, {blocks}");
}

#[test]
fn it_is_shown_and_stays_away_where_it_does_not_pay() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    create(&mut c, "t", 60_000);
    c.batch_execute("CREATE UNIQUE INDEX t_id ON t (id)").unwrap();
    c.batch_execute("VACUUM ANALYZE t").unwrap();
    c.batch_execute(INDEX_ONLY).unwrap();
    let plan = twin::plan(&mut c, "SELECT * FROM t WHERE k > 0 ORDER BY k").unwrap();
    assert!(plan.contains("refetch") && plan.contains("distance 64"), "{plan}");
    let range = "SELECT * FROM t WHERE k > 0 ORDER BY k";
    let (leaves, blocks) = counted(&mut c, range).unwrap();
    assert!(leaves > 50 && blocks > 1000, "{leaves} leaves, {blocks} blocks");

    // The whole key of a unique index: not looked at. A range of it: looked at.
    assert_eq!(counted(&mut c, "SELECT * FROM t WHERE id = 77"), None);
    assert!(counted(&mut c, "SELECT * FROM t WHERE id BETWEEN 77 AND 77").is_some());
    c.batch_execute("CREATE UNIQUE INDEX t_ib ON t (id, b); DROP INDEX t_id").unwrap();
    assert_eq!(counted(&mut c, "SELECT * FROM t WHERE id = 77 AND b = 0"), None);
    assert!(counted(&mut c, "SELECT * FROM t WHERE id = 77").is_some());
    // A few rows are not sequential access.
    for few in ["SELECT * FROM t WHERE k > 0 ORDER BY k LIMIT 20", "SELECT * FROM t WHERE n = 5 AND k > 0 ORDER BY k"] {
        assert_eq!(counted(&mut c, few), Some((0, 0)), "{few}");
    }
    // Many look-ups neither.
    let nested = "SELECT count(t.id) FROM generate_series(1, 3000) x JOIN t ON t.k = x::bigint * 4096";
    c.batch_execute("SET enable_hashjoin = off; SET enable_mergejoin = off").unwrap();
    assert_eq!(counted(&mut c, nested), Some((0, 0)));
    c.batch_execute("RESET enable_hashjoin; RESET enable_mergejoin").unwrap();

    // Reads out of the operating system's cache are fast.
    c.batch_execute("SET strata.index_prefetch_latency = 1000000").unwrap();
    assert_eq!(counted(&mut c, range), Some((0, 0)));
    c.batch_execute("RESET strata.index_prefetch_latency").unwrap();
    // A table in the order of the index: the operating system reads ahead.
    let (_, blocks) = counted(&mut c, "SELECT * FROM t WHERE id > 5000 ORDER BY id").unwrap();
    assert!(blocks < 20, "{blocks}");

    // Nothing is said, or done, when it is off, for small tables and for temporary ones.
    for off in ["SET strata.index_prefetch_distance = 0", "SET strata.index_prefetch_min_size = '1GB'"] {
        c.batch_execute(off).unwrap();
        assert_eq!(counted(&mut c, range), None, "{off}");
        c.batch_execute("RESET strata.index_prefetch_distance; RESET strata.index_prefetch_min_size").unwrap();
    }
    c.batch_execute("CREATE TEMP TABLE s AS SELECT * FROM t; CREATE INDEX ON s (k); ANALYZE s").unwrap();
    assert_eq!(counted(&mut c, "SELECT * FROM s WHERE k > 0 ORDER BY k"), None);
    assert!(counted(&mut c, range).is_some());
}

#[test]
fn cursors_go_both_ways_and_find_their_rows() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    create(&mut c, "t", 20_000);
    c.batch_execute(INDEX_ONLY).unwrap();
    let mut random = StdRng::seed_from_u64(11);
    for sql in [
        "SELECT id, k FROM t WHERE k > 0 ORDER BY k",
        "SELECT k FROM t WHERE k < 0 ORDER BY k DESC",
        "SELECT d, id FROM t ORDER BY d",
    ] {
        let moves: Vec<String> = (0..40)
            .map(|_| match random.random_range(0..6) {
                0 => format!("FETCH BACKWARD {} FROM c", random.random_range(1..1500)),
                1 => format!("FETCH ABSOLUTE {} FROM c", random.random_range(-2000..9000)),
                2 => format!("FETCH RELATIVE {} FROM c", random.random_range(-900..900)),
                3 => "MOVE FORWARD 700 IN c".into(),
                _ => format!("FETCH FORWARD {} FROM c", random.random_range(1..2500)),
            })
            .collect();
        let mut run = |distance: u32| {
            let begin =
                format!("SET strata.index_prefetch_distance = {distance}; BEGIN; DECLARE c SCROLL CURSOR FOR {sql}");
            c.batch_execute(&begin).unwrap();
            let all: Vec<Outcome> = moves.iter().map(|m| script::outcome(&mut c, m).unwrap()).collect();
            c.batch_execute("COMMIT").unwrap();
            all
        };
        let (without, with) = (run(0), run(64));
        for (i, (a, b)) in without.iter().zip(&with).enumerate() {
            assert_eq!(a, b, "{sql}: {}", moves[i]);
        }
    }
    // WHERE CURRENT OF, with holes; held cursors; a function that fails in the middle of a scan and goes on.
    let changes = [
        "BEGIN; DECLARE c CURSOR FOR SELECT * FROM t WHERE k > 0 ORDER BY k FOR UPDATE; MOVE 3000 IN c;
         UPDATE t SET n = -1 WHERE CURRENT OF c; MOVE 3000 IN c; DELETE FROM t WHERE CURRENT OF c; COMMIT",
        "BEGIN; DECLARE h CURSOR WITH HOLD FOR SELECT id FROM t WHERE k > 0 ORDER BY k; MOVE 3000 IN h; COMMIT; MOVE 3000 IN h; CLOSE h",
        "DO $$ DECLARE r record; n int := 0; BEGIN
           FOR i IN 1..5 LOOP
             BEGIN FOR r IN SELECT id, 1 / (id - 9) FROM t WHERE k > 0 ORDER BY k LOOP n := n + 1; END LOOP;
             EXCEPTION WHEN division_by_zero THEN n := n + 1000; END;
             FOR r IN SELECT id FROM t WHERE k < 0 ORDER BY k LOOP n := n + 1; EXIT WHEN n % 3000 = 0; END LOOP;
           END LOOP; END $$",
    ];
    let digest = "SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM t";
    c.batch_execute("CREATE TABLE saved AS TABLE t").unwrap();
    for sql in changes {
        let mut after = Vec::new();
        for distance in [0, 64] {
            c.batch_execute(&format!(
                "TRUNCATE t; INSERT INTO t TABLE saved; SET strata.index_prefetch_distance = {distance}"
            ))
            .unwrap();
            c.batch_execute(sql).unwrap();
            after.push(twin::rows(&mut c, digest).unwrap());
        }
        assert_eq!(after[0], after[1], "{sql}");
    }
}

#[test]
fn the_tree_may_change_under_the_scan() {
    let cluster = cluster();
    let mut reader = cluster.connect().unwrap();
    let mut writer = cluster.connect().unwrap();
    create(&mut reader, "t", 15_000);
    reader.batch_execute(INDEX_ONLY).unwrap();
    let mut random = StdRng::seed_from_u64(5);
    let scans = [
        "SELECT id, k, n FROM t WHERE k > -8000000000000 ORDER BY k",
        "SELECT id, k, n FROM t WHERE k < 8000000000000 ORDER BY k DESC",
        "SELECT id, d FROM t WHERE d > -39 ORDER BY d, id",
        "SELECT k FROM t WHERE k > -8000000000000 ORDER BY k",
        "SELECT a, b, id FROM t WHERE a > 'a' ORDER BY a, b DESC, id",
    ];
    for round in 0..5 {
        let sql = scans[round % scans.len()];
        reader
            .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL strata.index_prefetch_distance = 0")
            .unwrap();
        let expected = twin::rows(&mut reader, sql).unwrap();
        let distance = [8, 64, 1024][round % 3];
        reader
            .batch_execute(&format!(
                "SET LOCAL strata.index_prefetch_distance = {distance}; DECLARE c CURSOR FOR {sql}"
            ))
            .unwrap();
        let mut got = Vec::new();
        loop {
            let some = twin::rows(&mut reader, &format!("FETCH {} FROM c", random.random_range(200..3000))).unwrap();
            if some.is_empty() {
                break;
            }
            got.extend(some);
            // Leaves split, entries die, others are inserted where the prefetcher has been already.
            let low: i64 = random.random_range(-8_000_000_000_000..8_000_000_000_000);
            let (id, m) = (random.random_range(0..1_000_000_000), random.random_range(2..9));
            writer
                .batch_execute(&format!(
                    "DELETE FROM t WHERE k BETWEEN {low} AND {low} + 600000000000;
                     INSERT INTO t SELECT {id}, {low} + i, i % 40, 'a text of some length ' || i % 300, i % 7, i, 'new' FROM generate_series(1, 1500) i;
                     UPDATE t SET n = n + 1 WHERE k > {low} AND k % {m} = 0 AND k < {low} + 2000000000000"
                ))
                .unwrap();
            // An index-only scan keeps its leaf pinned between two rows, and VACUUM waits for it.
            if random.random_bool(0.5) && !sql.starts_with("SELECT k FROM") {
                writer.batch_execute("VACUUM (INDEX_CLEANUP ON) t").unwrap();
            }
        }
        assert!(got == expected, "{sql}: {} rows instead of {}", got.len(), expected.len());
        reader.batch_execute("COMMIT").unwrap();
        // Pages are emptied, deleted and used again once no snapshot needs them.
        writer.batch_execute("DELETE FROM t WHERE k BETWEEN 0 AND 1500000000000").unwrap();
        writer.batch_execute("VACUUM t").unwrap();
        writer.batch_execute("VACUUM t").unwrap();
    }
    // One more scan, of all that happened, against the table itself.
    reader.batch_execute("SET strata.index_prefetch_distance = 64").unwrap();
    let by_index = twin::rows(&mut reader, "SELECT k, n FROM t ORDER BY k, n").unwrap();
    reader.batch_execute("RESET ALL; SET enable_indexscan = off; SET enable_indexonlyscan = off").unwrap();
    assert!(by_index == twin::rows(&mut reader, "SELECT k, n FROM t ORDER BY k, n").unwrap());
}

#[test]
fn parallel_scans_locked_rows_and_predicate_locks_are_as_without() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    create(&mut c, "t", 60_000);
    c.batch_execute("VACUUM ANALYZE t").unwrap();
    c.batch_execute(INDEX_ONLY).unwrap();
    c.batch_execute(
        "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
         SET min_parallel_index_scan_size = 0; SET max_parallel_workers_per_gather = 3",
    )
    .unwrap();
    for sql in [
        "SELECT count(*), sum(id), min(pad) FROM t WHERE k > -5000000000000",
        "SELECT count(*), sum(k) FROM t WHERE k > -5000000000000",
        "SELECT a, count(*), sum(n) FROM t WHERE a > 'a' GROUP BY a",
        "SELECT count(*), sum(x.id) FROM t x JOIN t y ON x.k = y.k WHERE x.d > 3",
    ] {
        let plan = twin::plan(&mut c, sql).unwrap();
        assert!(plan.contains("Parallel Index"), "{plan}");
        same(&mut c, "parallel", &[64], sql);
    }
    c.batch_execute("RESET max_parallel_workers_per_gather; RESET parallel_setup_cost; RESET parallel_tuple_cost")
        .unwrap();
    c.batch_execute("SET max_parallel_workers_per_gather = 0").unwrap();

    // Predicate locks: none more, none less.
    for sql in [
        "SELECT * FROM t WHERE k > 0 ORDER BY k LIMIT 3000",
        "SELECT k FROM t WHERE k BETWEEN 0 AND 900000000000 ORDER BY k",
    ] {
        let locks = "SELECT locktype, relation::regclass, page, tuple FROM pg_locks WHERE mode = 'SIReadLock' ORDER BY 1, 2, 3, 4";
        let mut taken = Vec::new();
        for distance in [0, 64] {
            c.batch_execute(&format!(
                "SET strata.index_prefetch_distance = {distance}; BEGIN ISOLATION LEVEL SERIALIZABLE"
            ))
            .unwrap();
            twin::rows(&mut c, sql).unwrap();
            taken.push(twin::rows(&mut c, locks).unwrap());
            c.batch_execute("COMMIT").unwrap();
        }
        assert!(!taken[0].is_empty() && taken[0] == taken[1], "{sql}: {} and {}", taken[0].len(), taken[1].len());
    }

    // EvalPlanQual: rows that change while they are waited for.
    let mut results = Vec::new();
    for distance in [0, 64] {
        c.batch_execute("BEGIN; UPDATE t SET k = k + 1, n = 7 WHERE id % 500 = 3").unwrap();
        let mut waiting = cluster.connect().unwrap();
        waiting.batch_execute(INDEX_ONLY).unwrap();
        waiting
            .batch_execute(&format!(
                "SET strata.index_prefetch_distance = {distance}; SET application_name = 'waiting'"
            ))
            .unwrap();
        let waiter = std::thread::spawn(move || {
            let sql = "SELECT t.id, t.k, t.n, u.id FROM t JOIN t u ON u.k = t.k + 1 - 1 WHERE t.k > 0 AND t.n < 900 ORDER BY t.k FOR UPDATE OF t";
            let rows = twin::rows(&mut waiting, sql).unwrap();
            let changed = twin::rows(
                &mut waiting,
                "WITH u AS (UPDATE t SET b = b WHERE k > 0 AND n = 7 RETURNING id, k, n) SELECT * FROM u ORDER BY id",
            )
            .unwrap();
            (rows, changed)
        });
        let blocked = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'waiting' AND wait_event_type = 'Lock'";
        let mut other = cluster.connect().unwrap();
        strata_tests::process::wait_for("a session to wait for a row", std::time::Duration::from_secs(60), || {
            other.query(blocked, &[]).is_ok_and(|r| !r.is_empty())
        })
        .unwrap();
        c.batch_execute("COMMIT").unwrap();
        results.push(waiter.join().unwrap());
        c.batch_execute("UPDATE t SET k = k - 1, n = 8 WHERE id % 500 = 3").unwrap();
    }
    assert!(!results[0].0.is_empty() && !results[0].1.is_empty());
    assert!(results[0].1 == results[1].1, "{} and {}", results[0].1.len(), results[1].1.len());
    type Rows = Vec<Vec<Option<String>>>;
    let sorted = |r: &(Rows, Rows)| {
        // `n` was 7 or kept from before the first run; the second run finds 8.
        let mut rows: Vec<_> = r.0.iter().map(|r| (r[0].clone(), r[1].clone(), r[3].clone())).collect();
        rows.sort();
        rows
    };
    assert!(sorted(&results[0]) == sorted(&results[1]));
}

#[test]
fn random_ranges_in_random_trees() {
    let cluster = cluster();
    let mut c = cluster.connect().unwrap();
    c.batch_execute(INDEX_ONLY).unwrap();
    let mut random = StdRng::seed_from_u64(23);
    for round in 0..6 {
        let rows = random.random_range(3000..25_000);
        let (x, y) = (random.random_range(1..400), random.random_range(1..40));
        let order = ["x, y", "x DESC, y", "y, x NULLS FIRST", "x, y DESC, z"][round % 4];
        let fill = random.random_range(20..100);
        c.batch_execute(&format!(
            "DROP TABLE IF EXISTS r; CREATE TABLE r (x int, y numeric, z text, pad text);
             INSERT INTO r SELECT nullif(hashint4(i) % {x}, 1), (hashint4(i + 1) % {y}) / 4.0, 'z' || hashint4(i + 2) % 50, repeat('p', 100) FROM generate_series(1, {rows}) i;
             CREATE INDEX r_i ON r ({order}) WITH (fillfactor = {fill}); ANALYZE r"
        ))
        .unwrap();
        if round % 2 == 0 {
            c.batch_execute("DELETE FROM r WHERE x % 5 = 2").unwrap();
            c.batch_execute("VACUUM r").unwrap();
        }
        for _ in 0..12 {
            let (from, to) = (random.random_range(-400..400), random.random_range(-400..400));
            let condition = match random.random_range(0..7) {
                0 => format!("x BETWEEN {} AND {}", from.min(to), from.max(to)),
                1 => format!("x > {from} AND y < {}", to % 10),
                2 => "x IS NULL".to_owned(),
                3 => format!("x IS NOT NULL AND y >= {}", to % 10),
                4 => format!("x = ANY ('{{{from},{to},3,4,5,6}}') AND y > -3"),
                5 => format!("(x, y) >= ({from}, {to})"),
                _ => "true".to_owned(),
            };
            let what = ["*", "x, y", "count(*), sum(x), min(y)"][random.random_range(0..3)];
            let keys: Vec<&str> = order.split(", ").collect();
            let backward = random.random_bool(0.4);
            let turned: Vec<String> = keys
                .iter()
                .map(|k| match (backward, *k) {
                    (false, k) => k.to_owned(),
                    (true, k) if k.ends_with(" DESC") => k.trim_end_matches(" DESC").to_owned(),
                    (true, k) if k.ends_with(" NULLS FIRST") => k.replace("NULLS FIRST", "DESC NULLS LAST"),
                    (true, k) => format!("{k} DESC"),
                })
                .collect();
            let tail =
                if what.starts_with("count") { String::new() } else { format!(" ORDER BY {}", turned.join(", ")) };
            let sql = format!("SELECT {what} FROM r WHERE {condition}{tail}");
            let expected = with(&mut c, 0, &sql);
            for distance in [3, 64] {
                assert!(
                    with(&mut c, distance, &sql) == expected,
                    "round {round}, distance {distance}: {sql}\nindex on {order}"
                );
            }
        }
    }
}
