//! The online move of a table (mostly a partition) from heap to warm.
//!
//! ```text
//!  1 copy   SHARE UPDATE EXCLUSIVE: readers and writers go on; no VACUUM, no other move, no DDL
//!           every row that all snapshots see (xmin before the horizon, not deleted) goes into fragments; their TIDs are kept
//!  2 swap   ACCESS EXCLUSIVE, asked for in short attempts so that nobody queues long behind it
//!           pages that changed since (by LSN) or had other rows are read again:
//!             a copied row that is gone      → its fragment row is deleted for every snapshot
//!             a row that was not copied      → goes to the new delta store with its xmin and xmax (like CLUSTER)
//!           a transient table of access method warm gets the delta rows; fragments are recorded for its file;
//!           files are swapped and indexes rebuilt (`finish_heap_swap`): plain btrees only over the delta rows
//! ```
//!
//! **Snapshots.** A fragment holds only rows that every snapshot of step 1 and later sees, unless they are deleted; versions
//! that only some snapshots see stay heap tuples. So also a REPEATABLE READ transaction that is older than the move reads
//! the same table before and after it.
//!
//! **Writers** of step 1 change the heap, which is read again in step 2 where its pages changed. A line pointer may have
//! been pruned and used again meanwhile; the new tuple's xmin is not before the horizon, which tells it apart.
//!
//! **Crash or abort** at any point leaves the table as it was, and fragment files without a catalog row for the sweeper. The
//! commit makes all visible at once; the old heap file goes with it.
//!
//! **Logical decoding** sees nothing: the rewrite logs no logical changes.

use super::writer::{self, FragmentWriter};
use crate::am::{analyze, handler, unique};
use crate::error::StrataError;
use crate::guc;
use crate::pg::catalog;
use crate::pg::{OpenRelation, compat, ext, failpoint, guarded};
use pgrx::pg_sys::*;
use roaring::RoaringBitmap;
use std::collections::HashMap;
use std::string::String;

/// How long a move waits for older snapshots.
const HORIZON_PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);

/// Moves the rows of heap table `relid` into fragments; returns how many.
pub fn to_warm(relid: Oid) -> i64 {
    let started = std::time::Instant::now();
    check(relid);
    // SAFETY: `check` saw an ordinary table; the lock keeps it.
    unsafe {
        LockRelationOid(relid, ShareUpdateExclusiveLock as i32);
        let rel = OpenRelation::open(relid, NoLock);
        if handler::is_warm(rel.0) {
            StrataError::WrongObject {
                message: format!("table {} is warm already", crate::pg::qualified_name(relid)),
                hint: "strata.to_hot() moves it back.".into(),
            }
            .raise();
        }
        let heap_bytes = total_size(rel.0);
        let copied = copy(rel.0);
        drop(rel);
        failpoint::hit(failpoint::MOVE_BEFORE_SWAP);
        lock_for_swap(relid);
        let locked = std::time::Instant::now();
        let rel = OpenRelation::open(relid, NoLock);
        CheckTableNotInUse(rel.0, c"strata.to_warm".as_ptr());
        let rows = swap(rel, copied, heap_bytes);
        failpoint::hit(failpoint::MOVE_BEFORE_COMMIT);
        pgrx::debug1!(
            "strata: moved {} rows of {} in {:?}, exclusive lock held {:?}",
            rows,
            crate::pg::qualified_name(relid),
            started.elapsed(),
            locked.elapsed()
        );
        rows as i64
    }
}

/// Refuses what cannot be moved, with a clear error.
fn check(relid: Oid) {
    let wrong = |message: String, hint: &str| StrataError::WrongObject { message, hint: hint.to_owned() }.raise();
    // SAFETY: system-cache look-ups.
    unsafe {
        let name = crate::pg::qualified_name(relid);
        let kind = get_rel_relkind(relid) as u8;
        if kind == RELKIND_PARTITIONED_TABLE {
            wrong(format!("table {name} is partitioned"), "Move its partitions, or let strata.manage() do it.");
        }
        if kind != RELKIND_RELATION {
            wrong(format!("{name} is not a table"), "Only ordinary tables and partitions can be moved.");
        }
        if !compat::is_owner(relid) {
            StrataError::NotOwner { relid }.raise();
        }
        if IsCatalogRelationOid(relid) {
            wrong(format!("{name} is a system catalog"), "Only ordinary tables and partitions can be moved.");
        }
        if get_rel_namespace(relid) == get_namespace_oid(c"strata".as_ptr(), true) {
            wrong(
                format!("{name} is a table of Strata's catalog"),
                "Only ordinary tables and partitions can be moved.",
            );
        }
        if get_rel_persistence(relid) as u8 != RELPERSISTENCE_PERMANENT {
            wrong(
                format!("table {name} is temporary or unlogged"),
                "A fragment outlives a crash; only permanent tables can be moved.",
            );
        }
    }
}

