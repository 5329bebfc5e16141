//! The background workers that run the policies, and those that VACUUM starts to consolidate a table.
//!
//! A launcher, started with the server, starts a worker for one database after the other every `strata.policy_interval`. The
//! worker calls `strata.run_policies()` and `strata.sweep()` if the extension is there, and ends. A run that is still busy is not doubled:
//! `run_policies` takes an advisory lock.

use crate::guc;
use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime, SignalWakeFlags};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::time::Duration;

/// Registers the launcher; called while shared_preload_libraries is processed.
pub fn register() {
    BackgroundWorkerBuilder::new("strata launcher")
        .set_type("strata launcher")
        .set_library("strata")
        .set_function("strata_launcher_main")
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(Duration::from_secs(10)))
        .load();
}

/// The databases that allow connections.
fn databases() -> Vec<pg_sys::Oid> {
    // SAFETY: a scan of pg_database in a transaction of its own.
    unsafe {
        pg_sys::StartTransactionCommand();
        let mut oids = Vec::new();
        let rel = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        let scan =
            pg_sys::systable_beginscan(rel, pg_sys::Oid::INVALID, false, std::ptr::null_mut(), 0, std::ptr::null_mut());
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
            if (*form).datallowconn && !(*form).datistemplate {
                oids.push((*form).oid);
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(rel, pg_sys::AccessShareLock as i32);
        pg_sys::CommitTransactionCommand();
        oids
    }
}

/// The launcher's main function.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn strata_launcher_main(_arg: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    // SAFETY: connects to the shared catalogs only.
    unsafe { pg_sys::BackgroundWorkerInitializeConnectionByOid(pg_sys::Oid::INVALID, pg_sys::Oid::INVALID, 0) };
    loop {
        let seconds = guc::POLICY_INTERVAL.get();
        let pause = Duration::from_secs(if seconds == 0 { 3600 } else { seconds as u64 });
        if !BackgroundWorker::wait_latch(Some(pause)) {
            return;
        }
        if BackgroundWorker::sighup_received() {
            // SAFETY: between transactions.
            unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
            continue;
        }
        if seconds == 0 {
            continue;
        }
        for database in databases() {
            let worker = BackgroundWorkerBuilder::new("strata policies")
                .set_type("strata policies")
                .set_library("strata")
                .set_function("strata_policies_main")
                .set_argument((i64::from(database.to_u32())).into_datum())
                .enable_spi_access()
                .set_restart_time(None)
                // SAFETY: this process.
                .set_notify_pid(unsafe { pg_sys::MyProcPid })
                .load_dynamic();
            if let Ok(worker) = worker {
                let _ = worker.wait_for_shutdown();
            }
            if BackgroundWorker::sigterm_received() {
                return;
            }
        }
    }
}

/// The policy worker's main function.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn strata_policies_main(arg: pg_sys::Datum) {
    let database = pg_sys::Oid::from(arg.value() as u32);
    // SAFETY: a background worker's start, then commands of its own; SIGTERM ends a running one.
    unsafe {
        crate::pg::ext::pqsignal(libc::SIGTERM, Some(crate::pg::ext::die));
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::Oid::INVALID, 0);
        crate::pg::compat::lift_session_limits();
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        let installed = pg_sys::get_extension_oid(c"strata".as_ptr(), true) != pg_sys::Oid::INVALID;
        pg_sys::CommitTransactionCommand();
        if !installed {
            return;
        }
        run_top_level(c"CALL strata.run_policies()", pg_sys::CommandTag::CMDTAG_CALL);
        run_top_level(c"SELECT strata.sweep()", pg_sys::CommandTag::CMDTAG_SELECT);
        // pg_upgrade loses it.
        run_top_level(c"SELECT strata.hide_catalog()", pg_sys::CommandTag::CMDTAG_SELECT);
    }
}

/// Has a background worker consolidate a table of this database. Where none can be started now, a later VACUUM tries again.
pub fn start_consolidation(relid: pg_sys::Oid) {
    // SAFETY: a plain variable of the backend.
    let database = unsafe { pg_sys::MyDatabaseId };
    let both = (u64::from(database.to_u32()) << 32) | u64::from(relid.to_u32());
    let _ = BackgroundWorkerBuilder::new("strata consolidation")
        .set_type("strata consolidation")
        .set_library("strata")
        .set_function("strata_consolidation_main")
        .set_argument((both as i64).into_datum())
        .enable_spi_access()
        .set_restart_time(None)
        .load_dynamic();
}

/// The consolidation worker's main function.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn strata_consolidation_main(arg: pg_sys::Datum) {
    let both = arg.value() as u64;
    let (database, relid) = (pg_sys::Oid::from((both >> 32) as u32), both as u32);
    // SAFETY: a background worker's start, then a command of its own; SIGTERM ends a running one.
    unsafe {
        crate::pg::ext::pqsignal(libc::SIGTERM, Some(crate::pg::ext::die));
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::Oid::INVALID, 0);
        crate::pg::compat::lift_session_limits();
        // The table may be gone, or hot, by the time that VACUUM lets go of it.
        let sql = format!(
            "SELECT strata.consolidate(c.oid) FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_am AS a ON a.oid OPERATOR(pg_catalog.=) c.relam \
             WHERE c.oid OPERATOR(pg_catalog.=) {relid}::pg_catalog.oid AND a.amname OPERATOR(pg_catalog.=) 'warm'"
        );
        if let Ok(sql) = std::ffi::CString::new(sql) {
            run_top_level(&sql, pg_sys::CommandTag::CMDTAG_SELECT);
        }
    }
}

/// Runs a statement as a client's would be: a procedure that commits needs a portal of its own, which SPI does not give.
unsafe fn run_top_level(sql: &std::ffi::CStr, tag: pg_sys::CommandTag::Type) {
    // SAFETY: the steps of exec_simple_query in postgres.c, with a context that outlives the transactions in between.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, sql.as_ptr());
        let context = pg_sys::AllocSetContextCreateInternal(
            pg_sys::TopMemoryContext,
            c"strata statement".as_ptr(),
            0,
            8 * 1024,
            8 * 1024 * 1024,
        );
        pg_sys::MemoryContextSwitchTo(context);
        let parsed = pg_sys::pg_parse_query(sql.as_ptr());
        let raw = (*(*parsed).elements).ptr_value.cast::<pg_sys::RawStmt>();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let queries = pg_sys::pg_analyze_and_rewrite_fixedparams(
            raw,
            sql.as_ptr(),
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
        let plans = pg_sys::pg_plan_queries(queries, sql.as_ptr(), 0, std::ptr::null_mut());
        pg_sys::PopActiveSnapshot();
        let portal = pg_sys::CreatePortal(c"".as_ptr(), true, true);
        pg_sys::PortalDefineQuery(portal, std::ptr::null(), sql.as_ptr(), tag, plans, std::ptr::null_mut());
        pg_sys::PortalStart(portal, std::ptr::null_mut(), 0, std::ptr::null_mut());
        let receiver = pg_sys::CreateDestReceiver(pg_sys::CommandDest::DestNone);
        crate::pg::compat::portal_run(portal, receiver);
        pg_sys::PortalDrop(portal, false);
        pg_sys::CommitTransactionCommand();
        pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        pg_sys::MemoryContextDelete(context);
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
    }
}
