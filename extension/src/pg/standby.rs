//! What physical standbys have to be told.
//!
//! A move and a consolidation write rows without xmin and xmax, and leave rows out, because every snapshot *of this
//! server* sees them, or sees them as gone. A standby may have a snapshot that is older. Where it reports its snapshots
//! (`hot_standby_feedback`), the horizon counts them, and nothing else is needed. Otherwise the standby has to know that such a snapshot
//! can no longer be answered: VACUUM has the same problem and solves it by naming, in the WAL records that remove rows, the newest
//! transaction of which a trace is lost. Replay of such a record waits for snapshots that do not see that transaction as ended, for as
//! long as `max_standby_streaming_delay` says, and then cancels them (SQLSTATE 40001). [`Traces`] collects that transaction, and
//! [`Traces::tell`] writes the record.
//!
//! The record is the btree's REUSE_PAGE. It exists to be such a point of conflict and for nothing else: its replay touches no page,
//! and it is the same in PostgreSQL 15 to 18 but for a flag at its end. No other server has to have Strata loaded to replay it.
//!
//! It is enough that it stands before the commit of the transaction that writes it. Transactions that it names have ended before it, in
//! the WAL as well, so every snapshot that a standby takes after it sees them as ended. It is written before the exclusive lock where that
//! is possible: replay of the lock keeps the standby's readers of the table waiting, and should not wait itself for a snapshot in
//! between.

use super::{compat, ext, guarded};
use pgrx::pg_sys::*;

/// `XLOG_BTREE_REUSE_PAGE` (`nbtxlog.h`)
const REUSE_PAGE: u8 = 0xD0;

/// `xl_btree_reuse_page`
#[repr(C)]
struct ReusePage {
    locator: compat::FileLocator,
    block: BlockNumber,
    newest: u64,
    /// From PostgreSQL 16 on.
    is_catalog: bool,
}

/// The size of the record: what PostgreSQL 15 has, or what comes after it.
const REUSE_PAGE_SIZE: usize =
    std::mem::offset_of!(ReusePage, is_catalog) + if cfg!(feature = "pg15") { 0 } else { size_of::<bool>() };

/// The newest transaction of which something is about to be lost.
#[derive(Clone, Copy, Debug)]
pub struct Traces {
    newest: TransactionId,
    told: TransactionId,
}

impl Default for Traces {
    fn default() -> Self {
        Self { newest: InvalidTransactionId, told: InvalidTransactionId }
    }
}

/// The later of two transactions; one that is not normal is before all others.
fn later(a: TransactionId, b: TransactionId) -> TransactionId {
    // SAFETY: a comparison of numbers.
    if !compat::is_normal(b) || (compat::is_normal(a) && unsafe { TransactionIdPrecedesOrEquals(b, a) }) {
        a
    } else {
        b
    }
}

impl Traces {
    /// It will not be seen any more that `xid` made, or removed, a row.
    pub fn lose(&mut self, xid: TransactionId) {
        self.newest = later(self.newest, xid);
    }

    /// As [`Traces::lose`] for a tuple that is left out because it is dead: what a snapshot must see in order not to miss it.
    ///
    /// # Safety
    /// The tuple's page is pinned.
    pub unsafe fn lose_dead(&mut self, tuple: HeapTuple) {
        let mut newest = self.newest;
        // SAFETY: the caller's promise; the function looks at the header and the commit log.
        unsafe {
            let header = (*tuple).t_data;
            if !compat::is_normal(newest) {
                newest = InvalidTransactionId;
            }
            guarded(|| ext::advance_conflict_horizon(header, &mut newest));
        }
        self.newest = newest;
    }

    /// Adds what another one has collected.
    pub fn join(&mut self, other: &Traces) {
        self.lose(other.newest);
    }

    /// As [`Traces::lose`] for everything that has ended up to now.
    pub fn lose_all(&mut self) {
        // SAFETY: reads a counter.
        let next = u32::from(unsafe { ReadNextTransactionId() });
        let last = TransactionId::from(next.wrapping_sub(1));
        self.lose(if compat::is_normal(last) { last } else { TransactionId::from(u32::MAX) });
    }

    /// Tells the standbys, unless they know. To be called before the transaction commits that loses the traces.
    ///
    /// # Safety
    /// `rel` is open: a permanent table.
    pub unsafe fn tell(&mut self, rel: Relation) {
        let newest = self.newest;
        // SAFETY: a plain variable; the rest is what nbtpage.c does to log such a record.
        unsafe {
            if !compat::is_normal(newest)
                || later(self.told, newest) == self.told
                || wal_level < WalLevel::WAL_LEVEL_REPLICA as i32
            {
                return;
            }
            let next = ReadNextFullTransactionId().value;
            let behind = (next as u32).wrapping_sub(u32::from(newest));
            let record = ReusePage {
                locator: compat::locator(rel),
                block: 0,
                newest: next - u64::from(behind),
                is_catalog: false,
            };
            compat::log_record(RmgrIds::RM_BTREE_ID as RmgrId, REUSE_PAGE, (&raw const record).cast(), REUSE_PAGE_SIZE);
        }
        self.told = newest;
    }
}
