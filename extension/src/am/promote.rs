//! Promotion: the only way in which a fragment row is changed.
//!
//! A fragment row R cannot carry xmax, so before it is updated, deleted or locked it becomes a delta row D: a row of
//! `strata.deletion` marks R, D is inserted into the heap pages with its index entries, both by one transaction, and the
//! ordinary heap operation then happens on D. A snapshot sees either R or D, never both or neither.
//!
//! ```text
//!   session 1: UPDATE R          promoter (own transaction P)           session 2: UPDATE R (old snapshot)
//!   request(R) ───────────────►  lock R's virtual TID
//!                                mark R, insert D, index D
//!   ◄──────────────────────────  commit P                              latest(R) = promoted to D
//!   heap_update(D)                                                     heap_update(D) waits for session 1's xmax
//! ```
//!
//! **By another transaction.** Normally the promoter (`am::promoter`, a background worker) does it in a transaction of its
//! own that commits at once. Then D is an ordinary, committed heap row: waiters, shared locks, multixacts, EvalPlanQual,
//! foreign keys and logical decoding (the promotion itself is not decoded) are the heap's own. The promotion changes no
//! row's value, so it does not matter that it stays when session 1 aborts.
//!
//! **By this transaction.** Where the promoter cannot see what this transaction sees (it made the fragment, or holds a lock
//! that shows uncommitted DDL), or does not run, the current transaction does it. Then D has cmin = the command's id `c`,
//! which the command's own snapshot does not see, and the heap operation on D runs as command `c + 1`; the command counter
//! is moved past it, so that the next command sees the new version. Whoever else wants R meanwhile waits for this
//! transaction's end. That is right but blocks more: even locks that could be shared wait.
//!
//! **Old snapshots of this transaction.** Under REPEATABLE READ a transaction may change D while its snapshot is older
//! than the promotion and still shows R. Its own later commands must not see R beside the new version, so it marks R once
//! more under its own id ([`mark_superseded`]).
//!
//! **Lock order.** Table lock, the lock against index builds (`am::builds`), then the lock of R's virtual TID (held only while
//! promoting), then buffer locks. Waiting for another promoting transaction happens without the TID lock.
//!
//! **Crash.** Mark, D and index entries are WAL-logged under one transaction id: all or nothing.

use super::deletion::{self, RowState};
use super::{builds, fragments, handed, index, promoter};
use crate::error::StrataError;
use crate::pg::catalog;
use crate::pg::{compat, ext, failpoint, tid};
use pgrx::pg_sys;
use pgrx::pg_sys::LockWaitPolicy;
use std::cell::Cell;

/// Behind so many rows a statement promotes by itself.
const BULK_ROWS: u32 = 64;

/// Where the heap operation that was meant for a fragment row has to happen.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The delta row.
    pub delta: pg_sys::ItemPointerData,
    /// The command id to give to the heap.
    pub cid: pg_sys::CommandId,
    /// The mark was written by another, committed transaction.
    pub committed: bool,
}

/// What became of a fragment row that was to be changed.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// It is a delta row now.
    Promoted(Target),
    /// It was deleted by this transaction, by its command with this id.
    DeletedByMe(pg_sys::CommandId),
    /// It was deleted by this transaction, which has ended.
    Deleted(pg_sys::TransactionId),
    /// Another transaction is changing it, and the caller did not want to wait.
    Busy,
}

impl Outcome {
    /// The result of the callback for an outcome that leaves nothing to the heap.
    ///
    /// # Safety
    /// `tmfd` is the callback's.
    pub unsafe fn report(
        self,
        at: pg_sys::ItemPointer,
        cid: pg_sys::CommandId,
        tmfd: *mut pg_sys::TM_FailureData,
    ) -> Result<Target, pg_sys::TM_Result::Type> {
        use pg_sys::TM_Result as R;
        // SAFETY: the caller's promise. The fields are what heap_delete and heap_lock_tuple set.
        unsafe {
            (*tmfd).ctid = *at;
            (*tmfd).xmax = pg_sys::InvalidTransactionId;
            (*tmfd).cmax = pg_sys::InvalidCommandId;
            (*tmfd).traversed = false;
            match self {
                Self::Promoted(target) => Ok(target),
                Self::Busy => Err(R::TM_BeingModified),
                Self::DeletedByMe(by) if by >= cid => {
                    (*tmfd).xmax = pg_sys::GetCurrentTransactionId();
                    (*tmfd).cmax = by;
                    Err(R::TM_SelfModified)
                }
                Self::DeletedByMe(_) => Err(R::TM_Invisible),
                Self::Deleted(xid) => {
                    (*tmfd).xmax = xid;
                    Err(R::TM_Deleted)
                }
            }
        }
    }
}

