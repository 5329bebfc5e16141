//! Indexes of warm tables: which hold entries for fragment rows, and how they are built.
//!
//! A *plain* btree holds entries for delta rows only; see the module header of `am`. Building or validating any other
//! index goes over the delta store with the heap's own functions and over the fragments here.

use super::fragments::{self, ColumnSource, TableFragment};
use super::handler::{as_heap, heap};
use super::{datum, deletion};
use crate::memory::access;
use crate::pg::diagnostics::kept;
use crate::pg::{compat, failpoint, guarded, stat, tid};
use core::ffi::c_void;
use pgrx::pg_sys::*;
use pgrx::prelude::*;
use roaring::RoaringTreemap;
use std::ptr::null_mut;
use strata_fragment::memory::Charge;

/// btree's support function that tells whether equal values have equal bytes.
const BTEQUALIMAGE_PROC: i16 = 4;

/// Whether `index` is a plain btree: fragment rows have no entries in it.
///
/// # Safety
/// `index` is an open index.
pub unsafe fn is_plain(index: Relation) -> bool {
    // SAFETY: the caller's promise; rd_indextuple has the expressions and the predicate as its only nullable attributes.
    unsafe {
        let form = &*(*index).rd_index;
        if (*(*index).rd_rel).relam != BTREE_AM_OID
            || !heap_attisnull((*index).rd_indextuple, Anum_pg_index_indexprs as i32, null_mut())
            || !heap_attisnull((*index).rd_indextuple, Anum_pg_index_indpred as i32, null_mut())
        {
            return false;
        }
        // An exclusion constraint looks for conflicting rows in its index.
        if form.indisexclusion {
            return false;
        }
        if !form.indisunique {
            return true;
        }
        form.indimmediate
            && !compat::nulls_not_distinct(form)
            && has_image_equality(index)
            && !names_a_column_twice(form)
    }
}

/// Whether an index is built without entries for fragment rows.
unsafe fn is_built_plain(rel: Relation, index: Relation) -> bool {
    // SAFETY: the caller's promise: both are open.
    unsafe { is_plain(index) && !may_become_deferrable(rel, index) }
}

/// Whether the index, which is built concurrently, may be the copy with which REINDEX CONCURRENTLY replaces a deferrable unique index of
/// `rel`: the copy becomes deferrable when it takes the other's place.
unsafe fn may_become_deferrable(rel: Relation, index: Relation) -> bool {
    // SAFETY: the caller's promise; the arrays have indnkeyatts elements.
    unsafe {
        let form = &*(*index).rd_index;
        if !form.indisunique || form.indisready {
            return false;
        }
        index_oids(rel).into_iter().filter(|oid| *oid != (*index).rd_id).any(|oid| {
            let other = index_open(oid, AccessShareLock as i32);
            let theirs = &*(*other).rd_index;
            let found = theirs.indisunique && !theirs.indimmediate && key_attributes(theirs) == key_attributes(form);
            index_close(other, NoLock as i32);
            found
        })
    }
}

/// The table's attributes that an index has: those of its key, then those that are included. 0 for an expression.
///
/// # Safety
/// `form` is that of an open index.
pub unsafe fn attributes(form: &FormData_pg_index) -> &[i16] {
    // SAFETY: the array has indnatts elements.
    unsafe { std::slice::from_raw_parts(form.indkey.values.as_ptr(), form.indnatts as usize) }
}

/// Those of its key.
///
/// # Safety
/// As for [`attributes`].
pub unsafe fn key_attributes(form: &FormData_pg_index) -> &[i16] {
    // SAFETY: the caller's promise; the array has at least indnkeyatts elements.
    unsafe { std::slice::from_raw_parts(form.indkey.values.as_ptr(), form.indnkeyatts as usize) }
}

/// Whether a key has a column more than once, which the fragment index does not take.
unsafe fn names_a_column_twice(form: &FormData_pg_index) -> bool {
    // SAFETY: the form is an open index's.
    let keys = unsafe { key_attributes(form) };
    (1..keys.len()).any(|i| keys[..i].contains(&keys[i]))
}

