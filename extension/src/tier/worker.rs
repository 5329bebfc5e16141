//! The background workers that run the policies.
//!
//! A launcher, started with the server, starts a worker for one database after the other every `strata.policy_interval`. The
//! worker calls `strata.run_policies()` if the extension is there, and ends. A run that is still busy is not doubled:
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
        pg_sys::GetTransactionSnapshot();
        let mut oids = Vec::new();
        let rel = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        let scan = pg_sys::systable_beginscan(
            rel,
            pg_sys::Oid::INVALID,
            false,
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
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
        pg_sys::pqsignal(pg_sys::SIGTERM as i32, Some(crate::pg::ext::die));
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::Oid::INVALID, 0);
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        let installed = pg_sys::get_extension_oid(c"strata".as_ptr(), true) != pg_sys::Oid::INVALID;
        pg_sys::CommitTransactionCommand();
        if !installed {
            return;
        }
        // A procedure that commits has to run outside an atomic context.
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::SPI_connect_ext(pg_sys::SPI_OPT_NONATOMIC as i32);
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, c"CALL strata.run_policies()".as_ptr());
        let options = pg_sys::SPIExecuteOptions { allow_nonatomic: true, ..Default::default() };
        pg_sys::SPI_execute_extended(c"CALL strata.run_policies()".as_ptr(), &raw const options);
        pg_sys::SPI_finish();
        while pg_sys::ActiveSnapshotSet() {
            pg_sys::PopActiveSnapshot();
        }
        pg_sys::CommitTransactionCommand();
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
    }
}
