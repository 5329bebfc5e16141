//! Unique constraints over fragment rows that have no btree entries.
//!
//! The btree checks a new key against the delta rows. Against the fragment rows it is checked here, before the row is
//! inserted or after its new version is. Fragment rows with a given key cannot come into being while somebody writes (a
//! move takes an exclusive lock), they can only be promoted: then the btree knows the row, and if the promotion has not
//! ended it is waited for, as a btree waits for an insertion that has not ended.

use super::deletion::{self, RowState};
use super::fragments::{self, TableFragments};
use super::{handler, index};
use crate::error::StrataError;
use crate::pg::diagnostics::name_constraint;
use crate::pg::{ext, guarded, tid};
use pgrx::pg_sys::errcodes::PgSqlErrorCode;
use pgrx::pg_sys::*;
use std::cell::Cell;
use std::string::String;

thread_local! {
    static KNOWN_UNIQUE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`, in which indexes are built over rows that are known to be unique (a move rebuilds the indexes it found).
pub fn with_known_unique<R>(f: impl FnOnce() -> R) -> R {
    struct Reset(bool);
    impl Drop for Reset {
        fn drop(&mut self) {
            KNOWN_UNIQUE.set(self.0);
        }
    }
    let _reset = Reset(KNOWN_UNIQUE.replace(true));
    f()
}

/// Whether the index that is being built needs no check.
pub fn building_known_unique() -> bool {
    KNOWN_UNIQUE.get()
}

/// Calls `f` with each plain unique index of `rel`, its key attributes and their values in `slot`; keys with a null are
/// left out.
unsafe fn for_each_key(rel: Relation, slot: *mut TupleTableSlot, mut f: impl FnMut(Relation, &[i16], &[Datum])) {
    // SAFETY: `slot` has the descriptor of `rel`.
    unsafe {
        for oid in index::index_oids(rel) {
            let index = index_open(oid, AccessShareLock as i32);
            let form = &*(*index).rd_index;
            if form.indisunique && form.indisready && index::is_plain(index) {
                let attnums = index::key_attributes(form);
                let mut values = Vec::with_capacity(attnums.len());
                for attnum in attnums {
                    if (*slot).tts_nvalid < *attnum {
                        slot_getsomeattrs_int(slot, i32::from(*attnum));
                    }
                    if *(*slot).tts_isnull.add(*attnum as usize - 1) {
                        break;
                    }
                    values.push(*(*slot).tts_values.add(*attnum as usize - 1));
                }
                if values.len() == attnums.len() {
                    f(index, attnums, &values);
                }
            }
            index_close(index, NoLock as i32);
        }
    }
}

/// The fragment rows with one of the keys in `slot` that no committed promotion has moved; waits for open ones.
unsafe fn live_rows(rel: Relation, table: &TableFragments, attnums: &[i16], values: &[Datum]) -> Vec<u64> {
    // SAFETY: `rel` is open; the values are of the attributes' types.
    unsafe {
        let mut rows = table.lookup(rel, attnums, values);
        rows.retain(|row_id| {
            loop {
                match deletion::latest(rel, *row_id) {
                    RowState::Live => return true,
                    RowState::Promoted(_) => return false,
                    RowState::InProgress(xid) => {
                        let mut at = tid::from_row_id(*row_id);
                        XactLockTableWait(xid, rel, &mut at, XLTW_Oper::XLTW_InsertIndex);
                    }
                }
            }
        });
        rows
    }
}

/// Raises a unique violation if a fragment row has a key of the row in `slot`.
///
/// # Safety
/// `rel` is open; `slot` has its descriptor.
pub unsafe fn check_fragments(rel: Relation, slot: *mut TupleTableSlot) {
    // SAFETY: the caller's promise.
    unsafe {
        let Some(table) = fragments::of(rel) else { return };
        for_each_key(rel, slot, |index, attnums, values| {
            if !live_rows(rel, &table, attnums, values).is_empty() {
                violation(index, values);
            }
        });
    }
}

/// The fragment rows that share a key with the row in `slot`.
///
/// # Safety
/// As for [`check_fragments`].
pub unsafe fn conflicting(rel: Relation, slot: *mut TupleTableSlot) -> Vec<u64> {
    let mut rows = Vec::new();
    // SAFETY: the caller's promise.
    unsafe {
        if let Some(table) = fragments::of(rel) {
            for_each_key(rel, slot, |_, attnums, values| rows.extend(live_rows(rel, &table, attnums, values)));
        }
    }
    rows.sort_unstable();
    rows.dedup();
    rows
}

/// Raises the error that the btree would have raised.
unsafe fn violation(index: Relation, values: &[Datum]) -> ! {
    // SAFETY: `index` is open, the values are of its key.
    unsafe {
        let error = StrataError::DuplicateKey {
            constraint: name_of(index),
            detail: describe(index, values).map(|d| format!("Key {d} already exists.")),
        };
        name_index(index, PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION);
        error.raise()
    }
}

/// Raises a unique violation if two rows of the table, fragments included, have the same key of `index`, which is being
/// built over the delta rows.
///
/// The keys of the fragment rows are sorted as the btree's own build would sort them, which finds duplicates; the delta
/// rows are looked up one by one.
///
/// # Safety
/// `rel` and `index` are open, and nobody else writes the table; `info` is the index's, which is plain.
pub unsafe fn check_whole_table(rel: Relation, index: Relation, info: *mut IndexInfo) {
    // SAFETY: the caller's promise; slots have the table's descriptor.
    unsafe {
        if fragments::of(rel).is_none() {
            return;
        }
        let slot = MakeSingleTupleTableSlot((*rel).rd_att, &raw const TTSOpsHeapTuple);
        let (mut values, mut nulls) = ([Datum::null(); INDEX_MAX_KEYS as usize], [false; INDEX_MAX_KEYS as usize]);
        let memory = maintenance_work_mem;
        let sort =
            guarded(|| ext::tuplesort_begin_index_btree(rel, index, true, false, memory, std::ptr::null_mut(), 0));
        let mut own = SnapshotData { snapshot_type: SnapshotType::SNAPSHOT_SELF, ..Default::default() };
        let attributes = index::attributes(&*(*index).rd_index);
        index::for_each_row(rel, &raw mut own, slot, Some(attributes), |mut at| {
            FormIndexDatum(info, slot, std::ptr::null_mut(), values.as_mut_ptr(), nulls.as_mut_ptr());
            guarded(|| {
                ext::tuplesort_putindextuplevalues(sort, index, &mut at, values.as_mut_ptr(), nulls.as_mut_ptr());
            });
        });
        guarded(|| ext::tuplesort_performsort(sort));
        guarded(|| ext::tuplesort_end(sort));

        check_delta_rows(rel, index, info, &raw mut own);
        ExecDropSingleTupleTableSlot(slot);
    }
}

/// Raises a unique violation if a delta row that `snapshot` sees has the same key of `index` as a fragment row.
///
/// # Safety
/// `rel` and `index` are open and locked; `info` is the index's, which is plain and unique.
pub unsafe fn check_delta_rows(rel: Relation, index: Relation, info: *mut IndexInfo, snapshot: Snapshot) {
    // SAFETY: the caller's promise; the slot has the table's descriptor.
    unsafe {
        let Some(table) = fragments::of(rel) else { return };
        let (mut values, mut nulls) = ([Datum::null(); INDEX_MAX_KEYS as usize], [false; INDEX_MAX_KEYS as usize]);
        let attnums = index::key_attributes(&*(*index).rd_index);
        let delta = MakeSingleTupleTableSlot((*rel).rd_att, &raw const TTSOpsBufferHeapTuple);
        let am = handler::heap();
        let null = std::ptr::null_mut();
        let flags = ScanOptions::SO_TYPE_SEQSCAN | ScanOptions::SO_ALLOW_STRAT;
        let scan = guarded(|| am.scan_begin.unwrap_unchecked()(rel, snapshot, 0, null, std::ptr::null_mut(), flags));
        while guarded(|| am.scan_getnextslot.unwrap_unchecked()(scan, ScanDirection::ForwardScanDirection, delta)) {
            pgrx::check_for_interrupts!();
            FormIndexDatum(info, delta, null.cast(), values.as_mut_ptr(), nulls.as_mut_ptr());
            if !nulls[..attnums.len()].contains(&true)
                && !live_rows(rel, &table, attnums, &values[..attnums.len()]).is_empty()
            {
                let description = describe(index, &values[..attnums.len()]);
                let error = StrataError::CannotCreateUnique {
                    index: name_of(index),
                    detail: description.map(|d| format!("Key {d} is duplicated.")),
                };
                name_index(index, PgSqlErrorCode::ERRCODE_UNIQUE_VIOLATION);
                error.raise();
            }
        }
        guarded(|| am.scan_end.unwrap_unchecked()(scan));
        ExecDropSingleTupleTableSlot(delta);
    }
}

/// The error with this SQLSTATE that is raised next names the table and the index, as the btree's does.
///
/// # Safety
/// `index` is open.
pub unsafe fn name_index(index: Relation, code: PgSqlErrorCode) {
    // SAFETY: `index` is open.
    unsafe {
        let name = std::ffi::CStr::from_ptr((*(*index).rd_rel).relname.data.as_ptr());
        name_constraint(code as i32, (*(*index).rd_index).indrelid, name);
    }
}

/// The name of an index.
///
/// # Safety
/// `index` is open.
pub unsafe fn name_of(index: Relation) -> String {
    // SAFETY: `index` is open.
    unsafe { std::ffi::CStr::from_ptr((*(*index).rd_rel).relname.data.as_ptr()).to_string_lossy().into_owned() }
}

/// The key as btree's messages write it, if the user may see it.
unsafe fn describe(index: Relation, values: &[Datum]) -> Option<String> {
    // SAFETY: the arrays have room for INDEX_MAX_KEYS keys; BuildIndexValueDescription returns NULL or a C string.
    unsafe {
        let mut keys = [Datum::null(); INDEX_MAX_KEYS as usize];
        keys[..values.len()].copy_from_slice(values);
        let nulls = [false; INDEX_MAX_KEYS as usize];
        let description = BuildIndexValueDescription(index, keys.as_ptr().cast_mut(), nulls.as_ptr().cast_mut());
        (!description.is_null()).then(|| std::ffi::CStr::from_ptr(description).to_string_lossy().into_owned())
    }
}
