//! What the online moves between the tiers have in common: reading heap pages beside their writers, and getting the
//! exclusive lock for the swap without making others wait long.
//!
//! **Everybody sees** a tuple that was committed before the horizon and that nobody deleted; `GetOldestNonRemovableTransactionId`
//! knows the snapshots of this server, of its standbys and of its slots. Such a tuple may be written without xmin and xmax.
//! All others are carried over as they are (`rewriteheap.c`, as CLUSTER does), under the exclusive lock. Standbys that do not report
//! their snapshots are told of which transactions nothing is left (`pg::standby`).

use super::throttle::Throttle;
use crate::am::handler;
use crate::error::StrataError;
use crate::guc;
use crate::pg::standby::Traces;
use crate::pg::{OpenRelation, compat, ext, guarded, tid};
use pgrx::pg_sys::*;
use roaring::{RoaringBitmap, RoaringTreemap};
use std::string::String;

/// Refuses what cannot be moved, with a clear error.
pub fn check(relid: Oid) {
    let wrong = |message: String, hint: &str| StrataError::WrongObject { message, hint: hint.to_owned() }.raise();
    // SAFETY: system-cache look-ups.
    unsafe {
        PreventCommandDuringRecovery(c"a move or a consolidation".as_ptr());
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

/// Opens a warm table with the lock of step 1.
pub fn lock_warm(relid: Oid) -> OpenRelation {
    check(relid);
    // SAFETY: `check` saw an ordinary table.
    unsafe {
        LockRelationOid(relid, ShareUpdateExclusiveLock as i32);
        let rel = OpenRelation::open(relid, NoLock);
        if !handler::is_warm(rel.0) {
            StrataError::WrongObject {
                message: format!("table {} is not warm", crate::pg::qualified_name(relid)),
                hint: "strata.partitions shows the tier of each partition.".into(),
            }
            .raise();
        }
        rel
    }
}

/// A TID as a number, in the order of the table.
pub fn tag(at: &ItemPointerData) -> u64 {
    (u64::from(tid::block(at)) << 16) | u64::from(at.ip_posid)
}

/// The horizon: rows of transactions before it are seen by all. Waits a little for snapshots that are older than this
/// statement's, so that what was committed just before the move goes into fragments too.
///
/// # Safety
/// `rel` is open; a snapshot is active.
pub unsafe fn wait_for_horizon(rel: Relation) -> TransactionId {
    let patience = guc::SNAPSHOT_WAIT.get().max(0) as u64;
    let end = std::time::Instant::now() + std::time::Duration::from_millis(patience);
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
///
/// # Safety
/// `block` is a block of `rel`, which is open.
unsafe fn read(rel: Relation, block: BlockNumber, strategy: BufferAccessStrategy) -> Buffer {
    // SAFETY: `block` is below the relation's length.
    unsafe {
        let buffer = ReadBufferExtended(rel, ForkNumber::MAIN_FORKNUM, block, ReadBufferMode::RBM_NORMAL, strategy);
        LockBuffer(buffer, BUFFER_LOCK_SHARE as i32);
        buffer
    }
}

/// Gives `change` a copy of a pinned page, which takes the page's place through a WAL record.
///
/// # Safety
/// `buffer` is a pinned and unlocked page of `rel`, which only this session writes to; `change` raises no ERROR.
pub unsafe fn change_page(rel: Relation, buffer: Buffer, change: impl FnOnce(Page)) {
    // SAFETY: the caller's promise.
    unsafe {
        LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE as i32);
        let log = GenericXLogStart(rel);
        change(GenericXLogRegisterBuffer(log, buffer, GENERIC_XLOG_FULL_IMAGE as i32));
        GenericXLogFinish(log);
        LockBuffer(buffer, BUFFER_LOCK_UNLOCK as i32);
    }
}

/// Calls `f` for each tuple of a share-locked page.
///
/// # Safety
/// The page is share-locked.
unsafe fn for_each_tuple(rel: Relation, buffer: Buffer, block: BlockNumber, mut f: impl FnMut(&mut HeapTupleData)) {
    // SAFETY: the page is locked; line pointers up to the maximum offset are valid.
    unsafe {
        let page = BufferGetPage(buffer);
        for offset in 1..=compat::max_offset(page) {
            let item = compat::item_id(page, offset);
            if (*item).lp_flags() != LP_NORMAL {
                continue;
            }
            f(&mut compat::page_tuple(rel, page, block, offset, item));
        }
    }
}

/// `TransactionIdPrecedes`, which is called for each row.
fn precedes(a: TransactionId, b: TransactionId) -> bool {
    let (a, b) = (a.into_inner(), b.into_inner());
    let normal = |xid: u32| xid >= FirstNormalTransactionId.into_inner();
    if normal(a) && normal(b) { (a.wrapping_sub(b) as i32) < 0 } else { a < b }
}

/// Whether every snapshot sees the tuple: it was committed before the horizon and nobody deleted it.
///
/// # Safety
/// The tuple's page is locked.
unsafe fn everybody_sees(tuple: &mut HeapTupleData, horizon: TransactionId, buffer: Buffer) -> bool {
    // What HeapTupleSatisfiesVacuum says first, if the hints are there: inserted by a transaction that committed, and not deleted.
    const SURE: u16 = (HEAP_XMIN_COMMITTED | HEAP_XMAX_INVALID) as u16;
    // SAFETY: the page is locked.
    unsafe {
        let xmin = compat::tuple_xmin(tuple.t_data);
        (xmin == FrozenTransactionId || precedes(xmin, horizon))
            && ((*tuple.t_data).t_infomask & SURE == SURE
                || HeapTupleSatisfiesVacuum(tuple, horizon, buffer) == HTSV_Result::HEAPTUPLE_LIVE)
    }
}

/// Gets ACCESS EXCLUSIVE without making others wait long: first whenever it is free, then in queued attempts that give up
/// after a while and leave a pause in which those who waited behind them go on.
///
/// A worker in the background gives up as soon as somebody waits for the lock that it has: that may be who has a lock on the table
/// and wants more, and nobody is to fail for what the server does by itself. (Autovacuum is cancelled for this.) So an attempt
/// of its ends before deadlocks are looked for.
///
/// # Safety
/// `relid` exists.
pub unsafe fn lock_for_swap(relid: Oid) {
    use std::time::{Duration, Instant};
    let seconds = guc::SWAP_TIMEOUT.get() as u64;
    let end = Instant::now() + Duration::from_secs(seconds);
    let free_attempts = Instant::now() + Duration::from_secs(2);
    // SAFETY: lock-manager calls on an existing relation that is locked.
    unsafe {
        let background = MyBackendType == BackendType::B_BG_WORKER;
        let longest = if background { (DeadlockTimeout.max(4) / 4) as u64 } else { 1000 };
        let yield_to_others = || {
            pgrx::check_for_interrupts!();
            if background {
                let rel = OpenRelation::open(relid, NoLock);
                if LockHasWaitersRelation(rel.0, ShareUpdateExclusiveLock as i32) {
                    StrataError::SwapTimeout { relid, seconds: 0 }.raise();
                }
            }
        };
        while Instant::now() < free_attempts.min(end) {
            yield_to_others();
            if ConditionalLockRelationOid(relid, AccessExclusiveLock as i32) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut patience = longest.min(50);
        while Instant::now() < end {
            yield_to_others();
            if compat::lock_with_timeout(relid, AccessExclusiveLock as i32, patience) {
                return;
            }
            let pause = Instant::now() + Duration::from_millis(10 * patience);
            while Instant::now() < pause {
                yield_to_others();
                if ConditionalLockRelationOid(relid, AccessExclusiveLock as i32) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            patience = (patience * 2).min(longest);
        }
    }
    StrataError::SwapTimeout { relid, seconds }.raise()
}

/// The heap pages of a table as step 1 of a move has read them.
pub struct PagesRead {
    /// Rows that were taken have an xmin before this.
    horizon: TransactionId,
    /// Pages whose LSN is not beyond this have not changed since.
    since: XLogRecPtr,
    /// Pages that had rows which were not taken.
    left_over: RoaringBitmap,
    /// The rows of those pages that were taken. Whether a row was cannot be seen later: a deletion that was in progress then may
    /// have been rolled back since.
    taken: RoaringTreemap,
    /// Pages that were read.
    blocks: BlockNumber,
    /// Who made the rows that were taken.
    pub traces: Traces,
}

impl PagesRead {
    /// Reads all pages and gives `take` each tuple that everybody sees. The tuple's page is pinned and not locked.
    ///
    /// # Safety
    /// `rel` is open; a snapshot is active.
    pub unsafe fn read(rel: Relation, mut take: impl FnMut(&mut HeapTupleData)) -> Self {
        // SAFETY: the caller's promise; each page is pinned and share-locked while its tuples are looked at.
        unsafe {
            let horizon = wait_for_horizon(rel);
            let since = GetXLogInsertRecPtr();
            let blocks = RelationGetNumberOfBlocksInFork(rel, ForkNumber::MAIN_FORKNUM);
            let (mut left_over, mut taken) = (RoaringBitmap::new(), RoaringTreemap::new());
            let mut traces = Traces::default();
            let strategy = GetAccessStrategy(BufferAccessStrategyType::BAS_BULKREAD);
            let mut throttle = Throttle::begin();
            for block in 0..blocks {
                pgrx::check_for_interrupts!();
                let buffer = read(rel, block, strategy);
                let mut live: Vec<HeapTupleData> = Vec::new();
                for_each_tuple(rel, buffer, block, |tuple| {
                    if everybody_sees(tuple, horizon, buffer) {
                        traces.lose(compat::tuple_xmin(tuple.t_data));
                        live.push(*tuple);
                    } else {
                        left_over.insert(block);
                    }
                });
                // The pin keeps the tuples where they are; detoasting must not happen under the page lock.
                LockBuffer(buffer, BUFFER_LOCK_UNLOCK as i32);
                if left_over.contains(block) {
                    taken.extend(live.iter().map(|tuple| tag(&tuple.t_self)));
                }
                live.iter_mut().for_each(&mut take);
                ReleaseBuffer(buffer);
                throttle.spent(u64::from(BLCKSZ));
            }
            FreeAccessStrategy(strategy);
            Self { horizon, since, left_over, taken, blocks, traces }
        }
    }

    /// Step 2: looks again at pages that changed since, or had rows that were not taken. Gives `carry` each tuple that was not
    /// taken, with what VACUUM would say of it; the tuple's page is pinned. Returns which of the tuples that were taken are
    /// still there.
    ///
    /// # Safety
    /// `rel` is locked against everybody.
    pub unsafe fn read_again(
        &self,
        rel: Relation,
        oldest_xmin: TransactionId,
        mut carry: impl FnMut(&mut HeapTupleData, HTSV_Result::Type),
    ) -> Changed {
        // SAFETY: the caller's promise; pages are locked while they are looked at.
        unsafe {
            let mut changed = Changed::default();
            let strategy = GetAccessStrategy(BufferAccessStrategyType::BAS_BULKREAD);
            for block in 0..RelationGetNumberOfBlocksInFork(rel, ForkNumber::MAIN_FORKNUM) {
                pgrx::check_for_interrupts!();
                let buffer = read(rel, block, strategy);
                let unchanged = block < self.blocks
                    && !self.left_over.contains(block)
                    && compat::page_lsn(BufferGetPage(buffer)) <= self.since;
                if unchanged {
                    UnlockReleaseBuffer(buffer);
                    continue;
                }
                changed.pages.insert(block);
                let whole = block < self.blocks && !self.left_over.contains(block);
                let mut carried: Vec<(HeapTupleData, HTSV_Result::Type)> = Vec::new();
                for_each_tuple(rel, buffer, block, |tuple| {
                    let taken = whole || self.taken.contains(tag(&tuple.t_self));
                    if taken && everybody_sees(tuple, self.horizon, buffer) {
                        changed.still_there.insert(tag(&tuple.t_self));
                    } else {
                        carried.push((*tuple, HeapTupleSatisfiesVacuum(tuple, oldest_xmin, buffer)));
                    }
                });
                LockBuffer(buffer, BUFFER_LOCK_UNLOCK as i32);
                for (tuple, status) in &mut carried {
                    if *status == HTSV_Result::HEAPTUPLE_DEAD {
                        changed.traces.lose_dead(tuple);
                    }
                    carry(tuple, *status);
                }
                ReleaseBuffer(buffer);
            }
            FreeAccessStrategy(strategy);
            changed
        }
    }
}

/// What [`PagesRead::read_again`] found.
#[derive(Default)]
pub struct Changed {
    pages: RoaringBitmap,
    still_there: RoaringTreemap,
    /// Who removed the rows that are dead.
    pub traces: Traces,
}

impl Changed {
    /// Whether the tuple with this tag, which was taken, is gone.
    pub fn is_gone(&self, tag: u64) -> bool {
        self.pages.contains((tag >> 16) as u32) && !self.still_there.contains(tag)
    }
}

/// Copies old tuples into a new table as CLUSTER does, with their xmin and xmax. Unlike CLUSTER, it also keeps whether a tuple was
/// deleted or its key changed (`HEAP_KEYS_UPDATED`, which `rewriteheap.c` leaves out): else a transaction with an older
/// snapshot could lock the row FOR KEY SHARE, and refer to it by a foreign key.
pub struct Rewrite {
    state: ext::RewriteState,
    /// The old table, the new one, and its first block that this rewrite fills.
    tables: (Relation, Relation, BlockNumber),
    /// Something was deleted, or its key was changed.
    keys_changed: bool,
    old: TupleDesc,
    new: TupleDesc,
    values: Vec<Datum>,
    nulls: Vec<bool>,
}

impl Rewrite {
    /// Starts behind the last block of `new`.
    ///
    /// # Safety
    /// Both relations are open, with the same attributes, and stay open; only this session knows `new`.
    pub unsafe fn begin(old: Relation, new: Relation, oldest_xmin: TransactionId) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let form = &*(*old).rd_rel;
            let natts = (*(*old).rd_att).natts as usize;
            Self {
                state: guarded(|| ext::begin_heap_rewrite(old, new, oldest_xmin, form.relfrozenxid, form.relminmxid)),
                tables: (old, new, RelationGetNumberOfBlocksInFork(new, ForkNumber::MAIN_FORKNUM)),
                keys_changed: false,
                old: (*old).rd_att,
                new: (*new).rd_att,
                values: vec![Datum::null(); natts],
                nulls: vec![false; natts],
            }
        }
    }

    /// Writes the values of `tuple` with its own visibility. The values are formed anew: the catalog's values for attributes
    /// that were added later do not survive the swap, and dropped attributes need not.
    ///
    /// # Safety
    /// `tuple` is a tuple of the old table, pinned or copied.
    pub unsafe fn carry(&mut self, tuple: HeapTuple) {
        // SAFETY: the caller's promise.
        unsafe {
            let copy = self.reform(tuple);
            self.write(tuple, copy);
            heap_freetuple(copy);
        }
    }

    /// A new tuple with the values of `tuple`.
    ///
    /// # Safety
    /// As for [`Rewrite::carry`].
    pub unsafe fn reform(&mut self, tuple: HeapTuple) -> HeapTuple {
        // SAFETY: the caller's promise; the arrays have an element for each attribute.
        unsafe {
            heap_deform_tuple(tuple, self.old, self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
            for i in 0..self.nulls.len() {
                self.nulls[i] |= compat::attribute(self.new, i).attisdropped;
            }
            heap_form_tuple(self.new, self.values.as_mut_ptr(), self.nulls.as_mut_ptr())
        }
    }

    /// Writes `new` with the visibility of `old`; `new.t_self` says where it is, unless it waits for the rest of its chain.
    ///
    /// # Safety
    /// Both are tuples in memory, and two.
    pub unsafe fn write(&mut self, old: HeapTuple, new: HeapTuple) {
        // SAFETY: the caller's promise.
        unsafe {
            self.keys_changed |= u32::from((*(*old).t_data).t_infomask2) & HEAP_KEYS_UPDATED != 0;
            guarded(|| ext::rewrite_heap_tuple(self.state, old, new));
        }
    }

    /// Says that `tuple` is seen by nobody.
    ///
    /// # Safety
    /// `tuple` is a tuple of the old table.
    pub unsafe fn dead(&mut self, tuple: HeapTuple) {
        // SAFETY: the caller's promise.
        unsafe {
            guarded(|| ext::rewrite_heap_dead_tuple(self.state, tuple));
        }
    }

    /// Writes what waits, and the last page.
    pub fn end(self) {
        // SAFETY: begun in `begin`, ended once; both tables are still open.
        unsafe {
            guarded(|| ext::end_heap_rewrite(self.state));
            if self.keys_changed {
                let (old, new, from) = self.tables;
                tell_changed_keys(old, new, from);
            }
        }
    }
}

/// Says of the tuples from block `from` of `new` on whether they were deleted or their key was changed: where a tuple has a successor, that
/// is seen from the attributes that `old`'s keys have.
unsafe fn tell_changed_keys(old: Relation, new: Relation, from: BlockNumber) {
    // SAFETY: both are open; only this session knows `new`, so that its tuples stay as they are while a page is pinned.
    unsafe {
        let keys = RelationGetIndexAttrBitmap(old, IndexAttrBitmapKind::INDEX_ATTR_BITMAP_KEY);
        for block in from..RelationGetNumberOfBlocksInFork(new, ForkNumber::MAIN_FORKNUM) {
            pgrx::check_for_interrupts!();
            let buffer = read(new, block, std::ptr::null_mut());
            let mut updated: Vec<HeapTupleData> = Vec::new();
            for_each_tuple(new, buffer, block, |tuple| {
                let mask = u32::from((*tuple.t_data).t_infomask);
                let locked_only = mask & HEAP_XMAX_LOCK_ONLY != 0
                    || mask & (HEAP_XMAX_IS_MULTI | HEAP_XMAX_EXCL_LOCK) == HEAP_XMAX_EXCL_LOCK;
                if mask & HEAP_XMAX_INVALID == 0 && !locked_only {
                    updated.push(*tuple);
                }
            });
            LockBuffer(buffer, BUFFER_LOCK_UNLOCK as i32);
            updated.retain_mut(|tuple| !keeps_key(new, tuple, keys));
            if !updated.is_empty() {
                change_page(new, buffer, |page| {
                    for tuple in &updated {
                        let offset = tuple.t_self.ip_posid;
                        let copy = compat::page_tuple(new, page, block, offset, compat::item_id(page, offset));
                        (*copy.t_data).t_infomask2 |= HEAP_KEYS_UPDATED as u16;
                    }
                });
            }
            ReleaseBuffer(buffer);
        }
    }
}

/// Whether a tuple that was updated or deleted has a successor in `rel` with the same values in the attributes `keys`.
unsafe fn keeps_key(rel: Relation, tuple: &mut HeapTupleData, keys: *mut Bitmapset) -> bool {
    // SAFETY: the tuple is pinned, its successor while it is looked at; the attributes are those of `rel`.
    unsafe {
        let next = (*tuple.t_data).t_ctid;
        let has_successor = tag(&next) != tag(&tuple.t_self)
            && tid::block(&next) < RelationGetNumberOfBlocksInFork(rel, ForkNumber::MAIN_FORKNUM);
        let mut successor = HeapTupleData { t_self: next, ..Default::default() };
        let mut buffer: Buffer = 0;
        if !has_successor || !compat::heap_fetch_any(rel, &mut successor, &mut buffer) {
            return false;
        }
        let desc = (*rel).rd_att;
        let (mut same, mut member) = (true, -1);
        while same {
            member = bms_next_member(keys, member);
            if member < 0 {
                break;
            }
            let number = member + FirstLowInvalidHeapAttributeNumber;
            let (mut a_null, mut b_null) = (false, false);
            let a = heap_getattr(tuple, number, desc, &mut a_null);
            let b = heap_getattr(&raw mut successor, number, desc, &mut b_null);
            let attribute = compat::attribute(desc, number as usize - 1);
            same = a_null == b_null
                && (a_null || ext::datumIsEqual(a, b, attribute.attbyval, i32::from(attribute.attlen)));
        }
        ReleaseBuffer(buffer);
        same
    }
}
