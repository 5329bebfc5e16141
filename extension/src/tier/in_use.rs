//! What keeps the sweeper from the files of transactions that have not ended.
//!
//! A fragment's file is there before anybody sees a row that names it, for as long as its transaction takes: hours in an open
//! transaction, days in a prepared one. And a file that nobody names may get its name anew, from a transaction that writes the same content.
//! So writer and sweeper exclude each other by locks on the files, of PostgreSQL's lock manager: locks on `strata.fragment` as an object
//! with numbers that PostgreSQL does not use. They live until the transaction has ended for everybody's snapshots, outlive PREPARE
//! TRANSACTION and a crash after it, and go with a savepoint that is rolled back, like the rows.
//!
//! ```text
//!                       all files        a folder (256 of them)      a file
//!   writer, file 1-64   share                                        share
//!   writer, file 65-    share            share
//!   sweeper             exclusive, or if somebody has it:
//!                                        exclusive                   exclusive       for each file that it would remove
//! ```
//!
//! * The **writer** takes them when it knows the file's name (its content's hash), before the file has it. It may have to wait for a
//!   sweeper, which is between its last look at the catalog and the removal: a commit. No transaction has more than 64 + 256 + 1 of them,
//!   however many fragments it writes.
//! * The **sweeper** never waits: a file whose lock it does not get stays for the next sweep. Under a load of moves that never ends it
//!   removes all but the files of moves that have not ended, or have the same content, and but what is in the folders that a move
//!   of more than 64 fragments writes to; that waits until such moves pause. It takes at most [`MOST`] locks on files, and leaves
//!   the rest to the next sweep as well.
//! * Who has the lock reads the catalog afterwards, with a snapshot that is younger than the lock: then the rows of a writer that has
//!   committed are seen, and one that has not still has its lock.
//!
//! **Lock order.** These are the last locks: who waits for one waits for a commit that waits for no lock.
//!
//! A standby writes no fragment; there are no such locks there.

use crate::error::StrataError;
use crate::pg::catalog;
use pgrx::pg_sys;
use pgrx::pg_sys::Oid;
use std::cell::Cell;

/// Files of one transaction that are locked one by one.
const ONE_BY_ONE: u32 = 64;
/// Files that a sweep locks one by one.
const MOST: usize = 500;

/// `objsubid` of the locks on all files, on a folder, on a file; `strata.fragment` has no such columns.
const ALL: u16 = u16::MAX;
const FOLDER: u16 = u16::MAX - 1;
const FILE: u16 = u16::MAX - 2;

thread_local! {
    /// When the transaction started that wrote files last, and how many it has written. Where two start in the same microsecond, the
    /// second uses folders earlier than it has to.
    static WRITTEN: Cell<(i64, u32)> = const { Cell::new((0, 0)) };
}

/// The numbers of a file and its folder among the locks; None: no name of a fragment.
fn numbers(hash: &str) -> Option<(u32, u32)> {
    let file = u32::from_str_radix(hash.get(..8)?, 16).ok()?;
    Some((file, file >> 24))
}

/// Keeps the file of the fragment with this hash, which this transaction is about to name, until the transaction ends.
pub fn hold(hash: &str) {
    let Some(oids) = catalog::oids() else { StrataError::NotInstalled.raise() };
    let Some((file, folder)) = numbers(hash) else { return };
    // SAFETY: a plain variable of the backend; locks on an object of the catalog.
    unsafe {
        let started = pg_sys::GetCurrentTransactionStartTimestamp();
        let (of, n) = WRITTEN.get();
        let n = if of == started { n + 1 } else { 1 };
        WRITTEN.set((started, n));
        let share = |object: u32, what: u16| {
            pg_sys::LockDatabaseObject(oids.fragment, Oid::from(object), what, pg_sys::RowExclusiveLock as i32);
        };
        share(0, ALL);
        if n <= ONE_BY_ONE { share(file, FILE) } else { share(folder, FOLDER) }
    }
}

/// What a sweep has locked: until its transaction ends, or it lets go.
pub struct Taken {
    fragment: Oid,
    locks: Vec<(u32, u16)>,
    /// Nobody writes files.
    all: bool,
    files: usize,
}

impl Taken {
    /// Locks all files, if nobody writes any. None: the extension is not created here.
    pub fn begin() -> Option<Self> {
        let fragment = catalog::oids()?.fragment;
        let mut taken = Self { fragment, locks: Vec::new(), all: false, files: 0 };
        taken.all = taken.lock(0, ALL);
        Some(taken)
    }

    /// Whether no other transaction has written the file with this name, or names it from here on.
    pub fn file(&mut self, hash: &str) -> bool {
        let Some((file, folder)) = numbers(hash) else { return true };
        if self.all {
            return true;
        }
        if self.files == MOST {
            return false;
        }
        self.files += 1;
        self.lock(folder, FOLDER) && self.lock(file, FILE)
    }

    /// Locks exclusively, unless somebody else has the lock.
    fn lock(&mut self, object: u32, what: u16) -> bool {
        let key = (object, what);
        if self.locks.contains(&key) {
            return true;
        }
        let mode = pg_sys::ExclusiveLock as i32;
        // SAFETY: a lock on an object of the catalog.
        let is_free = unsafe { pg_sys::ConditionalLockDatabaseObject(self.fragment, Oid::from(object), what, mode) };
        if is_free {
            self.locks.push(key);
        }
        is_free
    }

    /// Lets go.
    pub fn release(self) {
        for (object, what) in self.locks {
            // SAFETY: the lock is held.
            unsafe {
                pg_sys::UnlockDatabaseObject(self.fragment, Oid::from(object), what, pg_sys::ExclusiveLock as i32);
            }
        }
    }
}
