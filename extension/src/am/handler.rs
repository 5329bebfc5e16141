//! Wiring: the callback table of `warm` is the heap's, with what must know fragments replaced.

use super::{analyze, bitmap, fetch, index, modify, probe, scan, speculative, storage};
use pgrx::pg_sys;
use pgrx::pg_sys::{Datum, FunctionCallInfo, Relation, TableAmRoutine};
use std::sync::OnceLock;

struct Routines {
    warm: TableAmRoutine,
    heap: *const TableAmRoutine,
}
// SAFETY: the tables are written once and only read afterwards; a backend has one thread.
unsafe impl Send for Routines {}
// SAFETY: as above.
unsafe impl Sync for Routines {}

static ROUTINES: OnceLock<Routines> = OnceLock::new();

fn routines() -> &'static Routines {
    ROUTINES.get_or_init(|| {
        // SAFETY: the heap's table is a static of the server.
        let heap = unsafe { pg_sys::GetHeapamTableAmRoutine() };
        // SAFETY: as above.
        let mut warm = unsafe { *heap };
        warm.scan_begin = Some(scan::scan_begin);
        warm.scan_end = Some(scan::scan_end);
        warm.scan_rescan = Some(scan::scan_rescan);
        warm.scan_getnextslot = Some(scan::scan_getnextslot);
        warm.scan_set_tidrange = Some(scan::scan_set_tidrange);
        warm.scan_getnextslot_tidrange = Some(scan::scan_getnextslot_tidrange);
        warm.parallelscan_estimate = Some(scan::parallelscan_estimate);
        warm.parallelscan_initialize = Some(scan::parallelscan_initialize);
        warm.parallelscan_reinitialize = Some(scan::parallelscan_reinitialize);
        warm.index_fetch_begin = Some(probe::index_fetch_begin);
        warm.index_fetch_tuple = Some(fetch::index_fetch_tuple);
        warm.tuple_fetch_row_version = Some(fetch::tuple_fetch_row_version);
        warm.tuple_tid_valid = Some(fetch::tuple_tid_valid);
        warm.tuple_get_latest_tid = Some(fetch::tuple_get_latest_tid);
        warm.tuple_satisfies_snapshot = Some(fetch::tuple_satisfies_snapshot);
        warm.index_delete_tuples = Some(index::index_delete_tuples);
        warm.tuple_insert = Some(modify::tuple_insert);
        warm.tuple_insert_speculative = Some(speculative::tuple_insert_speculative);
        warm.multi_insert = Some(modify::multi_insert);
        warm.tuple_delete = Some(modify::tuple_delete);
        warm.tuple_update = Some(modify::tuple_update);
        warm.tuple_lock = Some(modify::tuple_lock);
        warm.finish_bulk_insert = Some(storage::finish_bulk_insert);
        warm.relation_nontransactional_truncate = Some(storage::relation_nontransactional_truncate);
        warm.relation_copy_data = Some(storage::relation_copy_data);
        warm.relation_copy_for_cluster = Some(storage::relation_copy_for_cluster);
        warm.relation_vacuum = Some(analyze::relation_vacuum);
        warm.scan_analyze_next_block = Some(analyze::scan_analyze_next_block);
        warm.scan_analyze_next_tuple = Some(analyze::scan_analyze_next_tuple);
        warm.index_build_range_scan = Some(index::index_build_range_scan);
        warm.index_validate_scan = Some(index::index_validate_scan);
        warm.relation_toast_am = Some(storage::relation_toast_am);
        warm.relation_estimate_size = Some(analyze::relation_estimate_size);
        #[cfg(not(feature = "pg18"))]
        {
            warm.scan_bitmap_next_block = Some(bitmap::scan_bitmap_next_block);
        }
        warm.scan_bitmap_next_tuple = Some(bitmap::scan_bitmap_next_tuple);
        warm.scan_sample_next_block = Some(scan::scan_sample_next_block);
        warm.scan_sample_next_tuple = Some(scan::scan_sample_next_tuple);
        Routines { warm, heap }
    })
}

/// The callback table of `warm`.
pub fn routine() -> *const TableAmRoutine {
    &raw const routines().warm
}

/// The heap's callback table.
#[inline]
pub fn heap() -> &'static TableAmRoutine {
    // SAFETY: a static of the server.
    unsafe { &*routines().heap }
}

/// Whether a relation is a warm table.
///
/// # Safety
/// `rel` is open.
pub unsafe fn is_warm(rel: Relation) -> bool {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::eq((*rel).rd_tableam, routine()) }
}

/// Runs `f` while `rel` looks like a heap: some of the heap's callbacks insist on it.
///
/// # Safety
/// `rel` is open, and `f` only runs heap callbacks on it.
pub unsafe fn as_heap<R>(rel: Relation, f: impl FnOnce() -> R) -> R {
    struct Restore(Relation, *const TableAmRoutine);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: the relation stays open while this lives; after an ERROR its cache entry is still there, because
            // the resource owner that holds it is released later.
            unsafe { (*self.0).rd_tableam = self.1 }
        }
    }
    // SAFETY: the caller's promise.
    unsafe {
        let _restore = Restore(rel, (*rel).rd_tableam);
        (*rel).rd_tableam = routines().heap;
        f()
    }
}

/// fmgr's record of the handler.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_strata_warm_handler() -> &'static pg_sys::Pg_finfo_record {
    static V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// The handler function of the access method.
///
/// # Safety
/// Called by PostgreSQL.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn strata_warm_handler(_fcinfo: FunctionCallInfo) -> Datum {
    Datum::from(routine())
}
