//! Giving a table other files than it has: a transient table is filled beside it, its indexes are built there, and then the
//! files are exchanged. This is what CLUSTER does, but with the indexes built before the exclusive lock is needed.
//!
//! ```text
//!  SHARE UPDATE EXCLUSIVE    transient()        pg_temp_OID, filled by the caller
//!                            build_indexes()    a copy of each index, over the transient table
//!  ACCESS EXCLUSIVE          insert_entries()   entries of the rows that the caller added since
//!                            exchange()         files of the indexes, then of the table; the transient table is dropped
//! ```
//!
//! `finish_heap_swap` exchanges the table's file and rebuilds the table's indexes. It passes over indexes that are not *live*
//! (those that DROP INDEX CONCURRENTLY is about to remove), so those that have their new file already are marked so while it runs, and
//! live again when it has returned. Nobody else sees that: it is one transaction under ACCESS EXCLUSIVE. Indexes that cannot be
//! copied (exclusion constraints, invalid ones) are rebuilt by it as ever.

use super::{OpenRelation, compat, ext, guarded};
use pgrx::pg_sys::*;
use std::ffi::CString;
use std::string::String;

/// An index of the table and its copy on the transient table.
#[derive(Clone, Copy, Debug)]
pub struct IndexCopy {
    /// The table's index.
    pub index: Oid,
    /// The one that holds the new file.
    pub copy: Oid,
}

/// Creates the transient table for `rel` with access method `am`; the caller holds at least SHARE UPDATE EXCLUSIVE on `rel`.
///
/// # Safety
/// `rel` is open and locked by `lock`.
pub unsafe fn transient(rel: Relation, am: Oid, lock: u32) -> Oid {
    // SAFETY: the caller's promise.
    unsafe {
        let form = *(*rel).rd_rel;
        guarded(|| ext::make_new_heap((*rel).rd_id, form.reltablespace, am, form.relpersistence, lock as LOCKMODE))
    }
}

/// Builds copies of the indexes of `rel` that `wanted` names over what `transient` holds now.
///
/// # Safety
/// Both relations are open and locked; nobody else can look at `transient`.
pub unsafe fn build_indexes(rel: Relation, transient: Relation, wanted: impl Fn(Relation) -> bool) -> Vec<IndexCopy> {
    let mut copies = Vec::new();
    // SAFETY: the caller's promise.
    unsafe {
        for index in crate::am::index::index_oids(rel) {
            pgrx::check_for_interrupts!();
            let old = index_open(index, AccessShareLock as i32);
            let form = &*(*old).rd_index;
            let usable = form.indisvalid && form.indisready && form.indislive && !form.indisexclusion && wanted(old);
            let (tablespace, immediate) = ((*(*old).rd_rel).reltablespace, form.indimmediate);
            index_close(old, NoLock as i32);
            if !usable {
                continue;
            }
            let name = CString::new(format!("pg_temp_{}", index.to_u32())).unwrap_or_default();
            let copy = index_concurrently_create_copy(transient, index, tablespace, name.as_ptr());
            CommandCounterIncrement();
            if !immediate {
                // A copy is not that of a constraint, so it does not know that it is deferrable: then a warm table's would get no
                // entries for fragment rows.
                set_deferrable(copy);
            }
            let new = index_open(copy, AccessExclusiveLock as i32);
            let info = BuildIndexInfo(new);
            // The rows are unique where they come from. Here they need not be: a row whose deletion some snapshot does not see yet is
            // there beside the one that took its key, and its mark is recorded for the table, not for its stand-in.
            (*info).ii_Unique = false;
            index_build(transient, new, info, false, true);
            index_close(new, NoLock as i32);
            CommandCounterIncrement();
            copies.push(IndexCopy { index, copy });
        }
    }
    copies
}

/// Inserts index entries for the tuples of `transient` from block `from` on. Nothing is checked: the rows satisfied the
/// table's constraints where they come from.
///
/// Index expressions are the code of the table's owner and run as such, also when a superuser or a worker moves the table. (Building
/// an index does so by itself.)
///
/// # Safety
/// `transient` is open and locked; its copies have no entries for these tuples.
pub unsafe fn insert_entries(transient: Relation, copies: &[IndexCopy], from: BlockNumber) {
    // SAFETY: the caller's promise; an ERROR in between gives the transaction's own user and settings back.
    unsafe {
        let blocks = RelationGetNumberOfBlocksInFork(transient, ForkNumber::MAIN_FORKNUM);
        if copies.is_empty() || from >= blocks {
            return;
        }
        let (mut user, mut context) = (Oid::INVALID, 0);
        GetUserIdAndSecContext(&mut user, &mut context);
        SetUserIdAndSecContext((*(*transient).rd_rel).relowner, context | SECURITY_RESTRICTED_OPERATION as i32);
        let level = NewGUCNestLevel();
        compat::restrict_search_path();
        insert_as_owner(transient, copies, from..blocks);
        AtEOXact_GUC(false, level);
        SetUserIdAndSecContext(user, context);
    }
}

