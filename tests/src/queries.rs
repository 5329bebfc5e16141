//! The queries over flights that the demo and the benchmark measure, on heap and on warm.

use crate::report::time;
use crate::twin;
use anyhow::{Result, bail};
use postgres::Client;
use std::time::{Duration, Instant};

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

/// The plan of one query, as it was run: what was run, and its lines.
pub fn plan(c: &mut Client) -> Result<(String, Vec<String>)> {
    let explain = format!("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) {SHOWN}");
    let lines = twin::rows(c, &explain)?.into_iter().filter_map(|r| r.into_iter().next().flatten()).collect();
    Ok((explain, lines))
}

/// A table of both times of each query; fails when an answer changed.
pub fn compare(before: &[Measured], after: &[Measured]) -> Result<Vec<Vec<String>>> {
    QUERIES
        .iter()
        .zip(before.iter().zip(after))
        .map(|(q, (b, a))| {
            if a.rows != b.rows {
                bail!("\"{}\" answers differently on warm:\n{:?}\n{:?}", q.name, b.rows, a.rows);
            }
            let ratio = b.time.as_secs_f64() / a.time.as_secs_f64();
            Ok(vec![q.name.to_owned(), time(b.time), time(a.time), format!("{ratio:.1}x")])
        })
        .collect()
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
