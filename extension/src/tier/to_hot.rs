//! The online move of a table from warm back to heap.
//!
//! ```text
//!  1 copy   SHARE UPDATE EXCLUSIVE: readers and writers go on; no VACUUM, no other move, no DDL
//!           a transient heap table gets every fragment row that is not deleted, and every delta row that all snapshots
//!           see, as frozen rows; where each of them is can be computed (`Places`); indexes are built over them
//!  2 swap   ACCESS EXCLUSIVE, asked for in short attempts so that nobody queues long behind it
//!           marks of fragment rows, and pages of the delta store that changed since, are looked at again:
//!             a copied row that is gone                    → its copy becomes a dead line pointer, entries of it lead nowhere
//!             a row that was deleted or promoted lately    → is written with the mark's transaction as xmax
//!             a row that was not copied                    → is written with its xmin and xmax (like CLUSTER)
//!           index entries for what was written now; files are swapped (`pg::swap`)
//! ```
//!
//! **Snapshots.** A snapshot that is older than a mark sees the fragment row; so a row whose mark is not visible to all is
//! written as a heap row with the mark's transaction as xmax. If it was promoted, its ctid leads to the delta row that took
//! its place, as if it had been updated: who waited for the row under READ COMMITTED finds the newer version. `rewriteheap.c`
//! resolves such chains by (xmax of the old, xmin of the new version); for that the delta row must look like an update. A standby is
//! told which of its snapshots are older than all that (`pg::standby`).
//!
//! **Serializable.** A row that was promoted is written as one that the promoter updated, which is not serializable. So a serializable
//! transaction whose snapshot is older than the promotion, and that reads the row only after the move, gets no conflict with who has
//! changed the delta row. (As long as the table is warm, `am::ssi` tells it.)
//!
//! **Places.** The rewrite fills pages one after the other, so the n-th copied row is in the page whose first row's number is
//! the last not above n. Copied rows are numbered fragment rows first, by row id, then delta rows by TID; two bitmaps and one
//! number a page tell the place of any copy.
//!
//! **Crash or abort** at any point leaves the table as it was: the transient table and its files vanish with the transaction.
//! The fragments' catalog rows stay for the sweeper after the commit.

use super::online::{self, PagesRead, Rewrite, tag};
use super::throttle::Throttle;
use crate::am::{fragments, index};
use crate::error::StrataError;
use crate::pg::catalog::{self, Deletion, DeletionScan};
use crate::pg::standby::Traces;
use crate::pg::swap::{self, IndexCopy};
use crate::pg::{OpenRelation, compat, ext, failpoint, guarded, tid};
use pgrx::pg_sys::*;
use roaring::RoaringTreemap;
use std::collections::{HashMap, HashSet};

/// What step 1 has done.
struct Copied {
    places: Places,
    pages: PagesRead,
    indexes: Vec<IndexCopy>,
}

/// Where the copies are.
#[derive(Default)]
struct Places {
    /// Fragment rows that were copied, by row id.
    rows: RoaringTreemap,
    /// Delta rows that were copied, by TID.
    delta: RoaringTreemap,
    /// The number of the first row in each page.
    pages: Vec<u64>,
}

impl Places {
    /// Notes that the next row is at `at`.
    fn add(&mut self, number: u64, at: &ItemPointerData) {
        while self.pages.len() <= tid::block(at) as usize {
            self.pages.push(number);
        }
    }

    fn total(&self) -> u64 {
        self.rows.len() + self.delta.len()
    }

    /// The place of the copy of a fragment row.
    fn of_row(&self, row_id: u64) -> Option<ItemPointerData> {
        self.rows.contains(row_id).then(|| self.place(self.rows.rank(row_id) - 1))
    }

    /// The place of the copy of a delta row.
    fn of_delta(&self, tag: u64) -> Option<ItemPointerData> {
        self.delta.contains(tag).then(|| self.place(self.rows.len() + self.delta.rank(tag) - 1))
    }

    fn place(&self, number: u64) -> ItemPointerData {
        let block = self.pages.partition_point(|first| *first <= number) - 1;
        tid::at(block as u32, (number - self.pages[block]) as u16 + 1)
    }
}