/// [`insert_entries`] for some blocks.
unsafe fn insert_as_owner(transient: Relation, copies: &[IndexCopy], blocks: std::ops::Range<BlockNumber>) {
    // SAFETY: the caller's promise; a tuple is used while its buffer is pinned.
    unsafe {
        let indexes: Vec<_> = copies
            .iter()
            .map(|c| {
                let index = index_open(c.copy, AccessExclusiveLock as i32);
                (index, BuildIndexInfo(index))
            })
            .collect();
        let estate = CreateExecutorState();
        let econtext = compat::per_tuple_context(estate);
        let slot = MakeSingleTupleTableSlot((*transient).rd_att, &raw const TTSOpsBufferHeapTuple);
        (*econtext).ecxt_scantuple = slot;
        let predicates: Vec<_> =
            indexes.iter().map(|(_, info)| ExecPrepareQual((**info).ii_Predicate, estate)).collect();
        for block in blocks {
            pgrx::check_for_interrupts!();
            let buffer = ReadBuffer(transient, block);
            for offset in 1..=compat::max_offset(BufferGetPage(buffer)) {
                let item = compat::item_id(BufferGetPage(buffer), offset);
                if (*item).lp_flags() != LP_NORMAL {
                    continue;
                }
                let mut tuple = compat::page_tuple(transient, BufferGetPage(buffer), block, offset, item);
                MemoryContextReset((*econtext).ecxt_per_tuple_memory);
                ExecStoreBufferHeapTuple(&mut tuple, slot, buffer);
                for ((index, info), predicate) in indexes.iter().zip(&predicates) {
                    if !compat::exec_qual(*predicate, econtext) {
                        continue;
                    }
                    let mut values = [Datum::null(); INDEX_MAX_KEYS as usize];
                    let mut nulls = [false; INDEX_MAX_KEYS as usize];
                    let old = MemoryContextSwitchTo((*econtext).ecxt_per_tuple_memory);
                    FormIndexDatum(*info, slot, estate, values.as_mut_ptr(), nulls.as_mut_ptr());
                    index_insert(
                        *index,
                        values.as_mut_ptr(),
                        nulls.as_mut_ptr(),
                        &mut tuple.t_self,
                        transient,
                        IndexUniqueCheck::UNIQUE_CHECK_NO,
                        false,
                        *info,
                    );
                    MemoryContextSwitchTo(old);
                }
                ExecClearTuple(slot);
            }
            ReleaseBuffer(buffer);
        }
        ExecDropSingleTupleTableSlot(slot);
        FreeExecutorState(estate);
        for (index, info) in indexes {
            compat::index_insert_cleanup(index, info);
            index_close(index, NoLock as i32);
        }
    }
}

/// Exchanges the files of table `relid` and `transient` and those of its copied indexes, and drops `transient`.
///
/// # Safety
/// The caller holds ACCESS EXCLUSIVE on both; neither is open elsewhere in this session.
pub unsafe fn exchange(relid: Oid, transient: Oid, copies: &[IndexCopy], rows: f64) {
    // SAFETY: the caller's promise.
    unsafe {
        let form = {
            let rel = OpenRelation::open(relid, NoLock);
            // Row locks of serializable transactions name places that are no more.
            guarded(|| ext::TransferPredicateLocksToHeapRelation(rel.0));
            *(*rel.0).rd_rel
        };
        set_live(relid, copies, false);
        for c in copies {
            exchange_index(c);
        }
        CommandCounterIncrement();
        set_size(transient, rows);
        guarded(|| {
            ext::finish_heap_swap(
                relid,
                transient,
                false,
                false,
                false,
                true,
                form.relfrozenxid,
                form.relminmxid,
                form.relpersistence,
            );
        });
        set_live(relid, copies, true);
    }
}

