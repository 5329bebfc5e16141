//! Serializable isolation for fragment rows.
//!
//! PostgreSQL's predicate locks name a row by its TID; a virtual TID serves as well as another. What needs care is that a
//! row moves from its virtual TID (R) to a delta row (D) when it is promoted, which is no change of the row:
//!
//! * who reads R with a snapshot older than the promotion takes the predicate lock on R, and looks at D's xmax for a
//!   writer that it does not see (conflict out);
//! * who writes D checks the predicate locks of R too, found through the deletion vector (conflict in).
//!
//! Only serializable transactions pay for it.

use super::deletion;
use crate::pg::{compat, ext, guarded, tid};
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
        if let deletion::RowState::Promoted(d) = deletion::latest((*rel).rd_id, row_id)
            && d.own_command.is_none()
        {
            conflict_out(rel, &d, snapshot);
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
    let Some(oids) = crate::pg::catalog::oids() else { return };
    // SAFETY: the caller's promise; SnapshotSelf lives as long as the scan.
    unsafe {
        if (*snapshot).snapshot_type != pg_sys::SnapshotType::SNAPSHOT_MVCC {
            return;
        }
        guarded(|| ext::PredicateLockRelation(rel, snapshot));
        let mut own = pg_sys::SnapshotData { snapshot_type: pg_sys::SnapshotType::SNAPSHOT_SELF, ..Default::default() };
        let promoted: Vec<_> = crate::pg::catalog::DeletionScan::new(&oids, (*rel).rd_id, None, &raw mut own).collect();
        for d in promoted {
            if d.own_command.is_none() && deletion::visible((*rel).rd_id, d.row_id, snapshot) {
                conflict_out(rel, &d, snapshot);
            }
        }
    }
}

/// The row is read at R, its writer is known at D.
unsafe fn conflict_out(rel: pg_sys::Relation, d: &crate::pg::catalog::Deletion, snapshot: pg_sys::Snapshot) {
    // SAFETY: `rel` is open; heap_fetch pins the buffer of a tuple that it finds, SnapshotAny finds any that is there.
    unsafe {
        if d.filenode != compat::filenode(rel) {
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
