//! `strata.to_warm`, `strata.to_hot`, `strata.consolidate`, `strata.rebuild_index`, `strata.sweep`, and what is known of them.

use crate::tier;
use pgrx::pg_sys;
use pgrx::prelude::*;

/// Moves a table or partition to warm; returns the rows that are in fragments then.
#[pg_extern(sql = false)]
fn strata_to_warm(partition: pg_sys::Oid) -> i64 {
    tier::to_warm::to_warm(partition)
}

/// Moves a warm table or partition back to heap; returns its rows.
#[pg_extern(sql = false)]
fn strata_to_hot(partition: pg_sys::Oid) -> i64 {
    tier::to_hot::to_hot(partition)
}

/// Writes fragments again without their deleted rows, merges small ones and absorbs the delta store.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn strata_consolidate(
    partition: pg_sys::Oid,
) -> TableIterator<
    'static,
    (
        name!(fragments_before, i64),
        name!(fragments_after, i64),
        name!(bytes_before, i64),
        name!(bytes_after, i64),
        name!(rows_removed, i64),
        name!(rows_absorbed, i64),
    ),
> {
    let r = tier::consolidate::consolidate(partition);
    TableIterator::once((
        r.fragments.0 as i64,
        r.fragments.1 as i64,
        r.bytes.0 as i64,
        r.bytes.1 as i64,
        r.rows_removed as i64,
        r.rows_absorbed as i64,
    ))
}

/// Writes the fragment index of a warm table again.
#[pg_extern(sql = false)]
fn strata_rebuild_index(
    table: pg_sys::Oid,
) -> TableIterator<'static, (name!(segments, i64), name!(fragments, i64), name!(bytes, i64))> {
    let r = tier::index::rebuild_index(table);
    TableIterator::once((r.segments as i64, r.fragments as i64, r.bytes as i64))
}

/// What this session asked of the fragment index.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn strata_fragment_index_counters() -> TableIterator<
    'static,
    (
        name!(lookups, i64),
        name!(segments_probed, i64),
        name!(pages_read, i64),
        name!(fragments_probed, i64),
        name!(row_ids, i64),
        name!(damaged, i64),
    ),
> {
    let c = crate::am::segments::counters();
    TableIterator::once((
        c.lookups as i64,
        c.segments_probed as i64,
        c.pages_read as i64,
        c.fragments_probed as i64,
        c.row_ids as i64,
        c.damaged as i64,
    ))
}

/// Removes what no table needs any more; returns the number of fragment files.
#[pg_extern(sql = false)]
fn strata_sweep(grace_seconds: Option<i32>) -> i64 {
    tier::sweep::sweep(grace_seconds.map(|s| std::time::Duration::from_secs(s.max(0) as u64)))
}

/// The folder of this database's fragments.
#[pg_extern(sql = false)]
fn strata_store_directory() -> String {
    crate::am::fragments::store().display().to_string()
}