/// Marks a copy as the index of a deferrable constraint.
unsafe fn set_deferrable(copy: Oid) {
    // SAFETY: a catalog row that this transaction has made is changed as a copy.
    unsafe {
        let catalog = table_open(IndexRelationId, RowExclusiveLock as i32);
        let tuple = copy_of_row(SysCacheIdentifier::INDEXRELID as i32, copy);
        (*compat::struct_of::<FormData_pg_index>(tuple)).indimmediate = false;
        CatalogTupleUpdate(catalog, &mut (*tuple).t_self, tuple);
        heap_freetuple(tuple);
        table_close(catalog, RowExclusiveLock as i32);
        CacheInvalidateRelcacheByRelid(copy);
        CommandCounterIncrement();
    }
}

/// Marks the table's indexes that have copies as live or not.
unsafe fn set_live(relid: Oid, copies: &[IndexCopy], live: bool) {
    if copies.is_empty() {
        return;
    }
    // SAFETY: catalog rows are changed as copies, under the table's exclusive lock.
    unsafe {
        let catalog = table_open(IndexRelationId, RowExclusiveLock as i32);
        for c in copies {
            let tuple = copy_of_row(SysCacheIdentifier::INDEXRELID as i32, c.index);
            let form = compat::struct_of::<FormData_pg_index>(tuple);
            (*form).indislive = live;
            // The new file has no broken HOT chains.
            (*form).indcheckxmin = false;
            CatalogTupleUpdate(catalog, &mut (*tuple).t_self, tuple);
            heap_freetuple(tuple);
        }
        table_close(catalog, RowExclusiveLock as i32);
        CacheInvalidateRelcacheByRelid(relid);
        CommandCounterIncrement();
    }
}

/// Gives the index its copy's file, and the copy the index's.
unsafe fn exchange_index(c: &IndexCopy) {
    // SAFETY: both are indexes; the relations are closed before their files are closed.
    unsafe {
        let catalog = table_open(RelationRelationId, RowExclusiveLock as i32);
        let one = copy_of_row(SysCacheIdentifier::RELOID as i32, c.index);
        let two = copy_of_row(SysCacheIdentifier::RELOID as i32, c.copy);
        let (a, b) = (compat::struct_of::<FormData_pg_class>(one), compat::struct_of::<FormData_pg_class>(two));
        std::mem::swap(&mut (*a).relfilenode, &mut (*b).relfilenode);
        std::mem::swap(&mut (*a).reltablespace, &mut (*b).reltablespace);
        std::mem::swap(&mut (*a).relpages, &mut (*b).relpages);
        std::mem::swap(&mut (*a).reltuples, &mut (*b).reltuples);
        std::mem::swap(&mut (*a).relallvisible, &mut (*b).relallvisible);
        {
            let index = OpenRelation::open(c.index, AccessExclusiveLock);
            let copy = OpenRelation::open(c.copy, AccessExclusiveLock);
            guarded(|| ext::TransferPredicateLocksToHeapRelation(index.0));
            compat::assume_new_file(index.0, copy.0);
        }
        CatalogTupleUpdate(catalog, &mut (*one).t_self, one);
        CatalogTupleUpdate(catalog, &mut (*two).t_self, two);
        heap_freetuple(one);
        heap_freetuple(two);
        table_close(catalog, RowExclusiveLock as i32);
        compat::close_file(c.index);
        compat::close_file(c.copy);
    }
}

/// Records the size of the transient table, which becomes the table's.
unsafe fn set_size(transient: Oid, rows: f64) {
    // SAFETY: a catalog row is changed as a copy.
    unsafe {
        let pages = {
            let rel = OpenRelation::open(transient, NoLock);
            RelationGetNumberOfBlocksInFork(rel.0, ForkNumber::MAIN_FORKNUM)
        };
        let catalog = table_open(RelationRelationId, RowExclusiveLock as i32);
        let tuple = copy_of_row(SysCacheIdentifier::RELOID as i32, transient);
        let form = compat::struct_of::<FormData_pg_class>(tuple);
        (*form).relpages = pages as i32;
        (*form).reltuples = rows as f32;
        CatalogTupleUpdate(catalog, &mut (*tuple).t_self, tuple);
        heap_freetuple(tuple);
        table_close(catalog, RowExclusiveLock as i32);
        CommandCounterIncrement();
    }
}

unsafe fn copy_of_row(cache: i32, oid: Oid) -> HeapTuple {
    // SAFETY: a cache look-up by OID.
    let tuple = unsafe { SearchSysCacheCopy(cache, Datum::from(oid), Datum::null(), Datum::null(), Datum::null()) };
    if tuple.is_null() {
        let what: String = format!("cache lookup failed for relation {}", oid.to_u32());
        pgrx::error!("{what}");
    }
    tuple
}