/// Whether two keys of a unique index are equal exactly when their bytes are.
unsafe fn has_image_equality(index: Relation) -> bool {
    // SAFETY: `index` is open; the arrays have indnkeyatts elements.
    unsafe {
        let form = &*(*index).rd_index;
        (0..form.indnkeyatts as usize).all(|i| {
            let (family, input) = (*(*index).rd_opfamily.add(i), *(*index).rd_opcintype.add(i));
            // Blanks at the end count for nothing, and only a length pads all values to the same.
            if input == BPCHAROID && compat::attribute((*index).rd_att, i).atttypmod < 0 {
                return false;
            }
            let support = get_opfamily_proc(family, input, input, BTEQUALIMAGE_PROC);
            support != Oid::INVALID
                && OidFunctionCall1Coll(support, *(*index).rd_indcollation.add(i), Datum::from(input)).value() != 0
        })
    }
}

/// The OIDs of a relation's indexes.
///
/// # Safety
/// `rel` is open.
pub unsafe fn index_oids(rel: Relation) -> Vec<Oid> {
    // SAFETY: RelationGetIndexList returns a fresh list of OIDs.
    unsafe {
        let list = RelationGetIndexList(rel);
        if list.is_null() {
            return Vec::new();
        }
        let oids = (0..(*list).length as usize).map(|i| (*(*list).elements.add(i)).oid_value).collect();
        list_free(list);
        oids
    }
}

/// Inserts the index entries of a promoted row. Its key was in the table before, so nothing is checked.
///
/// # Safety
/// `slot` holds the row, which is at `delta`; `rel` is open and locked.
pub unsafe fn insert_entries(rel: Relation, slot: *mut TupleTableSlot, delta: &ItemPointerData) {
    let mut at = *delta;
    let check = IndexUniqueCheck::UNIQUE_CHECK_NO;
    // SAFETY: the caller's promise. Expressions and predicates are evaluated in the estate's per-tuple context.
    unsafe {
        let estate = CreateExecutorState();
        let econtext = compat::per_tuple_context(estate);
        (*econtext).ecxt_scantuple = slot;
        for oid in index_oids(rel) {
            let index = index_open(oid, RowExclusiveLock as i32);
            if (*(*index).rd_index).indisready {
                let info = BuildIndexInfo(index);
                let matches = (*info).ii_Predicate.is_null() || {
                    let predicate = ExecPrepareQual((*info).ii_Predicate, estate);
                    compat::exec_qual(predicate, econtext)
                };
                if matches {
                    let mut values = [Datum::null(); INDEX_MAX_KEYS as usize];
                    let mut nulls = [false; INDEX_MAX_KEYS as usize];
                    kept(|| FormIndexDatum(info, slot, estate, values.as_mut_ptr(), nulls.as_mut_ptr()));
                    kept(|| {
                        index_insert(index, values.as_mut_ptr(), nulls.as_mut_ptr(), &mut at, rel, check, false, info)
                    });
                    compat::index_insert_cleanup(index, info);
                }
            }
            index_close(index, NoLock as i32);
        }
        FreeExecutorState(estate);
    }
}

/// Calls `f` for each fragment row of `rel` that `snapshot` sees (for null, that anybody may see), stored in `slot`: the attributes
/// in `wanted`, null for the others; or all of them.
///
/// # Safety
/// `rel` is open and locked; `slot` has its descriptor; `f` does not keep the slot's contents.
pub unsafe fn for_each_row(
    rel: Relation,
    snapshot: Snapshot,
    slot: *mut TupleTableSlot,
    wanted: Option<&[i16]>,
    mut f: impl FnMut(ItemPointerData),
) {
    // SAFETY: the caller's promise; by-reference datums live in a context that is reset for each row.
    unsafe {
        let Some(table) = fragments::of(rel) else { return };
        let deleted =
            if snapshot.is_null() { deletion::deleted_for_all(rel) } else { deletion::deleted(rel, snapshot) };
        for tf in &table.list {
            for_each_row_of(rel, tf, &deleted, slot, wanted, &mut f);
        }
    }
}

