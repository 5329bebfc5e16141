//! Removing what no table needs any more: catalog rows of dropped, truncated and rewritten tables, and files without a row.
//!
//! After DROP, TRUNCATE or a rewrite the rows of the old file stay in `strata.fragment` until here, so that a rollback finds
//! them and a crash loses nothing.
//!
//! **A file goes only** when no row names it, it is older than an hour, and nobody has written it in a transaction that has not ended
//! ([`super::in_use`]). That is found out at the last moment: when the sweeping transaction is about to commit, it takes the locks, reads the
//! names with a snapshot of its own that is younger than the locks (the transaction's may be days old), and removes the files when it has
//! committed, before it lets go of the locks.
//!
//! * It may have dropped the table itself, and roll back, wholly or to a savepoint: what it reads is what it commits.
//! * It may be prepared instead, and end in another session: then it removes no file, which a later sweep does.
//! * A crash after the commit leaves files to the next sweep.
//!
//! What a crash left of a file that was being written, under its temporary name in the store's folder, goes when it is older than the
//! grace and its writer lives no more, which its lock tells (`strata_fragment::remove_abandoned`).
//!
//! Where logs are archived (`strata.log_backup` has rows), a row, and so its file, also waits until the fragment log has the
//! fragment, however long the agent is away: else no recovery could reach a moment at which it was in use.
//! `strata.sweep(SECONDS)` by hand, with a grace of its own, does not wait for that.
//!
//! **Standbys** may read this server's store. What is gone here is in use there until they have replayed that: a query may hold replay
//! up, and replay may be delayed on purpose. So where there are standbys (`strata.standbys_replayed()`), a sweep notes for a row that
//! is gone where the WAL is (`gone_lsn`), and a later one removes it when all of them are past that place. Only a transaction that
//! has written nothing notes it: what it sees as gone is so by a commit that lies before.
//!
//! **Whose store.** A server that is no standby removes files from a store that it has claimed (`tier::claim`), a standby from one that
//! nobody has claimed: its own, which its agent fills.

use super::claim;
use super::in_use::Taken;
use crate::am::fragments;
use crate::pg::{catalog, failpoint};
use pgrx::pg_sys;
use pgrx::{PgXactCallbackEvent, register_xact_callback};
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Younger files stay: whoever shares the store, or copies it, may be about to use them.
const GRACE: Duration = Duration::from_secs(3600);

/// Rows of files that are gone.
const GONE: &str = "NOT EXISTS (SELECT FROM pg_catalog.pg_class AS c \
    WHERE c.oid OPERATOR(pg_catalog.=) f.relid AND c.relfilenode OPERATOR(pg_catalog.=) f.filenode)";

/// Rows that the fragment log has, or need not have ($1, in database $2).
const LOGGED: &str = "($1 OR NOT EXISTS (SELECT FROM strata.log_backup) \
    OR pg_catalog.concat($2::pg_catalog.oid, '/', f.hash) IN (SELECT l.name FROM strata.log_backup AS l \
        WHERE l.kind OPERATOR(pg_catalog.=) 'fragment'))";

thread_local! {
    /// The grace of a sweep in this transaction, until it is about to commit.
    static PLANNED: Cell<Option<Duration>> = const { Cell::new(None) };
    /// What goes when the transaction has committed.
    static ORPHANS: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
}

/// Removes catalog rows of files that are gone, and at commit the files that no row names. Returns the number of those, as it is now.
pub fn sweep(grace: Option<Duration>) -> i64 {
    // SAFETY: reads shared state.
    let recovering = unsafe { pg_sys::RecoveryInProgress() };
    if !recovering {
        sweep_catalog(grace.is_some());
    }
    if !claim::may_remove_files(recovering) {
        return 0;
    }
    let grace = grace.unwrap_or(GRACE);
    let (now, taken) = orphans(grace);
    if let Some(taken) = taken {
        taken.release();
    }
    if PLANNED.replace(Some(grace)).is_none() {
        register_xact_callback(PgXactCallbackEvent::PreCommit, || {
            if let Some(grace) = PLANNED.take() {
                ORPHANS.replace(orphans(grace).0);
            }
        });
        register_xact_callback(PgXactCallbackEvent::Commit, || {
            failpoint::hit(failpoint::DROP_COMMITTED);
            for file in ORPHANS.take() {
                // A file that cannot be removed now is an orphan for the next sweep.
                let _ = if is_temporary(&file) {
                    strata_fragment::remove_abandoned(&file)
                } else {
                    std::fs::remove_file(&file)
                };
            }
        });
        register_xact_callback(PgXactCallbackEvent::PrePrepare, || PLANNED.set(None));
        register_xact_callback(PgXactCallbackEvent::Abort, || {
            PLANNED.set(None);
            ORPHANS.take();
        });
    }
    now.len() as i64
}

