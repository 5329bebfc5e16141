//! What happens to fragments when a table's file is replaced, emptied or filled in bulk.
//!
//! Fragments belong to a relation file. TRUNCATE and DROP give the table another file or none: nothing is to be done here,
//! the old file's rows in `strata.fragment` are swept later (`tier::sweep`), and a rollback finds everything as it was.
//! CLUSTER, VACUUM FULL and SET TABLESPACE rewrite the delta store into a new file: the fragments are recorded for the new
//! file too, under the same row ids; fragments that lack an attribute which was added with a default
//! are written again with it. A rewriting ALTER TABLE fills a transient table row by row: when it is done the rows
//! are folded into fragments.

use super::handler::{as_heap, heap};
use super::{analyze, fragments};
use crate::pg::{OpenRelation, catalog, compat, ext, guarded};
use crate::tier::{index, writer};
use pgrx::pg_sys::*;
use pgrx::prelude::*;
use roaring::RoaringTreemap;

pub unsafe extern "C-unwind" fn relation_toast_am(_rel: Relation) -> Oid {
    HEAP_TABLE_AM_OID
}

/// The table that a transient table of `cluster.c` stands for: it is called `pg_temp_<OID>`, is in the same schema, and
/// this transaction has locked that table against everybody.
unsafe fn transient_for(rel: Relation) -> Option<Oid> {
    // SAFETY: `rel` is open.
    unsafe {
        if (*rel).rd_createSubid == ext::INVALID_SUBTRANSACTION_ID {
            return None;
        }
        let name = std::ffi::CStr::from_ptr((*(*rel).rd_rel).relname.data.as_ptr());
        let table = name.to_str().ok()?.strip_prefix("pg_temp_")?.parse().ok().map(Oid::from_u32)?;
        let original = OpenRelation::try_open(table, NoLock)?;
        (CheckRelationLockedByMe(original.0, AccessExclusiveLock as i32, true)
            && (*(*original.0).rd_rel).relnamespace == (*(*rel).rd_rel).relnamespace)
            .then_some(table)
    }
}

/// The end of COPY, CREATE TABLE AS and rewriting ALTER TABLE. Only the last fills a table that nobody can look at yet.
#[pg_guard]
pub unsafe extern "C-unwind" fn finish_bulk_insert(rel: Relation, options: i32) {
    // SAFETY: the arguments are core's.
    unsafe {
        if let Some(finish) = heap().finish_bulk_insert {
            guarded(|| finish(rel, options));
        }
        if let Some(table) = transient_for(rel)
            && (*(*rel).rd_rel).relpersistence == RELPERSISTENCE_PERMANENT as i8
        {
            writer::fold_new_file(rel, table);
        }
    }
}

/// TRUNCATE of a table that this transaction made.
#[pg_guard]
pub unsafe extern "C-unwind" fn relation_nontransactional_truncate(rel: Relation) {
    // SAFETY: the arguments are core's.
    unsafe {
        guarded(|| heap().relation_nontransactional_truncate.unwrap_unchecked()(rel));
        if fragments::of(rel).is_some() {
            catalog::forget_file((*rel).rd_id, compat::filenode(rel));
            CacheInvalidateRelcache(rel);
        }
    }
}

#[pg_guard]
pub unsafe extern "C-unwind" fn relation_copy_data(rel: Relation, new: *const compat::FileLocator) {
    // SAFETY: the arguments are core's.
    unsafe {
        guarded(|| heap().relation_copy_data.unwrap_unchecked()(rel, new));
        catalog::copy_file((*rel).rd_id, compat::filenode(rel), compat::file_number(&*new));
    }
}

/// CLUSTER and VACUUM FULL: the delta store is copied (sorted if there is an index; never by an index scan, which would
/// meet fragment rows), the fragments stay.
#[pg_guard]
pub unsafe extern "C-unwind" fn relation_copy_for_cluster(
    old: Relation,
    new: Relation,
    order: Relation,
    _sort: bool,
    oldest_xmin: TransactionId,
    xid_cutoff: *mut TransactionId,
    multi_cutoff: *mut MultiXactId,
    tuples: *mut f64,
    vacuumed: *mut f64,
    recently_dead: *mut f64,
) {
    // SAFETY: the arguments are core's.
    unsafe {
        as_heap(old, || {
            guarded(|| {
                heap().relation_copy_for_cluster.unwrap_unchecked()(
                    old,
                    new,
                    order,
                    !order.is_null(),
                    oldest_xmin,
                    xid_cutoff,
                    multi_cutoff,
                    tuples,
                    vacuumed,
                    recently_dead,
                );
            });
        });
        if let Some(table) = fragments::of(old) {
            let file = compat::filenode(new);
            catalog::copy_file((*old).rd_id, compat::filenode(old), file);
            let mut rewritten = false;
            // The catalog forgets values of attributes that were added later: from now on every row has them itself.
            for f in table.list.iter().filter(|f| f.relies_on_catalog((*old).rd_att)) {
                rewritten = true;
                catalog::remove_fragment((*old).rd_id, file, f.row.first_row_id);
                for row in writer::rewrite(old, &[f], &table.folded, &RoaringTreemap::new()) {
                    catalog::record_fragment((*old).rd_id, file, &row);
                }
            }
            if rewritten {
                index::settle((*old).rd_id, file, &index::keys_of(old));
            }
            *tuples += table.rows() as f64;
            if RelationGetNumberOfBlocksInFork(new, ForkNumber::MAIN_FORKNUM) == 0 {
                analyze::add_page(new);
            }
        }
    }
}