/// What a caller wants a promotion for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To lock the row: others may want to share the lock.
    Lock,
    /// To change it.
    Change,
}

/// Makes sure that fragment row `row_id` is promoted, and says where it is now, or that it is deleted. Waits for a
/// transaction that is changing it as `policy` says.
///
/// # Safety
/// `rel` is an open warm table on which this transaction holds at least ROW SHARE.
pub unsafe fn target(
    rel: pg_sys::Relation,
    row_id: u64,
    cid: pg_sys::CommandId,
    policy: LockWaitPolicy::Type,
    purpose: Purpose,
) -> Outcome {
    // SAFETY: the caller's promise.
    unsafe {
        let relid = (*rel).rd_id;
        loop {
            match deletion::latest(rel, row_id) {
                RowState::Promoted(d) => {
                    if !d.is_promotion() {
                        return d.own_command.map_or(Outcome::Deleted(d.xmin), Outcome::DeletedByMe);
                    }
                    if d.filenode != compat::filenode(rel) {
                        StrataError::Relocated { relid, row_id }.raise();
                    }
                    return Outcome::Promoted(match d.own_command {
                        None => Target { delta: d.delta, cid, committed: true },
                        Some(mark) => {
                            Target { delta: d.delta, cid: if cid > mark { cid } else { mark + 1 }, committed: false }
                        }
                    });
                }
                RowState::InProgress(xid) => {
                    if !wait(rel, row_id, xid, policy) {
                        return Outcome::Busy;
                    }
                }
                RowState::Live => {
                    let rows = rows_of_statement(relid, cid);
                    if (purpose == Purpose::Lock || rows <= BULK_ROWS) && by_promoter(rel, row_id) {
                        // Nobody fetched it before an INSERT … ON CONFLICT. What is read of fragments is kept here, not in the promoter.
                        let tuple = handed::take(rel, row_id).or_else(|| handed::read(rel, row_id));
                        // What holds SHARE on the table is no business of a row lock, but for an index build.
                        let apart = purpose == Purpose::Lock && !builds::excluded(rel);
                        if apart && !builds::promoting(rel, policy) {
                            if policy == LockWaitPolicy::LockWaitSkip {
                                return Outcome::Busy;
                            }
                            StrataError::RowBusy { relid }.raise();
                        } else if !apart {
                            pg_sys::LockRelationOid(relid, pg_sys::RowExclusiveLock as i32);
                        }
                        let reply = promoter::request(relid, row_id, tuple, rows > 1);
                        if apart {
                            builds::promoted(rel);
                        }
                        match reply {
                            promoter::Reply::Done => continue,
                            promoter::Reply::Wait(xid) => {
                                if !wait(rel, row_id, xid, policy) {
                                    return Outcome::Busy;
                                }
                                continue;
                            }
                            promoter::Reply::Unavailable => {}
                        }
                    }
                    // Promoting inserts a row, whatever the statement does.
                    pg_sys::LockRelationOid(relid, pg_sys::RowExclusiveLock as i32);
                    let mut at = tid::from_row_id(row_id);
                    pg_sys::LockTuple(rel, &mut at, pg_sys::ExclusiveLock as i32);
                    if matches!(deletion::latest(rel, row_id), RowState::Live) {
                        let now = pg_sys::GetCurrentCommandId(true);
                        let stored_apart = promote(rel, row_id, cid, handed::take(rel, row_id).as_deref());
                        // The heap operation that follows is command cid + 1; the next command has to come after it. Large values
                        // are stored by the current command, and whoever removes them must be a later one.
                        let last = if stored_apart && now > cid { now } else { cid };
                        while pg_sys::GetCurrentCommandId(false) <= last {
                            pg_sys::CommandCounterIncrement();
                            pg_sys::GetCurrentCommandId(true);
                        }
                    }
                    pg_sys::UnlockTuple(rel, &mut at, pg_sys::ExclusiveLock as i32);
                }
            }
        }
    }
}

/// Whether the promoter sees all that this transaction sees of the table.
unsafe fn by_promoter(rel: pg_sys::Relation, row_id: u64) -> bool {
    // SAFETY: `rel` is open.
    unsafe {
        promoter::available()
            && (*rel).rd_createSubid == ext::INVALID_SUBTRANSACTION_ID
            && compat::new_file_subid(rel) == ext::INVALID_SUBTRANSACTION_ID
            && !pg_sys::CheckRelationLockedByMe(rel, pg_sys::ShareLock as i32, true)
            && fragments::of(rel).is_some_and(|f| f.find(row_id).is_some())
    }
}

thread_local! {
    /// Table, command and statement that promote rows now, and how many they have.
    static STATEMENT: Cell<(u32, pg_sys::CommandId, i64, u32)> = const { Cell::new((0, 0, 0, 0)) };
}