/// [`for_each_row`] for one fragment, without its rows in `deleted`.
///
/// # Safety
/// As for [`for_each_row`]; `tf` is a fragment of `rel`.
pub unsafe fn for_each_row_of(
    rel: Relation,
    tf: &TableFragment,
    deleted: &RoaringTreemap,
    slot: *mut TupleTableSlot,
    wanted: Option<&[i16]>,
    f: &mut impl FnMut(ItemPointerData),
) {
    // SAFETY: the caller's promise; by-reference datums live in a context that is reset for each row.
    unsafe {
        let context = AllocSetContextCreateInternal(
            CurrentMemoryContext,
            c"strata fragment row".as_ptr(),
            0,
            8 * 1024,
            8 * 1024 * 1024,
        );
        let tupdesc = (*slot).tts_tupleDescriptor;
        let n = (*tupdesc).natts as usize;
        let mut values = vec![Datum::null(); n];
        let mut nulls = vec![true; n];
        let fragment = tf.open_for(&access::ONCE);
        let mut charge = Charge::default();
        let mut sources = tf.columns(&fragment, tupdesc);
        for (source, attribute) in sources.iter_mut().zip(1..) {
            if wanted.is_some_and(|wanted| !wanted.contains(&attribute)) {
                *source = ColumnSource::Missing(Datum::null(), true);
            }
        }
        for (b, block) in fragment.blocks().iter().enumerate() {
            pgrx::check_for_interrupts!();
            let columns: Vec<_> = sources
                .iter()
                .map(|s| match s {
                    ColumnSource::Column(c, _) => Some(tf.check(fragment.read(b, *c))),
                    ColumnSource::Missing(..) => None,
                })
                .collect();
            charge.set(columns.iter().flatten().map(|c| c.memory_bytes()).sum());
            let first_row_id = tf.row_id(block.first_row);
            let row_ids = tf.sparse_row_ids(block.first_row, block.rows as usize);
            for i in 0..block.rows as usize {
                let row_id = row_ids.as_ref().map_or(first_row_id + i as u64, |ids| ids[i]);
                if deleted.contains(row_id) {
                    continue;
                }
                MemoryContextReset(context);
                let old = MemoryContextSwitchTo(context);
                for (a, source) in sources.iter().enumerate() {
                    (values[a], nulls[a]) = match (source, &columns[a]) {
                        (ColumnSource::Column(_, kind), Some(c)) if !c.is_null(i) => {
                            (datum::from_column(*kind, c, i), false)
                        }
                        (ColumnSource::Missing(d, is_null), _) => (*d, *is_null),
                        _ => (Datum::null(), true),
                    };
                }
                fragments::store_tuple(rel, slot, row_id, &mut values, &mut nulls);
                MemoryContextSwitchTo(old);
                f(tid::from_row_id(row_id));
            }
        }
        MemoryContextDelete(context);
    }
}

