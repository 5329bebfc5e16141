//! UPDATE, DELETE and row locks; inserts.
//!
//! A virtual TID goes through [`promote`] and then to the heap's own callback with the delta row's TID; a TID of the delta
//! store goes to the heap at once. Inserts go to the delta store after the keys of fragment rows were checked ([`unique`]), or
//! their rows promoted, where the executor has more to do with a conflict than to raise an error.

use super::handler::heap;
use super::{deletion, promote, ssi, unique};
use crate::pg::{compat, guarded, tid};
use crate::tier::test_fold;
use pgrx::pg_sys::*;
use pgrx::prelude::*;

#[pg_guard]
pub unsafe extern "C-unwind" fn tuple_delete(
    rel: Relation,
    at: ItemPointer,
    cid: CommandId,
    snapshot: Snapshot,
    crosscheck: Snapshot,
    wait: bool,
    tmfd: *mut TM_FailureData,
    changing_part: bool,
) -> TM_Result::Type {
    // SAFETY: the arguments are the executor's, as for the heap.
    unsafe {
        test_fold::changed(rel);
        let call = |at: ItemPointer, cid, crosscheck| {
            guarded(|| {
                heap().tuple_delete.unwrap_unchecked()(rel, at, cid, snapshot, crosscheck, wait, tmfd, changing_part)
            })
        };
        let Some(row_id) = tid::row_id_at(at) else {
            let (crosscheck, origin) = delta_crosscheck(rel, at, crosscheck);
            let result = call(at, promote::command_for(rel, &*at, cid), crosscheck);
            if result == TM_Result::TM_Ok {
                ssi::write_delta(rel, &*at);
                if let Some(row_id) = origin {
                    promote::mark_superseded(rel, row_id, cid);
                }
            }
            return result;
        };
        // A row that moves to another partition leaves word of it in its heap tuple.
        if !changing_part {
            match promote::delete(rel, row_id, cid, policy(wait)) {
                promote::Deleted::Done => {
                    pgstat_count_heap_delete(rel);
                    ssi::write_row(rel, row_id);
                    return TM_Result::TM_Ok;
                }
                promote::Deleted::Outcome(outcome) => match outcome.report(at, cid, tmfd) {
                    Ok(_) => {}
                    Err(result) => return invisible_is_an_error(result, "delete"),
                },
                promote::Deleted::Promote => {}
            }
        }
        let outcome = promote::target(rel, row_id, cid, policy(wait), promote::Purpose::Change);
        let target = match outcome.report(at, cid, tmfd) {
            Ok(target) => target,
            Err(result) => return invisible_is_an_error(result, "delete"),
        };
        let mut delta = target.delta;
        let result = call(&mut delta, target.cid, row_crosscheck(rel, row_id, crosscheck));
        finish(rel, row_id, &target, cid, result, tmfd);
        result
    }
}

/// What an update that ended has to leave behind for the fragment row it came from.
unsafe fn finish(
    rel: Relation,
    row_id: u64,
    target: &promote::Target,
    cid: CommandId,
    result: TM_Result::Type,
    tmfd: *mut TM_FailureData,
) {
    // SAFETY: the arguments are the caller's.
    unsafe {
        match result {
            TM_Result::TM_Ok => {
                ssi::write_row(rel, row_id);
                if target.committed {
                    promote::mark_superseded(rel, row_id, cid);
                }
            }
            TM_Result::TM_SelfModified => (*tmfd).cmax = promote::reported_command(target, cid, (*tmfd).cmax),
            _ => {}
        }
    }
}

/// The heap's own words for a row that this transaction deleted before the command began.
fn invisible_is_an_error(result: TM_Result::Type, what: &str) -> TM_Result::Type {
    if result == TM_Result::TM_Invisible {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("attempted to {what} invisible tuple")
        );
    }
    result
}

fn policy(wait: bool) -> LockWaitPolicy::Type {
    if wait { LockWaitPolicy::LockWaitBlock } else { LockWaitPolicy::LockWaitSkip }
}

/// The heap compares D with the crosscheck snapshot; what counts is whether that snapshot sees the row at all.
unsafe fn row_crosscheck(rel: Relation, row_id: u64, crosscheck: Snapshot) -> Snapshot {
    // SAFETY: the caller's snapshot is valid or null.
    unsafe {
        if !crosscheck.is_null() && deletion::visible(rel, row_id, crosscheck) {
            std::ptr::null_mut()
        } else {
            crosscheck
        }
    }
}

/// [`row_crosscheck`] for a delta row; also says which fragment row it was, if an old snapshot of this transaction may
/// still see that one. (It got to the delta row by an index: INSERT … ON CONFLICT, or a referential action.)
unsafe fn delta_crosscheck(rel: Relation, at: ItemPointer, crosscheck: Snapshot) -> (Snapshot, Option<u64>) {
    // SAFETY: the caller's snapshot is valid or null.
    unsafe {
        if !promote::has_transaction_snapshot() {
            return (crosscheck, None);
        }
        let crosscheck = if !crosscheck.is_null() && deletion::visible_origin(rel, &*at, crosscheck).is_some() {
            std::ptr::null_mut()
        } else {
            crosscheck
        };
        (crosscheck, deletion::visible_origin(rel, &*at, GetTransactionSnapshot()))
    }
}

/// Checks the keys of a new row version against fragment rows. Where the heap needs no new index entries (it found all indexed columns
/// unchanged, byte for byte), they are the keys that the row had before.
unsafe fn check_changed_keys(rel: Relation, slot: *mut TupleTableSlot, indexes: compat::UpdateIndexes) {
    // SAFETY: the arguments are those of an update that has been made.
    unsafe {
        if indexes != compat::NO_INDEXES {
            unique::check_fragments(rel, slot);
        }
    }
}