/// Moves warm table `relid` back to heap; returns its rows.
pub fn to_hot(relid: Oid) -> i64 {
    let started = std::time::Instant::now();
    // SAFETY: the lock keeps the table.
    unsafe {
        let rel = online::lock_warm(relid);
        let transient = swap::transient(rel.0, HEAP_TABLE_AM_OID, ShareUpdateExclusiveLock);
        let copied = copy(rel.0, transient);
        let mut traces = copied.pages.traces;
        traces.tell(rel.0);
        drop(rel);
        failpoint::hit(failpoint::MOVE_BEFORE_SWAP);
        online::lock_for_swap(relid);
        let locked = std::time::Instant::now();
        let rows = carry_over(relid, transient, &copied, &mut traces);
        swap::exchange(relid, transient, &copied.indexes, rows as f64);
        failpoint::hit(failpoint::MOVE_BEFORE_COMMIT);
        pgrx::debug1!(
            "strata: moved {} rows of {} back in {:?}, exclusive lock held {:?}",
            rows,
            crate::pg::qualified_name(relid),
            started.elapsed(),
            locked.elapsed()
        );
        rows as i64
    }
}

/// Step 1: fills the transient table and builds its indexes.
unsafe fn copy(rel: Relation, transient: Oid) -> Copied {
    // SAFETY: `rel` is open; tuples of the delta store are used while their page is pinned.
    unsafe {
        let new = OpenRelation::open(transient, AccessExclusiveLock);
        let mut places = Places::default();
        let mut rewrite = Rewrite::begin(rel, new.0, GetOldestNonRemovableTransactionId(rel));
        let mut frozen = FrozenHeader::new();

        let slot = MakeSingleTupleTableSlot((*rel).rd_att, &raw const TTSOpsHeapTuple);
        let mut now = SnapshotData { snapshot_type: SnapshotType::SNAPSHOT_SELF, ..Default::default() };
        let mut throttle = Throttle::begin();
        index::for_each_row(rel, &raw mut now, slot, None, |at| {
            let Some(row_id) = tid::row_id(&at) else { return };
            let mut should_free = false;
            let tuple = ExecFetchSlotHeapTuple(slot, true, &mut should_free);
            rewrite.write(frozen.tuple(), tuple);
            places.add(places.total(), &(*tuple).t_self);
            places.rows.insert(row_id);
            throttle.spent(u64::from((*tuple).t_len));
        });
        ExecDropSingleTupleTableSlot(slot);

        let pages = PagesRead::read(rel, |tuple| {
            let copy = rewrite.reform(tuple);
            rewrite.write(frozen.tuple(), copy);
            places.add(places.total(), &(*copy).t_self);
            places.delta.insert(tag(&tuple.t_self));
            heap_freetuple(copy);
        });
        rewrite.end();
        let indexes = swap::build_indexes(rel, new.0, |_| true);
        Copied { places, pages, indexes }
    }
}

/// A tuple header that says: committed before everything, deleted by nobody.
struct FrozenHeader {
    header: HeapTupleHeaderData,
    tuple: HeapTupleData,
}

impl FrozenHeader {
    fn new() -> Self {
        let mut header = HeapTupleHeaderData::default();
        header.t_choice.t_heap.t_xmin = FrozenTransactionId;
        header.t_infomask = (HEAP_XMIN_COMMITTED | HEAP_XMIN_INVALID | HEAP_XMAX_INVALID) as u16;
        Self { header, tuple: HeapTupleData { t_self: tid::at(0, 1), ..Default::default() } }
    }

    /// To be used before `self` moves.
    fn tuple(&mut self) -> HeapTuple {
        self.tuple.t_data = &raw mut self.header;
        self.header.t_ctid = self.tuple.t_self;
        &raw mut self.tuple
    }
}

/// What the marks of fragment rows say under the exclusive lock.
#[derive(Default)]
struct Marks {
    /// Rows whose marks every snapshot sees.
    dead: Vec<u64>,
    /// Rows whose mark is not visible to every snapshot.
    recent: HashMap<u64, Deletion>,
    /// Who wrote the marks of dead rows.
    traces: Traces,
}

