//! Two tables that must hold the same rows: the one under test, and its heap twin.

use anyhow::{Result, bail};
use postgres::{Client, GenericClient, SimpleQueryMessage};

/// Fails unless the two tables hold the same rows, as often as each other: EXCEPT ALL both ways, then an ordered hash.
/// The two ways are there because they take different plans over the table under test.
pub fn assert_same(client: &mut Client, warm: &str, heap: &str) -> Result<()> {
    let missing = differences(client, heap, warm)?;
    let extra = differences(client, warm, heap)?;
    if !missing.is_empty() || !extra.is_empty() {
        bail!(
            "{warm} and {heap} differ\nmissing from {warm} ({}): {:#?}\nonly in {warm} ({}): {:#?}",
            missing.len(),
            &missing[..missing.len().min(5)],
            extra.len(),
            &extra[..extra.len().min(5)]
        );
    }
    let (a, b) = (digest(client, warm)?, digest(client, heap)?);
    if a != b {
        bail!("{warm} and {heap} have the same rows but different digests: {a:?} and {b:?}");
    }
    Ok(())
}

/// Rows of `a` that `b` lacks, as text; at most a hundred.
fn differences(client: &mut Client, a: &str, b: &str) -> Result<Vec<String>> {
    let sql =
        format!("SELECT d::text FROM (SELECT t::text FROM {a} t EXCEPT ALL SELECT t::text FROM {b} t) d LIMIT 100");
    Ok(client.query(&sql, &[])?.iter().map(|r| r.get(0)).collect())
}

/// Row count, and a hash of all rows in the order of their text.
pub fn digest(client: &mut impl GenericClient, table: &str) -> Result<(i64, String)> {
    let sql = format!(
        "SELECT count(*), coalesce(md5(string_agg(md5(t), '' ORDER BY t)), '') FROM (SELECT t::text AS t FROM {table} t) x"
    );
    let row = client.query_one(&sql, &[])?;
    Ok((row.get(0), row.get(1)))
}

/// Row count, and a sum of row hashes: order does not matter, and it fits tables of millions of rows.
pub fn sum_digest(client: &mut impl GenericClient, table: &str) -> Result<(i64, String)> {
    let sql = format!("SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM {table} t");
    let row = client.query_one(&sql, &[])?;
    Ok((row.get(0), row.get(1)))
}

/// The rows of a query as text, for messages and comparisons.
pub fn rows(client: &mut Client, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
    let mut found = Vec::new();
    for message in client.simple_query(sql)? {
        if let SimpleQueryMessage::Row(row) = message {
            found.push((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect());
        }
    }
    Ok(found)
}

/// The first column of a query's first row, as text.
pub fn value(client: &mut Client, sql: &str) -> Result<String> {
    let rows = rows(client, sql)?;
    match rows.first().and_then(|r| r.first()) {
        Some(Some(v)) => Ok(v.clone()),
        _ => bail!("no value from {sql}"),
    }
}

/// The lines of EXPLAIN.
pub fn plan(client: &mut Client, sql: &str) -> Result<String> {
    let lines: Vec<String> = rows(client, &format!("EXPLAIN (COSTS OFF) {sql}"))?
        .into_iter()
        .filter_map(|r| r.into_iter().next().flatten())
        .collect();
    Ok(lines.join("\n"))
}

/// What a statement gave: rows and counts, or an SQLSTATE with its message.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Each row's columns in one text, and the affected rows of each command.
    Done(Vec<String>, Vec<u64>),
    /// The SQLSTATE, `lost` when the connection was.
    Failed(String, String),
}

/// Runs a statement, or several.
pub fn run(client: &mut Client, sql: &str) -> Outcome {
    match client.simple_query(sql) {
        Ok(messages) => {
            let (mut rows, mut counts) = (Vec::new(), Vec::new());
            for message in messages {
                match message {
                    SimpleQueryMessage::Row(r) => {
                        let row: Vec<&str> = (0..r.len()).map(|i| r.get(i).unwrap_or("<null>")).collect();
                        rows.push(row.join(" | "));
                    }
                    SimpleQueryMessage::CommandComplete(n) => counts.push(n),
                    _ => {}
                }
            }
            Outcome::Done(rows, counts)
        }
        Err(error) => match error.as_db_error() {
            Some(db) => Outcome::Failed(db.code().code().to_owned(), db.message().to_owned()),
            None => Outcome::Failed("lost".to_owned(), format!("{error:#}")),
        },
    }
}
