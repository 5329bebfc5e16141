//! PostgreSQL's index scans on cold data, with and without Strata's prefetch.
//!
//! Before each run the server is stopped and the operating system is told to forget the files of its data directory (each is
//! written out, then `posix_fadvise(DONTNEED)`), so that only this server's data is cold, and nobody has to be root. Wall time
//! counts here, since the scans wait; runs with and without alternate, and the best of each is taken.

use crate::verdict::Goals;
use anyhow::{Context, Result, ensure};
use postgres::Client;
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::time::{Duration, Instant};
use strata_tests::process::files_below;
use strata_tests::report::{Screen, bytes, time};
use strata_tests::{Cluster, Options, twin};

/// 400 MB: eight rows a block. `k` has nothing to do with the order of the rows, `id` is that order.
const TABLE: &str = "CREATE TABLE t (id int, k bigint, pad text);
    INSERT INTO t SELECT i, hashint8(i)::bigint, repeat(chr(97 + i % 20), 900) FROM generate_series(1, 400000) i;
    CREATE INDEX t_k ON t (k); CREATE INDEX t_id ON t (id)";
const SETTINGS: &str = "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off";
const DISTANCES: [u32; 4] = [0, 16, 64, 256];
const RUNS: usize = 3;

/// What is run; whether the ratio is a goal.
const WORK: [(&str, &str, bool); 5] = [
    (
        "range in another order than the table",
        "SELECT count(pad) FROM (SELECT pad FROM t WHERE k BETWEEN 0 AND 214748364 ORDER BY k) s",
        true,
    ),
    (
        "the same backward",
        "SELECT count(pad) FROM (SELECT pad FROM t WHERE k BETWEEN 0 AND 214748364 ORDER BY k DESC) s",
        true,
    ),
    (
        "the same, a filter keeps one row of 500",
        "SELECT count(pad) FROM (SELECT pad FROM t WHERE k BETWEEN 0 AND 214748364 AND id % 500 = 0 ORDER BY k) s",
        true,
    ),
    ("LIMIT 10", "SELECT pad FROM t WHERE k > 0 ORDER BY k LIMIT 10", false),
    (
        "range in the table's order",
        "SELECT count(pad) FROM (SELECT pad FROM t WHERE id BETWEEN 100000 AND 300000 ORDER BY id) s",
        false,
    ),
];

/// Runs it; false if a goal was missed.
pub fn run(screen: &mut Screen) -> Result<bool> {
    screen.chapter("Prefetch: index scans of cold data, with and without");
    let options = Options::new()
        .set("shared_buffers", "16MB")
        .set("max_wal_size", "4GB")
        .set("autovacuum", "off")
        .set("max_parallel_workers_per_gather", "0")
        .set("strata.policy_interval", "0");
    let cluster = Cluster::with(options)?;
    let mut c = cluster.connect()?;
    c.batch_execute(TABLE)?;
    c.batch_execute("VACUUM ANALYZE t")?;
    let size: i64 = c.query_one("SELECT pg_table_size('t')", &[])?.get(0);
    screen.say(&format!("A table of {}, shared buffers 16 MB; best of {RUNS}, wall clock.", bytes(size as u64)));
    drop(c);

    let mut goals = Goals::default();
    let mut table = Vec::new();
    for (name, sql, is_goal) in WORK {
        let mut best = [Duration::MAX; DISTANCES.len()];
        let mut answer = None;
        for _ in 0..RUNS {
            for (best, distance) in best.iter_mut().zip(DISTANCES) {
                let mut c = cold(&cluster)?;
                c.batch_execute(SETTINGS)?;
                c.batch_execute(&format!("SET strata.index_prefetch_distance = {distance}"))?;
                let start = Instant::now();
                let rows = twin::rows(&mut c, sql)?;
                *best = (*best).min(start.elapsed());
                let known = answer.get_or_insert_with(|| rows.clone());
                ensure!(*known == rows, "{sql}: other rows with prefetch");
            }
        }
        let ratio = best[0].as_secs_f64() / best[2].as_secs_f64();
        let mut row = vec![name.to_owned()];
        row.extend(best.iter().map(|t| time(*t)));
        row.push(format!("{ratio:.1}x"));
        table.push(row);
        if is_goal {
            goals.at_least(name, ratio, 2.0, "times as fast, cold");
        }
    }
    screen.table(&["cold", "without", "distance 16", "64 (default)", "256", "ratio"], &table);
    warm(screen, &cluster)?;
    Ok(goals.print(screen) == 0)
}

/// What it costs when everything is in a cache.
fn warm(screen: &Screen, cluster: &Cluster) -> Result<()> {
    let mut c = cluster.connect()?;
    c.batch_execute(SETTINGS)?;
    let meter = crate::meter::Meter::of(&mut c)?;
    let mut table = Vec::new();
    let point = "SELECT count(pad) FROM generate_series(1, 20000) x JOIN t ON t.id = x * 20 AND k IS NOT NULL";
    for (name, sql) in [("range, in the file cache", WORK[0].1), ("20,000 look-ups", point)] {
        let mut best = [Duration::MAX; 2];
        for _ in 0..RUNS + 2 {
            for (best, distance) in best.iter_mut().zip([0, 64]) {
                c.batch_execute(&format!("SET strata.index_prefetch_distance = {distance}; SET enable_hashjoin = off; SET enable_mergejoin = off"))?;
                let (_, cost) = meter.measure(|| twin::rows(&mut c, sql))?;
                *best = (*best).min(cost.cpu);
            }
        }
        let more = best[1].as_secs_f64() / best[0].as_secs_f64();
        table.push(vec![name.to_owned(), time(best[0]), time(best[1]), format!("{more:.2}x")]);
    }
    screen.table(&["warm, CPU time", "without", "with", "with / without"], &table);
    Ok(())
}

/// The server started again, with nothing of its data in memory.
fn cold(cluster: &Cluster) -> Result<Client> {
    cluster.stop("fast")?;
    for path in files_below(cluster.data()) {
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        file.sync_all().with_context(|| format!("sync {}", path.display()))?;
        fadvise(&file, 0, None, Advice::DontNeed).with_context(|| format!("drop {}", path.display()))?;
    }
    cluster.up()?;
    let mut c = cluster.connect()?;
    // What any first query of a session reads.
    c.batch_execute(
        "SELECT relname FROM pg_class WHERE relname = 't'; EXPLAIN SELECT k, id FROM t WHERE k = 1 AND id = 1",
    )?;
    Ok(c)
}