/// Reads the marks of `relid`. All transactions that wrote them have ended, or are this one.
unsafe fn marks(rel: Relation, oldest_xmin: TransactionId) -> Marks {
    let mut marks = Marks::default();
    // SAFETY: `rel` is open and locked; the snapshot outlives the scan.
    unsafe {
        let relid = (*rel).rd_id;
        let Some(oids) = catalog::oids() else { StrataError::NotInstalled.raise() };
        let mut now = SnapshotData { snapshot_type: SnapshotType::SNAPSHOT_SELF, ..Default::default() };
        let first = fragments::of(rel).map_or(0, |table| crate::am::deletion::first_row_id(&table));
        for mark in DeletionScan::from(&oids, relid, first, &raw mut now) {
            if mark.own_command.is_none()
                && (mark.xmin == FrozenTransactionId || TransactionIdPrecedes(mark.xmin, oldest_xmin))
            {
                // Marks come by row id. A row may have two.
                if marks.dead.last() != Some(&mark.row_id) {
                    marks.dead.push(mark.row_id);
                }
                marks.traces.lose(mark.xmin);
                continue;
            }
            if let Some(other) = marks.recent.insert(mark.row_id, mark) {
                // The promotion and the mark of a transaction that is older than it: the promotion counts for everybody else.
                if mark.own_command.is_some() || other.own_command.is_some() {
                    StrataError::OwnChanges { relid }.raise();
                }
                if TransactionIdPrecedes(other.xmin, mark.xmin) {
                    marks.recent.insert(mark.row_id, other);
                }
            }
        }
    }
    marks
}

/// Step 2, under ACCESS EXCLUSIVE: makes the transient table what the table is now. Returns the rows.
unsafe fn carry_over(relid: Oid, transient: Oid, copied: &Copied, traces: &mut Traces) -> u64 {
    // SAFETY: both relations are locked exclusively; pages are locked while they are looked at, and pinned while tuples of
    // them are rewritten.
    unsafe {
        let rel = OpenRelation::open(relid, NoLock);
        CheckTableNotInUse(rel.0, c"strata.to_hot".as_ptr());
        let new = OpenRelation::open(transient, NoLock);
        let oldest_xmin = GetOldestNonRemovableTransactionId(rel.0);
        let file = compat::filenode(rel.0);
        let places = &copied.places;
        let fragments = fragments::of(rel.0);
        let marks = marks(rel.0, oldest_xmin);
        let from = RelationGetNumberOfBlocksInFork(new.0, ForkNumber::MAIN_FORKNUM);
        let mut gone: Vec<ItemPointerData> = Vec::new();
        let mut added = 0;
        let mut rewrite = Rewrite::begin(rel.0, new.0, oldest_xmin);

        // Delta rows that an old fragment row's ctid will lead to.
        let mut successors: HashSet<u64> = HashSet::new();
        for row_id in &marks.dead {
            if !marks.recent.contains_key(row_id) {
                gone.extend(places.of_row(*row_id));
            }
        }
        let slot = MakeSingleTupleTableSlot((*rel.0).rd_att, &raw const TTSOpsHeapTuple);
        let mut recent: Vec<&Deletion> = marks.recent.values().collect();
        recent.sort_by_key(|d| d.row_id);
        for mark in recent {
            gone.extend(places.of_row(mark.row_id));
            let Some(table) = &fragments else { break };
            if !table.fetch(rel.0, mark.row_id, slot) {
                continue;
            }
            let leads_on = mark.is_promotion() && mark.filenode == file && !is_deleted(rel.0, &mark.delta);
            if leads_on {
                successors.insert(tag(&mark.delta));
            }
            let mut should_free = false;
            let source = ExecFetchSlotHeapTuple(slot, true, &mut should_free);
            let old = heap_copytuple(source);
            deleted_by(old, mark, leads_on);
            rewrite.write(old, source);
            heap_freetuple(old);
        }
        ExecDropSingleTupleTableSlot(slot);

        let changed = copied.pages.read_again(rel.0, oldest_xmin, |tuple, status| {
            if status == HTSV_Result::HEAPTUPLE_DEAD {
                rewrite.dead(tuple);
                return;
            }
            if matches!(status, HTSV_Result::HEAPTUPLE_LIVE | HTSV_Result::HEAPTUPLE_INSERT_IN_PROGRESS) {
                added += 1;
            }
            if successors.contains(&tag(&tuple.t_self)) {
                let old = heap_copytuple(tuple);
                (*(*old).t_data).t_infomask |= HEAP_UPDATED as u16;
                rewrite.carry(old);
                heap_freetuple(old);
            } else {
                rewrite.carry(tuple);
            }
        });
        rewrite.end();
        traces.join(&marks.traces);
        traces.join(&changed.traces);
        traces.tell(rel.0);
        gone.extend(places.delta.iter().filter(|at| changed.is_gone(*at)).filter_map(|at| places.of_delta(at)));
        remove(new.0, &mut gone);
        swap::insert_entries(new.0, &copied.indexes, from);
        CacheInvalidateRelcache(rel.0);
        let rows = places.total() - gone.len() as u64 + added;
        drop(new);
        drop(rel);
        CommandCounterIncrement();
        rows
    }
}

