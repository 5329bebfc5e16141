//! Deletion vectors: which fragment rows are gone, for whom.
//!
//! `strata.deletion` holds one row for each deleted fragment row. They are ordinary heap rows, so a deletion is visible to
//! exactly the snapshots that see its transaction. Consolidation folds marks that every snapshot sees into a bitmap beside the
//! fragment (`strata.fragment.deleted`); those are asked first. A row may be named by several of them: by the transaction that promoted
//! it and, under REPEATABLE READ and above, by those that changed it later with a snapshot older than the promotion
//! (`Deletion::is_superseding`). What became of the row, the promotion's mark says: it was committed before the others were written.

use super::fragments::{self, TableFragments};
use crate::pg::catalog::{self, Deletion, DeletionScan};
use crate::pg::{compat, tid};
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

/// Whether the row is deleted for every snapshot and its mark is gone.
///
/// # Safety
/// `rel` is open and locked.
unsafe fn is_folded(rel: pg_sys::Relation, row_id: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe { fragments::of(rel) }.is_some_and(|table| table.folded.contains(row_id))
}

/// The latest state of a fragment row, without waiting.
///
/// # Safety
/// `rel` is open and locked.
pub unsafe fn latest(rel: pg_sys::Relation, row_id: u64) -> RowState {
    let Some(oids) = catalog::oids() else { return RowState::Live };
    // SAFETY: the caller's promise.
    let relid = unsafe { (*rel).rd_id };
    // SAFETY: the caller's promise.
    if unsafe { is_folded(rel, row_id) } {
        return RowState::Promoted(Deletion {
            row_id,
            filenode: pg_sys::Oid::INVALID,
            delta: catalog::nowhere(),
            xmin: pg_sys::FrozenTransactionId,
            own_command: None,
            at: pg_sys::ItemPointerData::default(),
        });
    }
    let mut dirty = pg_sys::SnapshotData { snapshot_type: pg_sys::SnapshotType::SNAPSHOT_DIRTY, ..Default::default() };
    let mut state = RowState::Live;
    // SAFETY: the snapshot outlives the scan. HeapTupleSatisfiesDirty sets xmin for a writer that has not ended.
    unsafe {
        let snapshot = &raw mut dirty;
        for deletion in DeletionScan::new(&oids, relid, Some(row_id), snapshot) {
            if deletion.is_superseding() {
                continue;
            }
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
/// `rel` is open and locked, `snapshot` is valid.
pub unsafe fn visible(rel: pg_sys::Relation, row_id: u64, snapshot: pg_sys::Snapshot) -> bool {
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
                match latest(rel, row_id) {
                    RowState::Live => true,
                    RowState::Promoted(_) => false,
                    RowState::InProgress(xid) => {
                        (*snapshot).xmax = xid;
                        true
                    }
                }
            }
            _ => {
                !is_folded(rel, row_id)
                    && DeletionScan::new(&oids, (*rel).rd_id, Some(row_id), snapshot).next().is_none()
            }
        }
    }
}

/// The fragment rows of `rel` that are deleted for `snapshot`.
///
/// # Safety
/// `rel` is open and locked, `snapshot` is valid; for SnapshotAny nothing is deleted.
pub unsafe fn deleted(rel: pg_sys::Relation, snapshot: pg_sys::Snapshot) -> RoaringTreemap {
    // SAFETY: the caller's promise.
    unsafe {
        let (Some(oids), Some(table)) = (catalog::oids(), fragments::of(rel)) else { return RoaringTreemap::new() };
        if (*snapshot).snapshot_type == pg_sys::SnapshotType::SNAPSHOT_ANY {
            return RoaringTreemap::new();
        }
        let mut rows = table.folded.clone();
        for deletion in DeletionScan::from(&oids, (*rel).rd_id, first_row_id(&table), snapshot) {
            rows.insert(deletion.row_id);
        }
        rows
    }
}

/// Marks of fragments that the table had in an earlier file have lower row ids.
pub fn first_row_id(table: &TableFragments) -> u64 {
    table.list.first().map_or(0, |f| f.row.first_row_id)
}

/// The row ids of `rel` that are deleted for every snapshot there is.
///
/// # Safety
/// `rel` is open.
pub unsafe fn deleted_for_all(rel: pg_sys::Relation) -> RoaringTreemap {
    // SAFETY: the caller's promise.
    unsafe { deleted_before(rel, pg_sys::GetOldestNonRemovableTransactionId(rel)) }
}

/// The row ids of `rel` that were deleted by transactions before `horizon`.
///
/// # Safety
/// `rel` is open; every snapshot sees transactions before the horizon as ended.
pub unsafe fn deleted_before(rel: pg_sys::Relation, horizon: pg_sys::TransactionId) -> RoaringTreemap {
    // SAFETY: the caller's promise.
    let Some(table) = (unsafe { fragments::of(rel) }) else { return RoaringTreemap::new() };
    let mut rows = table.folded.clone();
    let Some(oids) = catalog::oids() else { return rows };
    let mut own = pg_sys::SnapshotData { snapshot_type: pg_sys::SnapshotType::SNAPSHOT_SELF, ..Default::default() };
    // SAFETY: the caller's promise; the snapshot outlives the scan.
    unsafe {
        let relid = (*rel).rd_id;
        for d in DeletionScan::from(&oids, relid, first_row_id(&table), &raw mut own) {
            if d.is_before(horizon) {
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
/// `rel` is open and locked, `snapshot` is valid.
pub unsafe fn visible_origin(
    rel: pg_sys::Relation,
    delta: &pg_sys::ItemPointerData,
    snapshot: pg_sys::Snapshot,
) -> Option<u64> {
    // SAFETY: the caller's promise.
    let (relid, filenode) = unsafe { ((*rel).rd_id, compat::filenode(rel)) };
    // SAFETY: the caller's promise.
    origins(relid, filenode, delta).into_iter().find(|row_id| unsafe { visible(rel, *row_id, snapshot) })
}
