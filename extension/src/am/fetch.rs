//! Fetching one row by its TID: from an index, by ctid, for triggers and EvalPlanQual.

use super::handler::heap;
use super::{deletion, fragments, handed};
use crate::pg::{catalog, compat, guarded, tid};
use pgrx::pg_sys::*;
use pgrx::prelude::*;

/// No `#[pg_guard]` on the way to the heap: nothing here needs dropping.
pub unsafe extern "C-unwind" fn index_fetch_tuple(
    scan: *mut IndexFetchTableData,
    at: ItemPointer,
    snapshot: Snapshot,
    slot: *mut TupleTableSlot,
    again: *mut bool,
    dead: *mut bool,
) -> bool {
    // SAFETY: the arguments are the index scan's.
    unsafe {
        match tid::row_id_at(at) {
            None => heap().index_fetch_tuple.unwrap_unchecked()(scan, at, snapshot, slot, again, dead),
            Some(row_id) => {
                *again = false;
                if !dead.is_null() {
                    *dead = false;
                }
                fetch((*scan).rel, row_id, snapshot, slot)
            }
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn fetch(rel: Relation, row_id: u64, snapshot: Snapshot, slot: *mut TupleTableSlot) -> bool {
    // SAFETY: the arguments are the caller's.
    unsafe { fragments::fetch_visible(rel, row_id, snapshot, slot) }
}

/// No `#[pg_guard]` on the way to the heap: nothing here needs dropping.
pub unsafe extern "C-unwind" fn tuple_fetch_row_version(
    rel: Relation,
    at: ItemPointer,
    snapshot: Snapshot,
    slot: *mut TupleTableSlot,
) -> bool {
    // SAFETY: the arguments are the executor's.
    unsafe {
        match tid::row_id_at(at) {
            None => heap().tuple_fetch_row_version.unwrap_unchecked()(rel, at, snapshot, slot),
            Some(row_id) => fetch_version(rel, row_id, snapshot, slot),
        }
    }
}

/// What is fetched by its TID is about to be changed, as a rule.
#[pg_guard]
unsafe extern "C-unwind" fn fetch_version(
    rel: Relation,
    row_id: u64,
    snapshot: Snapshot,
    slot: *mut TupleTableSlot,
) -> bool {
    // SAFETY: the arguments are the executor's; a slot of a warm table holds a heap tuple after the fetch.
    unsafe {
        let found = fragments::fetch_visible(rel, row_id, snapshot, slot);
        if found {
            handed::keep(rel, row_id, slot);
        }
        found
    }
}

#[pg_guard]
pub unsafe extern "C-unwind" fn tuple_tid_valid(scan: TableScanDesc, at: ItemPointer) -> bool {
    // SAFETY: `scan` was made by scan_begin.
    unsafe {
        match tid::row_id_at(at) {
            None => {
                let inner = super::scan::inner(scan);
                guarded(|| heap().tuple_tid_valid.unwrap_unchecked()(inner, at))
            }
            Some(row_id) => fragments::of((*scan).rs_rd).is_some_and(|f| f.find(row_id).is_some()),
        }
    }
}

#[pg_guard]
pub unsafe extern "C-unwind" fn tuple_get_latest_tid(scan: TableScanDesc, at: ItemPointer) {
    // SAFETY: `scan` was made by scan_begin; a promoted row goes on where the heap has it.
    unsafe {
        if let Some(row_id) = tid::row_id_at(at) {
            let Some(oids) = catalog::oids() else { return };
            let rel = (*scan).rs_rd;
            if deletion::visible(rel, row_id, (*scan).rs_snapshot) {
                return;
            }
            // The mark that is visible may be a second one.
            let mut now = SnapshotData { snapshot_type: SnapshotType::SNAPSHOT_SELF, ..Default::default() };
            let promoted = catalog::DeletionScan::new(&oids, (*rel).rd_id, Some(row_id), &raw mut now)
                .find(|d| d.is_promotion() && d.filenode == compat::filenode(rel));
            match promoted {
                Some(d) => *at = d.delta,
                None => return,
            }
        }
        let inner = super::scan::inner(scan);
        guarded(|| heap().tuple_get_latest_tid.unwrap_unchecked()(inner, at));
    }
}

/// A delta row that was promoted after the snapshot is the same row as the fragment row that the snapshot sees.
#[pg_guard]
pub unsafe extern "C-unwind" fn tuple_satisfies_snapshot(
    rel: Relation,
    slot: *mut TupleTableSlot,
    snapshot: Snapshot,
) -> bool {
    // SAFETY: the arguments are the executor's.
    unsafe {
        if let Some(row_id) = tid::row_id(&(*slot).tts_tid) {
            return deletion::visible(rel, row_id, snapshot);
        }
        guarded(|| heap().tuple_satisfies_snapshot.unwrap_unchecked()(rel, slot, snapshot))
            || deletion::visible_origin(rel, &(*slot).tts_tid, snapshot).is_some()
    }
}