/// How many fragment rows of a table this statement has come upon to change or lock. One that changes many goes on by itself: it
/// is ten times as fast, and what others have to wait for are rows that this statement changes anyway.
fn rows_of_statement(relid: pg_sys::Oid, cid: pg_sys::CommandId) -> u32 {
    // SAFETY: a plain variable of the backend.
    let now = unsafe { pg_sys::GetCurrentStatementStartTimestamp() };
    let (table, command, statement, rows) = STATEMENT.get();
    let rows = if (table, command, statement) == (relid.to_u32(), cid, now) { rows + 1 } else { 1 };
    STATEMENT.set((relid.to_u32(), cid, now, rows));
    rows
}

/// What came of [`delete`].
#[derive(Clone, Copy, Debug)]
pub enum Deleted {
    /// The row is deleted.
    Done,
    /// The row is a delta row, or has to be one first.
    Promote,
    /// Something else had happened to it.
    Outcome(Outcome),
}

/// Deletes fragment row `row_id` without promoting it, if it is still there: a row that nobody has promoted is locked by
/// nobody, and who wants it from now on waits for the end of this transaction, as for a deleted heap row. A deletion that is
/// decoded needs a heap row.
///
/// # Safety
/// `rel` is an open warm table on which this transaction holds ROW EXCLUSIVE.
pub unsafe fn delete(
    rel: pg_sys::Relation,
    row_id: u64,
    cid: pg_sys::CommandId,
    policy: LockWaitPolicy::Type,
) -> Deleted {
    // SAFETY: the caller's promise.
    unsafe {
        if compat::is_logically_logged(rel) {
            return Deleted::Promote;
        }
        let relid = (*rel).rd_id;
        let Some(oids) = catalog::oids() else { StrataError::NotInstalled.raise() };
        let mut at = tid::from_row_id(row_id);
        loop {
            pg_sys::LockTuple(rel, &mut at, pg_sys::ExclusiveLock as i32);
            let state = deletion::latest(rel, row_id);
            if matches!(state, RowState::Live) {
                pg_sys::GetCurrentCommandId(true);
                catalog::insert_deletion(&oids, relid, row_id, compat::filenode(rel), &catalog::nowhere(), cid);
            }
            pg_sys::UnlockTuple(rel, &mut at, pg_sys::ExclusiveLock as i32);
            match state {
                RowState::Live => return Deleted::Done,
                RowState::Promoted(d) if d.is_promotion() => return Deleted::Promote,
                RowState::Promoted(d) => {
                    return Deleted::Outcome(d.own_command.map_or(Outcome::Deleted(d.xmin), Outcome::DeletedByMe));
                }
                RowState::InProgress(xid) => {
                    if !wait(rel, row_id, xid, policy) {
                        return Deleted::Outcome(Outcome::Busy);
                    }
                }
            }
        }
    }
}

/// Waits for the end of `xid`; false: it still runs and the caller wanted to skip the row.
unsafe fn wait(rel: pg_sys::Relation, row_id: u64, xid: pg_sys::TransactionId, policy: LockWaitPolicy::Type) -> bool {
    // SAFETY: `rel` is open.
    unsafe {
        match policy {
            LockWaitPolicy::LockWaitBlock => {
                let mut at = tid::from_row_id(row_id);
                pg_sys::XactLockTableWait(xid, rel, &mut at, pg_sys::XLTW_Oper::XLTW_Update);
            }
            LockWaitPolicy::LockWaitSkip => {
                if !compat::transaction_has_ended(xid) {
                    return false;
                }
            }
            _ => {
                if !compat::transaction_has_ended(xid) {
                    StrataError::RowBusy { relid: (*rel).rd_id }.raise();
                }
            }
        }
    }
    true
}

