//! Deletion vectors: which fragment rows are gone, for whom.
//!
//! `strata.deletion` holds one row for each deleted fragment row. They are ordinary heap rows, so a deletion is visible to
//! exactly the snapshots that see its transaction. A row may be named by two of them: by the transaction that promoted
//! it and, under REPEATABLE READ and above, by one that changed it later with a snapshot older than the promotion.

use crate::pg::catalog::{self, Deletion, DeletionScan};
use crate::pg::tid;
use pgrx::pg_sys;
use roaring::RoaringTreemap;

/// What the latest state of the catalog says of a fragment row.
#[derive(Clone, Copy, Debug)]
pub enum RowState {
    /// No deletion names it.
    Live,
    /// It was promoted by a committed transaction or by this one.
    Promoted(Deletion),
    /// A transaction that has not ended is promoting it.
    InProgress(pg_sys::TransactionId),
}

/// The latest state of a fragment row, without waiting.
pub fn latest(relid: pg_sys::Oid, row_id: u64) -> RowState {
    let Some(oids) = catalog::oids() else { return RowState::Live };
    let mut dirty = pg_sys::SnapshotData { snapshot_type: pg_sys::SnapshotType::SNAPSHOT_DIRTY, ..Default::default() };
    let mut state = RowState::Live;
    // SAFETY: the snapshot outlives the scan. HeapTupleSatisfiesDirty sets xmin for a writer that has not ended.
    unsafe {
        let snapshot = &raw mut dirty;
        for deletion in DeletionScan::new(&oids, relid, Some(row_id), snapshot) {
            if (*snapshot).xmin != pg_sys::InvalidTransactionId {
                if matches!(state, RowState::Live) {
                    state = RowState::InProgress((*snapshot).xmin);
                }
            } else if deletion.own_command.is_some() {
                if !matches!(state, RowState::Promoted(_)) {
                    state = RowState::Promoted(deletion);
                }
            } else {
                return RowState::Promoted(deletion);
            }
        }
    }
    state
}

/// Whether `snapshot` (MVCC, self or dirty) sees the fragment row. A dirty snapshot gets the transaction to wait for.
///
/// # Safety
/// `snapshot` is valid.
pub unsafe fn visible(relid: pg_sys::Oid, row_id: u64, snapshot: pg_sys::Snapshot) -> bool {
    use pg_sys::SnapshotType as T;
    let Some(oids) = catalog::oids() else { return true };
    // SAFETY: the caller's promise.
    unsafe {
        match (*snapshot).snapshot_type {
            T::SNAPSHOT_ANY | T::SNAPSHOT_NON_VACUUMABLE => true,
            T::SNAPSHOT_DIRTY => {
                // The contract of HeapTupleSatisfiesDirty: a caller waits for what is in these fields.
                (*snapshot).xmin = pg_sys::InvalidTransactionId;
                (*snapshot).xmax = pg_sys::InvalidTransactionId;
                (*snapshot).speculativeToken = 0;
                match latest(relid, row_id) {
                    RowState::Live => true,
                    RowState::Promoted(_) => false,
                    RowState::InProgress(xid) => {
                        (*snapshot).xmax = xid;
                        true
                    }
                }
            }
            _ => DeletionScan::new(&oids, relid, Some(row_id), snapshot).next().is_none(),
        }
    }
}

/// The row ids of `relid` that are deleted for `snapshot`.
///
/// # Safety
/// `snapshot` is valid; for SnapshotAny nothing is deleted.
pub unsafe fn deleted(relid: pg_sys::Oid, snapshot: pg_sys::Snapshot) -> RoaringTreemap {
    let mut rows = RoaringTreemap::new();
    let Some(oids) = catalog::oids() else { return rows };
    // SAFETY: the caller's promise.
    unsafe {
        if (*snapshot).snapshot_type == pg_sys::SnapshotType::SNAPSHOT_ANY {
            return rows;
        }
        // Those of fragments that the table had in an earlier file have lower row ids.
        let first = super::fragments::first_row_id(relid);
        for deletion in DeletionScan::from(&oids, relid, first, snapshot) {
            rows.insert(deletion.row_id);
        }
    }
    rows
}

/// The row ids of `rel` that are deleted for every snapshot there is.
///
/// # Safety
/// `rel` is open.
pub unsafe fn deleted_for_all(rel: pg_sys::Relation) -> RoaringTreemap {
    let mut rows = RoaringTreemap::new();
    let Some(oids) = catalog::oids() else { return rows };
    let mut own = pg_sys::SnapshotData { snapshot_type: pg_sys::SnapshotType::SNAPSHOT_SELF, ..Default::default() };
    // SAFETY: the caller's promise; the snapshot outlives the scan.
    unsafe {
        let relid = (*rel).rd_id;
        let horizon = pg_sys::GetOldestNonRemovableTransactionId(rel);
        for d in DeletionScan::from(&oids, relid, super::fragments::first_row_id(relid), &raw mut own) {
            if d.xmin == pg_sys::FrozenTransactionId || pg_sys::TransactionIdPrecedes(d.xmin, horizon) {
                rows.insert(d.row_id);
            }
        }
    }
    rows
}

/// The fragment rows whose place was taken by a row at `delta`. There may be several: a TID is used again after VACUUM. All
/// but the last of them were gone for every snapshot when that happened.
pub fn origins(relid: pg_sys::Oid, filenode: pg_sys::Oid, delta: &pg_sys::ItemPointerData) -> Vec<u64> {
    if tid::row_id(delta).is_some() {
        return Vec::new();
    }
    let Some(oids) = catalog::oids() else { return Vec::new() };
    let mut own = pg_sys::SnapshotData { snapshot_type: pg_sys::SnapshotType::SNAPSHOT_SELF, ..Default::default() };
    // SAFETY: snapshot and TID outlive the scan.
    unsafe {
        DeletionScan::by_delta(&oids, relid, delta, &raw mut own)
            .filter(|d| d.filenode == filenode)
            .map(|d| d.row_id)
            .collect()
    }
}

/// The fragment row whose place was taken by the row at `delta` and which `snapshot` still sees.
///
/// # Safety
/// `snapshot` is valid.
pub unsafe fn visible_origin(
    relid: pg_sys::Oid,
    filenode: pg_sys::Oid,
    delta: &pg_sys::ItemPointerData,
    snapshot: pg_sys::Snapshot,
) -> Option<u64> {
    // SAFETY: the caller's promise.
    origins(relid, filenode, delta).into_iter().find(|row_id| unsafe { visible(relid, *row_id, snapshot) })
}