#[pg_guard]
pub unsafe extern "C-unwind" fn index_build_range_scan(
    rel: Relation,
    index: Relation,
    info: *mut IndexInfo,
    sync: bool,
    any_visible: bool,
    progress: bool,
    start: BlockNumber,
    blocks: BlockNumber,
    callback: IndexBuildCallback,
    state: *mut c_void,
    scan: TableScanDesc,
) -> f64 {
    // SAFETY: the arguments are index.c's.
    unsafe {
        let leader = scan.is_null() || ParallelWorkerNumber < 0;
        super::builds::building(rel);
        // In a parallel build core began the scan, with our descriptor; the heap ends its own part of it.
        let heap_scan = if scan.is_null() { scan } else { super::scan::inner(scan) };
        let delta = as_heap(rel, || {
            guarded(|| {
                heap().index_build_range_scan.unwrap_unchecked()(
                    rel,
                    index,
                    info,
                    sync,
                    any_visible,
                    progress,
                    start,
                    blocks,
                    callback,
                    state,
                    heap_scan,
                )
            })
        });
        if !leader || fragments::of(rel).is_none() {
            return delta;
        }
        let access_method = (*(*index).rd_rel).relam;
        if start != 0 || blocks != InvalidBlockNumber {
            return delta;
        }
        // What is returned becomes pg_class.reltuples, so it has all rows, whether they get entries or not.
        if access_method == BRIN_AM_OID {
            // BRIN summarizes ranges of heap blocks; fragments have zone maps of their own.
            return delta + super::analyze::live_rows(rel) as f64;
        }
        if is_built_plain(rel, index) {
            super::oversized::refuse(rel, index, info);
            // A rebuild may ask for no check: VACUUM FULL leaves an index invalid whose unique build has failed.
            if (*info).ii_Unique && !super::unique::building_known_unique() {
                super::unique::check_whole_table(rel, index, info);
                // In a parallel build nothing can be changed; the key map comes with the next fold.
                if !IsInParallelMode() {
                    let key = key_attributes(&*(*index).rd_index);
                    crate::tier::index::add_key((*rel).rd_id, compat::filenode(rel), key);
                }
            }
            failpoint::hit(failpoint::INDEX_BUILT);
            return delta + super::analyze::live_rows(rel) as f64;
        }
        let estate = CreateExecutorState();
        let econtext = compat::per_tuple_context(estate);
        let slot = MakeSingleTupleTableSlot((*rel).rd_att, &raw const TTSOpsHeapTuple);
        (*econtext).ecxt_scantuple = slot;
        let predicate = ExecPrepareQual((*info).ii_Predicate, estate);
        let mut values = [Datum::null(); INDEX_MAX_KEYS as usize];
        let mut nulls = [false; INDEX_MAX_KEYS as usize];
        let Some(call) = callback else { return delta };
        let mut rows = 0;
        let mut own = SnapshotData { snapshot_type: SnapshotType::SNAPSHOT_SELF, ..Default::default() };
        let gone = deletion::deleted(rel, &raw mut own);
        // Rows whose deletion is not yet visible to all are indexed too, as by heap; who fetches them asks the deletion
        // vector. Others are not: an expression may fail on a row that is gone.
        for_each_row(rel, null_mut(), slot, None, |mut at| {
            MemoryContextReset((*econtext).ecxt_per_tuple_memory);
            // Whether the row counts for uniqueness.
            let alive = tid::row_id(&at).is_none_or(|row_id| !gone.contains(row_id));
            rows += i64::from(alive);
            if !predicate.is_null() && !compat::exec_qual(predicate, econtext) {
                return;
            }
            kept(|| FormIndexDatum(info, slot, estate, values.as_mut_ptr(), nulls.as_mut_ptr()));
            guarded(|| call(index, &mut at, values.as_mut_ptr(), nulls.as_mut_ptr(), alive, state));
        });
        stat::returned(rel, rows);
        ExecDropSingleTupleTableSlot(slot);
        FreeExecutorState(estate);
        (*info).ii_ExpressionsState = null_mut();
        (*info).ii_PredicateState = null_mut();
        delta + rows as f64
    }
}

/// CREATE INDEX CONCURRENTLY: the build phase has all fragment rows there were; a move needs an exclusive lock, so there are
/// no others now. Only the delta store has to be merged; and rows that were written since are compared with the fragments, which
/// who wrote them has not done: the index was not ready yet.
#[pg_guard]
pub unsafe extern "C-unwind" fn index_validate_scan(
    rel: Relation,
    index: Relation,
    info: *mut IndexInfo,
    snapshot: Snapshot,
    state: *mut ValidateIndexState,
) {
    // SAFETY: the arguments are index.c's.
    unsafe {
        as_heap(rel, || {
            guarded(|| heap().index_validate_scan.unwrap_unchecked()(rel, index, info, snapshot, state));
        });
        if (*info).ii_Unique && is_built_plain(rel, index) {
            super::unique::check_delta_rows(rel, index, info, snapshot);
        }
    }
}

/// Entries of fragment rows are never reported dead by the heap: it must not look for their blocks.
#[pg_guard]
pub unsafe extern "C-unwind" fn index_delete_tuples(rel: Relation, state: *mut TM_IndexDeleteOp) -> TransactionId {
    // SAFETY: the arguments are the index's; deltids has ndeltids elements.
    unsafe {
        let entries = std::slice::from_raw_parts_mut((*state).deltids, (*state).ndeltids as usize);
        let mut kept = 0;
        for i in 0..entries.len() {
            if tid::row_id(&entries[i].tid).is_none() {
                entries[kept] = entries[i];
                kept += 1;
            }
        }
        (*state).ndeltids = kept as i32;
        if kept == 0 {
            return InvalidTransactionId;
        }
        guarded(|| heap().index_delete_tuples.unwrap_unchecked()(rel, state))
    }
}
