//! Strata: the warm tier of PostgreSQL tables.
//!
//! | room | what is in it |
//! |---|---|
//! | [`am`] | the table access method `warm`: scans, changes, promotion, indexes |
//! | [`plan`] | planner hooks, the custom scan, aggregate pushdown, EXPLAIN |
//! | [`memory`] | the memory budget, and how each scan reads within it |
//! | [`tier`] | moves, sweeping, the background worker that runs policies |
//! | [`api`] | SQL functions, and the way to the agent |
//! | [`pg`] | wrappers over PostgreSQL, and its version differences |
//! | [`error`], [`guc`] | errors and their SQLSTATEs; configuration parameters |
//!
//! The SQL side (tables, views, policies) is in `sql/schema/`. Most of this crate is unsafe by nature: it implements C
//! callbacks. Each block says why it is sound.

#![warn(missing_docs)]
#![allow(clippy::too_many_arguments, reason = "the signatures of callbacks are PostgreSQL's")]
#![allow(clippy::missing_safety_doc, reason = "callbacks are called by PostgreSQL under its own contract")]

mod am;
mod api;
mod error;
mod guc;
mod memory;
mod pg;
mod plan;
mod tier;
mod utility;

use pgrx::pg_sys;
use pgrx::prelude::*;

::pgrx::pg_module_magic!(name, version);

static mut PREVIOUS_SHMEM_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_SHMEM_STARTUP: pg_sys::shmem_startup_hook_type = None;

/// Called by PostgreSQL when the library is loaded.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // pgrx adds a backtrace to the DETAIL of every error when these are set; that is not what a user wants to read.
    // SAFETY: no other thread runs while a library is loaded.
    unsafe {
        std::env::remove_var("RUST_BACKTRACE");
        std::env::set_var("RUST_LIB_BACKTRACE", "0");
    }
    pg::keep_freed_memory();
    guc::register();
    // SAFETY: start-up of the postmaster or of a backend; hooks are chained.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::from(0));
        if pg_sys::process_shared_preload_libraries_in_progress {
            PREVIOUS_SHMEM_REQUEST = pg_sys::shmem_request_hook;
            pg_sys::shmem_request_hook = Some(request_shared_memory);
            PREVIOUS_SHMEM_STARTUP = pg_sys::shmem_startup_hook;
            pg_sys::shmem_startup_hook = Some(start_shared_memory);
            // pg_upgrade's servers do nothing by themselves.
            if !pg_sys::IsBinaryUpgrade {
                tier::worker::register();
            }
        }
    }
    plan::init();
    tier::test_fold::install();
    utility::install();
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_arg: pg_sys::Datum, relid: pg_sys::Oid) {
    pg::catalog::invalidate(relid);
    am::fragments::invalidate(relid);
    am::probe::invalidate();
}

#[pg_guard]
unsafe extern "C-unwind" fn request_shared_memory() {
    // SAFETY: called by the postmaster at the right moment; the previous hook is called first.
    unsafe {
        if let Some(previous) = PREVIOUS_SHMEM_REQUEST {
            previous();
        }
        pg_sys::RequestAddinShmemSpace(am::promoter::shared_size());
        pg_sys::RequestAddinShmemSpace(memory::shared::size());
        pg_sys::RequestAddinShmemSpace(tier::test_fold::shared_size());
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn start_shared_memory() {
    // SAFETY: as above; the lock is the one for this purpose.
    unsafe {
        if let Some(previous) = PREVIOUS_SHMEM_STARTUP {
            previous();
        }
        let lock = &raw mut (*pg_sys::MainLWLockArray.add(pg::compat::ADDIN_SHMEM_INIT_LOCK)).lock;
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        am::promoter::attach();
        memory::shared::attach();
        tier::test_fold::attach();
        pg_sys::LWLockRelease(lock);
    }
}
