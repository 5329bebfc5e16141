//! For tests only: with `strata.test_fold` every change that commits is folded into fragments before the next statement, so that
//! a test suite written for heap tables meets fragment rows everywhere.
//!
//! The fold is a consolidation of the tables that this session has changed, at the start of its next statement outside a
//! transaction block, in that statement's transaction and before it is planned. A table that somebody else uses is left for
//! later. The hooks are installed only if the parameter is set when the server starts.

use super::consolidate::consolidate;
use crate::am::handler;
use crate::guc;
use crate::pg::{OpenRelation, catalog, ext};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeSet;

thread_local! {
    static CHANGED: RefCell<BTreeSet<u32>> = const { RefCell::new(BTreeSet::new()) };
    /// The transaction of the last fold, and its tables.
    static FOLDED: RefCell<(u32, BTreeSet<u32>)> = const { RefCell::new((0, BTreeSet::new())) };
}

static mut PREVIOUS_PLANNER: pg_sys::planner_hook_type = None;
static mut PREVIOUS_UTILITY: pg_sys::ProcessUtility_hook_type = None;

/// Installs the hooks if the parameter is set.
pub fn install() {
    if !guc::TEST_FOLD.get() {
        return;
    }
    // SAFETY: called once, while the library is loaded; previous hooks are chained.
    unsafe {
        PREVIOUS_PLANNER = pg_sys::planner_hook;
        pg_sys::planner_hook = Some(planner);
        PREVIOUS_UTILITY = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(utility);
    }
}

/// Notes that this session has changed a table.
///
/// # Safety
/// `rel` is open.
#[inline]
pub unsafe fn changed(rel: pg_sys::Relation) {
    if guc::TEST_FOLD.get() {
        // SAFETY: the caller's promise.
        let relid = unsafe { (*rel).rd_id };
        CHANGED.with_borrow_mut(|tables| tables.insert(relid.to_u32()));
    }
}

// Neither hook catches what PostgreSQL raises: an error reaches the client with all that it says. So they hold nothing that
// would have to be dropped, and call PostgreSQL's own functions and not those of pgrx, which catch.

unsafe extern "C-unwind" fn planner(
    query: *mut pg_sys::Query,
    text: *const core::ffi::c_char,
    options: core::ffi::c_int,
    params: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: the arguments are PostgreSQL's. Outside of any portal nothing of this session is being executed.
    unsafe {
        if pg_sys::ActivePortal.is_null() && !is_about_decoding(text) {
            fold();
        }
        PREVIOUS_PLANNER.unwrap_or(ext::standard_planner)(query, text, options, params)
    }
}

unsafe extern "C-unwind" fn utility(
    statement: *mut pg_sys::PlannedStmt,
    text: *const core::ffi::c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    use pg_sys::NodeTag as T;
    // SAFETY: the arguments are PostgreSQL's.
    unsafe {
        let tag = (*(*statement).utilityStmt).type_;
        let leaves_alone = matches!(
            tag,
            T::T_TransactionStmt | T::T_VariableSetStmt | T::T_VariableShowStmt | T::T_FetchStmt | T::T_DiscardStmt
        );
        if context == pg_sys::ProcessUtilityContext::PROCESS_UTILITY_TOPLEVEL && !leaves_alone {
            fold();
        }
        PREVIOUS_UTILITY.unwrap_or(ext::standard_ProcessUtility)(
            statement,
            text,
            read_only,
            context,
            params,
            environment,
            receiver,
            completion,
        );
    }
}

/// Whether a statement calls functions of logical decoding (`pg_create_logical_replication_slot`, `pg_logical_slot_get_changes`). Those
/// want a transaction that has written nothing.
unsafe fn is_about_decoding(text: *const core::ffi::c_char) -> bool {
    // SAFETY: the text of a statement, or null.
    !text.is_null() && unsafe { std::ffi::CStr::from_ptr(text) }.to_bytes().windows(8).any(|part| part == b"logical_")
}

/// Folds what this session has changed, where that can be done now.
#[pg_guard]
unsafe extern "C-unwind" fn fold() {
    // SAFETY: called at the start of a statement, with nothing of this session in execution.
    unsafe {
        if pg_sys::IsTransactionBlock() {
            return;
        }
        // What was folded in a statement that failed was not.
        let (xid, folded) = FOLDED.take();
        if !folded.is_empty() && !pg_sys::TransactionIdDidCommit(pg_sys::TransactionId::from_inner(xid)) {
            CHANGED.with_borrow_mut(|tables| tables.extend(folded));
        }
        if CHANGED.with_borrow(BTreeSet::is_empty) || pg_sys::XactReadOnly || catalog::oids().is_none() {
            return;
        }
        let tables = CHANGED.take();
        let mut folded = BTreeSet::new();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        for table in tables {
            let relid = pg_sys::Oid::from_u32(table);
            if !pg_sys::ConditionalLockRelationOid(relid, pg_sys::AccessExclusiveLock as i32) {
                CHANGED.with_borrow_mut(|tables| tables.insert(table));
                continue;
            }
            let foldable = OpenRelation::try_open(relid, pg_sys::NoLock).is_some_and(|rel| {
                // Deferred triggers run statements while the transaction's own tables are open.
                (*rel.0).rd_refcnt == 1
                    && (*(*rel.0).rd_rel).relkind == pg_sys::RELKIND_RELATION as i8
                    && handler::is_warm(rel.0)
                    && (*(*rel.0).rd_rel).relpersistence == pg_sys::RELPERSISTENCE_PERMANENT as i8
            });
            if foldable {
                catalog::as_owner(|| consolidate(relid));
                folded.insert(table);
            }
        }
        pg_sys::PopActiveSnapshot();
        FOLDED.set((pg_sys::GetCurrentTransactionIdIfAny().into_inner(), folded));
    }
}
