//! What must hold at any quiet moment, whatever happened before.

use crate::cluster::Cluster;
use crate::twin;
use anyhow::{Context, Result, bail};
use postgres::Client;
use std::collections::BTreeSet;

/// The SQLSTATE of an error; empty when the connection was lost.
pub fn sqlstate(error: &postgres::Error) -> String {
    error.code().map(|c| c.code().to_owned()).unwrap_or_default()
}

/// Runs SQL that must fail; gives SQLSTATE and the whole error with DETAIL and HINT.
pub fn failure(client: &mut Client, sql: &str) -> Result<(String, String)> {
    match client.batch_execute(sql) {
        Ok(()) => bail!("this should have failed: {sql}"),
        Err(error) => {
            let text = error.as_db_error().map_or_else(
                || error.to_string(),
                |e| format!("{}\n{}\n{}", e.message(), e.detail().unwrap_or(""), e.hint().unwrap_or("")),
            );
            Ok((sqlstate(&error), text))
        }
    }
}

/// Nothing lost, nothing orphaned: after a sweep the store has exactly the files that the catalog of the database
/// `postgres` names, and nothing half-written.
pub fn store_is_exact(cluster: &Cluster) -> Result<()> {
    let mut client = cluster.connect()?;
    // Nothing runs now: a young file is no file of a transaction that is still open.
    client.execute("SELECT strata.sweep(0)", &[]).context("sweep")?;
    let named: BTreeSet<String> =
        client.query("SELECT DISTINCT hash FROM strata.fragment", &[])?.iter().map(|r| r.get(0)).collect();
    let present: BTreeSet<String> = cluster
        .fragment_files()
        .iter()
        .filter_map(|f| f.file_stem().map(|s| s.to_string_lossy().into_owned()))
        .collect();
    let lost: Vec<_> = named.difference(&present).collect();
    let orphans: Vec<_> = present.difference(&named).collect();
    if !lost.is_empty() || !orphans.is_empty() {
        bail!("the store does not match the catalog: lost {lost:?}, orphaned {orphans:?}");
    }
    let stray = cluster.stray_files();
    if !stray.is_empty() {
        bail!("files that nobody owns are left in the store: {stray:?}");
    }
    Ok(())
}

/// The fragment index fits the fragments: each current fragment is in exactly one segment, segments divide the row ids, their numbers at
/// each level are those of the folding, no segment or page is of nobody; and no session has met damage.
pub fn index_is_exact(client: &mut Client) -> Result<()> {
    client.execute("SELECT strata.sweep(0)", &[]).context("sweep")?;
    for (what, sql) in [
        (
            "fragments outside of all segments, or in several",
            "SELECT f.hash FROM strata.fragments f WHERE (SELECT count(*) FROM strata.segments s
              WHERE s.\"table\" = f.\"table\" AND f.first_row_id BETWEEN s.first_row_id AND s.last_row_id) <> 1",
        ),
        (
            "tables whose segments count other fragments than there are",
            "SELECT t FROM (SELECT \"table\" t, sum(fragments) n FROM strata.segments GROUP BY 1) s
              FULL JOIN (SELECT \"table\" t, count(*) n FROM strata.fragments GROUP BY 1) f USING (t)
              WHERE s.n IS DISTINCT FROM f.n",
        ),
        (
            "segments that overlap, or with a higher level than an older one's",
            "SELECT segment_id FROM (SELECT *, lag(last_row_id) OVER w AS before, lag(level) OVER w AS older FROM strata.segments
              WINDOW w AS (PARTITION BY \"table\" ORDER BY first_row_id)) s WHERE first_row_id <= before OR level > older",
        ),
        ("levels with four segments or more", "SELECT \"table\" FROM strata.segments GROUP BY \"table\", level HAVING count(*) > 3"),
        (
            "pages of no segment, or segments without their pages",
            "SELECT segment_id FROM (SELECT segment_id, sum(octet_length(data)) n FROM strata.segment_page GROUP BY 1) p
              FULL JOIN strata.segment s USING (segment_id) WHERE coalesce(p.n, 0) IS DISTINCT FROM s.page_bytes",
        ),
        ("segments of no file", "SELECT segment_id FROM strata.segment EXCEPT SELECT segment_id FROM strata.segments"),
        ("damage", "SELECT damaged FROM strata.stat_fragment_index WHERE damaged > 0"),
    ] {
        let found = twin::rows(client, sql)?;
        if !found.is_empty() {
            bail!("{what}: {found:?}");
        }
    }
    Ok(())
}

/// The key of `table` (an integer) is still unique and found: an index scan (where the planner has one) and a full scan count
/// the same, and a sample of rows, dead keys beside them, is found by key exactly as often as it is there.
pub fn key_is_exact(client: &mut Client, table: &str, key: &str) -> Result<()> {
    let full = twin::value(client, &format!("SELECT count(*) || ' ' || count(DISTINCT {key}) FROM {table}"))?;
    let (rows, keys) = full.split_once(' ').context("two numbers")?;
    if rows != keys {
        bail!("{table} has {rows} rows but {keys} different values of {key}");
    }
    client.batch_execute("SET enable_seqscan = off")?;
    let through = twin::value(client, &format!("SELECT count(*) FROM {table} WHERE {key} IS NOT NULL"));
    client.batch_execute("RESET enable_seqscan")?;
    let through = through?;
    if through != rows {
        bail!("{table} has {rows} rows, but {through} when sequential scans are off");
    }
    let sample = format!("SELECT {key}::bigint FROM {table} ORDER BY md5({key}::text) LIMIT 60");
    let there: Vec<i64> = client.query(&sample, &[])?.iter().map(|r| r.get(0)).collect();
    let by_key = client.prepare(&format!("SELECT count(*) FROM {table} WHERE {key} = $1::bigint"))?;
    for k in there.iter().flat_map(|k| [*k, -*k - 1, *k + 1]) {
        let found: i64 = client.query_one(&by_key, &[&k])?.get(0);
        let scanned = twin::value(client, &format!("SELECT count(*) FROM {table} WHERE {key} + 0 = {k}"))?;
        if found.to_string() != scanned {
            bail!("{table}: {key} = {k} is found {found} times by key, but a full scan finds {scanned}");
        }
    }
    Ok(())
}

/// Moves a table to warm, so that all its rows are in fragments afterwards; one that is warm already goes to hot first.
/// A move leaves out rows that some snapshot does not see yet (autovacuum and workers have snapshots): then it is repeated.
pub fn rewarm(client: &mut Client, table: &str) -> Result<i64> {
    let is_warm =
        format!("SELECT amname FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE c.oid = '{table}'::regclass");
    for _ in 0..100 {
        if twin::value(client, &is_warm)? == "warm" {
            client
                .execute(&format!("SELECT strata.to_hot('{table}')"), &[])
                .with_context(|| format!("to_hot({table})"))?;
        }
        let sql = format!("SELECT strata.to_warm('{table}')");
        let moved: i64 = client.query_one(&sql, &[]).with_context(|| format!("to_warm({table})"))?.get(0);
        let rows: i64 = client.query_one(&format!("SELECT count(*) FROM {table}"), &[])?.get(0);
        if moved == rows {
            return Ok(moved);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    bail!("to_warm({table}) does not move all rows; some snapshot is held")
}
