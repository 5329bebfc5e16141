//! What is done before and after a utility statement: one hook for all of it.

use crate::am::adopted;
use crate::pg::ext;
use crate::tier::test_fold;
use pgrx::pg_sys;

static mut PREVIOUS: pg_sys::ProcessUtility_hook_type = None;

/// Installs the hook.
pub fn install() {
    // SAFETY: called once, while the library is loaded; the previous hook is chained.
    unsafe {
        PREVIOUS = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(utility);
    }
}

/// Catches nothing that PostgreSQL raises, so that it reaches the client with all that it says; holds nothing that needs dropping.
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
    // SAFETY: the arguments are PostgreSQL's.
    unsafe {
        test_fold::before_utility(statement, context);
        // Asked before the statement runs: one that ends the transaction may free its own tree. ALTER TABLE does not.
        let table = adopted::table_of((*statement).utilityStmt);
        PREVIOUS.unwrap_or(ext::standard_ProcessUtility)(
            statement,
            text,
            read_only,
            context,
            params,
            environment,
            receiver,
            completion,
        );
        if !table.is_null() {
            adopted::build_again(table);
        }
    }
}
