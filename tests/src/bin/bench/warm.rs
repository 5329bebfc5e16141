//! Warm against heap, on three million flights.

use anyhow::Result;
use postgres::Client;
use std::time::{Duration, Instant};
use strata_tests::report::{Screen, bytes, count, time};
use strata_tests::{Cluster, Options, flights, process, queries, twin};

/// Statements that touch one row each, by key.
const SINGLE: &[(&str, &str)] = &[
    ("row by its key, prepared", "SELECT * FROM flights WHERE date = $1::text::timestamp AND id = $2"),
    ("UPDATE of a row by its key", "UPDATE flights SET delay = delay + 1 WHERE date = $1::text::timestamp AND id = $2"),
    ("late INSERT", "INSERT INTO flights VALUES (100000000 + $2::bigint, $1::text::timestamp, 1, 1, 'AAA', 'BBB')"),
    ("DELETE of a row by its key", "DELETE FROM flights WHERE date = $1::text::timestamp AND id = $2"),
];
const SAMPLES: usize = 400;

/// Runs it.
pub fn run(screen: &mut Screen) -> Result<()> {
    screen.chapter("Warm against heap: three million flights");
    let file = flights::fetch(&mut |s| screen.say(s))?;
    let cluster = Cluster::with(
        Options::new()
            .set("shared_buffers", "512MB")
            .set("max_wal_size", "4GB")
            .set("jit", "off")
            .set("max_parallel_workers_per_gather", "0")
            .set("strata.policy_interval", "0")
            .set("synchronous_commit", "off"),
    )?;
    let mut c = cluster.connect()?;
    let rows = flights::load(&file, &mut c)?;
    let heap_bytes = flights::total_bytes(&mut c)?;
    let heap = queries::measure(&mut c)?;
    let heap_single = single(&mut c)?;
    // What the single statements changed is undone, so that both sides measure the same rows.
    c.batch_execute("VACUUM ANALYZE flights")?;

    let start = Instant::now();
    for month in 1..=6 {
        c.batch_execute(&format!("SELECT strata.to_warm('flights_2001_{month:02}')"))?;
    }
    let took = start.elapsed();
    c.batch_execute("VACUUM ANALYZE flights")?;
    let warm_bytes = flights::total_bytes(&mut c)? + process::tree_bytes(cluster.store());
    let warm = queries::measure(&mut c)?;
    let warm_single = single(&mut c)?;

    let per_second = (rows as f64 / took.as_secs_f64()) as i64;
    screen.say(&format!("Moved in {}: {} rows a second (wall clock).", time(took), count(per_second)));
    let mut table = queries::compare(&heap, &warm)?;
    table.push(vec![
        "bytes with indexes".into(),
        bytes(heap_bytes),
        bytes(warm_bytes),
        format!("1/{:.1}", heap_bytes as f64 / warm_bytes as f64),
    ]);
    for (((name, _), h), w) in SINGLE.iter().zip(&heap_single).zip(&warm_single) {
        table.push(vec![(*name).to_owned(), time(*h), time(*w), format!("{:.2}x", h.as_secs_f64() / w.as_secs_f64())]);
    }
    screen.table(&["", "heap", "warm", "ratio"], &table);
    Ok(())
}

/// The median time of each single-row statement over rows from all over the table, each in a transaction of its own that is
/// rolled back.
fn single(c: &mut Client) -> Result<Vec<Duration>> {
    let mut medians = Vec::new();
    for (n, (_, sql)) in SINGLE.iter().enumerate() {
        // Other rows for each statement: a promotion outlives the rollback, so a row is only promoted once.
        let pick = format!("SELECT date, id FROM flights WHERE id % 7001 = {n} ORDER BY md5(id::text)");
        let keys: Vec<(String, i64)> = twin::rows(c, &pick)?
            .into_iter()
            .filter_map(|r| Some((r[0].clone()?, r[1].clone()?.parse().ok()?)))
            .take(SAMPLES)
            .collect();
        let statement = c.prepare(sql)?;
        let mut times = Vec::with_capacity(keys.len());
        for (date, id) in &keys {
            let mut t = c.transaction()?;
            let start = Instant::now();
            t.execute(&statement, &[date, id])?;
            times.push(start.elapsed());
            t.rollback()?;
        }
        times.sort_unstable();
        medians.push(times.get(times.len() / 2).copied().unwrap_or_default());
    }
    Ok(medians)
}