/// Marks R and inserts D with its index entries, in the current transaction with command id `cid`. `tuple` is R if it was fetched
/// already. Says whether D may have values that are stored apart.
///
/// # Safety
/// `rel` is an open warm table, the caller holds the lock of R's virtual TID and R is live; `tuple` is what
/// [`handed::take`] gives of it.
pub unsafe fn promote(rel: pg_sys::Relation, row_id: u64, cid: pg_sys::CommandId, tuple: Option<&[u8]>) -> bool {
    // SAFETY: the caller's promise; the slot is dropped before the relation is closed.
    unsafe {
        let relid = (*rel).rd_id;
        let Some(oids) = catalog::oids() else { StrataError::NotInstalled.raise() };
        let Some(table) = fragments::of(rel) else { StrataError::NoSuchRow { relid, row_id }.raise() };
        let slot = pg_sys::MakeSingleTupleTableSlot((*rel).rd_att, &raw const pg_sys::TTSOpsHeapTuple);
        let handed = tuple.is_some_and(|bytes| handed::store(rel, row_id, bytes, slot));
        if !handed && !table.fetch(rel, row_id, slot) {
            StrataError::NoSuchRow { relid, row_id }.raise();
        }
        failpoint::hit(failpoint::PROMOTE_BEGUN);
        let mut should_free = false;
        let source = pg_sys::ExecFetchSlotHeapTuple(slot, true, &mut should_free);
        let tuple = pg_sys::heap_copytuple(source);
        pg_sys::heap_insert(rel, tuple, cid, pg_sys::HEAP_INSERT_NO_LOGICAL as i32, std::ptr::null_mut());
        // The table has no more rows than before.
        pg_sys::pgstat_count_heap_insert(rel, -1);
        let delta = (*tuple).t_self;
        // heap_insert takes tuples of more than a quarter of a page apart, into what it keeps to itself.
        let stored_apart =
            (*(*rel).rd_rel).reltoastrelid != pg_sys::Oid::INVALID && (*tuple).t_len > pg_sys::BLCKSZ / 5;
        failpoint::hit(failpoint::PROMOTE_INSERTED);
        catalog::insert_deletion(&oids, relid, row_id, compat::filenode(rel), &delta, cid);
        failpoint::hit(failpoint::PROMOTE_MARKED);
        index::insert_entries(rel, slot, &delta);
        failpoint::hit(failpoint::PROMOTE_BEFORE_COMMIT);
        pg_sys::heap_freetuple(tuple);
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        stored_apart
    }
}

/// Hides R from the later commands of this transaction, whose snapshot is older than the promotion of R.
///
/// # Safety
/// `rel` is open; D was just changed by this transaction with command id `cid`.
pub unsafe fn mark_superseded(rel: pg_sys::Relation, row_id: u64, cid: pg_sys::CommandId) {
    // SAFETY: the caller's promise; a snapshot is active while a statement runs.
    unsafe {
        if !has_transaction_snapshot() {
            return;
        }
        let snapshot = pg_sys::GetTransactionSnapshot();
        if let Some(oids) = catalog::oids()
            && deletion::visible(rel, row_id, snapshot)
        {
            catalog::insert_deletion(&oids, (*rel).rd_id, row_id, compat::filenode(rel), &catalog::superseded(), cid);
        }
    }
}

/// Whether all commands of this transaction use one snapshot.
pub fn has_transaction_snapshot() -> bool {
    // SAFETY: a plain variable of the backend.
    unsafe { pg_sys::XactIsoLevel as u32 >= pg_sys::XACT_REPEATABLE_READ }
}

/// A deletion as the heap's failure data tells it: the command that changed the row, as R's user knows it.
pub fn reported_command(target: &Target, requested: pg_sys::CommandId, cmax: pg_sys::CommandId) -> pg_sys::CommandId {
    if !target.committed && target.cid != requested && cmax == target.cid { target.cid - 1 } else { cmax }
}

/// The command id with which an in-transaction promotion is visible to command `cid` itself.
///
/// INSERT … ON CONFLICT has to lock the promoted row within the command that made it known to the index. (By the promoter
/// the row is committed and none of this matters.) What is deleted for the command's snapshot changes with that: see
/// [`revelations`].
pub fn earlier_command(cid: pg_sys::CommandId) -> pg_sys::CommandId {
    REVELATIONS.set(REVELATIONS.get() + 1);
    if cid == 0 {
        // SAFETY: a transaction that inserts has an id, or gets it now.
        FIRST_COMMAND.set(unsafe { pg_sys::GetTopTransactionId() }.into_inner());
    }
    cid.saturating_sub(1)
}

thread_local! {
    static REVELATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The command id with which the heap has to change or lock the delta row at `at` for command `cid`. The first command of a
/// transaction has no earlier one: its promotions are its own, and what it does with the rows counts as the second.
///
/// # Safety
/// `rel` is open and locked.
pub unsafe fn command_for(
    rel: pg_sys::Relation,
    at: &pg_sys::ItemPointerData,
    cid: pg_sys::CommandId,
) -> pg_sys::CommandId {
    // SAFETY: the caller's promise.
    unsafe {
        let xid = pg_sys::GetTopTransactionIdIfAny();
        let promotes = cid == 0 && xid != pg_sys::InvalidTransactionId && FIRST_COMMAND.get() == xid.into_inner();
        if promotes && !deletion::origins((*rel).rd_id, compat::filenode(rel), at).is_empty() { 1 } else { cid }
    }
}

thread_local! {
    /// The transaction whose first command has promoted a row for an INSERT … ON CONFLICT.
    static FIRST_COMMAND: Cell<u32> = const { Cell::new(0) };
}

/// A number that is another one after a promotion that snapshots of the current command see.
pub fn revelations() -> u64 {
    REVELATIONS.get()
}
