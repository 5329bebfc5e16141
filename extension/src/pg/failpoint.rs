//! Failpoints: named places where a test makes the server die, fail or wait.
//!
//! `SET strata.failpoint = 'NAME=kill'` (superuser) makes the backend that reaches NAME kill itself with SIGKILL, so that
//! the postmaster restarts everything as after a crash; `=error` raises an ERROR; `=sleep:MS` waits, interruptibly.
//! Several are separated by commas. The names are constants here; an unset parameter costs one comparison.

use pgrx::prelude::*;

/// A fragment file is written and durable, under its temporary name.
pub const MOVE_FRAGMENT_UNNAMED: &str = "move:fragment_unnamed";
/// A fragment file is written and durable, its catalog row is not there yet.
pub const MOVE_FRAGMENT_WRITTEN: &str = "move:fragment_written";
/// The move waits for its exclusive lock next.
pub const MOVE_BEFORE_SWAP: &str = "move:before_swap";
/// The swap is done, the transaction is not committed.
pub const MOVE_BEFORE_COMMIT: &str = "move:before_commit";
/// The consolidation has written its files and waits for its exclusive lock next.
pub const CONSOLIDATE_BEFORE_SWAP: &str = "consolidate:before_swap";
/// The consolidation is done, the transaction is not committed.
pub const CONSOLIDATE_BEFORE_COMMIT: &str = "consolidate:before_commit";
/// The table is open and the row is locked, nothing is promoted yet.
pub const PROMOTE_BEGUN: &str = "promote:begun";
/// The delta store has the row, the deletion vector does not have it yet.
pub const PROMOTE_INSERTED: &str = "promote:inserted";
/// The deletion vector has the row, the indexes do not know it yet.
pub const PROMOTE_MARKED: &str = "promote:marked";
/// The promotion is complete and not committed.
pub const PROMOTE_BEFORE_COMMIT: &str = "promote:before_commit";
/// A dropped table's transaction has committed, its files are not removed yet.
pub const DROP_COMMITTED: &str = "drop:committed";
/// An index is built over the rows of the fragments; nobody knows it yet.
pub const INDEX_BUILT: &str = "index:built";

/// Does what `strata.failpoint` asks for at `name`.
#[inline]
pub fn hit(name: &str) {
    if let Some(setting) = crate::guc::FAILPOINT.get() {
        act(name, &setting.to_string_lossy());
    }
}

#[cold]
fn act(name: &str, setting: &str) {
    let Some(action) = setting.split(',').filter_map(|s| s.trim().split_once('=')).find(|(n, _)| *n == name) else {
        return;
    };
    match action.1.split_once(':').unwrap_or((action.1, "")) {
        ("kill", _) => {
            let pid = std::process::id();
            // SAFETY: a signal to this process.
            unsafe {
                libc::kill(pid as libc::pid_t, libc::SIGKILL);
            }
        }
        ("error", _) => {
            ereport!(ERROR, PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, format!("failpoint {name}"));
        }
        ("sleep", ms) => {
            let end = std::time::Instant::now() + std::time::Duration::from_millis(ms.parse().unwrap_or(1000));
            while std::time::Instant::now() < end {
                pgrx::check_for_interrupts!();
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        (other, _) => {
            ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("unknown failpoint action \"{other}\""),
                "Actions are kill, error and sleep:MILLISECONDS."
            );
        }
    }
}
