//! INSERT … ON CONFLICT.
//!
//! The executor looks for a conflicting row in the arbiter indexes before and after the insertion; a plain btree does not know
//! fragment rows. So a fragment row with the same key is promoted when the row is inserted: then the index knows it, the
//! executor finds the conflict when it inserts its index entries, takes the insertion back and starts again.
//!
//! On heap it would have found the conflict before it had inserted anything. So another unique index, which comes before the
//! arbiter, must not raise an error first. A btree raises none for a row that is no more when it asks for it once again
//! (`SnapshotSelf`), which is what [`is_doubtful`] makes it see. If there is no conflict after all, the checks that were
//! left out are made when the insertion is completed.

use super::handler::heap;
use super::{index, modify};
use crate::pg::guarded;
use crate::tier::test_fold;
use pgrx::pg_sys::*;
use pgrx::prelude::*;
use std::cell::Cell;

thread_local! {
    /// Table and TID of a row that was inserted beside a fragment row with the same key.
    static DOUBTFUL: Cell<Option<(Oid, ItemPointerData)>> = const { Cell::new(None) };
}

/// Whether a unique check shall take the row at `at` for gone.
///
/// # Safety
/// `at` is a TID, `snapshot` valid, `rel` open.
#[inline]
pub unsafe fn is_doubtful(rel: Relation, at: ItemPointer, snapshot: Snapshot) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        (*snapshot).snapshot_type == SnapshotType::SNAPSHOT_SELF
            && DOUBTFUL
                .get()
                .is_some_and(|(relid, mut tid)| relid == (*rel).rd_id && ItemPointerEquals(at, &raw mut tid))
    }
}

#[pg_guard]
pub unsafe extern "C-unwind" fn tuple_insert_speculative(
    rel: Relation,
    slot: *mut TupleTableSlot,
    cid: CommandId,
    options: i32,
    bistate: *mut BulkInsertStateData,
    token: u32,
) {
    // SAFETY: the arguments are the executor's, as for the heap.
    unsafe {
        test_fold::changed(rel);
        DOUBTFUL.set(None);
        let conflicts = modify::promote_conflicting(rel, slot, cid);
        guarded(|| heap().tuple_insert_speculative.unwrap_unchecked()(rel, slot, cid, options, bistate, token));
        if conflicts {
            DOUBTFUL.set(Some(((*rel).rd_id, (*slot).tts_tid)));
        }
    }
}

#[pg_guard]
pub unsafe extern "C-unwind" fn tuple_complete_speculative(
    rel: Relation,
    slot: *mut TupleTableSlot,
    token: u32,
    succeeded: bool,
) {
    // SAFETY: the arguments are the executor's, as for the heap.
    unsafe {
        let doubtful = DOUBTFUL.take();
        if succeeded && doubtful.is_some() {
            // The entries are there; as for a deferred constraint, only the check is made.
            index::insert_into(rel, slot, &(*slot).tts_tid, IndexUniqueCheck::UNIQUE_CHECK_EXISTING, |index| {
                let form = &*(*index).rd_index;
                form.indisunique && form.indimmediate && !form.indisexclusion
            });
        }
        guarded(|| heap().tuple_complete_speculative.unwrap_unchecked()(rel, slot, token, succeeded));
    }
}
