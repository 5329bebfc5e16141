//! Serializable isolation for fragment rows.
//!
//! PostgreSQL's predicate locks name a row by its TID; a virtual TID serves as well as another. What needs care is that a
//! row moves from its virtual TID (R) to a delta row (D) when it is promoted, which is no change of the row:
//!
//! * who reads R with a snapshot older than the promotion takes the predicate lock on R, and looks at D's xmax for a
//!   writer that it does not see (conflict out); if the table has got another file since, D is somewhere else in it, nobody knows
//!   where, and the reader has to try again (40001);
//! * who writes D checks the predicate locks of R too, found through the deletion vector (conflict in).
//!
//! Only serializable transactions pay for it.

use super::deletion;
use crate::error::StrataError;
use crate::pg::{catalog, compat, ext, guarded, tid};
use pgrx::pg_sys;

/// Whether the current transaction is serializable.
#[inline]
pub fn serializable() -> bool {
    // SAFETY: a plain variable of the backend.
    unsafe { pg_sys::XactIsoLevel == pg_sys::XACT_SERIALIZABLE as i32 }
}

/// Records that `snapshot` read fragment row `row_id`.
///
/// # Safety
/// `rel` is open and `snapshot` valid.
pub unsafe fn read_row(rel: pg_sys::Relation, row_id: u64, snapshot: pg_sys::Snapshot) {
    if !serializable() {
        return;
    }
    let mut at = tid::from_row_id(row_id);
    // SAFETY: the caller's promise.
    unsafe {
        if (*snapshot).snapshot_type != pg_sys::SnapshotType::SNAPSHOT_MVCC {
            return;
        }
        guarded(|| ext::PredicateLockTID(rel, &mut at, snapshot, pg_sys::InvalidTransactionId));
        let Some(oids) = catalog::oids() else { return };
        check_writers(rel, &oids, Some(row_id), snapshot);
    }
}

/// Looks at who has changed rows of fragments that `snapshot` still sees there.
unsafe fn check_writers(rel: pg_sys::Relation, oids: &catalog::Oids, row_id: Option<u64>, snapshot: pg_sys::Snapshot) {
    let mut dirty = pg_sys::SnapshotData { snapshot_type: pg_sys::SnapshotType::SNAPSHOT_DIRTY, ..Default::default() };
    // SAFETY: the caller's promise; the dirty snapshot outlives the scan and shows the deletions of all that have not
    // rolled back.
    unsafe {
        let relid = (*rel).rd_id;
        let changed: Vec<_> = catalog::DeletionScan::new(oids, relid, row_id, &raw mut dirty).collect();
        for d in changed {
            if d.own_command.is_none() && deletion::visible(rel, d.row_id, snapshot) {
                // Whoever promoted the row in a transaction of its own is not serializable, and does not count.
                conflict_out_with(rel, d.xmin, snapshot);
                if d.is_promotion() {
                    conflict_out(rel, &d, snapshot);
                }
            }
        }
    }
}

/// `HeapCheckForSerializableConflictOut` for a writer that is known.
unsafe fn conflict_out_with(rel: pg_sys::Relation, xid: pg_sys::TransactionId, snapshot: pg_sys::Snapshot) {
    // SAFETY: the arguments are the caller's.
    unsafe {
        if !compat::is_normal(xid) || pg_sys::TransactionIdIsCurrentTransactionId(xid) {
            return;
        }
        let xid = pg_sys::SubTransGetTopmostTransaction(xid);
        if !pg_sys::TransactionIdPrecedes(xid, pg_sys::TransactionXmin) {
            guarded(|| ext::CheckForSerializableConflictOut(rel, xid, snapshot));
        }
    }
}

/// Checks the promoted rows that `snapshot` still sees in their fragments, for a scan of the whole table.
///
/// # Safety
/// `rel` is open and `snapshot` valid.
pub unsafe fn read_table(rel: pg_sys::Relation, snapshot: pg_sys::Snapshot) {
    if !serializable() {
        return;
    }
    let Some(oids) = catalog::oids() else { return };
    // SAFETY: the caller's promise.
    unsafe {
        if (*snapshot).snapshot_type != pg_sys::SnapshotType::SNAPSHOT_MVCC {
            return;
        }
        guarded(|| ext::PredicateLockRelation(rel, snapshot));
        check_writers(rel, &oids, None, snapshot);
    }
}

/// The row is read at R, its writer is known at D.
unsafe fn conflict_out(rel: pg_sys::Relation, d: &catalog::Deletion, snapshot: pg_sys::Snapshot) {
    // SAFETY: `rel` is open; heap_fetch pins the buffer of a tuple that it finds, SnapshotAny finds any that is there.
    unsafe {
        if d.filenode != compat::filenode(rel) {
            // Not for a reader that is safe, or whom serializability does not concern.
            if guarded(|| ext::CheckForSerializableConflictOutNeeded(rel, snapshot)) {
                StrataError::Relocated { relid: (*rel).rd_id, row_id: d.row_id }.raise();
            }
            return;
        }
        let mut tuple = pg_sys::HeapTupleData { t_self: d.delta, ..Default::default() };
        let mut buffer = pg_sys::InvalidBuffer as pg_sys::Buffer;
        if compat::heap_fetch_any(rel, &mut tuple, &mut buffer) {
            pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
            pg_sys::HeapCheckForSerializableConflictOut(true, rel, &mut tuple, buffer, snapshot);
            pg_sys::UnlockReleaseBuffer(buffer);
        }
    }
}

/// Checks for readers of fragment row `row_id` before it is changed.
///
/// # Safety
/// `rel` is open.
pub unsafe fn write_row(rel: pg_sys::Relation, row_id: u64) {
    if serializable() {
        let mut at = tid::from_row_id(row_id);
        // SAFETY: the caller's promise.
        unsafe { guarded(|| ext::CheckForSerializableConflictIn(rel, &mut at, tid::block(&at))) }
    }
}

/// [`write_row`] for a delta row that may have been a fragment row.
///
/// # Safety
/// `rel` is open.
pub unsafe fn write_delta(rel: pg_sys::Relation, delta: &pg_sys::ItemPointerData) {
    if serializable() {
        // SAFETY: the caller's promise.
        unsafe {
            for row_id in deletion::origins((*rel).rd_id, compat::filenode(rel), delta) {
                write_row(rel, row_id);
            }
        }
    }
}
