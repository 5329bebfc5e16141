//! INSERT … ON CONFLICT.
//!
//! The executor looks for a conflicting row in the arbiter indexes before it inserts anything, fragment rows included (`probe`). So a
//! fragment row that still has a key of the new row when that is inserted has it in an index which is no arbiter: that
//! is an error, as for any insertion. A row that was promoted in between is found by the btree, as a row that somebody else has inserted
//! in between is on heap.

use super::handler::heap;
use super::unique;
use crate::pg::guarded;
use crate::tier::test_fold;
use pgrx::pg_sys::*;
use pgrx::prelude::*;

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
        unique::check_fragments(rel, slot);
        guarded(|| heap().tuple_insert_speculative.unwrap_unchecked()(rel, slot, cid, options, bistate, token));
    }
}