#[pg_guard]
pub unsafe extern "C-unwind" fn tuple_update(
    rel: Relation,
    at: ItemPointer,
    slot: *mut TupleTableSlot,
    cid: CommandId,
    snapshot: Snapshot,
    crosscheck: Snapshot,
    wait: bool,
    tmfd: *mut TM_FailureData,
    lockmode: *mut LockTupleMode::Type,
    update_indexes: *mut compat::UpdateIndexes,
) -> TM_Result::Type {
    // SAFETY: the arguments are the executor's, as for the heap.
    unsafe {
        test_fold::changed(rel);
        let call = |at: ItemPointer, cid, crosscheck| {
            guarded(|| {
                heap().tuple_update.unwrap_unchecked()(
                    rel,
                    at,
                    slot,
                    cid,
                    snapshot,
                    crosscheck,
                    wait,
                    tmfd,
                    lockmode,
                    update_indexes,
                )
            })
        };
        let Some(row_id) = tid::row_id_at(at) else {
            let (crosscheck, origin) = delta_crosscheck(rel, at, crosscheck);
            let result = call(at, promote::command_for(rel, &*at, cid), crosscheck);
            if result == TM_Result::TM_Ok {
                ssi::write_delta(rel, &*at);
                check_changed_keys(rel, slot, *update_indexes);
                if let Some(row_id) = origin {
                    promote::mark_superseded(rel, row_id, cid);
                }
            }
            return result;
        };
        let outcome = promote::target(rel, row_id, cid, policy(wait), promote::Purpose::Change);
        let target = match outcome.report(at, cid, tmfd) {
            Ok(target) => target,
            Err(result) => {
                *update_indexes = compat::NO_INDEXES;
                return invisible_is_an_error(result, "update");
            }
        };
        let mut delta = target.delta;
        let result = call(&mut delta, target.cid, row_crosscheck(rel, row_id, crosscheck));
        if result == TM_Result::TM_Ok {
            check_changed_keys(rel, slot, *update_indexes);
        }
        finish(rel, row_id, &target, cid, result, tmfd);
        result
    }
}

#[pg_guard]
pub unsafe extern "C-unwind" fn tuple_lock(
    rel: Relation,
    at: ItemPointer,
    snapshot: Snapshot,
    slot: *mut TupleTableSlot,
    cid: CommandId,
    mode: LockTupleMode::Type,
    wait_policy: LockWaitPolicy::Type,
    flags: u8,
    tmfd: *mut TM_FailureData,
) -> TM_Result::Type {
    // SAFETY: the arguments are the executor's, as for the heap.
    unsafe {
        let call = |at: ItemPointer, cid| {
            guarded(|| {
                heap().tuple_lock.unwrap_unchecked()(rel, at, snapshot, slot, cid, mode, wait_policy, flags, tmfd)
            })
        };
        let Some(row_id) = tid::row_id_at(at) else {
            return call(at, promote::command_for(rel, &*at, cid));
        };
        let target = match promote::target(rel, row_id, cid, wait_policy, promote::Purpose::Lock).report(at, cid, tmfd)
        {
            Ok(target) => target,
            Err(TM_Result::TM_BeingModified) => return TM_Result::TM_WouldBlock,
            Err(result) => return result,
        };
        let mut delta = target.delta;
        let result = call(&mut delta, target.cid);
        if result == TM_Result::TM_SelfModified {
            (*tmfd).cmax = promote::reported_command(&target, cid, (*tmfd).cmax);
        }
        // The caller goes on with the version that was locked if that is another row version; while it is still the same
        // row it keeps R's TID, through which a later operation of this command finds the right command id.
        if (*tmfd).traversed {
            *at = delta;
        }
        result
    }
}

#[pg_guard]
pub unsafe extern "C-unwind" fn tuple_insert(
    rel: Relation,
    slot: *mut TupleTableSlot,
    cid: CommandId,
    options: i32,
    bistate: *mut BulkInsertStateData,
) {
    // SAFETY: the arguments are the executor's, as for the heap.
    unsafe {
        test_fold::changed(rel);
        unique::check_fragments(rel, slot);
        guarded(|| heap().tuple_insert.unwrap_unchecked()(rel, slot, cid, options, bistate));
    }
}

/// COPY. The line of a duplicate key is known only where COPY inserts index entries: the btree is to find it.
#[pg_guard]
pub unsafe extern "C-unwind" fn multi_insert(
    rel: Relation,
    slots: *mut *mut TupleTableSlot,
    n: i32,
    cid: CommandId,
    options: i32,
    bistate: *mut BulkInsertStateData,
) {
    // SAFETY: the arguments are the executor's, as for the heap; `slots` has `n` elements.
    unsafe {
        test_fold::changed(rel);
        for slot in std::slice::from_raw_parts(slots, n as usize) {
            promote_conflicting(rel, *slot, cid);
        }
        guarded(|| heap().multi_insert.unwrap_unchecked()(rel, slots, n, cid, options, bistate));
    }
}

/// Promotes the fragment rows that share a key with the row in `slot`.
///
/// # Safety
/// `slot` holds a row of `rel`, which is open and locked.
unsafe fn promote_conflicting(rel: Relation, slot: *mut TupleTableSlot, cid: CommandId) {
    // SAFETY: the arguments are those of an insertion.
    unsafe {
        for row_id in unique::conflicting(rel, slot) {
            let earlier = promote::earlier_command(cid);
            promote::target(rel, row_id, earlier, LockWaitPolicy::LockWaitBlock, promote::Purpose::Lock);
        }
    }
}
