//! Look-ups of a key that no plan makes.
//!
//! Two parts of PostgreSQL search an index by a dirty snapshot themselves: a subscription's worker, for the row that an UPDATE or
//! DELETE of the publisher is about, and INSERT … ON CONFLICT, for the row that is in the way. No plan is made, so nobody keeps
//! them from a plain btree, which does not know fragment rows. The worker would skip its change without a word, the insertion
//! would meet the conflict too late: heap finds it before anything is inserted, also where the new row could not be in some
//! other index (too large, an expression that fails, another unique key).
//!
//! Every index scan begins by asking the table for its part ([`index_fetch_begin`]). In a worker, and in a session that has begun an
//! INSERT … ON CONFLICT ([`expect`]), the table then sees to it that its plain btrees answer for fragment rows as well: in this backend's copy
//! of their callback table `amgettuple` is replaced. Once the btree has no more entries, the fragment rows with the key follow,
//! under their virtual TIDs; whether the snapshot sees them is decided when they are fetched, as for entries of any index. Scans with
//! other snapshots are those of plans, which bring their own fragment rows: they get what the btree has.
//!
//! A row that is promoted between the btree's answer and that of the fragment index is in neither. The worker looks again with a
//! snapshot of its own lock; ON CONFLICT meets the row's new entry when it inserts its own.
//!
//! The replaced callbacks are kept and called: they may be those of `plan::prefetch`. The relation cache gives an index new
//! callbacks only after an invalidation, which is when [`invalidate`] forgets for which tables the work is done.

use super::handler::heap;
use super::{fragments, index};
use crate::pg::guarded;
use pgrx::pg_sys::*;
use pgrx::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};

mod ext {
    unsafe extern "C-unwind" {
        /// `worker.c`
        pub fn IsLogicalWorker() -> bool;
    }
}

/// What an index had before.
#[derive(Clone, Copy)]
struct Callbacks {
    gettuple: amgettuple_function,
    rescan: amrescan_function,
    endscan: amendscan_function,
}

thread_local! {
    /// Whether this session has begun an INSERT … ON CONFLICT.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
    /// Tables whose plain btrees answer.
    static DONE: RefCell<HashSet<Oid>> = RefCell::default();
    /// The callbacks that ours stand before, by the index's OID.
    static BEFORE: RefCell<HashMap<Oid, Callbacks>> = RefCell::default();
    /// Scans whose btree has no more entries, with the fragment rows that are still to come, the last first.
    static REST: RefCell<HashMap<usize, Vec<u64>>> = RefCell::default();
}

/// From here on an INSERT … ON CONFLICT may look for keys.
pub fn expect() {
    EXPECTED.set(true);
}

/// The relation cache may give the indexes of a table new callbacks.
pub fn invalidate() {
    DONE.with_borrow_mut(HashSet::clear);
}

/// Whether the callbacks of an index are ours.
pub fn is_ours(callback: amgettuple_function) -> bool {
    callback.map(|f| f as usize) == Some(gettuple as *const () as usize)
}

/// No `#[pg_guard]` on the way to the heap: nothing here needs dropping.
pub unsafe extern "C-unwind" fn index_fetch_begin(rel: Relation) -> *mut IndexFetchTableData {
    // SAFETY: the argument is the index scan's; the heap's callback takes any open table.
    unsafe {
        if (EXPECTED.get() || ext::IsLogicalWorker()) && !DONE.with_borrow(|done| done.contains(&(*rel).rd_id)) {
            let_btrees_answer(rel);
        }
        heap().index_fetch_begin.unwrap_unchecked()(rel)
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn let_btrees_answer(rel: Relation) {
    // SAFETY: `rel` is open and locked, and so are the indexes that are being scanned; a relation's callback table is its own.
    unsafe {
        if fragments::of(rel).is_some() {
            for oid in index::index_oids(rel) {
                let index = index_open(oid, AccessShareLock as i32);
                let routine = (*index).rd_indam;
                if index::is_plain(index) && !is_ours((*routine).amgettuple) {
                    let before = Callbacks {
                        gettuple: (*routine).amgettuple,
                        rescan: (*routine).amrescan,
                        endscan: (*routine).amendscan,
                    };
                    BEFORE.with_borrow_mut(|all| all.insert(oid, before));
                    (*routine).amgettuple = Some(gettuple);
                    (*routine).amrescan = Some(rescan);
                    (*routine).amendscan = Some(endscan);
                }
                index_close(index, NoLock as i32);
            }
        }
        DONE.with_borrow_mut(|done| done.insert((*rel).rd_id));
    }
}

/// The callbacks that ours stand before.
///
/// # Safety
/// `scan` is a scan of an index whose callbacks are ours.
unsafe fn before(scan: IndexScanDesc) -> Callbacks {
    // SAFETY: the caller's promise; what was put in stays.
    unsafe { BEFORE.with_borrow(|all| all.get(&(*(*scan).indexRelation).rd_id).copied()).unwrap_unchecked() }
}

#[pg_guard]
unsafe extern "C-unwind" fn gettuple(scan: IndexScanDesc, direction: ScanDirection::Type) -> bool {
    // SAFETY: the arguments are the index scan's, as for the btree.
    unsafe {
        let name = scan as usize;
        if !REST.with_borrow(|rest| rest.contains_key(&name)) {
            let before = before(scan);
            if guarded(|| before.gettuple.unwrap_unchecked()(scan, direction)) {
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
        let before = before(scan);
        guarded(|| before.rescan.unwrap_unchecked()(scan, keys, nkeys, orderbys, norderbys));
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn endscan(scan: IndexScanDesc) {
    // SAFETY: the argument is the index scan's, as for the btree.
    unsafe {
        REST.with_borrow_mut(|rest| rest.remove(&(scan as usize)));
        let before = before(scan);
        guarded(|| before.endscan.unwrap_unchecked()(scan));
    }
}
