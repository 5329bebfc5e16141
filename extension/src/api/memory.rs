//! What the views `strata.stat_memory` and `strata.stat_access` show.

use crate::memory::access;
use crate::memory::shared;
use pgrx::pg_sys;
use pgrx::prelude::*;

/// The server's memory of fragments; no row without shared memory.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn strata_memory() -> TableIterator<
    'static,
    (
        name!(budget_bytes, i64),
        name!(limit_bytes, i64),
        name!(kept_bytes, i64),
        name!(needed_bytes, i64),
        name!(processes, i64),
        name!(machine_bytes, i64),
        name!(available_bytes, i64),
        name!(control_group, bool),
    ),
> {
    TableIterator::new(shared::totals().into_iter().map(|t| {
        let bytes = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let (machine, available) = (bytes(t.total), bytes(t.available));
        (bytes(t.setting), bytes(t.limit), t.kept, t.forced, t.processes, machine, available, t.limited)
    }))
}

/// The processes that read fragments.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn strata_access() -> TableIterator<
    'static,
    (
        name!(pid, i32),
        name!(database, pg_sys::Oid),
        name!(kept_bytes, i64),
        name!(needed_bytes, i64),
        name!(peak_bytes, i64),
        name!(loaded, i64),
        name!(paged, i64),
        name!(direct, i64),
        name!(reads, i64),
        name!(read_bytes, i64),
        name!(from_memory, i64),
        name!(evicted_bytes, i64),
        name!(given_back_bytes, i64),
        name!(last_table, Option<pg_sys::Oid>),
        name!(last_access, Option<String>),
        name!(last_reason, Option<String>),
        name!(last_data_set_bytes, Option<i64>),
        name!(last_fragments, Option<i64>),
        name!(last_at, Option<TimestampWithTimeZone>),
    ),
> {
    TableIterator::new(shared::list().into_iter().map(|p| {
        let [kept, needed, peak] = p.bytes;
        let [loaded, paged, direct] = p.scans;
        let [reads, read_bytes, hits, evicted, given_back] = p.counters;
        let last = p.last;
        (
            p.pid,
            p.database,
            kept,
            needed,
            peak,
            loaded,
            paged,
            direct,
            reads,
            read_bytes,
            hits,
            evicted,
            given_back,
            last.map(|l| l.0),
            last.map(|l| access::name(l.1).to_owned()),
            last.map(|l| access::reason(l.2, l.3 as u64, l.5 as u64)),
            last.map(|l| l.3),
            last.map(|l| l.4),
            last.and_then(|l| TimestampWithTimeZone::try_from(l.6).ok()),
        )
    }))
}