/// The files that no row names and that are old enough, as far as they could be locked.
fn orphans(grace: Duration) -> (Vec<PathBuf>, Option<Taken>) {
    // SAFETY: reads shared state.
    let recovering = unsafe { pg_sys::RecoveryInProgress() };
    let mut taken = if recovering { None } else { Taken::begin() };
    let mut unnamed = Vec::new();
    // Read once before the locks, to know which to take, and again with them.
    let Some(named) = catalog::fragment_hashes() else { return (unnamed, taken) };
    for folder in entries(&fragments::store()) {
        if is_temporary(&folder) {
            if old_enough(&folder, grace) && strata_fragment::is_abandoned(&folder) {
                unnamed.push(folder);
            }
            continue;
        }
        for file in entries(&folder) {
            let Some(hash) = hash_of(&file) else { continue };
            if !named.contains(hash) && old_enough(&file, grace) && taken.as_mut().is_none_or(|t| t.file(hash)) {
                unnamed.push(file);
            }
        }
    }
    if !unnamed.is_empty() {
        let Some(named) = catalog::fragment_hashes() else { return (Vec::new(), taken) };
        unnamed.retain(|file| hash_of(file).is_some_and(|hash| !named.contains(hash)));
    }
    (unnamed, taken)
}

/// Whether a file in the store's folder is one that was being written.
fn is_temporary(file: &Path) -> bool {
    file.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.ends_with(strata_fragment::TEMPORARY_SUFFIX))
}

/// The hash of the fragment in a file, or its whole name.
fn hash_of(file: &Path) -> Option<&str> {
    let name = file.file_name()?.to_str()?;
    Some(name.strip_suffix(".frag").unwrap_or(name))
}

fn sweep_catalog(by_hand: bool) {
    // SAFETY: a plain variable of the backend.
    let database = unsafe { pg_sys::MyDatabaseId };
    let args = [by_hand.into(), database.into()];
    // SAFETY: reads this backend's state. A statement on the catalog makes it a writing transaction.
    let has_written = unsafe { pg_sys::GetTopTransactionIdIfAny() } != pg_sys::InvalidTransactionId;
    let standbys = catalog::execute("SELECT 1::pg_catalog.int8 WHERE strata.standbys_replayed() IS NOT NULL", &[]);
    if standbys.is_none() {
        catalog::execute(&format!("DELETE FROM strata.fragment AS f WHERE {GONE} AND {LOGGED}"), &args);
    } else {
        if !has_written {
            catalog::execute(
                &format!(
                    "UPDATE strata.fragment AS f SET filenode = 0, gone_lsn = pg_catalog.pg_current_wal_insert_lsn() \
                     WHERE gone_lsn IS NULL AND {GONE}"
                ),
                &[],
            );
        }
        catalog::execute(
            &format!(
                "DELETE FROM strata.fragment AS f \
                 WHERE gone_lsn OPERATOR(pg_catalog.<=) strata.standbys_replayed() AND {GONE} AND {LOGGED}"
            ),
            &args,
        );
    }
    // Row ids only grow: marks of files that are gone lie below those of the files that there are.
    catalog::execute(
        "DELETE FROM strata.deletion AS d WHERE NOT EXISTS (SELECT FROM strata.fragment AS f \
         WHERE f.relid OPERATOR(pg_catalog.=) d.relid AND d.row_id OPERATOR(pg_catalog.>=) f.first_row_id)",
        &[],
    );
    if crate::pg::segment_rows::is_there() {
        catalog::execute(
            "WITH gone AS (DELETE FROM strata.segment AS s WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class AS c \
                 WHERE c.oid OPERATOR(pg_catalog.=) s.relid AND c.relfilenode OPERATOR(pg_catalog.=) s.filenode) RETURNING s.segment_id) \
             DELETE FROM strata.segment_page AS p USING gone WHERE p.segment_id OPERATOR(pg_catalog.=) gone.segment_id",
            &[],
        );
        if by_hand {
            // Where somebody removed a segment by hand. Else pages go with their segment.
            catalog::execute(
                "DELETE FROM strata.segment_page AS p WHERE NOT EXISTS (SELECT FROM strata.segment AS s \
                     WHERE s.segment_id OPERATOR(pg_catalog.=) p.segment_id)",
                &[],
            );
        }
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    match std::fs::read_dir(directory) {
        Ok(entries) => entries.filter_map(|e| e.ok().map(|e| e.path())).collect(),
        Err(_) => Vec::new(),
    }
}

fn old_enough(file: &Path, grace: Duration) -> bool {
    std::fs::metadata(file)
        .and_then(|m| m.modified())
        .is_ok_and(|t| SystemTime::now().duration_since(t).is_ok_and(|age| age >= grace))
}
