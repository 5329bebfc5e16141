//! What is done to a plan when the executor starts it: one walk over its nodes.

use super::prefetch;
use crate::am::probe;
use crate::pg::{ext, guarded};
use core::ffi::c_void;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ptr::null_mut;

static mut PREVIOUS: pg_sys::ExecutorStart_hook_type = None;

/// Installs the hook.
pub fn install() {
    // SAFETY: called once when the library is loaded; the previous hook is chained.
    unsafe {
        PREVIOUS = pg_sys::ExecutorStart_hook;
        pg_sys::ExecutorStart_hook = Some(executor_start);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn executor_start(query: *mut pg_sys::QueryDesc, flags: i32) {
    // SAFETY: the arguments are the executor's; after the start the tree of plan states is there.
    unsafe {
        match PREVIOUS {
            Some(previous) => guarded(|| previous(query, flags)),
            None => pg_sys::standard_ExecutorStart(query, flags),
        }
        if !(*query).planstate.is_null() {
            visit((*query).planstate, null_mut());
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn visit(state: *mut pg_sys::PlanState, context: *mut c_void) -> bool {
    // SAFETY: a walker over the executor's tree.
    unsafe {
        if state.is_null() {
            return false;
        }
        #[cfg(not(feature = "pg18"))]
        super::guard::no_bitmap_prefetch(state);
        prefetch::attach(state);
        let plan = (*state).plan.cast::<pg_sys::ModifyTable>();
        if (*state).type_ == pg_sys::NodeTag::T_ModifyTableState
            && (*plan).onConflictAction != pg_sys::OnConflictAction::ONCONFLICT_NONE
        {
            probe::expect();
        }
        guarded(|| ext::planstate_tree_walker(state, Some(visit), context))
    }
}