unsafe fn total_size(rel: Relation) -> u64 {
    // SAFETY: `rel` is open.
    unsafe {
        let size = compat::total_relation_size((*rel).rd_id);
        size.max(0) as u64
    }
}

/// What step 1 has done.
struct Copied {
    finished: Vec<writer::Finished>,
    /// Rows are in fragments if their xmin precedes this.
    horizon: TransactionId,
    /// Pages whose LSN is not beyond this have not changed since.
    since: XLogRecPtr,
    /// Pages that had rows which were not copied.
    left_over: RoaringBitmap,
    /// Pages that were read.
    blocks: BlockNumber,
}

/// A TID as a tag of a fragment row.
fn tag(at: &ItemPointerData) -> u64 {
    (u64::from(crate::pg::tid::block(at)) << 16) | u64::from(at.ip_posid)
}

/// Step 1: reads the heap and writes the fragments.
unsafe fn copy(rel: Relation) -> Copied {
    // SAFETY: `rel` is open; each page is pinned and share-locked while its tuples are looked at and copied.
    unsafe {
        let horizon = wait_for_horizon(rel);
        let since = GetXLogInsertRecPtr();
        let blocks = RelationGetNumberOfBlocksInFork(rel, ForkNumber::MAIN_FORKNUM);
        let mut writer = FragmentWriter::new(rel, rel);
        let mut left_over = RoaringBitmap::new();
        let strategy = GetAccessStrategy(BufferAccessStrategyType::BAS_BULKREAD);
        let natts = (*(*rel).rd_att).natts as usize;
        let (mut values, mut nulls) = (vec![Datum::null(); natts], vec![false; natts]);
        let context = writer::row_context();
        for block in 0..blocks {
            pgrx::check_for_interrupts!();
            let buffer = read(rel, block, strategy);
            let mut live: Vec<HeapTupleData> = Vec::new();
            for_each_tuple(rel, buffer, block, |tuple| {
                if everybody_sees(tuple, horizon, buffer) {
                    live.push(*tuple);
                } else {
                    left_over.insert(block);
                }
            });
            // The pin keeps the tuples where they are; detoasting must not happen under the page lock.
            LockBuffer(buffer, BUFFER_LOCK_UNLOCK as i32);
            for tuple in &mut live {
                MemoryContextReset(context);
                let old = MemoryContextSwitchTo(context);
                heap_deform_tuple(tuple, (*rel).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
                writer.push(values.as_ptr(), nulls.as_ptr(), tag(&tuple.t_self));
                MemoryContextSwitchTo(old);
            }
            ReleaseBuffer(buffer);
        }
        MemoryContextDelete(context);
        FreeAccessStrategy(strategy);
        Copied { finished: writer.finish(), horizon, since, left_over, blocks }
    }
}

/// The horizon: rows of transactions before it are seen by all. Waits a little for snapshots that are older than this
/// statement's, so that what was committed just before the move goes into fragments too.
unsafe fn wait_for_horizon(rel: Relation) -> TransactionId {
    let end = std::time::Instant::now() + HORIZON_PATIENCE;
    // SAFETY: `rel` is open; a snapshot is active while a statement runs.
    unsafe {
        let wanted = (*GetActiveSnapshot()).xmin;
        loop {
            let horizon = GetOldestNonRemovableTransactionId(rel);
            if !TransactionIdPrecedes(horizon, wanted) || std::time::Instant::now() >= end {
                return horizon;
            }
            pgrx::check_for_interrupts!();
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

/// Pins and share-locks a page.
unsafe fn read(rel: Relation, block: BlockNumber, strategy: BufferAccessStrategy) -> Buffer {
    // SAFETY: `block` is below the relation's length.
    unsafe {
        let buffer = ReadBufferExtended(rel, ForkNumber::MAIN_FORKNUM, block, ReadBufferMode::RBM_NORMAL, strategy);
        LockBuffer(buffer, BUFFER_LOCK_SHARE as i32);
        buffer
    }
}

/// Calls `f` for each tuple of a share-locked page.
unsafe fn for_each_tuple(rel: Relation, buffer: Buffer, block: BlockNumber, mut f: impl FnMut(&mut HeapTupleData)) {
    // SAFETY: the page is locked; line pointers up to the maximum offset are valid.
    unsafe {
        let page = BufferGetPage(buffer);
        for offset in 1..=compat::max_offset(page) {
            let item = compat::item_id(page, offset);
            if (*item).lp_flags() != LP_NORMAL {
                continue;
            }
            let mut tuple = HeapTupleData {
                t_len: (*item).lp_len(),
                t_self: ItemPointerData {
                    ip_blkid: BlockIdData { bi_hi: (block >> 16) as u16, bi_lo: (block & 0xffff) as u16 },
                    ip_posid: offset,
                },
                t_tableOid: (*rel).rd_id,
                t_data: page.cast::<u8>().add((*item).lp_off() as usize).cast(),
            };
            f(&mut tuple);
        }
    }
}

/// Whether every snapshot sees the tuple: it was committed before the horizon and nobody deleted it.
unsafe fn everybody_sees(tuple: &mut HeapTupleData, horizon: TransactionId, buffer: Buffer) -> bool {
    // SAFETY: the page is locked.
    unsafe {
        let xmin = compat::tuple_xmin(tuple.t_data);
        (xmin == FrozenTransactionId || TransactionIdPrecedes(xmin, horizon))
            && HeapTupleSatisfiesVacuum(tuple, horizon, buffer) == HTSV_Result::HEAPTUPLE_LIVE
    }
}

/// Gets ACCESS EXCLUSIVE without making others wait long: first whenever it is free, then in queued attempts that give up
/// after a while and leave a pause in which those who waited behind them go on.
unsafe fn lock_for_swap(relid: Oid) {
    use std::time::{Duration, Instant};
    let seconds = guc::SWAP_TIMEOUT.get() as u64;
    let end = Instant::now() + Duration::from_secs(seconds);
    let free_attempts = Instant::now() + Duration::from_secs(2);
    // SAFETY: lock-manager calls on an existing relation.
    unsafe {
        while Instant::now() < free_attempts.min(end) {
            pgrx::check_for_interrupts!();
            if ConditionalLockRelationOid(relid, AccessExclusiveLock as i32) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut patience = 50;
        while Instant::now() < end {
            if compat::lock_with_timeout(relid, AccessExclusiveLock as i32, patience) {
                return;
            }
            let pause = Instant::now() + Duration::from_millis(10 * patience);
            while Instant::now() < pause {
                pgrx::check_for_interrupts!();
                if ConditionalLockRelationOid(relid, AccessExclusiveLock as i32) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            patience = (patience * 2).min(1000);
        }
    }
    StrataError::SwapTimeout { relid, seconds }.raise()
}

/// Step 2, under ACCESS EXCLUSIVE. Returns the rows that are in fragments.
unsafe fn swap(rel: OpenRelation, mut copied: Copied, heap_bytes: u64) -> u64 {
    let warm = compat::access_method_oid(c"warm");
    // SAFETY: the relation is locked exclusively: nobody else reads or writes it, all writers have ended.
    unsafe {
        let relid = (*rel.0).rd_id;
        let form = *(*rel.0).rd_rel;
        let new_oid = guarded(|| {
            ext::make_new_heap(relid, form.reltablespace, warm, form.relpersistence, AccessExclusiveLock as i32)
        });
        let new = OpenRelation::open(new_oid, AccessExclusiveLock);
        let gone = carry_over(rel.0, new.0, &copied);
        let filenode = compat::filenode(new.0);
        let rows = writer::record(relid, filenode, &mut copied.finished, heap_bytes);
        mark_gone(relid, filenode, &copied, &gone);
        drop(new);
        CacheInvalidateRelcache(rel.0);
        drop(rel);
        CommandCounterIncrement();
        unique::with_known_unique(|| {
            guarded(|| {
                ext::finish_heap_swap(
                    relid,
                    new_oid,
                    false,
                    false,
                    false,
                    true,
                    form.relfrozenxid,
                    form.relminmxid,
                    form.relpersistence,
                );
            });
        });
        let rel = OpenRelation::open(relid, NoLock);
        analyze::keep_one_page(rel.0);
        rows - gone.len() as u64
    }
}

/// Copies what is not in the fragments to the new delta store; returns the tags of copied rows that are gone.
unsafe fn carry_over(old: Relation, new: Relation, copied: &Copied) -> Vec<u64> {
    // SAFETY: both relations are locked exclusively; pages are locked while they are looked at, and pinned while tuples of
    // them are rewritten.
    unsafe {
        let form = &*(*old).rd_rel;
        let blocks = RelationGetNumberOfBlocksInFork(old, ForkNumber::MAIN_FORKNUM);
        let oldest_xmin = GetOldestNonRemovableTransactionId(old);
        let state = guarded(|| ext::begin_heap_rewrite(old, new, oldest_xmin, form.relfrozenxid, form.relminmxid));
        let strategy = GetAccessStrategy(BufferAccessStrategyType::BAS_BULKREAD);
        let mut changed = RoaringBitmap::new();
        let mut still_there: HashMap<u64, ()> = HashMap::new();
        for block in 0..blocks {
            pgrx::check_for_interrupts!();
            let buffer = read(old, block, strategy);
            let unchanged = block < copied.blocks
                && !copied.left_over.contains(block)
                && compat::page_lsn(BufferGetPage(buffer)) <= copied.since;
            if unchanged {
                UnlockReleaseBuffer(buffer);
                continue;
            }
            changed.insert(block);
            let mut carried: Vec<(HeapTupleData, HTSV_Result::Type)> = Vec::new();
            for_each_tuple(old, buffer, block, |tuple| {
                if block < copied.blocks && everybody_sees(tuple, copied.horizon, buffer) {
                    still_there.insert(tag(&tuple.t_self), ());
                } else {
                    carried.push((*tuple, HeapTupleSatisfiesVacuum(tuple, oldest_xmin, buffer)));
                }
            });
            LockBuffer(buffer, BUFFER_LOCK_UNLOCK as i32);
            for (mut tuple, status) in carried {
                if status == HTSV_Result::HEAPTUPLE_DEAD {
                    guarded(|| ext::rewrite_heap_dead_tuple(state, &mut tuple));
                } else {
                    let copy = heap_copytuple(&mut tuple);
                    guarded(|| ext::rewrite_heap_tuple(state, &mut tuple, copy));
                    heap_freetuple(copy);
                }
            }
            ReleaseBuffer(buffer);
        }
        FreeAccessStrategy(strategy);
        guarded(|| ext::end_heap_rewrite(state));
        copied
            .finished
            .iter()
            .flat_map(|f| f.tags.iter())
            .filter(|t| changed.contains((**t >> 16) as u32) && !still_there.contains_key(t))
            .copied()
            .collect()
    }
}

/// Deletes the fragment rows of `gone` for every snapshot: where a snapshot still sees such a row, it is a delta row.
fn mark_gone(relid: Oid, filenode: Oid, copied: &Copied, gone: &[u64]) {
    if gone.is_empty() {
        return;
    }
    let Some(oids) = catalog::oids() else { StrataError::NotInstalled.raise() };
    let gone: std::collections::HashSet<u64> = gone.iter().copied().collect();
    let nowhere = catalog::nowhere();
    // SAFETY: a transaction is in progress.
    let cid = unsafe { GetCurrentCommandId(true) };
    for f in &copied.finished {
        for (i, t) in f.tags.iter().enumerate() {
            if gone.contains(t) {
                catalog::insert_deletion(&oids, relid, f.row.first_row_id + i as u64, filenode, &nowhere, cid, true);
            }
        }
    }
}
