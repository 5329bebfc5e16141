//! What happens to the table in the demo, and the comparison with its twin.

use anyhow::{Result, bail};
use postgres::Client;
use std::io::{BufRead, BufReader};
use strata_tests::twin;

/// Changes of rows that are warm by then.
pub const CHANGES_OF_WARM_ROWS: &[&str] = &[
    "UPDATE flights SET delay = 0 WHERE date >= '2001-02-03' AND date < '2001-02-04' AND origin = 'ORD' AND delay BETWEEN 1 AND 5",
    "DELETE FROM flights WHERE date >= '2001-03-10' AND date < '2001-03-11' AND destination = 'MDW' AND delay > 60",
    "UPDATE flights SET destination = 'ATL' WHERE date = '2001-01-01 00:01' AND id = 2",
    "INSERT INTO flights VALUES (9000001, '2001-04-01 12:00', 7, 590, 'ATL', 'ORD')",
];

/// Changes after the backup that are to survive.
pub const LATER_CHANGES: &[&str] = &[
    "INSERT INTO flights SELECT 10000000 + id, date + interval '61 days', delay, distance, destination, origin FROM flights WHERE date >= '2001-05-01' AND date < '2001-05-08'",
    "UPDATE flights SET delay = delay - 3 WHERE date >= '2001-01-15' AND date < '2001-01-16' AND origin = 'DEN'",
    "DELETE FROM flights WHERE date >= '2001-06-20' AND date < '2001-06-21' AND origin = 'LAX' AND delay > 60",
];

/// What nobody wanted.
pub const ACCIDENT: &[&str] = &[
    "DELETE FROM flights WHERE date >= '2001-06-01' AND origin = 'ORD'",
    "TRUNCATE flights_2001_01",
    "DROP TABLE flights_2001_02",
];

/// How many flights there are.
pub fn rows(c: &mut Client) -> Result<i64> {
    Ok(c.query_one("SELECT count(*) FROM flights", &[])?.get(0))
}

/// The view `strata.partitions`, for people.
pub fn partitions(c: &mut Client) -> Result<Vec<Vec<String>>> {
    let rows = twin::rows(
        c,
        "SELECT partition::text, tier, rows, pg_size_pretty(heap_bytes), pg_size_pretty(warm_bytes), coalesce(round(compression::numeric, 1)::text, '')
         FROM strata.partitions WHERE \"table\"::text = 'flights' ORDER BY 1",
    )?;
    Ok(rows.into_iter().map(|r| r.into_iter().map(Option::unwrap_or_default).collect()).collect())
}

/// Compares the table on two servers row by row, in the order of the key; gives the number of rows.
pub fn compare(a: &mut Client, b: &mut Client) -> Result<i64> {
    const SQL: &str = "COPY (SELECT * FROM flights ORDER BY date, id) TO STDOUT";
    let mut left = BufReader::with_capacity(1 << 18, a.copy_out(SQL)?);
    let mut right = BufReader::with_capacity(1 << 18, b.copy_out(SQL)?);
    let (mut x, mut y) = (Vec::new(), Vec::new());
    let mut rows = 0;
    loop {
        x.clear();
        y.clear();
        left.read_until(b'\n', &mut x)?;
        right.read_until(b'\n', &mut y)?;
        if x != y {
            bail!(
                "row {} differs from the heap twin's:\n  {}\n  {}",
                rows + 1,
                String::from_utf8_lossy(&x).trim_end(),
                String::from_utf8_lossy(&y).trim_end()
            );
        }
        if x.is_empty() {
            return Ok(rows);
        }
        rows += 1;
    }
}
