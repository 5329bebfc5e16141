//! What keeps promotions out of an index build.
//!
//! CREATE INDEX holds SHARE on the table, which keeps writers away, and reads it once. A promotion that somebody else's row lock asks for
//! (SELECT FOR UPDATE, a foreign key: ROW SHARE, which SHARE lets through) writes a delta row meanwhile, and an entry into each
//! index that it sees; the new index is not among them before CREATE INDEX commits. So the two exclude each other by a lock of their own,
//! on the table as an object with a number that PostgreSQL does not use:
//!
//! * who asks for a promotion holds it until the promotion is committed ([`promoting`]);
//! * who builds an index holds it from before the scan until the end of the transaction ([`building`]), and does not get it while
//!   a promotion is under way.
//!
//! REINDEX holds ACCESS EXCLUSIVE on an index that promotions know. They would have to wait for it in the promoter, where nobody sees
//! who waits for whom; so who asks for a promotion locks the indexes first.
//!
//! Everything else that holds SHARE or SHARE ROW EXCLUSIVE (ADD FOREIGN KEY, CREATE TRIGGER, LOCK TABLE) has nothing against promotions:
//! they change no row.
//!
//! **Lock order.** The table, this lock, the indexes, the row.

use super::index::index_oids;
use pgrx::pg_sys;
use pgrx::pg_sys::{LockWaitPolicy, Relation};

/// `objsubid` of the lock; tables have no such column.
const PROMOTIONS: u16 = u16::MAX;

/// Whether this transaction keeps index builds away by its lock on the table.
///
/// # Safety
/// `rel` is open.
pub unsafe fn excluded(rel: Relation) -> bool {
    // SAFETY: the caller's promise.
    unsafe { pg_sys::CheckRelationLockedByMe(rel, pg_sys::RowExclusiveLock as i32, true) }
}

/// Keeps index builds away until [`promoted`]; false: there is one, and the caller does not want to wait.
///
/// # Safety
/// `rel` is open, and this transaction holds ROW SHARE on it.
pub unsafe fn promoting(rel: Relation, policy: LockWaitPolicy::Type) -> bool {
    let mode = pg_sys::RowExclusiveLock as i32;
    // SAFETY: the caller's promise. Indexes that are made from here on are known once the lock is there.
    unsafe {
        let relid = (*rel).rd_id;
        if policy == LockWaitPolicy::LockWaitBlock {
            pg_sys::LockDatabaseObject(pg_sys::RelationRelationId, relid, PROMOTIONS, mode);
        } else if !pg_sys::ConditionalLockDatabaseObject(pg_sys::RelationRelationId, relid, PROMOTIONS, mode) {
            return false;
        }
        for index in index_oids(rel) {
            if policy == LockWaitPolicy::LockWaitBlock {
                pg_sys::LockRelationOid(index, mode);
            } else if !pg_sys::ConditionalLockRelationOid(index, mode) {
                promoted(rel);
                return false;
            }
        }
    }
    true
}

/// The promotion that [`promoting`] was for is committed. (The indexes stay locked, as by an INSERT.)
///
/// # Safety
/// As for [`promoting`].
pub unsafe fn promoted(rel: Relation) {
    // SAFETY: the caller's promise.
    unsafe {
        let mode = pg_sys::RowExclusiveLock as i32;
        pg_sys::UnlockDatabaseObject(pg_sys::RelationRelationId, (*rel).rd_id, PROMOTIONS, mode);
    }
}

/// Keeps promotions away until the end of the transaction, which is about to read the table for an index. Does nothing for those who do
/// not hold SHARE on the table (CREATE INDEX CONCURRENTLY, which adds what came meanwhile; parallel queries), nor in a parallel
/// worker, whose leader has called it.
///
/// # Safety
/// `rel` is open and locked.
pub unsafe fn building(rel: Relation) {
    // SAFETY: the caller's promise.
    unsafe {
        if pg_sys::ParallelWorkerNumber < 0 && pg_sys::CheckRelationLockedByMe(rel, pg_sys::ShareLock as i32, true) {
            let mode = pg_sys::ShareLock as i32;
            pg_sys::LockDatabaseObject(pg_sys::RelationRelationId, (*rel).rd_id, PROMOTIONS, mode);
        }
    }
}
