//! The queries that are measured before and after ageing.

use crate::screen::{Screen, time};
use anyhow::{Result, bail};
use postgres::Client;
use std::time::{Duration, Instant};
use strata_tests::twin;

/// A query with its name; aggregates over many rows carry the promise of speed.
struct Query {
    name: &'static str,
    aggregate: bool,
    sql: &'static str,
}

const QUERIES: &[Query] = &[
    Query {
        name: "count, mean delay, distance flown",
        aggregate: true,
        sql: "SELECT count(*), avg(delay), sum(distance) FROM flights",
    },
    Query {
        name: "worst delay by airport",
        aggregate: true,
        sql: "SELECT origin, count(*), max(delay) FROM flights GROUP BY origin ORDER BY 2 DESC, 1 LIMIT 5",
    },
    Query {
        name: "very late, very far",
        aggregate: true,
        sql: "SELECT count(*), max(delay), min(distance) FROM flights WHERE delay > 180 AND distance > 2000",
    },
    Query {
        name: "one airport's mean delay",
        aggregate: true,
        sql: "SELECT count(*), avg(delay), max(distance) FROM flights WHERE origin = 'SEA'",
    },
    Query {
        name: "a quarter: sum and extremes",
        aggregate: true,
        sql: "SELECT count(*), sum(delay), min(delay), max(delay) FROM flights WHERE date >= '2001-02-10' AND date < '2001-05-10'",
    },
    Query {
        name: "one day's flights from Boston",
        aggregate: false,
        sql: "SELECT count(*), sum(distance) FROM flights WHERE date >= '2001-03-03' AND date < '2001-03-04' AND origin = 'BOS'",
    },
    Query {
        name: "one flight by its key",
        aggregate: false,
        sql: "SELECT * FROM flights WHERE date = '2001-01-01 00:01' AND id = 3",
    },
];

const SHOWN: &str = "SELECT origin, count(*), max(delay) FROM flights WHERE date >= '2001-03-03' AND date < '2001-03-10' GROUP BY origin";

/// What a query took and said.
pub struct Measured {
    /// The best of three.
    pub time: Duration,
    rows: Vec<Vec<Option<String>>>,
}

/// Runs each query once to warm up, then three times.
pub fn measure(c: &mut Client) -> Result<Vec<Measured>> {
    QUERIES
        .iter()
        .map(|q| {
            let rows = twin::rows(c, q.sql)?;
            let statement = c.prepare(q.sql)?;
            let mut best = Duration::MAX;
            for _ in 0..3 {
                let start = Instant::now();
                c.query(&statement, &[])?;
                best = best.min(start.elapsed());
            }
            Ok(Measured { time: best, rows })
        })
        .collect()
}

/// Prints one query's plan, as it was run.
pub fn show_plan(screen: &Screen, c: &mut Client) -> Result<()> {
    let explain = format!("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) {SHOWN}");
    screen.command("=#", &explain);
    for row in twin::rows(c, &explain)? {
        screen.quote(row[0].as_deref().unwrap_or(""));
    }
    Ok(())
}

/// Prints both times of each query; fails when an answer changed.
pub fn compare(screen: &Screen, before: &[Measured], after: &[Measured]) -> Result<()> {
    let mut table = Vec::new();
    for ((q, b), a) in QUERIES.iter().zip(before).zip(after) {
        if a.rows != b.rows {
            bail!("\"{}\" answers differently on warm:\n{:?}\n{:?}", q.name, b.rows, a.rows);
        }
        let ratio = b.time.as_secs_f64() / a.time.as_secs_f64();
        table.push(vec![q.name.to_owned(), time(b.time), time(a.time), format!("{ratio:.1}x")]);
    }
    screen.table(&["query", "heap", "warm", "faster"], &table);
    Ok(())
}

/// The smallest gain among the aggregates.
pub fn slowest_aggregate(before: &[Measured], after: &[Measured]) -> f64 {
    QUERIES
        .iter()
        .zip(before.iter().zip(after))
        .filter(|(q, _)| q.aggregate)
        .map(|(_, (b, a))| b.time.as_secs_f64() / a.time.as_secs_f64())
        .fold(f64::INFINITY, f64::min)
}
