//! Rows that a subscription's worker looks for.
//!
//! To apply an UPDATE or DELETE the worker searches the table's identity index itself, with a dirty snapshot: no plan is made,
//! so nobody keeps it from a plain btree, which does not know fragment rows. It would find nothing, and skip the change
//! without a word.
//!
//! Every index scan begins by asking the table for its part ([`index_fetch_begin`]). In a worker the table then sees to it that
//! its plain btrees answer for fragment rows as well: in this backend's copy of their callback table `amgettuple` is replaced.
//! Once the btree has no more entries, the fragment rows with the key follow, under their virtual TIDs; whether the snapshot
//! sees them is decided when they are fetched, as for entries of any index. Scans with other snapshots are those of plans,
//! which bring their own fragment rows: they get what the btree has.

use super::handler::heap;
use super::{fragments, index};
use crate::pg::guarded;
use pgrx::pg_sys::*;
use pgrx::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;

mod ext {
    use core::ffi::c_int;
    use pgrx::pg_sys::{IndexScanDesc, ScanDirection, ScanKey};
    unsafe extern "C-unwind" {
        /// `worker.c`
        pub fn IsLogicalWorker() -> bool;
        /// `nbtree.c`
        pub fn btgettuple(scan: IndexScanDesc, direction: ScanDirection::Type) -> bool;
        /// `nbtree.c`
        pub fn btrescan(scan: IndexScanDesc, keys: ScanKey, nkeys: c_int, orderbys: ScanKey, norderbys: c_int);
        /// `nbtree.c`
        pub fn btendscan(scan: IndexScanDesc);
    }
}

thread_local! {
    /// Scans whose btree has no more entries, with the fragment rows that are still to come, the last first.
    static REST: RefCell<HashMap<usize, Vec<u64>>> = RefCell::default();
}

/// No `#[pg_guard]` on the way to the heap: nothing here needs dropping.
pub unsafe extern "C-unwind" fn index_fetch_begin(rel: Relation) -> *mut IndexFetchTableData {
    // SAFETY: the argument is the index scan's; the heap's callback takes any open table.
    unsafe {
        if ext::IsLogicalWorker() {
            let_btrees_answer(rel);
        }
        heap().index_fetch_begin.unwrap_unchecked()(rel)
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn let_btrees_answer(rel: Relation) {
    // SAFETY: `rel` is open and locked, and so are the indexes that are being scanned; a relation's callback table is its own.
    unsafe {
        if fragments::of(rel).is_none() {
            return;
        }
        for oid in index::index_oids(rel) {
            let index = index_open(oid, AccessShareLock as i32);
            if index::is_plain(index) {
                let routine = &mut *(*index).rd_indam;
                routine.amgettuple = Some(gettuple);
                routine.amrescan = Some(rescan);
                routine.amendscan = Some(endscan);
            }
            index_close(index, NoLock as i32);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn gettuple(scan: IndexScanDesc, direction: ScanDirection::Type) -> bool {
    // SAFETY: the arguments are the index scan's, as for the btree.
    unsafe {
        let name = scan as usize;
        if !REST.with_borrow(|rest| rest.contains_key(&name)) {
            if guarded(|| ext::btgettuple(scan, direction)) {
                return true;
            }
            let snapshot = (*scan).xs_snapshot;
            if snapshot.is_null() || (*snapshot).snapshot_type != SnapshotType::SNAPSHOT_DIRTY {
                return false;
            }
            // The btree would begin again.
            let rows = fragment_rows(scan);
            REST.with_borrow_mut(|rest| rest.insert(name, rows));
        }
        match REST.with_borrow_mut(|rest| rest.get_mut(&name).and_then(Vec::pop)) {
            Some(row_id) => {
                (*scan).xs_heaptid = crate::pg::tid::from_row_id(row_id);
                (*scan).xs_recheck = false;
                true
            }
            None => false,
        }
    }
}

/// The fragment rows that may have the key of a scan, the last first.
unsafe fn fragment_rows(scan: IndexScanDesc) -> Vec<u64> {
    // SAFETY: `scan` is a scan of a plain btree of the table; its keys are on the index's attributes.
    unsafe {
        let (rel, form) = ((*scan).heapRelation, &*(*(*scan).indexRelation).rd_index);
        let Some(table) = fragments::of(rel) else { return Vec::new() };
        let (mut attnums, mut values) = (Vec::new(), Vec::new());
        // Equal values of a unique index have equal bytes (`index`). For another one, which PostgreSQL 16 and later search
        // for a table with REPLICA IDENTITY FULL, the worker compares whole rows: it gets them all.
        if form.indisunique {
            for key in std::slice::from_raw_parts((*scan).keyData, (*scan).numberOfKeys as usize) {
                if key.sk_flags & SK_ISNULL as i32 == 0 {
                    attnums.push(*form.indkey.values.as_ptr().add(key.sk_attno as usize - 1));
                    values.push(key.sk_argument);
                }
            }
        }
        let mut rows = table.lookup(rel, &attnums, &values);
        rows.reverse();
        rows
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn rescan(scan: IndexScanDesc, keys: ScanKey, nkeys: i32, orderbys: ScanKey, norderbys: i32) {
    // SAFETY: the arguments are the index scan's, as for the btree.
    unsafe {
        REST.with_borrow_mut(|rest| rest.remove(&(scan as usize)));
        guarded(|| ext::btrescan(scan, keys, nkeys, orderbys, norderbys));
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn endscan(scan: IndexScanDesc) {
    // SAFETY: the argument is the index scan's, as for the btree.
    unsafe {
        REST.with_borrow_mut(|rest| rest.remove(&(scan as usize)));
        guarded(|| ext::btendscan(scan));
    }
}
