//! Evaluating expressions without a guard: what PostgreSQL has as inline functions, for the loop that returns rows.
//!
//! An ERROR inside passes through the callers' frames, so they must hold nothing that needs dropping.

use pgrx::pg_sys;

/// `ResetExprContext`
///
/// # Safety
/// The arguments are of one node of the executor; nothing in the callers' frames needs dropping.
#[inline]
pub unsafe fn reset(econtext: *mut pg_sys::ExprContext) {
    // SAFETY: a context of the executor; one that is empty needs no call.
    unsafe {
        let context = (*econtext).ecxt_per_tuple_memory;
        if !(*context).isReset || !(*context).firstchild.is_null() {
            pg_sys::MemoryContextReset(context);
        }
    }
}

/// `ExecQual`, not guarded.
///
/// # Safety
/// The arguments are of one node of the executor; nothing in the callers' frames needs dropping.
#[inline]
pub unsafe fn satisfies(qual: *mut pg_sys::ExprState, econtext: *mut pg_sys::ExprContext) -> bool {
    // SAFETY: `qual` is null or compiled for this node.
    unsafe {
        if qual.is_null() {
            return true;
        }
        let old = pg_sys::CurrentMemoryContext;
        pg_sys::CurrentMemoryContext = (*econtext).ecxt_per_tuple_memory;
        let mut is_null = false;
        let result = (*qual).evalfunc.unwrap_unchecked()(qual, econtext, &mut is_null);
        pg_sys::CurrentMemoryContext = old;
        result.value() != 0
    }
}

/// `ExecProject`, not guarded.
///
/// # Safety
/// The arguments are of one node of the executor; nothing in the callers' frames needs dropping.
#[inline]
pub unsafe fn project(info: *mut pg_sys::ProjectionInfo) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: the node's projection.
    unsafe {
        let state = &raw mut (*info).pi_state;
        let econtext = (*info).pi_exprContext;
        let slot = (*state).resultslot;
        (*(*slot).tts_ops).clear.unwrap_unchecked()(slot);
        let old = pg_sys::CurrentMemoryContext;
        pg_sys::CurrentMemoryContext = (*econtext).ecxt_per_tuple_memory;
        let mut is_null = false;
        (*state).evalfunc.unwrap_unchecked()(state, econtext, &mut is_null);
        pg_sys::CurrentMemoryContext = old;
        (*slot).tts_flags &= !(pg_sys::TTS_FLAG_EMPTY as u16);
        (*slot).tts_nvalid = (*(*slot).tts_tupleDescriptor).natts as i16;
        slot
    }
}