/// Whether a delta row was deleted without a successor: then the fragment row that it took the place of counts as deleted.
unsafe fn is_deleted(rel: Relation, at: &ItemPointerData) -> bool {
    let mut tuple = HeapTupleData { t_self: *at, ..Default::default() };
    let mut buffer: Buffer = 0;
    // SAFETY: `rel` is open and locked exclusively; the tuple is read while its buffer is pinned.
    unsafe {
        if !compat::heap_fetch_any(rel, &mut tuple, &mut buffer) {
            return true;
        }
        let header = tuple.t_data;
        let mask = u32::from((*header).t_infomask);
        let kept =
            mask & HEAP_XMAX_INVALID != 0 || mask & HEAP_XMAX_LOCK_ONLY != 0 || tag(&(*header).t_ctid) != tag(at);
        let deleted = !kept && {
            let xid = if mask & HEAP_XMAX_IS_MULTI != 0 {
                HeapTupleGetUpdateXid(header)
            } else {
                (*header).t_choice.t_heap.t_xmax
            };
            TransactionIdIsCurrentTransactionId(xid) || TransactionIdDidCommit(xid)
        };
        ReleaseBuffer(buffer);
        deleted
    }
}

/// Makes `tuple` one that the mark's transaction deleted, or updated to the delta row.
unsafe fn deleted_by(tuple: HeapTuple, mark: &Deletion, leads_on: bool) {
    // SAFETY: `tuple` is a copy in memory, its xmin frozen.
    unsafe {
        let header = (*tuple).t_data;
        (*header).t_infomask &= !(HEAP_XMAX_INVALID as u16);
        (*header).t_choice.t_heap.t_xmax = mark.xmin;
        (*header).t_choice.t_heap.t_field3.t_cid = mark.own_command.unwrap_or(0);
        if leads_on {
            (*header).t_ctid = mark.delta;
        } else {
            (*header).t_infomask2 |= HEAP_KEYS_UPDATED as u16;
        }
    }
}

/// Makes the copies at `places` dead line pointers: index entries of them lead nowhere, and the next VACUUM removes both.
unsafe fn remove(new: Relation, places: &mut [ItemPointerData]) {
    places.sort_by_key(tag);
    // SAFETY: `new` is locked exclusively and known to this session only; a page is changed through a generic WAL record.
    unsafe {
        for page in places.chunk_by(|a, b| tid::block(a) == tid::block(b)) {
            pgrx::check_for_interrupts!();
            let block = tid::block(&page[0]);
            let buffer = ReadBuffer(new, block);
            for at in page {
                let item = compat::item_id(BufferGetPage(buffer), at.ip_posid);
                let mut tuple = compat::page_tuple(new, BufferGetPage(buffer), block, at.ip_posid, item);
                if (*tuple.t_data).t_infomask & HEAP_HASEXTERNAL as u16 != 0 {
                    guarded(|| ext::heap_toast_delete(new, &mut tuple, true));
                }
            }
            LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE as i32);
            let log = GenericXLogStart(new);
            let copy = GenericXLogRegisterBuffer(log, buffer, GENERIC_XLOG_FULL_IMAGE as i32);
            for at in page {
                let item = compat::item_id(copy, at.ip_posid).cast_mut();
                (*item).set_lp_flags(LP_DEAD);
                (*item).set_lp_off(0);
                (*item).set_lp_len(0);
            }
            GenericXLogFinish(log);
            UnlockReleaseBuffer(buffer);
        }
    }
}
